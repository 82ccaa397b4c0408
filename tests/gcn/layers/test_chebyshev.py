from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from torch_geometric.nn import ChebConv as PygChebConv

from gcn.graph import adjacency_from_edges, largest_eigenvalue, normalised_laplacian, rescale_laplacian
from gcn.layers.chebyshev import ChebConv, DenseChebConv, chebyshev_basis, dense_polynomials
from gcn.layers.sparse import SampleRows, SparseMatrix

EDGES = np.random.default_rng(0).integers(0, 40, (120, 2))
ADJACENCY = adjacency_from_edges(np.concatenate([EDGES, [[i, i + 1] for i in range(39)]]), 40)
LAPLACIAN = normalised_laplacian(ADJACENCY)


@pytest.fixture(scope="module")
def operator() -> SparseMatrix:
    return SparseMatrix(rescale_laplacian(LAPLACIAN))


def test_the_basis_matches_the_spectral_definition(operator: SparseMatrix, generator: torch.Generator) -> None:
    dense = torch.from_numpy(rescale_laplacian(LAPLACIAN).toarray())  # T_k(cos t) = cos(k t): shares no recursion
    x = torch.randn(40, 2, 3, generator=generator)
    values, vectors = torch.linalg.eigh(dense)
    theta = values.clamp(-1, 1).acos()
    for k, term in enumerate(chebyshev_basis(operator, x, order=5)):
        expected = vectors @ ((k * theta).cos()[:, None] * (vectors.T @ x.flatten(1).double()))
        torch.testing.assert_close(term.flatten(1).double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("channels", [(8, 16), (16, 8), (5, 3)])
def test_the_layer_equals_torch_geometric(operator: SparseMatrix, order: int, channels: tuple[int, int]) -> None:
    ours, theirs = ChebConv(*channels, order), PygChebConv(*channels, order)
    with torch.no_grad():
        ours.bias.normal_()
        theirs.bias.copy_(ours.bias)
        for weight, lin in zip(ours.weight, theirs.lins):
            lin.weight.copy_(weight.T)
    x = torch.randn(3, 40, channels[0])
    coo = ADJACENCY.tocoo()
    index = torch.tensor(np.stack([coo.row, coo.col]), dtype=torch.long)
    expected = theirs(x, index, lambda_max=torch.tensor(largest_eigenvalue(LAPLACIAN)))
    found = ours(operator, x.transpose(0, 1).contiguous()).transpose(0, 1)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("channels", [(3, 4), (4, 2)])
def test_gradients_equal_those_of_dense_products(operator: SparseMatrix, channels: tuple[int, int]) -> None:
    layer = ChebConv(*channels, 4)
    dense = torch.from_numpy(rescale_laplacian(LAPLACIAN).toarray()).float()
    x = torch.randn(40, 2, channels[0], requires_grad=True)
    grads = []
    for apply in (operator, lambda v: torch.einsum("nm,mbc->nbc", dense, v)):
        grads.append(torch.autograd.grad(layer(apply, x).square().sum(), [x, layer.weight, layer.bias]))
    for ours, expected in zip(*grads):
        torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("channels", [(4, 6), (4, 4), (6, 4)])
def test_dense_polynomials_give_the_same_layer_and_gradients(order: int, channels: tuple[int, int]) -> None:
    laplacian = rescale_laplacian(LAPLACIAN).toarray()
    layer, dense = ChebConv(*channels, order).double(), DenseChebConv(*channels, order).double()
    torch.nn.init.normal_(layer.bias)
    dense.load_state_dict(layer.state_dict())
    x = torch.randn(40, 3, channels[0], dtype=torch.float64, requires_grad=True)
    matrix = torch.from_numpy(laplacian)
    expected = layer(lambda v: torch.einsum("nm,mbc->nbc", matrix, v), x)
    found = dense(torch.from_numpy(dense_polynomials(laplacian, order)), x)
    torch.testing.assert_close(found, expected)
    pull = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(found, [x, *dense.parameters()], pull),
        torch.autograd.grad(expected, [x, *layer.parameters()], pull),
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("width", [1, 3, 15, 16, 40])
def test_products_of_any_width_are_right(width: int, generator: torch.Generator) -> None:
    dense = (np.arange(35).reshape(7, 5) % 3).astype(np.float32)  # with an empty row's worth of zeros in places
    dense[2] = 0
    x = torch.randn(5, width, generator=generator)
    torch.testing.assert_close(SparseMatrix(sparse.csr_matrix(dense))(x), torch.from_numpy(dense) @ x)


def test_a_rectangular_matrix_and_its_gradient(generator: torch.Generator) -> None:
    dense = (np.arange(15).reshape(5, 3) % 4).astype(np.float32)
    module = SparseMatrix(sparse.csr_matrix(dense))
    x = torch.randn(3, 2, 4, generator=generator, requires_grad=True)
    out = module(x)
    torch.testing.assert_close(out, torch.einsum("mn,nbc->mbc", torch.from_numpy(dense), x))
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    expected = torch.einsum("mn,mbc->nbc", torch.from_numpy(dense), 2 * out)
    torch.testing.assert_close(gradient, expected)


def test_a_sparse_module_can_be_copied_and_saves_nothing(operator: SparseMatrix) -> None:
    import copy

    x = torch.randn(40, 1, 2)
    torch.testing.assert_close(copy.deepcopy(operator)(x), operator(x), rtol=0, atol=0)
    assert operator.state_dict() == {}


@pytest.mark.parametrize("channels", [(3, 5), (5, 3)])
def test_a_batch_of_nobody_gives_nothing(channels: tuple[int, int]) -> None:
    nobody = torch.zeros(4, 0, channels[0])
    polynomials = torch.from_numpy(dense_polynomials(np.eye(4), 3)).float()
    assert DenseChebConv(*channels, 3)(polynomials, nobody).shape == (4, 0, channels[1])
    matrix = sparse.csr_matrix(np.ones((3, 4)))
    assert SparseMatrix(matrix)(nobody).shape == (3, 0, channels[0])
    assert SampleRows(matrix)(nobody.transpose(0, 1)).shape == (0, 3, channels[0])
