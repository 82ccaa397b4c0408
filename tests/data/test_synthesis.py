from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.noise import NoiseConfig
from data.poses import read_poses
from data.prior import load_pose_prior
from data.synthesis import CameraConfig, SynthesisConfig, Synthesiser, mirror_pose
from mesh.body import Body, load_body
from mesh.camera import fit_weak_perspective
from mesh.errors import InputError
from mesh.joints import COCO19, HUMAN36M17, SMPL24
from mesh.rotation import quaternion_multiply

EXACT = SynthesisConfig(noise=NoiseConfig(clean=1.0))


@pytest.fixture(scope="module")
def body() -> Body:
    return load_body()


class Resting:
    """A pose source that always stands in rest pose."""

    def sample(self, count, generator, device="cpu") -> torch.Tensor:
        pose = torch.zeros(count, 24, 4, device=device)
        pose[..., 0] = 1
        return pose


def batch_of(body: Body, config: SynthesisConfig = EXACT, source=None, size: int = 64, seed: int = 0):
    synthesiser = Synthesiser(source or load_pose_prior(), body, config)
    return synthesiser.batch(size, torch.Generator().manual_seed(seed), with_vertices=True)


def test_targets_agree_with_the_vertices(body: Body) -> None:
    batch = batch_of(body)
    for joints, found, root in ((HUMAN36M17, batch.regressed_m, None), (COCO19, batch.joints_m, COCO19.root_idx)):
        expected = torch.from_numpy(body.regressor(joints)) @ batch.vertices_m
        if root is not None:
            expected = expected - expected[:, root, None]
        torch.testing.assert_close(found, expected, atol=5e-6, rtol=0)
    assert (batch.regressed_m[:, HUMAN36M17.root_idx].abs() < 1e-6).all()


def weak_perspective_misfit(batch) -> torch.Tensor:
    camera = fit_weak_perspective(batch.joints_m, batch.keypoints_px, batch.confidence)
    placed = batch.joints_m[..., :2] * camera[:, None, :1] + camera[:, None, 1:]
    size = (batch.keypoints_px.amax(1) - batch.keypoints_px.amin(1)).amax(-1)
    return (placed - batch.keypoints_px).norm(dim=-1).mean(1) / size


def test_the_picture_shows_the_joints_and_long_lenses_flatten_it(body: Body) -> None:
    assert 0.005 < weak_perspective_misfit(batch_of(body)).median() < 0.06
    telescope = replace(EXACT, camera=CameraConfig(focal=(200.0, 200.0)))
    assert weak_perspective_misfit(batch_of(body, telescope)).max() < 3e-3


def test_a_camera_that_looks_down_has_the_head_nearer_than_the_feet(body: Body) -> None:
    down = CameraConfig(pitch_deg=(30.0, 30.0), roll_sd_deg=0.0, tilted=0.0)
    batch = batch_of(body, replace(EXACT, camera=down), Resting())
    depth = batch.joints_m[..., 2]
    assert (depth[:, COCO19.index("nose")] < depth[:, COCO19.index("left_ankle")] - 0.4).all()


def test_bodies_vary_in_height_as_stated(body: Body) -> None:
    def heights(shape_sd: float) -> torch.Tensor:
        level = CameraConfig(pitch_deg=(0.0, 0.0), roll_sd_deg=0.0, tilted=0.0)
        vertices = batch_of(body, replace(EXACT, camera=level, shape_sd=shape_sd), Resting(), 200).vertices_m
        return vertices[..., 1].amax(1) - vertices[..., 1].amin(1)

    assert heights(0.0).std() < 1e-4 and 0.04 < heights(1.0).std() < 0.12


def test_half_of_the_poses_are_mirrored(body: Body) -> None:
    class LeftArmUp(Resting):
        def sample(self, count, generator, device="cpu") -> torch.Tensor:
            pose = super().sample(count, generator, device)
            pose[:, SMPL24.index("left_shoulder")] = torch.tensor([0.7071, 0, 0, 0.7071])
            return pose

    level = CameraConfig(pitch_deg=(0.0, 0.0), roll_sd_deg=0.0, tilted=0.0)
    joints = batch_of(body, replace(EXACT, camera=level), LeftArmUp(), 400).joints_m
    left, right = (joints[:, COCO19.index(f"{side}_wrist"), 1] for side in ("left", "right"))
    assert (left < right).float().mean().item() == pytest.approx(0.5, abs=0.08)


def test_nobody_is_nearer_than_the_lens_allows(body: Body) -> None:
    close = CameraConfig(fill=(5.0, 5.0), focal=(0.3, 0.3), off_centre=0.0)
    keypoints = batch_of(body, replace(EXACT, camera=close)).keypoints_px
    assert torch.isfinite(keypoints).all() and keypoints.abs().max() < 10_000


def test_somebody_who_faces_the_camera_has_the_left_hand_on_the_picture_s_right(body: Body) -> None:
    straight = CameraConfig(pitch_deg=(0.0, 0.0), roll_sd_deg=0.0, tilted=0.0)
    batch = batch_of(body, replace(EXACT, camera=straight), Resting(), 256)
    left, right, nose, neck, ankle = COCO19.indices(("left_wrist", "right_wrist", "nose", "neck", "left_ankle"))
    towards = batch.joints_m[:, nose, 2] < batch.joints_m[:, neck, 2] - 0.05
    away = batch.joints_m[:, nose, 2] > batch.joints_m[:, neck, 2] + 0.05
    x = batch.keypoints_px[..., 0]
    assert towards.any() and (x[towards, left] > x[towards, right]).all()
    assert away.any() and (x[away, left] < x[away, right]).all()
    assert (batch.keypoints_px[:, ankle, 1] > batch.keypoints_px[:, nose, 1]).all()


