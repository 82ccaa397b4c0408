"""Predictions that are wrong by a known amount get exactly that error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from mesh.body import load_body
from mesh.errors import InputError
from mesh.joints import HUMAN36M17, SMPL24
from mesh.protocols import PROTOCOLS, JointRegression, MeshMeasure, Protocol, compare, protocol
from mesh.rotation import axis_angle_to_matrix
from mesh.skinning import BodyModel

BODY = load_body()
EXACT_MM = 1e-3
ERRORS = ("mpjpe_mm", "pa_mpjpe_mm", "mpvpe_mm", "pa_mpvpe_mm")
ALL = pytest.mark.parametrize("rules", PROTOCOLS.values(), ids=PROTOCOLS)


@pytest.fixture(scope="module")
def people() -> Tensor:
    """Three posed bodies 4 m in front of a camera, (3, V, 3)."""
    generator = torch.Generator().manual_seed(0)
    pose = 0.3 * torch.randn(3, 24, 3, generator=generator)
    vertices, _ = BodyModel(BODY)(axis_angle_to_matrix(pose), torch.randn(3, 10, generator=generator))
    return vertices + torch.tensor([0.3, -0.2, 4.0])


def rotated(points: Tensor, about: Tensor, rotation: Rotation) -> Tensor:
    return (points.double() - about) @ torch.from_numpy(rotation.as_matrix()).T + about


def root_of(rules: Protocol, people: Tensor) -> tuple[Tensor, Tensor]:
    """The root of the joints and of the mesh, (3, 1, 3) each, by dense products."""
    roots = []
    for joints, names in ((rules.joint_set, rules.joint_root), (rules.mesh_root_set, rules.mesh_root)):
        matrix = torch.from_numpy(BODY.regressor(joints)).double()[list(joints.indices(names))].mean(0)
        roots.append((matrix @ people.double())[:, None])
    return roots[0], roots[1]


@ALL
def test_a_perfect_prediction_has_no_error(rules: Protocol, people: Tensor) -> None:
    scores = MeshMeasure(rules, BODY)(people.clone(), people)
    assert all(scores.values[name].abs().max() < 1e-9 for name in ("mpjpe_mm", "mpvpe_mm", "facing_error_rad"))
    assert all(scores.values[name].max() < EXACT_MM for name in ERRORS)
    assert (scores.values["pck_150mm_percent"] == 100).all() and (scores.values["auc_150mm_percent"] == 100).all()
    assert scores.joints_mm.shape == (3, len(rules.joints)) and scores.joints_mm.max() < EXACT_MM


@ALL
def test_where_somebody_stands_is_not_measured(rules: Protocol, people: Tensor) -> None:
    scores = MeshMeasure(rules, BODY)(people.double() + torch.tensor([0.4, -3.0, 20.0]), people)
    assert all(scores.values[name].max() < EXACT_MM for name in ERRORS)


@ALL
def test_joints_beside_the_root_by_a_known_distance_give_that_distance(rules: Protocol, people: Tensor) -> None:
    regressed = JointRegression(BODY, rules.joint_set)(people)[0]
    moved = regressed + torch.tensor([0.03, 0.0, -0.04])
    roots = list(rules.joint_set.indices(rules.joint_root))
    moved[:, roots] = regressed[:, roots]
    measure = MeshMeasure(rules, BODY)
    values = compare(rules, measure.posed(people, moved), measure.posed(people)).values
    at_root = sum(name in rules.joint_root for name in rules.joints)
    expected = 50.0 * (len(rules.joints) - at_root) / len(rules.joints)
    assert values["mpjpe_mm"].numpy() == pytest.approx(expected, abs=EXACT_MM)
    assert values["mpvpe_mm"].max() < EXACT_MM


@pytest.mark.parametrize("name", ["pw3d-pose2mesh", "human36m14"])
def test_only_the_root_that_is_named_counts_for_the_mesh(name: str, people: Tensor) -> None:
    rules = protocol(name)
    mesh_root = np.zeros(BODY.num_vertices, bool)
    for joints in (HUMAN36M17, SMPL24):
        mesh_root |= BODY.regressor(joints)[0] != 0
    moved = people.double().clone()
    moved[:, ~mesh_root] += torch.tensor([0.0, 0.0, 0.1])
    assert MeshMeasure(rules, BODY)(moved, people).values["mpvpe_mm"].numpy() == pytest.approx(
        100 * (~mesh_root).mean(), abs=EXACT_MM
    )
    only = BODY.regressor(HUMAN36M17)[0] != 0  # and now the Human3.6M pelvis alone, where the two do not overlap
    only &= BODY.regressor(SMPL24)[0] == 0
    moved = people.double().clone()
    moved[:, only] += torch.tensor([0.0, 0.0, 0.1])
    weight = float(BODY.regressor(HUMAN36M17)[0][only].sum()) if name == "human36m14" else 0.0
    expected = 100 * (only.mean() * abs(1 - weight) + (~only).mean() * weight)
    assert MeshMeasure(rules, BODY)(moved, people).values["mpvpe_mm"].numpy() == pytest.approx(expected, abs=EXACT_MM)


@ALL
@pytest.mark.parametrize("degrees", [10.0, 60.0, 180.0])
def test_a_turned_body_is_wrong_by_the_chords_and_right_after_alignment(
    rules: Protocol, people: Tensor, degrees: float
) -> None:
    axis = np.array([0.48, 0.6, 0.64])
    rotation = Rotation.from_rotvec(np.radians(degrees) * axis)
    scores = MeshMeasure(rules, BODY)(rotated(people, torch.zeros(3), rotation), people)
    joint_root, mesh_root = root_of(rules, people)

    def chords(points: Tensor, root: Tensor) -> np.ndarray:
        away = torch.linalg.cross(points.double() - root, torch.from_numpy(axis).expand_as(points)).norm(dim=-1)
        return (2000 * np.sin(np.radians(degrees) / 2) * away).mean(1).numpy()

    chosen = list(rules.joint_set.indices(rules.joints))
    joints = JointRegression(BODY, rules.joint_set)(people)[0][:, chosen]
    np.testing.assert_allclose(scores.values["mpjpe_mm"], chords(joints, joint_root), atol=EXACT_MM)
    np.testing.assert_allclose(scores.values["mpvpe_mm"], chords(people, mesh_root), atol=EXACT_MM)
    assert scores.values["pa_mpjpe_mm"].max() < EXACT_MM and scores.values["pa_mpvpe_mm"].max() < EXACT_MM


@ALL
def test_a_body_of_the_wrong_size_is_wrong_in_proportion_and_right_after_alignment(
    rules: Protocol, people: Tensor
) -> None:
    values = MeshMeasure(rules, BODY)(1.1 * people.double(), people).values
    joint_root, mesh_root = root_of(rules, people)
    chosen = list(rules.joint_set.indices(rules.joints))
    joints = JointRegression(BODY, rules.joint_set)(people)[0][:, chosen]
    np.testing.assert_allclose(values["mpjpe_mm"], 100 * (joints - joint_root).norm(dim=-1).mean(1), atol=EXACT_MM)
    np.testing.assert_allclose(values["mpvpe_mm"], 100 * (people - mesh_root).norm(dim=-1).mean(1), atol=EXACT_MM)
    assert values["pa_mpjpe_mm"].max() < EXACT_MM and values["pa_mpvpe_mm"].max() < EXACT_MM


def test_noise_on_the_vertices_gives_its_mean_length(people: Tensor) -> None:
    noise = torch.randn(people.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.01
    noise[:, BODY.regressor(SMPL24)[0] != 0] = 0
    values = MeshMeasure(protocol("pw3d-pose2mesh"), BODY)(people.double() + noise, people).values
    np.testing.assert_allclose(values["mpvpe_mm"], 1000 * noise.norm(dim=-1).mean(1), atol=EXACT_MM)
    maxwell_mm = 10 * 2 * np.sqrt(2 / np.pi)  # the mean length of an isotropic Gaussian in space
    np.testing.assert_allclose(values["mpvpe_mm"], maxwell_mm, rtol=0.02)
    np.testing.assert_allclose(values["pa_mpvpe_mm"], maxwell_mm, rtol=0.02)


@ALL
def test_a_mirrored_body_is_wrong_even_after_alignment(rules: Protocol, people: Tensor) -> None:
    values = MeshMeasure(rules, BODY)(people * torch.tensor([-1.0, 1, 1]), people).values
    assert all(values[name].min() > 20 for name in ERRORS)


def test_a_body_that_is_rooted_elsewhere_is_wrong_by_the_shift() -> None:
    rules = protocol("smpl24")
    true = torch.randn(2, 24, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wrong = true.clone()
    wrong[:, SMPL24.root_idx] += torch.tensor([0.0, 0.1, 0.0])
    from mesh.protocols import Posed

    values = compare(rules, Posed(joints=wrong), Posed(joints=true)).values
    assert values["mpjpe_mm"].numpy() == pytest.approx(100 * 23 / 24, abs=EXACT_MM)
    assert "mpvpe_mm" not in values


def test_pck_and_auc_count_the_joints_within_reach() -> None:
    rules = protocol("smpl24")
    from mesh.protocols import Posed

    true = torch.zeros(1, 24, 3, dtype=torch.float64)
    wrong = true.clone()
    wrong[0, 1:7, 0], wrong[0, 7:13, 1] = 0.0525, 0.1501  # six within the reach of 20 of 31 thresholds, six out of any
    values = compare(rules, Posed(joints=wrong), Posed(joints=true)).values
    assert values["pck_150mm_percent"].item() == pytest.approx(100 * 18 / 24)
    assert values["auc_150mm_percent"].item() == pytest.approx(100 * (12 + 6 * 20 / 31) / 24)


def test_recorded_joints_take_the_place_of_regressed_ones(people: Tensor) -> None:
    rules = protocol("human36m-p1")
    recorded = JointRegression(BODY, HUMAN36M17)(people)[0]
    recorded[:, HUMAN36M17.index("left_wrist")] += torch.tensor([0.14, 0.0, 0.0])
    scores = MeshMeasure(rules, BODY)(people, people, recorded)
    assert scores.values["mpjpe_mm"].numpy() == pytest.approx(10.0, abs=EXACT_MM)
    assert scores.joints_mm[0, rules.joints.index("left_wrist")].item() == pytest.approx(140.0, abs=EXACT_MM)


def test_no_error_depends_on_the_other_samples(people: Tensor) -> None:
    noisy = people + 0.02 * torch.randn(people.shape, generator=torch.Generator().manual_seed(2))
    many, many_true = noisy.repeat(9, 1, 1), people.repeat(9, 1, 1)  # more than one block
    measure = MeshMeasure(protocol("pw3d-pose2mesh"), BODY)
    together = measure(many, many_true).values
    for row in (0, 4, 26):
        alone = measure(many[row : row + 1], many_true[row : row + 1]).values
        for name, value in together.items():
            torch.testing.assert_close(alone[name][0], value[row], rtol=1e-12, atol=1e-9)


def test_regression_equals_the_dense_product(people: Tensor) -> None:
    dense = torch.from_numpy(BODY.regressor(HUMAN36M17)).double() @ people.double()
    torch.testing.assert_close(JointRegression(BODY, SMPL24, HUMAN36M17)(people)[1], dense, rtol=0, atol=1e-9)


def test_the_cards_tell_the_protocols_apart() -> None:
    cards = [rules.card() for rules in PROTOCOLS.values()]
    assert {card["name"] for card in cards} == {
        "pw3d-pose2mesh", "pw3d-lsp14", "smpl24", "human36m-p1", "human36m-p2", "human36m14",
    }  # fmt: skip
    assert len({tuple(card.values())[2:] for card in cards}) == len(cards)
    pose2mesh = protocol("pw3d-pose2mesh").card()
    assert pose2mesh["joints"].startswith("14 of human36m17") and pose2mesh["root of mesh"] == "smpl24 pelvis"


def test_an_unknown_protocol_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown protocol 'pw3d_pose2mesh'; did you mean 'pw3d-pose2mesh'\?"):
        protocol("pw3d_pose2mesh")
