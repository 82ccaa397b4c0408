"""Measure speed and memory of every stage on this machine: warm-up, medians, spread."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tools import command

if TYPE_CHECKING:
    import torch

    from gcn.train_state import TrainState
    from gcn.trainer import Step


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One line of the table: the median of some repeats, and the quartiles around it."""

    name: str
    unit: str
    median: float
    low: float
    high: float
    repeats: int


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What the benchmarks share."""

    repeats: int
    device: torch.device

    def seconds(self, work: Callable[[], object]) -> list[float]:
        """Wall time of each repeat, after two that do not count; on a GPU until the work is done."""
        import torch

        times = []
        for repeat in range(self.repeats + 2):
            began = time.perf_counter()
            work()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            if repeat >= 2:
                times.append(time.perf_counter() - began)
        return times

    def rate(self, name: str, unit: str, count: float, work: Callable[[], object]) -> Measurement:
        """`count` units are done in one call of `work`."""
        return summary(name, unit, [count / t for t in self.seconds(work)])


def summary(name: str, unit: str, values: Sequence[float]) -> Measurement:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return Measurement(name=name, unit=unit, median=median, low=low, high=high, repeats=len(values))


def bench_machine(setup: Setup) -> list[Measurement]:
    """The machine's own limit: matrix products and copies in float32."""
    import torch

    a, b = (torch.randn(2048, 2048, device=setup.device) for _ in range(2))
    big, target = (torch.empty(64 * 2**20, device=setup.device) for _ in range(2))
    return [
        setup.rate("matrix product 2048^3", "GFLOP/s", 2 * 2048**3 / 1e9, lambda: a @ b),
        setup.rate("copy 256 MB", "GB/s", 2 * big.numel() * 4 / 1e9, lambda: target.copy_(big)),
    ]


def bench_networks(setup: Setup) -> list[Measurement]:
    """Lifter and default mesh network with the shipped weights, forward."""
    import torch

    from gcn.recovery import MeshRecovery

    model = MeshRecovery.from_pretrained(device=setup.device).model
    rows = []
    for size in (1, 8, 64):
        points = torch.rand(size, 19, 2, device=setup.device) * 200
        confidence = torch.ones(size, 19, device=setup.device)
        features = model.config.features(points, confidence)
        with torch.inference_mode():
            joints = model.posenet(features)
            for name, work in (
                ("lifter", partial(model.posenet, features)),
                ("mesh network", partial(model.meshnet, features, joints)),
            ):
                times = [1e3 * t / size for t in setup.seconds(work)]
                rows.append(summary(f"{name}, batch {size}", "ms/person", times))
    return rows


def bench_synthesis(setup: Setup) -> list[Measurement]:
    """Training samples from the shipped prior."""
    import torch

    from data.draws import Draws, step_generator
    from data.prior import load_pose_prior
    from data.synthesis import SynthesisConfig, Synthesiser
    from mesh.body import load_body

    synthesiser = Synthesiser(load_pose_prior(), load_body(), SynthesisConfig(), device=setup.device)

    def make(size: int, *, with_vertices: bool) -> Measurement:
        def work() -> None:
            draws = Draws(size, step_generator(0, 0, setup.device), device=setup.device)
            synthesiser.batch(torch.arange(size), draws, with_vertices=with_vertices)

        name = f"synthesis, {'joints and vertices' if with_vertices else 'joints'}, batch {size}"
        return setup.rate(name, "samples/s", size, work)

    return [make(256, with_vertices=False), make(64, with_vertices=True)]


def bench_records(setup: Setup) -> list[Measurement]:
    """Records of 100,000 poses: writing, opening, and batches made of them."""
    import numpy as np

    from data.draws import Draws, step_generator
    from data.record_batches import RecordBatches, RecordSampling
    from data.records import RecordsWriter, open_records
    from data.synthesis import SynthesisConfig
    from mesh.body import load_body

    count, size = 100_000, 256
    poses = np.random.default_rng(0).normal(0, 0.3, (count, 24, 3)).astype(np.float32)
    rows = []
    with tempfile.TemporaryDirectory() as folder:

        def write(number: int) -> Path:
            out = Path(folder) / str(number)
            with RecordsWriter(
                out, source="benchmark", split="train", licence="none", joints2d=None, joints3d=None
            ) as writer:
                writer.add("all", {"pose": poses})
                writer.finish()
            return out

        times = []
        for number in range(3):
            began = time.perf_counter()
            path = write(number)
            times.append(count / (time.perf_counter() - began))
        rows.append(summary("records, written", "rows/s", times))
        opened = [1e3 * t for t in setup.seconds(partial(open_records, path))]
        rows.append(summary(f"records, opened, {count} rows", "ms", opened))
        sampling = RecordSampling(camera="random")
        maker = RecordBatches(open_records(path), load_body(), SynthesisConfig(), sampling, device=setup.device)
        order = maker.order(0)

        def work() -> None:
            draws = Draws(size, step_generator(0, 0, setup.device), device=setup.device)
            maker.batch(order.indices(0, size), draws, with_vertices=False)

        rows.append(setup.rate(f"batches of records, joints, batch {size}", "samples/s", size, work))
    return rows


