"""An autoencoder that refines lifted 3D poses, trainable after any lifter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from gcn.posenet import NORMS
from mesh.errors import require
from mesh.joints import JointSet


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """Size of the autoencoder: its hidden layers have `width`, the bottleneck between them `code` numbers."""

    width: int = 512
    code: int = 32
    dropout: float = 0.0
    norm: Literal["batch", "layer"] = "layer"

    def __post_init__(self) -> None:
        require(self.width >= 1 and self.code >= 1, f"denoiser needs width >= 1 and code >= 1, got {self}")
        require(0 <= self.dropout < 1, f"denoiser.dropout must lie in [0, 1), got {self.dropout}")


class PoseDenoiser(nn.Module):
    """Root-relative 3D joints to better ones: the pose plus what the decoder reads off a few numbers of it.

    The last layer starts at 0, so an untrained denoiser changes nothing.
    """

    def __init__(
        self, joints: JointSet, *, width: int = 512, code: int = 32, dropout: float = 0.0,
        norm: Literal["batch", "layer"] = "layer",
    ) -> None:  # fmt: skip
        super().__init__()
        self.root_idx, self.num_joints = joints.root_idx, len(joints)

        def layer(in_width: int) -> list[nn.Module]:
            return [nn.Linear(in_width, width), NORMS[norm](width), nn.ReLU(), nn.Dropout(dropout)]

        self.encoder = nn.Sequential(*layer(len(joints) * 3), nn.Linear(width, code))
        self.decoder = nn.Sequential(*layer(code), nn.Linear(width, len(joints) * 3))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The last layer at 0; the others keep PyTorch's start."""
        head = self.decoder[-1]
        assert isinstance(head, nn.Linear)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)

    def forward(self, joints: Tensor) -> Tensor:
        """(B, J, 3) metres, root-relative -> same; the root is exactly 0."""
        correction = self.decoder(self.encoder(joints.flatten(1))).unflatten(1, (self.num_joints, 3))
        refined = joints + correction
        return refined - refined[:, self.root_idx, None]


class Refined(nn.Module):
    """A lifter followed by a denoiser: a lifter again. Whether both are trained is for the trainer to say."""

    lifter: nn.Module

    def __init__(self, lifter: nn.Module, denoiser: PoseDenoiser) -> None:
        super().__init__()
        self.lifter, self.denoiser = lifter, denoiser

    def train(self, mode: bool = True) -> Refined:
        """A frozen lifter stays in evaluation mode: no dropout, no moving statistics."""
        super().train(mode)
        if not any(p.requires_grad for p in self.lifter.parameters()):
            self.lifter.eval()
        return self

    def forward(self, features: Tensor) -> Tensor:
        """(B, J, C) of `gcn.features.pose_features` -> (B, J, 3) metres; the root is exactly 0."""
        return self.denoiser(self.lifter(features))
