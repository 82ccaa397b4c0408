from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from gcn.checkpoint import load_checkpoint, save_checkpoint
from gcn.losses import LossWeights, point_l1
from gcn.trainer import (
    Hooks,
    OptimConfig,
    StageConfig,
    TrainState,
    fit,
    learning_rate,
    make_state,
    step_generator,
    weighted_sum,
)
from mesh.errors import InputError
from mesh.samples import Batch

STAGE = StageConfig(steps=6, batch_size=8, validate_every=3, log_every=2, ema=0.5, optim=OptimConfig(warmup_steps=2))


def toy_batch(step: int) -> Batch:
    points = torch.randn(8, 3, 2, generator=step_generator(1, step))
    joints = torch.cat((points, points[..., :1]), dim=-1)
    everyone = torch.ones(8, dtype=torch.bool)
    return Batch(
        keypoints_px=points, confidence=torch.ones(8, 3), joints_m=joints, regressed_m=joints, vertices_m=None,
        joints_valid=everyone, mesh_valid=everyone,
    )  # fmt: skip


class Recorder:
    """Hooks that remember."""

    def __init__(self, scores: list[float] | None = None) -> None:
        self.scores = scores or [1.0] * 100
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.saved: list[tuple[int, bool]] = []
        self.hooks = Hooks(
            validate=lambda model: {"error": self.scores[len(self.saved)]},
            best_by="error",
            log=lambda step, scalars: self.logged.append((step, scalars)),
            save=lambda state, best: self.saved.append((state.step, best)),
        )


def toy_state(stage: StageConfig = STAGE) -> TrainState:
    torch.manual_seed(0)
    return make_state(nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3)), stage)


def train(state: TrainState, stage: StageConfig = STAGE, recorder: Recorder | None = None) -> None:
    def terms(batch: Batch) -> dict[str, torch.Tensor]:
        return {"lift_joint": point_l1(state.model(batch.keypoints_px), batch.joints_m, batch.joints_valid)}

    fit(state, stage, terms, toy_batch, (recorder or Recorder()).hooks)


def flat(state: TrainState) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for m in (state.model, state.average) for p in m.parameters()])


@pytest.mark.parametrize("name", ["adamw", "adam", "rmsprop"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path, name) -> None:
    stage = replace(STAGE, optim=replace(STAGE.optim, name=name))
    whole = toy_state(stage)
    train(whole, stage)
    first = toy_state(stage)
    with pytest.raises(KeyboardInterrupt):
        recorder = Recorder()

        def save_then_die(state: TrainState, best: bool) -> None:
            save_checkpoint(tmp_path / "last.pt", {"state": state.state_dict()})
            raise KeyboardInterrupt

        recorder.hooks = replace(recorder.hooks, save=save_then_die)
        train(first, stage, recorder)
    second = toy_state(stage)
    second.load_state_dict(load_checkpoint(tmp_path / "last.pt")["state"])
    assert second.step == 3
    train(second, stage)
    assert torch.equal(flat(second), flat(whole)) and second.step == whole.step == 6


def test_training_lowers_the_loss() -> None:
    stage = replace(STAGE, steps=200, log_every=1, validate_every=200, optim=OptimConfig(lr=0.02))
    recorder = Recorder()
    train(toy_state(stage), stage, recorder)
    losses = [s["lift_joint"] for _, s in recorder.logged if "lift_joint" in s]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_it_validates_and_saves_on_time_and_knows_the_best() -> None:
    stage = replace(STAGE, steps=7, validate_every=3)
    recorder = Recorder([5.0, 7.0, 4.0])
    train(toy_state(stage), stage, recorder)
    assert recorder.saved == [(3, True), (6, False), (7, True)]


def test_the_averaged_weights_follow_the_stated_decay() -> None:
    state = toy_state()
    before = flat(state).chunk(2)[0].clone()
    stage = replace(STAGE, steps=2, validate_every=10)
    states = []
    for _ in range(2):
        fitted = replace(stage, steps=state.step + 1)
        train(state, fitted)
        states.append(flat(state).chunk(2)[0].clone())
    average = flat(state).chunk(2)[1]
    torch.testing.assert_close(average, 0.5 * states[0] + 0.5 * states[1])
    assert not torch.equal(before, states[0])


def test_a_loss_that_is_not_finite_stops_before_the_update_and_is_named() -> None:
    state = toy_state()
    before = flat(state).clone()

    def terms(batch: Batch) -> dict[str, torch.Tensor]:
        bad = state.model(batch.keypoints_px).sum() * torch.inf
        return {"lift_joint": torch.tensor(1.0), "vertex": bad}

    with pytest.raises(InputError, match="step 0: loss term vertex is not finite"):
        fit(state, STAGE, terms, toy_batch, Recorder().hooks)
    assert torch.equal(flat(state), before)


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    weights = LossWeights(vertex=2, normal=0.5, edge=20)
    terms = {"vertex": torch.tensor(1.0), "normal": torch.tensor(2.0), "edge": torch.tensor(0.1)}
    assert weighted_sum(terms, weights).item() == pytest.approx(2 + 1 + 2)


def test_the_schedule_warms_up_and_ends_as_stated() -> None:
    cosine = OptimConfig(lr=1.0, warmup_steps=10)
    assert learning_rate(cosine, 0, 100) == pytest.approx(0.1)
    assert learning_rate(cosine, 50, 100) == pytest.approx(0.5) and learning_rate(cosine, 99, 100) < 1e-3
    steps = OptimConfig(lr=1.0, warmup_steps=0, schedule="step", milestones=(30, 60), gamma=0.1)
    assert [learning_rate(steps, s, 100) for s in (29, 30, 60)] == pytest.approx([1, 0.1, 0.01])


def test_step_generators_differ_between_steps_and_seeds_only() -> None:
    draws = {
        (seed, step): torch.rand(1, generator=step_generator(seed, step)).item() for seed in (0, 1) for step in (0, 1)
    }
    assert len(set(draws.values())) == 4
    assert torch.rand(1, generator=step_generator(0, 1)).item() == draws[0, 1]


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pt", {"state": make_state(nn.Linear(3, 3), STAGE).state_dict()})
    with pytest.raises(InputError, match="does not fit this configuration"):
        toy_state().load_state_dict(load_checkpoint(tmp_path / "c.pt")["state"])


def test_a_damaged_or_hostile_checkpoint_is_refused_and_executes_nothing(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "good.pt", {"state": toy_state().state_dict()})
    content = (tmp_path / "good.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])

    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    torch.save(Hostile(), tmp_path / "hostile.pt")
    for name, message in (("cut.pt", "not a readable"), ("hostile.pt", "not a readable"), ("none.pt", "no checkpoint")):
        with pytest.raises(InputError, match=message) as caught:
            load_checkpoint(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "canary").exists()


def test_a_failed_write_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pt", {"step": 1})
    with pytest.raises((AttributeError, TypeError, RuntimeError)):
        save_checkpoint(tmp_path / "c.pt", {"step": lambda: 2})
    assert load_checkpoint(tmp_path / "c.pt") == {"step": 1}
