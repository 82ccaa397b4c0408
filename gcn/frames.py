"""What a mesh network that carries a template by joint frames knows of a body: its nodes, their weights, its joints."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gcn.coarsening import Hierarchy
from gcn.parts import HEAD, LIMBS
from gcn.upsampling import Upsampling, pool_clusters
from mesh.body import Body
from mesh.errors import InputError
from mesh.joints import HUMAN36M17, JointSet

NODE_LEVEL = 5  # of the hierarchy: the nodes that are carried (SMPL's mesh: 289)
GRAPH_LEVEL = 7  # the coarser nodes that the graph convolutions run on (81)


@dataclass(frozen=True, kw_only=True)
class NodeFrames:
    """The template's nodes in rest pose, and how the frames of J body joints carry them.

    `rest` (K, 3) metres, `skinning` (K, J) rows summing to one, `joints` (J, 3) rest positions, `graph_skinning` (G, J)
    the same weights of the coarser graph, `mix` (J, I) weights of the I input joints that give each body joint,
    `regressor` (I, K) weights of the nodes that give each input joint relative to the root, `parts` (J,) to what each
    frame belongs: 0 the trunk, then the left and the right one of each of `gcn.parts.LIMBS`, last the head.
    """

    rest: np.ndarray
    skinning: np.ndarray
    joints: np.ndarray
    graph_skinning: np.ndarray
    mix: np.ndarray
    regressor: np.ndarray
    parts: np.ndarray


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
        parts=_find_parts(body, joints),
    )


def _find_parts(body: Body, joints: JointSet) -> np.ndarray:
    """Each limb's frames: all that hangs on the body joint at its elbow, knee or nose, from where the body branches."""
    at = body.joint_regressor @ body.template
    limbs = [name.replace("left", side) for name in LIMBS.values() for side in ("left", "right")]
    parts, members = np.zeros(len(body.parents), np.int64), []
    for part, name in enumerate((*limbs, HEAD[1]), 1):
        given = body.regressor(joints)[joints.index(name)] @ body.template
        first = int(np.linalg.norm(at - given, axis=1).argmin())
        while body.parents[first] >= 0 and body.parents.count(body.parents[first]) == 1:
            first = body.parents[first]
        members.append([first])
        for joint in range(first + 1, len(parts)):
            if body.parents[joint] in members[-1]:
                members[-1].append(joint)
        parts[members[-1]] = part
    trees = [[own.index(p) if p in own else -1 for p in (body.parents[j] for j in own)] for own in members]
    if trees[:-1:2] != trees[1:-1:2] or np.count_nonzero(parts) < sum(map(len, members)) or parts.all():
        raise InputError(
            f"{body.name}: expected a trunk, a head, arms and legs, left ones like right ones; their joints are "
            f"{[np.flatnonzero(parts == part).tolist() for part in range(len(members) + 1)]}"
        )
    return parts


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
