"""Make more poses of a pose file by evolution: people swap limbs, limbs turn a little, impossible poses are dropped.

See docs/evolution.md. OUT holds the poses it began with, their descendants, and the validation people unchanged (they
have none), and is a pose file itself. It is written whole after each generation: what was stopped goes on with the
same command and --resume, and ends as if it had not been stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mesh.errors import InputError, require
from tools import command

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from data.evolution import EvolutionConfig, Population
    from mesh.body import Body

_EXAMPLE = """example:
  python tools/evolve.py POSES.npz --out EVOLVED.npz --validation-subjects 5 13 --ratio 2.5
  python tools/train_posenet.py --config configs/default.yaml \\
    --set poses.file=EVOLVED.npz poses.validation_subjects='[5,13]'"""
_NO_SUBJECT = -1  # of a child, which may descend from many people
_POSE_SIZE = 24 * 4  # numbers of a pose
_STATE = ("poses", "parents", "generation", "children", "settings")


@dataclass(frozen=True, kw_only=True)
class _Source:
    """The poses to begin with, those to validate on, and what the file knows of both, in this order."""

    founders: Tensor
    validation: Tensor
    columns: dict[str, np.ndarray]  # 'subject' and 'level', where there are


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("poses", type=Path, metavar="POSES.npz", help="pose file, see data/poses.py")
    p.add_argument("--out", required=True, type=Path, metavar="EVOLVED.npz", help="the one file that is written")
    people: dict[str, Any] = {"type": int, "nargs": "*", "default": [], "metavar": "SUBJECT"}
    p.add_argument("--except-subjects", **people, help="people to leave out altogether")
    p.add_argument("--validation-subjects", **people, help="people to copy without descendants and to judge by")
    p.add_argument("--max-level", type=int, default=4, help="coarsest covers of the pose space to use (default 4: all)")
    p.add_argument("--share", type=float, default=1.0, help="begin with a random share of the poses (default 1)")
    goal = p.add_mutually_exclusive_group()
    goal.add_argument("--ratio", type=float, default=2.5, help="stop at so many times the poses begun with (2.5)")
    goal.add_argument("--size", type=int, help="stop at so many poses, those begun with included")
    p.add_argument("--seed", type=int, default=0, help="another seed, other descendants (0)")
    p.add_argument("--pairs", type=float, default=0.05, help="pairs of parents per generation and pose (0.05)")
    p.add_argument("--subtrees", nargs="+", metavar="JOINT", help="joints swapped with all that hangs on them")
    p.add_argument("--mutation", type=float, default=0.3, help="share of children whose new limb is turned (0.3)")
    p.add_argument("--mutation-sd-deg", type=float, default=10.0, metavar="DEGREES", help="by how much (10)")
    p.add_argument("--tilt", type=float, default=0.1, help="share of children tilted as a whole (0.1)")
    p.add_argument("--tilt-sd-deg", type=float, default=30.0, metavar="DEGREES", help="by how much (30)")
    p.add_argument(
        "--novel-m", type=float, default=0.0, metavar="METRES",
        help="keep only children so far from all poses before them, RMS over joints (0: keep all)",
    )  # fmt: skip
    p.add_argument("--resume", action="store_true", help="go on with OUT; all other options as they were")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Read, evolve generation by generation, write and judge each."""
    args = parser().parse_args(argv)
    _check_target(args.out, resume=args.resume)
    with command.starting():
        from data.evolution import evolve, found
        from data.joint_limits import fit_joint_limits
        from mesh.body import load_body

        config, body = _config(args), load_body()
    source = _read(args)
    size = _size(args, len(source.founders))
    settings = {**_chosen(args), **asdict(config), "size": size}
    population = _state(args.out, source, settings) if args.resume else found(source.founders)
    limits = fit_joint_limits(source.founders)
    judge = _Judge(source.validation, body)
    print(f"{len(source.founders)} poses to begin with, {size} to reach")
    if len(source.validation):
        accepted = limits.valid(source.validation).all(1).float().mean()
        print(f"{len(source.validation)} poses of other people, of which the joint limits accept {accepted:.1%}")
    print(" " * 21 + "of the children" + ("     unseen poses to the nearest, cm" if judge else ""))
    print("generation    poses  impossible  known" + ("     mean  median    90 %" if judge else ""))
    _print_row(population, judge)
    if size == len(population) and not args.resume:  # otherwise a generation follows at once
        _write(args.out, population, source, settings)
    num_before, seconds, since = len(population), 0.0, time.perf_counter()
    for grown in evolve(population, limits, body, config, seed=args.seed, size=size):
        seconds += time.perf_counter() - since
        _write(args.out, grown, source, settings)
        _print_row(grown, judge)
        population, since = grown, time.perf_counter()
    if len(population) > num_before:
        print(f"{60 * (len(population) - num_before) / seconds:,.0f} children a minute, files and judging not counted")
    print(f"{args.out}: {len(population)} poses and {len(source.validation)} for validation")
    return 0


