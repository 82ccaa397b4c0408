from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gcn.features import centred_features, normalise_keypoints, pose_features
from mesh.camera import TYPICAL_EXTENT


def pose(seed: int = 0) -> torch.Tensor:
    return torch.randn(4, 19, 2, generator=torch.Generator().manual_seed(seed)) * torch.tensor([40.0, 100]) + 300


@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 20), shift=st.floats(-1000, 1000))
@settings(max_examples=25, deadline=None)
def test_place_and_size_do_not_matter(seed: int, scale: float, shift: float) -> None:
    known = torch.ones(4, 19)
    torch.testing.assert_close(
        normalise_keypoints(pose(seed) * scale + shift, known),
        normalise_keypoints(pose(seed), known),
        atol=2e-3,
        rtol=0,
    )


def test_the_aspect_ratio_is_kept_by_default_and_lost_per_axis() -> None:
    known = torch.ones(4, 19)
    wide = pose() * torch.tensor([2.0, 1.0])
    assert (normalise_keypoints(wide, known) - normalise_keypoints(pose(), known)).abs().max() > 0.1
    per_axis = [normalise_keypoints(p, known, "per_axis") for p in (wide, pose())]
    torch.testing.assert_close(*per_axis, atol=1e-4, rtol=0)
    torch.testing.assert_close(per_axis[0].std(1, correction=0), torch.ones(4, 2), atol=1e-4, rtol=0)


@pytest.mark.parametrize("mode", ["isotropic", "per_axis"])
def test_an_unknown_joint_has_no_influence(mode) -> None:
    confidence = torch.ones(4, 19)
    confidence[:, 5] = 0
    moved = pose()
    moved[:, 5] = 1e6
    features = pose_features(moved, confidence, mode)
    torch.testing.assert_close(features, pose_features(pose(), confidence, mode))
    assert (features[:, 5] == 0).all()


@pytest.mark.parametrize("mode", ["isotropic", "per_axis"])
def test_poses_without_extent_or_joints_become_zero(mode) -> None:
    assert (normalise_keypoints(torch.full((1, 19, 2), 7.0), torch.ones(1, 19), mode) == 0).all()
    assert (normalise_keypoints(pose(), torch.zeros(4, 19), mode) == 0).all()


def test_centred_features_add_how_large_the_person_is_to_the_camera(generator: torch.Generator) -> None:
    view = 0.1 * torch.randn(4, 19, 2, generator=generator)
    confidence = torch.rand(4, 19, generator=generator) + 0.1
    confidence[:, 3], view[:, 3] = 0, 7.0
    features = centred_features(view, confidence)
    torch.testing.assert_close(features[..., :3], pose_features(1000 * view, confidence))
    others = [k for k in range(19) if k != 3]
    centred = view[:, others] - view[:, others].mean(1, keepdim=True)
    expected = centred.square().sum(-1).mean(1).sqrt() / TYPICAL_EXTENT
    torch.testing.assert_close(features[..., 3], expected[:, None].expand(-1, 19))
    torch.testing.assert_close(centred_features(3 * view, confidence)[..., 3], 3 * features[..., 3])
    assert (centred_features(1e3 * view, confidence)[..., 3] == 5).all()  # nobody is that near


def test_whoever_is_shrunk_to_a_point_has_no_features_but_the_confidence() -> None:
    features = centred_features(torch.full((1, 19, 2), 0.3), torch.ones(1, 19))
    assert (features[..., :2] == 0).all() and (features[..., 2] == 1).all() and features[..., 3].abs().max() < 1e-4
