from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from torch_geometric.utils import get_laplacian, to_scipy_sparse_matrix

from gcn.graph import (
    adjacency_from_edges,
    joint_adjacency,
    largest_eigenvalue,
    normalised_laplacian,
    rescale_laplacian,
)
from mesh.joints import COCO19

PATH = np.array([[0, 1], [1, 2]])


def test_adjacency_is_symmetric_without_loops_and_counts_an_edge_once() -> None:
    adjacency = adjacency_from_edges(np.array([[0, 1], [1, 0], [1, 2], [2, 2]]), 4)
    expected = [[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(adjacency.toarray(), expected)


def test_laplacian_of_a_path_is_the_textbook_one() -> None:
    laplacian = normalised_laplacian(adjacency_from_edges(PATH, 3)).toarray()
    r = 1 / np.sqrt(2)
    np.testing.assert_allclose(laplacian, [[1, -r, 0], [-r, 1, -r], [0, -r, 1]])


def test_laplacian_equals_that_of_torch_geometric() -> None:
    import torch

    edges = np.random.default_rng(0).integers(0, 30, (80, 2))
    adjacency = adjacency_from_edges(edges, 30)
    coo = adjacency.tocoo()
    index = torch.tensor(np.stack([coo.row, coo.col]), dtype=torch.long)
    theirs = to_scipy_sparse_matrix(*get_laplacian(index, normalization="sym", num_nodes=30), num_nodes=30)
    connected = np.asarray(adjacency.sum(1)).ravel() > 0
    ours = normalised_laplacian(adjacency).toarray()
    np.testing.assert_allclose(ours[connected], theirs.toarray()[connected], atol=1e-6)


@given(seed=st.integers(0, 2**31), size=st.integers(3, 90))
@settings(max_examples=25, deadline=None)
def test_the_spectral_rescaling_fills_minus_one_to_one(seed: int, size: int) -> None:
    edges = np.random.default_rng(seed).integers(0, size, (3 * size, 2))
    edges = np.concatenate([edges, np.stack([np.arange(size - 1), np.arange(1, size)], 1)])
    values = np.linalg.eigvalsh(rescale_laplacian(normalised_laplacian(adjacency_from_edges(edges, size))).toarray())
    assert values[0] == pytest.approx(-1, abs=1e-6) and values[-1] == pytest.approx(1, abs=1e-6)


def test_the_legacy_rescaling_ends_at_minus_one_half() -> None:
    laplacian = normalised_laplacian(adjacency_from_edges(PATH, 3))
    values = np.linalg.eigvalsh(rescale_laplacian(laplacian, "legacy").toarray())
    np.testing.assert_allclose(values, [-1, -0.75, -0.5], atol=1e-12)


def test_the_largest_eigenvalue_of_a_large_graph_equals_the_dense_one() -> None:
    edges = np.random.default_rng(3).integers(0, 200, (700, 2))
    laplacian = normalised_laplacian(adjacency_from_edges(edges, 200))
    assert largest_eigenvalue(laplacian) == pytest.approx(np.linalg.eigvalsh(laplacian.toarray())[-1], abs=1e-9)


def test_the_joint_graph_has_links_pairs_and_loops() -> None:
    adjacency = joint_adjacency(COCO19)
    assert isinstance(adjacency, sparse.csr_matrix)
    hip, knee, other = COCO19.indices(("left_hip", "left_knee", "right_hip"))
    nose = COCO19.index("nose")
    assert adjacency[hip, knee] == adjacency[hip, other] == adjacency[hip, hip] == 1 and adjacency[nose, hip] == 0
