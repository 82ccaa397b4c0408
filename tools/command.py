"""What every command line shares: sane threads, one-line errors, exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from mesh.errors import InputError

# Before torch is imported: threads that spin while they wait slow a busy machine down by an order of magnitude.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def run(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Run a command; bad input becomes one line on stderr and exit code 2, an interrupt 130."""
    try:
        return main(argv)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
