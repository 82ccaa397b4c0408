"""Looks into a checkpoint folder all the time and remembers the most it has seen."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import TracebackType

PAUSE_S = 0.0005  # between two looks; none at all would take a core from the run


class Watcher:
    """Greatest number and greatest sum of bytes of the checkpoint files in a folder, half-written ones included.

    The folder may come and go meanwhile. Use it as a context manager.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.most_files = self.most_bytes = self.largest = self.looks = 0
        self.most_names: tuple[str, ...] = ()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.is_set():
            self.look()
            time.sleep(PAUSE_S)

    def look(self) -> None:
        """One look."""
        sizes = checkpoint_sizes(self.folder)
        self.looks += 1
        if len(sizes) > self.most_files:
            self.most_files, self.most_names = len(sizes), tuple(sorted(sizes))
        self.most_bytes = max(self.most_bytes, sum(sizes.values()))
        self.largest = max(self.largest, *sizes.values(), 0)


def checkpoint_sizes(folder: Path) -> dict[str, int]:
    """Bytes of each checkpoint file, whole or half-written; one that vanishes meanwhile counts with zero bytes."""
    sizes: dict[str, int] = {}
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name.endswith((".pt", ".pt.tmp"))]
    except FileNotFoundError:
        return {}
    for name in names:
        try:
            sizes[name] = os.stat(folder / name).st_size
        except FileNotFoundError:
            sizes[name] = 0
    return sizes
