"""3DPW (von Marcard et al. 2018): its own sequence files, and the json files in which Pose2Mesh distributes it.

Official: `sequenceFiles/{train,validation,test}/NAME.pkl`, pickles of Python 2; images `imageFiles/NAME/image_*.jpg`.
Of each file are read `poses` (per person (T, 72) axis-angle), `betas` (10 or 300), `trans` (T, 3) and `jointPositions`
(T, 72), metres in the world; `cam_poses` (T, 4, 4) world -> camera, `campose_valid` (T,) per person, `cam_intrinsics`
(3, 3), `poses2d` per person (T, 3, 18: x, y, confidence of OpenPose's 18 joints) and `genders` ('m' or 'f').

Pose2Mesh: `3DPW_latest_{train,validation,test}.json` in the root or its folder `data`. An image has `id`, `file_name`,
`sequence`, `width`, `height`, `cam_param` {`focal`, `princpt`}; an annotation `id`, `image_id`, `person_id`, `bbox`,
`smpl_param` {`pose`, `shape`, `trans`, `gender`}, all in the camera frame and metres, and, where the file has them,
`joint_cam` (24, 3) metres and `openpose_result` (18, 3). The detections `darkpose_3dpw_{SPLIT}set_output.json` list
`annotation_id` and `keypoints` (17, 3); they are matched by that id.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from data.keypoints_json import OPENPOSE18
from data.readers import Progress
from data.readers.pose2mesh_json import (
    NO_BOX,
    box_of,
    by_id,
    columns_of,
    fields,
    frame_number,
    numbers,
    read_json,
    relative_name,
    whole,
)
from data.record_sources import settings_of
from data.records import Records, RecordsWriter
from mesh.errors import InputError, require
from mesh.joints import COCO17, COCO19, SMPL24, JointSet, Keypoints
from mesh.pickles import read_pickle

SPLITS = ("train", "validation", "test")
LICENCE = "3DPW: non-commercial research, after registration at virtualhumans.mpi-inf.mpg.de/3DPW"
NO_CAMERA = "camera pose not valid"
Form = Literal["auto", "official", "pose2mesh"]
Detections = Literal["auto", "darkpose", "openpose", "none"]
_KEYS = (
    *("poses", "betas", "trans", "cam_poses", "cam_intrinsics"),
    *("campose_valid", "poses2d", "jointPositions", "genders"),
)
_GENDERS = {"neutral": 0, "n": 0, "male": 1, "m": 1, "female": 2, "f": 2}
_FARTHEST_ROOT_M = 1.0  # a pelvis further from `trans` is in another unit or frame

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PW3DOptions:
    """`form`: which files to read where the folder has both. `detections`: whose 2D joints to keep.

    auto: openpose in the official form, which has no others, darkpose in the other.
    """

    form: Form = "auto"
    detections: Detections = "auto"

    def __post_init__(self) -> None:
        for name, choices in (("form", get_args(Form)), ("detections", get_args(Detections))):
            value = getattr(self, name)
            require(value in choices, f"{name} must be one of {', '.join(choices)}, got {value!r}")


def convert(root: Path, out: Path, *, split: str, progress: Progress = lambda *_: None, **options: Any) -> Records:
    """Records of one split: SMPL truth with gender, camera, SMPL joints, and detections as COCO's joints."""
    chosen = PW3DOptions(**options)
    require(split in SPLITS, f"3DPW has the splits {', '.join(SPLITS)}; got {split!r}")
    root = Path(root)
    form = _form(root, split, chosen.form)
    detections = chosen.detections
    if detections == "auto":
        detections = "openpose" if form == "official" else "darkpose"
    if form == "official" and detections == "darkpose":
        raise InputError("detections darkpose come with the json files of Pose2Mesh; choose openpose or none")
    with RecordsWriter(
        out,
        source="3DPW" if form == "official" else "3DPW as Pose2Mesh distributes it",
        split=split,
        licence=LICENCE,
        joints2d=None if detections == "none" else COCO19,
        joints3d=SMPL24,
        settings=settings_of(PW3DOptions(form=form, detections=detections)),
    ) as writer:
        if form == "official":
            files = sorted(file for file in _official_folder(root, split).glob("*.pkl") if file.is_file())
        else:
            files = [file for file in _annotation_files(root, split) if file.is_file()]
        for number, file in enumerate(files):
            progress(number, len(files), file.stem)
            if not writer.has(file.name, [file, *([_darkpose_file(file)] if detections == "darkpose" else [])]):
                read = read_sequence if form == "official" else read_annotations
                columns, dropped = read(file, detections)
                writer.add(file.name, columns, dropped)
        progress(len(files), len(files), "writing")
        return writer.finish()


