"""Rendered people: the truth that comes with the picture is what the picture shows."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from data.prior import load_pose_prior
from data.synthesis import CameraConfig, SynthesisConfig
from mesh.body import Body, load_body
from mesh.joints import COCO17, COCO19
from mesh.rasterise import Fragments
from tools.detector_pictures import Backdrop, PictureMaker, dress, facing_deg, occluded

SIDE = 96
UPRIGHT = SynthesisConfig(
    shape_sd=0.0, mirror=0.0, camera=CameraConfig(pitch_deg=(0.0, 0.0), roll_sd_deg=0.0, tilted=0.0, off_centre=0.05)
)


class Standing:
    """A source of one pose: the rest pose."""

    def __len__(self) -> int:
        return 1000

    def poses(self, index: torch.Tensor, draws: object) -> torch.Tensor:
        return torch.tensor([1.0, 0, 0, 0]).repeat(len(index), 24, 1)


@cache
def body() -> Body:
    return load_body()


def maker(config: SynthesisConfig = UPRIGHT, backdrops: tuple[Backdrop, ...] = ()) -> PictureMaker:
    return PictureMaker(Standing(), body(), config, backdrops=backdrops, side_px=SIDE)


def test_a_person_depends_on_the_seed_and_the_number_alone() -> None:
    makers = [PictureMaker(load_pose_prior(), body(), SynthesisConfig(), backdrops=(), side_px=32) for _ in range(2)]
    long, short = list(makers[0].shots(3, 7)), list(makers[1].shots(2, 7))
    for a, b in zip(long, short):
        assert np.array_equal(a.image, b.image) and np.array_equal(a.joints_px, b.joints_px)
    assert not np.array_equal(long[0].image, long[1].image)
    assert not np.array_equal(next(maker().shots(1, 8)).image, next(maker().shots(1, 9)).image)


def test_the_true_joints_lie_on_the_person_in_the_picture(monkeypatch) -> None:
    black = np.zeros((SIDE, SIDE, 3), np.uint8)
    monkeypatch.setattr(PictureMaker, "_backdrop", lambda self, rng: black)
    on_body = []
    for shot in maker().shots(6, 0):
        inside = ((shot.joints_px >= 0) & (shot.joints_px < SIDE)).all(-1)
        column, row = shot.joints_px[inside].astype(int).T
        on_body.append(shot.image[row, column].max(-1) > 12)
        assert (shot.image.max(-1) > 12).mean() < 0.5
    assert np.concatenate(on_body).mean() > 0.95


def test_left_and_right_in_the_picture_agree_with_the_facing() -> None:
    left, right = COCO17.indices(("left_shoulder", "right_shoulder"))
    seen = set()
    for shot in maker().shots(12, 0):
        if abs(shot.facing_deg - 90) > 20:
            faces_us = shot.facing_deg < 90
            assert (shot.joints_px[left, 0] > shot.joints_px[right, 0]) == faces_us
            seen.add(faces_us)
    assert seen == {True, False}


@pytest.mark.parametrize(("turn_deg", "expected"), [(0, 180), (90, 90), (180, 0), (-120, 60)])
def test_facing_is_the_angle_between_chest_and_camera(turn_deg: float, expected: float) -> None:
    """The rest pose looks along +z, which in the camera frame with y up turned down is away from the camera."""
    angle = np.radians(turn_deg)
    joints = body().regressor(COCO19) @ body().template * (-1, -1, 1)  # half a turn about z: y down, still no mirror
    turn = np.array([(np.cos(angle), 0, np.sin(angle)), (0, 1, 0), (-np.sin(angle), 0, np.cos(angle))])
    assert facing_deg(joints @ turn.T) == pytest.approx(expected, abs=8)  # shoulders lean a little


def test_a_joint_is_hidden_by_a_surface_well_before_it_and_not_by_its_own_skin() -> None:
    depth = np.full((40, 40), np.inf, np.float32)
    depth[:, :20] = 1.0
    fragments = Fragments(face_idx=np.zeros((40, 40)), depth=depth, barycentric=np.zeros((40, 40, 3)))
    joints = np.tile((5.0, 5.0, 1.05), (17, 1))  # two samples per pixel: columns up to 10 are covered
    knee, wrist, nose, ankle = COCO17.indices(("left_knee", "left_wrist", "nose", "left_ankle"))
    joints[wrist, 2], joints[ankle] = 1.3, (15, 5, 1.3)
    joints[knee] = (-3, 5, 9.0)
    hidden = occluded(joints, fragments)
    assert hidden[wrist] and hidden[nose]
    assert not hidden[ankle] and not hidden[knee] and not hidden[COCO17.index("left_hip")]


def test_from_the_side_one_hip_hides_the_other() -> None:
    hips, found = COCO17.indices(("left_hip", "right_hip")), []
    for shot in maker().shots(25, 0):
        if abs(shot.facing_deg - 90) < 15:
            found.append(shot.occluded[list(hips)].sum())
    assert found and set(found) == {1}


def test_photos_stand_behind_but_never_the_people_in_them() -> None:
    photo = np.zeros((300, 400, 3), np.uint8)
    photo[..., 1] = 200
    photo[100:200, 100:200] = (255, 0, 0)
    box = np.array([[100.0, 100, 200, 200]])
    pictures = maker(backdrops=(Backdrop(image=photo, people_px=box),))
    rng = np.random.default_rng(0)
    behind = [pictures._backdrop(rng) for _ in range(60)]
    greens = [b for b in behind if (b[..., 1] == 200).all() and (b[..., 0] == 0).all()]
    assert len(greens) > 30  # the others are walls
    assert not any((b == (255, 0, 0)).all(-1).any() for b in behind)


def test_clothes_are_worn_alike_on_both_sides_and_differ_between_people() -> None:
    mirror = body().mirror
    assert mirror is not None
    colours = [dress(body(), np.random.default_rng(seed)) for seed in range(4)]
    for worn in colours:
        assert worn.shape == (body().num_vertices, 3) and worn.min() >= 0 and worn.max() <= 255
        assert (worn == worn[mirror]).all(-1).mean() > 0.97
        assert len(np.unique(worn.round(3), axis=0)) >= 6
    assert not np.array_equal(colours[0], colours[1])
