"""A small MPII Human Pose, as the official .mat and in the common json form, made of the free body."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat

from mesh.joints import HUMAN36M17, MPII16
from tests.data.miniatures.coco import free_body, lbs, pinhole, standing

MAT_NAME = "mpii_human_pose_v1_u12_1.mat"
FOCAL_PX, CENTRE_PX = [1000.0, 1000.0], [640.0, 360.0]
# What stands for MPII's joints that human36m17 calls differently.
STAND_INS = {"thorax": "neck", "upper_neck": "nose", "head_top": "head"}
MISSING, HIDDEN = MPII16.index("left_ankle"), MPII16.index("right_wrist")  # of each second person
SAYS_NOTHING = MPII16.indices(("upper_neck", "head_top"))  # points without `is_visible` in the official file


@dataclass(frozen=True, kw_only=True)
class PersonTruth:
    """One person: `joints` (16, 2) px counted from 0, `confidence` (16,) hidden: a half; `box` (4,) px."""

    image: str
    person: int
    frame: int
    joints: np.ndarray
    confidence: np.ndarray
    box: np.ndarray
    stands_apart: bool


def write_mat(root: Path, *, seed: int = 0) -> list[PersonTruth]:
    """`root/mpii_human_pose_v1_u12_1.mat`; returns the truth of its people with joints, in order.

    Five pictures: two people, a test picture, one person and a marked head, a picture without people, three people.
    """
    rng = np.random.default_rng(seed)
    counts, is_train = (2, 1, 1, 0, 3), (1, 0, 1, 1, 1)
    truths, pictures, apart = [], [], []
    for frame, count in enumerate(counts):
        people = [_person(rng, f"{frame:09d}.jpg", frame, number) for number in range(count)]
        rectangles = [_rectangle(person, with_joints=bool(is_train[frame])) for person in people]
        if frame == 2:  # a head alone
            rectangles.append({"x1": 10, "y1": 11, "x2": 30, "y2": 40})
        if is_train[frame]:
            truths += people
        pictures.append((frame, rectangles))
        apart.append(np.array([person.person + 1 for person in people if person.stands_apart], float))
    annolist = np.zeros((1, len(pictures)), [(n, object) for n in ("image", "annorect", "frame_sec", "vididx")])
    for frame, rectangles in pictures:
        entry = annolist[0, frame]
        entry["image"] = {"name": f"{frame:09d}.jpg"}
        entry["annorect"] = _struct_array(rectangles)
        entry["frame_sec"], entry["vididx"] = np.zeros((0, 0)), np.zeros((0, 0))
    cells = np.zeros((len(apart), 1), object)
    for frame, numbers in enumerate(apart):
        cells[frame, 0] = numbers
    release = {
        "annolist": annolist, "img_train": np.array([is_train], np.uint8), "version": "12", "single_person": cells,
    }  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    savemat(root / MAT_NAME, {"RELEASE": release})
    return truths


def write_json(root: Path, *, split: str = "train", seed: int = 0) -> list[PersonTruth]:
    """`root/annot/SPLIT.json`; returns the truth in the order of the file."""
    rng = np.random.default_rng(seed)
    truths = [
        _person(rng, f"{image:09d}.jpg", entry, person)
        for entry, (image, person) in enumerate([(0, 0), (0, 1), (5, 0)])
    ]
    content = []
    for truth in truths:
        known = truth.confidence > 0
        joints = np.where(known[:, None], truth.joints + 1, -1)  # -1: not annotated
        content.append(
            {
                "joints_vis": known.astype(int).tolist(), "joints": joints.tolist(), "image": truth.image,
                "scale": truth.box[2] / 200, "center": (truth.box[:2] + truth.box[2:] / 2 + 1).tolist(),
            }
        )  # fmt: skip
    (root / "annot").mkdir(parents=True, exist_ok=True)
    (root / "annot" / f"{split}.json").write_text(json.dumps(content))
    return truths


def _person(rng: np.random.Generator, image: str, frame: int, person: int) -> PersonTruth:
    pose, shape = standing(rng)
    vertices = lbs(pose, shape) + np.array([*rng.uniform(-1, 1, 2), rng.uniform(4, 6)])
    order = [HUMAN36M17.index(STAND_INS.get(name, name)) for name in MPII16.names]
    joints = pinhole((free_body().regressor(HUMAN36M17) @ vertices)[order], FOCAL_PX, CENTRE_PX)
    confidence = np.ones(len(MPII16))
    if person % 2:
        confidence[MISSING], confidence[HIDDEN] = 0, 0.5
    side = 200 * round(float(np.ptp(joints[:, 1])) / 200, 6)
    centre = joints.mean(axis=0).round()
    return PersonTruth(
        image=image, person=person, frame=frame, joints=joints, confidence=confidence,
        box=np.array([*(centre - side / 2), side, side]), stands_apart=person != 1,
    )  # fmt: skip


def _rectangle(truth: PersonTruth, *, with_joints: bool) -> dict[str, Any]:
    """One annorect; `is_visible` comes as number, as text and as nothing, as in the official file."""
    x, y = truth.box[:2] + truth.box[2:] / 2 + 1
    found: dict[str, Any] = {"scale": truth.box[2] / 200, "objpos": {"x": float(x), "y": float(y)}}
    if not with_joints:
        return found
    points = []
    for idx in np.random.default_rng(1).permutation(len(MPII16)).tolist():  # in no order
        if truth.confidence[idx]:
            flag = int(truth.confidence[idx] == 1)
            visible: Any = np.zeros((0, 0)) if idx in SAYS_NOTHING else str(flag) if idx % 2 else flag
            px, py = (truth.joints[idx] + 1).tolist()
            points.append({"x": px, "y": py, "id": idx, "is_visible": visible})
    return found | {"x1": 1, "y1": 2, "x2": 3, "y2": 4, "annopoints": {"point": _struct_array(points)}}


def _struct_array(entries: list[dict[str, Any]]) -> np.ndarray:
    """MATLAB's 1 x N struct array: all fields in all entries, empty where an entry lacks one."""
    names = list(dict.fromkeys(name for entry in entries for name in entry))
    if not names:
        return np.zeros((0, 0))
    array = np.zeros((1, len(entries)), [(name, object) for name in names])
    for i, entry in enumerate(entries):
        for name in names:
            array[0, i][name] = entry.get(name, np.zeros((0, 0)))
    return array
