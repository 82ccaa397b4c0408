"""Deterministic heavy-edge coarsening of a mesh graph (Dhillon et al. 2007; Defferrard et al. 2016, section 2.3)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from gcn.graph import adjacency_from_edges
from mesh.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Hierarchy:
    """A graph and ever coarser versions of it.

    `parents[l]` (N_l,) names the node of level l + 1 that a node of level l belongs to; level 0 is the mesh.
    `adjacencies` has one more entry than `parents`. Padding nodes, which the original adds so that every node has
    two children, carry no information and are left out.
    """

    adjacencies: tuple[sparse.csr_matrix, ...]
    parents: tuple[np.ndarray, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(a.shape[0] for a in self.adjacencies)

    @property
    def digest(self) -> str:
        """Hash of topology and clustering: weights fit one graph only and must never meet another."""
        sha = hashlib.sha256()
        finest = self.adjacencies[0]
        for array in (finest.indptr, finest.indices, *self.parents):
            sha.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
        return sha.hexdigest()

    def clusters(self, level: int) -> np.ndarray:
        """Node of `level` that each vertex belongs to, (V,)."""
        index = np.arange(self.sizes[0])
        for parent in self.parents[:level]:
            index = parent[index]
        return index


def match_heavy_edges(adjacency: sparse.csr_matrix) -> np.ndarray:
    """Pair neighbours by heaviest normalised edge: cluster of each node, (N,).

    Nodes are visited by ascending weight sum, ties by index. A node takes the unmatched neighbour j that maximises
    (2 W_ij + W_ii + W_jj) / (d_i + d_j), ties by lower index, or stays alone. Clusters are numbered as they are made.
    """
    degree = np.asarray(adjacency.sum(axis=1)).ravel()
    self_weight = adjacency.diagonal()
    indptr, indices, weights = adjacency.indptr, adjacency.indices, adjacency.data
    cluster = np.full(adjacency.shape[0], -1, np.int64)
    count = 0
    for node in np.argsort(degree, kind="stable"):
        if cluster[node] >= 0:
            continue
        cluster[node] = count
        span = slice(indptr[node], indptr[node + 1])
        neighbours = indices[span]
        free = cluster[neighbours] < 0
        if free.any():
            near, weight = neighbours[free], weights[span][free]
            gain = (2 * weight + self_weight[node] + self_weight[near]) / (degree[node] + degree[near] + 1e-9)
            cluster[near[np.argmax(gain)]] = count
        count += 1
    return cluster


def merge_clusters(adjacency: sparse.csr_matrix, cluster: np.ndarray) -> sparse.csr_matrix:
    """Graph of the clusters: weights between two clusters add up, weights inside one become its self-weight."""
    size = int(cluster.max()) + 1
    assign = sparse.csr_matrix((np.ones(len(cluster)), (np.arange(len(cluster)), cluster)), shape=(len(cluster), size))
    merged = (assign.T @ adjacency @ assign).tocsr()
    merged.sort_indices()
    return merged


def coarsen(edges: np.ndarray, num_nodes: int, levels: int) -> Hierarchy:
    """Coarsen a mesh graph `levels` times, (E, 2) edges; each step roughly halves the number of nodes."""
    adjacency = adjacency_from_edges(edges, num_nodes)
    parents = []
    for _ in range(levels):
        parents.append(match_heavy_edges(adjacency))
        adjacency = merge_clusters(adjacency, parents[-1])
    return hierarchy_from_parents(edges, num_nodes, parents)


def hierarchy_from_parents(edges: np.ndarray, num_nodes: int, parents: Sequence[np.ndarray]) -> Hierarchy:
    """Rebuild a stored hierarchy; refuses one that belongs to another mesh. Self-weights are dropped."""
    adjacencies = [adjacency_from_edges(edges, num_nodes)]
    for parent in parents:
        if len(parent) != adjacencies[-1].shape[0]:
            raise InputError(
                f"the stored graph hierarchy has {len(parent)} nodes where this body has {adjacencies[-1].shape[0]}: "
                "the weights were trained on another mesh"
            )
        merged = merge_clusters(adjacencies[-1], parent)
        merged.setdiag(0)
        merged.eliminate_zeros()
        adjacencies.append(merged)
    return Hierarchy(adjacencies=tuple(adjacencies), parents=tuple(np.asarray(p, np.int64) for p in parents))
