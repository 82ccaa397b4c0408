"""2D error of detectors on COCO by its kinds: jitter, miss, inversion (Moon et al. 2019, PoseFix, as Pose2Mesh has it).

Every joint is either good or suffers one error, with probabilities by kind of joint and by how many joints are
visible. Lengths are told by keypoint similarity: the radius at similarity s is where an error scores s.

    r_s = sqrt(-2 area (2 sigma)^2 ln s)

| option    | around           | distance     | refused                                      |
| good      | the joint        | 0 to r.85    | nearer to the partner                        |
| jitter    | the joint        | r.85 to r.5  | nearer to the partner                        |
| miss      | joint or partner | r.5 to r.1   | within r.5 of the other of the two           |
| inversion | the partner      | 0 to r.5     | nearer to the joint itself                   |

The partner is the same joint of the other side, if that is visible. PoseFix's fifth option, swap with another person,
has probability 0 in Pose2Mesh and needs a second person: it is not here. As published, joints are treated in order, so
a right joint's partner is the left one with its error, while a left joint's partner is exact.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from data.draws import Draws
from data.noise_human36m import crop_size
from mesh.joints import COCO17

# Per-joint constants of the COCO keypoint evaluation (cocodataset.org, "keypoints evaluation"): relative annotation sd.
COCO_SIGMAS = (
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089,
    0.089,
)  # fmt: skip
OPTIONS = ("jitter", "miss", "inversion", "good")
_JITTER, _MISS, _INVERSION, _GOOD = range(4)

# By kind of joint. Miss: more than ten joints visible, at most ten, at most five.
_JITTER_RATE = {
    "nose": 0.10, "eye": 0.15, "ear": 0.15, "shoulder": 0.15, "elbow": 0.15, "wrist": 0.15, "hip": 0.20, "knee": 0.10,
    "ankle": 0.10,
}  # fmt: skip
_JITTER_RATE_MORE = 0.05  # with at most ten joints visible
_FACE_MISS, _END_MISS, _OTHER_MISS = (0.02, 0.10, 0.15), (0.05, 0.13, 0.20), (0.10, 0.15, 0.25)
_MISS_RATE = {
    "nose": _FACE_MISS, "eye": _FACE_MISS, "ear": _FACE_MISS, "shoulder": _END_MISS, "elbow": _OTHER_MISS,
    "wrist": _OTHER_MISS, "hip": _OTHER_MISS, "knee": _OTHER_MISS, "ankle": _END_MISS,
}  # fmt: skip
_INVERSION_RATE = {
    "nose": 0.01, "eye": 0.01, "ear": 0.01, "shoulder": 0.03, "elbow": 0.03, "wrist": 0.03, "hip": 0.06, "knee": 0.06,
    "ankle": 0.06,
}  # fmt: skip
_KIND = tuple(name.rpartition("_")[2] for name in COCO17.names)
_PARTNER = list(COCO17.flip_permutation)  # the nose is its own, which stands for none
_HAS_PARTNER = tuple(partner != joint for joint, partner in enumerate(_PARTNER))
# The published order is nose, left, right, left, right, ...; no joint but the partner matters, so this is the same.
_PASSES = tuple([i for i, n in enumerate(COCO17.names) if n.startswith("right") == right] for right in (False, True))

_LOW, _HIGH = (1, 2, 0, 0), (2, 3, 2, 1)  # by option: places of its distances in (0, r.85, r.5, r.1)
_AT_PARTNER = 0.2  # share of candidates for a miss around the partner: the original keeps a quarter as many of them
_CANDIDATES = 16  # each accepted with probability 1/2 or more, wherever the partner is


def similarity_radius(similarity: float, area: Tensor) -> Tensor:
    """Distance at which a joint's error has this keypoint similarity: (B,) px^2 -> (B, 17) px."""
    sigma = area.new_tensor(COCO_SIGMAS)
    return (-2 * math.log(similarity) * area[:, None]).sqrt() * 2 * sigma


