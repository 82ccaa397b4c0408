from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from gcn.checkpoint import CheckpointConfig, load_checkpoint, save_checkpoint
from gcn.losses import LossWeights, point_l1
from gcn.optim import OptimConfig, learning_rate
from gcn.train_state import ArithmeticConfig, StageConfig, TrainState, make_state
from gcn.trainer import Step, StopTraining, estimate_statistics, fit, step_seed
from mesh.errors import InputError
from mesh.samples import Batch

STAGE = StageConfig(steps=6, batch_size=8, validate_every=3, log_every=2, ema=0.5, optim=OptimConfig(warmup=2))
EPOCH = 20  # samples


def toy_pieces(step: int, pieces: int = 1) -> list[Batch]:
    generator = torch.Generator().manual_seed(1000 + step)
    points = torch.randn(8, 3, 2, generator=generator)
    joints = torch.cat((points, points[..., :1]), dim=-1)
    everyone = torch.ones(8, dtype=torch.bool)
    whole = Batch(
        keypoints_px=points, confidence=torch.ones(8, 3), joints_m=joints, regressed_m=joints, vertices_m=None,
        joints_valid=everyone, regressed_valid=everyone, mesh_valid=everyone, ids=torch.arange(8) + 100 * step,
    )  # fmt: skip
    rows = [slice(i * 8 // pieces, (i + 1) * 8 // pieces) for i in range(pieces)]
    fields = {name: value for name, value in vars(whole).items() if value is not None}
    return [replace(whole, **{name: value[r] for name, value in fields.items()}) for r in rows]


class Toy:
    """An objective: the third coordinate of a point is its first."""

    def masks(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {"lift_joint": batch.joints_valid}

    def values(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        return {"lift_joint": point_l1(model(batch.keypoints_px).float(), batch.joints_m)}


class Recorder:
    """An observer that remembers, saves to a folder if it is given one, and stops or dies when told."""

    def __init__(self, folder: Path | None = None, stop_after: int = -1, save_at: tuple[int, ...] = ()) -> None:
        self.folder, self.stop_after, self.save_at = folder, stop_after, save_at
        self.log: list[tuple[int, dict[str, float]]] = []
        self.epochs: list[tuple[int, dict[str, float]]] = []
        self.validations: list[tuple[int, bool]] = []
        self.saves: list[int] = []
        self.state: TrainState | None = None

    def stops(self) -> bool:
        return self.state is not None and 0 <= self.stop_after <= self.state.step

    def logged(self, state: TrainState, terms: dict[str, float], rate: float, data_s: float, step_s: float) -> None:
        assert 0 <= data_s <= step_s
        self.log.append((state.step, terms))

    def epoch_ended(self, state: TrainState, terms: dict[str, float]) -> None:
        self.epochs.append((state.step, terms))

    def validated(self, state: TrainState, scores: dict[str, float], *, is_best: bool) -> None:
        self.validations.append((state.step, is_best))

    def save_due(self, state: TrainState) -> bool:
        return state.step in self.save_at

    def save(self, state: TrainState) -> None:
        self.saves.append(state.step)
        if self.folder is not None:
            save_checkpoint(self.folder / "last.pt", {"state": state.state_dict()})


def toy_state(stage: StageConfig = STAGE, dropout: float = 0.0) -> TrainState:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3))
    return make_state(layers, stage)


def train(
    state: TrainState, stage: StageConfig = STAGE, observer: Recorder | None = None, *, scores=None, objective=None,
    dtype: torch.dtype = torch.float32,
) -> Recorder:  # fmt: skip
    observer = observer or Recorder()
    observer.state = state
    step = Step(
        config=stage, objective=objective or Toy(), forward=state.model, epoch_samples=EPOCH, seed=3, dtype=dtype
    )

    def batches(current: TrainState) -> Iterator[list[Batch]]:
        return (toy_pieces(k, stage.accumulate) for k in range(current.step, stage.total))

    given = iter(scores or [1.0] * 1000)
    is_better = CheckpointConfig().is_better
    fit(state, step, batches, lambda model: {"error": next(given)}, is_better, "error", observer)
    return observer


def flat(state: TrainState) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for m in (state.model, state.average) for p in m.parameters()])


