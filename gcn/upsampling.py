"""From coarse nodes to all vertices by a fixed sparse matrix, fitted once to posed bodies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from gcn.coarsening import Hierarchy

_HOPS = 3  # a vertex may lean on nodes at most this far from its own


@dataclass(frozen=True, kw_only=True)
class Upsampling:
    """Each vertex as a weighted sum of K coarse nodes: `nodes` (V, K), `weights` (V, K) with rows summing to one."""

    nodes: np.ndarray
    weights: np.ndarray

    def matrix(self, num_nodes: int) -> sparse.csr_matrix:
        """The same as a sparse matrix, (V, N)."""
        num_vertices, num_terms = self.nodes.shape
        rows = np.repeat(np.arange(num_vertices), num_terms)
        shape = (num_vertices, num_nodes)
        return sparse.csr_matrix((self.weights.ravel(), (rows, self.nodes.ravel())), shape=shape)


def pool_clusters(vertices: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """Mean position of each cluster, (S, V, 3), (V,) -> (S, N, 3)."""
    size = np.bincount(cluster)
    assign = sparse.csr_matrix((1.0 / size[cluster], (cluster, np.arange(len(cluster)))))
    return np.stack([assign @ sample for sample in vertices])


def fit_upsampling(
    vertices: np.ndarray, hierarchy: Hierarchy, level: int, *, num_terms: int = 8, ridge: float = 1e-3
) -> Upsampling:
    """Least-squares weights that rebuild the vertices of posed bodies from their cluster means.

    vertices: (S, V, 3) metres, S posed bodies, the first in rest pose. Every vertex leans on the `num_terms` nodes
    that are nearest in rest pose among those within a few graph steps of its own. Rows sum to one, so the matrix
    commutes with every translation and rotation; the ridge pulls weights towards equal shares.
    """
    cluster = hierarchy.clusters(level)
    nodes = pool_clusters(vertices, cluster)  # (S, N, 3)
    near = _nearby_nodes(vertices[0], nodes[0], cluster, hierarchy.adjacencies[level], num_terms)
    weights = np.empty(near.shape)
    for start in range(0, len(near), 512):
        rows = slice(start, start + 512)
        design = nodes[:, near[rows]].transpose(1, 0, 3, 2)  # (v, S, 3, K)
        target = vertices[:, rows].transpose(1, 0, 2)  # (v, S, 3)
        design, origin = design - design.mean(-1, keepdims=True), design.mean(-1)
        gram = np.einsum("vsck,vscl->vkl", design, design)
        right = np.einsum("vsck,vsc->vk", design, target - origin)
        scale = np.trace(gram, axis1=1, axis2=2)[:, None, None] / num_terms
        gram += ridge * scale * np.eye(num_terms) + scale / num_terms  # the last term fixes the sum of deviations
        weights[rows] = np.linalg.solve(gram, right[..., None])[..., 0]
    weights += (1 - weights.sum(1, keepdims=True)) / num_terms
    return Upsampling(nodes=near, weights=weights.astype(np.float32))


def _nearby_nodes(
    rest: np.ndarray, node_rest: np.ndarray, cluster: np.ndarray, adjacency: sparse.csr_matrix, count: int
) -> np.ndarray:
    """The `count` nearest nodes of each vertex within a few hops of its own node, (V, count)."""
    reach = (adjacency + sparse.identity(adjacency.shape[0])).astype(bool).astype(np.float64)
    within = reach
    for _ in range(_HOPS - 1):
        within = within @ reach
    allowed = within.toarray()[cluster] > 0  # (V, N)
    distance = np.linalg.norm(rest[:, None] - node_rest[None], axis=-1)
    distance[~allowed] += 1e3  # only where fewer than `count` nodes are within reach
    return np.argsort(distance, axis=1, kind="stable")[:, :count]
