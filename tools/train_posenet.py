"""Train the lifter: 2D joints to root-relative 3D joints."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tools import command

EPILOG = (
    "Exit code: 0 trained to the end; 2 wrong call, bad input, full disk, loss not finite, dead worker; 143 and 130: "
    "SIGTERM and SIGINT (Ctrl-C) came, the run saved itself and --resume goes on. A second signal stops at once."
)


def run_stage(stage: str, purpose: str | None, argv: Sequence[str] | None) -> int:
    """The command line that the training stages share: parse, build, train."""
    p = argparse.ArgumentParser(description=purpose, epilog=EPILOG)
    p.add_argument("--config", help="experiment YAML, see configs/ (default on --resume: the run's own)")
    p.add_argument("--name", help=f"run folder under --runs (default: CONFIG_{stage})")
    p.add_argument("--runs", type=Path, default=Path("runs"), help="where run folders live (default: runs)")
    p.add_argument(
        "--resume", nargs="?", const="", metavar="RUN_OR_CHECKPOINT",
        help="go on: without a value with the run of that name; or with a run folder; or from a checkpoint file. With "
        "another --name as well: a new run that branches off from there",
    )  # fmt: skip
    p.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="override config values, a.b=c")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    p.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    args = p.parse_args(argv)
    import torch

    from mesh.errors import require
    from tools.training import Call, run

    if args.threads is not None:
        require(args.threads >= 1, f"--threads must be at least 1, got {args.threads}")
        torch.set_num_threads(args.threads)
    return run(
        Call(
            stage=stage, config=args.config, name=args.name, runs=args.runs, resume=args.resume,
            overrides=tuple(args.set), device=command.choose_device(args.device),
        )
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, build, train."""
    return run_stage("posenet", __doc__, argv)


if __name__ == "__main__":
    sys.exit(command.run(main))
