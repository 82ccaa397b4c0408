"""Normal and edge-length consistency of a mesh (Choi et al. 2020, section 5.2), with a backward pass of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn.functional import pad

from gcn.layers.sparse import MatrixRows

_CHUNK = 16  # samples at a time, so that what is computed of one step is still in the cache in the next
_TINY_M2 = 1e-12  # squared length below which an edge, and length below which a normal, counts as so long: no 0 / 0


class SurfaceLoss(nn.Module):
    """Normal and edge-length consistency of a mesh with fixed faces, on each edge once.

    normal: mean over faces and their three edges of |cos(predicted edge, true face normal)|;
    edge: mean over the faces' edges of the absolute difference in length. Both weigh an edge by the number of its
    faces, as the sum over faces does. Degenerate faces and edges give finite gradients.
    """

    faces: Tensor
    edge_faces: Tensor
    edge_share: Tensor

    def __init__(self, faces: np.ndarray) -> None:
        super().__init__()
        sides = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)  # (3 F, 2)
        edges, edge_of_side, count = np.unique(sides, axis=0, return_inverse=True, return_counts=True)
        by_edge = np.argsort(edge_of_side.ravel(), kind="stable")
        place = np.arange(len(sides)) - np.repeat(np.cumsum(count) - count, count)  # 0, 1, ... within each edge
        edge_faces = np.full((int(count.max()), len(edges)), len(faces))  # behind the last face: none
        edge_faces[place, np.repeat(np.arange(len(edges)), count)] = by_edge % len(faces)
        rows = np.repeat(np.arange(len(edges)), 2)
        ends = (np.tile([-1.0, 1.0], len(edges)), (rows, edges.ravel()))
        along = sparse.csr_matrix(ends, shape=(len(edges), int(faces.max()) + 1))
        self.along, self.back = MatrixRows(along), MatrixRows(along.T)  # points to edge vectors, and its transpose
        self.register_buffer("faces", torch.from_numpy(np.ascontiguousarray(faces)).long(), persistent=False)
        self.register_buffer("edge_faces", torch.from_numpy(edge_faces), persistent=False)  # (faces of an edge, E)
        share = torch.from_numpy(count / len(sides)).to(torch.get_default_dtype())
        self.register_buffer("edge_share", share[:, None], persistent=False)  # (E, 1)

    def forward(self, pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """(B, V, 3) predicted and true vertices in metres -> normal loss (B,), edge loss (B,) in metres."""
        pieces = zip(pred.split(_CHUNK), target.split(_CHUNK))
        normal, edge = zip(*(_Surface.apply(self, *piece) for piece in pieces))
        return torch.cat(normal), torch.cat(edge)

    def face_normals(self, points: Tensor) -> Tensor:
        """Unit normals, and a last one that is 0: (V, 3, B) -> (F + 1, 3, B)."""
        a, b, c = (points[corner] for corner in self.faces.T)
        normals = torch.linalg.cross(b - a, c - a, dim=1)
        return pad(normals / _squared(normals).sqrt().clamp_min(_TINY_M2)[:, None], (0, 0, 0, 0, 0, 1))


def _squared(vectors: Tensor) -> Tensor:
    """Squared lengths, (N, 3, B) -> (N, B); torch's norm along the middle is ten times slower."""
    return vectors.square().sum(1)


class _Surface(torch.autograd.Function):
    """Both losses, and the gradient of each by every edge vector, which is all that the backward pass needs."""

    @staticmethod
    def forward(ctx: Any, mesh: SurfaceLoss, pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """(B, V, 3) twice -> (B,), (B,)."""
        size = len(pred)
        true, points = (t.permute(1, 2, 0).contiguous() for t in (target, pred))  # (V, 3, B)
        true_length = _squared(mesh.along(true.flatten(1)).unflatten(1, (3, size))).sqrt()  # (E, B)
        vectors = mesh.along(points.flatten(1)).unflatten(1, (3, size))  # (E, 3, B)
        squared = _squared(vectors)
        length = squared.clamp_min(_TINY_M2).sqrt()
        unit = vectors / length[:, None]
        normals, slope, cosines = mesh.face_normals(true), torch.zeros_like(unit), torch.zeros_like(length)
        for faces in mesh.edge_faces:
            normal = normals[faces]
            cosine = (unit * normal).sum(1)
            cosines += cosine.abs()
            slope.addcmul_(normal, cosine.sign()[:, None])
        moves = squared > _TINY_M2  # the length does, with the edge
        count = 3 * len(mesh.faces)
        by_normal = (slope - unit * (cosines * moves)[:, None]) / (length[:, None] * count)
        difference = length - true_length
        by_edge = unit * (difference.sign() * moves * mesh.edge_share)[:, None]
        ctx.mesh, ctx.num_vertices = mesh, pred.shape[1]
        ctx.save_for_backward(by_normal, by_edge)
        return cosines.sum(0) / count, (difference.abs() * mesh.edge_share).sum(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        """(B,), (B,) -> gradient by the predicted vertices."""
        by_normal, by_edge = ctx.saved_tensors
        by_vector = torch.addcmul(by_normal * grads[0], by_edge, grads[1])  # (E, 3, B)
        by_vertex = ctx.mesh.back(by_vector.flatten(1))  # of the vertices that faces use
        by_vertex = pad(by_vertex, (0, 0, 0, ctx.num_vertices - len(by_vertex)))
        return None, by_vertex.unflatten(1, (3, -1)).permute(2, 0, 1), None
