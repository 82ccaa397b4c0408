"""MuCo-3DHP as 3DMPPE and Pose2Mesh distribute it: composited pictures of several people with their 3D joints.

Expected under the root, or under `data/` in it:

    MuCo-3DHP.json     COCO-style: `images` with id, file_name, width, height, f [fx, fy], c [cx, cy] (px);
                       `annotations` with id, image_id, bbox, keypoints_img (21, 2) px, keypoints_cam (21, 3) mm in the
                       camera frame, keypoints_vis (21,)
    smpl_param.json    only for meshes: annotation id -> pose (72, axis-angle), shape (10), trans (3, metres), of the
                       neutral body in the camera frame

No specification of these files is published; the keys are those that the public loaders read. The 21 joints come in
MuCo's own order and become human36m17 by name; the two joints of it that MuCo places elsewhere are masked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

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
from data.readers.fits import Fit, FitCheck, MeshUse, centred_distance_mm, read_fit, with_meshes
from data.readers.pose2mesh_json import MM_PER_M, NO_BOX, by_id, fields, numbers, read_json, relative_name
from data.record_sources import settings_of
from data.records import Records, RecordsWriter
from mesh.errors import require
from mesh.joints import HUMAN36M17

_IN_ORDER = (
    "head_top thorax right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist right_hip right_knee "
    "right_ankle left_hip left_knee left_ankle pelvis spine head right_hand left_hand right_toe left_toe"
)
MUCO_NAMES = tuple(_IN_ORDER.split())
# What the two sets call differently. MuCo's `head` lies inside the skull: it is neither Human3.6M's `head`, which is
# the crown, nor its `nose`; its `spine` lies lower than `torso`.
_SAME_PLACE = {"head": "head_top", "neck": "thorax"}
_SOURCE = {name: _SAME_PLACE.get(name, name) for name in HUMAN36M17.names if name not in ("torso", "nose")}
_TARGET_IDX = [HUMAN36M17.index(name) for name in _SOURCE]
_SOURCE_IDX = [MUCO_NAMES.index(name) for name in _SOURCE.values()]
_PELVIS_IDX = MUCO_NAMES.index("pelvis")
_HIDDEN = 0.5  # confidence of a joint whose place is known but which cannot be seen, as COCO's flag 1
_LARGEST_PX, _LARGEST_M = 1e6, 1000.0
People = Literal["closest", "all"]
LICENCE = "MuCo-3DHP, made of MPI-INF-3DHP: non-commercial research; SMPL parameters non-commercial"


@dataclass(frozen=True, kw_only=True)
class MucoOptions:
    """Which people count. `people`: of each picture the one "closest" to the camera (as the original, since the
    pasted people hide each other), or "all". `mesh`: "needed" drops people without a trusted mesh, "optional" keeps
    their joints, "none" reads no parameters.

    `max_fit_mm`: mean distance of the mesh's Human3.6M joints from MuCo's, over the joints that both have and after
    moving one mean onto the other; it needs `body`, the SMPL file that the parameters were fitted with (infinity: no
    check, no body needed). `max_shape`: a shape with any larger coefficient counts as the mean shape.
    `max_projection_px`: how far the 3D joints may project from the 2D ones.
    """

    mesh: MeshUse = "needed"
    people: People = "closest"
    body: str | None = None
    max_fit_mm: float = 45.0
    max_shape: float = 3.0
    max_projection_px: float = 20.0

    def __post_init__(self) -> None:
        check_choice("mesh", self.mesh, get_args(MeshUse))
        check_choice("people", self.people, get_args(People))
        check_positive(self, "max_fit_mm", "max_shape", "max_projection_px")


@dataclass(frozen=True, kw_only=True)
class _Picture:
    """What people of one picture share: `intrinsics` fx, fy, cx, cy px."""

    image_id: int
    image: str
    image_size: tuple[int, int]
    intrinsics: np.ndarray


@dataclass(frozen=True, kw_only=True)
class _Person:
    """A row to be, in MuCo's 21 joints: `joints2d` px, `confidence`, `joints3d` m in camera frame; `box` px."""

    annotation_id: int
    picture: _Picture
    joints2d: np.ndarray
    confidence: np.ndarray
    joints3d: np.ndarray
    box: np.ndarray


