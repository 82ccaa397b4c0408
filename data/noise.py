"""What a 2D detector does to a pose: our own model of it, and the choice between it and the two published ones.

Our own: jitter, outliers, shifted definitions, hidden and cut-off joints, left taken for right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from data.draws import Draws
from data.noise_coco import COCO_SIGMAS, coco_error
from data.noise_human36m import human36m_error
from data.occlusion import hidden_by_body
from mesh.errors import require
from mesh.joints import COCO17, MIN_CONFIDENCE

_HIPS = COCO17.indices(("left_hip", "right_hip"))
_SHOULDERS = COCO17.indices(("left_shoulder", "right_shoulder"))
_FACE = COCO17.indices(("nose", "left_eye", "right_eye", "left_ear", "right_ear"))
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
    _FACE,
)
_SIDES = tuple(COCO17.indices([n for n in COCO17.names if n.startswith(side)]) for side in ("left", "right"))
_LIMB_MASKS, _FACE_MASKS, _SIDE_MASKS, (_FACE_MASK,) = (
    tuple(tuple(joint in part for joint in range(len(COCO17))) for part in parts)
    for parts in (_LIMBS, _FAR_FACE, _SIDES, (_FACE,))
)
_MOST_MISSING = 0.6  # the largest chance of a joint to be missing, where many are

# Log odds of the confidence, mean and sd, of joints that are in view and of those hidden by the body; joints of the
# trunk and the face are nearly always reported as sure. BlazePose on 853 rendered people (docs/experiments.md).
_LOG_ODDS = {"elbow": (3.5, 2.5), "wrist": (2.9, 2.2), "knee": (3.3, 2.1), "ankle": (3.35, 1.8)}
_LOG_ODDS_HIDDEN = {"elbow": (-0.95, 2.2), "wrist": (-2.2, 2.4), "knee": (0.0, 1.5), "ankle": (0.15, 1.35)}
_SURE, _SURE_HIDDEN = (6.5, 1.3), (6.0, 1.4)
# Of the log odds, where another detector's scores are imitated: 0.3 turns 0.998 into 0.87. Exact joints must not look
# like BlazePose's, whose hips the networks know to be too high.
_LEAST_SCALE, _MOST_SCALE, _MOST_SCALE_EXACT = 0.15, 1.0, 0.3
_LEAST_ALIKE = 0.5  # of the one confidence that exact joints have in common where they are not told apart
_SCORE_SD = 0.4  # of those log odds, joint by joint
_DOUBT_SCALE = 0.9  # the error grows with log(1 + exp(-0.9 log odds))
_KIND = tuple(name.rpartition("_")[2] for name in COCO17.names)
_ARM_JOINTS = [joint for joint, kind in enumerate(_KIND) if kind in ("elbow", "wrist")]
_LIMB_JOINTS = [kind in _LOG_ODDS for kind in _KIND]
_ARMS_WORSE, _HIDDEN_LEGS_WORSE = 1.25, 1.35  # factors of the error, beyond what the doubt says
# Correlated errors: each second joint takes this share of the first one's, whose own is the rest.
_CHAIN, _EYES = 0.5, 0.9
_CHAINS: tuple[tuple[int, int, float], ...] = (
    *(
        (COCO17.index(f"{side}_{upper}"), COCO17.index(f"{side}_{lower}"), _CHAIN)
        for side in ("left", "right")
        for upper, lower in (("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle"))
    ),
    *((COCO17.index("nose"), COCO17.index(eye), _EYES) for eye in ("left_eye", "right_eye")),
)

# Order of the joints where left and right are taken for each other: everywhere, or in the arms below the shoulders.
_WHOLE_BODY = list(COCO17.flip_permutation)
_ARMS = [_WHOLE_BODY[i] if name.endswith(("elbow", "wrist")) else i for i, name in enumerate(COCO17.names)]


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """Error on the 2D joints. `clean` holds for every model, all other keys for "detector" alone.

    "human36m" and "coco" are those published with Pose2Mesh (data/noise_human36m.py, data/noise_coco.py): they move
    joints and hide none; there every sample is noisy, so set clean=0. "none" leaves every sample exact.

    Lengths are fractions of the person's size (root of the box area). Exchanged labels change the input alone, never
    the truth, and not the clean samples.

    A joint that the body hides is guessed: less surely and worse than one in view. Confidence is drawn first, and the
    error grows as it falls. Jitter, doubt, spreads, outliers, hip_rise and the confidences follow BlazePose on rendered
    people (tools/measure_detector.py; docs/experiments.md, "How the detector errs"). definition_shift and
    definition_width are wider than measured, because other detectors define hips and shoulders in their own way; the
    drop rates and cut_off are not measured: nothing but their own body hides rendered people. Exchanges: 1 % of the
    rendered people (2.5 % of the frontal ones), 9 % of the views of a real recording of acrobatics; the two arms alone
    0.2 %. Their defaults are 0: `gcn.labeling` makes whole-body exchanges of its own to learn from, and those of the
    arms are rare.

    Other detectors report other confidences for the same joints: scores of heat maps seldom come near 1 and tell less,
    and some files have none. `rescored` and `unscored` train for that; at 0 they draw nothing.
    """

    model: Literal["detector", "human36m", "coco", "none"] = "detector"
    clean: float = 0.4  # share of samples that stay exact
    jitter: float = 0.2  # median jitter sd of a sure joint, in COCO sigmas
    face_jitter: float = 0.8  # the same of nose, eyes and ears
    doubt: float = 0.36  # added to it for a doubtful one, once for each power of e that its odds fall below even
    hidden_jitter: float = 1.7  # factor of a hidden joint of the face or shoulder, which is reported as sure
    jitter_spread: float = 0.37  # sd of the log of a person's jitter: some detections are better than others
    joint_spread: float = 0.5  # the same of one joint among the person's
    outlier: float = 0.005  # probability that a joint lands somewhere else
    outlier_sd: float = 0.15
    definition_shift: float = 0.05  # hips and shoulders defined higher or lower along the trunk
    hip_rise: float = 0.05  # middle of that for the hips, upwards; 0 for the shoulders
    definition_width: float = 0.2  # hips and shoulders defined further in
    drop_joint: float = 0.02
    drop_limb: float = 0.15
    drop_face_side: float = 0.15
    drop_doubtful: float = 0.25  # probability that a person's joints of confidence below 0.3 count as not seen
    drop_side: float = 0.0  # probability that one side is not seen, in exact samples too: people in profile
    drop_face: float = 0.0  # probability that the whole face is not seen, in exact samples too
    drop_many: float = 0.0  # probability that each joint is missing with a chance of up to 60 %, in exact samples too
    cut_off: float = 0.1  # probability that the picture ends within the person
    exchange: float = 0.0  # probability that left and right are exchanged in the whole body, face included
    exchange_arms: float = 0.0  # probability that the two arms are exchanged, from the elbows on
    rescored: float = 0.0  # share of samples, exact ones too, that come with confidences on another detector's scale
    unscored: float = 0.0  # share of samples whose joints, if seen, have the same confidence: 1, or 0.5 to 1 if exact

    def __post_init__(self) -> None:
        for name in (
            "clean", "outlier", "drop_joint", "drop_limb", "drop_face_side", "drop_doubtful", "drop_side", "drop_face",
            "drop_many", "cut_off", "definition_width", "exchange", "exchange_arms", "rescored", "unscored",
        ):  # fmt: skip
            require(0 <= getattr(self, name) <= 1, f"noise.{name} must lie in [0, 1], got {getattr(self, name)}")
        for name in (
            "jitter", "face_jitter", "doubt", "hidden_jitter", "jitter_spread", "joint_spread", "outlier_sd",
            "definition_shift",
        ):  # fmt: skip
            require(getattr(self, name) >= 0, f"noise.{name} must not be negative, got {getattr(self, name)}")
        require(-1 <= self.hip_rise <= 1, f"noise.hip_rise must lie in [-1, 1], got {self.hip_rise}")
        require(
            self.rescored + self.unscored <= 1,
            f"noise.rescored and noise.unscored must not exceed 1 together, got {self.rescored} and {self.unscored}",
        )
        for name in ("exchange", "exchange_arms", "rescored", "unscored", "drop_side", "drop_face", "drop_many"):
            require(
                self.model == "detector" or getattr(self, name) == 0,
                f"noise.{name} is part of noise.model=detector alone; set it to 0, or the model to detector, "
                f"got {getattr(self, name)} with {self.model}",
            )


def person_size(keypoints: Tensor) -> Tensor:
    """Root of the area of the joints' bounding box, (B, J, 2) -> (B,), same unit."""
    extent = keypoints.amax(-2) - keypoints.amin(-2)
    return (extent[:, 0] * extent[:, 1]).clamp_min(1e-6).sqrt()


