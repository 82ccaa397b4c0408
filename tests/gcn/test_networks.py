"""PoseNet, MeshNet and the file that holds both, on a small closed mesh."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from gcn.coarsening import coarsen
from gcn.layers.trunk import resize_channels
from gcn.lifters.cyclic import CyclicConfig
from gcn.lifters.denoise import DenoiserConfig
from gcn.lifters.martinez import MartinezConfig
from gcn.lifters.semgcn import SemGCNConfig
from gcn.lifters.split import SplitConfig
from gcn.pose2mesh import MeshGraph, ModelConfig, Pose2Mesh, build_graph, build_lifter, load_pose2mesh, load_posenet
from gcn.pose2mesh import save_weights as save
from gcn.posenet import PoseNet, PoseNetConfig
from gcn.upsampling import fit_upsampling, pool_clusters
from mesh.body import Body, load_body
from mesh.errors import InputError
from mesh.joints import COCO19

SMALL = ModelConfig(posenet=PoseNetConfig(width=32, blocks=1))


@pytest.fixture(scope="module")
def body() -> Body:
    return load_body()


@pytest.fixture(scope="module")
def posed(body: Body) -> np.ndarray:
    rng = np.random.default_rng(0)
    linear = np.eye(3) + 0.2 * rng.normal(size=(24, 3, 3))
    linear[0] = np.eye(3)
    return body.template @ linear


@pytest.fixture(scope="module")
def graph(body: Body, posed: np.ndarray) -> MeshGraph:
    return build_graph(SMALL.meshnet, body, posed)


@pytest.fixture
def model(graph: MeshGraph) -> Pose2Mesh:
    torch.manual_seed(0)
    return Pose2Mesh(SMALL, graph).eval()


@pytest.fixture
def people(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return 100 * torch.randn(3, 19, 2, generator=generator), torch.ones(3, 19)


def test_the_original_lifter_has_the_published_number_of_parameters() -> None:
    original = PoseNet(COCO19, 2, width=4096, blocks=2, dropout=0.5, norm="batch")
    # 67 559 481 are published; 8 192 of them are a batch norm that the forward pass never uses.
    assert sum(p.numel() for p in original.parameters()) == 67_559_481 - 8_192


def test_every_parameter_of_both_networks_receives_a_gradient(graph: MeshGraph, people) -> None:
    model = Pose2Mesh(SMALL, graph).train()
    joints, vertices = model(*people)
    (joints.square().sum() + (vertices**3).sum()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


def test_the_mesh_loss_does_not_reach_the_lifter(graph: MeshGraph, people) -> None:
    model = Pose2Mesh(SMALL, graph).train()
    _, vertices = model(*people)
    vertices.sum().backward()
    assert all(p.grad is None for p in model.posenet.parameters())


def test_the_lifted_root_is_exactly_zero(model: Pose2Mesh, people) -> None:
    joints, vertices = model(*people)
    assert joints.shape == (3, 19, 3) and vertices.shape == (3, 6890, 3)
    assert (joints[:, COCO19.root_idx] == 0).all()


def test_a_person_does_not_depend_on_the_others_in_the_batch(model: Pose2Mesh, people) -> None:
    with torch.inference_mode():
        together = model(*people)[1]
        alone = torch.cat([model(people[0][i : i + 1], people[1][i : i + 1])[1] for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_the_global_random_state_decides_the_initial_weights_only(graph: MeshGraph, people) -> None:
    torch.manual_seed(3)
    first = Pose2Mesh(SMALL, graph)
    torch.manual_seed(3)
    second = Pose2Mesh(SMALL, graph)
    torch.testing.assert_close(first.eval()(*people)[1], second.eval()(*people)[1], rtol=0, atol=0)


def test_channels_are_resampled_as_the_original_does() -> None:
    x = torch.tensor([[[0.0, 1.0]]])
    torch.testing.assert_close(resize_channels(x, 4), torch.tensor([[[0.0, 0.25, 0.75, 1.0]]]))


def test_upsampling_rebuilds_posed_bodies_from_cluster_means(body: Body, posed: np.ndarray) -> None:
    hierarchy = coarsen(body.edges, body.num_vertices, 5)
    upsampling = fit_upsampling(posed.astype(float), hierarchy, 5, num_terms=12)
    np.testing.assert_allclose(upsampling.weights.sum(1), 1, atol=1e-5)
    unseen = body.template @ (np.eye(3) + 0.2 * np.random.default_rng(9).normal(size=(3, 3))) + (1, 2, 3)
    nodes = pool_clusters(unseen[None], hierarchy.clusters(5))[0]
    rebuilt = upsampling.matrix(hierarchy.sizes[5]) @ nodes
    assert np.linalg.norm(rebuilt - unseen, axis=1).mean() < 0.002


def test_weights_written_and_read_give_the_same_meshes(tmp_path: Path, body: Body, model: Pose2Mesh, people) -> None:
    in_half = {k: v.half().float() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(in_half)
    save(tmp_path / "w.safetensors", model, SMALL, {"note": "x"})
    read = load_pose2mesh(tmp_path / "w.safetensors", body)
    with torch.inference_mode():
        torch.testing.assert_close(read(*people)[1], model(*people)[1], rtol=0, atol=0)
    posenet, config = load_posenet(tmp_path / "w.safetensors")
    assert config == SMALL
    features = config.see(*people).features
    torch.testing.assert_close(posenet(features), model.posenet(features), rtol=0, atol=0)
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_weights_of_another_mesh_are_refused(tmp_path: Path, body: Body, model: Pose2Mesh) -> None:
    save(tmp_path / "w.safetensors", model, SMALL, {})
    other = replace(body, faces=body.faces[:-60])
    with pytest.raises(InputError, match=r"another mesh"):
        load_pose2mesh(tmp_path / "w.safetensors", other)


def test_a_lifter_file_is_refused_as_a_mesh_network(tmp_path: Path, body: Body) -> None:
    save(tmp_path / "lifter.safetensors", build_lifter(SMALL), SMALL, {})
    with pytest.raises(InputError, match="holds posenet weights; expected pose2mesh"):
        load_pose2mesh(tmp_path / "lifter.safetensors", body)


LIFTERS = {
    "split": ModelConfig(lifter="split", split=SplitConfig(width=16, context=2)),
    "martinez": ModelConfig(lifter="martinez", martinez=MartinezConfig(width=16)),
    "semgcn": ModelConfig(
        lifter="semgcn",
        semgcn=SemGCNConfig(width=8, blocks=1, grouping="related"),
        confidence=False,
        view="picture",
    ),
    "cyclic": ModelConfig(lifter="cyclic", cyclic=CyclicConfig(width=16, skip=True)),
    "depth_only": replace(SMALL, depth_only=True),
    "denoise": replace(SMALL, denoise=True, denoiser=DenoiserConfig(width=16, code=4)),
}


@pytest.mark.parametrize("name", LIFTERS)
def test_every_lifter_is_saved_and_read_alone_and_under_a_mesh_network(name: str, tmp_path: Path, body, graph) -> None:
    config = LIFTERS[name]
    torch.manual_seed(3)
    lifter, model = build_lifter(config).eval(), Pose2Mesh(config, graph).eval()
    for parameter in (*lifter.parameters(), *model.posenet.parameters()):
        torch.nn.init.normal_(parameter, std=0.3)
    path = tmp_path / "w.safetensors"
    points, confidence = 100 * torch.randn(5, 19, 2), torch.ones(5, 19)
    features = config.see(points, confidence).features
    save(path, lifter, config, {})
    read, found = load_posenet(path)
    assert found == config and read(features).shape == (5, 19, 3)
    torch.testing.assert_close(read(features), lifter(features), atol=0.02, rtol=0.02)  # saved in half precision
    save(path, model, config, {})
    again = load_pose2mesh(path, body)
    torch.testing.assert_close(again(points, confidence)[1], model(points, confidence)[1], atol=0.1, rtol=0.1)


def opened(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """What a weights file holds: tensors and metadata."""
    with safe_open(path, "pt") as archive:
        return {name: archive.get_tensor(name) for name in archive.keys()}, archive.metadata()  # noqa: SIM118


def test_weights_of_before_there_were_several_lifters_are_read(tmp_path: Path) -> None:
    config = replace(SMALL, view="picture")
    lifter = build_lifter(config).eval()
    save(tmp_path / "w.safetensors", lifter, config, {})
    tensors, metadata = opened(tmp_path / "w.safetensors")
    old = json.loads(metadata["config"])
    kept = ("normalisation", "confidence", "posenet", "meshnet", "labeling")
    metadata["config"] = json.dumps({key: old[key] for key in kept})
    save_file(tensors, tmp_path / "w.safetensors", metadata)
    assert load_posenet(tmp_path / "w.safetensors")[1] == config


def test_networks_of_a_centred_view_need_the_confidence() -> None:
    with pytest.raises(InputError, match=r"set model\.view=picture"):
        ModelConfig(confidence=False)


def test_x_and_y_of_the_picture_need_one_scale_for_both() -> None:
    with pytest.raises(InputError, match="needs model"):
        ModelConfig(depth_only=True, normalisation="per_axis")


@pytest.mark.parametrize("damage", ["config", "missing", "shape", "nan", "parents"])
def test_weights_with_wrong_contents_are_refused_in_one_line(tmp_path: Path, body: Body, model, damage: str) -> None:

    save(tmp_path / "w.safetensors", model, SMALL, {})
    tensors, metadata = opened(tmp_path / "w.safetensors")
    name = "posenet.stem.weight"
    if damage == "config":
        metadata["config"] = '{"posenet": {"wideness": 3}}'
    elif damage == "missing":
        del tensors[name]
    elif damage == "shape":
        tensors[name] = tensors[name][:-1].clone()
    elif damage == "nan":
        tensors[name][0, 0] = torch.nan
    else:
        tensors["graph.parent0"] -= 5
    save_file(tensors, tmp_path / "w.safetensors", metadata)
    with pytest.raises(InputError, match=r"w\.safetensors") as caught:
        load_pose2mesh(tmp_path / "w.safetensors", body)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", ["plan", "frames"])
def test_a_mesh_network_of_an_earlier_version_is_refused_and_its_lifter_is_not(
    tmp_path: Path, body: Body, model, what: str
) -> None:
    if what == "plan":
        save(tmp_path / "w.safetensors", model, replace(SMALL, meshnet=replace(SMALL.meshnet, plan="coarse")), {})
    else:
        save(tmp_path / "w.safetensors", model, SMALL, {})
        tensors, metadata = opened(tmp_path / "w.safetensors")
        del tensors["graph.frames_regressor"]
        save_file(tensors, tmp_path / "w.safetensors", metadata)
    with pytest.raises(InputError, match=r"w\.safetensors holds a mesh network of an earlier version: train it anew"):
        load_pose2mesh(tmp_path / "w.safetensors", body)
    assert load_posenet(tmp_path / "w.safetensors")[1].posenet == SMALL.posenet


def test_unreadable_weights_are_refused_in_one_line(tmp_path: Path, body: Body) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"\x80\x04nonsense")
    for name, message in (("bad.safetensors", "not a readable safetensors"), ("none.safetensors", "no weights file")):
        with pytest.raises(InputError, match=message):
            load_pose2mesh(tmp_path / name, body)


def test_the_lifter_writes_in_the_unit_that_it_is_told() -> None:
    in_metres, in_mm = (PoseNet(COCO19, 3, width=16, blocks=1, output_unit_m=unit) for unit in (1.0, 1e-3))
    in_mm.load_state_dict(in_metres.state_dict())
    features = torch.randn(4, 19, 3)
    torch.testing.assert_close(in_mm(features), in_metres(features) / 1000)


def test_statistics_beyond_half_precision_are_kept(tmp_path: Path) -> None:
    config = LIFTERS["martinez"]
    lifter = build_lifter(config)
    lifter.stem[1].running_var.fill_(1e6)
    save(tmp_path / "w.safetensors", lifter, config, {})
    read = load_posenet(tmp_path / "w.safetensors")[0]
    torch.testing.assert_close(read.stem[1].running_var, lifter.stem[1].running_var)
    with safe_open(tmp_path / "w.safetensors", framework="pt") as archive:
        assert archive.get_tensor("posenet.stem.0.weight").dtype == torch.float16


@pytest.fixture(scope="module")
def in_integers(tmp_path_factory) -> tuple[torch.nn.Module, Path]:
    """A lifter with layers large enough, and its file."""
    torch.manual_seed(0)
    config = ModelConfig(posenet=PoseNetConfig(width=512, blocks=1))
    lifter, path = build_lifter(config).eval(), tmp_path_factory.mktemp("integers") / "w.safetensors"
    save(path, lifter, config, {}, integers=True)
    return lifter, path


def test_large_layers_are_kept_as_whole_numbers_where_this_is_asked_for(in_integers, tmp_path: Path) -> None:
    lifter, path = in_integers
    inner = "blocks.0.layers.3.weight"
    tensors, _ = opened(path)
    assert tensors[f"posenet.{inner}"].dtype == torch.int8
    assert {n for n, v in tensors.items() if v.dtype == torch.int8} == {
        f"posenet.blocks.0.layers.{layer}.weight" for layer in (3, 7)
    }
    read, config = load_posenet(path)
    exact, found = lifter.state_dict(), read.state_dict()
    assert found.keys() == exact.keys() and all(v.dtype == torch.float32 for v in found.values())
    assert 0 < (found[inner] - exact[inner]).abs().max() < exact[inner].abs().max() / 250
    features = torch.randn(4, 19, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(read(features), lifter(features), atol=0.02, rtol=0.02)
    save(tmp_path / "again.safetensors", read, config, {}, integers=True)
    assert all(torch.equal(value, tensors[name]) for name, value in opened(tmp_path / "again.safetensors")[0].items())
    save(tmp_path / "half.safetensors", lifter, config, {})
    assert path.stat().st_size < 0.6 * (tmp_path / "half.safetensors").stat().st_size


@pytest.mark.parametrize("scale", [None, torch.ones(3), torch.full((512,), torch.nan)])
def test_whole_numbers_without_a_sound_scale_are_refused(in_integers, tmp_path: Path, scale) -> None:
    tensors, metadata = opened(in_integers[1])
    name = "posenet.blocks.0.layers.3.weight.scale"
    save_file(
        {n: v for n, v in tensors.items() if n != name} | ({} if scale is None else {name: scale}),
        tmp_path / "w.safetensors",
        metadata,
    )
    with pytest.raises(InputError, match=r"w\.safetensors(:| does not fit)") as caught:
        load_posenet(tmp_path / "w.safetensors")
    assert "\n" not in str(caught.value)


def test_nobody_gives_no_meshes(model: Pose2Mesh) -> None:
    assert model(torch.zeros(0, 19, 2), torch.zeros(0, 19))[1].shape == (0, 6890, 3)


def test_a_view_is_geometry_and_stays_exact_in_mixed_precision(people) -> None:
    keypoints, confidence = people
    intrinsics = torch.tensor([[900.0, 900, -400, 300]]).expand(3, 4)
    exact = SMALL.see(keypoints, confidence, intrinsics)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = SMALL.see(keypoints, confidence, intrinsics)
        back = mixed.to_camera(keypoints.new_ones(3, 5, 3))
    torch.testing.assert_close(mixed.features, exact.features, rtol=0, atol=0)
    torch.testing.assert_close(back, exact.to_camera(keypoints.new_ones(3, 5, 3)), rtol=0, atol=0)
    assert back.dtype == torch.float32