@pytest.mark.parametrize("name", ["adamw", "adam", "rmsprop"])
@pytest.mark.parametrize("stops", [(2,), (0, 1, 4), (3,)])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_run_that_was_stopped_ends_bit_for_bit_as_an_uninterrupted_one(
    tmp_path: Path, name, stops, accumulate
) -> None:
    stage = replace(STAGE, accumulate=accumulate, optim=replace(STAGE.optim, name=name))
    whole = toy_state(stage, dropout=0.5)
    reference = train(whole, stage)
    log: list[tuple[int, dict[str, float]]] = []
    for stop in (*stops, -1):
        state = toy_state(stage, dropout=0.5)
        if (tmp_path / "last.pt").exists():
            state.load_state_dict(load_checkpoint(tmp_path / "last.pt")["state"])
        observer = Recorder(tmp_path, stop_after=stop)
        if stop >= 0:
            with pytest.raises(StopTraining):
                train(state, stage, observer)
        else:
            train(state, stage, observer)
        log += observer.log
    assert torch.equal(flat(state), flat(whole)) and state.step == whole.step == 6
    assert log == reference.log and state.history == whole.history
    assert state.epoch == whole.epoch and state.position == whole.position == 48


@pytest.mark.parametrize("name", ["adamw", "rmsprop"])
def test_a_weight_decay_that_was_changed_counts_after_resuming(name: str) -> None:
    before, after = (
        make_state(nn.Linear(3, 3), replace(STAGE, optim=OptimConfig(name=name, weight_decay=decay)))
        for decay in (0.0, 0.5)
    )
    after.load_state_dict(before.state_dict())
    assert [group["weight_decay"] for group in after.optimiser.param_groups] == [0.5]


def test_a_validation_that_was_owed_is_made_up(tmp_path: Path) -> None:
    with pytest.raises(StopTraining):
        train(toy_state(), STAGE, Recorder(tmp_path, stop_after=2))
    state = toy_state()
    state.load_state_dict(load_checkpoint(tmp_path / "last.pt")["state"])
    assert state.step == 3 and state.history == {}
    assert train(state).validations == [(3, True), (6, False)]


def test_a_validation_that_is_told_to_stop_leaves_a_saved_run(tmp_path: Path) -> None:
    def stop(model: nn.Module) -> dict[str, float]:
        raise StopTraining

    state, observer = toy_state(), Recorder(tmp_path)
    step = Step(config=STAGE, objective=Toy(), forward=state.model, epoch_samples=EPOCH)
    with pytest.raises(StopTraining):
        fit(state, step, lambda s: map(toy_pieces, range(6)), stop, lambda a, b: True, "error", observer)
    saved = load_checkpoint(tmp_path / "last.pt")["state"]
    assert saved["step"] == 3 and saved["history"] == {}


def test_a_batch_in_pieces_gives_the_gradient_of_the_whole_batch() -> None:
    states = []
    for accumulate in (1, 2, 3):
        stage = replace(STAGE, steps=1, accumulate=accumulate, optim=OptimConfig(name="rmsprop", clip_norm=0))
        state = toy_state(stage)
        train(state, stage)
        states.append(torch.cat([p.grad.flatten() for p in state.model.parameters()]))
    torch.testing.assert_close(states[1], states[0])
    torch.testing.assert_close(states[2], states[0])


