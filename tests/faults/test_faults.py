"""A training killed, starved or handed broken files anywhere goes on as if nothing had happened, or says why not.

The short form of the fault campaign (see campaign.py). What needs a process of its own has one; all else runs the
command line in this process.
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import pickle
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # the campaign's own modules lie beside this one

from campaign import BY_NAME, PLANS, campaign, make_plan
from training_runs import Attempt, Plan, differences, environment, last_row, last_state, rows_of
from watcher import Watcher

from data.loading import TrainingBatches
from data.poses import PoseFile
from data.synthesis import SynthesisConfig, Synthesiser
from gcn.checkpoint import (
    CheckpointConfig,
    CheckpointFolder,
    checkpoint_steps,
    load_checkpoint,
    newest_checkpoint,
    remove_leftovers,
    save_checkpoint,
)
from gcn.objectives import LifterObjective
from gcn.train_state import TrainState
from mesh.body import load_body
from mesh.errors import InputError
from tools import command, train_posenet
from tools.run_folder import RunFolder
from tools.training import RunObserver

SHORT = Plan(steps=20, validate_every=10, log_every=2, save_every=3, validation_poses=260)
FIRST_SEAL_BYTE = 60  # from the end: marker, length, SHA-256


def train(plan: Plan, folder: Path, *flags: str) -> int:
    """The command line in this process; its exit code."""
    return command.run(train_posenet.main, plan.command(folder, *flags)[2:])


def one_error(text: str) -> str:
    """The only error line in what was written, which must be the last line."""
    assert "Traceback" not in text
    lines = text.strip().splitlines()
    assert [line for line in lines if line.startswith("error:")] == lines[-1:]
    return lines[-1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run of SHORT."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert train(SHORT, folder) == 0
    return folder


@pytest.fixture
def after_step(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, Callable[[], None]], None]]:
    """Does something once, when a step was logged; `monkeypatch.undo()` forgets it."""
    real = RunObserver.logged

    def arrange(step: int, action: Callable[[], None]) -> None:
        def logged(self: RunObserver, state: TrainState, *args: Any) -> None:
            real(self, state, *args)
            if state.step == step:
                action()

        monkeypatch.setattr(RunObserver, "logged", logged)

    yield arrange


# --- files that are not what was written


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, bytes]:
    """A checkpoint of a few KB, and its bytes."""
    path = tmp_path / "checkpoints" / "step_00000010.pt"
    path.parent.mkdir()
    save_checkpoint(path, {"state": {"weight": torch.arange(40.0), "step": 10}})
    return path, path.read_bytes()


def test_a_checkpoint_that_is_cut_at_any_length_is_refused(small: tuple[Path, bytes]) -> None:
    path, content = small
    assert len(content) < 8192
    accepted = []
    for length in reversed(range(len(content))):
        os.truncate(path, length)
        try:
            load_checkpoint(path)
            accepted.append(length)
        except InputError:
            continue
    assert accepted == []


def test_a_checkpoint_with_any_one_bit_turned_is_refused(small: tuple[Path, bytes]) -> None:
    path, content = small
    size = len(content)
    middle = random.Random(0).sample(range(64, size - FIRST_SEAL_BYTE), 100)
    accepted = []
    for place in (*range(64), *middle, *range(size - FIRST_SEAL_BYTE, size)):
        for bit in range(8):
            with path.open("r+b") as file:
                file.seek(place)
                file.write(bytes([content[place] ^ (1 << bit)]))
                file.flush()
                try:
                    load_checkpoint(path)
                    accepted.append((place, bit))
                except InputError:
                    pass
                file.seek(place)
                file.write(content[place : place + 1])
    assert accepted == []
    assert load_checkpoint(path)["state"]["step"] == 10


def test_bytes_after_the_seal_are_refused(small: tuple[Path, bytes]) -> None:
    path, content = small
    path.write_bytes(content + b"\0")
    with pytest.raises(InputError, match="seal"):
        load_checkpoint(path)


def damage(path: Path) -> None:
    """Turn one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_taken(small: tuple[Path, bytes]) -> None:
    path, _ = small
    newer = path.with_name("step_00000020.pt")
    save_checkpoint(newer, {"state": {"step": 20}})
    damage(newer)
    found = newest_checkpoint(path.parent)
    assert found is not None
    assert (found[0], found[1]["state"]["step"]) == (path, 10)
    assert len(found[2]) == 1 and str(newer) in found[2][0] and "checksum" in found[2][0]


