"""An ablation: a common experiment, the rows of a table that change it, and the budget that each row gets."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from gcn.train_state import StageConfig
from mesh.errors import InputError, require
from tools.experiment import ExperimentConfig, load_experiment

STAGES = ("posenet", "meshnet")
_UNKNOWN_STEPS = 1000  # stands for a number of steps that is only known once a row's speed was measured


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What each row may use: samples, or minutes of training steps (processor time on the CPU, else wall time)."""

    samples: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.samples, self.minutes) if value is not None]
        require(len(given) == 1, "budget: expected either samples: N or minutes: M")
        require(0 < given[0] < math.inf, f"budget: must be positive and finite, got {given[0]}")

    def __str__(self) -> str:
        return (
            f"{self.samples:,} samples"
            if self.samples is not None
            else f"{self.minutes:g} minutes of training (of the processor on the CPU)"
        )


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table. `starts`: config key -> label of the row whose trained weights it takes."""

    label: str
    overrides: tuple[str, ...] = ()
    starts: Mapping[str, str]
    share: float = 1.0  # of the budget


@dataclass(frozen=True, kw_only=True)
class Run:
    """A row trained with one seed: a run folder of that `name`. `starts`: config key -> name of another run."""

    row: Row
    seed: int
    name: str
    starts: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """What a file says. `common` overrides come before those of the rows."""

    path: Path
    base: Path
    stage: str
    common: tuple[str, ...]
    budget: Budget
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    validations: int

    def runs(self) -> list[Run]:
        """Every row with every seed, those that others start from first."""
        ordered = _ordered(self.rows)
        return [
            Run(row=row, seed=seed, name=self._name(row.label, seed), starts={
                key: self._name(label, seed) for key, label in row.starts.items()
            })
            for seed in self.seeds for row in ordered
        ]  # fmt: skip

    def _name(self, label: str, seed: int) -> str:
        return folder_name(label) + ("" if seed == self.seeds[0] else f"-seed{seed}")

    def common_config(self) -> ExperimentConfig:
        """The experiment that no row has changed, with the first seed: its held-out samples judge all rows."""
        return _experiment(self.base, (*self.common, f"seed={self.seeds[0]}"))

    def config(self, run: Run, runs: Path, steps: int | None = None) -> ExperimentConfig:
        """What a run is trained with. `steps`: as measured for a budget of minutes; None: not known yet."""
        section = f"{self.stage}_training"
        overrides = [*self.common, *run.row.overrides, f"seed={run.seed}"]
        overrides += [f"{key}={json.dumps(str(runs / name))}" for key, name in run.starts.items()]
        try:
            config = _experiment(self.base, tuple(overrides))
            stage: StageConfig = getattr(config, section)
            steps = self.steps(run.row, stage.batch_size) or steps or _UNKNOWN_STEPS
            paced: dict[str, Any] = {section: _paced(stage, steps, self.validations)}
            return replace(config, **paced)
        except InputError as exc:
            raise InputError(f"{self.path}, row {run.row.label}: {exc}") from exc

    def steps(self, row: Row, batch_size: int) -> int | None:
        """Updates that the budget is enough for; None if that depends on the row's speed."""
        if self.budget.samples is None:
            return None
        samples = int(self.budget.samples * row.share + 0.5)
        if samples < batch_size:
            raise InputError(f"a budget of {samples} samples is less than one batch of {batch_size}")
        return samples // batch_size

    def minutes(self, row: Row) -> float | None:
        """A row's share of a budget in minutes."""
        return None if self.budget.minutes is None else self.budget.minutes * row.share


@lru_cache(maxsize=256)
def _experiment(base: Path, overrides: tuple[str, ...]) -> ExperimentConfig:
    """Read once: a row is asked for its configuration several times."""
    return load_experiment(base, overrides)


def _paced(stage: StageConfig, steps: int, validations: int) -> StageConfig:
    """A stage cut or stretched to so many steps: warm-up and milestones keep their places in its length."""
    factor = steps / (stage.total if stage.epochs is None else stage.epochs)
    validate_every = -(-steps // validations)
    optim = replace(
        stage.optim,
        warmup=float(round(stage.optim.warmup * factor)),
        milestones=tuple(float(round(m * factor)) for m in stage.optim.milestones),
    )
    return replace(
        stage, steps=steps, epochs=None, validate_every=float(validate_every), optim=optim,
        log_every=min(stage.log_every, validate_every),
    )  # fmt: skip


def folder_name(label: str) -> str:
    """A label as the name of a folder."""
    return re.sub(r"[^\w.+-]+", "_", label).strip("_.-")


def selected(ablation: Ablation, labels: Sequence[str]) -> Ablation:
    """Only those rows, and the rows that they start from."""
    by_label = {row.label: row for row in ablation.rows}
    for label in labels:
        if label not in by_label:
            raise InputError(f"--only {label}: no such row; {ablation.path} has {', '.join(map(repr, by_label))}")
    wanted: set[str] = set()
    following = list(labels)
    while following:
        label = following.pop()
        wanted.add(label)
        following += by_label[label].starts.values()
    return replace(ablation, rows=tuple(row for row in ablation.rows if row.label in wanted))


def _ordered(rows: Sequence[Row]) -> list[Row]:
    """The rows in the file's order, but each after those it starts from."""
    done: list[Row] = []
    waiting = list(rows)
    while waiting:
        labels = {row.label for row in done}
        ready = next((row for row in waiting if labels >= set(row.starts.values())), None)
        if ready is None:
            raise InputError(f"rows {', '.join(row.label for row in waiting)} start from each other in a circle")
        waiting.remove(ready)
        done.append(ready)
    return done
