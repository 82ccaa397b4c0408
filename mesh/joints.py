"""Named joint sets and the conversion between them.

A pose travels with the names of its joints, so that a different order is converted and never guessed.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mesh.errors import InputError


@dataclass(frozen=True, kw_only=True)
class JointSet:
    """Names, links and mirror pairs of a pose format.

    `derived` lists joints that are by definition the mean of others of the same set; conversion computes them
    from those, whatever the source calls by that name.
    """

    name: str
    names: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    root: str
    derived: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Position of a joint, by name."""
        if name not in self.names:
            raise InputError(f"joint set {self.name} has no joint {name!r}; it has {', '.join(self.names)}")
        return self.names.index(name)

    def indices(self, names: Sequence[str]) -> tuple[int, ...]:
        """Positions of several joints, by name."""
        return tuple(self.index(name) for name in names)

    @property
    def root_idx(self) -> int:
        return self.index(self.root)

    @property
    def flip_pairs(self) -> tuple[tuple[int, int], ...]:
        """(left, right) index pairs, read from the names."""
        return tuple(
            (i, self.names.index(name.replace("left", "right", 1)))
            for i, name in enumerate(self.names)
            if name.startswith("left")
        )

    @property
    def flip_permutation(self) -> tuple[int, ...]:
        """Order of the joints of a mirrored person: `x[..., flip_permutation, :]`."""
        order = list(range(len(self)))
        for left, right in self.flip_pairs:
            order[left], order[right] = right, left
        return tuple(order)


def _chain(names: tuple[str, ...], *chains: str) -> tuple[tuple[int, int], ...]:
    """Links from chains written as 'a-b-c'; each link once."""
    links: list[tuple[int, int]] = []
    for chain in chains:
        steps = [names.index(step) for step in chain.split("-")]
        links += [link for link in itertools.pairwise(steps) if link not in links]
    return tuple(links)


def _both_sides(*chains: str) -> tuple[str, ...]:
    """Chains with '*' stand for their left and their right version."""
    return tuple(
        chain.replace("*", side) for chain in chains for side in (("left_", "right_") if "*" in chain else ("",))
    )


def _make(name: str, names: str, root: str, chains: Sequence[str], **derived: tuple[str, ...]) -> JointSet:
    ordered = tuple(names.split())
    return JointSet(name=name, names=ordered, edges=_chain(ordered, *_both_sides(*chains)), root=root, derived=derived)


_COCO_NAMES = (
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow "
    "left_wrist right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle"
)
_COCO_CHAINS = ("left_eye-right_eye", "nose-*eye-*ear", "*shoulder-*elbow-*wrist", "*hip-*knee-*ankle")
_MID_HIPS = ("left_hip", "right_hip")
_MID_SHOULDERS = ("left_shoulder", "right_shoulder")

