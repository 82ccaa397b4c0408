"""People drawn into pictures with full truth, as the 2D detector sees them: the way of a photo, measured end to end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.detection import Detector
from data.synthesis import PoseSource, SynthesisConfig
from mesh.body import Body
from mesh.camera import diagonal_intrinsics
from mesh.errors import InputError
from mesh.joints import COCO17, COCO19, Keypoints
from mesh.samples import Batch
from tools.detector_errors import match
from tools.detector_pictures import SIDE_PX, PictureMaker, Shot, photo_backdrops
from tools.evaluation_samples import BLOCK, Track

DEFAULT_COUNT = 512


@dataclass(frozen=True)
class _Found:
    """A drawn person whom the detector found."""

    number: int
    shot: Shot
    keypoints: Keypoints  # one person, coco19


@dataclass(frozen=True, kw_only=True)
class DrawnSamples:
    """Draws of poses, bodies, cameras, clothes and backdrops; who is not found by the detector is not measured."""

    maker: PictureMaker
    detector: Detector
    count: int
    seed: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __len__(self) -> int:
        return -(-len(self._found) // BLOCK)

    @property
    def not_found(self) -> int:
        """How many people the detector did not find."""
        return self.count - len(self._found)

    def track(self, number: int) -> Track:
        """Some of the people found."""
        some = self._found[number * BLOCK : (number + 1) * BLOCK]
        return Track(batch=_batch(some).to(self.device), rows=np.array([one.number for one in some]))

    @cached_property
    def _found(self) -> list[_Found]:
        """Everybody found, detected once."""
        found = []
        shots = tqdm(
            self.maker.shots(self.count, self.seed),
            desc="drawing and detecting people",
            total=self.count,
            disable=not sys.stderr.isatty(),
        )
        for number, shot in enumerate(shots):
            people = self.detector.detect(shot.image)
            best = match(people.to(COCO17), shot.joints_px, shot.inside)
            if best is not None:
                found.append(_Found(number, replace(shot, image=shot.image[:0]), people.to(COCO19).select([best])))
        if not found:
            raise InputError(f"the detector found nobody in {self.count} pictures: nothing can be measured")
        return found


def drawn_samples(
    source: PoseSource,
    body: Body,
    config: SynthesisConfig,
    detector: Detector,
    *,
    count: int,
    seed: int,
    device: torch.device,
) -> DrawnSamples:
    """Pictures as `tools/measure_detector.py` draws them, with the bodies and cameras of the config."""
    maker = PictureMaker(source, body, config, backdrops=photo_backdrops(None, detector), side_px=SIDE_PX)
    return DrawnSamples(maker=maker, detector=detector, count=count, seed=seed, device=device)


def _batch(found: Sequence[_Found]) -> Batch:
    def stacked(name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(one.shot, name) for one in found])).float()

    coco, known = stacked("coco_m"), torch.ones(len(found), len(COCO19), dtype=torch.bool)
    human36m = stacked("human36m_m")
    return Batch(
        keypoints_px=torch.from_numpy(np.concatenate([one.keypoints.positions_px for one in found])),
        confidence=torch.from_numpy(np.concatenate([one.keypoints.confidence for one in found])),
        joints_m=coco - coco[:, COCO19.root_idx, None],
        regressed_m=human36m,
        vertices_m=stacked("vertices_m"),
        joints_valid=known,
        regressed_valid=known[:, : human36m.shape[1]],
        mesh_valid=known[:, 0],
        ids=torch.tensor([one.shot.pose_idx for one in found]),
        intrinsics=torch.tensor(diagonal_intrinsics((SIDE_PX, SIDE_PX))).repeat(len(found), 1),
    )
