"""2D error of a detector on Human3.6M: a Gaussian for each joint (the table of Chang et al. 2019, Absposelifter).

Pose2Mesh adds it to exact joints in a crop of 288 x 384 px: the joints' box, grown about its centre to that shape. The
table counts pixels of a square of 256, stretched over the crop, so an entry is a 256th of the crop's width (x) or
height (y), and the whole is here computed in the picture itself, without making the crop.
"""

from __future__ import annotations

import torch
from torch import Tensor

from data.draws import Draws
from mesh.joints import COCO17, JointSet

_CROP_ASPECT = 288 / 384  # width / height
_TABLE_SIDE = 256
# Joint of human36m17: mean x, mean y, sd x, sd y, and the probability that the joint has an error at all.
HUMAN36M_ERRORS = {
    "pelvis": (-0.06, -2.37, 1.33, 2.13, 1.00),
    "right_hip": (-0.83, -2.07, 3.41, 2.69, 1.00),
    "right_knee": (-0.04, -1.01, 1.74, 2.20, 0.95),
    "right_ankle": (0.52, -3.40, 1.39, 2.14, 0.93),
    "left_hip": (0.78, -2.79, 3.26, 2.28, 1.00),
    "left_knee": (0.42, -0.15, 1.53, 1.99, 0.94),
    "left_ankle": (-0.15, -3.78, 1.39, 2.39, 0.93),
    "torso": (-0.05, 0.10, 1.36, 1.74, 0.99),
    "neck": (0.14, -2.56, 1.18, 1.15, 0.99),
    "head": (0.09, 0.49, 1.35, 0.87, 0.99),
    "nose": (0.13, -0.26, 0.78, 0.59, 0.98),
    "left_shoulder": (-0.19, 0.31, 2.51, 1.48, 0.99),
    "left_elbow": (0.11, -0.60, 1.79, 1.76, 0.95),
    "left_wrist": (-0.02, 0.88, 2.02, 2.10, 0.91),
    "right_shoulder": (0.52, -0.12, 2.23, 1.73, 0.99),
    "right_elbow": (0.06, -0.44, 1.93, 1.63, 0.95),
    "right_wrist": (0.05, 0.16, 2.02, 2.24, 0.90),
}
# COCO joints that Human3.6M lacks: the eyes lie next to the nose, the ears on the head. Everything else goes by name.
_STANDS_FOR = {"left_eye": "nose", "right_eye": "nose", "left_ear": "head", "right_ear": "head"}


def crop_size(keypoints: Tensor) -> Tensor:
    """Width and height of Pose2Mesh's crop: the joints' box grown to 3 : 4. (B, J, 2) -> (B, 2), same unit.

    The original first takes one pixel off the box; this is left out, since it would tie the noise to a resolution.
    """
    width, height = (keypoints.amax(-2) - keypoints.amin(-2)).unbind(-1)
    width = width.maximum(height * _CROP_ASPECT)
    return torch.stack((width, width / _CROP_ASPECT), dim=-1)


def human36m_error(keypoints: Tensor, draws: Draws, joints: JointSet = COCO17) -> Tensor:
    """Joints with the error of the table, each on its own: (B, J, 2) px -> (B, J, 2) px.

    COCO's eyes take the nose's row and its ears the head's. Rows of joints that the set does not have are not used; the
    pelvis and the neck of COCO-19 are not in COCO-17 but derived from noisy hips and shoulders, as from any detector.
    """
    rows = keypoints.new_tensor([HUMAN36M_ERRORS[_STANDS_FOR.get(name, name)] for name in joints.names])
    mean, sd, weight = rows[:, :2], rows[:, 2:4], rows[:, 4:]
    error = mean + sd * draws.randn(len(joints), 2)
    error = error * (draws.rand(len(joints), 1) < weight)
    return keypoints + error * (crop_size(keypoints) / _TABLE_SIDE)[:, None]
