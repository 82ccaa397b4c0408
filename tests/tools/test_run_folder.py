from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from gcn.checkpoint import save_checkpoint
from mesh.errors import InputError
from tools.run_folder import RunFolder, find_start


def make_run(path: Path, *steps: int) -> RunFolder:
    folder = RunFolder(path)
    folder.create()
    folder.prepare("seed: 0\n", 0, owes_validation=False)
    for step in steps:
        save_checkpoint(folder.checkpoints / f"step_{step:08d}.pt", {"step": step})
    folder.unlock()
    return folder


def start(runs: Path, name: str | None, resume: str | Path | None):
    return find_start(runs, name, None if resume is None else str(resume), default_name="default_posenet")


def test_a_new_run_has_the_default_name_and_makes_nothing_yet(tmp_path: Path) -> None:
    begun = start(tmp_path, None, None)
    assert begun.saved is None and begun.folder.path == tmp_path / "default_posenet" and list(tmp_path.iterdir()) == []


def test_every_way_to_say_resume_finds_the_newest_checkpoint(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", 1, 2)
    newest = run.checkpoints / "step_00000002.pt"
    for name, resume in (("a", ""), (None, run.path), ("a", run.path), (None, newest), ("a", newest)):
        begun = start(tmp_path, name, resume)
        assert begun.saved == {"step": 2} and begun.folder.path.resolve() == run.path.resolve()
        begun.folder.unlock()


def test_another_name_branches_off_and_does_not_lock_the_first_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", 1, 2)
    for resume, step in ((run.path, 2), (run.checkpoints / "step_00000001.pt", 1)):
        begun = start(tmp_path, "b", resume)
        assert begun.saved == {"step": step} and begun.folder.path == tmp_path / "b"
    run.lock()


def test_a_checkpoint_that_was_copied_elsewhere_starts_a_run_with_a_name(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", 1)
    (run.checkpoints / "step_00000001.pt").rename(tmp_path / "mine.pt")
    with pytest.raises(InputError, match="give the new run a --name"):
        start(tmp_path, None, tmp_path / "mine.pt")
    assert start(tmp_path, "b", tmp_path / "mine.pt").saved == {"step": 1}


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_from_the_beginning(tmp_path: Path, capsys) -> None:
    make_run(tmp_path / "a")
    assert start(tmp_path, "a", "").saved is None
    assert "has no checkpoint yet: it starts from the beginning" in capsys.readouterr().err
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / ".lock").touch()  # killed in its first moment
    assert start(tmp_path, "b", "").saved is None


@pytest.mark.parametrize(
    ("name", "resume", "message"),
    [
        ("a", None, "exists; continue it with --resume"),
        ("none", "", "nothing to resume: there is no run folder"),
        ("folder", "", "is not a run folder"),
        (None, "none", "nothing to resume: none does not exist"),
        ("folder", "RUN", "exists; continue it with --resume"),
        ("b", "EMPTY", "holds no checkpoint"),
        ("../b", None, "expected a plain name"),
        ("/tmp/b", None, "expected a plain name"),
    ],
)
def test_what_cannot_be_begun_is_one_line(tmp_path: Path, name, resume, message) -> None:
    run = make_run(tmp_path / "a", 1)
    empty = make_run(tmp_path / "empty")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=message) as caught:
        start(tmp_path, name, {"RUN": run.path, "EMPTY": empty.path}.get(resume, resume))
    assert "\n" not in str(caught.value)


def test_a_locked_run_is_refused_and_a_failed_start_leaves_no_lock(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", 1)
    run.lock()
    with pytest.raises(InputError, match="is in use by process"):
        start(tmp_path, "a", "")
    run.unlock()
    (run.checkpoints / "step_00000001.pt").write_bytes(b"rubbish")
    for resume in ("", run.checkpoints / "step_00000001.pt"):
        with pytest.raises(InputError, match="not a readable checkpoint"):
            start(tmp_path, "a", resume)
    run.lock()


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    with pytest.raises(InputError, match="exists"):
        RunFolder(tmp_path / "a").create()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot make the run folder"):
        RunFolder(tmp_path / "file" / "a").create()


@pytest.mark.parametrize("owes", [False, True])
def test_metrics_after_the_checkpoint_are_forgotten(tmp_path: Path, owes) -> None:
    run = make_run(tmp_path / "a")
    rows = [{"step": s, "epoch": 0.1, "loss": 1.0} for s in (1, 2, 3)]
    rows.insert(2, {"step": 2, "epoch": 0.1, "exact/mpjpe_mm": 80.0})
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "lo')
    run.prepare("seed: 0\n", 2, owes_validation=owes)
    assert run.rows() == (rows[:2] if owes else rows[:3])
    run.add_row({"step": 3, "epoch": 0.2})
    assert len(run.metrics.read_text().splitlines()) == (3 if owes else 4)


def test_half_a_checkpoint_is_cleared_away(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", 1)
    (run.checkpoints / ".step_00000002.pt.tmp").write_bytes(b"half")
    run.prepare("seed: 0\n", 1, owes_validation=False)
    assert [p.name for p in run.checkpoints.iterdir()] == ["step_00000001.pt"]


def test_a_copy_in_another_process_neither_holds_nor_opens_the_lock(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    run.lock()
    pickle.loads(pickle.dumps(run)).unlock()
    with pytest.raises(InputError, match="in use"):
        RunFolder(tmp_path / "a").lock()
