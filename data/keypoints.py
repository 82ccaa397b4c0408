"""Keypoint files: who stands where in which picture, from other detectors, datasets or arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.keypoints_json import ImagePeople, read_json
from mesh.archives import read_arrays
from mesh.errors import InputError
from mesh.joints import JOINT_SETS, JointSet, Keypoints, joint_set_by_count

_LARGEST_CONFIDENCE = 2.0  # COCO's flag for visible
_NPY_MAGIC, _ZIP_MAGIC = b"\x93NUMPY", b"PK"


@dataclass(frozen=True, kw_only=True)
class ImageKeypoints:
    """The people of one picture, in the order of the file; there may be none.

    `image` is the picture's name as the file gives it (OpenPose: without extension), `image_id` COCO's number or
    AlphaPose's name, `person_ids` the track's or annotation's id of each person and `scores` how sure the detector is
    of each, where a file has them.
    """

    keypoints: Keypoints
    image: str | None = None
    image_id: int | str | None = None
    person_ids: tuple[int | str | None, ...] | None = None
    scores: tuple[float, ...] | None = None

    def surest(self, count: int | None) -> Keypoints:
        """At most `count` people (None: all), of the highest scores or the first ones, in the order of the file."""
        scores = np.zeros(len(self.keypoints)) if self.scores is None else np.array(self.scores)
        return self.keypoints.select(np.sort(np.argsort(-scores, kind="stable")[:count]))


@dataclass(frozen=True, kw_only=True)
class KeypointFile:
    """The pictures of a keypoint file in its order; an array (`is_array`) is one entry with all its poses."""

    images: tuple[ImageKeypoints, ...]
    is_array: bool = False


def read_keypoints(path: str | Path, *, joint_set: JointSet | None = None) -> KeypointFile:
    """Read COCO, OpenPose or AlphaPose json, a folder of OpenPose files, or a .npy or .npz array.

    The content tells the format, not the file name. The joints are those of `joint_set`, else those that the file
    names, else those that the format has, else those of the one set with that many joints. A file that names the
    joints of its set in another order has them put in order.

    Confidence above 1 (heat maps overshoot, 2 is COCO's flag for visible) and below 0 counts as 1 and 0, above 2 it is
    refused. The flag 0, 1 (hidden), 2 of annotations becomes confidence 0, 0.5, 1. An array without confidence has 1
    everywhere, but 0 for a joint at exactly (0, 0), the usual mark of a missing one.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"no keypoint file {path}")
    try:
        if path.is_file() and _starts_with(path, _NPY_MAGIC, _ZIP_MAGIC):
            return _from_arrays(read_arrays(path, "keypoints (N, J, 2 or 3)"), joint_set)
        return _from_json(path, joint_set)
    except InputError as exc:
        raise InputError(f"{path}: {str(exc).removeprefix(f'{path}: ')}") from exc