class _Judge:
    """How far the validation poses are from the nearest pose of a growing population; false if there are none."""

    def __init__(self, validation: Tensor, body: Body) -> None:
        import torch

        from data.evolution import joint_points

        self._body, self._points, self._num_known = body, joint_points(validation, body), 0
        self._nearest = torch.full((len(validation),), torch.inf)

    def __bool__(self) -> bool:
        return len(self._points) > 0

    def figures_cm(self, population: Population) -> tuple[float, float, float]:
        """Mean, median and 90 % of the distances, RMS over joints; looks only at poses that it has not seen."""
        import torch

        from data.evolution import joint_points, nearest_distance

        new = joint_points(population.poses[self._num_known :], self._body)
        self._nearest, self._num_known = (
            torch.minimum(self._nearest, nearest_distance(self._points, new)),
            len(population),
        )
        median, most = torch.quantile(self._nearest, torch.tensor((0.5, 0.9))).tolist()
        return 100 * self._nearest.mean().item(), 100 * median, 100 * most


def _print_row(population: Population, judge: _Judge) -> None:
    row = f"{len(population.counts):10d} {len(population):8d}"
    born, impossible, known = population.counts[-1].tolist() if len(population.counts) else (0, 0, 0)
    row += f"{impossible / born:12.1%}{known / born:7.1%}" if born else f"{'-':>12}{'-':>7}"
    if judge:
        row += "{:9.2f}{:8.2f}{:8.2f}".format(*judge.figures_cm(population))
    print(row, flush=True)


def _check_target(out: Path, *, resume: bool) -> None:
    require(out.suffix == ".npz", f"the output must be named EVOLVED.npz, got {out}")
    require(out.parent.is_dir(), f"no folder {out.parent} to write {out.name} into; create it first")
    require(resume or not out.exists(), f"{out} exists; go on with --resume, or take another name")
    require(out.exists() or not resume, f"no {out} to go on with; leave --resume away to begin it")


def _config(args: argparse.Namespace) -> EvolutionConfig:
    from data.evolution import EvolutionConfig

    names = ("pairs", "mutation", "mutation_sd_deg", "tilt", "tilt_sd_deg", "novel_m")
    chosen: dict[str, Any] = {name: getattr(args, name) for name in names}
    if args.subtrees:
        chosen["subtrees"] = tuple(args.subtrees)
    return EvolutionConfig(**chosen)


def _chosen(args: argparse.Namespace) -> dict[str, Any]:
    """The options that choose poses."""
    names = ("except_subjects", "validation_subjects", "max_level", "share", "seed")
    return {name: getattr(args, name) for name in names}


def _size(args: argparse.Namespace, num_founders: int) -> int:
    finite = 1 <= args.ratio < math.inf
    require(args.size is not None or finite, f"--ratio must be a number of at least 1, got {args.ratio}")
    size = args.size if args.size is not None else round(args.ratio * num_founders)
    require(size >= num_founders, f"--size {size} is less than the {num_founders} poses to begin with")
    return size


def _read(args: argparse.Namespace) -> _Source:
    """The poses that the options choose, split by subject."""
    import numpy as np
    import torch

    from data.draws import step_generator
    from data.poses import is_evolved, read_poses
    from mesh.archives import read_arrays

    both = set(args.except_subjects) & set(args.validation_subjects)
    require(not both, f"subjects {sorted(both)} are to be left out and to validate; choose one")
    require(0 < args.share <= 1, f"--share must lie in (0, 1], got {args.share}")
    require(0 <= args.seed < 2**31, f"--seed must lie in [0, 2**31), got {args.seed}")
    poses = read_poses(args.poses).quaternions
    columns = read_arrays(args.poses, "poses of SMPL joints", only=("subject", "level", "parents", "generation"))
    bred = is_evolved(columns) and (columns["generation"] != 0).any()
    require(not bred, f"{args.poses} holds evolved poses, whose descent would be lost; begin with the recorded ones")
    columns = {name: column for name, column in columns.items() if name in ("subject", "level")}
    for name, column in columns.items():
        right = column.shape == (len(poses),) and column.dtype.kind in "iu"
        require(right, f"{args.poses}: {name!r} must be {len(poses)} whole numbers, got {column.dtype}{column.shape}")
    apart = args.except_subjects + args.validation_subjects
    for name, selects in (("subject", bool(apart)), ("level", args.max_level < 4)):
        lacking = selects and name not in columns
        require(not lacking, f"{args.poses} has no {name!r} column, which the selection by {name} needs")
    wanted = columns["level"] <= args.max_level if args.max_level < 4 else np.ones(len(poses), bool)
    subject = columns.get("subject", np.full(len(poses), _NO_SUBJECT))
    absent = sorted(set(apart) - set(subject.tolist()))
    known = ", ".join(map(str, np.unique(subject)))
    require(not absent, f"{args.poses} has no subject {', '.join(map(str, absent))}; it has {known}")
    validation = wanted & np.isin(subject, args.validation_subjects)
    founders = np.flatnonzero(wanted & ~np.isin(subject, apart))
    if args.share < 1:
        order = torch.randperm(len(founders), generator=step_generator(args.seed, 0, stream=7)).numpy()
        founders = founders[np.sort(order[: round(args.share * len(founders))])]
    require(len(founders) >= 2, f"{args.poses}: {len(founders)} poses are left to begin with; at least two are needed")
    rows = np.concatenate((founders, np.flatnonzero(validation)))
    return _Source(
        founders=poses[founders],
        validation=poses[validation],
        columns={name: column[rows].astype(np.int64) for name, column in columns.items()},
    )


