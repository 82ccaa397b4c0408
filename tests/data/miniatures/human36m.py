"""A small Human3.6M in the json files that Pose2Mesh distributes, made of the free body with known truth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from mesh.body import load_body
from mesh.joints import HUMAN36M17
from tests.data.miniatures.pw3d import look_at, moved, moving_person, posed, projected

TRAIN, TEST = (1, 5, 6, 7, 8), (9, 11)
FRAMES = (0, 5, 7, 50, 100)
TAKES = ((2, 1), (2, 2), (13, 1))  # action, subaction
NUM_CAMERAS = 2
FOCAL_PX, CENTRE_PX, IMAGE_SIZE = (1145.0, 1143.8), (512.5, 515.5), (1000, 1002)
UNFITTED = (2, 2, 50)  # the take without SMPL parameters
MISFITTED = (13, 1, 50)  # ... whose parameters are 40 mm off at each joint
ODD_SHAPE = (2, 1, 100)  # ... with a shape beyond three standard deviations, which counts as the mean shape
DETECTION_SHIFT_PX = np.array([3.0, -2.0])
BODY = Path(__file__).parents[3] / "mesh" / "assets" / "free_body.npz"


@dataclass(frozen=True, kw_only=True)
class ImageTruth:
    """One image of a take (action, subaction, frame), metres in the camera frame and pixels."""

    name: str
    sequence: str
    subject: int
    take: tuple[int, int, int]
    vertices: np.ndarray  # (V, 3)
    joints: np.ndarray  # (17, 3)
    joints2d: np.ndarray  # (17, 2)

    @property
    def frame(self) -> int:
        return self.take[2]


@cache
def takes(subject: int) -> dict[tuple[int, int, int], dict[str, np.ndarray]]:
    """SMPL parameters as stored, and true vertices and joints in the world (z up), metres."""
    rng = np.random.default_rng(subject)
    regressor = load_body().regressor(HUMAN36M17)
    found = {}
    for action, subaction in TAKES:
        person = moving_person(rng, len(FRAMES), np.array([0.3, -0.2, 1.0]), z_up=True)
        for number, frame in enumerate(FRAMES):
            take, shape, vertices = (action, subaction, frame), person.shape, person.vertices[number]
            if take == ODD_SHAPE:
                shape = np.append(-3.5, person.shape[1:])
                parameters = person.pose[number : number + 1], np.zeros((1, 10)), person.trans[number : number + 1]
                vertices = posed(*parameters)[0][0]
            joints = regressor @ vertices
            if take == MISFITTED:
                joints = joints + 0.04 * np.where(np.arange(17) % 2, 1, -1)[:, None] * np.array([0.6, 0.0, 0.8])
            found[take] = {
                "pose": person.pose[number],
                "shape": shape,
                "trans": person.trans[number],
                "vertices": vertices,
                "joints": joints,
            }
    return found


def cameras(subject: int) -> list[np.ndarray]:
    """World -> camera (4, 4), metres."""
    places = np.array([[4.0, 1.0, 1.6], [-3.5, -3.0, 1.4], [0.0, 5.0, 1.7]])[:NUM_CAMERAS]
    return [look_at(place, np.array([0.1 * subject, 0, 0.9]), np.array([0.0, 0, 1])) for place in places]


def write(root: Path, *, subjects: Sequence[int] = TEST, every: int = 50) -> list[ImageTruth]:
    """`root/annotations/*.json`; returns the truth of the images whose frame counts, in the order of the records."""
    found = [image for subject in subjects for image in _write_subject(root / "annotations", subject)]
    found.sort(key=lambda image: (subjects.index(image.subject), image.sequence, image.frame))
    return [image for image in found if image.frame % every == 0]


def _write_subject(folder: Path, subject: int) -> list[ImageTruth]:
    truth, images, annotations = [], [], []
    joint_3d: dict[str, Any] = {}
    smpl: dict[str, Any] = {}
    for take, known in takes(subject).items():
        action, subaction, frame = map(str, take)
        joints_mm = known["joints"] * 1000
        joint_3d.setdefault(action, {}).setdefault(subaction, {})[frame] = joints_mm.tolist()
        if take != UNFITTED:
            fit = {key: known[key].ravel().tolist() for key in ("pose", "shape", "trans")}
            smpl.setdefault(action, {}).setdefault(subaction, {})[frame] = fit
        for number, camera in enumerate(cameras(subject), start=1):
            image = _truth(subject, take, number, camera)
            truth.append(image)
            images.append(
                {
                    "id": 1000 * subject + len(images),
                    "file_name": image.name,
                    "width": IMAGE_SIZE[0],
                    "height": IMAGE_SIZE[1],
                    "subject": subject,
                    "action_name": "Directions" if take[0] == 2 else "Waiting",
                    "action_idx": take[0],
                    "subaction_idx": take[1],
                    "cam_idx": number,
                    "frame_idx": take[2],
                }
            )
            low, high = image.joints2d.min(0), image.joints2d.max(0)
            annotations.append(
                {
                    "id": 5000 * subject - len(images),
                    "image_id": images[-1]["id"],
                    "keypoints_vis": [True] * 17,
                    "bbox": [*low.tolist(), *(high - low).tolist()],
                }
            )
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "data": {"images": images, "annotations": annotations[::-1]},
        "camera": {
            str(number): {
                "R": camera[:3, :3].tolist(),
                "t": (camera[:3, 3] * 1000).tolist(),
                "f": list(FOCAL_PX),
                "c": list(CENTRE_PX),
            }
            for number, camera in enumerate(cameras(subject), start=1)
        },
        "joint_3d": joint_3d,
        "smpl_param": smpl,
    }
    for part, value in content.items():
        (folder / f"Human36M_subject{subject}_{part}.json").write_text(json.dumps(value))
    return truth


def _truth(subject: int, take: tuple[int, int, int], number: int, camera: np.ndarray) -> ImageTruth:
    known = takes(subject)[take]
    sequence = f"s_{subject:02d}_act_{take[0]:02d}_subact_{take[1]:02d}_ca_{number:02d}"
    joints = moved(camera, known["joints"])
    return ImageTruth(
        name=f"{sequence}/{sequence}_{take[2] + 1:06d}.jpg",
        sequence=sequence,
        subject=subject,
        take=take,
        vertices=moved(camera, known["vertices"]),
        joints=joints,
        joints2d=projected(joints, FOCAL_PX, CENTRE_PX),
    )


def write_detections(path: Path, truth: Sequence[ImageTruth]) -> None:
    """2D detections by image file name, in another order than the images, each shifted by a known vector."""
    found = {image.name.rpartition("/")[2]: (image.joints2d + DETECTION_SHIFT_PX).tolist() for image in truth[::-1]}
    path.write_text(json.dumps(found))
