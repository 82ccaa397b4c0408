"""The mean of a prediction and of that for the mirror image, which also tells how far to trust it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gcn.pose2mesh import JOINTS, Pose2Mesh
from mesh.body import Body
from mesh.errors import InputError


class MirrorAveraged(nn.Module):
    """A Pose2Mesh that looks twice: at the 2D pose, and at its mirror image, whose result it mirrors back."""

    mirror: Tensor

    def __init__(self, model: Pose2Mesh, body: Body) -> None:
        super().__init__()
        if body.mirror is None:
            raise InputError(f"body {body.name} has no mirror table, which averaging with the mirror image needs")
        self.model = model
        self.register_buffer("mirror", torch.from_numpy(body.mirror), persistent=False)

    def forward(
        self, keypoints_px: Tensor, confidence: Tensor, intrinsics: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `Pose2Mesh`: lifted joints (B, 19, 3), vertices (B, V, 3), each the mean of both looks."""
        joints, vertices = zip(*self.looks(keypoints_px, confidence, intrinsics))
        return (joints[0] + joints[1]) / 2, (vertices[0] + vertices[1]) / 2

    def looks(
        self, keypoints_px: Tensor, confidence: Tensor, intrinsics: Tensor | None = None
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Joints and vertices as they are seen, and as they are seen in the mirror, mirrored back."""
        order = list(JOINTS.flip_permutation)
        mirrored_px = keypoints_px[:, order] * keypoints_px.new_tensor((-1.0, 1.0))
        mirrored = None if intrinsics is None else intrinsics * intrinsics.new_tensor((1.0, 1.0, -1.0, 1.0))
        joints, vertices = self.model(mirrored_px, confidence[:, order], mirrored)
        back = joints.new_tensor((-1.0, 1.0, 1.0))
        return self.model(keypoints_px, confidence, intrinsics), (
            joints[:, order] * back,
            vertices[:, self.mirror] * back,
        )
