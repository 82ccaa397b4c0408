from __future__ import annotations

import numpy as np
import pytest
import torch

from gcn.losses import SurfaceLoss, masked_mean, point_l1

FACES = np.array([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2], [3, 2, 4]])  # a tetrahedron with a flap: an open edge
ALL = torch.ones(3, dtype=torch.bool)


@pytest.fixture
def meshes(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    target = torch.randn(3, 5, 3, generator=generator)
    return target + 0.2 * torch.randn(3, 5, 3, generator=generator), target


def literal_surface(pred: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """Face by face and edge by edge, as the paper writes it (equations 4 and 5)."""
    cosines, lengths = [], []
    for face in FACES:
        a, b, c = target[face]
        normal = np.cross(b - a, c - a)
        normal /= np.linalg.norm(normal)
        for i, j in ((0, 1), (1, 2), (2, 0)):
            edge, true = pred[face[j]] - pred[face[i]], target[face[j]] - target[face[i]]
            cosines.append(abs(edge @ normal) / np.linalg.norm(edge))
            lengths.append(abs(np.linalg.norm(edge) - np.linalg.norm(true)))
    return float(np.mean(cosines)), float(np.mean(lengths))


def test_surface_terms_equal_the_literal_sums(meshes) -> None:
    pred, target = meshes
    normal, edge = SurfaceLoss(FACES)(pred, target, ALL)
    expected = np.mean([literal_surface(p.numpy(), t.numpy()) for p, t in zip(*meshes)], axis=0)
    assert normal.item() == pytest.approx(expected[0], rel=1e-5) and edge.item() == pytest.approx(expected[1], rel=1e-5)


def test_point_error_equals_the_literal_sum(meshes) -> None:
    pred, target = meshes
    expected = np.mean([abs(p - t) for p, t in zip(pred.flatten().tolist(), target.flatten().tolist())])
    assert point_l1(pred, target, ALL).item() == pytest.approx(expected, rel=1e-5)


def test_invalid_samples_are_left_out_not_diluted(meshes) -> None:
    pred, target = meshes
    some = torch.tensor([True, False, True])
    spoiled = target.clone()
    spoiled[1] = torch.nan
    loss = SurfaceLoss(FACES)
    for with_invalid, without in (
        (point_l1(pred, spoiled, some), point_l1(pred[[0, 2]], target[[0, 2]], some[[0, 2]])),
        *zip(loss(pred, spoiled, some), loss(pred[[0, 2]], target[[0, 2]], some[[0, 2]])),
    ):
        torch.testing.assert_close(with_invalid, without)


def test_a_batch_without_any_truth_costs_nothing_and_has_finite_gradients(meshes) -> None:
    pred, target = meshes[0].requires_grad_(), meshes[1]
    none = torch.zeros(3, dtype=torch.bool)
    total = point_l1(pred, target, none) + sum(SurfaceLoss(FACES)(pred, target, none))
    total.backward()
    assert total.item() == 0 and pred.grad is not None and (pred.grad == 0).all()


def test_gradients_stay_finite_at_collapsed_edges_and_faces() -> None:
    pred = torch.zeros(1, 5, 3, requires_grad=True)  # every edge has length 0
    target = torch.zeros(1, 5, 3)  # every face is degenerate
    target[0, 4] = 1.0
    normal, edge = SurfaceLoss(FACES)(pred, target, ALL[:1])
    (normal + edge).backward()
    assert torch.isfinite(normal) and torch.isfinite(edge) and torch.isfinite(pred.grad).all()


def test_surface_gradients_equal_finite_differences() -> None:
    generator = torch.Generator().manual_seed(5)
    target = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    pred = (target + 0.3 * torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)).requires_grad_()
    loss = SurfaceLoss(FACES).double()
    assert torch.autograd.gradcheck(lambda p: loss(p, target, ALL[:2]), (pred,))


def test_a_perfect_mesh_has_no_surface_error() -> None:
    target = torch.randn(2, 5, 3)
    normal, edge = SurfaceLoss(FACES)(target, target, ALL[:2])
    assert normal.item() < 1e-5 and edge.item() < 1e-6


def test_masked_mean_counts_only_valid_samples() -> None:
    assert masked_mean(torch.tensor([1.0, 100, 3]), torch.tensor([True, False, True])).item() == 2
