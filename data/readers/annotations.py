"""What the readers of annotation files share: images by number, options, pieces of a long list."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data.readers.pose2mesh_json import fields, numbers, whole
from mesh.errors import InputError, require

CHUNK_ROWS = 8192  # kept at a time, so that a killed conversion loses little


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
