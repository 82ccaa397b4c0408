"""One training run from its command line to its end: resumed, watched, saved, stopped."""

from __future__ import annotations

import contextlib
import inspect
import platform
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from data.loading import TrainingBatches
from gcn.checkpoint import CheckpointFolder
from gcn.distributed import World, join_world, leave_world
from gcn.pose2mesh import graph_tensors, save_weights
from gcn.train_state import TrainState, make_state
from gcn.trainer import Step, StopTraining, fit
from mesh.body import load_body
from mesh.errors import InputError, require
from mesh.samples import Batch
from tools.experiment import ExperimentConfig, changes, dump_experiment, load_experiment, parse_experiment
from tools.plots import draw_plots
from tools.progress import TENSORBOARD_MISSING, Board, Progress
from tools.run_folder import Start, find_start
from tools.signals import StopSignals
from tools.stage_networks import dump_networks
from tools.stages import STAGES, Setting, Stage

FORMAT = "meshrecovery-training-1"
ACKNOWLEDGEMENT = (
    "The data used in this project was obtained from mocap.cs.cmu.edu. "
    "The database was created with funding from NSF EIA-0196217."
)


@dataclass(frozen=True, kw_only=True)
class Call:
    """What the command line of a training stage says. `resume`: None, "" (no value), or a path."""

    stage: str
    config: str | None
    name: str | None
    runs: Path
    resume: str | None
    overrides: tuple[str, ...]
    device: torch.device


def begin(call: Call) -> tuple[Start, ExperimentConfig]:
    """The configuration, and the locked folder or the saved state that the run begins from."""
    config = None if call.config is None else load_experiment(call.config, call.overrides)
    resume = call.resume if call.resume is not None or config is None else config.train.resume_from
    if config is None:
        require(
            resume is not None and (resume != "" or call.name is not None),
            "expected --config FILE for a new run, or --resume with a run folder, a checkpoint or --name",
        )
    stem = "run" if call.config is None else Path(call.config).stem
    start = find_start(call.runs, call.name, resume, default_name=f"{stem}_{call.stage}")
    with start.folder.unlocked_on_failure():
        if start.saved is not None:
            found = start.saved.get("format"), start.saved.get("stage")
            if found != (FORMAT, call.stage):
                raise InputError(f"the checkpoint is of {found[0]} {found[1]}; expected {FORMAT} {call.stage}")
        if config is None and start.saved is not None:
            config = parse_experiment(start.saved["config"], "the checkpoint's config", call.overrides)
        return start, config or load_experiment(start.folder.config, call.overrides)


def run(call: Call) -> int:
    """Train to the end or to a signal; the exit code, 0 or 128 + the signal's number."""
    world = join_world(call.device)
    try:
        with StopSignals() as signals:
            start, config = _on_main(world, call)
            try:
                _train(call, world, signals, start, config)
            except StopTraining:
                return signals.exit_code if signals.caught else 128 + 15
            finally:
                start.folder.unlock()
        return 0
    except BrokenPipeError:  # whoever read the progress has gone
        raise
    except OSError as exc:
        raise InputError(
            f"{exc.filename or 'writing'}: {exc.strerror}; the checkpoints are intact, --resume goes on"
        ) from exc
    except RuntimeError as exc:
        if "DataLoader worker" in str(exc):
            reason = str(exc).splitlines()[0]
            raise InputError(f"a data worker died: {reason}; --resume goes on from the last checkpoint") from exc
        raise
    finally:
        leave_world(world)


def _on_main(world: World, call: Call) -> tuple[Start, ExperimentConfig]:
    """Only the main process touches the folder; the others hear of it, or leave without a word."""
    if world.is_main:
        try:
            start, config = begin(call)
        except InputError as exc:
            world.from_main(exc)
            raise
        world.from_main((start, dump_experiment(config)))
        return start, config
    try:
        start, text = world.from_main(None)
    except InputError:
        raise SystemExit(2) from None
    return start, parse_experiment(text, "the main process's config")


