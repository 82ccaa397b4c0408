"""Training state on disk: complete, sealed, atomic, bounded in number, and read without executing anything.

A checkpoint is what `torch.save` writes, followed by a seal: a marker, the length of what stands before it and its
SHA-256. A file that was cut, torn or altered in one bit does not match its seal and is refused.
"""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import re
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import torch

from mesh.errors import InputError, require

_MARK = b"meshrecovery-seal-1\n"
_SEAL_SIZE = len(_MARK) + 8 + hashlib.sha256().digest_size
_CHUNK = 1 << 20
_NAME = re.compile(r"step_(\d+)\.pt")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written and which of them stay.

    At no instant are there more than keep_last + keep_best + 1 files, beside those that `keep_every` asks for.
    """

    every_steps: int = 500  # 0: only at a new best and by the clock
    every_minutes: float = 10.0  # 0: not by the clock
    keep_last: int = 2
    keep_best: int = 1
    keep_every: int = 0  # the checkpoints of every so many steps stay as well; 0: none
    metric: str | None = None  # the validation score that makes a checkpoint the best; none: the stage's own
    mode: Literal["min", "max"] = "min"
    on_finish: Literal["best_and_last", "best_only"] = "best_and_last"

    def __post_init__(self) -> None:
        require(self.keep_last >= 1, f"checkpoint.keep_last must be at least 1, got {self.keep_last}")
        for name in ("keep_best", "keep_every", "every_steps", "every_minutes"):
            require(getattr(self, name) >= 0, f"checkpoint.{name} must not be negative, got {getattr(self, name)}")
        require(
            self.on_finish != "best_only" or self.keep_best >= 1,
            "checkpoint.on_finish is best_only, which needs checkpoint.keep_best of at least 1",
        )

    def is_better(self, score: float, best: float | None) -> bool:
        """Whether a score beats the best so far."""
        if best is None:
            return not math.isnan(score)
        return score < best if self.mode == "min" else score > best

    def retained(self, steps: Iterable[int], scores: Mapping[int, float], *, finished: bool = False) -> set[int]:
        """Which of the checkpoints at `steps` stay; `scores` are those of the validated ones among them."""
        steps = sorted(steps)
        sign = 1 if self.mode == "min" else -1
        validated = [step for step in steps if step in scores and not math.isnan(scores[step])]
        best = sorted(validated, key=lambda step: (sign * scores[step], step))[: self.keep_best]
        keep_last = self.keep_last if not finished else 1 if self.on_finish == "best_and_last" or not best else 0
        every = [step for step in steps if self.keep_every and step % self.keep_every == 0]
        return {*best, *every, *steps[len(steps) - min(keep_last, len(steps)) :]}


class _Hashing:
    """Counts and digests what is written through it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest, self.length = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.length += len(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _sync_folder(folder: Path) -> None:
    """Make renames and removals in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write plain types and tensors, sealed; a run killed meanwhile leaves the previous file, never half a one.

    Written under a temporary name, flushed to the disk, read back and checked, renamed, and the folder flushed. A write
    that fails takes its temporary file away and raises OSError.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            hashing = _Hashing(file)
            try:
                torch.save(dict(state), hashing)  # type: ignore[arg-type]
            except RuntimeError as exc:
                # torch wraps what its file object raises
                if isinstance(exc.__context__, OSError):
                    raise exc.__context__ from None
                raise
            length = hashing.length.to_bytes(8, "little")
            file.write(_MARK + length + hashing.digest.digest())
            file.flush()
            os.fsync(file.fileno())
        reason = _damage(temporary)
        if reason:
            raise OSError(0, f"what was written reads back damaged ({reason})")
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _damage(path: Path) -> str | None:
    """Why a file does not match its seal; None if it does."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= _SEAL_SIZE:
            return f"it is cut short, {size} bytes"
        digest, left = hashlib.sha256(), size - _SEAL_SIZE
        file.seek(left)
        seal = file.read(_SEAL_SIZE)
        if not seal.startswith(_MARK):
            return "it does not end in a seal: cut short, or not a checkpoint of this program"
        if int.from_bytes(seal[len(_MARK) : len(_MARK) + 8], "little") != left:
            return f"its seal speaks of another length than its {left} bytes"
        file.seek(0)
        while left > 0:
            chunk = file.read(min(_CHUNK, left))
            if not chunk:
                return "it is cut short"
            digest.update(chunk)
            left -= len(chunk)
    return None if digest.digest() == seal[len(_MARK) + 8 :] else "its content does not match its checksum"


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint; a damaged one, and anything but tensors and plain types in it, is refused."""
    if not path.is_file():
        raise InputError(f"no checkpoint {path}: give a run folder or a file of its checkpoints/")
    try:
        reason = _damage(path)
        if reason:
            raise InputError(f"{path} is not a readable checkpoint: {reason}")
        state = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as exc:
        raise InputError(f"{path} is not a readable checkpoint: it holds more than tensors and plain values") from exc
    except (RuntimeError, EOFError, OSError) as exc:
        raise InputError(f"{path} is not a readable checkpoint: {str(exc).splitlines()[0]}") from exc
    if not isinstance(state, dict):
        raise InputError(f"{path} is not a checkpoint of this program: it holds a {type(state).__name__}")
    return state


def _copy(value: Any) -> Any:
    """The same nest of dicts and lists with every tensor copied to main memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copy(item) for item in value]
    return value


