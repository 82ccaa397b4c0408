"""Joint limits that are estimated from poses."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from data.augmentation import mirror_pose
from data.joint_limits import JointLimits, fit_joint_limits, load_joint_limits
from data.prior import load_pose_prior
from mesh.errors import InputError
from mesh.joints import SMPL24
from mesh.rotation import axis_angle_to_quaternion, quaternion_multiply


@pytest.fixture(scope="module")
def poses() -> Tensor:
    return load_pose_prior().sample(3000, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def limits(poses: Tensor) -> JointLimits:
    return fit_joint_limits(poses)


def rest(**turned_deg: tuple[float, float, float]) -> Tensor:
    """The rest pose with some joints turned, (1, 24, 4)."""
    vectors = torch.zeros(1, 24, 3)
    for name, degrees in turned_deg.items():
        vectors[0, SMPL24.index(name)] = torch.tensor([math.radians(d) for d in degrees])
    return axis_angle_to_quaternion(vectors)


def refused(limits: JointLimits, pose: Tensor) -> list[str]:
    return [SMPL24.names[joint] for joint in (~limits.valid(pose)[0]).nonzero()[:, 0].tolist()]


def test_poses_that_the_limits_were_fitted_to_and_their_mirror_images_are_accepted(poses, limits) -> None:
    assert limits.valid(poses).shape == (3000, 24)
    assert limits.valid(poses).all()
    assert limits.valid(mirror_pose(poses)).all()


def test_most_poses_that_were_not_seen_are_accepted_and_random_rotations_are_not(limits: JointLimits) -> None:
    others = load_pose_prior().sample(500, torch.Generator().manual_seed(1))
    assert limits.valid(others).all(1).float().mean() > 0.5
    rotations = torch.nn.functional.normalize(
        torch.randn(500, 24, 4, generator=torch.Generator().manual_seed(2)), dim=-1
    )
    valid = limits.valid(rotations)
    assert valid[:, 0].all()  # the root may do anything
    assert valid[:, 1:].float().mean() < 0.2
    assert not valid.all(1).any()


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_knee_bends_backwards_but_not_forwards(limits: JointLimits, side: str) -> None:
    assert refused(limits, rest(**{f"{side}_knee": (60, 0, 0)})) == []
    assert refused(limits, rest(**{f"{side}_knee": (-60, 0, 0)})) == [f"{side}_knee"]


def test_a_head_turned_to_the_back_is_refused(limits: JointLimits) -> None:
    assert refused(limits, rest(head=(0, 20, 0))) == []
    assert refused(limits, rest(head=(0, 150, 0))) == ["head"]
    assert refused(limits, rest(head=(0, -150, 0))) == ["head"]


def test_a_twist_counts_apart_from_the_direction_of_the_bone(limits: JointLimits) -> None:
    thigh = rest(left_hip=(-60, 0, 0))
    assert refused(limits, thigh) == []
    twist = rest(left_hip=(0, 120, 0))  # about the bone itself, which stays where it is
    assert refused(limits, quaternion_multiply(thigh, twist)) == ["left_hip"]


def test_the_mirror_image_is_judged_alike(limits: JointLimits) -> None:
    wild = torch.nn.functional.normalize(
        rest() + 0.4 * torch.randn(300, 24, 4, generator=torch.Generator().manual_seed(3)), dim=-1
    )
    valid = limits.valid(wild)
    assert 0.2 < valid[:, 1:].float().mean() < 0.8
    order = list(SMPL24.flip_permutation)
    assert torch.equal(limits.valid(mirror_pose(wild)), valid[:, order])


def test_a_quaternion_and_its_negative_are_the_same_rotation(poses: Tensor, limits: JointLimits) -> None:
    assert torch.equal(limits.valid(-poses[:500]), limits.valid(poses[:500]))


def test_one_pose_allows_one_cell_around_it_and_no_more() -> None:
    bent = rest(left_elbow=(0, -90, 0))
    limits = fit_joint_limits(bent)
    degrees = list(range(-60, 61))
    further = torch.cat([rest(left_elbow=(0, -90 + d, 0)) for d in degrees])
    reach = [abs(d) for d, valid in zip(degrees, limits.valid(further).all(1)) if valid]
    assert 10 <= max(reach) <= 20
    twisted = quaternion_multiply(bent, torch.cat([rest(left_elbow=(d, 0, 0)) for d in degrees]))
    twists = [d for d, valid in zip(degrees, limits.valid(twisted).all(1)) if valid]
    assert twists == list(range(-15, 16))  # three cells of 10.3 degrees


def test_a_forearm_is_judged_by_where_the_upper_arm_points() -> None:
    # Two kinds of pose, often seen: arm raised and straight, arm hanging and bent.
    raised, hanging = (0, 0, 60), (0, 0, -60)
    bent = (0, -100, 0)
    seen = torch.cat(
        (rest(left_shoulder=raised).repeat(200, 1, 1), rest(left_shoulder=hanging, left_elbow=bent).repeat(200, 1, 1))
    )
    limits = fit_joint_limits(seen)
    assert (
        refused(limits, rest(left_shoulder=raised))
        == refused(limits, rest(left_shoulder=hanging, left_elbow=bent))
        == []
    )
    assert refused(limits, rest(left_shoulder=raised, left_elbow=bent)) == ["left_elbow"]
    few = fit_joint_limits(seen[::20])  # ten of each: too few to judge by
    assert refused(few, rest(left_shoulder=raised, left_elbow=bent)) == []


def test_no_poses_give_an_empty_answer(poses: Tensor, limits: JointLimits) -> None:
    valid = limits.valid(poses[:0])
    assert valid.shape == (0, 24) and valid.dtype == torch.bool
    with pytest.raises(InputError, match="at least one pose"):
        fit_joint_limits(poses[:0])


def test_limits_come_back_from_their_file(tmp_path: Path, limits: JointLimits) -> None:
    limits.save(tmp_path / "limits.npz")
    loaded = load_joint_limits(tmp_path / "limits.npz")
    assert torch.equal(loaded.allowed, limits.allowed)
    assert torch.equal(loaded.allowed_together, limits.allowed_together)


@pytest.mark.parametrize("arrays", [{}, {"allowed": np.ones((14, 3, 3), bool)}, {"allowed": np.ones((14, 412, 35))}])
def test_a_file_without_limits_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "bad.npz", other=np.zeros(2), **arrays)
    with pytest.raises(InputError, match="holds no joint limits: 'allowed' must be bool of shape"):
        load_joint_limits(tmp_path / "bad.npz")
