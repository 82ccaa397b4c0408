"""The trainings of an ablation: one process each, begun, resumed, watched and stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from mesh.body import load_body
from mesh.errors import InputError
from mesh.files import replacing
from mesh.lock import FolderLock
from tools.ablation_config import Ablation, Run
from tools.experiment import ExperimentConfig, batch_maker, changes, dump_experiment, load_experiment
from tools.run_folder import RunFolder
from tools.signals import StopSignals

_POLL_S = 0.1


@dataclass(frozen=True)
class Folder:
    """Where an ablation keeps what it makes. Only the one process that locked it writes `ledger`."""

    path: Path

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    @property
    def ledger(self) -> Path:
        return self.path / "ablation.json"

    def run(self, run: Run) -> RunFolder:
        return RunFolder(self.runs / run.name)

    def log(self, run: Run) -> Path:
        """What the run's process said."""
        return self.path / "logs" / f"{run.name}.txt"

    def lock(self) -> FolderLock:
        return FolderLock(self.path, f"ablation folder {self.path}")

    def make(self) -> None:
        """All folders, proven before anything trains."""
        for folder in (self.runs, self.path / "logs", self.path / "configs"):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as exc:
                raise InputError(f"cannot make the folder {folder}: {exc.strerror}") from exc


@dataclass
class Ledger:
    """What must be remembered between two calls: runs that ended well, and the steps that minutes came to."""

    file: Path
    finished: list[str] = field(default_factory=list)
    steps: dict[str, tuple[float, int]] = field(default_factory=dict)  # run: minutes, steps

    @classmethod
    def load(cls, file: Path) -> Ledger:
        if not file.is_file():
            return cls(file)
        try:
            content: dict[str, Any] = json.loads(file.read_text())
            steps = {k: (float(v[0]), int(v[1])) for k, v in content["steps"].items()}
            return cls(file, [str(name) for name in content["finished"]], steps)
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError) as exc:
            raise InputError(f"{file} is not readable: {exc!r}; move it away, rows are then looked at anew") from exc

    def save(self) -> None:
        with replacing(self.file) as file:
            file.write(json.dumps({"finished": sorted(self.finished), "steps": self.steps}, indent=1).encode())


@dataclass
class _Child:
    run: Run
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    log_began: int


