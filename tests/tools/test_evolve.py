"""The command that makes more poses by evolution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data.joint_limits import fit_joint_limits
from data.poses import read_poses
from data.prior import load_pose_prior
from tools import command, evolve

PEOPLE = np.repeat([1, 2, 3], 40)
LEVELS = np.tile([0, 1, 2, 3], 30)


@pytest.fixture(scope="module")
def pose_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("poses") / "poses.npz"
    poses = load_pose_prior().sample(len(PEOPLE), torch.Generator().manual_seed(0)).numpy()
    columns = {"subject": PEOPLE.astype(np.int16), "level": LEVELS.astype(np.uint8)}
    np.savez(path, poses=poses.astype(np.float16), parents=np.arange(-1, 23), **columns)  # parents: of the skeleton
    return path


def run(pose_file: Path, out: Path, *options: object) -> int:
    """The exit code of the command line."""
    return command.run(evolve.main, [str(pose_file), "--out", str(out), *map(str, options)])


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def evolved(pose_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evolved") / "evolved.npz"
    assert run(pose_file, out, "--validation-subjects", 3) == 0
    return out


def test_the_result_is_a_pose_file_of_parents_children_and_validation_people(pose_file: Path, evolved: Path) -> None:
    assert [p.name for p in evolved.parent.iterdir()] == ["evolved.npz"]
    train = read_poses(evolved, except_subjects=(3,)).quaternions
    assert len(train) == 2.5 * 80
    founders = read_poses(pose_file, except_subjects=(3,)).quaternions
    torch.testing.assert_close(train[:80], founders)
    held_out = read_poses(evolved, subjects=(3,)).quaternions
    torch.testing.assert_close(held_out, read_poses(pose_file, subjects=(3,)).quaternions)
    assert fit_joint_limits(founders).valid(train).all()
    with np.load(evolved) as file:
        assert sorted(set(file["subject"][:80])) == [1, 2]
        assert (file["subject"][80:200] == -1).all() and (file["subject"][200:] == 3).all()


def test_children_descend_from_training_people_alone(evolved: Path) -> None:
    file = arrays(evolved)
    own = file["parents"][80:200]
    assert (own >= 0).all() and (own < np.arange(80, 200)[:, None]).all()
    assert (file["parents"][:80] == -1).all() and (file["parents"][200:] == -1).all()
    assert (file["generation"][80:200] > 0).all() and (file["generation"][200:] == 0).all()
    assert (file["level"][80:200] == file["level"][own].max(1)).all()


def test_people_left_out_are_not_in_the_result(pose_file: Path, tmp_path: Path) -> None:
    options = ("--except-subjects", 1, "--validation-subjects", 3, "--max-level", 2, "--size", 40)
    assert run(pose_file, tmp_path / "e.npz", *options) == 0
    file = arrays(tmp_path / "e.npz")
    assert np.bincount(file["subject"] + 1).tolist() == [10, 0, 0, 30, 30]
    assert file["level"].max() == 2


def test_a_share_of_the_poses_begins(pose_file: Path, tmp_path: Path) -> None:
    assert run(pose_file, tmp_path / "e.npz", "--share", 0.25, "--ratio", 2) == 0
    file = arrays(tmp_path / "e.npz")
    assert (file["generation"] == 0).sum() == 30 and len(file["poses"]) == 60
    known = read_poses(pose_file).quaternions.numpy()
    assert (np.abs(file["poses"][:30, None] - known).max((2, 3)).min(1) < 1e-6).all()


def test_the_table_has_a_row_for_each_generation_with_falling_distances(
    pose_file: Path, tmp_path: Path, capsys
) -> None:
    assert run(pose_file, tmp_path / "e.npz", "--validation-subjects", 3) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = [row for row in rows if row and row[0].isdigit() and len(row) == 7]
    generations = int(arrays(tmp_path / "e.npz")["generation"].max())
    assert [int(row[0]) for row in rows] == list(range(generations + 1))
    assert int(rows[0][1]) == 80 and int(rows[-1][1]) == 200
    means = [float(row[4]) for row in rows]
    assert means == sorted(means, reverse=True) and means[-1] < means[0]
    assert 5 < means[-1] < 40  # cm


def test_poses_without_subjects_evolve_too(tmp_path: Path, capsys) -> None:
    poses = load_pose_prior().sample(20, torch.Generator().manual_seed(0)).numpy()
    np.savez(tmp_path / "p.npz", poses=poses)
    assert run(tmp_path / "p.npz", tmp_path / "e.npz", "--size", 30) == 0
    assert len(read_poses(tmp_path / "e.npz")) == 30
    assert "median" not in capsys.readouterr().out


def stopped_after(monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    """Make the command stop as at Ctrl-C in the middle of writing, after so many whole files."""
    import mesh.files

    whole, done = mesh.files.np.savez, []

    def savez(file, **named) -> None:
        if len(done) == writes:
            file.write(b"half a file")
            raise KeyboardInterrupt
        done.append(1)
        whole(file, **named)

    monkeypatch.setattr(mesh.files.np, "savez", savez)


@pytest.mark.parametrize("writes", [1, 5])
def test_what_was_killed_and_resumed_equals_what_was_left_alone(
    pose_file: Path, evolved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    out = tmp_path / "e.npz"
    with monkeypatch.context() as patch:
        stopped_after(patch, writes)
        assert run(pose_file, out, "--validation-subjects", 3) == 130
    assert [p.name for p in tmp_path.iterdir()] == ["e.npz"]
    assert arrays(out)["generation"].max() == writes
    assert run(pose_file, out, "--validation-subjects", 3, "--resume") == 0
    resumed, whole = arrays(out), arrays(evolved)
    assert resumed.keys() == whole.keys()
    assert all(np.array_equal(resumed[name], whole[name]) for name in whole)


def test_resuming_what_is_finished_changes_nothing(pose_file: Path, evolved: Path) -> None:
    before = evolved.read_bytes()
    assert run(pose_file, evolved, "--validation-subjects", 3, "--resume") == 0
    assert evolved.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--except-subjects", 7), "has no subject 7; it has 1, 2, 3"),
        (("--size", 119), "--size 119 is less than the 120 poses"),
        (("--ratio", 0.5), "--ratio must be a number of at least 1"),
        (("--ratio", "inf"), "--ratio must be a number of at least 1"),
        (("--except-subjects", 1, "--validation-subjects", 1), "left out and to validate"),
        (("--except-subjects", 1, 2, 3), "0 poses are left to begin with"),
        (("--share", 0), "--share must lie in"),
        (("--mutation", 2), "mutation must lie in"),
        (("--subtrees", "left_toe"), "no joint 'left_toe'"),
        (("--seed", -1), "--seed must lie in"),
        (("--resume",), "to go on with; leave --resume away"),
    ],
)
def test_a_wrong_call_is_one_line_and_writes_nothing(pose_file: Path, tmp_path: Path, capsys, options, message) -> None:
    assert run(pose_file, tmp_path / "e.npz", *options) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_bad_target_is_refused(pose_file: Path, evolved: Path, tmp_path: Path, capsys) -> None:
    before = evolved.read_bytes()
    for out, message in (
        (evolved, "exists; go on with --resume"),
        (tmp_path / "e.txt", "must be named EVOLVED.npz"),
        (tmp_path / "none" / "e.npz", "no folder"),
    ):
        assert run(pose_file, out) == 2
        assert message in capsys.readouterr().err
    assert evolved.read_bytes() == before and list(tmp_path.iterdir()) == []


def test_resuming_in_another_way_is_refused(pose_file: Path, evolved: Path, tmp_path: Path, capsys) -> None:
    before = evolved.read_bytes()
    others = tmp_path / "others.npz"
    poses = arrays(pose_file)["poses"]
    np.savez(others, **{**arrays(pose_file), "poses": np.concatenate((poses[:80][::-1], poses[80:]))})
    for source, options, message in (
        (pose_file, ("--validation-subjects", 3, "--seed", 1), "was begun with seed 0, not 1"),
        (pose_file, ("--validation-subjects", 3, "--tilt", 0), "was begun with tilt 0.1, not 0.0"),
        (pose_file, ("--validation-subjects", 3, "--size", 300), "was begun with size 200, not 300"),
        (others, ("--validation-subjects", 3), "was begun with other poses"),
    ):
        assert run(source, evolved, *options, "--resume") == 2
        assert message in capsys.readouterr().err
    assert run(pose_file, pose_file, "--resume") == 2
    assert "was not made by tools/evolve.py" in capsys.readouterr().err
    assert evolved.read_bytes() == before


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"poses": np.ones((9, 23, 4))}, (), "expected (N, 24, 4)"),
        ({"poses": np.ones((9, 24, 4))}, ("--except-subjects", 1), "no 'subject' column"),
        ({"poses": np.ones((9, 24, 4))}, ("--max-level", 1), "no 'level' column"),
        ({"poses": np.ones((9, 24, 4)), "subject": np.ones(8, int)}, (), "must be 9 whole numbers"),
        ({"poses": np.ones((9, 24, 4))}, (), "nothing to swap"),
    ],
)
def test_a_bad_pose_file_is_refused(tmp_path: Path, capsys, columns, options, message: str) -> None:
    np.savez(tmp_path / "p.npz", **columns)
    assert run(tmp_path / "p.npz", tmp_path / "e.npz", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "e.npz").exists()


def test_a_population_that_is_large_enough_is_written_as_it_is(pose_file: Path, tmp_path: Path) -> None:
    assert run(pose_file, tmp_path / "e.npz", "--ratio", 1) == 0
    assert len(read_poses(tmp_path / "e.npz")) == len(PEOPLE)


def test_help_explains_every_option(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        evolve.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--validation-subjects" in text and "--resume" in text
    assert all(action.help for action in evolve.parser()._actions)


def test_evolved_poses_do_not_begin_anew(pose_file: Path, tmp_path: Path, capsys) -> None:
    assert run(pose_file, tmp_path / "e.npz", "--size", 130) == 0  # children of everybody
    assert run(tmp_path / "e.npz", tmp_path / "again.npz", "--validation-subjects", 3) == 2
    assert "holds evolved poses, whose descent would be lost" in capsys.readouterr().err
    assert not (tmp_path / "again.npz").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda a: {name: values[:200] if values.shape[:1] == (240,) else values for name, values in a.items()},
        lambda a: {"poses": a["poses"].astype(float)},
        lambda a: {"poses": np.where(np.arange(240)[:, None, None] == 199, np.nan, a["poses"]).astype(np.float32)},
        lambda a: {"parents": a["parents"] + 1000},
        lambda a: {"parents": a["parents"][:7]},
        lambda a: {"generation": a["generation"] * 0},
        lambda a: {"generation": a["generation"][:, None]},
        lambda a: {"children": a["children"][:1]},
        lambda a: {"children": np.arange(3)},
    ],
)
def test_a_damaged_file_does_not_go_on(pose_file: Path, evolved: Path, tmp_path: Path, capsys, damage) -> None:
    whole = {name: values for name, values in arrays(evolved).items() if name not in ("subject", "level")}
    out = tmp_path / "e.npz"
    np.savez(out, **{**whole, **damage(whole)})
    before = out.read_bytes()
    assert run(pose_file, out, "--validation-subjects", 3, "--resume") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and ("was damaged: its poses" in error or "begun with other poses" in error)
    assert out.read_bytes() == before


def test_settings_that_are_none_do_not_go_on(pose_file: Path, evolved: Path, tmp_path: Path, capsys) -> None:
    np.savez(tmp_path / "e.npz", **{**arrays(evolved), "settings": np.array("3")})
    assert run(pose_file, tmp_path / "e.npz", "--validation-subjects", 3, "--resume") == 2
    assert "its 'settings' are none" in capsys.readouterr().err
