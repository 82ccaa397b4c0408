"""The benchmark's training steps: speed, and peak memory each in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools import command
from tools.benchmark_measure import Findings, Measurement, Setup, memory_mb, summary, tune_allocator

if TYPE_CHECKING:
    import torch
    from torch import nn

    from gcn.objectives import Objective
    from gcn.train_state import StageConfig, TrainState
    from mesh.samples import Batch

_EPOCH_SAMPLES = 100_000
_STAGES = ("posenet", "meshnet")


def bench_training(setup: Setup) -> Findings:
    """A step of both stages: samples per second and peak memory, `full` and the original at one batch size."""
    large = 8 if setup.quick else 32
    found = Findings()
    for stage, network, size in (
        ("posenet", "default", 256),
        ("posenet", "original", 256),
        ("meshnet", "default", 64),
        ("meshnet", "default", large),
        ("meshnet", "full", large),
        ("meshnet", "ChebConv", large),
        ("meshnet", "original", large),
    ):
        found.measurements += _measured_apart(setup, stage, network, size)
    for quantity in ("step", "peak memory", "growth of memory"):
        row = {
            network: f"training, {_what('meshnet', network)}, batch {large}, {quantity}"
            for network in ("default", "full", "ChebConv", "original")
        }
        found.pairs += [(row[ours], row[other]) for ours in ("default", "full") for other in ("ChebConv", "original")]
    lifters = [f"training, {_what('posenet', network)}, batch 256, step" for network in ("default", "original")]
    found.pairs.append((lifters[0], lifters[1]))
    # Other batch sizes, same unit: samples per second.
    found.pairs.append(
        ("training, lifter and mesh network, default, batch 64, step", row_name("original", large, "step"))
    )
    return found


def row_name(network: str, size: int, quantity: str) -> str:
    """Line of the mesh stage."""
    return f"training, {_what('meshnet', network)}, batch {size}, {quantity}"


def _what(stage: str, network: str) -> str:
    return f"{'lifter' if stage == 'posenet' else 'lifter and mesh network'}, {network}"


def _measured_apart(setup: Setup, stage: str, network: str, size: int) -> list[Measurement]:
    """The lines of one network at one batch size, from a fresh process."""
    repeats = min(setup.repeats, 3) if network in ("ChebConv", "original") else setup.repeats
    words = [stage, network, str(size), str(repeats), str(setup.threads), setup.allocator, setup.device.type]
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-m", "tools.benchmark_training", *words],
        env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    result = json.loads(done.stdout.splitlines()[-1])
    name = f"training, {_what(stage, network)}, batch {size}"
    rates = [size / t for t in result["seconds"]]
    memory = {key: [result[key]] for key in ("peak memory", "growth of memory")}
    return [
        setup.summary(f"{name}, step", "samples/s", rates),
        *(setup.summary(f"{name}, {key}", "MB", values) for key, values in memory.items()),
    ]


def measure(stage: str, network: str, size: int, setup: Setup) -> dict[str, Any]:
    """Seconds of each step after the first, and the memory in MB that the process (on a GPU: its tensors) took."""
    import torch

    from gcn.train_state import ArithmeticConfig, make_state
    from gcn.trainer import Step

    before = memory_mb("VmRSS")
    model, objective, config = _task(stage, network, size, setup.device)
    batches = _batches(size, setup.device, with_vertices=stage == "meshnet")
    state = make_state(model, config)
    state.model.train()
    step = Step(
        config=config, objective=objective, forward=model, epoch_samples=_EPOCH_SAMPLES,
        dtype=ArithmeticConfig().dtype(setup.device),
    )  # fmt: skip

    def work() -> None:
        step(state, [batches[state.step % len(batches)]])

    seconds = setup.seconds(work)
    if setup.device.type == "cuda":
        peak = growth = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak, growth = memory_mb(), memory_mb() - before
    return {"seconds": seconds, "peak memory": peak, "growth of memory": growth}


def _task(stage: str, network: str, size: int, device: torch.device) -> tuple[nn.Module, Objective, StageConfig]:
    """A network, what it minimises, and how: the default as shipped, the others by the original's schedule."""
    from scipy.sparse import csr_matrix

    from gcn.layers.sparse import SparseMatrix
    from gcn.objectives import LifterObjective, MeshObjective
    from gcn.surface_loss import SurfaceLoss
    from mesh.body import load_body
    from mesh.joints import HUMAN36M17
    from tools.benchmark_networks import lifter_and_mesh
    from tools.experiment import load_experiment

    experiment = load_experiment(str(files("configs") / ("default.yaml" if network == "default" else "pose2mesh.yaml")))
    body = load_body()
    both = lifter_and_mesh(network, body, device)
    if stage == "posenet":
        config = replace(experiment.posenet_training, batch_size=size).in_steps(_EPOCH_SAMPLES)
        return both.posenet.requires_grad_(), LifterObjective(both.config, config.loss, device), config
    config = replace(experiment.meshnet_training, batch_size=size)
    both.requires_grad_().posenet.requires_grad_(not config.freeze_posenet)
    # From the first step on all of the original's terms: the edge term comes in later otherwise.
    config = replace(config, loss=replace(config.loss, edge_start_epoch=0.0)).in_steps(_EPOCH_SAMPLES)
    regressor = SparseMatrix(csr_matrix(body.regressor(HUMAN36M17))).to(device)
    surface = SurfaceLoss(body.faces).to(device)
    return both, MeshObjective(surface, regressor, config.loss.surface_share), config


