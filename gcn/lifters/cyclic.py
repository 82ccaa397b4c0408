"""The cyclic lifter: an encoder from 2D to 3D and a decoder back, whose result must meet the input again.

After a course project of ETH Zurich ("PoseNet: Distilling 3D Human Pose from a Single Image"); both networks have the
shape of Martinez et al. 2017.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, overload

import torch
from torch import Tensor, nn

from gcn.losses import point_l1
from gcn.posenet import NORMS
from mesh.errors import require
from mesh.joints import JointSet


@dataclass(frozen=True, kw_only=True)
class CyclicConfig:
    """Size of the encoder and, each of the same size, the decoder.

    `skip` adds the input's 2D positions to what the decoder writes. See `CyclicLifter` for what that gives away.
    """

    width: int = 1024
    blocks: int = 2
    dropout: float = 0.5
    norm: Literal["batch", "layer"] = "batch"
    decoder: bool = True
    skip: bool = False

    def __post_init__(self) -> None:
        require(self.width >= 1 and self.blocks >= 0, f"cyclic needs width >= 1 and blocks >= 0, got {self}")
        require(0 <= self.dropout < 1, f"cyclic.dropout must lie in [0, 1), got {self.dropout}")
        require(
            self.decoder or not self.skip, "cyclic.skip leads to the decoder's output: it needs cyclic.decoder=true"
        )


class CyclicLifter(nn.Module):
    """2D joints to root-relative 3D joints of the same set, in metres, camera frame; on request back to 2D.

    The features' centre and size depend on which joints are known, so the decoder sees, beside the 3D joints, the
    channels of the features beyond x and y (the confidence). With `skip` it writes a correction of the input
    positions. Then a correction of 0 closes the cycle whatever the 3D joints are: such a cycle teaches only against
    a better target than the input, such as the exact positions of noisy ones. A joint of confidence 0 stands at 0 in
    the features, where no joint is: its correction is its whole position, and `cycle_loss` leaves it out.
    """

    def __init__(
        self, joints: JointSet, in_channels: int, *, width: int = 1024, blocks: int = 2, dropout: float = 0.5,
        norm: Literal["batch", "layer"] = "batch", decoder: bool = True, skip: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.root_idx, self.num_joints, self.skip = joints.root_idx, len(joints), skip
        count = len(joints)
        self.encoder = _network(count * in_channels, count * 3, width=width, blocks=blocks, dropout=dropout, norm=norm)
        self.decoder: nn.Sequential | None = None
        if decoder:
            decoder_in = count * (3 + in_channels - 2)
            self.decoder = _network(decoder_in, count * 2, width=width, blocks=blocks, dropout=dropout, norm=norm)

    @overload
    def forward(self, features: Tensor, cycle: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, features: Tensor, cycle: Literal[True]) -> tuple[Tensor, Tensor]: ...
    def forward(self, features: Tensor, cycle: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """(B, J, C) of `gcn.features.pose_features` -> (B, J, 3) metres; the root is exactly 0.

        With `cycle` also the decoded positions (B, J, 2) in the features' units, from one and the same pass, as
        DistributedDataParallel needs it.
        """
        written = self.encoder(features.flatten(1)).unflatten(1, (self.num_joints, 3))
        joints = written - written[:, self.root_idx, None]
        if not cycle:
            return joints
        if self.decoder is None:
            raise ValueError("this cyclic lifter was built without a decoder, it has no cycle")
        seen = torch.cat((joints, features[..., 2:]), dim=-1)
        keypoints = self.decoder(seen.flatten(1)).unflatten(1, (self.num_joints, 2))
        return joints, keypoints + features[..., :2] if self.skip else keypoints


def cycle_loss(keypoints: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Mean absolute coordinate error of decoded 2D joints: (B, J, 2) twice, (B, J) bool -> (B,) in their units.

    `known` are the joints of confidence above 0 in the features: the others have no position to be met again.
    """
    return point_l1(keypoints, target, known)


class _Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        """x + f(x), (B, width) -> (B, width)."""
        return x + super().forward(x)


def _network(in_width: int, out_width: int, *, width: int, blocks: int, dropout: float, norm: str) -> nn.Sequential:
    """[linear, norm, ReLU, dropout], residual blocks of two of these, linear: (B, in_width) -> (B, out_width)."""

    def layer(layer_in: int) -> list[nn.Module]:
        return [nn.Linear(layer_in, width), NORMS[norm](width), nn.ReLU(), nn.Dropout(dropout)]

    residual = [_Residual(*layer(width), *layer(width)) for _ in range(blocks)]
    return nn.Sequential(*layer(in_width), *residual, nn.Linear(width, out_width))
