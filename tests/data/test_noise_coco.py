from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from data.draws import Draws
from data.noise_coco import coco_error, option_probabilities, similarity_radius
from mesh.joints import COCO17

PEOPLE = 8_000
SIGMAS = [
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089,
    0.089,
]  # fmt: skip
FACE, UPPER, LOWER = range(5), range(5, 11), range(11, 17)
# Partners in opposite corners; and as in a side view, partners 3 to 40 px apart.
SPREAD = torch.tensor(
    [(500, 660)] + [place for k in range(8) for place in ((1000, 10 * k), (0, 1333 - 10 * k))]
).double()[None]  # fmt: skip
SIDE = torch.tensor([[
    (505, 50), (510, 45), (504, 46), (520, 50), (500, 52), (480, 150), (500, 155), (470, 250), (495, 240), (480, 340),
    (500, 352), (480, 400), (492, 402), (485, 560), (510, 540), (470, 700), (482, 722),
]]).double()  # fmt: skip


def crop_area(pose: np.ndarray) -> float:
    width, height = np.ptp(pose, axis=0)
    width = max(width, 0.75 * height)
    return width * width / 0.75


def radius(similarity: float, joint: int, area: float) -> float:
    return math.sqrt(-2 * area * (2 * SIGMAS[joint]) ** 2 * math.log(similarity))


@functools.cache
def noisy(pose: str, visible: int = 17) -> Tensor:
    """Many times the same person with so many joints visible, (people, 17, 2)."""
    people = {"spread": SPREAD, "side": SIDE}[pose].expand(PEOPLE, -1, -1)
    return coco_error(people, Draws(PEOPLE, Generator().manual_seed(0)), seen(visible).expand(PEOPLE, -1))


def seen(count: int) -> Tensor:
    """Whole pairs and the nose visible, (1, 17): `count` is odd. Even: one partner is missing."""
    order = [0, 11, 12, 9, 10, 5, 6, 13, 14, 15, 16, 7, 8, 1, 2, 3, 4]
    visible = torch.zeros(1, 17, dtype=torch.bool)
    visible[0, order[:count]] = True
    return visible


def stated(joint: int, visible: Tensor) -> dict[str, float]:
    """Probabilities of one joint's options, written down from the published rules."""
    count = int(visible.sum())
    jitter = 0.10 if joint in (0, 13, 14, 15, 16) else 0.15 if joint <= 10 else 0.20
    jitter += 0.05 * (count <= 10)
    level = 2 if count <= 5 else 1 if count <= 10 else 0
    miss = (
        (0.02, 0.10, 0.15) if joint in FACE else (0.05, 0.13, 0.20) if joint in (5, 6, 15, 16) else (0.10, 0.15, 0.25)
    )[level]
    inversion = 0.01 if joint in FACE else 0.03 if joint in UPPER else 0.06
    options = {"jitter": jitter, "miss": miss, "inversion": inversion, "good": 1 - jitter - miss - inversion}
    partner = COCO17.flip_permutation[joint]
    if partner == joint or not visible[0, partner]:
        options["inversion"] = 0.0
    total = sum(options.values())
    return {option: chance / total for option, chance in options.items()}


@pytest.mark.parametrize("count", [0, 4, 5, 6, 10, 11, 16, 17])
def test_options_have_the_stated_probabilities_for_every_joint_and_number_of_visible_joints(count: int) -> None:
    expected = [list(stated(joint, seen(count)).values()) for joint in range(17)]
    torch.testing.assert_close(option_probabilities(seen(count))[0], torch.tensor(expected))


def test_radii_are_where_the_keypoint_similarity_has_the_stated_value() -> None:
    area = torch.tensor([110_592.0, 5_000.0])
    for similarity in (0.85, 0.5, 0.1):
        found = similarity_radius(similarity, area)
        back = torch.exp(-found.square() / (2 * area[:, None] * (2 * torch.tensor(SIGMAS)).square()))
        torch.testing.assert_close(back, torch.full((2, 17), similarity))
        assert found[0, 3].item() == pytest.approx(radius(similarity, 3, 110_592.0), rel=1e-5)


