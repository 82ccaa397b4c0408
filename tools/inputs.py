"""What `recover` is asked to do: inputs of any kind to a list of jobs, everything checked before work begins."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.images import IMAGE_SUFFIXES, find_images, read_focal
from data.keypoints import ImageKeypoints, KeypointFile, read_keypoints
from mesh.errors import InputError
from mesh.files import MESH_WRITERS
from mesh.joints import JointSet, Keypoints

_RESULTS = (".json", ".npz", *(f".{form}" for form in MESH_WRITERS))


@dataclass(frozen=True)
class Job:
    """One unit of work: a picture, the joints of a picture's people, or an array of poses."""

    source: str
    name: str
    image: Path | None = None
    keypoints: Keypoints | None = None
    is_array: bool = False
    problem: str | None = None  # why there is nothing to do for this input


@dataclass(frozen=True)
class Focal:
    """The focal length that is taken for a picture, and where it comes from; None where nothing is known.

    The recovery assumes one by itself: it leaves that away for who lies far outside of the picture.
    """

    px: float | None
    source: str
    is_assumed: bool = False

    @property
    def known_px(self) -> float | None:
        """What the recovery is told."""
        return None if self.is_assumed else self.px

    def as_taken(self, has_camera: np.ndarray) -> Focal:
        """What came of it, (N,) for whom the recovery took a camera."""
        if not self.is_assumed or has_camera.all():
            return self
        outside = "far outside of the stated picture"
        if not has_camera.any():
            return Focal(None, f"not known: all people lie {outside}")
        missing = f"{(~has_camera).sum()} of {len(has_camera)} people, {outside}"
        return replace(self, source=f"{self.source}; not for {missing}")

    def entry(self) -> dict[str, Any]:
        """What the summary says about it."""
        return {"focal_px": None if self.px is None else round(self.px, 1), "focal_from": self.source}


def find_focal(job: Job, keypoints: Keypoints, given_px: float | None) -> Focal:
    """The focal length that was given, else what the photo's EXIF data tell, else the picture's diagonal."""
    if keypoints.image_size is None:
        return Focal(None, "not known: no size of the picture")
    if given_px is not None:
        return Focal(given_px, "--focal-px")
    diagonal_px = math.hypot(*keypoints.image_size)
    told = None if job.image is None else read_focal(job.image)
    if told is not None:
        return Focal(told * diagonal_px, "EXIF")
    return Focal(diagonal_px, "assumed: the diagonal", is_assumed=True)


def check_size_known(job: Job) -> None:
    """Whether a focal length means anything for the joints of a file."""
    if job.image is None and job.keypoints is not None and job.keypoints.image_size is None:
        raise InputError(
            f"--focal-px needs the size of the picture, which {job.source} does not hold: add `image_size`"
        )


def with_size(job: Job, keypoints: Keypoints, size: tuple[int, int]) -> Keypoints:
    """The joints as those of a picture of this size; InputError if they say they are of another."""
    if keypoints.image_size not in (None, size):
        told, found = ("{} x {}".format(*s) for s in (keypoints.image_size, size))
        raise InputError(
            f"{job.source}: it is {found} px, but its keypoints are of a picture of {told} px: scale them first"
        )
    return replace(keypoints, image_size=size)


def plan_jobs(
    inputs: Sequence[str], keypoint_file: str | None, joints: JointSet | None, max_people: int | None = None
) -> list[Job]:
    """Jobs in the order of the inputs; `keypoint_file` replaces the detector, or is the input if there is no other.

    At most `max_people` of a picture are taken, the surest; an array that is an input holds poses, not people of one
    picture, and is taken whole.
    A missing path, a broken keypoint file and joints that cannot be told apart by picture end the call here.
    """
    if not inputs:
        inputs, keypoint_file = [keypoint_file] if keypoint_file else [], None
    if not inputs:
        raise InputError("nothing to do: give an image, a folder or a keypoint file; see --help")
    given = None if keypoint_file is None else read_keypoints(keypoint_file, joint_set=joints)
    jobs: list[Job] = []
    for text in inputs:
        path = Path(text)
        if not text or not path.exists():
            raise InputError(f"no such input: {text!r}")
        images = _images(path)
        if images:
            jobs += [_image_job(image, given, keypoint_file, max_people) for image in images]
        elif given is not None:
            known = ", ".join(IMAGE_SUFFIXES)
            raise InputError(
                f"{path} is no image ({known}): --keypoints {keypoint_file} belongs to images, or stands alone"
            )
        else:
            jobs += _keypoint_jobs(path, read_keypoints(path, joint_set=joints), max_people)
    if given is not None and given.is_array and len(jobs) > 1:
        raise InputError(
            f"{keypoint_file} is one array of poses, which belongs to one photo: got {len(jobs)}; "
            "call once for each, or give a json file that names its pictures"
        )
    return jobs


