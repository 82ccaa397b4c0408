"""Acclaim motion capture, as CMU distributes it: a skeleton (`.asf`) and the angles of its joints over time (`.amc`).

C = rotation to a bone's own axes, M = its degrees of freedom there; local = C M C^T, world = parent @ local.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from data.motion import LARGEST, UNIT_M, Motion, numbers, read_lines, unit
from mesh.errors import InputError, require

ROOT = "root"


@dataclass(frozen=True, kw_only=True)
class Bone:
    """`axis`: the rotation to its own axes. `dofs`: the axes about which it turns, in order, such as 'xyz'."""

    parent: str | None
    direction: np.ndarray
    axis: Rotation
    dofs: str


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """`bones` lists parents before children, the root first; `metres` is the length of one unit of position."""

    path: Path
    bones: dict[str, Bone]
    root_order: str  # of its six numbers: t for a shift along x, y, z, r for a turn, such as 'tx ty tz rx ry rz'
    root_position: np.ndarray
    metres: float


@dataclass(frozen=True, kw_only=True)
class AmcFile:
    """The lines of an `.amc` file: `num_frames` times one line with the number and one for each of `bones`."""

    path: Path
    skeleton: Skeleton
    bones: tuple[str, ...]
    lines: list[str]
    degrees: bool
    rate: float | None = None  # the format does not say

    @property
    def num_frames(self) -> int:
        return len(self.lines) // (len(self.bones) + 1)

    def motion(self, frames: np.ndarray) -> Motion:
        """At some frames, counted from 0."""
        skeleton = self.skeleton
        order = skeleton.root_order.split()
        root = self._values(ROOT, 6, frames)
        shifts = root[:, [order.index(f"t{axis}") for axis in "xyz"]]
        turns = {
            bone: self._values(bone, len(skeleton.bones[bone].dofs), frames) for bone in self.bones if bone != ROOT
        }
        turns[ROOT] = root[:, [at for at, word in enumerate(order) if word[0] == "r"]]
        rotations: dict[str, Rotation] = {}
        for name, bone in skeleton.bones.items():
            local = Rotation.identity(len(frames))
            if name in turns:
                local = bone.axis * Rotation.from_euler(bone.dofs, turns[name], degrees=self.degrees) * bone.axis.inv()
            rotations[name] = local if bone.parent is None else rotations[bone.parent] * local
        return Motion(
            rotations=rotations,
            directions={name: bone.direction for name, bone in skeleton.bones.items() if name != ROOT},
            root_m=(shifts + skeleton.root_position) * skeleton.metres,
        )

    def _values(self, bone: str, count: int, frames: np.ndarray) -> np.ndarray:
        """(n, count) numbers of a bone."""
        period = len(self.bones) + 1
        first = 1 + self.bones.index(bone)
        words = [self.lines[first + period * int(frame)].split()[1:] for frame in frames]
        try:
            values = np.array(words, np.float64).reshape(len(frames), count)
        except ValueError as exc:
            raise InputError(f"{self.path}: {bone} must have {count} numbers in every frame") from exc
        plausible = bool((np.abs(values) < LARGEST).all())
        require(plausible, f"{self.path}: {bone} holds NaN, infinity or numbers beyond {LARGEST:g}")
        return values


def read_amc(path: Path, skeleton: Skeleton) -> AmcFile:
    """Read the angles that belong to a skeleton; every frame must be whole."""
    lines = read_lines(path, "an .amc file")
    degrees = not any(line.upper().startswith(":RADIANS") for line in lines[:20])
    lines = [line for line in lines if line[0] not in "#:"]
    require(bool(lines) and lines[0] == "1", f"{path} is no .amc file: no frame 1")
    period = next((at for at, line in enumerate(lines) if line == "2"), len(lines))
    bones = tuple(line.split()[0] for line in lines[1:period])
    for bone in bones:
        require(bone in skeleton.bones, f"{path}: bone {bone!r} is not in {skeleton.path}; give it its own .asf file")
        require(bool(skeleton.bones[bone].dofs), f"{path}: bone {bone!r} cannot turn by {skeleton.path}")
    require(ROOT in bones and len(set(bones)) == len(bones), f"{path}: frame 1 must have the root and each bone once")
    for frame, start in enumerate(range(0, len(lines), period)):
        block = lines[start : start + period]
        if block[0] != str(frame + 1) or tuple(line.split(None, 1)[0] for line in block[1:]) != bones:
            raise InputError(f"{path}: frame {frame + 1} is not whole; download the file again")
    file = AmcFile(path=path, skeleton=skeleton, bones=bones, lines=lines, degrees=degrees)
    file.motion(np.array([file.num_frames - 1]))  # the last line may have been cut
    return file


def read_asf(path: Path) -> Skeleton:
    """Read a skeleton: units, root, bones and who hangs on whom."""
    sections = _sections(path)
    units = {words[0]: words[1:] for words in map(str.split, sections["units"])}
    degrees = units.get("angle", ["deg"])[:1] != ["rad"]
    length = float(numbers(units.get("length", ["1"]), 1, f"{path}: units length")[0])
    require(length > 0, f"{path}: units length must be positive, got {length}")
    root = {words[0].lower(): words[1:] for words in map(str.split, sections["root"])}
    order = " ".join(root.get("order", [])).lower()
    wanted = "tx ty tz rx ry rz"
    require(sorted(order.split()) == sorted(wanted.split()), f"{path}: root order must hold {wanted}, got {order!r}")
    given = _bones(path, sections["bonedata"], degrees)
    axis = _axis(root.get("orientation", []), root.get("axis", ["XYZ"])[0], degrees, f"{path}: root orientation")
    turns = "".join(word[1] for word in order.split() if word[0] == "r")
    bones = {ROOT: Bone(parent=None, direction=np.zeros(3), axis=axis, dofs=turns)}
    for words in map(str.split, sections["hierarchy"]):
        if words[0] in ("begin", "end"):
            continue
        require(words[0] in bones, f"{path}: hierarchy names {words[0]!r} before its parent")
        for child in words[1:]:
            require(child in given and child not in bones, f"{path}: bone {child!r} is unknown or has two parents")
            direction, bone_axis, dofs = given[child]
            bones[child] = Bone(parent=words[0], direction=direction, axis=bone_axis, dofs=dofs)
    return Skeleton(
        path=path,
        bones=bones,
        root_order=order,
        root_position=numbers(root.get("position", []), 3, f"{path}: root position"),
        metres=UNIT_M / length,
    )


def _sections(path: Path) -> dict[str, list[str]]:
    """Lines by the keyword above them."""
    sections: dict[str, list[str]] = {}
    name = ""
    for line in read_lines(path, "the skeleton of .amc files"):
        if line.startswith(":"):
            name = line[1:].split()[0].lower() if line[1:].strip() else ""
            sections[name] = []
        elif name and not line.startswith("#"):
            sections[name].append(line)
    for wanted in ("units", "root", "bonedata", "hierarchy"):
        require(bool(sections.get(wanted)), f"{path} is no whole .asf file: it has no :{wanted}")
    return sections


def _bones(path: Path, lines: list[str], degrees: bool) -> dict[str, tuple[np.ndarray, Rotation, str]]:
    """Direction, axes and degrees of freedom of every bone between `begin` and `end`."""
    bones: dict[str, tuple[np.ndarray, Rotation, str]] = {}
    fields: dict[str, list[str]] = {}
    for words in map(str.split, lines):
        if words[0] == "begin":
            fields = {}
        elif words[0] != "end":
            fields[words[0].lower()] = words[1:]
        else:
            where = f"{path}: bone {' '.join(fields.get('name', ['without a name']))}"
            require("name" in fields and "direction" in fields, f"{where}: expected a name and a direction")
            dofs = [word.lower() for word in fields.get("dof", [])]
            allowed = {"rx", "ry", "rz"}
            is_plain = set(dofs) <= allowed and len(set(dofs)) == len(dofs)
            require(is_plain, f"{where}: degrees of freedom must be rx, ry or rz, got {' '.join(dofs)}")
            axis_words = fields.get("axis", ["0", "0", "0", "XYZ"])
            axis = _axis(axis_words[:3], (axis_words[3:] or ["XYZ"])[0], degrees, f"{where} axis")
            direction = unit(numbers(fields["direction"], 3, f"{where} direction"), where)
            bones["".join(fields["name"])] = (direction, axis, "".join(word[1] for word in dofs))
    return bones


def _axis(words: list[str], order: str, degrees: bool, where: str) -> Rotation:
    """Turns about fixed axes in the given order: 'XYZ' is Rz Ry Rx."""
    require(sorted(order.upper()) == ["X", "Y", "Z"], f"{where}: the order of axes must be like XYZ, got {order!r}")
    return Rotation.from_euler(order.lower(), numbers(words, 3, where), degrees=degrees)
