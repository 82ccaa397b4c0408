"""Fitting the pose prior."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor
from torch.distributions import MultivariateNormal

from data.prior import PosePrior, load_pose_prior, pose_to_tangent
from data.prior_fitting import fit_mixture, fit_pose_prior, log_likelihood, mean_rotations
from data.synthesis import mirror_pose
from mesh.errors import InputError
from mesh.rotation import axis_angle_to_quaternion

MIRROR = torch.tensor((-1.0, 1.0, 1.0, 1.0, 1.0))  # of the synthetic coordinates


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def real_looking_poses(count: int, seed: int = 0) -> Tensor:
    return load_pose_prior().sample(count, seeded(seed))


def small_fit(poses: Tensor, seed: int = 0) -> PosePrior:
    return fit_pose_prior(poses, num_components=4, rank=3, min_support=50, iterations=4, seed=seed)


def mixture_with_mirror_images() -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates (2 N, 5), and the means (2, 5) and covariances (2, 5, 5) that they come from."""
    means = torch.tensor(((3.0, 0.0, 0.0, 1.0, 0.0), (2.0, 5.0, 0.0, 0.0, -1.0)))
    loadings = torch.tensor(((0.5, 0.5, 0.0, 0.0, 0.0), (0.0, 0.0, 0.8, -0.4, 0.0)))
    generator = seeded()
    factor, noise = torch.randn(2, 3000, 1, generator=generator), torch.randn(2, 3000, 5, generator=generator)
    x = means[:, None] + factor * loadings[:, None] + 0.1 * noise
    covariance = loadings[..., None] * loadings[:, None] + 0.01 * torch.eye(5)
    flipped = torch.rand(2, 3000, 1, generator=generator) < 0.5
    x = torch.where(flipped, x * MIRROR, x).flatten(0, 1)
    return torch.cat((x, x * MIRROR)), means, covariance


def test_a_known_mixture_is_recovered() -> None:
    x, means, covariance = mixture_with_mirror_images()
    found = fit_mixture(x, num_components=2, rank=1, min_support=60, iterations=30, generator=seeded())
    order = found["means"][:, 1].argsort()
    sign = torch.where(found["means"][order, :1] < 0, MIRROR, 1)  # a component may stand for its mirror image
    fitted = found["loadings"] @ found["loadings"].mT + torch.diag_embed(found["noise_sd"].square())
    torch.testing.assert_close(found["weights"], torch.full((2,), 0.5), rtol=0, atol=0.02)
    torch.testing.assert_close(found["means"][order] * sign, means, rtol=0, atol=0.05)
    torch.testing.assert_close(fitted[order] * sign[:, None] * sign[..., None], covariance, rtol=0, atol=0.04)


def test_support_counts_a_pose_and_its_mirror_image_once() -> None:
    x, _, _ = mixture_with_mirror_images()
    found = fit_mixture(x, num_components=2, rank=1, min_support=60, iterations=3, generator=seeded())
    torch.testing.assert_close(found["support"].sum(), torch.tensor(6000.0), rtol=1e-4, atol=0)


def test_components_with_little_support_dissolve() -> None:
    x, _, _ = mixture_with_mirror_images()
    found = fit_mixture(x, num_components=40, rank=1, min_support=300, iterations=5, generator=seeded())
    assert 2 <= len(found["weights"]) < 20
    assert found["support"].min() >= 300


def test_the_fit_is_deterministic() -> None:
    poses = real_looking_poses(400)
    before = torch.get_rng_state()
    first, second = small_fit(poses), small_fit(poses)
    assert torch.equal(first.loadings, second.loadings)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first.means, small_fit(poses, seed=1).means)


def test_a_fit_explains_other_poses_of_the_same_kind_better_than_unlike_ones() -> None:
    prior = small_fit(real_looking_poses(400))
    alike = real_looking_poses(200, seed=1)
    unlike = alike.roll(1, dims=1)
    assert log_likelihood(prior, alike).mean() > log_likelihood(prior, unlike).mean() + 100


def test_a_pose_is_as_likely_as_its_mirror_image() -> None:
    prior = small_fit(real_looking_poses(400))
    poses = real_looking_poses(50, seed=1)
    torch.testing.assert_close(log_likelihood(prior, poses), log_likelihood(prior, mirror_pose(poses)))


def test_log_likelihood_is_that_of_the_symmetric_mixture() -> None:
    shipped = load_pose_prior()
    single = {key: getattr(shipped, key)[:1] for key in ("means", "loadings", "noise_sd")}
    prior = replace(shipped, weights=torch.ones(1), **single)
    poses = real_looking_poses(20)
    covariance = prior.loadings[0] @ prior.loadings[0].T + prior.noise_sd[0].square().diag()
    normal = MultivariateNormal(prior.means[0], covariance)
    sides = [normal.log_prob(pose_to_tangent(p, prior.reference)[:, prior.free]) for p in (poses, mirror_pose(poses))]
    expected = torch.logsumexp(torch.stack(sides), dim=0) - torch.log(torch.tensor(2.0))
    torch.testing.assert_close(log_likelihood(prior, poses), expected, rtol=1e-3, atol=0.05)


def test_the_mean_rotation_lies_in_the_middle_whatever_the_sign() -> None:
    angles = torch.tensor((0.2, 0.4, 0.6))
    poses = axis_angle_to_quaternion(torch.stack((angles, 0 * angles, 0 * angles), -1))[:, None].repeat(1, 24, 1)
    poses[1] = -poses[1]
    expected = axis_angle_to_quaternion(torch.tensor((0.4, 0.0, 0.0)))
    torch.testing.assert_close(mean_rotations(poses)[5], expected, rtol=0, atol=1e-5)


def test_joints_that_never_move_are_no_coordinates() -> None:
    poses = real_looking_poses(400)
    poses[:, 20] = torch.tensor((1.0, 0.0, 0.0, 0.0))
    poses[:, 21] = torch.tensor((1.0, 0.0, 0.0, 0.0))
    joints = set((small_fit(poses).free // 3).tolist())
    assert not joints & {20, 21, 13, 14, 22, 23}
    assert {0, 1, 2, 16, 17, 18, 19} <= joints


def test_poses_with_nan_are_refused() -> None:
    poses = real_looking_poses(400)
    poses[3, 5, 1] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        small_fit(poses)


def test_too_few_poses_are_refused() -> None:
    with pytest.raises(InputError, match="100 poses are too few"):
        small_fit(real_looking_poses(100))


def test_poses_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(N, 24, 4\)"):
        small_fit(real_looking_poses(400)[:, :23])
