"""Evaluation protocols as named objects: which joints, which root, which alignment, and the errors they lead to."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mesh.alignment import planes
from mesh.body import Body
from mesh.errors import InputError
from mesh.joints import EVALUATION_14, HUMAN36M17, SMPL24, JointSet
from mesh.metrics import (
    aligned_distances_mm,
    aligned_error_mm,
    auc_percent,
    facing_error_rad,
    pck_percent,
    point_distances_mm,
    point_error_mm,
)

_HIPS = ("left_hip", "right_hip")
_FOURTEEN = tuple(HUMAN36M17.names[i] for i in EVALUATION_14)
_GENDERED = "the true mesh is made by the body of the record's gender where such a body is given"


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What exactly is measured.

    `joints` of `joint_set` are compared, regressed from the vertices of both sides (`truth` "mesh") or, on the true
    side, the joints that the dataset gives ("dataset"). Joints and vertices are each moved to their root, which is the
    mean of the named joints: `joint_root` of `joint_set`, `mesh_root` of `mesh_root_set`. `image_part`: only rows whose
    image name holds this text are measured.
    """

    name: str
    description: str
    joint_set: JointSet
    joints: tuple[str, ...]
    joint_root: tuple[str, ...] = ("pelvis",)
    mesh_root_set: JointSet = HUMAN36M17
    mesh_root: tuple[str, ...] = ("pelvis",)
    truth: Literal["mesh", "dataset"] = "mesh"
    frames: str
    gender: str = _GENDERED
    image_part: str | None = None

    def card(self) -> dict[str, str]:
        """The protocol in words, to be kept beside every number that it gave."""
        source = "regressed from both meshes" if self.truth == "mesh" else "regressed from the mesh, true as recorded"
        return {
            "name": self.name,
            "description": self.description,
            "joints": f"{len(self.joints)} of {self.joint_set.name}, {source}: {', '.join(self.joints)}",
            "root of joints": _root_text(self.joint_set, self.joint_root),
            "root of mesh": _root_text(self.mesh_root_set, self.mesh_root),
            "alignment": "root only (MPJPE, MPVPE, PCK, AUC, acceleration); similarity Procrustes per sample (PA)",
            "vertices": "all",
            "average": "over samples",
            "unit": "mm; PCK and AUC in per cent; acceleration in mm/frame^2",
            "frames": self.frames,
            "gender": self.gender,
        }


def _root_text(joints: JointSet, names: tuple[str, ...]) -> str:
    return f"{joints.name} {names[0]}" if len(names) == 1 else f"middle of {joints.name} {' and '.join(names)}"


_ALL_3DPW = "every frame and person of the split with a valid camera pose"
_MESH_ROOTED = Protocol(
    name="human36m14",
    description="14 Human3.6M joints and the mesh, both at the Human3.6M pelvis: what training reports",
    joint_set=HUMAN36M17,
    joints=_FOURTEEN,
    frames="all that are given",
)
PROTOCOLS: dict[str, Protocol] = {
    p.name: p
    for p in (
        replace(
            _MESH_ROOTED,
            name="pw3d-pose2mesh",
            description="3DPW as Pose2Mesh reports it: joints at the Human3.6M pelvis, the mesh at SMPL's",
            mesh_root_set=SMPL24,
            frames=_ALL_3DPW,
        ),
        replace(
            _MESH_ROOTED,
            name="pw3d-lsp14",
            description="3DPW on the 14 LSP joints, joints (as in HMR) and mesh at the middle of the hips",
            joint_root=_HIPS,
            mesh_root=_HIPS,
            frames=_ALL_3DPW,
        ),
        Protocol(
            name="smpl24",
            description="the 24 SMPL joints, regressed from the posed meshes, and the mesh, both at the SMPL pelvis",
            joint_set=SMPL24,
            joints=SMPL24.names,
            mesh_root_set=SMPL24,
            frames="all that are given",
        ),
        replace(
            _MESH_ROOTED,
            name="human36m-p1",
            description="Human3.6M protocol 1 of mesh recovery: subjects 9 and 11, all cameras; its figure is MPJPE",
            truth="dataset",
            frames="the rows of the records; Pose2Mesh takes every 50th frame of S9 and S11",
        ),
        replace(
            _MESH_ROOTED,
            name="human36m-p2",
            description="Human3.6M protocol 2 of mesh recovery: p1 from the frontal camera; its figure is PA-MPJPE",
            truth="dataset",
            frames="the rows of the records from camera 4",
            image_part="_ca_04",
        ),
        _MESH_ROOTED,
    )
}


