"""From 2D joints in pixels to what the networks see."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mesh.camera import TYPICAL_EXTENT

Normalisation = Literal["isotropic", "per_axis"]
_LARGEST = 5.0


def normalise_keypoints(keypoints_px: Tensor, confidence: Tensor, mode: Normalisation = "isotropic") -> Tensor:
    """Positions free of place and size, (B, J, 2) px, (B, J) -> (B, J, 2); joints of confidence 0 become 0.

    "isotropic" centres on the mean of the known joints and divides both axes by one number, the root mean square
    distance from it, so the shape of the pose is kept. "per_axis" is the original Pose2Mesh's z-score: each axis by
    its own standard deviation, which loses the aspect ratio; it is there for weights trained that way. A pose with
    no extent (or no known joint) becomes all 0.
    """
    known = (confidence > 0).to(keypoints_px.dtype)[..., None]
    count = known.sum(1, keepdim=True).clamp_min(1)
    centred = (keypoints_px - (known * keypoints_px).sum(1, keepdim=True) / count) * known
    variance = centred.square().sum(1, keepdim=True) / count  # (B, 1, 2)
    if mode == "isotropic":
        variance = variance.sum(-1, keepdim=True)
    has_extent = variance > 1e-6
    return torch.where(has_extent, centred / variance.clamp_min(1e-6).sqrt(), 0.0)


def pose_features(
    keypoints_px: Tensor, confidence: Tensor, mode: Normalisation = "isotropic", *, with_confidence: bool = True
) -> Tensor:
    """Normalised positions and, unless switched off, confidence: (B, J, 2 or 3)."""
    positions = normalise_keypoints(keypoints_px, confidence, mode)
    return torch.cat((positions, confidence[..., None]), dim=-1) if with_confidence else positions


def relative_extent(view: Tensor, confidence: Tensor) -> Tensor:
    """How large the person is to the camera, 1 for `TYPICAL_EXTENT`: (B, J, 2) in focal lengths, (B, J) -> (B,).

    The nearer a person, the larger, and the more does perspective enlarge what is nearest. At most `_LARGEST`.
    """
    known = (confidence > 0).to(view.dtype)[..., None]
    count = known.sum(1, keepdim=True).clamp_min(1)
    centred = (view - (known * view).sum(1, keepdim=True) / count) * known
    extent = (centred.square().sum((1, 2)) / count[:, 0, 0]).sqrt()
    return (extent / TYPICAL_EXTENT).clamp_max(_LARGEST)
