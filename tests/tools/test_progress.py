from __future__ import annotations

import io
import re
import sys
from dataclasses import fields
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from gcn.losses import LossWeights
from mesh.errors import InputError
from tools import progress
from tools.progress import TERMS, Board, Progress

MESH_TERMS = {"lift_joint": 0.03, "vertex": 0.0432123, "edge": 0.004, "normal": 0.1, "mesh_joint": 0.04}
ORDERED = "vertex 0.04321  normal 0.1  edge 0.004  mesh_joint 0.04  lift_joint 0.03"
SCORES = {
    "exact/mpjpe_mm": 61.234, "exact/pa_mpjpe_mm": 44.0, "exact/mpvpe_mm": 80.06,
    "noisy/mpjpe_mm": 70.0, "noisy/mpvpe_mm": 90.0, "noisy/facing_error_rad": 0.123456,
}  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """What is left on each line: a carriage return starts it anew."""
        return [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in self.getvalue().split("\n")]


def make(stream: io.StringIO, log_file: Path | None = None, *, total: int = 8000, step: int = 1000, **options):
    return Progress(
        total, step, epoch_steps=250.0, batch_size=64, stage="meshnet", log_file=log_file, stream=stream, **options
    )


def run(stream: io.StringIO, log_file: Path | None = None, **options) -> None:
    """Two updates, an epoch and a validation."""
    with make(stream, log_file, **options) as shown:
        shown.update(1100, MESH_TERMS, data_s=1.5, step_s=16.0)
        shown.epoch(4.4, 32.0, 1100, MESH_TERMS, SCORES)
        shown.update(1200, MESH_TERMS, data_s=1.5, step_s=16.0)
        shown.validation(1200, SCORES, is_best=True)


def test_without_a_terminal_every_update_is_one_line_with_terms_in_known_order() -> None:
    stream = io.StringIO()
    with make(stream) as shown:
        shown.update(1100, MESH_TERMS, data_s=1.6, step_s=16.0)
    assert stream.getvalue() == f"step 1100/8000  epoch 4.40  {ORDERED}  400 samples/s  data 10%  eta 0:18:24\n"


def test_an_unknown_term_is_shown_after_the_known_ones() -> None:
    stream = io.StringIO()
    with make(stream) as shown:
        shown.update(1100, {"new": 1.0, "edge": 2.0}, data_s=0.0, step_s=1.0)
    assert "edge 2  new 1" in stream.getvalue()


def test_the_eta_follows_the_recent_rate_and_forgets_a_slow_start() -> None:
    stream = io.StringIO()
    with make(stream, step=0, total=100_000) as shown:
        shown.update(100, {}, data_s=0.0, step_s=1000.0)
        for step in range(200, 4001, 100):
            shown.update(step, {}, data_s=0.0, step_s=10.0)
    first, *_, last = stream.getvalue().splitlines()
    assert first.endswith("eta 11 days, 13:30:00")
    assert last.endswith("eta 2:40:00")


def test_on_a_terminal_one_bar_stands_below_whole_lines() -> None:
    stream = Terminal()
    run(stream)
    *lines, bar, after = stream.lines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 4.40/32.0", "validation at step 1200"]
    assert bar.startswith("meshnet  15%|") and "1200/8000, eta 0:18:08, data 9%, 400 samples/s, vertex 0.0432" in bar
    assert after == ""


def test_a_terminal_that_does_not_tell_its_width_shows_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda _: (-1, -1))  # as tqdm finds them
    stream = Terminal()
    run(stream)
    assert stream.lines()[-2].startswith("meshnet  15%|")


def test_the_log_file_holds_the_same_timed_lines_with_and_without_a_terminal(tmp_path: Path) -> None:
    plain = io.StringIO()
    run(plain, tmp_path / "plain.txt")
    run(Terminal(), tmp_path / "terminal.txt")
    for name in ("plain.txt", "terminal.txt"):
        lines = (tmp_path / name).read_text().splitlines()
        assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  \S", line) for line in lines)
        assert [line[21:] for line in lines] == plain.getvalue().splitlines()


def test_a_resumed_run_goes_on_in_the_same_log_file(tmp_path: Path) -> None:
    for text in ("first", "second\nthird"):
        with make(io.StringIO(), tmp_path / "log.txt") as shown:
            shown.note(text)
    assert [line[21:] for line in (tmp_path / "log.txt").read_text().splitlines()] == ["first", "second", "third"]


def test_a_disabled_rank_is_silent_and_writes_no_file(tmp_path: Path) -> None:
    for stream in (io.StringIO(), Terminal()):
        with pytest.raises(KeyboardInterrupt), make(stream, tmp_path / "log.txt", enabled=False) as shown:
            shown.update(1100, MESH_TERMS, data_s=1.0, step_s=10.0)
            shown.note("note")
            raise KeyboardInterrupt
        assert stream.getvalue() == ""
    assert list(tmp_path.iterdir()) == []