def test_if_every_checkpoint_is_damaged_nothing_starts_again_silently(small: tuple[Path, bytes]) -> None:
    path, _ = small
    shutil.copy(path, path.with_name("step_00000020.pt"))
    for each in path.parent.iterdir():
        damage(each)
    with pytest.raises(InputError, match=r"none of the 2 checkpoints can be read: .*00020.*00010"):
        newest_checkpoint(path.parent)


def test_a_damaged_checkpoint_never_pushes_a_good_one_out(small: tuple[Path, bytes]) -> None:
    path, _ = small
    newer = path.with_name("step_00000020.pt")
    save_checkpoint(newer, {"step": 20})
    damage(newer)
    folder = CheckpointFolder(path.parent, CheckpointConfig(keep_last=1, keep_best=0), begun=10)
    folder.save({"step": 15}, 15)
    folder.close()
    found = newest_checkpoint(path.parent)
    assert found is not None and found[1] == {"step": 15}


def test_a_passing_read_error_costs_no_good_checkpoint(whole: Path, tmp_path: Path, monkeypatch) -> None:
    parts = tmp_path / "parts"
    shutil.copytree(whole, parts)
    older, newer = (parts / "checkpoints" / f"step_{step:08d}.pt" for step in (18, 20))
    state = load_checkpoint(newer)
    save_checkpoint(older, {**state, "state": {**state["state"], "step": 18}})
    content = newer.read_bytes()
    real = Path.open

    def fails(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path == newer:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path, *args, **kwargs)

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fails)
        patch.setattr(RunObserver, "__enter__", interrupted)  # whatever it decides, the first step never comes
        assert train(SHORT, parts, "--resume") in (2, 130)
    assert content in [path.read_bytes() for path in (parts / "checkpoints").iterdir()]


