"""Reading .npz and .npy files from strangers."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Container
from pathlib import Path

import numpy as np

from mesh.errors import InputError

# What numpy raises for damaged files: its header parser the first two, encrypted or odd archives RuntimeError.
_UNREADABLE = (
    *(tokenize.TokenError, SyntaxError, ValueError, EOFError, OSError, MemoryError, RuntimeError, AttributeError),
    *(zipfile.BadZipFile, zlib.error),
)


def read_arrays(path: Path, expected: str, only: Container[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of a .npz by name, or that of a .npy under ""; objects, which are pickles, are never read.

    `expected` says what the file should have been, for the error. With `only`, the other arrays are left alone.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected {expected}")
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {"": loaded}
            return {key: loaded[key] for key in loaded.files if only is None or key in only}
    except _UNREADABLE as exc:
        reason = "it holds pickled objects" if "pickle" in str(exc) else " ".join(str(exc).split())
        raise InputError(f"{path}: not a whole .npz or .npy file without pickles ({expected}): {reason}") from exc
