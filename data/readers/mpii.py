"""MPII Human Pose (Andriluka et al. 2014): 2D joints of people in everyday pictures.

Below the root one of two forms. Official: `mpii_human_pose_v1_u12_1.mat`, also in `mpii_human_pose_v1_u12_2/` as its
archive unpacks: `RELEASE` with `annolist` (`image.name`; `annorect` with `annopoints.point` of `x`, `y`, `id`,
`is_visible`, and `scale`, `objpos`), `img_train` and `single_person`. It has joints for the split train alone; those of
the test pictures are not published. Common: `annot/{train,valid,trainval}.json`, a list of {`image`, `joints` (16, 2),
`joints_vis` (16), `center`, `scale`}; where `joints_vis` only says whether a joint is annotated.

Both count pixels from 1, records from 0. `scale` is the person's height in units of 200 px: the box is the square of
that side around `objpos` or `center`.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from data.readers import Progress
from data.readers.annotations import any_numbers, check_choice, check_positive, chunks
from data.readers.pose2mesh_json import fields, numbers, relative_name
from data.record_sources import settings_of
from data.records import Records, RecordsWriter
from mesh.errors import InputError, require
from mesh.joints import MPII16

MAT_NAME = "mpii_human_pose_v1_u12_1.mat"
JSON_SPLITS = ("train", "valid", "trainval")
LICENCE = "MPII Human Pose: research; ask its authors for other purposes"
Form = Literal["auto", "mat", "json"]
_SCALE_PX = 200.0
_FIRST_PIXEL = 1.0  # MATLAB counts from it
_LARGEST_PX = 1e5
_HIDDEN = 0.5  # confidence of a joint that was marked though it is hidden, as COCO's flag 1


@dataclass(frozen=True, kw_only=True)
class MpiiOptions:
    """`form`: which file to read where the folder has both. `single_person`: keep only people who stand apart from
    others, by the official list (form mat). `min_joints`: the fewest annotated joints of a person who counts.
    `max_reach`: how far from the centre a joint may lie, in box sides; beyond it they do not belong together.
    """

    form: Form = "auto"
    single_person: bool = False
    min_joints: int = 1
    max_reach: float = 3.0

    def __post_init__(self) -> None:
        check_choice("form", self.form, get_args(Form))
        check_positive(self, "min_joints", "max_reach")


@dataclass(frozen=True, kw_only=True)
class _Person:
    """One annotated person: pixels counted from 1. `joints2d` (16, 2), `confidence` (16,), `centre` (2,), `scale`;
    NaN where the file has no centre or scale. `person` and `frame` count the rectangles and pictures from 0; `fault`
    says what the reader found wrong already."""

    image: str
    person: int
    frame: int
    joints2d: np.ndarray
    confidence: np.ndarray
    centre: np.ndarray
    scale: float
    stands_apart: bool = True
    fault: str | None = None


def convert(root: Path, out: Path, *, split: str, progress: Progress = lambda *_: None, **options: Any) -> Records:
    """Records of one split: mpii16 in pixels; `frame` numbers the pictures (form json: the entries), `person` the
    people of each."""
    chosen = MpiiOptions(**options)
    file = _file(Path(root), split, chosen.form)
    is_mat = file.suffix == ".mat"
    require(is_mat or not chosen.single_person, "which people stand apart is only said by the form mat, not by json")
    people = list(_mat_people(file) if is_mat else _json_people(file))
    with RecordsWriter(
        out,
        source="MPII Human Pose",
        split=split,
        licence=LICENCE,
        joints2d=MPII16,
        joints3d=None,
        settings=settings_of(chosen),
    ) as writer:
        for start, stop in chunks(len(people)):
            progress(start, len(people), file.name)
            key = f"{file.name}[{start}:{stop}]"
            if not writer.has(key, [file]):
                rules = [_rule_against(person, chosen) for person in people[start:stop]]
                kept = [p for p, rule in zip(people[start:stop], rules, strict=True) if rule is None]
                writer.add(key, _columns(kept), Counter(rule for rule in rules if rule is not None))
        progress(len(people), len(people), "writing")
        return writer.finish()


def _file(root: Path, split: str, form: Form) -> Path:
    """The file to read for a split."""
    mats = [folder / MAT_NAME for folder in (root, root / "mpii_human_pose_v1_u12_2", root / "annot")]
    mat = next((path for path in mats if path.is_file()), None)
    annotations = root / "annot" / f"{split}.json"
    if form == "auto":
        has_json = (root / "annot").is_dir() and any((root / "annot").glob("*.json"))
        require(mat is None or not has_json, f"{root} has {MAT_NAME} and annot/*.json: choose form mat or json")
        form = "mat" if mat is not None else "json"
    if split == "test":
        raise InputError("the joints of MPII's test pictures are not published; it has the split train")
    if form == "json":
        require(split in JSON_SPLITS, f"MPII has the splits {', '.join(JSON_SPLITS)}; got {split!r}")
        if not annotations.is_file():
            raise InputError(f"{annotations}: no such file; expected it, or {MAT_NAME} in {root}")
        return annotations
    require(split == "train", f"{MAT_NAME} has joints for the split train alone; got {split!r}")
    if mat is None:
        raise InputError(f"{mats[0]}: no such file; expected the official annotations there or in {mats[1].parent}")
    return mat


def _rule_against(person: _Person, options: MpiiOptions) -> str | None:
    """The rule that leaves a person out, if any."""
    if person.fault is not None:
        return person.fault
    known = person.confidence > 0
    if known.sum() < options.min_joints:
        return f"fewer than {options.min_joints} annotated joints"
    if options.single_person and not person.stands_apart:
        return "does not stand apart"
    if not (np.abs(person.centre) < _LARGEST_PX).all() or not 0 < person.scale < _LARGEST_PX / _SCALE_PX:
        return "no centre or scale"  # NaN is in no range
    reach = np.abs(person.joints2d[known] - person.centre).max()
    if not reach <= options.max_reach * _SCALE_PX * person.scale:
        return f"joint further than {options.max_reach:g} box sides from the centre"
    return None


def _columns(people: list[_Person]) -> dict[str, np.ndarray]:
    """The chunk's columns; none where no person is left."""
    if not people:
        return {}
    confidence = np.stack([person.confidence for person in people])
    joints = np.stack([person.joints2d for person in people]) - _FIRST_PIXEL
    centre = np.stack([person.centre for person in people]) - _FIRST_PIXEL
    side = np.array([[person.scale * _SCALE_PX] * 2 for person in people])
    return {
        "joints2d": np.where(confidence[..., None] > 0, joints, 0),
        "confidence": confidence,
        "box": np.concatenate([centre - side / 2, side], axis=1),
        "image": np.array([person.image for person in people]),
        "person": np.array([person.person for person in people]),
        "frame": np.array([person.frame for person in people]),
    }


