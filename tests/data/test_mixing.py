from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.draws import Draws, step_generator
from data.loading import TrainingBatches
from data.mixing import MixedOrder, Mixture
from data.poses import PoseFile
from data.synthesis import SynthesisConfig, Synthesiser
from mesh.body import load_body
from mesh.errors import InputError
from mesh.samples import Batch


def sets_of(order: MixedOrder, indices: torch.Tensor) -> np.ndarray:
    return np.searchsorted(order.offsets, indices.numpy(), side="right") - 1


def test_with_equal_weights_an_epoch_is_the_largest_set_times_their_number() -> None:
    order = MixedOrder([10, 4, 7], [1, 1, 1], seed=0)
    epoch = order.indices(0, order.num_samples)
    assert order.num_samples == 30 and Counter(sets_of(order, epoch).tolist()) == {0: 10, 1: 10, 2: 10}
    used = Counter(epoch.tolist())
    assert all(used[i] == 1 for i in range(10))  # the largest set once
    assert all(used[i] in (2, 3) for i in range(10, 14)) and all(used[i] in (1, 2) for i in range(14, 21))


def test_weights_are_shares_of_the_places() -> None:
    order = MixedOrder([1000, 500], [1, 3], seed=0)
    epochs = sets_of(order, order.indices(0, order.num_samples))
    assert (epochs == 1).mean() == pytest.approx(0.75, abs=1e-3) and order.num_samples == 4000
    halves = [(epochs[part] == 1).mean() for part in (slice(0, 2000), slice(2000, 4000))]
    assert halves == pytest.approx([0.75, 0.75], abs=0.05)  # shuffled, not one set after the other


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 90), max_size=5),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_any_split_of_the_positions_gives_the_same_sequence(sizes, cuts, seed) -> None:
    weights = [1.0 + i for i in range(len(sizes))]
    whole = MixedOrder(sizes, weights, seed).indices(0, 90)
    edges = sorted({0, 90, *cuts})
    parts = [MixedOrder(sizes, weights, seed).indices(a, b - a) for a, b in pairwise(edges)]
    assert torch.equal(torch.cat(parts), whole)
    assert whole.min() >= 0 and whole.max() < sum(sizes)


def test_within_a_set_each_sample_comes_before_any_comes_again() -> None:
    order = MixedOrder([6, 30], [1, 1], seed=3)
    sequence = order.indices(0, 300)
    first = [i for i in sequence.tolist() if i < 6]
    assert all(sorted(first[k : k + 6]) == list(range(6)) for k in range(0, len(first) - 5, 6))


def test_seeds_and_epochs_differ() -> None:
    order = MixedOrder([9, 9], [1, 1], seed=0)
    epochs = [order.indices(k * 18, 18).tolist() for k in (0, 1)]
    assert epochs[0] != epochs[1] and MixedOrder([9, 9], [1, 1], seed=1).indices(0, 18).tolist() != epochs[0]


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_senseless_weights_are_refused(weight) -> None:
    with pytest.raises(InputError, match="weights of a mixture must be positive"):
        MixedOrder([3, 3], [1.0, weight], seed=0)


def maker(count: int, seed: int, **config) -> Synthesiser:
    g = torch.Generator().manual_seed(seed)
    poses = torch.nn.functional.normalize(torch.randn(count, 24, 4, generator=g) * 0.2 + torch.eye(4)[0], dim=-1)
    return Synthesiser(PoseFile(quaternions=poses, name=str(seed)), load_body(), replace(SynthesisConfig(), **config))


@pytest.fixture(scope="module")
def mixture() -> Mixture:
    return Mixture([maker(5, 0, shape_sd=0.0), maker(3, 1)], [1.0, 1.0])


def batch_of(mixture: Mixture, index: list[int], rows: slice = slice(None), *, with_vertices: bool = False) -> Batch:
    draws = Draws(len(index), step_generator(4, 2), rows)
    return mixture.batch(torch.tensor(index)[rows], draws, with_vertices=with_vertices)


def test_rows_come_from_their_sets_in_the_order_asked_for(mixture) -> None:
    index = [6, 0, 5, 4, 7]
    batch = batch_of(mixture, index)
    assert batch.ids.tolist() == index
    alone = [batch_of(mixture, index, slice(i, i + 1)) for i in range(5)]
    for name in ("joints_m", "regressed_m", "keypoints_px"):
        rows = torch.cat([getattr(one, name) for one in alone])
        torch.testing.assert_close(getattr(batch, name), rows, atol=2e-3, rtol=1e-4)
    for name in ("confidence", "intrinsics"):
        rows = torch.cat([getattr(one, name) for one in alone])
        torch.testing.assert_close(getattr(batch, name), rows, atol=1e-5, rtol=1e-6)


def test_sets_draw_numbers_of_their_own(mixture) -> None:
    twins = Mixture([maker(3, 1), maker(3, 1)], [1.0, 1.0])
    first, second = batch_of(twins, [0, 0, 0]), batch_of(twins, [3, 3, 3])
    assert not torch.allclose(first.joints_m, second.joints_m, atol=1e-3)


def test_vertices_are_mixed_too(mixture) -> None:
    assert batch_of(mixture, [6, 0], with_vertices=True).vertices_m.shape == (2, 6890, 3)
    assert batch_of(mixture, [6, 0]).vertices_m is None


def test_a_mixture_trains_like_any_other_source(mixture) -> None:
    batches = TrainingBatches(mixture, seed=1, batch_size=4, accumulate=2)
    ids = [i for step in range(5) for piece in batches[step] for i in piece.ids.tolist()]
    assert ids == mixture.order(1).indices(0, 20).tolist() and len(mixture) == 10
