"""The JSON keypoint formats of COCO, OpenPose and AlphaPose, told apart by their content."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.images import IMAGE_SUFFIXES
from mesh.errors import InputError
from mesh.joints import COCO17, HALPE26, OPENPOSE25, JointSet

KEYPOINT_SUFFIXES = (".json", ".npy", ".npz")  # usual ones: the content tells
# The body of OpenPose's first model, in which AlphaPose writes its `open` and `cmu` files.
OPENPOSE18 = JointSet(
    name="openpose18",
    names=tuple(name for name in OPENPOSE25.names[:19] if name != "pelvis"),
    edges=(
        *((0, 1), (0, 14), (14, 16), (0, 15), (15, 17), (1, 2), (2, 3), (3, 4), (1, 5), (5, 6), (6, 7)),
        *((1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13)),
    ),
    root="neck",
)
_FORMATS = (
    "COCO results [{image_id, keypoints, score}], COCO annotations {images, annotations}, "
    "OpenPose {people: [{pose_keypoints_2d}]} or AlphaPose"
)


@dataclass(kw_only=True)
class ImagePeople:
    """The people of one picture as a file lists them: a row of x, y, confidence of each joint for each person."""

    name: str | None = None
    image_id: int | str | None = None
    size: tuple[int, int] | None = None
    rows: list[list[float]] = field(default_factory=list)
    person_ids: list[int | str | None] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)

    def add(self, row: Any, person: Mapping[str, Any]) -> None:
        """One more person; its id is the track's where the file has one, else the annotation's."""
        if not isinstance(row, list):
            raise InputError(f"{self}: keypoints must be a list of numbers, got {type(row).__name__}")
        self.rows.append(row)
        self.person_ids.append(_person_id(person))
        self.scores.append(_score(person))

    def __str__(self) -> str:
        return f"image {self.image_id if self.name is None else self.name}"


@dataclass(frozen=True, kw_only=True)
class JsonPeople:
    """What a file says: its pictures in order, and what it or its format says about the joints.

    `joint_sets` are the sets that the format uses, `names` the file's own; `has_visibility`: the third number of each
    joint is COCO's visibility flag, not a confidence.
    """

    images: list[ImagePeople]
    joint_sets: tuple[JointSet, ...]
    names: tuple[str, ...] | None = None
    has_visibility: bool = False

    def table(self, num_joints: int) -> np.ndarray:
        """All people one after the other: x, y, confidence, (P, J, 3) float32; J is `num_joints` if there is nobody."""
        if not self.images:
            raise InputError("holds no people")
        length = next((len(row) for image in self.images for row in image.rows), 3 * num_joints)
        for image in self.images:
            for row in image.rows:
                if len(row) % 3 or not row:
                    raise InputError(f"{image}: expected x, y, confidence of each joint, got {len(row)} numbers")
                if len(row) != length:
                    raise InputError(f"{image}: expected {length // 3} joints like before, got {len(row) // 3}")
        try:
            with np.errstate(over="ignore"):  # infinity is refused with the joint's name
                flat = np.asarray([row for image in self.images for row in image.rows], np.float32)
            table = flat.reshape(len(flat), length // 3, 3)
        except (ValueError, TypeError, OverflowError) as exc:
            raise InputError(f"keypoints must be plain numbers: {exc}") from exc
        if self.has_visibility:
            table[..., 2] = _confidence_of(table[..., 2])
        return table


def read_json(path: Path) -> JsonPeople:
    """Read one file of any of the formats, or a folder of OpenPose files in the order of their names."""
    if not path.is_dir():
        return _people(_load(path), path)
    files = sorted(path.glob("*.json"))
    if not files:
        raise InputError("expected a folder of OpenPose .json files, found none")
    images = []
    for file in files:
        try:
            content = _load(file)
            _require(content, "a file of an OpenPose folder", "people")
            images.append(_openpose_image(content, _image_name(file)))
        except InputError as exc:
            raise InputError(f"{file.name}: {exc}") from exc
    return JsonPeople(images=images, joint_sets=(OPENPOSE25, OPENPOSE18))


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as exc:
        if path.suffix.lower() not in KEYPOINT_SUFFIXES:
            known, photos = ", ".join(KEYPOINT_SUFFIXES), ", ".join(IMAGE_SUFFIXES)
            raise InputError(f"no keypoints ({known}), and no photo ({photos}) by its name: convert it") from exc
        if isinstance(exc, json.JSONDecodeError):
            raise InputError(f"not whole JSON, .npy or .npz: {exc}") from exc
        raise InputError("neither JSON nor .npy nor .npz") from exc
    except RecursionError as exc:
        raise InputError("nested too deeply for a keypoint file") from exc
    except OSError as exc:
        raise InputError(f"cannot be read: {exc.strerror}") from exc


def _people(content: Any, path: Path) -> JsonPeople:
    if isinstance(content, list):
        return _results(content)
    if isinstance(content, dict):
        if "people" in content:
            images = [_openpose_image(content, _image_name(path))]
            return JsonPeople(images=images, joint_sets=(OPENPOSE25, OPENPOSE18))
        if "annotations" in content:
            return _coco_annotations(content)
        if content and all(isinstance(v, dict) and ("people" in v or "bodies" in v) for v in content.values()):
            images = [_openpose_image(value, name) for name, value in content.items()]
            return JsonPeople(images=images, joint_sets=(OPENPOSE25, OPENPOSE18))
        raise InputError(f"expected {_FORMATS}; got an object with {', '.join(list(content)[:5]) or 'nothing'}")
    raise InputError(f"expected {_FORMATS}; got a {type(content).__name__}")


def _results(people: list[Any]) -> JsonPeople:
    """COCO results, `image_id` a number, and AlphaPose's own format, `image_id` a file name."""
    images: dict[int | str, ImagePeople] = {}
    for number, person in enumerate(people):
        _require(person, f"entry {number}", "image_id", "keypoints")
        image_id = _image_id(person["image_id"], f"entry {number}")
        name = image_id if isinstance(image_id, str) else None
        image = images.setdefault(image_id, ImagePeople(name=name, image_id=image_id))
        image.add(person["keypoints"], person)
    return JsonPeople(images=list(images.values()), joint_sets=(COCO17, HALPE26))


