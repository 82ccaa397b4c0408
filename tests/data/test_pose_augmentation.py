from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from data.augmentation import mirror_pose
from data.draws import Draws, step_generator
from data.pose_augmentation import (
    AugmentedPoses,
    PoseAugmentationConfig,
    blend,
    share_with_collars,
    turn_joints,
    within_limits,
)
from data.poses import PoseFile
from data.prior import PosePrior, load_pose_prior
from mesh.errors import InputError
from mesh.joints import SMPL24
from mesh.rotation import quaternion_to_axis_angle, quaternion_to_matrix
from mesh.skinning import forward_kinematics

COUNT = 400
PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)
EVERYTHING = PoseAugmentationConfig(blend=0.3, recombine=0.5, collars=0.4, turn=0.5)


@pytest.fixture(scope="module")
def prior() -> PosePrior:
    return load_pose_prior()


@pytest.fixture(scope="module")
def source(prior: PosePrior) -> PoseFile:
    return PoseFile(quaternions=prior.sample(COUNT, torch.Generator().manual_seed(5)), name="some poses")


def draws(rows: slice = slice(None), size: int = COUNT) -> Draws:
    return Draws(size, step_generator(3, 1), rows)


def augmented(source: PoseFile, prior: PosePrior, config: PoseAugmentationConfig) -> Tensor:
    return AugmentedPoses(source, prior, config).poses(torch.arange(COUNT), draws())


def changed(pose: Tensor, source: PoseFile) -> Tensor:
    """Which joints differ from the source's, (B, 24) bool."""
    return (pose - source.quaternions).abs().amax(-1) > 1e-6


@pytest.mark.parametrize("kind", ["blend", "recombine", "collars", "turn"])
def test_the_stated_share_of_poses_is_changed_and_no_root(source: PoseFile, prior: PosePrior, kind: str) -> None:
    config = replace(PoseAugmentationConfig(recombine_part=1.0), **{kind: 0.3})
    moved = changed(augmented(source, prior, config), source)
    share = moved.any(1).float().mean().item()
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / COUNT)
    assert not moved[:, 0].any()


def test_augmented_poses_are_unit_quaternions(source: PoseFile, prior: PosePrior) -> None:
    pose = augmented(source, prior, EVERYTHING)
    torch.testing.assert_close(pose.norm(dim=-1), torch.ones(COUNT, 24))


def test_a_pose_does_not_depend_on_the_batch_it_is_made_in(source: PoseFile, prior: PosePrior) -> None:
    maker = AugmentedPoses(source, prior, EVERYTHING)
    pieces = [slice(0, 150), slice(150, COUNT)]
    parts = [maker.poses(torch.arange(COUNT)[rows], draws(rows)) for rows in pieces]
    assert torch.equal(torch.cat(parts), maker.poses(torch.arange(COUNT), draws()))


def test_recombined_limbs_are_those_of_other_poses_or_their_mirror_images(source: PoseFile, prior: PosePrior) -> None:
    pose = augmented(source, prior, PoseAugmentationConfig(recombine=1.0, recombine_part=0.5))
    known = torch.cat((source.quaternions, mirror_pose(source.quaternions)))
    for limb in (("left_shoulder", "left_elbow"), ("right_hip", "right_knee", "right_ankle"), ("spine1", "spine3")):
        joints = list(SMPL24.indices(limb))
        distance = torch.cdist(pose[:, joints].flatten(1).double(), known[:, joints].flatten(1).double()).amin(1)
        assert distance.max() < 1e-3
    arms = changed(pose, source)[:, list(SMPL24.indices(("left_shoulder", "right_shoulder")))]
    assert (arms[:, 0] != arms[:, 1]).any()


def test_a_blend_ends_at_both_poses_and_turns_evenly_between(source: PoseFile) -> None:
    pose, other = source.quaternions[:200], source.quaternions[200:]
    weight = torch.zeros(200, 1)
    torch.testing.assert_close(blend(pose, other, weight), pose)
    torch.testing.assert_close(
        quaternion_to_matrix(blend(pose, other, weight + 1)[:, 1:]), quaternion_to_matrix(other[:, 1:])
    )
    middle = quaternion_to_matrix(blend(pose, other, weight + 0.5)[:, 1:])
    to_pose, to_other = (
        (middle.mT @ quaternion_to_matrix(end[:, 1:])).diagonal(dim1=-2, dim2=-1).sum(-1) for end in (pose, other)
    )
    torch.testing.assert_close(to_pose, to_other, atol=1e-3, rtol=0)