@pytest.mark.parametrize("count", [17, 9, 5, 4])
def test_far_from_each_other_joints_land_where_and_as_often_as_their_options_say(count: int) -> None:
    visible, pose = seen(count), SPREAD[0].numpy()
    area = crop_area(pose)
    points = noisy("spread", count).numpy()
    for joint in (0, 1, 5, 9, 11, 13, 15):  # the nose and left joints, whose partner is exact
        partner = COCO17.flip_permutation[joint]
        r85, r50, r10 = (radius(s, joint, area) for s in (0.85, 0.5, 0.1))
        own, other = (np.linalg.norm(points[:, joint] - pose[place], axis=-1) for place in (joint, partner))
        paired = partner != joint and bool(visible[0, partner])
        miss = stated(joint, visible)["miss"]
        chances = {
            "good": (own < r85, stated(joint, visible)["good"]),
            "jitter": ((own >= r85) & (own < r50), stated(joint, visible)["jitter"]),
            "miss at home": ((own >= r50) & (own <= r10 * 1.0001), miss * (0.8 if paired else 1.0)),
            "miss beside": (paired & (other >= r50) & (other <= r10 * 1.0001), miss * (0.2 if paired else 0.0)),
            "inversion": (paired & (other < r50), stated(joint, visible)["inversion"]),
        }
        assert np.sum([lands for lands, _ in chances.values()]) == PEOPLE  # nowhere else, and nowhere twice
        for option, (lands, chance) in chances.items():
            assert abs(lands.mean() - chance) <= 5 * math.sqrt(chance * (1 - chance) / PEOPLE), (joint, option)
        uniform = {
            "good": own / r85,
            "jitter": (own - r85) / (r50 - r85),
            "miss at home": (own - r50) / (r10 - r50),
            "miss beside": (other - r50) / (r10 - r50),
            "inversion": other / r50,
        }
        for option, (lands, chance) in chances.items():
            if chance * PEOPLE > 20:
                found = uniform[option][lands]
                assert abs(found.mean() - 0.5) < 5 / math.sqrt(12 * len(found)), (joint, option)
                assert abs((found**2).mean() - 1 / 3) < 5 * math.sqrt(4 / 45 / len(found)), (joint, option)


