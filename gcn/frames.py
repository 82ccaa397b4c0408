"""What a mesh network that carries a template by joint frames knows of a body: its nodes, their weights, its joints."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gcn.coarsening import Hierarchy
from gcn.upsampling import Upsampling, pool_clusters
from mesh.body import Body
from mesh.joints import HUMAN36M17, JointSet

NODE_LEVEL = 5  # of the hierarchy: the nodes that are carried (SMPL's mesh: 289)
GRAPH_LEVEL = 7  # the coarser nodes that the graph convolutions run on (81)


@dataclass(frozen=True, kw_only=True)
class NodeFrames:
    """The template's nodes in rest pose, and how the frames of J body joints carry them.

    `rest` (K, 3) metres, `skinning` (K, J) rows summing to one, `joints` (J, 3) rest positions, `graph_skinning` (G, J)
    the same weights of the coarser graph, `mix` (J, I) weights of the I input joints that give each body joint,
    `regressor` (I, K) weights of the nodes that give each input joint relative to the root.
    """

    rest: np.ndarray
    skinning: np.ndarray
    joints: np.ndarray
    graph_skinning: np.ndarray
    mix: np.ndarray
    regressor: np.ndarray


def fit_frames(
    body: Body, hierarchy: Hierarchy, upsampling: Upsampling, vertices: np.ndarray, joints: JointSet
) -> NodeFrames:
    """Means of the body's template and skinning weights over clusters; `mix` by least squares on posed bodies.

    vertices: (S, V, 3) metres, S posed bodies; upsampling: from the nodes to all vertices. What matrix products give is
    rounded, because their last digits change from run to run, and a run killed before its first checkpoint must begin
    again with the very same network.
    """
    nodes, graph = hierarchy.clusters(NODE_LEVEL), hierarchy.clusters(GRAPH_LEVEL)
    regressor = body.regressor(joints).astype(np.float64) @ upsampling.matrix(nodes.max() + 1)
    return NodeFrames(
        rest=pool_clusters(body.template[None].astype(np.float64), nodes)[0].astype(np.float32),
        skinning=pool_clusters(body.skinning[None].astype(np.float64), nodes)[0].astype(np.float32),
        joints=np.round(body.joint_regressor.astype(np.float64) @ body.template, 6).astype(np.float32),
        graph_skinning=pool_clusters(body.skinning[None].astype(np.float64), graph)[0].astype(np.float32),
        mix=np.round(_fit_mix(body, np.asarray(vertices, np.float64), joints), 4).astype(np.float32),
        regressor=np.ascontiguousarray(np.round(regressor - regressor[joints.root_idx], 6), np.float32),
    )


def _fit_mix(body: Body, vertices: np.ndarray, joints: JointSet, ridge: float = 1e-3) -> np.ndarray:
    """Body joints, relative to the Human3.6M pelvis, as sums of input joints, relative to their own root; (J, I)."""
    given = body.regressor(joints).astype(np.float64) @ vertices  # (S, I, 3)
    given -= given[:, joints.root_idx, None]
    pelvis = body.regressor(HUMAN36M17)[HUMAN36M17.root_idx].astype(np.float64) @ vertices
    wanted = body.joint_regressor.astype(np.float64) @ vertices - pelvis[:, None]
    gram = np.einsum("sic,sjc->ij", given, given)
    right = np.einsum("sic,sjc->ij", given, wanted)
    scale = np.trace(gram) / len(gram)
    return np.linalg.solve(gram + ridge * scale * np.eye(len(gram)), right).T