def test_yaw_is_uniform_and_distance_and_place_vary(body: Body) -> None:
    batch = batch_of(body, source=Resting(), size=2000)
    left, right = COCO19.indices(("left_shoulder", "right_shoulder"))
    across = batch.joints_m[:, left] - batch.joints_m[:, right]
    quarter = torch.atan2(across[:, 2], across[:, 0]).div(torch.pi / 2).floor()
    shares = torch.stack([(quarter == q).float().mean() for q in (-2, -1, 0, 1)])
    torch.testing.assert_close(shares, torch.full((4,), 0.25), atol=0.05, rtol=0)
    height = batch.keypoints_px[..., 1].amax(1) - batch.keypoints_px[..., 1].amin(1)
    assert height.quantile(0.9) > 2 * height.quantile(0.1)
    assert batch.keypoints_px[:, COCO19.root_idx].std(0).min() > 100


def test_a_tilted_share_of_the_bodies_is_turned(body: Body) -> None:
    camera = replace(CameraConfig(), pitch_deg=(0.0, 0.0), roll_sd_deg=0.0, tilted=0.5, tilt_sd_deg=90.0)
    batch = batch_of(body, replace(EXACT, camera=camera), Resting(), 1000)
    up = -batch.joints_m[:, COCO19.index("neck"), 1] / batch.joints_m[:, COCO19.index("neck")].norm(dim=-1)
    assert (up > 0.99).float().mean().item() == pytest.approx(0.5, abs=0.06)


def test_pelvis_and_neck_are_derived_from_the_noisy_joints(body: Body) -> None:
    batch = batch_of(body, SynthesisConfig(noise=NoiseConfig(clean=0.0)))
    for name, parts in COCO19.derived.items():
        index, of = COCO19.index(name), list(COCO19.indices(parts))
        torch.testing.assert_close(batch.keypoints_px[:, index], batch.keypoints_px[:, of].mean(1))
        torch.testing.assert_close(batch.confidence[:, index], batch.confidence[:, of].amin(1))


def test_a_batch_is_a_pure_function_of_its_generator(body: Body) -> None:
    before = torch.random.get_rng_state()
    first, second, other = (batch_of(body, SynthesisConfig(), size=8, seed=s) for s in (3, 3, 4))
    assert torch.equal(first.keypoints_px, second.keypoints_px) and torch.equal(first.vertices_m, second.vertices_m)
    assert not torch.equal(first.keypoints_px, other.keypoints_px)
    assert torch.equal(before, torch.random.get_rng_state())


def test_mirroring_a_pose_twice_changes_nothing_and_respects_composition(generator: torch.Generator) -> None:
    a, b = torch.randn(2, 5, 24, 4, generator=generator)
    assert torch.equal(mirror_pose(mirror_pose(a)), a)
    product = mirror_pose(quaternion_multiply(a, b))
    torch.testing.assert_close(product, quaternion_multiply(mirror_pose(a), mirror_pose(b)))


@pytest.fixture
def pose_file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    poses = rng.normal(size=(40, 24, 4)).astype(np.float16)
    np.savez(tmp_path / "p.npz", poses=poses, subject=np.repeat([1, 2, 3, 4], 10), level=np.tile([0, 1, 2, 3, 4], 8))
    return tmp_path / "p.npz"


def test_pose_files_are_split_by_subject_and_level(pose_file: Path) -> None:
    assert len(read_poses(pose_file)) == 40
    assert len(read_poses(pose_file, subjects=(2,))) == 10
    assert len(read_poses(pose_file, except_subjects=(2, 3), max_level=1)) == 8
    norms = read_poses(pose_file).quaternions.norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones(40, 24))


def test_axis_angle_pose_files_are_read_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", poses=np.full((2, 24, 3), [np.pi, 0, 0], np.float32))
    expected = torch.tensor([0.0, 1, 0, 0]).expand(2, 24, 4)
    torch.testing.assert_close(read_poses(tmp_path / "a.npz").quaternions, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"poses": np.zeros((3, 23, 4))}, {}, r"shape \(3, 23, 4\); expected \(N, 24, 4\)"),
        ({"joints": np.zeros(3)}, {}, "holds no 'poses'"),
        ({"poses": np.full((3, 24, 4), np.nan)}, {}, "NaN"),
        ({"poses": np.ones((3, 24, 4))}, {"subjects": (1,)}, "no 'subject' column"),
        ({"poses": np.ones((3, 24, 4)), "subject": np.ones(4, int)}, {"subjects": (1,)}, "must be 3 whole numbers"),
        ({"poses": np.ones((3, 24, 4)), "subject": np.ones(3, int)}, {"subjects": (7,)}, "no pose is left of 3"),
    ],
)
def test_bad_pose_files_are_refused(tmp_path: Path, arrays, options, message: str) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(InputError, match=message):
        read_poses(tmp_path / "bad.npz", **options)


def test_a_truncated_pose_file_is_refused(pose_file: Path) -> None:
    pose_file.write_bytes(pose_file.read_bytes()[:1000])
    with pytest.raises(InputError, match="not a whole"):
        read_poses(pose_file)
