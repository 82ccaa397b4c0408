"""The pose prior that ships."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from data.draws import Draws, step_generator
from data.prior import PosePrior, load_pose_prior, pose_to_tangent, remove_yaw, tangent_to_pose
from data.synthesis import mirror_pose
from mesh.errors import InputError
from mesh.joints import SMPL24
from mesh.rotation import axis_angle_to_quaternion, quaternion_multiply

SHIPPED = resources.files("data") / "assets" / "pose_prior.npz"


@pytest.fixture(scope="module")
def prior() -> PosePrior:
    return load_pose_prior()


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def yawed(rotation: Tensor, yaw_rad: float) -> Tensor:
    turn = axis_angle_to_quaternion(torch.tensor((0.0, yaw_rad, 0.0)))
    return quaternion_multiply(turn.expand_as(rotation), rotation)


def test_sampling_depends_on_the_generator_alone(prior: PosePrior) -> None:
    first = prior.sample(50, seeded())
    assert torch.equal(first, prior.sample(50, seeded()))
    assert not torch.equal(first, prior.sample(50, seeded(1)))


def test_the_poses_of_a_source_are_its_samples_whatever_the_index(prior: PosePrior) -> None:
    whole = prior.poses(torch.arange(8), Draws(8, step_generator(0, 4)))
    assert torch.equal(whole, prior.sample(8, step_generator(0, 4)))
    assert torch.equal(whole, prior.poses(torch.zeros(8, dtype=torch.int64), Draws(8, step_generator(0, 4))))


def test_poses_are_the_same_however_the_rows_are_split(prior: PosePrior) -> None:
    def piece(rows: slice) -> Tensor:
        return prior.poses(torch.arange(8)[rows], Draws(8, step_generator(0, 4), rows))

    parts = torch.cat((piece(slice(0, 3)), piece(slice(3, 8))))
    torch.testing.assert_close(parts, piece(slice(0, 8)), rtol=0, atol=1e-6)


def test_components_are_as_frequent_as_their_weights(prior: PosePrior) -> None:
    count = len(prior.weights)
    marked = replace(prior, means=torch.arange(count)[:, None].expand_as(prior.means).float())
    drawn = marked.draw(Draws(40_000, seeded()), temperature=0.0)[:, 0].long()
    shares = torch.bincount(drawn, minlength=count) / 40_000
    torch.testing.assert_close(shares, prior.weights / prior.weights.sum(), rtol=0, atol=0.005)


def test_sampling_leaves_the_global_generator_untouched(prior: PosePrior) -> None:
    before = torch.get_rng_state()
    prior.sample(5, seeded())
    assert torch.equal(before, torch.get_rng_state())


def test_samples_are_unit_quaternions_with_positive_real_part(prior: PosePrior) -> None:
    poses = prior.sample(2000, seeded())
    assert poses.shape == (2000, len(SMPL24), 4)
    torch.testing.assert_close(poses.norm(dim=-1), torch.ones(2000, len(SMPL24)))
    assert (poses[..., 0] >= 0).all()


def test_the_root_of_a_sample_tilts_without_yaw(prior: PosePrior) -> None:
    root = prior.sample(2000, seeded())[:, 0]
    torch.testing.assert_close(root[:, 2], torch.zeros(2000), rtol=0, atol=1e-6)
    assert root[:, 1].std() > 0.02


def test_no_sample_leaves_the_bounds(prior: PosePrior) -> None:
    bound = torch.full_like(prior.lower, 0.1)
    narrow = replace(prior, lower=-bound, upper=bound)
    tangent = pose_to_tangent(narrow.sample(500, seeded(), temperature=4.0), prior.reference)
    assert tangent.abs().max() <= 0.1 + 1e-4


def test_hardly_any_coordinate_of_the_shipped_model_needs_its_bounds(prior: PosePrior) -> None:
    drawn = prior.draw(Draws(5000, seeded()))
    outside = ((drawn < prior.lower) | (drawn > prior.upper)).float().mean()
    assert 0 < outside < 0.005


def test_temperature_scales_the_spread(prior: PosePrior) -> None:
    cold, hot = (prior.draw(Draws(500, seeded()), temperature=t) for t in (0.0, 0.25))
    warm = prior.draw(Draws(500, seeded()))
    torch.testing.assert_close(hot - cold, (warm - cold) / 2, rtol=1e-4, atol=1e-5)


def test_a_negative_temperature_is_refused(prior: PosePrior) -> None:
    with pytest.raises(InputError, match="temperature"):
        prior.sample(1, seeded(), temperature=-1.0)


def test_draws_follow_the_stated_covariance(prior: PosePrior) -> None:
    single = replace(
        prior, weights=torch.ones(1), **{k: getattr(prior, k)[:1] for k in ("means", "loadings", "noise_sd")}
    )
    drawn = single.draw(Draws(20000, seeded()))
    expected = single.loadings[0] @ single.loadings[0].T + single.noise_sd[0].square().diag()
    error = (torch.cov(drawn.T) - expected).norm() / expected.norm()
    assert error < 0.05
    torch.testing.assert_close(drawn.mean(0), single.means[0], rtol=0, atol=0.02)


def test_left_and_right_move_alike_even_if_the_components_do_not(prior: PosePrior) -> None:
    means = prior.means.clone()
    left_knee = (prior.free == 3 * SMPL24.index("left_knee")).nonzero()[0]
    means[:, left_knee] += 1.0
    poses = replace(prior, means=means).sample(10000, seeded())
    centre, mirrored = (pose_to_tangent(p, prior.reference).mean(0) for p in (poses, mirror_pose(poses)))
    torch.testing.assert_close(centre, mirrored, rtol=0, atol=0.05)


def test_the_shipped_file_is_small() -> None:
    assert Path(str(SHIPPED)).stat().st_size < 700 * 1024


def test_the_shipped_file_holds_statistics_of_many_poses_each(prior: PosePrior) -> None:
    assert prior.support.min() >= 60
    floats = sum(getattr(prior, key).numel() for key in ("means", "loadings", "noise_sd"))
    assert floats < 0.1 * float(prior.support.sum()) * len(prior.free)


def test_the_shipped_file_names_its_origin(prior: PosePrior) -> None:
    assert "mocap.cs.cmu.edu" in prior.provenance
    assert "NSF EIA-0196217" in prior.provenance


def test_a_saved_prior_draws_the_same_poses(prior: PosePrior, tmp_path: Path) -> None:
    prior.save(tmp_path / "prior.npz")
    assert torch.equal(load_pose_prior(tmp_path / "prior.npz").sample(20, seeded()), prior.sample(20, seeded()))


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prior.npz"
    path.write_bytes(SHIPPED.read_bytes()[:50_000])
    with pytest.raises(InputError, match="a pose prior made by"):
        load_pose_prior(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a pose prior made by"):
        load_pose_prior(tmp_path / "none.npz")


@pytest.mark.parametrize(("key", "message"), [("means", "must have shape"), ("loadings", "must have shape")])
def test_arrays_that_do_not_fit_together_are_refused(prior: PosePrior, tmp_path: Path, key: str, message: str) -> None:
    replace(prior, **{key: getattr(prior, key)[:-1]}).save(tmp_path / "prior.npz")
    with pytest.raises(InputError, match=message):
        load_pose_prior(tmp_path / "prior.npz")


def test_a_file_with_nan_is_refused(prior: PosePrior, tmp_path: Path) -> None:
    replace(prior, means=prior.means * float("nan")).save(tmp_path / "prior.npz")
    with pytest.raises(InputError, match="NaN"):
        load_pose_prior(tmp_path / "prior.npz")


def test_the_tilt_of_a_body_does_not_depend_on_its_yaw() -> None:
    rotation = axis_angle_to_quaternion(torch.tensor(((0.9, 0.3, -0.4), (2.8, 0.2, 0.3))))
    torch.testing.assert_close(remove_yaw(yawed(rotation, 2.5)).abs(), remove_yaw(rotation).abs())


def test_a_rotation_is_its_yaw_after_its_tilt() -> None:
    rotation = axis_angle_to_quaternion(torch.tensor((0.9, 0.3, -0.4)))
    conjugate = remove_yaw(rotation) * torch.tensor((1.0, -1.0, -1.0, -1.0))
    rest = quaternion_multiply(rotation, conjugate)
    torch.testing.assert_close(rest[[1, 3]], torch.zeros(2), rtol=0, atol=1e-6)


def test_upside_down_the_yaw_is_zero() -> None:
    over = torch.tensor((0.0, 1.0, 0.0, 0.0))
    torch.testing.assert_close(remove_yaw(over), over)


def test_tangent_vectors_lead_back_to_the_pose(prior: PosePrior) -> None:
    poses = prior.sample(100, seeded())
    tangent = pose_to_tangent(torch.cat((yawed(poses[:, :1], 0.7), poses[:, 1:]), dim=1), prior.reference)
    torch.testing.assert_close(tangent_to_pose(tangent, prior.reference), poses, rtol=0, atol=1e-5)


def test_a_rotation_past_half_a_turn_keeps_its_real_part_positive() -> None:
    reference = axis_angle_to_quaternion(torch.tensor((2.0, 0.0, 0.0))).repeat(24, 1)
    pose = tangent_to_pose(torch.tensor((2.0, 0.0, 0.0)).repeat(1, 24), reference)
    torch.testing.assert_close(pose, -axis_angle_to_quaternion(torch.tensor((4.0, 0.0, 0.0))).repeat(1, 24, 1))
    assert (pose[..., 0] > 0).all()
