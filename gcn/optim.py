"""Optimiser and learning-rate schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from mesh.errors import require


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser and schedule. `warmup` and `milestones` count what the stage's length counts: steps or epochs."""

    name: Literal["adamw", "adam", "rmsprop"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.0
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup: float = 100.0
    milestones: tuple[float, ...] = ()  # of the step schedule: where the rate is multiplied by gamma
    gamma: float = 0.1
    clip_norm: float = 1.0  # 0: off

    def __post_init__(self) -> None:
        require(0 < self.lr < math.inf, f"optim.lr must be positive, got {self.lr}")
        require(self.gamma > 0, f"optim.gamma must be positive, got {self.gamma}")
        for name in ("weight_decay", "warmup", "clip_norm"):
            require(getattr(self, name) >= 0, f"optim.{name} must not be negative, got {getattr(self, name)}")
        require(
            (self.schedule == "step") == bool(self.milestones),
            f"optim.milestones belong to schedule step and to no other, got {self.schedule} {list(self.milestones)}",
        )


def learning_rate(config: OptimConfig, step: int, total: int) -> float:
    """Warm-up, then cosine to zero, steps down, or constant; of update `step` (from 0) out of `total`, all in steps."""
    rate = config.lr * (min(1.0, (step + 1) / config.warmup) if config.warmup > 0 else 1.0)
    if config.schedule == "cosine":
        return rate * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))
    return rate * config.gamma ** sum(step >= m for m in config.milestones)


_OPTIMISERS: dict[str, type[torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "rmsprop": torch.optim.RMSprop,
}


def make_optimiser(config: OptimConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser over everything in the model that is trainable, with PyTorch's other defaults."""
    extra: dict[str, Any] = {} if config.name == "rmsprop" else {"fused": True}
    trainable = [p for p in model.parameters() if p.requires_grad]
    kind: Any = _OPTIMISERS[config.name]
    return kind(trainable, lr=config.lr, weight_decay=config.weight_decay, **extra)
