"""The training loop of every stage: plain functions on one state.

Every random number of step k is a function of (seed, k), and every sum that is logged is part of the state: a run that
was killed anywhere and resumed does what it would have done.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from gcn.distributed import World
from gcn.objectives import Objective
from gcn.optim import learning_rate
from gcn.train_state import StageConfig, TrainState
from mesh.errors import InputError
from mesh.samples import Batch


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
def estimate_statistics(model: nn.Module, batches: Iterable[Batch], run: Callable[[Batch], object]) -> None:
    """Batch-norm statistics that belong to the weights as they are, from a few training batches.

    Averaged weights need it: the running statistics are those of the weights that were trained, not of their average
    (Izmailov et al. 2018, section 3.2). Without dropout, as the network is used; frozen parts keep their own. `run`
    sends a batch through the model.
    """
    model.eval()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d) and _learns(module)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
        norm.train()
    for batch in batches:
        run(batch)
    model.eval()
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum


def _learns(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


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
