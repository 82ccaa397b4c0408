"""From 2D joints in pixels to what the networks see."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mesh.camera import TYPICAL_EXTENT

Normalisation = Literal["isotropic", "per_axis"]
_LARGEST = 5.0
_LEAST_VARIANCE = 1e-10  # in focal lengths: below it all joints lie in one place


def normalise_keypoints(keypoints_px: Tensor, confidence: Tensor, mode: Normalisation = "isotropic") -> Tensor:
    """Positions free of place and size, (B, J, 2) px, (B, J) -> (B, J, 2); joints of confidence 0 become 0.

    "isotropic" centres on the mean of the known joints and divides both axes by one number, the root mean square
    distance from it, so the shape of the pose is kept. "per_axis" is the original Pose2Mesh's z-score: each axis by
    its own standard deviation, which loses the aspect ratio; it is there for weights trained that way. A pose with
    no extent (or no known joint) becomes all 0.
    """
    centred, variance = _spread(keypoints_px, confidence)
    return _normalised(centred, variance, mode)


def _spread(points: Tensor, confidence: Tensor) -> tuple[Tensor, Tensor]:
    """Positions around the mean of the known joints and their variance along both axes: (B, J, 2), (B, 1, 2)."""
    known = (confidence > 0).to(points.dtype)[..., None]
    count = known.sum(1, keepdim=True).clamp_min(1)
    centred = (points - (known * points).sum(1, keepdim=True) / count) * known
    return centred, centred.square().sum(1, keepdim=True) / count


def _normalised(centred: Tensor, variance: Tensor, mode: Normalisation, least: float = 1e-6) -> Tensor:
    if mode == "isotropic":
        variance = variance.sum(-1, keepdim=True)
    return torch.where(variance > least, centred / variance.clamp_min(least).sqrt(), 0.0)


def pose_features(
    keypoints_px: Tensor, confidence: Tensor, mode: Normalisation = "isotropic", *, with_confidence: bool = True
) -> Tensor:
    """Normalised positions and, unless switched off, confidence: (B, J, 2 or 3)."""
    positions = normalise_keypoints(keypoints_px, confidence, mode)
    return torch.cat((positions, confidence[..., None]), dim=-1) if with_confidence else positions


def centred_features(view: Tensor, confidence: Tensor, mode: Normalisation = "isotropic") -> Tensor:
    """Of a view in focal lengths: normalised positions, confidence, and how large the person is to the camera.

    (B, J, 2), (B, J) -> (B, J, 4); the last channel, the same for all joints, is 1 for `TYPICAL_EXTENT`. The nearer a
    person, the larger, and the more does perspective enlarge what is nearest. At most `_LARGEST`.
    """
    centred, variance = _spread(view, confidence)
    positions = _normalised(centred, variance, mode, _LEAST_VARIANCE)
    extent = (variance.sum(-1, keepdim=True).sqrt() / TYPICAL_EXTENT).clamp_max(_LARGEST)
    return torch.cat((positions, confidence[..., None], extent.expand(-1, view.shape[1], 1)), dim=-1)