def _coco_annotations(content: dict[str, Any]) -> JsonPeople:
    """Every picture of the file, also without people; annotations that have no keypoints (other things) are left."""
    images: dict[int | str, ImagePeople] = {}
    for number, image in enumerate(_list(content, "images")):
        _require(image, f"images[{number}]", "id")
        image_id = _image_id(image["id"], f"images[{number}]")
        name, size = image.get("file_name"), (image.get("width"), image.get("height"))
        images[image_id] = ImagePeople(
            name=name if isinstance(name, str) else None,
            image_id=image_id,
            size=size if all(isinstance(side, int) and side > 0 for side in size) else None,
        )
    categories = set()
    for number, person in enumerate(_list(content, "annotations")):
        where = f"annotations[{number}]"
        _require(person, where, "image_id")
        if "keypoints" in person:
            image_id = _image_id(person["image_id"], where)
            if image_id not in images:
                raise InputError(f"{where}: image_id {image_id!r} is not among the images")
            images[image_id].add(person["keypoints"], person)
            categories.add(str(person.get("category_id")))
    if not categories:
        raise InputError("no annotation has keypoints; take the file of person keypoints, not of instances")
    return JsonPeople(
        images=list(images.values()),
        joint_sets=(COCO17, HALPE26),
        names=_category_names(content.get("categories", []), categories),
        has_visibility=True,
    )


def _category_names(categories: Any, used: set[str]) -> tuple[str, ...] | None:
    """The joint names that the categories in use give, if they do."""
    if not isinstance(categories, list) or not all(isinstance(category, dict) for category in categories):
        raise InputError("categories must be a list of objects")
    named = {
        tuple(map(str, category["keypoints"]))
        for category in categories
        if str(category.get("id")) in used and isinstance(category.get("keypoints"), list)
    }
    if len(named) > 1:
        raise InputError("the categories in use name different joints; keep one category")
    return named.pop() if named else None


def _openpose_image(content: dict[str, Any], name: str) -> ImagePeople:
    """One frame of OpenPose, or of AlphaPose's `open` format; its `cmu` format says bodies and joints instead."""
    image = ImagePeople(name=name)
    people, key = ("people", "pose_keypoints_2d") if "people" in content else ("bodies", "joints")
    for number, person in enumerate(_list(content, people)):
        _require(person, f"{image}: {people}[{number}]", key)
        image.add(person[key], person)
    return image


def _image_name(path: Path) -> str:
    """OpenPose writes `NAME_keypoints.json`; the picture's extension is not known."""
    return path.stem.removesuffix("_keypoints")


def _image_id(value: Any, where: str) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise InputError(f"{where}: the image's id must be a whole number or a file name, got {value!r}")
    return value


def _require(entry: Any, where: str, *keys: str) -> None:
    if not isinstance(entry, dict):
        raise InputError(f"{where} must be an object with {', '.join(keys)}; got a {type(entry).__name__}")
    missing = [key for key in keys if key not in entry]
    if missing:
        raise InputError(f"{where} lacks {', '.join(missing)}; it has {', '.join(list(entry)[:8]) or 'nothing'}")


def _list(content: dict[str, Any], key: str) -> list[Any]:
    value = content.get(key)
    if not isinstance(value, list):
        raise InputError(f"{key} must be a list, got {type(value).__name__}")
    return value


def _person_id(person: Mapping[str, Any]) -> int | str | None:
    """COCO and PoseTrack `track_id`, AlphaPose `idx` (also in lists), OpenPose `person_id` ([-1]: none), COCO `id`."""
    for key in ("track_id", "idx", "person_id", "id"):
        value = person.get(key)
        while isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int | str) and value != -1:
            return value
    return None


def _score(person: Mapping[str, Any]) -> float | None:
    """How sure the detector is of a person; OpenPose and annotations do not say."""
    value = person.get("score")
    return float(value) if isinstance(value, int | float) and abs(value) <= sys.float_info.max else None


def _confidence_of(visibility: np.ndarray) -> np.ndarray:
    """COCO's flag: 0 not labelled -> 0, 1 labelled but hidden (a guess of the annotator) -> 0.5, 2 visible -> 1."""
    if not np.isin(visibility, (0, 1, 2)).all():
        wrong = visibility[~np.isin(visibility, (0, 1, 2))][0]
        raise InputError(f"visibility of an annotated joint must be 0, 1 or 2, got {wrong:g}")
    return visibility / 2
