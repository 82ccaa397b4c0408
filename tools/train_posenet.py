"""Train the lifter: 2D joints to root-relative 3D joints."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tools import command


def run_stage(stage: Literal["posenet", "meshnet", "labeling"], purpose: str | None, argv: Sequence[str] | None) -> int:
    """The command line that the training stages share: parse, build, train."""
    p = argparse.ArgumentParser(description=purpose)
    p.add_argument("--config", required=True, help="experiment YAML, see configs/")
    p.add_argument("--name", help=f"run folder under --runs (default: CONFIG_{stage})")
    p.add_argument("--runs", default="runs", help="where run folders live")
    p.add_argument("--resume", action="store_true", help="continue the run of that name from its last checkpoint")
    p.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="override config values, a.b=c")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    p.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    args = p.parse_args(argv)
    import torch

    from mesh.errors import require
    from tools import experiment, stages

    config = experiment.load_experiment(args.config, args.set)
    if args.threads is not None:
        require(args.threads >= 1, f"--threads must be at least 1, got {args.threads}")
        torch.set_num_threads(args.threads)
    path = Path(args.runs) / (args.name or f"{Path(args.config).stem}_{stage}")
    train = {"posenet": stages.train_posenet, "meshnet": stages.train_meshnet, "labeling": stages.train_labeling}[stage]
    train(config, path, resume=args.resume, device=command.choose_device(args.device))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, build, train."""
    return run_stage("posenet", __doc__, argv)


if __name__ == "__main__":
    sys.exit(command.run(main))