def _train(call: Call, world: World, signals: StopSignals, start: Start, config: ExperimentConfig) -> None:
    saved = start.saved
    setting = Setting(
        config=config, body=load_body(config.body), world=world, saved=saved, stops=lambda: signals.caught > 0
    )
    stage = STAGES[call.stage](setting)
    epoch_samples = len(stage.training)
    stage = replace(stage, config=stage.config.in_steps(epoch_samples))
    best_by = config.checkpoint.metric or stage.best_by
    dtype = config.train.dtype(world.device)
    state = make_state(stage.model, stage.config, dtype)
    if saved is not None:
        _check_fit(saved, stage, dump_experiment(config))
        state.load_state_dict(saved["state"])
        is_branch = not start.folder.path.exists()
        require(
            not is_branch or state.step < stage.config.total,
            f"nothing is left to train: the checkpoint is at step {state.step}, the configured end is "
            f"{stage.config.total}; raise {stage.name}_training.steps or .epochs",
        )
        if is_branch or _measures_differ(saved["config"], dump_experiment(config)):
            state.best, state.best_step = None, None  # a branch has a best of its own, and so has another measure
    else:
        _rehearse(stage, state, best_by)
    pieces = stage.config.accumulate * world.size
    require(
        stage.config.batch_size >= pieces,
        f"a batch of {stage.config.batch_size} cannot be cut into {pieces} pieces (accumulate x processes)",
    )
    step = Step(
        config=stage.config, objective=stage.objective, forward=_wrap(stage.model, config, world),
        epoch_samples=epoch_samples, seed=config.seed, dtype=dtype, world=world,
    )  # fmt: skip

    def batches(current: TrainState) -> Iterator[list[Batch]]:
        source = TrainingBatches(
            stage.training, seed=config.seed, batch_size=stage.config.batch_size, accumulate=stage.config.accumulate,
            rank=world.rank, world_size=world.size, with_vertices=stage.with_vertices,
            begun=(current.step, current.position),
        )  # fmt: skip
        return source.stream(current.step, stage.config.total, config.train.workers)

    with RunObserver(config, stage, start, state, best_by, epoch_samples, world, signals) as observer:
        try:
            fit(
                state, step, batches, lambda model: stage.validate(model, None), config.checkpoint.is_better, best_by,
                observer,
            )  # fmt: skip
        except StopTraining:
            observer.stopped(state)
            raise
        observer.finish(state)


def _check_fit(saved: dict[str, Any], stage: Stage, config: str) -> None:
    """Refuse what the state would be loaded into without a complaint."""
    require(
        saved.get("notes", {}) == stage.notes,
        "the checkpoint was trained on other mesh weights than those at model.pose2mesh_weights: begin a new run",
    )
    for change in changes(saved["config"], config):
        if change.startswith(f"{stage.name}_training.optim.name:"):
            raise InputError(
                f"the checkpoint does not fit this configuration: {change}; keep the optimiser or begin a new run"
            )


def _rehearse(stage: Stage, state: TrainState, best_by: str) -> None:
    """Two validation batches before anything is made: what would fail later fails now."""
    state.average.eval()
    scores = stage.validate(state.average.module, 2)
    if best_by not in scores:
        raise InputError(f"checkpoint.metric {best_by!r} is not validated; expected one of {', '.join(sorted(scores))}")


def _wrap(model: nn.Module, config: ExperimentConfig, world: World) -> nn.Module:
    """The forward pass as it is trained: compiled if asked for, with gradients summed over the processes."""
    forward: Any = torch.compile(model) if config.train.compile else model
    if world.size > 1:
        parallel: Any = nn.parallel.DistributedDataParallel
        # Buffers need no sending: statistics are those of the whole batch in every process. PyTorch renamed the switch.
        renamed = "forward_sync_buffers" in inspect.signature(parallel).parameters
        silent = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
        forward = parallel(forward, device_ids=None if world.device.index is None else [world.device.index], **silent)
    return forward


