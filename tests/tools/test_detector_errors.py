"""The figures of detections made with known errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from data.noise import NoiseConfig
from data.noise_coco import COCO_SIGMAS
from mesh.joints import COCO17, Keypoints
from tools.detector_errors import LEGS, Measurements, exchange_evidence, figures, imitated, match, relative_error

QUIET = NoiseConfig(
    jitter=0, face_jitter=0, doubt=0, hidden_jitter=1, joint_spread=0, outlier=0, definition_shift=0, hip_rise=0,
    definition_width=0, drop_joint=0, drop_limb=0, drop_face_side=0, drop_doubtful=0, cut_off=0,
)  # fmt: skip
_PLACE = {
    "nose": (0, -90), "eye": (4, -94), "ear": (8, -92), "shoulder": (20, -60), "elbow": (30, -30), "wrist": (34, 0),
    "hip": (14, 0), "knee": (16, 40), "ankle": (17, 80),
}  # fmt: skip
_SWAPPED = list(COCO17.flip_permutation)


def standing() -> np.ndarray:
    """Somebody who faces the camera, (17, 2) px: left in the picture's right half."""
    sides = [-1 if name.startswith("right") else 1 for name in COCO17.names]
    return (
        np.array([np.multiply(_PLACE[n.rpartition("_")[2]], (s, 1)) for n, s in zip(COCO17.names, sides)]) * 2.0 + 250
    )


def people(count: int = 1000) -> Measurements:
    """Found exactly as they are."""
    truth = np.tile(standing(), (count, 1, 1))
    yes = np.ones((count, 17), bool)
    return Measurements(
        truth_px=truth,
        detected_px=truth.copy(),
        confidence=yes.astype(float),
        found=yes[:, 0],
        inside=yes,
        occluded=~yes,
        facing_deg=np.zeros(count),
        tilted=~yes[:, 0],
    )


def keypoints(positions: list[np.ndarray]) -> Keypoints:
    array = np.array(positions).reshape(-1, 17, 2)
    return Keypoints(positions_px=array, confidence=np.ones(array.shape[:2]), joint_set=COCO17)


def test_of_several_people_the_nearest_is_the_one_whichever_way_it_is_labeled() -> None:
    truth = standing()
    far, near = truth + 40, truth[_SWAPPED] + 3
    assert match(keypoints([far, near]), truth, np.ones(17, bool)) == 1


def test_nobody_near_is_nobody_found() -> None:
    truth, inside = standing(), np.ones(17, bool)
    assert match(keypoints([truth + 300]), truth, inside) is None
    assert match(keypoints([]), truth, inside) is None


def test_guesses_for_joints_beyond_the_picture_do_not_count_in_the_match() -> None:
    truth, inside = standing(), np.ones(17, bool)
    guess = truth.copy()
    guess[11:] += 3000
    inside[11:] = False
    assert match(keypoints([guess]), truth, inside) == 0


def test_exact_detections_have_no_error() -> None:
    found = figures(people(3))
    errors = {name: value for name, value in found.items() if "error" in name and "rank" not in name}
    assert errors and all(value == 0 for value in errors.values())
    assert found["within 0.2 torso lengths"] == 1 and found["found, whole person in the picture"] == 1


def test_jitter_is_measured_in_sigmas_and_in_person_sizes() -> None:
    measured = figures(imitated(people(), replace(QUIET, jitter=0.3, jitter_spread=0), seed=0))
    rayleigh = 0.3 * (2 * np.log(2)) ** 0.5
    assert measured["knee: median error, sigmas"] == pytest.approx(rayleigh, rel=0.03)
    assert measured["wrist: median error, sigmas"] == pytest.approx(1.25 * rayleigh, rel=0.03)
    ankle = COCO_SIGMAS[COCO17.index("left_ankle")]
    assert measured["ankle: median error, sizes"] == pytest.approx(rayleigh * ankle, rel=0.03)


def test_the_spread_between_people_grows_with_that_of_their_jitter() -> None:
    def spread(sd: float) -> float:
        return figures(imitated(people(), replace(QUIET, jitter=0.3, jitter_spread=sd), seed=0))[
            "limbs: spread between people, sd of log"
        ]

    own = spread(0.0)  # eight joints tell a person's quality this badly
    assert spread(0.6) == pytest.approx((own**2 + 0.6**2) ** 0.5, rel=0.05)


