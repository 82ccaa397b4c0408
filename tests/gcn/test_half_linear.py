from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from gcn.half_linear import MOST_ROWS, HalfLinear, read_half
from gcn.recovery import MeshRecovery

needs_engine = pytest.mark.skipif(
    torch.backends.quantized.engine not in ("x86", "fbgemm"), reason="torch cannot multiply by packed weights here"
)


def layer(in_features: int = 300, out_features: int = 250, *, halved: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    made = nn.Linear(in_features, out_features)
    if halved:
        made.weight.data = made.weight.data.half().float()
    return made


@needs_engine
@pytest.mark.parametrize("shape", [(1, 300), (8, 300), (9, 300), (100, 300), (2, 3, 300)])
def test_half_precision_weights_give_the_same_to_rounding(shape: tuple[int, ...]) -> None:
    exact, x = layer(), torch.randn(*shape)
    with torch.inference_mode():
        expected, found = exact(x), HalfLinear(exact)(x)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-6)


@needs_engine
def test_few_samples_take_the_packed_weights_and_many_the_exact_ones() -> None:
    exact = layer(halved=False)
    half = HalfLinear(exact)
    few, many = torch.randn(MOST_ROWS, 300), torch.randn(MOST_ROWS + 1, 300)
    with torch.inference_mode():
        rounded = few @ exact.weight.half().float().T + exact.bias
        torch.testing.assert_close(half(few), rounded, rtol=0, atol=5e-6)
        assert (half(few) - exact(few)).abs().max() > 2e-5
        assert torch.equal(half(many), exact(many))


@needs_engine
def test_changed_weights_moved_weights_and_gradients_are_those_of_an_ordinary_layer() -> None:
    x = torch.randn(3, 300)
    half = HalfLinear(layer())
    half(x).sum().backward()
    assert half.weight.grad is not None and half.weight.grad.abs().max() > 0
    with torch.no_grad():
        before = half(x)
        half.load_state_dict({"weight": torch.full((250, 300), 1e-3), "bias": torch.zeros(250)})
        torch.testing.assert_close(half(x), x.sum(1, keepdim=True).expand(3, 250) * 1e-3)
        assert not torch.equal(before, half(x))
        doubled = HalfLinear(layer()).double()
        assert doubled(x.double()).dtype == torch.float64


@needs_engine
def test_packing_leaves_the_weights_alone_and_weights_beyond_half_precision_stay() -> None:
    large = layer()
    large.weight.data[0, 0] = 1e6
    assert type(read_half(nn.Sequential(large))[0]) is nn.Linear
    assert type(read_half(nn.Sequential(layer(halved=False)))[0]) is nn.Linear
    assert large.weight[0, 0] == 1e6


@needs_engine
def test_only_large_plain_single_precision_layers_change() -> None:
    class Own(nn.Linear):
        pass

    def network() -> nn.Module:
        return nn.ModuleDict(
            {
                "large": layer(), "small": layer(8, 8), "own": Own(300, 250), "doubled": layer().double(),
                "inner": nn.Sequential(nn.ReLU(), layer()),
            }
        )  # fmt: skip

    before, changed = network(), read_half(network())
    kinds = {name: type(part) for name, part in changed.named_modules()}
    assert kinds["large"] is kinds["inner.1"] is HalfLinear
    assert kinds["small"] is kinds["doubled"] is nn.Linear and kinds["own"] is Own
    assert changed.state_dict().keys() == before.state_dict().keys()
    assert isinstance(changed["large"], nn.Linear)


def test_without_a_packing_engine_nothing_changes(monkeypatch) -> None:
    monkeypatch.setattr("gcn.half_linear._ENGINES", ())
    assert type(read_half(nn.Sequential(layer()))[0]) is nn.Linear


@needs_engine
def test_the_shipped_networks_recover_the_same_within_a_hundredth_of_a_millimetre() -> None:
    recovery = MeshRecovery.from_pretrained()
    halved = [part for part in recovery.model.modules() if isinstance(part, HalfLinear)]
    assert sum(part.weight.numel() for part in halved) > 0.9 * sum(
        p.numel() for part in recovery.model.modules() if isinstance(part, nn.Linear) for p in (part.weight,)
    )
    exact = copy.deepcopy(recovery.model.cpu().state_dict())
    torch.manual_seed(1)
    keypoints, confidence = torch.randn(3, 19, 2) * 100 + 500, torch.rand(3, 19)
    with torch.inference_mode():
        found = recovery.model(keypoints, confidence)
        for part in halved:
            part.forward = lambda x, part=part: nn.functional.linear(x, part.weight, part.bias)  # type: ignore[method-assign]
        expected = recovery.model(keypoints, confidence)
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert all(torch.equal(value, exact[name]) for name, value in recovery.model.state_dict().items())