COCO17 = _make("coco17", _COCO_NAMES, "left_hip", (*_COCO_CHAINS, "left_hip-right_hip", "*shoulder-*hip"))
COCO19 = _make(
    "coco19",
    _COCO_NAMES + " pelvis neck",
    "pelvis",
    (*_COCO_CHAINS, "pelvis-*hip", "pelvis-neck", "neck-*shoulder", "neck-nose"),
    pelvis=_MID_HIPS,
    neck=_MID_SHOULDERS,
)
HUMAN36M17 = _make(
    "human36m17",
    "pelvis right_hip right_knee right_ankle left_hip left_knee left_ankle torso neck nose head "
    "left_shoulder left_elbow left_wrist right_shoulder right_elbow right_wrist",
    "pelvis",
    ("pelvis-torso-neck-nose-head", "neck-*shoulder-*elbow-*wrist", "pelvis-*hip-*knee-*ankle"),
)
SMPL24 = _make(
    "smpl24",
    "pelvis left_hip right_hip spine1 left_knee right_knee spine2 left_ankle right_ankle spine3 left_foot "
    "right_foot neck left_collar right_collar head left_shoulder right_shoulder left_elbow right_elbow "
    "left_wrist right_wrist left_hand right_hand",
    "pelvis",
    (
        "pelvis-spine1-spine2-spine3-neck-head",
        "spine3-*collar-*shoulder-*elbow-*wrist-*hand",
        "pelvis-*hip-*knee-*ankle-*foot",
    ),
)
MPII16 = _make(
    "mpii16",
    "right_ankle right_knee right_hip left_hip left_knee left_ankle pelvis thorax upper_neck head_top "
    "right_wrist right_elbow right_shoulder left_shoulder left_elbow left_wrist",
    "pelvis",
    ("pelvis-thorax-upper_neck-head_top", "thorax-*shoulder-*elbow-*wrist", "pelvis-*hip-*knee-*ankle"),
)
OPENPOSE25 = _make(
    "openpose25",
    "nose neck right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist pelvis right_hip "
    "right_knee right_ankle left_hip left_knee left_ankle right_eye left_eye right_ear left_ear left_big_toe "
    "left_small_toe left_heel right_big_toe right_small_toe right_heel",
    "pelvis",
    (
        "pelvis-neck-nose",
        "nose-*eye-*ear",
        "neck-*shoulder-*elbow-*wrist",
        "pelvis-*hip-*knee-*ankle-*heel",
        "*ankle-*big_toe-*small_toe",
    ),
)
HALPE26 = _make(
    "halpe26",
    _COCO_NAMES + " head_top neck pelvis left_big_toe right_big_toe left_small_toe right_small_toe left_heel "
    "right_heel",
    "pelvis",
    (
        "pelvis-neck-head_top",
        "nose-*eye-*ear",
        "neck-*shoulder-*elbow-*wrist",
        "pelvis-*hip-*knee-*ankle-*heel",
        "*ankle-*big_toe-*small_toe",
    ),
)
BLAZEPOSE33 = _make(
    "blazepose33",
    "nose left_eye_inner left_eye left_eye_outer right_eye_inner right_eye right_eye_outer left_ear right_ear "
    "left_mouth right_mouth left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist "
    "left_pinky right_pinky left_index right_index left_thumb right_thumb left_hip right_hip left_knee "
    "right_knee left_ankle right_ankle left_heel right_heel left_foot_index right_foot_index",
    "left_hip",
    (
        "nose-*eye_inner-*eye-*eye_outer-*ear",
        "left_mouth-right_mouth",
        "left_shoulder-right_shoulder",
        "left_hip-right_hip",
        "*shoulder-*hip-*knee-*ankle-*heel-*foot_index",
        "*shoulder-*elbow-*wrist-*pinky-*index",
        "*wrist-*thumb",
    ),
)

LARGEST_PX = 1e7  # of positions, sides and focal lengths
# Below it a detected joint is a guess: it is not drawn, counted or judged. The networks take it for what it is worth.
MIN_CONFIDENCE = 0.3

JOINT_SETS: dict[str, JointSet] = {
    s.name: s for s in (COCO17, COCO19, HUMAN36M17, SMPL24, MPII16, OPENPOSE25, HALPE26, BLAZEPOSE33)
}

# The 14 joints of human36m17 on which Pose2Mesh, GraphCMR and SPIN report errors: no pelvis, torso and nose.
EVALUATION_14 = HUMAN36M17.indices([n for n in HUMAN36M17.names if n not in ("pelvis", "torso", "nose")])


