"""The checks of pictures without truth, with a detector and a recovery whose faults are known."""

from __future__ import annotations

import functools
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from gcn.recovery import Recovered
from mesh.body import load_body
from mesh.camera import fit_weak_perspective
from mesh.errors import InputError
from mesh.fitting import BodyFitter
from mesh.joints import COCO17, HUMAN36M17, SMPL24, Keypoints
from mesh.rotation import rotation_about
from mesh.skinning import BodyModel
from tools.robustness_checks import VARIANTS, Checker, match, variants
from tools.robustness_overlap import OverlapMeter

BODY = load_body()
FACING = (BODY.template * (1, -1, -1)).astype(np.float32)  # camera frame, looking at the camera
STANDING_PX = (BODY.regressor(COCO17) @ FACING)[:, :2]
COLOURS = ((200, 0, 0), (0, 0, 200))


def posed(joint: str, axis: str, degrees: float) -> np.ndarray:
    """The body with one joint turned, (V, 3) in the camera frame, at the Human3.6M pelvis."""
    rotations = torch.eye(3).repeat(1, 24, 1, 1)
    rotations[0, SMPL24.index(joint)] = rotation_about(axis, torch.tensor(np.radians(degrees)).float())
    made = BodyModel(BODY)(rotations, torch.zeros(1, 10))
    vertices = (made[0] if isinstance(made, tuple) else made).reshape(-1, 3).numpy() * np.float32((1, -1, -1))
    return vertices - BODY.regressor(HUMAN36M17)[HUMAN36M17.root_idx] @ vertices


