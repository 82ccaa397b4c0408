"""COCO 2017 person keypoints, with the SMPL parameters that Pose2Mesh distributes for the training part.

Below the root, as the official archive unpacks: `annotations/person_keypoints_{train,val}2017.json`; for meshes also
`annotations/coco_smplify_train.json`, an object of annotation id -> `smpl_param`, `cam_param`.

No specification of the parameter file is published. Keys assumed: `smpl_param` with `pose` (72 numbers, axis-angle) and
`shape` (10), and `cam_param` with either `s`, `t` (weak perspective: pixel = s * metres + t) or `focal`, `princpt`;
then `smpl_param` also has `trans` (3, metres). The body is the neutral one and its world the camera frame.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from data.readers import Progress
from data.readers.annotations import (
    any_numbers,
    check_choice,
    check_positive,
    chunks,
    image_of,
    image_size,
)
from data.readers.fits import Fit, FitCheck, MeshUse, read_fit, with_meshes
from data.readers.pose2mesh_json import NO_BOX, box_of, by_id, entries, fields, numbers, read_json, relative_name, whole
from data.record_sources import settings_of
from data.records import Records, RecordsWriter
from mesh.errors import InputError, require
from mesh.joints import COCO17

SPLITS = ("train", "val")
LICENCE = "COCO: annotations CC BY 4.0, pictures by Flickr's terms; SMPL parameters non-commercial"
WEAK_CAMERA_M = 900.0  # distance of the pinhole that stands for a weak-perspective camera: 0.1 px from it at most
_FIT_BOX_PX = 64.0  # side of the box in which the original measures COCO's fits

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CocoOptions:
    """`mesh`: "needed" drops people without a trusted mesh, "optional" keeps their 2D joints, "none" reads no
    parameters; by default needed for train, and none for val, which has no parameters.

    `max_fit_px`: mean distance of the mesh's projected joints from the labelled ones, in the mesh's own square box
    scaled to 64 px. It is measured on `body`, the SMPL file that the parameters were fitted with ("inf": no check and
    no body). `max_shape`: a shape with any larger coefficient counts as the mean shape. `max_outside`: how far a
    labelled joint may lie off the picture, in picture sizes. `smpl_file`: where below the root the parameters are.
    """

    mesh: MeshUse | None = None
    body: str | None = None
    max_fit_px: float = 3.0
    max_shape: float = 3.0
    min_joints: int = 1
    max_outside: float = 0.5
    smpl_file: str = "annotations/coco_smplify_train.json"

    def __post_init__(self) -> None:
        check_choice("mesh", self.mesh, (None, *get_args(MeshUse)))
        check_positive(self, "max_fit_px", "max_shape", "min_joints")
        require(self.max_outside >= 0, f"max_outside must not be negative, got {self.max_outside}")


@dataclass(frozen=True, kw_only=True)
class _Person:
    """A row to be: `joints2d` (17, 2) px with `confidence` (17,), `box` (4,) px."""

    annotation_id: int
    image_id: int
    image: str
    image_size: tuple[int, int]
    joints2d: np.ndarray
    confidence: np.ndarray
    box: np.ndarray


def convert(root: Path, out: Path, *, split: str, progress: Progress = lambda *_: None, **options: Any) -> Records:
    """Records of one split: 17 joints in pixels and bodies in camera frame; `person` is the annotation's id, `frame`
    the image's. A weak-perspective camera is written as a pinhole 900 m away, which gives the same picture."""
    chosen = CocoOptions(**options)
    require(split in SPLITS, f"COCO has the splits {', '.join(SPLITS)}; got {split!r}")
    mesh = chosen.mesh or ("needed" if split == "train" else "none")
    files = [Path(root) / f"annotations/person_keypoints_{split}2017.json"]
    content = read_json(files[0], "COCO's person keypoints as the official archive unpacks")
    images, annotations = by_id(content, "images", files[0].name), _annotations(content, files[0].name)
    fits = None
    if mesh != "none":
        files.append(Path(root) / chosen.smpl_file)
        check = FitCheck.load(chosen.body, COCO17, chosen.max_fit_px)
        files += check.files
        fits = _Fits(read_json(files[1], "SMPL parameters; or choose mesh none"), files[1].name, check, mesh, chosen)
    with RecordsWriter(
        out,
        source="COCO 2017",
        split=split,
        licence=LICENCE,
        joints2d=COCO17,
        joints3d=None,
        settings=settings_of(chosen, "body") | {"mesh": mesh},
    ) as writer:
        for start, stop in chunks(len(annotations)):
            progress(start, len(annotations), files[0].name)
            key = f"{files[0].name}[{start}:{stop}]"
            if not writer.has(key, files):
                rows = [
                    _read_person(annotations[i], f"{files[0].name}: annotations[{i}]", images, split, chosen)
                    for i in range(start, stop)
                ]
                dropped = Counter(row for row in rows if isinstance(row, str))
                people = [row for row in rows if isinstance(row, _Person)]
                writer.add(key, _columns(people, fits, dropped), dropped)
        progress(len(annotations), len(annotations), "writing")
        return writer.finish()


