"""The command, with people found by a stand-in for detector and networks."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Iterator
from dataclasses import fields
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gcn.recovery import Recovered
from mesh.body import load_body
from mesh.errors import InputError
from tools import command, robustness
from tools.robustness_checks import PersonChecks

BODY = load_body()
REAL_CHECKER = robustness._checker


def recovered(count: int, **given: np.ndarray) -> Recovered:
    """Valid people; what no check looks at is zero."""
    known = {"exchanged": np.zeros(count, bool), "valid": np.ones(count, bool), **given}
    known.setdefault("expected_error", np.zeros((count, 17), np.float32))
    known = {"place": np.full((count, 3), np.nan, np.float32), **known}
    return Recovered(**{f.name: known.get(f.name, np.zeros(count, np.float32)) for f in fields(Recovered)})


class Checker:
    """Finds one person in pictures that are bright."""

    faces = BODY.faces
    detector = "full"

    def check(self, image: np.ndarray) -> tuple[list[PersonChecks], Recovered]:
        count = int(image.mean() > 100)
        height, width = image.shape[:2]
        made = recovered(
            count,
            vertices=np.repeat(BODY.template[None] * np.float32((1, -1, -1)), count, axis=0),
            camera=np.repeat(np.array([(height / 3, width / 2, height / 2)], np.float32), count, axis=0),
        )
        box = (0.0, 0.0, float(width), float(height))
        return [PersonChecks(box_px=box, flags=(), reprojection_px=2.0, reprojection_sizes=0.02)] * count, made


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(robustness, "_checker", lambda args: Checker())
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, value in (("bright.png", 200), ("dark.png", 20)):
        Image.new("RGB", (60, 90), (value,) * 3).save(folder / name)
    return folder


@pytest.fixture
def server(photos: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=photos)) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def run(*words: object) -> int:
    return command.run(robustness.main, [str(word) for word in words])


def test_a_folder_gives_report_table_and_sheet(photos: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "new" / "out"
    assert run(photos, "--out", out) == 0
    assert {path.name for path in out.iterdir()} == {"report.json", "report.md", "contact_sheet.png"}
    report = json.loads((out / "report.json").read_text())
    assert report["detector"] == "full"
    assert [len(row["people"]) for row in report["pictures"]] == [1, 0] and report["failed"] == []
    assert "1 of 2 (50.0 %)" in (out / "report.md").read_text() and "people: 1" in capsys.readouterr().out


def test_an_unreadable_picture_is_named_and_the_others_go_on(photos: Path, tmp_path: Path, capsys) -> None:
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff no more")
    assert run(photos, "--out", tmp_path / "out") == 1
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(report["pictures"]) == 2 and report["failed"][0]["input"] == str(photos / "broken.jpg")
    assert f"failed: {photos / 'broken.jpg'}: " in capsys.readouterr().err


def test_a_list_is_downloaded_once_and_its_failures_are_named(
    photos: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "urls.txt").write_text(f"{server}/bright.png\n{server}/missing.png\n")
    words = (tmp_path / "urls.txt", "--out", tmp_path / "out", "--interval", 0, "--private-addresses")
    assert run(*words) == 1
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["input"] for row in report["pictures"]] == [f"{server}/bright.png"]
    assert report["failed"][0]["input"] == f"{server}/missing.png" and "404" in report["failed"][0]["reason"]
    (photos / "bright.png").unlink()
    Image.new("RGB", (60, 90)).save(photos / "missing.png")
    assert run(*words) == 0 and len(list((tmp_path / "out" / "downloads").iterdir())) == 2
    assert len(json.loads((tmp_path / "out" / "report.json").read_text())["pictures"]) == 2


def test_this_machine_is_not_asked_without_leave(server: str, tmp_path: Path) -> None:
    (tmp_path / "urls.txt").write_text(f"{server}/bright.png\n")
    assert run(tmp_path / "urls.txt", "--out", tmp_path / "out", "--interval", 0) == 1
    assert not (tmp_path / "out" / "downloads").exists()


def test_large_pictures_are_reduced(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robustness, "_MAX_SIDE_PX", 45)
    assert run(photos / "bright.png", "--out", tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["pictures"][0]["size_px"] == [30, 45]


def test_a_picture_given_twice_counts_once(photos: Path, tmp_path: Path) -> None:
    assert run(photos, photos / "dark.png", "--out", tmp_path / "out") == 0
    assert len(json.loads((tmp_path / "out" / "report.json").read_text())["pictures"]) == 2


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["nothing.jpg"], "no such input"),
        ([""], "no such input"),
        (["http://example.org/a.jpg"], "write it into a .txt file"),
        (["notes.md"], "expected an image"),
        (["urls.txt"], "line 1"),
        (["photos", "--sheet", "0"], "--sheet"),
        (["photos", "--max-people", "0"], "--max-people"),
        (["photos", "--timeout", "0"], "timeout"),
        (["photos", "--max-mb", "nan"], "MB"),
        (["photos", "--interval", "-1"], "interval"),
    ],
)
def test_a_wrong_call_ends_before_any_work(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], complaint: str, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.md").write_text("text")
    (tmp_path / "urls.txt").write_text("file:///etc/passwd\n")
    assert run(*words, "--out", "out") == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_body_that_is_not_there_is_one_line(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(robustness, "_checker", REAL_CHECKER)
    assert run(photos, "--body", tmp_path / "no.npz", "--out", tmp_path / "out") == 2
    assert "no.npz" in capsys.readouterr().err


def test_what_was_done_before_an_interrupt_is_reported(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(Checker):
        def check(self, image: np.ndarray) -> tuple[list[PersonChecks], Recovered]:
            if image.mean() < 100:
                raise KeyboardInterrupt
            return super().check(image)

    monkeypatch.setattr(robustness, "_checker", lambda args: Interrupted())
    assert run(photos, "--out", tmp_path / "out") == 130
    assert len(json.loads((tmp_path / "out" / "report.json").read_text())["pictures"]) == 1


def test_a_picture_whose_people_cannot_be_checked_is_named(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(Checker):
        def check(self, image: np.ndarray) -> tuple[list[PersonChecks], Recovered]:
            raise InputError("no such mesh")

    monkeypatch.setattr(robustness, "_checker", lambda args: Refusing())
    assert run(photos, "--out", tmp_path / "out") == 1
    assert json.loads((tmp_path / "out" / "report.json").read_text())["failed"][0]["reason"] == "no such mesh"


def test_an_input_is_never_replaced(photos: Path, capsys) -> None:
    assert run(photos, "--out", photos) == 0  # a report beside the pictures is allowed
    before = (photos / "contact_sheet.png").read_bytes()
    assert run(photos, "--out", photos) == 2 and "is an input" in capsys.readouterr().err
    assert (photos / "contact_sheet.png").read_bytes() == before


def test_an_output_that_is_a_file_is_refused(photos: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "out").write_text("mine")
    assert run(photos, "--out", tmp_path / "out") == 2
    assert "cannot make the output folder" in capsys.readouterr().err and (tmp_path / "out").read_text() == "mine"
