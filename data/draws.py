"""Random numbers of a batch that do not depend on how its rows are split."""

from __future__ import annotations

import numpy as np
import torch
from torch import Generator, Tensor


def step_generator(seed: int, step: int, device: torch.device | str = "cpu", *, stream: int = 0) -> Generator:
    """The random numbers of one step, a pure function of seed, stream and step: a resumed run draws the same."""
    # Well mixed, because torch's CPU generators use the lower 32 bits alone.
    mixed = np.random.SeedSequence((seed, stream, step)).generate_state(1, np.uint64)
    return Generator(device).manual_seed(int(mixed[0]))


class Draws:
    """Random numbers for some rows of a batch of `size`.

    Each method draws the numbers of the whole batch, on the generator's device, and returns those of the chosen rows
    on `device`. A row therefore gets the same numbers however the batch is split, if every piece starts from a
    generator of its own in the same state and asks for the same things in the same order.
    """

    def __init__(
        self, size: int, generator: Generator, rows: slice = slice(None), device: torch.device | str = "cpu"
    ) -> None:
        start = 0 if rows.start is None else rows.start
        stop = size if rows.stop is None else rows.stop
        if rows.step not in (None, 1) or not 0 <= start <= stop <= size:
            raise ValueError(f"rows must be a slice without step within the batch of {size}, got {rows}")
        self.size, self.generator = size, generator
        self.rows: slice | Tensor = slice(start, stop)
        self.device = torch.device(device)

    def __len__(self) -> int:
        """How many rows are chosen."""
        return len(self.rows) if isinstance(self.rows, Tensor) else self.rows.stop - self.rows.start

    def of(self, chosen: Tensor, *, stream: int) -> Draws:
        """Other numbers, of their own `stream`, for some of these rows: (rows,) int64 -> draws for those."""
        seed = np.random.SeedSequence((self.generator.initial_seed(), stream)).generate_state(1, np.uint64)
        generator = Generator(self.generator.device).manual_seed(int(seed[0]))
        other = Draws(self.size, generator, device=self.device)
        other.rows = torch.arange(self.size)[self.rows][chosen]
        return other

    def rand(self, *tail: int) -> Tensor:
        """Uniform in [0, 1), (rows, *tail) float32."""
        return self._chosen(torch.rand(self.size, *tail, generator=self.generator, device=self.generator.device))

    def randn(self, *tail: int) -> Tensor:
        """Standard normal, (rows, *tail) float32."""
        return self._chosen(torch.randn(self.size, *tail, generator=self.generator, device=self.generator.device))

    def randint(self, high: int, *tail: int) -> Tensor:
        """Whole numbers 0 .. high - 1, equally likely, (rows, *tail) int64."""
        shape, place = (self.size, *tail), self.generator.device
        return self._chosen(torch.randint(high, shape, generator=self.generator, device=place))

    def choice(self, weights: Tensor) -> Tensor:
        """Index k with probability `weights[k]` over their sum, (K,) -> (rows,) int64."""
        place = self.generator.device
        uniform = torch.rand(self.size, dtype=torch.float64, generator=self.generator, device=place)
        cumulative = weights.double().cumsum(0)
        cumulative = (cumulative / cumulative[-1]).to(place)  # ends with 1, which is never drawn
        return self._chosen(torch.searchsorted(cumulative, uniform, right=True))

    def _chosen(self, drawn: Tensor) -> Tensor:
        return drawn[self.rows].to(self.device)
