from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Generator

from data.draws import Draws
from data.noise import NoiseConfig, add_noise, imitate_detector, person_size
from data.noise_coco import COCO_SIGMAS, coco_error
from data.noise_human36m import human36m_error
from data.occlusion import hidden_by_body
from mesh.errors import InputError
from mesh.joints import COCO17

QUIET = NoiseConfig(
    clean=0, face_jitter=0, doubt=0, hidden_jitter=1, joint_spread=0, outlier=0, definition_shift=0, hip_rise=0,
    definition_width=0, drop_joint=0, drop_limb=0, drop_face_side=0, drop_doubtful=0, cut_off=0,
)  # fmt: skip
ARMS = list(COCO17.indices([n for n in COCO17.names if n.endswith(("elbow", "wrist"))]))
BEHIND = torch.zeros(4000, 17, 3)
REST = [joint for joint in range(5, 17) if joint not in ARMS]


@pytest.fixture
def people(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(4000, 17, 2, generator=generator) * torch.tensor([60.0, 200]) + 500


def detected(
    people: torch.Tensor, config: NoiseConfig, generator: Generator, hidden: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    behind = torch.full(people.shape[:2], hidden)
    return imitate_detector(people, behind, config, Draws(len(people), generator))


def errors(people: torch.Tensor, config: NoiseConfig, hidden: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """In COCO sigmas, and with which confidence."""
    noisy, confidence = detected(people, config, Generator().manual_seed(5), hidden)
    return (noisy - people).norm(dim=-1) / person_size(people)[:, None] / torch.tensor(COCO_SIGMAS), confidence


def test_exact_samples_stay_exact_with_full_confidence(people, generator) -> None:
    noisy, confidence = detected(people, NoiseConfig(clean=1.0), generator)
    assert torch.equal(noisy, people) and (confidence == 1).all()


def test_the_share_of_exact_samples_is_as_stated(people, generator) -> None:
    noisy, _ = detected(people, NoiseConfig(clean=0.4), generator)
    assert (noisy == people).all((1, 2)).float().mean().item() == pytest.approx(0.4, abs=0.03)


def test_jitter_has_the_stated_size_per_joint(people, generator) -> None:
    config = replace(QUIET, jitter=0.5, face_jitter=0.9, jitter_spread=0.0)
    noisy, _ = detected(people, config, generator)
    spread = ((noisy - people) / person_size(people)[:, None, None]).std((0, 2))
    expected = torch.tensor([0.9] * 5 + [0.5] * 12) * torch.tensor(COCO_SIGMAS)
    expected[ARMS] *= 1.25
    torch.testing.assert_close(spread, expected, rtol=0.05, atol=0)


def test_people_and_the_joints_of_one_differ_in_their_jitter_as_stated(people, generator) -> None:
    def log_variances(**setting: float) -> tuple[float, float]:
        """Of the log error in sigmas: within a person, and between people beyond what that brings about."""
        log = errors(people, replace(QUIET, jitter=0.3, **setting))[0][:, REST].log()
        within = log.var(1).mean()
        return within.item(), (log.mean(1).var() - within / log.shape[1]).item()

    rayleigh = torch.pi**2 / 24  # the log of a normal error's length
    assert log_variances(jitter_spread=0.0) == pytest.approx((rayleigh, 0), abs=0.02)
    assert log_variances(jitter_spread=0.6) == pytest.approx((rayleigh, 0.36), abs=0.03)
    assert log_variances(jitter_spread=0.0, joint_spread=0.5) == pytest.approx((rayleigh + 0.25, 0), abs=0.03)


@pytest.mark.parametrize(
    ("setting", "joint", "expected"),
    [
        ({"drop_joint": 0.1}, "left_hip", 0.1),
        ({"drop_limb": 0.55}, "left_ankle", 0.55 * 4 / 11),
        ({"drop_face_side": 0.3}, "left_ear", 0.15),
        ({"drop_face_side": 0.3}, "nose", 0.0),
    ],
)
def test_joints_are_hidden_as_often_as_stated(people, generator, setting, joint: str, expected: float) -> None:
    _, confidence = detected(people, replace(QUIET, **setting), generator)
    assert (confidence[:, COCO17.index(joint)] == 0).float().mean().item() == pytest.approx(expected, abs=0.025)


def test_a_cut_off_picture_hides_everything_beyond_one_line(people, generator) -> None:
    _, confidence = detected(people, replace(QUIET, cut_off=1.0, jitter=0.0), generator)
    hidden = confidence == 0
    some = hidden.any(1)
    assert some.float().mean() > 0.9

    def is_cut_along(axis: int) -> torch.Tensor:
        position = people[..., axis]
        first_hidden = position.masked_fill(~hidden, torch.inf).amin(1)
        last_seen = position.masked_fill(hidden, -torch.inf).amax(1)
        return last_seen <= first_hidden

    assert (is_cut_along(0) | is_cut_along(1))[some].all()


def test_shifted_definitions_move_hips_and_shoulders_only(people, generator) -> None:
    noisy, _ = detected(people, replace(QUIET, definition_width=0.4, jitter=0.0), generator)
    moved = ((noisy - people).norm(dim=-1) > 1e-3).any(0)
    names = {name for name, yes in zip(COCO17.names, moved.tolist()) if yes}
    assert names == {"left_hip", "right_hip", "left_shoulder", "right_shoulder"}
    left, right = COCO17.indices(("left_hip", "right_hip"))
    width = (noisy[:, left] - noisy[:, right]).norm(dim=-1) / (people[:, left] - people[:, right]).norm(dim=-1)
    assert width.max() <= 1 + 1e-4 and width.min() >= 0.6 - 1e-4 and width.mean().item() == pytest.approx(0.8, abs=0.01)


def test_outliers_and_shifts_along_the_trunk_have_the_stated_size(people, generator) -> None:
    size = person_size(people)[:, None, None]
    wild, _ = detected(people, replace(QUIET, outlier=1.0, outlier_sd=0.2), generator)
    assert ((wild - people) / size).std().item() == pytest.approx(0.2, rel=0.03)
    shifted, _ = detected(people, replace(QUIET, definition_shift=0.1, jitter=0.0), generator)
    hips, shoulders = (list(COCO17.indices((f"left_{j}", f"right_{j}"))) for j in ("hip", "shoulder"))
    trunk = people[:, shoulders].mean(1) - people[:, hips].mean(1)
    along = ((shifted - people)[:, hips].mean(1) * trunk).sum(-1) / trunk.square().sum(-1)
    assert along.abs().max() <= 0.1 + 1e-4 and along.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.05)


def test_the_hips_alone_rise_towards_the_shoulders(people, generator) -> None:
    risen, _ = detected(people, replace(QUIET, hip_rise=0.08, jitter=0.0), generator)
    hips, shoulders = (list(COCO17.indices((f"left_{j}", f"right_{j}"))) for j in ("hip", "shoulder"))
    trunk = people[:, shoulders].mean(1) - people[:, hips].mean(1)
    moved = risen - people
    torch.testing.assert_close(moved[:, hips], 0.08 * trunk[:, None].expand(-1, 2, -1), rtol=1e-4, atol=1e-3)
    moved[:, hips] = 0
    assert moved.abs().max() < 1e-3


def test_errors_along_a_limb_and_in_the_face_are_correlated_and_others_not(people, generator) -> None:
    noisy, _ = detected(people, replace(QUIET, jitter=0.3, face_jitter=0.3, jitter_spread=0.0), generator)
    moved = ((noisy - people) / person_size(people)[:, None, None])[..., 0]
    correlation = torch.corrcoef(moved.T)

    def between(first: str, second: str) -> float:
        return correlation[COCO17.index(first), COCO17.index(second)].item()

    for side in ("left", "right"):
        for upper, lower in (("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle")):
            assert between(f"{side}_{upper}", f"{side}_{lower}") == pytest.approx(0.5, abs=0.06)
        assert between("nose", f"{side}_eye") == pytest.approx(0.9, abs=0.03)
        assert between(f"{side}_shoulder", f"{side}_wrist") == pytest.approx(0.25, abs=0.06)
    assert between("left_eye", "right_eye") == pytest.approx(0.81, abs=0.04)
    apart = [("left_elbow", "right_elbow"), ("left_ankle", "left_wrist"), ("left_ear", "nose"), ("left_hip", "nose")]
    assert all(abs(between(*pair)) < 0.06 for pair in apart)


def test_hidden_limbs_are_reported_with_doubt_and_the_rest_as_sure(people) -> None:
    (_, in_view), (_, hidden) = errors(people, QUIET), errors(people, QUIET, hidden=True)
    wrist, knee, ear = COCO17.indices(("left_wrist", "left_knee", "left_ear"))
    # What BlazePose reported of rendered people: medians of wrists and knees, in view and hidden.
    assert in_view.median(0).values[[wrist, knee]].tolist() == pytest.approx([0.95, 0.965], abs=0.01)
    assert hidden.median(0).values[[wrist, knee]].tolist() == pytest.approx([0.1, 0.5], abs=0.04)
    assert (hidden[:, ear] > 0.9).float().mean() > 0.97 and (in_view[:, ear] > 0.9).float().mean() > 0.97


def test_errors_grow_as_confidence_falls(people) -> None:
    config = replace(QUIET, jitter=0.2, doubt=0.36, jitter_spread=0.0)
    error, confidence = errors(people, config)
    wrist = COCO17.index("left_wrist")
    by_doubt = [
        error[:, wrist][(confidence[:, wrist] >= low) & (confidence[:, wrist] < high)].median().item()
        for low, high in ((0.95, 1.01), (0.6, 0.9), (0.3, 0.6), (0.0, 0.3))
    ]
    assert by_doubt == sorted(by_doubt) and by_doubt[-1] > 3 * by_doubt[0]
    sure = errors(people, replace(config, doubt=0.0))[0]
    assert sure[:, wrist].median() < by_doubt[0]


def test_a_hidden_face_or_shoulder_is_worse_by_its_factor_and_hidden_legs_by_theirs(people) -> None:
    config = replace(QUIET, jitter=0.2, face_jitter=0.8, hidden_jitter=2.0, jitter_spread=0.0)
    ratio = errors(people, config, hidden=True)[0].mean(0) / errors(people, config)[0].mean(0)
    legs = [joint for joint, name in enumerate(COCO17.names) if name.endswith(("knee", "ankle"))]
    expected = torch.full((17,), 2.0)
    expected[ARMS], expected[legs] = 1.0, 1.35
    torch.testing.assert_close(ratio, expected, rtol=0.01, atol=0)


def test_doubtful_joints_are_dropped_in_as_many_people_as_stated(people) -> None:
    _, confidence = errors(people, replace(QUIET, drop_doubtful=0.3), hidden=True)
    _, all_kept = errors(people, QUIET, hidden=True)
    dropped = confidence == 0
    assert (all_kept[dropped] < 0.3).all() and torch.equal(confidence[~dropped], all_kept[~dropped])
    doubtful = (all_kept < 0.3).any(1)
    assert dropped.any(1)[doubtful].float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(dropped[dropped.any(1)], (all_kept < 0.3)[dropped.any(1)])


def test_the_same_generator_gives_the_same_noise_and_the_global_one_is_untouched(people) -> None:
    before = torch.random.get_rng_state()
    runs = [detected(people, NoiseConfig(), Generator().manual_seed(5)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs))
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_noise_of_a_person_does_not_depend_on_how_the_batch_is_split(people) -> None:
    def piece(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        draws = Draws(len(people), Generator().manual_seed(5), rows)
        config = NoiseConfig(
            clean=0.2, cut_off=0.5, rescored=0.3, unscored=0.2, drop_side=0.2, drop_face=0.2, drop_many=0.3
        )
        return imitate_detector(people[rows], people[rows, :, 0] > 500, config, draws)

    (noisy, confidence), *parts = piece(slice(0, 4000)), piece(slice(0, 1501)), piece(slice(1501, 4000))
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), noisy, rtol=0, atol=1e-3)
    assert torch.equal(torch.cat([part[1] for part in parts]), confidence)


def test_left_and_right_are_exchanged_as_often_as_stated_with_their_confidence(people) -> None:
    config = replace(QUIET, jitter=0.0, exchange=0.09, drop_joint=0.3)
    noisy, confidence = detected(people, config, Generator().manual_seed(5))
    order = list(COCO17.flip_permutation)
    exchanged, kept = (((noisy - truth).abs() < 1e-2).all(-1).all(-1) for truth in (people[:, order], people))
    assert (exchanged ^ kept).all()
    assert abs(exchanged.float().mean().item() - 0.09) < 5 * (0.09 * 0.91 / len(people)) ** 0.5
    _, unexchanged = detected(people, replace(config, exchange=0.0), Generator().manual_seed(5))
    assert torch.equal(confidence[exchanged], unexchanged[exchanged][:, order])
    assert torch.equal(confidence[~exchanged], unexchanged[~exchanged])


def test_exchanged_arms_are_elbows_and_wrists_alone(people, generator) -> None:
    noisy, _ = detected(people, replace(QUIET, jitter=0.0, exchange_arms=0.2), generator)
    moved = ((noisy - people).abs() > 1e-2).any(-1)
    names = {name for name, yes in zip(COCO17.names, moved.any(0).tolist()) if yes}
    assert names == {"left_elbow", "right_elbow", "left_wrist", "right_wrist"}
    left, right = COCO17.indices(("left_wrist", "right_wrist"))
    wrong = moved[:, left]
    assert torch.equal(noisy[wrong, left], people[wrong, right])
    assert abs(wrong.float().mean().item() - 0.2) < 5 * (0.2 * 0.8 / len(people)) ** 0.5


def test_scores_of_another_detector_are_less_sure_and_tell_the_same_joints_apart(people) -> None:
    """The log odds of a shoulder in view, 6.5, are scaled by 0.15 to 1, in the middle (of the logarithm) by 0.39."""
    hidden = torch.zeros(people.shape[:2], dtype=torch.bool)
    hidden[:, ::2] = True
    (points, own), (same_points, scores) = (
        imitate_detector(people, hidden, replace(QUIET, rescored=share), Draws(len(people), Generator().manual_seed(5)))
        for share in (0.0, 1.0)
    )
    assert torch.equal(points, same_points)
    shoulder = COCO17.index("left_shoulder")
    assert own[:, shoulder].median() > 0.99
    low, middle, high = scores[:, shoulder].quantile(torch.tensor((0.05, 0.5, 0.95))).tolist()
    assert low == pytest.approx(0.69, abs=0.03) and middle == pytest.approx(0.925, abs=0.015) and high > 0.99
    order = [torch.corrcoef(torch.stack((a, b)))[0, 1] for a, b in zip(own.logit(), scores.logit())]
    assert torch.stack(order).median() > 0.9


def test_exact_joints_may_come_with_such_scores_too(people) -> None:
    points, scores = detected(people, replace(QUIET, clean=1.0, rescored=0.3), Generator().manual_seed(5))
    assert torch.equal(points, people)
    rescored = (scores < 1).all(1)
    assert abs(rescored.float().mean().item() - 0.3) < 5 * (0.3 * 0.7 / len(people)) ** 0.5
    assert (scores[~rescored] == 1).all()
    # Their log odds are 0.3 of that at most: BlazePose's own shoulders, 0.998 in the middle, mean its own errors.
    assert scores[rescored][:, COCO17.index("left_shoulder")].quantile(0.95) < 0.95


def test_samples_are_rescored_or_unscored_and_never_one_instead_of_the_other(people) -> None:
    config = replace(QUIET, clean=1.0, rescored=0.4, unscored=0.6)
    _, scores = detected(people, config, Generator().manual_seed(5))
    rescored = (scores != scores[:, :1]).any(1)
    assert abs(rescored.float().mean().item() - 0.4) < 5 * (0.4 * 0.6 / len(people)) ** 0.5


def test_exact_joints_that_are_not_told_apart_may_have_any_common_confidence_above_a_half(people, generator) -> None:
    points, scores = detected(people, replace(QUIET, clean=1.0, unscored=0.5), generator)
    assert torch.equal(points, people) and (scores == scores[:, :1]).all()
    common = scores[:, 0]
    assert common.min() > 0.5 and common.max() == 1
    below = common[common < 1]
    assert abs(len(below) / len(common) - 0.5) < 5 * (0.25 / len(people)) ** 0.5
    quartiles = below.quantile(torch.tensor((0.25, 0.5, 0.75)))
    torch.testing.assert_close(quartiles, torch.tensor((0.625, 0.75, 0.875)), rtol=0, atol=0.02)


def test_unscored_samples_tell_only_which_joints_were_seen(people) -> None:
    config = replace(QUIET, drop_joint=0.2, unscored=0.4)
    _, scores = detected(people, config, Generator().manual_seed(5))
    _, own = detected(people, replace(config, unscored=0.0), Generator().manual_seed(5))
    unscored = (scores == 1).any(1) & ((scores == 0) | (scores == 1)).all(1)
    assert abs(unscored.float().mean().item() - 0.4) < 5 * (0.4 * 0.6 / len(people)) ** 0.5
    assert 0.15 < (scores[unscored] == 0).float().mean() < 0.25
    assert ((own > 0) & (own < 1))[unscored].any(1).all()


@pytest.mark.parametrize("clean", [0.0, 1.0])
def test_a_side_is_missing_as_often_as_stated_and_nothing_of_the_other(people, generator, clean: float) -> None:
    points, confidence = detected(people, replace(QUIET, clean=clean, jitter=0.0, drop_side=0.2), generator)
    torch.testing.assert_close(points, people)
    missing = confidence == 0
    for side, other in (("left", "right"), ("right", "left")):
        mine, others = (list(COCO17.indices([n for n in COCO17.names if n.startswith(name)])) for name in (side, other))
        gone = missing[:, mine].all(1)
        assert abs(gone.float().mean().item() - 0.1) < 5 * (0.1 * 0.9 / len(people)) ** 0.5
        assert torch.equal(gone, missing[:, mine].any(1)) and not missing[gone][:, others].any()
    assert not missing[:, COCO17.index("nose")].any()


@pytest.mark.parametrize("clean", [0.0, 1.0])
def test_the_whole_face_is_missing_as_often_as_stated_and_nothing_else(people, generator, clean: float) -> None:
    _, confidence = detected(people, replace(QUIET, clean=clean, drop_face=0.2), generator)
    missing, face = confidence == 0, [COCO17.index(name) for name in COCO17.names[:5]]
    gone = missing[:, face].all(1)
    assert abs(gone.float().mean().item() - 0.2) < 5 * (0.2 * 0.8 / len(people)) ** 0.5
    assert torch.equal(gone, missing.any(1)) and (missing.sum(1)[gone] == len(face)).all()


@pytest.mark.parametrize("clean", [0.0, 1.0])
def test_many_joints_are_missing_in_as_many_people_as_stated(people, generator, clean: float) -> None:
    _, confidence = detected(people, replace(QUIET, clean=clean, drop_many=0.5), generator)
    missing = confidence == 0
    some = missing.any(1)
    hit = (1 - (1 - (1 - 0.6) ** 18) / (0.6 * 18)) * 0.5  # chance c, uniform up to 0.6: mean of 1 - (1 - c) ** 17
    assert abs(some.float().mean().item() - hit) < 5 * (hit * (1 - hit) / len(people)) ** 0.5
    assert missing.float().mean().item() == pytest.approx(0.5 * 0.3, abs=0.015)
    assert missing.sum(1).float().quantile(0.99) > 9  # people differ: with one chance for all it would be 6


def test_exact_samples_keep_their_sides(people, generator) -> None:
    noisy, _ = detected(people, replace(QUIET, clean=1.0, exchange=1.0, exchange_arms=1.0), generator)
    assert torch.equal(noisy, people)


@pytest.mark.parametrize(("model", "alone"), [("human36m", human36m_error), ("coco", coco_error)])
def test_a_published_model_moves_the_joints_of_unclean_samples_and_hides_none(people, model: str, alone) -> None:
    def run(clean: float) -> tuple[torch.Tensor, torch.Tensor]:
        draws = Draws(len(people), Generator().manual_seed(5))
        return add_noise(people, BEHIND, NoiseConfig(model=model, clean=clean), draws)

    (noisy, confidence), (some, _) = run(0.0), run(0.4)
    assert torch.equal(noisy, alone(people, Draws(len(people), Generator().manual_seed(5))))
    assert (noisy != people).any((1, 2)).all() and (confidence == 1).all()
    clean = (some == people).all((1, 2))
    assert abs(clean.float().mean().item() - 0.4) < 5 * (0.4 * 0.6 / len(people)) ** 0.5
    assert torch.equal(some[~clean], noisy[~clean]) and torch.equal(run(1.0)[0], people)


def test_the_detector_is_the_default_model_and_sees_what_the_body_hides(people) -> None:
    joints_m = torch.randn(len(people), 19, 3, generator=Generator().manual_seed(3)) * 0.3
    hidden = hidden_by_body(joints_m)
    assert hidden.any() and not hidden.all()
    draws = [Draws(len(people), Generator().manual_seed(5)) for _ in range(2)]
    ours = add_noise(people, joints_m, NoiseConfig(), draws[0])
    assert all(torch.equal(a, b) for a, b in zip(ours, imitate_detector(people, hidden, NoiseConfig(), draws[1])))


def test_no_model_leaves_every_sample_exact_and_draws_nothing(people, generator) -> None:
    before = generator.get_state()
    noisy, confidence = add_noise(people, BEHIND, NoiseConfig(model="none", clean=0.0), Draws(len(people), generator))
    assert torch.equal(noisy, people) and (confidence == 1).all()
    assert torch.equal(before, generator.get_state())


def test_more_scores_than_samples_are_refused() -> None:
    with pytest.raises(InputError, match="must not exceed 1 together"):
        NoiseConfig(rescored=0.6, unscored=0.6)


@pytest.mark.parametrize(
    "key", ["exchange", "exchange_arms", "rescored", "unscored", "drop_side", "drop_face", "drop_many"]
)
def test_a_detectors_own_faults_are_refused_where_no_detector_is_imitated(key: str) -> None:
    with pytest.raises(InputError, match=f"noise.{key} is part of noise.model=detector"):
        NoiseConfig(model="coco", **{key: 0.1})
