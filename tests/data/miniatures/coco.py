"""A small COCO with SMPL parameters, in their own formats, made of the free body with known truth."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mesh.body import Body, load_body
from mesh.joints import COCO17, SMPL24
from mesh.rotation import axis_angle_to_matrix
from mesh.skinning import BodyModel

BODY_FILE = str(Path(__file__).parents[3] / "mesh" / "assets" / "free_body.npz")
IMAGE_SIZE = (640, 480)
PEOPLE = (2, 1, 3)  # in each picture
UNLABELLED, HIDDEN = COCO17.index("left_ear"), COCO17.index("right_wrist")  # of each second person
FIRST_ID, FIRST_IMAGE = 183_126, 391_895
CROWD_ID = 900_100_391_895  # ids of crowds do not fit into 32 bits


@dataclass(frozen=True, kw_only=True)
class PersonTruth:
    """One person: `vertices` (V, 3) m in camera frame (in depth only up to a shift where the camera is weak), and the
    picture `joints` (17, 2) px with `confidence` (17,)."""

    annotation_id: int
    image_id: int
    image: str
    pose: np.ndarray
    shape: np.ndarray
    vertices: np.ndarray
    joints: np.ndarray
    confidence: np.ndarray


@cache
def free_body() -> Body:
    return load_body()


@cache
def _model() -> BodyModel:
    return BodyModel(free_body())


def lbs(pose: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Vertices of one person, (24, 3) rad, (10,) -> (V, 3) m."""
    rotations = axis_angle_to_matrix(torch.from_numpy(np.array(pose, np.float32)))[None]
    return _model()(rotations, torch.from_numpy(np.array(shape, np.float32))[None])[0][0].numpy().astype(np.float64)


def standing(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pose (24, 3) of somebody upright in camera frame (y down), seen from anywhere, and a shape (10,)."""
    pose = rng.normal(0, 0.2, (len(SMPL24), 3))
    pose[22:] = 0
    half, turn = rng.uniform(-1.5, 1.5), np.pi  # half a turn about x, then any about the body's own axis
    pose[0] = turn * np.array([np.cos(half / 2), 0, np.sin(half / 2)])
    return pose, rng.normal(0, 0.8, 10).clip(-2.5, 2.5)


def pinhole(points_m: np.ndarray, focal: Any, centre: Any) -> np.ndarray:
    """(N, 3) camera frame -> (N, 2) px."""
    return points_m[:, :2] / points_m[:, 2:] * np.asarray(focal) + np.asarray(centre)


def tight_box(joints: np.ndarray) -> list[float]:
    """x, y, width, height around joints (J, 2)."""
    low, high = joints.min(axis=0), joints.max(axis=0)
    return [*low.tolist(), *(high - low).tolist()]


def write_coco(
    root: Path, *, split: str = "train", camera: Literal["weak", "pinhole"] = "weak", seed: int = 0
) -> list[PersonTruth]:
    """`root/annotations/` with keypoints, and for train SMPL parameters; returns the truth in the order of the file.

    Beside those people there are a crowd and somebody without any labelled joint.
    """
    rng = np.random.default_rng(seed)
    truths: list[PersonTruth] = []
    images, annotations, fits = [], [], {}
    for number, people in enumerate(PEOPLE):
        image_id = FIRST_IMAGE + 7 * number
        file_name = f"{image_id:012d}.jpg"
        images.append(
            {
                "license": 3, "file_name": file_name, "height": IMAGE_SIZE[1], "width": IMAGE_SIZE[0],
                "date_captured": "2013-11-14 11:18:45", "id": image_id,
            }
        )  # fmt: skip
        for _ in range(people):
            truth, fit = _person(rng, FIRST_ID + 11 * len(truths), image_id, f"{split}2017/{file_name}", camera)
            truths.append(truth)
            annotations.append(_annotation(truth))
            fits[str(truth.annotation_id)] = fit
    nobody = {"num_keypoints": 0, "keypoints": [0] * 51, "image_id": FIRST_IMAGE, "bbox": [1, 2, 30.5, 40], "area": 9.0}
    rest = {"category_id": 1, "segmentation": []}
    annotations.insert(1, {**rest, **nobody, "iscrowd": 1, "id": CROWD_ID})
    annotations.insert(3, {**rest, **nobody, "iscrowd": 0, "id": 17})
    categories = [{"id": 1, "name": "person", "supercategory": "person", "keypoints": list(COCO17.names)}]
    content = {
        "info": {"year": 2017}, "licenses": [], "images": images, "annotations": annotations, "categories": categories,
    }  # fmt: skip
    folder = root / "annotations"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"person_keypoints_{split}2017.json").write_text(json.dumps(content))
    if split == "train":
        (folder / "coco_smplify_train.json").write_text(json.dumps(fits))
    return truths


def _person(
    rng: np.random.Generator, annotation_id: int, image_id: int, image: str, camera: str
) -> tuple[PersonTruth, dict[str, Any]]:
    """The truth of one person, and its entry in the parameter file."""
    pose, shape = standing(rng)
    vertices = lbs(pose, shape)
    regressor = free_body().regressor(COCO17)
    smpl: dict[str, Any] = {"pose": pose.ravel().tolist(), "shape": shape.tolist()}
    centre = rng.uniform((200, 150), (440, 330))
    if camera == "weak":
        scale = rng.uniform(60, 140)
        joints = (regressor @ vertices)[:, :2] * scale + centre
        fit = {"smpl_param": smpl, "cam_param": {"s": [scale], "t": [centre.tolist()]}}
    else:
        trans, focal = np.array([*rng.uniform(-0.5, 0.5, 2), rng.uniform(3, 6)]), [520.0, 530.0]
        vertices = vertices + trans
        joints = pinhole(regressor @ vertices, focal, centre)
        smpl["trans"] = trans.tolist()
        fit = {"smpl_param": smpl, "cam_param": {"focal": focal, "princpt": centre.tolist()}}
    confidence = np.ones(len(COCO17))
    if annotation_id % 2:
        confidence[UNLABELLED], confidence[HIDDEN] = 0, 0.5
    truth = PersonTruth(
        annotation_id=annotation_id, image_id=image_id, image=image, pose=pose, shape=shape, vertices=vertices,
        joints=joints, confidence=confidence,
    )  # fmt: skip
    return truth, fit


def _annotation(truth: PersonTruth) -> dict[str, Any]:
    flags = (2 * truth.confidence).astype(int)
    table = [[x, y, int(flag)] if flag else [0, 0, 0] for (x, y), flag in zip(truth.joints.tolist(), flags)]
    box = tight_box(truth.joints)
    return {
        "segmentation": [], "num_keypoints": int((flags > 0).sum()), "area": box[2] * box[3], "iscrowd": 0,
        "keypoints": [number for joint in table for number in joint], "image_id": truth.image_id, "bbox": box,
        "category_id": 1, "id": truth.annotation_id,
    }  # fmt: skip
