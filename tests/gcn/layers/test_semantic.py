from __future__ import annotations

import pytest
import torch

from gcn.layers.semantic import SemGraphConv

LINKS = ((0, 1), (1, 2), (1, 3), (3, 4))  # and node 5, which has none
ADJACENCY = torch.eye(6, dtype=torch.bool)
for _a, _b in LINKS:
    ADJACENCY[_a, _b] = ADJACENCY[_b, _a] = True


def convolution(channels: tuple[int, int], *, bias: bool = True) -> SemGraphConv:
    torch.manual_seed(0)
    conv = SemGraphConv(ADJACENCY, *channels, bias=bias).double()
    with torch.no_grad():
        for parameter in (conv.logits, conv.bias):
            if parameter is not None:
                parameter.normal_()
    return conv


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("channels", [(2, 7), (5, 5), (7, 3)])
def test_the_layer_equals_the_formula_written_node_by_node(channels: tuple[int, int], bias: bool) -> None:
    conv = convolution(channels, bias=bias)
    edges = [(i, j) for i in range(6) for j in range(6) if ADJACENCY[i, j]]
    raw = {edge: logit.exp() for edge, logit in zip(edges, conv.logits)}
    x = torch.randn(4, 6, channels[0], dtype=torch.float64)
    expected = torch.zeros(4, 6, channels[1], dtype=torch.float64)
    for i, j in edges:
        share = raw[i, j] / sum(value for (row, _), value in raw.items() if row == i)
        expected[:, i] += share * (x[:, j] @ conv.weight[0 if i == j else 1])
    if conv.bias is not None:
        expected += conv.bias
    torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize("channels", [(2, 4), (4, 2)])
def test_its_gradients_are_those_of_the_formula(channels: tuple[int, int]) -> None:
    conv = convolution(channels)
    names, values = zip(*[(name, p.detach().clone().requires_grad_()) for name, p in conv.named_parameters()])
    x = torch.randn(2, 6, channels[0], dtype=torch.float64, requires_grad=True)

    def run(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(conv, dict(zip(names, parameters)), (x,))

    assert torch.autograd.gradcheck(run, (x, *values))


def test_a_new_layer_averages_over_the_edges() -> None:
    weights = SemGraphConv(ADJACENCY, 2, 2).edge_weights()
    torch.testing.assert_close(weights, ADJACENCY / ADJACENCY.sum(1, keepdim=True))


@pytest.mark.parametrize("channels", [(2, 4), (4, 2)])
def test_an_empty_batch_stays_empty(channels: tuple[int, int]) -> None:
    assert SemGraphConv(ADJACENCY, *channels)(torch.empty(0, 6, channels[0])).shape == (0, 6, channels[1])
