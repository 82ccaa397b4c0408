"""The command that fits the pose prior."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data.prior import load_pose_prior
from tools import command, fit_pose_prior

SMALL = ("--components", "1", "--rank", "2", "--iterations", "2")


@pytest.fixture(autouse=True)
def few_samples(monkeypatch) -> None:
    for name in ("_NUM_SAMPLES", "_NUM_QUERIES"):
        monkeypatch.setattr(fit_pose_prior, name, 50)


def call(folder: Path, *extra: str, **columns: np.ndarray) -> list[str]:
    """The words that fit 200 poses of two people."""
    poses = load_pose_prior().sample(200, torch.Generator().manual_seed(0))
    np.savez(folder / "p.npz", poses=poses, subject=np.repeat([1, 2], 100), **columns)
    return [str(folder / "p.npz"), "--out", str(folder / "prior.npz"), "--held-out", "1", *SMALL, *extra]


def run(folder: Path, *extra: str, **columns: np.ndarray) -> int:
    return command.run(fit_pose_prior.main, call(folder, *extra, **columns))


def test_all_poses_of_a_file_without_levels_are_used(tmp_path: Path, capsys) -> None:
    assert run(tmp_path) == 0
    assert "fitted to 100 poses, judged by 100 poses" in capsys.readouterr().out
    assert len(load_pose_prior(tmp_path / "prior.npz").weights) == 1


def test_of_a_file_with_levels_the_coarser_covers_are_used(tmp_path: Path, capsys) -> None:
    assert run(tmp_path, level=np.tile([0, 1, 1, 2], 50)) == 0
    assert "fitted to 75 poses, judged by 75 poses" in capsys.readouterr().out


@pytest.mark.usefixtures("nobody_reads")
def test_the_file_is_written_before_anything_is_printed(tmp_path: Path) -> None:
    with pytest.raises(BrokenPipeError):
        fit_pose_prior.main(call(tmp_path))
    assert len(load_pose_prior(tmp_path / "prior.npz").weights) == 1


def test_levels_that_are_asked_for_must_be_there(tmp_path: Path, capsys) -> None:
    assert run(tmp_path, "--max-level", "1") == 2
    assert "has no 'level' column" in capsys.readouterr().err
