"""Several data sets in one training: in which order their samples come, and how a mixed batch is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.draws import Draws
from data.order import Order, SampleOrder
from data.synthesis import BatchMaker
from mesh.errors import InputError
from mesh.samples import Batch


class MixedOrder:
    """An endless sequence of samples of several sets, a pure function of (sizes, weights, seed).

    Sample i of set d has the number `offsets[d] + i`. In an epoch each set takes a share of the places in proportion
    to its weight, and the set that is largest for its share is used once; with equal weights an epoch has as many
    samples as the largest set, times the number of sets (the rule of the original Pose2Mesh). Places are shuffled in
    each epoch; within a set the samples come in an order of its own, each once before any comes again.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int) -> None:
        if len(sizes) != len(weights) or not sizes or min(sizes) < 1:
            raise ValueError(f"a mixture needs samples and a weight for each set, got {sizes} and {weights}")
        if min(weights) <= 0 or not np.isfinite(weights).all():
            raise InputError(f"the weights of a mixture must be positive, got {list(weights)}; leave a set out instead")
        shares = np.asarray(weights, float) / sum(weights)
        length = max(size / share for size, share in zip(sizes, shares))
        self.places = [max(1, round(length * share)) for share in shares]
        self.num_samples, self.seed = sum(self.places), seed
        self.offsets = np.concatenate(([0], np.cumsum(sizes)[:-1]))
        self._orders = [SampleOrder(size, seed + 1 + number) for number, size in enumerate(sizes)]
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None

    def indices(self, start: int, count: int) -> Tensor:
        """The samples at positions start .. start + count - 1, (count,) int64."""
        if start < 0 or count < 0:
            raise ValueError(f"positions start at 0 and counts are not negative, got {start} and {count}")
        parts = []
        while count > 0:
            epoch, offset = divmod(start, self.num_samples)
            part = min(count, self.num_samples - offset)
            parts.append(self._of_epoch(epoch, slice(offset, offset + part)))
            start, count = start + part, count - part
        return torch.from_numpy(np.concatenate(parts) if parts else np.empty(0, np.int64))

    def _of_epoch(self, epoch: int, places: slice) -> np.ndarray:
        if self._epoch is None or self._epoch[0] != epoch:
            sets = np.repeat(np.arange(len(self.places)), self.places)
            sets = np.random.default_rng((self.seed, epoch)).permutation(sets)
            rank = np.empty(len(sets), np.int64)  # how many of the same set came before in this epoch
            for number, size in enumerate(self.places):
                rank[sets == number] = np.arange(size)
            self._epoch = epoch, sets, rank
        _, sets, rank = self._epoch
        chosen = np.empty(places.stop - places.start, np.int64)
        for number, size in enumerate(self.places):
            mine = sets[places] == number
            if mine.any():
                # They are consecutive in the set's own order, because places are walked in order.
                first = epoch * size + int(rank[places][mine][0])
                chosen[mine] = self._orders[number].indices(first, int(mine.sum())).numpy() + self.offsets[number]
        return chosen


class Mixture:
    """Makes batches whose rows come from several makers; see `MixedOrder` for how samples are numbered."""

    def __init__(self, makers: Sequence[BatchMaker], weights: Sequence[float]) -> None:
        self.makers, self.weights = list(makers), list(weights)
        self.device = self.makers[0].device
        self.sizes = [len(maker) for maker in self.makers]
        self.offsets = torch.tensor(np.concatenate(([0], np.cumsum(self.sizes)[:-1])))

    def __len__(self) -> int:
        """Samples of one epoch."""
        return MixedOrder(self.sizes, self.weights, 0).num_samples

    def order(self, seed: int) -> Order:
        """The order of its samples."""
        return MixedOrder(self.sizes, self.weights, seed)

    def batch(self, index: Tensor, draws: Draws, *, with_vertices: bool) -> Batch:
        """Rows of every set, in the order asked for; `ids` keep the numbers of the mixture."""
        which = torch.bucketize(index, self.offsets, right=True) - 1
        parts, rows = [], []
        for number, maker in enumerate(self.makers):
            mine = (which == number).nonzero()[:, 0]
            if len(mine):
                part = maker.batch(
                    index[mine] - self.offsets[number], draws.of(mine, stream=number), with_vertices=with_vertices
                )
                parts.append(part)
                rows.append(mine)
        order = torch.argsort(torch.cat(rows)).to(self.device)
        joined: dict[str, Any] = {}
        for name in (field.name for field in fields(Batch)):
            columns = [getattr(part, name) for part in parts]
            joined[name] = None if columns[0] is None else torch.cat(columns)[order]
        return Batch(**{**joined, "ids": index.to(self.device)})
