"""Captured motion to poses of SMPL joints: identity = T-pose, y up, facing +z.

World rotation of an SMPL joint = rotation of the source bone @ A. For the limbs A is the smallest rotation from the
body's rest bone direction to the source's, so that thigh, shank, upper arm and forearm point exactly as captured.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from data.motion import Motion
from mesh.body import Body
from mesh.errors import InputError
from mesh.joints import SMPL24

_BOTH_SIDES = ("hip", "knee", "ankle", "foot", "collar", "shoulder", "elbow", "wrist")
_LIMBS = {"hip": "knee", "knee": "ankle", "shoulder": "elbow", "elbow": "wrist"}  # joint -> end of its bone


# SMPL joint -> source bone; two bones: half way between them. Joints that are not named keep their parent's rotation.
BoneMap = Mapping[str, tuple[str, ...]]


def _bone_map(trunk: BoneMap, sides: Sequence[str], left: str, right: str) -> BoneMap:
    bones = dict(trunk)
    for joint, bone in zip(_BOTH_SIDES, sides):
        bones |= {f"left_{joint}": (left + bone,), f"right_{joint}": (right + bone,)}
    return bones


ACCLAIM = _bone_map(
    {
        "pelvis": ("root",),
        "spine1": ("lowerback",),
        "spine2": ("upperback",),
        "spine3": ("thorax",),
        "neck": ("lowerneck", "upperneck"),
        "head": ("head",),
    },
    ("femur", "tibia", "foot", "toes", "clavicle", "humerus", "radius", "hand"),
    "l",
    "r",
)
MOTION_BUILDER = _bone_map(
    {
        "pelvis": ("Hips",),
        "spine1": ("LowerBack",),
        "spine2": ("Spine",),
        "spine3": ("Spine1",),
        "neck": ("Neck", "Neck1"),
        "head": ("Head",),
    },
    ("UpLeg", "Leg", "Foot", "ToeBase", "Shoulder", "Arm", "ForeArm", "FingerBase"),
    "Left",
    "Right",
)

_SPINE_FREE_DEG, _SPINE_MOST_DEG = 30.0, 45.0  # spine1 turns freely up to the first, and never beyond the second
_SPINE2_SHARE = 0.6  # of what spine1 gives away; the rest goes to spine3
_TOE_MOST_UP_DEG, _TOE_MOST_DOWN_DEG = -50.0, 35.0

# A foot stands where ankle and ball move slowly, the ankle is near its lowest and the sole is not steep.
_STANCE_M_PER_S, _STANCE_HEIGHT_M, _STANCE_TILT_DEG, _STANCE_FRAMES = 0.2, 0.05, 40.0, 30


@dataclass(frozen=True, kw_only=True)
class Poses:
    """Local rotations of the 24 joints, `joints[j]` (T,), and where the pelvis is, `root_m` (T, 3)."""

    joints: tuple[Rotation, ...]
    root_m: np.ndarray

    def __len__(self) -> int:
        return len(self.root_m)

    def axis_angle(self) -> np.ndarray:
        """(T, 24, 3) radians."""
        return np.stack([joint.as_rotvec() for joint in self.joints], axis=1)


class Retargeter:
    """Turns motions into poses of one body, whose mean shape gives the rest bone directions."""

    def __init__(self, body: Body) -> None:
        if len(body.parents) != len(SMPL24):
            raise InputError(f"body {body.name} has {len(body.parents)} joints; poses of SMPL need {len(SMPL24)}")
        self.parents = body.parents
        self.rest_m = body.joint_regressor.astype(np.float64) @ body.template

    def poses(self, motion: Motion, bones: BoneMap, source: str) -> Poses:
        """The motion of a file in SMPL joints; the feet are still as the source's skeleton has them."""
        missing = sorted({bone for names in bones.values() for bone in names} - motion.rotations.keys())
        if missing:
            raise InputError(f"{source}: the skeleton has no {', '.join(missing)}; expected the bones of the CMU files")
        world = {joint: self._turned(joint, motion, bones[joint], bones) for joint in bones}
        identity = Rotation.identity(len(motion.root_m))
        local = []
        for joint, parent in zip(SMPL24.names, self.parents):
            above = identity if parent < 0 else world.get(SMPL24.names[parent], identity)
            local.append(above.inv() * world[joint] if joint in world else identity)
        return self._share_wrist_twist(_share_spine(Poses(joints=tuple(local), root_m=motion.root_m)))

    def _turned(self, joint: str, motion: Motion, names: tuple[str, ...], bones: BoneMap) -> Rotation:
        world = motion.rotations[names[0]]
        if len(names) == 2:
            world = _part_of(world, motion.rotations[names[1]], 0.5)
        side, _, part = joint.partition("_")
        if part == "wrist":
            part = "elbow"
        if part in _LIMBS:
            (bone,) = bones[f"{side}_{part}"]
            return world * smallest_rotation(self._rest_direction(f"{side}_{part}"), _direction(motion, bone))
        if part in ("ankle", "foot"):
            (shank,) = bones[f"{side}_knee"]
            across, up, _ = _direction(motion, shank)
            return world * Rotation.from_euler("z", np.arctan2(across, -up))  # the splay of the zero pose's legs
        return world

    def _rest_direction(self, joint: str) -> np.ndarray:
        side, _, part = joint.partition("_")
        start, end = SMPL24.indices((joint, f"{side}_{_LIMBS[part]}"))
        bone = self.rest_m[end] - self.rest_m[start]
        return bone / np.linalg.norm(bone)

    def _share_wrist_twist(self, poses: Poses) -> Poses:
        """Half of the hand's twist about the forearm is the forearm's."""
        joints = list(poses.joints)
        for side in ("left", "right"):
            elbow, wrist = SMPL24.indices((f"{side}_elbow", f"{side}_wrist"))
            axis = self._rest_direction(f"{side}_elbow")
            half = Rotation.from_rotvec(twist_about(joints[wrist], axis)[:, None] / 2 * axis)
            joints[elbow], joints[wrist] = joints[elbow] * half, half.inv() * joints[wrist]
        return replace(poses, joints=tuple(joints))

    def level_feet(self, trials: Sequence[Poses], rates: Sequence[float]) -> list[Poses]:
        """The feet of one person: level where they stand, toes straight there, and toes within what toes can do.

        Skeletons differ in how the foot bone lies, so the median over all frames in which a foot stands counts
        as level. Without enough of those frames a foot stays as it is.
        """
        levelled = [list(trial.joints) for trial in trials]
        for side in ("left", "right"):
            ankle, foot = SMPL24.indices((f"{side}_ankle", f"{side}_foot"))
            ups, bends = [], []
            for trial, rate in zip(trials, rates):
                stands, up = self._stance(trial, side, rate)
                ups.append(up[stands])
                bends.append(_toe_bend(trial.joints[foot])[stands])
            up, bend = np.concatenate(ups), np.concatenate(bends)
            level, straight = Rotation.identity(), 0.0
            if len(up) >= _STANCE_FRAMES:
                middle = np.median(up, axis=0)
                level = smallest_rotation(np.array([0.0, 1.0, 0.0]), middle / np.linalg.norm(middle))
                straight = float(np.median(bend))
            for trial, joints in zip(trials, levelled):
                joints[ankle] = trial.joints[ankle] * level
                limits = np.radians((_TOE_MOST_UP_DEG, _TOE_MOST_DOWN_DEG))
                toes = np.clip(_toe_bend(trial.joints[foot]) - straight, *limits)
                joints[foot] = Rotation.from_euler("x", toes[:, None])
        return [replace(trial, joints=tuple(joints)) for trial, joints in zip(trials, levelled)]

    def _stance(self, trial: Poses, side: str, rate: float) -> tuple[np.ndarray, np.ndarray]:
        """In which frames the foot stands, (T,), and where up is for it, (T, 3) in its own frame."""
        chain = SMPL24.indices(("pelvis", *(f"{side}_{part}" for part in ("hip", "knee", "ankle", "foot"))))
        world, place, places = trial.joints[0], trial.root_m, []
        for above, joint in itertools.pairwise(chain):
            place = place + world.apply(self.rest_m[joint] - self.rest_m[above])
            if joint != chain[-1]:
                world = world * trial.joints[joint]
            places.append(place)
        up = world.inv().apply([0.0, 1.0, 0.0])
        if len(trial) < 2:
            return np.zeros(len(trial), bool), up
        ankle, ball = places[-2:]
        speed = np.maximum(*(np.linalg.norm(np.gradient(at, axis=0), axis=1) * rate for at in (ankle, ball)))
        low = ankle[:, 1] < np.percentile(ankle[:, 1], 5) + _STANCE_HEIGHT_M
        return (speed < _STANCE_M_PER_S) & low & (up[:, 1] > np.cos(np.radians(_STANCE_TILT_DEG))), up


