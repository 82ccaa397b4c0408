from __future__ import annotations

import inspect
from dataclasses import asdict
from typing import Any

import pytest
import torch

from gcn.features import pose_features
from gcn.lifters.cyclic import CyclicConfig, CyclicLifter, cycle_loss
from mesh.errors import InputError
from mesh.joints import COCO19, HUMAN36M17, JointSet

SMALL = CyclicConfig(width=32, blocks=1)


def lifter(joints: JointSet = COCO19, in_channels: int = 3, **options: Any) -> CyclicLifter:
    torch.manual_seed(0)
    return CyclicLifter(joints, in_channels, **(asdict(SMALL) | options))


@pytest.fixture
def features(generator: torch.Generator) -> torch.Tensor:
    confidence = (torch.rand(6, 19, generator=generator) > 0.2).float()
    return pose_features(100 * torch.randn(6, 19, 2, generator=generator), confidence)


def test_the_options_are_those_of_the_configuration_with_its_defaults() -> None:
    options = {
        name: p.default for name, p in inspect.signature(CyclicLifter).parameters.items() if p.kind == p.KEYWORD_ONLY
    }
    assert options == asdict(CyclicConfig())


def test_the_encoder_has_the_size_of_the_published_lifter_and_the_decoder_of_its_mirror_image() -> None:
    def size(in_width: int, out_width: int) -> int:
        hidden, norms = 4 * (1024 * 1024 + 1024), 5 * 2 * 1024
        return (in_width + 1) * 1024 + hidden + norms + 1025 * out_width

    with torch.device("meta"):
        model, encoder = CyclicLifter(HUMAN36M17, 2), CyclicLifter(HUMAN36M17, 2, decoder=False)
    assert sum(p.numel() for p in model.encoder.parameters()) == size(34, 51)
    assert sum(p.numel() for p in model.parameters()) == size(34, 51) + size(51, 34)
    assert sum(p.numel() for p in encoder.parameters()) == size(34, 51)


@pytest.mark.parametrize("in_channels", [2, 3])
def test_the_cycle_returns_the_same_joints_and_positions_in_2d(features, in_channels: int) -> None:
    model = lifter(in_channels=in_channels).eval()
    joints, keypoints = model(features[..., :in_channels], cycle=True)
    assert keypoints.shape == (6, 19, 2) and joints.shape == (6, 19, 3)
    assert (joints[:, COCO19.root_idx] == 0).all()
    torch.testing.assert_close(model(features[..., :in_channels]), joints, rtol=0, atol=0)


def test_the_cycle_teaches_the_encoder_too(features) -> None:
    model = lifter(norm="layer")
    _, keypoints = model(features, cycle=True)
    cycle_loss(keypoints, features[..., :2], features[..., 2] > 0).mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


def test_the_decoder_sees_the_joints_and_which_of_them_were_known(features) -> None:
    model = lifter(dropout=0.0, norm="layer")
    seen: list[torch.Tensor] = []
    assert model.decoder is not None
    model.decoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    joints, _ = model(features, cycle=True)
    torch.testing.assert_close(seen[0].unflatten(1, (19, 4)), torch.cat((joints, features[..., 2:]), -1))


def test_the_skip_adds_the_input_positions_to_what_the_decoder_writes(features) -> None:
    plain, skipping = lifter().eval(), lifter(skip=True).eval()
    difference = skipping(features, cycle=True)[1] - plain(features, cycle=True)[1]
    torch.testing.assert_close(difference, features[..., :2])


def test_joints_without_confidence_are_not_asked_to_come_back(features) -> None:
    known = features[..., 2] > 0
    decoded = features[..., :2].clone()
    decoded[~known] = 5.0
    torch.testing.assert_close(cycle_loss(decoded, features[..., :2], known), torch.zeros(6))
    decoded[0, known[0]] += torch.tensor([0.5, -0.1])
    torch.testing.assert_close(cycle_loss(decoded, features[..., :2], known)[0], torch.tensor(0.3))
    assert cycle_loss(decoded, features[..., :2], torch.zeros_like(known)).eq(0).all()


@pytest.mark.parametrize("skip", [False, True])
def test_the_cycle_closes_in_a_short_fit(features, skip: bool) -> None:
    model = lifter(dropout=0.0, skip=skip)
    known = features[..., 2] > 0
    losses = []
    for _ in range(60):
        loss = cycle_loss(model(features, cycle=True)[1], features[..., :2], known).mean()
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, tuple(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients):
                parameter -= 0.3 * gradient
    assert losses[-1] < 0.5 * losses[0]


def test_the_batch_norm_or_the_layer_norm_decides_whether_people_see_each_other(features) -> None:
    for norm, alone_is_equal in (("batch", False), ("layer", True)):
        model = lifter(norm=norm, dropout=0.0).train()
        assert torch.allclose(model(features)[:3], model(features[:3]), atol=1e-5) == alone_is_equal


def test_a_lifter_without_decoder_has_no_cycle(features) -> None:
    with pytest.raises(ValueError, match="without a decoder"):
        lifter(decoder=False)(features, cycle=True)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"width": 0}, "width >= 1"),
        ({"blocks": -1}, "blocks >= 0"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ({"decoder": False, "skip": True}, "needs cyclic.decoder=true"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CyclicConfig(**options)
