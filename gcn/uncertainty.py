"""How far off each joint of a mesh probably is: a small network that tells the expected error.

It sees the 2D pose, the joints lifted from it and from its mirror image, and is trained on the true errors of one
mesh network, whose weights it belongs to: those of another err elsewhere. It needs both looks, hence a body with a
mirror table.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gcn.posenet import ResidualBlock
from mesh.errors import require
from mesh.joints import HUMAN36M17, JointSet
from mesh.metrics import MM_PER_M

JUDGED = HUMAN36M17
# About the standard deviations of what comes in, and the median of what goes out.
_JOINT_UNIT_M, _DIFFERENCE_UNIT_M, _ERROR_UNIT_M = 0.2, 0.02, 0.08
_LOG_RANGE = 5.0  # expected errors lie within 0.5 mm and 12 m
_DIGEST_VALUES = 4096


@dataclass(frozen=True, kw_only=True)
class UncertaintyConfig:
    """Size of the network."""

    width: int = 256
    blocks: int = 2

    def __post_init__(self) -> None:
        require(self.width >= 1 and self.blocks >= 0, f"uncertainty needs width >= 1 and blocks >= 0, got {self}")


class ErrorNet(nn.Module):
    """Expected distance of each human36m17 joint of the mirror-averaged mesh from the truth, pelvis at pelvis."""

    judged: Tensor

    def __init__(self, joints: JointSet, in_channels: int, *, width: int = 256, blocks: int = 2) -> None:
        super().__init__()
        judged = [k for k in range(len(JUDGED)) if k != JUDGED.root_idx]
        self.register_buffer("judged", torch.tensor(judged), persistent=False)
        self.stem = nn.Linear(len(joints) * (in_channels + 6), width)
        self.blocks = nn.Sequential(*[ResidualBlock(width, dropout=0.0, norm="layer") for _ in range(blocks)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, len(judged))

    def forward(self, features: Tensor, seen: Tensor, mirrored: Tensor) -> Tensor:
        """(B, J, C) features, (B, J, 3) metres of both looks as `MirrorAveraged.looks` gives -> (B, 17) metres.

        The pelvis, which all is relative to, is exactly 0.
        """
        places = (seen + mirrored) / (2 * _JOINT_UNIT_M)
        apart = torch.log1p((seen - mirrored).abs() / _DIFFERENCE_UNIT_M)  # now and then they face opposite ways
        x = self.blocks(self.stem(torch.cat((features, places, apart), dim=-1).flatten(1)))
        log_error = self.head(self.norm(x).relu()).float().clamp(-_LOG_RANGE, _LOG_RANGE)
        none = log_error.new_zeros(len(x), len(JUDGED))
        return none.index_copy(1, self.judged, _ERROR_UNIT_M * log_error.exp())


def error_loss(expected_m: Tensor, error_m: Tensor, known: Tensor) -> Tensor:
    """Mean of log b + e / b (b expected, e true; log of b in mm) over the known joints: (B, 17) thrice -> (B,).

    It is the negative log-likelihood of a Laplace distribution but for a constant, and on average smallest where b is
    the mean of e. The root is left out; a sample without any known joint has loss 0.
    """
    known = known.clone()
    known[:, JUDGED.root_idx] = False
    expected = torch.where(known, expected_m, 1.0)
    terms = (expected * MM_PER_M).log() + torch.where(known, error_m, 0.0) / expected
    return torch.where(known, terms, 0.0).sum(1) / known.sum(1).clamp_min(1)


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over up to 4096 values of every tensor, in half precision, as weights are kept: whose errors these are.

    Any step of training moves nearly every value, so some are as good as all, which would take ten times as long.
    """
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().flatten()
        values = values[:: max(1, -(-len(values) // _DIGEST_VALUES))].cpu()
        kept = values.half() if values.is_floating_point() else values.long()
        found.update(f"{name} {tuple(tensor.shape)} ".encode() + kept.numpy().tobytes())
    return found.hexdigest()
