"""From named 2D joints to meshes: the one path that the command lines and the Python API share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gcn.integer_linear import read_integers
from gcn.labeling import LabelingNet, exchanged_probability
from gcn.mirroring import MirrorAveraged
from gcn.pose2mesh import JOINTS, ModelConfig, Pose2Mesh, load_labeling, load_pose2mesh, load_uncertainty
from gcn.uncertainty import ErrorNet
from mesh.body import Body, load_body
from mesh.camera import (
    apply_weak_perspective,
    diagonal_intrinsics,
    fit_weak_perspective,
    place_before_camera,
    project_all,
)
from mesh.errors import require
from mesh.joints import COCO17, HUMAN36M17, LARGEST_PX, MIN_CONFIDENCE, Keypoints
from mesh.protocols import JointRegression

MIN_JOINTS = 5
# Beyond lies a tenth of the held-out people, and of their joints, with detector-like 2D; their true errors are 1.7 and
# 2.5 times those of the others (docs/experiments.md).
UNSURE_EXPECTED_M = 0.12  # mean expected error of a person's joints
UNSURE_JOINT_M = 0.15  # expected error of a joint
UNSURE_SPREAD_M = 0.05  # spread, where no network tells expected errors
NEAREST_M = 0.1  # of a mesh before a perspective camera
_JUDGED = [k for k in range(len(HUMAN36M17)) if k != HUMAN36M17.root_idx]


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """N people, camera frame (x right, y down, z forward), relative to the Human3.6M pelvis.

    `vertices` (N, V, 3) and `joints` (N, 17, 3; human36m17) in metres; `camera` (N, 3) scale in px/m and shift in px
    of the weak-perspective camera; `intrinsics` (N, 4) px, focal lengths and principal point of the perspective camera
    that was told or assumed, NaN where the size of the picture is not known or the person lies far outside of an
    assumed one, and `place` (N, 3) metres, where the pelvis stands before it: NaN also where no such place exists;
    `exchanged` (N,) True where left and right of the 2D joints were exchanged;
    `spread` (N,) metres, mean distance of the vertices from those found in the mirror image: large where the networks
    are unsure; 0 on a body without a mirror table;
    `expected_error` (N, 17) metres, how far off each joint probably is, 0 at the pelvis, which all is relative to; NaN
    where no network tells (own weights without one, a body without a mirror table);
    `misfit` (N,) distance of the mesh's joints from the 2D joints in the picture, in person sizes (root of the area of
    the joints' box, by the weak-perspective camera);
    `exchange_probability` (N,) that the detector had exchanged them;
    `valid` (N,) False where too few joints were known or all lay in one place: the rest of that person is then NaN.
    """

    vertices: np.ndarray
    joints: np.ndarray
    camera: np.ndarray
    intrinsics: np.ndarray
    place: np.ndarray
    exchanged: np.ndarray
    exchange_probability: np.ndarray
    misfit: np.ndarray
    spread: np.ndarray
    expected_error: np.ndarray
    valid: np.ndarray

    def __len__(self) -> int:
        return len(self.vertices)

    def flags(self, person: int) -> list[str]:
        """What a reader of the result should know about a person."""
        if not self.valid[person]:
            return ["not_recoverable"]
        expected = self.mean_expected_error(person)
        is_unsure = self.spread[person] > UNSURE_SPREAD_M if np.isnan(expected) else expected > UNSURE_EXPECTED_M
        flags = {"left_right_exchanged": self.exchanged[person], "unsure": is_unsure}
        return [name for name, holds in flags.items() if holds]

    def mean_expected_error(self, person: int) -> float:
        """Metres, over the joints but for the pelvis; NaN where nothing is known about it."""
        return float(self.expected_error[person, _JUDGED].mean())

    def unsure_joints(self, person: int) -> list[str]:
        """Names of the joints that are probably off by more than `UNSURE_JOINT_M`."""
        return [HUMAN36M17.names[k] for k in np.flatnonzero(self.expected_error[person] > UNSURE_JOINT_M)]

    def vertices_px(self, person: int) -> np.ndarray:
        """The mesh in the picture, (V, 3): x, y and depth in px, by the perspective camera where there is one."""
        vertices = torch.from_numpy(self.vertices[person : person + 1])
        placed = apply_weak_perspective(vertices, torch.from_numpy(self.camera[person : person + 1]))
        if self.has_place[person]:
            intrinsics, place = (torch.from_numpy(a[person : person + 1]) for a in (self.intrinsics, self.place))
            placed[..., :2] = project_all(vertices + place[:, None], intrinsics)
        return placed[0].numpy()

    @property
    def has_camera(self) -> np.ndarray:
        """For whom a perspective camera was told or assumed, (N,) bool."""
        return np.isfinite(self.intrinsics).all(-1)

    @property
    def has_place(self) -> np.ndarray:
        """Who stands before a perspective camera, (N,) bool."""
        return np.isfinite(self.place).all(-1)


class NoInitialisation(TorchFunctionMode):
    """Within it networks are built without the random numbers that loading replaces anyway."""

    def __torch_function__(
        self, func: Callable, types: object, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The random functions of `torch.nn.init` give their tensor back as it is; all others work as ever."""
        named = dict(kwargs or {})
        if getattr(func, "__module__", None) == "torch.nn.init":
            return named["tensor"] if "tensor" in named else args[0]
        return func(*args, **named)


