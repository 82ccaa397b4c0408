from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mesh.body import Body, load_body
from mesh.joints import COCO19, HUMAN36M17
from mesh.rotation import axis_angle_to_matrix
from mesh.skinning import BodyModel, JointModel, forward_kinematics


@pytest.fixture(scope="module")
def body() -> Body:
    return load_body()


@pytest.fixture
def pose(generator: torch.Generator) -> torch.Tensor:
    return 0.5 * torch.randn(4, 24, 3, generator=generator)


@pytest.fixture
def shape(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(4, 10, generator=generator)


def test_vertices_and_joints_equal_those_of_the_smplx_package(body: Body, pose, shape) -> None:
    smplx = pytest.importorskip("smplx", reason="the smpl extra is not installed")
    from smplx.utils import Struct

    asset = Path(__file__).parents[2] / "mesh" / "assets" / "free_body.npz"
    reference = smplx.SMPL("", data_struct=Struct(**np.load(asset)), batch_size=4)
    expected = reference(betas=shape, body_pose=pose[:, 1:].flatten(1), global_orient=pose[:, 0])
    vertices, joints = BodyModel(body)(axis_angle_to_matrix(pose), shape)
    torch.testing.assert_close(vertices, expected.vertices, rtol=0, atol=1e-5)
    torch.testing.assert_close(joints, expected.joints[:, :24], rtol=0, atol=1e-5)


def literal_skinning(body: Body, rotations: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Loper et al. 2015, equations 2 to 9, one vertex after the other, in float64."""
    rest = body.template + body.shape_dirs.astype(float) @ shape
    joints = body.joint_regressor @ rest
    world = []
    for joint, parent in enumerate(body.parents):
        local = np.eye(4)
        local[:3, :3] = rotations[joint]
        local[:3, 3] = joints[joint] - (joints[parent] if parent >= 0 else 0)
        world.append(world[parent] @ local if parent >= 0 else local)
    carried = [w @ np.block([[np.eye(3), -j[:, None]], [np.zeros(3), 1]]) for w, j in zip(world, joints)]
    feature = (rotations[1:] - np.eye(3)).ravel()
    out = []
    for vertex in range(0, body.num_vertices, 97):
        point = np.append(rest[vertex] + body.pose_dirs[vertex] @ feature, 1)
        out.append((sum(w * m for w, m in zip(body.skinning[vertex], carried)) @ point)[:3])
    return np.array(out)


def test_vertices_equal_the_published_equations(body: Body, pose, shape) -> None:
    rotations = axis_angle_to_matrix(pose)
    vertices, _ = BodyModel(body)(rotations, shape)
    expected = literal_skinning(body, rotations[2].double().numpy(), shape[2].double().numpy())
    np.testing.assert_allclose(vertices[2, ::97].numpy(), expected, atol=2e-6)


def test_joints_without_vertices_equal_joints_regressed_from_vertices(body: Body, pose, shape) -> None:
    rotations = axis_angle_to_matrix(pose)
    vertices, _ = BodyModel(body)(rotations, shape)
    direct = JointModel(body, (COCO19, HUMAN36M17))(rotations, shape)
    for joints, found in zip((COCO19, HUMAN36M17), direct):
        torch.testing.assert_close(found, torch.from_numpy(body.regressor(joints)) @ vertices, rtol=0, atol=2e-6)


@pytest.mark.parametrize("count", [4, 40])
def test_vertices_may_be_relative_to_a_point_of_each_body(body: Body, generator, count: int) -> None:
    model, rotations = BodyModel(body), axis_angle_to_matrix(0.5 * torch.randn(count, 24, 3, generator=generator))
    posed = model.pose(rotations, torch.randn(count, 10, generator=generator))
    origin = torch.randn(count, 3, generator=generator)
    torch.testing.assert_close(
        model.vertices(posed, origin), model.vertices(posed) - origin[:, None], atol=2e-6, rtol=0
    )


def test_the_rest_pose_of_the_mean_shape_is_the_template(body: Body) -> None:
    vertices, _ = BodyModel(body)(torch.eye(3).expand(1, 24, 3, 3), torch.zeros(1, 10))
    np.testing.assert_allclose(vertices[0].numpy(), body.template, atol=1e-6)


def test_a_turned_elbow_moves_the_wrist_and_nothing_before_it() -> None:
    parents, rest = (-1, 0, 1), torch.tensor([[[0.0, 0, 0], [1, 0, 0], [2, 0, 0]]])
    bend = axis_angle_to_matrix(torch.tensor([[[0.0, 0, 0], [0, 0, torch.pi / 2], [0, 0, 0]]]))
    _, positions = forward_kinematics(bend, rest, parents)
    torch.testing.assert_close(positions, torch.tensor([[[0.0, 0, 0], [1, 0, 0], [1, 1, 0]]]), atol=1e-6, rtol=0)


def test_the_mirrored_pose_gives_the_mirrored_mesh(body: Body, pose) -> None:
    from data.synthesis import mirror_pose
    from mesh.rotation import axis_angle_to_quaternion, quaternion_to_matrix

    quaternions = axis_angle_to_quaternion(pose)
    model, shape = BodyModel(body), torch.zeros(4, 10)
    vertices, _ = model(quaternion_to_matrix(quaternions), shape)
    mirrored, _ = model(quaternion_to_matrix(mirror_pose(quaternions)), shape)
    assert body.mirror is not None
    torch.testing.assert_close(mirrored, vertices[:, body.mirror] * torch.tensor([-1.0, 1, 1]), atol=1e-5, rtol=0)


def test_the_batch_equals_a_loop_and_may_be_empty(body: Body, pose, shape) -> None:
    model, rotations = BodyModel(body), axis_angle_to_matrix(pose)
    together, _ = model(rotations, shape)
    alone = torch.cat([model(rotations[i : i + 1], shape[i : i + 1])[0] for i in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    assert model(rotations[:0], shape[:0])[0].shape == (0, 6890, 3)


def test_many_bodies_are_those_made_one_by_one_and_so_are_their_gradients(body: Body, generator) -> None:
    model, rotations = BodyModel(body), axis_angle_to_matrix(0.5 * torch.randn(150, 24, 3, generator=generator))
    rotations, shape = rotations.requires_grad_(), torch.randn(150, 10, generator=generator).requires_grad_()
    pull = torch.randn(150, body.num_vertices, 3, generator=generator)
    together, _ = model(rotations, shape)
    alone = torch.cat([model(rotations[i : i + 1], shape[i : i + 1])[0] for i in range(150)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    assert together.is_contiguous() and model(rotations[:2], shape[:2])[0].is_contiguous()
    for ours, expected in zip(*(torch.autograd.grad((v * pull).sum(), (rotations, shape)) for v in (together, alone))):
        torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-4)


def test_gradients_reach_pose_and_shape_also_at_rest(body: Body) -> None:
    pose = torch.zeros(1, 24, 3, requires_grad=True)
    shape = torch.zeros(1, 10, requires_grad=True)
    vertices, _ = BodyModel(body)(axis_angle_to_matrix(pose), shape)
    vertices.square().sum().backward()
    for gradient in (pose.grad, shape.grad):
        assert gradient is not None and torch.isfinite(gradient).all()
    assert (shape.grad.abs() > 0).all() and (pose.grad.abs().sum(-1) > 0).all()
