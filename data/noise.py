"""What a 2D detector does to a pose: jitter, outliers, shifted definitions, hidden and cut-off joints."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from data.draws import Draws
from mesh.errors import require
from mesh.joints import COCO17

# Per-joint constants of the COCO keypoint evaluation (cocodataset.org, "keypoints evaluation"): relative annotation sd.
COCO_SIGMAS = (
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089,
    0.089,
)  # fmt: skip

_HIPS = COCO17.indices(("left_hip", "right_hip"))
_SHOULDERS = COCO17.indices(("left_shoulder", "right_shoulder"))
_FAR_FACE = (COCO17.indices(("left_eye", "left_ear")), COCO17.indices(("right_eye", "right_ear")))
_LIMBS = (
    *(
        COCO17.indices(chain)
        for side in ("left", "right")
        for chain in (
            (f"{side}_ankle",),
            (f"{side}_knee", f"{side}_ankle"),
            (f"{side}_wrist",),
            (f"{side}_elbow", f"{side}_wrist"),
        )
    ),
    COCO17.indices(("left_ankle", "right_ankle")),
    COCO17.indices(("left_knee", "right_knee", "left_ankle", "right_ankle")),
    COCO17.indices(("nose", "left_eye", "right_eye", "left_ear", "right_ear")),
)
_LIMB_MASKS, _FACE_MASKS = (
    tuple(tuple(joint in part for joint in range(len(COCO17))) for part in parts) for parts in (_LIMBS, _FAR_FACE)
)


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """Detector-like error on 2D joints; lengths are fractions of the person's size (root of the box area)."""

    clean: float = 0.4  # share of samples that stay exact
    jitter: float = 0.5  # median jitter sd, in COCO sigmas
    jitter_spread: float = 0.6  # sd of the log of a person's jitter: some detections are better than others
    outlier: float = 0.02  # probability that a joint lands somewhere else
    outlier_sd: float = 0.15
    definition_shift: float = 0.06  # hips and shoulders defined higher or lower along the trunk
    definition_width: float = 0.2  # hips and shoulders defined further in
    drop_joint: float = 0.02
    drop_limb: float = 0.25
    drop_face_side: float = 0.25
    cut_off: float = 0.1  # probability that the picture ends within the person

    def __post_init__(self) -> None:
        for name in ("clean", "outlier", "drop_joint", "drop_limb", "drop_face_side", "cut_off", "definition_width"):
            require(0 <= getattr(self, name) <= 1, f"noise.{name} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("jitter", "jitter_spread", "outlier_sd", "definition_shift"):
            require(getattr(self, name) >= 0, f"noise.{name} must not be negative, got {getattr(self, name)}")


def person_size(keypoints: Tensor) -> Tensor:
    """Root of the area of the joints' bounding box, (B, J, 2) -> (B,), same unit."""
    extent = keypoints.amax(-2) - keypoints.amin(-2)
    return (extent[:, 0] * extent[:, 1]).clamp_min(1e-6).sqrt()


def _shift_definitions(points: Tensor, config: NoiseConfig, draws: Draws) -> Tensor:
    """Hips and shoulders as another annotator would place them: along the trunk and towards the middle."""
    points = points.clone()
    trunk = points[:, _SHOULDERS].mean(1) - points[:, _HIPS].mean(1)
    for pair in (_HIPS, _SHOULDERS):
        along = (2 * draws.rand(1) - 1) * config.definition_shift
        inward = draws.rand(1, 1) * config.definition_width
        middle = points[:, pair].mean(1, keepdim=True)
        points[:, pair] = middle + (points[:, pair] - middle) * (1 - inward) + (along * trunk)[:, None]
    return points


def _hidden(points: Tensor, config: NoiseConfig, draws: Draws) -> Tensor:
    """Which joints a detector would not see, (B, 17) bool."""
    hidden = draws.rand(len(COCO17)) < config.drop_joint
    limb, side = torch.tensor(_LIMB_MASKS, device=points.device), torch.tensor(_FACE_MASKS, device=points.device)
    hidden |= limb[draws.randint(len(_LIMBS))] & (draws.rand(1) < config.drop_limb)
    hidden |= side[draws.randint(2)] & (draws.rand(1) < config.drop_face_side)
    low, high = points.amin(1), points.amax(1)
    edge = low + (high - low) * (0.35 + 0.6 * draws.rand(2))  # the lower or right border
    axis = (draws.rand(1) < 0.75).long()  # mostly the feet are cut off
    beyond = points.gather(2, axis[..., None].expand(-1, len(COCO17), 1))[..., 0] > edge.gather(1, axis)
    return hidden | (beyond & (draws.rand(1) < config.cut_off))


def imitate_detector(keypoints: Tensor, config: NoiseConfig, draws: Draws) -> tuple[Tensor, Tensor]:
    """Exact COCO-17 joints to what a detector would report: (B, 17, 2) px -> (B, 17, 2) px and confidence (B, 17).

    Confidence is 1 for exact samples; for the others it falls with the joint's error, with noise of its own, and is
    0 for a joint that was not seen (whose position is then left as it was and must not be used).
    """
    joints = len(COCO17)
    size = person_size(keypoints)[:, None, None]
    sigma = keypoints.new_tensor(COCO_SIGMAS)[:, None]
    quality = config.jitter * (config.jitter_spread * draws.randn(1, 1)).exp()
    jitter = quality * sigma * draws.randn(joints, 2)
    outlier = config.outlier_sd * draws.randn(joints, 2)
    is_outlier = draws.rand(joints, 1) < config.outlier
    error = torch.where(is_outlier, outlier, jitter)
    noisy = _shift_definitions(keypoints, config, draws) + error * size
    relative = error.norm(dim=-1) / (4 * sigma[:, 0])
    doubt = (relative * draws.rand(joints)).clamp(max=0.7)
    confidence = (1 - doubt).masked_fill(_hidden(keypoints, config, draws), 0.0)
    exact = draws.rand(1) < config.clean
    return (
        torch.where(exact[..., None], keypoints, noisy),
        torch.where(exact, torch.ones_like(confidence), confidence),
    )
