"""What networks of the parts of a body see of it: each its own joints, and one all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from gcn.parts import CORNERS, SIDES, Limb
from mesh.joints import JointSet

_T = TypeVar("_T")
_Seen = tuple[str, int]  # one vector of "bone", "bend" and "other", or "known": the other channels of one joint


@dataclass(frozen=True, kw_only=True)
class _Vector:
    """From one point, or from the middle, to another; seen in a mirror or not."""

    to: int
    start: int | None = None
    mirrored: bool = False


def _numbered(kind: str, there: list[_T], added: list[_T]) -> list[_Seen]:
    """What of this kind is added to what there is, and its numbers from then on."""
    there += added
    return [(kind, k) for k in range(len(there) - len(added), len(there))]


def _see_limb(
    joints: JointSet,
    limb: Limb,
    mirrored: bool,
    bones: list[_Vector],
    others: list[_Vector],
    bends: list[tuple[int, int]],
) -> list[_Seen]:
    """What is seen of a limb, whose vectors and pairs of bones are added to those there are."""
    side = joints.flip_permutation if mirrored else tuple(range(len(joints)))
    own = [side[joint] for joint in (limb.base, *limb.joints)]
    along = [_Vector(to=to, start=own[p + 1], mirrored=mirrored) for to, p in zip(own[1:], limb.parents)]
    reaches = [_Vector(to=to, start=own[0], mirrored=mirrored) for to in own[1:]]
    around = [_Vector(to=side[corner], mirrored=mirrored) for corner in joints.indices(CORNERS)]
    around.append(_Vector(to=len(joints), mirrored=mirrored))
    follow = [(len(bones) + k, len(bones) + k + 1) for k in range(len(along) - 1)]
    seen = [
        *_numbered("other", others, reaches),
        *_numbered("bone", bones, along),
        *_numbered("bend", bends, follow),
        *_numbered("other", others, around),
    ]
    return seen + [("known", joint) for joint in own]


def _places(seen: Sequence[Sequence[_Seen]], counts: Mapping[str, int], other_channels: int) -> Tensor:
    """Where what each part sees stands among all numbers, kind by kind; the last, a 0, where it sees no more."""
    widths = dict.fromkeys(counts, 3) | {"known": other_channels}
    starts, end = {}, 0
    for kind, count in counts.items():
        starts[kind], end = end, end + count * widths[kind]
    parts = [[starts[kind] + k * widths[kind] + c for kind, k in part for c in range(widths[kind])] for part in seen]
    most = max(map(len, parts))
    return torch.tensor([part + [end] * (most - len(part)) for part in parts]).flatten()


class PartView(nn.Module):
    """Joints in the trunk's frame, for `gcn.layers.parallel`: the whole first, then limbs, each left and right, then
    the head. Right limbs are seen as in a mirror; the whole and the head, which have one side, are there twice.

    Of a limb, and of the head: its joints from where it is attached, the directions of its bones, the normals of each
    two that follow each other, the trunk's corners, where the camera has down, and what else is known of its joints. Of
    the whole: what is known of all joints, where they are, and down.
    """

    differences: Tensor
    signs: Tensor
    bends: Tensor
    places: Tensor

    def __init__(self, joints: JointSet, limbs: Sequence[Limb], head: Limb, other_channels: int) -> None:
        super().__init__()
        bones: list[_Vector] = []
        others = [_Vector(to=point) for point in range(len(joints) + 1)]  # the last point is down
        bends: list[tuple[int, int]] = []
        whole = [("known", joint) for joint in range(len(joints))] + [("other", k) for k in range(len(joints) + 1)]
        seen = [whole, whole]
        for limb in limbs:
            seen += [_see_limb(joints, limb, mirrored, bones, others, bends) for mirrored in (False, True)]
        seen += [_see_limb(joints, head, False, bones, others, bends)] * SIDES

        vectors = bones + others
        differences, signs = torch.zeros(len(vectors), len(joints) + 1), torch.ones(len(vectors), 3)
        for row, vector in enumerate(vectors):
            differences[row, vector.to] += 1
            if vector.start is not None:
                differences[row, vector.start] -= 1
            signs[row, 0] = -1 if vector.mirrored else 1
        self.num_bones = len(bones)
        self.register_buffer("differences", differences, persistent=False)
        self.register_buffer("signs", signs, persistent=False)
        self.register_buffer("bends", torch.tensor(bends).T.contiguous(), persistent=False)
        counts = {"bone": len(bones), "bend": len(bends), "other": len(others), "known": len(joints)}
        places = _places(seen, counts, other_channels)
        self.sizes = [len(part) * 3 + (other_channels - 3) * sum(kind == "known" for kind, _ in part) for part in seen]
        self.sizes = self.sizes[::SIDES]
        self.register_buffer("places", places, persistent=False)

    def forward(self, other: Tensor, local_m: Tensor, down: Tensor) -> Tensor:
        """(B, I, C), (B, I, 3) in the trunk's frame, (B, 3) -> (parts, 2 B, most)."""
        points = torch.cat((local_m, down[:, None]), dim=1)
        vectors = (self.differences @ points) * self.signs
        bones = normalize(vectors[:, : self.num_bones], dim=-1)
        normals = torch.linalg.cross(bones.index_select(1, self.bends[0]), bones.index_select(1, self.bends[1]))
        all_vectors = torch.cat((bones, normals, vectors[:, self.num_bones :]), dim=1)
        pool = torch.cat((all_vectors.flatten(1), other.flatten(1), other.new_zeros(len(other), 1)), dim=1)
        seen = pool.index_select(1, self.places).unflatten(1, (len(self.sizes), SIDES, -1))
        return seen.permute(1, 2, 0, 3).flatten(1, 2)