def convert(root: Path, out: Path, *, split: str, progress: Progress = lambda *_: None, **options: Any) -> Records:
    """Records: human36m17 in 2D and 3D, and bodies, in camera frame; `person` is the annotation's id, `frame` the
    image's."""
    chosen = MucoOptions(**options)
    require(split == "train", f"MuCo-3DHP has only the split train; got {split!r}")
    folder = Path(root) if (Path(root) / "MuCo-3DHP.json").is_file() else Path(root) / "data"
    files = [folder / "MuCo-3DHP.json"]
    content = read_json(files[0], "MuCo-3DHP's annotations, in the root or its folder data")
    images = by_id(content, "images", files[0].name)
    people = _by_image(content, images, files[0].name)
    fits = None
    if chosen.mesh != "none":
        files.append(folder / "smpl_param.json")
        check = FitCheck.load(chosen.body, HUMAN36M17, chosen.max_fit_mm)
        files += check.files
        fits = _Fits(read_json(files[1], "SMPL parameters; or choose mesh none"), files[1].name, check, chosen)
    with RecordsWriter(
        out,
        source="MuCo-3DHP",
        split=split,
        licence=LICENCE,
        joints2d=HUMAN36M17,
        joints3d=HUMAN36M17,
        settings=settings_of(chosen, "body"),
    ) as writer:
        order = list(images)
        for start, stop in chunks(len(order)):
            progress(start, len(order), files[0].name)
            key = f"{files[0].name}[{start}:{stop}]"
            if not writer.has(key, files):
                dropped: Counter[str] = Counter()
                kept = []
                for image_id in order[start:stop]:
                    where = f"{files[0].name}: image {image_id}"
                    kept += _read_image(images[image_id], image_id, people.get(image_id, []), where, chosen, dropped)
                writer.add(key, _columns(kept, fits, dropped), dropped)
        progress(len(order), len(order), "writing")
        return writer.finish()


def _by_image(content: Mapping[str, Any], images: Mapping[int, Any], where: str) -> dict[int, list[tuple[int, Any]]]:
    """(id, annotation) of the people of each image."""
    people: dict[int, list[tuple[int, Any]]] = {}
    for annotation_id, entry in by_id(content, "annotations", where).items():
        (image_id,) = fields(entry, ("image_id",), f"{where}: annotation {annotation_id}")
        image_of(image_id, images, f"{where}: annotation {annotation_id}")
        people.setdefault(int(image_id), []).append((annotation_id, entry))
    return people


def _read_image(
    image: Mapping[str, Any], image_id: int, entries: Sequence[tuple[int, Any]], where: str, options: MucoOptions,
    dropped: Counter[str],
) -> list[_Person]:  # fmt: skip
    """The people of one picture that count; the rules against the others are counted in `dropped`."""
    focal, centre, name = fields(image, ("f", "c", "file_name"), where)
    seen_in = _Picture(
        image_id=image_id,
        image=relative_name(name, f"{where}: file_name"),
        image_size=image_size(image, where),
        intrinsics=np.concatenate([any_numbers(focal, (2,), f"{where}: f"), any_numbers(centre, (2,), f"{where}: c")]),
    )
    people = [
        _read_person(entry, annotation_id, seen_in, f"{where}: annotation {annotation_id}")
        for annotation_id, entry in entries
    ]
    if options.people == "closest" and people:
        depths = [person.joints3d[_PELVIS_IDX, 2] for person in people]
        dropped["not the closest to the camera"] += len(people) - 1
        people = [people[int(np.argmin(depths))]]
    rules = [_rule_against(person, options) for person in people]
    dropped.update(rule for rule in rules if rule is not None)
    return [person for person, rule in zip(people, rules, strict=True) if rule is None]


def _read_person(entry: Any, annotation_id: int, picture: _Picture, where: str) -> _Person:
    keys = ("keypoints_img", "keypoints_cam", "keypoints_vis", "bbox")
    pixels, points, seen, box = fields(entry, keys, where)
    count = len(MUCO_NAMES)
    if isinstance(seen, list):
        seen = [int(flag) if isinstance(flag, bool) else flag for flag in seen]
    flags = numbers(seen, (count,), f"{where}: keypoints_vis")
    require(bool(np.isin(flags, (0, 1)).all()), f"{where}: keypoints_vis must be 0 or 1, got {flags.tolist()}")
    return _Person(
        annotation_id=annotation_id,
        picture=picture,
        joints2d=any_numbers(pixels, (count, 2), f"{where}: keypoints_img"),
        confidence=np.where(flags == 1, 1.0, _HIDDEN),
        joints3d=any_numbers(points, (count, 3), f"{where}: keypoints_cam") / MM_PER_M,
        box=any_numbers(box, (4,), f"{where}: bbox"),
    )