def picture(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """Grey, 300 x 200, with a coloured box (left, top, right, bottom) for each person."""
    image = np.full((200, 300, 3), 128, np.uint8)
    for (left, top, right, bottom), colour in zip(boxes, COLOURS):
        image[top:bottom, left:right] = colour
    return image


class BoxDetector:
    """Finds a standing person in every coloured box; `blind` is a width of the picture in which it finds nobody."""

    model = "full"

    def __init__(self, blind: int = 0) -> None:
        self.blind = blind

    def detect(self, image: np.ndarray, *, max_people: int = 10) -> Keypoints:
        people = []
        for colour in COLOURS:
            ys, xs = np.nonzero(abs(image.astype(int) - colour).sum(-1) < 90)
            if len(xs) and image.shape[1] != self.blind:
                low, high = np.array((xs.min(), ys.min())), np.array((xs.max() + 1, ys.max() + 1))
                extent = np.ptp(STANDING_PX, axis=0)
                people.append(low + (STANDING_PX - STANDING_PX.min(0)) / extent * (high - low))
        positions = np.array(people[:max_people], np.float32).reshape(-1, 17, 2)
        size = (image.shape[1], image.shape[0])
        confidence = np.ones(positions.shape[:2], np.float32)
        return Keypoints(positions_px=positions, confidence=confidence, joint_set=COCO17, image_size=size)


def recovered(count: int, **given: np.ndarray) -> Recovered:
    """Valid people; what no check looks at is zero."""
    known = {"exchanged": np.zeros(count, bool), "valid": np.ones(count, bool), **given}
    known.setdefault("expected_error", np.zeros((count, 17), np.float32))
    known = {"place": np.full((count, 3), np.nan, np.float32), **known}
    return Recovered(**{f.name: known.get(f.name, np.zeros(count, np.float32)) for f in fields(Recovered)})


class FixedRecovery:
    """Gives everybody the same mesh, off by (3, 4) px in the picture; mirrored for who stands on the right side."""

    body = BODY

    def __init__(self, vertices: np.ndarray, *, by_side: bool = False) -> None:
        self.vertices, self.by_side = vertices, by_side
        self.change: dict[str, np.ndarray] = {}

    def recover(self, keypoints: Keypoints, *, exchange: bool) -> Recovered:
        assert exchange and keypoints.image_size is not None
        count, on_right = len(keypoints), keypoints.positions_px[..., 0].mean(1) > keypoints.image_size[0] / 2
        mirrored = self.vertices[BODY.mirror] * np.float32((-1, 1, 1))
        vertices = np.where((on_right & self.by_side)[:, None, None], mirrored, self.vertices).astype(np.float32)
        joints = torch.from_numpy(BODY.regressor(COCO17) @ vertices)
        points, weight = torch.from_numpy(keypoints.positions_px), torch.from_numpy(keypoints.confidence)
        camera = fit_weak_perspective(joints, points, weight).numpy() + np.float32((0, 3, 4))
        made = recovered(
            count,
            vertices=vertices,
            camera=camera.reshape(count, 3),
        )
        return replace(made, **{name: value[:count] for name, value in self.change.items()})


@functools.cache
def made_once(kind: type) -> Any:
    """The parts of a checker that take long to build."""
    return kind(BODY)


@pytest.fixture(autouse=True)
def quick_checkers(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (BodyFitter, OverlapMeter):
        monkeypatch.setattr(f"tools.robustness_checks.{kind.__name__}", lambda body, kind=kind: made_once(kind))


AT_REST = posed("head", "x", 0)
ONE_ARM_DOWN = posed("left_shoulder", "z", -60)
LEFT, RIGHT = (30, 50, 80, 180), (200, 40, 260, 190)
FREE = np.ptp(STANDING_PX, axis=0)
STANDING_BOX = (100, 40, 100 + round(140 * FREE[0] / FREE[1]), 180)  # as wide as a person of that height


def check(image: np.ndarray, vertices: np.ndarray = AT_REST, *, by_side: bool = False, blind: int = 0, **change):
    recovery = FixedRecovery(vertices, by_side=by_side)
    recovery.change = change
    return Checker(BoxDetector(blind), recovery).check(image)[0]  # type: ignore[arg-type]


def test_reprojection_is_the_distance_from_the_detected_joints() -> None:
    (person,) = check(picture(STANDING_BOX))
    assert person.reprojection_px == pytest.approx(5, abs=0.3)
    size = np.sqrt(np.prod([STANDING_BOX[2] - STANDING_BOX[0], STANDING_BOX[3] - STANDING_BOX[1]]))
    assert person.reprojection_sizes == pytest.approx(5 / size, rel=0.1)
    np.testing.assert_allclose(person.box_px, STANDING_BOX, atol=0.1)


def test_joints_that_were_exchanged_are_compared_as_they_were_used() -> None:
    (person,) = check(picture(STANDING_BOX), exchanged=np.ones(1, bool))
    assert person.flags == ("left_right_exchanged",)
    assert person.reprojection_px is not None and person.reprojection_px > 30


def test_a_recovery_that_does_the_same_in_every_variant_agrees_with_itself() -> None:
    people = check(picture(LEFT, RIGHT))
    assert len(people) == 2
    for person in people:
        assert set(person.agreements) == set(VARIANTS)
        for agreement in person.agreements.values():
            assert agreement is not None and agreement.root_mm < 0.5 and agreement.aligned_mm < 0.5


def test_a_recovery_that_takes_a_side_is_inconsistent_in_the_mirror_alone() -> None:
    (person,) = check(picture(LEFT), ONE_ARM_DOWN)
    mirrored = ONE_ARM_DOWN[BODY.mirror] * (-1, 1, 1)
    expected = 1000 * np.linalg.norm(mirrored - ONE_ARM_DOWN, axis=-1).mean()
    flip = person.agreements["flip"]
    assert flip is not None and flip.root_mm == pytest.approx(expected, rel=0.02) and expected > 30
    assert flip.aligned_mm > 10
    assert all(a is not None and a.root_mm < 0.01 for name, a in person.agreements.items() if name != "flip")


def test_the_mirrored_mesh_of_the_mirrored_picture_agrees() -> None:
    (person,) = check(picture(LEFT), ONE_ARM_DOWN, by_side=True)
    flip = person.agreements["flip"]
    assert flip is not None and flip.root_mm < 0.01


def test_where_a_mesh_lies_is_no_disagreement() -> None:
    checker = Checker(BoxDetector(), FixedRecovery(AT_REST))  # type: ignore[arg-type]
    moved = checker._agreement(AT_REST + np.float32((0.3, -2, 5)), AT_REST)
    assert moved.root_mm < 0.01 and moved.aligned_mm < 0.01
    larger = checker._agreement(1.1 * AT_REST, AT_REST)
    assert larger.root_mm > 20 and larger.aligned_mm < 0.01


def test_who_is_not_found_again_is_lost_there_and_only_there() -> None:
    (person,) = check(picture(LEFT), blind=450)
    assert person.agreements["scale 1.5"] is None and person.agreements["scale 0.5"] is not None


def test_a_crop_that_is_the_whole_picture_is_left_out() -> None:
    (person,) = check(picture((0, 0, 300, 200)))
    assert not {"crop 0.15", "crop 0.5"} & set(person.agreements)


def test_who_could_not_be_recovered_has_flags_and_a_place_alone() -> None:
    good, bad = check(picture(LEFT, RIGHT), valid=np.array([True, False]))
    assert bad.flags == ("not_recoverable",) and bad.box_px[0] == pytest.approx(200, abs=1)
    assert bad.reprojection_px is None and bad.limits is None and bad.overlap is None and bad.agreements == {}
    assert good.reprojection_px is not None and "flip" in good.agreements


def test_nobody_in_the_picture_is_no_trouble() -> None:
    assert check(picture()) == []


def test_a_knee_that_bends_forward_is_beyond_its_limits_and_the_root_never_is() -> None:
    (person,) = check(picture(LEFT), posed("left_knee", "x", -50))
    assert person.limits is not None and person.limits.beyond == ("left_knee",)
    assert person.limits.worst_deg > 20 and person.limits.model_mm < 2
    (person,) = check(picture(LEFT), posed("pelvis", "z", 170))
    assert person.limits is not None and "pelvis" not in person.limits.beyond


def test_overlap_is_measured() -> None:
    (person,) = check(picture(LEFT), posed("left_shoulder", "z", -130))
    assert person.overlap is not None and person.overlap.share > 0.01


def test_people_are_matched_by_place_once_each_and_not_across_the_picture() -> None:
    here, there = 100 * STANDING_PX + 200, 100 * STANDING_PX + 900
    order = list(COCO17.flip_permutation)
    assert match(np.stack([here, there]), np.stack([there + 3, here[order] - 3])) == [1, 0]
    assert match(np.stack([here, here + 1]), np.stack([here])) == [0, None]
    assert match(np.stack([here]), np.stack([there])) == [None]
    assert match(np.zeros((0, 17, 2)), np.stack([there])) == [] and match(np.stack([here]), here[:0, None]) == [None]


def test_a_variants_pixels_are_found_in_the_original() -> None:
    image = np.full((120, 200, 3), 50, np.uint8)
    image[40:60, 130:150] = 250
    points = np.array([[(120.0, 30.0), (160.0, 80.0)]])
    for variant in variants(image, points):
        ys, xs = np.nonzero(variant.image[..., 0] > 150)
        middle = np.array((xs.mean() + 0.5, ys.mean() + 0.5)) * variant.step + variant.offset
        np.testing.assert_allclose(middle, (140, 50), atol=0.5, err_msg=variant.name)


def test_a_body_without_mirror_is_refused() -> None:
    recovery = FixedRecovery(AT_REST)
    recovery.body = replace(BODY, mirror=None)
    with pytest.raises(InputError, match="mirror"):
        Checker(BoxDetector(), recovery)  # type: ignore[arg-type]
