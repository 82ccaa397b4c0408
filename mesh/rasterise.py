"""Which triangle each pixel shows: a z-buffer in numpy, by scan lines.

A triangle is cut into one span per pixel row, a span into its pixels, all triangles at once. Two neighbours compute
the ends of their common edge with the same numbers in the same order, so no pixel between them is lost or drawn twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Fragments:
    """What lies nearest at every pixel centre.

    `face_idx` (H, W) int32, -1 where nothing is; `depth` (H, W) float32, infinite there; `barycentric` (H, W, 3)
    float32 weights of the face's corners, zero there.
    """

    face_idx: np.ndarray
    depth: np.ndarray
    barycentric: np.ndarray


@dataclass(frozen=True)
class _Spans:
    """One row of one triangle each, from its left to its right edge.

    `face` (S,), `row` (S,), `x` and `depth` (S, 2) at the two ends, `weights` (S, 2, 3) of the corners there.
    """

    face: np.ndarray
    row: np.ndarray
    x: np.ndarray
    depth: np.ndarray
    weights: np.ndarray


def rasterise(
    vertices_px: np.ndarray, faces: np.ndarray, size: tuple[int, int], *, cull_back_faces: bool = False
) -> Fragments:
    """Nearest face, depth and barycentric weights of each pixel of a (width, height) picture.

    `vertices_px` (V, 3): x right and y down in pixels, depth away from the viewer; pixel (0, 0) covers [0, 1) x [0, 1)
    and is sampled at its centre. Depth is interpolated linearly (weak perspective). Of faces at equal depth the last
    one wins. A face is seen from its outside if its corners run counter-clockwise to the eye.
    """
    width, height = size
    corners = vertices_px.astype(np.float64)[faces]  # (F, 3, 3)
    face_idx = np.full(height * width, -1, np.int32)
    depth = np.full(height * width, np.inf, np.float32)
    barycentric = np.zeros((height * width, 3), np.float32)

    spans = _cut_into_spans(corners, size, cull_back_faces)
    first, last = _samples_between(spans.x[:, 0], spans.x[:, 1], width)
    span, column = _expand(first, last)
    slope = np.diff(spans.depth)[:, 0] / np.maximum(np.diff(spans.x)[:, 0], 1e-12)
    fragment_depth = spans.depth[span, 0] + slope[span] * (column + 0.5 - spans.x[span, 0])
    fragment_depth = fragment_depth.astype(np.float32)
    pixel = spans.row[span] * width + column

    np.minimum.at(depth, pixel, fragment_depth)
    nearest = np.flatnonzero(fragment_depth == depth[pixel])
    span_at = np.full(height * width, -1, np.int32)
    span_at[pixel[nearest]] = span[nearest]
    covered = np.flatnonzero(span_at >= 0)
    span = span_at[covered]
    left, right = spans.x[span, 0], spans.x[span, 1]
    along = ((covered % width + 0.5 - left) / (right - left)).astype(np.float32)[:, None]
    face_idx[covered] = spans.face[span]
    barycentric[covered] = (1 - along) * spans.weights[span, 0] + along * spans.weights[span, 1]
    return Fragments(
        face_idx=face_idx.reshape(height, width),
        depth=depth.reshape(height, width),
        barycentric=barycentric.reshape(height, width, 3),
    )


def _cut_into_spans(corners: np.ndarray, size: tuple[int, int], cull_back_faces: bool) -> _Spans:
    width, height = size
    x, y = corners[..., 0], corners[..., 1]
    first, last = _samples_between(y.min(1), y.max(1), height)
    seen = (last > first) & (x.max(1) > 0) & (x.min(1) < width)
    if cull_back_faces:
        seen &= is_front_facing(corners)
    face = np.flatnonzero(seen)
    order = np.argsort(y[face], axis=1)  # corners from top to bottom
    triangle, row = _expand(first[face], last[face])
    face, order = face[triangle], order[triangle]
    top, middle, bottom = np.moveaxis(corners[face[:, None], order], 1, 0)  # each (S, 3)

    centre = row + 0.5
    upper = centre < middle[:, 1]
    start = np.where(upper[:, None], top, middle)  # of the shorter edge that crosses this row
    end = np.where(upper[:, None], middle, bottom)
    along_long = _fraction(centre, top[:, 1], bottom[:, 1])
    along_short = _fraction(centre, start[:, 1], end[:, 1])
    point_long = _between(top, bottom, along_long)
    point_short = _between(start, end, along_short)

    weights = np.zeros((len(face), 2, 3), np.float32)
    every = np.arange(len(face))
    weights[every, 0, order[:, 0]] = 1 - along_long
    weights[every, 0, order[:, 2]] = along_long
    weights[every, 1, np.where(upper, order[:, 0], order[:, 1])] = 1 - along_short
    weights[every, 1, np.where(upper, order[:, 1], order[:, 2])] = along_short

    points = np.stack((point_long, point_short), axis=1)  # (S, 2, 3)
    swapped = points[:, 0, 0] > points[:, 1, 0]
    points[swapped] = points[swapped, ::-1]
    weights[swapped] = weights[swapped, ::-1]
    return _Spans(face=face, row=row, x=points[..., 0], depth=points[..., 2], weights=weights)


def _samples_between(low: np.ndarray, high: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """First and one past the last of `count` pixel centres in [low, high)."""
    first, last = (np.clip(np.ceil(edge - 0.5), 0, count).astype(np.int64) for edge in (low, high))
    return first, last


def _expand(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All (interval, position) pairs of the intervals [first, last), one after the other."""
    length = np.maximum(last - first, 0)
    interval = np.repeat(np.arange(len(length)), length)
    offset = first - (np.cumsum(length) - length)
    return interval, np.arange(len(interval)) + offset[interval]


def _fraction(value: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    return (value - start) / (end - start)


def _between(start: np.ndarray, end: np.ndarray, along: np.ndarray) -> np.ndarray:
    return start + along[:, None] * (end - start)


def is_front_facing(corners: np.ndarray) -> np.ndarray:
    """Faces whose outside is towards the viewer: corners (F, 3, 3) in the picture -> (F,) bool."""
    ab, ac = (corners[:, k, :2] - corners[:, 0, :2] for k in (1, 2))
    return ab[:, 0] * ac[:, 1] < ab[:, 1] * ac[:, 0]
