"""Pickled model and data files, read without running anything in them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mesh.errors import InputError
from mesh.unpickling import DAMAGED, Placeholder, Refused, checked_shape, shown, unpickle

SMPL_KEYS = ("v_template", "f", "weights", "J_regressor", "kintree_table", "shapedirs", "posedirs")
OPTIONAL_SMPL_KEYS = ("J", "J_regressor_coco", "J_regressor_h36m", "mirror")
MAX_DENSE_ENTRIES = 2**24  # of a sparse matrix made dense; SMPL's joint regressor has 165 360


def read_pickle(path: str | Path) -> object:
    """Containers, texts, numbers and numpy arrays of a pickle, also of one written by Python 2.

    chumpy and scipy.sparse objects come as `Placeholder`, an OrderedDict as dict. Everything else is refused with
    InputError, and so are record arrays and dict keys or set members other than texts and numbers.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise InputError(f"cannot read {path}: {exc.strerror}") from exc
    with _one_clear_line(path):
        return unpickle(content)


def read_smpl_pickle(path: str | Path) -> dict[str, np.ndarray]:
    """Plain dense arrays of an SMPL model file under their SMPL names, values and types as stored."""
    model = read_pickle(path)
    if not isinstance(model, dict):
        raise InputError(f"{path} holds a {type(model).__name__}; an SMPL model is a dict with {', '.join(SMPL_KEYS)}")
    missing = [key for key in SMPL_KEYS if key not in model]
    if missing:
        raise InputError(f"{path} is no SMPL model: it lacks {', '.join(missing)}")
    with _one_clear_line(path):
        return {key: _dense(model[key], key) for key in SMPL_KEYS + OPTIONAL_SMPL_KEYS if key in model}


@contextmanager
def _one_clear_line(path: str | Path) -> Iterator[None]:
    try:
        yield
    except Refused as exc:
        raise InputError(f"refused {path}: {exc} in a body or data file; nothing in it was run") from exc
    except DAMAGED as exc:
        raise InputError(f"{path} is damaged, cut short or no pickle file ({type(exc).__name__}); get it anew") from exc


def _dense(value: object, key: str) -> np.ndarray:
    """The numbers behind an array, a chumpy object or a sparse matrix."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return value
    origin = value.origin if isinstance(value, Placeholder) else type(value).__name__
    state = value.state if isinstance(value, Placeholder) else {}
    match origin.rpartition(".")[2]:
        case "Ch" if "x" in state:
            return _dense(state["x"], key)
        case "Select" if "a" in state and "idxs" in state:
            chosen = _dense(state["a"], key).ravel()[_dense(state["idxs"], key)]
            return chosen.reshape(state.get("preferred_shape", chosen.shape))
        case "csc_matrix" | "csr_matrix" as kind:
            return _dense_from_sparse(kind, state, key)
    raise Refused(f"{key} of type {shown(origin)} is not allowed")


def _dense_from_sparse(kind: str, state: dict[str, Any], key: str) -> np.ndarray:
    """Rows or columns as scipy stores them, made dense by numpy, which checks every index; scipy does not."""
    shape = checked_shape(state["_shape"])
    if math.prod(shape) > MAX_DENSE_ENTRIES:
        raise Refused(f"sparse {key} of shape {shape} is not allowed")
    data, indices, starts = (_dense(state[part], key) for part in ("data", "indices", "indptr"))
    num_lines, num_entries = shape if kind == "csr_matrix" else shape[::-1]
    if indices.dtype.kind not in "iu" or starts.dtype.kind not in "iu" or not data.ndim == indices.ndim == 1:
        raise Refused(f"sparse {key} with such indices is not allowed")
    starts = starts.astype(np.int64)
    ordered = (
        starts.shape == (num_lines + 1,) and starts[0] == 0 and (starts >= 0).all() and (np.diff(starts) >= 0).all()
    )
    if not ordered or not len(data) == len(indices) == starts[-1] or (indices < 0).any():
        raise Refused(f"sparse {key} with contradictory indices is not allowed")
    dense = np.zeros((num_lines, num_entries), data.dtype)
    np.add.at(dense, (np.repeat(np.arange(num_lines), np.diff(starts)), indices), data)
    return dense if kind == "csr_matrix" else dense.T
