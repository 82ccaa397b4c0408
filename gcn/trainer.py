"""The training loop of every stage: plain functions on one state.

Every random number of step k is a function of (seed, k), and every sum that is logged is part of the state: a run that
was killed anywhere and resumed does what it would have done.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gcn.distributed import World
from gcn.losses import LossWeights
from gcn.objectives import Objective
from gcn.optim import OptimConfig, learning_rate, make_optimiser
from gcn.pose2mesh import Pose2Mesh
from mesh.errors import InputError, require
from mesh.samples import Batch


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Length and rhythm of one training stage.

    The length is given in `steps` (updates) or in `epochs`; `validate_every`, `optim.warmup` and `optim.milestones`
    count the same. One epoch is one pass over the poses.
    """

    steps: int | None = None  # neither this nor epochs: 10,000
    epochs: float | None = None
    batch_size: int = 256  # of one update, over all pieces and processes
    accumulate: int = 1  # pieces that a process takes its share of the batch in: less memory, the same samples
    ema: float = 0.999  # decay of the averaged weights that are validated and shipped; 0: off
    validate_every: float = 1000.0
    log_every: int = 100  # steps
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossWeights = field(default_factory=LossWeights)
    freeze_posenet: bool = False  # mesh stage: leave the lifter as it is

    def __post_init__(self) -> None:
        require(
            self.steps is None or self.epochs is None,
            f"a stage's length is given in steps or in epochs, got both: {self.steps} steps, {self.epochs} epochs",
        )
        require(self.steps is None or self.steps >= 1, f"steps must be at least 1, got {self.steps}")
        positive = self.epochs is None or 0 < self.epochs < math.inf
        require(positive, f"epochs must be positive and finite, got {self.epochs}")
        for name in ("batch_size", "log_every", "accumulate"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        require(0 < self.validate_every < math.inf, f"validate_every must be positive, got {self.validate_every}")
        require(0 <= self.ema < 1, f"ema must lie in [0, 1), got {self.ema}")

    @property
    def total(self) -> int:
        """Updates in all, of a stage that counts in steps."""
        return 10_000 if self.steps is None else self.steps

    def in_steps(self, epoch_samples: int) -> StageConfig:
        """The same stage counted in steps, for so many samples in an epoch."""
        if self.epochs is None:
            return replace(self, steps=self.total, validate_every=float(max(1, round(self.validate_every))))
        per_epoch = epoch_samples / self.batch_size

        def steps(epochs: float) -> int:
            return max(1, math.ceil(epochs * per_epoch - 1e-9))

        optim = replace(
            self.optim,
            warmup=self.optim.warmup * per_epoch,
            milestones=tuple(steps(m) for m in self.optim.milestones),
        )
        return replace(
            self, steps=steps(self.epochs), epochs=None, validate_every=float(steps(self.validate_every)), optim=optim
        )


@dataclass(frozen=True, kw_only=True)
class ArithmeticConfig:
    """How the networks compute. `auto` is bf16 on a GPU that has it and float32 everywhere else."""

    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    compile: bool = False  # torch.compile: slow to start, needs a C++ compiler on the CPU

    def dtype(self, device: torch.device) -> torch.dtype:
        """The type of the matrix products on a device."""
        if self.precision == "auto":
            has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
            return torch.bfloat16 if has_bf16 else torch.float32
        if self.precision == "fp16" and device.type != "cuda":
            raise InputError("train.precision fp16 needs a GPU; take float32 or bf16 on the CPU")
        return {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]


@dataclass
class Means:
    """Running means of the loss terms since some moment."""

    count: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, values: Mapping[str, float]) -> None:
        """One step's terms."""
        self.count += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def take(self) -> dict[str, float]:
        """The means; and begin again."""
        means = {name: value / max(1, self.count) for name, value in self.sums.items()}
        self.count, self.sums = 0, {}
        return means


@dataclass
class TrainState:
    """Everything that changes during a run; what is saved is what is used."""

    model: nn.Module
    average: AveragedModel
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    position: int = 0  # samples taken from the endless order of epochs
    best: float | None = None
    best_step: int | None = None
    history: dict[int, dict[str, float]] = field(default_factory=dict)  # validation scores by step
    window: Means = field(default_factory=Means)  # since the last log line
    epoch: Means = field(default_factory=Means)  # since the epoch began

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types only."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "position": self.position,
            "best": self.best,
            "best_step": self.best_step,
            "history": {step: dict(scores) for step, scores in self.history.items()},
            "window": {"count": self.window.count, "sums": dict(self.window.sums)},
            "epoch": {"count": self.epoch.count, "sums": dict(self.epoch.sums)},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state; refuses one of another network."""
        try:
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.scaler.load_state_dict(state["scaler"])
            self.step, self.position = int(state["step"]), int(state["position"])
            self.best, self.best_step = state["best"], state["best_step"]
            self.history = {int(step): dict(scores) for step, scores in state["history"].items()}
            self.window, self.epoch = Means(**state["window"]), Means(**state["epoch"])
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as exc:
            reason = " ".join(str(exc).split())[:300] or type(exc).__name__
            raise InputError(f"the checkpoint does not fit this configuration: {reason}") from exc


def make_state(model: nn.Module, config: StageConfig, dtype: torch.dtype = torch.float32) -> TrainState:
    """A fresh state: optimiser over what is trainable, average equal to the model."""
    return TrainState(
        model=model,
        average=AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=False),
        optimiser=make_optimiser(config.optim, model),
        scaler=torch.amp.GradScaler("cuda", enabled=dtype == torch.float16),
    )


def step_seed(seed: int, step: int, piece: int) -> int:
    """Seed of what the network itself draws (dropout) for one piece of a step's batch."""
    return int(np.random.SeedSequence((seed, step, piece, 1)).generate_state(1, np.uint64)[0])


