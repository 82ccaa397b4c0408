"""The three training commands on tiny networks, resumed, evaluated and used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from gcn.checkpoint import load_checkpoint
from mesh.joints import COCO17
from tools import command, evaluate, recover, train_labeling, train_meshnet, train_posenet

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
TINY = (
    "validation_poses=8", "model.meshnet.upsampling_bodies=4",
    "model.posenet.width=32", "model.posenet.blocks=1", "model.labeling.width=16",
    *(f"{stage}_training.{key}" for stage in ("posenet", "labeling", "meshnet")
      for key in ("batch_size=8", "steps=6", "validate_every=3", "log_every=2", "optim.warmup_steps=2")),
)  # fmt: skip


def run(tool, stage_dir: Path, name: str, *extra: str, flags: tuple[str, ...] = ()) -> int:
    argv = ["--config", str(QUICKSTART), "--runs", str(stage_dir), "--name", name, *flags, "--set", *TINY, *extra]
    return command.run(tool.main, argv)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lifter and a mesh network trained for six steps each."""
    runs = tmp_path_factory.mktemp("runs")
    assert run(train_posenet, runs, "lifter") == 0
    assert run(train_meshnet, runs, "mesh", f"posenet_weights={runs}/lifter/weights.safetensors") == 0
    return runs


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path / "checkpoints" / "last.pt")["state"]["model"]


def test_a_run_folder_holds_config_metrics_checkpoint_and_weights(runs: Path) -> None:
    for name in ("lifter", "mesh"):
        files = {str(p.relative_to(runs / name)) for p in (runs / name).rglob("*") if p.is_file()}
        assert files == {"config.yaml", "metrics.jsonl", "checkpoints/last.pt", "weights.safetensors"}
        rows = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [2, 3, 4, 6, 6]


def test_the_mesh_stage_logs_all_five_terms(runs: Path) -> None:
    first = json.loads((runs / "mesh" / "metrics.jsonl").read_text().splitlines()[0])
    assert {"vertex", "normal", "edge", "mesh_joint", "lift_joint"} <= first.keys()


def test_a_frozen_lifter_stays_as_it_was(runs: Path) -> None:
    before, after = weights_of(runs / "lifter"), weights_of(runs / "mesh")
    averaged = load_checkpoint(runs / "lifter" / "checkpoints" / "last.pt")["state"]["average"]
    for name in before:
        torch.testing.assert_close(after[f"posenet.{name}"], averaged[f"module.{name}"], atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize(
    ("tool", "also"),
    [
        (train_posenet, ()),
        (train_posenet, ("model.posenet.norm=batch", "model.posenet.dropout=0.5")),
        (train_meshnet, ()),
        (train_labeling, ()),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_weights(runs: Path, tmp_path: Path, tool, also, monkeypatch) -> None:
    extra = [f"posenet_weights={runs}/lifter/weights.safetensors", *also]
    assert run(tool, tmp_path, "whole", *extra) == 0
    from tools import stages

    real = stages.save_checkpoint

    def save_then_stop(path: Path, state: dict) -> None:
        real(path, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "save_checkpoint", save_then_stop)
    assert run(tool, tmp_path, "parts", *extra) == 130
    monkeypatch.setattr(stages, "save_checkpoint", real)
    assert run(tool, tmp_path, "parts", *extra, flags=("--resume",)) == 0
    whole, parts = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert whole.keys() == parts.keys() and all(torch.equal(whole[k], parts[k]) for k in whole)


def test_a_run_folder_is_never_overwritten(runs: Path, capsys) -> None:
    before = (runs / "lifter" / "metrics.jsonl").read_text()
    assert run(train_posenet, runs, "lifter") == 2
    assert "exists; continue it with --resume" in capsys.readouterr().err
    assert (runs / "lifter" / "metrics.jsonl").read_text() == before


def test_there_must_be_something_to_resume_and_a_lifter_to_start_from(tmp_path: Path, capsys) -> None:
    assert run(train_posenet, tmp_path, "none", flags=("--resume",)) == 2
    assert "nothing to resume" in capsys.readouterr().err
    assert run(train_meshnet, tmp_path, "none", "posenet_weights=null") == 2
    assert "starts from a trained lifter" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_mesh_network_can_go_on_from_trained_weights(runs: Path, tmp_path: Path) -> None:
    weights = runs / "mesh" / "weights.safetensors"
    extra = (f"posenet_weights={weights}", f"meshnet_weights={weights}", "meshnet_training.optim.lr=1e-12")
    assert run(train_meshnet, tmp_path, "further", *extra) == 0
    with safe_open(weights, framework="pt") as archive:
        given = archive.get_tensor("meshnet.to_mesh.weight").float()
    torch.testing.assert_close(weights_of(tmp_path / "further")["meshnet.to_mesh.weight"], given, atol=1e-6, rtol=0)


def test_a_frozen_lifter_has_no_dropout_and_keeps_its_statistics(tmp_path: Path) -> None:
    noisy = ("model.posenet.norm=batch", "model.posenet.dropout=0.5")
    assert run(train_posenet, tmp_path, "lifter", *noisy) == 0
    assert run(train_meshnet, tmp_path, "mesh", f"posenet_weights={tmp_path}/lifter/weights.safetensors") == 0
    with safe_open(tmp_path / "lifter" / "weights.safetensors", framework="pt") as archive:
        given = {name: archive.get_tensor(name) for name in archive.keys() if "running" in name}  # noqa: SIM118
    after = weights_of(tmp_path / "mesh")
    assert given and all(torch.equal(after[name], value.float()) for name, value in given.items())


def test_a_refused_resume_leaves_the_run_as_it_was(runs: Path, capsys) -> None:
    before = (runs / "lifter" / "config.yaml").read_text()
    assert run(train_posenet, runs, "lifter", "model.posenet.width=17", flags=("--resume",)) == 2
    assert "does not fit this configuration" in capsys.readouterr().err
    assert (runs / "lifter" / "config.yaml").read_text() == before


def test_trained_weights_are_evaluated_with_a_protocol(runs: Path, tmp_path: Path, capsys) -> None:
    weights = runs / "mesh" / "weights.safetensors"
    argv = ["--weights", weights, "--dataset", "prior", "--samples", 300, "--out", tmp_path]
    assert command.run(evaluate.main, [str(a) for a in argv]) == 0
    assert "mpvpe_mm" in capsys.readouterr().out
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["metrics"].keys() == {"gt", "noisy"} and report["protocol"]["samples"] == 300
    assert report["metrics"]["gt"]["mpvpe_mm"] > report["metrics"]["gt"]["pa_mpjpe_mm"] > 10


def test_own_weights_recover_meshes(runs: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", np.random.default_rng(0).normal(300, 90, (2, len(COCO17), 2)))
    weights, out = runs / "mesh" / "weights.safetensors", tmp_path / "o"
    argv = [tmp_path / "p.npy", "--joint-set", "coco17", "--weights", weights, "--out", out]
    assert command.run(recover.main, [str(a) for a in argv]) == 0
    with np.load(out / "p.npz") as result:
        assert result["vertices"].shape == (2, 6890, 3)
