"""What a column of records holds, and the check of new rows before they are kept."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from mesh.errors import InputError
from mesh.joints import SMPL24

# Without extrinsics the world is the camera frame if there are intrinsics; records without either know no camera. Which
# way is up in the world is said by the header (`RecordsInfo.up`), where the reader knows it.
# Type and shape of one row; J2 and J3 stand for the joints of the 2D and 3D joint sets. Text has the width it needs.
COLUMNS: dict[str, tuple[str, tuple[int | str, ...]]] = {
    "pose": ("<f4", (24, 3)),  # axis-angle in radians, SMPL joint order, in the world frame of the source
    "shape": ("<f4", (10,)),
    "trans": ("<f4", (3,)),  # metres; vertices in the world = LBS(pose, shape) + trans
    "gender": ("|i1", ()),  # 0 neutral, 1 male, 2 female
    "mesh_valid": ("|b1", ()),  # whether pose and shape may count as truth; without the column they all may
    "extrinsics": ("<f4", (3, 4)),  # world -> camera (x right, y down, z forward, metres)
    "intrinsics": ("<f4", (4,)),  # fx, fy, cx, cy in pixels
    "joints2d": ("<f4", ("J2", 2)),  # pixels, 0 where the confidence is 0
    "confidence": ("<f4", ("J2",)),  # 0..1, 0 = not known
    "joints3d": ("<f4", ("J3", 3)),  # metres, camera frame, absolute; 0 where not valid
    "joint_valid": ("|b1", ("J3",)),
    "box": ("<f4", (4,)),  # x, y, width, height in pixels
    "image": ("S", ()),  # path below the image folder of the dataset, UTF-8
    "image_size": ("<i4", (2,)),  # width, height
    "sequence": ("S", ()),
    "person": ("<i4", ()),
    "frame": ("<i4", ()),
}
_ONE_OF = ("pose", "joints3d", "joints2d")
_TOGETHER = (("joints2d", "confidence"), ("joints3d", "joint_valid"))
_KINDS = {"f": "fiu", "i": "iu", "b": "b", "S": "SU"}  # what may be cast to what
_LARGEST_M = 1000.0  # beyond it a length is certainly not in metres
_LARGEST_SHAPE = 1000.0  # in standard deviations; beyond it nothing is a body
_LARGEST_TURN_RAD = 4 * math.pi  # beyond it an angle is certainly not in radians
_ROTATION_TOLERANCE = 1e-3


def check_columns(columns: Mapping[str, np.ndarray], sizes: Mapping[str, int], key: str) -> dict[str, np.ndarray]:
    """The columns of one chunk in the types of the format, in the order of `COLUMNS`, or an error that names `key`.

    `sizes` gives the number of joints for J2 and J3, where the records have such joints.
    """
    unknown = [name for name in columns if name not in COLUMNS]
    if unknown:
        raise InputError(f"{key}: no column is called {unknown[0]!r}; records know {', '.join(COLUMNS)}")
    if not columns:
        return {}
    if not any(name in columns for name in _ONE_OF):
        raise InputError(f"{key}: rows need at least one of {', '.join(_ONE_OF)}; got {', '.join(columns)}")
    for pair in _TOGETHER:
        if len([name for name in pair if name in columns]) == 1:
            raise InputError(f"{key}: {' and '.join(pair)} come only together")
    count = len(next(iter(columns.values())))
    checked = {name: _cast(name, columns[name], count, sizes, key) for name in COLUMNS if name in columns}
    for name, array in checked.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            row = int(np.argwhere(~np.isfinite(array))[0, 0])
            raise InputError(f"{key}: {name} of row {row} holds NaN or infinity; unknown values are 0 and masked")
    _check_values(checked, key)
    return checked


def _cast(name: str, given: np.ndarray, count: int, sizes: Mapping[str, int], key: str) -> np.ndarray:
    """In the type of the format, after a look at type and shape."""
    dtype, row_shape = COLUMNS[name]
    lacking = [size for size in row_shape if isinstance(size, str) and size not in sizes]
    if lacking:
        raise InputError(f"{key}: {name} came, but the records were opened without a joint set for it")
    expected = (count, *(sizes[size] if isinstance(size, str) else size for size in row_shape))
    array = np.asarray(given)
    kind = "S" if dtype == "S" else np.dtype(dtype).kind
    if array.shape != expected or array.dtype.kind not in _KINDS[kind]:
        wanted = {"f": "numbers", "i": "whole numbers", "b": "truth values", "S": "texts"}[kind]
        raise InputError(f"{key}: {name} must be {wanted} of shape {expected}, got {array.dtype} of {array.shape}")
    if kind == "S":
        encoded = np.char.encode(array, "utf-8") if array.dtype.kind == "U" else array
        return encoded if encoded.dtype.itemsize else encoded.astype("S1")
    if kind == "i" and array.size and not np.array_equal(array, array.astype(dtype)):
        raise InputError(f"{key}: {name} holds {np.abs(array).max()}, which does not fit into {np.dtype(dtype)}")
    with np.errstate(over="ignore"):  # becomes infinity, which is refused
        return np.ascontiguousarray(array, dtype)


def _check_values(columns: Mapping[str, np.ndarray], key: str) -> None:
    """Units, rotations, ranges, and zeros where a mask says that nothing is known."""
    for name in ("trans", "joints3d"):
        _refuse(columns, name, np.abs(columns.get(name, np.zeros(1))) > _LARGEST_M, "is further out than 1 km", key)
    far = np.abs(columns.get("shape", np.zeros(1))) > _LARGEST_SHAPE
    _refuse(columns, "shape", far, f"has a coefficient beyond {_LARGEST_SHAPE:g}", key)
    if "pose" in columns:
        turns = np.linalg.norm(columns["pose"], axis=-1)
        if turns.max(initial=0) > _LARGEST_TURN_RAD:
            row, joint = np.argwhere(turns > _LARGEST_TURN_RAD)[0]
            came = f"{SMPL24.names[joint]} by {turns[row, joint]:.3g} rad"
            raise InputError(f"{key}: pose of row {row} turns {came}; expected axis-angle in radians")
    if "extrinsics" in columns:
        _check_extrinsics(columns, key)
    if "intrinsics" in columns:
        cameras = columns["intrinsics"]
        _refuse(
            columns,
            "intrinsics",
            (cameras[:, :2] <= 0) & cameras.any(axis=1, keepdims=True),
            "has no focal length",
            key,
        )
    if "gender" in columns:
        _refuse(columns, "gender", (columns["gender"] < 0) | (columns["gender"] > 2), "is not 0, 1 or 2", key)
    if "confidence" in columns:
        confidence = columns["confidence"]
        _refuse(columns, "confidence", (confidence < 0) | (confidence > 1), "is not in 0..1", key)
        hidden = (confidence == 0) & columns["joints2d"].any(-1)
        _refuse(columns, "joints2d", hidden, "has a position at confidence 0; write 0", key)
    if "joint_valid" in columns:
        hidden = ~columns["joint_valid"] & columns["joints3d"].any(-1)
        _refuse(columns, "joints3d", hidden, "has a position where joint_valid is false; write 0", key)
    if "box" in columns:
        _refuse(columns, "box", columns["box"][:, 2:] < 0, "has a negative size", key)


def _check_extrinsics(columns: Mapping[str, np.ndarray], key: str) -> None:
    """Proper rotations, or zeros where the mesh is not valid."""
    extrinsics = columns["extrinsics"].astype(np.float64)
    rotation = extrinsics[..., :3]
    deviation = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2), initial=0)
    improper = (deviation > _ROTATION_TOLERANCE) | (np.linalg.det(rotation) < 0)
    if "mesh_valid" in columns:
        improper &= columns["mesh_valid"] | extrinsics.any(axis=(1, 2))
    _refuse(columns, "extrinsics", improper, "is no rotation and shift", key)
    far = np.abs(extrinsics[..., 3]) > _LARGEST_M
    _refuse(columns, "extrinsics", far, "shifts by more than 1 km; expected metres", key)


def _refuse(columns: Mapping[str, np.ndarray], name: str, bad: np.ndarray, what: str, key: str) -> None:
    if bad.any():
        row = int(np.argwhere(bad)[0, 0])
        values = " ".join(f"{value:.4g}" for value in np.ravel(columns[name][row])[:12])
        raise InputError(f"{key}: {name} of row {row} {what}: {values}")