class RunObserver:
    """Shows, records and saves a run; see `gcn.trainer.Observer`. Only the main process does any of it."""

    def __init__(
        self, config: ExperimentConfig, stage: Stage, start: Start, state: TrainState, best_by: str,
        epoch_samples: int, world: World, signals: StopSignals,
    ) -> None:  # fmt: skip
        self.config, self.stage, self.folder, self.best_by = config, stage, start.folder, best_by
        self.epoch_samples, self.world, self.signals = epoch_samples, world, signals
        self._saved_step: int | None = None
        self._logged = state.step
        if not world.is_main:
            return
        text = dump_experiment(config)
        notes = [] if start.saved is None else _differences(start.saved, text, epoch_samples)
        if not self.folder.path.exists():
            self.folder.create()
        self.folder.prepare(text, state.step, owes_validation=state.step not in state.history)
        scores = {step: scores[best_by] for step, scores in state.history.items() if best_by in scores}
        self.checkpoints = CheckpointFolder(self.folder.checkpoints, config.checkpoint, scores, begun=state.step)
        self.board = Board(self.folder.events, step=state.step)
        self.progress = Progress(
            stage.config.total, state.step, epoch_steps=epoch_samples / stage.config.batch_size,
            batch_size=stage.config.batch_size, stage=stage.name, log_file=self.folder.log,
        )  # fmt: skip
        if start.saved is not None:
            self.progress.note(f"resumed {self.folder.path} at step {state.step} of {stage.config.total}")
        if not self.board.is_active:
            notes.append(TENSORBOARD_MISSING)
        for note in notes:
            self.progress.note(f"note: {note}")

    def __enter__(self) -> RunObserver:
        if self.world.is_main:
            self.progress.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        if not self.world.is_main:
            return
        try:
            self.checkpoints.close()
        finally:
            # On a full disk the log fails as well; that must not hide what happened first.
            with contextlib.suppress(*((InputError, OSError) if exc[0] is not None else ())):
                self.board.close()
                self.progress.__exit__(*(exc if exc[0] is not StopTraining else (None, None, None)))

    def stops(self) -> bool:
        """Whether a signal came."""
        return self.signals.caught > 0

    def logged(self, state: TrainState, terms: dict[str, float], rate: float, data_s: float, step_s: float) -> None:
        """A line of metrics.jsonl and of the progress."""
        if not self.world.is_main:
            return
        samples = (state.step - self._logged) * self.stage.config.batch_size
        self._logged = state.step
        speed = {"lr": rate, "samples_per_s": samples / step_s, "data_share": data_s / step_s}
        self._record(state, {**terms, **speed}, "train")
        self.progress.update(state.step, terms, data_s, step_s)

    def epoch_ended(self, state: TrainState, terms: dict[str, float]) -> None:
        """One line."""
        if self.world.is_main:
            total = self.stage.config.total * self.stage.config.batch_size / self.epoch_samples
            scores = state.history[max(state.history)] if state.history else {}
            self.progress.epoch(state.position / self.epoch_samples, total, state.step, terms, scores)

    def validated(self, state: TrainState, scores: dict[str, float], *, is_best: bool) -> None:
        """Scores, plots and samples; the weights if they are the best."""
        if not self.world.is_main:
            return
        self._record(state, scores, "validation")
        self.progress.validation(state.step, scores, is_best)
        if is_best:
            notes = {
                **self.stage.notes,
                "step": str(state.step),
                self.best_by: f"{state.best:.4g}",
                "acknowledgement": ACKNOWLEDGEMENT,
            }
            integers = self.config.train.weights == "int8"
            save_weights(self.folder.weights, state.average.module, self.stage.networks, notes, integers=integers)
        if self.config.train.plots:
            self.folder.plots.mkdir(exist_ok=True)
            draw_plots(self.folder.rows(), self.folder.plots)
            if self.stage.draw_plot is not None:
                self.stage.draw_plot(self.folder.plots, state.step)
        if self.config.train.samples and self.stage.draw_samples is not None:
            self.folder.samples.mkdir(exist_ok=True)
            self.stage.draw_samples(state.average.module, self.folder.samples, self.config.train.samples, state.step)

    def _record(self, state: TrainState, values: dict[str, float], kind: str) -> None:
        self.folder.add_row({"step": state.step, "epoch": state.position / self.epoch_samples, **values})
        self.board.scalars(state.step, {f"{kind}/{name}": value for name, value in values.items()})

    def save_due(self, state: TrainState) -> bool:
        """Whether a checkpoint is due; also where an earlier write that failed is heard of."""
        return self.world.is_main and self.checkpoints.is_due(state.step)

    def save(self, state: TrainState) -> None:
        """Write everything in the background."""
        if not self.world.is_main or state.step == self._saved_step:
            return
        graph = self.stage.graph
        score = state.history.get(state.step, {}).get(self.best_by)
        payload = {
            "format": FORMAT,
            "stage": self.stage.name,
            "config": dump_experiment(self.config),
            "networks": dump_networks(self.stage.networks),
            "notes": dict(self.stage.notes),
            "graph": None if graph is None else graph_tensors(graph),
            "graph_digest": None if graph is None else graph.hierarchy.digest,
            "epoch_samples": self.epoch_samples,
            "environment": _environment(),
            "state": state.state_dict(),
        }
        self.checkpoints.save(payload, state.step, score)
        self._saved_step = state.step

    def stopped(self, state: TrainState) -> None:
        """A signal came; the last word once everything is on the disk."""
        if self.world.is_main:
            self.checkpoints.close()
            self.progress.note(f"stopped at step {state.step}, saved: --resume {self.folder.path} goes on")

    def finish(self, state: TrainState) -> None:
        """What stays after the end, and the last word."""
        if self.world.is_main:
            self.checkpoints.close(finished=True)
            best = "no score" if state.best is None else f"{self.best_by} {state.best:.4g} at step {state.best_step}"
            self.progress.note(f"done: best {best}, weights in {self.folder.weights}")


def _environment() -> dict[str, str]:
    """What the bits of a result depend on beside the configuration."""
    return {
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
    }


def _measures_differ(before: str, after: str) -> bool:
    """Whether scores of two configurations cannot be compared: other samples, or another metric."""
    measured = ("validation", "poses.", "synthesis.", "seed:", "body:", "checkpoint.metric", "checkpoint.mode")
    return any(change.startswith(measured) for change in changes(before, after))


def _differences(saved: dict[str, Any], config: str, epoch_samples: int) -> list[str]:
    """What is not as it was when the checkpoint was written."""
    notes = [f"resumed with {change}" for change in changes(saved["config"], config)]
    now = _environment()
    notes += [
        f"{name} is {now[name]}, was {before}: equal to rounding, not bit for bit"
        for name, before in saved["environment"].items()
        if now.get(name) != before
    ]
    if saved["epoch_samples"] != epoch_samples:
        notes.append(
            f"an epoch has {epoch_samples} poses, had {saved['epoch_samples']}: the order of samples is another"
        )
    return notes
