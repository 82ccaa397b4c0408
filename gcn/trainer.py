"""The training loop of both stages: plain functions on one state."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gcn.labeling import LabelingNet, exchange_some, labeling_loss
from gcn.layers.sparse import SparseMatrix
from gcn.losses import LossWeights, SurfaceLoss, point_l1
from gcn.pose2mesh import ModelConfig, Pose2Mesh
from gcn.posenet import PoseNet
from mesh.errors import InputError, require
from mesh.samples import Batch

Terms = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser and schedule; `milestones` are steps, used by the step schedule alone."""

    name: Literal["adamw", "adam", "rmsprop"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.0
    schedule: Literal["cosine", "step"] = "cosine"
    warmup_steps: int = 100
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    clip_norm: float = 1.0  # 0: off

    def __post_init__(self) -> None:
        require(0 < self.lr < math.inf, f"optim.lr must be positive, got {self.lr}")
        require(self.weight_decay >= 0, f"optim.weight_decay must not be negative, got {self.weight_decay}")
        require(self.gamma > 0, f"optim.gamma must be positive, got {self.gamma}")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Length and rhythm of one training stage. Steps count updates."""

    steps: int = 10000
    batch_size: int = 256
    ema: float = 0.999  # decay of the averaged weights that are validated and shipped; 0: off
    validate_every: int = 1000
    log_every: int = 100
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossWeights = field(default_factory=LossWeights)
    freeze_posenet: bool = False  # mesh stage: leave the lifter as it is

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "validate_every", "log_every"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        require(0 <= self.ema < 1, f"ema must lie in [0, 1), got {self.ema}")


def step_generator(seed: int, step: int, device: torch.device | str = "cpu") -> Generator:
    """The random numbers of one step, a pure function of seed and step: a resumed run draws the same."""
    return Generator(device).manual_seed((seed * 1_000_003 + step) % 2**63)


def learning_rate(config: OptimConfig, step: int, total: int) -> float:
    """Warm-up, then cosine to zero or steps down; of update `step` (from 0) out of `total`."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.schedule == "cosine":
        return config.lr * warm * 0.5 * (1 + math.cos(math.pi * step / total))
    return config.lr * warm * config.gamma ** sum(step >= m for m in config.milestones)


OPTIMISERS: dict[str, type[torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "rmsprop": torch.optim.RMSprop,
}


@dataclass
class TrainState:
    """Everything that changes during a run; what is saved is what is used."""

    model: nn.Module
    average: AveragedModel
    optimiser: torch.optim.Optimizer
    step: int = 0
    best: float = math.inf

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types only."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "best": self.best,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state; refuses one of another network."""
        try:
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimiser.load_state_dict(state["optimiser"])
        except (KeyError, RuntimeError, ValueError) as exc:
            reason = str(exc).splitlines()[0]
            raise InputError(f"the checkpoint does not fit this configuration: {reason}") from exc
        self.step, self.best = int(state["step"]), float(state["best"])


def make_state(model: nn.Module, config: StageConfig) -> TrainState:
    """A fresh state: optimiser over what is trainable, average equal to the model."""
    optim = config.optim
    trainable = [p for p in model.parameters() if p.requires_grad]
    extra: dict[str, Any] = {} if optim.name == "rmsprop" else {"fused": True}
    optimiser = OPTIMISERS[optim.name](trainable, lr=optim.lr, weight_decay=optim.weight_decay, **extra)  # type: ignore[call-arg]
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=False)
    return TrainState(model=model, average=average, optimiser=optimiser)


def posenet_terms(posenet: PoseNet, config: ModelConfig, batch: Batch) -> Terms:
    """Loss terms of the lifter stage."""
    features = config.features(batch.keypoints_px, batch.confidence)
    return {"lift_joint": point_l1(posenet(features), batch.joints_m, batch.joints_valid)}


def labeling_terms(labeling: LabelingNet, config: ModelConfig, batch: Batch, generator: Generator) -> Terms:
    """Loss terms of the left/right network, on poses of which half are exchanged first."""
    features = config.features(batch.keypoints_px, batch.confidence)
    mixed, exchanged = exchange_some(features, generator)
    return {"labeling": labeling_loss(labeling(mixed), exchanged)}


class MeshTerms:
    """Loss terms of the mesh stage, and the fixed tensors they need."""

    def __init__(self, surface: SurfaceLoss, regressor: SparseMatrix, weights: LossWeights) -> None:
        self.surface, self.regressor, self.weights = surface, regressor, weights

    def __call__(self, model: Pose2Mesh, batch: Batch) -> Terms:
        """Five terms in metres (normal: cosine); surface terms on the first `surface_share` of the batch."""
        if batch.vertices_m is None:
            raise ValueError("the mesh stage needs batches with vertices")
        joints, vertices = model(batch.keypoints_px, batch.confidence)
        regressed = self.regressor(vertices.transpose(0, 1)).transpose(0, 1)
        some = slice(0, max(1, round(len(batch) * self.weights.surface_share)))
        normal, edge = self.surface(vertices[some], batch.vertices_m[some], batch.mesh_valid[some])
        return {
            "vertex": point_l1(vertices, batch.vertices_m, batch.mesh_valid),
            "normal": normal,
            "edge": edge,
            "mesh_joint": point_l1(regressed, batch.regressed_m, batch.joints_valid),
            "lift_joint": point_l1(joints, batch.joints_m, batch.joints_valid),
        }


def weighted_sum(terms: Terms, weights: LossWeights) -> Tensor:
    """The loss; stops at the first term that is not finite, before anything is updated."""
    total = torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()
    if not torch.isfinite(total):
        bad = [name for name, term in terms.items() if not torch.isfinite(getattr(weights, name) * term)]
        raise FloatingPointError(f"loss term {', '.join(bad) or 'sum'} is not finite")
    return total


def train_step(state: TrainState, config: StageConfig, terms: Callable[[Batch], Terms], batch: Batch) -> Terms:
    """One update; returns the detached loss terms."""
    for group in state.optimiser.param_groups:
        group["lr"] = learning_rate(config.optim, state.step, config.steps)
    values = terms(batch)
    state.optimiser.zero_grad(set_to_none=True)
    weighted_sum(values, config.loss).backward()
    if config.optim.clip_norm > 0:
        nn.utils.clip_grad_norm_(
            [p for group in state.optimiser.param_groups for p in group["params"]], config.optim.clip_norm
        )
    state.optimiser.step()
    state.average.update_parameters(state.model)
    state.step += 1
    return {name: value.detach() for name, value in values.items()}


@torch.no_grad()
def estimate_statistics(model: Pose2Mesh, batches: Iterable[Batch]) -> None:
    """Batch-norm statistics that belong to the weights as they are, from a few training batches.

    Averaged weights need it: the running statistics are those of the weights that were trained, not of their average
    (Izmailov et al. 2018, section 3.2).
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
    model.train()
    for batch in batches:
        model(batch.keypoints_px, batch.confidence)
    model.eval()
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What the caller does while training goes on: it validates, prints and saves."""

    validate: Callable[[nn.Module], dict[str, float]]
    best_by: str
    log: Callable[[int, dict[str, float]], None]
    save: Callable[[TrainState, bool], None]


def fit(
    state: TrainState, config: StageConfig, terms: Callable[[Batch], Terms], batches: Callable[[int], Batch],
    hooks: Hooks, *, seed: int = 0,
) -> None:  # fmt: skip
    """Train from `state.step` to the end, validating and saving on the way; batch k is `batches(k)`.

    What the networks draw themselves (dropout) is seeded by step as well; the global generators are left as they were.
    """
    state.model.train()
    start, begun = time.perf_counter(), state.step
    while state.step < config.steps:
        try:
            batch = batches(state.step)
            with torch.random.fork_rng():
                torch.manual_seed(step_generator(seed, state.step).initial_seed())
                values = train_step(state, config, terms, batch)
        except FloatingPointError as exc:
            raise InputError(f"step {state.step}: {exc}; lower optim.lr or look at the data") from exc
        if state.step % config.log_every == 0:
            speed = (state.step - begun) * config.batch_size / (time.perf_counter() - start)
            scalars = {name: float(value) for name, value in values.items()}
            hooks.log(state.step, {**scalars, "samples_per_s": speed})
        if state.step % config.validate_every == 0 or state.step == config.steps:
            state.average.eval()
            scores = hooks.validate(state.average.module)
            is_best = scores[hooks.best_by] < state.best
            state.best = min(state.best, scores[hooks.best_by])
            hooks.log(state.step, scores)
            hooks.save(state, is_best)
            state.model.train()
