"""Small CMU folders: the free body's motion written as ASF/AMC and as BVH, in the layout of the official files.

Rotations are computed here with matrices of their own, so that the reader is not checked against itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mesh.body import load_body
from mesh.joints import SMPL24

METRES = 0.0254 / 0.45  # of one unit in either format
FRAMES = 12
_BODY = load_body()
_REST = _BODY.joint_regressor.astype(np.float64) @ _BODY.template
_SPLAY = np.radians(20)

# Left half and trunk of CMU's skeleton: bone, parent, zero-pose direction, length, axis in degrees, degrees of freedom.
_BONES = (
    ("lhipjoint", "root", (0.656, -0.713, 0.247), 2.4, (0, 0, 0), ""),
    ("lfemur", "lhipjoint", (np.sin(_SPLAY), -np.cos(_SPLAY), 0), 7.4, (0, 0, 20), "rx ry rz"),
    ("ltibia", "lfemur", (np.sin(_SPLAY), -np.cos(_SPLAY), 0), 7.2, (0, 0, 20), "rx ry rz"),
    ("lfoot", "ltibia", (0.09, -0.26, 0.96), 2.2, (-90, 0, 20), "rx ry rz"),
    ("ltoes", "lfoot", (0.0, -0.05, 1.0), 1.1, (0, 0, 20), "rx"),
    ("lowerback", "root", (0.01, 1.0, -0.05), 2.0, (0, 0, 0), "rx ry rz"),
    ("upperback", "lowerback", (0.0, 1.0, -0.02), 2.1, (0, 0, 0), "rx ry rz"),
    ("thorax", "upperback", (0.0, 1.0, 0.01), 2.1, (0, 0, 0), "rx ry rz"),
    ("lowerneck", "thorax", (0.0, 1.0, 0.1), 1.7, (0, 0, 0), "rx ry rz"),
    ("upperneck", "lowerneck", (0.0, 1.0, -0.1), 1.7, (0, 0, 0), "rx ry rz"),
    ("head", "upperneck", (0.0, 1.0, 0.0), 1.7, (0, 0, 0), "rx ry rz"),
    ("lclavicle", "thorax", (0.95, 0.3, -0.05), 3.3, (0, 0, 0), "rx ry rz"),
    ("lhumerus", "lclavicle", (0.98, 0.1, -0.17), 5.0, (180, 30, 90), "rx ry rz"),
    ("lradius", "lhumerus", (0.99, 0.05, 0.13), 3.3, (180, 30, 90), "rx ry rz"),
    ("lwrist", "lradius", (1.0, 0.0, 0.0), 1.6, (180, 30, 90), ""),
    ("lhand", "lwrist", (1.0, 0.0, 0.0), 0.7, (180, 30, 90), "rx ry rz"),
)
# SMPL joint -> bones that turn with it, in either format.
_SIDE = {
    "hip": ("femur", "UpLeg"),
    "knee": ("tibia", "Leg"),
    "ankle": ("foot", "Foot"),
    "foot": ("toes", "ToeBase"),
    "collar": ("clavicle", "Shoulder"),
    "shoulder": ("humerus", "Arm"),
    "elbow": ("radius", "ForeArm"),
    "wrist": ("hand", "FingerBase"),
}
_TRUNK = {
    **{"pelvis": (("root",), ("Hips",)), "spine1": (("lowerback",), ("LowerBack",))},
    **{"spine2": (("upperback",), ("Spine",)), "spine3": (("thorax",), ("Spine1",))},
    **{"neck": (("lowerneck", "upperneck"), ("Neck", "Neck1")), "head": (("head",), ("Head",))},
}
_LIMB_END = {"hip": "knee", "knee": "ankle", "shoulder": "elbow", "elbow": "wrist", "wrist": "wrist"}
# BVH joint -> parent, and the bone of the other format that ends where it begins.
_BVH = (
    *(("LowerBack", "Hips", ""), ("Spine", "LowerBack", "lowerback"), ("Spine1", "Spine", "upperback")),
    *(("Neck", "Spine1", ""), ("Neck1", "Neck", "lowerneck"), ("Head", "Neck1", "upperneck")),
    *(("*HipJoint", "Hips", ""), ("*UpLeg", "*HipJoint", "-hipjoint"), ("*Leg", "*UpLeg", "-femur")),
    *(("*Foot", "*Leg", "-tibia"), ("*ToeBase", "*Foot", "-foot")),
    *(("*Shoulder", "Spine1", ""), ("*Arm", "*Shoulder", "-clavicle"), ("*ForeArm", "*Arm", "-humerus")),
    *(("*Hand", "*ForeArm", "-radius"), ("*FingerBase", "*Hand", "-wrist")),
)


@dataclass(frozen=True, kw_only=True)
class Truth:
    """`local` (T, 24, 3, 3) rotations of the SMPL joints, `pelvis_m` (T, 3)."""

    local: np.ndarray
    pelvis_m: np.ndarray

    @property
    def trans(self) -> np.ndarray:
        return self.pelvis_m - _REST[0]


def turn(axis: str, angle_rad: np.ndarray | float) -> np.ndarray:
    """(...) -> (..., 3, 3), right-handed."""
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    matrix = np.zeros((*np.shape(angle_rad), 3, 3))
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    k = 3 - i - j
    matrix[..., i, i] = matrix[..., j, j] = cos
    matrix[..., i, j], matrix[..., j, i] = -sin, sin
    matrix[..., k, k] = 1
    return matrix


def moving(seed: int, frames: int = FRAMES) -> Truth:
    """Smooth motion that every rule of the reader leaves as it is: no wrist twist, no strong bend of spine1."""
    rng = np.random.default_rng(seed)
    time = np.arange(frames)[:, None] / 120
    local = np.empty((frames, 24, 3, 3))
    for joint, name in enumerate(SMPL24.names):
        angles = rng.uniform(-0.35, 0.35, 3) + rng.uniform(0, 0.1, 3) * np.sin(6 * time + rng.uniform(0, 6, 3))
        part = name.partition("_")[2] or name
        if part in ("spine1", "foot"):
            angles *= (0.5, 0, 0)
        if part == "wrist":  # turns about axes across the forearm, one after the other
            angles *= (0, 1, 0)
        if part == "hand":
            angles *= 0
        local[:, joint] = turn("z", angles[:, 2]) @ turn("y", angles[:, 1]) @ turn("x", angles[:, 0])
    pelvis = np.array([0.3, 0.95, -0.2]) + time * (2.0, 0.1, 0.5)
    return Truth(local=local, pelvis_m=pelvis)


def standing(frames: int, *, pitch_rad: float, toes_rad: float) -> Truth:
    """A person who stands still, with soles and toes that are not level."""
    local = np.broadcast_to(np.eye(3), (frames, 24, 3, 3)).copy()
    for side in ("left", "right"):
        local[:, SMPL24.index(f"{side}_ankle")] = turn("x", pitch_rad)
        local[:, SMPL24.index(f"{side}_foot")] = turn("x", toes_rad)
    return Truth(local=local, pelvis_m=np.broadcast_to([0, 0.95, 0], (frames, 3)).copy())


def write_asf(path: Path) -> None:
    """The skeleton, with comments, limits and sections that no reader needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        "# AST/ASF file generated using VICON BodyLanguage",
        ":version 1.10",
        ":name VICON",
        ":units",
        "  mass 1.0",
    ]
    lines += ["  length 0.45", "  angle deg", ":documentation", "   made by a test", ":root"]
    lines += ["   order TX TY TZ RX RY RZ", "   axis XYZ", "   position 0 0 0 ", "   orientation 0 0 0 ", ":bonedata"]
    for number, (name, _, direction, length, axis, dofs) in enumerate(_bones(), start=1):
        lines += ["  begin", f"     id {number} ", f"     name {name}", "     direction {} {} {} ".format(*direction)]
        lines += [f"     length {length} ", "     axis {} {} {}  XYZ".format(*axis)]
        if dofs:
            lines += [f"    dof {dofs}", "    limits (-160.0 20.0)", *["           (-70.0 70.0)"] * (len(dofs) // 3)]
        lines.append("  end")
    lines += [":hierarchy", "  begin"]
    for parent in dict.fromkeys(bone[1] for bone in _bones()):
        lines.append("    " + " ".join([parent, *(bone[0] for bone in _bones() if bone[1] == parent)]))
    path.write_text("\n".join([*lines, "  end", ""]))


def write_amc(path: Path, truth: Truth) -> None:
    """The angles, bones without degrees of freedom left out."""
    world = _source_world(truth, 0)
    names = [bone for bone in _bones() if bone[5]]
    columns = {"root": np.concatenate([truth.pelvis_m / METRES, np.degrees(_angles(world["root"]))], axis=1)}
    for name, parent, _, _, axis, dofs in _bones():
        above = world[parent]
        if not dofs and name not in world:
            world[name] = above
            continue
        own = _fixed_turns(np.radians(axis))
        angles = np.degrees(_angles(own.T @ np.swapaxes(above, 1, 2) @ world[name] @ own))
        columns[name] = angles[:, :1] if dofs == "rx" else angles
    lines = ["#!OML:ASF made", ":FULLY-SPECIFIED", ":DEGREES"]
    for frame in range(len(truth.local)):
        lines.append(str(frame + 1))
        for name in ("root", *(bone[0] for bone in names)):
            lines.append(f"{name} " + " ".join(f"{value:.8g}" for value in columns[name][frame]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*lines, ""]))


def write_bvh(path: Path, truth: Truth, *, rate: float = 120.0) -> None:
    """Joints and frames, with the T-pose that the official files have in front."""
    world = _source_world(truth, 1)
    joints = [("Hips", "", "")]
    for row in _BVH:
        sides = ("Left", "Right") if "*" in row[0] else ("",)
        joints += [(row[0].replace("*", s), row[1].replace("*", s), row[2].replace("-", s[:1].lower())) for s in sides]
    lengths = {name: np.array(direction) * length for name, _, direction, length, _, _ in _bones()}
    order: list[str] = []

    def branch(name: str, bone: str, depth: int) -> list[str]:
        order.append(name)
        pad, kind = "\t" * depth, "JOINT" if depth else "ROOT"
        offset = lengths.get(bone, np.zeros(3))
        position = "" if depth else "Xposition Yposition Zposition "
        channels = f"CHANNELS {3 if depth else 6} {position}Zrotation Yrotation Xrotation"
        lines = [
            f"{pad}{kind} {name}",
            pad + "{",
            f"{pad}\tOFFSET {offset[0]} {offset[1]} {offset[2]}",
            f"{pad}\t{channels}",
        ]
        children = [joint for joint in joints if joint[1] == name]
        for child, _, child_bone in children:
            lines += branch(child, child_bone, depth + 1)
        if not children:
            lines += [f"{pad}\tEnd Site", pad + "\t{", f"{pad}\t\tOFFSET 0 0.1 0", pad + "\t}"]
        return [*lines, pad + "}"]

    hierarchy = branch("Hips", "", 0)
    parents = {name: parent for name, parent, _ in joints}
    values = [truth.pelvis_m / METRES]
    for name in order:
        above = world[parents[name]] if parents[name] else np.eye(3)[None]
        world.setdefault(name, above)
        values.append(np.degrees(_angles(np.swapaxes(above, 1, 2) @ world[name])[:, ::-1]))  # z, y, x
    rows = np.concatenate(values, axis=1)
    rows = np.concatenate([np.zeros((1, rows.shape[1])), rows])
    text = ["HIERARCHY", *hierarchy, "MOTION", f"Frames: {len(rows)}", f"Frame Time: {1 / rate:.7f}"]
    text += [" ".join(f"{value:.8g}" for value in row) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*text, ""]))


