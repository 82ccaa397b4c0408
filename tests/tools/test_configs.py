from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from gcn.pose2mesh import build_graph, build_lifter, build_meshnet
from gcn.train_state import make_state
from mesh.body import load_body
from mesh.errors import InputError
from tools.experiment import dump_experiment, load_experiment

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def test_there_are_configs() -> None:
    assert {path.stem for path in CONFIGS} >= {"default", "evaluation", "pose2mesh", "pose2mesh_adam", "quickstart"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_its_networks_and_optimisers(path: Path) -> None:
    config = load_experiment(path)
    body = load_body()
    graph = build_graph(config.model.meshnet, body, body.template[None])
    make_state(build_meshnet(config.model, graph), config.meshnet_training)
    make_state(build_lifter(config.model), config.posenet_training)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_dumped_config_reads_back_equal(path: Path, tmp_path: Path) -> None:
    config = load_experiment(path)
    (tmp_path / "again.yaml").write_text(dump_experiment(config))
    assert asdict(load_experiment(tmp_path / "again.yaml")) == asdict(config)


def test_overrides_win_over_the_file() -> None:
    config = load_experiment(CONFIGS[0], ["posenet_training.optim.lr=1e-4", "poses.validation_subjects=[7]"])
    assert config.posenet_training.optim.lr == 1e-4 and config.poses.validation_subjects == (7,)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("posenet_training.optim.lrr=1", r"posenet_training\.optim\.lrr: .*not in 'OptimConfig'.*'lr'"),
        ("posenet_training.steps=many", r"posenet_training\.steps: .*'many'.*could not be converted to Integer"),
        ("model.meshnet.plan=huge", r"model\.meshnet\.plan: .*'huge', expected one of \['frames', 'full'\]"),
        ("posenet_training.optim.lr=-1", "optim.lr must be positive, got -1"),
        ("posenet_training.ema=1", r"ema must lie in \[0, 1\)"),
        ("posenet_training.loss.lift_joint=-1", "loss.lift_joint must be finite and not negative"),
        ("posenet_training.loss.lift_joint=.nan", "loss.lift_joint must be finite and not negative"),
        ("datasets=[{records: r, weight: 0}]", "weight of a dataset must be positive"),
        ("datasets=[{records: r, wait: 1}]", "wait"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_it(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_experiment(CONFIGS[0], [override])
    assert "\n" not in str(caught.value)


def test_a_missing_or_broken_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [1,\nb: }")
    for name, message in (("none.yaml", "no config file"), ("broken.yaml", "broken.yaml")):
        with pytest.raises(InputError, match=message) as caught:
            load_experiment(tmp_path / name)
        assert "\n" not in str(caught.value)