def _official_folder(root: Path, split: str) -> Path:
    return root / "sequenceFiles" / split


def _annotation_files(root: Path, split: str) -> list[Path]:
    return [folder / f"3DPW_latest_{split}.json" for folder in (root / "data", root)]


def _form(root: Path, split: str, form: Form) -> Literal["official", "pose2mesh"]:
    """Which of the two forms the folder has; where it has both, the choice is the caller's."""
    folder, files = _official_folder(root, split), _annotation_files(root, split)
    official, pose2mesh = any(folder.glob("*.pkl")), [file for file in files if file.is_file()]
    if form == "auto" and official and pose2mesh:
        raise InputError(f"{root} has both {folder} and {pose2mesh[0]}; choose form official or pose2mesh")
    if len(pose2mesh) > 1 and form != "official":
        raise InputError(f"{root} has both {pose2mesh[0]} and {pose2mesh[1]}; remove one")
    if official and form != "pose2mesh":
        return "official"
    if pose2mesh and form != "official":
        return "pose2mesh"
    expected = {"official": f"{folder}/*.pkl", "pose2mesh": str(files[0])}
    wanted = expected.get(form) or " or ".join(expected.values())
    raise InputError(f"no 3DPW files for split {split}: expected {wanted}; give the folder that holds them as root")


# The official form


def read_sequence(path: Path, detections: Detections) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Rows of one official sequence file, person by person, and how many frames were left out by which rule."""
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}; a 3DPW sequence is a dict with {', '.join(_KEYS)}")
    missing = [key for key in _KEYS if key not in content]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}; a 3DPW sequence has {', '.join(_KEYS)}")
    poses = _per_person(content, "poses", path)
    cameras = _array(content["cam_poses"], (None, 4, 4), f"{path}: cam_poses")
    intrinsics = _intrinsics(content["cam_intrinsics"], path)
    chunks, dropped = [], 0
    for person in range(len(poses)):
        columns = _person(content, person, cameras, path, detections)
        count = len(columns["frame"])
        dropped += len(cameras) - count
        chunks.append({**columns, "intrinsics": np.tile(intrinsics, (count, 1))})
    joined = {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]}
    return joined, {NO_CAMERA: dropped}


def _person(
    content: Mapping[str, Any], person: int, cameras: np.ndarray, path: Path, detections: Detections
) -> dict[str, np.ndarray]:
    """One person's frames with a valid camera."""
    length = len(cameras)

    def numbers_of(key: str, *shape: int | None) -> np.ndarray:
        return _array(_per_person(content, key, path)[person], shape, f"{path}: {key}[{person}]")

    frames = np.flatnonzero(numbers_of("campose_valid", length))
    poses, trans = numbers_of("poses", length, 72)[frames], numbers_of("trans", length, 3)[frames]
    joints = numbers_of("jointPositions", length, 72)[frames].reshape(-1, 24, 3)
    betas = _per_person(content, "betas", path)[person]
    extrinsics = cameras[frames, :3]
    for key, values in (("poses", poses), ("trans", trans), ("jointPositions", joints), ("cam_poses", extrinsics)):
        if not np.isfinite(values).all():
            bad = frames[np.argwhere(~np.isfinite(values))[0][0]]
            raise InputError(f"{path}: {key} of person {person} holds NaN or infinity in frame {bad}, which is valid")
    if np.abs(cameras[frames, 3] - (0, 0, 0, 1)).max(initial=0) > 1e-6:
        raise InputError(f"{path}: cam_poses must be rigid motions (4, 4) with the last row 0 0 0 1")
    if len(frames):
        _check_root(joints[:, 0], trans, f"{path}: jointPositions[{person}]")
    columns = {
        "pose": poses.reshape(-1, 24, 3),
        "shape": np.tile(_shape(betas, f"{path}: betas[{person}]"), (len(frames), 1)),
        "trans": trans,
        "gender": np.full(len(frames), _gender(_per_person(content, "genders", path)[person], f"{path}: genders")),
        "extrinsics": extrinsics,
        "joints3d": np.einsum("fij,fkj->fki", extrinsics[..., :3], joints) + extrinsics[:, None, :, 3],
        "joint_valid": np.ones((len(frames), 24), bool),
        "image": np.array([f"imageFiles/{path.stem}/image_{frame:05d}.jpg" for frame in frames], "U"),
        "sequence": np.full(len(frames), path.stem),
        "person": np.full(len(frames), person),
        "frame": frames,
    }
    if detections == "openpose":
        keypoints = numbers_of("poses2d", length, 3, len(OPENPOSE18))[frames].transpose(0, 2, 1)
        where = f"{path}: poses2d[{person}]"
        columns["joints2d"], columns["confidence"] = as_coco19(keypoints, OPENPOSE18, where)
    return columns


