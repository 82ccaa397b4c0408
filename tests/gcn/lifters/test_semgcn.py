from __future__ import annotations

from dataclasses import asdict
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gcn.layers.joint_attention import Grouping, JointAttention, joint_groups, joint_pairs
from gcn.layers.semantic import SemGraphConv
from gcn.lifters.semgcn import SemGCN, SemGCNConfig, skeleton_adjacency
from mesh.errors import InputError
from mesh.joints import COCO17, COCO19, HUMAN36M17, JOINT_SETS, JointSet

GROUPINGS = get_args(Grouping)
SMALL = SemGCNConfig(width=8, blocks=2)


def relabelled(joints: JointSet, order: list[int], name: str) -> JointSet:
    """The joints `order` of a set, in that order, with the links among them."""
    place = {old: new for new, old in enumerate(order)}
    links = tuple((place[b], place[a]) for a, b in reversed(joints.edges) if a in place and b in place)
    return JointSet(name=name, names=tuple(joints.names[j] for j in order), edges=links, root=joints.root)


def human36m16() -> JointSet:
    """The published 16 joints: no nose, the head hangs from the neck."""
    kept = [j for j, name in enumerate(HUMAN36M17.names) if name != "nose"]
    base = relabelled(HUMAN36M17, kept, "human36m16")
    links = (*base.edges, base.indices(("neck", "head")))
    return JointSet(name=base.name, names=base.names, edges=links, root=base.root)  # type: ignore[arg-type]


H16 = human36m16()
SETS = pytest.mark.parametrize("joints", [H16, COCO17, HUMAN36M17, COCO19], ids=lambda joints: joints.name)


def lifter(joints: JointSet = COCO19, in_channels: int = 3, *, seed: int = 0, **options: Any) -> SemGCN:
    """A network as if trained: no parameter or statistic at its start value; double precision, evaluating."""
    torch.manual_seed(seed)
    network = SemGCN(joints, in_channels, **(asdict(SMALL) | options)).double().eval()
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif value.is_floating_point():
                value.normal_(0, 1 if name.endswith("logits") else 0.4)
        hooks = [m.register_forward_pre_hook(centre_scores) for m in network.modules() if isinstance(m, JointAttention)]
        network(poses(joints, in_channels))
    for hook in hooks:
        hook.remove()
    return network


def centre_scores(layer: JointAttention, inputs: tuple[Tensor]) -> None:
    """Scores of either sign: some groups count, some do not."""
    keys = layer.pooled(layer.key_value(inputs[0])).chunk(2, dim=-1)[0]
    mean = (layer.query(inputs[0]) @ layer.score[0]).mean() + (keys @ layer.score[1]).mean()
    layer.query.bias -= mean * layer.score[0] / layer.score[0].square().sum()


