"""Train the mesh network on top of a trained lifter."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tools import command
from tools.train_posenet import parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, build, train."""
    p = parser()
    p.description = __doc__
    args = p.parse_args(argv)
    import torch

    from tools import experiment, stages

    config = experiment.load_experiment(args.config, args.set)
    if args.threads:
        torch.set_num_threads(args.threads)
    path = Path(args.runs) / (args.name or f"{Path(args.config).stem}_meshnet")
    stages.train_meshnet(config, path, resume=args.resume, device=experiment.choose_device(args.device))
    return 0


if __name__ == "__main__":
    sys.exit(command.run(main))
