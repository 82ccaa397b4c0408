"""SemGCN: a graph network over the joints that learns how much each listens to its neighbours (Zhao et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from torch import Tensor, nn

from gcn.graph import adjacency_from_edges
from gcn.layers.batchnorm import BatchNorm
from gcn.layers.joint_attention import Grouping, JointAttention, joint_groups
from gcn.layers.semantic import SemGraphConv
from mesh.errors import require
from mesh.joints import JointSet


@dataclass(frozen=True, kw_only=True)
class SemGCNConfig:
    """Size of the lifter; the defaults are the published 0.43 M parameters, 0.27 M without `attention`.

    `grouping` says how `attention` pools the joints, see `gcn.layers.joint_attention.joint_groups`.
    """

    width: int = 128
    blocks: int = 4
    dropout: float = 0.0
    attention: bool = True
    grouping: Grouping = "concatenated"
    output_unit_m: float = 1.0

    def __post_init__(self) -> None:
        require(self.width >= 1 and self.blocks >= 0, f"semgcn needs width >= 1 and blocks >= 0, got {self}")
        require(0 <= self.dropout < 1, f"semgcn.dropout must lie in [0, 1), got {self.dropout}")
        known = get_args(Grouping)
        require(self.grouping in known, f"semgcn.grouping must be one of {', '.join(known)}, got {self.grouping!r}")
        require(self.output_unit_m > 0, f"semgcn.output_unit_m must be positive, got {self.output_unit_m}")


class GraphLayer(nn.Module):
    """Graph convolution, norm, ReLU once, dropout."""

    def __init__(self, adjacency: Tensor, in_channels: int, out_channels: int, *, dropout: float) -> None:
        super().__init__()
        self.conv = SemGraphConv(adjacency, in_channels, out_channels)
        self.norm = BatchNorm(out_channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, J, C_in) -> (B, J, C_out)."""
        out = self.conv(x)
        return self.dropout(self.norm(out.flatten(0, 1)).relu_()).view_as(out)


class ResidualBlock(nn.Module):
    """x + f(x), where f is two graph layers."""

    def __init__(self, adjacency: Tensor, width: int, *, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[GraphLayer(adjacency, width, width, dropout=dropout) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, J, C) -> (B, J, C)."""
        return x + self.layers(x)


class SemGCN(nn.Module):
    """2D joints to root-relative 3D joints of the same set, in metres, camera frame.

    A graph layer, residual blocks, a graph convolution; with `attention` a layer of it before and after each block.
    The last convolution has no bias: it would move all joints alike, which subtracting the root undoes.
    """

    def __init__(
        self, joints: JointSet, in_channels: int, *, width: int = 128, blocks: int = 4, dropout: float = 0.0,
        attention: bool = True, grouping: Grouping = "concatenated", output_unit_m: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.output_unit_m = output_unit_m
        self.root_idx = joints.root_idx
        adjacency = skeleton_adjacency(joints)
        groups = joint_groups(joints, grouping) if attention else ()
        layers: list[nn.Module] = [GraphLayer(adjacency, in_channels, width, dropout=dropout)]
        layers += [JointAttention(width, groups)] if attention else []
        for _ in range(blocks):
            layers.append(ResidualBlock(adjacency, width, dropout=dropout))
            layers += [JointAttention(width, groups)] if attention else []
        self.layers = nn.Sequential(*layers)
        self.head = SemGraphConv(adjacency, width, 3, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(B, J, C) of `gcn.features.pose_features` -> (B, J, 3) metres; the root is exactly 0."""
        written = self.head(self.layers(features))
        return (written - written[:, self.root_idx, None]) * self.output_unit_m


def skeleton_adjacency(joints: JointSet) -> Tensor:
    """Links of the skeleton and self-loops: (J, J) bool."""
    links = adjacency_from_edges(np.array(joints.edges), len(joints))
    return torch.from_numpy(links.toarray() > 0) | torch.eye(len(joints), dtype=torch.bool)
