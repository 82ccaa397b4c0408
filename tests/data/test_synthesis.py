from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from data.draws import Draws, step_generator
from data.noise import NoiseConfig
from data.poses import PoseFile
from data.prior import load_pose_prior
from data.synthesis import CameraConfig, PoseSource, SynthesisConfig, Synthesiser, mirror_pose
from mesh.body import Body, load_body
from mesh.camera import fit_weak_perspective
from mesh.errors import InputError
from mesh.joints import COCO19, HUMAN36M17, SMPL24
from mesh.rotation import quaternion_multiply
from mesh.samples import Batch

EXACT = SynthesisConfig(noise=NoiseConfig(clean=1.0))


@pytest.fixture(scope="module")
def body() -> Body:
    return load_body()


class Resting:
    """A pose source that always stands in rest pose."""

    def __len__(self) -> int:
        return 4000

    def poses(self, index, draws) -> torch.Tensor:
        pose = torch.zeros(len(index), 24, 4, device=draws.device)
        pose[..., 0] = 1
        return pose


def batch_of(
    body: Body, config: SynthesisConfig = EXACT, source: PoseSource | None = None, size: int = 64, seed: int = 0,
    *, with_vertices: bool = True,
) -> Batch:  # fmt: skip
    synthesiser = Synthesiser(source or load_pose_prior(), body, config)
    return synthesiser.batch(torch.arange(size), Draws(size, step_generator(seed, 0)), with_vertices=with_vertices)


def test_targets_agree_with_the_vertices(body: Body) -> None:
    batch = batch_of(body)
    for joints, found, root in ((HUMAN36M17, batch.regressed_m, None), (COCO19, batch.joints_m, COCO19.root_idx)):
        expected = torch.from_numpy(body.regressor(joints)) @ batch.vertices_m
        if root is not None:
            expected = expected - expected[:, root, None]
        torch.testing.assert_close(found, expected, atol=5e-6, rtol=0)
    assert (batch.regressed_m[:, HUMAN36M17.root_idx].abs() < 1e-6).all()


def weak_perspective_misfit(batch: Batch) -> torch.Tensor:
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
        def poses(self, index, draws) -> torch.Tensor:
            pose = super().poses(index, draws)
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
    batch = batch_of(body, source=Resting(), size=2000, with_vertices=False)
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
    batch = batch_of(body, replace(EXACT, camera=camera), Resting(), 1000, with_vertices=False)
    up = -batch.joints_m[:, COCO19.index("neck"), 1] / batch.joints_m[:, COCO19.index("neck")].norm(dim=-1)
    assert (up > 0.99).float().mean().item() == pytest.approx(0.5, abs=0.06)


def test_pelvis_and_neck_are_derived_from_the_noisy_joints(body: Body) -> None:
    batch = batch_of(body, SynthesisConfig(noise=NoiseConfig(clean=0.0)))
    for name, parts in COCO19.derived.items():
        index, of = COCO19.index(name), list(COCO19.indices(parts))
        torch.testing.assert_close(batch.keypoints_px[:, index], batch.keypoints_px[:, of].mean(1))
        torch.testing.assert_close(batch.confidence[:, index], batch.confidence[:, of].amin(1))


@pytest.mark.parametrize("model", ["human36m", "coco"])
def test_pelvis_and_neck_are_derived_also_after_a_published_noise_model(body: Body, model: str) -> None:
    batch = batch_of(body, SynthesisConfig(noise=NoiseConfig(model=model, clean=0.0)), with_vertices=False)
    exact = batch_of(body, SynthesisConfig(noise=NoiseConfig(model="none")), with_vertices=False)
    for name, parts in COCO19.derived.items():
        index, of = COCO19.index(name), list(COCO19.indices(parts))
        torch.testing.assert_close(batch.keypoints_px[:, index], batch.keypoints_px[:, of].mean(1))
        assert (batch.keypoints_px[:, index] != exact.keypoints_px[:, index]).any()


@pytest.mark.parametrize("noise", [{"model": "human36m"}, {"model": "coco"}, {"model": "none"}, {"exchange": 1.0}])
def test_noise_changes_the_input_alone(body: Body, noise: dict) -> None:
    batch = batch_of(body, SynthesisConfig(noise=NoiseConfig(clean=0.0, **noise)))
    exact = batch_of(body, EXACT)
    for name in ("joints_m", "regressed_m", "vertices_m"):
        assert torch.equal(getattr(batch, name), getattr(exact, name))
    assert torch.equal(batch.keypoints_px, exact.keypoints_px) == (noise == {"model": "none"})


def test_a_batch_is_a_pure_function_of_its_poses_and_draws(body: Body) -> None:
    before = torch.random.get_rng_state()
    first, second, other = (batch_of(body, SynthesisConfig(), size=8, seed=s) for s in (3, 3, 4))
    assert torch.equal(first.keypoints_px, second.keypoints_px) and torch.equal(first.vertices_m, second.vertices_m)
    assert not torch.equal(first.keypoints_px, other.keypoints_px)
    assert torch.equal(before, torch.random.get_rng_state())


def pose_file() -> PoseFile:
    return PoseFile(quaternions=load_pose_prior().sample(50, torch.Generator().manual_seed(1)), name="some poses")


