"""The plain fully connected lifter (Martinez et al. 2017, A simple yet effective baseline for 3D pose estimation)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from gcn.layers.batchnorm import BatchNorm
from mesh.errors import require
from mesh.joints import JointSet


@dataclass(frozen=True, kw_only=True)
class MartinezConfig:
    """Size of the lifter; the defaults are the published ones, except for the unit (the original z-scores its output).

    `max_norm` bounds every weight matrix, also the last: with it, choose `output_unit_m` near the spread of the joints.
    """

    width: int = 1024
    blocks: int = 2
    dropout: float = 0.5
    max_norm: bool = True
    output_unit_m: float = 1.0

    def __post_init__(self) -> None:
        require(self.width >= 1 and self.blocks >= 0, f"martinez needs width >= 1 and blocks >= 0, got {self}")
        require(0 <= self.dropout < 1, f"martinez.dropout must lie in [0, 1), got {self.dropout}")
        require(self.output_unit_m > 0, f"martinez.output_unit_m must be positive, got {self.output_unit_m}")


class BoundedLinear(nn.Linear):
    """A linear layer whose weight matrix counts with Frobenius norm 1 at most; the bias is free.

    The stored weight may grow beyond: what it gives is divided by its norm, and gradients see that.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., C_in) -> (..., C_out)."""
        return functional.linear(x, self.weight) / self.weight.norm().clamp_min(1) + self.bias


class ResidualBlock(nn.Module):
    """x + f(x), where f is twice [linear, norm, ReLU, dropout]."""

    def __init__(self, width: int, *, dropout: float, linear: type[nn.Linear]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_layer(width, width, dropout=dropout, linear=linear), *_layer(width, width, dropout=dropout, linear=linear)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) -> (B, width)."""
        return x + self.layers(x)


class Martinez(nn.Module):
    """2D joints to root-relative 3D joints of the same set, in metres, camera frame."""

    def __init__(
        self, joints: JointSet, in_channels: int, *, width: int = 1024, blocks: int = 2, dropout: float = 0.5,
        max_norm: bool = True, output_unit_m: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.output_unit_m = output_unit_m
        self.root_idx, self.num_joints = joints.root_idx, len(joints)
        linear = BoundedLinear if max_norm else nn.Linear
        self.stem = nn.Sequential(*_layer(len(joints) * in_channels, width, dropout=dropout, linear=linear))
        self.blocks = nn.Sequential(*[ResidualBlock(width, dropout=dropout, linear=linear) for _ in range(blocks)])
        self.head = linear(width, len(joints) * 3)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights normal with variance 2 / fan in (He et al. 2015), biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(B, J, C) of `gcn.features.pose_features` -> (B, J, 3) metres; the root is exactly 0."""
        written = self.head(self.blocks(self.stem(features.flatten(1)))).unflatten(1, (self.num_joints, 3))
        return (written - written[:, self.root_idx, None]) * self.output_unit_m


def _layer(in_width: int, width: int, *, dropout: float, linear: type[nn.Linear]) -> list[nn.Module]:
    return [linear(in_width, width), BatchNorm(width), nn.ReLU(), nn.Dropout(dropout)]
