from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gcn.losses import LossWeights, point_l1
from gcn.surface_loss import SurfaceLoss

FACES = np.array([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2], [3, 2, 4]])  # a tetrahedron with a flap: an open edge


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
    normal, edge = SurfaceLoss(FACES)(*meshes)
    expected = np.array([literal_surface(p.numpy(), t.numpy()) for p, t in zip(*meshes)])
    np.testing.assert_allclose(normal, expected[:, 0], rtol=1e-5)
    np.testing.assert_allclose(edge, expected[:, 1], rtol=1e-5)


def test_point_error_equals_the_literal_sum(meshes) -> None:
    expected = [np.mean([abs(p - t) for p, t in zip(*(m.flatten().tolist() for m in pair))]) for pair in zip(*meshes)]
    np.testing.assert_allclose(point_l1(*meshes), expected, rtol=1e-5)


def test_gradients_stay_finite_at_collapsed_edges_and_faces() -> None:
    pred = torch.zeros(1, 5, 3, requires_grad=True)  # every edge has length 0
    target = torch.zeros(1, 5, 3)  # every face is degenerate
    target[0, 4] = 1.0
    normal, edge = SurfaceLoss(FACES)(pred, target)
    (normal + edge).sum().backward()
    assert torch.isfinite(normal).all() and torch.isfinite(edge).all() and torch.isfinite(pred.grad).all()


def test_surface_gradients_equal_finite_differences() -> None:
    generator = torch.Generator().manual_seed(5)
    target = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    pred = (target + 0.3 * torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)).requires_grad_()
    loss = SurfaceLoss(FACES).double()
    assert torch.autograd.gradcheck(lambda p: loss(p, target), (pred,))


def test_samples_in_pieces_open_edges_and_unused_vertices_change_nothing(generator: torch.Generator) -> None:
    target = torch.randn(19, 5, 3, generator=generator)
    pred = target + 0.2 * torch.randn(19, 5, 3, generator=generator)
    unused = torch.randn(19, 2, 3, generator=generator)
    weights = torch.randn(2, 19, generator=generator)
    found = []
    for more in (torch.empty(19, 0, 3), unused):
        points = torch.cat((pred, more), 1).requires_grad_()
        terms = torch.stack(SurfaceLoss(FACES)(points, torch.cat((target, more), 1)))
        (terms * weights).sum().backward()
        found.append((terms, points.grad))
    alone = torch.stack([torch.cat(SurfaceLoss(FACES)(p[None], t[None])) for p, t in zip(pred, target)], dim=1)
    for terms, gradient in found:
        torch.testing.assert_close(terms, alone)
        torch.testing.assert_close(gradient[:, :5], found[0][1])
    assert (found[1][1][:, 5:] == 0).all() and (found[0][1].abs().sum((1, 2)) > 0).all()


def test_three_faces_may_share_an_edge(generator: torch.Generator) -> None:
    faces = np.array([[0, 1, 2], [1, 0, 3], [0, 1, 4]])
    points, target = (torch.randn(1, 5, 3, generator=generator) for _ in range(2))
    normal, _ = SurfaceLoss(faces)(points, target)
    cosines = []
    for a, b, c in faces:
        up = np.cross(target[0, b] - target[0, a], target[0, c] - target[0, a])
        for i, j in ((a, b), (b, c), (c, a)):
            edge = (points[0, j] - points[0, i]).numpy()
            cosines.append(abs(edge @ up) / np.linalg.norm(edge) / np.linalg.norm(up))
    np.testing.assert_allclose(normal, [np.mean(cosines)], rtol=1e-5)


def test_a_perfect_mesh_has_no_surface_error() -> None:
    target = torch.randn(2, 5, 3)
    normal, edge = SurfaceLoss(FACES)(target, target)
    assert normal.max() < 1e-5 and edge.max() < 1e-6


def test_the_edge_term_starts_late_and_may_grow_in() -> None:
    at_once = LossWeights(edge=20, edge_start_epoch=7)
    assert [at_once.at(e)["edge"] for e in (0, 6.99, 7, 9)] == [0, 0, 20, 20]
    ramped = LossWeights(edge=20, edge_start_epoch=7, edge_ramp_epochs=2)
    assert [ramped.at(e)["edge"] for e in (6, 7, 7.5, 8, 9, 12)] == [0, 0, 5, 10, 20, 20]
    assert ramped.at(0) == {**LossWeights().at(0), "edge": 0} and LossWeights().at(0)["edge"] == 20


def test_the_cycle_fades() -> None:
    fading = LossWeights(cycle=0.5, cycle_decay_epochs=2)
    assert [fading.at(e)["cycle"] for e in (0, 2, 4)] == pytest.approx([0.5, 0.5 / math.e, 0.5 / math.e**2])
    assert LossWeights(cycle=0.5).at(100)["cycle"] == 0.5