def _rule_against(person: _Person, options: MucoOptions) -> str | None:
    """The rule that leaves a person out, if any."""
    camera = person.picture.intrinsics
    in_pixels = (person.joints2d, person.box, camera)
    if not all((np.abs(part) < _LARGEST_PX).all() for part in in_pixels):  # NaN is not below it
        return "position or camera without sense"
    if not (np.abs(person.joints3d) < _LARGEST_M).all():
        return "position or camera without sense"
    if not (person.box[2:] >= 1).all():
        return NO_BOX
    if not (camera[:2] > 0).all() or not (person.joints3d[:, 2] > 0).all():
        return "joint behind the camera"
    projected = person.joints3d[:, :2] / person.joints3d[:, 2:] * camera[:2] + camera[2:]
    if np.linalg.norm(projected - person.joints2d, axis=-1).max() > options.max_projection_px:
        return f"3D joints project further than {options.max_projection_px:g} px from the 2D joints"
    return None


@dataclass(frozen=True)
class _Fits:
    """The parameter file and how far to trust it."""

    content: Mapping[str, Any]
    name: str
    check: FitCheck
    options: MucoOptions

    def trusted(self, people: Sequence[_Person]) -> list[Fit | str]:
        """The fit of each person, or the rule against it."""
        fits = [self._read(person) for person in people]
        found = [(i, fit) for i, fit in enumerate(fits) if isinstance(fit, Fit)]
        errors = self._errors_mm([people[i] for i, _ in found], [fit for _, fit in found])
        for (i, _), error in zip(found, errors):
            if not error <= self.options.max_fit_mm:
                fits[i] = f"mesh further than {self.options.max_fit_mm:g} mm from the joints"
        return fits

    def _read(self, person: _Person) -> Fit | str:
        if str(person.annotation_id) not in self.content:
            return "no SMPL parameters"
        params = self.content[str(person.annotation_id)]
        focal, centre = person.picture.intrinsics[:2], person.picture.intrinsics[2:]
        return read_fit(params, f"{self.name}: {person.annotation_id}", focal, centre, self.options.max_shape)

    def _errors_mm(self, people: Sequence[_Person], fits: Sequence[Fit]) -> np.ndarray:
        """Mean distance of the mesh's joints from MuCo's, over those that both have, one mean on the other: (N,)."""
        if self.check.model is None or not fits:
            return np.zeros(len(fits))
        mesh = self.check.joints(np.stack([fit.pose for fit in fits]), np.stack([fit.shape for fit in fits]))
        truth = np.stack([person.joints3d for person in people])
        return centred_distance_mm(mesh[:, _TARGET_IDX], truth[:, _SOURCE_IDX])


def _columns(people: list[_Person], fits: _Fits | None, dropped: Counter[str]) -> dict[str, np.ndarray]:
    """The chunk's columns; none where no person is left."""
    meshes: dict[str, np.ndarray] = {}
    if fits is not None:
        people, meshes = with_meshes(people, fits.trusted(people), fits.options.mesh, dropped)
    if not people:
        return {}
    known = np.zeros((len(people), len(HUMAN36M17)), bool)
    known[:, _TARGET_IDX] = True
    return meshes | {
        "intrinsics": np.stack([person.picture.intrinsics for person in people]),  # known without a fit, too
        "joints2d": _to_human36m(np.stack([person.joints2d for person in people])),
        "confidence": _to_human36m(np.stack([person.confidence for person in people])[..., None])[..., 0],
        "joints3d": _to_human36m(np.stack([person.joints3d for person in people])),
        "joint_valid": known,
        "box": np.stack([person.box for person in people]),
        "image": np.array([person.picture.image for person in people]),
        "image_size": np.array([person.picture.image_size for person in people]),
        "person": np.array([person.annotation_id for person in people]),
        "frame": np.array([person.picture.image_id for person in people]),
    }


def _to_human36m(values: np.ndarray) -> np.ndarray:
    """MuCo's joints by name in the order of human36m17, zero where MuCo has none: (N, 21, C) -> (N, 17, C)."""
    converted = np.zeros((len(values), len(HUMAN36M17), values.shape[-1]))
    converted[:, _TARGET_IDX] = values[:, _SOURCE_IDX]
    return converted
