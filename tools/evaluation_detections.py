"""Keypoint files as the 2D input of records."""

from __future__ import annotations

from collections import Counter

import numpy as np

from data.keypoints import KeypointFile
from data.records import Records
from mesh.errors import InputError, require
from mesh.joints import COCO19, Keypoints


def match_detections(records: Records, file: KeypointFile) -> Keypoints:
    """The people of a keypoint file as the rows of records, COCO-19.

    An array has one pose per row, in the order of the rows. Other files are matched by image name and, where a picture
    has several people, by their ids, which must be the records' `person`: never by position.
    """
    count = len(records)
    if file.is_array:
        given = file.images[0].keypoints
        require(
            len(given) == count, f"--keypoints: an array must have one pose for each of {count} rows, got {len(given)}"
        )
        return given.to(COCO19)
    require(
        "image" in records, f"{records.path} names no images: give --keypoints as an array with a pose for each row"
    )
    positions, confidence = np.zeros((count, len(COCO19), 2), np.float32), np.zeros((count, len(COCO19)), np.float32)
    images = [bytes(name).decode(errors="replace") for name in records["image"]]
    people_in = Counter(images)
    person = np.asarray(records["person"]) if "person" in records else np.zeros(count, np.int32)
    known = _by_image_and_person(file)
    for row, image in enumerate(images):
        found = known.get(image, {})
        if people_in[image] == 1 and len(found) == 1:
            keypoints = next(iter(found.values()))
        elif int(person[row]) in found:
            keypoints = found[int(person[row])]
        elif found and not any(isinstance(number, int) for number in found):
            raise InputError(
                f"--keypoints: {image} has {len(found)} people without ids that say who of the records is who"
            )
        else:
            continue
        converted = keypoints.to(COCO19)
        positions[row], confidence[row] = converted.positions_px[0], converted.confidence[0]
    require(
        bool(confidence.any()), f"--keypoints: no image of the file is one of {records.path} (such as {images[0]!r})"
    )
    return Keypoints(positions_px=positions, confidence=confidence, joint_set=COCO19)


def _by_image_and_person(file: KeypointFile) -> dict[str, dict[int | str, Keypoints]]:
    found: dict[str, dict[int | str, Keypoints]] = {}
    for entry in file.images:
        name = entry.image if entry.image is not None else str(entry.image_id)
        people = found.setdefault(name, {})
        for k in range(len(entry.keypoints)):
            given = str(None if entry.person_ids is None else entry.person_ids[k])
            people[int(given) if given.isdigit() else f"without id {len(people)}"] = entry.keypoints.select([k])
    return found
