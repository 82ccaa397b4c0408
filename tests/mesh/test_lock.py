"""A folder that only one process at a time writes to."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.errors import InputError
from mesh.lock import LOCK_FILE, FolderLock

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from mesh.lock import FolderLock
FolderLock(Path({folder!r}), "folder").acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_held_folder_is_refused_with_the_process_that_holds_it(tmp_path: Path) -> None:
    held, other = (FolderLock(tmp_path / "deep" / "a", "folder a") for _ in range(2))
    held.acquire()
    with pytest.raises(InputError, match=rf"^folder a is in use by process {os.getpid()}; wait for it or stop it$"):
        other.acquire()
    held.release()
    other.acquire()


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    script = HOLDER.format(root=str(ROOT), folder=str(tmp_path))
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"in use by process {process.pid};"):
            FolderLock(tmp_path, "folder").acquire()
        os.kill(process.pid, signal.SIGKILL)
    FolderLock(tmp_path, "folder").acquire()


def test_a_folder_that_was_removed_with_its_lock_can_be_locked_anew(tmp_path: Path) -> None:
    first, second, third = (FolderLock(tmp_path / "a", "folder") for _ in range(3))
    first.acquire()
    shutil.rmtree(tmp_path / "a")
    second.acquire()
    first.release()  # of the file that is gone: the new one stays locked
    with pytest.raises(InputError, match="in use"):
        third.acquire()


def test_a_lock_file_that_is_replaced_while_it_is_being_locked_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    flock, removed = fcntl.flock, []

    def meanwhile_removed(descriptor: int, operation: int) -> None:
        if not removed:
            removed.append((tmp_path / LOCK_FILE).unlink())
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", meanwhile_removed)
    lock = FolderLock(tmp_path, "folder")
    lock.acquire()
    with pytest.raises(InputError, match="in use"):
        FolderLock(tmp_path, "folder").acquire()


def test_what_cannot_be_locked_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write the folder x: .*; choose another place"):
        FolderLock(tmp_path / "file" / "below", "folder x").acquire()
    (tmp_path / LOCK_FILE).symlink_to(tmp_path / "nowhere" / "lock")
    with pytest.raises(InputError, match="cannot lock the folder x"):
        FolderLock(tmp_path, "folder x").acquire()


def test_a_block_keeps_others_out_and_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text("1\n")  # of a process that was killed
    with pytest.raises(RuntimeError), FolderLock(tmp_path, "folder").held():
        with pytest.raises(InputError, match="in use"):
            FolderLock(tmp_path, "folder").acquire()
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with FolderLock(tmp_path, "folder").held():
        (tmp_path / LOCK_FILE).unlink()
        FolderLock(tmp_path, "folder").acquire()  # of the new file, which is not the block's to remove
    assert (tmp_path / LOCK_FILE).is_file()


def test_a_failed_block_lets_others_in(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path, "folder")
    lock.acquire()
    with pytest.raises(RuntimeError), lock.released_on_failure():
        raise RuntimeError
    FolderLock(tmp_path, "folder").acquire()


def test_neither_a_copy_nor_a_forked_child_holds_or_opens_the_lock(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path, "folder")
    lock.acquire()
    pickle.loads(pickle.dumps(lock)).release()
    if (child := os.fork()) == 0:
        os._exit(0 if lock._descriptor is None else 1)
    assert os.waitpid(child, 0)[1] == 0
    with pytest.raises(InputError, match="in use"):
        FolderLock(tmp_path, "folder").acquire()
