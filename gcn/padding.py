"""What the original's padding nodes amount to, without computing each of them.

The original pads every level until each node has two children. A padding node is isolated, so all of its descendants
carry the same features: one representative with a multiplicity stands for them. That keeps batch-norm statistics, the
only place where padding acts on anything else, exact at two thirds of the nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from gcn.coarsening import Hierarchy


@dataclass(frozen=True, kw_only=True)
class PaddedLevel:
    """The nodes of a level: the real ones, siblings side by side, then the representatives of its padding.

    nodes: (R,) which node of the hierarchy each real one is (neighbours stay close, which makes sparse products up to
    twice as fast); adjacency: (N, N), the representatives isolated; parent: (N,) node of the next coarser level, None
    at the coarsest; multiplicity: (N,) how many nodes of the original each stands for, 1 for the real.
    """

    nodes: np.ndarray
    adjacency: sparse.csr_matrix
    parent: np.ndarray | None
    multiplicity: np.ndarray

    @property
    def num_real(self) -> int:
        return len(self.nodes)


def padded_levels(hierarchy: Hierarchy, coarsest: int) -> tuple[PaddedLevel, ...]:
    """Levels 0 to `coarsest`. The hierarchy may go on: its last level is the one without padding.

    All padding nodes of level `coarsest` are kept, since features begin there.
    """
    children = [np.bincount(parent) for parent in hierarchy.parents]
    nodes = np.arange(hierarchy.sizes[-1])
    num_padding = 0
    for index in range(len(hierarchy.parents) - 1, coarsest - 1, -1):
        num_padding = 2 * num_padding + int((children[index] == 1).sum())
        nodes, _ = _children(nodes, hierarchy.parents[index])
    levels = [_level(hierarchy.adjacencies[coarsest], nodes, None, np.ones(num_padding))]
    for index in range(coarsest - 1, -1, -1):
        coarser = levels[0]
        nodes, parent = _children(coarser.nodes, hierarchy.parents[index])
        old = np.arange(coarser.num_real, len(coarser.multiplicity))
        lonely = np.flatnonzero(children[index][coarser.nodes] == 1)
        padding = np.concatenate([2 * coarser.multiplicity[old], np.ones(len(lonely))])
        levels.insert(0, _level(hierarchy.adjacencies[index], nodes, np.concatenate([parent, old, lonely]), padding))
    return tuple(levels)


def _children(nodes: np.ndarray, parent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nodes of the finer level in the order of their parents `nodes`, and the place of each one's parent."""
    place = np.empty_like(nodes)
    place[nodes] = np.arange(len(nodes))
    order = np.argsort(place[parent], kind="stable")
    return order, place[parent][order]


def _level(
    adjacency: sparse.csr_matrix, nodes: np.ndarray, parent: np.ndarray | None, padding: np.ndarray
) -> PaddedLevel:
    isolated = sparse.csr_matrix((len(padding), len(padding)))
    return PaddedLevel(
        nodes=nodes, adjacency=sparse.block_diag((adjacency[nodes][:, nodes], isolated), format="csr"), parent=parent,
        multiplicity=np.concatenate([np.ones(len(nodes)), padding]),
    )  # fmt: skip