class _NotFiniteError(Exception):
    """A loss term or the gradient; the message says where."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """How an update is made: what is minimised, by which forward pass, in which arithmetic, with whom."""

    config: StageConfig  # in steps
    objective: Objective
    forward: nn.Module  # the state's model, or what wraps it (compiled, DistributedDataParallel)
    epoch_samples: int
    seed: int = 0
    dtype: torch.dtype = torch.float32
    world: World = field(default_factory=World)

    def __call__(self, state: TrainState, pieces: list[Batch], *, stop: bool = False) -> tuple[dict[str, float], bool]:
        """One update by this process's pieces of the batch: the loss terms over the whole batch, whether anybody stops.

        Raises InputError, before anything is updated, if the loss or the gradient is not finite.
        """
        for group in state.optimiser.param_groups:
            group["lr"] = learning_rate(self.config.optim, state.step, self.config.total)
        masks = [self.objective.masks(piece) for piece in pieces]
        names = list(masks[0])
        sizes = torch.stack([torch.stack([m[name].sum() for m in masks]).sum() for name in names]).double()
        sizes = self.world.sum(torch.cat((sizes, sizes.new_tensor([stop]))))
        counts, anybody_stops = sizes[:-1].clamp_min(1), sizes[-1]
        by_name = self.config.loss.at(state.position / self.epoch_samples)
        weights = counts.new_tensor([by_name[name] for name in names])
        state.optimiser.zero_grad(set_to_none=True)
        per_sample: list[dict[str, Tensor]] = []
        totals = torch.zeros_like(counts)
        for place, (piece, mask) in enumerate(zip(pieces, masks)):
            values = self._values(state.step, place, piece)
            per_sample.append(values)
            sums = torch.stack([torch.where(mask[name], values[name], 0.0).sum() for name in names])
            loss = (sums * (weights / counts).to(sums)).sum()
            # DistributedDataParallel takes the mean over the processes; our losses are shares of one sum.
            scaled = state.scaler.scale(loss * self.world.size)
            if isinstance(self.forward, nn.parallel.DistributedDataParallel) and place < len(pieces) - 1:
                with self.forward.no_sync():
                    scaled.backward()
            else:
                scaled.backward()
            totals += sums.detach()
        terms = self.world.sum(totals) / counts
        norm = self._gradient_norm(state)
        *found, loss_value, norm_value, stops = torch.cat(
            (terms, (terms * weights).sum()[None], norm.double()[None], anybody_stops[None])
        ).tolist()
        means = dict(zip(names, found))
        try:
            self._check(means, loss_value, norm_value, pieces, per_sample)
        except _NotFiniteError as exc:
            raise InputError(
                f"step {state.step}: {exc}; nothing was updated; lower optim.lr or look at the data"
            ) from exc
        state.scaler.step(state.optimiser)
        state.scaler.update()
        state.average.update_parameters(state.model)
        state.step += 1
        state.position += self.config.batch_size
        return {"loss": loss_value, **means}, stops > 0

    def _values(self, step: int, place: int, piece: Batch) -> dict[str, Tensor]:
        """The terms of one piece. Dropout is seeded by step; the global generators are left as they were."""
        with torch.random.fork_rng():
            torch.manual_seed(step_seed(self.seed, step, self.world.rank * self.config.accumulate + place))
            kind = piece.keypoints_px.device.type
            with torch.autocast(kind, self.dtype, enabled=self.dtype != torch.float32):
                return self.objective.values(self.forward, piece)

    def _gradient_norm(self, state: TrainState) -> Tensor:
        """Norm of the whole gradient, which is clipped on the way."""
        state.scaler.unscale_(state.optimiser)
        parameters = [p for group in state.optimiser.param_groups for p in group["params"] if p.grad is not None]
        return nn.utils.clip_grad_norm_(parameters, self.config.optim.clip_norm or math.inf)

    def _check(
        self, means: Mapping[str, float], loss: float, norm: float, pieces: list[Batch],
        per_sample: list[dict[str, Tensor]],
    ) -> None:  # fmt: skip
        if not math.isfinite(loss):
            broken = [name for name, value in means.items() if not math.isfinite(value)]
            ids = [
                piece.ids[~torch.isfinite(values[name])].tolist()
                for name in broken
                for piece, values in zip(pieces, per_sample)
            ]
            samples = sorted({i for of_rank in self.world.gather(ids) for some in of_rank for i in some})
            named = ", ".join(str(i) for i in samples[:8]) + (" ..." if len(samples) > 8 else "")
            raise _NotFiniteError(f"loss term {', '.join(broken) or 'sum'} is not finite, at samples {named or '?'}")
        if not math.isfinite(norm) and self.dtype != torch.float16:  # the scaler of fp16 skips such a step itself
            raise _NotFiniteError("the gradient is not finite although every loss term is")


@torch.no_grad()
def estimate_statistics(model: Pose2Mesh, batches: Iterable[Batch]) -> None:
    """Batch-norm statistics that belong to the weights as they are, from a few training batches.

    Averaged weights need it: the running statistics are those of the weights that were trained, not of their average
    (Izmailov et al. 2018, section 3.2). Without dropout, as the network is used; a frozen lifter keeps its own.
    """
    learns = any(p.requires_grad for p in model.posenet.parameters())
    parts = (model.posenet, model.meshnet) if learns else (model.meshnet,)
    norms = [module for part in parts for module in part.modules() if isinstance(module, nn.BatchNorm1d)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
        norm.train()
    for batch in batches:
        model(batch.keypoints_px, batch.confidence)
    model.eval()
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum


class StopTraining(BaseException):
    """The run was asked to stop. `validate` may raise it too; what leaves `fit` has been saved."""


class Observer(Protocol):
    """What the caller does while training goes on: it shows, saves and decides to stop."""

    def stops(self) -> bool:
        """Whether this process was asked to stop."""

    def logged(self, state: TrainState, terms: dict[str, float], rate: float, data_s: float, step_s: float) -> None:
        """Mean terms since the last time; seconds waited for data, and seconds in all."""

    def epoch_ended(self, state: TrainState, terms: dict[str, float]) -> None:
        """Mean terms of the epoch."""

    def validated(self, state: TrainState, scores: dict[str, float], *, is_best: bool) -> None:
        """Scores of the averaged weights, already part of the state's history."""

    def save_due(self, state: TrainState) -> bool:
        """Whether a checkpoint is due."""

    def save(self, state: TrainState) -> None:
        """Write a checkpoint."""


