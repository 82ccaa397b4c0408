"""A small MuCo-3DHP with SMPL parameters, in their own formats, made of the free body with known truth."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mesh.joints import HUMAN36M17, SMPL24
from tests.data.miniatures.coco import free_body, lbs, pinhole, standing, tight_box

FOCAL_PX, CENTRE_PX, IMAGE_SIZE = [1499.2, 1498.8], [1017.5, 1030.1], (2048, 2048)
PEOPLE = (3, 1, 2)  # in each picture
FIRST_ID, FIRST_IMAGE = 40, 900
# MuCo's joints in its order, and what stands for each on the free body: of human36m17 first, else of smpl24.
STAND_INS = {
    "head_top": "head", "thorax": "neck", "right_shoulder": "right_shoulder", "right_elbow": "right_elbow",
    "right_wrist": "right_wrist", "left_shoulder": "left_shoulder", "left_elbow": "left_elbow",
    "left_wrist": "left_wrist", "right_hip": "right_hip", "right_knee": "right_knee", "right_ankle": "right_ankle",
    "left_hip": "left_hip", "left_knee": "left_knee", "left_ankle": "left_ankle", "pelvis": "pelvis",
    "spine": "spine1", "skull": "skull", "right_hand": "right_hand", "left_hand": "left_hand",
    "right_toe": "right_foot", "left_toe": "left_foot",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PersonTruth:
    """One person in camera frame: `vertices` (V, 3) m, `joints` (17, 3) m and `pixels` (17, 2) of human36m17."""

    annotation_id: int
    image_id: int
    is_closest: bool
    vertices: np.ndarray
    joints: np.ndarray
    pixels: np.ndarray


def write_muco(root: Path, *, seed: int = 0) -> list[PersonTruth]:
    """`root/data/` with MuCo-3DHP.json and smpl_param.json; returns the truth, picture by picture."""
    rng = np.random.default_rng(seed)
    truths: list[PersonTruth] = []
    images, annotations, fits = [], [], {}
    for number, count in enumerate(PEOPLE):
        image_id = FIRST_IMAGE + number
        images.append(
            {
                "id": image_id, "file_name": f"augmented_set/1/{image_id:06d}_01.jpg", "width": IMAGE_SIZE[0],
                "height": IMAGE_SIZE[1], "f": FOCAL_PX, "c": CENTRE_PX,
            }
        )  # fmt: skip
        depths = rng.permutation(np.linspace(3, 6, count))
        for depth in depths:
            annotation_id = FIRST_ID + 3 * len(truths)
            trans = np.array([*rng.uniform(-1, 1, 2), depth])
            pose, shape = standing(rng)
            vertices = lbs(pose, shape) + trans
            joints = free_body().regressor(HUMAN36M17) @ vertices
            truths.append(
                PersonTruth(
                    annotation_id=annotation_id, image_id=image_id, is_closest=depth == depths.min(),
                    vertices=vertices, joints=joints, pixels=pinhole(joints, FOCAL_PX, CENTRE_PX),
                )
            )  # fmt: skip
            annotations.append(_annotation(annotation_id, image_id, vertices, joints))
            fits[str(annotation_id)] = {
                "pose": pose.ravel().tolist(), "shape": shape.tolist(), "trans": trans.tolist(),
            }  # fmt: skip
    folder = root / "data"
    folder.mkdir(parents=True, exist_ok=True)
    order = rng.permutation(len(annotations))  # people of one picture do not stand together in the file
    content = {"images": images, "annotations": [annotations[i] for i in order]}
    (folder / "MuCo-3DHP.json").write_text(json.dumps(content))
    (folder / "smpl_param.json").write_text(json.dumps(fits))
    return truths


def _annotation(annotation_id: int, image_id: int, vertices: np.ndarray, joints: np.ndarray) -> dict[str, Any]:
    points_mm = muco_joints(vertices, joints) * 1000
    pixels = pinhole(points_mm, FOCAL_PX, CENTRE_PX)
    seen = [1] * len(points_mm)
    seen[list(STAND_INS).index("left_wrist")] = 0
    return {
        "id": annotation_id, "image_id": image_id, "category_id": 1, "is_crowd": 0, "bbox": tight_box(pixels),
        "keypoints_img": pixels.tolist(), "keypoints_cam": points_mm.tolist(), "keypoints_vis": seen,
    }  # fmt: skip


def muco_joints(vertices: np.ndarray, joints: np.ndarray) -> np.ndarray:
    """The 21 joints in MuCo's order, metres, of a body's vertices and its human36m17 joints."""
    smpl = free_body().joint_regressor @ vertices
    points = []
    for name in STAND_INS.values():
        if name == "skull":  # between neck and crown: MuCo's `head`
            points.append((joints[HUMAN36M17.index("neck")] + joints[HUMAN36M17.index("head")]) / 2)
        elif name in HUMAN36M17.names:
            points.append(joints[HUMAN36M17.index(name)])
        else:
            points.append(smpl[SMPL24.index(name)])
    return np.stack(points)