def _json_people(path: Path) -> Iterator[_Person]:
    """The people of the common form, in the order of the file."""
    expected = "MPII's people as a list of {image, joints, joints_vis, center, scale}"
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as exc:
        reason = " ".join(str(exc).split())[:120]
        raise InputError(f"{path} is damaged, cut short or no json ({reason}); get it anew: {expected}") from exc
    if not isinstance(content, list) or not content:
        raise InputError(f"{path}: expected {expected}; got a {type(content).__name__}")
    counts: Counter[str] = Counter()
    for number, entry in enumerate(content):
        where = f"{path.name}: entry {number}"
        keys = ("image", "joints", "joints_vis", "center", "scale")
        image, joints, annotated, centre, scale = fields(entry, keys, where)
        flags = numbers(annotated, (len(MPII16),), f"{where}: joints_vis")
        require(bool(np.isin(flags, (0, 1)).all()), f"{where}: joints_vis must be 0 or 1, got {flags.tolist()}")
        name = relative_name(image, f"{where}: image")
        yield _Person(
            image=name,
            person=counts[name],
            frame=number,
            joints2d=any_numbers(joints, (len(MPII16), 2), f"{where}: joints"),
            confidence=flags,
            centre=any_numbers(centre, (2,), f"{where}: center"),
            scale=float(any_numbers(scale, (1,), f"{where}: scale")[0]),
        )
        counts[name] += 1


