"""A pose file: SMPL joint rotations without camera, shape and place.

`poses` (N, 24, 4) quaternions wxyz or (N, 24, 3) axis-angle: local rotations in SMPL joint order, y up. Taken along
where they are there: `sequence` (N,) whole numbers into `sequence_names`, `frame30` or `frame` (N,), `subject` (N,)
(becomes `person`), `level` (N,) nested covers of the pose space, coarsest first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from data.readers import Progress
from data.record_sources import settings_of
from data.records import Records, RecordsWriter
from mesh.archives import read_arrays
from mesh.errors import InputError, require
from mesh.joints import SMPL24

_LICENCE = "as the pose file; it names none"
_ROWS = 50_000  # of one chunk


@dataclass(frozen=True, kw_only=True)
class PosesOptions:
    """`validation_subjects`: the people of split validation; train takes everybody else. `max_level`: only covers up
    to this level. `licence`: what the records should say about the terms of the file.
    """

    validation_subjects: tuple[int, ...] = ()
    max_level: int | None = None
    licence: str = _LICENCE


def convert(root: Path, out: Path, *, split: str, progress: Progress, **options: Any) -> Records:
    """The poses of a file as records: `pose`, and of which sequence, person and frame they are."""
    chosen = PosesOptions(**options)
    arrays = read_arrays(root, "a pose file, an .npz with 'poses'")
    poses = _poses(arrays, root)
    keep = _selected(arrays, len(poses), split, chosen, root)
    labels = _labels(arrays, len(poses), root)
    settings = settings_of(chosen) | {"file": root.name}
    with RecordsWriter(
        out, source=f"poses of {root.name}", split=split, licence=chosen.licence, joints2d=None, joints3d=None,
        up="y", settings=settings,
    ) as writer:  # fmt: skip
        starts = range(0, len(poses), _ROWS)
        for number, start in enumerate(starts):
            key = f"{root.name} from row {start}"
            progress(number, len(starts), key)
            if not writer.has(key, [root]):
                rows = start + np.flatnonzero(keep[start : start + _ROWS])
                columns = {
                    "pose": _axis_angle(poses[rows], root),
                    **{name: label[rows] for name, label in labels.items()},
                }
                left_out = len(keep[start : start + _ROWS]) - len(rows)
                writer.add(key, columns if len(rows) else {}, {"other people or levels": left_out})
        progress(len(starts), len(starts), "")
        return writer.finish()


def _poses(arrays: dict[str, np.ndarray], path: Path) -> np.ndarray:
    poses = arrays.get("poses")
    joints = len(SMPL24)
    if poses is None or poses.ndim != 3 or poses.shape[1:] not in ((joints, 4), (joints, 3)):
        came = "no 'poses'" if poses is None else f"'poses' of shape {poses.shape}"
        raise InputError(f"{path} holds {came}; expected (N, 24, 4) quaternions wxyz or (N, 24, 3) axis-angle")
    require(poses.dtype.kind == "f", f"{path}: 'poses' must be decimal numbers, got {poses.dtype}")
    return poses


def _axis_angle(poses: np.ndarray, path: Path) -> np.ndarray:
    """(n, 24, 4 or 3) -> (n, 24, 3) radians, the shorter way round."""
    poses = poses.astype(np.float64)
    if poses.shape[-1] == 4:
        flat = poses.reshape(-1, 4)
        lengths = np.linalg.norm(flat, axis=1)
        if not (np.abs(lengths - 1) < 0.1).all():  # also NaN
            raise InputError(f"{path}: 'poses' holds quaternions that are not of length one, or NaN")
        return Rotation.from_quat(flat[:, [1, 2, 3, 0]]).as_rotvec().reshape(-1, len(SMPL24), 3)
    if not np.isfinite(poses).all():
        raise InputError(f"{path}: 'poses' holds NaN or infinity")
    return poses


def _selected(
    arrays: dict[str, np.ndarray], count: int, split: str, options: PosesOptions, path: Path
) -> np.ndarray:  # fmt: skip
    """Which rows belong to the split and the levels, (N,) truth values."""
    require(split in ("train", "validation"), f"a pose file has the splits train and validation, got {split!r}")
    keep = np.ones(count, bool)
    if options.validation_subjects:
        is_theirs = np.isin(_whole(arrays, "subject", count, path), options.validation_subjects)
        keep &= is_theirs if split == "validation" else ~is_theirs
    elif split == "validation":
        raise InputError(f"{path}: split validation needs --validation-subjects: people, not frames, are held out")
    if options.max_level is not None:
        keep &= _whole(arrays, "level", count, path) <= options.max_level
    return keep


def _labels(arrays: dict[str, np.ndarray], count: int, path: Path) -> dict[str, np.ndarray]:
    """`sequence`, `person` and `frame` of every row, as far as the file knows them."""
    labels = {}
    if "sequence" in arrays:
        index = _whole(arrays, "sequence", count, path)
        names = arrays.get("sequence_names", np.arange(index.max(initial=-1) + 1).astype(str))
        if (
            names.ndim != 1
            or names.dtype.kind not in "SU"
            or index.min(initial=0) < 0
            or index.max(initial=-1) >= len(names)
        ):
            raise InputError(f"{path}: 'sequence' must be indices into 'sequence_names', a list of texts")
        labels["sequence"] = names[index]
    for column, keys in {"person": ("subject",), "frame": ("frame", "frame30")}.items():
        found = [key for key in keys if key in arrays]
        if found:
            labels[column] = _whole(arrays, found[0], count, path)
    return labels


def _whole(arrays: dict[str, np.ndarray], key: str, count: int, path: Path) -> np.ndarray:
    """A column of whole numbers, (N,)."""
    if key not in arrays:
        raise InputError(f"{path} has no {key!r} column, which the selection needs")
    column = arrays[key]
    if column.shape != (count,) or column.dtype.kind not in "iu":
        raise InputError(f"{path}: {key!r} must be {count} whole numbers, got {column.dtype} of shape {column.shape}")
    return column.astype(np.int64)
