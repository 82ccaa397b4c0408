"""The original mesh network against the published computation, done literally (tools/original.py)."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from gcn.coarsening import Hierarchy, coarsen
from gcn.layers.batchnorm import BatchNorm
from gcn.meshnet import MeshNetConfig
from gcn.meshnet_full import LEVELS, FullMeshNet, Plan
from gcn.padding import padded_levels
from gcn.pose2mesh import ModelConfig, Pose2Mesh, build_graph, load_pose2mesh, save_weights
from gcn.posenet import PoseNetConfig
from mesh.body import load_body
from mesh.joints import COCO19
from tools.original import OriginalMeshNet, padded_order

# As the original's: a widening block, narrowing ones with up-sampling before, two blocks on the last level.
PLAN: Plan = ((3, (8, 12, 16)), (2, (16, 8, 8)), (1, (8, 8, 8)), (0, (8, 4, 8)), (0, (8, 4, 3)))


@pytest.fixture(scope="module")
def hierarchy() -> Hierarchy:
    sphere = trimesh.creation.icosphere(subdivisions=2)
    return coarsen(np.asarray(sphere.edges_unique), len(sphere.vertices), 5)


@pytest.fixture
def inputs(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.randn(4, 19, n, generator=generator, dtype=torch.float64) for n in (2, 3))


def pair(hierarchy: Hierarchy, order: int = 3, seed: int = 1) -> tuple[FullMeshNet, OriginalMeshNet]:
    """The same network twice in float64, with statistics and norm weights that are not the initial ones."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.float64)  # of the graph operators too
    try:
        net = FullMeshNet(COCO19, 5, hierarchy, plan=PLAN, order=order, rescaling="legacy")
        original = OriginalMeshNet(COCO19, 5, hierarchy, plan=PLAN, order=order)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    for module in net.modules():
        if isinstance(module, BatchNorm):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    original.copy_weights(net)
    return net, original


def gradients(net: FullMeshNet, original: OriginalMeshNet) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """Every parameter's gradient, ours and theirs, in our layout."""
    found = []
    for where, (ours, theirs) in enumerate(
        zip((net.joint_block, *net.blocks), (original.joint_block, *original.blocks))
    ):
        for layer, (convolution, norm) in zip(theirs.layers, ours.steps()):
            order, channels, _ = convolution.weight.shape
            weight = layer.linear.weight.grad.unflatten(1, (channels, order)).permute(2, 1, 0)
            found += [(f"weight {where}", convolution.weight.grad, weight)]
            found += [(f"bias {where}", convolution.bias.grad, layer.linear.bias.grad)]
            if norm is not None:
                found += [(f"norm weight {where}", norm.weight.grad, layer.norm.weight.grad)]
                found += [(f"norm bias {where}", norm.bias.grad, layer.norm.bias.grad)]
    nodes = net.coarsest_nodes(original.coarsest)
    for name in ("weight", "bias"):
        ours = getattr(net.to_mesh, name).grad.unflatten(0, (-1, PLAN[0][1][0]))[nodes].flatten(0, 1)
        found.append((f"to_mesh {name}", ours, getattr(original.to_mesh, name).grad))
    return found


def backward(net: torch.nn.Module, inputs: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    joints = inputs[1].clone().requires_grad_()
    out = net(inputs[0], joints)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out).sin()
    (out * weights + out.square()).sum().backward()
    return out.detach(), joints.grad


def test_representatives_stand_for_all_padding_of_the_original(hierarchy: Hierarchy) -> None:
    levels = padded_levels(hierarchy, 3)
    for level, padded in zip(levels, padded_order(hierarchy)):
        assert level.multiplicity.sum() == len(padded) and sorted(level.nodes) == sorted(padded[padded >= 0])
        assert len(level.multiplicity) < len(padded) or level is levels[-1]
    assert (levels[0].multiplicity[levels[0].num_real :] > 1).any()


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_in_evaluation_it_computes_what_was_published(hierarchy: Hierarchy, inputs, order: int) -> None:
    net, original = (module.eval() for module in pair(hierarchy, order))
    with torch.inference_mode():
        torch.testing.assert_close(net(*inputs), original(*inputs), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_in_training_outputs_gradients_and_statistics_are_the_published_ones(hierarchy, inputs, order: int) -> None:
    net, original = (module.train() for module in pair(hierarchy, order))
    (ours, of_joints), (theirs, expected) = backward(net, inputs), backward(original, inputs)
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(of_joints, expected, atol=1e-9, rtol=1e-9)
    for name, found, wanted in gradients(net, original):
        torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
    for block, other in zip(net.blocks, original.blocks):
        for (_, norm), layer in zip(block.steps(), other.layers):
            if norm is not None:
                torch.testing.assert_close(norm.state_dict(), layer.norm.state_dict(), atol=1e-9, rtol=1e-9)


def test_gradients_in_evaluation_use_the_running_statistics(hierarchy: Hierarchy, inputs) -> None:
    net, original = (module.eval() for module in pair(hierarchy))
    (ours, of_joints), (theirs, expected) = backward(net, inputs), backward(original, inputs)
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(of_joints, expected, atol=1e-9, rtol=1e-9)
    for _, found, wanted in gradients(net, original):
        torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-9)


def test_gradients_equal_finite_differences(hierarchy: Hierarchy, inputs) -> None:
    net = pair(hierarchy)[0].train()
    features = inputs[0][:2]
    for norm in (module for module in net.modules() if isinstance(module, BatchNorm)):
        norm.momentum = 0.0  # repeated passes leave the statistics alone
    joints = inputs[1][:2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda j: net(features, j), (joints,), fast_mode=True)


