"""Which joint angles people reach, estimated from poses: the occupied cells of a grid, and a cell around each.

A joint's rotation is taken apart into where its bone points in the parent's frame and the twist about the bone (the
swing that leads there being the shortest). Forearm and shank are judged once more by where the upper arm or the thigh
points, as by Akhter and Black (2015), on a coarser grid and only where enough was seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.augmentation import mirror_pose
from mesh.archives import read_arrays
from mesh.errors import InputError, require
from mesh.files import write_npz
from mesh.joints import SMPL24
from mesh.rotation import quaternion_multiply

_NUM_JOINTS = len(SMPL24)
_CHUNK = 16384
_NUM_TWISTS = 35  # of 10.3 degrees; odd, so that no twist is the middle of a cell
_MIN_SEEN = 50  # poses with the parent's bone in a cell, below which the child is not judged by it

# The bone behind each joint in the rest pose (y up, facing z, left is x) and what its azimuth counts from. A right
# joint is judged as the left one of the mirror image.
_Y, _Z, _X, _DOWN = (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, -1.0, 0.0)
_BONES = {
    **dict.fromkeys(("spine1", "spine2", "spine3", "neck", "head"), (_Y, _Z)),
    **dict.fromkeys(("left_hip", "left_knee"), (_DOWN, _Z)),
    **dict.fromkeys(("left_ankle", "left_foot"), (_Z, _Y)),
    **dict.fromkeys(("left_collar", "left_shoulder", "left_elbow", "left_wrist", "left_hand"), (_X, _Z)),
}
_NAMES = tuple(name.replace("right", "left") for name in SMPL24.names[1:])  # whose limits hold for joints 1 .. 23
_TABLE = torch.tensor([list(_BONES).index(name) for name in _NAMES])
_AXIS = torch.tensor([_BONES[name][0] for name in _NAMES])
_ZERO = torch.tensor([_BONES[name][1] for name in _NAMES])
_FRAMES = torch.stack((_ZERO, torch.linalg.cross(_AXIS, _ZERO), _AXIS), dim=1)  # (23, 3, 3), the bone is the pole
_MIRROR = torch.tensor(
    [(1.0, 1.0, -1.0, -1.0) if name.startswith("right") else (1.0, 1.0, 1.0, 1.0) for name in SMPL24.names[1:]]
)
_PAIR_NAMES = [
    (f"{side}_{a}", f"{side}_{b}") for a, b in (("shoulder", "elbow"), ("hip", "knee")) for side in ("left", "right")
]
_PARENT, _CHILD = (torch.tensor([SMPL24.index(pair[end]) - 1 for pair in _PAIR_NAMES]) for end in (0, 1))
_PAIR_TABLE = torch.tensor([0, 0, 1, 1])


class _Sphere:
    """Directions in cells of about `width_deg`: bands about the pole z, each cut into cells of about that width."""

    def __init__(self, width_deg: float) -> None:
        self.num_bands = round(180 / width_deg)
        polar = (torch.arange(self.num_bands) + 0.5) * (math.pi / self.num_bands)
        self.counts = (2 * self.num_bands * polar.sin()).round().long()
        self.first = self.counts.cumsum(0) - self.counts
        self.num_cells = int(self.counts.sum())
        polar = polar.repeat_interleave(self.counts)
        place = torch.arange(self.num_cells) - self.first.repeat_interleave(self.counts)
        azimuth = 2 * math.pi * place / self.counts.repeat_interleave(self.counts)
        middles = torch.stack((polar.sin() * azimuth.cos(), polar.sin() * azimuth.sin(), polar.cos()), dim=1)
        self.touching = middles @ middles.T > math.cos(math.radians(1.5 * width_deg))  # (D, D), each touches itself

    def cell(self, direction: Tensor) -> Tensor:
        """The cell of each unit vector, (..., 3) -> (...) int64; azimuth 0 is the middle of one."""
        x, y, z = direction.unbind(-1)
        band = (z.clamp(-1, 1).acos() * (self.num_bands / math.pi)).long().clamp(max=self.num_bands - 1)
        count = self.counts.to(band.device)[band]
        place = (torch.atan2(y, x) * count / (2 * math.pi)).round().long() % count
        return self.first.to(band.device)[band] + place

    def dilated(self, occupied: Tensor) -> Tensor:
        """Those cells and the ones that touch them, (..., D, T) bool -> same."""
        return self.touching.float() @ occupied.float() > 0


_FINE, _COARSE = _Sphere(10.0), _Sphere(20.0)
_SHAPES = {
    "allowed": (len(_BONES), _FINE.num_cells, _NUM_TWISTS),
    "allowed_together": (2, _COARSE.num_cells, _COARSE.num_cells),
}


@dataclass(frozen=True, kw_only=True)
class JointLimits:
    """What joints may do; the same on both sides of the body.

    `allowed` (joints, directions, twists) bool, for the left joints and those in the middle. `allowed_together`
    (arm and leg, directions of the upper bone, directions of the lower bone) bool, both in the frame that the upper
    bone's rotation lives in.
    """

    allowed: Tensor
    allowed_together: Tensor

    def valid(self, pose: Tensor) -> Tensor:
        """Which joints do what people do, (B, 24, 4) wxyz -> (B, 24) bool. The root may do anything."""
        return torch.cat([self._valid(part) for part in pose.split(_CHUNK)]) if len(pose) else pose[..., 0] > 0

    def _valid(self, pose: Tensor) -> Tensor:
        table, together, child = (t.to(pose.device) for t in (_TABLE, _PAIR_TABLE, _CHILD))
        direction, twist, upper, lower = _cells(pose)
        valid = self.allowed.to(pose.device)[table, direction, twist]
        valid[:, child] &= self.allowed_together.to(pose.device)[together, upper, lower]
        return torch.cat((valid.new_ones(len(pose), 1), valid), dim=1)

    def save(self, path: str | Path) -> None:
        """Write the limits as `.npz`."""
        write_npz(Path(path), **{name: getattr(self, name).cpu().numpy() for name in _SHAPES})


def fit_joint_limits(pose: Tensor) -> JointLimits:
    """Limits that every one of these poses and its mirror image keeps, (N, 24, 4) wxyz, N >= 1."""
    require(len(pose) > 0, "joint limits need at least one pose to be estimated from")
    seen = torch.zeros(_SHAPES["allowed"], dtype=torch.bool)
    seen_together = torch.zeros(_SHAPES["allowed_together"], dtype=torch.bool)
    support = torch.zeros(_SHAPES["allowed_together"][:2], dtype=torch.long)
    for part in pose.cpu().split(_CHUNK):
        for image in (part, mirror_pose(part)):
            direction, twist, upper, lower = _cells(image)
            seen[_TABLE.expand_as(direction), direction, twist] = True
            table = _PAIR_TABLE.expand_as(upper)
            seen_together[table, upper, lower] = True
            support.view(-1).index_add_(
                0, (table * _COARSE.num_cells + upper).flatten(), torch.ones(upper.numel(), dtype=torch.long)
            )
    allowed = _FINE.dilated(seen | seen.roll(1, dims=2) | seen.roll(-1, dims=2))
    allowed_together = _COARSE.dilated(seen_together.mT).mT | (support < 2 * _MIN_SEEN)[..., None]
    return JointLimits(allowed=allowed, allowed_together=allowed_together)


def load_joint_limits(path: str | Path) -> JointLimits:
    """Limits written by `JointLimits.save`."""
    path = Path(path)
    arrays = read_arrays(path, "joint limits", only=_SHAPES)
    for name, shape in _SHAPES.items():
        array = arrays.get(name)
        if array is None or array.dtype != np.bool_ or array.shape != shape:
            came = "none" if array is None else f"{array.dtype} of shape {array.shape}"
            raise InputError(f"{path} holds no joint limits: {name!r} must be bool of shape {shape}, got {came}")
    return JointLimits(**{name: torch.from_numpy(arrays[name]) for name in _SHAPES})


def _cells(pose: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cells of (B, 24, 4): direction and twist of joints 1 .. 23, (B, 23) each; upper and lower bones, (B, 4) each."""
    axis, frames, mirror, parent, child = (t.to(pose.device) for t in (_AXIS, _FRAMES, _MIRROR, _PARENT, _CHILD))
    rotation = pose[:, 1:].float() * mirror
    axis = axis.expand(*rotation.shape[:2], 3)
    bone = _turned(rotation, axis)
    direction = _FINE.cell((frames @ bone[..., None])[..., 0])
    along = (rotation[..., 1:] * axis).sum(-1)
    twist = (torch.atan2(along, rotation[..., 0]) * (_NUM_TWISTS / math.pi)).round().long() % _NUM_TWISTS
    both = torch.stack((bone[:, parent], _turned(rotation[:, parent], bone[:, child])))
    upper, lower = _COARSE.cell((frames[parent] @ both[..., None])[..., 0])
    return direction, twist, upper, lower


def _turned(rotation: Tensor, vector: Tensor) -> Tensor:
    """Vectors turned by unit quaternions, (..., 4) wxyz, (..., 3) -> (..., 3)."""
    inverse = rotation * rotation.new_tensor((1.0, -1.0, -1.0, -1.0))
    pure = torch.cat((torch.zeros_like(vector[..., :1]), vector), dim=-1)
    return quaternion_multiply(quaternion_multiply(rotation, pure), inverse)[..., 1:]
