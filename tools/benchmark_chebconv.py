"""The published mesh network as one would write it with PyTorch Geometric: the benchmark's yardstick."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch_geometric.nn import ChebConv

from gcn.coarsening import Hierarchy
from gcn.graph import joint_adjacency
from gcn.meshnet_full import JOINT_CHANNELS, PLAN, Plan
from mesh.joints import JointSet


def edge_index(adjacency: sparse.spmatrix) -> Tensor:
    """Both directions of every edge, without self-loops, (2, E)."""
    coo = adjacency.tocoo()
    kept = coo.row != coo.col
    return torch.from_numpy(np.stack([coo.row[kept], coo.col[kept]]).astype(np.int64))


class ChebConvBlock(nn.Module):
    """[ChebConv, batch norm, ReLU] for each channel step, plus the input as residual."""

    def __init__(self, channels: Sequence[int], order: int, *, residual: bool = True, is_last: bool = False) -> None:
        super().__init__()
        steps = list(zip(channels, channels[1:]))  # noqa: RUF007
        self.convolutions = nn.ModuleList(ChebConv(a, b, order) for a, b in steps)
        self.norms = nn.ModuleList(nn.BatchNorm1d(b) for _, b in (steps[:-1] if is_last else steps))
        self.residual = residual and not is_last

    def forward(self, edges: Tensor, x: Tensor) -> Tensor:
        """(B, N, C_first) -> (B, N, C_last)."""
        out = x
        for step, convolution in enumerate(self.convolutions):
            out = convolution(out, edges)
            if step < len(self.norms):
                out = torch.relu(self.norms[step](out.flatten(0, 1)).view_as(out))
        if not self.residual:
            return out
        return out + (x if x.shape[-1] == out.shape[-1] else interpolate(x, size=out.shape[-1], mode="linear"))


class ChebConvMeshNet(nn.Module):
    """The same blocks on the same graphs, without padding, sample by node by channel as the library takes them."""

    def __init__(
        self, joints: JointSet, in_channels: int, hierarchy: Hierarchy, *, plan: Plan = PLAN, order: int = 3
    ) -> None:
        super().__init__()
        self.plan = plan
        self.coarsest_size, self.first_channels = hierarchy.sizes[plan[0][0]], plan[0][1][0]
        self.register_buffer("joint_edges", edge_index(joint_adjacency(joints)), persistent=False)
        for level in {level for level, _ in plan}:
            self.register_buffer(f"edges{level}", edge_index(hierarchy.adjacencies[level]), persistent=False)
        for level, parent in enumerate(hierarchy.parents):
            self.register_buffer(f"parent{level}", torch.from_numpy(parent), persistent=False)
        self.joint_block = ChebConvBlock((in_channels, *JOINT_CHANNELS), order, residual=False)
        self.to_mesh = nn.Linear(len(joints) * JOINT_CHANNELS[-1], self.coarsest_size * self.first_channels)
        self.blocks = nn.ModuleList(
            ChebConvBlock(channels, order, is_last=i == len(plan) - 1) for i, (_, channels) in enumerate(plan)
        )

    def forward(self, features: Tensor, joints_m: Tensor) -> Tensor:
        """(B, J, C) features of each joint, (B, J, 3) its 3D position in metres -> (B, V, 3)."""
        x = self.joint_block(self.joint_edges, torch.cat((features, joints_m), dim=-1))
        x = self.to_mesh(x.flatten(1)).unflatten(1, (self.coarsest_size, self.first_channels))
        level = self.plan[0][0]
        for (wanted, _), block in zip(self.plan, self.blocks):
            while level > wanted:
                level -= 1
                x = x[:, getattr(self, f"parent{level}")]
            x = block(getattr(self, f"edges{level}"), x)
        return x
