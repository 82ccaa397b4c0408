"""Records: the one form in which datasets reach the rest of the program.

A folder of plain `.npy` columns and `records.yaml`, memory-mapped, without pickles. One row is one person in one
image, or one pose. `data.record_columns.COLUMNS` says what each column holds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from data.record_chunks import Chunk, write_chunk
from data.record_columns import COLUMNS, check_columns
from data.record_files import (
    HEADER_FILE,
    SCHEMA,
    Column,
    ColumnFile,
    RecordsInfo,
    joint_counts,
    map_column,
    read_header,
    write_header,
)
from data.record_sources import SourceFiles
from mesh.errors import InputError
from mesh.files import replacing
from mesh.joints import JointSet
from mesh.lock import LOCK_FILE, FolderLock

__all__ = ["COLUMNS", "Column", "Records", "RecordsInfo", "RecordsWriter", "open_records"]


class Records:
    """Columns of one conversion, read from disk as they are used; see `open_records`."""

    def __init__(self, path: Path, info: RecordsInfo, columns: Mapping[str, np.memmap]) -> None:
        self.path = path
        self.info = info
        self._columns = columns

    def __len__(self) -> int:
        return self.info.count

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __getitem__(self, name: str) -> np.memmap:
        if name not in self._columns:
            raise InputError(f"{self.path} has no column {name!r}; it has {', '.join(self._columns)}")
        return self._columns[name]

    def __reduce__(self) -> tuple[Any, ...]:
        return open_records, (self.path,)  # a worker process opens the files again instead of receiving their content

    def sequences(self) -> list[tuple[str, slice | np.ndarray]]:
        """The rows of each person of each sequence in the order of `frame`; none where no sequence is known.

        A slice where they lie one after the other. Named `sequence#person`, in order of first appearance.
        """
        if "sequence" not in self or not len(self):
            return []
        names = np.asarray(self["sequence"])
        people = np.asarray(self["person"]) if "person" in self else np.zeros(len(self), np.int32)
        changes = np.flatnonzero((names[1:] != names[:-1]) | (people[1:] != people[:-1])) + 1
        runs: dict[tuple[bytes, int], list[np.ndarray]] = {}
        for rows in np.split(np.arange(len(self)), changes):
            runs.setdefault((bytes(names[rows[0]]), int(people[rows[0]])), []).append(rows)
        return [
            (f"{name.decode(errors='replace')}#{person}", self._in_order(np.concatenate(parts)))
            for (name, person), parts in runs.items()
        ]

    def _in_order(self, rows: np.ndarray) -> slice | np.ndarray:
        if "frame" in self:
            rows = rows[np.argsort(self["frame"][rows], kind="stable")]
        return slice(int(rows[0]), int(rows[-1]) + 1) if (np.diff(rows) == 1).all() else rows

    def verify(self) -> None:
        """Read every byte and compare it with the hashes of the conversion."""
        for name, column in self.info.columns.items():
            with (self.path / f"{name}.npy").open("rb") as file:
                digest = hashlib.sha256()
                while block := file.read(1 << 20):
                    digest.update(block)
            if digest.hexdigest() != column.sha256:
                raise InputError(f"{self.path / name}.npy has changed since it was written; convert the dataset again")


def open_records(path: str | Path) -> Records:
    """Open a records folder: header, types, shapes and sizes are checked, contents are not read."""
    path = Path(path)
    info = read_header(path)
    sizes = joint_counts(info.joints2d, info.joints3d)
    columns = {}
    for name, column in info.columns.items():
        dtype, row_shape = COLUMNS[name]
        expected = (info.count, *(sizes.get(size, -1) if isinstance(size, str) else size for size in row_shape))
        if column.shape != expected or (not column.dtype.startswith("|S") if dtype == "S" else column.dtype != dtype):
            came = f"{column.dtype} of {column.shape}"
            raise InputError(f"{path / HEADER_FILE}: {name} must be {dtype} of {expected}, the header says {came}")
        columns[name] = map_column(path / f"{name}.npy", column)
    return Records(path, info, columns)


class RecordsWriter:
    """Writes a records folder chunk by chunk; use it as a context manager.

    Each chunk (a sequence file, a subject) is kept in `OUT.partial` as soon as it is added, so that the next attempt
    skips it. `finish` puts them together; until then nothing exists at `out`. `settings` are the options of the reader:
    an attempt with others does not continue this one, nor does one whose source files have changed. A conversion that
    is finished already is found as it is. One process at a time works on a folder.
    """

    def __init__(
        self, out: Path, *, source: str, split: str, licence: str, joints2d: JointSet | None,
        joints3d: JointSet | None, up: Literal["y", "z"] | None = None, settings: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.out = Path(out)
        if not self.out.name:
            raise InputError(f"{out} is no name for a new folder; choose another output folder")
        self.partial = self.out.with_name(self.out.name + ".partial")
        self._about: dict[str, Any] = {
            "schema": SCHEMA,
            "source": source,
            "split": split,
            "licence": licence,
            "joints2d": None if joints2d is None else joints2d.name,
            "joints3d": None if joints3d is None else joints3d.name,
            "up": up,
            "settings": json.loads(json.dumps(dict(settings or {}))),
        }
        self._sizes = joint_counts(self._about["joints2d"], self._about["joints3d"])
        self._files = SourceFiles()
        self._sources: dict[str, Sequence[Path]] = {}  # of each chunk that was asked for
        self._keys: dict[str, list[str]] = {}  # seen in this attempt, in order, with the hashes of their files
        self._lock = FolderLock(self.partial, f"output folder {self.out}")
        self._finished = self._find_finished()
        if self._finished is None:
            self._lock.acquire()
            with self._lock.released_on_failure():
                self._finished = self._find_finished()  # by the process that had the lock just before
                if self._finished is None:
                    self._begin()

    def __enter__(self) -> RecordsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._finished is None and self.partial.is_dir() and not any(self.partial.glob("*.npz")):
            self._remove_partial()  # there is nothing to resume
        self._lock.release()

    def has(self, key: str, files: Sequence[Path] = ()) -> bool:
        """Whether this chunk is kept from an earlier attempt (its place in the order is then taken now).

        `files` are all that it is made of; if they are not what they were in that attempt, it is refused.
        """
        self._sources[key] = files
        hashes = self._files.hashes(files)
        if self._finished is None:
            if not self._chunk(key).is_file():
                return False
            self._refuse_changed(key, hashes)
        self._keys[key] = hashes
        return True

    def add(self, key: str, columns: Mapping[str, np.ndarray], dropped: Mapping[str, int] | None = None) -> None:
        """Check and keep a chunk; it may have no rows. `dropped`: rule -> rows of this chunk that it left out."""
        files = self._sources.get(key, ())
        hashes = self._files.hashes(files)
        if self._finished is None:
            if key in self._keys:
                raise InputError(f"{key}: added twice; each chunk needs a name of its own")
            checked = check_columns(columns, self._sizes, key)
            counts = {str(rule): int(rows) for rule, rows in (dropped or {}).items() if rows}
            self._files.check_unchanged(files)
            write_chunk(self._chunk(key), key, checked, counts, hashes)
        self._keys[key] = hashes

    def finish(self) -> Records:
        """Put the chunks that were seen in this attempt together, in their order, and open the result."""
        if self._finished is not None:
            if _digest(self._keys) != self._finished.info.keys_sha256:
                raise InputError(f"{self.out} was made of other files; delete it or choose another output folder")
            if self._digest_sources() != self._finished.info.sources_sha256:
                raise InputError(
                    f"{self.out} was made of files that have changed since; delete it or choose another output folder"
                )
            return self._finished
        chunks = [Chunk.read(self._chunk(key), key) for key in self._keys]
        folder = self.partial / "finished"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir()
            self._write(folder, chunks)
            if self.out.is_dir():
                self.out.rmdir()  # it was found empty
            os.rename(folder, self.out)
        except OSError as exc:
            raise InputError(f"cannot write {self.out}: {exc.strerror or exc}; choose another output folder") from exc
        self._remove_partial()
        self._finished = open_records(self.out)
        return self._finished

    def _chunk(self, key: str) -> Path:
        return self.partial / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"

    def _digest_sources(self) -> str:
        return _digest(f"{key}\0{' '.join(hashes)}" for key, hashes in self._keys.items())

    def _find_finished(self) -> Records | None:
        """The result of an earlier, equal conversion; anything else in the way is refused."""
        if not self.out.exists() or (self.out.is_dir() and not any(self.out.iterdir())):
            return None
        if not (self.out / HEADER_FILE).is_file():
            raise InputError(f"{self.out} exists and is no records folder; choose another output folder")
        records = open_records(self.out)
        self._refuse_other(self.out, {name: getattr(records.info, name) for name in self._about})
        self._remove_partial()
        return records

    def _begin(self) -> None:
        """Begin in the partial folder, or continue what is there."""
        file = self.partial / "conversion.json"
        try:
            if file.is_file():
                self._refuse_other(self.partial, json.loads(file.read_text(encoding="utf-8")))
                for leftover in self.partial.glob(".*.tmp"):  # a chunk of which a killed attempt wrote half
                    leftover.unlink()
            else:
                for unknown in self.partial.glob("*.npz"):  # a killed attempt had removed half of the folder
                    unknown.unlink()
                with replacing(file) as stream:
                    stream.write(json.dumps(self._about).encode())
        except OSError as exc:
            raise InputError(f"cannot write {self.partial}: {exc.strerror}; choose another output folder") from exc
        except (json.JSONDecodeError, UnicodeDecodeError) as exc:
            raise InputError(f"{file} is damaged; delete {self.partial} and convert again") from exc

    def _remove_partial(self) -> None:
        """The lock goes last: as long as anything is there, nobody else may begin."""
        if not self.partial.is_dir():
            return
        with contextlib.suppress(OSError):  # what stays behind does no harm
            for path in sorted(self.partial.iterdir(), key=lambda path: path.name == LOCK_FILE):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            self.partial.rmdir()

    def _refuse_changed(self, key: str, hashes: Sequence[str]) -> None:
        kept = Chunk.read(self._chunk(key), key).sources
        changed = [file for file, old, new in zip(self._sources[key], kept, hashes) if old != new]
        if changed or len(kept) != len(hashes):
            what = changed[0] if changed else f"what {key} is made of"
            raise InputError(
                f"{what} has changed since this conversion was begun; delete {self.partial} and convert again"
            )

    def _refuse_other(self, place: Path, about: Mapping[str, Any]) -> None:
        given, wanted = _flat(about) if isinstance(about, dict) else {}, _flat(self._about)
        for name in dict.fromkeys((*wanted, *given)):
            if given.get(name) != wanted.get(name):
                raise InputError(
                    f"{place} holds another conversion ({name}: {given.get(name)!r}, now {wanted.get(name)!r}); "
                    "delete it or choose another output folder"
                )

    def _write(self, folder: Path, chunks: list[Chunk]) -> None:
        filled = [chunk for chunk in chunks if chunk.count]
        dropped: dict[str, int] = {}
        for chunk in chunks:
            for rule, rows in chunk.dropped.items():
                dropped[rule] = dropped.get(rule, 0) + rows
        dropped = dict(sorted(dropped.items()))
        if not filled:
            rules = ", ".join(f"{rule}: {rows}" for rule, rows in dropped.items()) or "nothing was dropped"
            raise InputError(f"{self._about['source']}: no row for split {self._about['split']!r} ({rules})")
        names = filled[0].dtypes
        for chunk in filled:
            if chunk.dtypes.keys() != names.keys():
                odd = sorted(chunk.dtypes.keys() ^ names.keys())
                raise InputError(f"{chunk.key}: {', '.join(odd)} in only one of this chunk and {filled[0].key}")
        count = sum(chunk.count for chunk in filled)
        widest = {name: max((chunk.dtypes[name] for chunk in filled), key=lambda d: d.itemsize) for name in names}
        with contextlib.ExitStack() as stack:
            files = {
                name: stack.enter_context(ColumnFile(folder / f"{name}.npy", (count, *filled[0].rows[name]), dtype))
                for name, dtype in widest.items()
            }
            for chunk in filled:
                for name, array in chunk.arrays().items():
                    files[name].append(array)
            columns = {name: file.finish() for name, file in files.items()}
        header = {**self._about, "count": count, "dropped": dropped}
        digests = {"keys_sha256": _digest(self._keys), "sources_sha256": self._digest_sources()}
        write_header(folder, {**header, **digests, "columns": columns})


def _flat(about: Mapping[str, Any]) -> dict[str, Any]:
    """The settings one by one, so that an error can name the one that is another."""
    settings = about.get("settings")
    named = {f"settings.{name}": value for name, value in settings.items()} if isinstance(settings, dict) else {}
    return {name: value for name, value in about.items() if name != "settings"} | named


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