def _bones() -> list[tuple[str, str, Sequence[float], float, Sequence[float], str]]:
    """Both sides; the right one mirrored."""
    bones: list[tuple[str, str, Sequence[float], float, Sequence[float], str]] = []
    for name, parent, direction, length, axis, dofs in _BONES:
        unit = np.array(direction) / np.linalg.norm(direction)
        bones.append((name, parent, unit.tolist(), length, axis, dofs))
        if name.startswith("l") and not name.startswith("lower"):
            mirrored = (unit * (-1, 1, 1)).tolist()
            above = "r" + parent[1:] if parent.startswith("l") and not parent.startswith("lower") else parent
            bones.append(("r" + name[1:], above, mirrored, length, (axis[0], -axis[1], -axis[2]), dofs))
    return bones


def _source_world(truth: Truth, form: int) -> dict[str, np.ndarray]:
    """World rotation of the source's bones, (T, 3, 3): those of the SMPL joints without the change of rest pose."""
    world: list[np.ndarray] = []
    for joint, parent in enumerate(_BODY.parents):
        world.append(truth.local[:, joint] if parent < 0 else world[parent] @ truth.local[:, joint])
    named: dict[str, np.ndarray] = {}
    for joint, name in enumerate(SMPL24.names):
        if name in _TRUNK:
            named |= {bone: world[joint] for bone in _TRUNK[name][form]}
            continue
        side, part = name.split("_")
        if part in _SIDE:
            bone = _SIDE[part][form]
            prefix = side[0] if form == 0 else side.capitalize()
            named[prefix + bone] = world[joint] @ _rest_change(side, part).T
    return named


