"""Human3.6M (Ionescu et al. 2014) in the json files that Pose2Mesh and Integral Regression distribute.

In `annotations/` of the root, or in the root, for each subject S: `Human36M_subject{S}_data.json` with `images` (`id`,
`file_name`, `width`, `height`, `subject`, `action_idx`, `subaction_idx`, `cam_idx`, `frame_idx`) and `annotations`
(`id`, `image_id`, `bbox`); `_camera.json`, camera -> `R` (3, 3), `t` mm world -> camera, `f`, `c` px; `_joint_3d.json`,
action -> subaction -> frame -> (17, 3) mm in the world; `_smpl_param.json`, the same keys -> `pose`, `shape`, `trans`
(metres in the world), fitted to the joints afterwards. Frames without such parameters keep their joints. 2D joints are
the joints projected (the published cameras have no distortion here), or with the option `detections` those of the file
`absnet_output_on_testset.json`: image file name -> (17, 2 or 3), matched by that name.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data.readers import Progress
from data.readers.fits import FitCheck, centred_distance_mm
from data.readers.pose2mesh_json import (
    MM_PER_M,
    NO_BOX,
    box_of,
    by_id,
    columns_of,
    fields,
    numbers,
    read_json,
    relative_name,
    whole,
)
from data.record_sources import settings_of
from data.records import Records, RecordsWriter
from mesh.errors import InputError, require
from mesh.joints import HUMAN36M17

SUBJECTS = {"train": (1, 5, 6, 7, 8), "test": (9, 11)}
EVERY = {"train": 5, "test": 50}
LICENCE = "Human3.6M: non-commercial research, after registration at vision.imar.ro/human3.6m"
SKIPPED = "frame between those kept"
NO_MESH = "no usable SMPL parameters"
_PARTS = ("data", "camera", "joint_3d", "smpl_param")
_NUM_JOINTS = len(HUMAN36M17)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Human36MOptions:
    """`every`: keep each so many-th frame; by default 5 of train and 50 of test. `max_shape`: with a coefficient
    beyond it, a shape becomes the mean one. `max_fit_mm`: parameters whose Human3.6M joints lie further from the given
    ones, on average after the means of both are laid together, are no truth (mesh_valid false); it needs `body`,
    the neutral SMPL file that the parameters were fitted with (infinity: no check, no body needed). `require_mesh`:
    leave out frames without trusted parameters. `detections`: file of 2D detections instead of projected joints.
    """

    every: int | None = None
    max_shape: float = 3.0
    max_fit_mm: float = 25.0
    body: str | None = None
    require_mesh: bool = False
    detections: str | None = None

    def __post_init__(self) -> None:
        require(self.every is None or self.every > 0, f"every must be 1 or more, got {self.every}")
        for name in ("max_shape", "max_fit_mm"):
            require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        if not self.body and math.isfinite(self.max_fit_mm):
            raise InputError(
                f"leaving out fits worse than {self.max_fit_mm:g} mm needs body, the neutral SMPL file of the fits; "
                "give it, or set max_fit_mm to inf to trust every fit"
            )


def convert(root: Path, out: Path, *, split: str, progress: Progress = lambda *_: None, **options: Any) -> Records:
    """Records of one split, subject by subject: camera, the 17 joints in 2D and 3D, and SMPL parameters with a mask."""
    chosen = Human36MOptions(**options)
    require(split in SUBJECTS, f"Human3.6M has the splits {', '.join(SUBJECTS)}; got {split!r}")
    folder = _folder(Path(root), SUBJECTS[split])
    every = chosen.every or EVERY[split]
    detections = _read_detections(Path(chosen.detections)) if chosen.detections else None
    check = FitCheck.load(chosen.body, HUMAN36M17, chosen.max_fit_mm)
    others = [*check.files, *([Path(chosen.detections)] if chosen.detections else [])]
    with RecordsWriter(
        out,
        source="Human3.6M",
        split=split,
        licence=LICENCE,
        joints2d=HUMAN36M17,
        joints3d=HUMAN36M17,
        up="z",
        settings=settings_of(chosen, "body", "detections") | {"every": every},
    ) as writer:
        for number, subject in enumerate(SUBJECTS[split]):
            key = f"subject {subject}"
            progress(number, len(SUBJECTS[split]), key)
            if not writer.has(key, [*(_file(folder, subject, part) for part in _PARTS), *others]):
                columns, dropped = read_subject(folder, subject, every, chosen, check, detections)
                writer.add(key, columns, dropped)
        progress(len(SUBJECTS[split]), len(SUBJECTS[split]), "writing")
        return writer.finish()


def _folder(root: Path, subjects: Sequence[int]) -> Path:
    """Where the annotations lie, all of which must be there before hours are spent on some."""
    folder = root / "annotations" if (root / "annotations").is_dir() else root
    for subject in subjects:
        for part in _PARTS:
            if not _file(folder, subject, part).is_file():
                raise InputError(
                    f"{_file(folder, subject, part)}: no such file; expected {', '.join(_PARTS)} of the subjects "
                    f"{', '.join(map(str, subjects))} in {root}/annotations, as Pose2Mesh distributes them"
                )
    return folder


def _file(folder: Path, subject: int, part: str) -> Path:
    return folder / f"Human36M_subject{subject}_{part}.json"


def read_subject(
    folder: Path,
    subject: int,
    every: int,
    options: Human36MOptions,
    check: FitCheck,
    detections: Mapping[str, np.ndarray] | None,
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Rows of one subject, sequence by sequence (an action seen by a camera), and what was left out by which rule."""
    path = _file(folder, subject, "data")
    content = read_json(path, "images and annotations of a subject of Human3.6M")
    images, annotations = by_id(content, "images", str(path)), by_id(content, "annotations", str(path))
    del content
    takes = _Takes(folder, subject)
    rows, dropped, undetected = [], Counter[str](), 0
    for annotation_id, annotation in annotations.items():
        where = f"{path}: annotation {annotation_id}"
        image_id, box = fields(annotation, ("image_id", "bbox"), where)
        image_id = whole(image_id, f"{where}: image_id")
        if image_id not in images:
            raise InputError(f"{where}: image_id {image_id} is not among the images")
        image = _Image.read(images[image_id], subject, f"{path}: image {image_id}")
        if image.take[2] % every:
            dropped[SKIPPED] += 1
            continue
        if (box_px := box_of(box, f"{where}: bbox")) is None:
            dropped[NO_BOX] += 1
            continue
        row = image.columns() | takes.columns(image) | {"box": box_px}
        if detections is not None:
            found = detections.get(PurePosixPath(image.name).name)
            undetected += found is None
            row["joints2d"], row["confidence"] = np.split(
                np.zeros((_NUM_JOINTS, 3)) if found is None else found, (2,), axis=1
            )
            row["confidence"] = row["confidence"][:, 0]
        rows.append(row)
    if undetected:
        if undetected == len(rows):
            raise InputError(f"{options.detections} has no detection for any image of {path}; the files do not belong")
        logger.warning("%s lacks %d of %d images of %s", options.detections, undetected, len(rows), path)
    columns = columns_of(rows)
    if columns:
        _settle_mesh(columns, options, check, _file(folder, subject, "smpl_param"))
    if options.require_mesh and columns:
        dropped[NO_MESH] += int((~columns["mesh_valid"]).sum())
        columns = {name: values[columns["mesh_valid"]] for name, values in columns.items()}
    return columns, dict(dropped)


