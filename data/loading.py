"""Training batches in their order: step k, cut into pieces, made here or in worker processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset

from data.draws import Draws, step_generator
from data.synthesis import BatchMaker
from mesh.samples import Batch


def _rows(size: int, piece: int, pieces: int) -> slice:
    """The rows of one of so many pieces of a batch; sizes differ by one at most."""
    return slice(piece * size // pieces, (piece + 1) * size // pieces)


class TrainingBatches(Dataset[list[Batch]]):
    """Batch k of a run, as the pieces that one process takes of it.

    The samples of a step are a function of (seed, step) and of how many samples came before; into how many pieces and
    processes a batch is cut changes nothing about them. `begun` is a (step, position) from which positions count on:
    those of a resumed run, whose batches may have had another size before.
    """

    def __init__(
        self, synthesiser: BatchMaker, *, seed: int, batch_size: int, accumulate: int = 1, rank: int = 0,
        world_size: int = 1, with_vertices: bool = False, begun: tuple[int, int] = (0, 0),
    ) -> None:  # fmt: skip
        pieces = accumulate * world_size
        if batch_size < pieces:
            raise ValueError(f"a batch of {batch_size} cannot be cut into {pieces} pieces")
        self.synthesiser, self.seed, self.batch_size, self.with_vertices = synthesiser, seed, batch_size, with_vertices
        self.rows = [_rows(batch_size, rank * accumulate + place, pieces) for place in range(accumulate)]
        self.begun = begun
        self.order = synthesiser.order(seed)

    def __getitem__(self, step: int) -> list[Batch]:
        """The pieces of step `step`, on the synthesiser's device."""
        position = self.begun[1] + (step - self.begun[0]) * self.batch_size
        index = self.order.indices(position, self.batch_size)
        device = self.synthesiser.device
        return [
            self.synthesiser.batch(
                index[rows],
                Draws(self.batch_size, step_generator(self.seed, step, device), rows, device),
                with_vertices=self.with_vertices,
            )
            for rows in self.rows
        ]

    def stream(self, start: int, stop: int, workers: int = 0) -> Iterator[list[Batch]]:
        """Steps start .. stop - 1 in order; with workers, made ahead of time by that many processes.

        A worker that dies raises RuntimeError (from torch's DataLoader), which names its process.
        """
        if workers == 0:
            return (self[step] for step in range(start, stop))
        loader: DataLoader[list[Batch]] = DataLoader(
            self, batch_size=None, sampler=range(start, stop), num_workers=workers, collate_fn=_as_it_is,
            worker_init_fn=_ignore_interrupts, prefetch_factor=2,
        )  # fmt: skip
        return iter(loader)


def _as_it_is(pieces: Any) -> Any:
    return pieces


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C goes to the whole group; only the main process answers it, and it still needs its workers then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
