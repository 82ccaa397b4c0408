"""The order in which samples are used."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.order import SampleOrder


@given(num_samples=st.integers(1, 30), seed=st.integers(0, 2**40), epoch=st.integers(0, 2**40))
@settings(max_examples=25, deadline=None)
def test_each_sample_is_used_once_per_epoch(num_samples: int, seed: int, epoch: int) -> None:
    indices = SampleOrder(num_samples, seed).indices(epoch * num_samples, num_samples)
    assert indices.dtype == torch.int64
    assert torch.equal(indices.sort().values, torch.arange(num_samples))


@given(
    num_samples=st.integers(1, 12), seed=st.integers(0, 2**31), start=st.integers(0, 50),
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=6),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_any_split_of_the_positions_gives_the_same_sequence(
    num_samples: int, seed: int, start: int, counts: list[int]
) -> None:
    whole = SampleOrder(num_samples, seed).indices(start, sum(counts))
    order, parts = SampleOrder(num_samples, seed), []
    for count in counts:
        parts.append(order.indices(start, count))
        start += count
    assert torch.equal(torch.cat(parts), whole)


def test_positions_may_be_asked_in_any_order() -> None:
    whole, order = SampleOrder(7, 3).indices(0, 70), SampleOrder(7, 3)
    for start in (63, 0, 30, 33, 29, 5):
        assert torch.equal(order.indices(start, 7), whole[start : start + 7])


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [SampleOrder(100, seed).indices(100 * epoch, 100) for seed in (0, 1, 2**32) for epoch in (0, 1, 2)]
    assert len({tuple(order.tolist()) for order in orders}) == len(orders)


def test_every_sample_may_come_at_every_place() -> None:
    firsts = SampleOrder(4, 0).indices(0, 4 * 4000).view(4000, 4)[:, 0]
    torch.testing.assert_close(torch.bincount(firsts, minlength=4) / 4000, torch.full((4,), 0.25), rtol=0, atol=0.03)


def test_one_sample_repeats_for_ever() -> None:
    assert torch.equal(SampleOrder(1, 0).indices(5, 9), torch.zeros(9, dtype=torch.int64))


def test_one_request_may_span_many_epochs() -> None:
    counts = torch.bincount(SampleOrder(3, 0).indices(2, 1 + 3 * 50))
    assert counts.sum() == 151 and counts.min() >= 50


def test_changing_what_was_given_leaves_the_order_as_it_is() -> None:
    order = SampleOrder(5, 0)
    before = order.indices(0, 5).clone()
    order.indices(0, 5).zero_()
    assert torch.equal(order.indices(0, 5), before)


def test_only_the_epochs_in_use_are_kept() -> None:
    order = SampleOrder(1000, 0)
    for start in range(0, 20_000, 300):
        order.indices(start, 300)
    assert len(order._permutations) <= 2


def test_a_million_samples_are_drawn_once_for_all_batches_of_an_epoch() -> None:
    order = SampleOrder(1_000_000, 0)
    parts = torch.cat([order.indices(start, 1000) for start in range(0, 1_000_000, 1000)])
    assert (torch.bincount(parts, minlength=1_000_000) == 1).all()


@pytest.mark.parametrize(("num_samples", "seed"), [(0, 0), (-1, 0), (5, -1)])
def test_an_order_of_nothing_is_refused(num_samples: int, seed: int) -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        SampleOrder(num_samples, seed)


@pytest.mark.parametrize(("start", "count"), [(-1, 3), (0, -1)])
def test_negative_positions_are_refused(start: int, count: int) -> None:
    with pytest.raises(ValueError, match="not negative"):
        SampleOrder(5, 0).indices(start, count)
