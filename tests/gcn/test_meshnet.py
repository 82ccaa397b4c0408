"""The default mesh network: frames that carry a template, and a graph network that shapes it."""

from __future__ import annotations

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
from mesh.joints import COCO19, HUMAN36M17
from mesh.rotation import quaternion_to_matrix
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
    monkeypatch.setattr(net, "_bone_transforms", lambda hidden, joints: bones)
    monkeypatch.setattr(net, "_offsets", lambda hidden: torch.zeros(len(hidden), *net.rest.shape))
    features = torch.zeros(PEOPLE, 19, 3)
    error = (net(features, features) - torch.from_numpy(posed)).norm(dim=-1)
    assert error.mean() < 0.006  # what pose blend shapes and the fixed up-sampling leave


def test_a_new_network_stands_upright_at_the_lifted_joints(net: MeshNet, body: Body) -> None:
    """Before training: the template, turned as a person who faces the camera, each bone at its lifted joint."""
    rest = torch.from_numpy(body.regressor(COCO19) @ body.template)
    upright = (rest - rest[COCO19.root_idx]) * torch.tensor([1.0, -1.0, -1.0])
    for layer in (net.rotations, net.places, net.offsets, net.to_offset):
        nn.init.zeros_(layer.weight)
    with torch.inference_mode():
        vertices = net(torch.zeros(1, 19, 3), upright[None])[0]
    template = torch.from_numpy(body.template - body.regressor(HUMAN36M17)[HUMAN36M17.root_idx] @ body.template)
    assert (vertices - template * torch.tensor([1.0, -1.0, -1.0])).norm(dim=-1).mean() < 0.03


def test_offsets_are_turned_with_the_body(net: MeshNet, people, monkeypatch) -> None:
    """The same offsets on a turned frame move the vertices the turned way."""
    turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    bones = torch.eye(3, 4).expand(5, 24, 3, 4)
    monkeypatch.setattr(meshnet, "_APPROACHES", 0)
    turned = torch.cat((turn.expand(5, 24, 3, 3), torch.zeros(5, 24, 3, 1)), dim=-1)
    found = []
    for given in (bones, turned):
        net._bone_transforms = lambda hidden, joints, given=given: given  # type: ignore[method-assign]
        with torch.inference_mode():
            found.append(net(*people))
    torch.testing.assert_close(found[1], found[0] @ turn.T, atol=1e-5, rtol=0)


def test_every_parameter_receives_a_gradient(net: MeshNet, people) -> None:
    net(*people).pow(3).sum().backward()
    without = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


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