def _rest_change(side: str, part: str) -> np.ndarray:
    """From the direction of a bone of the resting body to that in the zero pose of the source."""
    directions: Mapping[str, np.ndarray] = {bone[0]: np.array(bone[2]) for bone in _bones()}
    if part in ("ankle", "foot"):
        return turn("z", _SPLAY if side == "left" else -_SPLAY)
    part = "elbow" if part == "wrist" else part
    if part not in _LIMB_END:
        return np.eye(3)
    start, end = SMPL24.indices((f"{side}_{part}", f"{side}_{_LIMB_END[part]}"))
    rest = (_REST[end] - _REST[start]) / np.linalg.norm(_REST[end] - _REST[start])
    target = directions[side[0] + _SIDE[part][0]]
    x, y, z = np.cross(rest, target)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + cross + cross @ cross / (1 + rest @ target)


def _fixed_turns(angles_rad: np.ndarray) -> np.ndarray:
    """About x, then y, then z: (3,) -> (3, 3)."""
    return turn("z", angles_rad[2]) @ turn("y", angles_rad[1]) @ turn("x", angles_rad[0])


def _angles(matrix: np.ndarray) -> np.ndarray:
    """x, y and z angles of Rz Ry Rx, (T, 3, 3) -> (T, 3) radians."""
    x = np.arctan2(matrix[:, 2, 1], matrix[:, 2, 2])
    y = -np.arcsin(np.clip(matrix[:, 2, 0], -1, 1))
    z = np.arctan2(matrix[:, 1, 0], matrix[:, 0, 0])
    return np.stack([x, y, z], axis=1)