def test_a_shift_along_the_trunk_and_inwards_is_measured_for_hips_alone() -> None:
    m = people(4)
    hips = list(COCO17.indices(("left_hip", "right_hip")))
    m.detected_px[:, hips, 1] -= 12  # of a trunk of 120 px, upwards
    m.detected_px[:, hips[0], 0] -= 7  # of a width of 56 px
    measured = figures(m)
    assert measured["hips: shift along the trunk, median"] == pytest.approx(0.1)
    assert measured["hips: narrower by, median"] == pytest.approx(1 / 8)
    assert measured["shoulders: shift along the trunk, median"] == measured["shoulders: narrower by, median"] == 0


@pytest.mark.parametrize(
    ("setting", "name"), [({"exchange": 0.3}, "whole body exchanged"), ({"exchange_arms": 0.2}, "arms exchanged")]
)
def test_exchanges_are_counted_and_no_error(setting, name: str) -> None:
    measured = figures(imitated(people(), replace(QUIET, jitter=0.1, **setting), seed=0))
    rate = next(iter(setting.values()))
    assert measured[name] == measured[f"{name}, frontal"] == pytest.approx(rate, abs=0.02)
    others = {"whole body exchanged", "arms exchanged", "legs exchanged"} - {name}
    assert all(measured[other] == 0 for other in others)
    assert measured["wrist: 90 % error, sigmas"] < 0.6


def test_exchanged_legs_are_told_from_exchanged_arms() -> None:
    m = people(2)
    legs = [i for i, name in enumerate(COCO17.names) if name.partition("_")[2] in LEGS]
    m.detected_px[1, legs] = m.truth_px[1][[_SWAPPED[i] for i in legs]]
    measured = figures(m)
    assert measured["legs exchanged"] == 0.5 and measured["arms exchanged"] == 0


def test_nobody_can_tell_an_exchange_where_left_and_right_coincide() -> None:
    m = people(2)
    m.truth_px[0, :, 0] = 250 + 0.05 * (m.truth_px[0, :, 0] - 250)
    evidence = exchange_evidence(m)
    assert np.isnan(evidence[0]) and evidence[1] == -1


def test_joints_that_nobody_saw_have_no_error() -> None:
    m = people(1)
    m.detected_px[:] += 100
    m.confidence[0, 3], m.inside[0, 4] = 0.2, False
    assert np.isnan(relative_error(m)[0, [3, 4]]).all() and np.isfinite(relative_error(m)).sum() == 15


def test_somebody_mostly_out_of_the_picture_does_not_count() -> None:
    m = people(2)
    m.found[1], m.inside[1, 5:] = False, False
    measured = figures(m)
    assert measured["found, whole person in the picture"] == 1 and np.isnan(measured["found, person cut off"])


def test_confidence_that_falls_with_the_error_has_a_negative_rank_correlation() -> None:
    m = imitated(people(50), replace(QUIET, jitter=0.5), seed=0)
    m = replace(m, confidence=np.ones_like(m.confidence))
    sizes = relative_error(m) / COCO_SIGMAS
    told = replace(m, confidence=1 - 0.5 * sizes / sizes.max())
    assert figures(told)["rank correlation of confidence and error, mean over joints"] == pytest.approx(-1)


def test_hidden_joints_below_the_threshold_are_counted_apart() -> None:
    m = people(1)
    m.occluded[0, 9:11], m.inside[0, 15:] = True, False
    m.confidence[0, 9], m.confidence[0, 15:] = 0.4, 0.1
    measured = figures(m)
    assert measured["occluded joints with confidence below 0.5"] == 0.5
    assert measured["occluded joints that count as not seen"] == 0
    assert measured["cut-off joints that count as not seen"] == 1
    assert measured["visible joints with confidence below 0.5"] == 0


def test_imitation_leaves_the_global_random_state_alone_and_repeats() -> None:
    before = torch.random.get_rng_state()
    runs = [imitated(people(5), NoiseConfig(), seed=3).detected_px for _ in range(2)]
    assert np.array_equal(*runs) and torch.equal(before, torch.random.get_rng_state())
