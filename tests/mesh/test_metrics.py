from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from mesh.alignment import align, similarity_transform
from mesh.metrics import aligned_error_mm, facing_error_rad, point_error_mm


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
    torch.testing.assert_close(point_error_mm(moved, points), torch.tensor([0.0, 5, 100]), rtol=1e-4, atol=1e-3)


def test_a_source_without_extent_gives_a_finite_error() -> None:
    assert torch.isfinite(aligned_error_mm(torch.zeros(1, 14, 3), random_points(5)[:1].float())).all()


@pytest.mark.parametrize("degrees", [0, 30, 90, 170])
def test_facing_error_is_the_turn_about_the_vertical(degrees: float) -> None:
    body = torch.tensor([[[0.1, 0, 0], [-0.1, 0, 0], [0, 0.5, 0], [0.0, 0, 0]]])
    turn = torch.from_numpy(Rotation.from_euler("y", degrees, degrees=True).as_matrix()).float()
    assert facing_error_rad(body, body @ turn.T, 0, 1, 2, 3).rad2deg().item() == pytest.approx(degrees, abs=0.1)
