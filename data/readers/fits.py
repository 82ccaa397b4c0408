"""SMPL parameters that were fitted to pictures: read, checked on their body, and turned into columns."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from data.readers.annotations import any_numbers
from data.readers.pose2mesh_json import MM_PER_M, fields
from mesh.body import load_body
from mesh.errors import InputError
from mesh.joints import JointSet
from mesh.rotation import axis_angle_to_matrix
from mesh.skinning import JointModel

MeshUse = Literal["needed", "optional", "none"]
_LARGEST_TURN_RAD = 4 * math.pi  # beyond it a rotation is certainly damaged
_LARGEST_M, _LARGEST_PX = 1000.0, 1e6
_FITS_AT_ONCE = 4096  # for the memory
_Row = TypeVar("_Row")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """SMPL parameters in the camera frame: `pose` (24, 3) rad, `shape` (10,), `trans` (3,) m; `intrinsics` (4,) px."""

    pose: np.ndarray
    shape: np.ndarray
    trans: np.ndarray
    intrinsics: np.ndarray

    def is_plausible(self) -> bool:
        """Finite, turns and lengths that can be radians and metres, in front of a camera."""
        return (
            bool((np.abs(self.pose) <= _LARGEST_TURN_RAD).all())
            and bool((np.linalg.norm(self.pose, axis=-1) <= _LARGEST_TURN_RAD).all())
            and bool((np.abs(self.shape) < _LARGEST_M).all())
            and bool((np.abs(self.trans) <= _LARGEST_M).all() and self.trans[2] > 0)
            and bool((np.abs(self.intrinsics) < _LARGEST_PX).all() and (self.intrinsics[:2] > 0).all())
        )  # nothing of which NaN is


@dataclass(frozen=True, kw_only=True)
class FitCheck:
    """Joints of fits on the body that they were made with; no model and no files where fits are not checked."""

    model: JointModel | None
    files: tuple[Path, ...] = ()

    @classmethod
    def load(cls, body: str | None, joints: JointSet, limit: float) -> FitCheck:
        """The check against a limit; an infinite one needs no body."""
        if math.isinf(limit):
            return cls(model=None)
        if body is None:
            raise InputError(
                "the SMPL parameters are checked on the body that they were fitted with: give that file as body; "
                "or choose inf as the largest error to trust all, or mesh none to read none"
            )
        return cls(model=JointModel(load_body(body), [joints]), files=(Path(body),))

    def joints(self, pose: np.ndarray, shape: np.ndarray) -> np.ndarray:
        """Joints in the frame of the pose, the body not yet shifted: (N, 24, 3) rad, (N, 10) -> (N, J, 3) metres."""
        assert self.model is not None
        parts = []
        for start in range(0, len(pose), _FITS_AT_ONCE):
            some = slice(start, start + _FITS_AT_ONCE)
            turns, coefficients = (torch.from_numpy(part[some].astype(np.float32)) for part in (pose, shape))
            with torch.no_grad():
                (joints,) = self.model(axis_angle_to_matrix(turns), coefficients[:, : self.model.num_shape])
            parts.append(joints.numpy().astype(np.float64))
        return np.concatenate(parts)


def centred_distance_mm(joints_m: np.ndarray, truth_m: np.ndarray) -> np.ndarray:
    """Mean distance of joints from others, the means of both laid together: (N, J, 3) twice -> (N,)."""
    difference = joints_m - truth_m
    difference = difference - difference.mean(axis=1, keepdims=True)
    return np.asarray(np.linalg.norm(difference, axis=-1).mean(axis=-1) * MM_PER_M)


def read_fit(
    params: Any, where: str, focal: np.ndarray, centre: np.ndarray, max_shape: float, *,
    trans: np.ndarray | None = None,
) -> Fit | str:  # fmt: skip
    """SMPL parameters of a file, or the rule against them; `trans` where the file's does not apply.

    A shape with a coefficient beyond `max_shape` counts as the mean shape, as in the original.
    """
    keys = ("pose", "shape") if trans is not None else ("pose", "shape", "trans")
    pose, shape, *given = fields(params, keys, where)
    betas = any_numbers(shape, (10,), f"{where} shape")
    fit = Fit(
        pose=any_numbers(pose, (24, 3), f"{where} pose"),
        shape=np.zeros(10) if (np.abs(betas) > max_shape).any() else betas,
        trans=any_numbers(given[0], (3,), f"{where} trans") if trans is None else trans,
        intrinsics=np.concatenate([focal, centre]),
    )
    return fit if fit.is_plausible() else "implausible SMPL parameters"


def with_meshes(
    people: list[_Row], fits: Sequence[Fit | str], mesh: MeshUse, dropped: Counter[str]
) -> tuple[list[_Row], dict[str, np.ndarray]]:
    """The people that stay, and the columns of their fits: zeros and not valid where a rule speaks against one."""
    rules = Counter(fit for fit in fits if isinstance(fit, str))
    if mesh == "needed":
        dropped.update(rules)
        people = [person for person, fit in zip(people, fits, strict=True) if isinstance(fit, Fit)]
        fits = [fit for fit in fits if isinstance(fit, Fit)]
    else:
        for rule, count in sorted(rules.items()):
            logger.info("%d people stay without a mesh: %s", count, rule)
    if not people:
        return [], {}
    none = Fit(pose=np.zeros((24, 3)), shape=np.zeros(10), trans=np.zeros(3), intrinsics=np.zeros(4))
    filled = [fit if isinstance(fit, Fit) else none for fit in fits]
    return people, {
        "pose": np.stack([fit.pose for fit in filled]),
        "shape": np.stack([fit.shape for fit in filled]),
        "trans": np.stack([fit.trans for fit in filled]),
        "intrinsics": np.stack([fit.intrinsics for fit in filled]),
        "gender": np.zeros(len(filled), np.int8),
        "mesh_valid": np.array([isinstance(fit, Fit) for fit in fits]),
    }
