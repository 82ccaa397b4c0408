"""PoseNet: a residual network that lifts a 2D pose to 3D (Choi et al. 2020, Pose2Mesh, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from gcn.layers.batchnorm import BatchNorm
from mesh.errors import require
from mesh.joints import JointSet

NORMS: dict[str, type[nn.Module]] = {"batch": BatchNorm, "layer": nn.LayerNorm}


@dataclass(frozen=True, kw_only=True)
class PoseNetConfig:
    """Size of the lifter. The original is width 4096, 2 blocks, dropout 0.5, batch norm, and writes millimetres.

    The last layer writes in units of `output_unit_m` metres. Steps of RMSprop and Adam have the size of the learning
    rate whatever the loss is, so the unit decides how far they move the joints.
    """

    width: int = 1024
    blocks: int = 3
    dropout: float = 0.0
    norm: Literal["batch", "layer"] = "layer"
    output_unit_m: float = 1.0

    def __post_init__(self) -> None:
        require(self.width >= 1 and self.blocks >= 0, f"posenet needs width >= 1 and blocks >= 0, got {self}")
        require(self.output_unit_m > 0, f"posenet.output_unit_m must be positive, got {self.output_unit_m}")
        require(0 <= self.dropout < 1, f"posenet.dropout must lie in [0, 1), got {self.dropout}")


class ResidualBlock(nn.Module):
    """x + f(x), where f is twice [norm, ReLU, dropout, linear] (He et al. 2016, full pre-activation)."""

    def __init__(self, width: int, *, dropout: float, norm: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [NORMS[norm](width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) -> (B, width)."""
        return x + self.layers(x)


class PoseNet(nn.Module):
    """2D joints to root-relative 3D joints of the same set, in metres, camera frame."""

    def __init__(
        self, joints: JointSet, in_channels: int, *, width: int = 1024, blocks: int = 3, dropout: float = 0.0,
        norm: Literal["batch", "layer"] = "layer", output_unit_m: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.output_unit_m = output_unit_m
        self.root_idx, self.num_joints = joints.root_idx, len(joints)
        self.stem = nn.Linear(len(joints) * in_channels, width)
        self.blocks = nn.Sequential(*[ResidualBlock(width, dropout=dropout, norm=norm) for _ in range(blocks)])
        self.head = nn.Linear(width, len(joints) * 3)

    def forward(self, features: Tensor) -> Tensor:
        """(B, J, C) of `gcn.features.pose_features` -> (B, J, 3) metres; the root is exactly 0."""
        written = self.head(self.blocks(self.stem(features.flatten(1)))).unflatten(1, (self.num_joints, 3))
        return (written - written[:, self.root_idx, None]) * self.output_unit_m
