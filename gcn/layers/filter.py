"""The Chebyshev filter of a whole layer as few fixed sparse products, forwards and backwards."""

from __future__ import annotations

import numpy as np
import torch
from numpy.polynomial import chebyshev
from scipy import sparse
from torch import Tensor, nn

from gcn.layers.sparse import SampleRows


def monomial_weight(weight: Tensor) -> Tensor:
    """Weights of 1, L, L^2 ... that give what these of T_0(L), T_1(L) ... give: (K, C_in, C_out) -> (C_in, K C_out)."""
    order = len(weight)
    powers = np.zeros((order, order))  # (k, j): the coefficient of L^j in T_k
    for k in range(order):
        powers[k, : k + 1] = chebyshev.cheb2poly(np.eye(order)[k])[: k + 1]
    return torch.einsum("kj,kio->ijo", torch.from_numpy(powers).to(weight), weight).flatten(1)


class GraphFilter(nn.Module):
    """y = sum_k L^k U x V_k + b by Horner's rule: the weights first, then the graph, on C_out channels.

    U copies coarse nodes to finer ones (nearest up-sampling), so that a layer after an up-sampling multiplies by its
    weights at the coarse nodes. Sample-major; one matrix product gives all x V_k side by side, (N_in, K C_out), which
    read as (K N_in, C_out) are the rows that the sparse products gather: nothing is permuted or concatenated.
    """

    def __init__(self, laplacian: sparse.spmatrix, order: int, parent: np.ndarray | None = None) -> None:
        """laplacian: symmetric, rescaled, (N, N); parent: (N,) coarse node of each node, None without up-sampling."""
        super().__init__()
        size = laplacian.shape[0]
        self.order, self.size = order, size
        parent = np.arange(size) if parent is None else parent
        self.in_size = in_size = int(parent.max()) + 1
        copy = sparse.csr_matrix((np.ones(size), (np.arange(size), parent)), shape=(size, in_size))

        def term(k: int) -> sparse.csr_matrix:  # U x V_k out of the interleaved products
            ones = (np.ones(in_size), (np.arange(in_size), order * np.arange(in_size) + k))
            return copy @ sparse.csr_matrix(ones, shape=(in_size, order * in_size))

        # Rows of the table: products (K N_in), the sum so far (N, if it is needed), the bias.
        self.carried = carried = size if order > 2 else 0
        start = term(0) if order == 1 else term(order - 2) + laplacian @ term(order - 1)
        sums = [sparse.hstack([start, sparse.csr_matrix((size, carried))])]
        sums += [sparse.hstack([term(k), laplacian]) for k in range(order - 3, -1, -1)]
        bias = [sparse.csr_matrix((size, 1))] * (len(sums) - 1) + [sparse.csr_matrix(np.ones((size, 1)))]
        self.sums = nn.ModuleList(SampleRows(sparse.hstack(pair)) for pair in zip(sums, bias))
        # Backwards: from dy, L dy ... L^(K-2) dy, below each other, all U^T L^k dy at once, again interleaved.
        rows = max(1, order - 1)
        self.power = SampleRows(laplacian) if order > 2 else None
        blocks = [[None] * rows for _ in range(order)]
        for k in range(order):
            blocks[k][min(k, rows - 1)] = copy.T if k < rows else copy.T @ laplacian
        spread = sparse.bmat(blocks, format="csr")
        self.spread = SampleRows(spread[np.arange(order * in_size).reshape(order, in_size).T.ravel()])

    def table(self, x: Tensor, channels: int) -> Tensor:
        """Memory for `forward`, which may serve again and again: many large pieces would fragment the heap."""
        return x.new_empty(len(x), self.order * self.in_size + self.carried + 1, channels)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor, table: Tensor | None = None) -> Tensor:
        """(B, N_in, C_in), (C_in, K C_out), (C_out,) -> (B, N, C_out)."""
        products = self.order * self.in_size
        table = self.table(x, len(bias)) if table is None else table[: len(x)]
        if len(x) == 1:  # in place
            torch.mm(x[0], weight, out=table[0, :products].view(self.in_size, -1))
        else:
            table[:, :products] = (x @ weight).view(len(x), products, -1)
        table[:, -1] = bias
        for step in self.sums[:-1]:
            table[:, products:-1] = step(table)
        return self.sums[-1](table)

    def adjoint_rows(self, like: Tensor) -> Tensor:
        """Memory for `adjoint`, (B, rows, C_out): the caller writes the gradient of y to the first N rows."""
        return like.new_empty(len(like), max(1, self.order - 1) * self.size, like.shape[2])

    def adjoint(self, rows: Tensor) -> Tensor:
        """From the gradient of y, the first N of the `rows`, the (B, N_in, K C_out) that times V^T is the gradient of
        x, and that times x^T the gradient of V."""
        if self.power is not None:
            for done in range(self.size, rows.shape[1], self.size):
                rows[:, done : done + self.size] = self.power(rows[:, done - self.size : done])
        return self.spread(rows).view(len(rows), self.in_size, -1)
