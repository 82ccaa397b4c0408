"""Errors of poses and meshes: one value per sample, in millimetres, from metres.

Differences of points are taken in the better of their precisions (float32: 0.0002 mm at 2 m), all means in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mesh.alignment import fit_similarity, in_blocks, planes

MM_PER_M = 1000.0
PCK_THRESHOLD_MM = 150.0
AUC_THRESHOLDS_MM = tuple(range(0, 151, 5))
_BOOTSTRAP_BLOCK = 1 << 22


def point_distances_mm(pred_m: Tensor, target_m: Tensor) -> Tensor:
    """Distance of corresponding points, (B, N, 3) twice in metres -> (B, N) mm."""
    _check(pred_m, target_m)
    return in_blocks(_distances, pred_m, target_m).double()


def aligned_distances_mm(pred_m: Tensor, target_m: Tensor) -> Tensor:
    """The same after a similarity Procrustes alignment of each sample, (B, N, 3) twice in metres -> (B, N) mm."""
    _check(pred_m, target_m)
    return in_blocks(_distances, pred_m, target_m, *_linear_and_shift(pred_m, target_m)).double()


def point_error_mm(pred_m: Tensor, target_m: Tensor, shift_m: Tensor | None = None) -> Tensor:
    """Mean distance of corresponding points, (B, N, 3) twice in metres -> (B,) mm.

    MPJPE for joints and MPVPE for vertices, once both sides are relative to their root; `shift_m` (B, 3) is added to
    all predicted points of a sample.
    """
    _check(pred_m, target_m)
    if shift_m is None:
        return in_blocks(_mean_distance, pred_m, target_m)
    return in_blocks(lambda x, y, shift: _mean_distance(x, y, shift_m=shift), pred_m, target_m, shift_m)


def aligned_error_mm(pred_m: Tensor, target_m: Tensor) -> Tensor:
    """The same after a similarity Procrustes alignment of each sample: PA-MPJPE, PA-MPVPE. (B, N, 3) -> (B,) mm."""
    _check(pred_m, target_m)
    return in_blocks(_mean_distance, pred_m, target_m, *_linear_and_shift(pred_m, target_m))


def _check(pred_m: Tensor, target_m: Tensor) -> None:
    if pred_m.shape != target_m.shape or pred_m.shape[-1] != 3:
        raise ValueError(f"expected points (B, N, 3) twice, got {tuple(pred_m.shape)} and {tuple(target_m.shape)}")


def _linear_and_shift(pred_m: Tensor, target_m: Tensor) -> tuple[Tensor, Tensor]:
    scale, rotation, shift = fit_similarity(pred_m, target_m)
    return scale[:, None, None] * rotation, shift


def _mean_distance(
    pred_m: Tensor, target_m: Tensor, linear: Tensor | None = None, shift_m: Tensor | None = None
) -> Tensor:
    return _distances(pred_m, target_m, linear, shift_m).mean(1, dtype=torch.float64)


def _distances(pred_m: Tensor, target_m: Tensor, linear: Tensor | None = None, shift_m: Tensor | None = None) -> Tensor:
    """In mm, after the predicted points went through a linear map (B, 3, 3) and a shift (B, 3); (B, N).

    With the coordinates as planes, since operations along the last axis of (B, N, 3) are several times slower.
    """
    if linear is None:
        better = torch.promote_types(torch.promote_types(pred_m.dtype, target_m.dtype), torch.float32)
        difference = (pred_m.to(better) - target_m.to(better)).transpose(1, 2).contiguous()
    else:
        difference = (linear @ planes(pred_m)).sub_(target_m.transpose(1, 2))
    if shift_m is not None:
        difference += shift_m.to(difference)[..., None]
    x, y, z = difference.unbind(1)
    return x.square().addcmul_(y, y).addcmul_(z, z).sqrt_() * MM_PER_M


def pck_percent(distances_mm: Tensor, threshold_mm: float = PCK_THRESHOLD_MM) -> Tensor:
    """Share of the joints of a sample that lie at most so far off, (B, J) mm -> (B,) per cent."""
    return (distances_mm <= threshold_mm).double().mean(-1) * 100


def auc_percent(distances_mm: Tensor) -> Tensor:
    """Mean of the PCK over thresholds of 0, 5, ... 150 mm, as on MPI-INF-3DHP: (B, J) mm -> (B,) per cent."""
    steps = distances_mm.new_tensor(AUC_THRESHOLDS_MM)
    return (distances_mm[..., None] <= steps).double().mean((-2, -1)) * 100


def facing_error_rad(pred_m: Tensor, target_m: Tensor, left: int, right: int, up: int, root: int) -> Tensor:
    """Angle between the directions that the two bodies face, (B, J, 3) twice -> (B,) radians.

    A body faces along (right hip to left hip) x (root to spine joint `up`); indices name these joints.
    """

    def facing(joints: Tensor) -> Tensor:
        across = joints[:, left] - joints[:, right]
        return torch.linalg.cross(across, joints[:, up] - joints[:, root])

    a, b = facing(pred_m), facing(target_m)
    return torch.atan2(torch.linalg.cross(a, b).norm(dim=-1), (a * b).sum(-1))


def acceleration_error_mm(pred_m: Tensor, target_m: Tensor, frames: Sequence[int] | np.ndarray) -> Tensor:
    """Difference of the accelerations in mm/frame^2, mean over the joints of each frame that has both neighbours.

    Joints (T, J, 3) of one person in frame order, relative to the root, metres; frame numbers (T,) ascending. A frame
    is the smallest step of the sequence: where frames are missing, nothing is compared. Multiplied by the square of
    the frame rate it is mm/s^2. -> (K,), K at most T - 2.
    """
    steps = np.diff(np.asarray(frames, np.int64))
    if (steps <= 0).any():
        raise ValueError("the frames of a sequence must ascend")
    if len(steps) < 2:
        return pred_m.new_zeros(0, dtype=torch.float64)
    whole = (steps[:-1] == steps.min()) & (steps[1:] == steps.min())
    middle = torch.from_numpy(np.flatnonzero(whole) + 1).to(pred_m.device)
    difference = pred_m.double() - target_m.double()
    bend = difference[middle - 1] - 2 * difference[middle] + difference[middle + 1]
    return bend.norm(dim=-1).mean(-1) * MM_PER_M


def bootstrap_interval(
    values: np.ndarray, groups: np.ndarray | None = None, *, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of the mean of (N,) values when groups (N,), else single values, are drawn again.

    With groups (the sequences that frames belong to) whole groups are drawn: frames of one sequence are alike, and an
    interval over frames would be far too narrow. The mean is always over samples.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        return float("nan"), float("nan")
    label = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    sums, counts = np.bincount(label, values), np.bincount(label).astype(np.float64)
    rng = np.random.default_rng(seed)
    means: list[np.ndarray] = []
    rows = max(1, _BOOTSTRAP_BLOCK // len(sums))
    for first in range(0, draws, rows):
        chosen = rng.integers(len(sums), size=(min(rows, draws - first), len(sums)))
        means.append(sums[chosen].sum(1) / counts[chosen].sum(1))
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5))
    return float(low), float(high)
