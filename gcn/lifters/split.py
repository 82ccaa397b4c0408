"""A lifter in parts: trunk, arms and legs have networks of their own, which tell each other little.

After "SRNet: Improving Generalization in 3D Human Pose Estimation with a Split-and-Recombine Approach" (Zeng et al.
2020): what an arm looks like is seldom new, the pose of the whole body often is. Here, besides, the left and the
right limb have the same weights, and a limb is seen with the trunk's corners and placed at its shoulder or hip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from mesh.errors import InputError, require
from mesh.joints import JointSet

_CORNERS = ("left_shoulder", "right_shoulder", "left_hip", "right_hip")
_LIMBS = {"left_shoulder": "left_elbow", "left_hip": "left_knee"}
_SIDES = 2
_PARTS = 1 + _SIDES * len(_LIMBS)


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


@dataclass(frozen=True, kw_only=True)
class Limb:
    """A left limb: where it is attached, its joints from there outwards, and to which of them (-1: the attachment)
    each is linked."""

    base: int
    joints: tuple[int, ...]
    parents: tuple[int, ...]


def find_limb(joints: JointSet, base: str, first: str) -> Limb:
    """All that hangs on `first`, seen from `base`."""
    missing = [name for name in (base, first) if name not in joints.names]
    if missing:
        raise InputError(f"a split lifter needs shoulders, elbows, hips and knees; {joints.name} has no {missing[0]}")
    found, parents = [joints.index(first)], [-1]
    for place, joint in enumerate(found):  # grows meanwhile
        for edge in joints.edges:
            for here, other in (edge, edge[::-1]):
                if here == joint and other not in (joints.index(base), *found):
                    found.append(other)
                    parents.append(place)
    return Limb(base=joints.index(base), joints=tuple(found), parents=tuple(parents))


class PartLayers(nn.Module):
    """What one block consists of for one kind of part."""

    def __init__(self, width: int, context: int, count: int) -> None:
        """count: 1 for the trunk, 2 for limbs."""
        super().__init__()
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.first, self.second = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.tell = nn.Linear(width, context)
        # Each side hears in its own way: the others do not stand there as in a mirror.
        self.hear = nn.ModuleList(nn.Linear(_PARTS * context, width) for _ in range(count))


class SplitBlock(nn.Module):
    """x + f(x) for each part, where f is twice [norm, ReLU, linear], and in between it hears of all parts."""

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        counts = (1, *[_SIDES] * len(_LIMBS))
        self.kinds = nn.ModuleList(PartLayers(width, context, count) for count in counts)

    def forward(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """(B, width) of the trunk, (2 B, width) of each kind of limb, the left ones first -> the same."""
        kinds = [cast(PartLayers, kind) for kind in self.kinds]
        active = [relu(kind.first_norm(part)) for kind, part in zip(kinds, parts)]
        told = [piece for kind, x in zip(kinds, active) for piece in kind.tell(x).chunk(len(kind.hear))]
        context = torch.cat(told, dim=-1)
        written = []
        for kind, part, x in zip(kinds, parts, active):
            heard = torch.cat([hear(context) for hear in kind.hear])
            written.append(part + kind.second(relu(kind.second_norm(kind.first(x) + heard))))
        return written


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
        swap, corners = joints.flip_permutation, joints.indices(_CORNERS)
        self.limbs = [find_limb(joints, base, first) for base, first in _LIMBS.items()]
        in_limbs = [j for limb in self.limbs for j in (*limb.joints, *(swap[j] for j in limb.joints))]
        trunk = [joint for joint in range(len(joints)) if joint not in in_limbs]
        self.bases = [[trunk.index(j) for j in (limb.base, swap[limb.base])] for limb in self.limbs]
        self.register_buffer("order", torch.tensor(trunk + in_limbs).argsort(), persistent=False)
        # What each part sees: the trunk itself, limbs themselves and the trunk's corners; right limbs as in a mirror.
        seen = [trunk]
        for limb in self.limbs:
            left = [*limb.joints, *corners]
            seen += [left, [swap[j] for j in left]]
        self.seen_sizes = [len(part) for part in seen]
        signs = torch.ones(sum(self.seen_sizes), in_channels)
        for part, of_part in enumerate(signs.split(self.seen_sizes)):
            if part and part % _SIDES == 0:
                of_part[:, 0] = -1
        self.register_buffer("looks", torch.tensor([j for part in seen for j in part]), persistent=False)
        self.register_buffer("signs", signs, persistent=False)
        inputs = [size * in_channels for size in (self.seen_sizes[0], *self.seen_sizes[1::_SIDES])]
        self.stems = nn.ModuleList(nn.Linear(size, width) for size in inputs)
        self.blocks = nn.Sequential(*[SplitBlock(width, context) for _ in range(blocks)])
        outputs = [len(trunk), *(len(limb.joints) for limb in self.limbs)]
        self.heads = nn.ModuleList(nn.Linear(width, 3 * size) for size in outputs)

    def forward(self, features: Tensor) -> Tensor:
        """(B, J, C) of `gcn.features.pose_features` -> (B, J, 3) metres; the root is exactly 0."""
        seen = features.index_select(1, self.looks) * self.signs.to(features)
        trunk, *sides = (part.flatten(1) for part in seen.split(self.seen_sizes, dim=1))
        inputs = [trunk, *(torch.cat(pair) for pair in zip(sides[::_SIDES], sides[1::_SIDES]))]
        parts = self.blocks([stem(x) for stem, x in zip(self.stems, inputs)])
        # Not in half precision: sums of offsets would suffer.
        written = [head(x).to(features).unflatten(1, (-1, 3)) for head, x in zip(self.heads, parts)]
        placed = [written[0]]
        for limb, bases, offsets in zip(self.limbs, self.bases, written[1:]):
            left, right = offsets.chunk(_SIDES)
            mirrored = torch.cat((-right[..., :1], right[..., 1:]), dim=-1)
            for base, side in zip(bases, (left, mirrored)):
                placed.append(_placed(written[0][:, base], side, limb.parents))
        joints = torch.cat(placed, dim=1).index_select(1, self.order)
        return (joints - joints[:, self.root_idx, None]) * self.output_unit_m


def _placed(base: Tensor, offsets: Tensor, parents: Sequence[int]) -> Tensor:
    """Positions (B, n, 3) from the place of attachment (B, 3) and each joint's offset from its parent (B, n, 3)."""
    at: list[Tensor] = []
    for offset, parent in zip(offsets.unbind(1), parents):
        at.append((base if parent < 0 else at[parent]) + offset)
    return torch.stack(at, dim=1)