def _annotations(content: Mapping[str, Any], where: str) -> list[Any]:
    """In the order of the file; two with the same id are refused."""
    found = entries(content, "annotations", where)
    seen: set[Any] = set()
    for number, entry in enumerate(found):
        (given,) = fields(entry, ("id",), f"{where}: annotations[{number}]")
        if isinstance(given, bool) or not isinstance(given, int):  # crowds have ids beyond int32
            raise InputError(f"{where}: annotations[{number}] id must be a whole number, got {str(given)[:40]!r}")
        require(given not in seen, f"{where}: two annotations have the id {given}; get the file anew")
        seen.add(given)
    return found


def _read_person(entry: Any, where: str, images: Mapping[int, Any], split: str, options: CocoOptions) -> _Person | str:
    """One annotation, or the rule that leaves it out."""
    keys = ("id", "image_id", "keypoints", "num_keypoints", "bbox", "iscrowd")
    annotation_id, image_id, keypoints, count, bbox, is_crowd = fields(entry, keys, where)
    require(is_crowd in (0, 1), f"{where}: iscrowd must be 0 or 1, got {str(is_crowd)[:40]!r}")
    if is_crowd:
        return "crowd"
    image = image_of(image_id, images, where)
    size = image_size(image, f"{where}: its image")
    table = numbers(keypoints, (len(COCO17), 3), f"{where}: keypoints")
    flags = table[:, 2]
    require(bool(np.isin(flags, (0, 1, 2)).all()), f"{where}: visibility must be 0, 1 or 2, got {flags.tolist()}")
    labelled = flags > 0
    if labelled.sum() < options.min_joints:
        return f"fewer than {options.min_joints} labelled joints"
    if whole(count, f"{where}: num_keypoints") != labelled.sum():
        return "num_keypoints is not the number of labelled joints"
    box = box_of(bbox, f"{where}: bbox")
    if box is None:
        return NO_BOX
    reach = options.max_outside * np.array(size)
    if not ((table[labelled, :2] >= -reach) & (table[labelled, :2] <= size + reach)).all():
        return "joint far outside the picture"
    return _Person(
        annotation_id=whole(annotation_id, f"{where}: id"),
        image_id=int(image_id),
        image=f"{split}2017/" + relative_name(image["file_name"], f"{where}: file_name of its image"),
        image_size=size,
        joints2d=np.where(labelled[:, None], table[:, :2], 0),
        confidence=flags / 2,  # as in keypoint files: labelled but hidden counts half
        box=box,
    )


