"""Graphs as sparse matrices: adjacency, Laplacian, and its rescaling for Chebyshev filters."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import eigsh

from mesh.joints import JointSet

Rescaling = Literal["spectral", "legacy", "none"]


def adjacency_from_edges(edges: np.ndarray, num_nodes: int) -> sparse.csr_matrix:
    """Symmetric 0/1 adjacency without self-loops, (E, 2) pairs in any order -> (N, N)."""
    edges = np.asarray(edges, np.int64).reshape(-1, 2)
    edges = edges[edges[:, 0] != edges[:, 1]]
    rows, cols = np.concatenate([edges, edges[:, ::-1]]).T
    matrix = sparse.csr_matrix((np.ones(len(rows), np.float64), (rows, cols)), shape=(num_nodes, num_nodes))
    matrix.data[:] = 1.0  # an edge listed twice counts once
    matrix.sort_indices()
    return matrix


def joint_adjacency(joints: JointSet) -> sparse.csr_matrix:
    """Graph of a joint set as in Pose2Mesh: skeleton links, left-right pairs and self-loops."""
    links = np.array([*joints.edges, *joints.flip_pairs])
    return (adjacency_from_edges(links, len(joints)) + sparse.identity(len(joints))).tocsr()


def normalised_laplacian(adjacency: sparse.csr_matrix) -> sparse.csr_matrix:
    """I - D^-1/2 W D^-1/2; a node without neighbours keeps its 1 (Chung 1997)."""
    degree = np.asarray(adjacency.sum(axis=1)).ravel()
    inverse_root = sparse.diags(np.where(degree > 0, 1 / np.sqrt(np.maximum(degree, 1e-30)), 0.0))
    return (sparse.identity(adjacency.shape[0]) - inverse_root @ adjacency @ inverse_root).tocsr()


def largest_eigenvalue(laplacian: sparse.csr_matrix) -> float:
    """Largest eigenvalue of a symmetric matrix; deterministic (fixed start vector)."""
    size = laplacian.shape[0]
    if size <= 64:
        return float(np.linalg.eigvalsh(laplacian.toarray())[-1])
    start = np.cos(np.arange(size))  # any vector that is not an eigenvector
    return float(eigsh(laplacian, k=1, which="LM", v0=start, return_eigenvectors=False)[0])


def rescale_laplacian(laplacian: sparse.csr_matrix, mode: Rescaling = "spectral") -> sparse.csr_matrix:
    """Move the spectrum to where Chebyshev polynomials live.

    "spectral": 2 L / lmax - I, spectrum [-1, 1] (Defferrard et al. 2016, section 2.1). "legacy": L / (2 lmax) - I,
    spectrum [-1, -1/2], what the published Pose2Mesh code computes, for weights trained with it. "none": as it is.
    """
    if mode == "none":
        return laplacian
    factor = {"spectral": 2.0, "legacy": 0.5}[mode] / largest_eigenvalue(laplacian)
    return (laplacian * factor - sparse.identity(laplacian.shape[0])).tocsr()
