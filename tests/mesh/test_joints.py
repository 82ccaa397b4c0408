"""Joint sets and the conversion of keypoints between them, by name."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import InputError
from mesh.joints import (
    BLAZEPOSE33,
    COCO17,
    COCO19,
    EVALUATION_14,
    HALPE26,
    HUMAN36M17,
    JOINT_SETS,
    MPII16,
    OPENPOSE25,
    SMPL24,
    JointSet,
    Keypoints,
    joint_set,
    joint_set_by_count,
)  # fmt: skip

ALL = pytest.mark.parametrize("joints", JOINT_SETS.values(), ids=lambda s: s.name)
COUNTS = {
    "coco17": 17, "coco19": 19, "human36m17": 17, "smpl24": 24, "mpii16": 16, "openpose25": 25, "halpe26": 26,
    "blazepose33": 33,
}  # fmt: skip


def people(joints: JointSet, *, seed: int = 0, count: int = 2) -> Keypoints:
    rng = np.random.default_rng(seed)
    return Keypoints(
        positions_px=rng.uniform(0, 500, (count, len(joints), 2)).astype(np.float32),
        confidence=rng.uniform(0.1, 1, (count, len(joints))).astype(np.float32),
        joint_set=joints,
        image_size=(640, 480),
    )


def at(keypoints: Keypoints, name: str) -> np.ndarray:
    return keypoints.positions_px[:, keypoints.joint_set.index(name)]


def sure(keypoints: Keypoints, name: str) -> np.ndarray:
    return keypoints.confidence[:, keypoints.joint_set.index(name)]


def test_every_set_has_the_number_of_joints_in_its_name() -> None:
    assert {name: len(joints) for name, joints in JOINT_SETS.items()} == COUNTS


@ALL
def test_names_are_unique_and_links_form_one_piece_without_repeats(joints: JointSet) -> None:
    assert len(set(joints.names)) == len(joints)
    assert len({frozenset(edge) for edge in joints.edges}) == len(joints.edges)
    assert all(a != b for a, b in joints.edges)


@pytest.mark.parametrize("joints", [COCO19, HUMAN36M17, SMPL24, MPII16, OPENPOSE25], ids=lambda s: s.name)
def test_a_skeleton_with_a_pelvis_reaches_every_joint_from_it(joints: JointSet) -> None:
    reached, before = {joints.root_idx}, 0
    while len(reached) > before:
        before = len(reached)
        reached |= set(itertools.chain(*(edge for edge in joints.edges if reached & set(edge))))
    assert reached == set(range(len(joints)))


@ALL
def test_links_are_the_same_on_both_sides(joints: JointSet) -> None:
    mirrored = {frozenset(joints.flip_permutation[i] for i in edge) for edge in joints.edges}
    assert mirrored == {frozenset(edge) for edge in joints.edges}


@ALL
def test_the_mirror_order_exchanges_left_and_right_names_only(joints: JointSet) -> None:
    for name, other in zip(joints.names, (joints.names[i] for i in joints.flip_permutation)):
        swapped = {"left": "right_", "right": "left_"}.get(name.split("_")[0])
        assert other == (swapped + name.split("_", 1)[1] if swapped else name)


@pytest.mark.parametrize(
    ("joints", "places"),
    [
        (COCO17, {0: "nose", 1: "left_eye", 5: "left_shoulder", 10: "right_wrist", 11: "left_hip", 16: "right_ankle"}),
        (COCO19, {17: "pelvis", 18: "neck"}),
        (HUMAN36M17, {0: "pelvis", 1: "right_hip", 4: "left_hip", 8: "neck", 10: "head", 11: "left_shoulder"}),
        (SMPL24, {1: "left_hip", 4: "left_knee", 12: "neck", 15: "head", 16: "left_shoulder", 23: "right_hand"}),
        (MPII16, {0: "right_ankle", 5: "left_ankle", 6: "pelvis", 9: "head_top", 10: "right_wrist", 15: "left_wrist"}),
        (OPENPOSE25, {1: "neck", 2: "right_shoulder", 8: "pelvis", 9: "right_hip", 15: "right_eye", 24: "right_heel"}),
        (HALPE26, {16: "right_ankle", 17: "head_top", 18: "neck", 19: "pelvis", 20: "left_big_toe", 25: "right_heel"}),
        (BLAZEPOSE33, {2: "left_eye", 7: "left_ear", 11: "left_shoulder", 24: "right_hip", 32: "right_foot_index"}),
    ],
    ids=lambda value: value.name if isinstance(value, JointSet) else "",
)
def test_convention_joints_stand_where_their_format_puts_them(joints: JointSet, places: dict[int, str]) -> None:
    assert {i: joints.names[i] for i in places} == places


def test_the_fourteen_evaluated_joints_are_the_published_ones() -> None:
    assert EVALUATION_14 == (1, 2, 3, 4, 5, 6, 8, 10, 11, 12, 13, 14, 15, 16)


def test_an_unknown_set_is_answered_with_the_nearest_known_one() -> None:
    assert joint_set("coco19") is COCO19
    with pytest.raises(InputError, match=r"'cocco17'.*did you mean 'coco17'\?.*Known: coco17, coco19"):
        joint_set("cocco17")
    with pytest.raises(InputError, match=r"did you mean 'smpl24'\?"):
        joint_set("smpl")
    with pytest.raises(InputError, match=r"unknown joint set ''\. Known: coco17") as caught:
        joint_set("")
    assert "did you mean" not in str(caught.value)


def test_an_unknown_joint_is_answered_with_the_known_ones() -> None:
    assert COCO17.indices(["right_hip", "nose"]) == (12, 0)
    with pytest.raises(InputError, match=r"coco17 has no joint 'tail'; it has nose, left_eye"):
        COCO17.index("tail")


def test_a_count_finds_the_only_set_that_has_it_and_refuses_to_guess() -> None:
    assert joint_set_by_count(24) is SMPL24
    with pytest.raises(InputError, match=r"17 joints can be coco17 or human36m17: say which with --joint-set"):
        joint_set_by_count(17)
    with pytest.raises(InputError, match=r"no joint set has 7 joints.*mpii16 \(16\)"):
        joint_set_by_count(7)


@given(seed=st.integers(0, 2**31), order=st.permutations(range(17)))
@settings(max_examples=25, deadline=None)
def test_conversion_goes_by_name_whatever_the_order(seed: int, order: Sequence[int]) -> None:
    shuffled = JointSet(name="shuffled", names=tuple(COCO17.names[i] for i in order), edges=(), root="nose")
    source = people(shuffled, seed=seed)
    converted = source.to(COCO17)
    for name in COCO17.names:
        np.testing.assert_array_equal(at(converted, name), at(source, name))
        np.testing.assert_array_equal(sure(converted, name), sure(source, name))
    np.testing.assert_array_equal(converted.to(shuffled).positions_px, source.positions_px)


@pytest.mark.parametrize("source_set", [COCO17, COCO19, HUMAN36M17, SMPL24, OPENPOSE25, HALPE26, BLAZEPOSE33, MPII16])
def test_pelvis_and_neck_of_coco19_are_means_whatever_the_source_calls_so(source_set: JointSet) -> None:
    source = people(source_set)
    converted = source.to(COCO19)
    for name, side in (("pelvis", "hip"), ("neck", "shoulder")):
        left, right = f"left_{side}", f"right_{side}"
        middle = (at(source, left) + at(source, right)) / 2
        np.testing.assert_allclose(at(converted, name), middle, rtol=1e-6)
        np.testing.assert_array_equal(sure(converted, name), np.minimum(sure(source, left), sure(source, right)))


def test_a_joint_that_the_source_lacks_gets_confidence_zero() -> None:
    converted = people(HUMAN36M17).to(COCO19)
    lacking = ["left_eye", "right_eye", "left_ear", "right_ear"]
    for name in COCO19.names:
        assert (sure(converted, name) == 0).all() == (name in lacking), name
    assert np.isfinite(converted.positions_px).all()


def test_an_unseen_hip_makes_an_unseen_pelvis() -> None:
    source = people(COCO17)
    source.confidence[0, COCO17.index("left_hip")] = 0
    pelvis = sure(source.to(COCO19), "pelvis")
    assert pelvis[0] == 0 and pelvis[1] > 0


@pytest.mark.parametrize("lacking", ["left_hip", "right_hip", "left_shoulder", "right_shoulder"])
def test_conversion_without_a_hip_or_shoulder_is_refused(lacking: str) -> None:
    names = tuple(name for name in COCO17.names if name != lacking)
    source = people(JointSet(name="cut", names=names, edges=(), root="nose"))
    with pytest.raises(InputError, match=f"cannot convert cut to coco19: it has no {lacking}"):
        source.to(COCO19)


@ALL
def test_conversion_keeps_people_and_picture_and_leaves_the_source_alone(joints: JointSet) -> None:
    source = people(joints)
    before = source.positions_px.copy(), source.confidence.copy()
    converted = source.to(COCO19)
    assert len(converted) == 2 and converted.image_size == (640, 480) and converted.joint_set is COCO19
    np.testing.assert_array_equal(source.positions_px, before[0])
    np.testing.assert_array_equal(source.confidence, before[1])


@ALL
def test_nobody_in_the_picture_stays_nobody(joints: JointSet) -> None:
    assert people(joints, count=0).to(COCO19).positions_px.shape == (0, 19, 2)


@ALL
def test_mirroring_labels_twice_changes_nothing_and_once_exchanges_the_sides(joints: JointSet) -> None:
    source = people(joints)
    once = source.mirrored_labels()
    np.testing.assert_array_equal(at(once, "left_knee"), at(source, "right_knee"))
    np.testing.assert_array_equal(sure(once, "left_knee"), sure(source, "right_knee"))
    np.testing.assert_array_equal(once.mirrored_labels().positions_px, source.positions_px)
    np.testing.assert_array_equal(once.mirrored_labels().confidence, source.confidence)


def test_people_are_selected_by_index_or_mask() -> None:
    source = people(COCO17, count=3)
    np.testing.assert_array_equal(source.select([2, 0]).positions_px, source.positions_px[[2, 0]])
    np.testing.assert_array_equal(source.select(np.array([False, True, False])).confidence, source.confidence[[1]])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", ["positions_px", "confidence"])
def test_a_value_that_is_no_number_is_refused_and_the_joint_named(value: float, column: str) -> None:
    source = people(COCO17)
    getattr(source, column)[1, COCO17.index("left_wrist")] = value
    with pytest.raises(InputError, match=r"person 1 hold NaN or infinity at left_wrist; give .* confidence 0"):
        Keypoints(positions_px=source.positions_px, confidence=source.confidence, joint_set=COCO17)


@pytest.mark.parametrize(
    ("positions", "confidence", "reason"),
    [
        (np.zeros((2, 16, 2)), np.ones((2, 17)), r"coco17 .* shape \(people, 17, 2\), got \(2, 16, 2\)"),
        (np.zeros((2, 17, 3)), np.ones((2, 17)), r"got \(2, 17, 3\)"),
        (np.zeros((17, 2)), np.ones((17,)), r"got \(17, 2\)"),
        (np.zeros((2, 17, 2)), np.ones((1, 17)), r"confidence must have shape \(2, 17\), got \(1, 17\)"),
        (np.zeros((2, 17, 2)), np.full((2, 17), 1.5), r"confidence must lie in \[0, 1\], got 1.5 to 1.5"),
        (np.zeros((2, 17, 2)), np.full((2, 17), -0.5), r"confidence must lie in \[0, 1\], got -0.5"),
    ],
)  # fmt: skip
def test_arrays_of_another_shape_or_range_are_refused(
    positions: np.ndarray, confidence: np.ndarray, reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        Keypoints(positions_px=positions, confidence=confidence, joint_set=COCO17)


@pytest.mark.parametrize("size", [(0, 5), (-5, 3), (float("nan"), 5), (float("inf"), 5), (10**400, 3)])
def test_a_picture_has_a_size(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="image_size must be width and height in pixels"):
        Keypoints(positions_px=np.zeros((1, 17, 2)), confidence=np.ones((1, 17)), joint_set=COCO17, image_size=size)


def test_known_joints_lie_in_some_picture() -> None:
    positions, confidence = np.zeros((2, 17, 2)), np.ones((2, 17))
    positions[1, 3] = 1e18
    with pytest.raises(InputError, match=r"person 1 lie more than 1e\+07 px away at left_ear"):
        Keypoints(positions_px=positions, confidence=confidence, joint_set=COCO17)
    confidence[1, 3] = 0
    Keypoints(positions_px=positions, confidence=confidence, joint_set=COCO17)
