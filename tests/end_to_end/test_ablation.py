"""The ablation command on tiny networks: trained, judged, resumed, stopped."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools import ablate, command

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
SETTINGS = f"""
base: {QUICKSTART}
set:
  validation_poses: 8
  train.plots: false
  train.samples: 0
  model.posenet.width: 16
  model.posenet.blocks: 1
  posenet_training.batch_size: 8
  posenet_training.log_every: 1
  checkpoint.every_steps: 10
validations: 2
"""
ROWS = """
budget: {samples: 96}
rows:
  wide: {model.posenet.width: 32}
  large batches: {posenet_training.batch_size: 16}
"""


def call(tmp: Path, text: str, *flags: str) -> int:
    (tmp / "try.yaml").write_text(SETTINGS + text)
    return command.run(ablate.main, [str(tmp / "try.yaml"), "--out", str(tmp / "out"), *flags])


def rows_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rows, trained at the same time."""
    tmp = tmp_path_factory.mktemp("ablation")
    assert call(tmp, ROWS, "--jobs", "2") == 0
    return tmp


def test_the_table_holds_the_numbers_of_the_run_folders(made: Path) -> None:
    rows = list(csv.DictReader((made / "out" / "table.csv").read_text().splitlines()))
    assert [row["row"] for row in rows] == ["wide", "large batches"]
    for row in rows:
        validations = [r for r in rows_of(made / "out" / "runs" / row["run"]) if "exact/lift_mpjpe_mm" in r]
        best = min(validations, key=lambda r: r["exact/lift_mpjpe_mm"])
        for name in (f"{kind}/lift_{metric}_mm" for kind in ("exact", "noisy") for metric in ("mpjpe", "pa_mpjpe")):
            assert float(row[name]) == pytest.approx(best[name], rel=2e-3)  # the weights are stored in half precision
            assert float(row[f"{name} standard error"]) > 0
        assert int(row["best_step"]) == best["step"] and float(row["minutes"]) > 0
        assert float(row["us_per_pose_batch_1"]) > 0 and float(row["us_per_pose_batch_256"]) > 0
    text = (made / "out" / "table.md").read_text()
    assert all(f"| {row['row']}" in text for row in rows) and "* budget of a row: 96 samples" in text
    assert (made / "out" / "plot.png").stat().st_size > 10_000


def test_every_row_has_seen_the_same_number_of_samples(made: Path) -> None:
    rows = list(csv.DictReader((made / "out" / "table.csv").read_text().splitlines()))
    assert [(row["samples"], row["steps"]) for row in rows] == [("96", "12"), ("96", "6")]
    assert int(rows[0]["parameters"]) > int(rows[1]["parameters"])


def test_a_second_call_trains_nothing_and_a_failing_row_leaves_the_others(made: Path, capsys) -> None:
    def times() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in (made / "out" / "runs").rglob("*") if p.is_file()}

    before = times()
    assert call(made, ROWS + "  bad: {model.posenet_start: /nowhere/at_all}\n") == 1
    assert times() == before
    said = [line for line in capsys.readouterr().err.splitlines() if "failed" in line]
    assert len(said) == 1 and "row bad" in said[0] and "no weights file /nowhere/at_all" in said[0]
    assert said[0].endswith(str(made / "out" / "logs" / "bad.txt"))
    text = (made / "out" / "table.md").read_text()
    assert "| wide" in text and "| large batches" in text and "* bad: failed: exit code 2" in text


LONG = """
budget: {samples: 800}
rows:
  long:
"""


def begun(tmp: Path) -> subprocess.Popen[bytes]:
    """The command in a process of its own, once its row has saved itself."""
    (tmp / "try.yaml").write_text(SETTINGS + LONG)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = ["-m", "tools.ablate", str(tmp / "try.yaml"), "--out", str(tmp / "out")]
    process = subprocess.Popen([sys.executable, *words], env=environment, stderr=subprocess.PIPE)
    saved = tmp / "out" / "runs" / "long" / "checkpoints"
    while process.poll() is None and not list(saved.glob("step_*.pt")):
        time.sleep(0.02)
    return process


@pytest.mark.parametrize(
    ("number", "to_the_child", "code"),
    [(signal.SIGKILL, True, 1), pytest.param(signal.SIGINT, False, 130, marks=pytest.mark.slow)],
)
def test_a_row_that_was_stopped_goes_on(tmp_path: Path, number, to_the_child, code) -> None:
    run = tmp_path / "out" / "runs" / "long"
    process = begun(tmp_path)
    os.kill(int((run / ".lock").read_text()) if to_the_child else process.pid, number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == code, said.decode()
    steps = [int(row["step"]) for row in rows_of(run)]
    assert steps[-1] < 100 and not (tmp_path / "out" / "table.md").exists()
    assert ("stopped at step" in (run / "log.txt").read_text()) == (not to_the_child)
    assert call(tmp_path, LONG) == 0
    assert "resumed" in (run / "log.txt").read_text()
    assert sorted({int(row["step"]) for row in rows_of(run)}) == list(range(1, 101))
