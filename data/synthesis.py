"""Training samples made from body poses: random bodies seen by random cameras, a whole batch at once on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from data.augmentation import camera_from_world, mirror_pose, turn_body
from data.definitions import redefined
from data.draws import Draws
from data.noise import NoiseConfig, add_noise
from data.order import Order, SampleOrder
from mesh.body import Body
from mesh.camera import diagonal_intrinsics, project
from mesh.errors import require
from mesh.joints import COCO17, COCO19, HUMAN36M17, SMPL24
from mesh.rotation import quaternion_to_matrix
from mesh.samples import Batch
from mesh.skinning import BodyModel, JointModel

IMAGE_HEIGHT_PX = 1000.0  # of the imagined pictures; the networks see normalised positions, so it is only a unit


class PoseSource(Protocol):
    """Where poses come from: a pose file or the shipped prior."""

    def __len__(self) -> int:
        """Poses in one epoch."""

    def poses(self, index: Tensor, draws: Draws) -> Tensor:
        """Local rotations of the 24 SMPL joints, y up: (B,) int64 in 0 .. len - 1 -> (B, 24, 4) quaternions wxyz.

        On the device of the draws. A source with poses of its own looks them up; one without draws them.
        """


class BatchMaker(Protocol):
    """Makes training batches: from poses, from records, or from a mixture of several."""

    device: torch.device

    def __len__(self) -> int:
        """Samples in one epoch."""

    def order(self, seed: int) -> Order:
        """In which order they come."""

    def batch(self, index: Tensor, draws: Draws, *, with_vertices: bool) -> Batch:
        """Samples `index` (B,) int64, one for each row of the draws, which must be for this device."""


@dataclass(frozen=True, kw_only=True)
class CameraConfig:
    """Distribution of the imagined cameras. Degrees here, radians inside."""

    pitch_deg: tuple[float, float] = (-20.0, 40.0)  # looking up .. down at the person
    roll_sd_deg: float = 4.0
    focal: tuple[float, float] = (0.8, 2.5)  # in picture heights, log-uniform
    fill: tuple[float, float] = (0.3, 1.0)  # the person's extent in picture heights
    off_centre: float = 0.35  # the person's place, in picture heights from the middle
    told: float = 0.25  # share of samples whose focal length the networks are told; of the others it is assumed
    untold: float = 0.25  # share of samples of whose camera the networks are told nothing at all
    tilted: float = 0.15  # share of samples whose whole body is turned further
    tilt_sd_deg: float = 46.0

    def __post_init__(self) -> None:
        for name in ("focal", "fill"):
            low, high = getattr(self, name)
            require(0 < low <= high, f"camera.{name} must be two ascending positive numbers, got {[low, high]}")
        for name in ("tilted", "told", "untold"):
            require(0 <= getattr(self, name) <= 1, f"camera.{name} must lie in [0, 1], got {getattr(self, name)}")
        require(self.told + self.untold <= 1, "camera.told and camera.untold must not exceed 1 together")


@dataclass(frozen=True, kw_only=True)
class SynthesisConfig:
    """Bodies, cameras and noise of the training samples."""

    shape_sd: float = 1.0
    mirror: float = 0.5
    other_joints: float = 0.0  # share of samples whose 2D joints are those of human36m17 or smpl24, converted by name
    camera: CameraConfig = field(default_factory=CameraConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)

    def __post_init__(self) -> None:
        require(self.shape_sd >= 0, f"synthesis.shape_sd must not be negative, got {self.shape_sd}")
        for name in ("mirror", "other_joints"):
            require(0 <= getattr(self, name) <= 1, f"synthesis.{name} must lie in [0, 1], got {getattr(self, name)}")

    def to_measure(self, *, clean: float) -> SynthesisConfig:
        """The same for figures, with this share of exact samples: COCO joints, none of which is left out or rescored.

        What imitates other detectors and other files is for training alone.
        """
        noise = replace(
            self.noise, clean=clean, rescored=0.0, unscored=0.0, drop_side=0.0, drop_face=0.0, drop_many=0.0
        )
        return replace(self, other_joints=0.0, noise=noise)


class Studio:
    """A body and its imagined photographers: what every maker of batches needs. All draws come from the caller."""

    def __init__(self, body: Body, config: SynthesisConfig, *, device: torch.device | str = "cpu") -> None:
        self.config, self.device = config, torch.device(device)
        self.joint_model = JointModel(body, (COCO19, HUMAN36M17)).to(self.device)
        self.body_model = BodyModel(body).to(self.device)

    def tilt(self, draws: Draws) -> Tensor:
        """Some bodies are turned as a whole: lying, diving, upside down. Axis-angle (B, 3) rad, zero for the others."""
        camera = self.config.camera
        turn = draws.randn(3) * math.radians(camera.tilt_sd_deg)
        return turn * (draws.rand(1) < camera.tilted)

    def camera_rotation(self, draws: Draws) -> Tensor:
        """World (y up) to camera (y down, z forward), looking from anywhere around; (B, 3, 3)."""
        camera = self.config.camera
        yaw = _uniform((-math.pi, math.pi), draws)
        pitch = _uniform([math.radians(d) for d in camera.pitch_deg], draws)
        roll = draws.randn() * math.radians(camera.roll_sd_deg)
        return camera_from_world(yaw, pitch, roll)

    def photograph(self, joints_m: Tensor, draws: Draws, *, framed: int | None = None) -> tuple[Tensor, Tensor]:
        """Root-relative joints (B, J, 3) to an imagined picture: (B, J, 2) px, and its focal length, (B,) px.

        The first `framed` of them (none given: all) decide how large and how near the person is.
        """
        camera = self.config.camera
        focal = _uniform([math.log(f) for f in camera.focal], draws).exp()
        fill = _uniform(camera.fill, draws)
        frame = joints_m[:, :framed]
        extent = (frame[..., :2].amax(1) - frame[..., :2].amin(1)).amax(-1).clamp_min(0.5)
        nearest = -frame[..., 2].amin(1)
        depth = (focal * extent / fill).maximum(nearest + 0.4)
        place = (2 * draws.rand(2) - 1) * camera.off_centre
        root = torch.cat((place * (depth / focal)[:, None], depth[:, None]), dim=1)
        middle = torch.full((len(joints_m), 2), IMAGE_HEIGHT_PX / 2, device=self.device)
        return project(joints_m + root[:, None], focal * IMAGE_HEIGHT_PX, middle), focal * IMAGE_HEIGHT_PX

    def detected(self, points_px: Tensor, joints_m: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """What a detector makes of exact joints: (B, 19, 2) px and confidence (B, 19).

        `points_px` (B, 60, 2) are those of coco19, human36m17 and smpl24, one after the other, `joints_m` (B, 19, 3)
        the first of them in the camera's directions, metres.
        """
        coco, human36m, smpl = points_px.split((len(COCO19), len(HUMAN36M17), len(SMPL24)), dim=1)
        others = ((HUMAN36M17, human36m), (SMPL24, smpl))
        keypoints, has = redefined(coco[:, : len(COCO17)], others, self.config.other_joints, draws)
        noisy, confidence = add_noise(keypoints, joints_m, self.config.noise, draws)
        return with_derived(noisy, confidence * has)

    def told(self, focal_px: Tensor, draws: Draws) -> Tensor:
        """What the networks are told of the imagined cameras, (B,) px -> (B, 4) of `mesh.samples.Batch`."""
        camera = self.config.camera
        assumed = focal_px.new_tensor(diagonal_intrinsics((IMAGE_HEIGHT_PX, IMAGE_HEIGHT_PX))).repeat(len(focal_px), 1)
        lot = draws.rand(1)
        assumed[:, :2] = torch.where(lot < camera.told, focal_px[:, None], assumed[:, :2])
        return torch.where(lot >= 1 - camera.untold, 0.0, assumed)


class Synthesiser(Studio):
    """Makes batches: poses of the source; shape, camera and noise drawn from stated distributions.

    A sample is a pure function of its pose and its own row of the draws that `batch` is given, so the rows of a batch
    may be made in any pieces.
    """

    def __init__(
        self, source: PoseSource, body: Body, config: SynthesisConfig, *, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(body, config, device=device)
        self.source = source

    def __len__(self) -> int:
        """Poses in one epoch."""
        return len(self.source)

    def order(self, seed: int) -> Order:
        """The order in which poses come."""
        return SampleOrder(len(self), seed)

    @torch.no_grad()
    def batch(self, index: Tensor, draws: Draws, *, with_vertices: bool) -> Batch:
        """The people in the poses at `index` (B,) int64 of the source, one for each row of the draws.

        The draws must be for this synthesiser's device. Vertices cost a full body-model pass and are made only on
        request.
        """
        if len(index) != len(draws):
            raise ValueError(f"expected one pose index for each of the {len(draws)} rows of draws, got {len(index)}")
        config = self.config
        pose = self.source.poses(index, draws)
        pose = torch.where(draws.rand(1, 1) < config.mirror, mirror_pose(pose), pose)
        rotations = quaternion_to_matrix(turn_body(pose, self.tilt(draws)))
        rotations[:, 0] = self.camera_rotation(draws) @ rotations[:, 0]
        shape = (config.shape_sd * draws.randn(self.joint_model.num_shape)).clamp(-3, 3)
        posed = self.body_model.pose(rotations, shape)
        joints, regressed = self.joint_model.joints(posed)
        pelvis = regressed[:, HUMAN36M17.root_idx, None]
        every = torch.cat((joints, regressed, posed.joints), dim=1) - pelvis
        flat, focal = self.photograph(every, draws, framed=len(COCO19))
        keypoints, confidence = self.detected(flat, joints, draws)
        intrinsics = self.told(focal, draws)
        all_known = torch.ones(len(index), len(COCO19), dtype=torch.bool, device=self.device)
        return Batch(
            keypoints_px=keypoints,
            confidence=confidence,
            joints_m=joints - joints[:, COCO19.root_idx, None],
            regressed_m=regressed - pelvis,
            vertices_m=self.body_model.vertices(posed, pelvis[:, 0]) if with_vertices else None,
            joints_valid=all_known,
            regressed_valid=all_known[:, : len(HUMAN36M17)],
            mesh_valid=all_known[:, 0],
            ids=index.to(self.device),
            intrinsics=intrinsics,
        )


def _uniform(bounds: Sequence[float], draws: Draws) -> Tensor:
    low, high = bounds
    return low + (high - low) * draws.rand()


def with_derived(keypoints: Tensor, confidence: Tensor) -> tuple[Tensor, Tensor]:
    """COCO-17 to COCO-19: pelvis and neck from the (noisy) hips and shoulders. (B, 17, 2), (B, 17) -> 19."""
    for parts in COCO19.derived.values():
        index = list(COCO17.indices(parts))
        keypoints = torch.cat((keypoints, keypoints[:, index].mean(1, keepdim=True)), dim=1)
        confidence = torch.cat((confidence, confidence[:, index].amin(1, keepdim=True)), dim=1)
    return keypoints, confidence
