"""The original mesh network: a Chebyshev graph network from joints to all vertices (Choi et al. 2020, section 5).

The same function as published, training included, in another order of operations (see `gcn.layers.trunk`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import cast

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn.functional import linear, relu

from gcn.coarsening import Hierarchy
from gcn.graph import Rescaling, joint_adjacency, normalised_laplacian, rescale_laplacian
from gcn.layers.batchnorm import BatchNorm
from gcn.layers.chebyshev import ChebConv
from gcn.layers.filter import GraphFilter, monomial_weight
from gcn.layers.trunk import Block, Layer, TrunkFunction, evaluate
from gcn.padding import padded_levels
from mesh.joints import JointSet

# Channels of each block and the graph level it works on; between blocks of different level stands an up-sampling.
Plan = tuple[tuple[int, tuple[int, ...]], ...]
PLAN: Plan = (
    (7, (64, 128, 256)),
    *((level, (256, 256, 256)) for level in (6, 5, 4, 3)),
    (2, (256, 128, 128)),
    (1, (128, 128, 128)),
    (0, (128, 128, 128)),
    (0, (128, 64, 3)),
)
LEVELS = 9  # of the hierarchy; the last one has no padding
JOINT_CHANNELS = (32, 64, 64)


class GraphBlock(nn.Module):
    """The parameters of one block: a Chebyshev convolution and a batch norm for each channel step.

    `is_last`: no norm at the end, where coordinates are written.
    """

    def __init__(self, channels: Sequence[int], order: int, *, is_last: bool = False) -> None:
        super().__init__()
        steps = list(zip(channels, channels[1:]))  # noqa: RUF007
        self.convolutions = nn.ModuleList(ChebConv(a, b, order) for a, b in steps)
        self.norms = nn.ModuleList(BatchNorm(b) for _, b in (steps[:-1] if is_last else steps))

    def steps(self) -> Iterator[tuple[ChebConv, BatchNorm | None]]:
        """Each convolution and the norm after it."""
        for convolution, norm in zip_longest(self.convolutions, self.norms):
            yield cast(ChebConv, convolution), cast("BatchNorm | None", norm)


class LevelGraph(nn.Module):
    """The filters of one level, `stay`, and, where an up-sampling comes before, `enter`."""

    parent: Tensor | None
    multiplicity: Tensor

    def __init__(
        self, laplacian: sparse.csr_matrix, multiplicity: np.ndarray, parent: np.ndarray | None, order: int
    ) -> None:
        super().__init__()
        self.num_single = int((np.cumsum(multiplicity != 1) == 0).sum())
        self.stay = GraphFilter(laplacian, order)
        self.enter = None if parent is None else GraphFilter(laplacian, order, parent)
        counts = torch.tensor(multiplicity, dtype=torch.get_default_dtype())
        self.register_buffer("multiplicity", counts, persistent=False)
        self.register_buffer("parent", None if parent is None else torch.from_numpy(parent), persistent=False)

    def block(self, parameters: GraphBlock, *, enters: bool) -> Block:
        """A block of this level with its parameters."""
        layers = tuple(
            Layer(
                filter=cast(GraphFilter, self.enter if enters and place == 0 else self.stay), norm=norm,
                multiplicity=self.multiplicity, num_single=self.num_single,
            )
            for place, (_, norm) in enumerate(parameters.steps())
        )  # fmt: skip
        return Block(layers=layers, parent=self.parent if enters else None, residual=layers[-1].norm is not None)


class FullMeshNet(nn.Module):
    """Joints to vertices: graph convolutions on the joints, one dense step to the coarsest mesh graph, graph blocks
    with nearest up-sampling through the hierarchy.

    In evaluation only real nodes are computed, with batch norm folded into the weights. In training the padding nodes
    of the original's graphs, which count in its batch statistics, are represented as `gcn.padding` says.
    Everything is sample-major, (B, N, C), and in the precision of the weights, under autocast too.
    """

    joint_operator: Tensor
    vertices: Tensor

    def __init__(
        self, joints: JointSet, in_channels: int, hierarchy: Hierarchy, *, plan: Plan = PLAN, order: int = 3,
        rescaling: Rescaling = "spectral", linear_skip: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.plan, self.num_joints = plan, len(joints)
        coarsest, finest = plan[0][0], plan[-1][0]
        visited = [level for level, _ in plan]
        if finest > 0 or not set(np.diff(visited)) <= {0, -1}:
            raise ValueError(f"a plan goes down to level 0 level by level, got {visited}")
        # The joint graph keeps its plain Laplacian under "legacy": the original never rescales that one.
        joint_laplacian = normalised_laplacian(joint_adjacency(joints))
        joint_mode: Rescaling = "spectral" if rescaling == "spectral" else "none"
        dense = rescale_laplacian(joint_laplacian, joint_mode).toarray()
        dtype = torch.get_default_dtype()
        self.register_buffer("joint_operator", torch.tensor(dense, dtype=dtype), persistent=False)
        levels = padded_levels(hierarchy, coarsest)
        self.coarsest_order, self.num_coarsest = levels[-1].nodes, len(levels[-1].multiplicity)
        # Where each vertex stands among the nodes of the finest level.
        self.register_buffer("vertices", torch.from_numpy(np.argsort(levels[finest].nodes)), persistent=False)
        self.joint_block = GraphBlock((in_channels, *JOINT_CHANNELS), order)
        self.to_mesh = nn.Linear(len(joints) * JOINT_CHANNELS[-1], self.num_coarsest * plan[0][1][0])
        self.blocks = nn.ModuleList(
            GraphBlock(channels, order, is_last=i == len(plan) - 1) for i, (_, channels) in enumerate(plan)
        )
        self.skip = nn.Linear(len(joints) * 3, hierarchy.sizes[finest] * 3) if linear_skip else None
        self.real, self.padded = nn.ModuleDict(), nn.ModuleDict()
        for index, level in enumerate(levels):
            laplacian = rescale_laplacian(normalised_laplacian(level.adjacency), rescaling)
            real, parent = slice(level.num_real), level.parent
            self.padded[str(index)] = LevelGraph(laplacian, level.multiplicity, parent, order)
            self.real[str(index)] = LevelGraph(
                laplacian[real, real], level.multiplicity[real], None if parent is None else parent[real], order
            )
        self._folded: tuple[object, list[tuple[Tensor, Tensor]]] = (None, [])

    def coarsest_nodes(self, order: np.ndarray) -> Tensor:
        """Where the nodes of the original's coarsest level, in its order and -1 at padding, stand in ours."""
        nodes = np.argsort(self.coarsest_order)[order]
        nodes[order < 0] = len(self.coarsest_order) + np.arange((order < 0).sum())
        return torch.from_numpy(nodes)

    def forward(self, features: Tensor, joints_m: Tensor) -> Tensor:
        """(B, J, C) features of each joint, (B, J, 3) its 3D position in metres -> (B, V, 3) metres."""
        with torch.autocast(features.device.type, enabled=False):
            joints_m = joints_m.to(self.to_mesh.weight.dtype)
            x = torch.cat((features.to(joints_m), joints_m), dim=-1)
            for convolution, norm in self.joint_block.steps():
                x = convolution(self.joint_operator.matmul, x)
                x = relu(cast(BatchNorm, norm)(x.flatten(0, 1)).view_as(x))
            steps = self._steps()
            needs_gradient = torch.is_grad_enabled() and (
                x.requires_grad or any(c.weight.requires_grad for c, _ in steps)
            )
            uses_batch = any(norm is not None and norm.training for _, norm in steps)
            nodes = (self._train if needs_gradient or uses_batch else self._evaluate)(x.flatten(1))
            vertices = nodes.index_select(1, self.vertices)
            if self.skip is not None:
                vertices = vertices + self.skip(joints_m.flatten(1)).unflatten(1, (-1, 3))
            return vertices

    def _steps(self) -> list[tuple[ChebConv, BatchNorm | None]]:
        return [step for block in self.blocks for step in cast(GraphBlock, block).steps()]

    def _on(self, graphs: nn.ModuleDict) -> list[Block]:
        """The blocks on the graphs of all levels."""
        levels = [level for level, _ in self.plan]
        return [
            cast(LevelGraph, graphs[str(level)]).block(cast(GraphBlock, block), enters=level < before)
            for level, before, block in zip(levels, levels[:1] + levels, self.blocks)
        ]

    def _train(self, joint_features: Tensor) -> Tensor:
        """(B, J C) -> (B, N, 3) at real and representative nodes."""
        start = self.to_mesh(joint_features).unflatten(1, (self.num_coarsest, -1))
        parameters: list[Tensor | None] = []
        for convolution, norm in self._steps():
            parameters += [monomial_weight(convolution.weight), convolution.bias]
            parameters += [] if norm is None else [norm.weight, norm.bias]
        return TrunkFunction.apply(self._on(self.padded), _chunk(start), start, *parameters)

    def _evaluate(self, joint_features: Tensor) -> Tensor:
        """(B, J C) -> (B, N, 3) at real nodes, by running statistics."""
        count = len(self.coarsest_order) * self.plan[0][1][0]
        start = linear(joint_features, self.to_mesh.weight[:count], self.to_mesh.bias[:count])
        start = start.unflatten(1, (len(self.coarsest_order), -1))
        blocks, folded = self._on(self.real), self._folded_weights()
        return torch.cat([evaluate(blocks, folded, chunk) for chunk in start.split(_chunk(start))])

    @torch.no_grad()
    def _folded_weights(self) -> list[tuple[Tensor, Tensor]]:
        """Weight V and bias of each layer with its batch norm in them; made anew when any of them has changed."""
        key = [(t.data_ptr(), t._version) for block in self.blocks for t in (*block.parameters(), *block.buffers())]
        if self._folded[0] != key:
            folded = []
            for convolution, norm in self._steps():
                weight, bias = convolution.weight.data, cast(Tensor, convolution.bias)
                if norm is not None:
                    scale = norm.weight * (cast(Tensor, norm.running_var) + norm.eps).rsqrt()
                    weight, bias = weight * scale, (bias - cast(Tensor, norm.running_mean)) * scale + norm.bias
                folded.append((monomial_weight(weight), bias))
            self._folded = (key, folded)
        return self._folded[1]


def _chunk(x: Tensor) -> int:
    """How many samples are computed at a time: on the CPU one, which stays in the cache."""
    return 1 if x.device.type == "cpu" else len(x)
