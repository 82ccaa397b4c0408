"""Rotations: quaternion, axis-angle, 6D and matrix, batched and differentiable."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def quaternion_to_matrix(quaternion: Tensor) -> Tensor:
    """(..., 4) wxyz, any length but zero -> (..., 3, 3)."""
    w, x, y, z = normalize(quaternion, dim=-1).unbind(-1)
    rows = (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def quaternion_multiply(a: Tensor, b: Tensor) -> Tensor:
    """Hamilton product of wxyz quaternions: rotate by b, then by a. (..., 4), (..., 4) -> (..., 4)."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        (
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ),
        dim=-1,
    )


def axis_angle_to_quaternion(axis_angle: Tensor) -> Tensor:
    """(..., 3) radians -> (..., 4) wxyz; finite gradient at the zero rotation."""
    squared = axis_angle.square().sum(-1, keepdim=True)
    small = squared < 1e-12
    angle = torch.where(small, torch.ones_like(squared), squared).sqrt()
    scale = torch.where(small, 0.5 - squared / 48, (angle / 2).sin() / angle)
    w = torch.where(small, 1 - squared / 8, (angle / 2).cos())
    return torch.cat((w, axis_angle * scale), dim=-1)


def axis_angle_to_matrix(axis_angle: Tensor) -> Tensor:
    """(..., 3) radians -> (..., 3, 3)."""
    return quaternion_to_matrix(axis_angle_to_quaternion(axis_angle))


def quaternion_to_axis_angle(quaternion: Tensor) -> Tensor:
    """(..., 4) wxyz -> (..., 3) radians, the shorter way round (angle at most pi)."""
    q = normalize(quaternion, dim=-1)
    q = torch.where(q[..., :1] < 0, -q, q)
    vector, w = q[..., 1:], q[..., :1]
    squared = vector.square().sum(-1, keepdim=True)
    small = squared < 1e-12
    sine = torch.where(small, torch.ones_like(squared), squared).sqrt()
    safe_w = torch.where(small, w, torch.ones_like(w))  # w is 0 at half a turn
    return vector * torch.where(small, 2 / safe_w, 2 * torch.atan2(sine, w) / sine)


def matrix_to_axis_angle(matrix: Tensor) -> Tensor:
    """Rotations (..., 3, 3) -> (..., 3) radians, the shorter way round.

    All rows of the matrix of the quaternion's products lie along it; the longest is sure to have a direction.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (row.unbind(-1) for row in matrix.unbind(-2))
    products = (
        1 + xx + yy + zz, zy - yz, xz - zx, yx - xy,
        zy - yz, 1 + xx - yy - zz, xy + yx, xz + zx,
        xz - zx, xy + yx, 1 - xx + yy - zz, yz + zy,
        yx - xy, xz + zx, yz + zy, 1 - xx - yy + zz,
    )  # fmt: skip
    rows = torch.stack(products, dim=-1).unflatten(-1, (4, 4))
    longest = rows.diagonal(dim1=-2, dim2=-1).argmax(-1)
    quaternion = rows.gather(-2, longest[..., None, None].expand(*longest.shape, 1, 4))[..., 0, :]
    return quaternion_to_axis_angle(normalize(quaternion, dim=-1))


def matrix_to_rot6d(matrix: Tensor) -> Tensor:
    """First two columns, (..., 3, 3) -> (..., 6) (Zhou et al. 2019)."""
    return matrix[..., :2].transpose(-1, -2).flatten(-2)


def rot6d_to_matrix(rot6d: Tensor) -> Tensor:
    """Gram-Schmidt on two columns, (..., 6) -> (..., 3, 3) (Zhou et al. 2019, equation 15)."""
    a, b = rot6d[..., :3], rot6d[..., 3:]
    x = normalize(a, dim=-1)
    y = normalize(b - (x * b).sum(-1, keepdim=True) * x, dim=-1)
    return torch.stack((x, y, torch.linalg.cross(x, y)), dim=-1)


def rotation_about(axis: str, angle_rad: Tensor) -> Tensor:
    """Rotation about the x, y or z axis, right-handed: (...) radians -> (..., 3, 3)."""
    cos, sin = angle_rad.cos(), angle_rad.sin()
    one, zero = torch.ones_like(cos), torch.zeros_like(cos)
    rows = {
        "x": (one, zero, zero, zero, cos, -sin, zero, sin, cos),
        "y": (cos, zero, sin, zero, one, zero, -sin, zero, cos),
        "z": (cos, -sin, zero, sin, cos, zero, zero, zero, one),
    }[axis]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))
