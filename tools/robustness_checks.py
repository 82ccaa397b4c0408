"""What can be said about the people recovered from a picture when nobody knows the truth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from data.noise import person_size
from data.pose_augmentation import within_limits
from data.prior import load_pose_prior, pose_to_tangent
from mesh.errors import InputError
from mesh.files import upright
from mesh.fitting import BodyFitter
from mesh.joints import COCO17, HUMAN36M17, MIN_CONFIDENCE, SMPL24, Keypoints
from mesh.metrics import aligned_error_mm, point_error_mm
from mesh.rotation import axis_angle_to_quaternion
from tools.robustness_overlap import Overlap, OverlapMeter

if TYPE_CHECKING:
    from data.detection import Detector
    from gcn.recovery import MeshRecovery, Recovered

SCALES = (0.5, 1.5)
MARGINS = (0.15, 0.5)  # of a crop around a person, in longer sides of the person's box
FLIP = "flip"
VARIANTS = (FLIP, *(f"scale {scale:g}" for scale in SCALES), *(f"crop {margin:g}" for margin in MARGINS))
_MAX_DISTANCE = 0.5  # mean over the joints, in person sizes, of two finds that are one person
_SWAPPED = list(COCO17.flip_permutation)
_MIN_SIDE_PX = 16  # of a picture in which it makes sense to look for people


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Mean distance of the vertices of two meshes in mm, both at their pelvis, and after similarity Procrustes."""

    root_mm: float
    aligned_mm: float


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Joints turned further than the poses behind the prior ever were, the root left out.

    `worst_deg`: the largest excess of any coordinate of the prior. `model_mm`: mean distance of the vertices from the
    body model's that the angles were read from.
    """

    beyond: tuple[str, ...]
    worst_deg: float
    model_mm: float


@dataclass(frozen=True, kw_only=True)
class PersonChecks:
    """One person. `box_px`: left, top, right, bottom of the detected joints.

    Reprojection error: mean distance of the recovered COCO joints from the detected ones, of those that were seen, in
    pixels and in sizes of the recovered person in the picture (`data.noise.person_size`). `agreements`: variant of the
    picture -> how the mesh found there agrees, None where this person was not found again; a variant that would be the
    picture itself is missing. All but the box and the flags is None for whom no mesh could be made.
    """

    box_px: tuple[float, float, float, float]
    flags: tuple[str, ...]
    reprojection_px: float | None = None
    reprojection_sizes: float | None = None
    limits: Limits | None = None
    overlap: Overlap | None = None
    agreements: dict[str, Agreement | None] = field(default_factory=dict)


@dataclass(frozen=True)
class _Variant:
    """Another picture of the same people: where its pixels lie in the original, and whom it is meant for (None: all).

    original = offset + pixel * step, for x and y; a negative step along x is a mirror.
    """

    name: str
    image: np.ndarray
    step: tuple[float, float]
    offset: tuple[float, float]
    person: int | None = None


class Checker:
    """Runs the detector, the recovery and all checks on one picture at a time."""

    def __init__(self, detector: Detector, recovery: MeshRecovery, *, max_people: int = 10) -> None:
        body = recovery.body
        if body.mirror is None:
            raise InputError(f"body {body.name} has no `mirror`, which the flip check needs; take the free body")
        self._detector, self._recovery, self._max_people = detector, recovery, max_people
        self.detector = detector.model
        self.faces, self._mirror = body.faces, body.mirror
        self._coco = body.regressor(COCO17)
        self._pelvis = body.regressor(HUMAN36M17)[HUMAN36M17.root_idx]
        self._fitter, self._prior = BodyFitter(body), load_pose_prior()
        self._overlap = OverlapMeter(body)

    def check(self, image: np.ndarray) -> tuple[list[PersonChecks], Recovered]:
        """The people in an (H, W, 3) uint8 RGB picture, and their meshes."""
        keypoints, people = self._find(image)
        agreements: list[dict[str, Agreement | None]] = [{} for _ in range(len(people))]
        for variant in variants(image, keypoints.positions_px) if people.valid.any() else ():
            self._compare(variant, keypoints, people, agreements)
        checks = []
        for k in range(len(people)):
            seen = keypoints.positions_px[k][keypoints.confidence[k] >= MIN_CONFIDENCE]
            points = seen if len(seen) else keypoints.positions_px[k]
            box = tuple(float(value) for value in (*points.min(0), *points.max(0)))
            checks.append(self._person(k, keypoints, people, box, agreements[k]))
        return checks, people

    def _find(self, image: np.ndarray) -> tuple[Keypoints, Recovered]:
        """COCO-17 joints, labeled left and right as the recovery used them, and meshes."""
        found = self._detector.detect(image, max_people=self._max_people)
        people = self._recovery.recover(found, exchange=True)
        keypoints, mirrored = found.to(COCO17), found.to(COCO17).mirrored_labels()
        used = Keypoints(
            positions_px=np.where(people.exchanged[:, None, None], mirrored.positions_px, keypoints.positions_px),
            confidence=np.where(people.exchanged[:, None], mirrored.confidence, keypoints.confidence),
            joint_set=COCO17,
        )
        return used, people

    def _person(
        self,
        k: int,
        keypoints: Keypoints,
        people: Recovered,
        box: tuple[float, ...],
        agreements: dict[str, Agreement | None],
    ) -> PersonChecks:
        left, top, right, bottom = box
        flags = tuple(people.flags(k))
        if not people.valid[k]:
            return PersonChecks(box_px=(left, top, right, bottom), flags=flags)
        placed = (self._coco @ people.vertices_px(k))[:, :2]
        seen = keypoints.confidence[k] >= MIN_CONFIDENCE
        error_px = float(np.linalg.norm(placed - keypoints.positions_px[k], axis=-1)[seen].mean())
        return PersonChecks(
            box_px=(left, top, right, bottom),
            flags=flags,
            reprojection_px=error_px,
            reprojection_sizes=error_px / float(person_size(torch.from_numpy(placed)[None])),
            limits=self._limits(people.vertices[k]),
            overlap=self._overlap(people.vertices[k]),
            agreements=agreements,
        )

    def _limits(self, vertices: np.ndarray) -> Limits:
        fitted = self._fitter(torch.from_numpy(upright(vertices))[None])
        pose = axis_angle_to_quaternion(fitted.pose)
        inside = within_limits(pose, self._prior)[0]
        angles = pose_to_tangent(pose, self._prior.reference)[0, self._prior.free]
        excess = torch.maximum(self._prior.lower - angles, angles - self._prior.upper)[self._prior.free >= 3]
        return Limits(
            beyond=tuple(name for name, ok in zip(SMPL24.names[1:], inside[1:]) if not ok),
            worst_deg=float(torch.rad2deg(excess.clamp_min(0).max())),
            model_mm=1000 * float(fitted.distance),
        )

    def _compare(
        self,
        variant: _Variant,
        keypoints: Keypoints,
        people: Recovered,
        agreements: list[dict[str, Agreement | None]],
    ) -> None:
        """Note how the meshes of a variant agree with those of the original."""
        wanted = [k for k in range(len(people)) if people.valid[k] and variant.person in (None, k)]
        if not wanted:
            return
        found, again = self._find(variant.image)
        positions = found.positions_px * variant.step + variant.offset
        vertices = again.vertices
        if variant.step[0] < 0:
            vertices = vertices[:, self._mirror] * np.array((-1, 1, 1), np.float32)
        partner = match(keypoints.positions_px, positions)
        for k in wanted:
            other = partner[k]
            lost = other is None or not again.valid[other]
            agreements[k][variant.name] = None if lost else self._agreement(vertices[other], people.vertices[k])

    def _agreement(self, vertices: np.ndarray, reference: np.ndarray) -> Agreement:
        a, b = (torch.from_numpy(v - self._pelvis @ v)[None] for v in (vertices, reference))
        return Agreement(root_mm=float(point_error_mm(a, b)), aligned_mm=float(aligned_error_mm(a, b)))


def match(first_px: np.ndarray, second_px: np.ndarray) -> list[int | None]:
    """Which of the second people is the same as each of the first, by place: (N, 17, 2), (M, 17, 2) px.

    Left and right may be exchanged. Each person is matched once, such that the distances are least; None if nobody is
    near.
    """
    from scipy.optimize import linear_sum_assignment

    result: list[int | None] = [None] * len(first_px)
    if not len(first_px) or not len(second_px):
        return result
    size = person_size(torch.from_numpy(first_px)).numpy()
    both = np.stack([second_px, second_px[:, _SWAPPED]])[:, None]  # (2, 1, M, 17, 2)
    distance = np.linalg.norm(both - first_px[:, None], axis=-1).mean(-1).min(0) / size[:, None]
    for a, b in zip(*linear_sum_assignment(np.minimum(distance, 2 * _MAX_DISTANCE))):
        if distance[a, b] <= _MAX_DISTANCE:
            result[a] = int(b)
    return result


def variants(image: np.ndarray, positions_px: np.ndarray) -> Iterator[_Variant]:
    """The picture mirrored, smaller, larger, and cut around each person, (N, J, 2) px."""
    height, width = image.shape[:2]
    yield _Variant(FLIP, np.ascontiguousarray(image[:, ::-1]), (-1, 1), (width, 0))
    for scale in SCALES:
        if scale * min(height, width) >= _MIN_SIDE_PX:
            small = resized(image, (round(scale * width), round(scale * height)))
            step = (width / small.shape[1], height / small.shape[0])
            yield _Variant(f"scale {scale:g}", small, step, (0, 0))
    for k, points in enumerate(positions_px):
        for margin in MARGINS:
            reach = margin * np.ptp(points, axis=0).max()
            left, top = np.clip(np.floor(points.min(0) - reach), 0, (width, height)).astype(int)
            right, bottom = np.clip(np.ceil(points.max(0) + reach), 0, (width, height)).astype(int)
            if min(right - left, bottom - top) >= _MIN_SIDE_PX and (right - left, bottom - top) != (width, height):
                part = np.ascontiguousarray(image[top:bottom, left:right])
                yield _Variant(f"crop {margin:g}", part, (1, 1), (float(left), float(top)), person=k)


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The picture at another (width, height)."""
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
