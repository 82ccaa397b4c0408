"""Body parameters from vertices: pose, shape and place of the body model that comes nearest to a mesh.

It starts from the rotation of each joint in closed form, by Procrustes on the vertices that the joint moves, and goes
on with Gauss-Newton in all rotations, the shape and the place at once. Skinning is linear in weight times rest
position: the normal matrix of any body follows from fixed second moments, and only the gradient needs all vertices.

Shapes: B bodies, V vertices, J joints, S shape coefficients, P = 3 J + 3 + S unknowns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from mesh.alignment import nearest_rotation
from mesh.body import Body
from mesh.errors import InputError
from mesh.rotation import axis_angle_to_matrix, matrix_to_axis_angle
from mesh.skinning import BodyModel

ROUNDS = 5
_BLOCK_BODIES = 16
_DAMPING_M = 1e-3  # what one radian of a joint costs in a round, as distance of all vertices: some move next to nothing
_LARGEST_SHAPE = 5.0
_LARGEST_TURN_RAD = 1.0  # of a joint in one round
_LARGEST_BODY_M = 100.0


@dataclass(frozen=True, kw_only=True)
class FittedBody:
    """B bodies: `BodyModel(rotations, shape)` moved by `translation` is near the given vertices.

    `rotations` (B, J, 3, 3) local to the parent, the root's leads into the frame of the vertices; `shape` (B, S);
    `translation` (B, 3) metres, added to the vertices after the root has turned about its own joint, as smplx does;
    `distance` (B,) metres, mean over the vertices of what is left: large where the mesh is no body of the model.
    """

    rotations: Tensor
    shape: Tensor
    translation: Tensor
    distance: Tensor

    @property
    def pose(self) -> Tensor:
        """The rotations as axis-angle, (B, J, 3) radians."""
        return matrix_to_axis_angle(self.rotations)


@dataclass(frozen=True, kw_only=True)
class _State:
    """World rotations of the joints (B, J, 3, 3), shape (B, S) and place (B, 3)."""

    world: Tensor
    shape: Tensor
    place: Tensor


@dataclass(frozen=True, kw_only=True)
class _Posed:
    """A state's mesh, coordinates first, and what it was made of.

    `vertices` (B, 3, V), `unposed` (B, 3, V), `blended` (B, 3, 4, V) transform of each vertex, `bones` (B, J, 3, 4),
    `joints` (B, J, 3).
    """

    vertices: Tensor
    unposed: Tensor
    blended: Tensor
    bones: Tensor
    joints: Tensor


class BodyFitter(nn.Module):
    """Finds the parameters of one body model for meshes of its topology.

    `shape_penalty_m`: one standard deviation of a shape coefficient costs as much as this distance of all vertices.
    Without it, coefficients that hardly move a vertex would explain the bumps of a mesh that is no body of the model.
    No coefficient leaves -5..5. Turns about a limb's own axis are found less sharply than the others.
    """

    parents: Tensor
    before: Tensor
    toward: Tensor
    beyond: Tensor
    part_moments: Tensor
    moments: Tensor
    moments_of_one: Tensor
    moments_of_shape: Tensor

    def __init__(self, body: Body, *, shape_penalty_m: float = 3e-4) -> None:
        super().__init__()
        self.model, self.shape_penalty = BodyModel(body), shape_penalty_m**2
        self.num_joints, self.num_shape = len(body.parents), self.model.num_shape
        parents = torch.tensor(body.parents).clamp_min(0)
        before, toward, beyond = _paths(body.parents)
        fixed = {
            "parents": parents,
            "before": before,
            "toward": toward,
            "beyond": beyond,
            "part_moments": _part_moments(body),
            **_second_moments(body),
        }
        for name, tensor in fixed.items():
            self.register_buffer(name, tensor, persistent=False)

    @torch.no_grad()
    def forward(self, vertices: Tensor, *, rounds: int = ROUNDS) -> FittedBody:
        """(B, V, 3) metres in any right-handed frame -> parameters that lead into that frame."""
        self._check(vertices)
        parts = [self._fit(some.to(self.model.template), rounds) for some in vertices.split(_BLOCK_BODIES)]
        return FittedBody(**{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(FittedBody)})

    def _check(self, vertices: Tensor) -> None:
        expected = (self.model.template.numel() // 3, 3)
        if vertices.ndim != 3 or vertices.shape[1:] != expected:
            raise InputError(f"fitting needs vertices of shape (B, {expected[0]}, 3), got {tuple(vertices.shape)}")
        finite = torch.isfinite(vertices).all(2).all(1)
        if not finite.all():
            raise InputError(f"mesh {int((~finite).nonzero()[0])} to be fitted holds NaN or infinity; leave it out")
        extent = (vertices.amax(1) - vertices.amin(1)).amax() if len(vertices) else 0
        if extent > _LARGEST_BODY_M:
            raise InputError(f"fitting needs vertices in metres, got a body of {extent:.6g} m")

    def _fit(self, vertices: Tensor, rounds: int) -> FittedBody:
        centre = vertices.mean(1)
        target = (vertices - centre[:, None]).transpose(1, 2).contiguous()
        state = self._start(target)
        posed = self._posed(state)
        best, cost, distance = state, *self._cost(state, posed, target)
        for _ in range(rounds):
            state = self._improved(state, posed, target)
            posed = self._posed(state)
            now, apart = self._cost(state, posed, target)
            better = now < cost  # false where a step led nowhere
            best = _State(
                **{f.name: _where(better, getattr(state, f.name), getattr(best, f.name)) for f in fields(best)}
            )
            cost, distance = _where(better, now, cost), _where(better, apart, distance)
        return FittedBody(
            rotations=self._local(best.world), shape=best.shape, translation=best.place + centre, distance=distance
        )

    def _start(self, target: Tensor) -> _State:
        """Each joint turned as the vertices around it, mean shape, the same centre. (B, 3, V)."""
        covariance = (target @ self.part_moments).unflatten(2, (self.num_joints, 3)).transpose(1, 2)
        world = nearest_rotation(covariance.flatten(0, 1)).to(target).unflatten(0, covariance.shape[:2])
        zero = target.new_zeros(len(target), self.num_shape + 3)
        state = _State(world=world, shape=zero[:, 3:], place=zero[:, :3])
        return _State(world=world, shape=state.shape, place=-self._posed(state).vertices.mean(2))

    def _local(self, world: Tensor) -> Tensor:
        """World rotations to those relative to the parent, (B, J, 3, 3)."""
        return torch.cat((world[:, :1], world[:, self.parents[1:]].transpose(-1, -2) @ world[:, 1:]), dim=1)

    def _posed(self, state: _State) -> _Posed:
        model = self.model
        rest = model.rest_joints + torch.einsum("bs,jcs->bjc", state.shape, model.joint_shape_dirs)
        steps = state.world[:, self.parents] @ (rest - rest[:, self.parents])[..., None]
        joints = (rest[:, 0] + state.place)[:, None] + self.before @ steps[..., 0]
        shift = joints[..., None] - state.world @ rest[..., None]
        bones = torch.cat((state.world, shift), dim=-1)
        coefficients = model.blend_coefficients(self._local(state.world), state.shape)
        unposed = torch.addmm(model.template, coefficients, model.blend_dirs).unflatten(1, (3, -1))
        blended = (bones.flatten(2).transpose(1, 2) @ model.skinning).unflatten(1, (3, 4))
        vertices = blended[:, :, 3]
        for axis in range(3):
            vertices = torch.addcmul(vertices, blended[:, :, axis], unposed[:, axis, None])
        return _Posed(vertices=vertices, unposed=unposed, blended=blended, bones=bones, joints=joints)

    def _cost(self, state: _State, posed: _Posed, target: Tensor) -> tuple[Tensor, Tensor]:
        """What is minimised, in square metres, and the mean distance of the vertices; (B,) each."""
        squared = (target - posed.vertices).square().sum(1)
        return squared.mean(1) + self.shape_penalty * state.shape.square().sum(1), squared.sqrt().mean(1)

    def _improved(self, state: _State, posed: _Posed, target: Tensor) -> _State:
        """One step of Gauss-Newton."""
        derivative = self._derivative(state, posed)
        normal_matrix = self._normal_matrix(derivative, state)
        gradient = self._gradient(derivative, state, posed, target - posed.vertices)
        step = torch.linalg.solve_ex(normal_matrix.double(), gradient.double())[0].to(target)[..., 0]
        turn, place, shape = step.split((3 * self.num_joints, 3, self.num_shape), dim=1)
        turn = turn.unflatten(1, (-1, 3))
        turn = turn / (turn.norm(dim=-1, keepdim=True) / _LARGEST_TURN_RAD).clamp_min(1)
        return _State(
            world=axis_angle_to_matrix(turn) @ state.world,
            shape=(state.shape + shape).clamp(-_LARGEST_SHAPE, _LARGEST_SHAPE),
            place=state.place + place,
        )

    def _derivative(self, state: _State, posed: _Posed) -> Tensor:
        """Bone transforms by the unknowns, (B, P, 3, J, 4): turns about each joint in the world, place, shape.

        A joint's turn moves its own bone, and carries along those beyond it, which keep their directions.
        """
        num_bodies, (num_joints, num_shape) = len(posed.joints), (self.num_joints, self.num_shape)
        own = torch.cat((state.world, posed.bones[..., 3:] - posed.joints[..., None]), dim=-1)  # (B, J, 3, 4)
        arms = (posed.joints[:, self.toward] - posed.joints[:, :, None]) * self.beyond[..., None]  # (B, J, J, 3)
        lever = torch.diag_embed(own.permute(0, 2, 3, 1)).permute(0, 3, 4, 1, 2).contiguous()  # (B, J, J, 3, 4)
        lever[..., 3] += arms
        derivative = lever.new_zeros(num_bodies, 3 * num_joints + 3 + num_shape, 3, num_joints, 4)
        turns = derivative[:, : 3 * num_joints].unflatten(1, (num_joints, 3))  # (B, J, 3, 3, J, 4), a view
        for axis, plus, minus in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):  # unit vector times lever
            turns[:, :, axis, minus] = lever[..., plus, :]
            turns[:, :, axis, plus] = -lever[..., minus, :]
        for axis in range(3):
            derivative[:, 3 * num_joints + axis, axis, :, 3] = 1
        dirs = self.model.joint_shape_dirs
        steps = state.world[:, self.parents] @ (dirs - dirs[self.parents])  # (B, J, 3, S)
        shift = dirs[0] + torch.einsum("jk,bkcs->bjcs", self.before, steps) - state.world @ dirs
        derivative[:, -num_shape:, :, :, 3] = shift.permute(0, 3, 2, 1)
        return derivative

    def _normal_matrix(self, derivative: Tensor, state: _State) -> Tensor:
        """(B, P, P) of the mean square distance and the penalty, from moments; the pose blend shapes are left out.

        A vertex moves by (moved bones) times (rest position), and by bones times (moved rest position) with the shape.
        """
        num_joints, num_shape = self.num_joints, self.num_shape
        scale = torch.cat((torch.ones_like(state.shape[:, :1]), state.shape), dim=1)  # (B, 1 + S)
        half = (scale @ self.moments).unflatten(1, (num_joints, -1, num_joints, 3))
        half = torch.cat((half, self.moments_of_one.expand(len(half), -1, -1, -1, -1)), dim=-1).flatten(3)
        parts = half[:, :, 1:].unflatten(2, (num_shape + 1, 3))  # (B, J, 1 + S, 3, 4 J)
        rest = torch.cat((torch.einsum("bk,bjkxn->bjxn", scale, parts), half[:, :, :1]), dim=2).flatten(1, 2)
        by_bones = (derivative.flatten(1, 2).flatten(2) @ rest).unflatten(1, (-1, 3)).flatten(2)  # (B, P, 3 * 4 J)
        flat = derivative.flatten(2).transpose(1, 2)
        matrix = by_bones @ flat
        cross = torch.einsum("bjcx,bjsxn->bscn", state.world, parts[:, :, 1:]).flatten(2) @ flat  # (B, S, P)
        matrix[:, -num_shape:] += cross
        matrix[:, :, -num_shape:] += cross.transpose(1, 2)
        between = torch.einsum("bjcx,bicy->bjxiy", state.world, state.world).flatten(1)
        matrix[:, -num_shape:, -num_shape:] += (between @ self.moments_of_shape).unflatten(1, (num_shape, num_shape))
        matrix[:, : 3 * num_joints].diagonal(dim1=1, dim2=2).add_(_DAMPING_M**2)
        matrix[:, -num_shape:, -num_shape:].diagonal(dim1=1, dim2=2).add_(self.shape_penalty)
        return matrix

    def _gradient(self, derivative: Tensor, state: _State, posed: _Posed, residual: Tensor) -> Tensor:
        """Minus half the derivative of the cost by the unknowns, (B, P, 1); residual (B, 3, V)."""
        model, num_shape = self.model, self.num_shape
        num_vertices = residual.shape[2]
        pull = (residual[:, :, None] * posed.unposed[:, None]).flatten(1, 2) @ model.skinning.T  # (B, 9, J)
        pull = torch.cat((pull.unflatten(1, (3, 3)), (residual @ model.skinning.T)[:, :, None]), dim=2)  # (B, 3, 4, J)
        gradient = derivative.flatten(2) @ pull.transpose(2, 3).flatten(1)[..., None] / num_vertices  # (B, P, 1)
        turned_back = residual[:, None, 0] * posed.blended[:, 0, :3]
        for axis in (1, 2):
            turned_back = torch.addcmul(turned_back, residual[:, None, axis], posed.blended[:, axis, :3])
        by_shape = turned_back.flatten(1) @ model.blend_dirs[:num_shape].T / num_vertices
        gradient[:, -num_shape:, 0] += by_shape - self.shape_penalty * state.shape
        return gradient


def _where(condition: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Body by body, (B,), (B, ...), (B, ...)."""
    return torch.where(condition.view(-1, *(1,) * (first.ndim - 1)), first, second)


