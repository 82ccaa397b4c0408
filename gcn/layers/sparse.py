"""A fixed sparse matrix as a module."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn


class _Product(torch.autograd.Function):
    """A @ x given A and its transpose: the backward pass is one more product."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, transposed: Tensor, x: Tensor) -> Tensor:
        """(M, N) CSR, (N, M) CSR, (N, C) -> (M, C)."""
        ctx.transposed = transposed
        return matrix @ x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor]:
        """A^T @ gradient."""
        return None, None, ctx.transposed @ grads[0].contiguous()


class SparseMatrix(nn.Module):
    """x -> A x for node-major features: (N, ...) -> (M, ...).

    The matrix is kept as plain index and value buffers, rebuilt from the graph and never saved, so that copying,
    moving and saving a network just work; gradients flow to x only. Products are taken in float32.
    """

    rows: Tensor
    columns: Tensor
    values: Tensor
    transposed_rows: Tensor
    transposed_columns: Tensor
    transposed_values: Tensor

    def __init__(self, matrix: sparse.spmatrix) -> None:
        super().__init__()
        self.shape = tuple(int(n) for n in matrix.shape)
        for prefix, oriented in (("", matrix.tocsr()), ("transposed_", matrix.T.tocsr())):
            oriented.sort_indices()
            for name, array, dtype in (
                ("rows", oriented.indptr, np.int64),
                ("columns", oriented.indices, np.int64),
                ("values", oriented.data, np.float32),
            ):
                self.register_buffer(prefix + name, torch.from_numpy(array.astype(dtype)), persistent=False)
        with warnings.catch_warnings():  # torch announces once that its CSR format is young
            warnings.simplefilter("ignore", UserWarning)
            self._matrices()

    def _matrices(self) -> tuple[Tensor, Tensor]:
        size = self.shape
        matrix = torch.sparse_csr_tensor(self.rows, self.columns, self.values, size, check_invariants=False)
        transposed = torch.sparse_csr_tensor(
            self.transposed_rows, self.transposed_columns, self.transposed_values, size[::-1], check_invariants=False
        )
        return matrix, transposed

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> (M, ...)."""
        flat = x.reshape(len(x), -1).float()
        with torch.autocast(x.device.type, enabled=False):
            return _Product.apply(*self._matrices(), flat).view(self.shape[0], *x.shape[1:])

    def extra_repr(self) -> str:
        return f"{self.shape[0]} x {self.shape[1]}, {len(self.values)} non-zeros"


class SampleRows(nn.Module):
    """x -> A x for each sample of sample-major features: (B, N, C) -> (B, M, C), without gradients.

    What autograd Functions are made of. On the CPU, where a batch of one sample at a time is meant, the product is an
    embedding bag (two to three times as fast as CSR there); elsewhere CSR over the whole batch.
    """

    offsets: Tensor
    columns: Tensor
    values: Tensor

    def __init__(self, matrix: sparse.spmatrix) -> None:
        super().__init__()
        csr = matrix.tocsr()
        csr.sort_indices()
        self.shape = tuple(int(n) for n in csr.shape)
        self.register_buffer("offsets", torch.from_numpy(csr.indptr.astype(np.int32)), persistent=False)
        self.register_buffer("columns", torch.from_numpy(csr.indices.astype(np.int32)), persistent=False)
        self.register_buffer("values", torch.tensor(csr.data, dtype=torch.get_default_dtype()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, M, C)."""
        if x.device.type == "cpu":
            bags = [
                torch.embedding_bag(sample, self.columns, self.offsets, False, 0, False, self.values, True)[0]
                for sample in x
            ]
            return bags[0][None] if len(bags) == 1 else torch.stack(bags)
        matrix = torch.sparse_csr_tensor(self.offsets, self.columns, self.values, self.shape, check_invariants=False)
        flat = x.transpose(0, 1).reshape(self.shape[1], -1)
        return (matrix @ flat).view(self.shape[0], len(x), -1).transpose(0, 1).contiguous()

    def extra_repr(self) -> str:
        return f"{self.shape[0]} x {self.shape[1]}, {len(self.values)} non-zeros"
