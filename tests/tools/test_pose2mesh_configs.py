from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import pytest

from gcn.optim import learning_rate
from gcn.train_state import StageConfig
from tools.experiment import ExperimentConfig, load_experiment

CONFIGS = Path(__file__).parents[2] / "configs"
WHOLE, BROKEN = 6400, 6437  # poses in an epoch: a whole number of batches, and not

# Of the published Human3.6M training: epoch (the first is 1), learning rate, weight of the edge term. The epochs beside
# each change are among them.
LIFTER = [(1, 1e-3), (15, 1e-3), (30, 1e-3), (31, 5e-4), (45, 5e-4), (60, 5e-4)]
MESH = [(1, 1e-3, 0), (7, 1e-3, 0), (8, 1e-3, 20), (12, 1e-3, 20), (13, 1e-4, 20), (15, 1e-4, 20)]


@cache
def pose2mesh() -> ExperimentConfig:
    return load_experiment(CONFIGS / "pose2mesh.yaml")


def updates_of_epoch(stage: StageConfig, epoch: int, epoch_samples: int) -> list[int]:
    """First, middle and last update that begins in an epoch, by counting samples."""
    begun = [k for k in range(stage.total) if k * stage.batch_size // epoch_samples == epoch - 1]
    return [begun[0], begun[len(begun) // 2], begun[-1]]


@pytest.mark.parametrize("epoch_samples", [WHOLE, BROKEN])
@pytest.mark.parametrize(("epoch", "rate"), LIFTER)
def test_the_lifter_has_the_original_learning_rates(epoch: int, rate: float, epoch_samples: int) -> None:
    stage = pose2mesh().posenet_training.in_steps(epoch_samples)
    for step in updates_of_epoch(stage, epoch, epoch_samples):
        assert learning_rate(stage.optim, step, stage.total) == pytest.approx(rate, rel=1e-12), step


@pytest.mark.parametrize("epoch_samples", [WHOLE, BROKEN])
@pytest.mark.parametrize(("epoch", "rate", "edge"), MESH)
def test_the_mesh_stage_has_the_original_learning_rates_and_edge_weights(
    epoch: int, rate: float, edge: float, epoch_samples: int
) -> None:
    stage = pose2mesh().meshnet_training.in_steps(epoch_samples)
    for step in updates_of_epoch(stage, epoch, epoch_samples):
        assert learning_rate(stage.optim, step, stage.total) == pytest.approx(rate, rel=1e-12), step
        assert stage.loss.at(step * stage.batch_size / epoch_samples)["edge"] == edge, step


@pytest.mark.parametrize(("name", "epochs"), [("posenet", 60), ("meshnet", 15)])
def test_the_stages_have_the_original_length_and_are_validated_every_epoch(name: str, epochs: int) -> None:
    stage = getattr(pose2mesh(), f"{name}_training").in_steps(WHOLE)
    assert (stage.batch_size, stage.total, stage.validate_every) == (64, epochs * WHOLE // 64, WHOLE // 64)


def test_the_other_terms_have_the_original_weights_from_the_start() -> None:
    weights = pose2mesh().meshnet_training.loss.at(0)
    assert {name: weights[name] for name in ("vertex", "normal", "mesh_joint", "lift_joint")} == {
        "vertex": 1, "normal": 0.1, "mesh_joint": 1e-3 * 1000, "lift_joint": 1e-3 * 1000,
    }  # fmt: skip
    assert pose2mesh().meshnet_training.loss.surface_share == 1


def test_nothing_is_added_to_the_original_updates() -> None:
    config = pose2mesh()
    for stage in (config.posenet_training, config.meshnet_training):
        assert (stage.ema, stage.optim.clip_norm, stage.optim.warmup, stage.optim.weight_decay) == (0, 0, 0, 0)
        assert stage.optim.name == "rmsprop" and not stage.freeze_posenet


def test_the_networks_are_the_original_ones() -> None:
    model = pose2mesh().model
    lifter = model.posenet
    assert (lifter.width, lifter.blocks, lifter.dropout, lifter.norm) == (4096, 2, 0.5, "batch")
    assert (model.meshnet.plan, model.meshnet.order, model.meshnet.rescaling) == ("full", 3, "legacy")
    assert not model.meshnet.linear_skip and (model.normalisation, model.feature_channels) == ("per_axis", 2)


def test_no_joint_is_hidden_from_networks_that_see_no_confidence() -> None:
    noise = pose2mesh().synthesis.noise
    assert (noise.model, noise.clean) == ("coco", 0)


def test_the_course_project_differs_in_optimiser_batch_and_length_of_the_lifter_only() -> None:
    ours = load_experiment(CONFIGS / "pose2mesh_adam.yaml")
    lifter, mesh = ours.posenet_training, ours.meshnet_training
    assert (lifter.optim.name, lifter.batch_size, lifter.epochs) == ("adam", 32, 40)
    assert (mesh.optim.name, mesh.batch_size, mesh.epochs) == ("adam", 32, 15)
    back = [
        "posenet_training.epochs=60",
        *(f"{s}_training.{key}" for s in ("posenet", "meshnet") for key in ("batch_size=64", "optim.name=rmsprop")),
    ]
    assert load_experiment(CONFIGS / "pose2mesh_adam.yaml", back) == pose2mesh()


def test_a_ramp_of_the_edge_term_begins_where_the_original_jumps() -> None:
    loss = load_experiment(CONFIGS / "pose2mesh.yaml", ["meshnet_training.loss.edge_ramp_epochs=2"])
    weights = [loss.meshnet_training.loss.at(epoch)["edge"] for epoch in (6.99, 7, 8, 9, 15)]
    assert all(math.isclose(a, b) for a, b in zip(weights, (0, 0, 10, 20, 20)))
