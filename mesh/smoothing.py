"""Smoothing of sequences: One-Euro (Casiez et al. 2012) and Savitzky-Golay, all points at once, gaps respected.

A sequence is (T, N, 3) metres with ascending frame numbers (T,). Short gaps are bridged; after a longer one a filter
starts anew, so nothing is carried over a cut. Frames come back as they came: none is invented.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mesh.errors import require

MAX_GAP_FRAMES = 5  # a larger step between two frames is a cut


@dataclass(frozen=True, kw_only=True)
class OneEuro:
    """A causal low-pass filter whose cutoff rises with the speed of each coordinate."""

    min_cutoff_hz: float = 4.0  # for a point at rest
    beta: float = 10.0  # Hz more for each m/s
    speed_cutoff_hz: float = 1.0  # of the filter on the speed itself
    rate_hz: float = 30.0

    def __post_init__(self) -> None:
        for name in ("min_cutoff_hz", "speed_cutoff_hz", "rate_hz"):
            require(getattr(self, name) > 0, f"one-euro {name} must be positive, got {getattr(self, name)}")
        require(self.beta >= 0, f"one-euro beta must not be negative, got {self.beta}")

    def __call__(self, points_m: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """(T, N, 3), (T,) -> (T, N, 3) in the same type."""
        smooth = np.array(points_m)
        for run in _runs(frames, len(smooth)):
            steps = np.diff(frames[run]) / self.rate_hz
            value, speed = smooth[run.start].astype(np.float64), np.zeros(smooth.shape[1:])
            for row, step in enumerate(steps, start=run.start + 1):
                speed += _share(self.speed_cutoff_hz, step) * ((points_m[row] - value) / step - speed)
                value += _share(self.min_cutoff_hz + self.beta * np.abs(speed), step) * (points_m[row] - value)
                smooth[row] = value
        return smooth


def _share(cutoff_hz: float | np.ndarray, step_s: float) -> float | np.ndarray:
    """How much of a new value a first-order low-pass filter takes on."""
    turns = 2 * math.pi * cutoff_hz * step_s
    return turns / (turns + 1)


@dataclass(frozen=True, kw_only=True)
class SavitzkyGolay:
    """Least-squares polynomials over a sliding window; looks ahead, so it has no lag."""

    window: int = 9
    order: int = 2

    def __post_init__(self) -> None:
        require(self.window % 2 == 1, f"savgol window must be odd, got {self.window}")
        require(0 <= self.order < self.window, f"savgol order must lie in [0, window), got {self.order}")

    def __call__(self, points_m: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """(T, N, 3), (T,) -> (T, N, 3) in the same type; runs too short for the polynomial stay as they are."""
        from scipy.signal import savgol_filter

        smooth = np.array(points_m)
        for run in _runs(frames, len(smooth)):
            at = frames[run] - frames[run.start]
            window = min(self.window, int(at[-1]) // 2 * 2 + 1)  # the largest odd one that fits
            if window <= self.order:
                continue
            every = _every_frame(points_m[run].astype(np.float64), at)
            smooth[run] = savgol_filter(every, window, self.order, axis=0)[at]
        return smooth


def _every_frame(points: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Linear interpolation at the frames that are missing, (T, N, 3) at frames (T,) -> (last frame + 1, N, 3)."""
    wanted = np.arange(at[-1] + 1)
    before = np.clip(np.searchsorted(at, wanted, side="right") - 1, 0, max(len(at) - 2, 0))
    after = np.minimum(before + 1, len(at) - 1)
    share = (wanted - at[before]) / np.maximum(at[after] - at[before], 1)
    return points[before] + share[:, None, None] * (points[after] - points[before])


def _runs(frames: np.ndarray, count: int) -> Iterator[slice]:
    """The stretches of rows between cuts."""
    require(frames.shape == (count,), f"expected a frame number for each of {count} poses, got {frames.shape}")
    steps = np.diff(frames)
    require(bool((steps > 0).all()), "the frame numbers of a sequence must ascend")
    bounds = [0, *(np.flatnonzero(steps > MAX_GAP_FRAMES) + 1).tolist(), count]
    for start, stop in itertools.pairwise(bounds):
        if stop > start:
            yield slice(start, stop)


SMOOTHERS: dict[str, type[OneEuro] | type[SavitzkyGolay]] = {"one-euro": OneEuro, "savgol": SavitzkyGolay}
