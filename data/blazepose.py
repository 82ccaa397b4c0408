"""The arithmetic around BlazePose's two networks: where to crop, what their outputs mean (Bazarevsky et al. 2020).

Everything the networks see is a square `Roi` of the picture, so one crop and its inverse serve the whole picture
(letterboxed), tiles of it and turned people alike. Image coordinates: pixels, x right, y down, origin at the upper
left corner of the upper left pixel. Crop coordinates: the same with the crop's side as the unit, so [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DETECTION_SIDE = 224  # pixels of the detection network's input
LANDMARK_SIDE = 256  # pixels of the landmark network's input
NUM_LANDMARKS = 33  # joints; the network's landmarks 33 and 34 give the crop of the next pass

_ANCHOR_GRIDS = ((28, 2), (14, 2), (7, 6))  # (cells a side, anchors a cell)
_CROP_MARGIN = 1.25  # side of a person's crop / twice the distance from the hips to the end of the body
_MIN_OVERLAP = 0.3  # detections are merged above this intersection over union of their face boxes
_REFINE_KERNEL = 7  # heat-map cells around a landmark that move it
_MIN_HEAT = 0.5  # a flatter heat map than this leaves the landmark where it is


@dataclass(frozen=True)
class Roi:
    """A square of the picture: centre and side in pixels, turned clockwise (as seen) by `angle_rad`."""

    centre_px: np.ndarray
    side_px: float
    angle_rad: float = 0.0

    def to_image(self, points: np.ndarray) -> np.ndarray:
        """Crop coordinates -> pixels. (..., 2)"""
        return (points - 0.5) * self.side_px @ self._turn().T + self.centre_px

    def from_image(self, points_px: np.ndarray) -> np.ndarray:
        """Pixels -> crop coordinates. (..., 2)"""
        return (points_px - self.centre_px) @ self._turn() / self.side_px + 0.5

    def to_camera(self, points_m: np.ndarray) -> np.ndarray:
        """3D points as seen in the crop, turned as they are in the picture. (..., 3)"""
        return np.concatenate((points_m[..., :2] @ self._turn().T, points_m[..., 2:]), axis=-1)

    def scaled(self, factor: float) -> Roi:
        """The same place in the picture resized by `factor`."""
        return Roi(self.centre_px * factor, self.side_px * factor, self.angle_rad)

    def _turn(self) -> np.ndarray:
        cos, sin = np.cos(self.angle_rad), np.sin(self.angle_rad)
        return np.array([[cos, -sin], [sin, cos]])


def roi_of_body(mid_hip_px: np.ndarray, end_px: np.ndarray) -> Roi:
    """The crop of a person: around the hips, turned so that `end_px` (top of the body's circle) points up."""
    x, y = end_px - mid_hip_px
    return Roi(mid_hip_px, float(2 * np.hypot(x, y) * _CROP_MARGIN), float(np.pi / 2 - np.arctan2(-y, x)))


def shrink(image: np.ndarray, factor: int) -> np.ndarray:
    """The picture averaged over squares of `factor` pixels."""
    from PIL import Image

    return image if factor == 1 else np.asarray(Image.fromarray(image).reduce(factor))


def crop(image: np.ndarray, roi: Roi, side: int) -> np.ndarray:
    """What lies in the roi, black outside of the picture: (H, W, 3) uint8 -> (side, side, 3) float32 in [0, 1].

    Large rois are averaged down by a whole number first, so that the bilinear sampling leaves nothing out.
    """
    from PIL import Image

    height, width = image.shape[:2]
    corners = roi.to_image(np.array([[0, 0], [0, 1], [1, 0], [1, 1]]))
    left, top = np.clip(np.floor(corners.min(axis=0)).astype(int) - 1, 0, None)
    right, bottom = np.clip(np.ceil(corners.max(axis=0)).astype(int) + 1, None, (width, height))
    if left >= right or top >= bottom:
        return np.zeros((side, side, 3), np.float32)
    factor = max(1, int(roi.side_px / side))
    source = Image.fromarray(shrink(image[top:bottom, left:right], factor))
    # Pillow wants the map from crop pixels to source pixels, row by row: x = a u + b v + c, y = d u + e v + f.
    origin, along_u, along_v = (roi.to_image(np.array([[0, 0], [1, 0], [0, 1]])) - (left, top)) / factor
    steps = np.stack([(along_u - origin) / side, (along_v - origin) / side, origin], axis=1)
    size = (side, side)
    pixels = source.transform(size, Image.Transform.AFFINE, tuple(steps.ravel()), Image.Resampling.BILINEAR)
    return np.asarray(pixels, np.float32) / 255


def anchors() -> np.ndarray:
    """Cell centres of the detection network's three grids, in the order of its outputs: (2254, 2)."""
    grids = []
    for cells, repeat in _ANCHOR_GRIDS:
        centres = (np.arange(cells) + 0.5) / cells
        x, y = np.meshgrid(centres, centres)
        grids.append(np.repeat(np.stack([x.ravel(), y.ravel()], axis=-1), repeat, axis=0))
    return np.concatenate(grids)


@dataclass(frozen=True)
class Candidates:
    """Possible people: `scores` (N,) in [0, 1], best first, and `points` (N, 6, 2).

    The points are the upper left and lower right corner of the face, mid hip, end of the body, mid shoulder and end
    of the upper body.
    """

    scores: np.ndarray
    points: np.ndarray


def decode_detections(boxes: np.ndarray, logits: np.ndarray, min_score: float) -> Candidates:
    """Outputs (2254, 12) and (2254, 1) of the detection network -> candidates in crop coordinates."""
    scores = _sigmoid(np.clip(logits[:, 0].astype(np.float64), -100, 100))
    keep = np.flatnonzero(scores >= min_score)
    keep = keep[np.argsort(-scores[keep], kind="stable")]
    raw = boxes[keep].reshape(-1, 6, 2).astype(np.float64) / DETECTION_SIDE
    centre, size, rest = raw[:, :1], raw[:, 1:2], raw[:, 2:]
    points = np.concatenate([centre - size / 2, centre + size / 2, rest], axis=1)
    return Candidates(scores[keep], points + anchors()[keep, None])


def merge_overlapping(candidates: Candidates) -> Candidates:
    """Weighted non-maximum suppression: each group of overlapping faces becomes its mean, weighted by score."""
    scores, points, left = candidates.scores, candidates.points, np.arange(len(candidates.scores))
    merged_scores, merged_points = [], []
    while left.size:
        group = left[_overlap(points[left[0]], points[left]) > _MIN_OVERLAP]
        group = np.union1d(group, left[:1])  # a box without an area overlaps nothing, not even itself
        merged_scores.append(scores[left[0]])
        merged_points.append(np.average(points[group], axis=0, weights=scores[group]))
        left = np.setdiff1d(left, group)
    return Candidates(np.array(merged_scores), np.array(merged_points).reshape(-1, 6, 2))


def _overlap(one: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Intersection over union of face boxes: points (6, 2), (N, 6, 2) -> (N,)."""
    inner = np.minimum(one[1], many[:, 1]) - np.maximum(one[0], many[:, 0])
    shared = inner.clip(0).prod(axis=-1)
    union = (one[1] - one[0]).prod() + (many[:, 1] - many[:, 0]).prod(axis=-1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def decode_landmarks(raw: np.ndarray, heat_maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Outputs (195,) and (64, 64, 39) of the landmark network -> (39, 2) crop coordinates, (39,) confidence.

    Confidence is the lower one of the two probabilities that a joint is in the crop and that it is not hidden.
    """
    columns = raw.reshape(-1, 5).astype(np.float64)
    points = refine(columns[:, :2] / LANDMARK_SIDE, _sigmoid(heat_maps.astype(np.float64)))
    return points, _sigmoid(columns[:, 3:]).min(axis=-1)


def refine(points: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Move each point to the centroid of its heat map around it: (J, 2) in [0, 1], (H, W, J) in [0, 1] -> (J, 2).

    As in mediapipe, a cell counts with its upper left corner: the network was trained with that.
    """
    height, width, _ = heat.shape
    reach = _REFINE_KERNEL // 2
    refined = points.copy()
    for joint, (column, row) in enumerate(np.trunc(points * (width, height)).astype(int)):
        if not (0 <= column < width and 0 <= row < height):
            continue
        top, left = max(0, row - reach), max(0, column - reach)
        patch = heat[top : row + reach + 1, left : column + reach + 1, joint]
        if patch.max() >= _MIN_HEAT:
            rows, columns = np.indices(patch.shape)
            x, y = (patch * (columns + left)).sum() / width, (patch * (rows + top)).sum() / height
            refined[joint] = np.array([x, y]) / patch.sum()
    return refined


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))