@dataclass(frozen=True)
class _Fits:
    """The parameter file and how far to trust it."""

    content: Mapping[str, Any]
    name: str
    check: FitCheck
    mesh: MeshUse
    options: CocoOptions

    def trusted(self, people: Sequence[_Person]) -> list[Fit | str]:
        """The fit of each person, or the rule against it."""
        fits = [self._read(person) for person in people]
        found = [(i, fit) for i, fit in enumerate(fits) if isinstance(fit, Fit)]
        errors = self._errors_px([people[i] for i, _ in found], [fit for _, fit in found])
        for (i, _), error in zip(found, errors):
            if not error <= self.options.max_fit_px:
                fits[i] = f"mesh further than {self.options.max_fit_px:g} px from the labelled joints"
        return fits

    def _read(self, person: _Person) -> Fit | str:
        if str(person.annotation_id) not in self.content:
            return "no SMPL parameters"
        where = f"{self.name}: {person.annotation_id}"
        params, camera = fields(self.content[str(person.annotation_id)], ("smpl_param", "cam_param"), where)
        where_camera = f"{where}: cam_param"
        if isinstance(camera, dict) and "s" in camera:
            scale, shift = fields(camera, ("s", "t"), where_camera)
            focal = np.repeat(any_numbers(scale, (1,), f"{where_camera} s"), 2) * WEAK_CAMERA_M
            centre = any_numbers(shift, (2,), f"{where_camera} t")
            far = np.array([0, 0, WEAK_CAMERA_M])
            return read_fit(params, f"{where}: smpl_param", focal, centre, self.options.max_shape, trans=far)
        focal, centre = (
            any_numbers(value, (2,), f"{where_camera} {key}")
            for key, value in zip(("focal", "princpt"), fields(camera, ("focal", "princpt"), where_camera))
        )
        return read_fit(params, f"{where}: smpl_param", focal, centre, self.options.max_shape)

    def _errors_px(self, people: Sequence[_Person], fits: Sequence[Fit]) -> np.ndarray:
        """Mean distance of projected from labelled joints, in the mesh's square box scaled to 64 px: (N,).

        The box is the original's: tight around the projected joints, each side a pixel less, then square. Infinite
        for a mesh that reaches behind the camera or has no extent.
        """
        if self.check.model is None or not fits:
            return np.zeros(len(fits))
        pose, shape, trans = (np.stack([getattr(fit, name) for fit in fits]) for name in ("pose", "shape", "trans"))
        points = self.check.joints(pose, shape) + trans[:, None]
        cameras = np.stack([fit.intrinsics for fit in fits])[:, None]
        labelled = np.stack([person.confidence > 0 for person in people])
        in_front = np.all(points[..., 2] > 0, axis=-1)
        depth = np.where(in_front[:, None, None], points[..., 2:], 1)
        projected = points[..., :2] / depth * cameras[..., :2] + cameras[..., 2:]
        side = np.ptp(projected, axis=1).max(axis=-1) - 1
        distance = np.linalg.norm(projected - np.stack([person.joints2d for person in people]), axis=-1)
        error = (distance * labelled).sum(axis=-1) / labelled.sum(axis=-1)
        return np.where(in_front & (side > 0), error * _FIT_BOX_PX / np.maximum(side, 1e-9), np.inf)


def _columns(people: list[_Person], fits: _Fits | None, dropped: Counter[str]) -> dict[str, np.ndarray]:
    """The chunk's columns; none where no person is left."""
    meshes: dict[str, np.ndarray] = {}
    if fits is not None:
        people, meshes = with_meshes(people, fits.trusted(people), fits.mesh, dropped)
    if not people:
        return {}
    return meshes | {
        "joints2d": np.stack([person.joints2d for person in people]),
        "confidence": np.stack([person.confidence for person in people]),
        "box": np.stack([person.box for person in people]),
        "image": np.array([person.image for person in people]),
        "image_size": np.array([person.image_size for person in people]),
        "person": np.array([person.annotation_id for person in people]),
        "frame": np.array([person.image_id for person in people]),
    }
