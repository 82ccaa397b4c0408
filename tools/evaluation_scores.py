"""Every error of a network on some samples, and what they come to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from gcn.evaluation import lift, lift_scores, predict_mesh
from gcn.mirroring import MirrorAveraged
from gcn.pose2mesh import ModelConfig, Pose2Mesh
from mesh.body import Body
from mesh.errors import InputError
from mesh.joints import COCO19
from mesh.metrics import acceleration_error_mm, bootstrap_interval
from mesh.protocols import MeshMeasure, Posed, Protocol, compare, rooted_joints
from tools.evaluation_samples import Samples, Track

FACING = "facing wrong by > 90 deg (%)"
ACCELERATION = "accel_mm_per_frame2"
Smoother = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Networks:
    """What is measured: lifter and mesh network (as it is, or averaged with the mirror image), or the lifter alone."""

    posenet: nn.Module
    config: ModelConfig
    mesh: Pose2Mesh | MirrorAveraged | None


@dataclass
class Scored:
    """Errors of all samples in the order of the tracks; `motion` has a value per frame with both neighbours.

    `tracks` (N,) and `rows` (N,) say which sample is which; `joints_mm` (N, J) belongs to `joint_names`.
    """

    joint_names: tuple[str, ...]
    track_names: list[str]
    values: dict[str, np.ndarray] = field(default_factory=dict)
    tracks: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    joints_mm: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    aligned_joints_mm: np.ndarray | None = None
    motion: np.ndarray = field(default_factory=lambda: np.zeros(0))
    motion_tracks: np.ndarray = field(default_factory=lambda: np.zeros(0, int))

    def groups(self, tracks: np.ndarray) -> np.ndarray | None:
        """The sequence of each value, whose people are drawn together; none where there are fewer than two."""
        sequences = [name.rpartition("#")[0] for name in self.track_names]
        if len(set(sequences)) < 2:
            return None
        return np.unique(sequences, return_inverse=True)[1][tracks]

    def summary(self) -> dict[str, float]:
        """Means over samples, then medians of what is in mm, then the share of bodies that face the wrong way."""
        means = {name: float(v.mean()) for name, v in self.values.items() if name != "facing_error_rad"}
        if len(self.motion):
            means[ACCELERATION] = float(self.motion.mean())
        medians = {f"{name} (median)": float(np.median(v)) for name, v in self.values.items() if name.endswith("_mm")}
        turned = {}
        if "facing_error_rad" in self.values:
            turned[FACING] = float((self.values["facing_error_rad"] > math.pi / 2).mean() * 100)
        return {**means, **medians, **turned}

    def intervals(self, seed: int) -> dict[str, tuple[float, float]]:
        """95 % bootstrap intervals of the means."""
        groups = self.groups(self.tracks)
        found = {
            name: bootstrap_interval(v, groups, seed=seed)
            for name, v in self.values.items()
            if name != "facing_error_rad"
        }
        if len(self.motion):
            found[ACCELERATION] = bootstrap_interval(self.motion, self.groups(self.motion_tracks), seed=seed)
        return found


def score(
    networks: Networks,
    samples: Samples,
    protocol: Protocol,
    body: Body,
    smoother: Smoother | None,
    device: torch.device,
) -> dict[str, Scored]:
    """The errors as the networks give them, under "", and with a smoother those of the smoothed meshes, "smoothed"."""
    measure = MeshMeasure(protocol, body, device)
    parts: dict[str, list[_TrackScores]] = {"": []}
    names = []
    for number in range(len(samples)):
        track = samples.track(number)
        names.append(track.name)
        lifted, lifted_joints = lift_scores(lift(networks.posenet, networks.config, track.batch), track.batch)
        if networks.mesh is None:
            parts[""].append(_TrackScores(values=lifted, joints_mm=lifted_joints, rows=track.rows))
            continue
        vertices = predict_mesh(networks.mesh, track.batch)
        parts[""].append(_mesh_scores(measure, vertices, track, lifted))
        if smoother is not None:
            if track.frames is None:
                raise InputError("--smooth needs sequences whose frames are numbered, all of them (no --samples)")
            smoothed = torch.from_numpy(smoother(vertices.cpu().numpy(), track.frames)).to(vertices)
            parts.setdefault("smoothed", []).append(_mesh_scores(measure, smoothed, track, {}))
    joints: tuple[str, ...] = COCO19.names if networks.mesh is None else protocol.joints
    return {kind: _joined(found, joints, names) for kind, found in parts.items()}


@dataclass(frozen=True, kw_only=True)
class _TrackScores:
    values: Mapping[str, Tensor]
    joints_mm: Tensor
    rows: np.ndarray
    aligned_joints_mm: Tensor | None = None
    motion: Tensor | None = None


def _mesh_scores(measure: MeshMeasure, vertices: Tensor, track: Track, lifted: Mapping[str, Tensor]) -> _TrackScores:
    assert track.batch.vertices_m is not None
    predicted: Posed = measure.posed(vertices)
    true = measure.posed(track.batch.vertices_m, track.true_joints_m)
    scores = compare(measure.protocol, predicted, true)
    motion = None
    if track.frames is not None:
        moving, truth = (rooted_joints(measure.protocol, side.joints) for side in (predicted, true))
        motion = acceleration_error_mm(moving, truth, track.frames)
    return _TrackScores(
        values={**scores.values, **lifted}, joints_mm=scores.joints_mm, rows=track.rows,
        aligned_joints_mm=scores.aligned_joints_mm, motion=motion,
    )  # fmt: skip


def _joined(parts: list[_TrackScores], joint_names: tuple[str, ...], track_names: list[str]) -> Scored:
    """One account of all tracks."""
    motion = [torch.zeros(0) if part.motion is None else part.motion.cpu() for part in parts]
    numbers = np.arange(len(parts))
    aligned = [part.aligned_joints_mm for part in parts if part.aligned_joints_mm is not None]
    return Scored(
        joint_names=joint_names,
        track_names=track_names,
        values={name: torch.cat([part.values[name] for part in parts]).cpu().numpy() for name in parts[0].values},
        tracks=np.repeat(numbers, [len(part.rows) for part in parts]),
        rows=np.concatenate([part.rows for part in parts]),
        joints_mm=torch.cat([part.joints_mm for part in parts]).cpu().numpy(),
        aligned_joints_mm=torch.cat(aligned).cpu().numpy() if aligned else None,
        motion=torch.cat([m.double() for m in motion]).cpu().numpy(),
        motion_tracks=np.repeat(numbers, [len(m) for m in motion]),
    )
