from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch

from gcn.lifters.martinez import BoundedLinear, Martinez, MartinezConfig
from mesh.errors import InputError
from mesh.joints import COCO17, COCO19, HUMAN36M17, MPII16, JointSet

SMALL = MartinezConfig(width=24, blocks=2)


def lifter(joints: JointSet = COCO19, in_channels: int = 3, **options: Any) -> Martinez:
    torch.manual_seed(0)
    return Martinez(joints, in_channels, **(asdict(SMALL) | options))


@pytest.fixture
def features(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(5, 19, 3, generator=generator)


def test_the_default_has_the_published_number_of_parameters_for_16_joints() -> None:
    size = sum(p.numel() for p in Martinez(MPII16, 2, **asdict(MartinezConfig())).parameters())
    assert size == 4_291_632
    assert size == pytest.approx(4.29e6, abs=0.005e6)


@pytest.mark.parametrize("max_norm", [True, False])
def test_the_network_equals_its_formula(features: torch.Tensor, max_norm: bool) -> None:
    network = lifter(blocks=1, max_norm=max_norm).eval()
    parts = [*network.stem, *network.blocks[0].layers]
    linears, norms = parts[::4], parts[1::4]
    for norm in norms:
        torch.nn.init.normal_(norm.running_mean)
        torch.nn.init.uniform_(norm.running_var, 0.5, 2)

    def multiply(linear: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        length = linear.weight.square().sum().sqrt().item()
        return x @ linear.weight.T / (max(length, 1) if max_norm else 1) + linear.bias

    def layer(i: int, x: torch.Tensor) -> torch.Tensor:
        normed = (multiply(linears[i], x) - norms[i].running_mean) / (norms[i].running_var + norms[i].eps).sqrt()
        return normed.clamp(min=0)

    hidden = layer(0, features.reshape(5, 57))
    hidden = hidden + layer(2, layer(1, hidden))
    joints = multiply(network.head, hidden).reshape(5, 19, 3)
    torch.testing.assert_close(network(features), joints - joints[:, [COCO19.index("pelvis")]])


def test_a_bounded_weight_counts_with_norm_one_at_most() -> None:
    linear = BoundedLinear(6, 4)
    x = torch.eye(6)
    for scale, expected in ((10.0, 1.0), (1.0, 1.0), (0.25, 0.25)):
        with torch.no_grad():
            linear.weight.normal_().mul_(scale / linear.weight.norm())
        torch.testing.assert_close((linear(x) - linear.bias).norm(), torch.tensor(expected))
    with torch.no_grad():
        linear.weight.normal_()
    assert linear.weight.norm() > 1
    weight = linear.double().weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda w: torch.func.functional_call(linear, {"weight": w}, (x.double(),)), weight)
    with torch.no_grad():
        linear.weight.zero_()
    linear(x.double()).sum().backward()
    assert linear.weight.grad is not None and linear.weight.grad.isfinite().all()


def test_max_norm_bounds_every_weight_matrix(features: torch.Tensor) -> None:
    bounded, free = (lifter(max_norm=on, dropout=0.0).eval() for on in (True, False))
    linears = [m for m in bounded.modules() if isinstance(m, torch.nn.Linear)]
    assert len(linears) == 6 and all(isinstance(m, BoundedLinear) for m in linears)
    assert not any(isinstance(m, BoundedLinear) for m in free.modules())
    with torch.no_grad():
        before = bounded(features), free(features)
        for network in (bounded, free):
            for m in network.modules():
                if isinstance(m, torch.nn.Linear):
                    assert m.weight.norm() > 1
                    m.weight *= 3
    torch.testing.assert_close(bounded(features), before[0])
    assert (free(features) - before[1]).abs().max() > 1


@pytest.mark.parametrize("max_norm", [True, False])
def test_every_parameter_receives_a_gradient(features: torch.Tensor, max_norm: bool) -> None:
    network = lifter(max_norm=max_norm).eval()  # while training, batch norm cancels the biases before it
    (network(features) ** 3).sum().backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


@pytest.mark.parametrize("joints", [MPII16, COCO17, HUMAN36M17, COCO19], ids=lambda joints: joints.name)
def test_the_lifted_root_is_exactly_zero(joints: JointSet) -> None:
    lifted = lifter(joints, 2)(torch.randn(4, len(joints), 2))
    assert lifted.shape == (4, len(joints), 3)
    assert (lifted[:, joints.root_idx] == 0).all()
    assert (lifted != 0).any(dim=-1).sum() == 4 * (len(joints) - 1)


def test_the_confidence_reaches_every_joint_but_the_root(features: torch.Tensor) -> None:
    network = lifter().eval()
    unsure = features.clone()
    unsure[:, 3, 2] -= 1
    moved = (network(unsure) != network(features)).any(dim=-1)
    assert moved.sum(1).tolist() == [18] * 5 and not moved[:, COCO19.root_idx].any()


def test_dropout_acts_only_while_training(features: torch.Tensor) -> None:
    network = lifter()
    assert not torch.equal(network(features), network(features))
    network.eval()
    torch.testing.assert_close(network(features), network(features), rtol=0, atol=0)


def test_saved_weights_give_the_same_poses(features: torch.Tensor) -> None:
    network, other = lifter(), lifter()
    network(features)  # moves the running statistics
    with torch.no_grad():
        network.head.weight.normal_()
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(other.eval()(features), network.eval()(features), rtol=0, atol=0)


def test_the_lifter_writes_in_the_unit_that_it_is_told(features: torch.Tensor) -> None:
    in_metres, in_mm = (lifter(output_unit_m=unit).eval() for unit in (1.0, 1e-3))
    torch.testing.assert_close(in_mm(features), in_metres(features) / 1000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width >= 1 and blocks >= 0"),
        ({"blocks": -1}, "width >= 1 and blocks >= 0"),
        ({"dropout": 1.0}, r"martinez\.dropout must lie in \[0, 1\), got 1\.0"),
        ({"output_unit_m": 0.0}, r"martinez\.output_unit_m must be positive, got 0\.0"),
    ],
)
def test_senseless_settings_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        MartinezConfig(**options)
    assert "\n" not in str(caught.value)
