"""Similarity Procrustes alignment (Umeyama 1991), batched.

The work is done in float64 with the coordinates as planes, (B, 3, N): sums then run along the points, which is several
times faster than over (B, N, 3).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_BLOCK_POINTS = 1 << 16
_SWEEPS = 6  # of Jacobi rotations; a 3 x 3 matrix is diagonal to rounding after four or five
_FLAT = 1e-14  # of the longest column: below it a column is rounding noise and has no direction
_NO_EXTENT_M2 = 1e-18


def planes(points: Tensor) -> Tensor:
    """A float64 copy with the coordinates as planes, (B, N, 3) -> (B, 3, N)."""
    copy = torch.empty((len(points), 3, points.shape[1]), dtype=torch.float64, device=points.device)
    return copy.copy_(points.transpose(1, 2))


def in_blocks(function: Callable[..., Tensor], points: Tensor, *others: Tensor) -> Tensor:
    """The function of some samples at a time, few enough for the processor's cache, joined: (B, N, 3) -> (B, ...)."""
    size = max(1, _BLOCK_POINTS // max(1, points.shape[1]))
    if len(points) <= size:
        return function(points, *others)
    return torch.cat([function(*block) for block in zip(*(tensor.split(size) for tensor in (points, *others)))])


def nearest_rotation(matrix: Tensor) -> Tensor:
    """The rotation R, of determinant +1, with the largest trace of R^T M: (B, 3, 3) -> (B, 3, 3), float64.

    One-sided Jacobi, the whole batch at once: it turns the columns of M until they are at right angles. Where M leaves
    the rotation undetermined (points in a line or in one place) one of the best is chosen.
    """
    matrix = matrix.double()
    size = matrix.abs().amax((1, 2), keepdim=True)
    scaled = (matrix / torch.where(size > 0, size, 1.0)).permute(2, 1, 0)  # (column, row, B)
    start = torch.eye(3, dtype=matrix.dtype, device=matrix.device)[..., None].expand_as(scaled)
    columns = list(torch.cat((scaled, start), dim=1))  # 3 x (6, B): the column, and below it what it was turned by
    for _ in range(_SWEEPS):
        for p, q in ((0, 1), (0, 2), (1, 2)):
            columns[p], columns[q] = _at_right_angles(columns[p], columns[q])
    by_length = torch.stack(columns)  # (3, 6, B)
    order = by_length[:, :3].square().sum(1).argsort(0, descending=True)
    by_length = by_length.gather(0, order[:, None].expand_as(by_length))
    left, right = by_length[:2, :3].unbind(0), by_length[:2, 3:].unbind(0)
    first, second = _orthonormal(left[0], left[1], right[0])
    outer = [u[:, None] * v[None] for u, v in ((first, right[0]), (second, right[1]))]
    third = torch.linalg.cross(first, second, dim=0)[:, None] * torch.linalg.cross(*right, dim=0)[None]
    return (outer[0] + outer[1] + third).permute(2, 0, 1)


def _at_right_angles(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both columns after the plane rotation that makes their upper halves orthogonal, (6, B) twice."""
    difference = b[:3].square().sum(0) - a[:3].square().sum(0)
    twice = 2 * (a[:3] * b[:3]).sum(0)
    root = (difference.square() + twice.square()).sqrt()
    signed = torch.where(difference < 0, -twice, twice)
    tangent = signed / (difference.abs() + root).clamp_min(torch.finfo(a.dtype).tiny)
    cosine = torch.rsqrt(1 + tangent.square())
    sine = cosine * tangent
    return cosine * a - sine * b, sine * a + cosine * b


def _orthonormal(longest: Tensor, second: Tensor, fallback: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors along two columns, (3, B) each; `fallback` (3, B) unit, where the matrix is zero.

    A second column without a direction is replaced by any vector across the first.
    """
    length = longest.square().sum(0).sqrt()
    unit = torch.where(length > 0, longest / length.clamp_min(torch.finfo(longest.dtype).tiny), fallback)
    across = second - (unit * second).sum(0) * unit
    smallest = torch.nn.functional.one_hot(unit.abs().argmin(0), 3).T.to(unit)
    flat = across.square().sum(0).sqrt() <= _FLAT * length
    across = torch.where(flat, torch.linalg.cross(unit, smallest, dim=0), across)
    across = across / across.square().sum(0).sqrt()
    across = across - (unit * across).sum(0) * unit  # once more: cancellation may have left a part along the first
    return unit, across / across.square().sum(0).sqrt()


def _moments(source: Tensor, target: Tensor) -> Tensor:
    """What the fit needs to know of some samples: covariance (9), variance of the source, both means; (B, 16)."""
    x, y = planes(source), planes(target)
    mean_x, mean_y = x.mean(2), y.mean(2)
    x -= mean_x[..., None]
    y -= mean_y[..., None]
    covariance = (y @ x.transpose(1, 2)).flatten(1)
    return torch.cat((covariance, x.square().sum((1, 2))[:, None], mean_x, mean_y), dim=1)


def fit_similarity(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`similarity_transform` in float64 whatever the inputs are."""
    covariance, variance, mean_x, mean_y = in_blocks(_moments, source, target).split((9, 1, 3, 3), dim=1)
    covariance = covariance.unflatten(1, (3, 3))
    rotation = nearest_rotation(covariance)
    agreement = (rotation * covariance).sum((1, 2))
    scale = torch.where(variance[:, 0] > _NO_EXTENT_M2, agreement / variance[:, 0].clamp_min(_NO_EXTENT_M2), 0.0)
    return scale, rotation, mean_y - scale[:, None] * (rotation @ mean_x[..., None])[..., 0]


def similarity_transform(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale, rotation and translation that carry source onto target with least squared error.

    (B, N, 3), (B, N, 3) -> scale (B,), rotation (B, 3, 3) with determinant +1, translation (B, 3), such that
    scale * rotation @ source + translation is near target. A source without extent gets scale 0. Computed in float64.
    """
    scale, rotation, translation = fit_similarity(source, target)
    return scale.to(source), rotation.to(source), translation.to(source)


def align(source: Tensor, target: Tensor) -> Tensor:
    """Source after its best similarity transform onto target, (B, N, 3), (B, N, 3) -> (B, N, 3)."""
    scale, rotation, translation = fit_similarity(source, target)
    moved = (scale[:, None, None] * rotation) @ planes(source) + translation[..., None]
    return moved.transpose(1, 2).to(source)
