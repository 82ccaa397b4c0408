"""The COCO-style json files that Pose2Mesh distributes: reading them, and refusing what they must not hold."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mesh.errors import InputError

MM_PER_M = 1000.0
NO_BOX = "box smaller than a pixel"


def read_json(path: Path, expected: str, kind: type = dict) -> Any:
    """The object or list that a json file holds; `expected` says what it should have been, for the error."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as exc:
        raise InputError(f"{path}: no such file; expected {expected}") from exc
    except OSError as exc:
        raise InputError(f"{path} cannot be read ({exc.strerror}); expected {expected}") from exc
    except RecursionError as exc:
        raise InputError(f"{path} is nested too deeply; expected {expected}") from exc
    except ValueError as exc:  # damaged, cut short, no UTF-8, or a number of thousands of digits
        reason = " ".join(str(exc).split())[:120]
        raise InputError(f"{path} is damaged, cut short or no json ({reason}); get it anew: {expected}") from exc
    if not isinstance(content, kind):
        raise InputError(f"{path} holds a {type(content).__name__}; expected {expected}")
    return content


def fields(entry: object, keys: Sequence[str], where: str) -> list[Any]:
    """The values of an object's keys, all of which it must have."""
    if not isinstance(entry, dict):
        raise InputError(f"{where} must be an object with {', '.join(keys)}; got {type(entry).__name__}")
    missing = [key for key in keys if key not in entry]
    if missing:
        raise InputError(
            f"{where} lacks {', '.join(missing)}; it has {', '.join(map(str, list(entry)[:12])) or 'nothing'}"
        )
    return [entry[key] for key in keys]


def entries(content: Mapping[str, Any], key: str, where: str) -> list[Any]:
    """A list that the object must have."""
    (value,) = fields(content, (key,), where)
    if not isinstance(value, list):
        raise InputError(f"{where}: {key} must be a list, got {type(value).__name__}")
    return value


def by_id(content: Mapping[str, Any], key: str, where: str) -> dict[int, Any]:
    """The entries of a list by their `id`, in the order of the file; two with the same id are refused."""
    found: dict[int, Any] = {}
    for number, entry in enumerate(entries(content, key, where)):
        (given,) = fields(entry, ("id",), f"{where}: {key}[{number}]")
        number_id = whole(given, f"{where}: {key}[{number}] id")
        if number_id in found:
            raise InputError(f"{where}: two {key} have the id {number_id}; get the file anew")
        found[number_id] = entry
    return found


def numbers(value: object, shape: tuple[int, ...], where: str) -> np.ndarray:
    """Finite numbers of a json list of any nesting with as many entries as `shape`, float64 in that shape."""
    try:
        given = np.asarray(value)
    except ValueError:  # lists of different lengths
        given = np.asarray(None)
    if given.dtype.kind not in "fiu" or given.size != math.prod(shape):
        came = f"{given.size} numbers" if given.dtype.kind in "fiu" else "something else"
        raise InputError(f"{where} must be {math.prod(shape)} numbers {shape}, got {came}")
    array = given.astype(np.float64).reshape(shape)
    if not np.isfinite(array).all():
        raise InputError(f"{where} holds NaN or infinity")
    return array


def whole(value: object, where: str) -> int:
    """A whole number that an int32 column can hold."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**31) <= value < 2**31:
        raise InputError(f"{where} must be a whole number, got {str(value)[:40]!r}")
    return value


def relative_name(value: object, where: str) -> str:
    """A file name below the folder of the images; one that leads out of it is refused."""
    parts = value.replace("\\", "/").split("/") if isinstance(value, str) else []
    if not parts or "" in parts or ".." in parts or ":" in parts[0] or not str(value).isprintable():
        raise InputError(f"{where} must be a file name below the image folder, got {str(value)[:80]!r}")
    return str(value)


def frame_number(name: str, where: str) -> int:
    """The digits before a file name's extension: `image_00012.jpg` -> 12."""
    stem = PurePosixPath(name).stem
    digits = stem[len(stem.rstrip("0123456789")) :]
    if not digits or len(digits) > 9:
        raise InputError(f"{where} must end with the frame's number, got {name[:80]!r}")
    return int(digits)


def box_of(value: object, where: str) -> np.ndarray | None:
    """x, y, width, height in pixels, (4,); None if smaller than a pixel, which Pose2Mesh leaves out."""
    box = numbers(value, (4,), where)
    return box if box[2] >= 1 and box[3] >= 1 else None


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Rows with the same keys as the columns of a chunk, sorted by sequence, person and frame."""
    if not rows:
        return {}
    ordered = sorted(rows, key=lambda row: (row["sequence"], row["person"], row["frame"]))
    return {key: np.array([row[key] for row in ordered]) for key in ordered[0]}
