"""Cameras: perspective projection and the closed-form weak-perspective fit.

Frame: x right, y down, z forward (OpenCV); pixels from the upper left corner.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def project(points_m: Tensor, focal_px: Tensor, centre_px: Tensor) -> Tensor:
    """Pinhole projection of camera-frame points: (B, N, 3) metres, (B,) px, (B, 2) px -> (B, N, 2) px."""
    return points_m[..., :2] / points_m[..., 2:] * focal_px[:, None, None] + centre_px[:, None]


def project_all(points_m: Tensor, intrinsics: Tensor) -> Tensor:
    """The same by `mesh.samples.Batch.intrinsics`: (B, N, 3) metres, (B, 4) px -> (B, N, 2) px."""
    return points_m[..., :2] / points_m[..., 2:] * intrinsics[:, None, :2] + intrinsics[:, None, 2:]


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


# Root mean square distance of a person's joints from their middle, in focal lengths, where nothing is known of the
# camera: the median of the people that training imagines.
TYPICAL_EXTENT = 0.14
_LEAST_PLACE_M = 0.1  # of a person before the camera
_PLACE_ROUNDS = 3
_LEAST_DEPTH = 0.05  # of a joint's direction, in the view towards the person: what lies beside the camera is drawn in


def centred_view(keypoints_px: Tensor, confidence: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """What a camera at the same place sees that is turned towards the person, and that turn.

    A picture shows a person at its border from the side, although they face the camera; turned towards the person, the
    camera sees the same pose wherever the person stands (the rotation part of perspective crops; Li et al. 2022, CLIFF,
    section 3, give the network the direction instead). (B, J, 2) px, (B, J), intrinsics (B, 4) px: focal lengths along
    x and y, principal point; focal 0 where the camera is not known -> (B, J, 2) in focal lengths, the camera's axis at
    (0, 0), and (B, 3, 3) from the turned camera's frame to the camera's. The axis goes through the mean of the joints
    with confidence. Of an unknown camera the person is taken to stand in the middle, `TYPICAL_EXTENT` large.
    """
    with torch.autocast(keypoints_px.device.type, enabled=False):  # the product would be one of bf16 in training
        return _centred_view(keypoints_px, confidence, intrinsics)


def _centred_view(keypoints_px: Tensor, confidence: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
    known = (confidence > 0).to(keypoints_px.dtype)[..., None]
    count = known.sum(1, keepdim=True).clamp_min(1)
    has_camera = intrinsics[:, :2].amin(1) > 0
    focal = torch.where(has_camera[:, None], intrinsics[:, :2], 1.0)
    rays = torch.where(known > 0, (keypoints_px - intrinsics[:, None, 2:]) / focal[:, None], 0.0)
    middle = (known * rays).sum(1, keepdim=True) / count  # (B, 1, 2)
    centred = (rays - middle) * known
    extent = (centred.square().sum((1, 2), keepdim=True) / count).sqrt()
    typical = centred * (TYPICAL_EXTENT / extent.clamp_min(1e-9))
    turn = _turn_to(middle[:, 0])
    seen = torch.cat((rays, torch.ones_like(rays[..., :1])), dim=-1) @ turn
    seen = seen[..., :2] / seen[..., 2:].clamp_min(_LEAST_DEPTH) * known
    alone = torch.eye(3, dtype=turn.dtype, device=turn.device)
    return (
        torch.where(has_camera[:, None, None], seen, typical),
        torch.where(has_camera[:, None, None], turn, alone),
    )


def _turn_to(point: Tensor) -> Tensor:
    """The smallest rotation that takes the axis z to the direction of (x, y, 1): (B, 2) -> (B, 3, 3)."""
    x, y, z = torch.nn.functional.normalize(torch.cat((point, torch.ones_like(point[:, :1])), dim=1), dim=1).unbind(1)
    xy, scale = x * y, 1 / (1 + z)
    rows = (1 - x * x * scale, -xy * scale, x, -xy * scale, 1 - y * y * scale, y, -x, -y, z)
    return torch.stack(rows, dim=1).unflatten(1, (3, 3))


def diagonal_intrinsics(image_size: tuple[float, float]) -> tuple[float, float, float, float]:
    """The camera that is assumed of a picture of (width, height) px: its focal length is the diagonal, 43 mm on a full
    frame, 53 degrees from corner to corner (Kissos et al. 2020); its axis goes through the middle."""
    width, height = image_size
    focal = math.hypot(width, height)
    return focal, focal, width / 2, height / 2


def place_before_camera(points_m: Tensor, points_px: Tensor, weight: Tensor, intrinsics: Tensor) -> Tensor:
    """Where 3D points stand before the camera so that they project nearest to their picture positions.

    (B, J, 3) metres in the camera's directions, (B, J, 2) px, (B, J), (B, 4) px -> (B, 3) metres, to be added. Linear
    least squares on x - z u = 0 and y - z v = 0, where (u, v, 1) is the ray of a picture position, divided by the
    depth of the round before, so that in the end distances in the picture count. NaN where the camera is not known
    (focal length 0), where fewer than two points have weight or these lie in one place, and where a point of weight
    would stand behind the camera.
    """
    points, pixels, given = points_m.double(), points_px.double(), intrinsics.double()
    known = given[:, :2].amin(1) > 0
    rays = (pixels - given[:, None, 2:]) / torch.where(known[:, None], given[:, :2], 1.0)[:, None]
    eye = torch.eye(2, dtype=rays.dtype, device=rays.device).expand(*rays.shape[:2], 2, 2)
    rows = torch.cat((eye, -rays[..., None]), dim=-1)  # (B, J, 2, 3)
    target = rays * points[..., 2:] - points[..., :2]
    depth = torch.ones_like(rays[..., 0])
    place, failed = points.new_zeros(len(points), 3), ~known
    for _ in range(_PLACE_ROUNDS):
        shares = (weight.double() / depth.square())[..., None, None] * rows
        normal = torch.einsum("bjrk,bjrl->bkl", shares, rows)
        place, info = torch.linalg.solve_ex(normal, torch.einsum("bjrk,bjr->bk", shares, target))
        size = normal.diagonal(dim1=1, dim2=2).prod(1)
        failed = failed | (info != 0) | ~(torch.linalg.det(normal) > 1e-12 * size)
        depth = (points[..., 2] + place[:, None, 2]).clamp_min(_LEAST_PLACE_M)
    behind = ((points[..., 2] + place[:, None, 2] < _LEAST_PLACE_M) & (weight > 0)).any(1)
    failed = failed | behind | ~place.isfinite().all(1)
    return place.masked_fill(failed[:, None], torch.nan).to(points_m)
