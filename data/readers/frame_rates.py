"""Which frames of a recording are kept."""

from __future__ import annotations

import numpy as np


def kept_frames(count: int, source_rate: float, rate: float) -> np.ndarray:
    """The frames nearest to every 1/rate second, or all of a recording that is not faster (or with rate 0)."""
    if rate == 0 or source_rate <= rate:
        return np.arange(count)
    step = min(source_rate / rate, max(count, 1))  # of frames so rare only the first is kept
    frames = np.rint(np.arange(int(np.ceil(count / step)) + 1) * step).astype(np.int64)
    return frames[frames < count]
