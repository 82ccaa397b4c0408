"""What `evaluate` measures on: tracks of samples with truth, made from poses or read from records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol as Interface

import numpy as np
import torch
from torch import Tensor

from data.draws import Draws, step_generator
from data.order import SampleOrder
from data.synthesis import PoseSource, SynthesisConfig, Synthesiser
from mesh.body import Body
from mesh.samples import Batch

BLOCK = 256


@dataclass(frozen=True, kw_only=True)
class View:
    """Where the people of a track are in their pictures: pelvis (B, 3) m in the camera frame, intrinsics (B, 4) px."""

    pelvis_m: Tensor
    intrinsics: Tensor
    images: tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True)
class Track:
    """Samples that are measured together: one person of a sequence in frame order, or some that are independent.

    `name` is `sequence#person`, or "" for independent samples; `rows` (B,) their numbers in the source; `frames` (B,)
    ascending, where motion can be judged; `true_joints_m` (B, J, 3) recorded joints in the frame of the batch's
    vertices, where the protocol wants those.
    """

    batch: Batch
    rows: np.ndarray
    name: str = ""
    frames: np.ndarray | None = None
    true_joints_m: Tensor | None = None
    view: View | None = None


class Samples(Interface):
    """A set of tracks; making one twice gives the same."""

    def __len__(self) -> int:
        """How many tracks."""

    def track(self, number: int) -> Track:
        """One of them."""


@dataclass(frozen=True, kw_only=True)
class SyntheticSamples:
    """Draws of poses, bodies, cameras and noise, in blocks; a pure function of the seed."""

    synthesiser: Synthesiser
    count: int
    seed: int

    def __len__(self) -> int:
        return -(-self.count // BLOCK)

    def track(self, number: int) -> Track:
        """Block `number`."""
        first, device = number * BLOCK, self.synthesiser.device
        size = min(BLOCK, self.count - first)
        draws = Draws(size, step_generator(self.seed, number, device), device=device)
        index = SampleOrder(len(self.synthesiser.source), self.seed).indices(first, size)
        batch = self.synthesiser.batch(index, draws, with_vertices=True)
        return Track(batch=batch, rows=np.arange(first, first + size))


def synthetic_samples(
    source: PoseSource, body: Body, config: SynthesisConfig, *, clean: bool, count: int, seed: int, device: torch.device
) -> SyntheticSamples:
    """Samples with exact or detector-like 2D joints."""
    synthesiser = Synthesiser(source, body, config.to_measure(clean=float(clean)), device=device)
    return SyntheticSamples(synthesiser=synthesiser, count=count, seed=seed)
