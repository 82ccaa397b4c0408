"""Chebyshev graph convolution (Defferrard et al. 2016, equation 4)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

Operator = Callable[[Tensor], Tensor]


def chebyshev_basis(operator: Operator, x: Tensor, order: int) -> list[Tensor]:
    """T_0(L) x, ..., T_{K-1}(L) x by the recurrence T_k = 2 L T_{k-1} - T_{k-2}.

    `operator` multiplies by the rescaled Laplacian (spectrum in [-1, 1]); x (N, B, C) -> K tensors of that shape.
    """
    terms = [x]
    if order > 1:
        terms.append(operator(x))
    for _ in range(2, order):
        terms.append(2 * operator(terms[-1]) - terms[-2])
    return terms


class _ChebyshevWeights(nn.Module):
    """The parameters of y = sum_k T_k(L) x W_k + b."""

    def __init__(self, in_channels: int, out_channels: int, order: int = 3, *, bias: bool = True) -> None:
        super().__init__()
        self.order = order
        self.weight = nn.Parameter(torch.empty(order, in_channels, out_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform within sqrt(2 / (fan in + fan out)), as the original; bias 0."""
        order, fan_in, fan_out = self.weight.shape
        bound = math.sqrt(2.0 / (order * fan_in + fan_out))
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        order, fan_in, fan_out = self.weight.shape
        return f"{fan_in}, {fan_out}, order={order}"


class ChebConv(_ChebyshevWeights):
    """y = sum_k T_k(L) x W_k + b.

    Node-major layout: samples and channels of a node lie side by side, so the sparse product and the matrix product
    both work in place of each other's output, without a permutation between them.

    Shapes: operator, the rescaled Laplacian, (N, ...) -> (N, ...); x (N, B, C_in) -> (N, B, C_out).
    """

    def forward(self, operator: Operator, x: Tensor) -> Tensor:
        """Widening layers filter first; narrowing ones multiply first and filter the fewer channels (Clenshaw)."""
        out_channels = self.weight.shape[-1]
        if x.shape[-1] <= out_channels or self.order < 2:
            basis = torch.cat(chebyshev_basis(operator, x, self.order), dim=-1)
            out = basis @ self.weight.flatten(0, 1)
        else:
            out = self._clenshaw(operator, x)
        return out if self.bias is None else out + self.bias

    def _clenshaw(self, operator: Operator, x: Tensor) -> Tensor:
        """The same sum by Clenshaw's recurrence on x W_k: b_k = x W_k + 2 L b_{k+1} - b_{k+2}."""
        products = [x @ w for w in self.weight]
        ahead, current = torch.zeros_like(products[-1]), products[-1]
        for product in products[-2:0:-1]:
            current, ahead = product + 2 * operator(current) - ahead, current
        return products[0] + operator(current) - ahead


class DenseChebConv(_ChebyshevWeights):
    """The layer of `ChebConv` on a graph so small that T_1(L) ... T_{K-1}(L) are dense matrices: two products in all.

    Shapes: polynomials (K - 1, N, N), see `dense_polynomials`; x (N, B, C_in) -> (N, B, C_out).
    """

    def forward(self, polynomials: Tensor, x: Tensor) -> Tensor:
        """Filters all powers at once where the layer widens, else multiplies by all weights at once."""
        nodes, batch, channels = x.shape
        out_channels = self.weight.shape[-1]
        if channels <= out_channels:
            filtered = (polynomials.flatten(0, 1) @ x.flatten(1)).view(self.order - 1, nodes * batch, channels)
            out = x.flatten(0, 1) @ self.weight[0]
            for term, weight in zip(filtered, self.weight[1:]):
                out = torch.addmm(out, term, weight)
        else:
            products = torch.matmul(x.reshape(1, nodes * batch, channels), self.weight)  # (K, N B, C_out)
            powers = self.order - 1
            terms = products[1:].reshape(powers * nodes, batch * out_channels)
            across = polynomials.transpose(0, 1).reshape(nodes, powers * nodes)
            out = torch.addmm(products[0].view(nodes, batch * out_channels), across, terms)
            out = out.view(nodes * batch, out_channels)
        return (out if self.bias is None else out + self.bias).view(nodes, batch, out_channels)


def dense_polynomials(laplacian: np.ndarray, order: int) -> np.ndarray:
    """T_1(L), ..., T_{K-1}(L) of a rescaled Laplacian, (N, N) -> (K - 1, N, N)."""
    terms = [np.eye(len(laplacian)), laplacian]
    for _ in range(2, order):
        terms.append(2 * laplacian @ terms[-1] - terms[-2])
    return np.stack(terms[1:order]) if order > 1 else np.empty((0, *laplacian.shape))