def test_a_blend_goes_the_shorter_way_round() -> None:
    pose = torch.zeros(1, 24, 4)
    pose[..., 0] = 1
    torch.testing.assert_close(blend(pose, -pose, torch.full((1, 1), 0.5)), pose)


def test_collars_take_over_without_moving_the_arms_orientation(source: PoseFile) -> None:
    share = torch.rand(COUNT, 2, generator=torch.Generator().manual_seed(0))
    moved = share_with_collars(source.quaternions, share)
    joints = torch.randn(COUNT, 24, 3, generator=torch.Generator().manual_seed(1))
    before, after = (
        forward_kinematics(quaternion_to_matrix(pose), joints, PARENTS)[0] for pose in (source.quaternions, moved)
    )
    arms = list(SMPL24.indices(("left_shoulder", "right_shoulder", "left_elbow", "right_wrist")))
    torch.testing.assert_close(after[:, arms], before[:, arms], atol=1e-5, rtol=0)
    collars = list(SMPL24.indices(("left_collar", "right_collar")))
    shoulders = list(SMPL24.indices(("left_shoulder", "right_shoulder")))
    turn = quaternion_to_axis_angle(moved[:, collars]).norm(dim=-1)
    whole = quaternion_to_axis_angle(source.quaternions[:, shoulders]).norm(dim=-1)
    torch.testing.assert_close(turn, share * whole, atol=1e-4, rtol=0)


def test_turned_joints_have_the_stated_spread_and_hinges_keep_their_axis(source: PoseFile) -> None:
    turned = turn_joints(source.quaternions, 0.1, draws())
    inverse = source.quaternions * torch.tensor([1.0, -1, -1, -1])
    from mesh.rotation import quaternion_multiply

    turn = quaternion_to_axis_angle(quaternion_multiply(inverse, turned))
    assert abs(turn[:, SMPL24.indices(("neck",))].std().item() - 0.1) < 0.01
    knee = list(SMPL24.indices(("left_knee",)))
    axis = torch.nn.functional.normalize(quaternion_to_axis_angle(source.quaternions[:, knee]), dim=-1)
    across = turn[:, knee] - (turn[:, knee] * axis).sum(-1, keepdim=True) * axis
    assert across.abs().max() < 1e-3 < turn[:, knee].abs().max()


def test_no_joint_is_turned_beyond_its_limits(source: PoseFile, prior: PosePrior) -> None:
    config = PoseAugmentationConfig(turn=1.0, turn_sd_deg=60.0)
    inside = within_limits(source.quaternions, prior)
    assert not within_limits(turn_joints(source.quaternions, math.radians(60), draws()), prior).all()
    assert within_limits(augmented(source, prior, config), prior)[inside].all()


def test_a_knee_bent_forwards_is_beyond_the_limits(prior: PosePrior) -> None:
    pose = torch.zeros(1, 24, 4)
    pose[..., 0] = 1
    assert within_limits(pose, prior).all()
    knee = SMPL24.indices(("left_knee",))[0]
    pose[0, knee] = torch.tensor([math.cos(-0.5), math.sin(-0.5), 0, 0])
    assert within_limits(pose, prior)[0].nonzero().numel() == 23 and not within_limits(pose, prior)[0, knee]


@pytest.mark.parametrize("key", ["blend", "recombine_part", "collars_reach", "turn_sd_deg"])
def test_a_share_outside_its_range_is_refused_by_name(key: str) -> None:
    with pytest.raises(InputError, match=f"poses.augmentation.{key}"):
        PoseAugmentationConfig(**{key: -0.1})


def test_a_configuration_that_changes_nothing_says_so() -> None:
    assert not PoseAugmentationConfig(blend_reach=1.0, turn_sd_deg=20.0).changes
    assert PoseAugmentationConfig(collars=0.01).changes
