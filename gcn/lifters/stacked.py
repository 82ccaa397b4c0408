"""The two-step scheme: a lifter that learned on exact 2D joints, stacked on a network that finds them in a picture."""

from __future__ import annotations

from typing import Literal, get_args, overload

import torch
from torch import Tensor, nn

from gcn.features import Normalisation, pose_features
from gcn.layers.soft_argmax import soft_argmax_confidence
from mesh.errors import require

Freeze = Literal["all", "part", "none"]


class Stacked(nn.Module):
    """Pictures to root-relative 3D joints: heat maps, soft-argmax, features, lifter, differentiable throughout.

    No image model ships: `network_2d` is any module that takes (B, 3, H, W) pictures to (B, J, h, w) logits in the
    lifter's joint order, whose maps span the whole picture; the lifter is one of view "picture". `freeze` says what of
    the 2D network stays as it came: "all"; "part", all but its last child module; "none". What is frozen receives no
    gradients and stays in evaluation mode under `train()`, so its batch statistics do not move either.

    The confidence of a joint is the concentration of its map. One below `min_confidence` counts as not seen: no
    gradient reaches that map, so a 2D network that has not learned yet needs 0. No gradient passes through the
    confidence, which is evidence and nothing to be optimised for the lifter's sake.
    """

    def __init__(
        self, network_2d: nn.Module, lifter: nn.Module, *, freeze: Freeze = "all",
        normalisation: Normalisation = "isotropic", with_confidence: bool = True, temperature: float = 1.0,
        min_confidence: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        require(freeze in get_args(Freeze), f"freeze must be one of {', '.join(get_args(Freeze))}, got {freeze!r}")
        self.network_2d, self.lifter, self.freeze = network_2d, lifter, freeze
        self.normalisation, self.with_confidence = normalisation, with_confidence
        self.temperature, self.min_confidence = temperature, min_confidence
        if freeze != "none":
            network_2d.requires_grad_(False)
        if freeze == "part":
            self._last_child().requires_grad_(True)
        self.train(self.training)

    def _last_child(self) -> nn.Module:
        children = list(self.network_2d.children())
        require(
            len(children) > 1, 'freeze "part" needs a 2D network with at least two child modules; use "all" or "none"'
        )
        return children[-1]

    def train(self, mode: bool = True) -> Stacked:
        """As `nn.Module.train`, but what is frozen stays in evaluation mode."""
        super().train(mode)
        if self.freeze != "none":
            self.network_2d.eval()
        if self.freeze == "part":
            self._last_child().train(mode)
        return self

    def keypoints(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, H, W) -> the joints in them, (B, J, 2) px from the upper left corner, (B, J) in [0, 1]."""
        positions, confidence = soft_argmax_confidence(self.network_2d(images), self.temperature)
        height, width = images.shape[-2:]
        x, y = positions.unbind(-1)
        keypoints_px = torch.stack(((x + 1) * width / 2, (y + 1) * height / 2), dim=-1)
        confidence = confidence.detach()
        return keypoints_px, torch.where(confidence >= self.min_confidence, confidence, 0.0)

    @overload
    def forward(self, images: Tensor, with_keypoints: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, images: Tensor, with_keypoints: Literal[True]) -> tuple[Tensor, Tensor, Tensor]: ...
    def forward(self, images: Tensor, with_keypoints: bool = False) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """(B, 3, H, W) -> (B, J, 3) metres, root exactly 0; on request also `keypoints`, for a loss in the picture."""
        keypoints_px, confidence = self.keypoints(images)
        features = pose_features(keypoints_px, confidence, self.normalisation, with_confidence=self.with_confidence)
        joints = self.lifter(features)
        return (joints, keypoints_px, confidence) if with_keypoints else joints