def test_samples_without_truth_are_left_out_of_the_whole_batch_not_of_each_piece() -> None:
    def grads(accumulate: int, valid: torch.Tensor) -> torch.Tensor:
        state = toy_state()
        stage = replace(STAGE, accumulate=accumulate, optim=replace(STAGE.optim, clip_norm=0))
        step = Step(config=stage, objective=Toy(), forward=state.model, epoch_samples=EPOCH)
        pieces = [replace(p, joints_valid=v) for p, v in zip(toy_pieces(0, accumulate), valid.chunk(accumulate))]
        terms, _ = step(state, pieces)
        assert terms["loss"] == terms["lift_joint"]
        return torch.cat([torch.tensor([terms["loss"]]), *(p.grad.flatten() for p in state.model.parameters())])

    valid = torch.tensor([True, True, True, False, True, False, False, False])
    torch.testing.assert_close(grads(2, valid), grads(1, valid))
    only = torch.tensor([True] * 4)  # the fifth alone weighs as much as each of the first three
    batch = toy_pieces(0)[0]
    state = toy_state()
    values = Toy().values(state.model, batch)["lift_joint"][valid]
    assert len(values) == len(only) and grads(1, valid)[0].item() == pytest.approx(values.mean().item())


def test_a_batch_without_any_truth_changes_nothing_but_the_step() -> None:
    stage = replace(STAGE, optim=OptimConfig(name="rmsprop"))
    state = toy_state(stage)
    before = flat(state).clone()
    step = Step(config=stage, objective=Toy(), forward=state.model, epoch_samples=EPOCH)
    terms, _ = step(state, [replace(toy_pieces(0)[0], joints_valid=torch.zeros(8, dtype=torch.bool))])
    assert terms == {"loss": 0.0, "lift_joint": 0.0} and torch.equal(flat(state), before) and state.step == 1


def test_training_lowers_the_loss() -> None:
    stage = replace(STAGE, steps=200, log_every=1, validate_every=200, optim=OptimConfig(lr=0.02))
    losses = [terms["lift_joint"] for _, terms in train(toy_state(stage), stage).log]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_it_also_learns_in_half_precision() -> None:
    stage = replace(STAGE, steps=200, log_every=1, validate_every=200, optim=OptimConfig(lr=0.02))
    losses = [terms["lift_joint"] for _, terms in train(toy_state(stage), stage, dtype=torch.bfloat16).log]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_it_validates_from_the_first_time_on_and_at_the_end_and_knows_the_best() -> None:
    stage = replace(STAGE, steps=7, validate_every=3)
    state = toy_state(stage)
    observer = train(state, stage, scores=[5.0, 7.0, 4.0])
    assert observer.validations == [(3, True), (6, False), (7, True)]
    assert observer.saves == [3, 7, 7]  # the best ones, and at the end
    assert (state.best, state.best_step) == (4.0, 7) and state.history[6] == {"error": 7.0}


def test_a_validation_that_is_nan_is_never_the_best() -> None:
    stage = replace(STAGE, steps=3, validate_every=1)
    state = toy_state(stage)
    assert train(state, stage, scores=[float("nan"), 2.0, float("nan")]).validations == [
        (1, False), (2, True), (3, False),
    ]  # fmt: skip


def test_the_log_has_the_means_of_its_window_and_the_epochs_of_theirs() -> None:
    every = train(toy_state(), replace(STAGE, log_every=1)).log
    losses = [terms["loss"] for _, terms in every]
    observer = train(toy_state(), replace(STAGE, log_every=4))
    assert [step for step, _ in observer.log] == [4]
    assert observer.log[0][1]["loss"] == pytest.approx(sum(losses[:4]) / 4)
    # 20 samples an epoch, 8 a step: epochs end within steps 3 and 5
    assert [step for step, _ in observer.epochs] == [3, 5]
    assert observer.epochs[1][1]["loss"] == pytest.approx(sum(losses[3:5]) / 2)


