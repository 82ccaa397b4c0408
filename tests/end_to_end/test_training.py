"""The four training commands on tiny networks, resumed, evaluated and used."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from safetensors import safe_open

from gcn.checkpoint import newest_checkpoint
from mesh.body import load_body
from mesh.joints import COCO17, Keypoints
from tools import command, evaluate, recover, train_labeling, train_meshnet, train_posenet, train_uncertainty
from tools.run_folder import RunFolder

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
TINY = (
    "validation_poses=8", "model.meshnet.upsampling_bodies=4", "train.plots=false", "train.samples=0",
    "model.posenet.width=32", "model.posenet.blocks=1", "model.labeling.width=16",
    "model.uncertainty.width=16",
    *(f"{stage}_training.{key}" for stage in ("posenet", "labeling", "uncertainty", "meshnet")
      for key in ("batch_size=8", "steps=6", "validate_every=3", "log_every=2", "optim.warmup=2")),
)  # fmt: skip

CYCLIC = ("model.lifter=cyclic", "model.cyclic.width=16")
BONES = tuple(f"posenet_training.loss.bone_{name}=0.1" for name in ("length", "vector", "symmetry"))
DENOISE = (
    "model.denoise=true", "model.denoiser.width=16", "model.denoiser.norm=batch",
    "model.posenet_start={runs}/lifter", "posenet_training.freeze_posenet=true",
)  # fmt: skip


def run(tool, runs: Path, name: str, *extra: str, flags: tuple[str, ...] = ()) -> int:
    argv = ["--config", str(QUICKSTART), "--runs", str(runs), "--name", name, *flags, "--set", *TINY, *extra]
    return command.run(tool.main, argv)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lifter and a mesh network trained for six steps each."""
    runs = tmp_path_factory.mktemp("runs")
    shown = ("train.plots=true", "train.samples=2")
    assert run(train_posenet, runs, "lifter", *shown) == 0
    assert run(train_meshnet, runs, "mesh", f"model.posenet_weights={runs}/lifter", *shown) == 0
    return runs


def state_of(path: Path) -> dict[str, Any]:
    """What the newest checkpoint of a run holds."""
    found = newest_checkpoint(path / "checkpoints")
    assert found is not None
    return found[1]["state"]


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return state_of(path)["model"]


def rows_of(path: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("samples_per_s", "data_share")} for row in rows]


