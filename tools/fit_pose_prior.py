"""Fit the pose prior that ships to a file of motion-capture poses, and compare its samples with real ones."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tools import command

if TYPE_CHECKING:
    from torch import Tensor

    from data.prior import PosePrior

_EXAMPLE = """example:
  python tools/fit_pose_prior.py POSES.npz --out data/assets/pose_prior.npz --held-out 13 14 60"""
_PROVENANCE = (
    "Statistics of poses from mocap.cs.cmu.edu. The data used in this project was obtained from mocap.cs.cmu.edu. "
    "The database was created with funding from NSF EIA-0196217."
)
_NUM_SAMPLES = 20_000
_NUM_QUERIES = 4_000


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("poses", type=Path, help="pose file (.npz), see data/poses.py")
    p.add_argument("--out", required=True, type=Path, help="file to write (.npz)")
    p.add_argument(
        "--held-out",
        type=int,
        nargs="*",
        default=[],
        metavar="SUBJECT",
        help="judge a fit without these as well; the file that is written is fitted to everybody",
    )
    p.add_argument(
        "--max-level",
        type=int,
        help="coarsest covers of the pose space to use (default 1; all poses of a file without 'level')",
    )
    p.add_argument("--components", type=int, default=128, help="at most so many; the poorly supported dissolve")
    p.add_argument("--rank", type=int, default=16, help="factors per component")
    p.add_argument("--iterations", type=int, default=25, help="rounds of EM")
    p.add_argument("--seed", type=int, default=0)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Fit everything and write it, then judge the design on held-out subjects."""
    args = parser().parse_args(argv)
    from data.poses import read_poses
    from data.prior import load_pose_prior
    from data.prior_fitting import fit_pose_prior
    from mesh.archives import read_arrays

    if args.max_level is None:
        args.max_level = 1 if "level" in read_arrays(args.poses, "poses of SMPL joints", only=("level",)) else 4

    def fitted(poses: Tensor) -> PosePrior:
        return fit_pose_prior(
            poses,
            num_components=args.components,
            rank=args.rank,
            iterations=args.iterations,
            seed=args.seed,
            provenance=_PROVENANCE,
        )

    poses = read_poses(args.poses, max_level=args.max_level).quaternions
    if args.held_out:
        kept = tuple(args.held_out)
        seen = read_poses(args.poses, except_subjects=kept, max_level=args.max_level).quaternions
        held_out = read_poses(args.poses, subjects=kept, max_level=args.max_level).quaternions
        judged = fitted(seen)
    fitted(poses).save(args.out)
    if args.held_out:
        _compare(judged, seen, held_out)
    prior = load_pose_prior(args.out)
    print(
        f"{args.out}: {args.out.stat().st_size / 1024:.0f} KiB, {len(prior.weights)} components of {len(poses)} poses, "
        f"least support {prior.support.min():.0f}, {len(prior.free)} coordinates, rank {prior.loadings.shape[-1]}"
    )
    _print_angles(prior, poses)
    return 0


def _compare(prior: PosePrior, seen: Tensor, held_out: Tensor) -> None:
    """Likelihood, and distances between samples and real poses against those between real people."""
    import torch

    from data.draws import Draws
    from data.prior_fitting import log_likelihood
    from data.synthesis import mirror_pose

    print(f"fitted to {len(seen)} poses, judged by {len(held_out)} poses of other people")
    print(f"log-likelihood, nats per pose: seen {log_likelihood(prior, seen).mean():.2f}, ", end="")
    print(f"held out {log_likelihood(prior, held_out).mean():.2f}")
    both = _joints_mm(torch.cat((seen, mirror_pose(seen))))
    others = _joints_mm(torch.cat((held_out, mirror_pose(held_out))))
    queries = others[torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))[:_NUM_QUERIES]]
    print("nearest neighbour, mm RMS over joints     median  90 %  99 %")
    _print_distances("held-out pose -> real pose of others", queries, both)
    for temperature in (1.0, 0.7, 0.5):
        generator = torch.Generator().manual_seed(0)
        drawn = prior.draw(Draws(_NUM_SAMPLES, generator), temperature=temperature)
        outside = ((drawn < prior.lower) | (drawn > prior.upper)).float().mean()
        samples = _joints_mm(prior.sample(_NUM_SAMPLES, generator, temperature=temperature))
        print(f"temperature {temperature}: {outside:.2%} of the coordinates beyond their bounds")
        _print_distances("  sample -> real pose", samples[:_NUM_QUERIES], torch.cat((both, others)))
        _print_distances("  held-out pose -> sample", queries, samples)


def _joints_mm(poses: Tensor) -> Tensor:
    """Joints about the pelvis, yaw removed, scaled so that distances are RMS over joints; (N, 24, 4) -> (N, 72)."""
    import torch

    from data.prior import remove_yaw
    from mesh.body import load_body
    from mesh.rotation import quaternion_to_matrix
    from mesh.skinning import forward_kinematics

    body = load_body()
    rest = torch.from_numpy(body.joint_regressor @ body.template)
    level = torch.cat((remove_yaw(poses[:, :1]), poses[:, 1:]), dim=1)
    joints = forward_kinematics(quaternion_to_matrix(level), rest.expand(len(poses), -1, -1), body.parents)[1]
    return (joints - joints[:, :1]).flatten(1) * 1000 / len(rest) ** 0.5


def _print_distances(label: str, queries: Tensor, pool: Tensor) -> None:
    import torch

    nearest = torch.cat([torch.cdist(part, pool).amin(dim=1) for part in queries.split(1000)])
    figures = torch.quantile(nearest, torch.tensor((0.5, 0.9, 0.99)))
    print(f"{label:40s}" + "".join(f"{figure:7.0f}" for figure in figures))


def _print_angles(prior: PosePrior, poses: Tensor) -> None:
    """Distribution of each joint's rotation angle, real beside drawn; the root's is its tilt."""
    import torch

    from data.prior import remove_yaw
    from mesh.joints import SMPL24

    level = torch.cat((remove_yaw(poses[:, :1]), poses[:, 1:]), dim=1)
    drawn = prior.sample(_NUM_SAMPLES, torch.Generator().manual_seed(0))
    levels = torch.tensor((0.05, 0.5, 0.95, 0.999))
    real_deg, drawn_deg = (
        torch.quantile(torch.rad2deg(2 * pose[..., 0].abs().clamp(max=1).acos()), levels, dim=0).T
        for pose in (level, drawn)
    )
    print("rotation angle, degrees: 5 %, 50 %, 95 %, 99.9 %   real | samples")
    for name, real, sample in zip(SMPL24.names, real_deg.tolist(), drawn_deg.tolist()):
        print(f"{name:16s}" + "".join(f"{v:6.0f}" for v in real) + "   |" + "".join(f"{v:6.0f}" for v in sample))


if __name__ == "__main__":
    sys.exit(command.run(main))