def test_the_averaged_weights_follow_the_stated_decay() -> None:
    state = toy_state()
    states = []
    for steps in (1, 2):
        train(state, replace(STAGE, steps=steps, validate_every=10))
        states.append(flat(state).chunk(2)[0].clone())
    torch.testing.assert_close(flat(state).chunk(2)[1], (2 * states[0] + 9 * states[1]) / 11)
    assert not torch.equal(states[0], states[1])


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_step_term_and_samples() -> None:
    class Broken(Toy):
        def masks(self, batch: Batch) -> dict[str, torch.Tensor]:
            return {"vertex": batch.mesh_valid, **super().masks(batch)}

        def values(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
            spoiled = torch.where(batch.ids == 205, torch.inf, 1.0) * model(batch.keypoints_px).square().mean((1, 2))
            return {"vertex": spoiled, **super().values(model, batch)}

    state = toy_state()
    observer = Recorder()
    with pytest.raises(InputError, match="step 2: loss term vertex is not finite, at samples 205; nothing was"):
        train(state, replace(STAGE, accumulate=2), observer, objective=Broken())
    assert state.step == 2 and observer.saves == []
    for parameter in state.model.parameters():
        assert torch.isfinite(parameter).all()


def test_a_gradient_that_is_not_finite_stops_before_the_update() -> None:
    class Steep(Toy):
        def values(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
            return {"lift_joint": (0 * model(batch.keypoints_px)).abs().sum((1, 2)).sqrt()}

    state = toy_state()
    before = flat(state).clone()
    with pytest.raises(InputError, match="step 0: the gradient is not finite"):
        train(state, objective=Steep())
    assert torch.equal(flat(state), before)


class TwoParts(nn.Module):
    """Stands for Pose2Mesh: a lifter and a mesh network with dropout and batch norm."""

    def __init__(self) -> None:
        super().__init__()
        parts = [nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(3), nn.Dropout(0.5)) for _ in range(2)]
        self.posenet, self.meshnet = parts[0], nn.Sequential(nn.Linear(8, 8), *parts[1][1:])

    def forward(self, keypoints: torch.Tensor, confidence: torch.Tensor) -> torch.Tensor:
        return self.meshnet(self.posenet(keypoints))


@pytest.mark.parametrize("frozen", [False, True])
def test_statistics_are_the_means_of_the_batches_without_dropout(frozen) -> None:
    torch.manual_seed(0)
    model = TwoParts()
    model.posenet.requires_grad_(not frozen)
    model.posenet[1].running_mean.fill_(0.25)
    batches = [toy_pieces(step)[0] for step in range(3)]
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        estimate_statistics(model, batches, lambda b: model(b.keypoints_px, b.confidence))
        assert not any(module.training for module in model.modules()) and model.meshnet[1].momentum == 0.1
        found.append([norm.running_mean.clone() for norm in (model.posenet[1], model.meshnet[1])])
    assert all(torch.equal(a, b) for a, b in zip(*found))
    lifted = torch.stack([model.posenet[0](batch.keypoints_px).mean((0, 2)) for batch in batches]).mean(0)
    expected = torch.full((3,), 0.25) if frozen else lifted
    torch.testing.assert_close(found[0][0], expected)


def test_without_batch_norm_no_batch_is_made() -> None:
    model = TwoParts()
    model.posenet[1] = model.meshnet[1] = nn.Identity()

    def batches():
        raise AssertionError("nobody needs them")
        yield

    estimate_statistics(model, batches(), lambda b: model(b.keypoints_px, b.confidence))
    assert not model.training


def test_the_global_random_numbers_are_left_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    state = toy_state(dropout=0.5)
    torch.manual_seed(7)
    train(state)
    assert torch.rand(1) == expected


def test_what_networks_draw_differs_between_steps_pieces_and_seeds() -> None:
    seeds = {step_seed(seed, step, piece) for seed in (0, 1) for step in (0, 1, 2**32) for piece in (0, 1)}
    assert len({seed % 2**32 for seed in seeds}) == 12  # torch's CPU generator sees the lower 32 bits


def test_the_loss_is_the_weighted_sum_of_its_terms_at_that_epoch() -> None:
    class Two(Toy):
        def masks(self, batch: Batch) -> dict[str, torch.Tensor]:
            return {"vertex": batch.mesh_valid, "edge": batch.mesh_valid}

        def values(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
            distance = (model(batch.keypoints_px) - batch.joints_m).square().mean((1, 2))
            return {"vertex": distance, "edge": 2 * distance}

    stage = replace(STAGE, log_every=1, loss=LossWeights(vertex=3, edge=10, edge_start_epoch=1.0))
    for step, terms in train(toy_state(stage), stage, objective=Two()).log:
        edge = 10 if (step - 1) * 8 >= EPOCH else 0
        assert terms["loss"] == pytest.approx(3 * terms["vertex"] + edge * terms["edge"])


def test_the_schedule_warms_up_and_ends_as_stated() -> None:
    cosine = OptimConfig(lr=1.0, warmup=10)
    assert learning_rate(cosine, 0, 100) == pytest.approx(0.1)
    assert learning_rate(cosine, 50, 100) == pytest.approx(0.5) and learning_rate(cosine, 99, 100) < 1e-3
    steps = OptimConfig(lr=1.0, warmup=0, schedule="step", milestones=(30, 60), gamma=0.1)
    assert [learning_rate(steps, s, 100) for s in (29, 30, 60)] == pytest.approx([1, 0.1, 0.01])
    assert learning_rate(OptimConfig(lr=1.0, warmup=0, schedule="constant"), 99, 100) == 1


def test_a_stage_in_epochs_becomes_one_in_steps() -> None:
    optim = OptimConfig(schedule="step", milestones=(30,), warmup=0.5)
    stage = StageConfig(epochs=60, batch_size=64, validate_every=1, optim=optim).in_steps(6400)
    assert (stage.total, stage.validate_every, stage.optim.milestones, stage.optim.warmup) == (6000, 100, (3000,), 50)
    ragged = StageConfig(epochs=2, batch_size=64).in_steps(100)
    assert ragged.total == 4  # 200 samples and a little more
    same = StageConfig(steps=10, validate_every=4, optim=OptimConfig(warmup=3)).in_steps(6400)
    assert (same.total, same.validate_every, same.optim.warmup) == (10, 4, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 5, "epochs": 2}, "in steps or in epochs, got both"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"epochs": 0}, "epochs must be positive"),
        ({"epochs": float("inf")}, "epochs must be positive and finite"),
        ({"accumulate": 0}, "accumulate must be at least 1"),
        ({"validate_every": 0}, "validate_every must be positive"),
    ],
)
def test_senseless_lengths_are_refused(options, message) -> None:
    with pytest.raises(InputError, match=message):
        StageConfig(**options)


