"""More poses by evolution (Li et al. 2020, section 4): poses swap limbs, limbs turn a little, the possible ones stay.

A pose is its local joint rotations: where each bone points in the frame of its parent, and the twist about it. What
is swapped is therefore carried by the trunk that it is put on. Bone lengths are the body's, which has a shape of its
own for every sample (`data.synthesis`), so none change here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from data.augmentation import turn_body
from data.draws import Draws, step_generator
from data.joint_limits import JointLimits
from data.pose_augmentation import turn_joints
from data.prior import remove_yaw
from mesh.body import Body
from mesh.errors import InputError, require
from mesh.joints import SMPL24
from mesh.rotation import quaternion_to_matrix
from mesh.skinning import forward_kinematics

_STREAM = 7  # of the random numbers that belong to a seed
_BARREN = 50  # generations without a single survivor, after which nothing more is expected
_CHUNK = 2048
_MOST_SD_DEG = 360.0  # beyond it all directions are equally likely anyway
_STILL = 1e-5  # 1 - |cosine| of half the angle between two rotations: half a degree
_SUBTREES = tuple(name for name in SMPL24.names[1:] if not name.endswith(("hand", "foot")))


@dataclass(frozen=True, kw_only=True)
class EvolutionConfig:
    """How a generation comes about; the defaults are those of Li et al. where theirs carry over."""

    pairs: float = 0.05  # pairs of parents in a generation, as a share of the population; each has two children
    subtrees: tuple[str, ...] = _SUBTREES  # joints that may be swapped with all that hangs on them, equally likely
    mutation: float = 0.3  # share of the children whose swapped joints are turned
    mutation_sd_deg: float = 10.0
    tilt: float = 0.1  # share of the children tilted as a whole, about a horizontal axis
    tilt_sd_deg: float = 30.0
    novel_m: float = 0.0  # only children at least so far from every pose before them, RMS over joints; 0: all

    def __post_init__(self) -> None:
        for name in ("mutation", "tilt"):
            require(0 <= getattr(self, name) <= 1, f"{name} must lie in [0, 1], got {getattr(self, name)}")
        require(0 <= self.novel_m < math.inf, f"novel_m must not be negative, got {self.novel_m}")
        for name in ("mutation_sd_deg", "tilt_sd_deg"):
            value = getattr(self, name)
            require(0 <= value <= _MOST_SD_DEG, f"{name} must lie in [0, {_MOST_SD_DEG:g}], got {value}")
        require(0 < self.pairs <= 1, f"pairs must lie in (0, 1], got {self.pairs}")
        require(bool(self.subtrees), "subtrees must name at least one joint")
        require(SMPL24.root not in self.subtrees, f"{SMPL24.root} is the root: swapping all of a pose makes none")
        SMPL24.indices(self.subtrees)


@dataclass(frozen=True, kw_only=True)
class Population:
    """Poses and their descent: those it began with first, then generation after generation.

    `poses` (N, 24, 4) wxyz, `parents` (N, 2) int64 rows of this population, -1 for the poses it began with: the first
    gave the body, the second the limb. `generation` (N,) int64, 0 for the beginning. `counts` (G, 3) int64: children
    born in each generation, those that were impossible, and those that were nothing new.
    """

    poses: Tensor
    parents: Tensor
    generation: Tensor
    counts: Tensor

    def __len__(self) -> int:
        return len(self.poses)

    @property
    def num_founders(self) -> int:
        """Poses that it began with."""
        return int((self.generation == 0).sum())


def found(poses: Tensor) -> Population:
    """The population before the first generation, (N, 24, 4) wxyz."""
    require(len(poses) >= 2, f"evolution needs at least two poses, got {len(poses)}")
    return Population(
        poses=poses,
        parents=torch.full((len(poses), 2), -1),
        generation=torch.zeros(len(poses), dtype=torch.long),
        counts=torch.zeros(0, 3, dtype=torch.long),
    )


def evolve(
    population: Population, limits: JointLimits, body: Body, config: EvolutionConfig, *, seed: int, size: int
) -> Iterator[Population]:
    """The population after each further generation, until it has `size` poses.

    Generation g is a pure function of the seed, g and the population before it, so that it does not matter where an
    evolution was taken up again.
    """
    while len(population) < size:
        population = next_generation(population, limits, body, config, seed=seed, size=size)
        generation = len(population.counts)
        if generation - int(population.generation[-1]) >= _BARREN:
            raise InputError(
                f"no child of the last {_BARREN} generations was possible and new, so {size} poses are out of reach of "
                f"these {len(population)}; ask for fewer poses, or for more change (mutation) or less novelty"
            )
        yield population


def next_generation(
    population: Population, limits: JointLimits, body: Body, config: EvolutionConfig, *, seed: int, size: int
) -> Population:
    """The population with one more generation, cut at `size` poses."""
    poses, generation = population.poses, len(population.counts) + 1
    num_pairs = max(1, round(config.pairs * len(poses)))
    generator = step_generator(seed, generation, stream=_STREAM)
    draws = Draws(num_pairs, generator)
    first = draws.randint(len(poses))
    second = (first + 1 + draws.randint(len(poses) - 1)) % len(poses)
    moving = moving_joints(poses[population.generation == 0])
    joint = _drawn_joints(config.subtrees, moving, draws)
    parents = torch.cat((torch.stack((first, second), 1), torch.stack((second, first), 1)))
    swapped = subtrees()[joint].repeat(2, 1)
    children = torch.cat(crossover(poses[first], poses[second], joint))
    children = mutate(children, swapped & moving, config, Draws(len(children), generator))
    possible = limits.valid(children).all(1)
    new = possible.clone()
    new[possible] = _is_new(children[possible], poses, parents[possible], body, config)
    kept = new.nonzero()[: size - len(poses), 0]
    counts = torch.tensor([[len(children), int((~possible).sum()), int((possible & ~new).sum())]])
    return replace(
        population,
        poses=torch.cat((poses, children[kept])),
        parents=torch.cat((population.parents, parents[kept])),
        generation=torch.cat((population.generation, torch.full((len(kept),), generation))),
        counts=torch.cat((population.counts, counts)),
    )


def crossover(first: Tensor, second: Tensor, joint: Tensor) -> tuple[Tensor, Tensor]:
    """Two children of each pair: (B, 24, 4), (B, 24, 4), (B,) int64 -> twice (B, 24, 4).

    Each is one parent with the other's rotations at the joint and at all that hangs on it.
    """
    swapped = subtrees().to(joint.device)[joint][..., None]
    return torch.where(swapped, second, first), torch.where(swapped, first, second)


def mutate(pose: Tensor, turned: Tensor, config: EvolutionConfig, draws: Draws) -> Tensor:
    """Some poses with joints turned, some tilted as a whole: (B, 24, 4), (B, 24) bool (which may turn) -> (B, 24, 4).

    Knees and elbows turn about their own axis alone.
    """
    chosen = (draws.rand(1) < config.mutation) & turned
    pose = torch.where(chosen[..., None], turn_joints(pose, math.radians(config.mutation_sd_deg), draws), pose)
    azimuth, angle = 2 * math.pi * draws.rand(), math.radians(config.tilt_sd_deg) * draws.randn()
    tilt = torch.stack((angle * azimuth.cos(), torch.zeros_like(angle), angle * azimuth.sin()), dim=1)
    return torch.where(draws.rand(1, 1) < config.tilt, turn_body(pose, tilt), pose)


def subtrees() -> Tensor:
    """Which joints hang on which, (24, 24) bool: row j holds joint j and everything behind it."""
    below = torch.eye(len(SMPL24), dtype=torch.bool)
    for parent, child in sorted(SMPL24.edges, key=lambda edge: -edge[1]):
        below[parent] |= below[child]
    return below


def moving_joints(pose: Tensor) -> Tensor:
    """Which joints are not the same in all poses, (N, 24, 4) -> (24,) bool: recordings know nothing of some."""
    return ((pose * pose[:1]).sum(-1).abs() < 1 - _STILL).any(0)


def inherited(values: Tensor, population: Population) -> Tensor:
    """A child's value is the larger of its parents'; (founders,) -> (N,)."""
    whole = torch.cat((values, values.new_zeros(len(population) - len(values))))
    for generation in range(1, len(population.counts) + 1):
        rows = population.generation == generation
        whole[rows] = whole[population.parents[rows]].amax(1)
    return whole


def joint_points(pose: Tensor, body: Body) -> Tensor:
    """Joints about the pelvis without yaw, (N, 24, 4) -> (N, 72); differences are RMS over joints in metres."""
    rest = torch.from_numpy(body.joint_regressor @ body.template)
    level = torch.cat((remove_yaw(pose[:, :1]), pose[:, 1:]), dim=1)
    parts = [
        forward_kinematics(quaternion_to_matrix(part), rest.expand(len(part), -1, -1), body.parents)[1]
        for part in level.split(_CHUNK)
    ]
    joints = torch.cat(parts) if parts else level[..., :3]
    return (joints - joints[:, :1]).flatten(1) / len(rest) ** 0.5


def nearest_distance(queries: Tensor, pool: Tensor) -> Tensor:
    """Distance of each query to the nearest of the pool, (Q, D), (N, D) -> (Q,); infinite if the pool is empty."""
    best = queries.new_full((len(queries),), math.inf)
    for start, first in itertools.product(range(0, len(queries), _CHUNK), range(0, len(pool), 4 * _CHUNK)):
        part, members = queries[start : start + _CHUNK], pool[first : first + 4 * _CHUNK]
        nearest = torch.cdist(part, members).argmin(1)  # by matrix product: quick, but only good to 0.1 mm
        exact = (part - members[nearest]).norm(dim=1)
        best[start : start + _CHUNK] = torch.minimum(best[start : start + _CHUNK], exact)
    return best


def _drawn_joints(names: tuple[str, ...], moving: Tensor, draws: Draws) -> Tensor:
    """A joint for each row, of those that have something behind them that moves."""
    candidates = torch.tensor(SMPL24.indices(names))
    weights = (subtrees()[candidates] & moving).any(1).double()
    require(bool(weights.any()), f"the poses never move {', '.join(names)} nor what hangs on them: nothing to swap")
    return candidates[draws.choice(weights)]


def _is_new(children: Tensor, poses: Tensor, parents: Tensor, body: Body, config: EvolutionConfig) -> Tensor:
    """Which children are not just like a parent, and far enough from every pose before them."""
    both = poses[parents]  # (B, 2, 24, 4)
    new = ((children[:, None] * both).sum(-1).abs() < 1 - _STILL).any(-1).all(-1)
    if config.novel_m > 0:
        far = nearest_distance(joint_points(children, body), joint_points(poses, body)) >= config.novel_m
        new &= far
    return new
