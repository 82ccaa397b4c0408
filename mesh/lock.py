"""A folder that only one process at a time writes to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mesh.errors import InputError

LOCK_FILE = ".lock"
_ATTEMPTS = 100


class FolderLock:
    """Keeps other processes out of a folder from `acquire` to `release`, or until this process ends, however it ends.

    `name` is what an error calls the folder.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._descriptor: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy in another process holds no lock."""
        return {**vars(self), "_descriptor": None}

    def acquire(self) -> None:
        """Make the folder if it is not there, and lock it; refused while another process holds it."""
        descriptor = self._locked_file()
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._descriptor = descriptor
        # A data worker that outlives a killed run for a moment must not hold its lock; closing the copy leaves ours.
        os.register_at_fork(after_in_child=self.release)

    def release(self) -> None:
        """Let others in."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep others out during the block, and leave no lock file."""
        self.acquire()
        try:
            yield
        finally:
            if self._descriptor is not None and self._is_current(self._descriptor):
                with contextlib.suppress(OSError):
                    (self._folder / LOCK_FILE).unlink()
            self.release()

    @contextlib.contextmanager
    def released_on_failure(self) -> Iterator[None]:
        """Let others in if the block fails."""
        try:
            yield
        except BaseException:
            self.release()
            raise

    def _locked_file(self) -> int:
        import fcntl  # Unix only: elsewhere what is never locked still works

        path = self._folder / LOCK_FILE
        for _ in range(_ATTEMPTS):
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            except FileNotFoundError:  # the folder went in between, with the process that had it
                continue
            except OSError as exc:
                raise InputError(f"cannot write the {self._name}: {exc.strerror}; choose another place") from exc
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as exc:
                holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
                os.close(descriptor)
                if isinstance(exc, BlockingIOError):
                    raise InputError(f"{self._name} is in use by process {holder}; wait for it or stop it") from exc
                raise InputError(f"cannot lock the {self._name}: {exc.strerror}; choose another place") from exc
            if self._is_current(descriptor):
                return descriptor
            os.close(descriptor)
        raise InputError(f"cannot lock the {self._name}: it comes and goes; choose another place")

    def _is_current(self, descriptor: int) -> bool:
        """Whether the open file is still the folder's."""
        try:
            return os.path.samestat(os.fstat(descriptor), (self._folder / LOCK_FILE).stat())
        except FileNotFoundError:
            return False
