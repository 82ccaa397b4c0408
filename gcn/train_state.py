"""How long a stage trains, in which arithmetic, and everything that changes meanwhile."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from gcn.losses import LossWeights
from gcn.optim import OptimConfig, make_optimiser
from mesh.errors import InputError, require


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
    ema: float = 0.999  # decay of the averaged weights that are validated and shipped, less at first; 0: off
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
        """Continue from a saved state, but with the weight decay configured now; refuses one of another network."""
        decays = [group["weight_decay"] for group in self.optimiser.param_groups]
        try:
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimiser.load_state_dict(state["optimiser"])
            for group, decay in zip(self.optimiser.param_groups, decays):
                group["weight_decay"] = decay
            self.scaler.load_state_dict(state["scaler"])
            self.step, self.position = int(state["step"]), int(state["position"])
            self.best, self.best_step = state["best"], state["best_step"]
            self.history = {int(step): dict(scores) for step, scores in state["history"].items()}
            self.window, self.epoch = Means(**state["window"]), Means(**state["epoch"])
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as exc:
            reason = " ".join(str(exc).split())[:300] or type(exc).__name__
            raise InputError(f"the checkpoint does not fit this configuration: {reason}") from exc


Tensors = tuple[Tensor, ...] | list[Tensor]


def moving_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Exponential moving average for `AveragedModel`, whose decay grows with the updates: (1 + n) / (10 + n) at most.

    With a constant decay the untrained weights would stay in the average for thousands of steps.
    """

    @torch.no_grad()
    def update(averaged: Tensors, current: Tensors, num_averaged: Tensor | int) -> None:
        seen = int(num_averaged)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + seen) / (10 + seen)))

    return update


def make_state(model: nn.Module, config: StageConfig, dtype: torch.dtype = torch.float32) -> TrainState:
    """A fresh state: optimiser over what is trainable, average equal to the model."""
    return TrainState(
        model=model,
        average=AveragedModel(model, multi_avg_fn=moving_average(config.ema), use_buffers=False),
        optimiser=make_optimiser(config.optim, model),
        scaler=torch.amp.GradScaler("cuda", enabled=dtype == torch.float16),
    )