def test_a_run_resumed_from_before_a_damaged_checkpoint_ends_the_same(
    whole: Path, tmp_path: Path, after_step, monkeypatch, capsys
) -> None:
    parts = tmp_path / "parts"
    after_step(14, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train(SHORT, parts) == 143
    monkeypatch.undo()
    *_, before, newest = checkpoint_steps(parts / "checkpoints")
    assert before == 12
    damage(parts / "checkpoints" / f"step_{newest:08d}.pt")
    assert train(SHORT, parts, "--resume") == 0
    said = capsys.readouterr().err
    assert f"step_{newest:08d}.pt is not a readable checkpoint" in said
    assert "going back to step_00000012.pt" in said
    assert differences(whole, parts) == []


def test_with_every_checkpoint_damaged_the_run_is_left_alone(whole: Path, tmp_path: Path, capsys) -> None:
    parts = tmp_path / "parts"
    shutil.copytree(whole, parts)
    for each in (parts / "checkpoints").iterdir():
        damage(each)
    before = {path: path.read_bytes() for path in parts.rglob("*") if path.is_file() and path.name != ".lock"}
    assert train(SHORT, parts, "--resume") == 2
    assert "checkpoints can be read" in one_error(capsys.readouterr().err)
    assert before == {path: path.read_bytes() for path in parts.rglob("*") if path.is_file() and path.name != ".lock"}


# --- how many files there are


def test_a_kill_between_renaming_and_removing_leaves_room_for_the_next_one(tmp_path: Path) -> None:
    config = CheckpointConfig(keep_last=2, keep_best=0)
    for step in (1, 2, 3):  # the third was renamed, the first not yet removed
        save_checkpoint(tmp_path / f"step_{step:08d}.pt", {"weight": torch.zeros(10_000)})
    remove_leftovers(tmp_path)
    with Watcher(tmp_path) as watcher:
        folder = CheckpointFolder(tmp_path, config, begun=3)
        assert checkpoint_steps(tmp_path) == [2, 3]
        for step in range(4, 12):
            folder.save({"weight": torch.zeros(10_000)}, step)
        folder.close()
    assert watcher.most_files <= 3, watcher.most_names


@pytest.fixture
def poses_16(tmp_path: Path) -> Path:
    """A pose file with 16 poses: an epoch is two steps of eight."""
    path = tmp_path / "poses.npz"
    np.savez(path, poses=np.random.default_rng(0).normal(0, 0.3, (16, 24, 3)).astype(np.float32))
    return path


@pytest.mark.slow
def test_forty_epochs_need_no_more_room_than_four_checkpoints(poses_16: Path, tmp_path: Path) -> None:
    in_epochs = (
        "poses.source=file", f"poses.file={poses_16}", "posenet_training.steps=null", "posenet_training.epochs=40",
        "posenet_training.validate_every=1",
    )  # fmt: skip
    plan = replace(SHORT, save_every=1, log_every=20, validation_poses=8, extra=in_epochs)
    with Watcher(tmp_path / "run" / "checkpoints") as watcher:
        assert train(plan, tmp_path / "run") == 0
    assert watcher.most_files <= plan.most_files, watcher.most_names
    assert watcher.most_bytes <= plan.most_files * watcher.largest
    steps = checkpoint_steps(tmp_path / "run" / "checkpoints")
    assert steps[-1] == 80 and len(steps) <= 2  # the last, and the best if that is another


def test_best_only_leaves_one_file(tmp_path: Path) -> None:
    plan = replace(SHORT, extra=("checkpoint.on_finish=best_only", "checkpoint.mode=max"))  # the first is the best
    assert train(plan, tmp_path / "run") == 0
    scores = {int(row["step"]): row["exact/lift_mpjpe_mm"] for row in rows_of(tmp_path / "run") if "loss" not in row}
    best = max(scores, key=lambda step: scores[step])
    assert best < SHORT.steps and checkpoint_steps(tmp_path / "run" / "checkpoints") == [best]


def test_checkpoints_of_every_so_many_steps_stay(tmp_path: Path) -> None:
    assert train(replace(SHORT, extra=("checkpoint.keep_every=6",)), tmp_path / "run") == 0
    assert {6, 12, 18, 20} <= set(checkpoint_steps(tmp_path / "run" / "checkpoints")) <= {6, 10, 12, 18, 20}


# --- signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_ends_with_its_exit_code(
    whole: Path, tmp_path: Path, after_step, monkeypatch, number: int, code: int
) -> None:
    after_step(8, lambda: os.kill(os.getpid(), number))
    assert train(SHORT, tmp_path / "parts") == code
    assert checkpoint_steps(tmp_path / "parts" / "checkpoints")[-1] >= 8
    monkeypatch.undo()
    assert train(SHORT, tmp_path / "parts", "--resume") == 0
    assert differences(whole, tmp_path / "parts") == []


