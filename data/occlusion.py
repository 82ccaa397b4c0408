"""Which joints a body hides from the camera, from its joints alone: limbs, trunk and head as round cones (capsules)."""

from __future__ import annotations

import torch
from torch import Tensor

from mesh.joints import COCO17

# How far a joint lies below the skin that shows it; whatever is nearer to the camera than that hides the joint.
COVER_M = {"shoulder": 0.12, "elbow": 0.08, "wrist": 0.07, "hip": 0.17, "knee": 0.11, "ankle": 0.09}
FACE_COVER_M = 0.03

# Radii at both ends, metres. On rendered bodies as many joints are hidden by the cones as in the pictures, and mostly
# the same: F-score 0.78 for the body's, 0.91 for the face's (docs/experiments.md).
_LIMBS = {
    ("shoulder", "elbow"): (0.077, 0.063),
    ("elbow", "wrist"): (0.063, 0.042),
    ("hip", "knee"): (0.119, 0.077),
    ("knee", "ankle"): (0.077, 0.056),
}
_HAND = (0.049, 0.056)
_HAND_LENGTH = 0.6  # of the forearm
_TRUNK = (0.11, 0.121)  # each of three cones from the shoulders to the hips
_TRUNK_PLACES = (0.15, 0.5, 0.85)  # from the left side to the right
_COVER_OF_CONES_M = {"shoulder": 0.15, "nose": 0.08, "eye": 0.08, "ear": 0.08}  # where these stand out from the body
_NECK, _HEAD = (0.066, 0.099), (0.1045, 0.099)
_HEAD_LENGTH = 0.3  # of the neck's, above the ears


def cover_m(name: str) -> float:
    """Depth of a COCO joint below the skin, metres."""
    return COVER_M.get(name.rpartition("_")[2], FACE_COVER_M)


def _cones() -> tuple[Tensor, Tensor, Tensor]:
    """Begin and extent of each cone as sums of the joints, (K, 17) each, and its radii (K, 2), metres."""
    joint = {name: row for name, row in zip(COCO17.names, torch.eye(len(COCO17)))}
    cones: list[tuple[Tensor, Tensor, tuple[float, float]]] = []
    for side in ("left", "right"):
        for (upper, lower), radii in _LIMBS.items():
            begin = joint[f"{side}_{upper}"]
            cones.append((begin, joint[f"{side}_{lower}"] - begin, radii))
        wrist = joint[f"{side}_wrist"]
        cones.append((wrist, _HAND_LENGTH * (wrist - joint[f"{side}_elbow"]), _HAND))
    for place in _TRUNK_PLACES:
        top, bottom = (torch.lerp(joint[f"left_{part}"], joint[f"right_{part}"], place) for part in ("shoulder", "hip"))
        cones.append((top, bottom - top, _TRUNK))
    neck = (joint["left_shoulder"] + joint["right_shoulder"]) / 2
    ears = (joint["left_ear"] + joint["right_ear"]) / 2
    cones += [(neck, ears - neck, _NECK), (ears, _HEAD_LENGTH * (ears - neck), _HEAD)]
    begins, extents, radii = zip(*cones)
    return torch.stack(begins), torch.stack(extents), torch.tensor(radii)


_BEGINS, _EXTENTS, _RADII = _cones()
_COVERS = torch.tensor([_COVER_OF_CONES_M.get(name.rpartition("_")[2], cover_m(name)) for name in COCO17.names])


def hidden_by_body(joints_m: Tensor) -> Tensor:
    """Which COCO-17 joints lie behind the person's own body, (B, 17 or more, 3) -> (B, 17) bool.

    Metres, camera frame (x right, y down, z forward); the camera is taken to be far away, and the person an adult.
    """
    joints = joints_m[:, : len(COCO17)].float()
    place = joints.device
    begin, extent = (torch.einsum("kj,bjc->cbk", m.to(place), joints)[..., None] for m in (_BEGINS, _EXTENTS))
    x, y, z = (joints.permute(2, 0, 1)[:, :, None] - begin).unbind(
        0
    )  # from each cone's begin to each joint, (B, K, 17)
    along_x, along_y, along_z = extent.unbind(0)
    share = (x * along_x + y * along_y) / (along_x.square() + along_y.square()).clamp_min(1e-6)
    share = share.clamp_(0, 1)
    first, last = _RADII.to(place)[..., None].unbind(1)
    radius = torch.lerp(first, last, share)
    within = radius.square() - (x - share * along_x).square() - (y - share * along_y).square()
    behind = z - share * along_z + within.clamp_min(0).sqrt()  # how far behind the cone's front, where it is in front
    return ((within > 0) & (behind > _COVERS.to(place))).any(1)
