from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from data.definitions import redefined
from data.draws import Draws, step_generator
from data.noise import NoiseConfig
from data.prior import load_pose_prior
from data.synthesis import CameraConfig, PoseSource, SynthesisConfig, Synthesiser
from mesh.body import Body, load_body
from mesh.camera import place_before_camera, project_all
from mesh.errors import InputError
from mesh.joints import COCO17, COCO19, HUMAN36M17, SMPL24, JointSet, Keypoints
from mesh.samples import Batch

EXACT = SynthesisConfig(noise=NoiseConfig(clean=1.0), camera=CameraConfig(told=1.0, untold=0.0))
FACE = COCO19.indices(("nose", "left_eye", "right_eye", "left_ear", "right_ear"))


class Standing:
    """A pose source in rest pose, in which the skeleton's joints are regressed from the vertices."""

    def __len__(self) -> int:
        return 100

    def poses(self, index, draws) -> torch.Tensor:
        return torch.tensor([1.0, 0, 0, 0]).expand(len(index), 24, 4)


@pytest.fixture(scope="module")
def body() -> Body:
    return load_body()


def made(body: Body, config: SynthesisConfig, source: PoseSource, size: int = 60) -> Batch:
    draws = Draws(size, step_generator(0, 0))
    return Synthesiser(source, body, config).batch(torch.arange(size), draws, with_vertices=True)


def converted(joints: JointSet, matrix: np.ndarray, batch: Batch, body: Body) -> Keypoints:
    """What a file with exact joints of this set becomes, seen by the cameras of the batch."""
    coco = torch.from_numpy(body.regressor(COCO17)) @ batch.vertices_m
    place = place_before_camera(coco, batch.keypoints_px[:, :17], batch.confidence[:, :17], batch.intrinsics)
    seen = project_all(torch.from_numpy(matrix) @ batch.vertices_m + place[:, None], batch.intrinsics).numpy()
    return Keypoints(positions_px=seen, confidence=np.ones(seen.shape[:2]), joint_set=joints).to(COCO19)


@pytest.mark.parametrize(
    ("joints", "source"), [(HUMAN36M17, load_pose_prior()), (SMPL24, Standing())], ids=("human36m17", "smpl24")
)
def test_samples_look_like_converted_files_of_the_other_sets(body: Body, joints: JointSet, source: PoseSource) -> None:
    matrix = body.regressor(HUMAN36M17) if joints is HUMAN36M17 else body.joint_regressor
    exact, mixed = made(body, EXACT, source), made(body, replace(EXACT, other_joints=1.0), source)
    expected = converted(joints, matrix.astype(np.float32), exact, body)
    same = (mixed.confidence.numpy() == expected.confidence).all(1)
    assert 15 <= same.sum() <= 45  # half of them; the others are of the other set
    known = expected.confidence[same] > 0
    off = np.abs(mixed.keypoints_px.numpy() - expected.positions_px)[same][known]
    moved = (exact.keypoints_px - mixed.keypoints_px).abs().numpy()[same][known]
    assert off.max() < 0.05 and np.median(moved) > 2  # px
    assert torch.equal(mixed.joints_m, exact.joints_m) and torch.equal(mixed.vertices_m, exact.vertices_m)


def test_the_sets_come_as_often_as_stated_and_have_no_face(body: Body) -> None:
    config = replace(EXACT, other_joints=0.4)
    draws = Draws(2000, step_generator(0, 0))
    batch = Synthesiser(load_pose_prior(), body, config).batch(torch.arange(2000), draws, with_vertices=False)
    unknown = batch.confidence[:, list(FACE)] == 0
    smpl, human36m = unknown.all(1), unknown[:, 1:].all(1) & ~unknown[:, 0]
    for share in (smpl, human36m):
        assert abs(share.float().mean().item() - 0.2) < 5 * (0.2 * 0.8 / 2000) ** 0.5
    assert not unknown[~(smpl | human36m)].any() and (batch.confidence[:, 5:] == 1).all()


def test_noise_comes_on_top_and_keeps_the_face_unknown(body: Body) -> None:
    config = replace(EXACT, noise=NoiseConfig(clean=0.0), other_joints=1.0)
    noisy, exact = (
        made(body, config, load_pose_prior()),
        made(body, replace(EXACT, other_joints=1.0), load_pose_prior()),
    )
    assert (noisy.confidence[:, list(FACE)[1:]] == 0).all()
    assert (noisy.keypoints_px - exact.keypoints_px).abs()[:, 5:17].median() > 0.5
    body_joints = noisy.confidence[:, 5:17]
    assert (body_joints == 0).any() and ((body_joints > 0) & (body_joints < 1)).float().mean() > 0.5


def test_the_coco_joints_alone_decide_how_large_people_are(body: Body) -> None:
    """Hands and feet of the other sets reach further."""
    far = CameraConfig(focal=(200.0, 200.0), fill=(0.5, 0.5), told=1.0, untold=0.0)
    seen = made(body, replace(EXACT, camera=far), load_pose_prior()).keypoints_px
    extent = (seen.amax(1) - seen.amin(1)).amax(1)
    assert extent.max() < 505 and extent.median() > 495


def test_figures_are_measured_on_coco_joints_with_all_confidence(body: Body) -> None:
    noise = NoiseConfig(rescored=0.3, unscored=0.3, drop_side=0.5, drop_face=0.5, drop_many=0.5)
    trained = SynthesisConfig(other_joints=0.5, noise=noise)
    assert (made(body, trained.to_measure(clean=1.0), load_pose_prior()).confidence == 1).all()
    plain = SynthesisConfig(noise=NoiseConfig(clean=0.0))
    same = (made(body, config, load_pose_prior()) for config in (trained.to_measure(clean=0.0), plain))
    assert torch.equal(*(batch.confidence for batch in same))


def test_at_share_0_nothing_changes_and_nothing_is_drawn(generator: torch.Generator) -> None:
    before, points = generator.get_state(), torch.randn(4, 17, 2)
    same, has = redefined(points, ((SMPL24, torch.randn(4, 24, 2)),), 0.0, Draws(4, generator))
    assert torch.equal(same, points) and has.all() and torch.equal(before, generator.get_state())


def test_a_share_outside_its_range_is_refused() -> None:
    with pytest.raises(InputError, match=r"synthesis\.other_joints must lie in \[0, 1\], got 1\.5"):
        SynthesisConfig(other_joints=1.5)
