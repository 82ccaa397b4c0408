"""Trunk, limbs and head of a joint set: seen by themselves they are seldom new, as whole poses often are."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.errors import InputError
from mesh.joints import JointSet

CORNERS = ("left_shoulder", "right_shoulder", "left_hip", "right_hip")  # of the trunk
LIMBS = {"left_shoulder": "left_elbow", "left_hip": "left_knee"}  # where left limbs are attached -> their first joints
HEAD = ("neck", "nose")  # in the same way
SIDES = 2


@dataclass(frozen=True, kw_only=True)
class Limb:
    """A left limb or the head: where it is attached, its joints from there outwards, and to which of them (-1: the
    attachment) each is linked."""

    base: int
    joints: tuple[int, ...]
    parents: tuple[int, ...]


def find_limb(joints: JointSet, base: str, first: str) -> Limb:
    """All that hangs on `first`, seen from `base`."""
    missing = [name for name in (base, first) if name not in joints.names]
    if missing:
        raise InputError(
            "a network in parts needs shoulders, elbows, hips and knees, and of a head neck and nose; "
            f"{joints.name} has no {missing[0]}"
        )
    found, parents = [joints.index(first)], [-1]
    for place, joint in enumerate(found):  # grows meanwhile
        for edge in joints.edges:
            for here, other in (edge, edge[::-1]):
                if here == joint and other not in (joints.index(base), *found):
                    found.append(other)
                    parents.append(place)
    return Limb(base=joints.index(base), joints=tuple(found), parents=tuple(parents))
