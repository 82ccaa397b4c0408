"""The README's quick start, word for word and at full length."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools import command, evaluate, train_meshnet, train_posenet

CONFIG = str(Path(__file__).parents[2] / "configs" / "quickstart.yaml")


@pytest.mark.slow
def test_the_quick_start_learns_to_pose_the_body(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert command.run(train_posenet.main, ["--config", CONFIG]) == 0
    assert command.run(train_meshnet.main, ["--config", CONFIG]) == 0
    weights = "runs/quickstart_meshnet/weights.safetensors"
    argv = ["--weights", weights, "--dataset", "prior", "--samples", "512", "--out", "out"]
    assert command.run(evaluate.main, argv) == 0
    exact = json.loads(Path("out/metrics.json").read_text())["metrics"]["gt"]
    # Measured: 51.9, 77.6, 139.5.
    assert exact["lift_pa_mpjpe_mm"] < 62 and exact["pa_mpjpe_mm"] < 95 and exact["mpvpe_mm"] < 170
