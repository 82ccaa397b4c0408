"""The benchmark's way around the networks: start-up, detection, synthesis, skinning, metrics, records, mesh files."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from mesh.errors import InputError
from tools.benchmark_measure import Findings, Setup, Work, seeded, summary


def bench_start(setup: Setup) -> Findings:
    """`recover` as a command, start-up included: one pose from a file, and one photo if the detector is there."""
    from data.detector_files import detector_paths
    from mesh.body import load_body
    from mesh.joints import COCO17

    found = Findings()
    with tempfile.TemporaryDirectory() as folder, as_file(files("data") / "samples" / "balance.jpg") as photo:
        pose = Path(folder) / "pose.npy"
        body = load_body()
        np.save(pose, ((body.regressor(COCO17) @ body.template)[None, :, :2] * (400, -400) + 500).astype(np.float32))
        commands: dict[str, Sequence[str]] = {"one pose": (str(pose), "--joint-set", "coco17")}
        try:
            detector_paths()
        except InputError as reason:
            print(f"no photo is timed: {reason}", file=sys.stderr)
        else:
            commands["one photo"] = (str(photo),)
        for what, words in commands.items():
            times = [_started(words, folder) for _ in range(1 + min(setup.repeats, 3 if setup.quick else 7))][1:]
            for clock, values in zip(("wall", "processor"), zip(*times)):
                found.measurements.append(summary(f"cold start, {what}, {clock} time", "s", values))
    return found


def _started(words: Sequence[str], folder: str) -> tuple[float, float]:
    """Wall and processor seconds of one call."""
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    began, before = time.perf_counter(), os.times()
    subprocess.run(
        [sys.executable, "-m", "tools.recover", *words, "--out", str(Path(folder) / "out"), "--device", "cpu"],
        env=environment, check=True, capture_output=True,
    )  # fmt: skip
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - began, cpu


def bench_detection(setup: Setup) -> Findings:
    """The 2D detector on the two sample photos."""
    from data.detection import Detector
    from data.images import read_image

    try:
        detector = Detector(num_threads=setup.threads)
    except InputError as reason:
        print(f"no detection is timed: {reason}", file=sys.stderr)
        return Findings()
    contenders: dict[str, Work] = {}
    with as_file(files("data") / "samples") as folder:
        for name in ("balance", "park"):
            image = read_image(folder / f"{name}.jpg")
            contenders[f"detection, {name}.jpg"] = partial(detector.detect, image)
            contenders[f"detection, {name}.jpg, whole picture only"] = partial(detector.detect, image, tiles=False)
    return Findings(setup.per_unit("ms/picture", contenders, scale=1e3))


def bench_synthesis(setup: Setup) -> Findings:
    """Training samples from the shipped prior, and with the original's noise beside its one-by-one way."""
    import torch

    from data.draws import Draws, step_generator
    from data.noise import NoiseConfig
    from data.prior import load_pose_prior
    from data.synthesis import SynthesisConfig, Synthesiser
    from mesh.body import load_body

    body, prior = load_body(), load_pose_prior()

    def made(config: SynthesisConfig, size: int, *, with_vertices: bool) -> tuple[float, Work]:
        synthesiser = Synthesiser(prior, body, config, device=setup.device)

        def work() -> None:
            draws = Draws(size, step_generator(0, 0, setup.device), device=setup.device)
            synthesiser.batch(torch.arange(size), draws, with_vertices=with_vertices)

        return size, work

    default = SynthesisConfig()
    published = replace(default, noise=NoiseConfig(model="coco", clean=0.0))
    same, original = "synthesis, COCO noise, vertices, batch 128", "synthesis, COCO noise, vertices, one by one"
    contenders = {
        "synthesis, joints, batch 256": made(default, 256, with_vertices=False),
        "synthesis, vertices, batch 64": made(default, 64, with_vertices=True),
        same: made(published, 128, with_vertices=True),  # as the recipe trains its mesh network
    }
    if setup.device.type == "cpu":
        from tools.original_loops import OneByOne

        rotations, shape = _bodies(8)
        contenders[original] = (8, partial(OneByOne(body).batch, rotations, shape, 0))
    return Findings(setup.rates("samples/s", contenders), [(same, original)])


def _bodies(count: int) -> tuple:
    """Random rotations (B, 24, 3, 3) and shape (B, 10)."""
    import torch

    from mesh.rotation import quaternion_to_matrix

    with seeded():
        quaternions = torch.nn.functional.normalize(torch.randn(count, 24, 4) + torch.tensor([6.0, 0, 0, 0]), dim=-1)
        return quaternion_to_matrix(quaternions), torch.randn(count, 10)


def bench_skinning(setup: Setup) -> Findings:
    """Linear blend skinning: pose and shape to vertices."""
    from mesh.body import load_body
    from mesh.skinning import BodyModel

    body = load_body()
    model = BodyModel(body).to(setup.device)
    contenders: dict[str, tuple[float, Work]] = {}
    for size in (1, 64):
        rotations, shape = (tensor.to(setup.device) for tensor in _bodies(size))
        contenders[f"skinning, batch {size}"] = (size, partial(model, rotations, shape))
    original = "skinning, one by one"
    if setup.device.type == "cpu":
        from tools.original_loops import OneBody

        contenders[original] = (1, partial(OneBody(body).vertices, *_bodies(1)))
    rows = setup.rates("bodies/s", contenders)
    return Findings(rows, [(row.name, original) for row in rows if row.name != original])


