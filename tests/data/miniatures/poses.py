"""A small pose file with every column that such files have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation


def write_poses(path: Path, *, axis_angle: bool = False, **changes: Any) -> np.ndarray:
    """Ten poses of each of three people, two sequences each; returns the axis-angles, (30, 24, 3)."""
    rng = np.random.default_rng(5)
    turns = rng.uniform(-1.5, 1.5, (30, 24, 3))
    quaternions = Rotation.from_rotvec(turns.reshape(-1, 3)).as_quat()[:, [3, 0, 1, 2]].reshape(30, 24, 4)
    columns = {
        "poses": turns if axis_angle else quaternions.astype(np.float32),
        "subject": np.repeat([7, 8, 9], 10).astype(np.int16),
        "sequence": np.repeat(np.arange(6), 5).astype(np.uint16),
        "sequence_names": np.array([f"{subject:02}_0{trial}" for subject in (7, 8, 9) for trial in (1, 2)]),
        "frame30": np.tile(np.arange(0, 10, 2), 6),
        "level": np.tile([0, 1, 2, 3, 4], 6).astype(np.uint8),
    }
    columns.update(changes)
    np.savez(path, **{name: column for name, column in columns.items() if column is not None})
    return turns
