"""Train the lifter: 2D joints to root-relative 3D joints."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tools import command


def parser() -> argparse.ArgumentParser:
    """Arguments shared by both training stages."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--config", required=True, help="experiment YAML, see configs/")
    p.add_argument("--name", help="run folder under --runs (default: <config>_<stage>)")
    p.add_argument("--runs", default="runs", help="where run folders live")
    p.add_argument("--resume", action="store_true", help="continue the run of that name from its last checkpoint")
    p.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="override config values, a.b=c")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    p.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, build, train."""
    args = parser().parse_args(argv)
    import torch

    from tools import experiment, stages

    config = experiment.load_experiment(args.config, args.set)
    if args.threads:
        torch.set_num_threads(args.threads)
    path = Path(args.runs) / (args.name or f"{Path(args.config).stem}_posenet")
    stages.train_posenet(config, path, resume=args.resume, device=experiment.choose_device(args.device))
    return 0


if __name__ == "__main__":
    sys.exit(command.run(main))
