"""Fits the pose prior: EM for a mirror-symmetric mixture of factor analysers (Ghahramani and Hinton 1996)."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from data.augmentation import mirror_pose
from data.prior import NUM_JOINTS, PosePrior, pose_to_tangent
from mesh.errors import InputError

NOISE_FLOOR_RAD = math.radians(1.0)
LIMIT_MARGIN_RAD = math.radians(3.0)
LIMIT_QUANTILE = 5e-4  # of the poses lie beyond a limit on either side
DEAD_SPREAD_RAD = math.radians(0.1)  # a coordinate that moves less is held at its mean
SHRINKAGE = 100.0  # poses' worth of the average covariance that each component is given
_NEGLIGIBLE = 1e-3  # responsibilities below this do not enter a component's moments


def fit_pose_prior(
    quaternions: Tensor,
    *,
    num_components: int = 128,
    rank: int = 16,
    min_support: int = 60,
    iterations: int = 25,
    seed: int = 0,
    provenance: str = "",
) -> PosePrior:
    """Fit local rotations (N, 24, 4) wxyz and their mirror images; components that summarise too few poses dissolve.

    Refuses poses that are not finite, and fewer than `min_support` for each component.
    """
    poses = _checked(quaternions, num_components * min_support)
    both = torch.cat((poses, mirror_pose(poses)))
    reference = mean_rotations(both)
    tangent = pose_to_tangent(both, reference)
    free = (tangent.std(0) > DEAD_SPREAD_RAD).nonzero()[:, 0]
    mixture = fit_mixture(
        tangent[:, free],
        num_components=num_components,
        rank=rank,
        min_support=min_support,
        iterations=iterations,
        generator=torch.Generator().manual_seed(seed),
    )
    lower, upper = _limits(tangent[:, free])
    return PosePrior(**mixture, reference=reference, free=free, lower=lower, upper=upper, provenance=provenance)


def log_likelihood(prior: PosePrior, quaternions: Tensor) -> Tensor:
    """Log density of each pose in nats, over the free coordinates in radians. (N, 24, 4) -> (N,)."""
    both = torch.cat((quaternions, mirror_pose(quaternions)))
    x = pose_to_tangent(both, prior.reference)[:, prior.free]
    scores = _log_joint(x, prior.weights, prior.means, _covariance(prior.loadings, prior.noise_sd))
    return torch.logsumexp(_pairs(scores), dim=1) - math.log(2)


def mean_rotations(quaternions: Tensor) -> Tensor:
    """Mean rotation of each joint, (N, 24, 4) -> (24, 4); the root's is the identity, so that its tilt stays yaw-free.

    The main axis of the quaternions' second moments (Markley et al. 2007), which does not see their sign.
    """
    moments = torch.einsum("nja,njb->jab", quaternions.double(), quaternions.double())
    mean = torch.linalg.eigh(moments).eigenvectors[..., -1]
    mean = torch.where(mean[:, :1] < 0, -mean, mean)
    mean = normalize(mean + mirror_pose(mean), dim=-1).float()
    mean[0] = torch.tensor((1.0, 0.0, 0.0, 0.0))
    return mean


def fit_mixture(
    x: Tensor, *, num_components: int, rank: int, min_support: int, iterations: int, generator: Generator
) -> dict[str, Tensor]:
    """Fit (2 N, D) coordinates whose second half mirrors the first; each pair counts as one pose.

    Returns the fields `weights`, `means`, `loadings`, `noise_sd` and `support` of `PosePrior`.
    """
    resp = _nearest(x, num_components, generator)
    kept = _supported(resp, min_support)
    loadings = noise_sd = None
    for _ in range(iterations):
        support, means, scatter = _moments(x, resp[:, kept])
        if loadings is None or noise_sd is None:
            loadings, noise_sd = _principal_factors(scatter, rank)
        else:
            loadings, noise_sd = loadings[kept], noise_sd[kept]
        loadings, noise_sd = _improved_factors(scatter, loadings, noise_sd)
        weights = support / support.sum()
        mixture = {"weights": weights, "means": means, "loadings": loadings, "noise_sd": noise_sd, "support": support}
        scores = _pairs(_log_joint(x, weights, means, _covariance(loadings, noise_sd)))
        resp = _unpaired(scores.softmax(dim=1))
        kept = _supported(resp, min_support)
    return mixture


def _pairs(scores: Tensor) -> Tensor:
    """A pose and its mirror image side by side, (2 N, K) -> (N, 2 K)."""
    return torch.cat(scores.chunk(2), dim=1)


def _unpaired(scores: Tensor) -> Tensor:
    return torch.cat(scores.chunk(2, dim=1))


def _supported(resp: Tensor, min_support: int) -> Tensor:
    """Components that summarise enough poses, the others dissolve: indices."""
    support = resp.sum(0)
    return (support >= min(min_support, float(support.max()))).nonzero()[:, 0]


def _nearest(x: Tensor, num_components: int, generator: Generator, rounds: int = 8) -> Tensor:
    """First responsibilities (2 N, K), 0 or 1: k-means in which a pose joins by the nearer of its mirror images."""
    centres = x[torch.randperm(len(x), generator=generator)[:num_components]]
    for _ in range(rounds):
        best = _pairs(-torch.cdist(x, centres)).argmax(dim=1)
        resp = _unpaired(torch.nn.functional.one_hot(best, 2 * num_components).float())
        size = resp.sum(0)[:, None]
        centres = torch.where(size > 0, resp.T @ x / size.clamp_min(1), centres)
    return resp


def _moments(x: Tensor, resp: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Support (K,), means (K, D) and covariances (K, D, D), these drawn towards their average."""
    support = resp.sum(0)
    means = resp.T @ x / support[:, None]
    scatter = x.new_empty(len(support), x.shape[1], x.shape[1])
    for k, mean in enumerate(means):
        rows = resp[:, k] > _NEGLIGIBLE
        centred = (x[rows] - mean) * resp[rows, k, None].sqrt()
        scatter[k] = centred.T @ centred
    average = scatter.sum(0) / support.sum()
    return support, means, (scatter + SHRINKAGE * average) / (support + SHRINKAGE)[:, None, None]


