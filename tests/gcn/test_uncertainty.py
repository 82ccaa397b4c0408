"""The network of expected errors, its loss, its file, and what the shipped one says."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.sparse import csr_matrix

from data.draws import Draws, step_generator
from data.noise import NoiseConfig
from data.prior import load_pose_prior
from data.synthesis import SynthesisConfig, Synthesiser
from gcn.evaluation import uncertainty_scores
from gcn.layers.sparse import SparseMatrix
from gcn.mirroring import MirrorAveraged
from gcn.objectives import UncertaintyObjective
from gcn.pose2mesh import (
    MESH_WEIGHTS,
    ModelConfig,
    Pose2Mesh,
    build_graph,
    build_uncertainty,
    load_pose2mesh,
    load_uncertainty,
    save_weights,
)
from gcn.posenet import PoseNetConfig
from gcn.recovery import MeshRecovery
from gcn.uncertainty import ErrorNet, UncertaintyConfig, error_loss, weights_digest
from mesh.body import load_body
from mesh.errors import InputError
from mesh.joints import COCO19, HUMAN36M17, Keypoints
from mesh.samples import Batch

BODY = load_body()
SMALL = ModelConfig(
    view="picture", posenet=PoseNetConfig(width=16, blocks=1), uncertainty=UncertaintyConfig(width=16, blocks=1)
)
EVERYTHING = torch.ones(4, 17, dtype=torch.bool)


@pytest.fixture(scope="module")
def mesh() -> Pose2Mesh:
    torch.manual_seed(0)
    return Pose2Mesh(SMALL, build_graph(SMALL.meshnet, BODY, BODY.template[None])).eval()


def looks(generator: torch.Generator, count: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    features, seen = (torch.randn(count, 19, 3, generator=generator) for _ in range(2))
    return features, 0.2 * seen, 0.2 * seen + 0.02 * torch.randn(count, 19, 3, generator=generator)


def test_every_joint_gets_a_positive_error_and_the_pelvis_none(generator: torch.Generator) -> None:
    expected = ErrorNet(COCO19, 3)(*looks(generator))
    assert expected.shape == (4, 17) and (expected[:, HUMAN36M17.root_idx] == 0).all()
    others = expected[:, [k for k in range(17) if k != HUMAN36M17.root_idx]]
    assert (others > 0).all() and others.unique().numel() == others.numel()


def test_looks_that_contradict_each_other_altogether_still_give_a_finite_error(generator: torch.Generator) -> None:
    features, seen, _ = looks(generator)
    net = ErrorNet(COCO19, 3)
    expected = net(features, 1e4 * seen, -1e4 * seen)
    assert expected.isfinite().all()
    error_loss(expected, torch.ones(4, 17), EVERYTHING).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_every_parameter_receives_a_gradient(generator: torch.Generator) -> None:
    net = ErrorNet(COCO19, 2, width=16, blocks=1)
    features, seen, mirrored = looks(generator)
    error_loss(
        net(features[..., :2], seen, mirrored), torch.rand(4, 17, generator=generator), EVERYTHING
    ).sum().backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_the_loss_is_smallest_where_the_mean_error_is_expected(generator: torch.Generator) -> None:
    error = 0.2 * torch.rand(1000, 1, generator=generator).expand(1000, 17)
    candidates = torch.arange(0.02, 0.3, 0.002)
    everything = torch.ones(1000, 17, dtype=torch.bool)
    losses = [error_loss(torch.full((1000, 17), float(b)), error, everything).mean() for b in candidates]
    best = candidates[int(torch.stack(losses).argmin())]
    assert best == pytest.approx(float(error.mean()), abs=0.002)
    b, e = torch.tensor(0.05), torch.tensor(0.08)
    alone = error_loss(b.expand(1, 17), e.expand(1, 17), EVERYTHING[:1])
    torch.testing.assert_close(alone, (torch.log(1000 * b) + e / b)[None])


def test_neither_the_pelvis_nor_what_is_unknown_counts(generator: torch.Generator) -> None:
    expected = torch.full((2, 17), 0.1, requires_grad=True)
    error, known = torch.rand(2, 17, generator=generator), torch.ones(2, 17, dtype=torch.bool)
    known[0, 4:] = False
    known[1] = False
    spoiled = error.clone()
    spoiled[~known] = torch.nan
    spoiled[:, HUMAN36M17.root_idx] = torch.nan
    loss = error_loss(expected, spoiled, known)
    some = [k for k in range(4) if k != HUMAN36M17.root_idx]
    torch.testing.assert_close(loss[0], torch.log(torch.tensor(100.0)) + error[0, some].mean() / 0.1)
    loss.sum().backward()
    assert loss[1] == 0 and expected.grad is not None and expected.grad.nonzero()[:, 1].tolist() == some


def test_the_objective_judges_a_frozen_mesh_averaged_with_its_mirror_image(mesh: Pose2Mesh) -> None:
    g = torch.Generator().manual_seed(2)
    averaged = MirrorAveraged(mesh, BODY)
    objective = UncertaintyObjective(averaged, SparseMatrix(csr_matrix(BODY.regressor(HUMAN36M17))))
    true, known = torch.randn(4, 17, 3, generator=g), EVERYTHING.clone()
    known[0, 5:] = False
    known[1, 1:] = False  # nothing but the pelvis
    true[~known] = torch.nan
    batch = Batch(
        keypoints_px=100 * torch.randn(4, 19, 2, generator=g), confidence=torch.ones(4, 19),
        joints_m=torch.zeros(4, 19, 3),
        regressed_m=true, vertices_m=None, joints_valid=torch.ones(4, 19, dtype=torch.bool), regressed_valid=known,
        mesh_valid=torch.zeros(4, dtype=torch.bool), ids=torch.arange(4),
    )  # fmt: skip
    judged = objective.judge(batch)
    with torch.no_grad():
        vertices = averaged(batch.keypoints_px, batch.confidence)[1]
    joints = torch.einsum("jv,bvc->bjc", torch.from_numpy(BODY.regressor(HUMAN36M17)).float(), vertices)
    errors = (joints - joints[:, HUMAN36M17.root_idx, None] - true).norm(dim=-1)
    torch.testing.assert_close(judged.error_m[known], errors[known], atol=1e-4, rtol=1e-4)
    assert objective.masks(batch)["uncertainty"].tolist() == [True, False, True, True]
    net = build_uncertainty(SMALL)
    objective.values(net, batch)["uncertainty"].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert not any(p.requires_grad for p in mesh.parameters()) and not mesh.training


def test_expected_errors_of_the_very_mesh_weights_are_read_back(tmp_path: Path, mesh: Pose2Mesh) -> None:
    net, file = build_uncertainty(SMALL), tmp_path / "uncertainty.safetensors"
    net.load_state_dict({name: value.half().float() for name, value in net.state_dict().items()})
    save_weights(file, net, SMALL, {MESH_WEIGHTS: weights_digest(mesh)})
    save_weights(tmp_path / "mesh.safetensors", mesh, SMALL, {})
    read = load_pose2mesh(tmp_path / "mesh.safetensors", BODY)  # rounded to half precision on the way
    given = looks(torch.Generator().manual_seed(1))
    torch.testing.assert_close(load_uncertainty(file, read)(*given), net(*given), rtol=0, atol=0)


def test_a_digest_tells_weights_apart_and_not_where_they_came_from(mesh: Pose2Mesh) -> None:
    torch.manual_seed(1)
    other = Pose2Mesh(SMALL, mesh.graph)
    assert weights_digest(other) != weights_digest(mesh)
    other.load_state_dict(mesh.state_dict())
    assert weights_digest(other) == weights_digest(mesh)
    with torch.no_grad():
        other.meshnet.offsets.weight.add_(0.01)
    assert weights_digest(other) != weights_digest(mesh)


def test_expected_errors_of_other_mesh_weights_and_other_files_are_refused(tmp_path: Path, mesh: Pose2Mesh) -> None:
    net, file = build_uncertainty(SMALL), tmp_path / "uncertainty.safetensors"
    for notes in ({MESH_WEIGHTS: "0" * 64}, {}):
        save_weights(file, net, SMALL, notes)
        with pytest.raises(InputError, match="tells the errors of other mesh weights than those in use") as caught:
            load_uncertainty(file, mesh)
        assert "\n" not in str(caught.value)
    save_weights(file, mesh.posenet, SMALL, {})
    with pytest.raises(InputError, match="holds posenet weights; expected uncertainty"):
        load_uncertainty(file, mesh)
    save_weights(file, net, SMALL, {MESH_WEIGHTS: weights_digest(mesh)})
    with safe_open(file, framework="pt") as archive:
        tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
        metadata = archive.metadata()
    wide = json.loads(metadata["config"])
    wide["uncertainty"]["width"] = 24
    save_file(tensors, file, metadata | {"config": json.dumps(wide)})
    with pytest.raises(InputError, match="does not fit its own description"):
        load_uncertainty(file, mesh)


def test_scores_of_a_known_case() -> None:
    expected = torch.arange(1.0, 21)[:, None].expand(20, 17) / 100
    scores = uncertainty_scores(expected, 2 * expected)
    assert scores["person_rank"] == pytest.approx(1) and scores["joint_rank"] == pytest.approx(1)
    assert scores["expected_over_true"] == pytest.approx(0.5)
    assert scores["worst_tenth_ratio"] == pytest.approx(19.5 / 9.5)  # 20 and 19 over the mean of 1 to 18
    assert scores["worst_tenth_from_mm"] == pytest.approx(181, abs=0.1)
    backwards = uncertainty_scores(expected, expected.flip(0))
    assert backwards["person_rank"] == pytest.approx(-1) and backwards["within_joint_rank"] == pytest.approx(-1)
    assert uncertainty_scores(expected[:1], expected[:1])["person_rank"] == 0


@pytest.fixture(scope="module")
def shipped() -> MeshRecovery:
    return MeshRecovery.from_pretrained()


@pytest.fixture(scope="module")
def people() -> Batch:
    """Exact joints of poses that the prior draws: standing straight alone, a hidden knee is nearly known."""
    exact = SynthesisConfig(mirror=0.0, noise=NoiseConfig(model="none"))
    draws = Draws(64, step_generator(0, 0))
    return Synthesiser(load_pose_prior(), BODY, exact).batch(torch.arange(64), draws, with_vertices=False)


def expected_errors(recovery: MeshRecovery, people: Batch, hidden: str | None = None) -> np.ndarray:
    """Mean of each joint over the people, (17,) metres, one joint of whom may be hidden."""
    confidence = people.confidence.clone()
    if hidden is not None:
        confidence[:, COCO19.index(hidden)] = 0
    positions = people.keypoints_px.double().numpy()
    keypoints = Keypoints(positions_px=positions, confidence=confidence.numpy(), joint_set=COCO19)
    return recovery.recover(keypoints).expected_error.mean(0)


@pytest.mark.parametrize(
    "joint", ["left_wrist", "right_wrist", "left_ankle", "right_ankle", "left_elbow", "right_knee"]
)
def test_the_shipped_network_expects_more_of_a_joint_that_was_not_seen(
    shipped: MeshRecovery, people: Batch, joint: str
) -> None:
    seen, unseen = expected_errors(shipped, people), expected_errors(shipped, people, hidden=joint)
    index = HUMAN36M17.index(joint)
    others = [k for k in range(1, 17) if k != index]
    assert unseen[index] > 1.2 * seen[index]
    assert unseen[index] / seen[index] > 1.05 * unseen[others].mean() / seen[others].mean()


def test_the_shipped_network_is_small_and_belongs_to_the_shipped_mesh_weights() -> None:
    with resources.as_file(resources.files("gcn") / "weights") as folder:
        file = folder / "uncertainty.safetensors"
        assert file.stat().st_size < 1.2e6
        load_uncertainty(file, load_pose2mesh(folder / "pose2mesh.safetensors", BODY))