def _shift_definitions(points: Tensor, config: NoiseConfig, draws: Draws) -> Tensor:
    """Hips and shoulders as another annotator would place them: along the trunk and towards the middle."""
    points = points.clone()
    trunk = points[:, _SHOULDERS].mean(1) - points[:, _HIPS].mean(1)
    for pair, rise in ((_HIPS, config.hip_rise), (_SHOULDERS, 0.0)):
        along = rise + (2 * draws.rand(1) - 1) * config.definition_shift
        inward = draws.rand(1, 1) * config.definition_width
        middle = points[:, pair].mean(1, keepdim=True)
        points[:, pair] = middle + (points[:, pair] - middle) * (1 - inward) + (along * trunk)[:, None]
    return points


def _dropped(points: Tensor, config: NoiseConfig, draws: Draws) -> Tensor:
    """Which joints a detector would not report, (B, 17) bool."""
    hidden = draws.rand(len(COCO17)) < config.drop_joint
    limb, side = torch.tensor(_LIMB_MASKS, device=points.device), torch.tensor(_FACE_MASKS, device=points.device)
    hidden |= limb[draws.randint(len(_LIMBS))] & (draws.rand(1) < config.drop_limb)
    hidden |= side[draws.randint(2)] & (draws.rand(1) < config.drop_face_side)
    low, high = points.amin(1), points.amax(1)
    edge = low + (high - low) * (0.35 + 0.6 * draws.rand(2))  # the lower or right border
    axis = (draws.rand(1) < 0.75).long()  # mostly the feet are cut off
    beyond = points.gather(2, axis[..., None].expand(-1, len(COCO17), 1))[..., 0] > edge.gather(1, axis)
    return hidden | (beyond & (draws.rand(1) < config.cut_off))


