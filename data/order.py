"""The order in which samples are used: epoch after epoch, each a permutation of all."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Order(Protocol):
    """Which sample stands at each position of an endless sequence."""

    num_samples: int  # of one epoch

    def indices(self, start: int, count: int) -> Tensor:
        """The samples at positions start .. start + count - 1, (count,) int64."""


class SampleOrder:
    """An endless sequence of samples 0 .. num_samples - 1, a pure function of (num_samples, seed).

    Epoch e takes the positions e * num_samples .. (e + 1) * num_samples - 1 and uses each sample once.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        if num_samples < 1 or seed < 0:
            raise ValueError(f"an order needs at least one sample and a seed >= 0, got {num_samples} and {seed}")
        self.num_samples, self.seed = num_samples, seed
        self._permutations: dict[int, Tensor] = {}  # of the newest epoch and the one before: batches straddle two

    def indices(self, start: int, count: int) -> Tensor:
        """The samples at positions start .. start + count - 1, (count,) int64."""
        if start < 0 or count < 0:
            raise ValueError(f"positions start at 0 and counts are not negative, got {start} and {count}")
        indices = torch.empty(count, dtype=torch.int64)
        filled = 0
        while filled < count:
            epoch, offset = divmod(start + filled, self.num_samples)
            part = self._permutation(epoch)[offset : offset + count - filled]
            indices[filled : filled + len(part)] = part
            filled += len(part)
        return indices

    def _permutation(self, epoch: int) -> Tensor:
        permutation = self._permutations.get(epoch)
        if permutation is None:
            # Not torch: its CPU generators drop a seed's upper 32 bits. A spawn key keeps (seed, epoch) pairs apart.
            sequence = np.random.SeedSequence(self.seed, spawn_key=(epoch,))
            permutation = torch.from_numpy(np.random.default_rng(sequence).permutation(self.num_samples))
            before = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            self._permutations = {**before, epoch: permutation}
        return permutation
