"""A lifter in parts: trunk, arms and legs have networks of their own, which tell each other little.

After "SRNet: Improving Generalization in 3D Human Pose Estimation with a Split-and-Recombine Approach" (Zeng et al.
2020): what an arm looks like is seldom new, the pose of the whole body often is. Here, besides, the left and the
right limb have the same weights, and a limb is seen with the trunk's corners and placed at its shoulder or hip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, relu

from gcn.layers.parallel import ParallelLinear, ParallelNorm
from gcn.parts import CORNERS, LIMBS, SIDES, find_limb
from mesh.errors import require
from mesh.joints import JointSet

_PARTS = 1 + SIDES * len(LIMBS)


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Size of the lifter: `width` numbers for each of its five parts, `context` of which the other parts hear of."""

    width: int = 320
    blocks: int = 3
    context: int = 16
    output_unit_m: float = 1.0

    def __post_init__(self) -> None:
        require(
            self.width >= 1 and self.blocks >= 0 and self.context >= 1,
            f"split needs width >= 1, blocks >= 0 and context >= 1, got {self}",
        )
        require(self.output_unit_m > 0, f"split.output_unit_m must be positive, got {self.output_unit_m}")


class SplitBlock(nn.Module):
    """x + f(x) for each part, where f is twice [norm, ReLU, linear], and in between it hears of all parts."""

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        kinds = 1 + len(LIMBS)
        self.first_norm, self.second_norm = ParallelNorm(kinds, width), ParallelNorm(kinds, width)
        self.first = ParallelLinear([width] * kinds, width, bias=False)
        self.second = ParallelLinear([width] * kinds, width)
        self.tell = ParallelLinear([width] * kinds, context)
        # Each side hears in its own way: the others do not stand there as in a mirror.
        self.hear = nn.Linear(_PARTS * context, _PARTS * width)

    def forward(self, x: Tensor) -> Tensor:
        """(kinds, 2 B, width): the trunk twice, left and right arms, left and right legs -> the same."""
        active = relu(self.first_norm(x))
        told = self.tell(active).unflatten(1, (SIDES, -1)).flatten(0, 1)[1:]  # (parts, B, context), the trunk once
        heard = self.hear(told.transpose(0, 1).flatten(1)).unflatten(1, (_PARTS, -1)).transpose(0, 1)
        heard = torch.cat((heard[:1], heard)).view_as(x)
        return x + self.second(relu(self.second_norm(self.first(active, heard))))


class SplitLifter(nn.Module):
    """2D joints to root-relative 3D joints of the same set, in metres, camera frame."""

    order: Tensor
    looks: Tensor
    signs: Tensor

    def __init__(
        self, joints: JointSet, in_channels: int, *, width: int = 320, blocks: int = 3, context: int = 16,
        output_unit_m: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.output_unit_m, self.root_idx = output_unit_m, joints.root_idx
        swap, corners = joints.flip_permutation, joints.indices(CORNERS)
        self.limbs = [find_limb(joints, base, first) for base, first in LIMBS.items()]
        in_limbs = [j for limb in self.limbs for j in (*limb.joints, *(swap[j] for j in limb.joints))]
        trunk = [joint for joint in range(len(joints)) if joint not in in_limbs]
        self.bases = [[trunk.index(j) for j in (limb.base, swap[limb.base])] for limb in self.limbs]
        self.register_buffer("order", torch.tensor(trunk + in_limbs).argsort(), persistent=False)
        # What each part sees, joint for joint: the trunk itself, limbs themselves and the trunk's corners; right limbs
        # as in a mirror. Where a part sees fewer than the most, -1: nothing.
        seen = [trunk, trunk]
        for limb in self.limbs:
            left = [*limb.joints, *corners]
            seen += [left, [swap[j] for j in left]]
        most = max(map(len, seen))
        looks = torch.tensor([part + [-1] * (most - len(part)) for part in seen])
        signs = torch.ones(len(seen), 1, most, in_channels)
        signs[SIDES + 1 :: SIDES, ..., 0] = -1
        self.register_buffer("looks", torch.where(looks < 0, len(joints), looks).flatten(), persistent=False)
        self.register_buffer("signs", signs, persistent=False)
        self.stem = ParallelLinear([len(part) * in_channels for part in seen[::SIDES]], width)
        self.blocks = nn.Sequential(*[SplitBlock(width, context) for _ in range(blocks)])
        self.outputs = [len(trunk), *(len(limb.joints) for limb in self.limbs)]
        self.heads = ParallelLinear([width] * len(self.outputs), 3 * max(self.outputs))

    def forward(self, features: Tensor) -> Tensor:
        """(B, J, C) of `gcn.features.pose_features` -> (B, J, 3) metres; the root is exactly 0."""
        padded = pad(features, (0, 0, 0, 1))  # a joint of zeros, for those that see fewer
        seen = padded.index_select(1, self.looks).unflatten(1, (len(self.signs), -1)).transpose(0, 1) * self.signs
        x = self.blocks(self.stem(seen.flatten(2).unflatten(0, (-1, SIDES)).flatten(1, 2)))
        # Not in half precision: sums of offsets would suffer.
        written = self.heads(x).to(features).unflatten(1, (SIDES, -1)).unflatten(-1, (-1, 3))  # (kinds, 2, B, most, 3)
        trunk = written[0, 0, :, : self.outputs[0]]
        placed = [trunk]
        for limb, bases, of_kind in zip(self.limbs, self.bases, written[1:]):
            left, right = of_kind[:, :, : len(limb.joints)]
            mirrored = torch.cat((-right[..., :1], right[..., 1:]), dim=-1)
            for base, side in zip(bases, (left, mirrored)):
                placed.append(_placed(trunk[:, base], side, limb.parents))
        joints = torch.cat(placed, dim=1).index_select(1, self.order)
        return (joints - joints[:, self.root_idx, None]) * self.output_unit_m


def _placed(base: Tensor, offsets: Tensor, parents: Sequence[int]) -> Tensor:
    """Positions (B, n, 3) from the place of attachment (B, 3) and each joint's offset from its parent (B, n, 3)."""
    at: list[Tensor] = []
    for offset, parent in zip(offsets.unbind(1), parents):
        at.append((base if parent < 0 else at[parent]) + offset)
    return torch.stack(at, dim=1)
