"""MeshNet: a Chebyshev graph network from joints to mesh vertices (Choi et al. 2020, Pose2Mesh, section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

from gcn.coarsening import Hierarchy
from gcn.graph import Rescaling, joint_adjacency, normalised_laplacian, rescale_laplacian
from gcn.layers.batchnorm import BatchNorm
from gcn.layers.chebyshev import ChebConv, Operator
from gcn.layers.sparse import SparseMatrix
from gcn.upsampling import Upsampling
from mesh.errors import require
from mesh.joints import JointSet

# Channels of each block and the graph level it works on; between blocks of different level stands an up-sampling.
Plan = tuple[tuple[int, tuple[int, ...]], ...]
PLANS: dict[str, Plan] = {
    # The original network: nine blocks from level 7 to all vertices .
    "full": (
        (7, (64, 128, 256)),
        *((level, (256, 256, 256)) for level in (6, 5, 4, 3)),
        (2, (256, 128, 128)),
        (1, (128, 128, 128)),
        (0, (128, 128, 128)),
        (0, (128, 64, 3)),
    ),
    # Stops at 289 nodes; a fixed sparse matrix reaches the vertices.
    "coarse": ((7, (32, 64, 64)), (6, (64, 64, 64)), (5, (64, 64, 64)), (5, (64, 32, 3))),
}
JOINT_CHANNELS = (32, 64, 64)


@dataclass(frozen=True, kw_only=True)
class MeshNetConfig:
    """Which plan, and the switches that reproduce the original."""

    plan: Literal["coarse", "full"] = "coarse"
    order: int = 3
    rescaling: Literal["spectral", "legacy"] = "spectral"
    linear_skip: bool = True  # add a linear map of the 3D joints, so that the graph learns what is left
    upsampling_terms: int = 12
    upsampling_bodies: int = 128  # posed bodies that the up-sampling is fitted to

    def __post_init__(self) -> None:
        require(self.order >= 1, f"meshnet.order must be at least 1, got {self.order}")
        require(1 <= self.upsampling_terms <= 64, f"meshnet.upsampling_terms: 1 to 64, got {self.upsampling_terms}")
        require(self.upsampling_bodies >= 1, f"meshnet.upsampling_bodies: at least 1, got {self.upsampling_bodies}")


class GraphBlock(nn.Module):
    """[Chebyshev convolution, batch norm, ReLU] for each channel step, plus the input as residual.

    `is_last` leaves norm, ReLU and residual off at the end: the block that writes coordinates.
    """

    def __init__(self, channels: Sequence[int], order: int, *, residual: bool = True, is_last: bool = False) -> None:
        super().__init__()
        steps = list(zip(channels, channels[1:]))  # noqa: RUF007
        self.convolutions = nn.ModuleList(ChebConv(a, b, order) for a, b in steps)
        normed = steps[:-1] if is_last else steps
        self.norms = nn.ModuleList(BatchNorm(b) for _, b in normed)
        self.residual = residual and not is_last

    def forward(self, operator: Operator, x: Tensor) -> Tensor:
        """(N, B, C_first) -> (N, B, C_last)."""
        out = x
        for step, convolution in enumerate(self.convolutions):
            out = convolution(operator, out)
            if step < len(self.norms):
                out = relu(self.norms[step](out.flatten(0, 1)).view_as(out))
        return out + resize_channels(x, out.shape[-1]) if self.residual else out


def resize_channels(x: Tensor, channels: int) -> Tensor:
    """The original's shortcut between widths: the channels resampled as if they were a signal."""
    if x.shape[-1] == channels:
        return x
    return interpolate(x, size=channels, mode="linear")


class MeshNet(nn.Module):
    """Joints to vertices: graph convolutions on the joints, one dense step to the coarsest mesh graph, graph blocks
    with nearest up-sampling through the hierarchy, and for plans that stop early a fixed sparse matrix at the end.

    Everything inside is node-major, (N, B, C).
    """

    def __init__(
        self, joints: JointSet, in_channels: int, hierarchy: Hierarchy, upsampling: Upsampling | None, *,
        plan: Plan, order: int = 3, rescaling: Rescaling = "spectral", linear_skip: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.plan, self.num_joints = plan, len(joints)
        coarsest, finest = plan[0][0], plan[-1][0]
        if (finest > 0) != (upsampling is not None):
            raise ValueError(f"a plan that ends at level {finest} needs {'an' if finest else 'no'} up-sampling matrix")
        sizes = hierarchy.sizes
        self.coarsest_size, self.first_channels = sizes[coarsest], plan[0][1][0]
        # The joint graph keeps its plain Laplacian under "legacy": the original never rescales that one.
        joint_laplacian = normalised_laplacian(joint_adjacency(joints))
        joint_mode: Rescaling = "spectral" if rescaling == "spectral" else "none"
        self.joint_operator = SparseMatrix(rescale_laplacian(joint_laplacian, joint_mode))
        self.operators = nn.ModuleDict()
        for level in sorted({level for level, _ in plan}):
            laplacian = normalised_laplacian(hierarchy.adjacencies[level])
            self.operators[str(level)] = SparseMatrix(rescale_laplacian(laplacian, rescaling))
            if level < coarsest:
                self.register_buffer(f"parent{level}", torch.from_numpy(hierarchy.parents[level]), persistent=False)
        self.joint_block = GraphBlock((in_channels, *JOINT_CHANNELS), order, residual=False)
        self.to_mesh = nn.Linear(len(joints) * JOINT_CHANNELS[-1], self.coarsest_size * self.first_channels)
        self.blocks = nn.ModuleList(
            GraphBlock(channels, order, is_last=i == len(plan) - 1) for i, (_, channels) in enumerate(plan)
        )
        self.skip = nn.Linear(len(joints) * 3, sizes[finest] * 3) if linear_skip else None
        self.upsample = None if upsampling is None else SparseMatrix(upsampling.matrix(sizes[finest]))

    def forward(self, features: Tensor, joints_m: Tensor) -> Tensor:
        """(B, J, C) features of each joint, (B, J, 3) its 3D position in metres -> (B, V, 3) metres."""
        x = torch.cat((features, joints_m), dim=-1).transpose(0, 1)
        x = self.joint_block(self.joint_operator, x.contiguous())  # (J, B, 64)
        x = self.to_mesh(x.transpose(0, 1).flatten(1))
        x = x.unflatten(1, (self.coarsest_size, self.first_channels)).transpose(0, 1).contiguous()
        level = self.plan[0][0]
        for (block_level, _), block in zip(self.plan, self.blocks):
            if block_level < level:
                x = x[getattr(self, f"parent{block_level}")]
                level = block_level
            x = block(self.operators[str(level)], x)
        if self.skip is not None:
            x = x + self.skip(joints_m.flatten(1)).unflatten(1, (-1, 3)).transpose(0, 1)
        if self.upsample is not None:
            x = self.upsample(x)
        return x.transpose(0, 1)
