"""Tiny trainings by the real command line: started, watched, killed, and compared bit for bit."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from gcn.checkpoint import checkpoint_steps, load_checkpoint

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
TIMING = ("samples_per_s", "data_share")  # what differs between two equal runs
POLL_S = 0.001


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is trained. The lifter of the mesh stage is a run folder."""

    stage: str = "posenet"
    steps: int = 400
    validate_every: int = 50
    log_every: int = 5
    save_every: int = 7
    batch_size: int = 8
    keep_last: int = 2
    keep_best: int = 1
    workers: int = 0
    accumulate: int = 1
    processes: int = 1
    validation_poses: int = 520  # more than two batches: there are moments in between
    pictures: bool = False
    lifter: Path | None = None
    seed: int = 0
    extra: tuple[str, ...] = field(default=())

    @property
    def most_files(self) -> int:
        """How many checkpoint files there may be at any instant."""
        return self.keep_last + self.keep_best + 1

    def overrides(self) -> list[str]:
        """Of the quick start's configuration."""
        section = f"{self.stage}_training"
        lifter = [] if self.lifter is None else [f"model.posenet_weights={self.lifter}"]
        return [
            f"seed={self.seed}", f"validation_poses={self.validation_poses}",
            "model.posenet.width=16", "model.posenet.blocks=1", "model.posenet.norm=batch",
            "model.posenet.dropout=0.2", "model.meshnet.upsampling_bodies=4",
            f"{section}.steps={self.steps}", f"{section}.batch_size={self.batch_size}",
            f"{section}.accumulate={self.accumulate}", f"{section}.validate_every={self.validate_every}",
            f"{section}.log_every={self.log_every}", f"{section}.optim.warmup=5", f"{section}.freeze_posenet=false",
            f"checkpoint.every_steps={self.save_every}", f"checkpoint.keep_last={self.keep_last}",
            f"checkpoint.keep_best={self.keep_best}", f"train.workers={self.workers}",
            f"train.plots={str(self.pictures).lower()}", f"train.samples={2 if self.pictures else 0}",
            *lifter, *self.extra,
        ]  # fmt: skip

    def command(self, folder: Path, *flags: str) -> list[str]:
        """The command line whose run folder is `folder`."""
        start = [sys.executable]
        if self.processes > 1:
            start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.processes}"]
        tool = str(ROOT / "tools" / f"train_{self.stage}.py")
        place = ["--runs", str(folder.parent), "--name", folder.name, "--threads", "1", "--device", "cpu"]
        return [*start, tool, "--config", str(QUICKSTART), *place, *flags, "--set", *self.overrides()]


def environment() -> dict[str, str]:
    """That of a child: this checkout's code, one thread."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


class Attempt:
    """One process (with its children) that trains in a run folder. Its output goes to a file beside the folder."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self.folder, self.output = folder, folder.with_name(f"{folder.name}.out")
        self._log, self._log_before = folder / "log.txt", _size(folder / "log.txt")
        with self.output.open("wb") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment(), start_new_session=True
            )
        self.row_at_start: dict[str, float] = {}

    @property
    def checkpoints(self) -> Path:
        """Where its checkpoints are."""
        return self.folder / "checkpoints"

    def wait_until(self, condition: Callable[[], bool], limit_s: float = 300.0, poll_s: float = POLL_S) -> bool:
        """Whether it came true before the process ended."""
        end = time.monotonic() + limit_s
        while self.process.poll() is None:
            if condition():
                return True
            if time.monotonic() > end:
                self.signal_all(signal.SIGKILL)
                raise TimeoutError(f"waited {limit_s:.0f} s in vain; {self.output} ends: {self.said()[-300:]}")
            time.sleep(poll_s)
        return False

    def wait_until_training(self) -> bool:
        """Until it has written to its log, so that its metrics are no longer those of the attempt before."""
        begun = self.wait_until(lambda: _size(self._log) != self._log_before)
        self.row_at_start = last_row(self.folder)
        return begun

    def signal_main(self, number: int) -> None:
        """To the process alone."""
        if self.process.poll() is None:
            self.process.send_signal(number)

    def signal_all(self, number: int) -> None:
        """To it and all its children, of whatever group."""
        for pid in [self.process.pid, *_descendants(self.process.pid)]:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def end(self, limit_s: float = 300.0) -> int:
        """Wait; the exit code."""
        self.wait_until(lambda: False, limit_s)
        return self.process.returncode

    def errors(self) -> str:
        """Its error lines, or else how its output ends."""
        lines = [line for line in self.said().splitlines() if "rror:" in line or "exitcode" in line]
        return "; ".join(lines) or self.said()[-600:]

    def said(self) -> str:
        """Everything on stdout and stderr."""
        return self.output.read_text(errors="replace")


