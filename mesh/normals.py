"""Vertex normals of a triangle mesh."""

from __future__ import annotations

import numpy as np


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals, area-weighted means of the faces around: (V, 3), (F, 3) -> (V, 3).

    They point outwards for counter-clockwise faces; zero for a vertex without a face of positive area.
    """
    a, b, c = np.moveaxis(vertices.astype(np.float64)[faces], 1, 0)
    of_faces = np.cross(b - a, c - a)
    sums = [np.bincount(faces.ravel(), np.repeat(of_faces[:, axis], 3), len(vertices)) for axis in range(3)]
    normals = np.stack(sums, axis=1)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return normals / np.where(length > 0, length, 1)