def _mat_people(path: Path) -> Iterator[_Person]:
    """The people of the official training pictures, in the order of the file; those without joints, too."""
    (release,) = _structs(read_mat(path, "RELEASE"), f"{path.name}: RELEASE", 1)
    keys = ("annolist", "img_train", "single_person")
    pictures, is_train, apart = fields(release, keys, f"{path.name}: RELEASE")
    pictures = _structs(pictures, f"{path.name}: annolist")
    require(
        len(pictures) == len(is_train) == len(apart),
        f"{path.name}: annolist, img_train and single_person must be as long as each other; got {len(pictures)}, "
        f"{len(is_train)} and {len(apart)} entries",
    )
    for frame, picture in enumerate(pictures):
        if is_train[frame] != 1:
            continue
        where = f"{path.name}: annolist({frame + 1})"
        image, rectangles = fields(picture, ("image", "annorect"), where)
        (image,) = _structs(image, f"{where}.image", 1)
        name = relative_name(fields(image, ("name",), f"{where}.image")[0], f"{where}.image.name")
        alone = apart[frame] if isinstance(apart[frame], tuple) else ()  # numbers of rectangles, from 1
        for person, rectangle in enumerate(_structs(rectangles, f"{where}.annorect")):
            yield _mat_person(
                rectangle,
                f"{where}.annorect({person + 1})",
                image=name,
                frame=frame,
                person=person,
                stands_apart=person + 1 in alone,
            )


def _mat_person(
    rectangle: dict[str, Any], where: str, *, image: str, frame: int, person: int, stands_apart: bool
) -> _Person:
    """One rectangle. Not all have all fields: a head alone was marked, or a person without joints."""
    joints, confidence, fault = np.zeros((len(MPII16), 2)), np.zeros(len(MPII16)), None
    holder = _structs(rectangle.get("annopoints", ()), f"{where}.annopoints")
    points = _structs(fields(holder[0], ("point",), f"{where}.annopoints")[0], f"{where}.point") if holder else []
    for point in points:
        number, x, y = map(_number, fields(point, ("id", "x", "y"), f"{where}.point"))
        if number not in range(len(MPII16)) or confidence[int(number)]:
            fault = "joint with an unknown number, or marked twice"
            continue
        joints[int(number)] = x, y
        is_hidden = _number(point.get("is_visible")) == 0  # neck and head top do not say
        confidence[int(number)] = _HIDDEN if is_hidden else 1
    centre = (_structs(rectangle.get("objpos", ()), f"{where}.objpos") or [{}])[0]
    return _Person(
        image=image,
        person=person,
        frame=frame,
        joints2d=joints,
        confidence=confidence,
        centre=np.array([_number(centre.get(axis)) for axis in ("x", "y")]),
        scale=_number(rectangle.get("scale")),
        stands_apart=stands_apart,
        fault=fault,
    )


def _structs(value: Any, where: str, count: int | None = None) -> list[dict[str, Any]]:
    """MATLAB's struct array, of `count` entries where given; anything empty counts as one without entries."""
    found = value if isinstance(value, list) and all(isinstance(entry, dict) for entry in value) else None
    if found is None and value == ():
        found = []
    if found is None or (count is not None and len(found) != count):
        came = type(value).__name__ if found is None else f"{len(found)} structs"
        raise InputError(f"{where} must be {'one struct' if count == 1 else 'a struct array'}, got {came}")
    return found


def _number(value: Any) -> float:
    """A number, also one written as text (`is_visible` is both in the official file); NaN for anything else."""
    try:
        return float(value[0] if isinstance(value, tuple) and len(value) == 1 else value)
    except (TypeError, ValueError, OverflowError):
        return np.nan


# MATLAB 5 files. scipy's reader is quicker, but a damaged file can end the whole process inside it.

_MATRIX, _COMPRESSED, _INT32, _UINT32 = 14, 15, 5, 6
_NUMBERS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q"}
_TEXTS = {1: "latin1", 2: "latin1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le", 18: "utf-32-le"}
_CELL, _STRUCT, _CHAR, _NUMERIC = 1, 2, 4, range(6, 16)
_HEADER_BYTES, _DEEPEST = 128, 32
_LARGEST_BYTES = 1 << 31  # of a variable when unpacked


class _Damaged(Exception):
    """What is wrong with a file."""


