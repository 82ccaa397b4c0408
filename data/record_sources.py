"""What a conversion depends on: its options, and the content of the files that it reads."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mesh.errors import InputError

_BLOCK_BYTES = 1 << 20


def settings_of(options: Any, *files: str) -> dict[str, Any]:
    """The options of a reader; those that name `files` as bare names, since the content counts and not the place."""
    settings = asdict(options)
    return settings | {name: Path(settings[name]).name for name in files if settings[name]}


class SourceFiles:
    """Hashes of files, each of which is read once."""

    def __init__(self) -> None:
        self._hashes: dict[Path, str] = {}
        self._stamps: dict[Path, tuple[int, int]] = {}

    def hashes(self, files: Sequence[Path]) -> list[str]:
        """The sha256 of each file."""
        return [self._hash(Path(file)) for file in files]

    def _hash(self, file: Path) -> str:
        if file not in self._hashes:
            digest = hashlib.sha256()
            try:
                self._stamps[file] = _stamp(file)
                with file.open("rb") as stream:
                    while block := stream.read(_BLOCK_BYTES):
                        digest.update(block)
            except OSError as exc:
                raise InputError(f"{file} cannot be read: {exc.strerror}") from exc
            self._hashes[file] = digest.hexdigest()
        return self._hashes[file]

    def check_unchanged(self, files: Sequence[Path]) -> None:
        """Refuse what was written to since it was hashed: what was read of it may be anything."""
        for file in map(Path, files):
            try:
                same = _stamp(file) == self._stamps[file]
            except OSError:
                same = False
            if not same:
                raise InputError(f"{file} changed while it was converted; convert again when it is complete")


def _stamp(file: Path) -> tuple[int, int]:
    """Size and time of the last change."""
    status = file.stat()
    return status.st_size, status.st_mtime_ns
