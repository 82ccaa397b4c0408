"""Linear blend skinning with pose blend shapes (Loper et al. 2015, SMPL), batched and differentiable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mesh.body import Body
from mesh.joints import JointSet

# On a CPU many bodies are made region by region: most blend shapes and bones move few vertices, and less is in flight.
_REGIONS, _MANY_BODIES, _BODIES_AT_ONCE = 16, 16, 128


def forward_kinematics(rotations: Tensor, joints: Tensor, parents: Sequence[int]) -> tuple[Tensor, Tensor]:
    """World rotation and position of each joint from local rotations and rest positions.

    (B, J, 3, 3), (B, J, 3), parents before children -> (B, J, 3, 3), (B, J, 3).
    """
    offsets = torch.cat((joints[:, :1], joints[:, 1:] - joints[:, list(parents[1:])]), dim=1)
    steps = pad(torch.cat((rotations, offsets[..., None]), dim=-1), (0, 0, 0, 1))
    steps[..., 3, 3] = 1  # homogeneous
    root, *others = steps.unbind(1)
    world = [root]
    for parent, step in zip(parents[1:], others):
        world.append(torch.bmm(world[parent], step))
    stacked = torch.stack(world, dim=1)
    return stacked[..., :3, :3], stacked[..., :3, 3]


@dataclass(frozen=True, kw_only=True)
class PosedSkeleton:
    """B posed skeletons: `bones` (B, J, 3, 4) carry rest-pose points with each bone, `joints` (B, J, 3) metres stand at
    their beginnings; `coefficients` (B, S + 9 (J - 1)) of the blend shapes."""

    bones: Tensor
    joints: Tensor
    coefficients: Tensor


class _PosedModel(nn.Module):
    """What every posed quantity needs: the bone transforms and the blend-shape coefficients."""

    rest_joints: Tensor
    joint_shape_dirs: Tensor

    def __init__(self, body: Body) -> None:
        super().__init__()
        regressor = torch.from_numpy(body.joint_regressor).double()
        rest = regressor @ torch.from_numpy(body.template).double()
        dirs = torch.einsum("jv,vcs->jcs", regressor, torch.from_numpy(body.shape_dirs).double())
        self.parents = body.parents
        self.num_shape = body.shape_dirs.shape[-1]
        self.register_buffer("rest_joints", rest.float(), persistent=False)  # (J, 3)
        self.register_buffer("joint_shape_dirs", dirs.float(), persistent=False)  # (J, 3, S)

    def pose(self, rotations: Tensor, shape: Tensor) -> PosedSkeleton:
        """(B, J, 3, 3) local rotations, (B, S); every model of the same body makes the same of them."""
        joints = self.rest_joints + torch.einsum("bs,jcs->bjc", shape, self.joint_shape_dirs)
        world, positions = forward_kinematics(rotations, joints, self.parents)
        shift = positions - (world @ joints[..., None])[..., 0]
        bones = torch.cat((world, shift[..., None]), dim=-1)
        return PosedSkeleton(bones=bones, joints=positions, coefficients=self.blend_coefficients(rotations, shape))

    @staticmethod
    def blend_coefficients(rotations: Tensor, shape: Tensor) -> Tensor:
        """Shape coefficients and pose features side by side, (B, S + 9 (J - 1))."""
        identity = torch.eye(3, dtype=rotations.dtype, device=rotations.device)
        return torch.cat((shape, (rotations[:, 1:] - identity).flatten(1)), dim=1)


class BodyModel(_PosedModel):
    """Pose and shape to vertices. Metres, in the frame that the root rotation leads to; the template's origin."""

    template: Tensor
    blend_dirs: Tensor
    skinning: Tensor

    def __init__(self, body: Body) -> None:
        super().__init__(body)
        dirs = torch.cat((torch.from_numpy(body.shape_dirs), torch.from_numpy(body.pose_dirs)), dim=-1)
        template = torch.from_numpy(body.template).T.flatten()
        # Coordinate-major, so that everything below runs along the vertices.
        self.register_buffer("template", template, persistent=False)  # (3 V,)
        self.register_buffer(
            "blend_dirs", dirs.permute(2, 1, 0).flatten(1).contiguous(), persistent=False
        )  # (S + P, 3 V)
        self.register_buffer("skinning", torch.from_numpy(body.skinning).T.contiguous(), persistent=False)  # (J, V)
        whole = (self.template.view(3, -1), self.blend_dirs.unflatten(1, (3, -1)), self.skinning)
        regions = zip(*(tensor.tensor_split(_REGIONS, dim=-1) for tensor in whole))
        self.regions = nn.ModuleList(_Region(*region) for region in regions)

    def forward(self, rotations: Tensor, shape: Tensor) -> tuple[Tensor, Tensor]:
        """(B, J, 3, 3) local rotations, (B, S) -> vertices (B, V, 3), joints (B, J, 3)."""
        posed = self.pose(rotations, shape)
        return self.vertices(posed), posed.joints

    def vertices(self, posed: PosedSkeleton, origin: Tensor | None = None) -> Tensor:
        """(B, V, 3), relative to `origin` (B, 3) if one is given, which uses that skinning weights sum to one."""
        bones, coefficients = posed.bones, posed.coefficients
        if origin is not None:
            bones = torch.cat((bones[..., :3], (bones[..., 3] - origin[:, None])[..., None]), dim=-1)
        columns = bones.flatten(2).transpose(1, 2)  # (B, 12, J)
        if len(columns) < _MANY_BODIES or columns.device.type != "cpu":
            return _skinned(columns, coefficients, self.template, self.blend_dirs, self.skinning).contiguous()
        rows = zip(columns.split(_BODIES_AT_ONCE), coefficients.split(_BODIES_AT_ONCE))
        bodies = [torch.cat([region(*some) for region in self.regions], dim=1) for some in rows]
        return torch.cat(bodies) if len(bodies) > 1 else bodies[0]


