"""Self-intersection of a body mesh: how much of the skin of one body part lies inside another part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from mesh.body import Body
from mesh.joints import SMPL24
from mesh.normals import vertex_normals

# Body parts by the joints whose bones move them.
PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "trunk": ("pelvis", "spine1", "spine2", "spine3", "left_collar", "right_collar"),
        "head": ("neck", "head"),
        **{
            f"{side} {part}": tuple(f"{side}_{joint}" for joint in joints)
            for side in ("left", "right")
            for part, joints in (
                ("upper arm", ("shoulder",)),
                ("forearm", ("elbow", "wrist", "hand")),
                ("thigh", ("hip",)),
                ("shank", ("knee", "ankle", "foot")),
            )
        },
    }
)
_SAMPLES = 2000
_FOLD_M = 0.12  # along the skin: nearer to a part than this, skin touches it in every bent joint
_DEPTH_M = 0.005  # below the skin: parts that merely touch do not count
_BLOCK_PAIRS = 1 << 18  # of points and faces at a time: what the processor's cache holds


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """`share` of the whole skin that lies inside a part it does not belong to, and of which part in which, in [0, 1].

    `pairs`: ("left forearm", "trunk") -> share of the whole skin, largest first; only those that are not zero.
    """

    share: float
    pairs: dict[tuple[str, str], float]


@dataclass(frozen=True)
class _Part:
    """A closed surface: faces that name V vertices of the body and, from V on, the middle of each of its seams.

    `near` (N,) bool: samples that are of the part or so near to it that they do not count.
    """

    name: str
    faces: np.ndarray
    seams: list[np.ndarray]
    near: np.ndarray


class OverlapMeter:
    """Measures meshes of one body's topology.

    2000 points are spread evenly over the skin of the template, and lie 5 mm below the skin of the posed mesh. A point
    counts as inside a part if the winding number of the part's surface about it is more than a half; the seams where
    parts were cut from each other are closed by a fan about their middle. Points whose way along the skin to the part
    is shorter than 12 cm on the template are left out, since they fold onto it in any bent joint.
    """

    def __init__(self, body: Body) -> None:
        group = np.zeros(len(SMPL24), np.int64)
        for number, joints in enumerate(PARTS.values()):
            group[list(SMPL24.indices(joints))] = number
        self.faces = body.faces
        self.label = group[body.skinning.argmax(1)]
        self.samples = _spread(body)
        self._parts = [self._part(body, number, name) for number, name in enumerate(PARTS)]

    def _part(self, body: Body, number: int, name: str) -> _Part:
        votes = (self.label[body.faces] == number).sum(1)
        faces = body.faces[votes >= 2]
        seams: list[np.ndarray] = []
        caps: list[np.ndarray] = []
        for loop in _boundaries(faces):
            seams.append(loop[:, 0])
            middle = np.full(len(loop), body.num_vertices + len(caps))
            caps.append(np.stack([loop[:, 1], loop[:, 0], middle], axis=1))
        way = _way_along_skin(body, np.unique(faces))
        return _Part(name, np.concatenate([faces, *caps]), seams, way[self.samples] < _FOLD_M)

    def __call__(self, vertices: np.ndarray) -> Overlap:
        """(V, 3) metres, in any frame that is not mirrored."""
        below = vertices - _DEPTH_M * vertex_normals(vertices, self.faces)
        points, label = below[self.samples], self.label[self.samples]
        inside = np.zeros(len(points), bool)
        pairs = {}
        names = list(PARTS)
        for part in self._parts:
            surface = np.concatenate([vertices, *(vertices[seam].mean(0, keepdims=True) for seam in part.seams)])
            corners = surface[part.faces]
            low, high = corners.min((0, 1)), corners.max((0, 1))
            tried = np.flatnonzero(~part.near & ((points >= low) & (points <= high)).all(1))
            within = tried[winding_number(points[tried], corners) > 0.5]
            inside[within] = True
            for owner in np.unique(label[within]):
                pairs[names[owner], part.name] = float((label[within] == owner).sum() / len(points))
        return Overlap(share=float(inside.mean()), pairs=dict(sorted(pairs.items(), key=lambda item: -item[1])))


def winding_number(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """How often a surface goes around each point, (N, 3), (F, 3, 3) -> (N,): 1 inside, 0 outside of a closed one.

    Sum of the signed solid angles of the triangles (Van Oosterom and Strackee 1983; Jacobson et al. 2013).
    """
    result = np.zeros(len(points))
    rows = max(1, _BLOCK_PAIRS // max(1, len(corners)))
    for first in range(0, len(points), rows):
        some = points[first : first + rows, None].astype(np.float32)
        a, b, c = (np.moveaxis(corners[:, k].astype(np.float32) - some, -1, 0) for k in range(3))  # (3, N, F)
        la, lb, lc = (np.sqrt((edge * edge).sum(0)) for edge in (a, b, c))
        triple = (
            a[0] * (b[1] * c[2] - b[2] * c[1]) + a[1] * (b[2] * c[0] - b[0] * c[2]) + a[2] * (b[0] * c[1] - b[1] * c[0])
        )
        against = la * lb * lc + (a * b).sum(0) * lc + (b * c).sum(0) * la + (c * a).sum(0) * lb
        result[first : first + rows] = np.arctan2(triple, against).sum(1, dtype=np.float64) / (2 * np.pi)
    return result


def _spread(body: Body) -> np.ndarray:
    """Vertices that stand for equal areas of the template's skin, (N,); large ones more than once."""
    corners = body.template[body.faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=-1)
    total = np.cumsum(np.bincount(body.faces.ravel(), np.repeat(area, 3), body.num_vertices))
    return np.searchsorted(total / total[-1], (np.arange(_SAMPLES) + 0.5) / _SAMPLES)


def _boundaries(faces: np.ndarray) -> list[np.ndarray]:
    """The rims of an open surface, each as its directed edges (E, 2)."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    there = {tuple(edge) for edge in edges.tolist()}
    rim = np.array([edge for edge in edges.tolist() if (edge[1], edge[0]) not in there]).reshape(-1, 2)
    if not len(rim):
        return []
    size = int(rim.max()) + 1
    _, label = connected_components(coo_matrix((np.ones(len(rim)), rim.T), (size, size)), directed=False)
    return [rim[label[rim[:, 0]] == number] for number in np.unique(label[rim])]


def _way_along_skin(body: Body, start: np.ndarray) -> np.ndarray:
    """Length of the way along the template's edges from any of some vertices, (V,) metres."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import dijkstra

    length = np.linalg.norm(body.template[body.edges[:, 0]] - body.template[body.edges[:, 1]], axis=-1)
    shape = (body.num_vertices, body.num_vertices)
    graph = coo_matrix((np.maximum(length, 1e-9), body.edges.T), shape)
    return dijkstra(graph, directed=False, indices=start, min_only=True)
