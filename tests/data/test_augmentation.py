from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from data.augmentation import camera_from_world, mirror_joints, mirror_keypoints, mirror_pose, turn_body
from data.prior import load_pose_prior
from mesh.body import Body, load_body
from mesh.camera import project
from mesh.joints import COCO19, HUMAN36M17
from mesh.rotation import axis_angle_to_matrix, quaternion_to_matrix, rotation_about
from mesh.samples import Batch
from mesh.skinning import BodyModel

PEOPLE = 6
MIDDLE = 480.0
CENTRE = torch.tensor([MIDDLE, 350.0]).expand(PEOPLE, 2)


@pytest.fixture(scope="module")
def body() -> Body:
    return load_body()


@pytest.fixture(scope="module")
def model(body: Body) -> BodyModel:
    return BodyModel(body)


@pytest.fixture
def pose() -> Tensor:
    return load_pose_prior().sample(PEOPLE, torch.Generator().manual_seed(3))


@pytest.fixture
def shape(generator: torch.Generator) -> Tensor:
    return torch.randn(PEOPLE, 10, generator=generator)


@pytest.fixture
def angles(generator: torch.Generator) -> Tensor:
    """Yaw, pitch and roll, (3, people) radians."""
    return torch.randn(3, PEOPLE, generator=generator) * torch.tensor([[2.0], [0.3], [0.4]])


def photograph(body: Body, model: BodyModel, pose: Tensor, shape: Tensor, angles: Tensor, place: Tensor) -> Batch:
    """People standing at `place` (3,) of the world, seen by a camera 4 m away that looks at the world's origin."""
    world = model(quaternion_to_matrix(pose), shape)[0] + place
    vertices = world @ camera_from_world(*angles).mT + torch.tensor([0.0, 0, 4])
    coco, human = (torch.from_numpy(body.regressor(joints)) @ vertices for joints in (COCO19, HUMAN36M17))
    pelvis = human[:, HUMAN36M17.root_idx, None]
    valid = torch.ones(PEOPLE, 19, dtype=torch.bool)
    return Batch(
        keypoints_px=project(coco, torch.full((PEOPLE,), 900.0), CENTRE),
        confidence=torch.linspace(0.5, 1, len(COCO19)).expand(PEOPLE, -1),
        joints_m=coco - coco[:, COCO19.root_idx, None],
        regressed_m=human - pelvis,
        vertices_m=vertices - pelvis,
        joints_valid=valid,
        regressed_valid=valid[:, :17],
        mesh_valid=valid[:, 0],
        ids=torch.arange(PEOPLE),
    )


def mirror_vertices(vertices: Tensor, mirror: Tensor) -> Tensor:
    """A mesh in the mirror x = 0, (..., V, 3) -> same; `mirror` (V,) as in `mesh.body.Body`."""
    return vertices[..., mirror, :] * vertices.new_tensor((-1.0, 1.0, 1.0))


def mirror_batch(batch: Batch, which: Tensor, middle_px: float, mirror: Tensor) -> Batch:
    """The people of a batch, some of them mirrored: `which` (B,) bool; `middle_px` is the x of the camera's centre."""

    def some(mirrored: Tensor, kept: Tensor) -> Tensor:
        return torch.where(which.view(-1, *[1] * (kept.ndim - 1)), mirrored, kept)

    order = list(COCO19.flip_permutation)
    return replace(
        batch,
        keypoints_px=some(mirror_keypoints(batch.keypoints_px, COCO19, middle_px), batch.keypoints_px),
        confidence=some(batch.confidence[:, order], batch.confidence),
        joints_m=some(mirror_joints(batch.joints_m, COCO19), batch.joints_m),
        regressed_m=some(mirror_joints(batch.regressed_m, HUMAN36M17), batch.regressed_m),
        vertices_m=some(mirror_vertices(batch.vertices_m, mirror), batch.vertices_m),
    )


def turn_keypoints(keypoints_px: Tensor, angle_rad: Tensor, centre_px: Tensor) -> Tensor:
    """2D joints in the picture turned about `centre_px`, clockwise as seen: (B, J, 2), (B,), (B, 2) -> (B, J, 2)."""
    turn = rotation_about("z", angle_rad)[:, :2, :2]
    return (keypoints_px - centre_px[:, None]) @ turn.mT + centre_px[:, None]


def turn_batch(batch: Batch, angle_rad: Tensor, centre_px: Tensor) -> Batch:
    """The people of a batch in pictures turned about the camera's centre: (B,) clockwise as seen, (B, 2)."""
    turn = rotation_about("z", angle_rad)
    return replace(
        batch,
        keypoints_px=turn_keypoints(batch.keypoints_px, angle_rad, centre_px),
        joints_m=batch.joints_m @ turn.mT,
        regressed_m=batch.regressed_m @ turn.mT,
        vertices_m=None if batch.vertices_m is None else batch.vertices_m @ turn.mT,
    )


def assert_same_people(found: Batch, expected: Batch, *, but: tuple[str, ...] = ()) -> None:
    for field in fields(Batch):
        if field.name not in but:
            tolerance = 1e-2 if field.name.endswith("_px") else 1e-5
            a, b = getattr(found, field.name), getattr(expected, field.name)
            torch.testing.assert_close(
                a, b, rtol=0, atol=tolerance, msg=lambda text, name=field.name: f"{name}: {text}"
            )


