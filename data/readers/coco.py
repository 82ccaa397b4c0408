"""COCO 2017 person keypoints, with the SMPL parameters that Pose2Mesh distributes for the training part.

Below the root, as the official archive unpacks: `annotations/person_keypoints_{train,val}2017.json`; for meshes also
`annotations/coco_smplify_train.json`, an object of annotation id -> `smpl_param`, `cam_param`.

No specification of the parameter file is published. Keys assumed: `smpl_param` with `pose` (72 numbers, axis-angle) and
`shape` (10), and `cam_param` with either `s`, `t` (weak perspective: pixel = s * metres + t) or `focal`, `princpt`;
then `smpl_param` also has `trans` (3, metres). The body is the neutral one and its world the camera frame.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch

from data.readers import Progress
from data.readers.pose2mesh_json import NO_BOX, box_of, by_id, entries, fields, numbers, read_json, relative_name, whole
from data.records import Records, RecordsWriter
from mesh.body import load_body
from mesh.errors import InputError, require
from mesh.joints import COCO17, JointSet
from mesh.rotation import axis_angle_to_matrix
from mesh.skinning import JointModel

SPLITS = ("train", "val")
LICENCE = "COCO: annotations CC BY 4.0, pictures by Flickr's terms; SMPL parameters non-commercial"
MeshUse = Literal["needed", "optional", "none"]
CHUNK_ROWS = 8192  # kept at a time, so that a killed conversion loses little
WEAK_CAMERA_M = 900.0  # distance of the pinhole that stands for a weak-perspective camera: 0.1 px from it at most
_FIT_BOX_PX = 64.0  # side of the box in which the original measures COCO's fits
_LARGEST_TURN_RAD = 4 * math.pi  # beyond it a rotation is certainly damaged
_LARGEST_M, _LARGEST_PX = 1000.0, 1e6
_Row = TypeVar("_Row")

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
class Fit:
    """SMPL parameters in the camera frame: `pose` (24, 3) rad, `shape` (10,), `trans` (3,) m; `intrinsics` (4,) px."""

    pose: np.ndarray
    shape: np.ndarray
    trans: np.ndarray
    intrinsics: np.ndarray

    def is_plausible(self) -> bool:
        """Finite, turns and lengths that can be radians and metres, in front of a camera."""
        return (
            bool((np.abs(self.pose) <= _LARGEST_TURN_RAD).all())
            and bool((np.linalg.norm(self.pose, axis=-1) <= _LARGEST_TURN_RAD).all())
            and bool((np.abs(self.shape) < _LARGEST_M).all())
            and bool((np.abs(self.trans) <= _LARGEST_M).all() and self.trans[2] > 0)
            and bool((np.abs(self.intrinsics) < _LARGEST_PX).all() and (self.intrinsics[:2] > 0).all())
        )  # nothing of which NaN is


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
        fits = _Fits(read_json(files[1], "SMPL parameters; or choose mesh none"), files[1].name, check, mesh, chosen)
    with RecordsWriter(
        out,
        source="COCO 2017",
        split=split,
        licence=LICENCE,
        joints2d=COCO17,
        joints3d=None,
        settings=settings_of(chosen, files, chosen.body if fits is not None else None) | {"mesh": mesh},
    ) as writer:
        for start, stop in chunks(len(annotations)):
            progress(start, len(annotations), files[0].name)
            key = f"{files[0].name}[{start}:{stop}]"
            if not writer.has(key):
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
        points = self.check.joints(fits)
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


# What MuCo's reader shares.


@dataclass(frozen=True, kw_only=True)
class FitCheck:
    """Joints of fits on the body that they were made with; no model where fits are not checked."""

    model: JointModel | None

    @classmethod
    def load(cls, body: str | None, joints: JointSet, limit: float) -> FitCheck:
        """The check against a limit; an infinite one needs no body."""
        if math.isinf(limit):
            return cls(model=None)
        if body is None:
            raise InputError(
                "the SMPL parameters are checked on the body that they were fitted with: give that file as body; "
                "or choose inf as the largest error to trust all, or mesh none to read none"
            )
        return cls(model=JointModel(load_body(body), [joints]))

    def joints(self, fits: Sequence[Fit]) -> np.ndarray:
        """Joints of each fit in the camera frame, (N, J, 3) metres."""
        assert self.model is not None
        parts = []
        for start in range(0, len(fits), 1024):  # so many at a time, for the memory
            some = fits[start : start + 1024]
            pose, shape, trans = (
                torch.from_numpy(np.stack(values).astype(np.float32))
                for values in zip(*((fit.pose, fit.shape, fit.trans) for fit in some))
            )
            with torch.no_grad():
                (joints,) = self.model(axis_angle_to_matrix(pose), shape[:, : self.model.num_shape])
            parts.append((joints + trans[:, None]).numpy().astype(np.float64))
        return np.concatenate(parts)


def read_fit(
    params: Any, where: str, focal: np.ndarray, centre: np.ndarray, max_shape: float, *,
    trans: np.ndarray | None = None,
) -> Fit | str:  # fmt: skip
    """SMPL parameters of a file, or the rule against them; `trans` where the file's does not apply.

    A shape with a coefficient beyond `max_shape` counts as the mean shape, as in the original.
    """
    keys = ("pose", "shape") if trans is not None else ("pose", "shape", "trans")
    pose, shape, *given = fields(params, keys, where)
    betas = any_numbers(shape, (10,), f"{where} shape")
    fit = Fit(
        pose=any_numbers(pose, (24, 3), f"{where} pose"),
        shape=np.zeros(10) if (np.abs(betas) > max_shape).any() else betas,
        trans=any_numbers(given[0], (3,), f"{where} trans") if trans is None else trans,
        intrinsics=np.concatenate([focal, centre]),
    )
    return fit if fit.is_plausible() else "implausible SMPL parameters"


def any_numbers(value: Any, shape: tuple[int, ...], where: str) -> np.ndarray:
    """As `numbers`, but NaN and infinity pass: a failed fit is dropped, not refused."""
    try:
        given = np.asarray(value)
    except ValueError:  # lists of different lengths
        return numbers(value, shape, where)
    if given.dtype.kind != "f":
        return numbers(value, shape, where)
    numbers(np.nan_to_num(given), shape, where)
    return given.reshape(shape)


def with_meshes(
    people: list[_Row], fits: Sequence[Fit | str], mesh: MeshUse, dropped: Counter[str]
) -> tuple[list[_Row], dict[str, np.ndarray]]:
    """The people that stay, and the columns of their fits: zeros and not valid where a rule speaks against one."""
    rules = Counter(fit for fit in fits if isinstance(fit, str))
    if mesh == "needed":
        dropped.update(rules)
        people = [person for person, fit in zip(people, fits, strict=True) if isinstance(fit, Fit)]
        fits = [fit for fit in fits if isinstance(fit, Fit)]
    else:
        for rule, count in sorted(rules.items()):
            logger.info("%d people stay without a mesh: %s", count, rule)
    if not people:
        return [], {}
    none = Fit(pose=np.zeros((24, 3)), shape=np.zeros(10), trans=np.zeros(3), intrinsics=np.zeros(4))
    filled = [fit if isinstance(fit, Fit) else none for fit in fits]
    return people, {
        "pose": np.stack([fit.pose for fit in filled]),
        "shape": np.stack([fit.shape for fit in filled]),
        "trans": np.stack([fit.trans for fit in filled]),
        "intrinsics": np.stack([fit.intrinsics for fit in filled]),
        "gender": np.zeros(len(filled), np.int8),
        "mesh_valid": np.array([isinstance(fit, Fit) for fit in fits]),
    }


def image_of(image_id: Any, images: Mapping[int, Any], where: str) -> Mapping[str, Any]:
    """The image that an annotation names."""
    if whole(image_id, f"{where}: image_id") not in images:
        raise InputError(f"{where}: image_id {image_id} is not among the images; get the file anew")
    image: Mapping[str, Any] = images[image_id]
    fields(image, ("file_name", "width", "height"), f"{where}: its image {image_id}")
    return image


def image_size(image: Mapping[str, Any], where: str) -> tuple[int, int]:
    """Width and height in pixels."""
    width, height = (whole(image[key], f"{where} {key}") for key in ("width", "height"))
    require(width > 0 and height > 0, f"{where} must have a size in pixels, got {width} x {height}")
    return width, height


def settings_of(options: Any, files: Sequence[Path], body: str | None) -> dict[str, Any]:
    """What a conversion depends on: options and the hashes of the files, of the body too where it is used."""
    hashes = {path.name: _sha256(path) for path in files}
    if body is not None:
        hashes["body"] = _sha256(Path(body))
    return {name: value for name, value in asdict(options).items() if name != "body"} | {"sha256": hashes}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def chunks(count: int) -> Iterator[tuple[int, int]]:
    """Ranges of at most CHUNK_ROWS entries that cover `count`."""
    for start in range(0, count, CHUNK_ROWS):
        yield start, min(start + CHUNK_ROWS, count)


def check_choice(name: str, value: object, allowed: Sequence[object]) -> None:
    """Refuse what is none of an option's choices."""
    require(value in allowed, f"{name} must be one of {', '.join(str(a) for a in allowed if a)}; got {value!r}")


def check_positive(options: object, *names: str) -> None:
    """Refuse limits that would drop everything."""
    for name in names:
        require(getattr(options, name) > 0, f"{name} must be positive, got {getattr(options, name)}")