def _principal_factors(scatter: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Starting factors: the main axes of each covariance and what they leave over."""
    values, vectors = torch.linalg.eigh(scatter)
    loadings = vectors[..., -rank:] * values[:, None, -rank:].clamp_min(0).sqrt()
    return loadings, _noise_sd(scatter, loadings.square().sum(-1))


def _improved_factors(scatter: Tensor, loadings: Tensor, noise_sd: Tensor, rounds: int = 3) -> tuple[Tensor, Tensor]:
    """A few EM steps of factor analysis per component (Ghahramani and Hinton 1996, equations 15 and 16)."""
    identity = torch.eye(loadings.shape[-1])
    for _ in range(rounds):
        beta = torch.linalg.solve(_covariance(loadings, noise_sd), loadings).mT  # (K, R, D)
        cross = scatter @ beta.mT  # (K, D, R)
        second = identity - beta @ loadings + beta @ cross
        loadings = torch.linalg.solve(second, cross, left=False)
        noise_sd = _noise_sd(scatter, (loadings * cross).sum(-1))
    return loadings, noise_sd


def _noise_sd(scatter: Tensor, explained: Tensor) -> Tensor:
    return (scatter.diagonal(dim1=1, dim2=2) - explained).clamp_min(NOISE_FLOOR_RAD**2).sqrt()


def _covariance(loadings: Tensor, noise_sd: Tensor) -> Tensor:
    return loadings @ loadings.mT + torch.diag_embed(noise_sd.square())


def _log_joint(x: Tensor, weights: Tensor, means: Tensor, covariance: Tensor) -> Tensor:
    """Log of weight times density, (N, D) -> (N, K)."""
    factor = torch.linalg.cholesky(covariance)
    whitener = torch.linalg.solve_triangular(factor, torch.eye(x.shape[1]).expand_as(factor), upper=False)
    log_scale = weights.log() - factor.diagonal(dim1=1, dim2=2).log().sum(1) - x.shape[1] / 2 * math.log(2 * math.pi)
    scores = x.new_empty(len(x), len(weights))
    for k, mean in enumerate(means):
        scores[:, k] = log_scale[k] - ((x - mean) @ whitener[k].T).square().sum(1) / 2
    return scores


def _limits(x: Tensor) -> tuple[Tensor, Tensor]:
    ordered = x.sort(dim=0).values
    tail = int(LIMIT_QUANTILE * len(x))
    return ordered[tail] - LIMIT_MARGIN_RAD, ordered[-1 - tail] + LIMIT_MARGIN_RAD


def _checked(quaternions: Tensor, fewest: int) -> Tensor:
    if quaternions.ndim != 3 or quaternions.shape[1:] != (NUM_JOINTS, 4):
        raise InputError(f"poses must have shape (N, {NUM_JOINTS}, 4), got {tuple(quaternions.shape)}")
    if not torch.isfinite(quaternions).all():
        raise InputError("poses hold NaN or infinity; leave those frames out")
    if len(quaternions) < fewest:
        raise InputError(
            f"{len(quaternions)} poses are too few: the components need {fewest} together; "
            "give more poses or ask for fewer components"
        )
    return normalize(quaternions.float(), dim=-1)
