"""Train the network that tells how far off each joint of a mesh probably is."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tools import command
from tools.train_posenet import run_stage


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, build, train."""
    return run_stage("uncertainty", __doc__, argv)


if __name__ == "__main__":
    sys.exit(command.run(main))
