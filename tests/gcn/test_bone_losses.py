from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gcn.bone_losses import (
    ELBOW_BACKWARD_RAD,
    KNEE_BACKWARD_RAD,
    KNEE_FLEXION_RAD,
    BoneLengthLoss,
    BoneSymmetryLoss,
    BoneVectorLoss,
    JointLimitLoss,
    bone_pairs,
)
from mesh.errors import InputError
from mesh.joints import COCO17, COCO19, HUMAN36M17, JOINT_SETS, JointSet

# A chain of three bones with one arm on each side; lengths of whole centimetres.
CROSS = JointSet(
    name="cross", names=("low", "top", "left_hand", "right_hand"), edges=((0, 1), (1, 2), (1, 3)), root="low"
)
HANDS = torch.tensor([[[0.0, 0, 0], [0, 1, 0], [0.5, 1, 0], [-0.3, 1, 0.4]]])  # arms of 0.5 m each

# Standing, arms hanging, seen in the bodies' frame: x to the person's left, y up, z to the front.
_STANDING = {
    "nose": (0, 1.6, 0.1), "eye": (0.03, 1.63, 0.08), "ear": (0.07, 1.62, 0), "shoulder": (0.18, 1.4, 0),
    "elbow": (0.18, 1.1, 0), "wrist": (0.18, 0.85, 0), "hip": (0.1, 0.9, 0), "knee": (0.1, 0.5, 0),
    "ankle": (0.1, 0.1, 0), "pelvis": (0, 0.9, 0), "neck": (0, 1.4, 0),
}  # fmt: skip


def standing(joints: JointSet = COCO19, **moved: tuple[float, float, float]) -> Tensor:
    """The standing person with some joints elsewhere, (1, J, 3)."""
    rows = []
    for name in joints.names:
        side, _, plain = name.rpartition("_")
        x, y, z = moved.get(name, _STANDING.get(plain, (0, 0, 0)))
        rows.append((-x if side == "right" and name not in moved else x, y, z))
    return torch.tensor([rows], dtype=torch.float32)


def shank(degrees: float) -> tuple[float, float, float]:
    """The left ankle with the shank of the standing person turned to the front."""
    angle = math.radians(degrees)
    return (0.1, 0.5 - 0.4 * math.cos(angle), 0.4 * math.sin(angle))


def excess(person: Tensor, joints: JointSet = COCO19) -> dict[str, float]:
    """What each limit of the first person is exceeded by, where it is."""
    loss = JointLimitLoss(joints)
    beyond = ((loss.angles(person)[0] - loss.limits_rad) * loss.angles(person)[1])[0]
    return {name: value.item() for name, value in zip(loss.names, beyond) if value > 0}


def test_bone_lengths_are_compared_whatever_the_direction() -> None:
    turned = HANDS.clone()
    turned[0, 2] = torch.tensor([0.0, 1, 0.7])  # 0.2 m too long
    torch.testing.assert_close(BoneLengthLoss(CROSS)(turned, HANDS), torch.tensor([0.2 / 3]))


def test_bone_vectors_are_compared_by_coordinate() -> None:
    turned = HANDS.clone()
    turned[0, 2] = torch.tensor([0.0, 1, 0.5])  # of the right length
    torch.testing.assert_close(BoneVectorLoss(CROSS)(turned, HANDS), torch.tensor([(0.5 + 0.5) / 3 / 3]))


def test_the_sides_are_compared_by_squared_length() -> None:
    uneven = HANDS.clone()
    uneven[0, 2, 0] = 0.7
    torch.testing.assert_close(BoneSymmetryLoss(CROSS)(uneven), torch.tensor([(0.49 - 0.25) ** 2]))
    assert BoneSymmetryLoss(CROSS)(HANDS) < 1e-12


def test_the_pairs_of_human36m_are_the_six_of_the_study() -> None:
    names = {
        tuple(sorted(HUMAN36M17.names[i].removeprefix("left_") for i in left)) for left, _ in bone_pairs(HUMAN36M17)
    }
    assert names == {
        ("hip", "pelvis"), ("hip", "knee"), ("ankle", "knee"), ("neck", "shoulder"), ("elbow", "shoulder"),
        ("elbow", "wrist"),
    }  # fmt: skip


@pytest.mark.parametrize("name", JOINT_SETS)
def test_the_partner_of_a_bone_links_the_mirrored_joints(name: str) -> None:
    joints = JOINT_SETS[name]
    for left, right in bone_pairs(joints):
        assert [joints.names[i].replace("left", "right", 1) for i in left] == [joints.names[i] for i in right]


def test_a_mirror_symmetric_skeleton_has_no_symmetry_loss(generator: torch.Generator) -> None:
    pose = torch.randn(4, 19, 3, generator=generator)
    mirrored = pose[:, list(COCO19.flip_permutation)] * torch.tensor([-1.0, 1, 1])
    loss = BoneSymmetryLoss(COCO19)
    torch.testing.assert_close(loss((pose + mirrored) / 2), torch.zeros(4))
    assert (loss(pose) > 0.01).all()


