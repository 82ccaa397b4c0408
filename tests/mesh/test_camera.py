from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import least_squares

from mesh.camera import apply_weak_perspective, fit_weak_perspective, project


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
