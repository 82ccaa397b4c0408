"""Pose files: real poses as SMPL joint rotations, split by subject."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.draws import Draws
from mesh.archives import read_arrays
from mesh.errors import InputError
from mesh.joints import SMPL24

_LEAST_LENGTH = 1e-6  # of a quaternion that has a direction


@dataclass(frozen=True, kw_only=True)
class PoseFile:
    """Poses of a file, a pose source for synthesis. `quaternions` (N, 24, 4) wxyz, local rotations, y up."""

    quaternions: Tensor
    name: str

    def __len__(self) -> int:
        return len(self.quaternions)

    def poses(self, index: Tensor, draws: Draws) -> Tensor:
        """The poses at `index`, (B,) int64 -> (B, 24, 4) on the device of the draws; nothing is drawn."""
        return self.quaternions[index.to(self.quaternions.device)].to(draws.device)


def read_poses(
    path: str | Path, *, subjects: tuple[int, ...] = (), except_subjects: tuple[int, ...] = (), max_level: int = 4
) -> PoseFile:
    """Read an `.npz` with `poses` (N, 24, 4) quaternions wxyz or (N, 24, 3) axis-angle in SMPL joint order.

    `subject` (N,) and `level` (N,) are needed only when the selection asks for them: `subjects` keeps those people,
    `except_subjects` leaves those out, `max_level` keeps the coarser covers of the pose space. Children of people left
    out, in a file that was evolved without holding them out, are refused.
    """
    path = Path(path)
    columns = read_arrays(path, "poses of SMPL joints")
    poses = columns.get("poses")
    if poses is None or poses.ndim != 3 or poses.shape[1:] not in ((len(SMPL24), 4), (len(SMPL24), 3)):
        came = "no 'poses'" if poses is None else f"'poses' of shape {poses.shape}"
        raise InputError(f"{path} holds {came}; expected (N, 24, 4) quaternions wxyz or (N, 24, 3) axis-angle")
    if poses.dtype.kind not in "fiu":
        raise InputError(f"{path}: 'poses' must be numbers, got {poses.dtype}")
    keep = np.ones(len(poses), bool)
    if subjects or except_subjects:
        column = _column(columns, "subject", path)
        keep &= np.isin(column, subjects) if subjects else ~np.isin(column, except_subjects)
        if not subjects:
            _refuse_descendants(columns, np.isin(column, except_subjects), path)
    if max_level < 4:
        keep &= _column(columns, "level", path) <= max_level
    if not keep.any():
        raise InputError(f"{path}: no pose is left of {len(poses)} after selecting subjects and levels")
    with np.errstate(over="ignore"):  # too large a number is infinity, which is refused
        selected = torch.from_numpy(poses[keep].astype(np.float32))
    if not torch.isfinite(selected).all():
        raise InputError(f"{path}: 'poses' holds NaN or infinity")
    if selected.shape[-1] == 3:
        from mesh.rotation import axis_angle_to_quaternion

        selected = axis_angle_to_quaternion(selected)
    length = selected.norm(dim=-1)
    if not ((length > _LEAST_LENGTH) & length.isfinite()).all():
        raise InputError(f"{path}: 'poses' holds what is no rotation: quaternions of length 0 or beyond all numbers")
    return PoseFile(quaternions=torch.nn.functional.normalize(selected, dim=-1), name=path.name)


def is_evolved(columns: Container[str]) -> bool:
    """Whether a file was made by tools/evolve.py; "parents" alone may be those of a skeleton."""
    return "parents" in columns and "generation" in columns


def _refuse_descendants(columns: dict[str, np.ndarray], left_out: np.ndarray, path: Path) -> None:
    """Evolved poses (tools/evolve.py) must not descend from people who are held out."""
    if not is_evolved(columns):
        return
    parents = columns["parents"]
    whole = parents.dtype.kind in "iu" and parents.shape == (len(left_out), 2)
    if not whole or (parents.size and parents.max() >= len(left_out)):
        raise InputError(f"{path}: 'parents' must be rows of the file for each of its {len(left_out)} poses")
    if left_out[parents[parents >= 0]].any():
        raise InputError(
            f"{path} holds evolved children of the people to be left out; evolve it anew with --validation-subjects"
        )


def _column(columns: dict[str, np.ndarray], key: str, path: Path) -> np.ndarray:
    if key not in columns:
        raise InputError(f"{path} has no {key!r} column, which the selection by {key} needs")
    column = columns[key]
    if column.shape != columns["poses"].shape[:1] or column.dtype.kind not in "iu":
        raise InputError(
            f"{path}: {key!r} must be {len(columns['poses'])} whole numbers, got {column.dtype}{column.shape}"
        )
    return column