def run_to_end(plan: Plan, folder: Path, *flags: str) -> Attempt:
    """One undisturbed attempt, which must end well."""
    attempt = Attempt(plan.command(folder, *flags), folder)
    try:
        code = attempt.end(600.0)
    except BaseException:
        attempt.signal_all(signal.SIGKILL)
        raise
    if code != 0:
        raise RuntimeError(f"exit code {code}: {attempt.said()[-600:]}")
    return attempt


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _descendants(pid: int) -> list[int]:
    found = []
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in listing.read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *_descendants(child)]
    return found


def last_row(folder: Path) -> dict[str, float]:
    """The last whole line of metrics.jsonl; empty if there is none."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().split(b"\n")[:-1]
        row: dict[str, float] = json.loads(lines[-1])
    except (OSError, IndexError, ValueError):
        return {}
    return row


def rows_of(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMING} for row in rows]


def differences(whole: Path, parts: Path) -> list[str]:
    """Where two finished runs are not equal bit for bit: last checkpoint's state, weights, metrics."""
    found = []
    found += [f"state{place}" for place in _unequal(last_state(whole), last_state(parts))]
    found += [f"weights{place}" for place in _unequal(_weights(whole), _weights(parts))]
    before, after = rows_of(whole), rows_of(parts)
    if len(before) != len(after):
        found.append(f"metrics.jsonl has {len(after)} rows, expected {len(before)}{_repeated(after)}")
    else:
        found += [f"metrics row {i} {place}" for i, two in enumerate(zip(before, after)) for place in _unequal(*two)]
    return found


def last_state(folder: Path) -> dict[str, Any]:
    """The state in a run's last checkpoint."""
    step = checkpoint_steps(folder / "checkpoints")[-1]
    state: dict[str, Any] = load_checkpoint(folder / "checkpoints" / f"step_{step:08d}.pt")["state"]
    return state


def _weights(folder: Path) -> dict[str, Any]:
    """Tensors and metadata (which safetensors keeps in no order) of a run's weights."""
    with safe_open(folder / "weights.safetensors", framework="pt") as archive:
        tensors = {name: archive.get_tensor(name) for name in sorted(archive.keys())}
        return {**tensors, "metadata": dict(sorted(archive.metadata().items()))}


def _repeated(rows: Sequence[Mapping[str, float]]) -> str:
    kinds = [(row["step"], "train" if "loss" in row else "validation") for row in rows]
    twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
    return f"; twice: {twice}" if twice else ""


def _unequal(one: Any, other: Any, place: str = "") -> list[str]:
    """The places at which two nests of dicts, lists, tensors and plain values differ in any bit."""
    if type(one) is not type(other):
        return [f"{place}: {type(one).__name__} and {type(other).__name__}"]
    if isinstance(one, Mapping):
        if list(one) != list(other):
            return [f"{place}: keys differ"]
        return [found for key in one for found in _unequal(one[key], other[key], f"{place}.{key}")]
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return [f"{place}: lengths differ"]
        return [found for i, two in enumerate(zip(one, other)) for found in _unequal(*two, f"{place}[{i}]")]
    if isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape and _bits(one) == _bits(other)
    elif isinstance(one, float):
        same = one.hex() == other.hex() or (math.isnan(one) and math.isnan(other))
    else:
        same = one == other
    return [] if same else [place]


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
