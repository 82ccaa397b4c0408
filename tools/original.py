"""The published mesh network (Choi et al. 2020), computed literally: what `full` must equal and is measured against.

Graphs are padded until every node has two children, features lie sample-major and are permuted to node-major and back
around every sparse (COO) product, all Chebyshev terms are concatenated before one linear layer, and batch norm sees
the padding nodes. Nothing here is used by the toolkit itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn.functional import interpolate

from gcn.coarsening import Hierarchy
from gcn.graph import Rescaling, joint_adjacency, normalised_laplacian, rescale_laplacian
from gcn.meshnet_full import JOINT_CHANNELS, PLAN, FullMeshNet, GraphBlock, Plan
from mesh.joints import JointSet


def padded_order(hierarchy: Hierarchy) -> list[np.ndarray]:
    """The node at each place of every level, -1 at padding; the children of place p stand at 2 p and 2 p + 1."""
    order = [np.arange(hierarchy.sizes[-1])]
    for parent in reversed(hierarchy.parents):
        children = np.full((len(order[0]), 2), -1)
        for place, node in enumerate(order[0]):
            if node >= 0:
                mine = np.flatnonzero(parent == node)
                children[place, : len(mine)] = mine
        order.insert(0, children.ravel())
    return order


def padded_adjacency(adjacency: sparse.csr_matrix, order: np.ndarray) -> sparse.csr_matrix:
    """The same graph with its nodes in that order and isolated nodes at the padding."""
    places = np.flatnonzero(order >= 0)
    select = sparse.csr_matrix((np.ones(len(places)), (places, order[places])), shape=(len(order), adjacency.shape[0]))
    return (select @ adjacency @ select.T).tocsr()


def coo_tensor(matrix: sparse.spmatrix) -> Tensor:
    """A sparse tensor, left uncoalesced as there."""
    coo = matrix.tocoo()
    index = torch.from_numpy(np.stack([coo.row, coo.col]).astype(np.int64))
    values = torch.tensor(coo.data, dtype=torch.get_default_dtype())
    return torch.sparse_coo_tensor(index, values, coo.shape, check_invariants=False)


class OriginalLayer(nn.Module):
    """Chebyshev convolution by a concatenated basis, with batch norm and ReLU unless it is the last."""

    def __init__(self, in_channels: int, out_channels: int, order: int, *, normed: bool) -> None:
        super().__init__()
        self.order = order
        self.linear = nn.Linear(order * in_channels, out_channels)
        self.norm = nn.BatchNorm1d(out_channels) if normed else None

    def forward(self, laplacian: Tensor, x: Tensor) -> Tensor:
        """(B, N, C_in) -> (B, N, C_out)."""
        batch, nodes, channels = x.shape
        before = x.permute(1, 2, 0).contiguous().view(nodes, channels * batch)
        basis = before[None]
        current = before
        for k in range(1, self.order):
            product = torch.sparse.mm(laplacian, current)
            current, before = (product, current) if k == 1 else (2 * product - before, current)
            basis = torch.cat((basis, current[None]), 0)
        basis = basis.view(self.order, nodes, channels, batch).permute(3, 1, 2, 0).contiguous()
        out = self.linear(basis.view(batch * nodes, channels * self.order))
        if self.norm is not None:
            out = torch.relu(self.norm(out))
        return out.view(batch, nodes, -1)


class OriginalBlock(nn.Module):
    """Layers one after another, plus the input with its channels resampled."""

    def __init__(self, channels: Sequence[int], order: int, *, residual: bool = True, last: bool = False) -> None:
        super().__init__()
        steps = list(zip(channels, channels[1:]))  # noqa: RUF007
        self.layers = nn.ModuleList(
            OriginalLayer(a, b, order, normed=not last or i < len(steps) - 1) for i, (a, b) in enumerate(steps)
        )
        self.residual = residual and not last

    def forward(self, laplacian: Tensor, x: Tensor) -> Tensor:
        """(B, N, C_first) -> (B, N, C_last)."""
        out = x
        for layer in self.layers:
            out = layer(laplacian, out)
        return out + interpolate(x, size=out.shape[-1], mode="linear") if self.residual else out


class OriginalMeshNet(nn.Module):
    """Joints to vertices, as published; the hierarchy's coarsest level is the one without padding."""

    places: Tensor

    def __init__(
        self, joints: JointSet, in_channels: int, hierarchy: Hierarchy, *,
        plan: Plan = PLAN, order: int = 3, rescaling: Rescaling = "legacy",
    ) -> None:  # fmt: skip
        super().__init__()
        self.plan = plan
        padded = padded_order(hierarchy)
        joint_mode: Rescaling = "spectral" if rescaling == "spectral" else "none"
        self.register_buffer(
            "joint_laplacian", coo_tensor(rescale_laplacian(normalised_laplacian(joint_adjacency(joints)), joint_mode))
        )
        for level in {level for level, _ in plan}:
            laplacian = normalised_laplacian(padded_adjacency(hierarchy.adjacencies[level], padded[level]))
            self.register_buffer(f"laplacian{level}", coo_tensor(rescale_laplacian(laplacian, rescaling)))
        places = np.empty(hierarchy.sizes[0], np.int64)
        places[padded[0][padded[0] >= 0]] = np.flatnonzero(padded[0] >= 0)
        self.register_buffer("places", torch.from_numpy(places))
        self.coarsest = padded[plan[0][0]]
        self.first_channels = plan[0][1][0]
        self.joint_block = OriginalBlock((in_channels, *JOINT_CHANNELS), order, residual=False)
        self.to_mesh = nn.Linear(len(joints) * JOINT_CHANNELS[-1], len(self.coarsest) * self.first_channels)
        self.blocks = nn.ModuleList(
            OriginalBlock(channels, order, last=i == len(plan) - 1) for i, (_, channels) in enumerate(plan)
        )

    def forward(self, features: Tensor, joints_m: Tensor) -> Tensor:
        """(B, J, C) features of each joint, (B, J, 3) its 3D position in metres -> (B, V, 3) metres."""
        x = self.joint_block(self.joint_laplacian, torch.cat((features, joints_m), -1))
        x = self.to_mesh(x.flatten(1)).view(len(x), len(self.coarsest), self.first_channels)
        level = self.plan[0][0]
        for (wanted, _), block in zip(self.plan, self.blocks):
            for _ in range(level - wanted):
                x = interpolate(x.permute(0, 2, 1).contiguous(), scale_factor=2.0).permute(0, 2, 1).contiguous()
            level = wanted
            x = block(getattr(self, f"laplacian{level}"), x)
        return x[:, self.places]

    @torch.no_grad()
    def copy_weights(self, net: FullMeshNet) -> None:
        """Take over the weights and batch-norm statistics of a network on the same hierarchy."""
        for mine, other in zip((self.joint_block, *self.blocks), (net.joint_block, *net.blocks)):
            for layer, (convolution, norm) in zip(cast(OriginalBlock, mine).layers, cast(GraphBlock, other).steps()):
                linear, own_norm = cast(nn.Linear, layer.linear), cast("nn.Module | None", layer.norm)
                linear.weight.copy_(convolution.weight.permute(2, 1, 0).flatten(1))  # from (K, C_in, C_out)
                linear.bias.copy_(cast(Tensor, convolution.bias))
                if own_norm is not None and norm is not None:
                    own_norm.load_state_dict(norm.state_dict())
        nodes = net.coarsest_nodes(self.coarsest)
        for name in ("weight", "bias"):
            given = getattr(net.to_mesh, name).unflatten(0, (-1, self.first_channels))
            getattr(self.to_mesh, name).copy_(given[nodes].flatten(0, 1))