def fit(
    state: TrainState, step: Step, batches: Callable[[TrainState], Iterator[list[Batch]]],
    validate: Callable[[nn.Module], dict[str, float]], is_better: Callable[[float, float | None], bool], best_by: str,
    observer: Observer,
) -> None:  # fmt: skip
    """Train from where the state is to the end, validating and saving on the way.

    A validation that the state owes (its step is due and has no scores yet) is made up first: a run may have been
    stopped between a step and its validation.
    """
    config = step.config
    state.model.train()
    source = batches(state)
    began = time.perf_counter()
    data_s = 0.0
    stop, ended = observer.stops(), None
    while True:
        if stop:
            if ended is not None:
                observer.epoch_ended(state, ended)
            observer.save(state)
            raise StopTraining
        if _owes_validation(state, config):
            paused = time.perf_counter()
            is_best = _validate(state, validate, is_better, best_by, observer)
            if is_best or observer.save_due(state):
                observer.save(state)
            began += time.perf_counter() - paused
        if ended is not None:
            observer.epoch_ended(state, ended)
            ended = None
        if state.step >= config.total:
            break
        waited = time.perf_counter()
        pieces = next(source)
        data_s += time.perf_counter() - waited
        rate = learning_rate(config.optim, state.step, config.total)
        before = state.position
        terms, stop = step(state, pieces, stop=observer.stops())
        state.window.add(terms)
        state.epoch.add(terms)
        if state.step % config.log_every == 0:
            now = time.perf_counter()
            observer.logged(state, state.window.take(), rate, data_s, now - began)
            began, data_s = now, 0.0
        if state.position // step.epoch_samples > before // step.epoch_samples:
            ended = state.epoch.take()
        if not _owes_validation(state, config) and observer.save_due(state):
            observer.save(state)
    observer.save(state)


def _owes_validation(state: TrainState, config: StageConfig) -> bool:
    is_due = state.step > 0 and (state.step % int(config.validate_every) == 0 or state.step == config.total)
    return is_due and state.step not in state.history


def _validate(
    state: TrainState, validate: Callable[[nn.Module], dict[str, float]],
    is_better: Callable[[float, float | None], bool], best_by: str, observer: Observer,
) -> bool:  # fmt: skip
    """Score the averaged weights; whether they are the best so far."""
    state.average.eval()
    try:
        scores = validate(state.average.module)
    except StopTraining:
        observer.save(state)
        raise
    state.model.train()
    state.history[state.step] = scores
    is_best = is_better(scores[best_by], state.best)
    if is_best:
        state.best, state.best_step = scores[best_by], state.step
    observer.validated(state, scores, is_best=is_best)
    return is_best
