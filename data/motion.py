"""Captured motion of a skeleton, whatever the file format: the rotation of each bone in the world over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from scipy.spatial.transform import Rotation

from mesh.errors import InputError

LARGEST = 1e6  # beyond it no angle, length or time in a file means anything
UNIT_M = 0.0254  # of the scaled lengths of the CMU files: 0.45 units to the inch


@dataclass(frozen=True, kw_only=True)
class Motion:
    """`rotations` bone -> (T,) in the world, identity in the zero pose; `directions` bone -> (3,) unit vector from its
    joint to the next, in the zero pose; `root_m` (T, 3) metres, y up.
    """

    rotations: Mapping[str, Rotation]
    directions: Mapping[str, np.ndarray]
    root_m: np.ndarray


class MotionFile(Protocol):
    """A file that has been read: how long it is, and its motion at some frames (n,)."""

    @property
    def num_frames(self) -> int: ...

    @property
    def rate(self) -> float | None:
        """Frames per second, where the file says so."""

    def motion(self, frames: np.ndarray) -> Motion: ...


def read_lines(path: Path, expected: str) -> list[str]:
    """The lines of a text file without blanks around them; empty lines are left out."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected {expected}")
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as exc:
        raise InputError(f"cannot read {path}: {exc.strerror}") from exc
    return [line for line in map(str.strip, text.splitlines()) if line]


def numbers(words: Sequence[str], count: int, where: str) -> np.ndarray:
    """That many numbers that can mean something, or an error that says where they should be."""
    try:
        values = np.array([float(word) for word in words])
    except ValueError as exc:
        raise InputError(f"{where}: expected numbers, got {' '.join(words)[:60]!r}") from exc
    if len(values) != count or not (np.abs(values) < LARGEST).all():
        raise InputError(f"{where}: expected {count} finite numbers, got {' '.join(words)[:60]!r}")
    return values


def unit(vector: np.ndarray, where: str) -> np.ndarray:
    """Of length one; refuses a vector without a direction."""
    length = float(np.linalg.norm(vector))
    if length < 1e-9:
        raise InputError(f"{where}: a bone without direction")
    return vector / length
