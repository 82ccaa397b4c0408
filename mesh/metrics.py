"""Errors of poses and meshes: one value per sample, in millimetres, from metres."""

from __future__ import annotations

import torch
from torch import Tensor

from mesh.alignment import align

MM_PER_M = 1000.0


def point_error_mm(pred_m: Tensor, target_m: Tensor) -> Tensor:
    """Mean distance of corresponding points, (B, N, 3) twice in metres -> (B,) mm.

    MPJPE for joints and MPVPE for vertices, once both sides are relative to their root.
    """
    return (pred_m - target_m).norm(dim=-1).mean(dim=-1) * MM_PER_M


def aligned_error_mm(pred_m: Tensor, target_m: Tensor) -> Tensor:
    """The same after a similarity Procrustes alignment of each sample: PA-MPJPE, PA-MPVPE. (B, N, 3) -> (B,) mm."""
    return point_error_mm(align(pred_m, target_m), target_m)


def facing_error_rad(pred_m: Tensor, target_m: Tensor, left: int, right: int, up: int, root: int) -> Tensor:
    """Angle between the directions that the two bodies face, (B, J, 3) twice -> (B,) radians.

    A body faces along (right hip to left hip) x (root to spine joint `up`); indices name these joints.
    """

    def facing(joints: Tensor) -> Tensor:
        across = joints[:, left] - joints[:, right]
        return torch.linalg.cross(across, joints[:, up] - joints[:, root])

    a, b = facing(pred_m), facing(target_m)
    return torch.atan2(torch.linalg.cross(a, b).norm(dim=-1), (a * b).sum(-1))
