"""Train the left/right network, which notices when a detector has exchanged the sides of a body."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tools import command
from tools.train_posenet import run_stage


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, build, train."""
    return run_stage("labeling", __doc__, argv)


if __name__ == "__main__":
    sys.exit(command.run(main))