def option_probabilities(visible: Tensor) -> Tensor:
    """Probability of each of `OPTIONS`, (B, 17) bool -> (B, 17, 4); inversion needs a visible partner."""
    count = visible.sum(-1)
    jitter = visible.new_tensor([_JITTER_RATE[kind] for kind in _KIND], dtype=torch.float32)
    jitter = jitter + _JITTER_RATE_MORE * (count <= 10)[:, None]
    level = (count <= 10).long() + (count <= 5).long()
    miss = visible.new_tensor([_MISS_RATE[kind] for kind in _KIND], dtype=torch.float32).T[level]
    inversion = visible.new_tensor([_INVERSION_RATE[kind] for kind in _KIND], dtype=torch.float32).expand_as(jitter)
    good = 1 - jitter - miss - inversion
    rates = torch.stack((jitter, miss, inversion * _has_partner(visible), good), dim=-1)
    return rates / rates.sum(-1, keepdim=True)


def coco_error(keypoints: Tensor, draws: Draws, visible: Tensor | None = None) -> Tensor:
    """Joints with errors of these kinds: COCO-17, (B, 17, 2) px and which are visible (B, 17) bool -> (B, 17, 2) px.

    All joints are visible if none are named. The area is that of Pose2Mesh's crop around all 17, visible or not; those
    that are not visible err as well, but stand for nobody's partner. A joint none of whose candidates
    is accepted (in the worst place of the partner one in 65 536) stays where it is.
    """
    visible = torch.ones_like(keypoints[..., 0], dtype=torch.bool) if visible is None else visible
    area = crop_size(keypoints).prod(-1)
    radii = torch.stack([similarity_radius(s, area) for s in (1.0, 0.85, 0.5, 0.1)], dim=-1)  # (B, 17, 4)
    below = option_probabilities(visible)[..., :_GOOD].cumsum(-1)
    option = (draws.rand(len(COCO17), 1) >= below).sum(-1)
    paired = _has_partner(visible)
    uniform = draws.rand(3, len(COCO17), _CANDIDATES)
    points = keypoints.clone()
    for joints in _PASSES:
        partner = points[:, [_PARTNER[joint] for joint in joints]]
        points[:, joints] = _displaced(
            keypoints[:, joints], partner, paired[:, joints], option[:, joints], radii[:, joints], uniform[:, :, joints]
        )
    return points


def _has_partner(visible: Tensor) -> Tensor:
    """Which joints have a visible partner, (B, 17) bool -> (B, 17) bool."""
    return visible[:, _PARTNER] & torch.tensor(_HAS_PARTNER, device=visible.device)


def _displaced(own: Tensor, partner: Tensor, paired: Tensor, option: Tensor, radii: Tensor, uniform: Tensor) -> Tensor:
    """Where each joint's option puts it: the first accepted of its candidates.

    (B, J, 2) px, (B, J, 2) px, (B, J) bool, (B, J) int64, (B, J, 4) px, (B, 3, J, candidates) -> (B, J, 2) px.
    """
    for_distance, for_angle, for_centre = uniform.unbind(1)
    low, high = (radii.gather(-1, option.new_tensor(place)[option][..., None]) for place in (_LOW, _HIGH))
    distance, angle = low + (high - low) * for_distance, 2 * math.pi * for_angle
    x, y = distance * angle.cos(), distance * angle.sin()  # from the candidates' centre, (B, J, candidates)
    is_miss, paired = (option == _MISS)[..., None], paired[..., None]
    at_partner = (option == _INVERSION)[..., None] | (is_miss & paired & (for_centre < _AT_PARTNER))
    across = partner - own
    gap, sign = across.square().sum(-1, keepdim=True), 1 - 2 * at_partner.to(own)
    along = sign * (x * across[..., :1] + y * across[..., 1:])  # candidate times place of the other joint
    is_nearer = 2 * along > gap
    is_within = distance.square() - 2 * along + gap <= radii[..., 2, None].square()
    accepted = ~(paired & torch.where(is_miss, is_within, is_nearer))
    first = accepted.int().argmax(-1, keepdim=True)
    from_centre = torch.cat((x.gather(-1, first), y.gather(-1, first)), dim=-1)
    moved = torch.where(at_partner.gather(-1, first), across + from_centre, from_centre)
    return own + moved * accepted.any(-1, keepdim=True)
