"""Measure trained weights on poses seen by random cameras, with exact and with detector-like 2D joints."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from tools import command

if TYPE_CHECKING:
    import torch

    from tools.experiment import ExperimentConfig

BATCH = 256


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--weights", help="weights file (default: the weights that ship)")
    p.add_argument("--body", help="SMPL model, .npz or .pkl (default: the free body that ships)")
    p.add_argument(
        "--dataset",
        choices=("poses", "prior"),
        required=True,
        help="a pose file, or the shipped pose prior (not held out)",
    )
    p.add_argument("--root", help="the pose file of --dataset poses: .npz with 'poses' (N, 24, 3 or 4)")
    p.add_argument("--subjects", type=int, nargs="+", default=[], help="only these people of the pose file")
    p.add_argument("--samples", type=int, default=4096, help="how many pose, body and camera draws")
    p.add_argument(
        "--input", choices=("gt", "noisy"), nargs="+", default=["gt", "noisy"], help="exact 2D, or detector-like"
    )
    p.add_argument("--config", help="experiment whose cameras and noise are used (default: configs/evaluation.yaml)")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--out", type=Path, help="folder for metrics.json")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, print the table."""
    args = parser().parse_args(argv)
    from mesh.errors import InputError
    from tools.experiment import load_experiment

    if args.dataset == "poses" and not args.root:
        raise InputError("--dataset poses needs --root FILE.npz")
    if args.samples < 1:
        raise InputError(f"--samples must be at least 1, got {args.samples}")
    args.config = args.config or str(files("configs") / "evaluation.yaml")
    device = command.choose_device(args.device)
    report = {name: _measure(args, load_experiment(args.config), name, device) for name in args.input}
    width = max(len(metric) for scores in report.values() for metric in scores)
    print(f"{'':{width}}  " + "  ".join(f"{name:>8}" for name in report))
    for metric in next(iter(report.values())):
        print(f"{metric:{width}}  " + "  ".join(f"{scores[metric]:8.2f}" for scores in report.values()))
    if args.out:
        _write(args, report)
    return 0


def _measure(args: argparse.Namespace, config: ExperimentConfig, name: str, device: torch.device) -> dict[str, float]:
    """Mean and median errors over the samples, in mm; share of bodies that face the wrong way, in per cent."""
    from dataclasses import replace

    from scipy.sparse import csr_matrix

    from data.draws import Draws, step_generator
    from data.order import SampleOrder
    from data.poses import read_poses
    from data.synthesis import PoseSource, Synthesiser
    from gcn.evaluation import lifter_errors, mesh_errors
    from gcn.layers.sparse import SparseMatrix
    from gcn.recovery import MeshRecovery
    from mesh.joints import HUMAN36M17
    from tools.experiment import pose_source

    recovery = MeshRecovery.from_pretrained(args.weights, body=args.body, device=device)
    source: PoseSource
    if args.dataset == "poses":
        source = read_poses(args.root, subjects=tuple(args.subjects))
    else:
        source = pose_source(replace(config.poses, source="prior"), validation=True)
    noise = replace(config.synthesis.noise, clean=float(name == "gt"))
    synthesiser = Synthesiser(source, recovery.body, replace(config.synthesis, noise=noise), device=device)
    order = SampleOrder(len(source), args.seed)
    batches = []
    for number, first in enumerate(range(0, args.samples, BATCH)):
        size = min(BATCH, args.samples - first)
        draws = Draws(size, step_generator(args.seed, number, device), device=device)
        batches.append(synthesiser.batch(order.indices(first, size), draws, with_vertices=True))
    regressor = SparseMatrix(csr_matrix(recovery.body.regressor(HUMAN36M17))).to(device)
    errors = mesh_errors(recovery.model, regressor, batches)
    turned = (errors.pop("facing_error_rad") > math.pi / 2).float().mean() * 100
    errors |= lifter_errors(recovery.model.posenet, recovery.model.config, batches)
    scores = {metric: float(values.mean()) for metric, values in errors.items()}
    scores |= {f"{metric} (median)": float(values.median()) for metric, values in errors.items()}
    return {**scores, "facing wrong by > 90 deg (%)": float(turned)}


def _write(args: argparse.Namespace, report: dict[str, dict[str, float]]) -> None:
    """`metrics.json` with the protocol beside the numbers."""
    from mesh.errors import InputError
    from mesh.files import replacing

    protocol = {
        "dataset": args.dataset,
        "root": args.root,
        "subjects": args.subjects or "all",
        "samples": args.samples,
        "seed": args.seed,
        "cameras and noise": args.config,
        "joints": "14 of human36m17 (no pelvis, torso, nose), regressed from the mesh",
        "root joint": "human36m17 pelvis",
        "alignment": "none (MPJPE, MPVPE); similarity Procrustes per sample (PA)",
        "average": "over samples",
        "unit": "mm",
    }
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise InputError(f"cannot make the output folder {args.out}: {exc.strerror}") from exc
    with replacing(args.out / "metrics.json") as file:
        file.write(json.dumps({"protocol": protocol, "metrics": report}, indent=1).encode())


if __name__ == "__main__":
    sys.exit(command.run(main))
