"""Several calibrated cameras: lens distortion, robust triangulation, and refinement of where the cameras stand.

Camera frame: x right, y down, z forward (OpenCV); pixels from the upper left corner; metres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import least_squares
from scipy.sparse import lil_matrix
from scipy.spatial.transform import Rotation

_UNDISTORT_STEPS = 50
_UNDONE_PX = 0.1  # what may be left of the distortion
_ROUNDS = 10  # of reweighting
_NEAREST_M = 1e-6
_NEAREST_ROW_M = 0.1  # nothing counts more than what is so near
# How far a calibration may be off, one standard deviation: what keeps the refined cameras where they were measured.
_PRIOR_TURN_RAD, _PRIOR_SHIFT_M = 0.02, 0.05
_REFINE_PX = 5.0  # an error in the picture beyond it counts less and less


@dataclass(frozen=True, kw_only=True)
class ViewCamera:
    """One of several cameras.

    `matrix` (3, 3) intrinsics, px; `distortion` (5,) k1, k2, p1, p2, k3 of Brown's model as OpenCV has it; `rotation`
    (3, 3) and `translation_m` (3,) carry world points into the camera frame; `size_px` (width, height).
    """

    name: str
    matrix: np.ndarray
    distortion: np.ndarray
    rotation: np.ndarray
    translation_m: np.ndarray
    size_px: tuple[int, int]

    @property
    def focal_px(self) -> float:
        """Mean of both."""
        return float(self.matrix[[0, 1], [0, 1]].mean())

    def rays(self, points_px: np.ndarray) -> np.ndarray:
        """Where pixels look, without distortion, in the plane z = 1 of the camera: (..., 2) -> (..., 2).

        NaN where the lens model cannot be undone, which happens beyond the border of a strongly distorted picture.
        """
        target = (points_px - self.matrix[:2, 2]) / self.matrix[[0, 1], [0, 1]]
        rays = target.copy()
        with np.errstate(over="ignore", invalid="ignore"):
            for _ in range(_UNDISTORT_STEPS):
                rays = rays + (target - self._distorted(rays))
            left_px = self.focal_px * np.linalg.norm(self._distorted(rays) - target, axis=-1)
            return np.where((left_px < _UNDONE_PX)[..., None], rays, np.nan)

    def to_camera(self, points_m: np.ndarray) -> np.ndarray:
        """World to camera frame, (..., 3) -> (..., 3)."""
        return points_m @ self.rotation.T + self.translation_m

    def project(self, points_m: np.ndarray) -> np.ndarray:
        """World points to pixels, (..., 3) -> (..., 2)."""
        rays = _in_plane(self.to_camera(points_m))
        return self._distorted(rays) * self.matrix[[0, 1], [0, 1]] + self.matrix[:2, 2]

    def _distorted(self, rays: np.ndarray) -> np.ndarray:
        k1, k2, p1, p2, k3 = self.distortion
        x, y = rays[..., 0], rays[..., 1]
        square = x * x + y * y
        radial = 1 + square * (k1 + square * (k2 + square * k3))
        return np.stack(
            (
                x * radial + 2 * p1 * x * y + p2 * (square + 2 * x * x),
                y * radial + p1 * (square + 2 * y * y) + 2 * p2 * x * y,
            ),
            axis=-1,
        )


def _in_plane(points_m: np.ndarray) -> np.ndarray:
    return points_m[..., :2] / np.maximum(points_m[..., 2:], _NEAREST_M)


def triangulate(
    cameras: Sequence[ViewCamera], rays: np.ndarray, weight: np.ndarray, spread_px: np.ndarray | float
) -> np.ndarray:
    """Points that the cameras see at `rays`, (V, N, 2) of `ViewCamera.rays`, (V, N) >= 0 -> (N, 3) m, world.

    The direct linear transformation (Hartley and Zisserman, section 12.2), repeated such that it minimises squared
    errors in pixels under `weight` and under Cauchy's weights: a view that is off by `spread_px` (one number, or (V,))
    counts half. What is NaN has no weight; NaN where fewer than two views have any.
    """
    known = np.where(np.isnan(rays).any(-1), 0.0, weight).T  # (N, V)
    rays = np.nan_to_num(rays)
    rows = [np.c_[camera.rotation, camera.translation_m] for camera in cameras]
    equations = np.stack([ray[:, :, None] * row[2] - row[:2] for ray, row in zip(rays, rows)], axis=1)  # (N, V, 2, 4)
    focal_px = np.array([camera.focal_px for camera in cameras])
    enough = (known > 0).sum(1) >= 2
    depth, trusted = np.ones_like(known), known
    points = np.full((len(equations), 3), np.nan)
    for _ in range(_ROUNDS):
        # A row is off by the error in the plane z = 1 times the depth.
        scale = np.sqrt(trusted) * focal_px / depth
        system = (equations * scale[..., None, None]).reshape(len(equations), -1, 4)
        solution = np.linalg.svd(system[enough])[2][:, -1]
        points[enough] = solution[:, :3] / np.where(abs(solution[:, 3:]) > 1e-12, solution[:, 3:], 1e-12)
        error_px = np.nan_to_num(reprojection_error_px(cameras, rays, points).T)
        trusted = known / (1 + (error_px / spread_px) ** 2)
        depth = np.stack([camera.to_camera(points)[:, 2] for camera in cameras], axis=1)
        depth = np.maximum(np.nan_to_num(depth, nan=1.0), _NEAREST_ROW_M)
    return points


def reprojection_error_px(cameras: Sequence[ViewCamera], rays: np.ndarray, points_m: np.ndarray) -> np.ndarray:
    """Distance of each point from where each camera sees it, (V, ..., 2), (..., 3) -> (V, ...) px."""
    return np.stack(
        [
            camera.focal_px * np.linalg.norm(_in_plane(camera.to_camera(points_m)) - ray, axis=-1)
            for camera, ray in zip(cameras, rays)
        ]
    )


def refine_cameras(cameras: Sequence[ViewCamera], rays: np.ndarray, weight: np.ndarray) -> list[ViewCamera]:
    """Cameras turned and moved so that their views agree: bundle adjustment over points seen by all or some.

    (V, N, 2), (V, N); points seen by fewer than two views count for nothing. Errors are weighted by soft L1; turns and
    shifts are held near the calibration, which also fixes the scale and the place of the world.
    """
    weight = np.where(np.isnan(rays).any(-1), 0.0, weight)
    rays = np.nan_to_num(rays)
    start = triangulate(cameras, rays, weight, 6 * _REFINE_PX)
    seen = ~np.isnan(start).any(1)
    start, rays, weight = start[seen], rays[:, seen], weight[:, seen]
    unknowns = 6 * len(cameras)

    def moved(values: np.ndarray) -> list[ViewCamera]:
        return [_moved(camera, six) for camera, six in zip(cameras, values[:unknowns].reshape(-1, 6))]

    def residuals(values: np.ndarray) -> np.ndarray:
        points = start + values[unknowns:].reshape(start.shape)
        errors = [
            (weight[k, :, None] * camera.focal_px / _REFINE_PX) * (_in_plane(camera.to_camera(points)) - rays[k])
            for k, camera in enumerate(moved(values))
        ]
        priors = values[:unknowns].reshape(-1, 6) / ((_PRIOR_TURN_RAD,) * 3 + (_PRIOR_SHIFT_M,) * 3)
        return np.concatenate([np.ravel(part) for part in (*errors, priors)])

    count = len(start)
    structure = lil_matrix((2 * count * len(cameras) + unknowns, unknowns + 3 * count), dtype=np.int8)
    for k in range(unknowns):
        structure[2 * count * len(cameras) + k, k] = 1
    for row in range(2 * count * len(cameras)):
        view, point = divmod(row // 2, count)
        structure[row, 6 * view : 6 * view + 6] = 1
        structure[row, unknowns + 3 * point : unknowns + 3 * point + 3] = 1
    found = least_squares(residuals, np.zeros(structure.shape[1]), jac_sparsity=structure, loss="soft_l1", max_nfev=60)
    return moved(found.x)


def _moved(camera: ViewCamera, change: np.ndarray) -> ViewCamera:
    """Turned about its own centre by a rotation vector, and its centre moved: (6,) rad and m."""
    rotation = Rotation.from_rotvec(change[:3]).as_matrix() @ camera.rotation
    centre = change[3:] - camera.rotation.T @ camera.translation_m
    return replace(camera, rotation=rotation, translation_m=-rotation @ centre)
