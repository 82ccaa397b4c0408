"""Similarity Procrustes alignment (Umeyama 1991), batched."""

from __future__ import annotations

import torch
from torch import Tensor


def similarity_transform(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale, rotation and translation that carry source onto target with least squared error.

    (B, N, 3), (B, N, 3) -> scale (B,), rotation (B, 3, 3) with determinant +1, translation (B, 3), such that
    scale * rotation @ source + translation is near target. A source without extent gets scale 0. Computed in float64.
    """
    x, y = source.double(), target.double()
    mean_x, mean_y = x.mean(1), y.mean(1)
    x, y = x - mean_x[:, None], y - mean_y[:, None]
    u, spread, vt = torch.linalg.svd(y.transpose(1, 2) @ x)
    sign = torch.ones_like(spread)
    sign[:, 2] = torch.linalg.det(u @ vt).sign()
    rotation = (u * sign[:, None]) @ vt
    variance = x.square().sum((1, 2))
    scale = torch.where(variance > 1e-18, (spread * sign).sum(1) / variance.clamp_min(1e-18), 0.0)
    translation = mean_y - scale[:, None] * (rotation @ mean_x[..., None])[..., 0]
    return scale.to(source), rotation.to(source), translation.to(source)


def align(source: Tensor, target: Tensor) -> Tensor:
    """Source after its best similarity transform onto target, (B, N, 3), (B, N, 3) -> (B, N, 3)."""
    scale, rotation, translation = similarity_transform(source, target)
    return scale[:, None, None] * source @ rotation.transpose(1, 2) + translation[:, None]
