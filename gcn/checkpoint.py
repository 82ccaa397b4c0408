"""Training state on disk: complete, atomic, and read without executing anything."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from mesh.errors import InputError


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write plain types and tensors; a killed run leaves the previous file, never half a one."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint; anything but tensors and plain types in it is refused."""
    if not path.is_file():
        raise InputError(f"no checkpoint {path}: give a run folder that holds one, or start without --resume")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as exc:
        raise InputError(f"{path} is not a readable checkpoint: {str(exc).splitlines()[0]}") from exc
    if not isinstance(state, dict):
        raise InputError(f"{path} is not a checkpoint of this program: it holds a {type(state).__name__}")
    return state