def poses(joints: JointSet = COCO19, channels: int = 3, people: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(people, len(joints), channels, generator=generator, dtype=torch.float64)


# An independent forward pass, joint by joint.


def normalise(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
    return (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias


def convolve(conv: SemGraphConv, joints: JointSet, x: list[Tensor]) -> list[Tensor]:
    neighbours = [sorted({i} | {a + b - i for a, b in joints.edges if i in (a, b)}) for i in range(len(joints))]
    logits, out = iter(conv.logits), []
    for i, row in enumerate(neighbours):
        raw = [next(logits).exp() for _ in row]
        terms = [r / sum(raw) * (x[j] @ conv.weight[0 if i == j else 1]) for j, r in zip(row, raw)]
        out.append(sum(terms) + (0 if conv.bias is None else conv.bias))
    return out


def attend(layer: JointAttention, groups: list[tuple[int, ...]], x: list[Tensor]) -> list[Tensor]:
    linear = layer.key_value
    pooled = [torch.stack([x[j] @ linear.weight.T + linear.bias for j in group]).amax(0) for group in groups]
    half = linear.out_features // 2
    out, counted = [], []
    for features in x:
        query = features @ layer.query.weight.T + layer.query.bias
        y = 0
        for group in pooled:
            joined = torch.cat((query, group[:, :half]), dim=1)
            score = (joined * layer.score.flatten()).sum(1, keepdim=True).clamp(min=0)
            counted.append(score > 0)
            y = y + score / len(groups) * group[:, half:]
        out.append(features + normalise(layer.norm, y @ layer.out.weight.T + layer.out.bias))
    assert 0 < torch.cat(counted).double().mean() < 1
    return out


def lift_plainly(network: SemGCN, joints: JointSet, groups: list[tuple[int, ...]], features: Tensor) -> Tensor:
    def graph_layer(layer: nn.Module, x: list[Tensor]) -> list[Tensor]:
        return [normalise(layer.norm, y).clamp(min=0) for y in convolve(layer.conv, joints, x)]

    x = list(features.unbind(1))
    for layer in network.layers:
        if isinstance(layer, JointAttention):
            x = attend(layer, groups, x)
        elif hasattr(layer, "conv"):
            x = graph_layer(layer, x)
        else:
            ahead = graph_layer(layer.layers[1], graph_layer(layer.layers[0], x))
            x = [a + b for a, b in zip(x, ahead)]
    written = convolve(network.head, joints, x)
    root = written[joints.names.index(joints.root)]
    return torch.stack([y - root for y in written], dim=1)


def h17_groups(odd: tuple[str, ...]) -> list[tuple[int, ...]]:
    """The 17 joints' groups, written down by hand."""
    left_right = [
        (f"{s}_{a}", f"{s}_{b}") for s in ("left", "right") for a, b in (("elbow", "wrist"), ("knee", "ankle"))
    ]
    across = [(f"left_{a}", f"right_{a}") for a in ("shoulder", "hip")]
    return [HUMAN36M17.indices(g) for g in (*left_right, *across, ("torso", "neck"), ("nose", "head"), odd)]


@pytest.mark.parametrize("in_channels", [2, 3, 12])
@pytest.mark.parametrize("joints", [H16, COCO19], ids=lambda joints: joints.name)
def test_the_network_equals_a_plain_one_with_the_same_weights(joints: JointSet, in_channels: int) -> None:
    network, features = lifter(joints, in_channels, attention=False), poses(joints, in_channels)
    torch.testing.assert_close(network(features), lift_plainly(network, joints, [], features))


@pytest.mark.parametrize(
    ("grouping", "groups"),
    [
        ("concatenated", h17_groups(("pelvis",))),
        ("self", h17_groups(("pelvis", "pelvis"))),
        ("related", h17_groups(("pelvis", "torso"))),
        ("none", [(j,) for j in range(17)]),
    ],
)
def test_the_network_with_attention_equals_a_plain_one(grouping: Grouping, groups: list[tuple[int, ...]]) -> None:
    network, features = lifter(HUMAN36M17, grouping=grouping), poses(HUMAN36M17)
    torch.testing.assert_close(network(features), lift_plainly(network, HUMAN36M17, groups, features))


@pytest.mark.parametrize(("attention", "published"), [(False, 0.27e6), (True, 0.43e6)])
def test_the_default_has_the_published_number_of_parameters(attention: bool, published: float) -> None:
    network = SemGCN(H16, 2, **(asdict(SemGCNConfig()) | {"attention": attention}))
    size = sum(p.numel() for p in network.parameters())
    edges, width = 16 + 2 * 15, 128
    expected = 2 * 2 * width + width + edges + 2 * width  # input
    expected += 8 * (2 * width**2 + width + edges + 2 * width) + 2 * width * 3 + edges  # blocks, output
    expected += attention * 5 * (4 * 64 * width + 3 * 64 + 128 + width + 2 * width)
    assert size == expected
    assert size == pytest.approx(published, abs=0.005e6)


def test_sixteen_joints_are_paired_as_published() -> None:
    published = ((2, 3), (5, 6), (1, 4), (0, 7), (8, 9), (14, 15), (11, 12), (10, 13))
    assert len(H16) == 16 and set(joint_pairs(H16)) == set(published)


@pytest.mark.parametrize("joints", JOINT_SETS.values(), ids=lambda joints: joints.name)
def test_pairs_use_each_joint_once_and_are_the_same_left_and_right(joints: JointSet) -> None:
    pairs = joint_pairs(joints)
    used = [j for pair in pairs for j in pair]
    assert len(set(used)) == len(used) == len(joints) // 2 * 2
    mirrored = {tuple(sorted(joints.flip_permutation[j] for j in pair)) for pair in pairs}
    assert mirrored == set(pairs)


def test_joints_without_links_are_paired_among_themselves() -> None:
    loose = JointSet(name="loose", names=("a", "b", "c", "d", "e"), edges=((0, 1),), root="a")
    assert len(joint_pairs(loose)) == 2
    for grouping in GROUPINGS:
        assert {j for group in joint_groups(loose, grouping) for j in group} == set(range(5))


def test_the_order_of_the_joints_does_not_decide_who_is_paired() -> None:
    star = JointSet(name="star", names=tuple("hubpq"), edges=((0, 1), (0, 2), (0, 3), (3, 4)), root="h")

    def pairs_by_name(joints: JointSet) -> set[frozenset[str]]:
        return {frozenset(joints.names[j] for j in pair) for pair in joint_pairs(joints)}

    assert (
        pairs_by_name(star)
        == pairs_by_name(relabelled(star, [4, 2, 0, 3, 1], "shuffled"))
        == {*map(frozenset, ("pq", "bh"))}
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("grouping", [*GROUPINGS, None])
@SETS
def test_relabelled_joints_give_the_same_pose(joints: JointSet, grouping: Grouping | None, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(joints)).tolist()
    shuffled = relabelled(joints, order, "shuffled")
    options = {"attention": False} if grouping is None else {"grouping": grouping}
    network, other = lifter(joints, **options), lifter(shuffled, **options)
    rows, columns = skeleton_adjacency(shuffled).nonzero().T
    slots = torch.full((len(joints), len(joints)), -1)
    slots[skeleton_adjacency(joints)] = torch.arange(len(rows))
    source = slots[torch.tensor(order)[rows], torch.tensor(order)[columns]]
    state = {k: v[source] if k.endswith("logits") else v for k, v in network.state_dict().items()}
    other.load_state_dict(state)
    features = poses(joints)
    torch.testing.assert_close(other(features[:, order]), network(features)[:, order])


@pytest.mark.parametrize("grouping", [*GROUPINGS, None])
@SETS
def test_every_parameter_receives_a_gradient(joints: JointSet, grouping: Grouping | None) -> None:
    options = {"attention": False} if grouping is None else {"grouping": grouping}
    network = lifter(joints, **options)  # evaluates: while training, batch norm cancels the biases before it
    (network(poses(joints)) ** 3).sum().backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-12]
    assert not without


@pytest.mark.parametrize("attention", [True, False])
@SETS
def test_the_lifted_root_is_exactly_zero(joints: JointSet, attention: bool) -> None:
    lifted = lifter(joints, attention=attention).train()(poses(joints))
    assert lifted.shape == (4, len(joints), 3)
    assert (lifted[:, joints.root_idx] == 0).all()
    assert (lifted != 0).any(dim=-1).sum() == 4 * (len(joints) - 1)


@pytest.mark.parametrize("attention", [True, False])
def test_the_confidence_reaches_every_joint_but_the_root(attention: bool) -> None:
    network, features = lifter(attention=attention), poses()
    unsure = features.clone()
    unsure[..., 2] -= 1
    moved = (network(unsure) - network(features)).abs().amax(dim=-1) > 1e-9
    assert moved.sum(1).tolist() == [18] * 4 and not moved[:, COCO19.root_idx].any()


def test_a_new_attention_layer_changes_nothing_and_starts_as_a_mean() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 19, 8)
    layer = JointAttention(8, joint_groups(COCO19))
    torch.testing.assert_close(layer(x), x, rtol=0, atol=0)
    layer.eval().norm.weight.data.fill_((1 + layer.norm.eps) ** 0.5)
    values = layer.pooled(layer.key_value(x))[..., 4:].mean(1, keepdim=True)
    torch.testing.assert_close(layer(x), x + layer.out(values), rtol=0, atol=0.3)


def test_a_person_does_not_depend_on_the_others_in_the_batch() -> None:
    network, features = lifter(), poses()
    torch.testing.assert_close(network(features)[2:3], network(features[2:3]))
    assert network(features[:0]).shape == (0, 19, 3)


def test_dropout_keeps_or_zeroes_what_the_layer_without_it_gives() -> None:
    layer = lifter(dropout=0.5).layers[0].train()
    dropped, features = layer(poses(people=64)), poses(people=64)
    layer.dropout.p = 0.0
    whole = layer(features)
    kept = dropped != 0
    torch.testing.assert_close(dropped, torch.where(kept, 2 * whole, 0))
    assert kept[whole > 0].double().mean().item() == pytest.approx(0.5, abs=0.05)


def test_saved_weights_give_the_same_poses() -> None:
    network, other = lifter(seed=0), lifter(seed=5)
    assert not torch.equal(other(poses()), network(poses()))
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(other(poses()), network(poses()), rtol=0, atol=0)


def test_the_lifter_writes_in_the_unit_that_it_is_told() -> None:
    in_metres, in_mm = (lifter(output_unit_m=unit) for unit in (1.0, 1e-3))
    torch.testing.assert_close(in_mm(poses()), in_metres(poses()) / 1000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width >= 1 and blocks >= 0"),
        ({"blocks": -1}, "width >= 1 and blocks >= 0"),
        ({"dropout": -0.1}, r"semgcn\.dropout must lie in \[0, 1\), got -0\.1"),
        ({"grouping": "limbs"}, "one of concatenated, self, related, none, got 'limbs'"),
        ({"output_unit_m": -1.0}, r"semgcn\.output_unit_m must be positive, got -1\.0"),
    ],
)
def test_senseless_settings_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        SemGCNConfig(**options)
    assert "\n" not in str(caught.value)


def test_an_unknown_grouping_is_refused_without_a_config_too() -> None:
    with pytest.raises(InputError, match="got 'limbs'"):
        SemGCN(COCO19, 3, grouping="limbs")  # type: ignore[arg-type]
