"""A small AMASS in the official layout: SMPL-H and SMPL-X files, of the free body in a world with z up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TRIALS = {
    "CMU/01/01_01_poses.npz": "male",
    "KIT/3/turn_left01_stageii.npz": "female",
    "SFU/0005/0005_Jogging001_poses.npz": "neutral",
    "Transitions_mocap/mazen_c3d/sit_stand_poses.npz": "male",
}
FRAMES, RATE = 9, 120.0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a file says: `pose` (T, 24, 3) rad, `shape` (10,), `trans` (T, 3) m, all with z up."""

    pose: np.ndarray
    shape: np.ndarray
    trans: np.ndarray
    gender: str


def write_amass(root: Path) -> dict[str, Trial]:
    """All of `TRIALS`, by path below the root."""
    return {name: write_trial(root / name, gender, seed) for seed, (name, gender) in enumerate(TRIALS.items())}


def write_trial(path: Path, gender_name: str, seed: int = 0, **changes: Any) -> Trial:
    """One file under the keys of its kind, together with some that no reader needs, one of them pickled."""
    rng = np.random.default_rng(seed)
    pose = rng.uniform(-0.6, 0.6, (FRAMES, 24, 3))
    pose[:, 22:] = 0
    betas, trans = rng.normal(size=16), rng.uniform(-2, 2, (FRAMES, 3))
    joints = 55 if path.name.endswith("_stageii.npz") else 52
    others = rng.normal(size=(FRAMES, 3 * (joints - 22)))
    poses = np.concatenate([pose[:, :22].reshape(FRAMES, 66), others], axis=1)
    columns: dict[str, Any] = {"poses": poses, "trans": trans, "betas": betas, "gender": np.array(gender_name)}
    if joints == 55:
        columns |= {"mocap_frame_rate": np.array(RATE), "surface_model_type": np.array("smplx"), "num_betas": 16}
        columns |= {"root_orient": poses[:, :3], "pose_body": poses[:, 3:66]}
        columns |= {"markers_latent_vids": np.array({"ARIEL": 1})}  # a pickle, as in the official files
    else:
        columns |= {"mocap_framerate": np.array(RATE), "dmpls": rng.normal(size=(FRAMES, 8))}
        columns["gender"] = np.array(gender_name.encode())  # many old files hold bytes
    columns.update(changes)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{name: column for name, column in columns.items() if column is not None})
    return Trial(pose=pose, shape=betas[:10], trans=trans, gender=gender_name)