def test_an_epoch_ends_with_its_terms_and_the_newest_errors() -> None:
    stream = io.StringIO()
    with make(stream) as shown:
        shown.epoch(12.0, 32.0, 3000, MESH_TERMS, SCORES)
        shown.epoch(0.5, 1.0, 3000, {"lift_joint": 0.5}, {"exact/lift_mpjpe_mm": 61.234})
        shown.epoch(0.5, 1.0, 3000, {"labeling": 0.5}, {"exact/exchange_missed": 0.1, "share_wrong": 0.0123456})
        shown.epoch(0.5, 1.0, 3000, {"labeling": 0.5}, {})
    assert stream.getvalue().splitlines() == [
        f"epoch 12.0/32.0  step 3000  {ORDERED}  joint error exact 61.2 mm, noisy 70.0 mm  "
        "surface error exact 80.1 mm, noisy 90.0 mm",
        "epoch 0.50/1.00  step 3000  lift_joint 0.5  lifted joint error exact 61.2 mm",
        "epoch 0.50/1.00  step 3000  labeling 0.5  share_wrong 0.01235",
        "epoch 0.50/1.00  step 3000  labeling 0.5",
    ]


def test_a_validation_names_every_score_and_whether_it_is_the_best() -> None:
    stream = io.StringIO()
    with make(stream) as shown:
        shown.validation(1200, SCORES, is_best=True)
        shown.validation(1300, {"exact/lift_pa_mpjpe_mm": 40.0, "share_wrong": 0.0123456}, is_best=False)
    assert stream.getvalue().splitlines() == [
        "validation at step 1200  exact: MPJPE 61.2 mm, PA-MPJPE 44.0 mm, MPVPE 80.1 mm; "
        "noisy: MPJPE 70.0 mm, MPVPE 90.0 mm, facing_error_rad 0.1235  (best so far)",
        "validation at step 1300  exact: lift PA-MPJPE 40.0 mm; share_wrong 0.01235",
    ]


def test_what_stops_a_run_is_in_its_log_and_the_bar_is_ended(tmp_path: Path) -> None:
    stream = Terminal()
    with pytest.raises(InputError, match="loss"), make(stream, tmp_path / "log.txt") as shown:
        shown.update(1100, MESH_TERMS, data_s=1.0, step_s=10.0)
        raise InputError("loss term edge is not finite")
    assert stream.getvalue().endswith("\n")
    assert (
        (tmp_path / "log.txt")
        .read_text()
        .endswith("stopped at step 1100 by InputError: loss term edge is not finite\n")
    )


def test_the_stream_is_stderr_as_it_is_when_the_run_starts(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(10, 0, epoch_steps=5.0, batch_size=1, stage="posenet", log_file=None) as shown:
        shown.note("hello")
    captured = capsys.readouterr()
    assert captured.err == "hello\n" and captured.out == ""


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with make(io.StringIO(), tmp_path / "missing" / "log.txt") as shown, pytest.raises(InputError, match=r"log\.txt"):
        shown.note("lost")


def test_terms_are_called_as_their_weights_are() -> None:
    assert set(TERMS) - {"loss"} <= {f.name for f in fields(LossWeights)}


class Writer:
    """Stands in for TensorBoard's."""

    made: list[Writer]

    def __init__(self, folder: str, purge_step: int | None = None) -> None:
        self.folder, self.purge_step, self.points, self.closed = folder, purge_step, [], 0
        self.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.points.append((name, value, step))

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[Writer]:
    """The writers made with a TensorBoard that is only imitated."""
    package, module = ModuleType("tensorboard"), ModuleType("torch.utils.tensorboard")
    package.__spec__ = ModuleSpec("tensorboard", None)
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "tensorboard", package)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(Writer, "made", [], raising=False)
    return Writer.made


def test_the_board_writes_every_scalar_and_closes_once(writers: list[Writer], tmp_path: Path) -> None:
    board = Board(tmp_path)
    assert board.is_active
    board.scalars(5, {"loss": 0.5, "exact/mpjpe_mm": 60.0})
    board.close()
    board.close()
    (writer,) = writers
    assert writer.folder == str(tmp_path) and writer.purge_step is None
    assert writer.points == [("loss", 0.5, 5), ("exact/mpjpe_mm", 60.0, 5)] and writer.closed == 1


def test_a_resumed_board_hides_what_came_after_its_step(writers: list[Writer], tmp_path: Path) -> None:
    Board(tmp_path, step=0)
    Board(tmp_path, step=1000)
    assert [writer.purge_step for writer in writers] == [1, 1001]


def test_without_tensorboard_the_board_does_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    board = Board(tmp_path / "events")
    board.scalars(5, {"loss": 0.5})
    board.close()
    assert not board.is_active and list(tmp_path.iterdir()) == []
