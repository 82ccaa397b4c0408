"""The default mesh network: frames that carry a template, and a graph network that shapes it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data.prior import load_pose_prior
from gcn import meshnet
from gcn.coarsening import Hierarchy, coarsen
from gcn.frames import GRAPH_LEVEL, NODE_LEVEL, NodeFrames, fit_frames
from gcn.graph import normalised_laplacian, rescale_laplacian
from gcn.layers.chebyshev import dense_polynomials
from gcn.meshnet import GraphBlock, MeshNet
from gcn.upsampling import Upsampling, fit_upsampling, pool_clusters
from mesh.body import Body, load_body
from mesh.errors import InputError
from mesh.joints import COCO19, HUMAN36M17, SMPL24
from mesh.rotation import quaternion_to_matrix, rot6d_to_matrix, rotation_about
from mesh.skinning import BodyModel

PEOPLE = 24


@pytest.fixture(scope="module")
def body() -> Body:
    return load_body()


@pytest.fixture(scope="module")
def rotations() -> Tensor:
    poses = load_pose_prior().sample(PEOPLE, torch.Generator().manual_seed(0))
    rotations = quaternion_to_matrix(poses)
    rotations[0] = torch.eye(3)
    return rotations


@pytest.fixture(scope="module")
def posed(body: Body, rotations: Tensor) -> np.ndarray:
    return BodyModel(body)(rotations, torch.zeros(PEOPLE, 10))[0].numpy()


@pytest.fixture(scope="module")
def hierarchy(body: Body) -> Hierarchy:
    return coarsen(body.edges, body.num_vertices, GRAPH_LEVEL)


@pytest.fixture(scope="module")
def upsampling(hierarchy: Hierarchy, posed: np.ndarray) -> Upsampling:
    return fit_upsampling(posed.astype(np.float64), hierarchy, NODE_LEVEL, num_terms=12)


@pytest.fixture(scope="module")
def frames(body: Body, hierarchy: Hierarchy, upsampling: Upsampling, posed: np.ndarray) -> NodeFrames:
    return fit_frames(body, hierarchy, upsampling, posed, COCO19)


@pytest.fixture
def net(hierarchy: Hierarchy, frames: NodeFrames, upsampling: Upsampling) -> MeshNet:
    torch.manual_seed(0)
    return MeshNet(COCO19, 6, hierarchy, frames, upsampling, width=32, blocks=1, channels=8)


@pytest.fixture
def people(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(5, 19, 3, generator=generator), 0.4 * torch.randn(5, 19, 3, generator=generator)


def test_every_joint_of_the_body_is_placed_from_the_input_joints(body: Body, frames: NodeFrames, posed) -> None:
    joints = body.regressor(COCO19) @ posed
    joints = joints - joints[:, COCO19.root_idx, None]
    wanted = body.joint_regressor @ posed - (body.regressor(HUMAN36M17)[HUMAN36M17.root_idx] @ posed)[:, None]
    error = np.linalg.norm(frames.mix @ joints - wanted, axis=-1)
    assert error.mean() < 0.02 and error[:, 4:6].max() < 0.03  # knees


def test_the_input_joints_are_regressed_from_the_nodes(
    body: Body, frames: NodeFrames, hierarchy: Hierarchy, posed: np.ndarray
) -> None:
    nodes = pool_clusters(posed.astype(np.float64), hierarchy.clusters(NODE_LEVEL))
    joints = body.regressor(COCO19) @ posed
    wanted = joints - joints[:, COCO19.root_idx, None]
    assert np.linalg.norm(frames.regressor @ nodes - wanted, axis=-1).max() < 0.012


def test_the_mesh_is_drawn_to_the_lifted_joints(net: MeshNet, body: Body, posed: np.ndarray, monkeypatch) -> None:
    regressor = torch.from_numpy(body.regressor(COCO19))
    joints = regressor @ torch.from_numpy(posed)
    joints = joints - joints[:, COCO19.root_idx, None]

    def missed(approaches: int) -> float:
        monkeypatch.setattr(meshnet, "_APPROACHES", approaches)
        with torch.inference_mode():
            found = regressor @ net(torch.zeros_like(joints), joints)
        return (found - found[:, COCO19.root_idx, None] - joints)[:, 5:17].norm(dim=-1).mean().item()  # limbs

    shipped = missed(meshnet._APPROACHES)
    assert shipped < 0.6 * missed(0)
    assert missed(60) < 0.3 * shipped


def test_the_true_frames_carry_the_template_to_the_posed_body(
    net: MeshNet, body: Body, rotations: Tensor, posed: np.ndarray, monkeypatch
) -> None:
    bones = BodyModel(body).pose(rotations, torch.zeros(PEOPLE, 10)).bones
    monkeypatch.setattr(meshnet, "_APPROACHES", 0)
    monkeypatch.setattr(net, "_bone_transforms", lambda frames, trunk, joints: bones)
    monkeypatch.setattr(net, "_offsets", lambda hidden: torch.zeros(len(hidden), *net.rest.shape))
    features = torch.zeros(PEOPLE, 19, 3)
    error = (net(features, features) - torch.from_numpy(posed)).norm(dim=-1)
    assert error.mean() < 0.006  # what pose blend shapes and the fixed up-sampling leave


@pytest.mark.parametrize("turn", [(0.0, 1.0, 0.0, 0.0), (0.3, -0.4, 0.5, 0.7)], ids=["facing the camera", "lying"])
def test_a_new_network_is_the_template_turned_as_the_trunk_is(net: MeshNet, body: Body, turn) -> None:
    """Before training: each bone at its lifted joint."""
    rotation = quaternion_to_matrix(nn.functional.normalize(torch.tensor(turn), dim=0))
    rest = torch.from_numpy(body.regressor(COCO19) @ body.template)
    joints = (rest - rest[COCO19.root_idx]) @ rotation.T
    for layer in (net.frames, net.offsets, net.to_offset):
        nn.init.zeros_(layer.weight)
    with torch.inference_mode():
        vertices = net(torch.zeros(1, 19, 3), joints[None])[0]
    template = torch.from_numpy(body.template - body.regressor(HUMAN36M17)[HUMAN36M17.root_idx] @ body.template)
    assert (vertices - template @ rotation.T).norm(dim=-1).mean() < 0.03


def test_a_turned_person_has_a_turned_mesh(net: MeshNet, people) -> None:
    """Turned about the vertical, that is, from which the networks know where down is."""
    features, joints = people
    turn = rotation_about("y", torch.tensor(1.1))
    with torch.inference_mode():
        straight, turned = net(features, joints), net(features, joints @ turn.T)
    torch.testing.assert_close(turned, straight @ turn.T, atol=2e-5, rtol=0)
    rolled = rotation_about("z", torch.tensor(1.1))
    with torch.inference_mode():
        assert (net(features, joints @ rolled.T) - straight @ rolled.T).abs().max() > 1e-3


def test_where_the_joints_lie_in_the_picture_changes_nothing(net: MeshNet, people) -> None:
    features, joints = people
    moved = torch.cat((features[..., :2] + 1, features[..., 2:]), dim=-1)
    surer = torch.cat((features[..., :2], features[..., 2:] + 1), dim=-1)
    with torch.inference_mode():
        torch.testing.assert_close(net(moved, joints), net(features, joints), rtol=0, atol=0)
        assert (net(surer, joints) - net(features, joints)).abs().max() > 1e-3


@pytest.mark.parametrize(("part", "moved"), [("elbow", "wrist"), ("knee", "ankle")])
def test_a_limb_turns_its_own_frames_and_those_of_the_trunk_only(
    net: MeshNet, frames: NodeFrames, people, monkeypatch, part: str, moved: str
) -> None:
    features, joints = people
    found = []
    monkeypatch.setattr(
        net,
        "_bone_transforms",
        lambda frames, trunk, joints: found.append(frames) or torch.eye(3, 4).expand(5, 24, 3, 4),
    )
    bent = joints.clone()
    bent[:, COCO19.index(f"right_{moved}")] += 0.1
    with torch.inference_mode():
        net(features, joints)
        net(features, bent)
    changed = (found[1] - found[0]).abs().amax((0, 2)) > 1e-6
    own = {"elbow": 2, "knee": 4}[part]
    assert set(frames.parts[changed.numpy()].tolist()) == {0, own}
    assert changed.numpy()[frames.parts == own].all()


def test_left_and_right_limbs_are_seen_as_in_a_mirror(net: MeshNet, frames: NodeFrames, people, monkeypatch) -> None:
    features, joints = people
    found = []
    monkeypatch.setattr(
        net,
        "_bone_transforms",
        lambda frames, trunk, joints: (
            found.append(rot6d_to_matrix(frames[..., :6])) or torch.eye(3, 4).expand(5, 24, 3, 4)
        ),
    )
    swap, mirror = list(COCO19.flip_permutation), torch.tensor([-1.0, 1.0, 1.0])
    with torch.inference_mode():
        net(features, joints)
        net(features[:, swap], joints[:, swap] * mirror)
    mirrored = mirror[:, None] * found[1] * mirror
    for left, right in ((1, 2), (3, 4)):
        torch.testing.assert_close(
            mirrored[:, frames.parts == right], found[0][:, frames.parts == left], atol=1e-5, rtol=0
        )
        torch.testing.assert_close(
            mirrored[:, frames.parts == left], found[0][:, frames.parts == right], atol=1e-5, rtol=0
        )


def test_the_left_limb_is_told_as_it_is_and_the_right_one_mirrored(net: MeshNet, frames: NodeFrames, people) -> None:
    nn.init.zeros_(net.frames.weight)
    torch.nn.init.normal_(net.frames.bias)
    written = net._frames(torch.zeros(4, 2 * 5, 32))
    mirrored = torch.tensor([1.0, -1.0, -1.0, -1.0, 1.0, 1.0, -1.0, 1.0, 1.0])
    for part, (network, signs) in enumerate([(0, 1), (1, 1), (1, mirrored), (2, 1), (2, mirrored), (3, 1)]):
        own = written[:, frames.parts == part]
        biases = net.frames.bias[network, 0].unflatten(0, (-1, 9))[: own.shape[1]]
        torch.testing.assert_close(own, (biases * signs).expand(5, -1, -1))


@pytest.mark.parametrize("joint", ["left_ankle", "right_wrist", "nose"])
def test_the_shape_depends_on_every_joint(net: MeshNet, people, monkeypatch, joint: str) -> None:
    features, joints = people
    seen = []
    monkeypatch.setattr(net, "_offsets", lambda hidden: seen.append(hidden) or torch.zeros(5, *net.rest.shape))
    moved = joints.clone()
    moved[:, COCO19.index(joint)] += 0.1
    with torch.inference_mode():
        net(features, joints)
        net(features, moved)
    assert ((seen[1] - seen[0]).abs().amax(1) > 1e-6).all()


def test_frames_belong_to_the_limb_that_they_hang_on(frames: NodeFrames) -> None:
    parts = {
        0: ("pelvis", "spine1", "spine2", "spine3"),
        1: tuple(f"left_{n}" for n in ("collar", "shoulder", "elbow", "wrist", "hand")),
        2: tuple(f"right_{n}" for n in ("collar", "shoulder", "elbow", "wrist", "hand")),
        3: tuple(f"left_{n}" for n in ("hip", "knee", "ankle", "foot")),
        4: tuple(f"right_{n}" for n in ("hip", "knee", "ankle", "foot")),
        5: ("neck", "head"),
    }
    assert {p: tuple(SMPL24.names[j] for j in np.flatnonzero(frames.parts == p)) for p in range(6)} == parts


def test_a_body_of_unlike_sides_is_refused(body: Body, hierarchy: Hierarchy, upsampling: Upsampling, posed) -> None:
    parents = list(body.parents)
    parents[SMPL24.index("left_hand")] = 0
    told = r"left ones like right ones; their joints are \[\[0, 3, 6, 9, 22\], \[13, 16, 18, 20\], "
    with pytest.raises(InputError, match=told):
        fit_frames(replace(body, parents=tuple(parents)), hierarchy, upsampling, posed, COCO19)


def test_limbs_of_as_many_joints_that_hang_otherwise_are_refused(
    body: Body, hierarchy: Hierarchy, upsampling: Upsampling, posed
) -> None:
    parents = list(body.parents)
    parents[SMPL24.index("left_hand")] = SMPL24.index("left_elbow")
    with pytest.raises(InputError, match="left ones like right ones"):
        fit_frames(replace(body, parents=tuple(parents)), hierarchy, upsampling, posed, COCO19)


def test_joints_in_one_place_give_a_mesh_without_extent_and_finite_gradients(net: MeshNet, people) -> None:
    joints = torch.zeros(5, 19, 3, requires_grad=True)
    vertices = net(people[0], joints)
    vertices.pow(2).sum().backward()
    assert vertices.isfinite().all() and joints.grad is not None and joints.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_offsets_are_turned_with_the_body(net: MeshNet, people, monkeypatch) -> None:
    """The same offsets on a turned frame move the vertices the turned way."""
    turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    bones = torch.eye(3, 4).expand(5, 24, 3, 4)
    monkeypatch.setattr(meshnet, "_APPROACHES", 0)
    turned = torch.cat((turn.expand(5, 24, 3, 3), torch.zeros(5, 24, 3, 1)), dim=-1)
    found = []
    for given in (bones, turned):
        net._bone_transforms = lambda frames, trunk, joints, given=given: given  # type: ignore[method-assign]
        with torch.inference_mode():
            found.append(net(*people))
    torch.testing.assert_close(found[1], found[0] @ turn.T, atol=1e-5, rtol=0)


def test_every_parameter_receives_a_gradient(net: MeshNet, people) -> None:
    net(*people).pow(3).sum().backward()
    without = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


def test_autocast_leaves_it_in_float32(net: MeshNet, people) -> None:
    with torch.inference_mode():
        exact = net(*people)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = net(people[0], people[1].bfloat16())
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, exact, atol=0.03, rtol=0)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        torch.testing.assert_close(net(*people), exact, rtol=0, atol=0)


def test_training_leaves_the_fitted_frames_as_they_are(net: MeshNet, frames: NodeFrames, people) -> None:
    fitted = frames.mix.copy()
    net(*people).pow(3).sum().backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    assert not np.array_equal(net.mix.detach().numpy(), fitted)
    np.testing.assert_array_equal(frames.mix, fitted)


def test_a_person_does_not_depend_on_the_others_in_the_batch(net: MeshNet, people) -> None:
    with torch.inference_mode():
        alone = torch.cat([net(people[0][i : i + 1], people[1][i : i + 1]) for i in range(5)])
        torch.testing.assert_close(net(*people), alone, atol=1e-5, rtol=0)


def test_a_graph_block_is_the_published_chebyshev_filter_on_normalised_features(hierarchy: Hierarchy) -> None:
    torch.manual_seed(1)
    laplacian = rescale_laplacian(normalised_laplacian(hierarchy.adjacencies[GRAPH_LEVEL]), "spectral")
    block, x = GraphBlock(8, 3), torch.randn(laplacian.shape[0], 2, 8)
    dense, out = torch.from_numpy(laplacian.toarray()), x.double()
    for convolution in block.convolutions:
        out = (out - out.mean(-1, keepdim=True)) / (out.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        terms = [out.clamp_min(0)]
        terms.append(torch.einsum("nm,mbc->nbc", dense, terms[0]))
        terms.append(2 * torch.einsum("nm,mbc->nbc", dense, terms[1]) - terms[0])
        out = sum(t @ w.double() for t, w in zip(terms, convolution.weight)) + convolution.bias.double()
    polynomials = torch.from_numpy(dense_polynomials(laplacian.toarray(), 3)).float()
    torch.testing.assert_close(block(polynomials, x).double(), x + out, atol=1e-4, rtol=1e-4)
