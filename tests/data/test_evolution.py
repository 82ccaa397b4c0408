"""Evolution of poses."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from data.draws import Draws, step_generator
from data.evolution import (
    EvolutionConfig,
    Population,
    crossover,
    evolve,
    found,
    inherited,
    joint_points,
    moving_joints,
    mutate,
    nearest_distance,
    next_generation,
    subtrees,
)
from data.joint_limits import JointLimits, fit_joint_limits
from data.prior import load_pose_prior
from mesh.body import Body, load_body
from mesh.errors import InputError
from mesh.joints import SMPL24
from mesh.rotation import axis_angle_to_quaternion, quaternion_multiply, quaternion_to_axis_angle

COUNT = 200
CONFIG = EvolutionConfig()
ONLY_SWAPS = EvolutionConfig(mutation=0, tilt=0)
ALL = torch.ones(24, dtype=torch.bool)


@pytest.fixture(scope="module")
def poses() -> Tensor:
    return load_pose_prior().sample(COUNT, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def limits(poses: Tensor) -> JointLimits:
    return fit_joint_limits(poses)


@pytest.fixture(scope="module")
def body() -> Body:
    return load_body()


@pytest.fixture(scope="module")
def evolved(poses: Tensor, limits: JointLimits, body: Body) -> Population:
    return list(evolve(found(poses), limits, body, CONFIG, seed=3, size=2 * COUNT))[-1]


def same(a: Population, b: Population) -> bool:
    names = ("poses", "parents", "generation", "counts")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


def test_a_subtree_is_a_joint_and_all_that_hangs_on_it() -> None:
    below = {name: {SMPL24.names[k] for k in row.nonzero()[:, 0]} for name, row in zip(SMPL24.names, subtrees())}
    assert below["left_knee"] == {"left_knee", "left_ankle", "left_foot"}
    assert below["neck"] == {"neck", "head"}
    assert below["spine1"] == {
        name for name in SMPL24.names if name not in ("pelvis", *below["left_hip"], *below["right_hip"])
    }
    assert below["pelvis"] == set(SMPL24.names)


def test_a_child_has_exactly_the_subtree_of_one_parent_and_everything_else_of_the_other(poses: Tensor) -> None:
    first, second = poses[:24], poses[24:48]
    children = crossover(first, second, torch.arange(24))
    for joint, below in enumerate(subtrees()):
        for child, body_of, limb_of in zip(children, (first, second), (second, first)):
            assert torch.equal(child[joint, below], limb_of[joint, below])
            assert torch.equal(child[joint, ~below], body_of[joint, ~below])


def test_mutation_turns_the_stated_share_by_the_stated_angle_and_only_what_may_turn(poses: Tensor) -> None:
    pose, count = poses[:1].repeat(4000, 1, 1), 4000
    arm = subtrees()[SMPL24.index("left_shoulder")].expand(count, -1)
    config = EvolutionConfig(mutation=0.3, mutation_sd_deg=10, tilt=0)
    turned = mutate(pose, arm, config, Draws(count, step_generator(0, 0)))
    changed = (turned != pose).any(-1)
    assert not changed[~arm].any()
    share = changed.any(1).float().mean().item()
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / count)
    inverse = pose * torch.tensor([1.0, -1, -1, -1])
    turn = quaternion_to_axis_angle(quaternion_multiply(inverse, turned))[changed.any(1), SMPL24.index("left_shoulder")]
    assert math.degrees(turn.std().item()) == pytest.approx(10, rel=0.05)


def test_a_tilt_turns_the_root_alone_about_a_horizontal_axis(poses: Tensor) -> None:
    pose, count = poses[:1].repeat(4000, 1, 1), 4000
    config = EvolutionConfig(mutation=0, tilt=0.1, tilt_sd_deg=30)
    tilted = mutate(pose, ALL.expand(count, -1), config, Draws(count, step_generator(0, 0)))
    changed = (tilted != pose).any(-1)
    assert not changed[:, 1:].any()
    assert abs(changed[:, 0].float().mean().item() - 0.1) < 4 * math.sqrt(0.1 * 0.9 / count)
    inverse = pose[:, 0] * torch.tensor([1.0, -1, -1, -1])
    turn = quaternion_to_axis_angle(quaternion_multiply(tilted[:, 0], inverse))[changed[:, 0]]
    assert turn[:, 1].abs().max() < 1e-3
    assert math.degrees(turn.square().sum(1).mean().sqrt().item()) == pytest.approx(30, rel=0.1)


def test_descendants_are_possible_poses_and_the_founders_stay(poses, limits, evolved) -> None:
    assert len(evolved) == 2 * COUNT and evolved.num_founders == COUNT
    assert torch.equal(evolved.poses[:COUNT], poses)
    assert limits.valid(evolved.poses).all()
    torch.testing.assert_close(evolved.poses.norm(dim=-1), torch.ones(2 * COUNT, 24))
    assert evolved.counts[:, 1].sum() > 0  # some were not


def test_parents_are_two_poses_of_an_earlier_generation(evolved: Population) -> None:
    assert (evolved.parents[:COUNT] == -1).all()
    parents, generation = evolved.parents[COUNT:], evolved.generation[COUNT:]
    assert (parents[:, 0] != parents[:, 1]).all()
    assert (evolved.generation[parents] < generation[:, None]).all()
    assert generation.tolist() == sorted(generation.tolist()) and generation[0] == 1


def test_without_mutation_a_child_is_made_of_its_parents(poses, limits, body) -> None:
    population = next_generation(found(poses), limits, body, ONLY_SWAPS, seed=0, size=10 * COUNT)
    assert len(population) > COUNT
    for child, (first, second) in zip(population.poses[COUNT:], population.parents[COUNT:]):
        of_second = (child != poses[first]).any(-1)
        assert of_second.any()
        assert torch.equal(child[of_second], poses[second][of_second])


def test_a_generation_has_two_children_of_each_pair(poses, limits, body) -> None:
    population = next_generation(found(poses), limits, body, CONFIG, seed=0, size=10 * COUNT)
    born, impossible, known = population.counts[0].tolist()
    assert born == 2 * round(0.05 * COUNT)
    assert len(population) == COUNT + born - impossible - known


def test_evolution_depends_on_the_seed_alone_and_goes_on_where_it_was(poses, limits, body, evolved) -> None:
    torch.manual_seed(99)
    generations = list(evolve(found(poses), limits, body, CONFIG, seed=3, size=2 * COUNT))
    assert same(generations[-1], evolved)
    for middle in (generations[0], generations[-2]):
        assert same(list(evolve(middle, limits, body, CONFIG, seed=3, size=2 * COUNT))[-1], evolved)
    other = list(evolve(found(poses), limits, body, CONFIG, seed=4, size=2 * COUNT))[-1]
    assert not torch.equal(other.poses[COUNT:], evolved.poses[COUNT:])


def test_impossible_children_die(poses, body) -> None:
    strict = JointLimits(
        allowed=torch.zeros(14, 412, 35, dtype=torch.bool), allowed_together=torch.ones(2, 104, 104, dtype=torch.bool)
    )
    population = next_generation(found(poses), strict, body, CONFIG, seed=0, size=10 * COUNT)
    assert len(population) == COUNT and population.counts.tolist() == [[20, 20, 0]]
    with pytest.raises(InputError, match="no child of the last 50 generations"):
        list(evolve(found(poses), strict, body, CONFIG, seed=0, size=COUNT + 1))


def test_a_child_like_a_parent_is_no_child(poses, body) -> None:
    alike = poses[:1].repeat(50, 1, 1)
    for joint, rows in (("head", slice(0, 25)), ("left_hip", slice(25, 50))):
        alike[rows, SMPL24.index(joint)] = poses[rows, SMPL24.index(joint)]
    config = replace(ONLY_SWAPS, pairs=1.0)
    population = next_generation(found(alike), fit_joint_limits(alike), body, config, seed=0, size=999)
    assert 20 < population.counts[0, 2] < 80
    for row, child in zip(population.parents[50:], population.poses[50:]):
        assert all((child - alike[parent]).abs().max() > 1e-4 for parent in row)


def test_no_pose_is_paired_with_itself(poses, body) -> None:
    two = poses[:2]
    for seed in range(10):
        population = next_generation(found(two), fit_joint_limits(two), body, ONLY_SWAPS, seed=seed, size=999)
        assert population.counts[0, 2] == 0  # such a pair would have had known children


def test_a_generation_without_survivors_is_followed_by_another_one(poses, body) -> None:
    alike = poses[:1].repeat(4, 1, 1)
    alike[3] = poses[3]  # half of the pairs are of one and the same pose
    limits, tries = fit_joint_limits(alike), []
    for seed in range(10):
        last = list(evolve(found(alike), limits, body, ONLY_SWAPS, seed=seed, size=5))[-1]
        assert len(last) == 5
        tries.append(len(last.counts))
    assert max(tries) > 1


def test_joints_that_never_move_are_neither_swapped_nor_turned(poses, limits, body) -> None:
    still = poses.clone()
    names = ("left_collar", "left_shoulder", "left_elbow", "left_wrist", "left_hand", "right_hand")
    joints = list(SMPL24.indices(names))
    still[:, joints] = poses[:1, joints]
    assert not moving_joints(still)[joints].any() and moving_joints(still).sum() >= 15
    config = EvolutionConfig(mutation=1.0, subtrees=("left_shoulder", "spine1"))
    population = next_generation(found(still), fit_joint_limits(still), body, config, seed=0, size=999)
    assert torch.equal(population.poses[:, joints], still[:1, joints].expand(len(population), -1, -1))
    with pytest.raises(InputError, match="never move left_elbow"):
        next_generation(found(still), limits, body, EvolutionConfig(subtrees=("left_elbow",)), seed=0, size=999)


def test_novel_children_keep_their_distance_from_all_poses_before_them(poses, limits, body) -> None:
    config = EvolutionConfig(novel_m=0.1, pairs=0.5)
    population = next_generation(found(poses), limits, body, config, seed=0, size=999)
    points = joint_points(population.poses, body)
    assert (torch.cdist(points[COUNT:], points[:COUNT]).amin(1) > 0.0999).all()
    everything = next_generation(found(poses), limits, body, replace(config, novel_m=0), seed=0, size=999)
    assert COUNT < len(population) < len(everything)


def test_a_child_takes_the_larger_value_of_its_parents(evolved: Population) -> None:
    level = torch.arange(COUNT) % 5
    values = inherited(level, evolved)
    assert torch.equal(values[:COUNT], level)
    assert torch.equal(values[COUNT:], values[evolved.parents[COUNT:]].amax(1))


def test_distances_are_rms_over_joints_and_blind_to_yaw(body: Body) -> None:
    vectors = torch.zeros(3, 24, 3)
    vectors[1, 0, 1] = 2.0  # a turn about the vertical
    vectors[2, SMPL24.index("left_elbow"), 1] = -math.pi / 2  # the forearm forwards
    points = joint_points(axis_angle_to_quaternion(vectors), body)
    rest = body.joint_regressor @ body.template
    elbow, wrist, hand = (torch.from_numpy(rest[SMPL24.index(f"left_{name}")]) for name in ("elbow", "wrist", "hand"))
    # A quarter turn moves a point by sqrt(2) times its distance from the axis, the vertical through the elbow.
    squares = [2 * (point - elbow)[[0, 2]].square().sum() for point in (wrist, hand)]
    expected = (sum(squares) / 24).sqrt().item()
    assert (points[1] - points[0]).norm().item() == pytest.approx(0, abs=1e-5)
    assert (points[2] - points[0]).norm().item() == pytest.approx(expected, rel=1e-4)


def test_coverage_of_a_line_of_points_is_what_one_counts_by_hand() -> None:
    pool = torch.tensor([[0.0, 0], [10, 0], [20, 0]])
    queries = torch.tensor([[1.0, 0], [6, 0], [20, 3], [10, 0]])
    assert nearest_distance(queries, pool).tolist() == [1, 4, 3, 0]
    closer = nearest_distance(queries, torch.cat((pool, torch.tensor([[5.0, 0]]))))
    assert closer.tolist() == [1, 1, 3, 0]
    assert nearest_distance(queries, pool[:0]).tolist() == [math.inf] * 4


def test_distances_in_pieces_equal_those_at_once(generator: torch.Generator) -> None:
    queries, pool = torch.rand(2100, 3, generator=generator), torch.rand(8300, 3, generator=generator)
    whole = torch.cdist(queries.double(), pool.double()).amin(1).float()
    torch.testing.assert_close(nearest_distance(queries, pool), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": 0.0}, "pairs must lie in"),
        ({"mutation": 1.5}, "mutation must lie in"),
        ({"mutation_sd_deg": 1e30}, "mutation_sd_deg must lie in"),
        ({"tilt_sd_deg": -1.0}, "tilt_sd_deg must lie in"),
        ({"novel_m": math.nan}, "novel_m must not be negative"),
        ({"subtrees": ("pelvis",)}, "pelvis is the root"),
        ({"subtrees": ("left_kneecap",)}, "no joint 'left_kneecap'"),
        ({"subtrees": ()}, "at least one joint"),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        EvolutionConfig(**options)


def test_one_pose_cannot_evolve(poses: Tensor) -> None:
    with pytest.raises(InputError, match="at least two poses, got 1"):
        found(poses[:1])
