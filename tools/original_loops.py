"""What the published code does one sample, one joint, one line at a time: the benchmark's yardsticks for that.

Written anew from what it computes. Nothing here is used by the toolkit itself.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.noise_coco import COCO_SIGMAS, OPTIONS, option_probabilities
from mesh.body import Body
from mesh.joints import COCO17, HUMAN36M17

_CANDIDATES = 500  # drawn for every kind of error of every joint, of which one is used at most


def write_obj_by_line(path: Path, vertices: np.ndarray, faces: np.ndarray) -> None:
    """One `write` for each vertex and each face, numbers by `str`."""
    with path.open("w") as file:
        for i in range(len(vertices)):
            file.write("v " + str(vertices[i][0]) + " " + str(vertices[i][1]) + " " + str(vertices[i][2]) + "\n")
        for i in range(len(faces)):
            corners = [str(faces[i][k] + 1) for k in range(3)]
            file.write("f " + " ".join(corner + "/" + corner for corner in corners) + "\n")


def align_one(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Source after its best similarity transform onto target, (N, 3) twice -> (N, 3)."""
    mean_source, mean_target = np.mean(source, axis=0), np.mean(target, axis=0)
    covariance = np.dot(np.transpose(source - mean_source), target - mean_target) / len(source)
    u, lengths, vt = np.linalg.svd(covariance)
    rotation = np.dot(np.transpose(vt), np.transpose(u))
    if np.linalg.det(rotation) < 0:
        lengths[-1] = -lengths[-1]
        vt[2] = -vt[2]
        rotation = np.dot(np.transpose(vt), np.transpose(u))
    scale = np.sum(lengths) / np.var(source, axis=0).sum()
    shift = mean_target - np.dot(scale * rotation, mean_source)
    return np.transpose(np.dot(scale * rotation, np.transpose(source))) + shift


