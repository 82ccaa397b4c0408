"""What each trained row is worth: errors on the same held-out samples, size, speed, and what its training took."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from scipy.sparse import csr_matrix
from torch import nn

from gcn.distributed import World
from gcn.evaluation import Errors, lift, lifter_errors, mesh_errors
from gcn.layers.sparse import SparseMatrix
from gcn.pose2mesh import ModelConfig, Pose2Mesh, load_pose2mesh, load_posenet
from mesh.body import Body, load_body
from mesh.errors import require
from mesh.joints import HUMAN36M17
from mesh.samples import Batch
from tools.ablation_config import Ablation, Run
from tools.benchmark_measure import Setup
from tools.run_folder import RunFolder
from tools.stages import Setting

MAIN_METRIC = {"posenet": "lift_mpjpe_mm", "meshnet": "mpvpe_mm"}
TIMED_BATCHES = (1, 256)
_TIMING_REPEATS = 5


@dataclass(frozen=True, kw_only=True)
class Training:
    """What one training took, and its validations: `samples` (N,) seen, `scores` (N,) each by their names.

    `samples_seen` and `minutes` (wall time of the training steps alone) are with those of the runs it starts from.
    """

    steps: int
    best_step: int
    samples_seen: int
    minutes: float
    samples: np.ndarray
    scores: Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Result:
    """One trained run. `errors`: per sample of the shared held-out set, (N,) by "exact/..." and "noisy/..."."""

    run: Run
    errors: Mapping[str, np.ndarray]
    parameters: int
    us_per_pose: Mapping[int, float]  # by batch size
    training: Training


@dataclass(frozen=True)
class _Network:
    """The trained network of a run, in evaluation mode: a lifter, or the whole of Pose2Mesh."""

    model: nn.Module
    config: ModelConfig

    def errors(self, batches: Sequence[Batch], body: Body, device: torch.device) -> Errors:
        """As the training's own validation has them."""
        model = self.model.to(device)
        if isinstance(model, Pose2Mesh):
            regressor = SparseMatrix(csr_matrix(body.regressor(HUMAN36M17))).to(device)
            return mesh_errors(model, regressor, batches)
        return lifter_errors(model, self.config, batches)

    def work(self, batch: Batch) -> Callable[[], object]:
        """One prediction on the CPU, from 2D joints in pixels."""
        model, config = self.model.to("cpu"), self.config

        @torch.inference_mode()
        def predict() -> object:
            if isinstance(model, Pose2Mesh):
                return model(batch.keypoints_px, batch.confidence, batch.intrinsics)
            return lift(model, config, batch)

        return predict


def measure(ablation: Ablation, runs: Sequence[Run], folder: Path, device: torch.device) -> list[Result]:
    """Judge finished runs on the held-out samples of the experiment that no row has changed, and time them in turn."""
    config = ablation.common_config()
    body = load_body(config.body)
    setting = Setting(config=config, body=body, world=World(device=device), saved=None, stops=lambda: False)
    held_out = setting.held_out(with_vertices=ablation.stage == "meshnet")
    networks = {run.name: _load(ablation.stage, folder / run.name, body) for run in runs}
    errors = {}
    for name, network in networks.items():
        found = {kind: network.errors(batches, body, device) for kind, batches in held_out.items()}
        errors[name] = {f"{kind}/{metric}": v.numpy() for kind, e in found.items() for metric, v in e.items()}
    speeds = _speeds(networks, next(iter(held_out.values()))[0].to("cpu"))
    trainings: dict[str, Training] = {}
    for run in runs:
        batch_size = getattr(ablation.config(run, folder), f"{ablation.stage}_training").batch_size
        before = [trainings[name] for name in run.starts.values()]
        trainings[run.name] = _training(RunFolder(folder / run.name), batch_size, before)
    return [
        Result(
            run=run, errors=errors[run.name], us_per_pose=speeds[run.name], training=trainings[run.name],
            parameters=sum(p.numel() for p in networks[run.name].model.parameters()),
        )
        for run in runs
    ]  # fmt: skip


def _load(stage: str, run: Path, body: Body) -> _Network:
    if stage == "posenet":
        return _Network(*load_posenet(RunFolder(run).weights))
    model = load_pose2mesh(RunFolder(run).weights, body)
    return _Network(model, model.config)


def _speeds(networks: Mapping[str, _Network], batch: Batch) -> dict[str, dict[int, float]]:
    """Median microseconds per pose of each run at each batch size, one thread, contenders in turn."""
    setup = Setup(repeats=_TIMING_REPEATS, device=torch.device("cpu"), threads=1, quick=True)
    rows = torch.arange(max(TIMED_BATCHES)) % len(batch)
    works = {
        (name, size): network.work(_rows(batch, rows[:size])) for name, network in networks.items()
        for size in TIMED_BATCHES
    }  # fmt: skip
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = setup.interleaved({f"{name}\n{size}": work for (name, size), work in works.items()})
    finally:
        torch.set_num_threads(before)
    speeds: dict[str, dict[int, float]] = {name: {} for name in networks}
    for name, size in works:
        speeds[name][size] = 1e6 * float(np.median(times[f"{name}\n{size}"])) / size
    return speeds


def _rows(batch: Batch, index: torch.Tensor) -> Batch:
    """Rows by number, (M,) int64, which may repeat."""
    return batch.where(index)


def _training(folder: RunFolder, batch_size: int, before: Sequence[Training]) -> Training:
    try:
        rows = folder.rows()
    except UnicodeDecodeError:
        rows = []
    validations = [row for row in rows if any("/" in name for name in row)]
    require(bool(validations), f"{folder.metrics} holds no validation; delete {folder.path} to train that row anew")
    begun = sum(training.samples_seen for training in before)
    steps = int(validations[-1]["step"])
    names = [name for name in validations[-1] if "/" in name]
    with safe_open(folder.weights, framework="np") as archive:
        best_step = int(archive.metadata()["step"])
    return Training(
        steps=steps, best_step=best_step, samples_seen=begun + steps * batch_size,
        minutes=sum(training.minutes for training in before) + _minutes(rows, steps, batch_size),
        samples=np.array([begun + row["step"] * batch_size for row in validations]),
        scores={name: np.array([row.get(name, np.nan) for row in validations]) for name in names},
    )  # fmt: skip


def _minutes(rows: Sequence[Mapping[str, float]], steps: int, batch_size: int) -> float:
    """Wall time of the steps, from their logged speed; steps after the last line went as fast as those before."""
    lines = [(row["step"], row["samples_per_s"]) for row in rows if row.get("samples_per_s", 0) > 0]
    seconds, done, rate = 0.0, 0.0, np.nan
    for step, rate in lines:
        seconds += (step - done) * batch_size / rate
        done = step
    return (seconds + (steps - done) * batch_size / rate) / 60
