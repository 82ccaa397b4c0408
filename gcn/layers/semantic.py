"""Semantic graph convolution: the graph says who listens to whom, training how much (Zhao et al. 2019, SemGCN)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class SemGraphConv(nn.Module):
    """y_i = a_ii x_i W_0 + sum_{j != i} a_ij x_j W_1 + b, where each row of a is a softmax over the node's edges.

    One learned logit per directed edge, in row-major order of the adjacency; all 1 at first, that is plain means.
    Dense products, for graphs of a few dozen nodes. Sample-major: both weights (or both graph products) of a node
    lie side by side, so one matrix product does the weights, one the graph, and nothing is permuted or concatenated.

    Shapes: adjacency (N, N) bool with self-loops; x (B, N, C_in) -> (B, N, C_out).
    """

    slots: Tensor
    is_self: Tensor

    def __init__(self, adjacency: Tensor, in_channels: int, out_channels: int, *, bias: bool = True) -> None:
        super().__init__()
        assert adjacency.diagonal().all(), "every node needs its self-loop"
        num_edges = int(adjacency.sum())
        slots = torch.full(adjacency.shape, num_edges)  # where an edge's logit lies; behind the last: no edge
        slots[adjacency] = torch.arange(num_edges)
        self.register_buffer("slots", slots, persistent=False)
        self.register_buffer("is_self", torch.eye(len(adjacency)), persistent=False)
        self.logits = nn.Parameter(torch.ones(num_edges))
        self.weight = nn.Parameter(torch.empty(2, in_channels, out_channels))  # self, neighbours
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights uniform within sqrt(12 / (fan in + fan out)) (Glorot and Bengio 2010, gain sqrt 2), bias 0."""
        _, fan_in, fan_out = self.weight.shape
        bound = math.sqrt(12 / (fan_in + fan_out))
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.ones_(self.logits)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def edge_weights(self) -> Tensor:
        """(N, N): rows sum to 1, 0 where no edge is."""
        return torch.cat((self.logits, self.logits.new_full((1,), -torch.inf)))[self.slots].softmax(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Widening layers follow the graph first; narrowing ones multiply first and mix the fewer channels."""
        batch, nodes, _ = x.shape
        edge_weights = self.edge_weights()
        from_self = edge_weights * self.is_self
        split = (from_self, edge_weights - from_self)
        _, fan_in, fan_out = self.weight.shape
        if fan_in <= fan_out:
            mixing = torch.stack(split, dim=1).flatten(0, 1)  # (2 N, N): self and neighbours of a node side by side
            mixed = torch.bmm(mixing.expand(batch, -1, -1), x).view(batch * nodes, 2 * fan_in)
            weight = self.weight.flatten(0, 1)
            out = mixed @ weight if self.bias is None else torch.addmm(self.bias, mixed, weight)
            return out.view(batch, nodes, fan_out)
        mixing = torch.stack(split, dim=2).flatten(1)  # (N, 2 N)
        weight = self.weight.transpose(0, 1).flatten(1)  # (C_in, 2 C_out)
        products = (x.reshape(batch * nodes, fan_in) @ weight).view(batch, 2 * nodes, fan_out)
        out = torch.bmm(mixing.expand(batch, -1, -1), products)
        return out if self.bias is None else out + self.bias

    def extra_repr(self) -> str:
        _, fan_in, fan_out = self.weight.shape
        return f"{fan_in}, {fan_out}, edges={len(self.logits)}"
