from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gcn import checkpoint
from gcn.checkpoint import (
    CheckpointConfig,
    CheckpointFolder,
    checkpoint_steps,
    load_checkpoint,
    newest_checkpoint,
    remove_leftovers,
    save_checkpoint,
)
from mesh.errors import InputError

STATE = {"weights": torch.arange(6.0).view(2, 3), "nested": [{"step": 3, "best": None}], 7: 1.5}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "step_00000001.pt", STATE)
    return tmp_path / "step_00000001.pt"


def fill(
    folder: Path, steps: range | list[int], scores: dict[int, float], config: CheckpointConfig
) -> CheckpointFolder:
    checkpoints = CheckpointFolder(folder, config, begun=10**6)
    for step in steps:
        checkpoints.save({"step": step}, step, scores.get(step))
    checkpoints.wait()
    return checkpoints


def test_what_was_saved_is_what_is_read(saved: Path) -> None:
    state = load_checkpoint(saved)
    assert torch.equal(state["weights"], STATE["weights"]) and state["nested"] == STATE["nested"] and state[7] == 1.5


def test_torch_alone_can_read_a_checkpoint(saved: Path) -> None:
    assert torch.equal(torch.load(saved, weights_only=True)["weights"], STATE["weights"])


@pytest.mark.parametrize("cut", [0, 1, 40, 400, -61, -60, -20, -1])
def test_a_cut_file_is_refused(saved: Path, cut: int) -> None:
    saved.write_bytes(saved.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"step_00000001\.pt is not a readable checkpoint") as caught:
        load_checkpoint(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", [0, 100, 700, -61, -59, -40, -33, -1])
def test_a_flipped_bit_is_noticed(saved: Path, place: int) -> None:
    content = bytearray(saved.read_bytes())
    content[place] ^= 4
    saved.write_bytes(content)
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_checkpoint(saved)


def test_appended_bytes_are_noticed(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes() + b"\0")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_checkpoint(saved)


def test_a_sealed_file_that_would_execute_something_is_refused(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    save_checkpoint(tmp_path / "c.pt", {"hostile": Hostile()})
    with pytest.raises(InputError, match="more than tensors and plain values") as caught:
        load_checkpoint(tmp_path / "c.pt")
    assert not (tmp_path / "canary").exists() and "\n" not in str(caught.value)


def test_other_things_than_a_dict_and_missing_files_are_refused(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(InputError, match="no checkpoint"):
        load_checkpoint(tmp_path / "none.pt")
    monkeypatch.setattr(torch, "load", lambda *a, **k: [1])
    save_checkpoint(tmp_path / "c.pt", {})
    with pytest.raises(InputError, match="it holds a list"):
        load_checkpoint(tmp_path / "c.pt")


def test_a_write_is_flushed_before_it_is_renamed_and_its_folder_after(tmp_path: Path, monkeypatch) -> None:
    calls = []
    fsync, replace = os.fsync, Path.replace

    def note_sync(descriptor: int) -> None:
        calls.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def note_rename(self: Path, target: Path) -> Path:
        calls.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_rename)
    save_checkpoint(tmp_path / "c.pt", STATE)
    assert calls == ["file", "rename", "folder"]


class FullDisk:
    """A file that takes so many bytes."""

    def __init__(self, file, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)


@pytest.mark.parametrize("room", [0, 100, 1000])
def test_a_full_disk_leaves_the_previous_checkpoint_and_no_rubbish(saved: Path, room: int, monkeypatch) -> None:
    before = saved.read_bytes()
    monkeypatch.setattr(checkpoint, "_Hashing", lambda file, real=checkpoint._Hashing: real(FullDisk(file, room)))
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(saved, STATE)
    assert saved.read_bytes() == before and [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_what_reads_back_damaged_never_takes_the_place_of_what_is_good(saved: Path, monkeypatch) -> None:
    before = saved.read_bytes()
    real = os.fsync

    def rot(descriptor: int) -> None:
        real(descriptor)
        os.pwrite(descriptor, b"\xff\xff", 200)

    monkeypatch.setattr(os, "fsync", rot)
    with pytest.raises(OSError, match="reads back damaged"):
        save_checkpoint(saved, STATE)
    assert saved.read_bytes() == before and [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_a_full_disk_in_the_background_is_one_line_that_names_the_last_good_one(tmp_path: Path, monkeypatch) -> None:
    checkpoints = fill(tmp_path, [10], {}, CheckpointConfig())
    monkeypatch.setattr(checkpoint, "_Hashing", lambda file, real=checkpoint._Hashing: real(FullDisk(file, 100)))
    checkpoints.save({"step": 20}, 20)
    with pytest.raises(InputError, match=r"step_00000020\.pt: No space left on device; the last good one is step 10"):
        checkpoints.close()
    assert checkpoint_steps(tmp_path) == [10] and load_checkpoint(checkpoints.file(10)) == {"step": 10}


def test_an_error_in_the_background_is_raised_when_the_next_one_is_looked_for(tmp_path: Path, monkeypatch) -> None:
    checkpoints = CheckpointFolder(tmp_path, CheckpointConfig(), begun=0)
    monkeypatch.setattr(checkpoint, "_Hashing", lambda file, real=checkpoint._Hashing: real(FullDisk(file, 0)))
    checkpoints.save({"step": 20}, 20)
    with pytest.raises(InputError, match="cannot write the checkpoint"):
        while not checkpoints.is_due(21):
            pass


def test_the_state_is_copied_before_training_goes_on(tmp_path: Path) -> None:
    weights = torch.zeros(3)
    checkpoints = CheckpointFolder(tmp_path, CheckpointConfig(), begun=0)
    checkpoints.save({"weights": weights}, 1)
    weights += 1
    checkpoints.close()
    assert load_checkpoint(checkpoints.file(1))["weights"].tolist() == [0, 0, 0]


def test_the_last_and_the_best_stay(tmp_path: Path) -> None:
    scores = {2: 5.0, 4: 1.0, 6: 3.0, 8: 4.0}
    fill(tmp_path, range(1, 10), scores, CheckpointConfig(keep_last=2, keep_best=1))
    assert checkpoint_steps(tmp_path) == [4, 8, 9]


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, [4, 9]),
        ({"on_finish": "best_only"}, [4]),
        ({"mode": "max"}, [2, 9]),
        ({"keep_best": 2}, [4, 6, 9]),
        ({"keep_every": 3, "keep_best": 0}, [3, 6, 9]),
    ],
)
def test_what_is_left_after_the_end(tmp_path: Path, options, left) -> None:
    checkpoints = fill(tmp_path, range(1, 10), {2: 5.0, 4: 1.0, 6: 3.0, 8: 4.0}, CheckpointConfig(**options))
    checkpoints.close(finished=True)
    assert checkpoint_steps(tmp_path) == left


def test_without_any_score_the_last_stays_even_if_only_the_best_is_wanted(tmp_path: Path) -> None:
    checkpoints = fill(tmp_path, range(1, 5), {}, CheckpointConfig(on_finish="best_only"))
    checkpoints.close(finished=True)
    assert checkpoint_steps(tmp_path) == [4]


@given(
    scores=st.lists(st.one_of(st.none(), st.floats(0, 10), st.just(float("nan"))), min_size=1, max_size=30),
    keep_last=st.integers(1, 4),
    keep_best=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_never_more_than_promised_and_never_less_than_the_last_and_the_best(scores, keep_last, keep_best) -> None:
    config = CheckpointConfig(keep_last=keep_last, keep_best=keep_best)
    present: set[int] = set()
    known: dict[int, float] = {}
    for step, score in enumerate(scores, start=1):
        present.add(step)
        assert len(present) <= keep_last + keep_best + 1
        if score is not None:
            known[step] = score
        present = config.retained(present, known)
        assert step in present
        good = [s for s in known.values() if s == s]
        if keep_best and good:
            assert min(good) in [known.get(s) for s in present]


def test_the_newest_good_one_is_found_and_the_damaged_are_named(tmp_path: Path) -> None:
    checkpoints = fill(tmp_path, [1, 2, 3], {}, CheckpointConfig(keep_last=3))
    checkpoints.file(3).write_bytes(checkpoints.file(3).read_bytes()[:-5])
    found = newest_checkpoint(tmp_path)
    assert found is not None
    path, state, damaged = found
    assert path == checkpoints.file(2) and state == {"step": 2}
    assert len(damaged) == 1 and "step_00000003.pt" in damaged[0]


def test_a_disk_that_cannot_be_read_is_no_reason_to_fall_back(tmp_path: Path, monkeypatch) -> None:
    fill(tmp_path, [1, 2], {}, CheckpointConfig())

    def broken(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint, "_damage", broken)
    with pytest.raises(InputError, match=r"cannot read the checkpoint .*step_00000002\.pt: Input/output error"):
        newest_checkpoint(tmp_path)


def test_if_all_are_damaged_nothing_is_begun_again(tmp_path: Path) -> None:
    checkpoints = fill(tmp_path, [1, 2], {}, CheckpointConfig())
    for step in (1, 2):
        checkpoints.file(step).write_bytes(b"rubbish")
    with pytest.raises(InputError, match="none of the 2 checkpoints can be read"):
        newest_checkpoint(tmp_path)
    assert newest_checkpoint(tmp_path / "elsewhere") is None


def test_a_resumed_run_begins_with_no_more_files_than_promised(tmp_path: Path) -> None:
    checkpoints = fill(tmp_path, [1, 2, 3, 4], {1: 0.5}, CheckpointConfig(keep_last=4))
    checkpoints.file(4).write_bytes(b"rubbish")
    again = CheckpointFolder(tmp_path, CheckpointConfig(keep_last=1, keep_best=1), {1: 0.5}, begun=3)
    assert again.steps() == [1, 3]
    assert (tmp_path / "step_00000004.pt.damaged").read_bytes() == b"rubbish"


def test_leftovers_of_a_killed_write_are_taken_away_and_nothing_else(saved: Path) -> None:
    (saved.parent / ".step_00000002.pt.tmp").write_bytes(b"half")
    (saved.parent / "notes.txt").write_text("mine")
    remove_leftovers(saved.parent)
    assert sorted(p.name for p in saved.parent.iterdir()) == ["notes.txt", saved.name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_last": 0}, "keep_last must be at least 1"),
        ({"keep_every": -1}, "keep_every must not be negative"),
        ({"keep_best": 0, "on_finish": "best_only"}, "needs checkpoint.keep_best"),
    ],
)
def test_senseless_settings_are_refused(options, message) -> None:
    with pytest.raises(InputError, match=message):
        CheckpointConfig(**options)


def test_intervals_count_steps_or_minutes(tmp_path: Path, monkeypatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: clock[0])
    by_steps = CheckpointFolder(tmp_path, CheckpointConfig(every_steps=5, every_minutes=0), begun=0)
    assert [step for step in range(1, 12) if by_steps.is_due(step)] == [5, 10]
    by_clock = CheckpointFolder(tmp_path, CheckpointConfig(every_steps=0, every_minutes=2), begun=0)
    clock[0] = 119
    assert not by_clock.is_due(5)
    clock[0] = 120
    assert by_clock.is_due(5)
    by_clock.save({}, 5)
    assert not by_clock.is_due(6)
