"""Which side is which: a small network that tells whether a detector took left for right.

A lifter turns exchanged labels into a body that faces the other way and fits the picture as well (measured: the
reprojection error tells right from wrong in 50 % of cases, which is chance). What gives them away is the pose itself:
knees and elbows that bend the wrong way, a face on the back of the head. That is learned here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from gcn.posenet import ResidualBlock
from mesh.errors import require
from mesh.joints import COCO19, JointSet

# BlazePose exchanged the whole body of 1 % of rendered people (2.5 % of the frontal ones), and in 9 % of the views of a
# recording of acrobatics. Too high a prior harms everyday pictures.
PRIOR_EXCHANGED = 0.02
_FACE = COCO19.indices(("nose", "left_eye", "right_eye", "left_ear", "right_ear"))


@dataclass(frozen=True, kw_only=True)
class LabelingConfig:
    """Size of the network."""

    width: int = 256
    blocks: int = 2

    def __post_init__(self) -> None:
        require(self.width >= 1 and self.blocks >= 0, f"labeling needs width >= 1 and blocks >= 0, got {self}")


class LabelingNet(nn.Module):
    """Log-odds that left and right of a pose are exchanged, at equal prior odds."""

    def __init__(self, joints: JointSet, in_channels: int, *, width: int = 256, blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Linear(len(joints) * in_channels, width)
        self.blocks = nn.Sequential(*[ResidualBlock(width, dropout=0.0, norm="layer") for _ in range(blocks)])
        self.head = nn.Linear(width, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, J, C) of `gcn.features.pose_features` -> (B,) log-odds."""
        return self.head(self.blocks(self.stem(features.flatten(1))))[:, 0]


def exchange_labels(features: Tensor, *, face: bool = True) -> Tensor:
    """Left and right exchanged, (B, 19, C) -> same; the face may keep its labels."""
    exchanged = features[:, list(COCO19.flip_permutation)]
    if not face:
        exchanged[:, list(_FACE)] = features[:, list(_FACE)]
    return exchanged


def exchange_some(features: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
    """Half of the poses exchanged, half of those but for the face: (B, 19, C) -> (B, 19, C), (B,) bool.

    `draw` (B,), uniform in [0, 1), decides: below 1/4 the whole pose, from there to 1/2 all but the face.
    """
    chance = draw[:, None, None]
    mixed = torch.where(chance < 0.25, exchange_labels(features), features)
    mixed = torch.where((chance >= 0.25) & (chance < 0.5), exchange_labels(features, face=False), mixed)
    return mixed, draw < 0.5


def labeling_loss(log_odds: Tensor, exchanged: Tensor) -> Tensor:
    """Cross-entropy, (B,), (B,) bool -> (B,)."""
    return binary_cross_entropy_with_logits(log_odds, exchanged.to(log_odds), reduction="none")


def exchanged_probability(log_odds: Tensor, prior: float = PRIOR_EXCHANGED) -> Tensor:
    """Posterior probability under the detector's prior odds, (B,) -> (B,)."""
    return torch.sigmoid(log_odds + torch.logit(torch.tensor(prior, device=log_odds.device)))
