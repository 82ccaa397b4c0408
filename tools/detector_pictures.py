"""Pictures of people with known 2D joints, to measure the detector on: dressed bodies before photos or plain walls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.augmentation import mirror_pose, turn_body
from data.detection import Detector
from data.draws import Draws, step_generator
from data.images import find_images, read_image
from data.occlusion import cover_m
from data.order import SampleOrder
from data.synthesis import IMAGE_HEIGHT_PX, PoseSource, Studio, SynthesisConfig
from mesh.body import Body
from mesh.joints import COCO17, COCO19, HUMAN36M17, SMPL24
from mesh.normals import vertex_normals
from mesh.rasterise import Fragments, rasterise
from mesh.render import light
from mesh.rotation import quaternion_to_matrix

SIDE_PX = 512  # of a picture; the detector looks at a person at 256
_SAMPLES = ("park.jpg", "balance.jpg")
_SUPERSAMPLING = 2
_GAMMA = 2.2
_WALL_SHARE = 0.3  # of the pictures that have no photo behind, where there are photos
_CROP_SHARE = (0.35, 1.0)  # of a photo's short side
_CROP_TRIES = 30

_SKIN = ((244, 208, 183), (224, 172, 138), (198, 140, 102), (141, 88, 58), (92, 56, 40))
_HAIR = ((28, 24, 22), (66, 44, 30), (118, 80, 46), (190, 156, 100), (150, 146, 142))
_SHIRT_PARTS = ("spine1", "spine2", "spine3", "left_collar", "right_collar", "left_shoulder", "right_shoulder")
_TROUSER_PARTS = ("pelvis", "left_hip", "right_hip")
_FOREARMS, _SHINS = ("left_elbow", "right_elbow"), ("left_knee", "right_knee")
_SHOE_PARTS = ("left_ankle", "right_ankle", "left_foot", "right_foot")


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One person: `image` (S, S, 3) uint8, and where the COCO-17 joints truly are.

    `joints_px` (17, 2); `occluded` (17,) hidden behind the body, of the joints in the picture; `facing_deg` between
    the chest's direction and that to the camera: 0 frontal, 180 from behind; `tilted`: the body was turned as a whole.
    In metres, camera frame, relative to the pelvis of human36m17: `coco_m` (19, 3), `human36m_m` (17, 3), `vertices_m`
    (V, 3); `pose_idx` is the pose's number in its source.
    """

    image: np.ndarray
    joints_px: np.ndarray
    coco_m: np.ndarray
    human36m_m: np.ndarray
    vertices_m: np.ndarray
    pose_idx: int
    occluded: np.ndarray
    facing_deg: float
    tilted: bool

    @property
    def inside(self) -> np.ndarray:
        """Which joints lie in the picture, (17,) bool."""
        return np.asarray(((self.joints_px >= 0) & (self.joints_px < len(self.image))).all(-1))


@dataclass(frozen=True, kw_only=True)
class Backdrop:
    """A photo (H, W, 3) uint8, and the boxes (N, 4) left, top, right, bottom px of the people in it, to keep clear."""

    image: np.ndarray
    people_px: np.ndarray


def photo_backdrops(given: Sequence[Path] | None, detector: Detector) -> list[Backdrop]:
    """Photos, or those in folders, with the places of the people in them; None: the two that ship."""
    folder = Path(__file__).parents[1] / "data" / "samples"
    inputs = [folder / name for name in _SAMPLES] if given is None else given
    paths = [path for entry in inputs for path in (find_images(entry) if entry.is_dir() else [entry])]
    backdrops = []
    for path in paths:
        image = read_image(path)
        joints_px = detector.detect(image, tiles=True).positions_px
        boxes = np.concatenate((joints_px.min(1), joints_px.max(1)), axis=1) if len(joints_px) else np.empty((0, 4))
        backdrops.append(Backdrop(image=image, people_px=boxes))
    return backdrops


