from __future__ import annotations

import inspect
from dataclasses import asdict
from typing import Any

import pytest
import torch

from gcn.lifters.denoise import DenoiserConfig, PoseDenoiser, Refined
from gcn.posenet import PoseNet
from mesh.errors import InputError
from mesh.joints import COCO19

SMALL = DenoiserConfig(width=32, code=8)


def denoiser(**options: Any) -> PoseDenoiser:
    torch.manual_seed(0)
    return PoseDenoiser(COCO19, **(asdict(SMALL) | options))


@pytest.fixture
def poses(generator: torch.Generator) -> torch.Tensor:
    poses = torch.randn(6, 19, 3, generator=generator)
    return poses - poses[:, COCO19.root_idx, None]


def test_the_options_are_those_of_the_configuration_with_its_defaults() -> None:
    options = {
        name: p.default for name, p in inspect.signature(PoseDenoiser).parameters.items() if p.kind == p.KEYWORD_ONLY
    }
    assert options == asdict(DenoiserConfig())


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_an_untrained_denoiser_changes_nothing(poses, norm: str) -> None:
    torch.testing.assert_close(denoiser(norm=norm, dropout=0.5)(poses), poses, rtol=0, atol=0)


def test_the_root_stays_exactly_zero_and_every_parameter_learns(poses) -> None:
    model = denoiser()
    torch.nn.init.normal_(model.decoder[-1].weight)
    torch.nn.init.normal_(model.decoder[-1].bias)
    refined = model(poses)
    assert (refined[:, COCO19.root_idx] == 0).all() and (refined - poses).abs().max() > 0.1
    refined.pow(3).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_the_correction_is_a_function_of_the_code_alone(poses) -> None:
    model = denoiser(code=1).eval()
    torch.nn.init.normal_(model.decoder[-1].weight)
    codes = model.encoder(poses.flatten(1))
    assert codes.shape == (6, 1)
    correction = model.decoder(codes).unflatten(1, (19, 3))
    torch.testing.assert_close(model(poses) - poses, correction - correction[:, COCO19.root_idx, None])


def test_it_learns_to_remove_an_error_of_the_lifter(poses) -> None:
    model = denoiser()
    error = torch.zeros_like(poses)
    error[:, 0] = 0.3
    losses = []
    for _ in range(40):
        loss = (model(poses + error) - poses).square().mean()
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, tuple(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients):
                parameter -= 0.3 * gradient
    assert losses[-1] < 0.2 * losses[0]


def test_a_refined_lifter_is_a_lifter(generator: torch.Generator) -> None:
    torch.manual_seed(0)
    lifter = PoseNet(COCO19, 3, width=16, blocks=1)
    refined = Refined(lifter, denoiser())
    features = torch.randn(4, 19, 3, generator=generator)
    torch.testing.assert_close(refined(features), lifter(features), rtol=0, atol=0)
    torch.nn.init.normal_(refined.denoiser.decoder[-1].weight)
    torch.testing.assert_close(refined(features), refined.denoiser(lifter(features)))
    assert (refined(features) - lifter(features)).abs().max() > 0.1
    refined(features).pow(3).sum().backward()
    assert all(p.grad is not None for p in lifter.parameters())


@pytest.mark.parametrize("options", [{"width": 0}, {"code": 0}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="denoiser"):
        DenoiserConfig(**options)