def _paths(parents: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """The tree as matrices, (J, J) each, rows are joints.

    1 for the joints on the way to it, itself but not the root; its child on the way to each joint; 1 for the joints
    beyond it.
    """
    before, beyond = torch.zeros(2, len(parents), len(parents))
    toward = torch.zeros(len(parents), len(parents), dtype=torch.long)
    for joint in range(len(parents)):
        step = joint
        while parents[step] >= 0:
            before[joint, step] = beyond[parents[step], joint] = 1
            toward[parents[step], joint] = step
            step = parents[step]
    return before, toward, beyond


def _part_moments(body: Body) -> Tensor:
    """Weight times rest position relative to the part's centre, (V, 3 J): on the right of a product with a mesh
    (3, V) it gives the covariance of each part with its rest position."""
    skinning, template = torch.from_numpy(body.skinning).double(), torch.from_numpy(body.template).double()
    centre = skinning.T @ template / skinning.sum(0).clamp_min(1e-9)[:, None]
    return (skinning[:, :, None] * (template[:, None] - centre)).flatten(1).float()


def _second_moments(body: Body) -> dict[str, Tensor]:
    """Mean over the vertices of (weight, weight, basis, basis), as the normal matrix needs it.

    The basis of rest positions: one, the template's x, y, z and those of each blend shape, A = 4 + 3 S. `moments`
    (1 + S, J A J 3), `moments_of_one` (J, A, J, 1), `moments_of_shape` (9 J J, S S).
    """
    skinning = torch.from_numpy(body.skinning).double()
    template, dirs = torch.from_numpy(body.template).double(), torch.from_numpy(body.shape_dirs).double()
    num_vertices, num_joints, num_shape = *skinning.shape, dirs.shape[-1]
    basis = torch.cat((torch.ones_like(template[:, :1]), template, dirs.transpose(1, 2).flatten(1)), dim=1)
    gram = torch.zeros(num_joints, basis.shape[1], num_joints, basis.shape[1], dtype=basis.dtype)
    for first in range(num_joints):
        for second in range(first + 1):
            both = skinning[:, first] * skinning[:, second]
            shared = both.nonzero()[:, 0]
            if len(shared):
                some = basis[shared]
                gram[first, :, second] = gram[second, :, first] = some.T @ (both[shared, None] * some) / num_vertices
    by_scale = gram[..., 1:].unflatten(3, (num_shape + 1, 3)).permute(3, 0, 1, 2, 4)
    of_shape = gram[:, 4:, :, 4:].unflatten(3, (num_shape, 3)).unflatten(1, (num_shape, 3)).permute(0, 2, 3, 5, 1, 4)
    return {
        "moments": by_scale.flatten(1).float().contiguous(),
        "moments_of_one": gram[..., :1].float().contiguous(),
        "moments_of_shape": of_shape.flatten(4).flatten(0, 3).float().contiguous(),
    }