def _share_spine(poses: Poses) -> Poses:
    """A strong bend of spine1 goes on into spine2 and spine3; the chest keeps its rotation in the world."""
    names = SMPL24.indices(("spine1", "spine2", "spine3"))
    first, second, third = (poses.joints[joint] for joint in names)
    turn = first.as_rotvec()
    angle = np.linalg.norm(turn, axis=1)
    free, span = np.radians(_SPINE_FREE_DEG), np.radians(_SPINE_MOST_DEG - _SPINE_FREE_DEG)
    beyond = np.maximum(angle - free, 0)
    kept = np.where(beyond > 0, free + span * (1 - np.exp(-beyond / span)), angle)
    excess = turn * ((angle - kept) / np.maximum(angle, 1e-9))[:, None]
    to_second, to_third = (
        Rotation.from_rotvec(excess * _SPINE2_SHARE),
        Rotation.from_rotvec(excess * (1 - _SPINE2_SHARE)),
    )
    joints = list(poses.joints)
    joints[names[0]] = Rotation.from_rotvec(turn - excess)
    joints[names[1]] = to_second * second
    joints[names[2]] = second.inv() * to_third * second * third
    return replace(poses, joints=tuple(joints))


def smallest_rotation(start: np.ndarray, end: np.ndarray) -> Rotation:
    """That takes one unit vector to another, not opposite one. (3,), (3,)."""
    axis = np.cross(start, end)
    sine = np.linalg.norm(axis)
    return Rotation.from_rotvec(axis / max(sine, 1e-12) * np.arctan2(sine, start @ end))


def twist_about(rotation: Rotation, axis: np.ndarray) -> np.ndarray:
    """How far rotations (T,) turn about a unit axis, (T,) radians in -pi..pi; what is left over turns the axis."""
    quaternion = rotation.as_quat()
    angle = 2 * np.arctan2(quaternion[:, :3] @ axis, quaternion[:, 3])
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _toe_bend(foot: Rotation) -> np.ndarray:
    """(T,) radians, positive downwards."""
    return twist_about(foot, np.array([1.0, 0.0, 0.0]))


def _direction(motion: Motion, bone: str) -> np.ndarray:
    if bone not in motion.directions:
        raise InputError(f"bone {bone!r} of the skeleton has no length")
    return motion.directions[bone]


def _part_of(start: Rotation, end: Rotation, share: float) -> Rotation:
    """On the way from one to the other."""
    return start * Rotation.from_rotvec((start.inv() * end).as_rotvec() * share)
