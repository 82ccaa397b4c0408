"""People in a picture: BlazePose's detection network finds them, its landmark network finds their joints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.blazepose import (
    DETECTION_SIDE,
    LANDMARK_SIDE,
    NUM_LANDMARKS,
    Candidates,
    Roi,
    crop,
    decode_detections,
    decode_landmarks,
    merge_overlapping,
    roi_of_body,
    shrink,
)
from data.detector_files import DetectorFiles, detector_paths
from mesh.errors import InputError
from mesh.joints import BLAZEPOSE33, Keypoints

_TORSO = list(BLAZEPOSE33.indices(("left_shoulder", "right_shoulder", "left_hip", "right_hip")))
_MID_HIP, _BODY_END = 2, 3  # of a candidate's points
_MIN_SCORE_WHOLE = 0.5  # of a detection in the whole picture
_MIN_SCORE_TILE = 0.7  # in tiles, where parts of bodies and of the background look like people more often
_MIN_POSE_SCORE = 0.5  # the landmark network's belief that there is a person in the crop
_MIN_CONFIDENCE = 0.5  # of a joint that counts as seen
_MIN_TORSO_SEEN = 2  # of the four torso joints
_MIN_INSIDE_TILE = 0.6  # share of a tile person's joints that lie in the picture
_TILE_SIDES = (0.6, 0.35)  # of the picture's long side
# The network finds people from a quarter of the long side on. Whoever stands up to twice as far away as the nearest
# person is found with that person, if the nearest one fills half of the long side.
_NEAR_SIZE = 0.5
_STEADY = 0.93  # similarity of two looks at one person; seen: right poses from 0.94 on, mixtures of two up to 0.91
_SAME_POSE = 0.3  # similarity of two finds of one person
_SAME_PLACE = 0.7  # share of the smaller one's box that lies in the other's, of two finds of one person
# A joint so near the border, in person sizes, is as a rule one that was cut off: on rendered people this takes back
# 4 in 10 of those and 0.6 % of the true ones.
_BORDER = 0.04
_SAME_JOINT = 0.15  # person sizes between two looks at one joint
_JOINT_SPREAD = 0.2  # twice COCO's typical joint sigma, in body sizes


@dataclass(frozen=True, kw_only=True)
class Person:
    """One person found: `positions_px` (33, 2), `confidence` (33,), and how far to trust it.

    `world_m` (33, 3) is the detector's own guess in 3D: metres, camera frame, relative to the middle of the hips.
    `score` is the network's belief that `roi` shows a person, `steadiness` the similarity of the joints to those from a
    slightly different crop: both in [0, 1].
    """

    positions_px: np.ndarray
    confidence: np.ndarray
    world_m: np.ndarray
    score: float
    steadiness: float
    roi: Roi

    @property
    def is_steady(self) -> bool:
        return self.steadiness >= _STEADY

    @property
    def is_plausible(self) -> bool:
        torso_seen = (self.confidence[_TORSO] >= _MIN_CONFIDENCE).sum()
        return self.score >= _MIN_POSE_SCORE and bool(torso_seen >= _MIN_TORSO_SEEN)

    @property
    def size_px(self) -> float:
        """Longer side of the box around the joints."""
        return float(np.ptp(self.positions_px, axis=0).max())


class Detector:
    """Finds people and their 2D joints in pictures.

    Opens the weight files at once: InputError if they are missing or changed (see `data.detector_files`). Without
    `files` those in the cache are taken, of the heavy landmark network if it was fetched. `model` says which it is.
    """

    def __init__(self, files: DetectorFiles | None = None, *, num_threads: int = 1) -> None:
        files = files or detector_paths()
        self.model = files.model
        self._detection = _Network(files.pose_detection, num_threads)
        self._landmarks = _Network(files.pose_landmarks, num_threads)

    def detect(self, image: np.ndarray, *, max_people: int = 10, tiles: bool | None = None) -> Keypoints:
        """The people as blazepose33 keypoints, surest first; of length 0 if there is nobody.

        See `people`. A joint outside of the picture or at its border is a guess of the network and has confidence 0.
        """
        people = self.people(image, max_people=max_people, tiles=tiles)
        return Keypoints(
            positions_px=np.array([p.positions_px for p in people], np.float32).reshape(-1, NUM_LANDMARKS, 2),
            confidence=np.array([p.confidence for p in people], np.float32).reshape(-1, NUM_LANDMARKS),
            joint_set=BLAZEPOSE33,
            image_size=(image.shape[1], image.shape[0]),
        )

    def people(self, image: np.ndarray, *, max_people: int = 10, tiles: bool | None = None) -> list[Person]:
        """The people in an (H, W, 3) uint8 RGB picture: those that the whole picture shows well, then the others.

        The network sees the picture at 224 pixels, and finds people from about a quarter of the long side on.
        `tiles` looks at overlapping parts of it too (about half a second) and adds whom only they show. By default
        that is done unless the first look finds somebody of at least half the long side and nobody doubtful.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(f"expected an image of shape (H, W, 3), uint8 RGB, got {image.shape}, {image.dtype}")
        height, width = image.shape[:2]
        whole = Roi(np.array([width / 2, height / 2]), max(width, height))
        finds = [p for p in self._finds(image, [whole], _MIN_SCORE_WHOLE) if p.is_plausible]
        people: list[Person] = []
        for find in finds:
            if find.is_steady and all(pose_similarity(find.positions_px, p.positions_px) < _SAME_POSE for p in people):
                people.append(find)
        doubtful = [find for find in finds if not find.is_steady]
        near = any(person.size_px >= _NEAR_SIZE * max(width, height) for person in people)
        if (doubtful or not near) if tiles is None else tiles:
            people += _clear_of(people, self._in_tiles(image))
        people += _clear_of(people, doubtful)
        return [self._also_in_mirror(image, person) for person in people[:max_people]]

    def _in_tiles(self, image: np.ndarray) -> list[Person]:
        """Who is seen well and almost whole in parts of the picture."""
        size_px = (image.shape[1], image.shape[0])
        finds = self._finds(image, tile_rois(*size_px), _MIN_SCORE_TILE)
        return [
            find
            for find in finds
            if find.is_plausible
            and find.is_steady
            and _is_inside(find.positions_px, size_px).mean() >= _MIN_INSIDE_TILE
        ]

    def _finds(self, image: np.ndarray, rois: Sequence[Roi], min_score: float) -> list[Person]:
        """Everything that looks like a person in these parts of the picture, surest detection first."""
        factor = max(1, int(min(roi.side_px for roi in rois) / DETECTION_SIDE))
        small = shrink(image, factor)  # once, not for each part of it
        parts = [self._candidates(small, roi.scaled(1 / factor), min_score) for roi in rois]
        scores, points = np.concatenate([c.scores for c in parts]), np.concatenate([c.points * factor for c in parts])
        order = np.argsort(-scores, kind="stable")
        found = merge_overlapping(Candidates(scores[order], points[order]))
        return [self._person(image, roi_of_body(p[_MID_HIP], p[_BODY_END])) for p in found.points]

    def _candidates(self, image: np.ndarray, roi: Roi, min_score: float) -> Candidates:
        boxes, logits = self._detection(crop(image, roi, DETECTION_SIDE) * 2 - 1)
        found = merge_overlapping(decode_detections(boxes, logits, min_score))
        return Candidates(found.scores, roi.to_image(found.points))

    def _person(self, image: np.ndarray, roi: Roi) -> Person:
        """Two looks: the joints in `roi` give a better crop, which the person is read from."""
        first, _, _, _ = self._look(image, roi)
        roi = roi_of_body(first[NUM_LANDMARKS], first[NUM_LANDMARKS + 1])
        second, world_m, confidence, score = self._look(image, roi)
        joints_px, size_px = second[:NUM_LANDMARKS], (image.shape[1], image.shape[0])
        return Person(
            positions_px=joints_px,
            confidence=np.where(_is_inside(joints_px, size_px, _BORDER), confidence[:NUM_LANDMARKS], 0),
            world_m=world_m[:NUM_LANDMARKS],
            score=score,
            steadiness=pose_similarity(first[:NUM_LANDMARKS], joints_px),
            roi=roi,
        )

    def _also_in_mirror(self, image: np.ndarray, person: Person) -> Person:
        """A third look, at the mirrored crop, merged with the second."""
        return merge_looks(person, *self._look_mirrored(image, person.roi), (image.shape[1], image.shape[0]))

    def _look_mirrored(self, image: np.ndarray, roi: Roi) -> tuple[np.ndarray, np.ndarray]:
        """Joints (33, 2) in pixels of the picture and their confidence (33,), found in the mirrored crop."""
        mirrored = np.ascontiguousarray(crop(image, roi, LANDMARK_SIDE)[:, ::-1])
        raw, _pose_score, _mask, heat_maps, _world = self._landmarks(mirrored)
        points, confidence = decode_landmarks(raw, heat_maps)
        order = list(BLAZEPOSE33.flip_permutation)
        return roi.to_image((points * (-1, 1) + (1, 0))[order]), confidence[order]

    def _look(self, image: np.ndarray, roi: Roi) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Landmarks (39, 2) in pixels, (39, 3) in metres, their confidence (39,) and the pose score."""
        raw, pose_score, _mask, heat_maps, world = self._landmarks(crop(image, roi, LANDMARK_SIDE))
        points, confidence = decode_landmarks(raw, heat_maps)
        return roi.to_image(points), roi.to_camera(world.reshape(-1, 3)), confidence, float(pose_score[0])


class _Network:
    """A .tflite file, ready to run on one sample."""

    def __init__(self, path: Path, num_threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(model_path=str(path), num_threads=num_threads)
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._outputs = [output["index"] for output in self._interpreter.get_output_details()]

    def __call__(self, sample: np.ndarray) -> list[np.ndarray]:
        self._interpreter.set_tensor(self._input, sample[None])
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(output)[0] for output in self._outputs]


def merge_looks(person: Person, other_px: np.ndarray, confidence: np.ndarray, size_px: tuple[int, int]) -> Person:
    """The person with the joints (33, 2), (33,) of another look averaged in, in a picture of (width, height).

    Where the looks see a joint in different places the surer one is believed; where the other look names all sides
    differently, it is read the other way round. On rendered people this takes 5 % off the error of the 2D joints and
    3 % off that of the 3D ones (docs/experiments.md).
    """
    swapped = list(BLAZEPOSE33.flip_permutation)
    readings = ((other_px, confidence), (other_px[swapped], confidence[swapped]))
    gaps = [np.linalg.norm(points_px - person.positions_px, axis=-1) for points_px, _ in readings]
    nearer = int(gaps[1].mean() < gaps[0].mean())
    points_px, sureness = readings[nearer]
    is_apart = gaps[nearer] > _SAME_JOINT * np.sqrt(np.ptp(person.positions_px, axis=0).prod())
    surer_px = np.where((sureness > person.confidence)[:, None], points_px, person.positions_px)
    joints_px = np.where(is_apart[:, None], surer_px, (person.positions_px + points_px) / 2)
    is_seen = (person.confidence > 0) & _is_inside(joints_px, size_px, _BORDER)
    return replace(person, positions_px=joints_px, confidence=np.where(is_seen, (person.confidence + sureness) / 2, 0))


def tile_rois(width: int, height: int) -> list[Roi]:
    """Overlapping squares that cover the picture, large ones first; neighbours share at least half their side."""
    return [
        Roi(np.array([x, y]), side)
        for side in (share * max(width, height) for share in _TILE_SIDES)
        for y in _tile_centres(height, side)
        for x in _tile_centres(width, side)
    ]


def _tile_centres(length: float, side: float) -> np.ndarray:
    if side >= length:
        return np.array([length / 2])
    return np.linspace(side / 2, length - side / 2, int(np.ceil(2 * (length - side) / side)) + 1)


def pose_similarity(a_px: np.ndarray, b_px: np.ndarray) -> float:
    """Object keypoint similarity in [0, 1] of two sets of joints (33, 2); left and right may be exchanged in one."""
    scale = _JOINT_SPREAD * max(np.ptp(a_px, axis=0).max(), np.ptp(b_px, axis=0).max(), 1e-6)
    mirrored_px = b_px[list(BLAZEPOSE33.flip_permutation)]
    gaps = [np.linalg.norm(a_px - other_px, axis=-1) / scale for other_px in (b_px, mirrored_px)]
    return max(float(np.exp(-(gap**2) / 2).mean()) for gap in gaps)


def _clear_of(people: list[Person], finds: list[Person]) -> list[Person]:
    """The finds that are none of the people, and each of them once."""
    new: list[Person] = []
    for find in finds:
        if not any(_is_same(find, other) for other in people + new):
            new.append(find)
    return new


def _is_same(a: Person, b: Person) -> bool:
    """Whether two finds may be of one person: alike in pose, or one mostly within the other."""
    low = np.maximum(a.positions_px.min(axis=0), b.positions_px.min(axis=0))
    high = np.minimum(a.positions_px.max(axis=0), b.positions_px.max(axis=0))
    smaller = min(np.ptp(p.positions_px, axis=0).prod() for p in (a, b))
    within = (high - low).clip(0).prod() >= _SAME_PLACE * smaller
    return bool(within) or pose_similarity(a.positions_px, b.positions_px) >= _SAME_POSE


def _is_inside(positions_px: np.ndarray, size_px: tuple[int, int], border: float = 0.0) -> np.ndarray:
    """Which joints of a person lie in the picture, away from its border by some share of the person's size."""
    margin = border * np.sqrt(np.ptp(positions_px, axis=0).prod())
    return np.all((positions_px >= margin) & (positions_px <= np.subtract(size_px, margin)), axis=-1)