def test_a_mirrored_sample_is_the_mirrored_pose_seen_by_the_mirrored_camera(body, model, pose, shape, angles) -> None:
    place = torch.tensor([0.3, 0.1, -0.2])
    batch = photograph(body, model, pose, shape, angles, place)
    image = photograph(
        body,
        model,
        mirror_pose(pose),
        shape,
        angles * torch.tensor([[-1.0], [1], [-1]]),
        place * torch.tensor([-1.0, 1, 1]),
    )
    mirror = torch.from_numpy(body.mirror)
    mirrored = mirror_batch(batch, torch.ones(PEOPLE, dtype=torch.bool), MIDDLE, mirror)
    assert_same_people(mirrored, image, but=("confidence",))
    assert (mirrored.keypoints_px - batch.keypoints_px).abs().max() > 50


def test_mirrored_vertices_and_joints_change_sides_by_name(body, model, pose, shape, angles) -> None:
    batch = photograph(body, model, pose, shape, angles, torch.zeros(3))
    mirrored = mirror_batch(batch, torch.ones(PEOPLE, dtype=torch.bool), MIDDLE, torch.from_numpy(body.mirror))
    flip = torch.tensor([-1.0, 1, 1])
    assert torch.equal(mirrored.vertices_m, batch.vertices_m[:, body.mirror] * flip)
    for joints, after, before in (
        (COCO19, mirrored.joints_m, batch.joints_m),
        (HUMAN36M17, mirrored.regressed_m, batch.regressed_m),
    ):
        for name in joints.names:
            other = {"left": "right", "right": "left"}.get(side := name.partition("_")[0], side)
            index, source = joints.index(name), joints.index(name.replace(side, other, 1))
            assert torch.equal(after[:, index], before[:, source] * flip)
    left, right = COCO19.indices(("left_wrist", "right_wrist"))
    x, y = mirrored.keypoints_px[:, left].unbind(-1)
    torch.testing.assert_close(x, 2 * MIDDLE - batch.keypoints_px[:, right, 0])
    assert torch.equal(y, batch.keypoints_px[:, right, 1])
    assert torch.equal(mirrored.confidence[:, left], batch.confidence[:, right])


def test_only_the_chosen_people_are_mirrored_and_twice_is_not_at_all(body, model, pose, shape, angles) -> None:
    batch = photograph(body, model, pose, shape, angles, torch.zeros(3))
    mirror, which = torch.from_numpy(body.mirror), torch.arange(PEOPLE) % 2 == 0
    once = mirror_batch(batch, which, MIDDLE, mirror)
    for field in ("keypoints_px", "confidence", "joints_m", "regressed_m", "vertices_m"):
        same = (getattr(once, field) == getattr(batch, field)).flatten(1).all(1)
        assert torch.equal(same, ~which), field
    assert_same_people(mirror_batch(once, which, MIDDLE, mirror), batch)


def test_a_turned_picture_is_what_a_camera_turned_about_its_axis_takes(body, model, pose, shape, angles) -> None:
    place, turn = torch.tensor([0.3, 0.1, -0.2]), torch.linspace(-3, 3, PEOPLE)
    turned_camera = angles + torch.stack((torch.zeros(PEOPLE), torch.zeros(PEOPLE), turn))
    batch = photograph(body, model, pose, shape, angles, place)
    assert_same_people(turn_batch(batch, turn, CENTRE), photograph(body, model, pose, shape, turned_camera, place))


def test_a_quarter_turn_carries_the_right_edge_of_a_picture_to_its_bottom() -> None:
    quarter = torch.tensor([torch.pi / 2])
    points = turn_keypoints(torch.tensor([[[30.0, 20], [10, 20]]]), quarter, torch.tensor([[10.0, 20]]))
    torch.testing.assert_close(points, torch.tensor([[[10.0, 40], [10, 20]]]))


def test_a_turned_body_is_the_whole_mesh_turned_about_its_root(model, pose, shape, generator) -> None:
    turn = torch.randn(PEOPLE, 3, generator=generator)
    vertices, joints = model(quaternion_to_matrix(pose), shape)
    turned, turned_joints = model(quaternion_to_matrix(turn_body(pose, turn)), shape)
    torch.testing.assert_close(turned_joints[:, 0], joints[:, 0], atol=1e-6, rtol=0)
    expected = (vertices - joints[:, :1]) @ axis_angle_to_matrix(turn).mT + joints[:, :1]
    torch.testing.assert_close(turned, expected, atol=1e-5, rtol=0)


def test_a_camera_that_pitches_looks_down_and_one_that_rolls_turns_the_picture_clockwise() -> None:
    up = torch.tensor([0.0, 1, 0])
    level, down, rolled = (camera_from_world(*torch.tensor([[0.0], [pitch], [roll]]))[0] @ up
                           for pitch, roll in ((0, 0), (0.3, 0), (0, 0.3)))  # fmt: skip
    torch.testing.assert_close(level, torch.tensor([0.0, -1, 0]))
    assert down[2] < -0.2  # from above, the head is nearer
    assert rolled[0] > 0.2 and rolled[1] < -0.9
