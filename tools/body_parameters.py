"""Pose and shape parameters of recovered meshes, as they are written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from gcn.recovery import Recovered
from mesh.body import Body
from mesh.fitting import BodyFitter

_SHAPE_PENALTY_M = 1e-3  # a network's meshes are millimetres off the model: no shape should be made of that
_ROUNDS = 3  # more brings nothing on such meshes
FRAME = "camera: x right, y down, z forward; metres; relative to the Human3.6M pelvis"


@dataclass(frozen=True, kw_only=True)
class BodyParameters:
    """N people; NaN for who could not be recovered.

    `pose` (N, J, 3) axis-angle radians, the root's leading into the camera frame; `shape` (N, S); `translation` (N, 3)
    metres; `fit_distance_m` (N,) mean distance of the body with these parameters from the recovered mesh.
    """

    pose: np.ndarray
    shape: np.ndarray
    translation: np.ndarray
    fit_distance_m: np.ndarray

    def arrays(self, which: int | slice) -> dict[str, np.ndarray]:
        """Under the names of this class, for one person or stacked for all."""
        names = ("pose", "shape", "translation", "fit_distance_m")
        return {name: getattr(self, name)[which] for name in names}

    def smpl(self, which: int | slice) -> dict[str, np.ndarray]:
        """Under the names of SMPL software: `global_orient` (1, 3), `body_pose` (J - 1, 3), `betas`, `transl`."""
        pose = self.pose[which]
        return {
            "global_orient": pose[..., :1, :],
            "body_pose": pose[..., 1:, :],
            "betas": self.shape[which],
            "transl": self.translation[which],
            "gender": np.array("neutral"),
            "frame": np.array(FRAME),
            "fit_distance_m": self.fit_distance_m[which],
        }


class ParameterFinder:
    """Fits one body model to recovered meshes."""

    def __init__(self, body: Body, device: torch.device) -> None:
        self._fitter = BodyFitter(body, shape_penalty_m=_SHAPE_PENALTY_M).to(device)

    def find(self, people: Recovered) -> BodyParameters:
        """Pose, shape and place of everybody who was recovered."""
        fitted = self._fitter(torch.from_numpy(people.vertices[people.valid]), rounds=_ROUNDS)
        found = {
            "pose": fitted.pose,
            "shape": fitted.shape,
            "translation": fitted.translation,
            "fit_distance_m": fitted.distance,
        }
        return BodyParameters(**{name: _spread(rows.cpu().numpy(), people.valid) for name, rows in found.items()})


def _spread(rows: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The rows at the places of the valid, NaN elsewhere."""
    spread = np.full((len(valid), *rows.shape[1:]), np.nan, rows.dtype)
    spread[valid] = rows
    return spread
