"""Mirroring and turning people, so that pose, mesh, 3D joints and picture stay one and the same person.

Mirrored is what a mirror shows: left and right exchange their names. In the camera frame (x right) everything changes
the sign of x, and the picture is mirrored about the vertical through the camera's centre. A picture turned about the
camera's centre is what a camera turned about its axis takes: clockwise as seen, since y points down.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mesh.errors import InputError
from mesh.joints import COCO19, HUMAN36M17, SMPL24, JointSet
from mesh.rotation import axis_angle_to_quaternion, quaternion_multiply, rotation_about
from mesh.samples import Batch


def mirror_pose(quaternion: Tensor) -> Tensor:
    """The pose of the mirror image: left and right exchanged, (..., 24, 4) wxyz -> same."""
    order = list(SMPL24.flip_permutation)
    return quaternion[..., order, :] * quaternion.new_tensor((1.0, 1.0, -1.0, -1.0))


def mirror_joints(points: Tensor, joints: JointSet) -> Tensor:
    """3D joints in the mirror x = 0, (..., J, 3) -> same."""
    return points[..., list(joints.flip_permutation), :] * points.new_tensor((-1.0, 1.0, 1.0))


def mirror_vertices(vertices: Tensor, mirror: Tensor) -> Tensor:
    """A mesh in the mirror x = 0, (..., V, 3) -> same; `mirror` (V,) as in `mesh.body.Body`."""
    return vertices[..., mirror, :] * vertices.new_tensor((-1.0, 1.0, 1.0))


def mirror_keypoints(keypoints_px: Tensor, joints: JointSet, middle_px: float) -> Tensor:
    """2D joints in the picture mirrored about the vertical x = `middle_px`, (..., J, 2) px -> same."""
    x, y = keypoints_px[..., list(joints.flip_permutation), :].unbind(-1)
    return torch.stack((2 * middle_px - x, y), dim=-1)


def mirror_batch(batch: Batch, which: Tensor, middle_px: float, mirror: Tensor | None = None) -> Batch:
    """The people of a batch, some of them mirrored: `which` (B,) bool.

    `middle_px` is the x of the camera's centre. A batch with vertices needs the body's `mirror`.
    """
    if batch.vertices_m is not None and mirror is None:
        raise InputError("to mirror vertices the body needs a mirror permutation, and this one has none; use mirror=0")

    def some(mirrored: Tensor, kept: Tensor) -> Tensor:
        return torch.where(which.view(-1, *[1] * (kept.ndim - 1)), mirrored, kept)

    order = list(COCO19.flip_permutation)
    vertices = batch.vertices_m
    if vertices is not None and mirror is not None:
        vertices = some(mirror_vertices(vertices, mirror), vertices)
    return replace(
        batch,
        keypoints_px=some(mirror_keypoints(batch.keypoints_px, COCO19, middle_px), batch.keypoints_px),
        confidence=some(batch.confidence[:, order], batch.confidence),
        joints_m=some(mirror_joints(batch.joints_m, COCO19), batch.joints_m),
        regressed_m=some(mirror_joints(batch.regressed_m, HUMAN36M17), batch.regressed_m),
        vertices_m=vertices,
    )


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


def turn_keypoints(keypoints_px: Tensor, angle_rad: Tensor, centre_px: Tensor) -> Tensor:
    """2D joints in the picture turned about `centre_px`, clockwise as seen: (B, J, 2), (B,), (B, 2) -> (B, J, 2)."""
    turn = rotation_about("z", angle_rad)[:, :2, :2]
    return (keypoints_px - centre_px[:, None]) @ turn.mT + centre_px[:, None]


def turn_batch(batch: Batch, angle_rad: Tensor, centre_px: Tensor) -> Batch:
    """The people of a batch in pictures turned about the camera's centre: (B,) clockwise as seen, (B, 2)."""
    turn = rotation_about("z", angle_rad)
    return replace(
        batch,
        keypoints_px=turn_keypoints(batch.keypoints_px, angle_rad, centre_px),
        joints_m=batch.joints_m @ turn.mT,
        regressed_m=batch.regressed_m @ turn.mT,
        vertices_m=None if batch.vertices_m is None else batch.vertices_m @ turn.mT,
    )