class MeshRecovery:
    """A trained Pose2Mesh with its body and the left/right network, ready to be used."""

    def __init__(
        self,
        model: Pose2Mesh,
        labeling: tuple[LabelingNet, ModelConfig],
        body: Body,
        device: torch.device | str = "cpu",
        uncertainty: ErrorNet | None = None,
    ) -> None:
        self.model, self.body, self.device = model.eval().to(device), body, torch.device(device)
        self._labeling, self._labeling_config = labeling[0].eval().to(device), labeling[1]
        self._uncertainty = None if uncertainty is None else uncertainty.eval().to(device)
        self._averaged = None if body.mirror is None else MirrorAveraged(self.model, body).to(device)
        self._regress = JointRegression(body, HUMAN36M17, COCO17, device=self.device)

    @classmethod
    def from_pretrained(
        cls, weights: str | Path | None = None, *, body: str | Path | None = None, device: torch.device | str = "cpu"
    ) -> MeshRecovery:
        """The weights that ship on the free body, or others on their body.

        Left and right are judged by the `labeling.safetensors` in the folder of the weights, if one is there, else by
        the network that ships. Expected errors come from the `uncertainty.safetensors` there, if there is one: they
        must belong to these weights. A body without a mirror table has none.
        """
        loaded = load_body(body)
        with resources.as_file(resources.files("gcn") / "weights") as folder, NoInitialisation():
            chosen = Path(weights or folder / "pose2mesh.safetensors")
            model, judge = load_pose2mesh(chosen, loaded), chosen.with_name("uncertainty.safetensors")
            uncertainty = load_uncertainty(judge, model) if loaded.mirror is not None and judge.is_file() else None
            own = chosen.with_name("labeling.safetensors")
            labeling = load_labeling(own if own.is_file() else folder / "labeling.safetensors")
            if torch.device(device).type == "cpu":
                read_integers(model)
            return cls(model, labeling, loaded, device, uncertainty)

    def recover(
        self, keypoints: Keypoints, *, batch_size: int = 256, exchange: bool = False, focal_px: float | None = None
    ) -> Recovered:
        """Meshes of all people, any joint set that has hips and shoulders.

        Detectors now and then take left for right in the whole body. With `exchange`, the labeling that
        the left/right network finds more probable is used, under the prior odds `gcn.labeling.PRIOR_EXCHANGED`.

        `focal_px`: the focal length of the picture, whose axis is taken to go through the middle; by default the
        picture's diagonal. It tells from where a person off the middle is seen. Keypoints without an `image_size` are
        taken as those of a picture around the person, and so is who lies a picture's side or more off an assumed
        camera's axis: they are of another picture.
        """
        if focal_px is not None:
            require(1 <= focal_px <= LARGEST_PX, f"a focal length lies between 1 and {LARGEST_PX:g} px, got {focal_px}")
            require(keypoints.image_size is not None, "a focal length needs keypoints whose image size is known")
        coco = keypoints.to(JOINTS)
        if not len(coco):
            return self._nobody()
        batches = np.array_split(np.arange(len(coco)), -(-len(coco) // batch_size))
        parts = [self._recover_batch(coco.select(some), exchange, focal_px) for some in batches]
        return Recovered(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Recovered)})

    def _nobody(self) -> Recovered:
        nothing, no = np.zeros((0, 3), np.float32), np.zeros(0, bool)
        return Recovered(
            vertices=np.zeros((0, self.body.num_vertices, 3), np.float32),
            joints=np.zeros((0, len(HUMAN36M17), 3), np.float32),
            camera=nothing, intrinsics=np.zeros((0, 4), np.float32), place=nothing,
            exchanged=no, exchange_probability=nothing[:, 0], misfit=nothing[:, 0],
            spread=nothing[:, 0], expected_error=np.zeros((0, len(HUMAN36M17)), np.float32), valid=no,
        )  # fmt: skip

    @torch.inference_mode()
    def _recover_batch(self, keypoints: Keypoints, exchange: bool, focal_px: float | None) -> Recovered:
        positions = torch.from_numpy(keypoints.positions_px).to(self.device, torch.float32)
        confidence = torch.from_numpy(keypoints.confidence).to(self.device, torch.float32)
        valid = (confidence[:, : len(COCO17)] >= MIN_CONFIDENCE).sum(1) >= MIN_JOINTS
        positions = torch.where(confidence[..., None] > 0, positions, 0.0)
        intrinsics = _intrinsics(positions, confidence, keypoints.image_size, focal_px)
        has_camera = intrinsics[:, 0] > 0
        as_labeled = self._labeling_config.see(positions, confidence, intrinsics).features
        probability = exchanged_probability(self._labeling(as_labeled))
        exchanged = (probability > 0.5) & exchange
        mirrored = list(JOINTS.flip_permutation)
        positions = torch.where(exchanged[:, None, None], positions[:, mirrored], positions)
        confidence = torch.where(exchanged[:, None], confidence[:, mirrored], confidence)
        features = self.model.config.see(positions, confidence, intrinsics).features
        valid &= features[..., :2].abs().amax((1, 2)) > 0
        vertices, spread, expected = self._vertices(positions, confidence, intrinsics, features)
        joints, seen = (found.float() for found in self._regress(vertices))
        pelvis = joints[:, HUMAN36M17.root_idx, None]
        vertices, joints, seen = vertices - pelvis, joints - pelvis, seen - pelvis
        known = confidence[:, : len(COCO17)]
        picture = positions[:, : len(COCO17)]
        camera = fit_weak_perspective(seen, picture, known)
        place = place_before_camera(seen, picture, known, intrinsics)
        nearest = vertices[..., 2].amin(1) + place[:, 2]
        place = place.masked_fill(~(nearest > NEAREST_M)[:, None], torch.nan)  # partly beside or behind the camera
        has_place = place.isfinite().all(1)
        weak = apply_weak_perspective(seen, camera)[..., :2]
        perspective = project_all(seen + place.nan_to_num(1.0)[:, None], intrinsics)
        placed = torch.where(has_place[:, None, None], perspective, weak)
        distance = (placed - picture).norm(dim=-1)
        misfit = (known * distance).sum(1) / known.sum(1).clamp_min(1e-6) / _size_px(weak)
        valid &= (camera[:, 0] > 0) & misfit.isfinite()
        missing = ~valid
        return Recovered(
            vertices=vertices.masked_fill(missing[:, None, None], torch.nan).cpu().numpy(),
            joints=joints.masked_fill(missing[:, None, None], torch.nan).cpu().numpy(),
            camera=camera.masked_fill(missing[:, None], torch.nan).cpu().numpy(),
            intrinsics=intrinsics.masked_fill(~(has_camera & valid)[:, None], torch.nan).cpu().numpy(),
            place=place.masked_fill(missing[:, None], torch.nan).cpu().numpy(),
            exchanged=(exchanged & valid).cpu().numpy(),
            exchange_probability=probability.masked_fill(missing, torch.nan).cpu().numpy(),
            misfit=misfit.masked_fill(missing, torch.nan).cpu().numpy(),
            spread=spread.masked_fill(missing, torch.nan).cpu().numpy(),
            expected_error=expected.masked_fill(missing[:, None], torch.nan).cpu().numpy(),
            valid=valid.cpu().numpy(),
        )

    def _vertices(
        self, positions: Tensor, confidence: Tensor, intrinsics: Tensor, features: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, V, 3), averaged with those found in the mirror image, their mean distance from these (B,), and how far
        off the joints probably are (B, 17); metres.
        """
        expected = positions.new_full((len(positions), len(HUMAN36M17)), torch.nan)
        if self._averaged is None:
            vertices = self.model(positions, confidence, intrinsics)[1]
            return vertices, vertices.new_zeros(len(vertices)), expected
        (lifted, seen), (lifted_mirrored, mirrored) = self._averaged.looks(positions, confidence, intrinsics)
        if self._uncertainty is not None:
            expected = self._uncertainty(features, lifted, lifted_mirrored)
        return (seen + mirrored) / 2, (seen - mirrored).norm(dim=-1).mean(1), expected


def _intrinsics(
    positions: Tensor, confidence: Tensor, image_size: tuple[int, int] | None, focal_px: float | None
) -> Tensor:
    """What is told or assumed of each person's camera, (B, 4) px; 0: nothing."""
    if image_size is None:
        return positions.new_zeros(len(positions), 4)
    assumed = positions.new_tensor(diagonal_intrinsics(image_size)).repeat(len(positions), 1)
    if focal_px is not None:
        assumed[:, :2] = focal_px
        return assumed
    known = (confidence > 0).to(positions)[..., None]
    middle = (known * positions).sum(1) / known.sum(1).clamp_min(1)
    elsewhere = ((middle - assumed[:, 2:]).abs() > positions.new_tensor(image_size)).any(1)
    return assumed.masked_fill(elsewhere[:, None], 0.0)


def _size_px(points: Tensor) -> Tensor:
    """Root of the area of the bounding box, (B, J, 2) -> (B,)."""
    extent = points.amax(1) - points.amin(1)
    return extent.prod(-1).clamp_min(1e-6).sqrt()
