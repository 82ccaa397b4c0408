"""What a conversion keeps while it is not finished: one `.npz` for each chunk of rows."""

from __future__ import annotations

import contextlib
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.record_files import sync
from mesh.errors import InputError
from mesh.files import replacing

_ABOUT = "_about"  # beside the columns: the key, and what can be known without reading them


def write_chunk(
    path: Path, key: str, columns: Mapping[str, np.ndarray], dropped: Mapping[str, int], sources: Sequence[str]
) -> None:
    """Keep a chunk, made of files with the hashes `sources`; it is on disk, whole, when this returns."""
    kinds = {name: (array.dtype.str, array.shape[1:]) for name, array in columns.items()}
    count = len(next(iter(columns.values()))) if columns else 0
    about = {"key": key, "count": count, "dropped": dict(dropped), "columns": kinds, "sources": list(sources)}
    with replacing(path) as file:
        np.savez(file, **{_ABOUT: np.array(json.dumps(about))}, **columns)  # type: ignore[arg-type]
        sync(file)


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A kept chunk: types and row shapes of its columns; the arrays stay on disk until they are asked for."""

    path: Path
    key: str
    count: int
    dropped: Mapping[str, int]
    sources: Sequence[str]
    dtypes: Mapping[str, np.dtype]
    rows: Mapping[str, tuple[int, ...]]

    @classmethod
    def read(cls, path: Path, key: str) -> Chunk:
        with _opened(path) as archive:
            about = json.loads(str(archive[_ABOUT]))
        columns = about["columns"].items()
        return cls(
            path=path,
            key=key,
            count=about["count"],
            dropped=about["dropped"],
            sources=about["sources"],
            dtypes={name: np.dtype(dtype) for name, (dtype, _) in columns},
            rows={name: tuple(shape) for name, (_, shape) in columns},
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """The columns."""
        with _opened(self.path) as archive:
            return {name: archive[name] for name in self.dtypes}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Mapping[str, np.ndarray]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            yield archive
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as exc:
        raise InputError(f"{path.parent} is damaged ({exc}); delete it and convert again") from exc
