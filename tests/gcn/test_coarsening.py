from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from gcn.coarsening import coarsen, hierarchy_from_parents, match_heavy_edges, merge_clusters
from gcn.graph import adjacency_from_edges
from mesh.body import load_body
from mesh.errors import InputError

SQUARE = np.array([[0, 1], [1, 2], [2, 3], [3, 0]])


def literal_matching(adjacency: np.ndarray) -> list[int]:
    """The published rule, node by node, on a dense matrix."""
    degree = adjacency.sum(1)
    cluster, count = [-1] * len(adjacency), 0
    for node in sorted(range(len(adjacency)), key=lambda i: (degree[i], i)):
        if cluster[node] >= 0:
            continue
        best, best_gain = None, 0.0
        for j in range(len(adjacency)):
            if j != node and adjacency[node, j] > 0 and cluster[j] < 0:
                gain = (2 * adjacency[node, j] + adjacency[node, node] + adjacency[j, j]) / (degree[node] + degree[j])
                if gain > best_gain + 1e-9:
                    best, best_gain = j, gain
        cluster[node] = count
        if best is not None:
            cluster[best] = count
        count += 1
    return cluster


@pytest.mark.parametrize("seed", range(10))
def test_matching_follows_the_published_rule(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = np.triu(rng.integers(0, 4, (25, 25)) * (rng.random((25, 25)) < 0.3), 1).astype(float)
    dense = weights + weights.T + np.diag(rng.integers(0, 3, 25)).astype(float)
    assert match_heavy_edges(sparse.csr_matrix(dense)).tolist() == literal_matching(dense)


def test_a_square_becomes_two_pairs_and_then_one_node() -> None:
    hierarchy = coarsen(SQUARE, 4, 2)
    assert hierarchy.sizes == (4, 2, 1)
    assert [p.tolist() for p in hierarchy.parents] == [[0, 0, 1, 1], [0, 0]]
    np.testing.assert_array_equal(hierarchy.adjacencies[1].toarray(), [[0, 2], [2, 0]])


def test_merging_adds_up_weights_between_and_inside_clusters() -> None:
    merged = merge_clusters(adjacency_from_edges(SQUARE, 4), np.array([0, 0, 1, 1]))
    np.testing.assert_array_equal(merged.toarray(), [[2, 2], [2, 2]])


def test_the_body_hierarchy_is_the_same_everywhere() -> None:
    body = load_body()
    hierarchy = coarsen(body.edges, body.num_vertices, 7)
    assert hierarchy.sizes == (6890, 3675, 1947, 1026, 544, 289, 153, 81)
    assert hierarchy.digest.startswith("83bf6d82")
    shuffled = coarsen(np.random.default_rng(0).permutation(body.edges)[:, ::-1], body.num_vertices, 7)
    assert shuffled.digest == hierarchy.digest


def test_clusters_are_connected_patches_of_the_mesh() -> None:
    body = load_body()
    hierarchy = coarsen(body.edges, body.num_vertices, 5)
    cluster = hierarchy.clusters(5)
    inside = cluster[body.edges[:, 0]] == cluster[body.edges[:, 1]]
    graph = adjacency_from_edges(body.edges[inside], body.num_vertices)
    assert sparse.csgraph.connected_components(graph)[0] == hierarchy.sizes[5]


def test_a_stored_hierarchy_is_rebuilt_exactly_and_refused_on_another_mesh() -> None:
    hierarchy = coarsen(SQUARE, 4, 2)
    assert hierarchy_from_parents(SQUARE, 4, hierarchy.parents).digest == hierarchy.digest
    with pytest.raises(InputError, match=r"4 nodes where this body has 5.*another mesh"):
        hierarchy_from_parents(np.append(SQUARE, [[3, 4]], axis=0), 5, hierarchy.parents)


def test_the_digest_tells_two_meshes_of_equal_size_apart() -> None:
    crossed = np.array([[0, 2], [2, 1], [1, 3], [3, 0]])
    parents = coarsen(SQUARE, 4, 2).parents
    assert hierarchy_from_parents(crossed, 4, parents).digest != hierarchy_from_parents(SQUARE, 4, parents).digest
