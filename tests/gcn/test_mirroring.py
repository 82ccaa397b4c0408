from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from gcn.mirroring import MirrorAveraged
from gcn.pose2mesh import JOINTS, ModelConfig, Pose2Mesh, build_graph
from gcn.posenet import PoseNetConfig
from mesh.body import load_body
from mesh.errors import InputError

BODY = load_body()
ORDER = list(JOINTS.flip_permutation)


@pytest.fixture(scope="module")
def model() -> Pose2Mesh:
    torch.manual_seed(0)
    config = ModelConfig(posenet=PoseNetConfig(width=32, blocks=1))
    return Pose2Mesh(config, build_graph(config.meshnet, BODY, BODY.template[None])).eval()


@pytest.fixture
def people(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return 100 + 50 * torch.randn(4, 19, 2, generator=generator), torch.rand(4, 19, generator=generator) + 0.1


def test_the_mirror_image_gives_the_mirrored_result(model: Pose2Mesh, people) -> None:
    """About any vertical, here x = 170 px."""
    averaged = MirrorAveraged(model, BODY)
    keypoints, confidence = people
    mirrored = keypoints[:, ORDER].clone()
    mirrored[..., 0] = 340 - mirrored[..., 0]
    back = torch.tensor([-1.0, 1.0, 1.0])
    with torch.inference_mode():
        joints, vertices = averaged(keypoints, confidence)
        other_joints, other_vertices = averaged(mirrored, confidence[:, ORDER])
        plain, plain_mirrored = model(keypoints, confidence)[1], model(mirrored, confidence[:, ORDER])[1]
    torch.testing.assert_close(other_joints[:, ORDER] * back, joints, atol=1e-5, rtol=0)
    torch.testing.assert_close(other_vertices[:, torch.from_numpy(BODY.mirror)] * back, vertices, atol=1e-5, rtol=0)
    assert (plain_mirrored[:, torch.from_numpy(BODY.mirror)] * back - plain).abs().max() > 1e-3


def test_the_mirrored_picture_of_a_known_camera_gives_the_mirrored_result(model: Pose2Mesh, people) -> None:
    """The picture is 340 px wide; the camera's axis goes through x = 90 px, in the mirror through 250 px."""
    averaged = MirrorAveraged(model, BODY)
    keypoints, confidence = people
    mirrored = keypoints[:, ORDER].clone()
    mirrored[..., 0] = 340 - mirrored[..., 0]
    intrinsics = torch.tensor([[400.0, 380, 90, 100]]).expand(4, 4)
    back = torch.tensor([-1.0, 1.0, 1.0])
    with torch.inference_mode():
        joints, vertices = averaged(keypoints, confidence, intrinsics)
        other = averaged(mirrored, confidence[:, ORDER], torch.tensor([[400.0, 380, 250, 100]]).expand(4, 4))
        blind = averaged(keypoints, confidence)[0]
    torch.testing.assert_close(other[0][:, ORDER] * back, joints, atol=1e-5, rtol=0)
    torch.testing.assert_close(other[1][:, torch.from_numpy(BODY.mirror)] * back, vertices, atol=1e-5, rtol=0)
    assert (joints - blind).abs().max() > 1e-2


def test_the_result_is_the_mean_of_both_looks(model: Pose2Mesh, people) -> None:
    averaged = MirrorAveraged(model, BODY)
    with torch.inference_mode():
        seen, mirrored = averaged.looks(*people)
        found = averaged(*people)
        torch.testing.assert_close(seen[1], model(*people)[1])
    for mean, one, other in zip(found, seen, mirrored):
        torch.testing.assert_close(mean, (one + other) / 2)


def test_a_body_without_a_mirror_table_is_refused(model: Pose2Mesh) -> None:
    with pytest.raises(InputError, match="no mirror table"):
        MirrorAveraged(model, replace(BODY, mirror=None))


def test_the_mirror_table_of_the_free_body_is_its_own_inverse() -> None:
    assert BODY.mirror is not None
    np.testing.assert_array_equal(BODY.mirror[BODY.mirror], np.arange(6890))