def _starts_with(path: Path, *beginnings: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(8).startswith(beginnings)
    except OSError as exc:
        raise InputError(f"cannot be read: {exc.strerror}") from exc


def _from_json(path: Path, joint_set: JointSet | None) -> KeypointFile:
    people = read_json(path)
    table = people.table(len(joint_set or people.joint_sets[0]))
    joints, order = _layout(table.shape[1], people.names, people.joint_sets, joint_set)
    table = table[:, order]
    images, start = [], 0
    for image in people.images:
        stop = start + len(image.rows)
        images.append(_image_keypoints(image, table[start:stop], joints))
        start = stop
    return KeypointFile(images=tuple(images))


def _image_keypoints(image: ImagePeople, table: np.ndarray, joints: JointSet) -> ImageKeypoints:
    try:
        keypoints = _keypoints(table[..., :2], table[..., 2], joints, image.size)
    except InputError as exc:
        raise InputError(f"{image}: {exc}") from exc
    known = [score for score in image.scores if score is not None]
    return ImageKeypoints(
        keypoints=keypoints,
        image=image.name,
        image_id=image.image_id,
        person_ids=None if all(i is None for i in image.person_ids) else tuple(image.person_ids),
        scores=tuple(known) if len(known) == len(image.scores) else None,
    )


def _keypoints(
    positions: np.ndarray, confidence: np.ndarray, joints: JointSet, size: tuple[int, int] | None
) -> Keypoints:
    above = confidence[np.isfinite(confidence) & (confidence > _LARGEST_CONFIDENCE)]
    if above.size:
        raise InputError(f"confidence must lie between 0 and 1, got {above.max():g}; divide per cent by 100")
    return Keypoints(positions_px=positions, confidence=np.clip(confidence, 0, 1), joint_set=joints, image_size=size)


def _from_arrays(arrays: dict[str, np.ndarray], joint_set: JointSet | None) -> KeypointFile:
    found = arrays.get("keypoints", arrays.get(""))
    if found is None:
        raise InputError(f"needs an array `keypoints` (N, J, 2 or 3); it has {', '.join(arrays) or 'nothing'}")
    poses = _numbers(found, "keypoints")
    if poses.ndim != 3 or poses.shape[2] not in (2, 3):
        raise InputError(f"keypoints must have shape (N, J, 2 or 3), got {poses.shape}")
    if not len(poses):
        raise InputError("keypoints hold no poses")
    joints, order = _layout(poses.shape[1], _names(arrays.get("names")), (), joint_set)
    confidence = _array_confidence(poses, arrays.get("confidence"))
    keypoints = _keypoints(poses[:, order, :2], confidence[:, order], joints, _image_size(arrays.get("image_size")))
    return KeypointFile(images=(ImageKeypoints(keypoints=keypoints),), is_array=True)


def _array_confidence(poses: np.ndarray, confidence: np.ndarray | None) -> np.ndarray:
    if poses.shape[2] == 3:
        if confidence is not None:
            raise InputError("confidence is given twice: as the third number of `keypoints` and as `confidence`")
        return poses[..., 2]
    if confidence is None:
        return (poses != 0).any(axis=-1).astype(np.float32)
    if confidence.shape != poses.shape[:2]:
        raise InputError(f"confidence must have shape {poses.shape[:2]}, got {confidence.shape}")
    return _numbers(confidence, "confidence")


def _numbers(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype.kind not in "fiu":
        raise InputError(f"{name} must be numbers, got {array.dtype}")
    with np.errstate(over="ignore"):  # infinity is refused with the joint's name
        return array.astype(np.float32)


def _names(array: np.ndarray | None) -> tuple[str, ...] | None:
    if array is None:
        return None
    if array.ndim != 1 or array.dtype.kind != "U":
        raise InputError(f"names must be a list of joint names, got {array.dtype} of shape {array.shape}")
    return tuple(array.tolist())


def _image_size(array: np.ndarray | None) -> tuple[int, int] | None:
    if array is None:
        return None
    if array.shape != (2,) or array.dtype.kind not in "fiu" or not ((array >= 1) & (array < 1e7)).all():
        raise InputError(f"image_size must be width and height in pixels, got {array.tolist()}")
    return int(array[0]), int(array[1])


def _layout(
    count: int, names: Sequence[str] | None, of_format: Sequence[JointSet], wanted: JointSet | None
) -> tuple[JointSet, list[int]]:
    """The joint set of `count` columns and the order in which to take them."""
    in_order = list(range(count))
    if names is not None:
        names = [str(name).strip().lower().replace(" ", "_") for name in names]
        if len(names) != count or len(set(names)) != count:
            raise InputError(f"{count} joints need {count} different names, got {', '.join(names)}")
        for known in JOINT_SETS.values():
            if sorted(known.names) == sorted(names):
                if wanted not in (None, known):
                    raise InputError(f"expected {wanted.name}, but the file names the joints of {known.name}")
                return known, [names.index(name) for name in known.names]
        if wanted is not None:
            odd = next(name for name in names if name not in wanted.names)
            raise InputError(f"expected {wanted.name}, but the file names a joint {odd!r}; leave --joint-set away")
    if wanted is not None:
        if len(wanted) != count:
            raise InputError(f"expected the {len(wanted)} joints of {wanted.name}, got {count}")
        return wanted, in_order
    if names is not None:
        return JointSet(name="own joints", names=tuple(names), edges=(), root=names[0]), in_order
    for known in of_format:
        if len(known) == count:
            return known, in_order
    return joint_set_by_count(count), in_order