def test_milestones_belong_to_the_step_schedule() -> None:
    for options in ({"schedule": "step"}, {"milestones": (3,)}):
        with pytest.raises(InputError, match="milestones belong to schedule step"):
            OptimConfig(**options)


def test_the_precision_follows_the_device() -> None:
    cpu = torch.device("cpu")
    assert ArithmeticConfig().dtype(cpu) == torch.float32
    assert ArithmeticConfig(precision="bf16").dtype(cpu) == torch.bfloat16
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        ArithmeticConfig(precision="fp16").dtype(cpu)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pt", {"state": make_state(nn.Linear(3, 3), STAGE).state_dict()})
    with pytest.raises(InputError, match="does not fit this configuration"):
        toy_state().load_state_dict(load_checkpoint(tmp_path / "c.pt")["state"])


def test_a_checkpoint_that_lacks_something_is_refused() -> None:
    state = toy_state().state_dict()
    for name in state:
        with pytest.raises(InputError, match="does not fit this configuration"):
            toy_state().load_state_dict({k: v for k, v in state.items() if k != name})


def test_the_average_forgets_the_untrained_weights_at_once_and_is_slow_later() -> None:
    model = nn.Linear(1, 1, bias=False)
    state = make_state(model, StageConfig(ema=0.99))
    expected = 0.0
    for step in range(2000):
        nn.init.constant_(model.weight, float(step))
        state.average.update_parameters(model)
        decay = 0.0 if step == 0 else min(0.99, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        if step == 20:  # with a decay of 0.99 from the start it would be 1.9
            assert state.average.module.weight.item() == pytest.approx(expected, rel=1e-5) and expected > 12
    assert state.average.module.weight.item() == pytest.approx(expected, rel=1e-4)
    assert expected == pytest.approx(1999 - 0.99 / 0.01, abs=1e-3)
