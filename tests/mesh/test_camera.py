from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import least_squares

from mesh.camera import (
    TYPICAL_EXTENT,
    apply_weak_perspective,
    centred_view,
    diagonal_intrinsics,
    fit_weak_perspective,
    place_before_camera,
    project,
    project_all,
)
from mesh.rotation import rotation_about


def test_projection_puts_right_to_the_right_and_down_below() -> None:
    points = torch.tensor([[[1.0, 0, 4], [0, 1, 4], [0, 0, 4]]])
    pixels = project(points, torch.tensor([800.0]), torch.tensor([[320.0, 240.0]]))
    torch.testing.assert_close(pixels, torch.tensor([[[520.0, 240], [320, 440], [320, 240]]]))


def test_the_fit_recovers_a_known_camera_and_ignores_joints_without_weight(generator: torch.Generator) -> None:
    points = torch.randn(5, 19, 3, generator=generator)
    camera = torch.tensor([[150.0, 300, 200]]).expand(5, 3)
    pixels = apply_weak_perspective(points, camera)[..., :2]
    weight = torch.rand(5, 19, generator=generator)
    weight[:, 3], pixels[:, 3] = 0, 1e4
    torch.testing.assert_close(fit_weak_perspective(points, pixels, weight), camera, rtol=1e-4, atol=1e-2)


def test_the_fit_is_the_least_squares_optimum(generator: torch.Generator) -> None:
    points = torch.randn(1, 12, 3, generator=generator, dtype=torch.float64)
    pixels = 100 * points[..., :2] + 20 * torch.randn(1, 12, 2, generator=generator, dtype=torch.float64)
    weight = torch.rand(1, 12, generator=generator, dtype=torch.float64)

    def residuals(camera: np.ndarray) -> np.ndarray:
        placed = camera[0] * points[0, :, :2].numpy() + camera[1:]
        return (weight[0].sqrt().numpy()[:, None] * (placed - pixels[0].numpy())).ravel()

    best = least_squares(residuals, [1.0, 0, 0]).x
    np.testing.assert_allclose(fit_weak_perspective(points, pixels, weight)[0].numpy(), best, rtol=1e-6)


def test_an_undetermined_camera_has_scale_zero() -> None:
    points, pixels = torch.randn(3, 4, 3), torch.randn(3, 4, 2)
    weight = torch.zeros(3, 4)
    weight[1, 2] = 1.0
    camera = fit_weak_perspective(points, pixels, weight)
    assert torch.isfinite(camera).all() and (camera[:, 0] == 0).all()


def test_a_picture_upside_down_does_not_get_a_negative_scale(generator: torch.Generator) -> None:
    points = torch.randn(2, 9, 3, generator=generator)
    camera = fit_weak_perspective(points, -100 * points[..., :2], torch.ones(2, 9))
    assert (camera[:, 0] == 0).all()


def test_depth_has_the_unit_of_the_picture() -> None:
    placed = apply_weak_perspective(torch.tensor([[[0.0, 0, 0.5]]]), torch.tensor([[100.0, 7, 9]]))
    torch.testing.assert_close(placed, torch.tensor([[[7.0, 9, 50]]]))


def standing(generator: torch.Generator, count: int = 5) -> torch.Tensor:
    """People all over the picture: (B, 19, 3) metres, camera frame."""
    place = torch.tensor([2.0, 1.0, 1.0]) * (2 * torch.rand(count, 1, 3, generator=generator) - 1)
    return place + torch.tensor([0.0, 0.0, 4.0]) + 0.3 * torch.randn(count, 19, 3, generator=generator)


INTRINSICS = torch.tensor([[1400.0, 1300, 640, 360]])


def pictured(points: torch.Tensor, intrinsics: torch.Tensor = INTRINSICS) -> torch.Tensor:
    return points[..., :2] / points[..., 2:] * intrinsics[:, None, :2] + intrinsics[:, None, 2:]


