"""Fixed sparse matrices as modules."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn.functional import pad

_LANES = 8  # columns that an embedding bag sums at a time


class MatrixRows(nn.Module):
    """x -> A x for (N, C), without gradients: what autograd Functions are made of.

    The matrix is kept as plain index and value buffers, rebuilt from the graph and never saved, so that copying,
    moving and saving a network just work. On the CPU the product is an embedding bag, which is two to three times as
    fast as CSR there; elsewhere it is CSR.
    """

    offsets: Tensor
    columns: Tensor
    values: Tensor

    def __init__(self, matrix: sparse.spmatrix) -> None:
        super().__init__()
        csr = matrix.tocsr()
        csr.sort_indices()
        self.shape = (int(csr.shape[0]), int(csr.shape[1]))
        self.register_buffer("offsets", torch.from_numpy(csr.indptr.astype(np.int32)), persistent=False)
        self.register_buffer("columns", torch.from_numpy(csr.indices.astype(np.int32)), persistent=False)
        self.register_buffer("values", torch.tensor(csr.data, dtype=torch.get_default_dtype()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) -> (M, C)."""
        if x.device.type != "cpu":
            parts = (self.offsets, self.columns, self.values)
            return torch.sparse_csr_tensor(*parts, self.shape, check_invariants=False) @ x
        width = x.shape[1]
        if width < 2 * _LANES:  # few columns are slow
            x = pad(x, (0, -width % _LANES))
        out = torch.embedding_bag(x, self.columns, self.offsets, False, 0, False, self.values, True)[0]
        return out if out.shape[1] == width else out[:, :width].contiguous()

    def extra_repr(self) -> str:
        return f"{self.shape[0]} x {self.shape[1]}, {len(self.values)} non-zeros"


class _Product(torch.autograd.Function):
    """A @ x given A and its transpose: the backward pass is one more product."""

    @staticmethod
    def forward(ctx: Any, matrix: MatrixRows, transposed: MatrixRows, x: Tensor) -> Tensor:
        """(M, N), (N, M), (N, C) -> (M, C)."""
        ctx.transposed = transposed
        return matrix(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor]:
        """A^T @ gradient."""
        return None, None, ctx.transposed(grads[0].contiguous())


class SparseMatrix(nn.Module):
    """x -> A x for node-major features: (N, ...) -> (M, ...), in float32; gradients flow to x only."""

    def __init__(self, matrix: sparse.spmatrix) -> None:
        super().__init__()
        self.matrix, self.transposed = MatrixRows(matrix).float(), MatrixRows(matrix.T).float()

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> (M, ...)."""
        flat = x.flatten(1).float() if x.ndim > 1 else x[:, None].float()
        with torch.autocast(x.device.type, enabled=False):
            return _Product.apply(self.matrix, self.transposed, flat).view(self.matrix.shape[0], *x.shape[1:])


class SampleRows(MatrixRows):
    """x -> A x for each sample of sample-major features: (B, N, C) -> (B, M, C), without gradients.

    On the CPU, where a batch of one sample at a time is meant, one sample after
    the other; elsewhere the whole batch at once.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, M, C)."""
        if x.device.type == "cpu":
            products = [super(SampleRows, self).forward(sample) for sample in x]
            if not products:
                return x.new_empty(0, self.shape[0], x.shape[-1])
            return products[0][None] if len(products) == 1 else torch.stack(products)
        flat = x.transpose(0, 1).reshape(self.shape[1], -1)
        return super().forward(flat).view(self.shape[0], len(x), -1).transpose(0, 1).contiguous()