def _missing(points: Tensor, config: NoiseConfig, draws: Draws) -> Tensor:
    """Joints that a detector does not report although others see as much of the person, (B, 17) bool."""
    missing = torch.zeros_like(points[..., 0], dtype=torch.bool)
    if config.drop_side > 0:
        side = torch.tensor(_SIDE_MASKS, device=points.device)
        missing |= side[draws.randint(2)] & (draws.rand(1) < config.drop_side)
    if config.drop_face > 0:
        face = torch.tensor(_FACE_MASK, device=points.device)
        missing |= face & (draws.rand(1) < config.drop_face)
    if config.drop_many > 0:
        chance = _MOST_MISSING * draws.rand(1) * (draws.rand(1) < config.drop_many)
        missing |= draws.rand(len(COCO17)) < chance
    return missing


def _exchange(points: Tensor, confidence: Tensor, config: NoiseConfig, draws: Draws) -> tuple[Tensor, Tensor]:
    """Left taken for right: joints and their confidence under the other side's names. Draws nothing at rate 0."""
    for rate, order in ((config.exchange, _WHOLE_BODY), (config.exchange_arms, _ARMS)):
        if rate > 0:
            wrong = draws.rand(1) < rate
            points = torch.where(wrong[..., None], points[:, order], points)
            confidence = torch.where(wrong, confidence[:, order], confidence)
    return points, confidence


def _log_odds(hidden: Tensor, draws: Draws) -> Tensor:
    """How sure a detector is of joints in view and of hidden ones, (B, 17) bool -> (B, 17)."""
    in_view, behind = (
        torch.tensor([table.get(kind, sure) for kind in _KIND], device=hidden.device)
        for table, sure in ((_LOG_ODDS, _SURE), (_LOG_ODDS_HIDDEN, _SURE_HIDDEN))
    )
    mean, sd = torch.where(hidden[..., None], behind, in_view).unbind(-1)
    return mean + sd * draws.randn(len(COCO17))


def _reported(log_odds: Tensor, exact: Tensor, config: NoiseConfig, draws: Draws) -> Tensor:
    """Confidences of joints that are seen, (B, 17): 1 in exact samples (B, 1) unless another detector scores them."""
    scores = torch.where(exact, 1.0, log_odds.sigmoid())
    if config.rescored + config.unscored > 0:
        span = torch.where(exact, math.log(_MOST_SCALE_EXACT / _LEAST_SCALE), math.log(_MOST_SCALE / _LEAST_SCALE))
        scale = _LEAST_SCALE * (span * draws.rand(1)).exp()
        rescored = (scale * log_odds + _SCORE_SD * draws.randn(len(COCO17))).sigmoid()
        lot = draws.rand(1)
        scores = torch.where(lot < config.rescored, rescored, scores)
        beyond = (lot - (1 - config.unscored)) / max(config.unscored, 1e-6)  # uniform from 0 to 1 if not negative
        alike = torch.where(exact, 1 - (1 - _LEAST_ALIKE) * beyond, 1.0)
        scores = torch.where(beyond >= 0, alike, scores)
    return scores