def test_a_kill_right_after_the_scores_that_a_stopped_run_owed_repeats_no_row(
    whole: Path, tmp_path: Path, after_step, monkeypatch
) -> None:
    after_step(10, lambda: os.kill(os.getpid(), signal.SIGTERM))  # step 10 is to be validated
    assert train(SHORT, tmp_path / "parts") == 143
    monkeypatch.undo()
    real = RunObserver.validated

    def validated_then_dies(self: RunObserver, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(RunObserver, "validated", validated_then_dies)
    assert train(SHORT, tmp_path / "parts", "--resume") == 130
    monkeypatch.undo()
    assert train(SHORT, tmp_path / "parts", "--resume") == 0
    assert differences(whole, tmp_path / "parts") == []


def _forked(target: Callable[[], int], output: Path) -> Any:
    """A process of its own that needs no imports; what it writes goes to a file."""

    def main() -> None:
        os.setsid()
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        os._exit(target())

    process = multiprocessing.get_context("fork").Process(target=main)
    process.start()
    return process


def _until(condition: Callable[[], bool], process: Any, limit_s: float = 60.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert process.is_alive() and time.monotonic() < end, "it ended, or nothing came"
        time.sleep(0.005)


def test_a_second_signal_quits_at_once(tmp_path: Path, monkeypatch) -> None:
    def save_for_ever(self: RunObserver, state: TrainState) -> None:
        time.sleep(3600)

    after_steps = replace(SHORT, save_every=0)
    monkeypatch.setattr(RunObserver, "save", save_for_ever)
    output = tmp_path / "out"
    process = _forked(lambda: train(after_steps, tmp_path / "run"), output)
    try:
        _until(lambda: output.is_file() and "step " in output.read_text(), process)
        os.kill(process.pid, signal.SIGTERM)
        _until(lambda: "once more stops at once" in output.read_text(), process)
        os.kill(process.pid, signal.SIGTERM)
        process.join(60)
        assert process.exitcode == -signal.SIGTERM
    finally:
        process.kill()


# --- what else goes wrong


def test_a_loss_that_is_not_finite_names_step_term_and_sample(whole: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    real, ids = LifterObjective.values, []

    def values(self: LifterObjective, model: Any, batch: Any) -> dict[str, torch.Tensor]:
        terms = real(self, model, batch)
        ids.append(int(batch.ids[3]))
        if len(ids) == 9:
            terms["lift_joint"] = terms["lift_joint"].index_fill(0, torch.tensor(3), torch.nan)
        return terms

    monkeypatch.setattr(LifterObjective, "values", values)
    assert train(SHORT, tmp_path / "parts") == 2
    error = one_error(capsys.readouterr().err)
    assert f"step 8: loss term lift_joint is not finite, at samples {ids[8]};" in error
    monkeypatch.undo()
    found = newest_checkpoint(tmp_path / "parts" / "checkpoints")
    assert found is not None and found[2] == [] and found[1]["state"]["step"] == 6
    assert train(SHORT, tmp_path / "parts", "--resume") == 0
    assert differences(whole, tmp_path / "parts") == []


def test_a_rate_that_is_far_too_high_ends_with_one_line(tmp_path: Path, capsys) -> None:
    plan = replace(SHORT, extra=("posenet_training.optim.lr=1e38", "model.posenet.norm=layer"))
    assert train(plan, tmp_path / "run") == 2
    assert "is not finite" in one_error(capsys.readouterr().err)
    found = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert found is None or found[2] == []


def test_a_killed_data_worker_ends_with_one_line_and_resume_goes_on(
    whole: Path, tmp_path: Path, after_step, monkeypatch, capsys
) -> None:
    def kill_worker() -> None:
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid or 0, signal.SIGKILL)

    after_step(6, kill_worker)
    plan = replace(SHORT, workers=1)
    assert train(plan, tmp_path / "parts") == 2
    assert "a data worker died" in one_error(capsys.readouterr().err)
    monkeypatch.undo()
    assert train(plan, tmp_path / "parts", "--resume") == 0
    assert differences(whole, tmp_path / "parts") == []


def test_a_run_that_is_killed_without_its_workers_can_be_resumed_at_once(tmp_path: Path) -> None:
    output, folder = tmp_path / "out", tmp_path / "run"
    process = _forked(lambda: train(replace(SHORT, steps=10_000, workers=1), folder), output)
    try:
        _until(lambda: bool(last_row(folder)), process)  # the worker lives
        process.kill()
        while process.exitcode is None:  # join() would wait for the worker as well
            time.sleep(0.005)
        run = RunFolder(folder)
        run.lock()
        run.unlock()
    finally:
        process.kill()


def test_two_processes_never_share_a_run_folder(whole: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def hold() -> int:
        RunFolder(folder).lock()
        os.write(1, b"held")
        time.sleep(3600)
        return 0

    output = tmp_path / "out"
    process = _forked(hold, output)
    try:
        _until(lambda: output.is_file() and "held" in output.read_text(), process)
        assert train(SHORT, folder, "--resume") == 2
        assert f"is in use by process {process.pid}" in one_error(capsys.readouterr().err)
        assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"} == {
            path: content for path, content in before.items() if path.name != ".lock"
        }
    finally:
        process.kill()


def test_a_copy_of_a_locked_folder_in_another_process_unlocks_nothing(tmp_path: Path) -> None:
    """As `torchrun` sends it from the main process to the others, which let go of it at the end."""
    folder = RunFolder(tmp_path)
    folder.lock()
    try:
        pickle.loads(pickle.dumps(folder)).unlock()
        with pytest.raises(InputError, match="is in use by process"):
            RunFolder(tmp_path).lock()
    finally:
        with contextlib.suppress(OSError):
            folder.unlock()


def test_a_read_only_folder_is_refused_with_one_line(whole: Path, capsys) -> None:
    with tempfile.TemporaryDirectory() as name:
        runs = Path(name)
        shutil.copytree(whole, runs / "old")
        for path in (runs / "old" / ".lock", runs / "old", runs):
            path.chmod(0o444 if path.is_file() else 0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)  # nobody: what root may not do is nothing
        try:
            fresh = train(SHORT, runs / "new"), capsys.readouterr().err
            resumed = train(SHORT, runs / "old", "--resume"), capsys.readouterr().err
        finally:
            os.seteuid(user)
            for path in (runs, runs / "old"):
                path.chmod(0o755)
        assert fresh[0] == resumed[0] == 2
        assert "cannot make the run folder" in one_error(fresh[1])
        assert "cannot write the run folder" in one_error(resumed[1])
        assert differences(whole, runs / "old") == []


FULL_THEN_ROOM = """
mount -t tmpfs -o size=640k none "$1" || exit 99
head -c 400k /dev/zero > "$1/ballast"
sh -c "$2" > "$3/first" 2>&1; echo $? > "$3/first_code"
cp -r "$1/run" "$3/full"
rm "$1/ballast"
sh -c "$4" > "$3/second" 2>&1; echo $? > "$3/second_code"
cp -r "$1/run" "$3/parts"
"""


def _has_mounts() -> bool:
    """Whether a small file system of one's own can be made."""
    if shutil.which("unshare") is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        tried = ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=64k", "none", folder]
        return subprocess.run(tried, capture_output=True, check=False).returncode == 0


def test_a_full_disk_ends_with_one_line_and_with_room_the_run_goes_on(whole: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    first, second = SHORT.command(small / "run"), SHORT.command(small / "run", "--resume")
    if _has_mounts():
        script = ["unshare", "-rm", "sh", "-c", FULL_THEN_ROOM, "-", small, shlex.join(first), tmp_path]
        done = subprocess.run([*map(str, script), shlex.join(second)], env=environment(), check=False)
        assert done.returncode == 0
    else:  # a limit on the size of a file stands in for the disk
        limit = 20_000

        def no_large_files() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

        for name, call, prepare in (("first", first, no_large_files), ("second", second, None)):
            with (tmp_path / name).open("wb") as file:
                done = subprocess.run(
                    call, stdout=file, stderr=file, env=environment(), check=False, preexec_fn=prepare
                )
            (tmp_path / f"{name}_code").write_text(str(done.returncode))
            shutil.copytree(small / "run", tmp_path / {"first": "full", "second": "parts"}[name])
    assert int((tmp_path / "first_code").read_text()) == 2
    error = one_error((tmp_path / "first").read_text())
    assert "cannot write the checkpoint" in error and "--resume" in error
    assert int((tmp_path / "second_code").read_text()) == 0, (tmp_path / "second").read_text()
    if _has_mounts():
        found = newest_checkpoint(tmp_path / "full" / "checkpoints")
        assert found is not None and found[2] == [] and f"step {found[1]['state']['step']}" in error
    assert list((tmp_path / "full" / "checkpoints").glob(".step*")) == []
    assert differences(whole, tmp_path / "parts") == []


# --- several processes, and the campaign itself


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_out_the_same_samples_and_use_each_once_per_epoch(processes: int) -> None:
    poses = torch.nn.functional.normalize(torch.randn(24, 24, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    synthesiser = Synthesiser(PoseFile(quaternions=poses, name="toy"), load_body(None), SynthesisConfig())

    def ids(step: int, size: int, begun: tuple[int, int]) -> list[int]:
        """Of a step's batch of eight, in its order, over all processes."""
        parts = [
            TrainingBatches(synthesiser, seed=1, batch_size=8, rank=rank, world_size=size, begun=begun)[step]
            for rank in range(size)
        ]
        return [int(i) for pieces in parts for piece in pieces for i in piece.ids]

    together = [ids(step, processes, (0, 0)) for step in range(6)]
    assert together == [ids(step, 1, (0, 0)) for step in range(6)]
    assert [ids(step, 1, (3, 24)) for step in range(3, 6)] == together[3:]  # resumed alone
    for epoch in (together[:3], together[3:]):
        assert sorted(i for batch in epoch for i in batch) == list(range(24))


def run_here(plan: Plan, folder: Path) -> None:
    """The undisturbed run, in this process."""
    assert train(plan, folder) == 0


def test_a_run_killed_three_times_equals_an_undisturbed_one(tmp_path: Path) -> None:
    plan = replace(PLANS["posenet"], steps=40, validate_every=10, log_every=1, save_every=3)
    kinds = [BY_NAME[name] for name in ("writing", "SIGTERM", "renamed")]
    report = campaign(plan, kinds, tmp_path, random.Random(1), reference=run_here)
    assert report.problems == []
    assert [name for name, _ in report.kills] == [kind.name for kind in kinds]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_every_kind_of_kill_in_the_mesh_stage(tmp_path: Path, workers: int) -> None:
    kinds = [*(kind for kind in BY_NAME.values() if kind.name != "SIGTERM in validation")]
    report = campaign(make_plan("meshnet", tmp_path, workers=workers), kinds, tmp_path, random.Random(2))
    assert report.problems == []


@pytest.mark.slow
def test_two_processes_killed_and_resumed_equal_two_undisturbed_ones(tmp_path: Path) -> None:
    plan = replace(PLANS["posenet"], steps=60, validate_every=10, log_every=1, save_every=3, processes=2)
    kinds = [BY_NAME[name] for name in ("writing", "SIGTERM", "at any step")]
    assert campaign(plan, kinds, tmp_path, random.Random(3)).problems == []


@pytest.mark.slow
def test_two_processes_train_as_one_does_and_one_goes_on_for_two(tmp_path: Path) -> None:
    """Equal up to the order of sums: scores to 0.1 % after 40 steps; without dropout, whose draws differ by piece."""
    alone = replace(PLANS["posenet"], steps=40, validate_every=20, log_every=1, save_every=5)
    alone = replace(alone, extra=("model.posenet.dropout=0.0",))
    pair = replace(alone, processes=2)
    run_here(alone, tmp_path / "alone")
    assert Attempt(pair.command(tmp_path / "pair"), tmp_path / "pair").end(240) == 0
    attempt = Attempt(pair.command(tmp_path / "changed"), tmp_path / "changed")
    attempt.wait_until(lambda: len(checkpoint_steps(attempt.checkpoints)) >= 2)
    attempt.signal_all(signal.SIGKILL)
    attempt.end()
    assert checkpoint_steps(attempt.checkpoints)[-1] < 40
    assert train(alone, tmp_path / "changed", "--resume") == 0
    expected = rows_of(tmp_path / "alone")
    for name in ("pair", "changed"):
        rows = rows_of(tmp_path / name)
        assert [row["step"] for row in rows] == [row["step"] for row in expected]
        for row, same in zip(rows, expected):
            assert row == pytest.approx(same, rel=1e-3)
        assert last_state(tmp_path / name)["position"] == last_state(tmp_path / "alone")["position"]
