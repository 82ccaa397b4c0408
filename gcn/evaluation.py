"""Errors of the networks over many samples: one value per sample, so that no mean depends on a batch size."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from gcn.labeling import exchange_labels, exchanged_probability
from gcn.layers.sparse import SparseMatrix
from gcn.pose2mesh import ModelConfig, Pose2Mesh
from gcn.uncertainty import error_loss
from mesh.joints import HUMAN36M17
from mesh.metrics import MM_PER_M, aligned_distances_mm, point_distances_mm
from mesh.protocols import PROTOCOLS, Posed, compare
from mesh.samples import Batch

Errors = dict[str, Tensor]
_BATCH = 256
_NOT_ROOT = [k for k in range(len(HUMAN36M17)) if k != HUMAN36M17.root_idx]
_VALIDATION = ("mpjpe_mm", "pa_mpjpe_mm", "mpvpe_mm", "facing_error_rad")


def _joined(rows: list[Errors]) -> Errors:
    return {name: torch.cat([row[name] for row in rows]).cpu() for name in rows[0]}


@torch.inference_mode()
def predict_mesh(model: nn.Module, batch: Batch, size: int = _BATCH) -> Tensor:
    """Vertices of a batch of any size, `size` at a time: (B, V, 3) metres."""
    given = (batch.keypoints_px, batch.confidence, *(() if batch.intrinsics is None else (batch.intrinsics,)))
    return torch.cat([model(*piece)[1] for piece in zip(*(t.split(size) for t in given))])


@torch.inference_mode()
def lift(posenet: nn.Module, config: ModelConfig, batch: Batch) -> Tensor:
    """The lifted joints of a batch, (B, 19, 3) metres, camera frame, relative to their pelvis."""
    seen = config.see(batch.keypoints_px, batch.confidence, batch.intrinsics)
    return seen.to_camera(posenet(seen.features))


def lift_scores(lifted_m: Tensor, batch: Batch) -> tuple[Errors, Tensor]:
    """MPJPE and PA-MPJPE of lifted joints, per sample in mm (all 19, rooted at the pelvis), and each joint's error."""
    joints = point_distances_mm(lifted_m, batch.joints_m)
    aligned = aligned_distances_mm(lifted_m, batch.joints_m)
    return {"lift_mpjpe_mm": joints.mean(1), "lift_pa_mpjpe_mm": aligned.mean(1)}, joints


def lifter_errors(posenet: nn.Module, config: ModelConfig, batches: Iterable[Batch]) -> Errors:
    """MPJPE and PA-MPJPE of the lifted joints, per sample in mm (all 19 joints, rooted at the pelvis)."""
    return _joined([lift_scores(lift(posenet, config, batch), batch)[0] for batch in batches])


@torch.inference_mode()
def mesh_errors(model: Pose2Mesh, regressor: SparseMatrix, batches: Iterable[Batch]) -> Errors:
    """Errors of the mesh by protocol `human36m14`, per sample in mm, facing in radians.

    `regressor` takes vertices to human36m17; joints and vertices are relative to its pelvis.
    """
    rows = []
    for batch in batches:
        if batch.vertices_m is None:
            raise ValueError("the mesh can only be judged on samples with vertices")
        vertices = predict_mesh(model, batch)
        joints = regressor(vertices.transpose(0, 1)).transpose(0, 1)
        root = HUMAN36M17.root_idx
        predicted = Posed(joints=joints, vertices=vertices, mesh_root=joints[:, root])
        true = Posed(joints=batch.regressed_m, vertices=batch.vertices_m, mesh_root=batch.regressed_m[:, root])
        scores = compare(PROTOCOLS["human36m14"], predicted, true, align_mesh=False)
        rows.append({name: scores.values[name] for name in _VALIDATION})
    return _joined(rows)


@torch.inference_mode()
def labeling_errors(labeling: nn.Module, config: ModelConfig, batches: Iterable[Batch]) -> Errors:
    """Per sample, 1 or 0: correct labels exchanged, exchanged labels left, under the detector's prior odds."""
    rows = []
    for batch in batches:
        features = config.see(batch.keypoints_px, batch.confidence, batch.intrinsics).features
        wrongly = exchanged_probability(labeling(features)) > 0.5
        missed = exchanged_probability(labeling(exchange_labels(features))) <= 0.5
        rows.append({"wrongly_exchanged": wrongly.float(), "exchange_missed": missed.float()})
    return _joined(rows)


def uncertainty_scores(expected_m: Tensor, error_m: Tensor) -> dict[str, float]:
    """How well expected errors (N, 17) tell the true ones (N, 17), metres, of N people; the pelvis is left out.

    `nll`: mean of `error_loss`. Spearman rank correlations: `joint_rank` of all joints of all people,
    `within_joint_rank` mean of those of each joint, `person_rank` of the people's means; 0 where all are equal.
    `expected_over_true`: ratio of the means. `worst_tenth_ratio`: true error of the tenth of the people with the
    largest expected errors over that of the others; `worst_tenth_from_mm`, `worst_tenth_joint_from_mm`: expected errors
    of people, and of joints, from which the tenths begin.
    """
    expected, error = (t.double().cpu()[:, _NOT_ROOT] for t in (expected_m, error_m))
    everything = torch.ones_like(expected_m, dtype=torch.bool)
    order = expected.mean(1).argsort(descending=True)
    worst, others = order.tensor_split([-(-len(order) // 10)])
    ratio = error[worst].mean() / error[others].mean() if len(others) else torch.tensor(1.0)
    within = [_rank_correlation(expected[:, k], error[:, k]) for k in range(expected.shape[1])]
    return {
        "nll": float(error_loss(expected_m, error_m, everything).double().mean()),
        "joint_rank": _rank_correlation(expected.flatten(), error.flatten()),
        "within_joint_rank": sum(within) / len(within),
        "person_rank": _rank_correlation(expected.mean(1), error.mean(1)),
        "expected_over_true": float(expected.mean() / error.mean()),
        "worst_tenth_ratio": float(ratio),
        "worst_tenth_from_mm": float(expected.mean(1).quantile(0.9)) * MM_PER_M,
        "worst_tenth_joint_from_mm": float(np.quantile(expected.numpy(), 0.9)) * MM_PER_M,
    }


def _rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's, of two rows; 0 where one is constant."""
    from scipy.stats import rankdata

    ranks = np.stack([rankdata(a.numpy()), rankdata(b.numpy())])
    return 0.0 if (np.ptp(ranks, axis=1) == 0).any() else float(np.corrcoef(ranks)[0, 1])


def means(errors: Errors) -> dict[str, float]:
    """Mean of each error over its samples."""
    return {name: float(values.mean()) for name, values in errors.items()}
