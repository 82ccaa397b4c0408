"""How detected 2D joints differ from the true ones: the figures that `data.noise` has to reproduce."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from data.draws import Draws, step_generator
from data.noise import NoiseConfig, imitate_detector, person_size
from data.noise_coco import COCO_SIGMAS
from mesh.joints import COCO17, MIN_CONFIDENCE, Keypoints

ARMS, LEGS = ("elbow", "wrist"), ("knee", "ankle")
FACE = ("nose", "eye", "ear")
VIEWS = {"frontal": (0, 60), "side": (60, 120), "back": (120, 181)}  # facing_deg from, to
MIN_INSIDE = 8  # joints in the picture of a person who counts
_MAX_DISTANCE = 0.5  # mean over joints, in person sizes, of a detection that is of this person
_MIN_GAP = 0.1  # between left and right, in person sizes: below, nobody can tell an exchange
_MIN_WIDTH = 0.15  # of hips or shoulders, in person sizes, where their width is compared
_CLEAR = 0.5  # of 1, the evidence that one labeling is right
_FAR = 0.2  # an error that counts as an outlier, in person sizes
_FAR_SIGMAS = 4.0
_SWAPPED = list(COCO17.flip_permutation)
_PAIRS = np.array(COCO17.flip_pairs)
_SIGMAS = np.array(COCO_SIGMAS)
_TORSO = list(COCO17.indices(("left_shoulder", "right_shoulder", "left_hip", "right_hip")))


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """True and detected COCO-17 joints of N people, one per picture.

    `truth_px`, `detected_px` (N, 17, 2); `confidence` (N, 17) of the detection, 0 if it was not found; `found` (N,);
    `inside`, `occluded` (N, 17): truly in the picture, and hidden by the body; `facing_deg` (N,), `tilted` (N,).
    """

    truth_px: np.ndarray
    detected_px: np.ndarray
    confidence: np.ndarray
    found: np.ndarray
    inside: np.ndarray
    occluded: np.ndarray
    facing_deg: np.ndarray
    tilted: np.ndarray

    def __len__(self) -> int:
        return len(self.found)

    def select(self, rows: np.ndarray) -> Measurements:
        """Some of the people, by mask or number."""
        return Measurements(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})

    @property
    def size_px(self) -> np.ndarray:
        """`data.noise.person_size` of the truth, (N,)."""
        return person_size(torch.from_numpy(self.truth_px)).numpy()

    @property
    def seen(self) -> np.ndarray:
        """Joints that the networks are given: detected, and truly in the picture; (N, 17)."""
        return (self.confidence >= MIN_CONFIDENCE) & self.inside & self.found[:, None]


def match(people: Keypoints, truth_px: np.ndarray, inside: np.ndarray) -> int | None:
    """Which of the people found is the true one, whichever way it is labeled; None if nobody is near.

    (17, 2) px, (17,) bool: only the joints inside of the picture count.
    """
    if not len(people) or not inside.any():
        return None
    size = person_size(torch.from_numpy(truth_px)[None]).item()
    both = np.stack([people.positions_px, people.positions_px[:, _SWAPPED]])
    distance = np.linalg.norm(both - truth_px, axis=-1)[..., inside].mean(-1).min(0) / size
    best = int(distance.argmin())
    return best if distance[best] <= _MAX_DISTANCE else None


def imitated(truth: Measurements, noise: NoiseConfig, *, seed: int, copies: int = 8) -> Measurements:
    """What the noise model makes of the same people, those that the detector found, each several times."""
    people = truth.select(np.repeat(np.flatnonzero(truth.found), copies))
    draws = Draws(len(people), step_generator(seed, 0))
    noisy, confidence = imitate_detector(
        torch.from_numpy(people.truth_px).float(), torch.from_numpy(people.occluded), replace(noise, clean=0), draws
    )
    return replace(people, detected_px=noisy.double().numpy(), confidence=confidence.double().numpy())


def exchange_evidence(m: Measurements, names: Sequence[str] | None = None) -> np.ndarray:
    """From -1, labeled as in truth, to 1, left and right exchanged, of these kinds of joints or all; (N,).

    NaN where left and right lie too close to tell, or are not both seen.
    """
    chosen = [p for p in _PAIRS if names is None or COCO17.names[p[0]].partition("_")[2] in names]
    left, right = np.array(chosen).T
    usable = m.seen[:, left] & m.seen[:, right]
    as_labeled, exchanged, gap = (
        (np.linalg.norm(a[:, left] - b, axis=-1) + np.linalg.norm(a[:, right] - c, axis=-1))
        for a, b, c in (
            (m.detected_px, m.truth_px[:, left], m.truth_px[:, right]),
            (m.detected_px, m.truth_px[:, right], m.truth_px[:, left]),
            (m.truth_px, m.truth_px[:, right], m.truth_px[:, left]),
        )
    )
    total = np.where(usable, gap, 0).sum(1)
    visible = total / np.maximum(2 * usable.sum(1), 1) > _MIN_GAP * m.size_px
    evidence = np.where(usable, as_labeled - exchanged, 0).sum(1) / np.maximum(total, 1e-9)
    return np.where(visible, evidence, np.nan)


def _relabeled(m: Measurements, wrong: np.ndarray, names: Sequence[str] | None = None) -> Measurements:
    """Left and right exchanged back in the people (N,) where they are wrong."""
    order = np.arange(len(COCO17))
    for joint, name in enumerate(COCO17.names):
        if names is None or name.partition("_")[2] in names:
            order[joint] = _SWAPPED[joint]
    return replace(
        m,
        detected_px=np.where(wrong[:, None, None], m.detected_px[:, order], m.detected_px),
        confidence=np.where(wrong[:, None], m.confidence[:, order], m.confidence),
    )


def figures(m: Measurements) -> dict[str, float]:
    """All figures by name, of the people with enough joints in the picture. NaN where nobody can tell."""
    m = m.select(m.inside.sum(1) >= MIN_INSIDE)
    whole = m.inside.all(1)
    found = {"found, whole person in the picture": m.found[whole], "found, person cut off": m.found[~whole]}
    result = {name: _mean(values) for name, values in found.items()}
    m, exchanges = _exchanges(m.select(m.found))
    result |= _error_figures(m) | _definition_figures(m) | exchanges | _confidence_figures(m)
    return result


def _exchanges(m: Measurements) -> tuple[Measurements, dict[str, float]]:
    """Labels as they should be, and how often they were not."""
    result: dict[str, float] = {}
    evidence = exchange_evidence(m)
    clear = abs(evidence) > _CLEAR
    wrong = clear & (evidence > 0)
    result["whole body exchanged"] = _mean(wrong[clear])
    for view, (low, high) in VIEWS.items():
        here = clear & (m.facing_deg >= low) & (m.facing_deg < high)
        result[f"whole body exchanged, {view}"] = _mean(wrong[here])
    result["whole body: share of clear cases"] = _mean(clear)
    m = _relabeled(m, wrong)
    for limb, names in (("arms", ARMS), ("legs", LEGS)):
        evidence = exchange_evidence(m, names)
        clear = abs(evidence) > _CLEAR
        wrong = clear & (evidence > 0)
        result[f"{limb} exchanged"] = _mean(wrong[clear])
        for view, (low, high) in VIEWS.items():
            here = clear & (m.facing_deg >= low) & (m.facing_deg < high)
            result[f"{limb} exchanged, {view}"] = _mean(wrong[here])
        m = _relabeled(m, wrong, names)
    return m, result


def relative_error(m: Measurements) -> np.ndarray:
    """Distance of each seen joint from the true one in person sizes, NaN for the others; (N, 17)."""
    error = np.linalg.norm(m.detected_px - m.truth_px, axis=-1) / m.size_px[:, None]
    return np.where(m.seen, error, np.nan)


def _error_figures(m: Measurements) -> dict[str, float]:
    error = relative_error(m)
    in_sigmas = error / _SIGMAS
    result = {}
    for kind in dict.fromkeys(name.rpartition("_")[2] for name in COCO17.names):
        joints = [name.rpartition("_")[2] == kind for name in COCO17.names]
        result[f"{kind}: median error, sizes"] = _quantile(error[:, joints], 0.5)
        result[f"{kind}: 90 % error, sizes"] = _quantile(error[:, joints], 0.9)
        result[f"{kind}: median error, sigmas"] = _quantile(in_sigmas[:, joints], 0.5)
        result[f"{kind}: 90 % error, sigmas"] = _quantile(in_sigmas[:, joints], 0.9)
    limbs = [name.rpartition("_")[2] in ARMS + LEGS for name in COCO17.names]
    known = in_sigmas[:, limbs][(~np.isnan(in_sigmas[:, limbs])).sum(1) >= 4]
    per_person = np.log(np.nanmedian(known, axis=1).clip(1e-6)) if len(known) else np.empty(0)
    result["limbs: median error, sigmas"] = _quantile(in_sigmas[:, limbs], 0.5)
    result["limbs: median of visible joints, sigmas"] = _quantile(in_sigmas[:, limbs][~m.occluded[:, limbs]], 0.5)
    result["limbs: median of occluded joints, sigmas"] = _quantile(in_sigmas[:, limbs][m.occluded[:, limbs]], 0.5)
    result["limbs: spread between people, sd of log"] = _half_width(per_person)
    result[f"joints off by more than {_FAR:g} sizes"] = _share(error > _FAR, m.seen)
    result[f"joints off by more than {_FAR_SIGMAS:g} sigmas"] = _share(in_sigmas > _FAR_SIGMAS, m.seen)
    middles = [m.truth_px[:, _TORSO[k : k + 2]].mean(1) for k in (0, 2)]
    torso = np.linalg.norm(middles[0] - middles[1], axis=-1) / m.size_px
    result["within 0.2 torso lengths"] = _share(error < 0.2 * torso[:, None], m.seen)
    return result


def _definition_figures(m: Measurements) -> dict[str, float]:
    """Where hips and shoulders lie along the trunk (up positive, in trunk lengths) and how wide they are."""
    result = {}
    known = m.seen[:, _TORSO].all(1)
    truth, detected = m.truth_px[known][:, _TORSO], m.detected_px[known][:, _TORSO]
    size = m.size_px[known]
    trunk = truth[:, :2].mean(1) - truth[:, 2:].mean(1)
    is_long = np.linalg.norm(trunk, axis=-1) > 2 * _MIN_WIDTH * size
    for name, pair in (("shoulders", slice(0, 2)), ("hips", slice(2, 4))):
        shift = (detected[:, pair] - truth[:, pair]).mean(1)
        along = (shift * trunk).sum(-1)[is_long] / (trunk**2).sum(-1)[is_long]
        width = truth[:, pair][:, 0] - truth[:, pair][:, 1]
        is_wide = np.linalg.norm(width, axis=-1) > _MIN_WIDTH * size
        detected_width = detected[:, pair][:, 0] - detected[:, pair][:, 1]
        inward = 1 - (detected_width * width).sum(-1)[is_wide] / (width**2).sum(-1)[is_wide]
        result[f"{name}: shift along the trunk, median"] = _quantile(along, 0.5)
        result[f"{name}: shift along the trunk, sd"] = _half_width(along)
        result[f"{name}: narrower by, median"] = _quantile(inward, 0.5)
        result[f"{name}: narrower by, sd"] = _half_width(inward)
    return result


def _confidence_figures(m: Measurements) -> dict[str, float]:
    from scipy.stats import spearmanr

    error = relative_error(m)
    ranks = []
    for joint in range(len(COCO17)):
        known = ~np.isnan(error[:, joint])
        pair = m.confidence[known, joint], error[known, joint]
        if known.any() and all(np.ptp(values) > 0 for values in pair):
            ranks.append(spearmanr(*pair).statistic)
    result = {"rank correlation of confidence and error, mean over joints": _mean(np.array(ranks))}
    for name, joints in (
        ("visible", m.inside & ~m.occluded),
        ("occluded", m.inside & m.occluded),
        ("cut-off", ~m.inside),
    ):
        result[f"{name} joints with confidence below 0.5"] = _share(m.confidence < 0.5, joints)
        result[f"{name} joints that count as not seen"] = _share(m.confidence < MIN_CONFIDENCE, joints)
    return result


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _share(yes: np.ndarray, of: np.ndarray) -> float:
    return float(yes[of].mean()) if of.any() else float("nan")


def _quantile(values: np.ndarray, level: float) -> float:
    known = values[~np.isnan(values)]
    return float(np.quantile(known, level)) if len(known) else float("nan")


def _half_width(values: np.ndarray) -> float:
    """Standard deviation that outliers do not change: half of what the middle 68 % span."""
    return (_quantile(values, 0.841) - _quantile(values, 0.159)) / 2