@dataclass(frozen=True, kw_only=True)
class _Image:
    """One image: `take` is action, subaction and frame."""

    name: str
    size: tuple[int, int]
    take: tuple[int, int, int]
    camera: int
    subject: int

    @classmethod
    def read(cls, entry: object, subject: int, where: str) -> _Image:
        keys = (
            *("file_name", "width", "height", "subject"),
            *("cam_idx", "action_idx", "subaction_idx", "frame_idx"),
        )
        name, *given = fields(entry, keys, where)
        width, height, told, camera, *take = (whole(value, f"{where}: {key}") for key, value in zip(keys[1:], given))
        if told != subject:
            raise InputError(f"{where} is of subject {told}, the file is of subject {subject}")
        return cls(
            name=relative_name(name, f"{where}: file_name"),
            size=(width, height),
            take=(take[0], take[1], take[2]),
            camera=camera,
            subject=subject,
        )

    def columns(self) -> dict[str, Any]:
        action, subaction, frame = self.take
        return {
            "image": f"images/{self.name}",
            "image_size": self.size,
            "sequence": f"s_{self.subject:02d}_act_{action:02d}_subact_{subaction:02d}_ca_{self.camera:02d}",
            "person": self.subject,
            "frame": frame,
        }


class _Takes:
    """Cameras, joints and SMPL parameters of a subject; what the cameras share is read once."""

    def __init__(self, folder: Path, subject: int) -> None:
        self._files = {part: _file(folder, subject, part) for part in _PARTS[1:]}
        cameras, self._joints, self._smpl = (
            read_json(path, f"the {part} of a subject of Human3.6M") for part, path in self._files.items()
        )
        self._cameras = {
            key: _camera(entry, f"{self._files['camera']}: camera {key}") for key, entry in cameras.items()
        }
        self._shared: dict[tuple[int, int, int], dict[str, Any]] = {}

    def columns(self, image: _Image) -> dict[str, Any]:
        """World -> camera and the joints in both, metres and pixels."""
        if str(image.camera) not in self._cameras:
            raise InputError(f"{self._files['camera']} lacks camera {image.camera}, which {image.name} was taken with")
        extrinsics, intrinsics = self._cameras[str(image.camera)]
        if image.take not in self._shared:
            self._shared[image.take] = self._of_all_cameras(image.take)
        shared = self._shared[image.take]
        joints = shared["world_joints"] @ extrinsics[:, :3].T + extrinsics[:, 3]
        if joints[:, 2].min() <= 0:
            raise InputError(
                f"{self._files['joint_3d']}: a joint of {image.name} lies behind camera {image.camera}; "
                "expected millimetres and cameras as R X + t"
            )
        return shared | {
            "extrinsics": extrinsics,
            "intrinsics": intrinsics,
            "joints2d": joints[:, :2] / joints[:, 2:] * intrinsics[:2] + intrinsics[2:],
            "confidence": np.ones(_NUM_JOINTS),
            "joints3d": joints,
            "joint_valid": np.ones(_NUM_JOINTS, bool),
        }

    def _of_all_cameras(self, take: tuple[int, int, int]) -> dict[str, Any]:
        path = self._files["joint_3d"]
        joints = _look_up(self._joints, take)
        where = f"{path}: action {take[0]}, subaction {take[1]}, frame {take[2]}"
        if joints is None:
            raise InputError(f"{where} is missing, which an image shows; get the files anew")
        fitted = _look_up(self._smpl, take)
        if fitted is None:
            smpl = {"pose": np.zeros((24, 3)), "shape": np.zeros(10), "trans": np.zeros(3)}
        else:
            where_smpl = where.replace(str(path), str(self._files["smpl_param"]))
            given = fields(fitted, ("pose", "shape", "trans"), where_smpl)
            smpl = {
                key: numbers(value, shape, f"{where_smpl}: {key}")
                for key, value, shape in zip(("pose", "shape", "trans"), given, ((24, 3), (10,), (3,)))
            }
        world = numbers(joints, (_NUM_JOINTS, 3), where) / MM_PER_M
        return {**smpl, "gender": 0, "mesh_valid": fitted is not None, "world_joints": world}


