from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from data.draws import Draws
from data.noise_human36m import HUMAN36M_ERRORS, crop_size, human36m_error
from mesh.joints import COCO17, HUMAN36M17, JointSet

PEOPLE = 20_000
# Some rows of the published table, copied a second time: mean x, mean y, sd x, sd y, weight.
PUBLISHED = {
    "right_hip": (-0.83, -2.07, 3.41, 2.69, 1.00),
    "left_ankle": (-0.15, -3.78, 1.39, 2.39, 0.93),
    "right_wrist": (0.05, 0.16, 2.02, 2.24, 0.90),
    "left_knee": (0.42, -0.15, 1.53, 1.99, 0.94),
    "right_shoulder": (0.52, -0.12, 2.23, 1.73, 0.99),
    "left_eye": (0.13, -0.26, 0.78, 0.59, 0.98),  # the nose's
    "right_ear": (0.09, 0.49, 1.35, 0.87, 0.99),  # the head's
}


def person(joints: JointSet = COCO17, *, width: float = 288.0, height: float = 384.0) -> Tensor:
    """One pose whose joints span exactly this box, (1, J, 2)."""
    points = torch.rand(1, len(joints), 2, generator=Generator().manual_seed(1), dtype=torch.float64)
    points[0, 0], points[0, 1] = 0, 1
    return points * torch.tensor([width, height]) + 100


def errors(pose: Tensor, joints: JointSet = COCO17, seed: int = 0) -> Tensor:
    people = pose.expand(PEOPLE, -1, -1)
    return human36m_error(people, Draws(PEOPLE, Generator().manual_seed(seed)), joints) - people


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_error_of_a_joint_has_the_published_moments(name: str) -> None:
    error = errors(person())[:, COCO17.index(name)] / torch.tensor([288 / 256, 384 / 256])
    *moments, weight = PUBLISHED[name]
    mean, sd = (torch.tensor(m, dtype=torch.float64) for m in (moments[:2], moments[2:]))
    second = weight * (sd.square() + mean.square())
    spread = (second - (weight * mean).square()).sqrt()
    assert ((error.mean(0) - weight * mean).abs() < 5 * spread / PEOPLE**0.5).all()
    # The fourth moment of what is drawn is below 3.5 times the second's square for all of these rows.
    assert ((error.square().mean(0) - second).abs() < 5 * second * (2.6 / PEOPLE) ** 0.5).all()
    untouched = (error == 0).all(-1).double().mean().item()
    assert abs(untouched - (1 - weight)) <= 5 * (weight * (1 - weight) / PEOPLE) ** 0.5


def test_joints_err_on_their_own_in_place_and_in_whether_they_err() -> None:
    error = errors(person())
    touched = (error != 0).any(-1).double()
    may_be_exact = touched.std(0) > 0
    assert may_be_exact.sum() == 15  # all but the hips
    for values in (error[..., 0], error[..., 1], touched[:, may_be_exact]):
        correlation = torch.corrcoef(values.T)
        assert (correlation - torch.eye(len(correlation))).abs().max() < 5 / PEOPLE**0.5
    hip = error[:, COCO17.index("left_hip")].T
    assert torch.corrcoef(hip)[0, 1].abs() < 5 / PEOPLE**0.5  # x and y are drawn on their own, too


def test_every_joint_of_human36m_takes_its_own_row() -> None:
    error = errors(person(HUMAN36M17), HUMAN36M17) / torch.tensor([288 / 256, 384 / 256])
    assert set(HUMAN36M_ERRORS) == set(HUMAN36M17.names)
    rows = torch.tensor([HUMAN36M_ERRORS[name] for name in HUMAN36M17.names], dtype=torch.float64)
    assert ((error.mean(0) - rows[:, 4:] * rows[:, :2]).abs() < 5 * 3.5 / PEOPLE**0.5).all()


@pytest.mark.parametrize(
    ("box", "crop"),
    [((288.0, 384.0), (288.0, 384.0)), ((10.0, 800.0), (600.0, 800.0)), ((900.0, 3.0), (900.0, 1200.0))],
)
def test_the_crop_is_the_box_grown_to_three_by_four_and_sets_the_unit(box, crop) -> None:
    pose = person(width=box[0], height=box[1])
    torch.testing.assert_close(crop_size(pose)[0], torch.tensor(crop, dtype=torch.float64))
    usual = errors(person()) / torch.tensor([288.0, 384.0])
    torch.testing.assert_close(errors(pose) / torch.tensor(crop), usual, rtol=0, atol=1e-6)


def test_the_error_of_a_person_does_not_depend_on_how_the_batch_is_split() -> None:
    people = person().expand(8, -1, -1)

    def piece(rows: slice) -> Tensor:
        return human36m_error(people[rows], Draws(8, Generator().manual_seed(2), rows))

    assert torch.equal(torch.cat((piece(slice(0, 3)), piece(slice(3, 8)))), piece(slice(0, 8)))
