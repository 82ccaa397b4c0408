"""More poses than were recorded: limbs of one person on another, blends, slight turns of single joints."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from data.augmentation import mirror_pose
from data.draws import Draws
from data.prior import NUM_JOINTS, PosePrior, pose_to_tangent
from data.synthesis import PoseSource
from mesh.errors import require
from mesh.joints import SMPL24
from mesh.rotation import axis_angle_to_quaternion, quaternion_multiply, quaternion_to_axis_angle

_COLLARS, _SHOULDERS = (list(SMPL24.indices((f"left_{name}", f"right_{name}"))) for name in ("collar", "shoulder"))
_HINGES = SMPL24.indices(("left_knee", "right_knee", "left_elbow", "right_elbow"))
# What is taken from another pose as a whole. The root stays, so a part is turned with the trunk it is put on.
_ARM = ("collar", "shoulder", "elbow", "wrist", "hand")
_LEG = ("hip", "knee", "ankle", "foot")
_ARMS, _LEGS = ([tuple(f"{side}_{name}" for name in limb) for side in ("left", "right")] for limb in (_ARM, _LEG))
_PARTS = tuple(
    SMPL24.indices(names)
    for names in (*_ARMS, *_LEGS, _LEGS[0] + _LEGS[1], ("spine1", "spine2", "spine3"), ("neck", "head"))
)
_PART_MASKS = tuple(tuple(joint in part for joint in range(NUM_JOINTS)) for part in _PARTS)


@dataclass(frozen=True, kw_only=True)
class PoseAugmentationConfig:
    """Shares of the training poses that are changed, in this order. All zero: poses as they come."""

    blend: float = 0.0  # moved towards another pose, joint by joint
    blend_reach: float = 0.5  # at most so far; 1 would be the other pose
    recombine: float = 0.0  # some parts (arms, legs, both legs, spine, head) taken from two other poses
    recombine_part: float = 0.35  # of those: the chance of each part
    collars: float = 0.0  # a part of each shoulder's turn done by its collar, the arm staying where it is
    collars_reach: float = 0.3
    turn: float = 0.0  # every joint turned a little, within the limits of human joints
    turn_sd_deg: float = 8.0

    def __post_init__(self) -> None:
        shares = ("blend", "blend_reach", "recombine", "recombine_part", "collars", "collars_reach", "turn")
        for name in shares:
            value = getattr(self, name)
            require(0 <= value <= 1, f"poses.augmentation.{name} must lie in [0, 1], got {value}")
        sd = self.turn_sd_deg
        require(0 <= sd < math.inf, f"poses.augmentation.turn_sd_deg must not be negative, got {sd}")

    @property
    def changes(self) -> bool:
        """Whether any pose is changed at all."""
        return any((self.blend, self.recombine, self.collars, self.turn))


class AugmentedPoses:
    """A pose source that changes the poses of another, each row by its own draws alone; limits are those of `prior`."""

    def __init__(self, source: PoseSource, prior: PosePrior, config: PoseAugmentationConfig) -> None:
        self.source, self.prior, self.config = source, prior, config

    def __len__(self) -> int:
        """Poses in one epoch: those of the source."""
        return len(self.source)

    def poses(self, index: Tensor, draws: Draws) -> Tensor:
        """The poses at `index` of the source, some of them changed: (B,) int64 -> (B, 24, 4) wxyz."""
        config = self.config
        pose = self.source.poses(index, draws)
        if config.blend > 0:
            moved = blend(pose, self._other(draws), config.blend_reach * draws.rand(1))
            pose = _where(draws, config.blend, moved, pose)
        if config.recombine > 0:
            pose = _where(draws, config.recombine, self._recombined(pose, draws), pose)
        if config.collars > 0:
            moved = share_with_collars(pose, config.collars_reach * draws.rand(2))
            pose = _where(draws, config.collars, moved, pose)
        if config.turn > 0:
            pose = _where(draws, config.turn, self._turned(pose, draws), pose)
        return pose

    def _other(self, draws: Draws) -> Tensor:
        other = self.source.poses(draws.randint(len(self.source)), draws)
        return torch.where(draws.rand(1, 1) < 0.5, mirror_pose(other), other)

    def _recombined(self, pose: Tensor, draws: Draws) -> Tensor:
        masks = torch.tensor(_PART_MASKS, device=pose.device)
        for _ in range(2):
            donor = self._other(draws)
            chosen = draws.rand(len(_PARTS)) < self.config.recombine_part
            taken = (chosen[..., None] & masks).any(1)
            pose = torch.where(taken[..., None], donor, pose)
        return pose

    def _turned(self, pose: Tensor, draws: Draws) -> Tensor:
        turned = turn_joints(pose, math.radians(self.config.turn_sd_deg), draws)
        return torch.where(within_limits(turned, self.prior)[..., None], turned, pose)


def _where(draws: Draws, share: float, changed: Tensor, pose: Tensor) -> Tensor:
    return torch.where(draws.rand(1, 1) < share, changed, pose)


def blend(pose: Tensor, other: Tensor, weight: Tensor) -> Tensor:
    """Each joint between two poses but for the root, which stays: (B, 24, 4), (B, 24, 4), (B, 1) in [0, 1] -> same.

    Normalised linear interpolation, the shorter way round.
    """
    sign = torch.where((pose * other).sum(-1, keepdim=True) < 0, -1.0, 1.0)
    mixed = normalize(torch.lerp(pose, sign * other, weight[..., None]), dim=-1)
    return torch.cat((pose[:, :1], mixed[:, 1:]), dim=1)


def share_with_collars(pose: Tensor, share: Tensor) -> Tensor:
    """A share of each shoulder's turn moved to its collar, (B, 24, 4), (B, 2) in [0, 1] -> (B, 24, 4).

    The arm's direction in the trunk's frame stays; the shoulder joint itself moves, as when a person shrugs.
    """
    shoulder = quaternion_to_axis_angle(pose[:, _SHOULDERS])
    part = axis_angle_to_quaternion(share[..., None] * shoulder)
    inverse = part * part.new_tensor((1.0, -1.0, -1.0, -1.0))
    pose = pose.clone()
    old_collar = pose[:, _COLLARS]
    pose[:, _COLLARS] = quaternion_multiply(old_collar, part)
    pose[:, _SHOULDERS] = quaternion_multiply(inverse, pose[:, _SHOULDERS])
    return pose


def turn_joints(pose: Tensor, sd_rad: float, draws: Draws) -> Tensor:
    """Every joint but the root turned at random, (B, 24, 4) -> same; knees and elbows about their own axis alone."""
    turn = sd_rad * draws.randn(NUM_JOINTS, 3)
    turn[:, 0] = 0
    hinge = list(_HINGES)
    axis = normalize(quaternion_to_axis_angle(pose[:, hinge]), dim=-1)  # 0 where the limb is straight
    turn[:, hinge] = axis * turn[:, hinge, :1]
    return quaternion_multiply(pose, axis_angle_to_quaternion(turn))


def within_limits(pose: Tensor, prior: PosePrior) -> Tensor:
    """Which joints stay within what was seen of people, (B, 24, 4) -> (B, 24) bool; the limits are the prior's."""
    tangent = pose_to_tangent(pose, prior.reference.to(pose.device))[:, prior.free.to(pose.device)]
    inside = (tangent >= prior.lower.to(pose.device)) & (tangent <= prior.upper.to(pose.device))
    outside = torch.zeros(len(pose), NUM_JOINTS, dtype=torch.long, device=pose.device)
    joint = (prior.free // 3).to(pose.device).expand(len(pose), -1)
    return outside.scatter_add(1, joint, (~inside).long()) == 0
