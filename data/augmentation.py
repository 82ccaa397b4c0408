"""Mirroring and turning people, so that pose, mesh, 3D joints and picture stay one and the same person.

Mirrored is what a mirror shows: left and right exchange their names. In the camera frame (x right) everything changes
the sign of x, and the picture is mirrored about the vertical through the camera's centre.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mesh.joints import SMPL24, JointSet
from mesh.rotation import axis_angle_to_quaternion, quaternion_multiply, rotation_about


def mirror_pose(quaternion: Tensor) -> Tensor:
    """The pose of the mirror image: left and right exchanged, (..., 24, 4) wxyz -> same."""
    order = list(SMPL24.flip_permutation)
    return quaternion[..., order, :] * quaternion.new_tensor((1.0, 1.0, -1.0, -1.0))


def mirror_joints(points: Tensor, joints: JointSet) -> Tensor:
    """3D joints in the mirror x = 0, (..., J, 3) -> same."""
    return points[..., list(joints.flip_permutation), :] * points.new_tensor((-1.0, 1.0, 1.0))


def mirror_keypoints(keypoints_px: Tensor, joints: JointSet, middle_px: float) -> Tensor:
    """2D joints in the picture mirrored about the vertical x = `middle_px`, (..., J, 2) px -> same."""
    x, y = keypoints_px[..., list(joints.flip_permutation), :].unbind(-1)
    return torch.stack((2 * middle_px - x, y), dim=-1)


def turn_body(quaternion: Tensor, turn_rad: Tensor) -> Tensor:
    """A pose turned as a whole, in the frame its root lives in: (B, 24, 4) wxyz, (B, 3) axis-angle -> (B, 24, 4)."""
    root = quaternion_multiply(axis_angle_to_quaternion(turn_rad), quaternion[:, 0])
    return torch.cat((root[:, None], quaternion[:, 1:]), dim=1)


def camera_from_world(yaw_rad: Tensor, pitch_rad: Tensor, roll_rad: Tensor) -> Tensor:
    """World (y up) to camera (y down, z forward), after a turn about the vertical: 3 times (B,) -> (B, 3, 3).

    Positive pitch looks down; roll turns the picture clockwise.
    """
    upright = torch.diag(torch.tensor((1.0, -1.0, -1.0), device=yaw_rad.device))
    return rotation_about("z", roll_rad) @ rotation_about("x", pitch_rad) @ upright @ rotation_about("y", yaw_rad)
