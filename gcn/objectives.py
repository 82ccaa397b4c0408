"""What each training stage minimises: loss terms, one value per sample, and which samples count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from gcn.bone_losses import BoneLengthLoss, BoneSymmetryLoss, BoneVectorLoss, JointLimitLoss
from gcn.labeling import exchange_some, labeling_loss
from gcn.layers.sparse import SparseMatrix
from gcn.lifters.cyclic import cycle_loss
from gcn.losses import LossWeights, point_l1
from gcn.mirroring import MirrorAveraged
from gcn.pose2mesh import JOINTS, ModelConfig
from gcn.surface_loss import SurfaceLoss
from gcn.uncertainty import error_loss
from mesh.joints import HUMAN36M17, JointSet
from mesh.samples import Batch

_COMPARED: dict[str, Callable[[JointSet], nn.Module]] = {"bone_length": BoneLengthLoss, "bone_vector": BoneVectorLoss}
_JUDGED: dict[str, Callable[[JointSet], nn.Module]] = {"bone_symmetry": BoneSymmetryLoss, "joint_limit": JointLimitLoss}


class Objective(Protocol):
    """Loss terms of a stage. What the network draws itself (dropout) comes from the global generators."""

    def masks(self, batch: Batch) -> dict[str, Tensor]:
        """For each term the samples that count, (B,) bool; those without truth do not."""

    def values(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Each term of each sample, (B,); what a mask leaves out is any finite number."""