def identical(a: Any, b: Any) -> bool:
    """Bit for bit, through dicts and lists."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(identical(a[k], b[k]) for k in a)
    return all(map(identical, a, b)) and len(a) == len(b) if isinstance(a, list) else a == b


def test_a_run_folder_holds_everything(runs: Path) -> None:
    common = {
        ".lock", "config.yaml", "metrics.jsonl", "log.txt", "weights.safetensors", "checkpoints/step_00000006.pt",
        "plots/train_loss.png", "plots/joint_error.png",
    }  # fmt: skip
    people = {f"samples/person{k}{what}.obj" for k in (0, 1) for what in ("", "_truth")}
    own = {"lifter": {"samples/poses.png"}, "mesh": {"plots/surface_error.png", "samples/people.png", *people}}
    for name, more in own.items():
        files = {str(p.relative_to(runs / name)) for p in (runs / name).rglob("*") if p.is_file()}
        best = f"checkpoints/step_{state_of(runs / name)['best_step']:08d}.pt"
        assert files == common | more | {best}
        assert [row["step"] for row in rows_of(runs / name)] == [2, 3, 4, 6, 6]


def test_the_mesh_stage_logs_all_five_terms(runs: Path) -> None:
    first = json.loads((runs / "mesh" / "metrics.jsonl").read_text().splitlines()[0])
    assert {"vertex", "normal", "edge", "mesh_joint", "lift_joint"} <= first.keys()


def test_a_frozen_lifter_stays_as_it_was(runs: Path) -> None:
    after = weights_of(runs / "mesh")
    with safe_open(runs / "lifter" / "weights.safetensors", framework="pt") as archive:
        for name in archive.keys():  # noqa: SIM118
            torch.testing.assert_close(after[name], archive.get_tensor(name).float())


@pytest.mark.parametrize(
    ("tool", "also"),
    [
        (train_posenet, ()),
        (train_posenet, ("model.posenet.norm=batch", "model.posenet.dropout=0.5", "posenet_training.accumulate=3")),
        (train_posenet, ("train.workers=1",)),
        (train_posenet, ("model.posenet_start={runs}/lifter", "poses.augmentation.recombine=0.5")),
        (train_posenet, ("model.lifter=split", "model.split.width=16")),
        (train_posenet, ("model.lifter=martinez", "model.martinez.width=16")),
        (train_posenet, ("model.lifter=semgcn", "model.semgcn.width=8", "model.semgcn.dropout=0.2")),
        (train_posenet, (*CYCLIC, "posenet_training.loss.cycle_decay_epochs=0.001", *BONES)),
        (train_posenet, ("model.depth_only=true", "posenet_training.accumulate=2")),
        (train_posenet, DENOISE),
        (
            train_meshnet,
            (
                "model.posenet_weights={runs}/lifter",
                "meshnet_training.freeze_posenet=false",
                "meshnet_training.loss.edge_start_epoch=0.0004",
            ),
        ),
        (train_labeling, ()),
        (train_uncertainty, ("model.pose2mesh_weights={runs}/mesh", "uncertainty_training.accumulate=2")),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_state(runs: Path, tmp_path: Path, tool, also, monkeypatch) -> None:
    extra = [
        f"model.posenet_weights={runs}/lifter",
        "checkpoint.every_steps=1",
        *(setting.format(runs=runs) for setting in also),
    ]
    assert run(tool, tmp_path, "whole", *extra) == 0
    from gcn.trainer import Step

    real = Step.__call__
    for die_at, flags in ((1, ()), (4, ("--resume",))):

        def die(self, state, pieces, *, stop=False, die_at=die_at):
            if state.step == die_at:
                raise KeyboardInterrupt
            return real(self, state, pieces, stop=stop)

        monkeypatch.setattr(Step, "__call__", die)
        assert run(tool, tmp_path, "parts", *extra, flags=flags) == 130
    monkeypatch.setattr(Step, "__call__", real)
    assert run(tool, tmp_path, "parts", *extra, flags=("--resume",)) == 0
    assert identical(state_of(tmp_path / "whole"), state_of(tmp_path / "parts"))
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "parts")


def test_expected_errors_are_learnt_of_mesh_weights_that_stay_out_of_the_file(
    runs: Path, tmp_path: Path, capsys
) -> None:
    weights = tmp_path / "mesh.safetensors"
    shutil.copy(runs / "mesh" / "weights.safetensors", weights)
    mesh = f"model.pose2mesh_weights={weights}"
    assert run(train_uncertainty, tmp_path, "errors", mesh, "train.plots=true") == 0
    with safe_open(tmp_path / "errors" / "weights.safetensors", framework="pt") as archive:
        names, metadata = archive.keys(), archive.metadata()
    assert all(name.startswith("uncertainty.") for name in names) and metadata["kind"] == "uncertainty"
    assert not [name for name in weights_of(tmp_path / "errors") if "posenet" in name or "meshnet" in name]
    plots = {path.name for path in (tmp_path / "errors" / "plots").iterdir()}
    assert plots == {"train_loss.png", "expected_error.png", "reliability.png"}
    last = rows_of(tmp_path / "errors")[-1]
    ranks = ("joint_rank", "within_joint_rank", "person_rank", "expected_over_true", "nll")
    assert {f"{kind}/{name}" for kind in ("exact", "noisy") for name in ranks} <= last.keys()
    assert last["nll"] == pytest.approx((last["exact/nll"] + last["noisy/nll"]) / 2)

    shutil.copy(tmp_path / "errors" / "weights.safetensors", tmp_path / "uncertainty.safetensors")
    from gcn.recovery import MeshRecovery

    people = Keypoints(
        positions_px=np.random.default_rng(0).normal(300, 90, (2, 17, 2)), confidence=np.ones((2, 17)), joint_set=COCO17
    )
    assert MeshRecovery.from_pretrained(weights)._uncertainty is not None  # barely trained meshes need not be valid

    assert run(train_meshnet, tmp_path, "other", f"model.posenet_weights={runs}/lifter", "seed=1") == 0
    shutil.copy(tmp_path / "other" / "weights.safetensors", weights)
    capsys.readouterr()
    assert command.run(train_uncertainty.main, ["--resume", str(tmp_path / "errors")]) == 2
    assert "trained on other mesh weights" in capsys.readouterr().err
    argv = [tmp_path / "none.npy", "--weights", weights, "--out", tmp_path / "out", "--joint-set", "coco17"]
    np.save(tmp_path / "none.npy", people.positions_px)
    assert command.run(recover.main, [str(a) for a in argv]) == 2
    assert "tells the errors of other mesh weights" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_expected_errors_need_mesh_weights_and_a_body_with_a_mirror_table(
    runs: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    assert run(train_uncertainty, tmp_path, "x", "model.pose2mesh_weights=null") == 2
    assert "add --set model.pose2mesh_weights=" in capsys.readouterr().err
    assert run(train_uncertainty, tmp_path, "x", f"model.pose2mesh_weights={runs}/lifter") == 2
    assert "holds posenet weights; expected pose2mesh" in capsys.readouterr().err
    from tools import training

    plain = replace(training.load_body(None), mirror=None)
    monkeypatch.setattr(training, "load_body", lambda path: plain)
    assert run(train_uncertainty, tmp_path, "x", f"model.pose2mesh_weights={runs}/mesh") == 2
    assert "has no mirror table" in capsys.readouterr().err and not (tmp_path / "x").exists()


@pytest.mark.parametrize("frozen", [True, False])
def test_a_mesh_network_learns_on_a_cyclic_lifter(tmp_path: Path, frozen: bool) -> None:
    assert run(train_posenet, tmp_path, "lifter", *CYCLIC) == 0
    first = json.loads((tmp_path / "lifter" / "metrics.jsonl").read_text().splitlines()[0])
    assert {"lift_joint", "cycle"} <= first.keys()
    extra = (f"model.posenet_weights={tmp_path}/lifter", f"meshnet_training.freeze_posenet={str(frozen).lower()}")
    assert run(train_meshnet, tmp_path, "mesh", *extra) == 0
    after = weights_of(tmp_path / "mesh")
    with safe_open(tmp_path / "lifter" / "weights.safetensors", framework="pt") as archive:
        begun = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
    moved = {name for name, value in begun.items() if not torch.equal(after[name].half(), value.half())}
    learned = {name for name in moved if name.endswith(("weight", "bias"))}
    assert bool(learned) is not frozen and not any("decoder" in name for name in learned)


def test_weights_in_whole_numbers_go_through_both_stages_and_recover(tmp_path: Path) -> None:
    wide = ("train.weights=int8", "model.posenet.width=512")
    assert run(train_posenet, tmp_path, "lifter", *wide) == 0
    assert run(train_meshnet, tmp_path, "mesh", *wide, f"model.posenet_weights={tmp_path}/lifter") == 0
    kept = {}
    for name in ("lifter", "mesh"):
        with safe_open(tmp_path / name / "weights.safetensors", framework="pt") as archive:
            kept[name] = archive.get_tensor("posenet.blocks.0.layers.3.weight")
    assert kept["lifter"].dtype == torch.int8 and torch.equal(kept["lifter"], kept["mesh"])
    assert weights_of(tmp_path / "mesh")["posenet.blocks.0.layers.3.weight"].dtype == torch.float32
    np.save(tmp_path / "pose.npy", 100 * np.random.default_rng(0).random((1, 17, 2)))
    argv = [str(tmp_path / "pose.npy"), "--weights", str(tmp_path / "mesh" / "weights.safetensors")]
    assert command.run(recover.main, [*argv, "--joint-set", "coco17", "--out", str(tmp_path / "out")]) == 0
    assert list((tmp_path / "out").glob("pose*"))


def test_a_denoiser_learns_behind_a_frozen_lifter(runs: Path, tmp_path: Path) -> None:
    assert run(train_posenet, tmp_path, "refined", *(setting.format(runs=runs) for setting in DENOISE)) == 0
    after = weights_of(tmp_path / "refined")
    with safe_open(runs / "lifter" / "weights.safetensors", framework="pt") as archive:
        for name in archive.keys():  # noqa: SIM118
            inner = f"lifter.{name.removeprefix('posenet.')}"
            torch.testing.assert_close(after[inner], archive.get_tensor(name).float())
    assert after["denoiser.decoder.4.weight"].abs().max() > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("posenet_training.freeze_posenet=true",), "freeze_posenet needs a trained lifter"),
        (("posenet_training.freeze_posenet=true", "model.posenet_start={runs}/lifter"), "leaves nothing to train"),
        ((*CYCLIC, "posenet_training.loss.cycle=0"), "learns by its cycle alone"),
        ((*CYCLIC, "model.depth_only=true"), "learns by its cycle alone"),
        (("model.lifter=transformer",), "model.lifter: Invalid value 'transformer'"),
    ],
)
def test_lifters_that_cannot_learn_are_refused(runs: Path, tmp_path: Path, settings, message: str, capsys) -> None:
    assert run(train_posenet, tmp_path, "x", *(setting.format(runs=runs) for setting in settings)) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_a_run_goes_on_from_its_folder_without_a_config(runs: Path, tmp_path: Path, capsys) -> None:
    assert run(train_posenet, tmp_path, "a") == 0
    argv = ["--resume", str(tmp_path / "a"), "--set", "posenet_training.steps=8"]
    assert command.run(train_posenet.main, argv) == 0
    assert "resumed with posenet_training.steps: 6 -> 8" in capsys.readouterr().err
    assert state_of(tmp_path / "a")["step"] == 8 and [r["step"] for r in rows_of(tmp_path / "a")][-2:] == [8, 8]


def test_another_measure_begins_a_best_of_its_own(tmp_path: Path) -> None:
    assert run(train_posenet, tmp_path, "a") == 0
    argv = ["--resume", str(tmp_path / "a"), "--set", "posenet_training.steps=7"]
    assert command.run(train_posenet.main, [*argv, "validation_poses=5", "posenet_training.optim.lr=1e-9"]) == 0
    assert state_of(tmp_path / "a")["best_step"] == 7


def test_a_branch_leaves_the_first_run_alone(runs: Path, tmp_path: Path) -> None:
    before = (runs / "lifter" / "metrics.jsonl").read_text()
    argv = ["--resume", str(runs / "lifter"), "--name", "branch", "--runs", str(tmp_path)]
    assert command.run(train_posenet.main, [*argv, "--set", "posenet_training.steps=8"]) == 0
    assert state_of(tmp_path / "branch")["step"] == 8 and (tmp_path / "branch" / "weights.safetensors").is_file()
    assert (runs / "lifter" / "metrics.jsonl").read_text() == before and state_of(runs / "lifter")["step"] == 6


@pytest.mark.parametrize("steps", [2, 6])
def test_a_branch_with_nothing_left_to_train_is_refused(runs: Path, tmp_path: Path, steps: int, capsys) -> None:
    argv = ["--resume", str(runs / "lifter"), "--name", "branch", "--runs", str(tmp_path)]
    assert command.run(train_posenet.main, [*argv, "--set", f"posenet_training.steps={steps}"]) == 2
    assert f"the checkpoint is at step 6, the configured end is {steps}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_has_reached_its_end_says_that_it_is_done(runs: Path, capsys) -> None:
    assert command.run(train_posenet.main, ["--resume", str(runs / "lifter")]) == 0
    assert "done: best exact/lift_mpjpe_mm" in capsys.readouterr().err


def test_resume_from_in_the_config_is_the_same_as_on_the_command_line(runs: Path, tmp_path: Path) -> None:
    file = runs / "lifter" / "checkpoints" / "step_00000006.pt"
    assert run(train_posenet, tmp_path, "b", f"train.resume_from={file}", "posenet_training.steps=7") == 0
    assert [row["step"] for row in rows_of(tmp_path / "b")] == [7]


def test_an_older_checkpoint_of_a_run_needs_a_name_of_its_own(tmp_path: Path, capsys) -> None:
    assert run(train_posenet, tmp_path, "c", "checkpoint.every_steps=1", "checkpoint.keep_every=4") == 0
    older = tmp_path / "c" / "checkpoints" / "step_00000004.pt"
    assert command.run(train_posenet.main, ["--resume", str(older)]) == 2
    assert "has the newer checkpoint step_00000006.pt" in capsys.readouterr().err
    argv = ["--resume", str(older), "--runs", str(tmp_path), "--name", "d"]
    assert command.run(train_posenet.main, argv) == 0
    assert torch.equal(*(weights_of(tmp_path / n)["stem.weight"] for n in "cd"))


def test_a_checkpoint_of_another_stage_is_refused(runs: Path, capsys) -> None:
    assert command.run(train_meshnet.main, ["--resume", str(runs / "lifter")]) == 2
    assert "expected meshrecovery-training-1 meshnet" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path: Path, capsys) -> None:
    assert run(train_posenet, tmp_path, "e", "checkpoint.every_steps=1", "checkpoint.keep_every=1") == 0
    newest = tmp_path / "e" / "checkpoints" / "step_00000006.pt"
    whole = state_of(tmp_path / "e")
    newest.write_bytes(newest.read_bytes()[:-100])
    assert run(train_posenet, tmp_path, "e", flags=("--resume",)) == 0
    said = capsys.readouterr().err
    assert "step_00000006.pt is not a readable checkpoint" in said and "going back to step_00000005.pt" in said
    assert identical(state_of(tmp_path / "e"), whole)


def test_an_unknown_metric_is_refused_before_a_folder_is_made(tmp_path: Path, capsys) -> None:
    assert run(train_posenet, tmp_path, "f", "checkpoint.metric=mpjpe") == 2
    assert "expected one of exact/lift_mpjpe_mm" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_two_runs_in_one_folder_are_refused(runs: Path, capsys) -> None:
    folder = RunFolder(runs / "lifter")
    folder.lock()
    assert run(train_posenet, runs, "lifter", flags=("--resume",)) == 2
    assert f"in use by process {os.getpid()}" in capsys.readouterr().err
    folder.unlock()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_stops(tmp_path: Path, number, code, monkeypatch) -> None:
    from gcn.trainer import Step

    real = Step.__call__

    def signalled(self, state, pieces, *, stop=False):
        if state.step == 2:
            os.kill(os.getpid(), number)
        return real(self, state, pieces, stop=stop)

    assert run(train_posenet, tmp_path, "whole") == 0
    monkeypatch.setattr(Step, "__call__", signalled)
    before = signal.getsignal(number)
    assert run(train_posenet, tmp_path, "stopped") == code
    assert signal.getsignal(number) is before
    monkeypatch.setattr(Step, "__call__", real)
    stopped = state_of(tmp_path / "stopped")
    assert stopped["step"] == 3 and stopped["history"] == {}  # the validation of step 3 is owed
    assert run(train_posenet, tmp_path, "stopped", flags=("--resume",)) == 0
    assert identical(state_of(tmp_path / "stopped"), state_of(tmp_path / "whole"))


def test_a_progress_that_nobody_reads_is_no_full_disk(tmp_path: Path, monkeypatch) -> None:
    def write(text: str) -> NoReturn:
        raise BrokenPipeError

    monkeypatch.setattr(sys.stderr, "write", write)
    with pytest.raises(BrokenPipeError):
        train_posenet.main(["--config", str(QUICKSTART), "--runs", str(tmp_path), "--set", *TINY])


def test_a_run_folder_is_never_overwritten(runs: Path, capsys) -> None:
    before = (runs / "lifter" / "metrics.jsonl").read_text()
    assert run(train_posenet, runs, "lifter") == 2
    assert "exists; continue it with --resume" in capsys.readouterr().err
    assert (runs / "lifter" / "metrics.jsonl").read_text() == before


def test_there_must_be_something_to_resume_and_a_lifter_to_start_from(tmp_path: Path, capsys) -> None:
    assert run(train_posenet, tmp_path, "none", flags=("--resume",)) == 2
    assert "nothing to resume" in capsys.readouterr().err
    assert run(train_meshnet, tmp_path, "none", "model.posenet_weights=null") == 2
    assert "starts from a trained lifter" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_mesh_network_can_go_on_from_trained_weights(runs: Path, tmp_path: Path) -> None:
    weights = runs / "mesh" / "weights.safetensors"
    extra = (f"model.posenet_weights={weights}", f"model.meshnet_weights={weights}", "meshnet_training.optim.lr=1e-12")
    assert run(train_meshnet, tmp_path, "further", *extra) == 0
    with safe_open(weights, framework="pt") as archive:
        given = archive.get_tensor("meshnet.offsets.weight").float()
    torch.testing.assert_close(weights_of(tmp_path / "further")["meshnet.offsets.weight"], given, atol=1e-6, rtol=0)


def test_a_lifter_can_go_on_from_trained_weights(runs: Path, tmp_path: Path) -> None:
    start = (f"model.posenet_start={runs}/lifter", "posenet_training.optim.lr=1e-12", "model.posenet.width=64")
    assert run(train_posenet, tmp_path, "further", *start) == 0
    with safe_open(runs / "lifter" / "weights.safetensors", framework="pt") as archive:
        given = archive.get_tensor("posenet.stem.weight").float()
    torch.testing.assert_close(weights_of(tmp_path / "further")["stem.weight"], given, atol=1e-6, rtol=0)


def test_a_frozen_lifter_has_no_dropout_and_keeps_its_statistics(tmp_path: Path) -> None:
    noisy = ("model.posenet.norm=batch", "model.posenet.dropout=0.5")
    assert run(train_posenet, tmp_path, "lifter", *noisy) == 0
    assert run(train_meshnet, tmp_path, "mesh", f"model.posenet_weights={tmp_path}/lifter") == 0
    with safe_open(tmp_path / "lifter" / "weights.safetensors", framework="pt") as archive:
        given = {name: archive.get_tensor(name) for name in archive.keys() if "running" in name}  # noqa: SIM118
    state = state_of(tmp_path / "mesh")
    for name, value in given.items():
        assert torch.equal(state["model"][name], value.float())
        assert torch.equal(state["average"][f"module.{name}"], value.float())
    assert given


def test_a_refused_resume_leaves_the_run_as_it_was(runs: Path, capsys) -> None:
    before = (runs / "lifter" / "config.yaml").read_text()
    assert run(train_posenet, runs, "lifter", "model.posenet.width=17", flags=("--resume",)) == 2
    assert "does not fit this configuration" in capsys.readouterr().err
    assert (runs / "lifter" / "config.yaml").read_text() == before


@pytest.mark.parametrize("name", ["rmsprop", "adam"])  # adam has the same state as adamw, and would go on as that
def test_a_checkpoint_of_another_optimiser_is_refused(runs: Path, tmp_path: Path, name: str, capsys) -> None:
    argv = ["--resume", str(runs / "lifter"), "--runs", str(tmp_path), "--name", "x"]
    wanted = ("posenet_training.steps=8", f"posenet_training.optim.name={name}")
    assert command.run(train_posenet.main, [*argv, "--set", *wanted]) == 2
    message = f"does not fit this configuration: posenet_training.optim.name: adamw -> {name}; keep the optimiser"
    assert message in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_trained_weights_are_evaluated_with_a_protocol(runs: Path, tmp_path: Path, capsys) -> None:
    weights = runs / "mesh" / "weights.safetensors"
    argv = ["--weights", weights, "--dataset", "prior", "--samples", 300, "--out", tmp_path]
    assert command.run(evaluate.main, [str(a) for a in argv]) == 0
    assert "mpvpe_mm" in capsys.readouterr().out
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["metrics"].keys() == {"gt", "noisy"} and report["protocol"]["samples"] == 300
    assert report["metrics"]["gt"]["mpvpe_mm"] > report["metrics"]["gt"]["pa_mpjpe_mm"] > 10


def test_the_mean_with_the_mirror_image_is_measured_on_request(runs: Path, tmp_path: Path, capsys) -> None:
    weights = runs / "mesh" / "weights.safetensors"
    argv = ["--weights", weights, "--dataset", "prior", "--samples", 40, "--input", "gt"]
    found = {}
    for name, extra in (("plain", []), ("mirror", ["--mirror"])):
        assert command.run(evaluate.main, [str(a) for a in (*argv, "--out", tmp_path / name, *extra)]) == 0
        found[name] = json.loads((tmp_path / name / "metrics.json").read_text())
    assert "mesh" not in found["plain"]["protocol"] and "mirror image" in found["mirror"]["protocol"]["mesh"]
    errors = [found[name]["metrics"]["gt"]["mpvpe_mm"] for name in ("plain", "mirror")]
    assert abs(errors[0] - errors[1]) > 0.1
    argv = ["--weights", runs / "lifter" / "weights.safetensors", "--dataset", "prior", "--mirror"]
    assert command.run(evaluate.main, [str(a) for a in argv]) == 2
    assert "--mirror are about meshes" in capsys.readouterr().err


def test_own_weights_recover_meshes(runs: Path, tmp_path: Path) -> None:
    body = load_body()
    standing = (body.regressor(COCO17) @ body.template)[:, :2] * (120, -120) + 300
    np.save(tmp_path / "p.npy", standing + np.random.default_rng(0).normal(0, 3, (2, len(COCO17), 2)))
    weights, out = runs / "mesh" / "weights.safetensors", tmp_path / "o"
    argv = [tmp_path / "p.npy", "--joint-set", "coco17", "--weights", weights, "--out", out]
    assert command.run(recover.main, [str(a) for a in argv]) == 0
    with np.load(out / "p.npz") as result:
        assert result["vertices"].shape == (2, 6890, 3) and np.isfinite(result["vertices"]).all()
