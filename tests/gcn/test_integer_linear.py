from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from gcn.integer_linear import MOST_ROWS, IntegerLinear, fits_integers, from_integers, read_integers, to_integers
from gcn.pose2mesh import ModelConfig, build_lifter

needs_kernel = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="torch is slow with whole numbers here"
)


def layer(in_features: int = 512, out_features: int = 130, *, rounded: bool = True, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    made = nn.Linear(in_features, out_features, bias=bias)
    if rounded:
        made.weight.data = from_integers(*to_integers(made.weight))
    return made


def test_rounded_weights_lie_within_half_a_step_and_use_the_whole_range() -> None:
    weight = torch.randn(300, 512, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 300)[:, None]
    numbers, scale = to_integers(weight)
    assert numbers.dtype == torch.int8 and numbers.shape == weight.shape and scale.shape == (300,)
    error = (from_integers(numbers, scale) - weight).abs() / scale[:, None]
    assert error.max() < 0.76 and error.mean() == pytest.approx(0.25, abs=0.01)  # more only where 127 is too few
    assert (numbers.abs().amax(1) == 127).all()


def test_rounding_twice_changes_nothing() -> None:
    weight = torch.randn(20000, 64, generator=torch.Generator().manual_seed(0)) * 0.03
    once = from_integers(*to_integers(weight))
    assert torch.equal(from_integers(*to_integers(once)), once)


def test_rows_of_zeros_stay_and_whole_numbers_are_met() -> None:
    weight = torch.tensor([[0.0, 0.0, 0.0], [127.0, -3.0, 1.0], [-127 / 256, 3 / 256, 0.0]])
    assert torch.equal(from_integers(*to_integers(weight)), weight)


def test_large_layers_of_many_inputs_alone_are_rounded() -> None:
    assert fits_integers(nn.Linear(512, 128)) and not fits_integers(nn.Linear(512, 127))
    assert not fits_integers(nn.Linear(511, 4096)) and not fits_integers(nn.Conv1d(512, 512, 1))


@needs_kernel
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 512), (7, 512), (MOST_ROWS, 512), (2, 3, 512)])
def test_few_samples_give_the_same_to_three_digits(shape: tuple[int, ...], bias: bool) -> None:
    exact, x = layer(bias=bias), torch.randn(*shape)
    with torch.inference_mode():
        expected, found = exact(x), IntegerLinear(exact)(x)
    assert found.shape == expected.shape and found.dtype == torch.float32
    error = (found - expected).norm() / expected.norm()
    assert 1e-4 < error < 5e-3


@needs_kernel
def test_many_samples_take_single_precision() -> None:
    exact, x = layer(), torch.randn(MOST_ROWS + 1, 512)
    with torch.inference_mode():
        assert torch.equal(IntegerLinear(exact)(x), exact(x))


@needs_kernel
def test_changed_weights_moved_weights_and_gradients_are_those_of_an_ordinary_layer() -> None:
    x = torch.randn(3, 512)
    changed = IntegerLinear(layer())
    changed(x).sum().backward()
    assert changed.weight.grad is not None and changed.weight.grad.abs().max() > 0
    with torch.no_grad():
        changed.load_state_dict({"weight": torch.full((130, 512), 1e-3), "bias": torch.zeros(130)})
        torch.testing.assert_close(changed(x), x.sum(1, keepdim=True).expand(3, 130) * 1e-3)
        doubled = IntegerLinear(layer()).double()
        assert doubled(x.double()).dtype == torch.float64


def test_other_weights_are_refused_and_stay() -> None:
    with pytest.raises(ValueError, match="whole numbers"):
        IntegerLinear(layer(rounded=False))
    plain = nn.Sequential(layer(rounded=False))
    before = plain[0].weight.clone()
    assert type(read_integers(plain)[0]) is nn.Linear and torch.equal(plain[0].weight, before)


@needs_kernel
def test_only_large_plain_single_precision_layers_change() -> None:
    class Own(nn.Linear):
        pass

    def network() -> nn.Module:
        return nn.ModuleDict(
            {
                "large": layer(), "small": layer(512, 8), "narrow": layer(256, 512), "own": Own(512, 130),
                "doubled": layer().double(), "inner": nn.Sequential(nn.ReLU(), layer()),
            }
        )  # fmt: skip

    before, changed = network(), read_integers(network())
    kinds = {name: type(part) for name, part in changed.named_modules()}
    assert kinds["large"] is kinds["inner.1"] is IntegerLinear
    assert kinds["small"] is kinds["narrow"] is kinds["doubled"] is nn.Linear and kinds["own"] is Own
    assert changed.state_dict().keys() == before.state_dict().keys()
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in changed.state_dict().items())


def test_on_other_processors_nothing_changes(monkeypatch) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "DEFAULT")
    assert type(read_integers(nn.Sequential(layer()))[0]) is nn.Linear


@needs_kernel
def test_a_lifter_gives_the_same_to_two_digits() -> None:
    torch.manual_seed(0)
    config = ModelConfig(lifter="posenet")
    lifter = build_lifter(config).eval()
    for part in lifter.modules():
        if isinstance(part, nn.Linear) and fits_integers(part):
            part.weight.data = from_integers(*to_integers(part.weight))
    exact = copy.deepcopy(lifter.state_dict())
    features = torch.randn(MOST_ROWS, 19, config.feature_channels, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = lifter(features)
        found = read_integers(lifter)(features)
    packed = [part for part in lifter.modules() if isinstance(part, IntegerLinear)]
    linear = [part for part in lifter.modules() if isinstance(part, nn.Linear)]
    assert sum(part.weight.numel() for part in packed) > 0.9 * sum(part.weight.numel() for part in linear)
    distance = (found - expected).norm(dim=-1)
    assert 0 < distance.mean() < 0.02 * expected.norm(dim=-1).mean()
    assert all(torch.equal(value, exact[name]) for name, value in lifter.state_dict().items())
