"""Cameras whose points are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mesh.multiview import ViewCamera, refine_cameras, reprojection_error_px, triangulate


def camera(
    name: str, yaw_deg: float, *, distance_m: float = 4.0, distortion: tuple[float, ...] = (0,) * 5
) -> ViewCamera:
    """Looks at the origin from around it, a little from above."""
    rotation = Rotation.from_euler("yx", [yaw_deg, 20], degrees=True).inv().as_matrix()
    return ViewCamera(
        name=name,
        matrix=np.array([[1500.0, 0, 540], [0, 1520, 960], [0, 0, 1]]),
        distortion=np.array(distortion, float),
        rotation=rotation,
        translation_m=np.array([0.1, -0.05, distance_m]),
        size_px=(1080, 1920),
    )


LENS = (-0.05, 0.13, 0.0006, -0.0007, 0.01)
CAMERAS = [camera(str(yaw), yaw, distortion=LENS) for yaw in (0, 80, 170, 260)]


@pytest.fixture
def points() -> np.ndarray:
    return np.random.default_rng(3).uniform((-0.5, -0.9, -0.5), (0.5, 0.9, 0.5), (40, 3))


def seen(cameras: list[ViewCamera], points_m: np.ndarray) -> np.ndarray:
    return np.stack([each.rays(each.project(points_m)) for each in cameras])


def test_a_lens_is_undone_to_a_thousandth_of_a_pixel(points) -> None:
    for each in CAMERAS:
        in_front = each.to_camera(points)
        np.testing.assert_allclose(each.rays(each.project(points)), in_front[:, :2] / in_front[:, 2:], atol=1e-6)


def test_brown_s_model_by_its_formula() -> None:
    lens = replace(camera("a", 0, distortion=LENS), rotation=np.eye(3), translation_m=np.zeros(3))
    x, y = 0.3, -0.2
    k1, k2, p1, p2, k3 = LENS
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    u = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    v = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    np.testing.assert_allclose(lens.project(np.array([2 * x, 2 * y, 2.0])), [1500 * u + 540, 1520 * v + 960])


def test_points_are_found_where_they_are(points) -> None:
    rays = seen(CAMERAS, points)
    found = triangulate(CAMERAS, rays, np.ones((4, 40)), 10.0)
    np.testing.assert_allclose(found, points, atol=1e-6)
    assert reprojection_error_px(CAMERAS, rays, found).max() < 1e-2


def test_a_view_that_is_wrong_hardly_moves_a_point_that_three_agree_on(points) -> None:
    rays = seen(CAMERAS, points)
    rays[2, ::2] += 0.1
    found = triangulate(CAMERAS, rays, np.ones((4, 40)), 10.0)
    assert np.linalg.norm(found - points, axis=1).max() < 0.005
    error = reprojection_error_px(CAMERAS, rays, found)
    assert error[2, ::2].min() > 100 and np.delete(error, 2, 0).max() < 3


def test_errors_count_in_pixels_whatever_the_distance() -> None:
    """Four views with 3 px of noise, two of them far away: the best fit in pixels, found by brute force."""
    near_and_far = [
        camera(str(k), yaw, distance_m=d) for k, (yaw, d) in enumerate(((0, 1.5), (80, 2), (170, 9), (260, 9)))
    ]
    rng = np.random.default_rng(2)
    points = rng.uniform(-0.3, 0.3, (12, 3))
    rays = np.stack([c.rays(c.project(points) + rng.normal(0, 3, (12, 2))) for c in near_and_far])
    found = triangulate(near_and_far, rays, np.ones((4, 12)), 1e6)
    best = reprojection_error_px(near_and_far, rays, found) ** 2
    for axis in range(3):
        for step in (-0.001, 0.001):
            moved = found + step * np.eye(3)[axis]
            assert (reprojection_error_px(near_and_far, rays, moved) ** 2).sum() > best.sum()


def test_a_view_that_is_off_by_the_spread_counts_half() -> None:
    views = [camera(str(k), yaw) for k, yaw in enumerate((0, 0, 0))]
    rays = seen(views, np.zeros((1, 3)))
    rays[2, 0, 0] += 30 / 1510  # px over focal length
    weight = np.array([[1.0], [1], [1]])
    # All three stand in one place, so only x and y are known; Cauchy's estimate solves sum x_i w_i = 0.
    side = camera("side", 90)
    views.append(side)
    rays, weight = np.concatenate((rays, seen([side], np.zeros((1, 3))))), np.concatenate((weight, [[1.0]]))
    found = triangulate(views, rays, weight, 20.0)
    errors = reprojection_error_px(views, rays, found)[:3, 0]
    signed = np.array([-errors[0], -errors[1], errors[2]])
    assert abs((signed / (1 + (signed / 20) ** 2)).sum()) < 0.3
    assert errors[2] > 20


def test_a_lens_that_cannot_be_undone_gives_no_ray_and_no_crash(points) -> None:
    wild = [replace(each, distortion=np.array([-0.35, 0.15, 0, 0, -0.03]) * 4) for each in CAMERAS]
    rays = wild[0].rays(np.array([[0.0, 0], [540, 960]]))
    assert np.isnan(rays[0]).all()
    np.testing.assert_allclose(rays[1], 0, atol=1e-9)
    given = seen(CAMERAS, points)
    given[0, 3] = np.nan
    found = triangulate(CAMERAS, given, np.ones((4, 40)), 10.0)
    np.testing.assert_allclose(found, points, atol=1e-6)


def test_a_point_that_one_view_sees_is_not_known(points) -> None:
    weight = np.ones((4, 40))
    weight[1:, 7] = 0
    weight[:, 9] = 0
    found = triangulate(CAMERAS, seen(CAMERAS, points), weight, 10.0)
    assert np.isnan(found[[7, 9]]).all()
    assert not np.isnan(np.delete(found, (7, 9), axis=0)).any()


def test_cameras_that_were_pushed_agree_again(points) -> None:
    rays = seen(CAMERAS, points)
    rng = np.random.default_rng(0)
    pushed = [
        replace(
            each,
            rotation=Rotation.from_rotvec(rng.normal(0, 0.03, 3)).as_matrix() @ each.rotation,
            translation_m=each.translation_m + rng.normal(0, 0.05, 3),
        )
        for each in CAMERAS
    ]
    before = triangulate(pushed, rays, np.ones((4, 40)), 10.0)
    assert np.median(reprojection_error_px(pushed, rays, before)) > 3
    refined = refine_cameras(pushed, rays, np.ones((4, 40)))
    after = triangulate(refined, rays, np.ones((4, 40)), 10.0)
    assert np.median(reprojection_error_px(refined, rays, after)) < 1
    shape = [np.linalg.norm(p[:, None] - p, axis=-1) for p in (after, points)]
    np.testing.assert_allclose(shape[0], shape[1], atol=0.02)  # the shape is right, and its size nearly
    assert all(abs(np.linalg.det(each.rotation) - 1) < 1e-9 for each in refined)


def test_refinement_uses_what_two_views_see_and_ignores_the_rest(points) -> None:
    rays, weight = seen(CAMERAS, points), np.ones((4, 40))
    weight[:3, :10] = 0
    rays[:, :10] = 5.0  # nonsense that nobody else confirms
    refined = refine_cameras(CAMERAS, rays, weight)
    for each, same in zip(refined, CAMERAS):
        np.testing.assert_allclose(each.rotation, same.rotation, atol=1e-4)
