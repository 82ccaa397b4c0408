"""Networks of the same width side by side: one product for all of them, where each alone would be too small to pay."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, relu


class ParallelLinear(nn.Module):
    """P linear layers, (P, N, in) -> (P, N, out). A part of fewer inputs than the most has zeros in their places."""

    def __init__(self, inputs: Sequence[int], out_features: int, *, bias: bool = True) -> None:
        super().__init__()
        self.inputs = tuple(inputs)
        self.weight = nn.Parameter(torch.empty(len(self.inputs), max(self.inputs), out_features))
        self.bias = nn.Parameter(torch.empty(len(self.inputs), 1, out_features)) if bias else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Each part as `nn.Linear` begins."""
        for part, size in enumerate(self.inputs):
            weight = nn.init.uniform_(self.weight[part], -(size**-0.5), size**-0.5)
            weight[size:] = 0
            if self.bias is not None:
                nn.init.uniform_(self.bias[part], -(size**-0.5), size**-0.5)

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """(P, N, in) -> (P, N, out); `added` (P, N, out) takes the place of a bias that there is not."""
        start = added if self.bias is None else self.bias
        if start is None or (added is not None and added is not start):
            raise ValueError("a layer adds its bias or, without one, what is given")
        return torch.baddbmm(start, x, self.weight)

    def extra_repr(self) -> str:
        return f"{self.inputs} -> {self.weight.shape[-1]}, bias={self.bias is not None}"


class ParallelNorm(nn.Module):
    """P layer norms, each with weights of its own, (P, N, C) -> the same."""

    def __init__(self, parts: int, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(parts, 1, width)), nn.Parameter(torch.zeros(parts, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        """(P, N, C) -> (P, N, C)."""
        return torch.addcmul(self.bias, layer_norm(x, x.shape[-1:]), self.weight)


class ParallelBlock(nn.Module):
    """x + f(x) in each part, where f is twice [norm, ReLU, linear]."""

    def __init__(self, parts: int, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(ParallelNorm(parts, width) for _ in range(2))
        self.linears = nn.ModuleList(ParallelLinear([width] * parts, width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(P, N, width) -> (P, N, width)."""
        out = x
        for norm, linear in zip(self.norms, self.linears):
            out = linear(relu(norm(out)))
        return x + out


class ParallelNetwork(nn.Sequential):
    """P residual networks whose results linear layers read: (P, N, in) -> (P, N, width)."""

    def __init__(self, inputs: Sequence[int], width: int, blocks: int) -> None:
        parts = len(inputs)
        super().__init__(
            ParallelLinear(inputs, width),
            *[ParallelBlock(parts, width) for _ in range(blocks)],
            ParallelNorm(parts, width),
            nn.ReLU(),
        )
