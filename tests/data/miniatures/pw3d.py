"""A small 3DPW, in its own format and in that of Pose2Mesh, made of the free body with known truth."""

from __future__ import annotations

import io
import json
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from data.keypoints_json import OPENPOSE18
from mesh.body import load_body
from mesh.joints import COCO17, COCO19
from mesh.rotation import axis_angle_to_matrix, axis_angle_to_quaternion, quaternion_multiply, quaternion_to_axis_angle
from mesh.skinning import BodyModel

FOCAL_PX, CENTRE_PX, IMAGE_SIZE = (1960.0, 1961.5), (543.0, 955.5), (1080, 1920)
SEQUENCES = {"courtyard_mini_00": ("m", "f"), "downtown_mini_00": ("f",)}  # genders of the people
NUM_FRAMES = 4
INVALID = ("courtyard_mini_00", 1, 2)  # sequence, person and frame without a valid camera
UNSEEN = ("downtown_mini_00", 0, 1, "left_wrist")  # ... whose joint OpenPose does not see


@dataclass(frozen=True, kw_only=True)
class PersonTruth:
    """One person in one image: `vertices` (V, 3) and `joints` (24, 3) in the camera frame, m.

    `coco` (19, 2) px: COCO's joints, projected, with pelvis and neck half-way between them in the picture.
    """

    sequence: str
    person: int
    frame: int
    gender: int
    shape: np.ndarray
    vertices: np.ndarray
    joints: np.ndarray
    coco: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Motion:
    """SMPL parameters of a person over F frames in the world, and what they give there, metres."""

    pose: np.ndarray  # (F, 24, 3) rad
    shape: np.ndarray  # (10,)
    trans: np.ndarray  # (F, 3)
    vertices: np.ndarray  # (F, V, 3)
    joints: np.ndarray  # (F, 24, 3)


@cache
def body_model() -> BodyModel:
    return BodyModel(load_body())


