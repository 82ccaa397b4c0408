from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from torch import nn

from gcn.bone_losses import BoneLengthLoss, BoneSymmetryLoss, BoneVectorLoss, JointLimitLoss
from gcn.layers.sparse import SparseMatrix
from gcn.lifters.cyclic import CyclicConfig
from gcn.losses import LossWeights, point_l1
from gcn.objectives import LabelingObjective, LifterObjective, MeshObjective
from gcn.pose2mesh import ModelConfig, build_lifter
from gcn.surface_loss import SurfaceLoss
from mesh.joints import COCO19
from mesh.samples import Batch

FACES = np.array([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]])
REGRESSOR = csr_matrix(np.eye(17, 4) + 0.1)


def batch(size: int = 10) -> Batch:
    g = torch.Generator().manual_seed(0)
    everyone = torch.ones(size, dtype=torch.bool)
    return Batch(
        keypoints_px=torch.rand(size, 19, 2, generator=g) * 200, confidence=torch.ones(size, 19),
        joints_m=torch.randn(size, 19, 3, generator=g), regressed_m=torch.randn(size, 17, 3, generator=g),
        vertices_m=torch.randn(size, 4, 3, generator=g), joints_valid=everyone[:, None].expand(-1, 19),
        regressed_valid=everyone[:, None].expand(-1, 17), mesh_valid=everyone,
        ids=torch.arange(size),
    )  # fmt: skip


def lifter_objective(config: ModelConfig, **weights: float) -> LifterObjective:
    return LifterObjective(config, LossWeights(**weights), torch.device("cpu"))


