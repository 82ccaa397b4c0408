"""What each training stage minimises: loss terms, one value per sample, and which samples count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from gcn.bone_losses import BoneLengthLoss, BoneSymmetryLoss, BoneVectorLoss, JointLimitLoss
from gcn.labeling import exchange_some, labeling_loss
from gcn.layers.sparse import SparseMatrix
from gcn.lifters.cyclic import cycle_loss
from gcn.losses import LossWeights, SurfaceLoss, point_l1
from gcn.pose2mesh import JOINTS, ModelConfig
from mesh.joints import JointSet
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
        features = self.config.features(batch.keypoints_px, batch.confidence)
        values: dict[str, Tensor] = {}
        if self.cycle:
            joints, decoded = (t.float() for t in model(features, cycle=True))
            values["cycle"] = cycle_loss(decoded, features[..., :2], batch.confidence > 0)
        else:
            joints = model(features).float()
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
        features = self.config.features(batch.keypoints_px, batch.confidence)
        mixed, exchanged = exchange_some(features, torch.rand(len(batch), device=features.device))
        return {"labeling": labeling_loss(model(mixed).float(), exchanged)}


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
        joints, vertices = (t.float() for t in model(batch.keypoints_px, batch.confidence))
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
