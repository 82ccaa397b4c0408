from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear

from gcn.layers.parallel import ParallelLinear, ParallelNetwork, ParallelNorm


def one_part(layer: ParallelLinear, part: int) -> nn.Linear:
    """An ordinary layer with the weights of one part."""
    size = layer.inputs[part]
    alone = nn.Linear(size, layer.weight.shape[-1], bias=layer.bias is not None)
    with torch.no_grad():
        alone.weight.copy_(layer.weight[part, :size].T)
        if layer.bias is not None:
            alone.bias.copy_(layer.bias[part, 0])
    return alone


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    """Three parts of 7, 4 and 5 inputs, six rows."""
    x = torch.randn(3, 6, 7, generator=generator)
    x[1, :, 4:], x[2, :, 5:] = 0, 0
    return x


def test_each_part_is_a_linear_layer_of_its_own(x: Tensor) -> None:
    layer = ParallelLinear([7, 4, 5], 8)
    for part, size in enumerate(layer.inputs):
        torch.testing.assert_close(layer(x)[part], one_part(layer, part)(x[part, :, :size]))


def test_what_is_added_takes_the_place_of_the_bias(x: Tensor, generator: torch.Generator) -> None:
    layer, added = ParallelLinear([7, 4, 5], 8, bias=False), torch.randn(3, 6, 8, generator=generator)
    for part, size in enumerate(layer.inputs):
        torch.testing.assert_close(layer(x, added)[part], one_part(layer, part)(x[part, :, :size]) + added[part])
    for network, given in ((layer, None), (ParallelLinear([7, 4, 5], 8), added)):
        with pytest.raises(ValueError, match="adds its bias or"):
            network(x, given)


def test_a_part_begins_as_a_layer_of_its_own_inputs_does() -> None:
    torch.manual_seed(0)
    layer = ParallelLinear([400, 25], 300)
    assert layer.bias is not None
    for part, size in enumerate(layer.inputs):
        bound = size**-0.5
        for values in (layer.weight[part, :size], layer.bias[part]):
            assert values.abs().max() <= bound and values.abs().max() > 0.98 * bound
            assert values.mean().abs() < 0.1 * bound
    assert not layer.weight[1, 25:].any()


def test_the_network_equals_its_formula_in_each_part(x: Tensor) -> None:
    torch.manual_seed(0)
    network = ParallelNetwork([7, 4, 5], 16, 2)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.4)
    stem, *blocks, last, _ = network
    found = network(x)
    for part, size in enumerate(stem.inputs):

        def activate(norm: ParallelNorm, y: Tensor, part: int = part) -> Tensor:
            return layer_norm(y, (16,), norm.weight[part, 0], norm.bias[part, 0]).clamp(min=0)

        y = one_part(stem, part)(x[part, :, :size])
        for block in blocks:
            z = y
            for norm, layer in zip(block.norms, block.linears):
                z = linear(activate(norm, z), layer.weight[part].T, layer.bias[part, 0])
            y = y + z
        torch.testing.assert_close(found[part], activate(last, y), rtol=1e-4, atol=1e-4)
