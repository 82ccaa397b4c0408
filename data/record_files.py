"""The files of a records folder: the header `records.yaml` and one `.npy` file per column."""

from __future__ import annotations

import hashlib
import os
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import yaml

from data.record_columns import COLUMNS
from mesh.errors import InputError
from mesh.files import replacing
from mesh.joints import joint_set

SCHEMA = "meshrecovery-records-1"
HEADER_FILE = "records.yaml"
UPS = (None, "y", "z")
_HEADER_BYTES = 1_000_000  # a larger header is none
_UNREADABLE = (ValueError, OSError, EOFError, SyntaxError, tokenize.TokenError, MemoryError)


@dataclass(frozen=True, kw_only=True)
class Column:
    """How a column lies on disk."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True, kw_only=True)
class RecordsInfo:
    """What `records.yaml` says. `dropped` counts the rows that a rule of the reader left out; `up` is the axis of the
    source's world that points up, where that is known.
    """

    source: str
    split: str
    licence: str
    joints2d: str | None
    joints3d: str | None
    count: int
    dropped: Mapping[str, int]
    columns: Mapping[str, Column]
    settings: Mapping[str, Any] = field(default_factory=dict)
    keys_sha256: str = ""
    sources_sha256: str = ""
    up: str | None = None
    schema: str = SCHEMA


def read_header(path: Path) -> RecordsInfo:
    file = path / HEADER_FILE
    if not file.is_file():
        raise InputError(f"{path} is no records folder: it has no {HEADER_FILE}; make one with tools/convert.py")
    try:
        if file.stat().st_size > _HEADER_BYTES:
            raise InputError(f"{file} is too large for the header of a records folder")
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
        raise InputError(f"{file} cannot be read: {' '.join(str(exc).split())}") from exc
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        came = content.get("schema") if isinstance(content, dict) else "no header"
        raise InputError(f"{file}: expected schema {SCHEMA}, got {came!r}; convert the dataset again")
    try:
        columns = {
            str(name): Column(
                dtype=str(entry["dtype"]), shape=tuple(int(n) for n in entry["shape"]), sha256=str(entry["sha256"])
            )
            for name, entry in content.pop("columns").items()
        }
        info = RecordsInfo(columns=columns, **content)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise InputError(
            f"{file} is no whole header ({' '.join(str(exc).split())}); convert the dataset again"
        ) from exc
    if info.up not in UPS:
        raise InputError(f"{file}: up must be one of {', '.join(map(str, UPS))}, got {info.up!r}")
    wrong = [name for name in info.columns if name not in COLUMNS]
    if wrong or not isinstance(info.count, int) or info.count < 1 or not info.columns:
        reason = f"unknown column {wrong[0]!r}" if wrong else f"{info.count!r} rows in {len(info.columns)} columns"
        raise InputError(f"{file} is no header of records: {reason}")
    return info


def write_header(folder: Path, header: Mapping[str, Any]) -> None:
    """`records.yaml`, on disk when this returns."""
    with replacing(folder / HEADER_FILE) as stream:
        stream.write(yaml.safe_dump(dict(header), sort_keys=False, allow_unicode=True).encode())
        sync(stream)


def joint_counts(joints2d: str | None, joints3d: str | None) -> dict[str, int]:
    """J2 and J3 of the column shapes, where there is such a joint set."""
    names = {"J2": joints2d, "J3": joints3d}
    return {symbol: len(joint_set(name)) for symbol, name in names.items() if name is not None}


def map_column(path: Path, column: Column) -> np.memmap:
    """The file of a column, checked against the header; its content is not read."""
    if not path.is_file():
        raise InputError(f"{path}: no such file, but {HEADER_FILE} names the column; convert the dataset again")
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except _UNREADABLE as exc:
        raise InputError(f"{path}: not a whole .npy file of numbers or texts: {' '.join(str(exc).split())}") from exc
    if array.shape != column.shape or array.dtype.str != column.dtype or not array.flags.c_contiguous:
        came = f"{array.dtype.str} of {array.shape}"
        raise InputError(f"{path} holds {came}, but {HEADER_FILE} says {column.dtype} of {column.shape}")
    if path.stat().st_size != array.offset + array.nbytes:
        raise InputError(f"{path} holds more bytes than {column.shape} needs; convert the dataset again")
    return array


class ColumnFile:
    """Writes one column block by block, without knowing all of it; a context manager."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._shape, self._dtype = shape, dtype
        self._digest = hashlib.sha256()
        self._file = path.open("xb")
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self, header)

    def __enter__(self) -> ColumnFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, content: bytes) -> None:
        """Bytes, as a file takes them."""
        self._digest.update(content)
        self._file.write(content)

    def append(self, rows: np.ndarray) -> None:
        """More rows."""
        self.write(np.ascontiguousarray(rows, self._dtype).tobytes())

    def finish(self) -> dict[str, Any]:
        """The column's entry in the header; the file is on disk when this returns."""
        sync(self._file)
        return {"dtype": self._dtype.str, "shape": list(self._shape), "sha256": self._digest.hexdigest()}


def sync(file: BinaryIO) -> None:
    """Wait until the disk has it: a finished file must survive what ends the process."""
    file.flush()
    os.fsync(file.fileno())
