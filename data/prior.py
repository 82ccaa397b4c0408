"""The pose source that ships: a statistical model of human poses, learnt from motion capture.

A mixture of factor analysers over joint rotations, each written as a tangent vector at that joint's mean rotation.
It holds means and covariances of many poses each, never a pose.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from data.augmentation import mirror_pose
from data.draws import Draws
from mesh.archives import read_arrays
from mesh.errors import InputError
from mesh.joints import SMPL24
from mesh.rotation import axis_angle_to_quaternion, quaternion_multiply, quaternion_to_axis_angle

NUM_JOINTS = len(SMPL24)
EPOCH = 65536  # the prior never ends; so many poses count as one epoch
_STORED = {  # dtype in the file: half precision is 0.05 degrees at most
    "weights": np.float32,
    "means": np.float16,
    "loadings": np.float16,
    "noise_sd": np.float16,
    "reference": np.float32,
    "free": np.int64,
    "lower": np.float32,
    "upper": np.float32,
    "support": np.float32,
}


@dataclass(frozen=True, kw_only=True)
class PosePrior:
    """K components over D free coordinates, with R factors each; mirror images are equally likely.

    Component k is a Gaussian with `means[k]` (D,) and covariance `loadings[k] @ loadings[k].T +
    diag(noise_sd[k] ** 2)`, (D, R) and (D,), radians, drawn with probability `weights[k]`. `free` (D,) are the places
    of the coordinates among the 72 of `pose_to_tangent` about `reference` (24, 4); the others never move. `lower` and
    `upper` (D,) bound each coordinate. `support` (K,) is the number of poses that each component summarises.
    """

    weights: Tensor
    means: Tensor
    loadings: Tensor
    noise_sd: Tensor
    reference: Tensor
    free: Tensor
    lower: Tensor
    upper: Tensor
    support: Tensor
    provenance: str

    def __len__(self) -> int:
        return EPOCH

    def poses(self, index: Tensor, draws: Draws) -> Tensor:
        """A fresh pose for each row of the draws, (rows, 24, 4), as `sample` gives; `index` means nothing here."""
        return self._posed(draws, temperature=1.0)

    def sample(
        self, count: int, generator: Generator, device: torch.device | str = "cpu", *, temperature: float = 1.0
    ) -> Tensor:
        """Poses (count, 24, 4): local rotations wxyz with w >= 0, y up, the root tilted but without yaw.

        A pure function of the generator. `temperature` scales the covariances; a coordinate that leaves its bounds
        is moved back to them.
        """
        return self._posed(Draws(count, generator, device=device), temperature)

    def _posed(self, draws: Draws, temperature: float) -> Tensor:
        device = draws.device
        coordinates = self.draw(draws, temperature=temperature)
        tangent = coordinates.new_zeros(len(draws), 3 * NUM_JOINTS)
        tangent[:, self.free.to(device)] = coordinates.clamp(self.lower.to(device), self.upper.to(device))
        pose = tangent_to_pose(tangent, self.reference.to(device))
        return torch.where(draws.rand(1, 1) < 0.5, mirror_pose(pose), pose)

    def draw(self, draws: Draws, *, temperature: float = 1.0) -> Tensor:
        """Free coordinates as the mixture gives them, before bounds and mirroring; (rows, D) radians."""
        if not temperature >= 0:
            raise InputError(f"temperature must not be negative, got {temperature}; 1 is the model as fitted")
        component = draws.choice(self.weights)
        factors, noise = draws.randn(self.loadings.shape[-1]), draws.randn(len(self.free))
        means, loadings, noise_sd = (t.to(draws.device)[component] for t in (self.means, self.loadings, self.noise_sd))
        return means + temperature**0.5 * ((loadings @ factors[..., None])[..., 0] + noise_sd * noise)

    def save(self, path: str | Path) -> None:
        """Write the model as `.npz`, most of it in half precision."""
        arrays = {key: getattr(self, key).numpy().astype(dtype) for key, dtype in _STORED.items()}
        with Path(path).open("wb") as file:
            np.savez_compressed(file, provenance=np.array(self.provenance), **arrays)


def remove_yaw(rotation: Tensor) -> Tensor:
    """The tilt of a body: the factor without y component in rotation = yaw about y * tilt. (..., 4) wxyz -> same.

    Upside down, where yaw has no meaning, it is taken as zero.
    """
    w, _, y, _ = rotation.unbind(-1)
    zero = torch.zeros_like(w)
    defined = w.square() + y.square() > 1e-12
    inverse_yaw = torch.stack((torch.where(defined, w, 1), zero, torch.where(defined, -y, 0), zero), dim=-1)
    return normalize(quaternion_multiply(inverse_yaw, rotation), dim=-1)


def pose_to_tangent(pose: Tensor, reference: Tensor) -> Tensor:
    """Rotation vectors of the joints relative to a reference pose, yaw removed; (N, 24, 4), (24, 4) -> (N, 72)."""
    level = torch.cat((remove_yaw(pose[:, :1]), pose[:, 1:]), dim=1)
    inverse = reference * reference.new_tensor((1.0, -1.0, -1.0, -1.0))
    return quaternion_to_axis_angle(quaternion_multiply(inverse.expand_as(level), level)).flatten(1)


def tangent_to_pose(tangent: Tensor, reference: Tensor) -> Tensor:
    """Inverse of `pose_to_tangent` but for the yaw; quaternions with w >= 0. (N, 72), (24, 4) -> (N, 24, 4)."""
    offset = axis_angle_to_quaternion(tangent.unflatten(1, (NUM_JOINTS, 3)))
    pose = normalize(quaternion_multiply(reference.expand_as(offset), offset), dim=-1)
    return torch.where(pose[..., :1] < 0, -pose, pose)


def load_pose_prior(path: str | Path | None = None) -> PosePrior:
    """The prior that ships, or one written by `PosePrior.save`."""
    if path is None:
        with resources.as_file(resources.files("data") / "assets" / "pose_prior.npz") as shipped:
            return load_pose_prior(shipped)
    arrays = read_arrays(Path(path), "a pose prior made by tools/fit_pose_prior.py")
    missing = [key for key in (*_STORED, "provenance") if key not in arrays]
    if missing:
        raise InputError(f"{path} is not a pose prior: it lacks {', '.join(missing)}; see tools/fit_pose_prior.py")
    provenance = str(arrays.pop("provenance"))
    tensors = {key: torch.from_numpy(array.astype(_in_memory(array.dtype))) for key, array in arrays.items()}
    prior = PosePrior(**tensors, provenance=provenance)
    _check(prior, Path(path))
    return prior


def _in_memory(stored: np.dtype) -> type[np.generic]:
    return np.float32 if np.issubdtype(stored, np.floating) else np.int64


def _check(prior: PosePrior, path: Path) -> None:
    num_components, num_free = len(prior.weights), len(prior.free)
    expected = {
        "means": (num_components, num_free),
        "loadings": (num_components, num_free, *prior.loadings.shape[-1:]),
        "noise_sd": (num_components, num_free),
        "reference": (NUM_JOINTS, 4),
        "lower": (num_free,),
        "upper": (num_free,),
        "support": (num_components,),
    }
    for key, shape in expected.items():
        if getattr(prior, key).shape != shape:
            raise InputError(f"{path}: {key} must have shape {shape}, got {tuple(getattr(prior, key).shape)}")
    if not all(torch.isfinite(getattr(prior, key)).all() for key in _STORED):
        raise InputError(f"{path} holds NaN or infinity; fit the prior again with tools/fit_pose_prior.py")