class PictureMaker(Studio):
    """Draws people as training does (bodies and cameras of a SynthesisConfig), but sees their whole surface."""

    def __init__(
        self, source: PoseSource, body: Body, config: SynthesisConfig, *, backdrops: Sequence[Backdrop], side_px: int
    ) -> None:
        super().__init__(body, config)
        self.source, self.body, self.backdrops, self.side_px = source, body, backdrops, side_px

    def shots(self, count: int, seed: int) -> Iterator[Shot]:
        """The first `count` people; each is a pure function of the seed and its number."""
        order = SampleOrder(len(self.source), seed)
        for number in range(count):
            draws = Draws(1, step_generator(seed, number))
            yield self._shot(order.indices(number, 1), draws, np.random.default_rng((seed, number)))

    @torch.no_grad()
    def _shot(self, index: Tensor, draws: Draws, rng: np.random.Generator) -> Shot:
        pose = self.source.poses(index, draws)
        pose = torch.where(draws.rand(1, 1) < self.config.mirror, mirror_pose(pose), pose)
        tilt = self.tilt(draws)
        rotations = quaternion_to_matrix(turn_body(pose, tilt))
        rotations[:, 0] = self.camera_rotation(draws) @ rotations[:, 0]
        shape = (self.config.shape_sd * draws.randn(self.joint_model.num_shape)).clamp(-3, 3)
        joints, regressed = self.joint_model(rotations, shape)
        points = torch.cat((joints, regressed, self.body_model(rotations, shape)[0]), dim=1)
        points = points - regressed[:, HUMAN36M17.root_idx, None]
        flat = self.photograph(points, draws)[0] * (self.side_px / IMAGE_HEIGHT_PX)
        placed = torch.cat((flat, points[..., 2:]), dim=-1)[0].double().numpy()  # x, y in px, depth in m
        first = len(COCO19) + len(HUMAN36M17)
        coco_m, human36m_m, vertices_m = np.split(points[0].double().numpy(), (len(COCO19), first))
        image, fragments = self._picture(placed[first:], vertices_m, rng)
        return Shot(
            image=image,
            joints_px=placed[: len(COCO17), :2],
            occluded=occluded(placed[: len(COCO17)], fragments),
            coco_m=coco_m,
            human36m_m=human36m_m,
            vertices_m=vertices_m,
            pose_idx=int(index),
            facing_deg=facing_deg(coco_m),
            tilted=bool(tilt.abs().sum() > 0),
        )

    def _picture(
        self, placed: np.ndarray, vertices_m: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, Fragments]:
        """The body in clothes of random colours; (V, 3) px and m, (V, 3) m -> picture, and what is where in it."""
        factor = _SUPERSAMPLING
        size = (self.side_px * factor, self.side_px * factor)
        fragments = rasterise(placed * (factor, factor, 1), self.body.faces, size, cull_back_faces=True)
        albedo = (dress(self.body, rng) / 255) ** _GAMMA
        colours = light(vertex_normals(vertices_m, self.body.faces), albedo)
        covered = fragments.face_idx >= 0
        corners = self.body.faces[fragments.face_idx[covered]]
        canvas = self._backdrop(rng).repeat(factor, axis=0).repeat(factor, axis=1).astype(np.float32)
        canvas[covered] = np.einsum("nk,nkc->nc", fragments.barycentric[covered], colours[corners])
        mean = canvas.reshape(self.side_px, factor, self.side_px, factor, 3).mean((1, 3))
        return np.clip(mean + rng.normal(0, 2, mean.shape), 0, 255).astype(np.uint8), fragments

    def _backdrop(self, rng: np.random.Generator) -> np.ndarray:
        """What is behind the person, (S, S, 3) uint8."""
        if self.backdrops and rng.random() >= _WALL_SHARE:
            backdrop = self.backdrops[int(rng.integers(len(self.backdrops)))]
            for _ in range(_CROP_TRIES):
                box = _random_square(backdrop.image, rng)
                if not any(_overlap(box, person) for person in backdrop.people_px):
                    return _resized(backdrop.image, box, self.side_px)
        top, bottom = rng.uniform(40, 225, (2, 1)) + rng.uniform(-30, 30, (2, 3))  # of no strong colour
        rows = np.linspace(0, 1, self.side_px)[:, None, None]
        return np.broadcast_to(top + (bottom - top) * rows, (self.side_px, self.side_px, 3)).astype(np.uint8)