def read_mat(path: Path, name: str) -> Any:
    """A variable of a MATLAB 5 file: a list of dicts for a struct array, a list for a cell array, text for characters,
    a tuple for numbers; all flat, in MATLAB's order. Objects and functions are refused."""
    try:
        raw = path.read_bytes()
        if len(raw) < _HEADER_BYTES or raw[124:128] != b"\x00\x01IM":
            raise _Damaged("its header is not MATLAB 5's")
        at = _HEADER_BYTES
        while at < len(raw):
            kind, start, size, at = _element(raw, at, len(raw), pad=False)
            content = raw[start : start + size]
            if kind == _COMPRESSED:
                content = _unpacked(content)
                kind, start, size, _ = _element(content, 0, len(content))
                content = content[start : start + size]
            if kind == _MATRIX and _shape(content, 0, len(content))[2] == name:
                return _matrix(content, 0, len(content), 0)
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc.strerror}") from exc
    except (_Damaged, struct.error, UnicodeDecodeError, zlib.error) as exc:
        raise InputError(f"{path} is damaged, cut short or no MATLAB 5 file ({exc}); download it again") from exc
    raise InputError(f"{path} holds no variable {name}; expected the official annotations")


def _unpacked(packed: bytes) -> bytes:
    stream = zlib.decompressobj()
    content = stream.decompress(packed, _LARGEST_BYTES)
    if not stream.eof:
        raise _Damaged("a compressed variable is cut short or absurdly large")
    return content


def _element(raw: bytes, at: int, end: int, *, pad: bool = True) -> tuple[int, int, int, int]:
    """Type, start and size of the element at a place, and the place of the next."""
    if at + 8 > end:
        raise _Damaged("an element is cut short")
    kind, size = struct.unpack_from("<II", raw, at)
    if kind >> 16:  # up to four bytes within the tag
        kind, size, start, after = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        if size > 4:
            raise _Damaged("an element is larger than its place")
    else:
        start = at + 8
        after = start + size + (-size % 8 if pad else 0)
    if start + size > end:
        raise _Damaged("an element is cut short")
    return kind, start, size, after


def _shape(raw: bytes, at: int, end: int) -> tuple[int, int, str, int]:
    """Class, number of entries and name of the matrix at a place, and where its content begins."""
    kind, start, size, at = _element(raw, at, end)
    if kind != _UINT32 or size != 8:
        raise _Damaged("a matrix does not begin with its class")
    matrix_class = raw[start]
    kind, start, size, at = _element(raw, at, end)
    if kind != _INT32 or size % 4 or not 8 <= size <= 128:
        raise _Damaged("a matrix has no size")
    sides = struct.unpack_from(f"<{size // 4}i", raw, start)
    if min(sides) < 0:
        raise _Damaged("a matrix has a negative size")
    _, start, size, at = _element(raw, at, end)
    return matrix_class, math.prod(sides), raw[start : start + size].decode("latin1"), at


def _matrix(raw: bytes, at: int, end: int, depth: int) -> Any:
    """The content of the matrix at a place."""
    if at == end:
        return ()
    if depth > _DEEPEST:
        raise _Damaged("structs are nested too deeply")
    matrix_class, count, _, at = _shape(raw, at, end)
    if matrix_class == _CELL:
        return _matrices(raw, at, end, count, depth)
    if matrix_class == _STRUCT:
        _, start, size, at = _element(raw, at, end)
        (width,) = struct.unpack_from("<i", raw, start) if size == 4 else (0,)
        _, start, size, at = _element(raw, at, end)
        if width < 1 or size % width:
            raise _Damaged("a struct does not name its fields")
        names = [raw[i : i + width].split(b"\0")[0].decode("latin1") for i in range(start, start + size, width)]
        values = iter(_matrices(raw, at, end, count * len(names), depth)) if names else iter(())
        return [dict(zip(names, entry)) for entry in zip(*[values] * len(names))]
    kind, start, size, _ = _element(raw, at, end)
    if matrix_class == _CHAR and kind in _TEXTS:
        return raw[start : start + size].decode(_TEXTS[kind])
    if matrix_class in _NUMERIC and kind in _NUMBERS:
        width = struct.calcsize(_NUMBERS[kind])
        if size != width * count:
            raise _Damaged("a matrix has not as many numbers as its size says")
        return struct.unpack_from(f"<{count}{_NUMBERS[kind]}", raw, start)
    raise _Damaged(f"a matrix of class {matrix_class} stored as type {kind} is not allowed")


def _matrices(raw: bytes, at: int, end: int, count: int, depth: int) -> list[Any]:
    """The contents of so many matrices one after the other."""
    if count > (end - at) // 8:
        raise _Damaged("an array has fewer entries than its size says")
    found = []
    for _ in range(count):
        kind, start, size, at = _element(raw, at, end)
        if kind != _MATRIX:
            raise _Damaged(f"an entry is no matrix but of type {kind}")
        found.append(_matrix(raw, start, start + size, depth + 1))
    return found
