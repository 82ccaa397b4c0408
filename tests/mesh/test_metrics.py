from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from mesh.alignment import align, nearest_rotation, similarity_transform
from mesh.metrics import (
    acceleration_error_mm,
    aligned_distances_mm,
    aligned_error_mm,
    bootstrap_interval,
    facing_error_rad,
    point_distances_mm,
    point_error_mm,
)


def random_points(seed: int) -> torch.Tensor:
    return torch.randn(3, 14, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_alignment_undoes_any_similarity_transform(seed: int) -> None:
    points = random_points(seed)
    rng = np.random.default_rng(seed)
    rotation = torch.from_numpy(Rotation.random(random_state=seed).as_matrix())
    scale, shift = rng.uniform(0.2, 5), torch.from_numpy(rng.normal(size=3))
    moved = scale * points @ rotation.T + shift
    found_scale, found_rotation, found_shift = similarity_transform(points, moved)
    torch.testing.assert_close(found_scale, torch.full((3,), scale, dtype=torch.float64))
    torch.testing.assert_close(found_rotation, rotation.expand(3, 3, 3))
    torch.testing.assert_close(found_shift, shift.expand(3, 3))
    assert aligned_error_mm(points, moved).max() < 1e-6


def test_alignment_equals_a_search_over_scale_and_rotation(generator: torch.Generator) -> None:
    from scipy.optimize import minimize

    source, target = random_points(1)[:1], random_points(2)[:1]

    def error(x: np.ndarray) -> float:
        moved = x[0] * source[0].numpy() @ Rotation.from_rotvec(x[1:4]).as_matrix().T + x[4:]
        return float(((moved - target[0].numpy()) ** 2).sum())

    starts = [np.r_[0.5, Rotation.random(random_state=i).as_rotvec(), 0, 0, 0] for i in range(8)]
    best = min(minimize(error, start).fun for start in starts)
    assert (align(source, target) - target).square().sum().item() == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("error", [point_distances_mm, point_error_mm, aligned_distances_mm, aligned_error_mm])
@pytest.mark.parametrize("shapes", [((5, 14, 3), (5, 14, 2)), ((5, 14, 2),) * 2, ((1, 14, 3), (5, 14, 3))])
def test_points_that_do_not_correspond_are_refused(error, shapes) -> None:
    with pytest.raises(ValueError, match="expected points"):
        error(*map(torch.zeros, shapes))


@pytest.mark.parametrize("error", [point_error_mm, aligned_error_mm])
def test_errors_have_the_better_precision_of_both_sides_and_gradients(error) -> None:
    target = random_points(4)
    points = (target + 0.01 * random_points(5)).half().requires_grad_()
    for precision in (torch.float16, torch.float32, torch.float64):
        expected = error(points.double(), target.to(precision).double())
        torch.testing.assert_close(error(points, target.to(precision)), expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(error(points, target), error(points.double(), target), rtol=1e-9, atol=0)
    error(points, target).sum().backward()
    assert points.grad.isfinite().all() and points.grad.any()


def test_a_mirror_image_is_not_aligned_away() -> None:
    points = random_points(0)
    assert aligned_error_mm(points * torch.tensor([-1.0, 1, 1]), points).min() > 100


def test_alignment_keeps_the_scale_in_the_translation() -> None:
    # An early version of the published code forgot it: t = mean(target) - R mean(source).
    source = random_points(3) + torch.tensor([5.0, 0, 0])
    assert aligned_error_mm(source, 3 * source + 1).max() < 1e-6


def test_a_known_offset_gives_that_error_per_sample() -> None:
    points = random_points(4).float()
    moved = points + torch.tensor([[[0.0, 0, 0]], [[0.003, 0.004, 0]], [[0, 0, 0.1]]])
    torch.testing.assert_close(
        point_error_mm(moved, points), torch.tensor([0.0, 5, 100]).double(), rtol=1e-4, atol=1e-3
    )


def test_a_source_without_extent_gives_a_finite_error() -> None:
    assert torch.isfinite(aligned_error_mm(torch.zeros(1, 14, 3), random_points(5)[:1].float())).all()


@pytest.mark.parametrize("degrees", [0, 30, 90, 170])
def test_facing_error_is_the_turn_about_the_vertical(degrees: float) -> None:
    body = torch.tensor([[[0.1, 0, 0], [-0.1, 0, 0], [0, 0.5, 0], [0.0, 0, 0]]])
    turn = torch.from_numpy(Rotation.from_euler("y", degrees, degrees=True).as_matrix()).float()
    assert facing_error_rad(body, body @ turn.T, 0, 1, 2, 3).rad2deg().item() == pytest.approx(degrees, abs=0.1)


def by_svd(matrix: np.ndarray) -> np.ndarray:
    """The best rotation of each matrix, by LAPACK."""
    u, _, vt = np.linalg.svd(matrix)
    sign = np.ones((len(matrix), 3))
    sign[:, 2] = np.sign(np.linalg.det(u @ vt))
    return (u * sign[:, None]) @ vt


def test_the_nearest_rotation_is_that_of_the_singular_value_decomposition() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(500, 3, 3)) * 10.0 ** rng.uniform(-8, 8, (500, 1, 1))
    assert (np.linalg.det(matrix) < 0).sum() > 100
    np.testing.assert_allclose(nearest_rotation(torch.from_numpy(matrix)), by_svd(matrix), atol=1e-9)


@pytest.mark.parametrize(
    "matrix",
    [
        np.zeros((3, 3)), np.eye(3), -np.eye(3), np.diag([1.0, 0, 0]), np.diag([0.0, 0, -1]), np.diag([1.0, 1, -1]),
        np.diag([2.0, 1, 0]), np.ones((3, 3)), np.outer([1.0, 2, 3], [0.1, 0, -2]), np.diag([1, 1e-9, 1e-9]),
        np.outer([1.0, 2, 3], [4.0, 5, 6]) + 1e-13 * np.eye(3),
    ],
)  # fmt: skip
def test_a_rotation_is_best_also_where_it_is_not_the_only_one(matrix: np.ndarray) -> None:
    found = nearest_rotation(torch.from_numpy(matrix)[None])[0].numpy()
    np.testing.assert_allclose(found @ found.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(found) == pytest.approx(1)
    best = np.trace(by_svd(matrix[None])[0].T @ matrix)
    assert np.trace(found.T @ matrix) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("flattened", [(1, 1, 0), (1, 0, 0), (0, 0, 0)])
def test_points_in_a_plane_a_line_or_one_place_are_aligned(flattened: tuple[int, ...]) -> None:
    flat = random_points(7) * torch.tensor(flattened, dtype=torch.float64)
    turn = torch.from_numpy(Rotation.random(random_state=1).as_matrix())
    assert aligned_error_mm(flat, 2 * flat @ turn.T + 1).max() < 1e-6
    assert torch.isfinite(aligned_error_mm(flat, random_points(8))).all()
    assert torch.isfinite(aligned_error_mm(random_points(8), flat)).all()


def test_alignment_leaves_its_inputs_alone() -> None:
    source, target = random_points(9), random_points(10)
    copies = source.clone(), target.clone()
    aligned_error_mm(source, target)
    assert torch.equal(source, copies[0]) and torch.equal(target, copies[1])


def test_many_points_get_the_same_errors_as_sample_by_sample() -> None:
    points = torch.randn(5, 30000, 3, generator=torch.Generator().manual_seed(0))  # more than one block
    moved = points + 0.1 * torch.randn(5, 30000, 3, generator=torch.Generator().manual_seed(1))
    for error in (point_error_mm, aligned_error_mm):
        alone = torch.cat([error(moved[i : i + 1], points[i : i + 1]) for i in range(5)])
        torch.testing.assert_close(error(moved, points), alone, rtol=1e-12, atol=0)


def test_a_constant_acceleration_error_is_found_exactly() -> None:
    frames = np.arange(10)
    true = torch.zeros(10, 3, 3, dtype=torch.float64)
    fall = 0.5 * 0.002 * torch.from_numpy(frames.astype(float)) ** 2  # 2 mm per frame^2
    wrong = true + torch.stack((fall, 0 * fall, 7 + 3 * fall), dim=1)[:, None]
    found = acceleration_error_mm(wrong, true, frames)
    assert found.shape == (8,) and found.numpy() == pytest.approx(2 * np.sqrt(10))
    assert acceleration_error_mm(wrong, wrong, frames).max() == 0


def test_acceleration_is_not_taken_over_missing_frames() -> None:
    frames = np.array([0, 1, 2, 3, 7, 8, 9])
    jump = torch.zeros(7, 2, 3)
    jump[4:] = 1.0
    found = acceleration_error_mm(jump, torch.zeros(7, 2, 3), frames)
    assert found.tolist() == [0, 0, 0]  # frames 1, 2 and 8
    assert len(acceleration_error_mm(jump[:2], jump[:2], frames[:2])) == 0


def test_the_bootstrap_interval_is_that_of_the_normal_theory() -> None:
    values = np.random.default_rng(0).normal(50, 10, 4000)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / np.sqrt(4000)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.06)
    assert bootstrap_interval(values) == (low, high) != bootstrap_interval(values, seed=1)


def test_frames_of_one_sequence_do_not_count_as_independent() -> None:
    rng = np.random.default_rng(1)
    sequences = np.repeat(np.arange(40), 100)
    values = rng.normal(50, 10, 40)[sequences] + rng.normal(0, 1, 4000)
    narrow, wide = (np.diff(bootstrap_interval(values, groups))[0] for groups in (None, sequences))
    assert wide > 5 * narrow
    assert wide == pytest.approx(2 * 1.96 * values.std() / np.sqrt(40), rel=0.15)


def test_groups_of_different_size_weigh_by_their_samples() -> None:
    sizes = np.repeat([90, 10], 20)  # twenty large groups of zeros, twenty small ones of ones
    values, groups = np.repeat(sizes == 10, sizes).astype(float), np.repeat(np.arange(40), sizes)
    low, high = bootstrap_interval(values, groups)
    assert low < 0.1 < high < 0.25
    assert np.isnan(bootstrap_interval(np.zeros(0))).all()