def _write(out: Path, population: Population, source: _Source, settings: dict[str, Any]) -> None:
    """The population, then the validation poses; a pose file, and all that going on with it needs."""
    import torch

    from data.evolution import inherited
    from mesh.files import write_npz

    num_founders, num_validation = len(source.founders), len(source.validation)
    columns = {}
    for name, column in source.columns.items():
        recorded, held_out = torch.from_numpy(column).split((num_founders, num_validation))
        children = torch.full((len(population) - num_founders,), _NO_SUBJECT)
        values = inherited(recorded, population) if name == "level" else torch.cat((recorded, children))
        columns[name] = torch.cat((values, held_out)).numpy()
    write_npz(
        out,
        poses=torch.cat((population.poses, source.validation)).numpy(),
        parents=torch.cat((population.parents, torch.full((num_validation, 2), -1))).numpy(),
        generation=torch.cat((population.generation, torch.zeros(num_validation, dtype=torch.long))).numpy(),
        children=population.counts.numpy(),
        settings=json.dumps(settings),  # type: ignore[arg-type]
        **columns,
    )


def _state(out: Path, source: _Source, settings: dict[str, Any]) -> Population:
    """The population that OUT holds; refused if it was begun in another way."""
    import numpy as np
    import torch

    from data.evolution import Population
    from mesh.archives import read_arrays

    arrays = read_arrays(out, "poses made by tools/evolve.py", only=_STATE)
    missing = [name for name in _STATE if name not in arrays]
    require(not missing, f"{out} was not made by tools/evolve.py: it lacks {', '.join(missing)}; take another name")
    try:
        before = dict(json.loads(str(arrays["settings"])))
    except (ValueError, TypeError) as exc:
        raise InputError(f"{out} was not made by tools/evolve.py: its 'settings' are none; take another name") from exc
    for name, value in json.loads(json.dumps(settings)).items():
        same = before.get(name) == value
        require(same, f"{out} was begun with {name} {before.get(name)}, not {value}; resume with the same options")
    stored, end = np.atleast_1d(arrays["poses"]), arrays["poses"].size // _POSE_SIZE - len(source.validation)
    same = np.array_equal(stored[: len(source.founders)], source.founders) and np.array_equal(
        stored[max(0, end) :], source.validation
    )
    require(same, f"{out} was begun with other poses; resume with the pose file that it was begun with")
    fits = _fit_together(arrays, len(source.founders), end, settings["size"])
    require(fits, f"{out} was damaged: its {', '.join(_STATE[:4])} do not fit together; take another name")
    poses, parents, generation, counts = (torch.from_numpy(arrays[name]) for name in _STATE[:4])
    return Population(poses=poses[:end], parents=parents[:end], generation=generation[:end], counts=counts)


def _fit_together(arrays: dict[str, np.ndarray], num_founders: int, end: int, size: int) -> bool:
    """Whether the arrays of OUT are of one evolution, as `_write` leaves them; its own poses are the first `end`."""
    import numpy as np

    poses, parents, generation, counts = (arrays[name] for name in _STATE[:4])
    types = (poses.dtype, parents.dtype, generation.dtype, counts.dtype)
    shapes = (poses.shape[1:], parents.shape[1:], generation.shape[1:], counts.shape[1:])
    if types != (np.float32, np.int64, np.int64, np.int64) or shapes != ((24, 4), (2,), (), (3,)):
        return False
    if not len(poses) == len(parents) == len(generation) or not np.isfinite(poses).all():
        return False
    sizes = np.bincount(generation[:end].clip(0, len(counts) + 1), minlength=len(counts) + 1)
    expected = np.append(num_founders, counts[:, 0] - counts[:, 1:].sum(1))
    if end == size:
        expected[-1] = min(expected[-1], sizes[-1])  # of the last generation only as many as were asked for
    in_turn = np.array_equal(generation[:end], np.repeat(np.arange(len(sizes)), sizes))
    children = parents[num_founders:end]
    return np.array_equal(sizes, expected) and in_turn and bool(((children >= 0) & (children < end)).all())


if __name__ == "__main__":
    sys.exit(command.run(main))
