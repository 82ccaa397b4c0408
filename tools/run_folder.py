"""`runs/<name>/`: where a run keeps what it makes, and from where it goes on."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gcn.checkpoint import load_checkpoint, newest_checkpoint, remove_leftovers
from mesh.errors import InputError
from mesh.files import replacing
from mesh.lock import LOCK_FILE, FolderLock


class RunFolder:
    """One run's folder. Made once; an existing one is only ever continued, by one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.metrics, self.log = path / "config.yaml", path / "metrics.jsonl", path / "log.txt"
        self.checkpoints, self.plots, self.samples = path / "checkpoints", path / "plots", path / "samples"
        self.weights, self.events = path / "weights.safetensors", path / "events"
        self._lock = FolderLock(path, f"run folder {path}")

    def create(self) -> None:
        """Make the folder, which must not exist, and lock it."""
        try:
            self.path.mkdir(parents=True)
        except FileExistsError as exc:
            raise InputError(
                f"run folder {self.path} exists; continue it with --resume or choose another --name"
            ) from exc
        except OSError as exc:
            raise InputError(f"cannot make the run folder {self.path}: {exc.strerror}") from exc
        self.lock()

    def lock(self) -> None:
        """Keep other processes out until this one ends, however it ends."""
        self._lock.acquire()

    def unlock(self) -> None:
        """Let others in."""
        self._lock.release()

    def unlocked_on_failure(self) -> AbstractContextManager[None]:
        """Let others in if the block fails."""
        return self._lock.released_on_failure()

    def prepare(self, config: str, step: int, *, owes_validation: bool) -> None:
        """Write the config, drop what a killed run left behind, and forget the metrics that come after `step`.

        A run that still owes the validation of that step forgets its scores as well.
        """
        self.checkpoints.mkdir(exist_ok=True)
        remove_leftovers(self.checkpoints)
        with replacing(self.config) as file:
            file.write(config.encode())
        if self.metrics.is_file():
            kept = [
                row
                for row in self.rows()
                if row["step"] < step or (row["step"] == step and ("loss" in row or not owes_validation))
            ]
            with replacing(self.metrics) as file:
                file.write("".join(json.dumps(row) + "\n" for row in kept).encode())

    def add_row(self, row: Mapping[str, float]) -> None:
        """One line of metrics.jsonl."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, float]]:
        """The lines of metrics.jsonl; what a killed run wrote half of is left out."""
        rows = []
        for line in self.metrics.read_text().splitlines() if self.metrics.is_file() else ():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return [row for row in rows if isinstance(row, dict) and "step" in row and "epoch" in row]


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run begins: its locked folder, and what an earlier one saved (None: from the beginning)."""

    folder: RunFolder
    saved: dict[str, Any] | None = None


def find_start(runs: Path, name: str | None, resume: str | None, *, default_name: str) -> Start:
    """From the command line to a beginning.

    `resume` is None (a new run), "" (the run of that name goes on), a run folder or a checkpoint file. A folder or
    file together with the `name` of another run starts that one as a branch, and leaves the first as it is.
    """
    if name is not None and (Path(name).name != name or name in ("", ".", "..")):
        raise InputError(f"--name {name!r}: expected a plain name; where run folders live is --runs")
    folder = RunFolder(runs / (name or default_name))
    if resume is None:
        if folder.path.exists():
            raise InputError(_exists(folder))
        return Start(folder=folder)
    if resume == "":
        return _go_on(folder)
    given = Path(resume)
    if not given.exists():
        raise InputError(f"nothing to resume: {given} does not exist; expected a run folder or a checkpoint file")
    origin = RunFolder(given if given.is_dir() else given.resolve().parent.parent)
    if name is None or folder.path.resolve() == origin.path.resolve():
        if given.is_dir():
            return _go_on(origin)
        return _go_on_from(origin, given)
    if folder.path.exists():
        raise InputError(_exists(folder))
    saved = load_checkpoint(given) if given.is_file() else _newest(origin)
    if saved is None:
        raise InputError(f"nothing to resume: {origin.checkpoints} holds no checkpoint")
    return Start(folder=folder, saved=saved)


def _exists(folder: RunFolder) -> str:
    return f"run folder {folder.path} exists; continue it with --resume alone or choose another --name"


def _go_on(folder: RunFolder) -> Start:
    """An existing run, from its newest good checkpoint; from the beginning if it never got to one."""
    if not folder.path.is_dir():
        raise InputError(f"nothing to resume: there is no run folder {folder.path}")
    if not any(file.exists() for file in (folder.config, folder.checkpoints, folder.path / LOCK_FILE)):
        raise InputError(f"nothing to resume: {folder.path} is not a run folder, it has no config.yaml")
    folder.lock()
    with folder.unlocked_on_failure():
        saved = _newest(folder)
    if saved is None:
        print(f"note: {folder.path} has no checkpoint yet: it starts from the beginning", file=sys.stderr)
    return Start(folder=folder, saved=saved)


def _go_on_from(folder: RunFolder, file: Path) -> Start:
    """An existing run, from a named checkpoint, which must be its newest good one: nothing is thrown away."""
    if file.resolve().parent != folder.checkpoints.resolve():
        raise InputError(f"{file} does not lie in a run's checkpoints/: give the new run a --name")
    folder.lock()
    with folder.unlocked_on_failure():
        saved = load_checkpoint(file)
        newest = newest_checkpoint(folder.checkpoints)
        if newest is not None and newest[0].resolve() != file.resolve():
            raise InputError(
                f"{folder.path} has the newer checkpoint {newest[0].name}: go on from there with "
                f"--resume {folder.path}, or branch off from {file.name} with another --name"
            )
    return Start(folder=folder, saved=saved)


def _newest(folder: RunFolder) -> dict[str, Any] | None:
    newest = newest_checkpoint(folder.checkpoints)
    if newest is None:
        return None
    path, saved, damaged = newest
    for reason in damaged:
        print(f"note: {reason}; going back to {path.name}", file=sys.stderr)
    return saved