def _batches(size: int, device: torch.device, *, with_vertices: bool) -> list[Batch]:
    """Two batches, made ahead: what a step costs by itself."""
    import torch

    from data.draws import Draws, step_generator
    from data.prior import load_pose_prior
    from data.synthesis import SynthesisConfig, Synthesiser
    from mesh.body import load_body

    synthesiser = Synthesiser(load_pose_prior(), load_body(), SynthesisConfig(), device=device)
    return [
        synthesiser.batch(
            torch.arange(size), Draws(size, step_generator(0, k, device), device=device), with_vertices=with_vertices
        )
        for k in range(2)
    ]


def bench_checkpoints(setup: Setup) -> Findings:
    """What the checkpoints of each stage cost at the default interval."""
    from gcn.train_state import make_state

    found = Findings()
    for stage, size in (("posenet", 256), ("meshnet", 64)):
        model, objective, config = _task(stage, "default", size, setup.device)
        state = make_state(model, config)
        found.measurements += _checkpoint_rows(stage, state, _step_seconds(setup, state, objective, config), setup)
    return found


def _step_seconds(setup: Setup, state: TrainState, objective: Objective, config: StageConfig) -> float:
    from gcn.trainer import Step

    batch = _batches(config.batch_size, setup.device, with_vertices=config.batch_size == 64)[0]
    state.model.train()
    step = Step(config=config, objective=objective, forward=state.model, epoch_samples=_EPOCH_SAMPLES)
    return summary("", "s", setup.seconds(lambda: step(state, [batch]))).median


def _checkpoint_rows(stage: str, state: TrainState, step_s: float, setup: Setup) -> list[Measurement]:
    """Size, what training waits for, and all processor time as a share of the interval's training time."""
    from gcn.checkpoint import CheckpointConfig, CheckpointFolder, load_checkpoint

    waits, costs = [], []
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = CheckpointFolder(Path(folder), CheckpointConfig(), begun=0)
        for number in range(setup.repeats + 1):
            began, cpu = time.perf_counter(), time.process_time()
            checkpoints.save({"state": state.state_dict()}, number)
            waits.append(time.perf_counter() - began)
            checkpoints.wait()
            costs.append(time.process_time() - cpu)
        file = checkpoints.file(setup.repeats)
        size = file.stat().st_size
        reads = setup.seconds(lambda: load_checkpoint(file))
        checkpoints.close()
    interval = CheckpointConfig().every_steps * step_s
    return [
        summary(f"checkpoint, {stage}, size", "MB", [size / 1e6]),
        summary(f"checkpoint, {stage}, training waits", "ms", [1e3 * w for w in waits[1:]]),
        summary(f"checkpoint, {stage}, processor time of a write", "ms", [1e3 * c for c in costs[1:]]),
        summary(f"checkpoint, {stage}, share of training time", "%", [100 * c / interval for c in costs[1:]]),
        summary(f"checkpoint, {stage}, read and check", "ms", [1e3 * r for r in reads]),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """One measurement, for `bench_training` in another process: its result as a line of JSON."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("stage", choices=_STAGES)
    p.add_argument("network")
    for name in ("size", "repeats", "threads"):
        p.add_argument(name, type=int)
    p.add_argument("allocator")
    p.add_argument("device")
    args = p.parse_args(argv)
    import torch

    torch.set_num_threads(args.threads)
    if args.allocator == "tuned":
        tune_allocator()
    setup = Setup(repeats=args.repeats, device=torch.device(args.device), threads=args.threads)
    print(json.dumps(measure(args.stage, args.network, args.size, setup)))
    return 0


if __name__ == "__main__":
    sys.exit(command.run(main))