class TwoHeads(nn.Module):
    """Stands for Pose2Mesh: joints and vertices that depend on parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.joints, self.vertices = nn.Linear(38, 57), nn.Linear(38, 12)

    def forward(
        self, keypoints: torch.Tensor, confidence: torch.Tensor, intrinsics: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        flat = keypoints.flatten(1) / 100
        return self.joints(flat).unflatten(1, (19, 3)), self.vertices(flat).unflatten(1, (4, 3))


def mesh_objective(share: float = 1.0) -> MeshObjective:
    return MeshObjective(SurfaceLoss(FACES), SparseMatrix(REGRESSOR), share)


def test_the_mesh_terms_are_those_of_the_paper() -> None:
    model, given = TwoHeads(), batch()
    values = mesh_objective().values(model, given)
    joints, vertices = model(given.keypoints_px, given.confidence)
    regressed = torch.einsum("jv,bvc->bjc", torch.tensor(REGRESSOR.toarray()).float(), vertices)
    normal, edge = SurfaceLoss(FACES)(vertices, given.vertices_m)
    expected = {
        "vertex": (vertices - given.vertices_m).abs().mean((1, 2)), "normal": normal, "edge": edge,
        "mesh_joint": (regressed - given.regressed_m).abs().mean((1, 2)),
        "lift_joint": (joints - given.joints_m).abs().mean((1, 2)),
    }  # fmt: skip
    assert values.keys() == expected.keys() == mesh_objective().masks(given).keys()
    for name in values:
        torch.testing.assert_close(values[name], expected[name])


def test_the_surface_terms_are_taken_on_every_nth_sample_alone() -> None:
    model, given = TwoHeads(), batch()
    objective, whole = mesh_objective(0.25), mesh_objective()
    some, all_values = objective.values(model, given), whole.values(model, given)
    chosen = torch.tensor([True, False, False, False] * 3)[:10]
    masks = objective.masks(given)
    assert torch.equal(masks["normal"], chosen) and torch.equal(masks["edge"], chosen) and masks["vertex"].all()
    for name in ("normal", "edge"):
        torch.testing.assert_close(some[name][chosen], all_values[name][chosen])
    some["edge"][chosen].sum().backward()
    assert model.vertices.weight.grad is not None and (model.vertices.weight.grad != 0).any()


@pytest.mark.parametrize("spoiled", ["vertices_m", "joints_m", "regressed_m"])
def test_what_is_unknown_reaches_no_gradient_whatever_stands_there(spoiled) -> None:
    model, given = TwoHeads(), batch()
    values = getattr(given, spoiled).clone()
    values[3] = torch.nan
    known = torch.ones(10, dtype=torch.bool)
    known[3] = False
    column, touched, width = {
        "vertices_m": ("mesh_valid", {"vertex", "normal", "edge"}, 0),
        "joints_m": ("joints_valid", {"lift_joint"}, 19),
        "regressed_m": ("regressed_valid", {"mesh_joint"}, 17),
    }[spoiled]
    given = replace(given, **{spoiled: values}, **{column: known[:, None].expand(-1, width) if width else known})
    masks, terms = mesh_objective().masks(given), mesh_objective().values(model, given)
    assert {name for name, mask in masks.items() if not mask[3]} == touched
    sum(torch.where(masks[name], terms[name], 0.0).sum() for name in terms).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_lifter_learns_from_joints_alone() -> None:
    given, config = replace(batch(), vertices_m=None), ModelConfig()
    model = nn.Sequential(nn.Flatten(), nn.Linear(76, 57), nn.Unflatten(1, (19, 3)))
    values = lifter_objective(config).values(model, given)
    joints = model(config.see(given.keypoints_px, given.confidence).features)
    torch.testing.assert_close(values["lift_joint"], point_l1(joints, given.joints_m))
    valid = torch.zeros(10, 19, dtype=torch.bool)
    valid[4, [2, 5]] = True
    some = replace(given, joints_valid=valid)
    assert lifter_objective(config).masks(some)["lift_joint"].nonzero().tolist() == [[4]]
    expected = (joints - given.joints_m)[4, [2, 5]].abs().mean()
    torch.testing.assert_close(lifter_objective(config).values(model, some)["lift_joint"][4], expected)


def test_bones_are_judged_only_when_they_weigh_something() -> None:
    given, config = batch(), ModelConfig()
    model = nn.Sequential(nn.Flatten(), nn.Linear(76, 57), nn.Unflatten(1, (19, 3)))
    assert lifter_objective(config).values(model, given).keys() == {"lift_joint"}
    objective = lifter_objective(config, bone_length=1, bone_vector=1, bone_symmetry=1, joint_limit=1)
    partly = replace(given, joints_valid=torch.rand(10, 19, generator=torch.Generator().manual_seed(1)) < 0.8)
    partly.joints_valid[2] = False
    values, masks = objective.values(model, partly), objective.masks(partly)
    joints = model(config.see(given.keypoints_px, given.confidence).features)
    compared = (joints, given.joints_m, partly.joints_valid)
    expected = {
        "lift_joint": point_l1(*compared),
        "bone_length": BoneLengthLoss(COCO19)(*compared),
        "bone_vector": BoneVectorLoss(COCO19)(*compared),
        "bone_symmetry": BoneSymmetryLoss(COCO19)(joints),
        "joint_limit": JointLimitLoss(COCO19)(joints),
    }
    assert values.keys() == masks.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(values[name], expected[name])
    assert {name for name, mask in masks.items() if not mask[2]} == {"lift_joint", "bone_length", "bone_vector"}


def test_a_cyclic_lifter_meets_its_input_again_where_that_is_known() -> None:
    config = ModelConfig(lifter="cyclic", cyclic=CyclicConfig(width=8, dropout=0.0))
    model, given = build_lifter(config).eval(), batch()
    given.confidence[:, 3] = 0
    values = lifter_objective(config, cycle=0.1).values(model, given)
    features = config.see(given.keypoints_px, given.confidence).features
    joints, decoded = model(features, cycle=True)
    error = (decoded - features[..., :2]).abs().mean(-1)
    error[:, 3] = 0
    torch.testing.assert_close(values["cycle"], error.sum(1) / 18)
    torch.testing.assert_close(values["lift_joint"], point_l1(joints, given.joints_m))
    for without in (
        lifter_objective(config, cycle=0.0),
        lifter_objective(replace(config, cyclic=replace(config.cyclic, decoder=False))),
        lifter_objective(replace(config, depth_only=True)),
    ):
        assert without.masks(given).keys() == {"lift_joint"}


def test_the_mesh_needs_vertices() -> None:
    with pytest.raises(ValueError, match="batches with vertices"):
        mesh_objective().values(TwoHeads(), replace(batch(), vertices_m=None))


def test_labels_are_exchanged_by_the_global_random_numbers() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(76, 1), nn.Flatten(0))
    objective, given = LabelingObjective(ModelConfig()), batch()
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(objective.values(model, given)["labeling"])
    assert losses[0].shape == (10,) and torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])
    assert objective.masks(given)["labeling"].all()
