from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from data.prior import load_pose_prior
from mesh.body import Body, load_body
from mesh.errors import InputError
from mesh.fitting import BodyFitter, FittedBody
from mesh.joints import SMPL24
from mesh.rotation import axis_angle_to_matrix, matrix_to_axis_angle, quaternion_to_matrix, rotation_about

# Turns along the forearm move little more than a few millimetres of skin.
FOREARMS = SMPL24.indices([f"{side}_{joint}" for side in ("left", "right") for joint in ("elbow", "wrist")])


@pytest.fixture(scope="module")
def body() -> Body:
    return load_body()


@pytest.fixture(scope="module")
def fitter(body: Body) -> BodyFitter:
    return BodyFitter(body)


@pytest.fixture
def rotations(generator: torch.Generator) -> Tensor:
    """Poses of the prior, facing anywhere."""
    local = quaternion_to_matrix(load_pose_prior().sample(6, generator))
    local[:, 0] = rotation_about("y", 2 * torch.pi * torch.rand(6, generator=generator)) @ local[:, 0]
    return local


@pytest.fixture
def shape(generator: torch.Generator) -> Tensor:
    return torch.randn(6, 10, generator=generator)


@pytest.fixture
def vertices(fitter: BodyFitter, rotations: Tensor, shape: Tensor) -> Tensor:
    return fitter.model(rotations, shape)[0] + torch.tensor([0.3, -2.0, 7.0])


def rebuilt(fitter: BodyFitter, fitted: FittedBody) -> Tensor:
    return fitter.model(fitted.rotations, fitted.shape)[0] + fitted.translation[:, None]


def degrees_apart(a: Tensor, b: Tensor) -> Tensor:
    return torch.rad2deg(matrix_to_axis_angle(a.transpose(-1, -2) @ b).norm(dim=-1))


def test_pose_shape_and_place_of_known_bodies_come_back(
    fitter: BodyFitter, vertices: Tensor, rotations: Tensor, shape: Tensor
) -> None:
    fitted = fitter(vertices)
    apart = (rebuilt(fitter, fitted) - vertices).norm(dim=-1).mean(1)
    assert apart.max() < 5e-4
    torch.testing.assert_close(fitted.distance, apart, rtol=0, atol=1e-5)
    torch.testing.assert_close(fitted.shape, shape, rtol=0, atol=0.4)
    torch.testing.assert_close(fitted.translation, torch.tensor([[0.3, -2.0, 7.0]]).expand(6, 3), rtol=0, atol=0.005)
    angles = degrees_apart(fitted.rotations, rotations)
    assert angles[:, FOREARMS].max() < 15
    angles[:, FOREARMS] = 0
    assert angles.max() < 3
    torch.testing.assert_close(axis_angle_to_matrix(fitted.pose), fitted.rotations, rtol=0, atol=1e-5)


def test_two_rounds_are_nearly_enough(fitter: BodyFitter, vertices: Tensor) -> None:
    assert fitter(vertices, rounds=2).distance.max() < 1e-3


def test_poses_that_nobody_can_take_come_back_to_the_millimetre(fitter: BodyFitter, generator: torch.Generator) -> None:
    rotations = axis_angle_to_matrix(0.9 * torch.randn(6, 24, 3, generator=generator))
    shape = (1.5 * torch.randn(6, 10, generator=generator)).clamp(-4.5, 4.5)
    vertices = fitter.model(rotations, shape)[0]
    assert fitter(vertices).distance.max() < 1e-3


def test_no_better_body_lies_near_the_one_found_for_a_bumpy_mesh(body: Body, vertices: Tensor) -> None:
    fitter = BodyFitter(body, shape_penalty_m=3e-3)
    mesh = vertices[:1] + 0.005 * torch.sin(30 * vertices[:1])
    fitted = fitter(mesh, rounds=12)
    unknown = [t.clone().requires_grad_() for t in (fitted.pose, fitted.shape, fitted.translation)]
    search = torch.optim.LBFGS(unknown, max_iter=25, line_search_fn="strong_wolfe")
    costs = []

    def cost() -> Tensor:
        search.zero_grad()
        found = fitter.model(axis_angle_to_matrix(unknown[0]), unknown[1])[0] + unknown[2][:, None]
        value = (found - mesh).square().sum(-1).mean() + fitter.shape_penalty * unknown[1].square().sum()
        costs.append(float(value.detach()))
        value.backward()
        return value

    cost()
    pull = 2 * fitter.shape_penalty * unknown[1].detach()
    assert unknown[1].grad is not None and unknown[1].grad.norm() < 0.1 * pull.norm()
    search.step(cost)
    assert costs[0] > 1e-5
    assert min(costs) > 0.99 * costs[0]