def _per_person(content: Mapping[str, Any], key: str, path: Path) -> list[Any]:
    """The entries of a key, one for each person."""
    lists = []
    for name in ("poses", key):
        value = content[name]
        if not isinstance(value, list | tuple) and not (isinstance(value, np.ndarray) and value.ndim):
            raise InputError(f"{path}: {name} must be a list with an entry for each person, got {type(value).__name__}")
        lists.append(list(value))
    if not lists[0] or len(lists[0]) != len(lists[1]):
        raise InputError(f"{path}: {key} has entries for {len(lists[1])} people, poses for {len(lists[0])}")
    return lists[1]


def _array(value: object, shape: tuple[int | None, ...], where: str) -> np.ndarray:
    """Numbers of the given shape, None standing for any length."""
    fits = isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.ndim == len(shape)
    if not isinstance(value, np.ndarray) or not fits or any(m not in (n, None) for n, m in zip(value.shape, shape)):
        expected = f"({', '.join('T' if n is None else str(n) for n in shape)})"
        came = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise InputError(f"{where} must be an array of numbers {expected}, got {came}")
    return value.astype(np.float64)


def _intrinsics(value: object, path: Path) -> np.ndarray:
    """fx, fy, cx, cy of a camera matrix, px."""
    matrix = _array(value, (3, 3), f"{path}: cam_intrinsics")
    plain = np.array([[matrix[0, 0], 0, matrix[0, 2]], [0, matrix[1, 1], matrix[1, 2]], [0, 0, 1]])
    if not np.isfinite(matrix).all() or not np.allclose(matrix, plain) or min(matrix[0, 0], matrix[1, 1]) <= 0:
        raise InputError(f"{path}: cam_intrinsics must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], got {matrix.tolist()}")
    return matrix[[0, 1, 0, 1], [0, 1, 2, 2]]


# What both forms share


def as_coco19(rows: np.ndarray, joint_set: JointSet, where: str) -> tuple[np.ndarray, np.ndarray]:
    """x, y, confidence of a joint set's joints as positions (N, 19, 2) px and confidence (N, 19), matched by name.

    (N, J, 3). Confidences above 1, which heat maps give, are 1; what is not known is 0.
    """
    if not np.isfinite(rows).all():
        raise InputError(f"{where} holds NaN or infinity in row {np.argwhere(~np.isfinite(rows))[0][0]}")
    found = Keypoints(positions_px=rows[..., :2], confidence=rows[..., 2].clip(0, 1), joint_set=joint_set).to(COCO19)
    return np.where(found.confidence[..., None] > 0, found.positions_px, 0), found.confidence


def _shape(betas: object, where: str) -> np.ndarray:
    """The first ten coefficients."""
    flat = betas.ravel() if isinstance(betas, np.ndarray) else np.array([None])
    if flat.dtype.kind not in "fiu" or flat.size not in (10, 300) or not np.isfinite(flat).all():
        came = f"{flat.size} of {flat.dtype}" if isinstance(betas, np.ndarray) else type(betas).__name__
        raise InputError(f"{where} must be 10 or 300 finite numbers, got {came}")
    return flat[:10].astype(np.float64)


def _gender(value: object, where: str) -> int:
    if not isinstance(value, str) or value.lower() not in _GENDERS:
        raise InputError(f"{where} must be one of {', '.join(_GENDERS)}, got {str(value)[:20]!r}")
    return _GENDERS[value.lower()]


def _check_root(pelvis_m: np.ndarray, trans_m: np.ndarray, where: str) -> None:
    """The first joint of SMPL lies within some decimetres of `trans`, else units or frames differ. (N, 3), (N, 3)."""
    distance = float(np.median(np.linalg.norm(pelvis_m - trans_m, axis=1)))
    if distance > _FARTHEST_ROOT_M:
        raise InputError(f"{where}: the pelvis lies {distance:.4g} m from trans; expected both in metres in one frame")


# The form of Pose2Mesh