def reference(pose: np.ndarray, count: int, rng: np.random.Generator, joints: list[int], number: int) -> np.ndarray:
    """The same person several times by the published procedure: pools of candidates, joint after joint."""
    area, visible = crop_area(pose), seen(count)
    chances = {joint: list(stated(joint, visible).values()) for joint in joints}
    radii = {joint: [radius(s, joint, area) for s in (0.85, 0.5, 0.1)] for joint in joints}

    def pool(at: np.ndarray, other: np.ndarray | None, low: float, high: float, keep_off: float | None) -> np.ndarray:
        distance, angle = rng.uniform(low, high, 40), rng.uniform(0, 2 * np.pi, 40)
        drawn = at + distance[:, None] * np.stack((np.cos(angle), np.sin(angle)), axis=-1)
        if other is None:
            return drawn
        return drawn[np.hypot(*(drawn - other).T) > (distance if keep_off is None else keep_off)]

    people = np.repeat(pose[None], number, axis=0)
    for points in people:
        for joint in joints:
            partner = COCO17.flip_permutation[joint]
            own = points[joint].copy()
            other = points[partner].copy() if partner != joint and visible[0, partner] else None
            r85, r50, r10 = radii[joint]
            option = np.searchsorted(np.cumsum(chances[joint])[:3], rng.random(), side="right")
            if option == 0:
                found = pool(own, other, r85, r50, None)
            elif option == 1:
                found = pool(own, other, r50, r10, r50)
                if other is not None:
                    beside = pool(other, own, r50, r10, r50)
                    found = np.concatenate((found, beside[: len(beside) // 4]))
            elif option == 2:
                found = pool(other, own, 0, r50, None)
            else:
                found = pool(own, other, 0, r85, None)
            points[joint] = found[rng.integers(len(found))]
    return people


@pytest.mark.parametrize("count", [17, 5])
def test_joints_beside_their_partner_are_spread_as_by_the_slow_published_procedure(count: int) -> None:
    joints, exact, number = [0, 9, 10, 11, 12], SIDE[0].numpy(), 1000
    slow = reference(exact, count, np.random.default_rng(count), joints, number)
    fast, area = noisy("side", count).numpy(), crop_area(exact)
    for joint in joints:
        partner = COCO17.flip_permutation[joint]
        edges = [radius(s, joint, area) for s in (0.96, 0.85, 0.65, 0.5, 0.25, 0.1)]
        counts = []
        for points in (fast, slow):
            own, other = (np.hypot(*(points[:, joint] - exact[place]).T) for place in (joint, partner))
            place = np.digitize(own, edges) * 14 + np.digitize(other, edges) * 2 + (other < own)
            counts.append(np.bincount(place, minlength=98))
        found, expected = counts
        share = (found + expected) / (PEOPLE + number)
        spread = np.sqrt(share * (1 - share) * (1 / PEOPLE + 1 / number))
        often = share * number > 8  # where a normal bound holds
        assert often.sum() >= 4
        assert (abs(found / PEOPLE - expected / number)[often] < 5 * spread[often]).all(), joint


def test_nothing_lands_where_the_partner_would_explain_it_better() -> None:
    found, pose = noisy("side")[:, 11], SIDE[0]  # a left hip whose partner is exact and 12 px away
    area = crop_area(pose.numpy())
    r50, r85 = radius(0.5, 11, area), radius(0.85, 11, area)
    own, other = (found - pose[11]).norm(dim=-1), (found - pose[12]).norm(dim=-1)
    missed = (own >= r50) & (other >= r50)
    assert missed.any() and (missed | (own.minimum(other) < r50)).all()
    nearer_to_partner = ~missed & (other < own)
    expected = stated(11, seen(17))["inversion"]
    assert abs(nearer_to_partner.double().mean() - expected) < 5 * math.sqrt(expected * (1 - expected) / PEOPLE)
    assert (own[~missed & ~nearer_to_partner] < r50).all() and (own < r85).any()


def test_a_right_joint_is_taken_for_its_left_partner_where_that_has_moved_to() -> None:
    points, pose = noisy("spread"), SPREAD[0]
    near = radius(0.5, 11, crop_area(pose.numpy()))
    left_moved = (points[:, 11] - pose[12]).norm(dim=-1) < near
    right_at_left = (points[:, 12] - pose[11]).norm(dim=-1) < near
    assert left_moved.sum() > 300 and not right_at_left[left_moved].any()
    assert abs(right_at_left[~left_moved].double().mean() - 0.06) < 5 * math.sqrt(0.06 * 0.94 / PEOPLE)


def test_the_crop_sets_the_scale_and_a_single_point_stays_one() -> None:
    def run(pose: Tensor) -> Tensor:
        return coco_error(pose.expand(50, -1, -1), Draws(50, Generator().manual_seed(0)))

    torch.testing.assert_close(run(SPREAD * 0.25 + 7), run(SPREAD) * 0.25 + 7)
    assert torch.equal(run(torch.ones(1, 17, 2)), torch.ones(50, 17, 2))


def test_the_error_of_a_person_does_not_depend_on_how_the_batch_is_split() -> None:
    people = torch.cat((SPREAD, SIDE)).repeat(20, 1, 1)

    def piece(rows: slice) -> Tensor:
        return coco_error(people[rows], Draws(40, Generator().manual_seed(2), rows))

    whole, parts = piece(slice(0, 40)), torch.cat((piece(slice(0, 13)), piece(slice(13, 40))))
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-3)
    assert (whole != people).any()


def test_the_people_that_came_in_are_left_as_they_were() -> None:
    people = SIDE.repeat(3, 1, 1)
    coco_error(people, Draws(3, Generator().manual_seed(0)))
    assert torch.equal(people, SIDE.repeat(3, 1, 1))