def test_another_frame_turns_the_root_and_nothing_else(fitter: BodyFitter, vertices: Tensor) -> None:
    turn = axis_angle_to_matrix(torch.tensor([2.0, -1.0, 0.5]))
    before, after = fitter(vertices), fitter(vertices @ turn.T + 1)
    torch.testing.assert_close(after.shape, before.shape, rtol=0, atol=0.01)
    assert degrees_apart(after.rotations[:, 1:], before.rotations[:, 1:]).max() < 0.5
    assert degrees_apart(after.rotations[:, 0], turn @ before.rotations[:, 0]).max() < 0.05


def test_meshes_that_are_no_bodies_are_fitted_badly_but_properly(
    fitter: BodyFitter, vertices: Tensor, generator: torch.Generator
) -> None:
    point, line = torch.ones(1, 6890, 3), torch.linspace(0, 1, 6890)[None, :, None] * torch.tensor([1.0, 0, 0])
    mirrored, inside_out = vertices[:1] * torch.tensor([-1.0, 1, 1]), -vertices[:1]
    noise, giant = torch.randn(1, 6890, 3, generator=generator), 30 * vertices[:1]
    fitted = fitter(torch.cat((point, line, mirrored, inside_out, noise, giant)))
    for name in ("rotations", "shape", "translation", "distance", "pose"):
        assert torch.isfinite(getattr(fitted, name)).all(), name
    assert fitted.shape.abs().max() <= 5 and fitted.distance.min() > 0.02
    torch.testing.assert_close(torch.linalg.det(fitted.rotations), torch.ones(6, 24), rtol=0, atol=1e-5)


def test_a_round_never_makes_a_fit_worse(fitter: BodyFitter, vertices: Tensor, generator: torch.Generator) -> None:
    meshes = torch.cat((torch.randn(1, 6890, 3, generator=generator), -vertices[:2], vertices[:1].roll(1, 1)))
    fits = [fitter(meshes, rounds=rounds) for rounds in range(7)]
    squared = [(rebuilt(fitter, f) - meshes).square().sum(-1).mean(1) for f in fits]
    costs = torch.stack([c + fitter.shape_penalty * f.shape.square().sum(1) for c, f in zip(squared, fits)])
    assert (costs.diff(dim=0) <= 1e-6 * costs[:-1]).all()


def test_a_stronger_shape_penalty_gives_a_more_ordinary_body(body: Body, fitter: BodyFitter, vertices: Tensor) -> None:
    bumpy = vertices + 0.01 * torch.sin(30 * vertices)
    strict = BodyFitter(body, shape_penalty_m=3e-3)(bumpy)
    free = fitter(bumpy)
    assert strict.shape.square().mean() < 0.7 * free.shape.square().mean()
    assert (strict.distance > free.distance).all()


def test_a_joint_that_moves_no_vertex_does_no_harm(body: Body, rotations: Tensor, shape: Tensor) -> None:
    hand, wrist = SMPL24.indices(("left_hand", "left_wrist"))
    skinning = body.skinning.copy()
    skinning[:, wrist] += skinning[:, hand]
    skinning[:, hand] = 0
    fitter = BodyFitter(dataclasses.replace(body, skinning=skinning))
    fitted = fitter(fitter.model(rotations, shape)[0])
    assert fitted.distance.max() < 1e-3 and torch.isfinite(fitted.pose).all()


def test_many_bodies_equal_one_after_the_other_and_none_is_fine(fitter: BodyFitter, vertices: Tensor) -> None:
    together = fitter(torch.cat((vertices, vertices.flip(0), vertices)))  # more than one block
    alone = torch.cat([fitter(vertices[i : i + 1]).shape for i in range(6)])
    torch.testing.assert_close(together.shape[-6:], alone, rtol=0, atol=2e-3)
    assert fitter(vertices[:0]).rotations.shape == (0, 24, 3, 3) and fitter(vertices[:0]).pose.shape == (0, 24, 3)


def test_what_cannot_be_fitted_is_refused(fitter: BodyFitter, vertices: Tensor) -> None:
    hole = vertices.clone()
    hole[4, 17, 1] = torch.nan
    for given, message in (
        (hole, "mesh 4 to be fitted holds NaN"),
        (vertices[0], r"shape \(B, 6890, 3\), got \(6890, 3\)"),
        (vertices[:, :6000], "got .6, 6000, 3."),
        (1000 * vertices, "in metres, got a body of 1"),
    ):
        with pytest.raises(InputError, match=message):
            fitter(given)


def test_axis_angles_equal_those_of_scipy_also_at_half_a_turn() -> None:
    vectors = np.random.default_rng(0).normal(size=(200, 3))
    vectors *= np.minimum(1, np.pi / np.linalg.norm(vectors, axis=1, keepdims=True))
    vectors[:7] = np.pi * np.array(
        [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0.8, 0], [0, 0, 0], [0, -1, 0], [1e-9, 0, 0]]
    )
    matrices = Rotation.from_rotvec(vectors).as_matrix()
    found = matrix_to_axis_angle(torch.from_numpy(matrices))
    np.testing.assert_allclose(Rotation.from_rotvec(found.numpy()).as_matrix(), matrices, atol=1e-9)
    assert found.norm(dim=-1).max() < np.pi + 1e-9
