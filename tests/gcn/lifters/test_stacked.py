from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gcn.features import pose_features
from gcn.layers.soft_argmax import soft_argmax_confidence
from gcn.lifters.stacked import Stacked
from gcn.posenet import PoseNet
from mesh.errors import InputError
from mesh.joints import COCO19


class Given(nn.Module):
    """Heat maps as they come, one per joint, in place of a picture's."""

    def __init__(self, heatmaps: Tensor) -> None:
        super().__init__()
        self.heatmaps = nn.Parameter(heatmaps)

    def forward(self, images: Tensor) -> Tensor:
        return self.heatmaps


def heatmap_network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 19, 1), nn.Tanh(),
        nn.Conv2d(19, 19, 1),
    )  # fmt: skip


def stacked(freeze: Any, network: nn.Module | None = None, **options: Any) -> Stacked:
    torch.manual_seed(0)
    network = network or heatmap_network()
    lifter = PoseNet(COCO19, 3, width=16, blocks=1)
    return Stacked(network, lifter, freeze=freeze, min_confidence=options.pop("min_confidence", 0.0), **options)


@pytest.fixture
def images(generator: torch.Generator) -> Tensor:
    return torch.randn(2, 3, 16, 24, generator=generator)


def learning(module: nn.Module) -> list[str]:
    return [name for name, p in module.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]


def test_a_peak_of_the_map_is_found_in_pixels_of_the_picture() -> None:
    heatmaps = torch.zeros(1, 19, 4, 6)
    heatmaps[:, :, 3, 1] = 50.0
    model = stacked("none", Given(heatmaps))
    keypoints_px, confidence = model.keypoints(torch.zeros(1, 3, 32, 48))  # 8 px per cell, both ways
    torch.testing.assert_close(keypoints_px, torch.tensor([12.0, 28.0]).expand(1, 19, 2))
    assert (confidence > 0.99).all()


def test_the_lifter_sees_the_features_of_the_found_joints(images) -> None:
    model = stacked("all").eval()
    joints, keypoints_px, confidence = model(images, with_keypoints=True)
    assert joints.shape == (2, 19, 3) and (joints[:, COCO19.root_idx] == 0).all()
    positions, certainty = soft_argmax_confidence(model.network_2d(images))
    torch.testing.assert_close(confidence, certainty)
    torch.testing.assert_close(keypoints_px, (positions + 1) / 2 * torch.tensor([24.0, 16.0]))
    torch.testing.assert_close(joints, model.lifter(pose_features(keypoints_px, confidence)))
    torch.testing.assert_close(model(images), joints)


def test_a_map_that_points_nowhere_is_a_joint_not_seen(generator: torch.Generator) -> None:
    heatmaps = torch.randn(1, 19, 8, 8, generator=generator)
    place = torch.randint(64, (1, 19, 1), generator=generator)
    heatmaps = heatmaps.flatten(2).scatter(2, place, 30.0).unflatten(2, (8, 8))
    heatmaps[0, 4] = 0.0
    model = stacked("none", Given(heatmaps), min_confidence=0.3)
    _, confidence = model.keypoints(torch.zeros(1, 3, 8, 8))
    assert confidence[0, 4] == 0 and (confidence[0, :4] > 0.9).all()


def test_gradients_reach_the_whole_free_network(images) -> None:
    model = stacked("none")
    model(images).pow(3).sum().backward()
    # The last bias alone shifts a whole map, which moves no peak.
    learned, expected = learning(model.network_2d), {name for name, _ in model.network_2d.named_parameters()}
    assert set(learned) >= expected - {"0.bias", "5.bias"}
    assert len(learning(model.lifter)) == len(list(model.lifter.parameters()))


def test_a_frozen_network_gets_no_gradient_and_the_lifter_does(images) -> None:
    model = stacked("all")
    model(images).pow(3).sum().backward()
    assert all(p.grad is None for p in model.network_2d.parameters())
    assert len(learning(model.lifter)) == len(list(model.lifter.parameters()))


def test_of_a_partly_frozen_network_the_last_child_learns(images) -> None:
    model = stacked("part")
    model(images).pow(3).sum().backward()
    assert {name for name, p in model.network_2d.named_parameters() if p.grad is not None} == {"5.weight", "5.bias"}
    assert "5.weight" in learning(model.network_2d)


@pytest.mark.parametrize("freeze", ["all", "part", "none"])
def test_what_is_frozen_stays_in_evaluation_mode(images, freeze: str) -> None:
    model = stacked(freeze)
    before = model.network_2d[1].running_mean.clone()
    for _ in range(2):  # from the start, and after a validation
        model(images)
        assert model.training and model.lifter.training
        assert model.network_2d[1].training == (freeze == "none")
        assert model.network_2d[5].training == (freeze != "all")
        model.eval()
        assert not any(module.training for module in model.modules())
        model.train()
    assert torch.equal(model.network_2d[1].running_mean, before) == (freeze != "none")


def test_a_step_on_the_picture_moves_the_free_network_towards_the_truth(images) -> None:
    torch.manual_seed(0)
    model = stacked("none")
    target = torch.rand(2, 19, 2) * torch.tensor([24.0, 16.0])
    losses = []
    for _ in range(20):
        loss = (model.keypoints(images)[0] - target).square().mean()
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, tuple(model.network_2d.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.network_2d.parameters(), gradients):
                parameter -= 0.1 * gradient
    assert losses[-1] < 0.9 * losses[0]


def test_freezing_part_of_a_network_in_one_piece_is_refused() -> None:
    with pytest.raises(InputError, match="at least two child modules"):
        stacked("part", Given(torch.zeros(1, 19, 4, 4)))
    with pytest.raises(InputError, match="freeze must be one of all, part, none"):
        stacked("some")