class Trainings:
    """Trains the runs of an ablation, `jobs` at a time, each on one thread; what has been done is not done again."""

    def __init__(self, ablation: Ablation, folder: Folder, jobs: int, device: torch.device) -> None:
        self._ablation, self._folder, self._jobs, self._device = ablation, folder, jobs, device
        self._ledger = Ledger.load(folder.ledger)
        self.failures: dict[str, str] = {}  # run: why

    def check(self, runs: Sequence[Run]) -> None:
        """Refuse to go on with a run that was begun with another configuration, or from weights that are gone."""
        for run in runs:
            folder = self._folder.run(run)
            if not folder.config.is_file():
                continue
            before = load_experiment(folder.config)
            differing = changes(dump_experiment(before), dump_experiment(self._config(run)))
            if differing:
                raise InputError(
                    f"row {run.row.label} was begun otherwise: {'; '.join(differing)}; choose another --out, or delete "
                    f"{folder.path} to train that row anew"
                )
            gone = [name for name in run.starts.values() if not RunFolder(self._folder.runs / name).weights.is_file()]
            if gone:
                raise InputError(
                    f"row {run.row.label} began from the run {gone[0]}, which is not there any more: delete "
                    f"{folder.path} as well to train both anew"
                )

    def check_data(self, runs: Sequence[Run]) -> None:
        """Open the poses or records of all that is still to train, and those that judge: nothing trains in vain."""
        judge = self._ablation.common_config()
        opened: list[object] = []
        for config, validation, whose in (
            (judge, True, "what judges all rows"),
            *((self._config(run), False, f"row {run.row.label}") for run in runs if not self.is_finished(run)),
        ):
            data = (config.body, config.validation_dataset if validation else config.datasets, config.poses, validation)
            if data in opened:
                continue
            opened.append(data)
            try:
                batch_maker(config, load_body(config.body), validation=validation, device=self._device)
            except InputError as exc:
                raise InputError(f"{self._ablation.path}, {whose}: {exc}") from exc

    def is_finished(self, run: Run) -> bool:
        """Whether it ended well and is still there."""
        return run.name in self._finished_names()

    def train(self, runs: Sequence[Run], signals: StopSignals) -> None:
        """Train what is not finished. A run that fails is kept in `failures`, the others go on."""
        waiting = [run for run in runs if not self.is_finished(run)]
        children: list[_Child] = []
        try:
            while (waiting or children) and not signals.caught:
                self._give_up_on_followers(waiting)
                ready = [run for run in waiting if all(n in self._finished_names() for n in run.starts.values())]
                if ready and len(children) < self._jobs:
                    waiting.remove(ready[0])
                    child = self._begin(ready[0])
                    children += [child] if child else []
                    continue
                time.sleep(_POLL_S)
                children = self._watched(children)
        finally:
            self._stop(children, signals.caught or signal.SIGTERM)

    def _finished_names(self) -> list[str]:
        return [name for name in self._ledger.finished if RunFolder(self._folder.runs / name).weights.is_file()]

    def _config(self, run: Run) -> ExperimentConfig:
        return self._ablation.config(run, self._folder.runs, self._measured_steps(run))

    def _measured_steps(self, run: Run) -> int | None:
        """Of a budget in minutes, as far as the run has been begun."""
        minutes = self._ablation.minutes(run.row)
        if minutes is None or run.name not in self._ledger.steps or not self._folder.run(run).path.exists():
            return None
        before, steps = self._ledger.steps[run.name]
        if before != minutes:
            raise InputError(
                f"row {run.row.label} was begun with {before:g} minutes, now it is {minutes:g}; choose another --out, "
                f"or delete {self._folder.run(run).path} to train that row anew"
            )
        return steps

    def _begin(self, run: Run) -> _Child | None:
        """Start the process of a run; None if it cannot be started."""
        try:
            config = self._begun_config(run)
            file = self._folder.path / "configs" / f"{run.name}.yaml"
            with replacing(file) as stream:
                stream.write(dump_experiment(config).encode())
        except InputError as exc:
            self._failed(run, str(exc))
            return None
        exists = self._folder.run(run).path.exists()
        if run.name in self._ledger.finished:  # its folder was deleted: it is finished no more
            self._ledger.finished.remove(run.name)
            self._ledger.save()
        say(f"{run.name}: {'goes on' if exists else 'begins'}, {self._steps(config):,} steps")
        words = [
            *("--config", str(file), "--name", run.name, "--runs", str(self._folder.runs)),
            *("--threads", "1", "--device", self._device.type, *(["--resume"] if exists else [])),
        ]
        root = Path(__file__).parents[1]
        path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
        log = self._folder.log(run).open("ab")
        began = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", f"tools.train_{self._ablation.stage}", *words],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,  # Ctrl-C comes from us, once
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        return _Child(run, process, log, began)

    def _begun_config(self, run: Run) -> ExperimentConfig:
        """The configuration, after a rehearsal if the budget is in minutes."""
        config, minutes = self._config(run), self._ablation.minutes(run.row)
        if minutes is None or self._measured_steps(run) is not None:
            return config
        from tools.ablation_rehearsal import step_seconds

        seconds = step_seconds(config, self._ablation.stage, self._device)
        steps = max(1, int(minutes * 60 / seconds))
        say(f"{run.name}: {1000 * seconds:.1f} ms a step")
        self._ledger.steps[run.name] = (minutes, steps)
        self._ledger.save()
        return self._ablation.config(run, self._folder.runs, steps)

    def _steps(self, config: ExperimentConfig) -> int:
        return int(getattr(config, f"{self._ablation.stage}_training").total)

    def _watched(self, children: list[_Child]) -> list[_Child]:
        """Those that are still at work."""
        running = []
        for child in children:
            code = child.process.poll()
            if code is None:
                running.append(child)
                continue
            child.log.close()
            if code == 0:
                self._ledger.finished = sorted({*self._ledger.finished, child.run.name})
                self._ledger.save()
                say(f"{child.run.name}: finished")
            else:
                said = self._folder.log(child.run).read_bytes()[child.log_began :].decode(errors="replace").split("\n")
                last = next((line for line in reversed(said) if line.strip()), "it said nothing")
                self._failed(child.run, f"exit code {code}: {last.strip()}")
        return running

    def _failed(self, run: Run, why: str) -> None:
        self.failures[run.name] = why
        say(f"row {run.row.label} (run {run.name}) failed: {why}; see {self._folder.log(run)}")

    def _give_up_on_followers(self, waiting: list[Run]) -> None:
        for run in list(waiting):
            lost = [name for name in run.starts.values() if name in self.failures]
            if lost:
                waiting.remove(run)
                self._failed(run, f"it starts from {lost[0]}, which failed")

    def _stop(self, children: Sequence[_Child], number: int) -> None:
        """Ask every child once; each saves itself and ends."""
        for child in children:
            if child.process.poll() is None:
                child.process.send_signal(number)
        for child in children:
            child.process.wait()
            child.log.close()
            say(f"{child.run.name}: stopped; the same command goes on")


def say(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)
