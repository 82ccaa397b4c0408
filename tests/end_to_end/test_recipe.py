from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SHORT = [f"{stage}_training.steps=2" for stage in ("posenet", "meshnet", "labeling", "uncertainty")]


@pytest.mark.slow
def test_one_command_makes_all_weights_and_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    quaternions = rng.normal(size=(64, 24, 4)) * 0.2 + (1, 0, 0, 0)
    np.savez(tmp_path / "poses.npz", poses=quaternions / np.linalg.norm(quaternions, axis=-1, keepdims=True))
    words = [f"BIN={Path(sys.executable).parent}", f"RUNS={tmp_path}", f"POSES={tmp_path / 'poses.npz'}"]
    call = [
        "make",
        "-o",
        "setup",
        "weights",
        *words,
        f"SET={' '.join(['validation_poses=4', 'train.samples=0', *SHORT])}",
    ]
    for expected in ("done: best", "resumed"):
        said = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=900)
        assert said.returncode == 0 and (said.stdout + said.stderr).count(expected) >= 4, said.stderr
    np.save(tmp_path / "people.npy", rng.uniform(0, 500, (40, 17, 2)).astype(np.float32))
    recover = [str(tmp_path / "people.npy"), "--out", str(tmp_path / "out"), "--joint-set", "coco17"]
    weights = ["--weights", str(tmp_path / "recipe" / "pose2mesh.safetensors")]
    subprocess.run([sys.executable, "tools/recover.py", *recover, *weights], cwd=ROOT, check=True, timeout=300)
    with np.load(tmp_path / "out" / "people.npz") as found:
        # Two steps are no training: some meshes turn out upside down in the picture and are given up.
        assert np.isfinite(found["joint_error_m"]).all(1).sum() >= 5


def test_the_recipe_asks_for_poses(tmp_path: Path) -> None:
    call = ["make", "-o", "setup", "weights", f"RUNS={tmp_path}"]
    said = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert said.returncode == 2 and "expected a pose file: make weights POSES=" in said.stdout
    assert list(tmp_path.iterdir()) == []
