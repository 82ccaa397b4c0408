"""Attention between joints and pooled groups of joints (the non-local layer of Zhao et al. 2019, SemGCN)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from scipy.sparse import csgraph
from torch import Tensor, nn

from gcn.graph import adjacency_from_edges
from gcn.layers.batchnorm import BatchNorm
from mesh.errors import require
from mesh.joints import JointSet

Grouping = Literal["concatenated", "self", "related", "none"]
Group = tuple[int, int]


def joint_groups(joints: JointSet, grouping: Grouping = "concatenated") -> tuple[Group, ...]:
    """Two joints each, by index; (j, j) is a joint alone.

    The joints are regrouped into the pairs of `joint_pairs`. Of an odd number one is left over: "concatenated" sets
    it next to the pooled pairs, "self" pools it with itself - under a maximum those two are the same numbers - and
    "related" pools it a second time with a linked joint, its parent or else one on the body's middle line.
    "none" regroups nothing: every joint is its own group.
    """
    known = get_args(Grouping)
    require(grouping in known, f"joint grouping must be one of {', '.join(known)}, got {grouping!r}")
    if grouping == "none":
        return tuple((j, j) for j in range(len(joints)))
    pairs = joint_pairs(joints)
    odd = sorted(set(range(len(joints))) - {j for pair in pairs for j in pair})
    skeleton = _Skeleton(joints)
    return (*pairs, *((j, skeleton.related(j) if grouping == "related" else j) for j in odd))


def joint_pairs(joints: JointSet) -> tuple[Group, ...]:
    """Pairs of linked or mirrored joints, from the names and links alone: the order of the joints does not matter.

    From the tips of the limbs inwards, each joint joins its mirror joint if the two are linked or hang from the same
    joint, else the joint that it hangs from, if that is still free. What is left over joins the nearest of its like,
    until at most one joint is alone. Human3.6M's 16 joints give the published pairs: wrists with elbows, ankles with
    knees, left with right shoulder and hip, head with neck, torso with pelvis.
    """
    skeleton = _Skeleton(joints)
    inwards = sorted(range(len(joints)), key=lambda j: (-skeleton.depth[j], joints.names[j]))
    free, pairs = set(inwards), []
    for joint in inwards:
        partner = next((p for p in skeleton.partners(joint) if p in free), None)
        if joint in free and partner is not None:
            free -= {joint, partner}
            pairs.append((joint, partner))
    left_over = [j for j in inwards if j in free]
    while len(left_over) > 1:
        joint = left_over.pop(0)
        partner = min(left_over, key=lambda j: (skeleton.hops[joint, j], joints.names[j]))
        left_over.remove(partner)
        pairs.append((joint, partner))
    return tuple(sorted((min(pair), max(pair)) for pair in pairs))


class _Skeleton:
    """A joint set as a tree hanging from its root; ties are broken by name. A part without a link to the root hangs
    from a joint of its own, on the middle line if it has one there."""

    def __init__(self, joints: JointSet) -> None:
        self.names = joints.names
        self.mirror = {a: b for pair in joints.flip_pairs for a, b in (pair, pair[::-1])}
        links = adjacency_from_edges(np.array(joints.edges), len(joints))
        self.hops: np.ndarray = csgraph.shortest_path(links, unweighted=True)  # (J, J), infinity between parts
        self.depth: np.ndarray = self.hops[joints.root_idx]
        while apart := [j for j in range(len(joints)) if np.isinf(self.depth[j])]:
            self.depth = np.minimum(self.depth, self.hops[min(apart, key=self._middle_first)])

    def _middle_first(self, joint: int) -> tuple[bool, str]:
        return joint in self.mirror, self.names[joint]

    def _linked(self, joint: int) -> list[int]:
        return [int(j) for j in np.flatnonzero(self.hops[joint] == 1)]

    def parent(self, joint: int) -> int | None:
        above = [j for j in self._linked(joint) if self.depth[j] < self.depth[joint]]
        return min(above, key=lambda j: self.names[j], default=None)

    def partners(self, joint: int) -> list[int]:
        """Whom the joint may join, the best first."""
        parent, mirror = self.parent(joint), self.mirror.get(joint)
        partners = [] if parent is None else [parent]
        if mirror is not None and (self.hops[joint, mirror] == 1 or (partners and self.parent(mirror) == parent)):
            partners.insert(0, mirror)
        return partners

    def related(self, joint: int) -> int:
        """The linked joint that a joint left over is pooled with; itself if it has no links."""
        parent = self.parent(joint)
        return min(self._linked(joint), key=self._middle_first, default=joint) if parent is None else parent


class JointAttention(nn.Module):
    """x_i + norm(W y_i + b), y_i = 1/G sum_g relu(u . q(x_i) + v . k_g) v_g, over groups g of joints.

    Keys k and values v are linear in x and pooled over a group by their maximum. The score is the concatenation form
    of Wang et al. 2018: a vector times [query, key], which is a sum of one number per joint and one per group, so
    neither the queries nor the concatenation is ever formed. The norm's scale starts at 0: at first the layer does
    nothing.

    The scores start near 1, a plain mean over the groups. Started at random they may all be negative, for the features
    have a large common part, and a layer without a positive score learns nothing.
    """

    first: Tensor
    second: Tensor

    def __init__(self, channels: int, groups: Sequence[Group]) -> None:
        """groups: two joint indices each, (j, j) for a joint alone."""
        super().__init__()
        inner = max(1, channels // 2)
        self.pools = any(a != b for a, b in groups)
        for name, members in zip(("first", "second"), zip(*groups)):
            self.register_buffer(name, torch.tensor(members), persistent=False)
        self.query = nn.Linear(channels, inner)
        self.key_value = nn.Linear(channels, 2 * inner)
        self.score = nn.Parameter(torch.empty(2, inner))  # of queries, of keys
        self.out = nn.Linear(inner, channels)
        self.norm = BatchNorm(channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights normal with variance 2 / fan in (He et al. 2015), biases and the norm's scale 0, scores near 1."""
        for linear in (self.query, self.key_value, self.out):
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            nn.init.zeros_(linear.bias)
        nn.init.zeros_(self.norm.weight)
        nn.init.normal_(self.score, std=0.01)
        of_queries = self.score.detach()[0]
        with torch.no_grad():
            self.query.bias.copy_(of_queries / of_queries.square().sum())  # times of_queries: 1

    def forward(self, x: Tensor) -> Tensor:
        """(B, J, C) -> (B, J, C)."""
        keys, values = self.pooled(self.key_value(x)).chunk(2, dim=-1)
        of_queries, of_keys = self.score
        by_joint = x @ (of_queries @ self.query.weight) + of_queries @ self.query.bias  # (B, J)
        attention = (by_joint[:, :, None] + (keys @ of_keys)[:, None]).relu() / len(self.first)  # (B, J, G)
        return x + self.norm(self.out(attention @ values).flatten(0, 1)).view_as(x)

    def pooled(self, x: Tensor) -> Tensor:
        """The larger of each group's two, channel by channel: (B, J, C) -> (B, G, C)."""
        return torch.maximum(x[:, self.first], x[:, self.second]) if self.pools else x[:, self.first]
