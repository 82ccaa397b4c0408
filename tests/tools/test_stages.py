"""What a training stage is built from, and what it refuses to be built from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.noise import NoiseConfig
from data.prior import load_pose_prior
from data.synthesis import SynthesisConfig
from gcn.lifters.cyclic import CyclicConfig
from gcn.lifters.denoise import DenoiserConfig
from gcn.lifters.martinez import MartinezConfig
from gcn.lifters.semgcn import SemGCNConfig
from gcn.pose2mesh import ModelConfig, build_lifter, save_weights
from gcn.train_state import StageConfig
from mesh.body import load_body
from mesh.errors import InputError
from tools import stages
from tools.evaluation_samples import synthetic_samples
from tools.experiment import ExperimentConfig, ModelSection
from tools.stage_networks import begun_lifter, check_statistics, dump_networks, freeze_decoders, fresh_mesh

SMALL = ModelConfig(
    martinez=MartinezConfig(width=8, blocks=1), semgcn=SemGCNConfig(width=8, blocks=1),
    cyclic=CyclicConfig(width=8, blocks=1), denoiser=DenoiserConfig(width=8, code=2), lifter="martinez",
)  # fmt: skip


@pytest.mark.parametrize("lifter", ["martinez", "cyclic"])
@pytest.mark.parametrize(("batch_size", "accumulate"), [(1, 1), (8, 8)])
def test_batch_norm_needs_two_samples(lifter, batch_size: int, accumulate: int) -> None:
    model = build_lifter(replace(SMALL, lifter=lifter))
    with pytest.raises(InputError, match=f"two samples in a piece of the batch: got batch_size {batch_size} in"):
        check_statistics(model, StageConfig(batch_size=batch_size, accumulate=accumulate))
    check_statistics(model, StageConfig(batch_size=2 * accumulate, accumulate=accumulate))
    check_statistics(model.requires_grad_(False), StageConfig(batch_size=1))


def test_a_graph_of_joints_has_statistics_of_one_sample() -> None:
    check_statistics(build_lifter(replace(SMALL, lifter="semgcn")), StageConfig(batch_size=1))


@pytest.mark.parametrize("name", ["depth_only", "denoise"])
def test_a_lifter_to_go_on_from_is_what_the_configuration_says(tmp_path: Path, name: str) -> None:
    save_weights(tmp_path / "w.safetensors", build_lifter(SMALL), SMALL, {})
    section = ModelSection(posenet_start=str(tmp_path / "w.safetensors"), **{name: True})
    saved = {"networks": dump_networks(SMALL)}
    with pytest.raises(InputError, match=rf"model\.{name}=true: the lifter that this run goes on from was trained"):
        begun_lifter(ExperimentConfig(model=section), saved)
    if name == "denoise":
        assert begun_lifter(ExperimentConfig(model=section), None)[1].denoise
    else:
        with pytest.raises(InputError, match=r"model\.depth_only=true"):
            begun_lifter(ExperimentConfig(model=section), None)


def test_a_lifter_to_go_on_from_sees_the_view_that_the_configuration_says(tmp_path: Path) -> None:
    old = replace(SMALL, view="picture")
    save_weights(tmp_path / "w.safetensors", build_lifter(old), old, {})
    section = ModelSection(posenet_start=str(tmp_path / "w.safetensors"))
    for saved in (None, {"networks": dump_networks(old)}):
        with pytest.raises(InputError, match=r"model\.view=centred: .* sees the picture view"):
            begun_lifter(ExperimentConfig(model=section), saved)
    assert begun_lifter(ExperimentConfig(model=replace(section, view="picture")), None)[1].view == "picture"


def test_a_lifter_and_a_mesh_network_of_different_views_are_refused(tmp_path: Path) -> None:
    old = replace(SMALL, view="picture")
    save_weights(tmp_path / "w.safetensors", build_lifter(old), old, {})
    shipped = Path(__file__).parents[2] / "gcn" / "weights" / "pose2mesh.safetensors"
    section = ModelSection(posenet_weights=str(tmp_path / "w.safetensors"), meshnet_weights=str(shipped))
    with pytest.raises(InputError, match="see another view than the lifter, picture"):
        fresh_mesh(ExperimentConfig(model=section), load_body())


def test_a_resumed_run_cannot_freeze_all_of_its_lifter(tmp_path: Path) -> None:
    section = ModelSection(posenet_start=str(tmp_path))
    config = ExperimentConfig(model=section, posenet_training=StageConfig(freeze_posenet=True))
    with pytest.raises(InputError, match="leaves nothing to train without"):
        begun_lifter(config, {"networks": dump_networks(SMALL)})


def test_the_decoder_of_a_wrapped_cyclic_lifter_is_frozen_for_the_mesh_stage() -> None:
    lifter = build_lifter(replace(SMALL, lifter="cyclic", depth_only=True, denoise=True))
    freeze_decoders(lifter)
    learning = {name for name, parameter in lifter.named_parameters() if parameter.requires_grad}
    assert not any(".decoder." in name and not name.startswith("denoiser") for name in learning)
    assert any(".encoder." in name for name in learning)


IMITATING = SynthesisConfig(
    other_joints=0.5, noise=NoiseConfig(rescored=0.4, unscored=0.4, drop_side=0.5, drop_face=0.5, drop_many=0.5)
)


def test_validation_leaves_out_what_imitates_other_detectors() -> None:
    kinds = stages._kinds(ExperimentConfig(synthesis=IMITATING))
    for kind, clean in (("exact", 1.0), ("noisy", 0.0)):
        assert kinds[kind].synthesis == SynthesisConfig(mirror=0.0, noise=NoiseConfig(clean=clean))


def test_evaluation_leaves_out_what_imitates_other_detectors() -> None:
    samples = synthetic_samples(
        load_pose_prior(), load_body(), IMITATING, clean=True, count=40, seed=0, device=torch.device("cpu")
    )
    assert (samples.track(0).batch.confidence == 1).all()