def read_annotations(path: Path, detections: Detections) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Rows of an annotation file, and how many people were left out by which rule."""
    content = read_json(path, "annotations of 3DPW with images and annotations")
    images, annotations = by_id(content, "images", str(path)), by_id(content, "annotations", str(path))
    found = _read_darkpose(path, annotations.keys()) if detections == "darkpose" else {}
    has_joints = any("joint_cam" in person for person in annotations.values())
    rows, dropped = [], Counter[str]()
    for annotation_id, person in annotations.items():
        where = f"{path}: annotation {annotation_id}"
        image_id, person_id, box, smpl = fields(person, ("image_id", "person_id", "bbox", "smpl_param"), where)
        image_id = whole(image_id, f"{where}: image_id")
        if image_id not in images:
            raise InputError(f"{where}: image_id {image_id} is not among the images")
        if (box_px := box_of(box, f"{where}: bbox")) is None:
            dropped[NO_BOX] += 1
            continue
        row = {
            **_smpl(smpl, f"{where}: smpl_param"),
            **_image(images[image_id], f"{path}: image {image_id}"),
            "box": box_px,
            "person": whole(person_id, f"{where}: person_id"),
        }
        if has_joints:
            (joint_cam,) = fields(person, ("joint_cam",), where)
            row["joints3d"] = numbers(joint_cam, (24, 3), f"{where}: joint_cam")
            row["joint_valid"] = np.ones(24, bool)
        if detections == "openpose":
            (openpose,) = fields(person, ("openpose_result",), where)
            row["keypoints"] = numbers(openpose, (len(OPENPOSE18), 3), f"{where}: openpose_result")
        elif detections == "darkpose":
            row["keypoints"] = found.get(annotation_id, np.zeros((len(COCO17), 3)))
        rows.append(row)
    columns = columns_of(rows)
    if "joints3d" in columns:
        _check_root(columns["joints3d"][:, 0], columns["trans"], f"{path}: joint_cam")
    if "keypoints" in columns:
        joint_set = OPENPOSE18 if detections == "openpose" else COCO17
        columns["joints2d"], columns["confidence"] = as_coco19(columns.pop("keypoints"), joint_set, str(path))
    return columns, dict(dropped)


def _smpl(entry: object, where: str) -> dict[str, Any]:
    pose, shape, trans, gender = fields(entry, ("pose", "shape", "trans", "gender"), where)
    return {
        "pose": numbers(pose, (24, 3), f"{where}: pose"),
        "shape": numbers(shape, (10,), f"{where}: shape"),
        "trans": numbers(trans, (3,), f"{where}: trans"),
        "gender": _gender(gender, f"{where}: gender"),
    }


def _image(entry: object, where: str) -> dict[str, Any]:
    keys = ("file_name", "sequence", "width", "height", "cam_param")
    name, sequence, width, height, camera = fields(entry, keys, where)
    focal, centre = fields(camera, ("focal", "princpt"), f"{where}: cam_param")
    name = relative_name(name, f"{where}: file_name")
    sequence = relative_name(sequence, f"{where}: sequence")
    return {
        "intrinsics": np.concatenate(
            (numbers(focal, (2,), f"{where}: focal"), numbers(centre, (2,), f"{where}: princpt"))
        ),
        "image": f"imageFiles/{sequence}/{name}",
        "image_size": (whole(width, f"{where}: width"), whole(height, f"{where}: height")),
        "sequence": sequence,
        "frame": frame_number(name, f"{where}: file_name"),
    }


def _darkpose_file(annotations: Path) -> Path:
    split = annotations.stem.rpartition("_")[2]
    path = annotations.with_name(f"darkpose_3dpw_{split}set_output.json")
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; expected the detections that Pose2Mesh distributes for {annotations.name}; "
            "choose detections openpose (of the annotations) or none to go without"
        )
    return path


def _read_darkpose(annotations: Path, known: Any) -> dict[int, np.ndarray]:
    """Detections by annotation id, (17, 3) each, from the file beside the annotations."""
    path = _darkpose_file(annotations)
    found: dict[int, np.ndarray] = {}
    for number, entry in enumerate(read_json(path, "a list of detections", list)):
        where = f"{path}: [{number}]"
        annotation_id, keypoints = fields(entry, ("annotation_id", "keypoints"), where)
        annotation_id = whole(annotation_id, f"{where}: annotation_id")
        if annotation_id in found:
            raise InputError(f"{where}: annotation_id {annotation_id} comes twice; get the file anew")
        found[annotation_id] = numbers(keypoints, (len(COCO17), 3), f"{where}: keypoints")
    missing = len(known - found.keys())
    if known and missing == len(known):
        raise InputError(f"{path}: no annotation_id is among the annotations of {annotations}; the files do not belong")
    if missing:
        logger.warning("%s has no detection for %d of %d annotations; their confidence is 0", path, missing, len(known))
    return found