def align_each(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """`align_one` in a loop, (B, N, 3) twice -> (B, N, 3)."""
    return np.stack([align_one(a, b) for a, b in zip(source, target)])


def errors_of_each(predicted: np.ndarray, true: np.ndarray, regressor: np.ndarray) -> np.ndarray:
    """MPJPE, PA-MPJPE and MPVPE in mm by a loop with dense regressors, (B, V, 3) twice, (J, V) -> (B, 3)."""
    rows = []
    for mesh, true_mesh in zip(predicted, true):
        mesh_mm, true_mm = mesh * 1000, true_mesh * 1000
        joints, true_joints = np.dot(regressor, mesh_mm), np.dot(regressor, true_mm)
        mesh_mm, true_mm = mesh_mm - joints[:1], true_mm - true_joints[:1]
        joints, true_joints = joints - joints[:1], true_joints - true_joints[:1]
        pairs = ((joints, true_joints), (align_one(joints, true_joints), true_joints), (mesh_mm, true_mm))
        rows.append([np.mean(np.sqrt(np.sum((a - b) ** 2, axis=1))) for a, b in pairs])
    return np.array(rows)


class OneBody:
    """Linear blend skinning for one person at a time, with homogeneous 4 x 4 transforms."""

    def __init__(self, body: Body) -> None:
        self.parents = body.parents
        self.template, self.skinning = torch.from_numpy(body.template), torch.from_numpy(body.skinning)
        self.shape_dirs, self.pose_dirs = torch.from_numpy(body.shape_dirs), torch.from_numpy(body.pose_dirs)
        self.regressor = torch.from_numpy(body.joint_regressor)

    def vertices(self, rotations: Tensor, shape: Tensor) -> Tensor:
        """(1, J, 3, 3) local rotations, (1, S) -> (1, V, 3) metres."""
        shaped = self.template + torch.matmul(self.shape_dirs, shape.T).permute(2, 0, 1)
        joints = torch.matmul(self.regressor, shaped)
        features = (rotations[:, 1:] - torch.eye(3)).reshape(1, -1)
        posed = shaped + torch.matmul(self.pose_dirs, features.T).permute(2, 0, 1)
        chain: list[Tensor] = []
        for joint, parent in enumerate(self.parents):
            offset = joints[:, joint] - (joints[:, parent] if parent >= 0 else 0)
            local = self._homogeneous(rotations[:, joint], offset)
            chain.append(local if parent < 0 else torch.matmul(chain[parent], local))
        moved = []
        for joint, transform in enumerate(chain):
            rest = torch.cat((joints[0, joint], torch.zeros(1)))
            carried = torch.matmul(transform, rest.view(1, 4, 1))
            moved.append(transform - torch.cat((torch.zeros(1, 4, 3), carried), 2))
        blended = torch.matmul(torch.stack(moved, dim=-1), self.skinning.T)  # (1, 4, 4, V)
        homogeneous = torch.cat((posed.transpose(2, 1), torch.ones(1, 1, posed.shape[1])), 1)
        return (blended * homogeneous.unsqueeze(1)).sum(2).transpose(2, 1)[:, :, :3]

    @staticmethod
    def _homogeneous(rotation: Tensor, shift: Tensor) -> Tensor:
        upper = torch.cat((rotation, shift.view(1, 3, 1)), 2)
        return torch.cat((upper, torch.tensor([[[0.0, 0.0, 0.0, 1.0]]])), 1)


def noisy_joints(joints_px: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One pose with the errors of `data.noise_coco`, joint by joint: candidates of every kind, then the choice.

    COCO-17, (17, 2) px -> (17, 2) px; all joints count as visible.
    """
    area = float(np.prod(np.ptp(joints_px, axis=0) * 1.25))
    rates = option_probabilities(torch.ones(1, len(COCO17), dtype=torch.bool))[0].numpy().astype(np.float64)
    noisy = joints_px.copy()
    for joint, partner in enumerate(COCO17.flip_permutation):
        radii = [math.sqrt(-2 * area * math.log(s)) * 2 * COCO_SIGMAS[joint] for s in (1.0, 0.85, 0.5, 0.1)]
        own, other = joints_px[joint], noisy[partner]
        jitter = _candidates(own, other, radii[1], radii[2], rng)
        miss = np.concatenate(
            [_candidates(own, other, radii[2], radii[3], rng), _candidates(other, own, radii[2], radii[3], rng)[::4]]
        )
        inversion = _candidates(other, own, 0.0, radii[2], rng)
        good = _candidates(own, other, 0.0, radii[1], rng)
        options = dict(zip(OPTIONS, (jitter, miss, inversion, good)))
        chosen = options[str(rng.choice(OPTIONS, p=rates[joint] / rates[joint].sum()))]
        if len(chosen):
            noisy[joint] = chosen[rng.integers(len(chosen))]
    return noisy


def _candidates(centre: np.ndarray, other: np.ndarray, low: float, high: float, rng: np.random.Generator) -> np.ndarray:
    """Points at such distances from the centre that are not nearer to the other joint."""
    angle, distance = rng.uniform(0, 2 * math.pi, _CANDIDATES), rng.uniform(low, high, _CANDIDATES)
    points = centre + np.stack((distance * np.cos(angle), distance * np.sin(angle)), axis=1)
    if np.array_equal(centre, other):
        return points
    return points[np.sqrt(np.sum((points - other) ** 2, axis=1)) > distance]


class OneByOne:
    """Training samples made one at a time: body, two joint sets by dense regressors, projection, noise; collated."""

    def __init__(self, body: Body) -> None:
        self.body, self.one = body, OneBody(body)
        self.coco, self.human36m = body.regressor(COCO17), body.regressor(HUMAN36M17)

    def batch(self, rotations: Tensor, shape: Tensor, seed: int) -> list[np.ndarray]:
        """(B, J, 3, 3), (B, S) -> vertices, joints of both sets, noisy joints in pixels; arrays over the batch."""
        rng = np.random.default_rng(seed)
        samples = []
        for k in range(len(rotations)):
            vertices = self.one.vertices(rotations[k : k + 1], shape[k : k + 1])[0].numpy()
            joints, regressed = np.dot(self.coco, vertices), np.dot(self.human36m, vertices)
            placed = joints + np.array([0, 0, 4], np.float32)
            noisy = noisy_joints(placed[:, :2] / placed[:, 2:] * 1000 + 500, rng)
            samples.append((vertices - regressed[:1], joints, regressed - regressed[:1], noisy))
        return [np.stack(parts) for parts in zip(*samples)]