def dress(body: Body, rng: np.random.Generator) -> np.ndarray:
    """A colour for each vertex, (V, 3) in 0..255: skin, hair, eyes, lips, shirt, trousers and shoes."""
    part = body.skinning.argmax(axis=1)
    x, y, z = body.template.T
    face = dict(zip(COCO17.names, body.regressor(COCO17) @ body.template))
    is_head = part == SMPL24.index("head")
    eyes_y, ears_z = face["left_eye"][1], face["left_ear"][2]
    skin = np.array(_SKIN[rng.integers(len(_SKIN))], float)
    colours = np.tile(skin, (len(part), 1))
    colours[is_head & ((y > eyes_y + 0.055) | ((z < ears_z + 0.01) & (y > eyes_y - 0.08)))] = _HAIR[
        rng.integers(len(_HAIR))
    ]
    for side in ("left", "right"):
        eye = face[f"{side}_eye"]
        colours[is_head & (np.linalg.norm(body.template - eye, axis=1) < 0.014)] = (40, 30, 28)
        brow = (abs(x - eye[0]) < 0.022) & (abs(y - eyes_y - 0.024) < 0.005) & (z > ears_z + 0.05)
        colours[is_head & brow] = 0.45 * skin
    mouth = (abs(x) < 0.022) & (abs(y - face["nose"][1] + 0.037) < 0.007) & (z > ears_z + 0.05)
    colours[is_head & mouth] = skin * (0.8, 0.5, 0.5)
    shirt, trousers, shoes = rng.uniform(15, 240, (3, 3))
    for parts, colour, is_worn in (
        (_SHIRT_PARTS, shirt, True),
        (_FOREARMS, shirt, rng.random() < 0.5),
        (_TROUSER_PARTS, trousers, True),
        (_SHINS, trousers, rng.random() < 0.75),
        (_SHOE_PARTS, shoes, True),
    ):
        if is_worn:
            colours[np.isin(part, SMPL24.indices(parts))] = colour
    return colours


def occluded(joints: np.ndarray, fragments: Fragments) -> np.ndarray:
    """Which joints another part of the body hides, (17, 3) px, px, m -> (17,) bool; False outside of the picture.

    `fragments` may be finer than the pixels. A joint is hidden if the surface there is nearer than its own cover.
    """
    height, width = fragments.depth.shape
    covers_m = np.array([cover_m(name) for name in COCO17.names])
    column, row = (np.floor(joints[:, axis] * _SUPERSAMPLING).astype(int) for axis in (0, 1))
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    surface_m = fragments.depth[row.clip(0, height - 1), column.clip(0, width - 1)]
    return inside & (joints[:, 2] - surface_m > covers_m)


def facing_deg(joints_m: np.ndarray) -> float:
    """Angle between the chest's direction and that to the camera: 0 frontal, 180 from behind; (19, 3) camera frame."""
    at = dict(zip(COCO19.names, joints_m))
    across = at["left_shoulder"] + at["left_hip"] - at["right_shoulder"] - at["right_hip"]
    forward = np.cross(across, at["neck"] - at["pelvis"])
    return float(np.degrees(np.arccos(np.clip(-forward[2] / max(np.linalg.norm(forward), 1e-12), -1, 1))))


def _random_square(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    side = rng.uniform(*_CROP_SHARE) * min(height, width)
    left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
    return np.array((left, top, left + side, top + side))


def _overlap(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((np.maximum(a[:2], b[:2]) < np.minimum(a[2:], b[2:])).all())


def _resized(image: np.ndarray, box: np.ndarray, side_px: int) -> np.ndarray:
    from PIL import Image

    size = (side_px, side_px)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, box=tuple(box)))
