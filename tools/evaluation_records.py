"""Records as samples to be measured: true meshes, and 2D joints that are exact, noisy or detected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from data.draws import Draws, step_generator
from data.keypoints import KeypointFile
from data.noise import NoiseConfig, imitate_detector
from data.occlusion import hidden_by_body
from data.records import Records
from data.synthesis import with_derived
from mesh.body import Body
from mesh.errors import InputError, require
from mesh.joints import COCO17, COCO19, HUMAN36M17, MIN_CONFIDENCE, Keypoints, joint_set
from mesh.protocols import JointRegression, Protocol
from mesh.rotation import axis_angle_to_matrix
from mesh.samples import Batch
from mesh.skinning import BodyModel
from tools.evaluation_detections import match_detections
from tools.evaluation_samples import BLOCK, Track, View

Input = Literal["gt", "detected", "noisy"]
GENDERS = ("neutral", "male", "female")
_NEAREST_M = 0.01  # a joint nearer to the plane of the camera has no place in the picture
_FACE_ON = ((1.0, 0, 0, 0), (0, 1.0, 0, 0), (0, 0, 1.0, 0))  # world = camera


@dataclass(frozen=True, kw_only=True)
class RecordSettings:
    """How records are measured. `bodies` by gender, "neutral" always; at most `count` rows, evenly spread, or all."""

    protocol: Protocol
    input: Input
    bodies: Mapping[str, Body]
    noise: NoiseConfig
    device: torch.device
    seed: int = 0
    count: int | None = None


class RecordSamples:
    """One track per person and sequence; blocks of rows where the records know no sequences."""

    def __init__(self, records: Records, settings: RecordSettings, detections: KeypointFile | None = None) -> None:
        self.records, self.settings = records, settings
        self._check()
        neutral = settings.bodies["neutral"]
        self._models = {name: BodyModel(body).to(settings.device) for name, body in settings.bodies.items()}
        self._regress = JointRegression(neutral, COCO19, HUMAN36M17, device=settings.device)
        wanted, self.left_out = self._measured_rows()
        rows, count = np.flatnonzero(wanted), settings.count or len(wanted)
        self.is_thinned = count < len(rows)
        if self.is_thinned:
            wanted = np.zeros(len(records), bool)
            wanted[rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]] = True
        self._tracks = self._split(wanted)
        self.notes: dict[str, int] = {}
        if settings.input == "detected":
            self._keypoints = self._detected(detections)

    def __len__(self) -> int:
        return len(self._tracks)

    @torch.no_grad()
    def track(self, number: int) -> Track:
        """Truth and input of one track."""
        name, rows = self._tracks[number]
        vertices, offset = self._true_vertices(rows)
        coco, regressed = self._regress(vertices)
        pelvis = regressed[:, HUMAN36M17.root_idx]
        view = self._view(rows, pelvis + offset)
        keypoints, confidence = self._input(number, rows, coco + offset[:, None], view)
        batch = Batch(
            keypoints_px=keypoints.float(),
            confidence=confidence.float(),
            joints_m=(coco - coco[:, COCO19.root_idx, None]).float(),
            regressed_m=(regressed - pelvis[:, None]).float(),
            vertices_m=(vertices - pelvis[:, None]).float(),
            joints_valid=torch.ones_like(coco[..., 0], dtype=torch.bool),
            regressed_valid=torch.ones_like(regressed[..., 0], dtype=torch.bool),
            mesh_valid=torch.ones_like(pelvis[:, 0], dtype=torch.bool),
            ids=torch.from_numpy(rows).to(self.settings.device),
            intrinsics=None if view is None else view.intrinsics.float(),
        )
        return Track(
            batch=batch, rows=rows, name=name, frames=self._frames(rows), view=view,
            true_joints_m=self._recorded_joints(rows, pelvis + offset),
        )  # fmt: skip

    def _check(self) -> None:
        """Whether the records hold what the protocol and the input need."""
        records, settings, path = self.records, self.settings, self.records.path
        require("pose" in records and "shape" in records, f"{path} holds no meshes (pose and shape) to compare with")
        if settings.input != "detected" and "intrinsics" not in records:
            raise InputError(
                f"{path} has no cameras (intrinsics), so its joints have no exact place in a picture: take --input "
                "detected, or --dataset poses for poses without pictures"
            )
        protocol = settings.protocol
        if protocol.truth == "dataset" and records.info.joints3d != protocol.joint_set.name:
            raise InputError(
                f"protocol {protocol.name} compares with the dataset's {protocol.joint_set.name} joints, but {path} "
                f"has {records.info.joints3d or 'none'}; choose a protocol that regresses them from the mesh"
            )
        counts = {name: body.num_vertices for name, body in settings.bodies.items()}
        require(len(set(counts.values())) == 1, f"the bodies have different numbers of vertices: {counts}")

    def _measured_rows(self) -> tuple[np.ndarray, dict[str, int]]:
        """Mask of the rows that are measured, and how many are not, by the first reason that holds."""
        records, protocol = self.records, self.settings.protocol
        wanted, left_out = np.ones(len(records), bool), {}

        def leave_out(reason: str, given: Any) -> None:
            nonlocal wanted
            rows = np.asarray(given, bool)
            if (wanted & rows).any():
                left_out[reason] = int((wanted & rows).sum())
                wanted = wanted & ~rows

        if protocol.image_part is not None:
            part = protocol.image_part.encode()
            names = np.asarray(records["image"])
            leave_out(f"image is not one of {protocol.image_part}", np.char.find(names, part) < 0)
        if "mesh_valid" in records:
            leave_out("mesh is not valid", ~np.asarray(records["mesh_valid"]))
        if self.settings.input != "detected":
            leave_out("camera is not known", ~np.asarray(records["intrinsics"]).any(1))
        if protocol.truth == "dataset":
            needed = list(protocol.joint_set.indices((*protocol.joints, *protocol.joint_root)))
            leave_out("joints are not valid", ~np.asarray(records["joint_valid"])[:, needed].all(1))
        if not wanted.any():
            reasons = "; ".join(f"{reason}: {count}" for reason, count in left_out.items())
            raise InputError(f"{records.path}: no row can be measured by {protocol.name} ({reasons})")
        return wanted, left_out

    def _split(self, wanted: np.ndarray) -> list[tuple[str, np.ndarray]]:
        every = np.arange(len(self.records))
        tracks = [(name, every[rows][wanted[rows]]) for name, rows in self.records.sequences()]
        if not tracks:
            rows = np.flatnonzero(wanted)
            tracks = [("", block) for block in np.split(rows, range(BLOCK, len(rows), BLOCK))]
        return [(name, rows) for name, rows in tracks if len(rows)]

    def _frames(self, rows: np.ndarray) -> np.ndarray | None:
        if self.is_thinned or "frame" not in self.records or "sequence" not in self.records:
            return None
        frames = np.asarray(self.records["frame"][rows], np.int64)
        return frames if (np.diff(frames) > 0).all() else None

    def _tensor(self, name: str, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(self.records[name][rows])).to(self.settings.device)

    def _true_vertices(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Vertices turned into the camera frame, and what must be added to place them: (B, V, 3), (B, 3), metres."""
        pose, shape = self._tensor("pose", rows), self._tensor("shape", rows)
        extrinsics = (
            self._tensor("extrinsics", rows).double()
            if "extrinsics" in self.records
            else torch.tensor(_FACE_ON, dtype=torch.float64, device=self.settings.device).expand(len(rows), 3, 4)
        )
        rotation = extrinsics[:, :, :3]
        gender = np.array(self.records["gender"][rows]) if "gender" in self.records else np.zeros(len(rows), np.int8)
        model = self._models["neutral"]
        vertices = torch.empty(len(rows), model.skinning.shape[1], 3, device=self.settings.device)
        for number, name in enumerate(GENDERS):
            model = self._models.get(name, self._models["neutral"])
            for some in torch.from_numpy(np.flatnonzero(gender == number)).to(self.settings.device).split(BLOCK):
                made, _ = model(axis_angle_to_matrix(pose[some]), shape[some, : model.num_shape])
                vertices[some] = made @ rotation[some].float().transpose(1, 2)
        offset = extrinsics[:, :, 3]
        if "trans" in self.records:
            offset = offset + (rotation @ self._tensor("trans", rows).double()[..., None])[..., 0]
        return vertices, offset

    def _recorded_joints(self, rows: np.ndarray, pelvis_m: Tensor) -> Tensor | None:
        if self.settings.protocol.truth != "dataset":
            return None
        return self._tensor("joints3d", rows).double() - pelvis_m[:, None]

    def _view(self, rows: np.ndarray, pelvis_m: Tensor) -> View | None:
        if "intrinsics" not in self.records:
            return None
        images = None
        if "image" in self.records:
            images = tuple(bytes(name).decode(errors="replace") for name in self.records["image"][rows])
        return View(pelvis_m=pelvis_m, intrinsics=self._tensor("intrinsics", rows).double(), images=images)

    def _input(self, number: int, rows: np.ndarray, coco_m: Tensor, view: View | None) -> tuple[Tensor, Tensor]:
        """2D joints (B, 19, 2) px and confidence (B, 19)."""
        if self.settings.input == "detected":
            some = self._keypoints.select(rows)
            points, confidence = (
                torch.from_numpy(a).to(self.settings.device) for a in (some.positions_px, some.confidence)
            )
            return points, confidence
        assert view is not None
        points, confidence = project_joints(coco_m[:, : len(COCO17)], view.intrinsics)
        if self.settings.input == "noisy":
            draws = Draws(len(rows), step_generator(self.settings.seed, number), device=self.settings.device)
            points, seen = imitate_detector(points, hidden_by_body(coco_m), self.settings.noise, draws)
            confidence = torch.where(confidence > 0, seen, 0.0)
        return with_derived(points, confidence)

    def _detected(self, file: KeypointFile | None) -> Keypoints:
        """COCO-19 joints of every row of the records; rows without a detection have confidence 0."""
        records = self.records
        if file is not None:
            keypoints = match_detections(records, file)
        else:
            if records.info.joints2d is None or "joints2d" not in records:
                raise InputError(
                    f"{records.path} holds no detected 2D joints; give --keypoints FILE or take --input gt"
                )
            keypoints = Keypoints(
                positions_px=np.array(records["joints2d"]),
                confidence=np.array(records["confidence"]),
                joint_set=joint_set(records.info.joints2d),
            ).to(COCO19)
        rows = np.concatenate([rows for _, rows in self._tracks])
        missing = int((keypoints.confidence[rows] < MIN_CONFIDENCE).all(1).sum())
        if missing:
            self.notes["measured without any detected joint"] = missing
        return keypoints


def project_joints(points_m: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels and confidence 1, or 0 beside and behind the camera: (B, J, 3), (B, 4) -> (B, J, 2), (B, J) float32."""
    depth = points_m[..., 2:]
    in_front = depth > _NEAREST_M
    focal, centre = intrinsics[:, None, :2], intrinsics[:, None, 2:]
    pixels = torch.where(in_front, points_m[..., :2] / depth.clamp_min(_NEAREST_M) * focal + centre, 0.0)
    return pixels.float(), in_front[..., 0].float()
