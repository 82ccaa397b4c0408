"""The losses of Pose2Mesh (Choi et al. 2020, section 5.2), one value per sample."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mesh.errors import require

_BONES = ("bone_length", "bone_vector", "bone_symmetry", "joint_limit")
_CONSTANT = ("vertex", "normal", "mesh_joint", "lift_joint", *_BONES, "labeling", "uncertainty")


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of the sum. The original's, written for metres: vertex 1, normal 0.1, edge 20, joints 1.

    The original adds the edge term after some epochs, at once, which makes the loss jump; `edge_ramp_epochs` lets it
    grow to its full weight instead. Terms of weight 0 are not computed in the lifter stage.
    """

    vertex: float = 1.0
    normal: float = 0.1
    edge: float = 20.0
    edge_start_epoch: float = 0.0
    edge_ramp_epochs: float = 0.0
    mesh_joint: float = 1.0
    lift_joint: float = 1.0
    bone_length: float = 0.0  # this and the next three: of the lifted joints, see gcn.bone_losses
    bone_vector: float = 0.0
    bone_symmetry: float = 0.0
    joint_limit: float = 0.0
    cycle: float = 0.01  # of lifters that have a decoder: how far its 2D joints are from the input's
    cycle_decay_epochs: float = 0.0  # the cycle's weight falls to 1/e in so many; 0: it stays
    labeling: float = 1.0
    uncertainty: float = 1.0
    surface_share: float = 1.0  # 1/n: the dear normal and edge terms are computed on every n-th sample of a piece

    def __post_init__(self) -> None:
        for name in (*_CONSTANT, "edge", "cycle"):
            weight = getattr(self, name)
            require(0 <= weight < math.inf, f"loss.{name} must be finite and not negative, got {weight}")
        require(0 < self.surface_share <= 1, f"loss.surface_share must lie in (0, 1], got {self.surface_share}")
        for name in ("edge_start_epoch", "edge_ramp_epochs", "cycle_decay_epochs"):
            require(getattr(self, name) >= 0, f"loss.{name} must not be negative, got {getattr(self, name)}")

    def at(self, epoch: float) -> dict[str, float]:
        """The weight of every term after so many epochs."""
        since = epoch - self.edge_start_epoch
        share = 0.0 if since < 0 else 1.0 if self.edge_ramp_epochs == 0 else min(1.0, since / self.edge_ramp_epochs)
        kept = math.exp(-epoch / self.cycle_decay_epochs) if self.cycle_decay_epochs > 0 else 1.0
        changing = {"edge": share * self.edge, "cycle": kept * self.cycle}
        return {name: getattr(self, name) for name in _CONSTANT} | changing


def point_l1(pred: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
    """Mean absolute coordinate error of joints or vertices: (B, N, 3) twice -> (B,) metres.

    Over the `known` (B, N) points alone, if given; what stands at the others reaches no gradient, and a sample without
    any known point has error 0.
    """
    if known is None:
        return (pred - target).abs().mean((1, 2))
    error = (pred - torch.where(known[..., None], target, 0.0)).abs().mean(-1)
    return torch.where(known, error, 0.0).sum(1) / known.sum(1).clamp_min(1)
