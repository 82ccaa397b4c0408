"""Unpickling without running anything that the pickle holds.

A pickle is a program. Here the classes and functions that it mentions stay mere `_Name`s, so nothing on its stack can
be called; the few in `_MAKERS` are acted on by code of ours. Not even `numpy.dtype` is handed over: a forged state
makes numpy follow pointers that the file invented.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeGuard

import numpy as np

DAMAGED = (
    pickle.UnpicklingError,
    struct.error,
    EOFError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    OverflowError,
    MemoryError,
    RecursionError,
)


class Refused(Exception):
    """What a pickle asks for and does not get."""


@dataclass(frozen=True)
class _Name:
    """A class or function that a pickle mentions: its words alone."""

    path: str


@dataclass(eq=False, repr=False)
class Placeholder:
    """A chumpy or scipy.sparse object as inert data: the name of its class and its attributes."""

    origin: str
    state: dict[str, Any] = field(default_factory=dict)


def unpickle(content: bytes) -> object:
    """Containers, texts, numbers, numpy arrays and `Placeholder`s; `Refused` or one of `DAMAGED` otherwise."""
    if not content.endswith(pickle.STOP):  # else names cut in the middle would be reported as forbidden ones
        raise pickle.UnpicklingError("no STOP at the end")
    return _Reader(content).load()


class _Dtype:
    """What a pickle says about a dtype: type code and, later, byte order. Plain types only, no records."""

    def __init__(self, code: str, align: object = False, copy: object = True) -> None:
        if not re.fullmatch(r"[?biufcSUO]\d{0,9}", code):
            raise Refused(f"numpy type {shown(code)} is not allowed")
        self.dtype = np.dtype(code)
        if not self.dtype.itemsize:
            raise Refused("numpy type of zero size is not allowed")

    def set_state(self, state: tuple[Any, ...]) -> None:
        _version, order, subarray, names, fields, *_size_and_flags = state
        if any(part is not None for part in (subarray, names, fields)):
            raise Refused("numpy record type is not allowed")
        self.dtype = self.dtype.newbyteorder(order)


def shown(words: str) -> str:
    """Words of a file, safe to print in one line."""
    return words[:80].encode("unicode_escape").decode()


def checked_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape as given, if it is one that an array of a file can have."""
    if not isinstance(shape, tuple) or len(shape) > 32 or not all(isinstance(n, int) for n in shape):
        raise Refused("array shape that is no tuple of integers is not allowed")
    if not all(0 <= n < 2**40 for n in shape):
        raise Refused("array of negative or absurd size is not allowed")
    return shape


def _check_entries(target: object, keys: Iterable[object]) -> None:
    if type(target) is not dict:
        raise Refused(f"setting items of {type(target).__name__} is not allowed")
    _check_keys(keys)


def _check_keys(keys: Iterable[object]) -> None:
    """Texts and numbers only: hashing nested tuples can take forever."""
    for key in keys:
        if not isinstance(key, (str, bytes, int, float, np.generic, type(None))):
            raise Refused(f"{type(key).__name__} as dict key or set member is not allowed")


def _raw_bytes(raw: object) -> bytes:
    """Array data; Python 2 wrote them as text, which latin1 maps back byte by byte."""
    if isinstance(raw, str):
        return raw.encode("latin1")
    if isinstance(raw, (bytes, bytearray)):
        return bytes(raw)
    raise Refused(f"array data of type {type(raw).__name__} is not allowed")


def _raw_list(raw: object) -> list[Any]:
    if not isinstance(raw, list):
        raise Refused(f"object array data of type {type(raw).__name__} is not allowed")
    return raw


def _fill(array: np.ndarray, state: tuple[Any, ...]) -> None:
    """Give an empty array its shape, type and data."""
    _version, shape, told, is_fortran, raw = state
    if not isinstance(told, _Dtype):
        raise Refused("array with a forged type is not allowed")
    dtype = told.dtype
    data, item_size = (_raw_list(raw), 1) if dtype.hasobject else (_raw_bytes(raw), dtype.itemsize)
    if len(data) != math.prod(checked_shape(shape)) * item_size:
        raise Refused(f"array of shape {shape} with data for {len(data) // item_size} entries is not allowed")
    array.__setstate__((1, shape, dtype, bool(is_fortran), data))  # type: ignore[arg-type]  # numpy takes Python bools


def _make_array(kind: object, shape: object, code: object) -> np.ndarray:
    if kind != _Name("numpy.ndarray"):
        raise Refused("array of another class than numpy.ndarray is not allowed")
    return np.empty(0)  # filled by the state that follows


def _make_array_from_buffer(
    buffer: object, dtype: object, shape: tuple[int, ...], order: str, axes: tuple[int, ...] | None = None
) -> np.ndarray:
    array = np.empty(0)
    _fill(array, (1, shape, dtype, order == "F", buffer))
    return array if axes is None else array.transpose(axes).copy()


def _make_scalar(dtype: object, raw: object) -> object:
    array = np.empty(0)
    _fill(array, (1, (), dtype, False, raw))
    return array[()]


