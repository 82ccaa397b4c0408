"""Biovision hierarchies (`.bvh`) of the CMU motions, as converted for MotionBuilder (cgspeed).

A joint's rotation is the product of its channels in the listed order; world = parent @ local.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from data.motion import LARGEST, UNIT_M, Motion, numbers, read_lines, unit
from mesh.errors import InputError, require

_METRES = UNIT_M / 0.45  # of one unit: the files keep the lengths of CMU's
_DEEPEST = 200


@dataclass(frozen=True, kw_only=True)
class Joint:
    """`channels`: names as in the file; `first` is the column of the first of them."""

    parent: str | None
    offset: np.ndarray
    channels: tuple[str, ...]
    first: int


@dataclass(frozen=True, kw_only=True)
class BvhFile:
    """`values` (num_frames, channels); parents stand before children in `joints`, the root first."""

    path: Path
    joints: dict[str, Joint]
    values: np.ndarray
    rate: float | None

    @property
    def num_frames(self) -> int:
        return len(self.values)

    def motion(self, frames: np.ndarray) -> Motion:
        """At some frames, counted from 0. A bone is named by the joint where it begins."""
        rotations: dict[str, Rotation] = {}
        directions: dict[str, np.ndarray] = {}
        for name, joint in self.joints.items():
            local = self._local(joint, frames)
            rotations[name] = local if joint.parent is None else rotations[joint.parent] * local
            if joint.parent is not None and joint.parent not in directions and np.linalg.norm(joint.offset) > 1e-9:
                directions[joint.parent] = unit(joint.offset, f"{self.path}: {name}")
        root = next(iter(self.joints.values()))
        places = [root.first + root.channels.index(f"{axis}position") for axis in "XYZ"]
        root_m = (self.values[frames][:, places] + root.offset) * _METRES
        return Motion(rotations=rotations, directions=directions, root_m=root_m)

    def _local(self, joint: Joint, frames: np.ndarray) -> Rotation:
        turns = [at for at, channel in enumerate(joint.channels) if channel.endswith("rotation")]
        if not turns:
            return Rotation.identity(len(frames))
        order = "".join(joint.channels[at][0] for at in turns)
        angles = self.values[frames][:, [joint.first + at for at in turns]]
        return Rotation.from_euler(order, angles, degrees=True)  # capitals: about the turned axes, R1 R2 R3


def read_bvh(path: Path) -> BvhFile:
    """Read joints and frames. The first frame, a T-pose that the conversion put there, is left out."""
    lines = read_lines(path, "a .bvh file")
    require(lines[:1] == ["HIERARCHY"], f"{path} is no .bvh file: it does not begin with HIERARCHY")
    require("MOTION" in lines, f"{path} is not whole: it has no MOTION")
    at = lines.index("MOTION")
    joints = _joints(path, lines[1:at])
    channels = sum(len(joint.channels) for joint in joints.values())
    count = _after(lines, at + 1, "Frames:", path)
    seconds = _after(lines, at + 2, "Frame Time:", path)
    rows = lines[at + 3 :]
    require(len(rows) == count, f"{path} is not whole: {count:.0f} frames are announced, {len(rows)} are there")
    require(count >= 2, f"{path}: no frame after the T-pose")
    require(seconds > 0, f"{path}: Frame Time must be positive, got {seconds}")
    try:
        values = np.array([row.split() for row in rows[1:]], np.float64)
    except ValueError as exc:
        raise InputError(f"{path}: frames must have {channels} numbers each") from exc
    require(values.shape == (len(rows) - 1, channels), f"{path}: frames must have {channels} numbers each")
    plausible = bool((np.abs(values) < LARGEST).all())
    require(plausible, f"{path} holds NaN, infinity or numbers beyond {LARGEST:g}")
    return BvhFile(path=path, joints=joints, values=values, rate=1 / seconds)


def _after(lines: list[str], at: int, label: str, path: Path) -> float:
    line = lines[at] if at < len(lines) else ""
    require(line.startswith(label), f"{path}: expected {label!r} after MOTION, got {line[:40]!r}")
    return float(numbers(line[len(label) :].split(), 1, f"{path}: {label}")[0])


def _joints(path: Path, lines: list[str]) -> dict[str, Joint]:
    """By name, in the order of the file, end sites left out."""
    joints: dict[str, Joint] = {}
    stack: list[str | None] = []  # names of the open braces; None for an end site
    name: str | None = None
    offset = np.zeros(3)
    first = 0
    for words in map(str.split, lines):
        if words[0] in ("ROOT", "JOINT", "End"):
            name = None if words[0] == "End" else " ".join(words[1:])
            root_is_first = (words[0] == "ROOT") == (not stack)
            require(root_is_first and name not in joints, f"{path}: joint {name!r} comes twice or outside the root")
        elif words[0] == "{":
            stack.append(name)
            require(len(stack) < _DEEPEST, f"{path}: joints nested more than {_DEEPEST} deep")
        elif words[0] == "}":
            require(bool(stack), f"{path}: more braces are closed than opened")
            stack.pop()
        elif words[0] == "OFFSET":
            offset = numbers(words[1:], 3, f"{path}: offset of {name}")
        elif words[0] == "CHANNELS" and name is not None:
            channels = tuple(words[2:])
            known = {f"{axis}{kind}" for axis in "XYZ" for kind in ("position", "rotation")}
            parent = stack[-2] if len(stack) > 1 else None
            right = (
                words[1:2] == [str(len(channels))] and set(channels) <= known and len(set(channels)) == len(channels)
            )
            right &= name not in joints and (parent is None or parent in joints)
            require(right, f"{path}: channels of {name} are wrong, come twice or are missing above it")
            joints[name] = Joint(parent=parent, offset=offset, channels=channels, first=first)
            first += len(channels)
        else:
            raise InputError(f"{path}: cannot read {' '.join(words)[:40]!r}")
    require(bool(joints) and not stack, f"{path} is not whole: its joints do not end before MOTION")
    root = next(iter(joints.values()))
    wanted = {f"{axis}position" for axis in "XYZ"}
    require(wanted <= set(root.channels), f"{path}: the root has no position channels")
    return joints