def protocol(name: str) -> Protocol:
    """Look a protocol up; an unknown name is answered with the nearest known one."""
    if name not in PROTOCOLS:
        near = difflib.get_close_matches(name, PROTOCOLS, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise InputError(f"unknown protocol {name!r}{hint} Known: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


@dataclass(frozen=True, kw_only=True)
class Posed:
    """One side of a comparison, metres, camera frame, any origin.

    `joints` (B, J, 3) all joints of the protocol's set; `vertices` (B, V, 3) with `mesh_root` (B, 3), or None where
    only joints are compared.
    """

    joints: Tensor
    vertices: Tensor | None = None
    mesh_root: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Errors of B samples. `values`: name -> (B,); `joints_mm` and `aligned_joints_mm` (B, protocol's joints)."""

    values: Mapping[str, Tensor]
    joints_mm: Tensor
    aligned_joints_mm: Tensor


class JointRegression:
    """Takes a body's vertices to joints of one or more sets, in float64.

    Only the vertices that some joint depends on are touched.
    """

    def __init__(self, body: Body, *joint_sets: JointSet, device: torch.device | str = "cpu") -> None:
        matrix = np.concatenate([body.regressor(s) for s in joint_sets]).astype(np.float64)
        used = np.flatnonzero(matrix.any(0))
        self.counts = [len(s) for s in joint_sets]
        self._used = torch.from_numpy(used).to(device)
        self._weights = torch.from_numpy(np.ascontiguousarray(matrix[:, used])).to(device)

    def __call__(self, vertices: Tensor) -> tuple[Tensor, ...]:
        """(B, V, 3) -> (B, joints, 3) of each set, float64."""
        used = planes(vertices.index_select(1, self._used))  # (B, 3, used)
        joints = (used.flatten(0, 1) @ self._weights.T).unflatten(0, (-1, 3))
        return joints.transpose(1, 2).split(self.counts, dim=1)


class MeshMeasure:
    """A protocol on a body: regresses what it compares, then measures."""

    def __init__(self, protocol: Protocol, body: Body, device: torch.device | str = "cpu") -> None:
        self.protocol = protocol
        sets = (protocol.joint_set, protocol.mesh_root_set)
        self._regress = JointRegression(body, *sets, device=device)

    def posed(self, vertices: Tensor, joints: Tensor | None = None) -> Posed:
        """One side, from (B, V, 3) vertices and, where the dataset has its own, (B, J, 3) joints in the same frame."""
        regressed, for_root = self._regress(vertices)
        root = for_root[:, list(self.protocol.mesh_root_set.indices(self.protocol.mesh_root))].mean(1)
        return Posed(joints=regressed if joints is None else joints.double(), vertices=vertices, mesh_root=root)

    def __call__(self, predicted_m: Tensor, true_m: Tensor, true_joints_m: Tensor | None = None) -> Scores:
        """Scores of (B, V, 3) vertices; `true_joints_m` (B, J, 3) in the frame of the true vertices."""
        return compare(self.protocol, self.posed(predicted_m), self.posed(true_m, true_joints_m))


def rooted_joints(protocol: Protocol, joints: Tensor) -> Tensor:
    """The protocol's joints relative to its root, (B, all joints of the set, 3) -> (B, joints, 3) float64."""
    joints = joints.double()
    root = joints[:, list(protocol.joint_set.indices(protocol.joint_root))].mean(1, keepdim=True)
    return joints[:, list(protocol.joint_set.indices(protocol.joints))] - root


def compare(protocol: Protocol, predicted: Posed, true: Posed, *, align_mesh: bool = True) -> Scores:
    """Every error of the protocol; those of the mesh where both sides have one, PA-MPVPE unless switched off.

    MPJPE, PA-MPJPE, MPVPE, PA-MPVPE in mm, PCK and AUC in per cent, and the angle between the facing directions.
    """
    joints, true_joints = (rooted_joints(protocol, side.joints) for side in (predicted, true))
    distances = point_distances_mm(joints, true_joints)
    aligned = aligned_distances_mm(joints, true_joints)
    values = {"mpjpe_mm": distances.mean(1), "pa_mpjpe_mm": aligned.mean(1)}
    if predicted.vertices is not None and true.vertices is not None:
        values |= _mesh_errors(predicted, true, align_mesh)
    named = (*_HIPS, "neck", "pelvis")
    facing = facing_error_rad(predicted.joints.double(), true.joints.double(), *protocol.joint_set.indices(named))
    values |= {
        "pck_150mm_percent": pck_percent(distances),
        "auc_150mm_percent": auc_percent(distances),
        "facing_error_rad": facing,
    }
    return Scores(values=values, joints_mm=distances, aligned_joints_mm=aligned)


def _mesh_errors(predicted: Posed, true: Posed, align_mesh: bool) -> dict[str, Tensor]:
    """MPVPE and PA-MPVPE."""
    assert predicted.vertices is not None and true.vertices is not None
    assert predicted.mesh_root is not None and true.mesh_root is not None
    shift = true.mesh_root.double() - predicted.mesh_root.double()
    errors = {"mpvpe_mm": point_error_mm(predicted.vertices, true.vertices, shift)}
    if align_mesh:
        errors["pa_mpvpe_mm"] = aligned_error_mm(predicted.vertices, true.vertices)
    return errors