def posed(pose: np.ndarray, shape: np.ndarray, trans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (N, V, 3) and joints (N, 24, 3) of SMPL parameters, (N, 24, 3), (N, 10), (N, 3)."""
    rotations = axis_angle_to_matrix(torch.from_numpy(np.array(pose, np.float32)))
    vertices, joints = body_model()(rotations, torch.from_numpy(np.array(shape, np.float32)))
    return vertices.numpy() + trans[:, None], joints.numpy() + trans[:, None]


def moving_person(rng: np.random.Generator, num_frames: int, start_m: np.ndarray, *, z_up: bool = False) -> Motion:
    """Somebody who stands around near `start_m` in a world with y (or z) up."""
    pose = rng.normal(0, 0.25, (num_frames, 24, 3))
    pose[:, 0] = rng.normal(0, 0.1, (num_frames, 3)) + np.array([0, rng.uniform(-3, 3), 0])
    if z_up:
        pose[:, 0] = turned(rotation("x", np.pi / 2), pose[:, 0])
    shape = rng.normal(0, 0.8, 10)
    trans = start_m + np.cumsum(rng.normal(0, 0.05, (num_frames, 3)), axis=0)
    vertices, joints = posed(pose, np.tile(shape, (num_frames, 1)), trans)
    return Motion(pose=pose, shape=shape, trans=trans, vertices=vertices, joints=joints)


def rotation(axis: str, angle_rad: float) -> np.ndarray:
    """(3, 3), float64."""
    turn = np.zeros(3)
    turn["xyz".index(axis)] = angle_rad
    return axis_angle_to_matrix(torch.from_numpy(turn)).numpy()


def turned(matrix: np.ndarray, axis_angle: np.ndarray) -> np.ndarray:
    """Axis-angle of the rotation followed by `matrix`, (3, 3), (N, 3) -> (N, 3)."""
    trace = np.sqrt(max(1 + np.trace(matrix), 1e-12))
    vector = np.array([matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]])
    outer = torch.from_numpy(np.concatenate(([trace / 2], vector / (2 * trace))))
    inner = axis_angle_to_quaternion(torch.from_numpy(axis_angle))
    return quaternion_to_axis_angle(quaternion_multiply(outer.expand_as(inner), inner)).numpy()


def look_at(eye_m: np.ndarray, target_m: np.ndarray, up: np.ndarray) -> np.ndarray:
    """World -> camera (4, 4) of a camera at `eye_m`, x right, y down, z towards the target."""
    forward = (target_m - eye_m) / np.linalg.norm(target_m - eye_m)
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[:3, :3] = right, np.cross(forward, right), forward
    matrix[:3, 3] = -matrix[:3, :3] @ eye_m
    return matrix


def moved(camera: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(4, 4) or (3, 4) world -> camera applied to (..., 3)."""
    return points @ camera[:3, :3].T + camera[:3, 3]


def projected(points_m: np.ndarray, focal: Any = FOCAL_PX, centre: Any = CENTRE_PX) -> np.ndarray:
    """Camera frame to pixels, (..., 3) -> (..., 2)."""
    return points_m[..., :2] / points_m[..., 2:] * focal + centre


def with_derived(coco: np.ndarray) -> np.ndarray:
    """COCO's joints and the points half-way between hips and shoulders, (17, 2) -> (19, 2)."""
    middles = [coco[list(COCO17.indices(COCO19.derived[name]))].mean(0) for name in ("pelvis", "neck")]
    return np.concatenate((coco, middles))


@cache
def scenes(seed: int) -> dict[str, tuple[list[Motion], np.ndarray]]:
    """Sequence -> its people and the camera's pose in each frame (F, 4, 4)."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, genders in SEQUENCES.items():
        centre = rng.uniform(-2, 2, 3)
        people = [moving_person(rng, NUM_FRAMES, centre + np.array([0.9 * n, 0, 0])) for n in range(len(genders))]
        cameras = [
            look_at(centre + np.array([rng.uniform(-1, 1), 1 + 0.1 * frame, 4.5]), centre, np.array([0.0, 1, 0]))
            for frame in range(NUM_FRAMES)
        ]
        made[name] = people, np.stack(cameras)
    return made


@cache
def truths(seed: int) -> list[PersonTruth]:
    """Everybody in every frame, in the order of the records."""
    regressor = load_body().regressor(COCO17)
    found = []
    for name, (people, cameras) in scenes(seed).items():
        for number, person in enumerate(people):
            for frame, camera in enumerate(cameras):
                vertices = moved(camera, person.vertices[frame])
                found.append(
                    PersonTruth(
                        sequence=name,
                        person=number,
                        frame=frame,
                        gender={"m": 1, "f": 2}[SEQUENCES[name][number]],
                        shape=person.shape,
                        vertices=vertices,
                        joints=moved(camera, person.joints[frame]),
                        coco=with_derived(projected(regressor @ vertices)),
                    )
                )
    return found


def write_official(
    root: Path, *, split: str = "validation", seed: int = 0, protocol: int = 2, python2: bool = True
) -> list[PersonTruth]:
    """`root/sequenceFiles/SPLIT/*.pkl`; returns the truth of the frames that count, in the order of the records."""
    made = scenes(seed)
    known = truths(seed)
    for name, (people, cameras) in made.items():
        shown = {(t.person, t.frame): t.coco for t in known if t.sequence == name}
        content = official_sequence(name, people, cameras, shown)
        path = root / "sequenceFiles" / split / f"{name}.pkl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dump_python2(content, protocol) if python2 else pickle.dumps(content, protocol))
    return [t for t in known if (t.sequence, t.person, t.frame) != INVALID]


def official_sequence(
    name: str, people: list[Motion], cameras: np.ndarray, shown: dict[tuple[int, int], np.ndarray]
) -> dict[str, Any]:
    """The content of an official file; `shown`: person and frame -> COCO joints in px."""
    valid = np.ones((len(people), NUM_FRAMES), np.int64)
    if name == INVALID[0]:
        valid[INVALID[1:]] = 0
    poses2d = np.zeros((len(people), NUM_FRAMES, 3, len(OPENPOSE18)))
    order = [COCO19.index(joint) for joint in OPENPOSE18.names]
    for (person, frame), joints in shown.items():
        poses2d[person, frame, :2] = joints[order].T
        poses2d[person, frame, 2] = 0.75
        if (name, person, frame) == UNSEEN[:3]:
            poses2d[person, frame, :, OPENPOSE18.index(UNSEEN[3])] = 0
    return {
        "sequence": name,
        "betas": [np.concatenate((p.shape, np.zeros(290 * n))) for n, p in enumerate(people)],  # 10, then 300
        "poses": [p.pose.reshape(NUM_FRAMES, 72) for p in people],
        "trans": [p.trans for p in people],
        "poses_60Hz": [np.repeat(p.pose.reshape(NUM_FRAMES, 72), 2, axis=0) for p in people],
        "trans_60Hz": [np.repeat(p.trans, 2, axis=0) for p in people],
        "cam_poses": cameras,
        "cam_intrinsics": np.array(
            [[FOCAL_PX[0], 0, CENTRE_PX[0]], [0, FOCAL_PX[1], CENTRE_PX[1]], [0, 0, 1]], np.float64
        ),
        "campose_valid": list(valid),
        "poses2d": list(poses2d),
        "jointPositions": [p.joints.reshape(NUM_FRAMES, 72).astype(np.float64) for p in people],
        "genders": list(SEQUENCES[name]),
        "img_frame_ids": np.arange(NUM_FRAMES) * 2,
        "texture_maps": [],
        "betas_clothed": [p.shape for p in people],
        "v_template_clothed": [np.zeros((4, 3)) for _ in people],
    }


class _Python2Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]
    """Writes what Python 2 wrote: texts and array data alike as byte strings, numpy under its old name."""

    def save_byte_string(self, value: str | bytes) -> None:
        content = value.encode("latin1") if isinstance(value, str) else value
        if self.proto == 0:
            self.write(b"S" + repr(content)[1:].encode() + b"\n")
        elif len(content) < 256:
            self.write(b"U" + bytes([len(content)]) + content)
        else:
            self.write(b"T" + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    dispatch: ClassVar[dict[type, Callable[..., None]]] = {
        **pickle._Pickler.dispatch,  # type: ignore[attr-defined]
        str: save_byte_string,
        bytes: save_byte_string,
    }


def dump_python2(content: object, protocol: int = 2) -> bytes:
    """A pickle as Python 2 and its numpy wrote it, protocol 0 to 2."""
    file = io.BytesIO()
    _Python2Pickler(file, protocol).dump(content)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def write_pose2mesh(root: Path, *, split: str = "validation", seed: int = 0) -> list[PersonTruth]:
    """`root/data/3DPW_latest_SPLIT.json` and the detections, in another order; returns the truth of its people."""
    made = scenes(seed)
    known = truths(seed)
    rest_root = body_model().rest_joints[0].numpy(), body_model().joint_shape_dirs[0].numpy()
    images, annotations, detections = {}, [], []
    for number, truth in enumerate(known):
        people, cameras = made[truth.sequence]
        person, camera = people[truth.person], cameras[truth.frame]
        name = f"image_{truth.frame:05d}.jpg"
        image = images.setdefault(
            (truth.sequence, truth.frame),
            {
                "id": 100 + len(images),
                "file_name": name,
                "sequence": truth.sequence,
                "width": IMAGE_SIZE[0],
                "height": IMAGE_SIZE[1],
                "cam_param": {"focal": list(FOCAL_PX), "princpt": list(CENTRE_PX)},
            },
        )
        pose = person.pose[truth.frame].copy()
        pose[0] = turned(camera[:3, :3], pose[:1])[0]
        pivot = rest_root[0] + rest_root[1] @ person.shape  # the root turns about this point, not about the origin
        trans = moved(camera, pivot + person.trans[truth.frame]) - pivot
        low, high = truth.coco.min(0), truth.coco.max(0)
        openpose = truth.coco[[COCO19.index(joint) for joint in OPENPOSE18.names]]
        annotation = {
            "id": 9000 - 7 * number,
            "image_id": image["id"],
            "person_id": truth.person,
            "bbox": [*low.tolist(), *(high - low).tolist()],
            "smpl_param": {
                "pose": pose.ravel().tolist(),
                "shape": person.shape.tolist(),
                "trans": trans.tolist(),
                "gender": ("neutral", "male", "female")[truth.gender],
            },
            "joint_cam": truth.joints.tolist(),
            "joint_img": projected(truth.joints).tolist(),
            "openpose_result": np.concatenate((openpose, np.full((18, 1), 0.5)), axis=1).tolist(),
        }
        annotations.append(annotation)
        coco = np.concatenate((truth.coco[: len(COCO17)], np.full((17, 1), 1.01)), axis=1)  # heat maps exceed 1
        detections.append(
            {"annotation_id": annotation["id"], "image_id": image["id"], "keypoints": coco.tolist()},
        )
    folder = root / "data"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"3DPW_latest_{split}.json").write_text(
        json.dumps({"images": list(images.values()), "annotations": annotations[::-1]})
    )
    rng = np.random.default_rng(seed)
    shuffled = [detections[n] for n in rng.permutation(len(detections))]
    (folder / f"darkpose_3dpw_{split}set_output.json").write_text(json.dumps(shuffled))
    return list(known)
