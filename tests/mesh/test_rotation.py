"""Rotations against scipy as independent oracle, their conventions, and gradients where formulas divide by zero."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import Tensor

from mesh.rotation import (
    axis_angle_to_matrix,
    axis_angle_to_quaternion,
    matrix_to_rot6d,
    quaternion_multiply,
    quaternion_to_axis_angle,
    quaternion_to_matrix,
    rot6d_to_matrix,
    rotation_about,
)  # fmt: skip

SEEDS = given(seed=st.integers(0, 2**31))
FEW = settings(max_examples=25, deadline=None)


def axis_angles(seed: int, count: int = 64, max_angle_rad: float = 3.1) -> Tensor:
    """Random axes with angles from nearly zero to the largest."""
    rng = np.random.default_rng(seed)
    axes = rng.normal(size=(count, 3))
    angles = max_angle_rad * rng.uniform(0, 1, (count, 1)) ** rng.integers(1, 9)
    return torch.from_numpy(axes / np.linalg.norm(axes, axis=1, keepdims=True) * angles)


def assert_equal(actual: Tensor, expected: Tensor, *, atol: float = 1e-12, rtol: float = 0) -> None:
    """Equal up to rounding of float64, unless told otherwise."""
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol)


def wxyz(rotation: Rotation) -> Tensor:
    return torch.from_numpy(rotation.as_quat()[..., [3, 0, 1, 2]].copy())


@SEEDS
@FEW
def test_axis_angle_gives_the_matrix_that_scipy_gives(seed: int) -> None:
    axis_angle = axis_angles(seed, max_angle_rad=9.0)  # also more than a full turn
    expected = torch.from_numpy(Rotation.from_rotvec(axis_angle.numpy()).as_matrix())
    assert_equal(axis_angle_to_matrix(axis_angle), expected)


@SEEDS
@FEW
def test_a_quaternion_of_any_length_gives_the_matrix_that_scipy_gives(seed: int) -> None:
    quaternion = torch.from_numpy(np.random.default_rng(seed).normal(size=(64, 4)) * 3)
    expected = torch.from_numpy(Rotation.from_quat(quaternion.numpy()[:, [1, 2, 3, 0]]).as_matrix())
    assert_equal(quaternion_to_matrix(quaternion), expected)
    assert_equal(quaternion_to_matrix(-quaternion), expected)


@SEEDS
@FEW
def test_axis_angle_and_quaternion_go_there_and_back(seed: int) -> None:
    axis_angle = axis_angles(seed)
    back = quaternion_to_axis_angle(axis_angle_to_quaternion(axis_angle))
    assert_equal(back, axis_angle)


@SEEDS
@FEW
def test_a_quaternion_gives_the_shortest_axis_angle_that_scipy_gives(seed: int) -> None:
    quaternion = torch.from_numpy(np.random.default_rng(seed).normal(size=(64, 4)))
    expected = torch.from_numpy(Rotation.from_quat(quaternion.numpy()[:, [1, 2, 3, 0]]).as_rotvec())
    assert_equal(quaternion_to_axis_angle(quaternion), expected)
    assert quaternion_to_axis_angle(quaternion).norm(dim=-1).max() <= math.pi


@SEEDS
@FEW
def test_rot6d_and_matrix_go_there_and_back(seed: int) -> None:
    matrix = axis_angle_to_matrix(axis_angles(seed))
    assert_equal(rot6d_to_matrix(matrix_to_rot6d(matrix)), matrix)


@SEEDS
@FEW
def test_rot6d_of_any_numbers_gives_a_proper_rotation(seed: int) -> None:
    rot6d = torch.from_numpy(np.random.default_rng(seed).normal(size=(64, 6)) * 5)
    matrix = rot6d_to_matrix(rot6d)
    identity = torch.eye(3, dtype=torch.float64).expand(64, 3, 3)
    assert_equal(matrix.mT @ matrix, identity, atol=1e-9)
    assert_equal(torch.linalg.det(matrix), torch.ones(64, dtype=torch.float64), atol=1e-9)
    first = rot6d[:, :3] / rot6d[:, :3].norm(dim=1, keepdim=True)
    assert_equal(matrix[:, :, 0], first)  # the first column keeps its direction
    assert ((matrix[:, :, 1] * rot6d[:, 3:]).sum(-1) > 0).all()  # and the second its side


@SEEDS
@FEW
def test_a_product_of_quaternions_is_the_product_of_their_matrices(seed: int) -> None:
    a, b = (axis_angle_to_quaternion(axis_angles(seed + i)) for i in range(2))
    product = quaternion_to_matrix(quaternion_multiply(a, b))
    assert_equal(product, quaternion_to_matrix(a) @ quaternion_to_matrix(b))
    expected = Rotation.from_quat(a.numpy()[:, [1, 2, 3, 0]]) * Rotation.from_quat(b.numpy()[:, [1, 2, 3, 0]])
    assert_equal(product, quaternion_to_matrix(wxyz(expected)))


@SEEDS
@FEW
def test_a_quaternion_times_its_conjugate_is_no_rotation(seed: int) -> None:
    quaternion = axis_angle_to_quaternion(axis_angles(seed))
    conjugate = quaternion * torch.tensor([1.0, -1, -1, -1], dtype=torch.float64)
    identity = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64).expand(64, 4)
    assert_equal(quaternion_multiply(quaternion, conjugate), identity)


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_rotation_about_an_axis_is_the_one_of_scipy_and_keeps_leading_shape(axis: str) -> None:
    angles = torch.linspace(-7, 7, 12, dtype=torch.float64).reshape(3, 4)
    expected = Rotation.from_euler(axis, angles.numpy().reshape(-1, 1)).as_matrix().reshape(3, 4, 3, 3)
    assert_equal(rotation_about(axis, angles), torch.from_numpy(expected))


def test_convention_a_quarter_turn_about_z_takes_x_to_y() -> None:
    x, y = torch.eye(3, dtype=torch.float64)[:2]
    quarter = torch.tensor(math.pi / 2, dtype=torch.float64)
    half = math.sqrt(0.5)
    for matrix in (
        rotation_about("z", quarter),
        axis_angle_to_matrix(torch.tensor([0, 0, math.pi / 2], dtype=torch.float64)),
        quaternion_to_matrix(torch.tensor([half, 0, 0, half], dtype=torch.float64)),
        rot6d_to_matrix(torch.tensor([0, 1, 0, -1, 0, 0], dtype=torch.float64)),
    ):
        assert_equal(matrix @ x, y)


def test_convention_a_product_turns_by_the_second_factor_first() -> None:
    about_x, about_z = (axis_angle_to_quaternion(math.pi / 2 * torch.eye(3)[i].double()) for i in (0, 2))
    matrix = quaternion_to_matrix(quaternion_multiply(about_x, about_z))
    x, _, z = torch.eye(3, dtype=torch.float64)
    assert_equal(matrix @ x, z)  # about z: x to y, then about x: y to z


def test_convention_rot6d_holds_the_first_two_columns_one_after_the_other() -> None:
    matrix = torch.arange(9.0).reshape(3, 3)
    assert matrix_to_rot6d(matrix).tolist() == [0, 3, 6, 1, 4, 7]


def test_half_a_turn_comes_back_as_half_a_turn() -> None:
    for axis in torch.eye(3, dtype=torch.float64):
        back = quaternion_to_axis_angle(axis_angle_to_quaternion(math.pi * axis))
        assert_equal(axis_angle_to_matrix(back), axis_angle_to_matrix(math.pi * axis))
        assert_equal(back.norm(), torch.tensor(math.pi, dtype=torch.float64))


@pytest.mark.parametrize("angle_rad", [0.0, 1e-300, 1e-12, 0.99e-6, 1.01e-6, 1.99e-6, 2.01e-6, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_angles_lose_nothing(angle_rad: float, dtype: torch.dtype) -> None:
    axis_angle = angle_rad * torch.tensor([0.6, 0.0, -0.8], dtype=dtype)
    expected = Rotation.from_rotvec(axis_angle.double().numpy())
    rtol = 1e-6 if dtype == torch.float32 else 1e-12
    quaternion = axis_angle_to_quaternion(axis_angle)
    assert_equal(quaternion.double(), wxyz(expected), rtol=rtol, atol=0)
    assert_equal(quaternion_to_axis_angle(quaternion), axis_angle, rtol=rtol, atol=0)


def through_quaternion(axis_angle: Tensor) -> Tensor:
    return quaternion_to_axis_angle(axis_angle_to_quaternion(axis_angle))


@pytest.mark.parametrize("function", [axis_angle_to_matrix, axis_angle_to_quaternion, through_quaternion])
@pytest.mark.parametrize("angle_rad", [0.0, 5e-7, 2e-6, 1.0, math.pi - 1e-3])
def test_gradients_are_right_from_zero_to_half_a_turn(function: Callable[[Tensor], Tensor], angle_rad: float) -> None:
    axis_angle = (angle_rad * torch.tensor([[0.6, 0.0, -0.8]], dtype=torch.float64)).requires_grad_()
    analytic = torch.autograd.functional.jacobian(function, axis_angle)
    step = 1e-5
    for i in range(3):
        move = torch.zeros_like(axis_angle).index_fill_(1, torch.tensor(i), step)
        numeric = (function(axis_angle + move) - function(axis_angle - move)) / (2 * step)
        assert_equal(analytic[..., 0, i], numeric.detach(), atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_at_zero_and_at_exactly_half_a_turn(dtype: torch.dtype) -> None:
    axis_angle = torch.tensor([[0, 0, 0], [1e-30, 0, 0], [1, 2, 3]], dtype=dtype, requires_grad=True)
    through_quaternion(axis_angle).square().sum().backward()
    assert axis_angle.grad is not None and axis_angle.grad.isfinite().all()
    quaternion = torch.tensor([[1.0, 0, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0]], dtype=dtype, requires_grad=True)
    (quaternion_to_matrix(quaternion).sum() + quaternion_to_axis_angle(quaternion).sum()).backward()
    assert quaternion.grad is not None and quaternion.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 0, 3), (2, 3)])
def test_every_leading_shape_is_kept(shape: tuple[int, ...]) -> None:
    axis_angle = torch.ones(*shape, 3)
    quaternion = axis_angle_to_quaternion(axis_angle)
    assert quaternion.shape == (*shape, 4) and quaternion_multiply(quaternion, quaternion).shape == (*shape, 4)
    assert quaternion_to_axis_angle(quaternion).shape == (*shape, 3)
    matrix = quaternion_to_matrix(quaternion)
    assert matrix.shape == axis_angle_to_matrix(axis_angle).shape == (*shape, 3, 3)
    assert (
        matrix_to_rot6d(matrix).shape == (*shape, 6) and rot6d_to_matrix(matrix_to_rot6d(matrix)).shape == matrix.shape
    )