def _look_up(nested: Any, take: tuple[int, int, int]) -> Any:
    """What lies under action, subaction and frame, None if nothing does."""
    for key in take:
        nested = nested.get(str(key)) if isinstance(nested, dict) else None
    return nested


def _camera(entry: object, where: str) -> tuple[np.ndarray, np.ndarray]:
    """World -> camera (3, 4) in metres, and fx, fy, cx, cy in pixels."""
    rotation, shift, focal, centre = fields(entry, ("R", "t", "f", "c"), where)
    shift_m = numbers(shift, (3, 1), f"{where}: t") / MM_PER_M
    extrinsics = np.concatenate((numbers(rotation, (3, 3), f"{where}: R"), shift_m), axis=1)
    return extrinsics, np.concatenate((numbers(focal, (2,), f"{where}: f"), numbers(centre, (2,), f"{where}: c")))


def _settle_mesh(columns: dict[str, np.ndarray], options: Human36MOptions, check: FitCheck, path: Path) -> None:
    """Take implausible shapes back to the mean and unfitting parameters out of the truth; both are logged."""
    world_joints = columns.pop("world_joints")
    odd = (np.abs(columns["shape"]) > options.max_shape).any(axis=1)
    columns["shape"][odd] = 0
    if odd.any():
        logger.info("%s: %d rows get the mean shape: a coefficient beyond %g", path, odd.sum(), options.max_shape)
    rows = np.flatnonzero(columns["mesh_valid"])
    if check.model is not None and len(rows):
        joints = check.joints(columns["pose"][rows], columns["shape"][rows])
        errors = centred_distance_mm(joints, world_joints[rows])
        bad = rows[errors > options.max_fit_mm]
        columns["mesh_valid"][bad] = False
        logger.info("%s: %d of %d meshes fit worse than %g mm", path, len(bad), len(rows), options.max_fit_mm)


def _read_detections(path: Path) -> dict[str, np.ndarray]:
    """x, y, confidence (17, 3) of each image's file name; confidence 1 where the file has none."""
    found = {}
    for name, given in read_json(path, "image file name -> (17, 2 or 3) joints").items():
        width = 3 if isinstance(given, list) and given and isinstance(given[0], list) and len(given[0]) == 3 else 2
        row = numbers(given, (_NUM_JOINTS, width), f"{path}: {name[:80]!r}")
        confidence = row[:, 2:].clip(0, 1) if width == 3 else np.ones((_NUM_JOINTS, 1))
        found[PurePosixPath(name).name] = np.concatenate((row[:, :2] * (confidence > 0), confidence), axis=1)
    return found