class CheckpointFolder:
    """The checkpoints of one run: written in the background, the newest good one found, the old ones removed.

    Only the process that holds the run's lock may write here.
    """

    def __init__(
        self, path: Path, config: CheckpointConfig, scores: Mapping[int, float] | None = None, *, begun: int
    ) -> None:
        """`scores` are those of the validated steps so far; `begun` is the step that the run goes on from.

        What a killed run had no time to remove goes now. Later checkpoints, which did not match their seals, are put
        aside as `.damaged`.
        """
        self.path, self.config = path, config
        self.scores = dict(scores or {})
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._saved_at = time.monotonic()
        for step in self.steps():
            if step > begun:
                self.file(step).rename(f"{self.file(step)}.damaged")
        self._prune(config.retained(self.steps(), self.scores))

    def steps(self) -> list[int]:
        """Steps of the files that are there, ascending."""
        return checkpoint_steps(self.path)

    def file(self, step: int) -> Path:
        """Where the checkpoint of a step lives."""
        return self.path / f"step_{step:08d}.pt"

    def is_due(self, step: int) -> bool:
        """Whether a step ends an interval, in steps or in minutes. Raises what a finished write has met."""
        if self._pending is not None and self._pending.done():
            self.wait()
        every, minutes = self.config.every_steps, self.config.every_minutes
        return bool(every and step % every == 0) or bool(minutes and time.monotonic() - self._saved_at >= 60 * minutes)

    def save(self, state: Mapping[str, Any], step: int, score: float | None = None) -> None:
        """Copy the state and write it in the background; the previous write is waited for and its errors raised."""
        self.wait()
        if score is not None:
            self.scores[step] = score
        self._saved_at = time.monotonic()
        self._pending = self._writer.submit(self._write, _copy(state), step)

    def _write(self, state: dict[str, Any], step: int) -> None:
        try:
            save_checkpoint(self.file(step), state)
            self._prune(self.config.retained(self.steps(), self.scores))
        except OSError as exc:
            good = [f"step {s}" for s in self.steps() if s != step][-1:]
            left = f"the last good one is {good[0]}" if good else "there is no earlier one"
            reason = exc.strerror or exc
            raise InputError(
                f"cannot write the checkpoint {self.file(step)}: {reason}; {left}; make room, then --resume"
            ) from exc

    def _prune(self, keep: set[int]) -> None:
        doomed = [step for step in self.steps() if step not in keep]
        for step in doomed:
            self.file(step).unlink()
        if doomed:
            _sync_folder(self.path)

    def wait(self) -> None:
        """Until everything is on the disk; raises what the writing raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self, *, finished: bool = False) -> None:
        """Wait, and after a finished training keep only what `on_finish` asks for."""
        try:
            self.wait()
            if finished:
                self._prune(self.config.retained(self.steps(), self.scores, finished=True))
        finally:
            self._writer.shutdown()


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, ascending, unread."""
    if not folder.is_dir():
        return []
    return sorted(int(match[1]) for file in folder.iterdir() if (match := _NAME.fullmatch(file.name)))


def newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any], list[str]] | None:
    """The newest whole checkpoint, its state, and what was wrong with the newer ones; None if there is no file.

    Only a broken seal makes one fall back to the file before it. Raises InputError if there are checkpoints and none is
    whole (to start again silently would bury them), and if the disk cannot be read or a whole file cannot be loaded.
    """
    steps = checkpoint_steps(folder)
    damaged: list[str] = []
    for step in reversed(steps):
        path = folder / f"step_{step:08d}.pt"
        try:
            reason = _damage(path)
        except OSError as exc:
            raise InputError(f"cannot read the checkpoint {path}: {exc.strerror or exc}; try again") from exc
        if reason is None:
            return path, load_checkpoint(path), damaged
        damaged.append(f"{path} is not a readable checkpoint: {reason}")
    if steps:
        raise InputError(f"none of the {len(steps)} checkpoints can be read: {'; '.join(damaged)}")
    return None


def remove_leftovers(folder: Path) -> None:
    """Take away the half-written files of a killed run."""
    for file in folder.glob(".step_*.pt.tmp"):
        file.unlink()
