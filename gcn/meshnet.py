"""MeshNet: joints to mesh vertices by frames that carry a template, and a Chebyshev graph network that shapes it.

A redesign of Pose2Mesh's mesh network (Choi et al. 2020, section 5) for accuracy per millisecond. What is rigid is left
to one frame per body joint, rotation and place, blended over the nodes of a coarsened body graph as in linear blend
skinning (Loper et al. 2015); what is not, each body's shape and how flesh follows, is an offset of each node in its own
frame. Joints are seen and frames told as the trunk has them, so that no direction is new, and the frames of arms, legs
and head come from networks that see little else. The frames are then moved by what the mesh's own joints still miss of
the given ones. A fixed sparse matrix takes the nodes to all vertices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, relu

from gcn.coarsening import Hierarchy
from gcn.frames import GRAPH_LEVEL, NODE_LEVEL, NodeFrames
from gcn.graph import normalised_laplacian, rescale_laplacian
from gcn.layers.chebyshev import DenseChebConv, dense_polynomials
from gcn.layers.parallel import ParallelLinear, ParallelNetwork
from gcn.layers.part_view import PartView
from gcn.layers.sparse import SparseMatrix
from gcn.parts import CORNERS, HEAD, LIMBS, SIDES, find_limb
from gcn.upsampling import Upsampling
from mesh.errors import require
from mesh.joints import JointSet
from mesh.rotation import rot6d_to_matrix

_APPROACHES = 2  # moves towards the given joints
_FRAME_CHANNELS = 9  # two columns of a rotation, and a move
_UNTURNED = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0)
# With M = diag(-1, 1, 1) the mirrored rotation is M R M: its first column M (-r), its second M r.
_MIRRORED_FRAME = (1.0, -1.0, -1.0, -1.0, 1.0, 1.0, -1.0, 1.0, 1.0)
_PICTURE_CHANNELS = 2  # of the features: what lifting has made use of


@dataclass(frozen=True, kw_only=True)
class MeshNetConfig:
    """Which mesh network, its size, and the switches that reproduce the original.

    "frames" is `MeshNet`; "full" the original, `gcn.meshnet_full.FullMeshNet`, whose size is fixed.
    """

    plan: Literal["frames", "full"] = "frames"
    order: int = 3  # of the Chebyshev filters
    width: int = 256  # "frames": of the networks of the trunk, of arms, of legs and of the head
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
    reached: Tensor
    graph_skinning: Tensor
    frame_places: Tensor
    signs: Tensor
    parent: Tensor
    polynomials: Tensor

    def __init__(
        self, joints: JointSet, in_channels: int, hierarchy: Hierarchy, frames: NodeFrames, upsampling: Upsampling, *,
        width: int = 256, blocks: int = 2, channels: int = 32, graph_blocks: int = 2, order: int = 3,
    ) -> None:  # fmt: skip
        super().__init__()
        num_nodes, num_frames = frames.skinning.shape
        for name in ("rest", "skinning", "graph_skinning", "regressor"):
            self.register_buffer(name, torch.from_numpy(getattr(frames, name)), persistent=False)
        # What the joints make of moving each frame, rounded like all that is fitted (`fit_frames`).
        reached = np.round(frames.regressor.astype(np.float64) @ frames.skinning, 6)
        self.register_buffer("reached", torch.from_numpy(reached).float(), persistent=False)
        self.register_buffer("bones", torch.from_numpy(frames.joints), persistent=False)
        parent = torch.arange(num_nodes)
        for step in hierarchy.parents[NODE_LEVEL:GRAPH_LEVEL]:
            parent = torch.from_numpy(step)[parent]
        self.register_buffer("parent", parent, persistent=False)
        laplacian = normalised_laplacian(hierarchy.adjacencies[GRAPH_LEVEL])
        dense = dense_polynomials(rescale_laplacian(laplacian, "spectral").toarray(), order)
        self.register_buffer("polynomials", torch.from_numpy(dense).float(), persistent=False)
        self.upsample = SparseMatrix(upsampling.matrix(num_nodes))

        self.corners = joints.indices(CORNERS)
        other = in_channels - 3 - _PICTURE_CHANNELS
        limbs, head = [find_limb(joints, *limb) for limb in LIMBS.items()], find_limb(joints, *HEAD)
        self.view = PartView(joints, limbs, head, other)
        inputs = self.view.sizes
        self.networks = ParallelNetwork(inputs, width, blocks)
        most = int(np.bincount(frames.parts).max())
        self.frames = ParallelLinear([width] * len(inputs), most * _FRAME_CHANNELS)
        # Where each frame stands among those of all parts, of which each has two sides: trunk and head are there twice.
        rows = np.arange(SIDES * len(inputs))
        side_of_part = np.delete(rows, [1, len(rows) - 1])
        places = [side_of_part[part] * most + (frames.parts[:i] == part).sum() for i, part in enumerate(frames.parts)]
        self.register_buffer("frame_places", torch.tensor(places), persistent=False)
        signs = torch.ones(len(rows), 1, 1, _FRAME_CHANNELS)
        signs[3:-2:SIDES] = torch.tensor(_MIRRORED_FRAME)
        self.register_buffer("signs", signs, persistent=False)
        self.mix = nn.Parameter(torch.tensor(frames.mix))  # a copy: it is trained
        self.offsets = nn.Linear(width, num_nodes * 3)
        self.latent = nn.Linear(width, num_frames * channels)
        self.embedding = nn.Parameter(torch.empty(len(frames.graph_skinning), 1, channels))
        self.blocks = nn.ModuleList(GraphBlock(channels, order) for _ in range(graph_blocks))
        self.to_offset = DenseChebConv(channels, 3, order)
        self._begin()

    @torch.no_grad()
    def _begin(self) -> None:
        """Begin near an unchanged template, turned as the trunk is, with its joints at the lifted ones."""
        nn.init.normal_(self.embedding, std=0.1)
        self.frames.weight.mul_(0.2)
        assert self.frames.bias is not None
        self.frames.bias.copy_(torch.tensor(_UNTURNED).repeat(self.frames.bias.shape[-1] // _FRAME_CHANNELS))
        for layer, scale in ((self.offsets, 0.05), (self.to_offset, 0.1)):
            layer.weight.mul_(scale)
        nn.init.zeros_(self.offsets.bias)

    def forward(self, features: Tensor, joints_m: Tensor) -> Tensor:
        """(B, I, C) features of each joint, (B, I, 3) its 3D position in metres -> (B, V, 3) metres.

        In the precision of the weights, under autocast too.
        """
        with torch.autocast(features.device.type, enabled=False):
            features, joints_m = features.to(self.rest), joints_m.to(self.rest)
            trunk = self._trunk_frame(joints_m)
            other, local, down = features[..., _PICTURE_CHANNELS:], joints_m @ trunk, trunk[:, 1]
            hidden = self.networks(self.view(other, local, down))  # (parts, 2 B, width)
            bones = self._bone_transforms(self._frames(hidden), trunk, joints_m)  # (B, J, 3, 4)
            hidden = hidden[0, : len(features)]
            blended = (self.skinning @ bones.flatten(2)).unflatten(2, (3, 4))  # (B, K, 3, 4)
            shaped = self.rest + self._offsets(hidden)
            nodes = (blended[..., :3] @ shaped[..., None])[..., 0] + blended[..., 3]
            nodes = nodes + self.skinning @ self._approach(joints_m - self.regressor @ nodes)
            return self.upsample(nodes.transpose(0, 1)).transpose(0, 1)

    def _trunk_frame(self, joints_m: Tensor) -> Tensor:
        """The body's left, up and front as columns, as a rest pose has them for x, y and z, (B, 3, 3).

        Zeros where shoulders and hips lie in one place: such a mesh has no extent.
        """
        left_shoulder, right_shoulder, left_hip, right_hip = (joints_m[:, j] for j in self.corners)
        left = left_shoulder - right_shoulder + left_hip - right_hip
        up = left_shoulder + right_shoulder - left_hip - right_hip
        return rot6d_to_matrix(torch.cat((left, up), dim=1))

    def _frames(self, hidden: Tensor) -> Tensor:
        """(parts, 2 B, width) -> columns x, y of each joint's rotation and its move in the trunk's frame (B, J, 9)."""
        written = self.frames(hidden).unflatten(1, (SIDES, -1)).flatten(0, 1)  # (2 parts, B, most frames x 9)
        written = written.unflatten(-1, (-1, _FRAME_CHANNELS)) * self.signs
        return written.transpose(0, 1).flatten(1, 2).index_select(1, self.frame_places)

    def _bone_transforms(self, frames: Tensor, trunk: Tensor, joints_m: Tensor) -> Tensor:
        """What carries rest-pose points with each joint, (B, J, 3, 4), from the frames in that of the trunk."""
        rotation = trunk[:, None] @ rot6d_to_matrix(frames[..., :6])
        place = self.mix @ joints_m + frames[..., 6:] @ trunk.transpose(1, 2)
        shift = place - (rotation @ self.bones[..., None])[..., 0]
        return torch.cat((rotation, shift[..., None]), dim=-1)

    def _approach(self, missed_m: Tensor) -> Tensor:
        """How far frames move (B, J, 3) that are given what the joints of the nodes miss (B, I, 3), again and again."""
        moved = missed_m.new_zeros(len(missed_m), len(self.mix), 3)
        for _ in range(_APPROACHES):
            move = self.mix @ missed_m
            moved, missed_m = moved + move, missed_m - self.reached @ move
        return moved

    def _offsets(self, hidden: Tensor) -> Tensor:
        """How each node leaves its place in the rest pose, (B, K, 3) metres."""
        latent = self.latent(hidden).unflatten(1, (len(self.bones), -1))  # (B, J, C)
        x = torch.einsum("gj,bjc->gbc", self.graph_skinning, latent) + self.embedding
        for block in self.blocks:
            x = block(self.polynomials, x)
        smooth = self.to_offset(self.polynomials, x)  # (G, B, 3)
        return self.offsets(hidden).unflatten(1, (-1, 3)) + smooth[self.parent].transpose(0, 1)