def _make_placeholder(kind: object, base: object, state: object) -> Placeholder:
    if not _is_inert(kind) or base != _Name("builtins.object") or state is not None:
        raise Refused("copyreg._reconstructor of anything but a chumpy or sparse object is not allowed")
    return Placeholder(kind.path)


def _make_bytes(text: str = "", encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise Refused(f"encoding {shown(encoding)} is not allowed")
    return text.encode("latin1")


def _make_set(members: list[Any]) -> set[Any]:
    _check_keys(members)
    return set(members)


def _make_dict(items: list[Any] | tuple[()] = ()) -> dict[Any, Any]:
    _check_keys(key for key, _ in items)
    return dict(items)


_MAKERS: dict[str, Callable[..., object]] = {
    "numpy._core.multiarray._reconstruct": _make_array,
    "numpy._core.multiarray.scalar": _make_scalar,
    "numpy._core.numeric._frombuffer": _make_array_from_buffer,
    "numpy.dtype": _Dtype,
    "copyreg._reconstructor": _make_placeholder,
    "_codecs.encode": _make_bytes,
    "builtins.bytes": _make_bytes,
    "builtins.set": _make_set,
    "collections.OrderedDict": _make_dict,
}
_ARGUMENTS = ("numpy.ndarray", "builtins.object")
_INERT = re.compile(r"chumpy(\.\w+)+|scipy\.sparse\.(_?csc\.csc|_?csr\.csr)_matrix")
_OLD_SPELLINGS = {"__builtin__.": "builtins.", "copy_reg.": "copyreg.", "numpy.core.": "numpy._core."}
_REFUSED_INSTRUCTIONS = (
    "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "NEXT_BUFFER", "READONLY_BUFFER",
)  # fmt: skip


def _is_inert(name: object) -> TypeGuard[_Name]:
    return isinstance(name, _Name) and _INERT.fullmatch(name.path) is not None


def _refuse_instruction(word: str) -> Callable[[Any], None]:
    def load(reader: _Reader) -> None:
        raise Refused(f"pickle instruction {word} is not allowed")

    return load


_PythonUnpickler: Any = pickle._Unpickler  # not the one in C: only here can instructions be replaced


class _Reader(_PythonUnpickler):
    """Python's unpickler with the instructions that call, build or hash replaced by careful ones."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")
        self._budget = 4 * len(content)  # of bytes and items copied: honest files need twice their size

    def find_class(self, module: str, name: str) -> _Name:
        path = f"{module}.{name}"
        for old, new in _OLD_SPELLINGS.items():
            if path.startswith(old):
                path = new + path.removeprefix(old)
        if path not in _MAKERS and path not in _ARGUMENTS and not _INERT.fullmatch(path):
            raise Refused(f"{shown(path)} is not allowed")
        return _Name(path)

    def load_reduce(self) -> None:
        args = self.stack.pop()
        name = self.stack[-1]
        if not isinstance(name, _Name) or name.path not in _MAKERS:
            raise Refused(f"call of {shown(getattr(name, 'path', type(name).__name__))} is not allowed")
        self._spend(args)
        self.stack[-1] = _MAKERS[name.path](*args)

    def load_newobj(self) -> None:
        args = self.stack.pop()
        name = self.stack[-1]
        if not _is_inert(name) or args != ():
            raise Refused("new object of anything but a chumpy or sparse class is not allowed")
        self.stack[-1] = Placeholder(name.path)

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, np.ndarray):
            self._spend(state)
            _fill(target, state)
        elif isinstance(target, _Dtype):
            target.set_state(state)
        elif isinstance(target, Placeholder) and isinstance(state, dict):
            target.state = state
        else:
            raise Refused(f"setting the state of {type(target).__name__} is not allowed")

    def load_bytearray8(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.stack.append(bytearray(self.read(size)))  # Python's own allocates the claimed size first

    def _spend(self, values: Iterable[object]) -> None:
        """Stop a small file that unpacks to far more than it holds, by copying one big item again and again."""
        self._budget -= sum(len(v) for v in values if isinstance(v, (str, bytes, bytearray, list)))
        if self._budget < 0:
            raise Refused("unpacking to far more than the file's size is not allowed")

    def load_setitem(self) -> None:
        _check_entries(self.stack[-3], self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        _check_entries(self.metastack[-1][-1], self.stack[::2])
        super().load_setitems()

    def load_dict(self) -> None:
        _check_keys(self.stack[::2])
        super().load_dict()

    def load_additems(self) -> None:
        _check_keys(self.stack)
        super().load_additems()

    def load_frozenset(self) -> None:
        _check_keys(self.stack)
        super().load_frozenset()

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        **{getattr(pickle, word)[0]: _refuse_instruction(word) for word in _REFUSED_INSTRUCTIONS},
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.BUILD[0]: load_build,
        pickle.BYTEARRAY8[0]: load_bytearray8,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.ADDITEMS[0]: load_additems,
        pickle.FROZENSET[0]: load_frozenset,
    }