def bench_files(setup: Setup) -> list[Measurement]:
    """Mesh files of one body."""
    from mesh.body import load_body
    from mesh.files import write_obj, write_ply

    body = load_body()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, write in ((".obj", write_obj), (".ply", write_ply)):
            work = partial(write, Path(folder) / f"body{name}", body.template, body.faces)
            rows.append(setup.rate(f"write {name}", "meshes/s", 1, work))
    return rows


def bench_training(setup: Setup) -> list[Measurement]:
    """A training step of each stage with its data, and what its checkpoints cost at the default interval."""
    rows = []
    for stage, size in (("posenet", 256), ("meshnet", 64)):
        state, step, pieces = _training(stage, size, setup)

        def work(state: TrainState = state, step: Step = step, pieces: Callable = pieces) -> None:
            step(state, pieces(state.step))

        times = setup.seconds(work)
        rows.append(summary(f"training step, {stage}, batch {size}", "samples/s", [size / t for t in times]))
        rows += _checkpoint_rows(stage, state, statistics.median(times), setup)
    return rows


def _training(stage: str, size: int, setup: Setup) -> tuple[TrainState, Step, Callable]:
    """The default networks at work on the shipped prior."""
    from dataclasses import replace
    from importlib.resources import files

    from data.loading import TrainingBatches
    from gcn.distributed import World
    from gcn.train_state import make_state
    from gcn.trainer import Step
    from mesh.body import load_body
    from tools.experiment import ModelSection, PosesConfig, load_experiment
    from tools.stages import STAGES, Setting

    shipped = str(files("gcn") / "weights" / "pose2mesh.safetensors")
    config = load_experiment(str(files("configs") / "default.yaml"))
    config = replace(config, poses=PosesConfig(), validation_poses=1, model=ModelSection(posenet_weights=shipped))
    world = World(device=setup.device)
    built = STAGES[stage](Setting(config=config, body=load_body(), world=world, saved=None, stops=lambda: False))
    stage_config = replace(built.config, batch_size=size).in_steps(len(built.training))
    state = make_state(built.model, stage_config)
    state.model.train()
    step = Step(
        config=stage_config, objective=built.objective, forward=built.model,
        epoch_samples=len(built.training), world=world,
    )  # fmt: skip
    batches = TrainingBatches(built.training, seed=0, batch_size=size, with_vertices=built.with_vertices)
    return state, step, batches.__getitem__


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


BENCHMARKS: dict[str, Callable[[Setup], list[Measurement]]] = {
    "machine": bench_machine,
    "networks": bench_networks,
    "synthesis": bench_synthesis,
    "records": bench_records,
    "training": bench_training,
    "files": bench_files,
}


def environment(device: torch.device) -> dict[str, str]:
    """What the figures hold for."""
    import torch

    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "none"
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "load": f"{os.getloadavg()[0]:.1f}",
        "threads": str(torch.get_num_threads()),
        "gpu": gpu,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, print the table."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--only", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS), help="some of the parts")
    p.add_argument("--repeats", type=int, default=9, help="repeats that count, after two that do not")
    p.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu")
    p.add_argument("--json", type=Path, help="write everything to this file as well")
    args = p.parse_args(argv)
    import torch

    from mesh.errors import require
    from mesh.files import replacing

    require(args.repeats >= 2, f"--repeats must be at least 2, got {args.repeats}")
    require(args.threads >= 1, f"--threads must be at least 1, got {args.threads}")
    torch.set_num_threads(args.threads)
    setup = Setup(repeats=args.repeats, device=command.choose_device(args.device))
    about = environment(setup.device)
    print("  ".join(f"{key}: {value}" for key, value in about.items()))
    rows: list[Measurement] = []
    for name in args.only:
        for row in BENCHMARKS[name](setup):
            rows.append(row)
            print(f"{row.name:55} {row.median:10.4g} {row.unit:10} ({row.low:.4g} .. {row.high:.4g})", flush=True)
    if args.json is not None:
        with replacing(args.json) as file:
            file.write(json.dumps({"environment": about, "measurements": [asdict(r) for r in rows]}, indent=1).encode())
    return 0


if __name__ == "__main__":
    sys.exit(command.run(main))