def joint_set(name: str) -> JointSet:
    """Look a joint set up; an unknown name is answered with the nearest known one."""
    if name not in JOINT_SETS:
        near = difflib.get_close_matches(name, JOINT_SETS, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise InputError(f"unknown joint set {name!r}{hint} Known: {', '.join(JOINT_SETS)}")
    return JOINT_SETS[name]


def joint_set_by_count(count: int) -> JointSet:
    """The joint set with that many joints; refuses a count that no set has."""
    fitting = [s for s in JOINT_SETS.values() if len(s) == count]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = " or ".join(s.name for s in fitting)
        raise InputError(f"{count} joints can be {names}: say which with --joint-set")
    known = ", ".join(f"{s.name} ({len(s)})" for s in JOINT_SETS.values())
    raise InputError(f"no joint set has {count} joints; name the joints' set with --joint-set. Known: {known}")


@dataclass(frozen=True, kw_only=True)
class Keypoints:
    """2D joints of N people in one picture (or N poses of a file).

    `positions_px` (N, J, 2) pixels, x right and y down, origin at the upper left corner of the picture;
    `confidence` (N, J) in [0, 1], 0 = joint not known; `image_size` (width, height) in pixels where known.
    """

    positions_px: np.ndarray
    confidence: np.ndarray
    joint_set: JointSet
    image_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        expected = (len(self.positions_px), len(self.joint_set), 2)
        if self.positions_px.shape != expected:
            raise InputError(
                f"{self.joint_set.name} keypoints must have shape (people, {len(self.joint_set)}, 2), "
                f"got {self.positions_px.shape}"
            )
        if self.confidence.shape != expected[:2]:
            raise InputError(f"confidence must have shape {expected[:2]}, got {self.confidence.shape}")
        bad = ~(np.isfinite(self.positions_px).all(-1) & np.isfinite(self.confidence))
        if bad.any():
            person, joint = np.argwhere(bad)[0]
            raise InputError(
                f"keypoints of person {person} hold NaN or infinity at {self.joint_set.names[joint]}; "
                "give an unknown joint confidence 0 and any finite position"
            )
        far = (np.abs(self.positions_px) > LARGEST_PX).any(-1) & (self.confidence > 0)
        if far.any():
            person, joint = np.argwhere(far)[0]
            raise InputError(
                f"keypoints of person {person} lie more than {LARGEST_PX:.0e} px away at "
                f"{self.joint_set.names[joint]}; expected pixels of a picture"
            )
        if self.image_size is not None and not all(1 <= side <= LARGEST_PX for side in self.image_size):
            raise InputError(f"image_size must be width and height in pixels, got {self.image_size}")
        if self.confidence.size and (self.confidence.min() < 0 or self.confidence.max() > 1):
            raise InputError(
                f"confidence must lie in [0, 1], got {self.confidence.min():.3g} to {self.confidence.max():.3g}"
            )

    def __len__(self) -> int:
        return len(self.positions_px)

    def to(self, target: JointSet) -> Keypoints:
        """The same people in another joint set, matched by joint name.

        Derived joints are the mean of theirs, with the lowest confidence of them. A joint that the source lacks
        gets confidence 0. Refused if a hip or shoulder is missing: nothing sensible can be made without them.
        """
        if target == self.joint_set and not target.derived:
            return self
        missing = [n for n in (*_MID_HIPS, *_MID_SHOULDERS) if n in target.names and n not in self.joint_set.names]
        if missing:
            raise InputError(f"cannot convert {self.joint_set.name} to {target.name}: it has no {', '.join(missing)}")
        positions = np.zeros((len(self), len(target), 2), np.float32)
        confidence = np.zeros((len(self), len(target)), np.float32)
        for i, name in enumerate(target.names):
            parts = target.derived.get(name, (name,))
            if all(part in self.joint_set.names for part in parts):
                source = list(self.joint_set.indices(parts))
                positions[:, i] = self.positions_px[:, source].mean(axis=1)
                confidence[:, i] = self.confidence[:, source].min(axis=1)
        return Keypoints(positions_px=positions, confidence=confidence, joint_set=target, image_size=self.image_size)

    def mirrored_labels(self) -> Keypoints:
        """The same points with left and right exchanged."""
        order = list(self.joint_set.flip_permutation)
        return Keypoints(
            positions_px=self.positions_px[:, order],
            confidence=self.confidence[:, order],
            joint_set=self.joint_set,
            image_size=self.image_size,
        )

    def select(self, people: Sequence[int] | np.ndarray) -> Keypoints:
        """Some of the people, by index or mask."""
        return Keypoints(
            positions_px=self.positions_px[people],
            confidence=self.confidence[people],
            joint_set=self.joint_set,
            image_size=self.image_size,
        )
