"""MeshNet: joints to mesh vertices by frames that carry a template, and a Chebyshev graph network that shapes it.

A redesign of Pose2Mesh's mesh network (Choi et al. 2020, section 5) for accuracy per millisecond. What is rigid is left
to one frame per body joint, rotation and place, blended over the nodes of a coarsened body graph as in linear blend
skinning (Loper et al. 2015); what is not, each body's shape and how flesh follows, is an offset of each node in its own
frame. The frames are then moved by what the mesh's own joints still miss of the given ones. A fixed sparse matrix takes
the nodes to all vertices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, relu

from gcn.coarsening import Hierarchy
from gcn.frames import GRAPH_LEVEL, NODE_LEVEL, NodeFrames
from gcn.graph import normalised_laplacian, rescale_laplacian
from gcn.layers.chebyshev import DenseChebConv, dense_polynomials
from gcn.layers.sparse import SparseMatrix
from gcn.posenet import ResidualBlock
from gcn.upsampling import Upsampling
from mesh.errors import require
from mesh.joints import JointSet
from mesh.rotation import rot6d_to_matrix

_APPROACHES = 2  # moves towards the given joints
_UPRIGHT = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)  # 6D rotation of a standing person who faces the camera (y down)


@dataclass(frozen=True, kw_only=True)
class MeshNetConfig:
    """Which mesh network, its size, and the switches that reproduce the original.

    "frames" is `MeshNet`; "full" the original, `gcn.meshnet_full.FullMeshNet`, whose size is fixed.
    """

    plan: Literal["frames", "full"] = "frames"
    order: int = 3  # of the Chebyshev filters
    width: int = 768  # "frames": of the layers that all frames are read from
    blocks: int = 2
    channels: int = 32  # "frames": of the graph convolutions
    graph_blocks: int = 2
    upsampling_terms: int = 12
    upsampling_bodies: int = 128  # posed bodies that the up-sampling and the first frames are fitted to
    rescaling: Literal["spectral", "legacy"] = "spectral"  # "full": of the Laplacians
    linear_skip: bool = True  # "full": add a linear map of the 3D joints, so that the graph learns what is left

    def __post_init__(self) -> None:
        for name in ("order", "width", "channels", "upsampling_bodies"):
            require(getattr(self, name) >= 1, f"meshnet.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("blocks", "graph_blocks"):
            require(getattr(self, name) >= 0, f"meshnet.{name} must not be negative, got {getattr(self, name)}")
        require(1 <= self.upsampling_terms <= 64, f"meshnet.upsampling_terms: 1 to 64, got {self.upsampling_terms}")


class GraphBlock(nn.Module):
    """x + f(x), where f is twice [layer norm, ReLU, Chebyshev convolution]."""

    def __init__(self, channels: int, order: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(DenseChebConv(channels, channels, order) for _ in range(2))

    def forward(self, polynomials: Tensor, x: Tensor) -> Tensor:
        """(K - 1, N, N) of `dense_polynomials`, (N, B, C) -> (N, B, C)."""
        out = x
        for convolution in self.convolutions:
            out = convolution(polynomials, relu(layer_norm(out, out.shape[-1:])))
        return x + out


class MeshNet(nn.Module):
    """Features and 3D positions of the input joints to vertices, metres, camera frame, relative to the pelvis."""

    rest: Tensor
    skinning: Tensor
    regressor: Tensor
    bones: Tensor
    graph_skinning: Tensor
    parent: Tensor
    polynomials: Tensor

    def __init__(
        self, joints: JointSet, in_channels: int, hierarchy: Hierarchy, frames: NodeFrames, upsampling: Upsampling, *,
        width: int = 512, blocks: int = 2, channels: int = 32, graph_blocks: int = 2, order: int = 3,
    ) -> None:  # fmt: skip
        super().__init__()
        num_nodes, num_frames = frames.skinning.shape
        for name in ("rest", "skinning", "graph_skinning", "regressor"):
            self.register_buffer(name, torch.from_numpy(getattr(frames, name)), persistent=False)
        self.register_buffer("bones", torch.from_numpy(frames.joints), persistent=False)
        parent = torch.arange(num_nodes)
        for step in hierarchy.parents[NODE_LEVEL:GRAPH_LEVEL]:
            parent = torch.from_numpy(step)[parent]
        self.register_buffer("parent", parent, persistent=False)
        laplacian = normalised_laplacian(hierarchy.adjacencies[GRAPH_LEVEL])
        dense = dense_polynomials(rescale_laplacian(laplacian, "spectral").toarray(), order)
        self.register_buffer("polynomials", torch.from_numpy(dense).float(), persistent=False)
        self.upsample = SparseMatrix(upsampling.matrix(num_nodes))

        self.trunk = nn.Sequential(
            nn.Linear(len(joints) * in_channels, width),
            *[ResidualBlock(width, dropout=0.0, norm="layer") for _ in range(blocks)],
            nn.LayerNorm(width),
            nn.ReLU(),
        )
        self.rotations = nn.Linear(width, num_frames * 6)
        self.places = nn.Linear(width, num_frames * 3)
        self.mix = nn.Parameter(torch.tensor(frames.mix))  # a copy: it is trained
        self.offsets = nn.Linear(width, num_nodes * 3)
        self.latent = nn.Linear(width, num_frames * channels)
        self.embedding = nn.Parameter(torch.empty(len(frames.graph_skinning), 1, channels))
        self.blocks = nn.ModuleList(GraphBlock(channels, order) for _ in range(graph_blocks))
        self.to_offset = DenseChebConv(channels, 3, order)
        with torch.no_grad():  # begins near the lifted joints and an unchanged template
            nn.init.normal_(self.embedding, std=0.1)
            self.rotations.bias.copy_(torch.tensor(_UPRIGHT).repeat(num_frames))
            for layer, scale in (
                (self.rotations, 0.3),
                (self.places, 0.1),
                (self.offsets, 0.05),
                (self.to_offset, 0.1),
            ):
                layer.weight.mul_(scale)
            nn.init.zeros_(self.places.bias)
            nn.init.zeros_(self.offsets.bias)

    def forward(self, features: Tensor, joints_m: Tensor) -> Tensor:
        """(B, I, C) features of each joint, (B, I, 3) its 3D position in metres -> (B, V, 3) metres."""
        hidden = self.trunk(torch.cat((features, joints_m), dim=-1).flatten(1))
        bones = self._bone_transforms(hidden, joints_m)  # (B, J, 3, 4)
        blended = (self.skinning @ bones.flatten(2)).unflatten(2, (3, 4))  # (B, K, 3, 4)
        shaped = self.rest + self._offsets(hidden)
        nodes = (blended[..., :3] @ shaped[..., None])[..., 0] + blended[..., 3]
        for _ in range(_APPROACHES):
            nodes = nodes + self.skinning @ (self.mix @ (joints_m - self.regressor @ nodes))
        return self.upsample(nodes.transpose(0, 1)).transpose(0, 1)

    def _bone_transforms(self, hidden: Tensor, joints_m: Tensor) -> Tensor:
        """What carries rest-pose points with each joint, (B, J, 3, 4)."""
        rotation = rot6d_to_matrix(self.rotations(hidden).unflatten(1, (-1, 6)))
        place = self.mix @ joints_m + self.places(hidden).unflatten(1, (-1, 3))
        shift = place - (rotation @ self.bones[..., None])[..., 0]
        return torch.cat((rotation, shift[..., None]), dim=-1)

    def _offsets(self, hidden: Tensor) -> Tensor:
        """How each node leaves its place in the rest pose, (B, K, 3) metres."""
        latent = self.latent(hidden).unflatten(1, (len(self.bones), -1))  # (B, J, C)
        x = torch.einsum("gj,bjc->gbc", self.graph_skinning, latent) + self.embedding
        for block in self.blocks:
            x = block(self.polynomials, x)
        smooth = self.to_offset(self.polynomials, x)  # (G, B, 3)
        return self.offsets(hidden).unflatten(1, (-1, 3)) + smooth[self.parent].transpose(0, 1)