class _Region(nn.Module):
    """A run of vertices with the blend shapes and the bones that move any of them."""

    moving: Tensor
    bones: Tensor
    template: Tensor
    blend_dirs: Tensor
    skinning: Tensor

    def __init__(self, template: Tensor, blend_dirs: Tensor, skinning: Tensor) -> None:
        """(3, V), (S + P, 3, V), (J, V)."""
        super().__init__()
        moving, bones = blend_dirs.abs().amax((1, 2)).nonzero()[:, 0], skinning.abs().amax(1).nonzero()[:, 0]
        parts = {
            "moving": moving, "bones": bones, "template": template.flatten(),
            "blend_dirs": blend_dirs[moving].flatten(1), "skinning": skinning[bones],
        }  # fmt: skip
        for name, tensor in parts.items():
            self.register_buffer(name, tensor.contiguous(), persistent=False)

    def forward(self, columns: Tensor, coefficients: Tensor) -> Tensor:
        """(B, 12, J), (B, S + P) -> (B, V, 3)."""
        columns, coefficients = columns[:, :, self.bones], coefficients[:, self.moving]
        return _skinned(columns, coefficients, self.template, self.blend_dirs, self.skinning)


def _skinned(columns: Tensor, coefficients: Tensor, template: Tensor, blend_dirs: Tensor, skinning: Tensor) -> Tensor:
    """Blend shapes, then blended bones: (B, 12, J), (B, C), (3 V,), (C, 3 V), (J, V) -> (B, V, 3)."""
    unposed = torch.addmm(template, coefficients, blend_dirs).unflatten(1, (3, -1))
    blended = (columns @ skinning).unflatten(1, (3, 4))  # (B, 3, 4, V)
    vertices = torch.addcmul(blended[:, :, 3], blended[:, :, 0], unposed[:, None, 0])
    for axis in (1, 2):
        vertices.addcmul_(blended[:, :, axis], unposed[:, None, axis])
    return vertices.transpose(1, 2)


class JointModel(_PosedModel):
    """Pose and shape straight to regressed joints, without the vertices between.

    Regression, skinning and blend shapes are all linear in the rest-pose vertices, so they fold into one small
    matrix per (joint, bone) pair: the same joints as `regressor @ BodyModel(...)` at a small part of the cost.
    """

    base: Tensor
    dirs: Tensor
    pair_bone: Tensor
    pair_joint: Tensor

    def __init__(self, body: Body, joint_sets: Sequence[JointSet]) -> None:
        super().__init__(body)
        self.counts = [len(s) for s in joint_sets]
        regressor = torch.cat([torch.from_numpy(body.regressor(s)) for s in joint_sets]).double()
        skinning = torch.from_numpy(body.skinning).double()
        homogeneous = torch.cat((torch.from_numpy(body.template), torch.ones(body.num_vertices, 1)), dim=1).double()
        dirs = torch.cat((torch.from_numpy(body.shape_dirs), torch.from_numpy(body.pose_dirs)), dim=-1)
        pairs = (regressor.abs() @ skinning).nonzero()  # (P, 2): joints and the bones that move them
        base, folded = [], []
        for joint, bone in pairs.tolist():
            used = (regressor[joint] * skinning[:, bone]).nonzero()[:, 0]
            weight = regressor[joint, used] * skinning[used, bone]
            base.append(weight @ homogeneous[used])
            folded.append(torch.einsum("v,vcp->pc", weight, dirs[used].double()))
        self.register_buffer("base", torch.stack(base).float(), persistent=False)  # (P, 4)
        self.register_buffer("dirs", torch.stack(folded, dim=1).flatten(1).float(), persistent=False)  # (S + Q, P 3)
        self.register_buffer("pair_joint", pairs[:, 0], persistent=False)
        self.register_buffer("pair_bone", pairs[:, 1], persistent=False)

    def forward(self, rotations: Tensor, shape: Tensor) -> tuple[Tensor, ...]:
        """(B, J, 3, 3) local rotations, (B, S) -> joints of each joint set, (B, joints, 3) metres."""
        return self.joints(self.pose(rotations, shape))

    def joints(self, posed: PosedSkeleton) -> tuple[Tensor, ...]:
        """Joints of each joint set, (B, joints, 3) metres; the body's own (SMPL24) are `posed.joints`."""
        points = self.base[:, :3] + (posed.coefficients @ self.dirs).unflatten(1, (-1, 3))  # (B, P, 3)
        bones = posed.bones[:, self.pair_bone]  # (B, P, 3, 4)
        parts = (bones[..., :3] * points[..., None, :]).sum(-1) + bones[..., 3] * self.base[:, 3:]
        joints = parts.new_zeros(len(parts), sum(self.counts), 3).index_add_(1, self.pair_joint, parts)
        return joints.split(self.counts, dim=1)
