from __future__ import annotations

import numpy as np
import pytest
import torch

from data.occlusion import hidden_by_body
from data.prior import load_pose_prior
from data.synthesis import SynthesisConfig
from mesh.body import load_body
from mesh.joints import COCO17
from tools.detector_pictures import PictureMaker


@pytest.fixture
def standing() -> torch.Tensor:
    """The free body's joints as it stands with its arms out, facing the camera: (1, 17, 3) m, y down, z forward."""
    body = load_body()
    joints = torch.from_numpy(body.regressor(COCO17) @ body.template).float() * torch.tensor([1.0, -1, -1])
    return joints[None]


def hidden_names(joints_m: torch.Tensor) -> set[str]:
    return {name for name, hidden in zip(COCO17.names, hidden_by_body(joints_m)[0].tolist()) if hidden}


def moved(joints_m: torch.Tensor, name: str, to: tuple[float, float, float]) -> torch.Tensor:
    middle = joints_m[0, list(COCO17.indices(("left_shoulder", "right_shoulder", "left_hip", "right_hip")))].mean(0)
    changed = joints_m.clone()
    changed[0, COCO17.index(name)] = middle + torch.tensor(to)
    return changed


def test_a_body_with_its_arms_out_hides_nothing_but_its_far_face(standing) -> None:
    assert hidden_names(standing) <= {"left_ear", "right_ear"}
    from_behind = standing * torch.tensor([-1.0, 1, -1])
    assert hidden_names(from_behind) >= {"nose", "left_eye", "right_eye"}
    assert not hidden_names(from_behind) & {"left_wrist", "right_wrist", "left_ankle", "right_ankle"}


def test_a_wrist_behind_the_back_is_hidden_and_one_before_the_belly_is_not(standing) -> None:
    assert "left_wrist" in hidden_names(moved(standing, "left_wrist", (0.0, 0.05, 0.25)))
    assert "left_wrist" not in hidden_names(moved(standing, "left_wrist", (0.0, 0.05, -0.25)))
    assert "left_wrist" not in hidden_names(moved(standing, "left_wrist", (0.6, 0.05, 0.25)))


def test_from_the_side_the_near_half_hides_the_far_one(standing) -> None:
    turned = torch.stack((standing[..., 2], standing[..., 1], -standing[..., 0]), dim=-1)  # its left side is nearer
    hidden = hidden_names(turned)
    assert {"right_hip", "right_ear", "right_shoulder", "right_wrist"} <= hidden
    assert not hidden & {"left_eye", "left_ear", "left_wrist", "left_hip", "left_knee", "left_ankle"}


def test_neither_the_place_nor_further_joints_nor_the_batch_matter(standing) -> None:
    people = torch.cat((standing, moved(standing, "left_wrist", (0.0, 0.05, 0.25)), standing.flip(2)))
    hidden = hidden_by_body(people)
    assert torch.equal(hidden_by_body(people + torch.tensor([0.3, -0.2, 4.0])), hidden)
    assert torch.equal(hidden_by_body(torch.cat((people, torch.randn(3, 2, 3)), dim=1)), hidden)
    assert torch.equal(torch.cat([hidden_by_body(one[None]) for one in people]), hidden)


class _Recording(PictureMaker):
    """Keeps the joints of every person it draws."""

    def photograph(self, joints_m, draws):
        self.joints_m = joints_m
        return super().photograph(joints_m, draws)


def test_it_agrees_with_pictures_of_the_body() -> None:
    maker = _Recording(load_pose_prior(), load_body(), SynthesisConfig(), backdrops=[], side_px=128)
    both = []
    for shot in maker.shots(25, seed=3):
        inside = ((shot.joints_px >= 0) & (shot.joints_px < 128)).all(-1)
        both.append(np.stack((hidden_by_body(maker.joints_m)[0].numpy(), shot.occluded))[:, inside])
    said, seen = np.concatenate(both, axis=1)
    assert 0.15 < seen.mean() < 0.5
    assert 2 * (said & seen).sum() / (said.sum() + seen.sum()) > 0.7
