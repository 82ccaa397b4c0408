"""Losses on the bones of a 3D pose, one value per sample: lengths, vectors, symmetry and angles no joint can take."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mesh.errors import InputError
from mesh.joints import JointSet

# Limits of `JointLimitLoss`. Each is the 99.9 % quantile of that angle in 20,000 poses drawn from the shipped prior
# (data.prior, random body shapes, coco19 joints of mesh.skinning.JointModel on the free body), rounded up to 5 degrees;
# the measured quantile stands behind it. Where anatomy allows more than the prior shows, as said, anatomy decides.
KNEE_FLEXION_RAD = math.radians(155)  # 140; who sits on his heels bends the knees so far
ELBOW_FLEXION_RAD = math.radians(150)  # 147
KNEE_BACKWARD_RAD = math.radians(15)  # 12
ELBOW_BACKWARD_RAD = math.radians(15)  # 14
THIGH_SWING_RAD = math.radians(90)  # 87, from THIGH_CENTRE
UPPER_ARM_SWING_RAD = math.radians(125)  # 121, from UPPER_ARM_CENTRE
TRUNK_TWIST_RAD = math.radians(50)  # 46, line of the shoulders against line of the hips
HEAD_TURN_RAD = math.radians(85)  # 82, line of the ears against line of the shoulders
HEAD_TILT_RAD = math.radians(60)  # 57, from HEAD_CENTRE

# Directions in the frame of hips or shoulders: x to the side of the limb, y up the trunk, z to the front. The centres
# are near the middle of where the drawn poses point.
THIGH_CENTRE = (1.0, -2.0, 2.0)
UPPER_ARM_CENTRE = (2.0, 0.0, 1.0)
HEAD_CENTRE = (0.0, 2.0, 1.0)
# A shank bends to the back of its thigh, but which side of a raised thigh is its back? Turn the thigh the shortest way
# to the reference direction, the shank with it, and see there. The references were chosen among the 26 directions
# towards the faces, edges and corners of a cube, so that the drawn poses use little of the side opposite to bending.
KNEE_REFERENCE, KNEE_BENDING = (0.0, -1.0, 1.0), (0.0, -1.0, -1.0)
ELBOW_REFERENCE, ELBOW_BENDING = (1.0, -1.0, 1.0), (-1.0, 1.0, 2.0)

SHORT_M = 0.01  # a bone, or a shoulder or hip line, below it has no direction


class BoneLengthLoss(nn.Module):
    """Mean absolute error of the bones' lengths, metres."""

    edges: Tensor

    def __init__(self, joints: JointSet) -> None:
        super().__init__()
        self.register_buffer("edges", torch.tensor(_bones(joints)), persistent=False)  # (E, 2)

    def forward(self, pred: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
        """(B, J, 3) metres twice, (B, J) bool -> (B,); a bone counts if both its ends are known."""
        true = _lengths(_vectors(target, self.edges))
        return _mean((_lengths(_vectors(pred, self.edges)) - true).abs(), _both_ends(self.edges, pred, known))


class BoneVectorLoss(nn.Module):
    """Mean absolute coordinate error of the bones as vectors, metres (Sun et al. 2017, Compositional human pose)."""

    edges: Tensor

    def __init__(self, joints: JointSet) -> None:
        super().__init__()
        self.register_buffer("edges", torch.tensor(_bones(joints)), persistent=False)  # (E, 2)

    def forward(self, pred: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
        """(B, J, 3) metres twice, (B, J) bool -> (B,); a bone counts if both its ends are known."""
        error = (_vectors(pred, self.edges) - _vectors(target, self.edges)).abs().mean(-1)
        return _mean(error, _both_ends(self.edges, pred, known))


class BoneSymmetryLoss(nn.Module):
    """Mean over left-right pairs of bones of (|left|^2 - |right|^2)^2, in m^4."""

    left: Tensor
    right: Tensor

    def __init__(self, joints: JointSet) -> None:
        super().__init__()
        left, right = zip(*bone_pairs(joints))
        self.register_buffer("left", torch.tensor(left), persistent=False)  # (P, 2)
        self.register_buffer("right", torch.tensor(right), persistent=False)  # (P, 2)

    def forward(self, pred: Tensor, known: Tensor | None = None) -> Tensor:
        """(B, J, 3) metres, (B, J) bool -> (B,); a pair counts if its four ends are known."""
        counted = _both_ends(self.left, pred, known) & _both_ends(self.right, pred, known)
        difference = _vectors(pred, self.left).square().sum(-1) - _vectors(pred, self.right).square().sum(-1)
        return _mean(difference.square(), counted)


class JointLimitLoss(nn.Module):
    """How far joints are bent beyond what people can do: mean excess over the limits, radians.

    Joint positions tell no twist of a limb, so the limits are of directions: knees and elbows bent too far or the
    wrong way, thighs and upper arms behind the body or across it, trunk twisted, head turned or tilted. Each angle
    lies between two directions, with the body's own frame from its hip and shoulder lines; so only the handedness of
    the frame matters, which the camera frame and the bodies' frame share. An angle whose directions are not
    defined (bones without length) or whose joints are not known is left out, as are limits of joints that the set
    lacks.
    """

    limits_rad: Tensor
    uses: Tensor
    side: Tensor
    limb_directions: Tensor
    head_centre: Tensor

    def __init__(self, joints: JointSet) -> None:
        super().__init__()
        missing = [name for name in _LIMBS if name not in joints.names]
        if missing:
            raise InputError(f"joint limits need the joints of the limbs; {joints.name} has no {', '.join(missing)}")
        self.place = {name: joints.index(name) for name in (*_LIMBS, *_EARS) if name in joints.names}
        self.has_ears = all(name in self.place for name in _EARS)
        limits = _LIMB_LIMITS | {"trunk_twist": (TRUNK_TWIST_RAD, _TRUNK)}
        if self.has_ears:
            limits |= {"head_turn": (HEAD_TURN_RAD, (*_TRUNK, *_EARS)), "head_tilt": (HEAD_TILT_RAD, (*_TRUNK, *_EARS))}
        self.names = tuple(limits)
        uses = torch.zeros(len(limits), len(joints), dtype=torch.bool)
        for row, (_, used) in enumerate(limits.values()):
            uses[row, list(joints.indices(used))] = True
        self.register_buffer("limits_rad", torch.tensor([limit for limit, _ in limits.values()]), persistent=False)
        self.register_buffer("uses", uses, persistent=False)  # (L, J)
        self.register_buffer("side", torch.tensor([[1.0, 1.0, 1.0], [-1.0, 1.0, 1.0]]), persistent=False)  # (2, 3)
        directions = torch.tensor([_LEG_DIRECTIONS, _ARM_DIRECTIONS])  # (2, 3, 3): leg, arm; centre, reference, bending
        self.register_buffer("limb_directions", normalize(directions, dim=-1), persistent=False)
        self.register_buffer("head_centre", normalize(torch.tensor(HEAD_CENTRE), dim=-1), persistent=False)  # (3,)

    def forward(self, pred: Tensor, known: Tensor | None = None) -> Tensor:
        """(B, J, 3) metres, (B, J) bool -> (B,)."""
        angles, defined = self.angles(pred)
        if known is not None:
            defined = defined & ~(~known[:, None] & self.uses).any(-1)
        return _mean((angles - self.limits_rad).relu(), defined)

    def angles(self, joints_m: Tensor) -> tuple[Tensor, Tensor]:
        """The angle that each of `names` limits, (B, J, 3) metres -> (B, L) radians, and where it is defined (bool)."""
        hips, knees, ankles = (self._both(joints_m, name) for name in ("hip", "knee", "ankle"))
        shoulders, elbows, wrists = (self._both(joints_m, name) for name in ("shoulder", "elbow", "wrist"))
        trunk = shoulders.mean(1) - hips.mean(1)
        hip_frame, shoulder_frame = _frame(hips, trunk), _frame(shoulders, trunk)
        leg, arm = self.limb_directions
        found = [
            *self._limb(hips, knees, ankles, hip_frame, leg),
            *self._limb(shoulders, elbows, wrists, shoulder_frame, arm),
            _angle(shoulder_frame[:, :1], hip_frame[:, :1]),
        ]
        if self.has_ears:
            ears = self._both(joints_m, "ear")
            head = _in_frame(_unit(ears.mean(1) - shoulders.mean(1))[:, None], shoulder_frame)
            found += [
                _angle(_unit(ears[:, :1] - ears[:, 1:]), shoulder_frame[:, :1]),
                _angle(head, self.head_centre),
            ]
        angles, defined = zip(*found)
        return torch.cat(angles, dim=1), torch.cat(defined, dim=1)

    def _both(self, joints_m: Tensor, name: str) -> Tensor:
        """A joint of the left and of the right side, (B, 2, 3)."""
        return torch.stack([joints_m[:, self.place[f"{side}_{name}"]] for side in ("left", "right")], dim=1)

    def _limb(
        self, first: Tensor, middle: Tensor, last: Tensor, frame: Tensor, directions: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """Swing of the upper bones, flexion and wrong-way bend of the lower ones: joints (B, 2, 3), each (B, 2)."""
        centre, reference, bending = directions
        upper = _in_frame(_unit(middle - first), frame) * self.side
        lower = _in_frame(_unit(last - middle), frame) * self.side
        return [_angle(upper, centre), _angle(lower, upper), _angle(_turn_back(upper, reference, lower), bending)]


def _bones(joints: JointSet) -> tuple[tuple[int, int], ...]:
    if not joints.edges:
        raise InputError(f"joint set {joints.name} has no links, so it has no bones to compare")
    return joints.edges


def bone_pairs(joints: JointSet) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Left bones and their right partners, by index of their ends; from the names."""
    mirror = joints.flip_permutation
    left = {i for i, _ in joints.flip_pairs}
    links = {frozenset(edge) for edge in joints.edges}
    pairs = [((a, b), (mirror[a], mirror[b])) for a, b in joints.edges if left & {a, b}]
    pairs = [(bone, other) for bone, other in pairs if {*bone} != {*other} and {*other} in links]
    if not pairs:
        raise InputError(f"joint set {joints.name} has no left and right bones to compare")
    return pairs


_LEG_DIRECTIONS = (THIGH_CENTRE, KNEE_REFERENCE, KNEE_BENDING)
_ARM_DIRECTIONS = (UPPER_ARM_CENTRE, ELBOW_REFERENCE, ELBOW_BENDING)
_EARS = ("left_ear", "right_ear")
_TRUNK = ("left_hip", "right_hip", "left_shoulder", "right_shoulder")
_LIMBS = (
    *_TRUNK, "left_knee", "right_knee", "left_ankle", "right_ankle", "left_elbow", "right_elbow", "left_wrist",
    "right_wrist",
)  # fmt: skip


def _limb_limits(
    upper: str, upper_end: str, lower_end: str, *, swing: float, flexion: float, backward: float
) -> dict[str, tuple[float, tuple[str, ...]]]:
    """Limit and joints of each angle of `JointLimitLoss._limb`, in its order, left before right."""
    limits: dict[str, tuple[float, tuple[str, ...]]] = {}
    for name, limit, used in (
        (f"{upper}_swing", swing, (upper_end,)),
        (f"{upper_end}_flexion", flexion, (upper_end, lower_end)),
        (f"{upper_end}_backward", math.pi / 2 + backward, (upper_end, lower_end)),
    ):
        for side in ("left", "right"):
            limits[f"{side}_{name}"] = (limit, (*_TRUNK, *(f"{side}_{joint}" for joint in used)))
    return limits


_LIMB_LIMITS = _limb_limits(
    "thigh", "knee", "ankle", swing=THIGH_SWING_RAD, flexion=KNEE_FLEXION_RAD, backward=KNEE_BACKWARD_RAD
) | _limb_limits(
    "upper_arm", "elbow", "wrist", swing=UPPER_ARM_SWING_RAD, flexion=ELBOW_FLEXION_RAD, backward=ELBOW_BACKWARD_RAD
)


def _vectors(joints_m: Tensor, edges: Tensor) -> Tensor:
    return joints_m[:, edges[:, 1]] - joints_m[:, edges[:, 0]]  # (B, E, 3)


def _lengths(vectors: Tensor) -> Tensor:
    """(..., 3) -> (...); a vector of length 0 gets a gradient of 0."""
    return vectors.square().sum(-1).clamp_min(1e-12).sqrt()


def _both_ends(edges: Tensor, joints_m: Tensor, known: Tensor | None) -> Tensor:
    """Which bones count, (B, E) bool."""
    if known is None:
        return torch.ones(len(joints_m), len(edges), dtype=torch.bool, device=joints_m.device)
    return known[:, edges].all(-1)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Mean over what counts, (B, N), (B, N) bool -> (B,); 0 where nothing does."""
    return torch.where(counted, values, 0.0).sum(1) / counted.sum(1).clamp_min(1)


def _unit(vectors: Tensor) -> Tensor:
    """Directions, (..., 3); what is shorter than `SHORT_M` comes out shorter than 1, so that gradients stay finite."""
    return vectors * vectors.square().sum(-1, keepdim=True).clamp_min(SHORT_M**2).rsqrt()


def _frame(sides: Tensor, trunk: Tensor) -> Tensor:
    """Axes left, up, front of the trunk at its left and right joint: (B, 2, 3), (B, 3) -> (B, 3, 3) in rows.

    0, all of it, where the body defines no frame.
    """
    left = _unit(sides[:, 0] - sides[:, 1])
    up = _unit(trunk - (trunk * left).sum(-1, keepdim=True) * left)
    front = torch.linalg.cross(left, up)
    defined = front.square().sum(-1) > 0.9
    return torch.where(defined[:, None, None], torch.stack((left, up, front), dim=1), 0.0)


def _in_frame(vectors: Tensor, frame: Tensor) -> Tensor:
    """(B, N, 3), (B, 3, 3) -> (B, N, 3); written out, because mixed precision would shorten a matrix product."""
    return (vectors[:, :, None] * frame[:, None]).sum(-1)


def _angle(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Angle between directions, (..., 3) twice -> (...) radians, and where both have one (bool)."""
    kind = torch.promote_types(a.dtype, b.dtype)
    a, b = torch.broadcast_tensors(a.to(kind), b.to(kind))
    sine = torch.linalg.cross(a, b).square().sum(-1).clamp_min(1e-8).sqrt()
    return torch.atan2(sine, (a * b).sum(-1)), a.square().sum(-1) * b.square().sum(-1) > 0.9


def _turn_back(start: Tensor, end: Tensor, carried: Tensor) -> Tensor:
    """What the shortest turn from `start` to `end` makes of `carried`: directions (..., 3).

    0, no direction, where the way is not defined: from one direction to the opposite one.
    """
    cosine = (start * end).sum(-1, keepdim=True)
    defined = (cosine > -0.95) & (start.square().sum(-1, keepdim=True) > 0.9)
    middle = start + end
    turned = (
        carried
        - middle * (middle * carried).sum(-1, keepdim=True) / (1 + cosine).clamp_min(0.05)
        + 2 * end * (start * carried).sum(-1, keepdim=True)
    )
    return torch.where(defined, turned, 0.0)
