"""Where a heat map points, differentiably (Sun et al. 2018, Integral human pose regression)."""

from __future__ import annotations

import torch
from torch import Tensor

from mesh.errors import require


def soft_argmax(heatmaps: Tensor, temperature: float = 1.0) -> Tensor:
    """Expected position under the softmax of each map: (B, J, H, W) logits -> (B, J, 2) x, y; volumes
    (B, J, D, H, W) -> (B, J, 3) x, y, z.

    From -1 to 1 along each axis, the edges of the map, with cells at their centres: the same place on maps of any size
    has the same coordinates. A high temperature draws the result to the middle of the map, a very low one leaves no
    gradient; 1 suits maps trained with it.
    """
    return _moments(heatmaps, temperature)[0]


def soft_argmax_confidence(heatmaps: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """`soft_argmax` and how concentrated each map is, (B, J) in [0, 1].

    1 minus the ratio of the map's root mean square spread to that of a flat map: 1 for a single cell, 0 for a flat
    map and for peaks in opposite corners, whose mean is no place of the joint either.
    """
    positions, variance = _moments(heatmaps, temperature)
    flat = sum((1 - size**-2) / 3 for size in heatmaps.shape[2:])
    spread = (variance.sum(-1) / max(flat, 1e-6)).clamp_min(1e-6).sqrt()
    return positions, (1 - spread).clamp(0, 1)


def _moments(heatmaps: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Mean and variance along x, y (and z), each (B, J, axes), in at least single precision."""
    require(temperature > 0, f"the soft-argmax needs a temperature above 0, got {temperature}")
    logits = heatmaps.to(torch.promote_types(heatmaps.dtype, torch.float32))
    share = (logits.flatten(2) / temperature).softmax(-1).unflatten(2, heatmaps.shape[2:])
    means, variances = [], []
    for axis in reversed(range(2, share.ndim)):  # x is the last
        others = [other for other in range(2, share.ndim) if other != axis]
        marginal = share.sum(others)  # (B, J, size)
        centres = _cell_centres(share.shape[axis], share)
        mean = (marginal * centres).sum(-1)
        means.append(mean)
        variances.append((marginal * (centres - mean[..., None]).square()).sum(-1))
    return torch.stack(means, dim=-1), torch.stack(variances, dim=-1)


def _cell_centres(size: int, like: Tensor) -> Tensor:
    """(size,) from -1 + 1 / size to 1 - 1 / size."""
    return (2 * torch.arange(size, device=like.device, dtype=like.dtype) + 1) / size - 1
