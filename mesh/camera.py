"""Cameras: perspective projection and the closed-form weak-perspective fit.

Frame: x right, y down, z forward (OpenCV); pixels from the upper left corner.
"""

from __future__ import annotations

import torch
from torch import Tensor


def project(points_m: Tensor, focal_px: Tensor, centre_px: Tensor) -> Tensor:
    """Pinhole projection of camera-frame points: (B, N, 3) metres, (B,) px, (B, 2) px -> (B, N, 2) px."""
    return points_m[..., :2] / points_m[..., 2:] * focal_px[:, None, None] + centre_px[:, None]


def fit_weak_perspective(points_m: Tensor, points_px: Tensor, weight: Tensor) -> Tensor:
    """Scale and shift that best carry 3D points onto their picture positions, in closed form.

    Minimises sum_j weight_j |s X_j + t - x_j|^2 over s and t, where X_j is (x, y) of the point. (B, J, 3) metres,
    (B, J, 2) px, (B, J) -> (B, 3): scale in px/m (never negative), shift x, y in px. With fewer than two points of
    weight, or all in one place, the scale is 0: the camera is not determined.
    """
    flat = points_m[..., :2]
    total = weight.sum(-1, keepdim=True).clamp_min(1e-12)
    share = (weight / total)[..., None]
    mean_m, mean_px = (share * flat).sum(-2), (share * points_px).sum(-2)
    centred = flat - mean_m[..., None, :]
    variance = (share * centred.square()).sum((-2, -1))
    covariance = (share * centred * (points_px - mean_px[..., None, :])).sum((-2, -1))
    determined = variance > 1e-10
    scale = torch.where(determined, covariance / variance.clamp_min(1e-10), 0.0).clamp_min(0.0)
    return torch.cat((scale[..., None], mean_px - scale[..., None] * mean_m), dim=-1)


def apply_weak_perspective(points_m: Tensor, camera: Tensor) -> Tensor:
    """Picture position and depth of root-relative points, all in px: (B, N, 3), (B, 3) -> (B, N, 3).

    Depth is scaled like x and y, so that the three share one unit; smaller is nearer.
    """
    scale, shift = camera[:, None, :1], camera[:, None, 1:]
    return torch.cat((points_m[..., :2] * scale + shift, points_m[..., 2:] * scale), dim=-1)
