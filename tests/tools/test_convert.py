"""The command that turns datasets into records."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from data.records import open_records
from tests.data.miniatures.amass import write_amass
from tests.data.miniatures.poses import write_poses
from tools import command, convert


def run(*words: object) -> int:
    """The exit code of the command line."""
    return command.run(convert.main, [str(word) for word in words])


@pytest.mark.parametrize("name", list(convert.READERS))
def test_every_dataset_has_a_reader_that_explains_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(name, "--help")
    text = capsys.readouterr().out
    assert ended.value.code == 0 and f"convert.py {name}" in text
    options = convert._options_class(convert._reader(name))
    for option in convert._option_fields(options):
        assert "--" + option.replace("_", "-") in text


def test_records_are_made_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_poses(tmp_path / "p.npz")
    out = tmp_path / "records"
    words = (
        "poses",
        "--root",
        tmp_path / "p.npz",
        "--out",
        out,
        "--validation-subjects",
        7,
        9,
        "--split",
        "validation",
    )
    assert run(*words) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[:2] == [
        f"{out}: 20 rows of poses of p.npz, split validation",
        "  columns: pose, sequence, person, frame",
    ]
    assert "  dropped, other people or levels: 10\n" in said.out and said.err == ""
    assert set(open_records(out)["person"].tolist()) == {7, 9}
    assert run(*words) == 0 and capsys.readouterr().out == said.out


def test_numbers_choices_and_lists_reach_the_reader(tmp_path: Path) -> None:
    write_amass(tmp_path / "amass")
    out = tmp_path / "out"
    words = ("--split", "test", "--rate", "60", "--world", "z-up", "--test", "KIT", "CMU")
    assert run("amass", "--root", tmp_path / "amass", "--out", out, *words) == 0
    records = open_records(out)
    assert records.info.settings["test"] == ["KIT", "CMU"] and "trans" in records
    assert records["frame"].tolist() == [0, 2, 4, 6, 8] * 2
    assert {name.split(b"/")[0] for name in records["sequence"].tolist()} == {b"KIT", b"CMU"}


def test_a_terminal_shows_how_far_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_amass(tmp_path / "amass")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run("amass", "--root", tmp_path / "amass", "--out", tmp_path / "out", "--split", "all") == 0
    shown = capsys.readouterr().err
    assert "0005_Jogging001_poses.npz" in shown and "4/4" in shown
    assert run("amass", "--root", tmp_path / "amass", "--out", tmp_path / "two", "--split", "all", "--quiet") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("amas", "--root", "{}", "--out", "{}/x"), "no reader for dataset 'amas'; did you mean 'amass'?"),
        (("poses", "--root", "{}/none.npz", "--out", "{}/x"), "none.npz: no such file or folder"),
        (("amass", "--root", "{}/data", "--out", "{}/data/records"), "lies in the dataset"),
        (("amass", "--root", "{}/data", "--out", "{}/data/../data"), "lies in the dataset"),
        (("amass", "--root", "{}/data", "--out", "{}/out"), "holds no file of AMASS"),
    ],
)
def test_a_wrong_call_is_answered_in_one_line_and_leaves_nothing(
    tmp_path: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    assert run(*(word.format(tmp_path) for word in words)) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and said.out == ""
    assert [path.name for path in tmp_path.rglob("*")] == ["data"]


@pytest.mark.parametrize("words", [(), ("--frobnicate",), ("amass", "--root", ".", "--out", "x", "--world", "x-up")])
def test_a_call_that_cannot_be_parsed_ends_with_code_2(words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(*words)
    assert ended.value.code == 2


def test_help_lists_the_datasets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run("--help")
    text = capsys.readouterr().out
    assert ended.value.code == 0 and all(f"  {name} " in text for name in convert.READERS)


def test_a_damaged_dataset_is_answered_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "p.npz", poses=np.array([{}] * 3))
    assert run("poses", "--root", tmp_path / "p.npz", "--out", tmp_path / "out") == 2
    assert "pickled objects" in capsys.readouterr().err and not (tmp_path / "out").exists()