def test_the_centred_view_is_what_the_turned_camera_sees(generator: torch.Generator) -> None:
    points, confidence = standing(generator), torch.rand(5, 19, generator=generator) + 0.1
    view, turn = centred_view(pictured(points), confidence, INTRINSICS.expand(5, 4))
    torch.testing.assert_close(turn @ turn.transpose(1, 2), torch.eye(3).expand(5, 3, 3), atol=1e-6, rtol=0)
    assert (torch.linalg.det(turn) > 0.99).all()
    seen = points @ turn  # the same points in the turned camera's frame
    torch.testing.assert_close(view, seen[..., :2] / seen[..., 2:], atol=1e-5, rtol=0)
    middle = (points[..., :2] / points[..., 2:]).mean(1)
    axis = torch.nn.functional.normalize(torch.cat((middle, torch.ones(5, 1)), dim=1), dim=1)
    torch.testing.assert_close(turn[:, :, 2], axis, atol=1e-6, rtol=0)
    smallest = torch.arccos(axis[:, 2])  # no turn about the axis on the way
    angle = torch.arccos((turn.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2)
    torch.testing.assert_close(angle, smallest, atol=1e-3, rtol=0)


def test_whoever_goes_around_the_camera_is_seen_alike(generator: torch.Generator) -> None:
    points, confidence = 0.3 * torch.randn(1, 19, 3, generator=generator) + torch.tensor([0.0, 0, 4]), torch.ones(2, 19)
    points = points - torch.tensor([[0.0, 1, 0]]) * (points[..., 1:2] / points[..., 2:]).mean() * points[..., 2:]
    around = rotation_about("y", torch.tensor([0.4]))
    both = torch.cat((points, points @ around.transpose(1, 2)))
    views, turns = centred_view(pictured(both), confidence, INTRINSICS.expand(2, 4))
    assert (views[0] - views[1]).abs().max() < 0.01  # the axis goes through the mean in the picture, not in 3D
    assert (turns[0] - turns[1]).abs().max() > 0.3


def test_joints_without_confidence_are_left_out_of_the_view(generator: torch.Generator) -> None:
    keypoints, confidence = pictured(standing(generator)), torch.ones(5, 19)
    confidence[:, 4] = 0
    elsewhere = keypoints.clone()
    elsewhere[:, 4] = 1e6
    for intrinsics in (INTRINSICS.expand(5, 4), torch.zeros(5, 4)):
        one, other = (centred_view(k, confidence, intrinsics) for k in (keypoints, elsewhere))
        torch.testing.assert_close(one, other)
        assert (one[0][:, 4] == 0).all()


def test_of_an_unknown_camera_the_person_stands_in_the_middle(generator: torch.Generator) -> None:
    keypoints, confidence = pictured(standing(generator)), torch.ones(5, 19)
    view, turn = centred_view(keypoints, confidence, torch.zeros(5, 4))
    moved, _ = centred_view(3 * keypoints + 700, confidence, torch.zeros(5, 4))
    torch.testing.assert_close(moved, view, atol=1e-5, rtol=0)
    torch.testing.assert_close(turn, torch.eye(3).expand(5, 3, 3))
    torch.testing.assert_close(view.square().sum(-1).mean(1).sqrt(), torch.full((5,), TYPICAL_EXTENT))
    nowhere, _ = centred_view(torch.full((1, 19, 2), 7.0), torch.ones(1, 19), torch.zeros(1, 4))
    assert (nowhere == 0).all()


def test_what_lies_beside_the_camera_stays_finite() -> None:
    keypoints = torch.tensor([[[-1e7, 0.0], [1e7, 0.0], [640.0, 360.0]]])
    view, turn = centred_view(keypoints, torch.ones(1, 3), INTRINSICS)
    assert view.isfinite().all() and turn.isfinite().all()


def test_the_assumed_focal_length_is_the_diagonal() -> None:
    assert diagonal_intrinsics((800, 600)) == (1000.0, 1000.0, 400.0, 300.0)


def test_a_person_is_placed_where_the_camera_saw_them(generator: torch.Generator) -> None:
    points, weight = standing(generator), torch.rand(5, 19, generator=generator) + 0.1
    pixels = pictured(points)
    weight[:, 7], pixels[:, 7] = 0, -1e5
    root = points[:, :1]
    place = place_before_camera(points - root, pixels, weight, INTRINSICS.expand(5, 4))
    torch.testing.assert_close(place, root[:, 0], atol=2e-4, rtol=0)


def test_the_place_is_where_distances_in_the_picture_are_least(generator: torch.Generator) -> None:
    points = 0.3 * torch.randn(1, 12, 3, generator=generator, dtype=torch.float64)
    pixels = pictured(points + torch.tensor([0.5, -0.2, 3.0]))
    pixels = pixels + 8 * torch.randn(pixels.shape, generator=generator, dtype=torch.float64)
    weight = torch.rand(1, 12, generator=generator, dtype=torch.float64)

    def residuals(place: np.ndarray) -> np.ndarray:
        placed = project_all(points + torch.from_numpy(place), INTRINSICS.double())
        return (weight[0].sqrt()[:, None] * (placed - pixels)[0] / INTRINSICS[0, :2]).numpy().ravel()

    best = least_squares(residuals, [0.0, 0, 4.0]).x
    found = place_before_camera(points, pixels, weight, INTRINSICS.double())[0].numpy()
    np.testing.assert_allclose(found, best, atol=0.01)
    cost = [np.square(residuals(place)).sum() for place in (found, best)]
    assert cost[0] < 1.01 * cost[1]


def test_there_is_no_place_without_a_camera_or_enough_joints(generator: torch.Generator) -> None:
    points = standing(generator)
    pixels, relative = pictured(points), points - points[:, :1]
    weight, intrinsics = torch.ones(5, 19), INTRINSICS.repeat(5, 1)
    intrinsics[0, :2] = 0
    weight[1, 1:] = 0
    pixels[2], relative[2] = 300.0, 0.0
    pixels[3] = 2 * INTRINSICS[:, 2:] - pixels[3]  # upside down: only from behind the camera could it look so
    place = place_before_camera(relative, pixels, weight, intrinsics)
    assert place[:4].isnan().all() and place[4].isfinite().all()
