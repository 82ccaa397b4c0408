"""Errors of the networks over many samples: one value per sample, so that no mean depends on a batch size."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gcn.labeling import exchange_labels, exchanged_probability
from gcn.layers.sparse import SparseMatrix
from gcn.pose2mesh import ModelConfig, Pose2Mesh
from mesh.joints import EVALUATION_14, HUMAN36M17
from mesh.metrics import aligned_error_mm, facing_error_rad, point_error_mm
from mesh.samples import Batch

Errors = dict[str, Tensor]


def _joined(rows: list[Errors]) -> Errors:
    return {name: torch.cat([row[name] for row in rows]).cpu() for name in rows[0]}


@torch.inference_mode()
def lifter_errors(posenet: nn.Module, config: ModelConfig, batches: Iterable[Batch]) -> Errors:
    """MPJPE and PA-MPJPE of the lifted joints, per sample in mm (all 19 joints, rooted at the pelvis)."""
    rows = []
    for batch in batches:
        features = config.features(batch.keypoints_px, batch.confidence)
        joints = posenet(features)
        rows.append(
            {
                "lift_mpjpe_mm": point_error_mm(joints, batch.joints_m),
                "lift_pa_mpjpe_mm": aligned_error_mm(joints, batch.joints_m),
            }
        )
    return _joined(rows)


@torch.inference_mode()
def mesh_errors(model: Pose2Mesh, regressor: SparseMatrix, batches: Iterable[Batch]) -> Errors:
    """Errors of the mesh, per sample: 14 Human3.6M joints regressed from it, and all its vertices.

    `regressor` takes vertices to human36m17; joints and vertices relative to its pelvis; mm, facing in radians.
    """
    chosen = list(EVALUATION_14)
    left, right, up = HUMAN36M17.indices(("left_hip", "right_hip", "neck"))
    rows = []
    for batch in batches:
        if batch.vertices_m is None:
            raise ValueError("the mesh can only be judged on samples with vertices")
        _, vertices = model(batch.keypoints_px, batch.confidence)
        joints = regressor(vertices.transpose(0, 1)).transpose(0, 1)
        pelvis = joints[:, HUMAN36M17.root_idx, None]
        joints = joints - pelvis
        rows.append(
            {
                "mpjpe_mm": point_error_mm(joints[:, chosen], batch.regressed_m[:, chosen]),
                "pa_mpjpe_mm": aligned_error_mm(joints[:, chosen], batch.regressed_m[:, chosen]),
                "mpvpe_mm": point_error_mm(vertices - pelvis, batch.vertices_m),
                "facing_error_rad": facing_error_rad(joints, batch.regressed_m, left, right, up, HUMAN36M17.root_idx),
            }
        )
    return _joined(rows)


@torch.inference_mode()
def labeling_errors(labeling: nn.Module, config: ModelConfig, batches: Iterable[Batch]) -> Errors:
    """Per sample, 1 or 0: correct labels exchanged, exchanged labels left, under the detector's prior odds."""
    rows = []
    for batch in batches:
        features = config.features(batch.keypoints_px, batch.confidence)
        wrongly = exchanged_probability(labeling(features)) > 0.5
        missed = exchanged_probability(labeling(exchange_labels(features))) <= 0.5
        rows.append({"wrongly_exchanged": wrongly.float(), "exchange_missed": missed.float()})
    return _joined(rows)


def means(errors: Errors) -> dict[str, float]:
    """Mean of each error over its samples."""
    return {name: float(values.mean()) for name, values in errors.items()}