class LifterObjective:
    """What a lifter is taught, as far as the weights ask for it: `lift_joint`, mean absolute coordinate error of the
    joints in metres; the terms of `gcn.bone_losses`; `cycle`, of a lifter with a decoder, in the features' units.
    """

    def __init__(
        self, config: ModelConfig, weights: LossWeights | None = None, device: torch.device | str = "cpu"
    ) -> None:
        weights = weights or LossWeights()
        self.config = config
        self.cycle = weights.cycle > 0 and config.has_cycle
        self.compared: dict[str, nn.Module] = {}  # with the true joints
        self.judged: dict[str, nn.Module] = {}  # by themselves
        for terms, made in ((self.compared, _COMPARED), (self.judged, _JUDGED)):
            terms |= {name: kind(JOINTS).to(device) for name, kind in made.items() if getattr(weights, name) > 0}

    def masks(self, batch: Batch) -> dict[str, Tensor]:
        """See `Objective`. What needs no truth counts for every sample."""
        known, everyone = batch.joints_valid.any(1), torch.ones_like(batch.mesh_valid)
        masks = {"lift_joint": known, **dict.fromkeys(self.compared, known), **dict.fromkeys(self.judged, everyone)}
        return masks | {"cycle": everyone} if self.cycle else masks

    def values(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """See `Objective`."""
        seen = self.config.see(batch.keypoints_px, batch.confidence, batch.intrinsics)
        features = seen.features
        values: dict[str, Tensor] = {}
        if self.cycle:
            lifted, decoded = (t.float() for t in model(features, cycle=True))
            values["cycle"] = cycle_loss(decoded, features[..., :2], batch.confidence > 0)
        else:
            lifted = model(features).float()
        joints = seen.to_camera(lifted)
        values["lift_joint"] = point_l1(joints, batch.joints_m, batch.joints_valid)
        for name, term in self.compared.items():
            values[name] = term(joints, batch.joints_m, batch.joints_valid)
        for name, term in self.judged.items():
            values[name] = term(joints)
        return values


class LabelingObjective:
    """`labeling`: cross-entropy of the left/right network, on poses of which half are exchanged first."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    def masks(self, batch: Batch) -> dict[str, Tensor]:
        """See `Objective`."""
        return {"labeling": torch.ones_like(batch.mesh_valid)}

    def values(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """See `Objective`."""
        features = self.config.see(batch.keypoints_px, batch.confidence, batch.intrinsics).features
        mixed, exchanged = exchange_some(features, torch.rand(len(batch), device=features.device))
        return {"labeling": labeling_loss(model(mixed).float(), exchanged)}


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What an ErrorNet sees of B people, and how far off their meshes are: `error_m` (B, 17), where `known` (B, 17)."""

    features: Tensor
    seen: Tensor
    mirrored: Tensor
    error_m: Tensor
    known: Tensor

    def expected_m(self, model: nn.Module) -> Tensor:
        """The network's answer, (B, 17)."""
        return model(self.features, self.seen, self.mirrored).float()


class UncertaintyObjective:
    """`uncertainty`: likelihood of the errors of a frozen mesh network, averaged with the mirror image.

    That network belongs to the objective, not to what is trained and saved. `regressor` takes vertices to human36m17.
    """

    def __init__(self, averaged: MirrorAveraged, regressor: SparseMatrix) -> None:
        self.averaged, self.regressor = averaged.eval().requires_grad_(False), regressor

    def masks(self, batch: Batch) -> dict[str, Tensor]:
        """See `Objective`."""
        known = batch.regressed_valid.clone()
        known[:, HUMAN36M17.root_idx] = False
        return {"uncertainty": known.any(1)}

    @torch.no_grad()
    def judge(self, batch: Batch) -> Judged:
        """Mesh and truth, pelvis at pelvis; in float32, so that rounding is not taken for an error."""
        with torch.autocast(batch.keypoints_px.device.type, enabled=False):
            given = (batch.keypoints_px, batch.confidence, batch.intrinsics)
            (seen, one), (mirrored, other) = self.averaged.looks(*given)
            joints = self.regressor(((one + other) / 2).transpose(0, 1)).transpose(0, 1)
            joints = joints - joints[:, HUMAN36M17.root_idx, None]
            known = batch.regressed_valid
            error = (joints - torch.where(known[..., None], batch.regressed_m, 0.0)).norm(dim=-1)
            features = self.averaged.model.config.see(*given).features
            return Judged(features=features, seen=seen, mirrored=mirrored, error_m=error, known=known)

    def values(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """See `Objective`."""
        judged = self.judge(batch)
        return {"uncertainty": error_loss(judged.expected_m(model), judged.error_m, judged.known)}


class MeshObjective:
    """The five terms of Pose2Mesh (Choi et al. 2020, section 5.2), metres (normal: cosine).

    The dear normal and edge terms are computed on every n-th sample, n = 1 / `surface_share`.
    """

    def __init__(self, surface: SurfaceLoss, regressor: SparseMatrix, surface_share: float) -> None:
        self.surface, self.regressor, self.stride = surface, regressor, max(1, round(1 / surface_share))

    def masks(self, batch: Batch) -> dict[str, Tensor]:
        """See `Objective`."""
        some = torch.zeros_like(batch.mesh_valid)
        some[:: self.stride] = batch.mesh_valid[:: self.stride]
        return {
            "vertex": batch.mesh_valid,
            "normal": some,
            "edge": some,
            "mesh_joint": batch.regressed_valid.any(1),
            "lift_joint": batch.joints_valid.any(1),
        }

    def values(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """See `Objective`."""
        if batch.vertices_m is None:
            raise ValueError("the mesh stage needs batches with vertices")
        joints, vertices = (t.float() for t in model(batch.keypoints_px, batch.confidence, batch.intrinsics))
        regressed = self.regressor(vertices.transpose(0, 1)).transpose(0, 1)
        # Unknown meshes are put at zero, so that whatever stands there reaches no gradient.
        true = torch.where(batch.mesh_valid[:, None, None], batch.vertices_m, 0.0)
        some = torch.stack(self.surface(vertices[:: self.stride], true[:: self.stride]))  # (2, n)
        rows = torch.arange(0, len(batch), self.stride, device=some.device)
        normal, edge = some.new_zeros(2, len(batch)).index_copy(1, rows, some)
        return {
            "vertex": point_l1(vertices, true),
            "normal": normal,
            "edge": edge,
            "mesh_joint": point_l1(regressed, batch.regressed_m, batch.regressed_valid),
            "lift_joint": point_l1(joints, batch.joints_m, batch.joints_valid),
        }
