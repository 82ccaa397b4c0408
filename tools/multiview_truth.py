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
_SHOULDERS = list(COCO17.indices(("left_shoulder", "right_shoulder")))
_HIPS = list(COCO17.indices(("left_hip", "right_hip")))
_SPREAD_SHARE = 0.025  # of a person's size in the picture: a view further off counts less than half
_AGREES_SHARE = 0.07  # a view nearer than this to the 3D joint agrees with it
_LEAST_VIEWS = 3  # that have to agree on a joint
_MOST_VIEWS = 8  # labelings of more views are too many to try
_TRUNK_M = (0.2, 0.9)
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
    """`joints_m` (T, 17, 3) coco17 in the world; `exchanged` (T, V): left and right are wrong in that view.

    `trusted` (T,): at least three views agree on each of the 12 limb joints, and most of them on the sides; `error_px`
    (V, T, 17) of the detections with the sides put right, NaN where there is none; `cameras` as refined;
    `error_before_px` the same error with the cameras as calibrated.
    """

    joints_m: np.ndarray
    exchanged: np.ndarray
    trusted: np.ndarray
    error_px: np.ndarray
    error_before_px: np.ndarray
    cameras: Sequence[ViewCamera]


def check_count(cameras: Sequence[ViewCamera]) -> None:
    """Three to eight."""
    require(
        _LEAST_VIEWS <= len(cameras) <= _MOST_VIEWS,
        f"at least {_LEAST_VIEWS} cameras are needed and at most {_MOST_VIEWS} can be used, got {len(cameras)}",
    )


def find_truth(cameras: Sequence[ViewCamera], views: Views, *, refine: bool = True) -> Truth:
    """Labels by the views' agreement, cameras refined on them, and the joints that they see."""
    check_count(cameras)
    positions = views.positions_px[:, :, _COCO_IN_BLAZEPOSE]
    rays = np.stack([camera.rays(positions[:, k]) for k, camera in enumerate(cameras)])  # (V, T, 17, 2)
    weight = (views.confidence[:, :, _COCO_IN_BLAZEPOSE] * views.found[..., None]).transpose(1, 0, 2)
    weight = np.where(np.isnan(rays).any(-1), 0.0, weight)
    sizes = np.ptp(positions[:, :, LIMBS], axis=2).prod(-1) ** 0.5
    for k, camera in enumerate(cameras):
        require(bool(views.found[:, k].any()), f"nobody was found in any picture of camera {camera.name}")
    size_px = np.array([np.median(sizes[views.found[:, k], k]) for k in range(len(cameras))])
    spread = _SPREAD_SHARE * size_px
    judged = [_labels(cameras, rays[:, t], weight[:, t], 3 * spread) for t in range(len(positions))]
    exchanged, is_tie = (np.stack(column) for column in zip(*judged))
    rays, weight = _relabeled(rays, exchanged), _relabeled(weight, exchanged)
    before = _errors(cameras, rays, weight, spread)[1]
    if refine:
        some = np.unique(np.linspace(0, len(positions) - 1, _REFINED_MOMENTS).round().astype(int))
        chosen = [a[:, some][:, :, LIMBS] for a in (rays, weight)]
        cameras = refine_cameras(cameras, *(a.reshape(len(cameras), -1, *a.shape[3:]) for a in chosen))
    joints, error = _errors(cameras, rays, weight, spread)
    agreeing = np.nan_to_num(error, nan=np.inf) < _AGREES_SHARE * size_px[:, None, None]
    trusted = (agreeing.sum(0)[:, LIMBS] >= _LEAST_VIEWS).all(1) & ~is_tie
    if not trusted.any():
        raise InputError("the cameras never agree on a whole person: are they synchronised, is the calibration theirs?")
    trunk = joints[trusted][:, _SHOULDERS].mean(1) - joints[trusted][:, _HIPS].mean(1)
    length_m = float(np.median(np.linalg.norm(trunk, axis=-1)))
    if not _TRUNK_M[0] < length_m < _TRUNK_M[1]:
        raise InputError(f"the person's trunk is {length_m:.3g} m long: the calibration's positions must be in metres")
    return Truth(
        joints_m=joints, exchanged=exchanged, trusted=trusted, error_px=error, error_before_px=before, cameras=cameras
    )


def _errors(
    cameras: Sequence[ViewCamera], rays: np.ndarray, weight: np.ndarray, spread_px: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Joints (T, 17, 3) and how far off each view is, (V, T, 17) px; NaN where a view does not see the joint."""
    flat = rays.reshape(len(rays), -1, 2)
    joints = triangulate(cameras, flat, weight.reshape(len(rays), -1), spread_px)
    error = reprojection_error_px(cameras, flat, joints).reshape(weight.shape)
    return joints.reshape(*weight.shape[1:], 3), np.where(weight > 0, error, np.nan)


def _labels(
    cameras: Sequence[ViewCamera], rays: np.ndarray, weight: np.ndarray, spread_px: np.ndarray
) -> tuple[np.ndarray, bool]:
    """Which views have left and right exchanged, at one moment: the labeling on which they agree best, (V,) bool.

    All views exchanged agree as well as none: the minority counts as wrong. Whether there is none is told too: then
    nobody knows which half is.
    """
    found = np.flatnonzero(weight.any(-1))
    exchanged = np.zeros(len(cameras), bool)
    if len(found) < 2:
        return exchanged, False
    best = np.inf
    for others in product((False, True), repeat=len(found) - 1):
        tried = np.zeros(len(cameras), bool)
        tried[found[1:]] = others
        turned, known = (_relabeled(a[:, None], tried[None])[:, 0][:, list(LIMBS)] for a in (rays, weight))
        joints = triangulate(cameras, turned, known, spread_px)
        error = reprojection_error_px(cameras, turned, joints)
        cost = (known * np.minimum(np.nan_to_num(error, nan=0.0), 4 * spread_px[:, None])).sum()
        if cost < best:
            best, exchanged = cost, tried
    is_tie = bool(2 * exchanged.sum() == len(found))
    if 2 * exchanged.sum() > len(found):
        exchanged ^= np.isin(np.arange(len(cameras)), found)
    return exchanged, is_tie


def _relabeled(values: np.ndarray, exchanged: np.ndarray) -> np.ndarray:
    """(V, T, 17, ...) with left and right of the views put right, (T, V) bool."""
    wrong = exchanged.T.reshape(*exchanged.T.shape, *(1,) * (values.ndim - 2))
    return np.where(wrong, values[:, :, _SWAPPED], values)
