"""What several cameras that see one person agree on: labels, 3D joints, and which moments can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from mesh.errors import InputError, require
from mesh.joints import BLAZEPOSE33, COCO17
from mesh.multiview import ViewCamera, refine_cameras, reprojection_error_px, triangulate

LIMBS = COCO17.indices([n for n in COCO17.names if n.endswith(("shoulder", "elbow", "wrist", "hip", "knee", "ankle"))])
_COCO_IN_BLAZEPOSE = list(BLAZEPOSE33.indices(COCO17.names))
_SWAPPED = list(COCO17.flip_permutation)
_SPREAD_SHARE = 0.025  # of a person's size in the picture: a view further off counts less than half
_AGREES_SHARE = 0.07  # a view nearer than this to the 3D joint agrees with it
_LEAST_VIEWS = 3  # that have to agree on a joint
_MOST_VIEWS_TO_TRY = 8  # labelings of more views are too many to try
_REFINED_MOMENTS = 40  # moments, evenly spread, that refine the cameras


@dataclass(frozen=True, kw_only=True)
class Views:
    """One person in V cameras at T moments, as detected.

    `positions_px`, `world_m` (T, V, 33, 2 and 3) blazepose33, the second as the detector itself guesses; `confidence`
    (T, V, 33), 0 everywhere where nobody was found.
    """

    positions_px: np.ndarray
    confidence: np.ndarray
    world_m: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """Whether somebody was found, (T, V)."""
        return np.asarray((self.confidence > 0).any(-1))


@dataclass(frozen=True, kw_only=True)
class Truth:
    """`joints_m` (T, 17, 3) coco17 in the world; `exchanged` (T, V): left and right are wrong in that view;
    `trusted` (T,): at least three views agree on each of the 12 limb joints; `error_px` (V, T, 17) of the detections
    with the labels put right; `cameras` as refined; `error_before_px` the same error with the cameras as calibrated.
    """

    joints_m: np.ndarray
    exchanged: np.ndarray
    trusted: np.ndarray
    error_px: np.ndarray
    error_before_px: np.ndarray
    cameras: Sequence[ViewCamera]


def find_truth(cameras: Sequence[ViewCamera], views: Views, *, refine: bool = True) -> Truth:
    """Labels by the views' agreement, cameras refined on them, and the joints that they see."""
    require(len(cameras) >= _LEAST_VIEWS, f"at least {_LEAST_VIEWS} cameras are needed, got {len(cameras)}")
    require(len(cameras) <= _MOST_VIEWS_TO_TRY, f"at most {_MOST_VIEWS_TO_TRY} cameras can be used, got {len(cameras)}")
    positions = views.positions_px[:, :, _COCO_IN_BLAZEPOSE]
    rays = np.stack([camera.rays(positions[:, k]) for k, camera in enumerate(cameras)])  # (V, T, 17, 2)
    weight = (views.confidence[:, :, _COCO_IN_BLAZEPOSE] * views.found[..., None]).transpose(1, 0, 2)
    size_px = np.median(np.ptp(positions[:, :, LIMBS], axis=2).prod(-1)[views.found] ** 0.5)
    spread = _SPREAD_SHARE * size_px
    exchanged = np.stack([_labels(cameras, rays[:, t], weight[:, t], 3 * spread) for t in range(len(positions))])
    rays, weight = _relabeled(rays, exchanged), _relabeled(weight, exchanged)
    before = _errors(cameras, rays, weight, spread)[1]
    if refine:
        some = np.unique(np.linspace(0, len(positions) - 1, _REFINED_MOMENTS).round().astype(int))
        chosen = [a[:, some][:, :, LIMBS] for a in (rays, weight)]
        cameras = refine_cameras(cameras, *(a.reshape(len(cameras), -1, *a.shape[3:]) for a in chosen))
    joints, error = _errors(cameras, rays, weight, spread)
    agreeing = np.nan_to_num(error, nan=np.inf) < _AGREES_SHARE * size_px
    trusted = (agreeing.sum(0)[:, LIMBS] >= _LEAST_VIEWS).all(1)
    if not trusted.any():
        raise InputError("the cameras never agree on a whole person: are they synchronised, is the calibration theirs?")
    return Truth(
        joints_m=joints, exchanged=exchanged, trusted=trusted, error_px=error, error_before_px=before, cameras=cameras
    )


def _errors(
    cameras: Sequence[ViewCamera], rays: np.ndarray, weight: np.ndarray, spread_px: float
) -> tuple[np.ndarray, np.ndarray]:
    """Joints (T, 17, 3) and how far off each view is, (V, T, 17) px; NaN where a view does not see the joint."""
    flat = rays.reshape(len(rays), -1, 2)
    joints = triangulate(cameras, flat, weight.reshape(len(rays), -1), spread_px)
    error = reprojection_error_px(cameras, flat, joints).reshape(weight.shape)
    return joints.reshape(*weight.shape[1:], 3), np.where(weight > 0, error, np.nan)


def _labels(cameras: Sequence[ViewCamera], rays: np.ndarray, weight: np.ndarray, spread_px: float) -> np.ndarray:
    """Which views have left and right exchanged, at one moment: the labeling on which they agree best, (V,) bool.

    All views exchanged agree as well as none: fewer than half count as wrong.
    """
    found = np.flatnonzero(weight.any(-1))
    exchanged = np.zeros(len(cameras), bool)
    if len(found) < 2:
        return exchanged
    best = np.inf
    for others in product((False, True), repeat=len(found) - 1):
        tried = np.zeros(len(cameras), bool)
        tried[found[1:]] = others
        turned, known = (_relabeled(a[:, None], tried[None])[:, 0][:, list(LIMBS)] for a in (rays, weight))
        joints = triangulate(cameras, turned, known, spread_px)
        error = reprojection_error_px(cameras, turned, joints)
        cost = (known * np.minimum(np.nan_to_num(error, nan=0.0), 4 * spread_px)).sum()
        if cost < best:
            best, exchanged = cost, tried
    return exchanged if 2 * exchanged.sum() <= len(found) else exchanged ^ np.isin(np.arange(len(cameras)), found)


def _relabeled(values: np.ndarray, exchanged: np.ndarray) -> np.ndarray:
    """(V, T, 17, ...) with left and right of the views put right, (T, V) bool."""
    wrong = exchanged.T.reshape(*exchanged.T.shape, *(1,) * (values.ndim - 2))
    return np.where(wrong, values[:, :, _SWAPPED], values)