LOSSES: dict[str, Callable[[JointSet], torch.nn.Module]] = {
    "length": BoneLengthLoss,
    "vector": BoneVectorLoss,
    "symmetry": BoneSymmetryLoss,
    "limit": JointLimitLoss,
}


def value(name: str, joints: JointSet, pred: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
    """One of the losses, whether or not it looks at a target."""
    loss = LOSSES[name](joints)
    return loss(pred, target, known) if name in ("length", "vector") else loss(pred, known)


@pytest.mark.parametrize("name", LOSSES)
def test_where_the_person_stands_does_not_matter(name: str, generator: torch.Generator) -> None:
    pred, target = torch.randn(2, 4, 19, 3, generator=generator)
    moved = value(name, COCO19, pred + torch.tensor([1.0, -2, 3]), target - 1)
    torch.testing.assert_close(moved, value(name, COCO19, pred, target), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_another_order_of_the_joints_gives_the_same(name: str, generator: torch.Generator) -> None:
    pred, target = torch.randn(2, 4, 19, 3, generator=generator)
    known = torch.rand(4, 19, generator=generator) > 0.1
    order = torch.randperm(19, generator=generator)
    place = order.argsort().tolist()
    edges = tuple((place[a], place[b]) for a, b in COCO19.edges)
    shuffled = replace(COCO19, names=tuple(COCO19.names[i] for i in order), edges=edges)
    again = value(name, shuffled, pred[:, order], target[:, order], known[:, order])
    torch.testing.assert_close(again, value(name, COCO19, pred, target, known))


@pytest.mark.parametrize("name", LOSSES)
def test_unknown_joints_count_for_nothing(name: str, generator: torch.Generator) -> None:
    pred, target = torch.randn(2, 3, 19, 3, generator=generator)
    known = torch.ones(3, 19, dtype=torch.bool)
    known[0, COCO19.index("left_wrist")] = known[1] = False
    wrong, nowhere = pred.clone(), target.clone()
    wrong[~known], nowhere[~known] = 7.0, torch.nan
    wrong.requires_grad_()
    loss = value(name, COCO19, wrong, nowhere, known)
    torch.testing.assert_close(loss, value(name, COCO19, pred, target, known))
    assert loss[1] == 0 and loss[2] > 0
    loss.sum().backward()
    assert wrong.grad is not None and (wrong.grad[~known] == 0).all() and wrong.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_finite_for_bones_without_length(name: str, generator: torch.Generator) -> None:
    pred = standing().repeat(4, 1, 1)
    pred[0] = 0
    pred[1, COCO19.index("left_knee")] = pred[1, COCO19.index("left_hip")]
    pred[2, COCO19.index("left_ankle")] = pred[2, COCO19.index("left_hip")]  # folded onto itself
    pred[3, COCO19.index("left_shoulder")] = pred[3, COCO19.index("right_shoulder")]
    pred.requires_grad_()
    value(name, COCO19, pred, torch.zeros(4, 19, 3)).sum().backward()
    assert pred.grad is not None and pred.grad.isfinite().all() and pred.grad.abs().max() < 1e3


@pytest.mark.parametrize("joints", [COCO17, COCO19, HUMAN36M17], ids=lambda s: s.name)
def test_a_standing_person_is_within_all_limits(joints: JointSet) -> None:
    assert JointLimitLoss(joints)(standing(joints)) == 0


def test_a_knee_bent_to_the_front_is_punished_by_what_exceeds_the_limit() -> None:
    expected = math.radians(40) - KNEE_BACKWARD_RAD
    assert excess(standing(left_ankle=shank(40))) == pytest.approx({"left_knee_backward": expected}, rel=1e-3)
    loss = JointLimitLoss(COCO19)
    assert loss(standing(left_ankle=shank(40))).item() == pytest.approx(expected / len(loss.names), rel=1e-3)


def test_a_knee_bends_backwards_until_it_is_folded() -> None:
    assert not excess(standing(left_ankle=shank(-130)))
    expected = math.radians(170) - KNEE_FLEXION_RAD
    assert excess(standing(left_ankle=shank(-170)))["left_knee_flexion"] == pytest.approx(expected, rel=1e-3)


def test_the_shank_of_a_raised_thigh_hangs_and_does_not_stand() -> None:
    assert not excess(standing(left_knee=(0.1, 0.9, 0.4), left_ankle=(0.1, 0.5, 0.4)))
    assert set(excess(standing(left_knee=(0.1, 0.9, 0.4), left_ankle=(0.1, 1.3, 0.4)))) == {"left_knee_backward"}


def test_a_forearm_bends_to_the_front_and_not_to_the_back() -> None:
    assert not excess(standing(left_wrist=(0.18, 1.1, 0.25)))
    beyond = excess(standing(left_wrist=(0.18, 1.1, -0.25)))
    assert set(beyond) == {"left_elbow_backward"} and beyond["left_elbow_backward"] > 0.5 - ELBOW_BACKWARD_RAD


@pytest.mark.parametrize(
    "moved, names",
    [
        ({"left_knee": (0.1, 0.9, -0.4), "left_ankle": (0.1, 0.9, -0.8)}, {"left_thigh_swing"}),
        ({"left_elbow": (-0.1, 1.4, -0.2), "left_wrist": (-0.3, 1.4, -0.3)}, {"left_upper_arm_swing"}),
        ({"left_ear": (0, 1.62, 0.07), "right_ear": (0, 1.62, -0.07)}, {"head_turn"}),
        ({"left_ear": (0.07, 1.4, -0.2), "right_ear": (-0.07, 1.4, -0.2)}, {"head_tilt"}),
    ],
    ids=["thigh behind the back", "arm behind the back", "head turned aside", "head on the back"],
)
def test_limbs_and_head_do_not_leave_their_range(moved, names: set[str]) -> None:
    assert set(excess(standing(**moved))) == names


def test_the_trunk_does_not_turn_by_a_right_angle() -> None:
    person = standing(left_shoulder=(0, 1.4, -0.18), right_shoulder=(0, 1.4, 0.18))
    assert excess(person)["trunk_twist"] == pytest.approx(math.radians(90 - 50), rel=1e-3)


def test_joint_limits_hold_in_every_frame_but_a_reversed_one() -> None:
    person = standing(left_ankle=shank(40))
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1))).Q
    turn = turn * turn.det()  # a rotation
    loss = JointLimitLoss(COCO19)
    torch.testing.assert_close(loss(person @ turn), loss(person), atol=1e-5, rtol=1e-3)
    sitting = standing(left_knee=(0.1, 0.9, 0.4), left_ankle=(0.1, 0.5, 0.4))
    assert loss(sitting) == 0 and loss(sitting * torch.tensor([1.0, 1, -1])) > 0.02