@pytest.mark.parametrize("noise", [{"model": "human36m"}, {"model": "coco"}, {"exchange": 0.5, "exchange_arms": 0.5}])
def test_the_noise_of_a_step_is_the_same_however_its_rows_are_split(body: Body, noise: dict) -> None:
    synthesiser = Synthesiser(pose_file(), body, SynthesisConfig(noise=NoiseConfig(clean=0.2, **noise)))

    def piece(rows: slice) -> torch.Tensor:
        draws = Draws(40, step_generator(0, 2), rows)
        return synthesiser.batch(torch.arange(40)[rows], draws, with_vertices=False).keypoints_px

    parts = torch.cat((piece(slice(0, 15)), piece(slice(15, 40))))
    torch.testing.assert_close(parts, piece(slice(0, 40)), rtol=0, atol=5e-3)


@pytest.mark.parametrize("with_vertices", [False, True])
@pytest.mark.parametrize("source", [pose_file, load_pose_prior])
def test_the_samples_of_a_step_are_the_same_however_its_rows_are_split(body: Body, source, with_vertices: bool) -> None:
    synthesiser = Synthesiser(source(), body, SynthesisConfig())
    index = torch.tensor([5, 3, 49, 0, 3, 20, 21, 8])

    def piece(rows: slice) -> Batch:
        return synthesiser.batch(index[rows], Draws(8, step_generator(0, 2), rows), with_vertices=with_vertices)

    whole, first, second = piece(slice(0, 8)), piece(slice(0, 3)), piece(slice(3, 8))
    assert (whole.confidence < 1).any() and (whole.vertices_m is not None) == with_vertices
    for field in fields(Batch):
        expected, *parts = (getattr(batch, field.name) for batch in (whole, first, second))
        if expected is None:
            assert parts == [None, None]
        elif field.name.endswith(("_m", "_px")):
            tolerance = 1e-6 if field.name.endswith("_m") else 1e-3
            torch.testing.assert_close(torch.cat(parts), expected, rtol=0, atol=tolerance)
        else:
            assert torch.equal(torch.cat(parts), expected)


def test_a_sample_carries_the_place_of_its_pose(body: Body) -> None:
    index = torch.tensor([5, 3, 49])
    batch = Synthesiser(pose_file(), body, EXACT).batch(index, Draws(3, step_generator(0, 0)), with_vertices=False)
    assert torch.equal(batch.ids, index)


def test_an_index_that_does_not_fit_the_rows_is_refused(body: Body) -> None:
    synthesiser = Synthesiser(pose_file(), body, EXACT)
    with pytest.raises(ValueError, match="each of the 2 rows of draws, got 1"):
        synthesiser.batch(torch.tensor([5]), Draws(8, step_generator(0, 0), slice(0, 2)), with_vertices=False)


@pytest.mark.parametrize("with_vertices", [False, True])
def test_a_batch_moves_to_another_device_as_a_whole(body: Body, with_vertices: bool) -> None:
    draws = Draws(2, step_generator(0, 0))
    batch = Synthesiser(pose_file(), body, EXACT).batch(torch.arange(2), draws, with_vertices=with_vertices)
    moved = batch.to("meta")
    assert (moved.vertices_m is not None) == with_vertices
    for field in fields(Batch):
        before, after = getattr(batch, field.name), getattr(moved, field.name)
        assert before is None or (after.device.type == "meta" and after.shape == before.shape)


def test_mirroring_a_pose_twice_changes_nothing_and_respects_composition(generator: torch.Generator) -> None:
    a, b = torch.randn(2, 5, 24, 4, generator=generator)
    assert torch.equal(mirror_pose(mirror_pose(a)), a)
    product = mirror_pose(quaternion_multiply(a, b))
    torch.testing.assert_close(product, quaternion_multiply(mirror_pose(a), mirror_pose(b)))


def placement_residual(batch: Batch) -> torch.Tensor:
    """How far the rays of the told camera miss the 3D joints, wherever the person is put: (B,) metres, mean."""
    rays = (batch.keypoints_px[:, :17] - batch.intrinsics[:, None, 2:]) / batch.intrinsics[:, None, :2]
    rays = torch.nn.functional.normalize(torch.cat((rays, torch.ones_like(rays[..., :1])), dim=-1), dim=-1).double()
    off = torch.eye(3).double() - rays[..., :, None] * rays[..., None, :]  # what a ray does not explain
    points = batch.joints_m[:, :17].double()[..., None]
    place = -torch.linalg.solve(off.sum(1), (off @ points).sum(1))
    return (off @ (points + place[:, None]))[..., 0].norm(dim=-1).mean(1)


def test_a_told_camera_is_the_one_that_saw_the_joints(body: Body) -> None:
    told, assumed = (
        placement_residual(batch_of(body, replace(EXACT, camera=CameraConfig(told=share, untold=0.0))))
        for share in (1.0, 0.0)
    )
    assert told.max() < 1e-4 and assumed.median() > 5e-3


def test_the_networks_are_told_as_much_as_the_shares_say(body: Body) -> None:
    given = batch_of(body, replace(EXACT, camera=CameraConfig(told=0.5, untold=0.2)), size=2000, with_vertices=False)
    nothing = (given.intrinsics == 0).all(1)
    diagonal = (given.intrinsics[:, 0] - 1000 * 2**0.5).abs() < 1e-3
    assert abs(nothing.float().mean() - 0.2) < 0.03 and abs(diagonal.float().mean() - 0.3) < 0.03
    assert (given.intrinsics[~nothing, 2:] == 500).all()
    for wrong in ({"told": 1.5}, {"told": 0.7, "untold": 0.6}):
        with pytest.raises(InputError, match=r"camera\.told"):
            CameraConfig(**wrong)
