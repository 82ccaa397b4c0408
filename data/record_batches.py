"""Training batches from records: real people, with their own cameras and 2D joints or with imagined ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from data.augmentation import mirror_joints, mirror_keypoints
from data.definitions import by_name
from data.draws import Draws
from data.order import Order, SampleOrder
from data.records import Records
from data.synthesis import Studio, SynthesisConfig, with_derived
from mesh.body import Body
from mesh.camera import project
from mesh.errors import InputError, require
from mesh.joints import COCO17, COCO19, HUMAN36M17, SMPL24, JointSet, joint_set
from mesh.rotation import axis_angle_to_matrix
from mesh.samples import Batch


@dataclass(frozen=True, kw_only=True)
class RecordSampling:
    """What of a record is used.

    `input`: the 2D joints that the record has (detected or annotated), or the projection of its body with noise.
    `camera`: the record's own, or one imagined anew for each use (which needs a body, and none of the two recorded);
    where the records do not say which way is up, the recorded camera is taken to be level.
    """

    input: Literal["recorded", "projected"] = "projected"
    camera: Literal["recorded", "random"] = "recorded"


class RecordBatches:
    """Makes batches of the rows of records; see `data.synthesis.Synthesiser`, whose `batch` this one's equals.

    Where the record has a body that counts as truth, every target comes from it (with a random shape, if the records
    have none). Where it has none, 3D joints of the target's own set are targets, and the rest is masked.
    """

    def __init__(
        self, records: Records, body: Body, config: SynthesisConfig, sampling: RecordSampling, *,
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self.records, self.config, self.sampling = records, config, sampling
        self.device = torch.device(device)
        self._studio = Studio(body, config, device=device)
        _check(records, sampling)
        self._rows = np.arange(len(records))
        if sampling.input == "projected" and "mesh_valid" in records:
            self._rows = np.flatnonzero(records["mesh_valid"])  # without a body there is nothing to project
            require(len(self._rows) > 0, f"{records.path}: no row has a body, which input projected needs")
        if sampling.input == "projected" and sampling.camera == "recorded":
            has_camera = np.asarray(records["intrinsics"])[self._rows, :2].min(1) > 0
            self._rows = self._rows[has_camera]
            require(len(self._rows) > 0, f"{records.path}: no row has a camera; take camera random")
        self._up = records.info.up
        if self._up is None and not ("extrinsics" in records or "intrinsics" in records):
            self._up = "y"  # without any camera the world stands upright
        in_2d, in_3d = (
            None if name is None else joint_set(name) for name in (records.info.joints2d, records.info.joints3d)
        )
        self._joints2d = by_name(in_2d, COCO17)
        # A joint of another set has the same name and another place: Human3.6M's nose lies 6 cm from COCO's.
        self._coco3d = by_name(in_3d if in_3d in (COCO17, COCO19) else None, COCO19)
        self._human36m3d = by_name(in_3d if in_3d == HUMAN36M17 else None, HUMAN36M17)

    def __len__(self) -> int:
        """Rows that can be used, all of which an epoch uses once."""
        return len(self._rows)

    def order(self, seed: int) -> Order:
        """The order of its rows."""
        return SampleOrder(len(self), seed)

    @torch.no_grad()
    def batch(self, index: Tensor, draws: Draws, *, with_vertices: bool) -> Batch:
        """The people at `index` (B,) int64 among the usable rows, one for each row of the draws."""
        rows = self._rows[index.numpy()]
        mirrored = draws.rand(1) < self.config.mirror  # (B, 1)
        rotations, shape, place, has_body = self._bodies(rows, mirrored)
        if self.sampling.camera == "random":
            tilted = axis_angle_to_matrix(self._studio.tilt(draws)) @ rotations[:, 0]
            rotations[:, 0] = self._studio.camera_rotation(draws) @ tilted
        if "shape" not in self.records:
            shape = (self.config.shape_sd * draws.randn(shape.shape[1])).clamp(-3, 3)
        posed = self._studio.body_model.pose(rotations, shape)
        joints, regressed = self._studio.joint_model.joints(posed)
        pelvis = regressed[:, HUMAN36M17.root_idx, None]
        every = torch.cat((joints, regressed, posed.joints), dim=1)
        keypoints, confidence, intrinsics = self._input(rows, every, pelvis, place, mirrored, draws)
        coco, coco_valid = self._recorded_joints(rows, self._coco3d, COCO19, mirrored)
        human, human_valid = self._recorded_joints(rows, self._human36m3d, HUMAN36M17, mirrored)
        body = has_body[:, None, None]
        vertices = None
        if with_vertices:
            vertices = torch.where(body, self._studio.body_model.vertices(posed, pelvis[:, 0]), 0.0)
        return Batch(
            keypoints_px=keypoints,
            confidence=confidence,
            joints_m=torch.where(body, joints - joints[:, COCO19.root_idx, None], coco),
            regressed_m=torch.where(body, regressed - pelvis, human),
            vertices_m=vertices,
            joints_valid=has_body[:, None] | coco_valid,
            regressed_valid=has_body[:, None] | human_valid,
            mesh_valid=has_body,
            ids=torch.from_numpy(rows).to(self.device),
            intrinsics=intrinsics,
        )

    def _column(self, name: str, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(self.records[name][rows])).to(self.device)

    def _bodies(self, rows: np.ndarray, mirrored: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Local rotations with the root in camera frame (B, 24, 3, 3), shape (B, S), where the template's origin
        stands in camera frame (B, 3) m, and whether the body counts as truth (B,).

        Where a camera is imagined, the root is in a world with y up instead, and the place means nothing.
        """
        size, model = len(rows), self._studio.body_model
        if "pose" not in self.records:
            rest = torch.eye(3, device=self.device).expand(size, 24, 3, 3).clone()
            nowhere = torch.zeros(size, 3, device=self.device)
            return rest, nowhere.new_zeros(size, model.num_shape), nowhere, mirrored.new_zeros(size)
        rotations = axis_angle_to_matrix(self._column("pose", rows))
        shape = torch.zeros(size, model.num_shape, device=self.device)
        if "shape" in self.records:
            shape = self._column("shape", rows)[:, : model.num_shape]
        trans = self._column("trans", rows) if "trans" in self.records else shape.new_zeros(size, 3)
        root = model.rest_joints[0] + torch.einsum("bs,cs->bc", shape, model.joint_shape_dirs[0])
        imagined = self.sampling.camera == "random"
        if imagined and self._up is not None:
            rotations[:, 0] = _upright(rotations[:, 0], self._up)
        elif "extrinsics" in self.records:
            extrinsics = self._column("extrinsics", rows)
            turn, shift = extrinsics[..., :3], extrinsics[..., 3]
            rotations[:, 0] = turn @ rotations[:, 0]
            # The body turns about its root joint, not about the world's origin.
            trans = (turn @ (root + trans)[..., None])[..., 0] + shift - root
        if imagined and self._up is None:
            rotations[:, 0] = _upright(rotations[:, 0], "-y")  # as far as the camera was level
        sign = trans.new_tensor((-1.0, 1.0, 1.0))
        image = rotations[:, list(SMPL24.flip_permutation)] * sign[:, None] * sign
        rotations = torch.where(mirrored[..., None, None], image, rotations)
        # A mirrored body keeps its template: what is mirrored is where its root joint stands.
        trans = torch.where(mirrored, (root + trans) * sign - root, trans)
        valid = self._column("mesh_valid", rows) if "mesh_valid" in self.records else mirrored.new_ones(size)
        return rotations, shape, trans, valid

    def _input(
        self, rows: np.ndarray, every: Tensor, pelvis: Tensor, place: Tensor, mirrored: Tensor, draws: Draws
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the networks see: (B, 19, 2) px, (B, 19), and what they are told of the cameras, (B, 4) px.

        `every` (B, 60, 3) are the joints of `Studio.detected`.
        """
        intrinsics = torch.zeros(len(rows), 4, device=self.device)
        if self.sampling.camera == "recorded" and "intrinsics" in self.records:
            mirror = intrinsics.new_tensor((1.0, 1.0, -1.0, 1.0))
            intrinsics = self._column("intrinsics", rows) * torch.where(mirrored, mirror, 1.0)
        if self.sampling.input == "recorded":
            index, known = self._joints2d
            points = self._column("joints2d", rows)[:, index]
            confidence = self._column("confidence", rows)[:, index] * known.to(self.device)
            flipped = list(COCO17.flip_permutation)
            points = torch.where(mirrored[..., None], mirror_keypoints(points, COCO17, 0.0), points)
            confidence = torch.where(mirrored, confidence[:, flipped], confidence)
            return *with_derived(points, confidence), intrinsics
        if self.sampling.camera == "random":
            exact, focal = self._studio.photograph(every - pelvis, draws, framed=len(COCO19))
        else:
            centre = intrinsics[:, 2:]
            ratio = (intrinsics[:, 1] / intrinsics[:, 0])[:, None, None]
            exact = project(every + place[:, None], intrinsics[:, 0], torch.zeros_like(centre))
            exact = exact * torch.cat((torch.ones_like(ratio), ratio), dim=-1) + centre[:, None]
        keypoints, confidence = self._studio.detected(exact, every[:, : len(COCO19)], draws)
        if self.sampling.camera == "random":
            intrinsics = self._studio.told(focal, draws)
        return keypoints, confidence, intrinsics

    def _recorded_joints(
        self, rows: np.ndarray, names: tuple[Tensor, Tensor], target: JointSet, mirrored: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Recorded 3D joints by name, relative to the target's root: (B, J, 3) m, (B, J); none without a root."""
        index, known = names
        if "joints3d" not in self.records or self.sampling.camera == "random":
            empty = mirrored.new_zeros(len(rows), len(target))
            return torch.zeros(*empty.shape, 3, device=self.device), empty
        points = self._column("joints3d", rows)[:, index]
        valid = self._column("joint_valid", rows)[:, index] & known.to(self.device)
        valid = valid & valid[:, target.root_idx, None]
        points = points - points[:, target.root_idx, None]
        points = torch.where(mirrored[..., None], mirror_joints(points, target), points)
        valid = torch.where(mirrored, valid[:, list(target.flip_permutation)], valid)
        return torch.where(valid[..., None], points, 0.0), valid


def _upright(root: Tensor, up: str) -> Tensor:
    """Root rotations (B, 3, 3) from a frame in which the axis `up` points up to one with y up, turned about x."""
    axes, signs = {"y": ((0, 1, 2), (1, 1, 1)), "-y": ((0, 1, 2), (1, -1, -1)), "z": ((0, 2, 1), (1, 1, -1))}[up]
    return root.new_tensor(signs)[:, None] * root[:, list(axes)]


def _check(records: Records, sampling: RecordSampling) -> None:
    needs = {
        "input recorded": ("joints2d",) if sampling.input == "recorded" else (),
        "input projected": ("pose",) if sampling.input == "projected" else (),
        "camera random": ("pose",) if sampling.camera == "random" else (),
        "camera recorded": ("intrinsics",)
        if sampling.camera == "recorded" and sampling.input == "projected"
        else (),
    }  # fmt: skip
    if "pose" not in records and "joints3d" not in records:
        raise InputError(f"{records.path} has neither bodies nor 3D joints: there is nothing to learn from it")
    for what, columns in needs.items():
        for column in columns:
            if column not in records:
                raise InputError(f"{records.path} has no {column}, which {what} needs; see data.record_batches")
    if sampling.input == "recorded" and sampling.camera == "random":
        raise InputError("recorded 2D joints belong to the recorded camera; take input projected with camera random")
