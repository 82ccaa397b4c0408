"""2D joints as the files of other joint sets have them: other places under the same names, and no face."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from data.draws import Draws
from mesh.joints import COCO17, JointSet


def by_name(source: JointSet | None, target: JointSet) -> tuple[Tensor, Tensor]:
    """For each joint of the target its place in the source, 0 if it is not there, and whether it is: (J,) each."""
    names = source.names if source is not None else ()
    index = torch.tensor([names.index(name) if name in names else -1 for name in target.names])
    return index.clamp_min(0), index >= 0


def redefined(
    coco_px: Tensor, others: Sequence[tuple[JointSet, Tensor]], share: float, draws: Draws
) -> tuple[Tensor, Tensor]:
    """A share of the people with the joints of the other sets, equally many of each: what conversion by name makes.

    COCO-17 joints (B, 17, 2) px, other sets with their joints (B, J, 2) px -> (B, 17, 2) px, and (B, 17) bool which of
    them the set has; of those that it lacks the position is left as it was. Draws nothing at share 0.
    """
    points, has = coco_px, torch.ones_like(coco_px[..., 0], dtype=torch.bool)
    if share > 0:
        lot = draws.rand(1) * len(others) / share
        for number, (joints, positions) in enumerate(others):
            index, there = (tensor.to(coco_px.device) for tensor in by_name(joints, COCO17))
            chosen = (lot >= number) & (lot < number + 1)
            points = torch.where((chosen & there)[..., None], positions[:, index], points)
            has = torch.where(chosen, there, has)
    return points, has