def test_chunks_do_not_change_the_result(hierarchy: Hierarchy, inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    net, other = pair(hierarchy)[0].train(), pair(hierarchy)[0].train()
    ours, of_joints = backward(net, inputs)
    monkeypatch.setattr("gcn.meshnet_full._chunk", lambda x: 3)  # 3 samples, then 1
    theirs, expected = backward(other, inputs)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(of_joints, expected)
    torch.testing.assert_close(net.eval()(*inputs), other.eval()(*inputs))
    for one, two in zip(net.parameters(), other.parameters()):
        torch.testing.assert_close(one.grad, two.grad)


def test_it_computes_the_published_function_in_float32_on_a_body(generator: torch.Generator) -> None:
    body = load_body()
    hierarchy = coarsen(body.edges, body.num_vertices, LEVELS)
    net, original = FullMeshNet(COCO19, 5, hierarchy, rescaling="legacy"), OriginalMeshNet(COCO19, 5, hierarchy)
    original.copy_weights(net)
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in original.parameters()) == 9_571_395
    inputs = torch.randn(2, 19, 2, generator=generator), 0.3 * torch.randn(2, 19, 3, generator=generator)
    with torch.inference_mode():
        ours, theirs = net.eval()(*inputs), original.eval()(*inputs)
    assert ours.shape == (2, 6890, 3) and theirs.abs().max() > 0.01
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("change", ["weight", "statistics", "loading", "copy"])
def test_folded_weights_follow_every_change(hierarchy: Hierarchy, inputs, change: str) -> None:
    net, original = (module.eval() for module in pair(hierarchy))
    with torch.inference_mode():
        before = net(*inputs)
    if change == "copy":
        net = copy.deepcopy(net)
    if change == "loading":
        net.load_state_dict(pair(hierarchy, seed=2)[0].state_dict())
    elif change == "statistics":
        net.blocks[1].norms[0].running_var *= 2
    else:
        net.blocks[2].convolutions[0].weight.data.mul_(2)
        with torch.no_grad():
            net.blocks[2].convolutions[0].weight.mul_(2)
    original.copy_weights(net)
    with torch.inference_mode():
        assert (net(*inputs) - before).abs().max() > 1e-6
        torch.testing.assert_close(net(*inputs), original(*inputs), atol=1e-9, rtol=1e-9)


def test_statistics_are_taken_where_only_the_norms_train(hierarchy: Hierarchy, inputs) -> None:
    net, original = (module.eval() for module in pair(hierarchy))
    for module in (net, original):
        for norm in (m for m in module.modules() if isinstance(m, torch.nn.BatchNorm1d)):
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        with torch.no_grad():
            module(*inputs)
            module(inputs[0] + 1, inputs[1])
    for block, other in zip(net.blocks, original.blocks):
        for (_, norm), layer in zip(block.steps(), other.layers):
            if norm is not None:
                torch.testing.assert_close(norm.state_dict(), layer.norm.state_dict(), atol=1e-9, rtol=1e-9)


def test_autocast_leaves_it_in_float32(hierarchy: Hierarchy, inputs) -> None:
    found = []
    for enabled in (True, False):
        net = pair(hierarchy)[0].float().train()
        joints = inputs[1].float().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out = net(inputs[0].float(), joints)
        out.square().sum().backward()
        found.append((out.detach(), joints.grad))
    assert found[0][0].dtype == torch.float32
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_a_second_backward_needs_the_graph_to_be_retained(hierarchy: Hierarchy, inputs) -> None:
    net = pair(hierarchy)[0].train()
    loss = net(*inputs).square().sum()
    loss.backward(retain_graph=True)
    first = net.blocks[0].convolutions[0].weight.grad.clone()
    loss.backward()
    torch.testing.assert_close(net.blocks[0].convolutions[0].weight.grad, 2 * first)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_the_legacy_switch_changes_the_graph_filter(hierarchy: Hierarchy, inputs) -> None:
    legacy, modern = (FullMeshNet(COCO19, 5, hierarchy, plan=PLAN, rescaling=mode) for mode in ("legacy", "spectral"))
    modern.load_state_dict(legacy.state_dict())
    features, joints = (t.float() for t in inputs)
    assert (legacy.eval()(features, joints) - modern.eval()(features, joints)).abs().max() > 1e-4


def test_a_plan_with_a_gap_is_refused(hierarchy: Hierarchy) -> None:
    with pytest.raises(ValueError, match=r"level by level, got \[3, 1\]"):
        FullMeshNet(COCO19, 5, hierarchy, plan=((3, (8, 8)), (1, (8, 3))))


def test_full_weights_written_and_read_give_the_same_meshes(tmp_path: Path) -> None:
    config = ModelConfig(posenet=PoseNetConfig(width=16, blocks=1), meshnet=MeshNetConfig(plan="full"))
    body = load_body()
    model = Pose2Mesh(config, build_graph(config.meshnet, body, body.template[None])).eval()
    model.load_state_dict({k: v.half().float() if v.is_floating_point() else v for k, v in model.state_dict().items()})
    save_weights(tmp_path / "w.safetensors", model, config, {})
    read = load_pose2mesh(tmp_path / "w.safetensors", body)
    assert isinstance(read.meshnet, FullMeshNet) and len(read.graph.hierarchy.parents) == LEVELS
    people = 100 * torch.randn(2, 19, 2), torch.ones(2, 19)
    with torch.inference_mode():
        torch.testing.assert_close(read(*people)[1], model(*people)[1], rtol=0, atol=0)
