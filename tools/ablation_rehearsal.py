"""How long a row's training step takes, so that a budget in minutes becomes a number of steps."""

from __future__ import annotations

import statistics
import time

import torch

from data.loading import TrainingBatches
from gcn.distributed import World
from gcn.train_state import make_state
from gcn.trainer import Step
from mesh.body import load_body
from mesh.errors import require
from tools.experiment import ExperimentConfig
from tools.stages import STAGES, Setting

_WARM_UP, _LEAST, _MOST = 3, 10, 200  # steps
_ENOUGH_S = 5.0


def step_seconds(config: ExperimentConfig, stage_name: str, device: torch.device) -> float:
    """Median time of a step with the making of its batch, as the run will do it; nothing is kept.

    Processor time of this thread's process on the CPU, which other load disturbs little, else wall time.
    """
    require(config.train.workers == 0, "a budget in minutes needs train.workers=0: it counts one process")
    world = World(device=device)
    setting = Setting(config=config, body=load_body(config.body), world=world, saved=None, stops=lambda: False)
    stage = STAGES[stage_name](setting)
    dtype = config.train.dtype(device)
    state = make_state(stage.model, stage.config, dtype)
    state.model.train()
    step = Step(
        config=stage.config, objective=stage.objective, forward=stage.model, epoch_samples=len(stage.training),
        seed=config.seed, dtype=dtype, world=world,
    )  # fmt: skip
    batches = TrainingBatches(
        stage.training, seed=config.seed, batch_size=stage.config.batch_size, accumulate=stage.config.accumulate,
        with_vertices=stage.with_vertices,
    )  # fmt: skip
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times: list[float] = []
    for number in range(_WARM_UP + _MOST):
        began = clock()
        step(state, batches[number])
        if number >= _WARM_UP:
            times.append(clock() - began)
        if len(times) >= _LEAST and sum(times) > _ENOUGH_S:
            break
    return statistics.median(times)
