from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch.nn.functional import layer_norm

from gcn.layers.parallel import ParallelLinear, ParallelNorm
from gcn.lifters.split import SplitConfig, SplitLifter
from mesh.errors import InputError
from mesh.joints import COCO19, JOINT_SETS, OPENPOSE25, JointSet

SMALL = SplitConfig(width=24, blocks=2, context=3)
ARMS = {side: COCO19.indices((f"{side}_elbow", f"{side}_wrist")) for side in ("left", "right")}
LEGS = {side: COCO19.indices((f"{side}_knee", f"{side}_ankle")) for side in ("left", "right")}
LIMBS = (ARMS["left"], ARMS["right"], LEGS["left"], LEGS["right"])
MIRROR = torch.tensor([-1.0, 1.0, 1.0])


def lifter(joints: JointSet = COCO19, in_channels: int = 4, **options: Any) -> SplitLifter:
    torch.manual_seed(0)
    return SplitLifter(joints, in_channels, **(asdict(SMALL) | options))


def deaf(network: SplitLifter) -> SplitLifter:
    """The same where no part hears of the others."""
    for block in network.blocks:
        torch.nn.init.zeros_(block.hear.weight)
        torch.nn.init.zeros_(block.hear.bias)
    return network


@pytest.fixture
def features(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(5, 19, 4, generator=generator)


def test_the_network_equals_its_formula_part_by_part(features: torch.Tensor) -> None:
    network = lifter(blocks=1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    trunk = [j for j in range(19) if not any(j in limb for limb in LIMBS)]
    corners = [COCO19.index(f"{side}_{part}") for part in ("shoulder", "hip") for side in ("left", "right")]
    flipped = features * torch.tensor([-1.0, 1.0, 1.0, 1.0])
    inputs = [
        (0, features[:, trunk]),
        (1, features[:, [*ARMS["left"], *corners]]),
        (1, flipped[:, [*ARMS["right"], *(corners[i] for i in (1, 0, 3, 2))]]),
        (2, features[:, [*LEGS["left"], *corners]]),
        (2, flipped[:, [*LEGS["right"], *(corners[i] for i in (1, 0, 3, 2))]]),
    ]
    block = network.blocks[0]

    def apply(layer: ParallelLinear, kind: int, x: torch.Tensor) -> torch.Tensor:
        return x @ layer.weight[kind, : x.shape[1]] + (0 if layer.bias is None else layer.bias[kind])

    def activate(norm: ParallelNorm, kind: int, x: torch.Tensor) -> torch.Tensor:
        return layer_norm(x, (24,), norm.weight[kind, 0], norm.bias[kind, 0]).clamp(min=0)

    hidden = [apply(network.stem, kind, x.flatten(1)) for kind, x in inputs]
    active = [activate(block.first_norm, kind, x) for (kind, _), x in zip(inputs, hidden)]
    told = torch.cat([apply(block.tell, kind, a) for (kind, _), a in zip(inputs, active)], dim=1)
    heard = block.hear(told).split(24, dim=1)
    outputs = []
    for place, (kind, _) in enumerate(inputs):
        y = activate(block.second_norm, kind, apply(block.first, kind, active[place]) + heard[place])
        hidden[place] = hidden[place] + apply(block.second, kind, y)
        outputs.append(apply(network.heads, kind, hidden[place]).unflatten(1, (-1, 3)))
    expected = torch.zeros(5, 19, 3)
    expected[:, trunk] = outputs[0]
    for place, limb, base in zip(range(1, 5), LIMBS, corners):
        offsets = outputs[place] * (1 if place in (1, 3) else MIRROR)
        expected[:, limb[0]] = expected[:, base] + offsets[:, 0]
        expected[:, limb[1]] = expected[:, limb[0]] + offsets[:, 1]
    torch.testing.assert_close(network(features), expected - expected[:, [COCO19.root_idx]], rtol=1e-4, atol=1e-4)


def test_a_limb_depends_on_itself_and_the_trunk_and_on_others_by_hearsay(features: torch.Tensor) -> None:
    moved = features.clone()
    moved[:, COCO19.index("left_wrist")] += 1
    for network, expected in ((deaf(lifter()), set(ARMS["left"])), (lifter(), set(range(19)) - {COCO19.root_idx})):
        change = (network(moved) - network(features)).abs().amax((0, 2))
        assert set(change.nonzero()[:, 0].tolist()) == expected


def test_right_limbs_are_mirrored_left_ones(features: torch.Tensor) -> None:
    network, order = deaf(lifter()), list(COCO19.flip_permutation)
    joints, mirrored = network(features), network(features[:, order] * torch.tensor([-1.0, 1.0, 1.0, 1.0]))

    def offsets(x: torch.Tensor, limb: tuple[int, ...], base: str) -> torch.Tensor:
        return x[:, limb] - x[:, [COCO19.index(base), limb[0]]]

    for limbs, base in ((ARMS, "shoulder"), (LEGS, "hip")):
        left = offsets(joints, limbs["left"], f"left_{base}")
        right = offsets(mirrored, limbs["right"], f"right_{base}")
        torch.testing.assert_close(right, left * MIRROR)
        assert (left - offsets(joints, limbs["right"], f"right_{base}") * MIRROR).abs().max() > 1e-3


@pytest.mark.parametrize("name", JOINT_SETS)
def test_every_joint_of_every_set_is_written_once(name: str, generator: torch.Generator) -> None:
    joints = JOINT_SETS[name]
    network = lifter(joints)
    features = torch.randn(3, len(joints), 4, generator=generator)
    written = network(features)
    assert written.shape == (3, len(joints), 3) and not written[:, joints.root_idx].any()
    with torch.no_grad():
        network.heads.weight.zero_()
        network.heads.bias[:, 0] = torch.arange(network.heads.bias.shape[-1]) + 1.0  # each number is its own
    assert len(network(features)[0].unique(dim=0)) == len(joints)


def test_a_set_without_elbows_is_refused() -> None:
    names = ("left_shoulder", "right_shoulder", "left_hip", "right_hip")
    with pytest.raises(InputError, match="torso4 has no left_elbow"):
        lifter(JointSet(name="torso4", names=names, edges=((0, 1), (2, 3)), root="left_hip"))


def test_joints_come_in_the_unit_of_the_last_layer(features: torch.Tensor) -> None:
    torch.testing.assert_close(lifter(output_unit_m=0.1)(features) * 10, lifter()(features))


@torch.no_grad()
def constant(network: SplitLifter, value: float, offset: float) -> SplitLifter:
    """The same that always writes this for the trunk, and one, two, three ... times this from joint to joint."""
    network.heads.weight.zero_()
    network.heads.bias[0] = value
    network.heads.bias[1:] = offset * (torch.arange(network.heads.bias.shape[-1]) // 3 + 1)
    return network


def test_limbs_are_placed_in_full_precision_under_autocast(features: torch.Tensor) -> None:
    network = constant(lifter(), 1.0, 2.0**-10)  # 1 + 2^-10 is none of the numbers of half precision
    with torch.autocast("cpu", torch.bfloat16):
        joints = network(features)
    assert joints.dtype == torch.float32
    for limb in (ARMS["left"], LEGS["left"]):
        torch.testing.assert_close(joints[:, limb, 1], torch.tensor([1.0, 3.0]).expand(5, 2) * 2.0**-10, rtol=0, atol=0)


def test_what_branches_is_placed_along_its_branch(generator: torch.Generator) -> None:
    joints = constant(lifter(OPENPOSE25), 1.0, 1.0)(torch.randn(2, 25, 4, generator=generator))
    at = {name: joints[0, OPENPOSE25.index(f"left_{name}"), 1].item() for name in ("ankle", "heel", "big_toe")}
    assert at == {"ankle": 1 + 2, "heel": 1 + 2 + 3, "big_toe": 1 + 2 + 4}


def test_gradients_equal_finite_differences() -> None:
    network = lifter(in_channels=3, width=5, blocks=1, context=2).double()
    features = torch.randn(2, 19, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(network, features)


@pytest.mark.parametrize("wrong", [{"width": 0}, {"blocks": -1}, {"context": 0}, {"output_unit_m": 0.0}])
def test_an_impossible_size_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="split"):
        SplitConfig(**wrong)
