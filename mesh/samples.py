"""The batch that data sources make and networks learn from: the one contract between `data` and `gcn`."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B people in camera frame (x right, y down, z forward).

    `keypoints_px` (B, J, 2) and `confidence` (B, J) in the input joint set; `joints_m` (B, J, 3) the same joints in
    3D, relative to that set's root; `regressed_m` (B, 17, 3) human36m17 relative to its pelvis; `vertices_m`
    (B, V, 3) relative to the same pelvis, or None when only joints were asked for. What has no truth is left out of
    the losses: `joints_valid` (B, J), `regressed_valid` (B, 17) and `mesh_valid` (B,) bool say what has. `ids` (B,)
    int64 is the place of each sample in its source, which is what an error message names. `intrinsics` (B, 4) px is
    what is known of each camera, or assumed: focal lengths, principal point; 0 where nothing is (None: nowhere).
    """

    keypoints_px: Tensor
    confidence: Tensor
    joints_m: Tensor
    regressed_m: Tensor
    vertices_m: Tensor | None
    joints_valid: Tensor
    regressed_valid: Tensor
    mesh_valid: Tensor
    ids: Tensor
    intrinsics: Tensor | None = None

    def __len__(self) -> int:
        return len(self.keypoints_px)

    def where(self, mask: Tensor) -> Batch:
        """Some of its rows, (B,) bool."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: tensor[mask] for name, tensor in named.items() if tensor is not None})

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: tensor.to(device) for name, tensor in named.items() if tensor is not None})