def test_joint_limits_treat_both_sides_alike() -> None:
    person = standing(left_ankle=shank(40), left_wrist=(0.3, 1.1, -0.25))
    mirrored = person[:, list(COCO19.flip_permutation)] * torch.tensor([-1.0, 1, 1])
    assert {name.replace("right", "left") for name in excess(mirrored)} == set(excess(person))
    torch.testing.assert_close(JointLimitLoss(COCO19)(mirrored), JointLimitLoss(COCO19)(person))


def test_following_the_gradient_makes_a_pose_possible() -> None:
    person = standing(left_ankle=shank(60), right_wrist=(-0.18, 1.1, -0.25))
    loss = JointLimitLoss(COCO19)
    before = loss(person).item()
    for _ in range(40):
        person = person.detach().requires_grad_()
        person = person - 0.2 * torch.autograd.grad(loss(person).sum(), person)[0]
    assert loss(person).item() < 0.1 * before


def test_poses_of_the_shipped_prior_are_within_the_limits() -> None:
    from data.prior import load_pose_prior
    from mesh.body import load_body
    from mesh.rotation import quaternion_to_matrix
    from mesh.skinning import JointModel

    poses = load_pose_prior().sample(1000, torch.Generator().manual_seed(5))
    (joints,) = JointModel(load_body(), (COCO19,))(quaternion_to_matrix(poses), torch.zeros(1000, 10))
    loss = JointLimitLoss(COCO19)(joints)
    assert (loss > 0).float().mean() < 0.02
    reversed_depth = JointLimitLoss(COCO19)(joints * torch.tensor([1.0, 1, -1]))
    assert (reversed_depth > 0).float().mean() > 0.95


def test_a_set_without_limbs_is_refused() -> None:
    with pytest.raises(InputError, match="cross has no left_hip"):
        JointLimitLoss(CROSS)
    with pytest.raises(InputError, match="no left and right bones"):
        BoneSymmetryLoss(JointSet(name="stick", names=("a", "b"), edges=((0, 1),), root="a"))


def test_a_set_without_links_has_no_bones() -> None:
    alone = JointSet(name="alone", names=("pelvis",), edges=(), root="pelvis")
    for kind in (BoneLengthLoss, BoneVectorLoss):
        with pytest.raises(InputError, match="joint set alone has no links"):
            kind(alone)


def test_double_precision_is_judged_as_single_precision_is(generator: torch.Generator) -> None:
    pose = torch.randn(4, 19, 3, generator=generator)
    loss = JointLimitLoss(COCO19)
    double = pose.double().requires_grad_()
    values = loss(double)
    values.sum().backward()
    torch.testing.assert_close(values.float(), loss(pose), atol=1e-5, rtol=1e-4)
    assert double.grad is not None and double.grad.isfinite().all()