def bench_metrics(setup: Setup) -> Findings:
    """Errors of 1000 people beside loops over samples."""
    import torch

    from mesh.alignment import align
    from mesh.body import load_body
    from mesh.joints import HUMAN36M17
    from mesh.metrics import aligned_error_mm, point_error_mm
    from mesh.protocols import JointRegression
    from tools.original_loops import align_each, errors_of_each

    body, count = load_body(), 1000
    with seeded():
        true = torch.from_numpy(body.template) + 0.05 * torch.randn(count, 1, 3)
        true = (true + 0.02 * torch.randn(count, body.num_vertices, 3)).to(setup.device)
        predicted = (true.cpu() + 0.02 * torch.randn(count, body.num_vertices, 3)).to(setup.device)
    matrix = body.regressor(HUMAN36M17)
    regress = JointRegression(body, HUMAN36M17, device=setup.device)

    def errors() -> None:
        joints, true_joints = regress(predicted)[0], regress(true)[0]
        root, true_root = joints[:, :1], true_joints[:, :1]
        joints, true_joints = joints - root, true_joints - true_root
        point_error_mm(joints, true_joints)
        aligned_error_mm(joints, true_joints)
        point_error_mm(predicted, true, (true_root - root)[:, 0])

    poses, true_poses = predicted[:, ::400][:, :17].contiguous(), true[:, ::400][:, :17].contiguous()
    ours: dict[str, Work] = {
        f"metrics, {count} people": errors,
        f"Procrustes of 17 joints, {count} people": partial(align, poses, true_poses),
        f"Procrustes of all vertices, {count} people": partial(aligned_error_mm, predicted, true),
    }
    loops: dict[str, Work] = {}
    if setup.device.type == "cpu":
        arrays = predicted.numpy(), true.numpy()
        loops = {
            f"metrics, {count} people": partial(errors_of_each, *arrays, matrix),
            f"Procrustes of 17 joints, {count} people": partial(align_each, poses.numpy(), true_poses.numpy()),
            f"Procrustes of all vertices, {count} people": partial(_aligned_errors_of_each, *arrays),
        }
    contenders = {**ours, **{f"{name}, one by one": work for name, work in loops.items()}}
    rows = setup.per_unit("ms", contenders, scale=1e3)
    return Findings(rows, [(name, f"{name}, one by one") for name in ours])


def _aligned_errors_of_each(predicted: np.ndarray, true: np.ndarray) -> list[float]:
    from tools.original_loops import align_one

    return [float(np.sqrt(((align_one(a, b) - b) ** 2).sum(1)).mean() * 1000) for a, b in zip(predicted, true)]


def bench_files(setup: Setup) -> Findings:
    """Mesh files of one body beside a writer that goes line by line; each a new file, as `recover` writes them.

    To replace one costs the file system more than to write it: ext4 then sends the new one to the disk at once.
    """
    from mesh.body import load_body
    from mesh.files import MESH_WRITERS
    from tools.original_loops import write_obj_by_line

    body, original = load_body(), "write .obj, line by line"
    with tempfile.TemporaryDirectory() as folder:
        numbers = itertools.count()

        def written(write: Callable[[Path, np.ndarray, np.ndarray], None]) -> tuple[float, Work]:
            return 1, lambda: write(Path(folder) / str(next(numbers)), body.template, body.faces)

        contenders = {f"write .{form}": written(write) for form, write in MESH_WRITERS.items()}
        contenders[original] = written(write_obj_by_line)
        rows = setup.rates("meshes/s", contenders)
    return Findings(rows, [(row.name, original) for row in rows if row.name != original])


def bench_records(setup: Setup) -> Findings:
    """Records of 100,000 poses: writing, opening, and batches made of them."""
    from data.draws import Draws, step_generator
    from data.record_batches import RecordBatches, RecordSampling
    from data.records import RecordsWriter, open_records
    from data.synthesis import SynthesisConfig
    from mesh.body import load_body

    count, size = 100_000, 256
    poses = np.random.default_rng(0).normal(0, 0.3, (count, 24, 3)).astype(np.float32)
    found = Findings()
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
        found.measurements.append(summary("records, written", "rows/s", times))
        opening: dict[str, Work] = {f"records, opened, {count} rows": partial(open_records, path)}
        found.measurements += setup.per_unit("ms", opening, scale=1e3)
        sampling = RecordSampling(camera="random")
        maker = RecordBatches(open_records(path), load_body(), SynthesisConfig(), sampling, device=setup.device)
        order = maker.order(0)

        def work() -> None:
            draws = Draws(size, step_generator(0, 0, setup.device), device=setup.device)
            maker.batch(order.indices(0, size), draws, with_vertices=False)

        found.measurements += setup.rates("samples/s", {f"batches of records, joints, batch {size}": (size, work)})
    return found
