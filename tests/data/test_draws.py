"""Random numbers that do not depend on how a batch is split."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from data.draws import Draws, step_generator

WEIGHTS = torch.tensor((0.0, 1.0, 0.0, 3.0, 4.0, 0.0))


def everything(draws: Draws) -> list[Tensor]:
    return [draws.rand(3), draws.choice(WEIGHTS), draws.randn(2, 4), draws.randint(9), draws.randn(), draws.rand()]


@given(seed=st.integers(0, 2**31 - 1), cuts=st.lists(st.integers(0, 40), max_size=4), size=st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_a_row_gets_the_same_numbers_however_the_batch_is_split(seed: int, cuts: list[int], size: int) -> None:
    whole = everything(Draws(size, step_generator(seed, 0)))
    edges = [0, *sorted(min(cut, size) for cut in cuts), size]
    pieces = [everything(Draws(size, step_generator(seed, 0), slice(a, b))) for a, b in pairwise(edges)]
    for expected, *parts in zip(whole, *pieces):
        assert torch.equal(torch.cat(parts), expected)


def test_shapes_and_types_are_those_of_the_chosen_rows(generator: torch.Generator) -> None:
    draws = Draws(10, generator, slice(4, 7))
    assert len(draws) == 3
    assert [tuple(drawn.shape) for drawn in everything(draws)] == [(3, 3), (3,), (3, 2, 4), (3,), (3,), (3,)]
    whole, single = torch.int64, torch.float32
    assert [drawn.dtype for drawn in everything(draws)] == [single, whole, single, whole, single, single]


def test_numbers_move_to_the_asked_device(generator: torch.Generator) -> None:
    assert {drawn.device.type for drawn in everything(Draws(4, generator, device="meta"))} == {"meta"}


@pytest.mark.parametrize(
    ("draw", "mean", "variance"),
    [
        (lambda draws: draws.rand(2), 1 / 2, 1 / 12),
        (lambda draws: draws.randn(2), 0, 1),
        (lambda draws: draws.randint(5, 2), 2, 2),
    ],
    ids=["rand", "randn", "randint"],
)
def test_numbers_follow_their_distribution(
    draw: Callable[[Draws], Tensor], mean: float, variance: float, generator: torch.Generator
) -> None:
    drawn = draw(Draws(20_000, generator)).double()
    assert drawn.mean().item() == pytest.approx(mean, abs=0.03)
    assert drawn.var().item() == pytest.approx(variance, rel=0.03)


def test_choices_are_as_frequent_as_their_weights_and_never_of_weight_zero(generator: torch.Generator) -> None:
    counts = torch.bincount(Draws(40_000, generator).choice(WEIGHTS), minlength=len(WEIGHTS))
    assert (counts[WEIGHTS == 0] == 0).all()
    torch.testing.assert_close(counts / 40_000, WEIGHTS / 8, rtol=0, atol=0.01)


def test_all_rows_and_no_rows_may_be_chosen(generator: torch.Generator) -> None:
    assert len(Draws(6, generator)) == 6 and len(Draws(6, generator, slice(0, 6, 1))) == 6
    assert Draws(6, generator, slice(2, 2)).rand(3).shape == (0, 3)
    assert len(Draws(6, generator, slice(4, None))) == 2 and len(Draws(6, generator, slice(None, 4))) == 4


@pytest.mark.parametrize("rows", [slice(0, 7), slice(-2, 6), slice(0, -1), slice(4, 3), slice(0, 6, 2), slice(7, 7)])
def test_rows_beyond_the_batch_or_with_a_step_are_refused(rows: slice, generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match="within the batch of 6"):
        Draws(6, generator, rows)


def test_step_generators_differ_between_steps_and_seeds_only() -> None:
    drawn = {
        (seed, step): torch.rand(1, generator=step_generator(seed, step)).item() for seed in (0, 1) for step in (0, 1)
    }
    assert len(set(drawn.values())) == 4
    assert torch.rand(1, generator=step_generator(0, 1)).item() == drawn[0, 1]


def test_the_global_generator_is_untouched(generator: torch.Generator) -> None:
    before = torch.random.get_rng_state()
    everything(Draws(6, generator))
    assert torch.equal(before, torch.random.get_rng_state())