def _jitter_sd(log_odds: Tensor, hidden: Tensor, config: NoiseConfig, draws: Draws) -> Tensor:
    """Size of each joint's error, (B, 17) in COCO sigmas."""
    limb, face = (torch.zeros(len(COCO17), dtype=torch.bool, device=hidden.device) for _ in range(2))
    limb[_LIMB_JOINTS], face[list(_FACE)] = True, True
    middle = torch.where(face, config.face_jitter, config.jitter) * torch.ones_like(log_odds)
    middle = torch.where(hidden & ~limb, config.hidden_jitter * middle, middle)
    factor = torch.where(hidden & limb, _HIDDEN_LEGS_WORSE, 1.0)
    factor[:, _ARM_JOINTS] = _ARMS_WORSE
    doubt = torch.nn.functional.softplus(-_DOUBT_SCALE * log_odds) * limb
    spread = (config.jitter_spread * draws.randn(1) + config.joint_spread * draws.randn(len(COCO17))).exp()
    return (middle + config.doubt * doubt) * factor * spread


def _directions(draws: Draws) -> Tensor:
    """Standard normal errors (B, 17, 2), correlated along the limbs and in the face."""
    normal = draws.randn(len(COCO17), 2)
    for first, second, share in _CHAINS:
        normal[:, second] = share * normal[:, first] + (1 - share**2) ** 0.5 * normal[:, second]
    return normal


def imitate_detector(keypoints: Tensor, hidden: Tensor, config: NoiseConfig, draws: Draws) -> tuple[Tensor, Tensor]:
    """Exact COCO-17 joints to what a detector would report: (B, 17, 2) px -> (B, 17, 2) px and confidence (B, 17).

    `hidden` (B, 17) bool are the joints behind the body (see `data.occlusion`).
    Confidence is 1 for exact samples (but for what `config.rescored`, `drop_side`, `drop_face` and `drop_many` do), and
    0 for a joint that was not seen (whose position is then left as it was and must not be used).
    """
    size = person_size(keypoints)[:, None, None]
    sigma = keypoints.new_tensor(COCO_SIGMAS)
    log_odds = _log_odds(hidden, draws)
    jitter = (_jitter_sd(log_odds, hidden, config, draws) * sigma)[..., None] * _directions(draws)
    outlier = config.outlier_sd * draws.randn(len(COCO17), 2)
    is_outlier = draws.rand(len(COCO17), 1) < config.outlier
    error = torch.where(is_outlier, outlier, jitter)
    noisy = _shift_definitions(keypoints, config, draws) + error * size
    dropped = _dropped(keypoints, config, draws)
    dropped |= (draws.rand(1) < config.drop_doubtful) & (log_odds.sigmoid() < MIN_CONFIDENCE)
    exact = draws.rand(1) < config.clean
    scores = _reported(log_odds, exact, config, draws).masked_fill(_missing(keypoints, config, draws), 0.0)
    noisy, confidence = _exchange(noisy, scores.masked_fill(dropped, 0.0), config, draws)
    return torch.where(exact[..., None], keypoints, noisy), torch.where(exact, scores, confidence)


def add_noise(keypoints: Tensor, joints_m: Tensor, config: NoiseConfig, draws: Draws) -> tuple[Tensor, Tensor]:
    """Exact COCO-17 joints with the error of the chosen model: (B, 17, 2) px -> (B, 17, 2) px, confidence (B, 17).

    `joints_m` (B, 17 or more, 3) are the same joints, metres, camera frame. The published models know no confidence:
    it is 1.
    """
    if config.model == "detector":
        return imitate_detector(keypoints, hidden_by_body(joints_m), config, draws)
    full = torch.ones_like(keypoints[..., 0])
    if config.model == "none":
        return keypoints, full
    noisy = human36m_error(keypoints, draws) if config.model == "human36m" else coco_error(keypoints, draws)
    exact = draws.rand(1, 1) < config.clean
    return torch.where(exact, keypoints, noisy), full