def skipped_files(inputs: Sequence[str]) -> Iterator[str]:
    """A line for each folder in which files are passed over for their suffix, hidden ones and results apart."""
    for folder in (path for path in map(Path, inputs) if path.is_dir()):
        taken = IMAGE_SUFFIXES if _images(folder) else (".json",)
        known = (*taken, *(_RESULTS if (folder / "summary.json").exists() else ()))
        files = sorted(p.name for p in folder.iterdir() if p.is_file() and p.suffix.lower() not in known)
        if skipped := [name for name in files if not name.startswith(".")]:
            yield f"{folder}: {len(skipped)} skipped, such as {skipped[0]}: names must end in {', '.join(taken)}"


def _images(path: Path) -> list[Path]:
    """The pictures that a path means, if any. Overlays beside a summary are results of an earlier call."""
    if not path.is_dir():
        return [path] if path.suffix.lower() in IMAGE_SUFFIXES else []
    if any(path.glob("*.json")) and not any(p.suffix.lower() in IMAGE_SUFFIXES for p in path.iterdir()):
        return []  # a folder of OpenPose files
    images = find_images(path)
    if (path / "summary.json").exists():
        images = [image for image in images if not image.name.endswith("_overlay.png")]
    return images


def _image_job(image: Path, given: KeypointFile | None, keypoint_file: str | None, max_people: int | None) -> Job:
    job = Job(str(image), image.stem, image)
    if given is None:
        return job
    if given.is_array:
        found: list[ImageKeypoints] = list(given.images)
    else:
        scores = [_agreement(entry, image) for entry in given.images]
        best = max(scores)
        found = [entry for entry, score in zip(given.images, scores) if best and score == best]
    if len(found) > 1:
        raise InputError(f"{keypoint_file} names {image.name} {len(found)} times; tell them apart by their folders")
    if not found:
        return Job(str(image), image.stem, image, problem=f"{keypoint_file} holds no people for it")
    return Job(str(image), image.stem, image, found[0].surest(max_people))


def _agreement(entry: ImageKeypoints, image: Path) -> float:
    """How well the name in a keypoint file fits a picture: 0 not at all, else the number of path parts that agree."""
    name = entry.image if entry.image is not None else str(entry.image_id)
    given, own = Path(name).parts, image.parts
    if not given:
        return 0
    last = given[-1]
    is_number = last.isdigit() and image.stem.isdigit() and int(last) == int(image.stem)  # COCO: 1 is 000000000001.jpg
    if last != image.name and _without_suffix(last) != image.stem and not is_number:
        return 0
    score = 1.5 if last == image.name else 1.0
    for theirs, ours in zip(given[-2::-1], own[-2::-1]):
        if theirs != ours:
            break
        score += 1
    return score


def _keypoint_jobs(path: Path, content: KeypointFile, max_people: int | None) -> Iterator[Job]:
    for entry in content.images:
        named = entry.image if entry.image is not None else entry.image_id
        name = path.stem if content.is_array or named is None else _without_suffix(str(named))
        source = str(path) if content.is_array else f"{path}: {name}"
        keypoints = entry.keypoints if content.is_array else entry.surest(max_people)
        yield Job(source, file_name(name), keypoints=keypoints, is_array=content.is_array)


def _without_suffix(name: str) -> str:
    """A picture's bare name; some files leave its suffix away, and what follows a dot is then part of it."""
    path = Path(name)
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name


def file_name(name: str) -> str:
    """A name from a file as one that every file system takes."""
    return re.sub(r'[\x00-\x1f<>:"/\\|?*]', "_", name)[:150] or "unnamed"
