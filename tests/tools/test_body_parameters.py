"""Pose and shape parameters beside the vertices of a result."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gcn.recovery import Recovered
from mesh.body import load_body
from mesh.errors import InputError
from mesh.files import MESH_WRITERS
from mesh.joints import COCO17, Keypoints
from mesh.rotation import axis_angle_to_matrix
from mesh.skinning import BodyModel
from tools.body_parameters import BodyParameters, ParameterFinder
from tools.inputs import Focal
from tools.recover import parser
from tools.results import Results, parse_formats

BODY = load_body()


@pytest.fixture(scope="module")
def people() -> Recovered:
    """Two bodies in the camera frame and, between them, one who was not recoverable."""
    generator = torch.Generator().manual_seed(0)
    pose = 0.4 * torch.randn(3, 24, 3, generator=generator)
    pose[:, 0, 0] += torch.pi  # from y up to y down
    shape = 0.5 * torch.randn(3, 10, generator=generator)
    vertices = BodyModel(BODY)(axis_angle_to_matrix(pose), shape)[0].numpy().copy()
    vertices[1] = np.nan
    zero = np.zeros(3, np.float32)
    return Recovered(
        vertices=vertices, joints=np.zeros((3, 17, 3), np.float32), camera=np.ones((3, 3), np.float32),
        intrinsics=np.full((3, 4), np.nan, np.float32), place=np.full((3, 3), np.nan, np.float32),
        exchanged=np.zeros(3, bool), exchange_probability=zero, misfit=zero, spread=zero,
        expected_error=np.full((3, 17), 0.1, np.float32), valid=np.array([True, False, True]),
    )  # fmt: skip


@pytest.fixture(scope="module")
def parameters(people: Recovered) -> BodyParameters:
    return ParameterFinder(BODY, torch.device("cpu")).find(people)


@pytest.fixture
def keypoints() -> Keypoints:
    return Keypoints(joint_set=COCO17, positions_px=np.zeros((3, 17, 2)), confidence=np.ones((3, 17)))


def posed(pose: np.ndarray, shape: np.ndarray, translation: np.ndarray) -> np.ndarray:
    rotations = axis_angle_to_matrix(torch.from_numpy(pose)[None])
    return BodyModel(BODY)(rotations, torch.from_numpy(shape)[None])[0][0].numpy() + translation


def test_the_npz_of_a_person_holds_parameters_that_give_the_mesh(
    tmp_path: Path, people: Recovered, parameters: BodyParameters, keypoints: Keypoints
) -> None:
    results = Results(tmp_path, BODY.faces, ("npz", "smpl"))
    results.write_people("p.jpg", "p", keypoints, people, parameters, Focal(None, "-"), None)
    results.write_summary()
    names = {"p_0.npz", "p_0_smpl.npz", "p_2.npz", "p_2_smpl.npz", "summary.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    rows = json.loads((tmp_path / "summary.json").read_text())["inputs"][0]["people"]
    assert rows[2]["files"] == ["p_2.npz", "p_2_smpl.npz"] and rows[1]["files"] == []
    with np.load(tmp_path / "p_2.npz") as result:
        assert result["pose"].shape == (24, 3) and result["shape"].shape == (10,)
        found = posed(result["pose"], result["shape"], result["translation"])
        apart = np.linalg.norm(found - result["vertices"], axis=1).mean()
        assert apart < 2e-3
        assert float(result["fit_distance_m"]) == pytest.approx(apart, abs=1e-5)
    assert rows[2]["fit_distance_m"] == pytest.approx(apart, abs=1e-4) and "fit_distance_m" not in rows[1]


def test_the_stacked_file_has_nan_for_who_was_not_recoverable(
    tmp_path: Path, people: Recovered, parameters: BodyParameters, keypoints: Keypoints
) -> None:
    Results(tmp_path, BODY.faces, ("npz", "smpl")).write_array(
        "p.npy", "p", keypoints, people, parameters, Focal(None, "-")
    )
    assert {path.name for path in tmp_path.iterdir()} == {"p.npz", "p_smpl.npz"}
    with np.load(tmp_path / "p.npz") as result, np.load(tmp_path / "p_smpl.npz") as smpl:
        assert result["pose"].shape == (3, 24, 3) and result["fit_distance_m"].shape == (3,)
        assert np.isnan(result["pose"][1]).all() and np.isfinite(result["pose"][[0, 2]]).all()
        np.testing.assert_array_equal(smpl["global_orient"], result["pose"][:, :1])
        np.testing.assert_array_equal(smpl["body_pose"], result["pose"][:, 1:])


def test_smplx_makes_the_mesh_from_the_smpl_file(
    tmp_path: Path, people: Recovered, parameters: BodyParameters, keypoints: Keypoints
) -> None:
    smplx = pytest.importorskip("smplx", reason="the smpl extra is not installed")
    from smplx.utils import Struct

    Results(tmp_path, BODY.faces, ("smpl",)).write_people(
        "p.jpg", "p", keypoints, people, parameters, Focal(None, "-"), None
    )
    asset = Path(__file__).parents[2] / "mesh" / "assets" / "free_body.npz"
    with np.load(tmp_path / "p_0_smpl.npz") as saved:
        content = dict(saved)
    shapes = {"global_orient": (1, 3), "body_pose": (23, 3), "betas": (10,), "transl": (3,)}
    assert {key: content[key].shape for key in shapes} == shapes
    assert str(content["gender"]) == "neutral" and "y down" in str(content["frame"])
    model = smplx.SMPL("", data_struct=Struct(**np.load(asset)), gender=str(content["gender"]))
    made = model(**{key: torch.from_numpy(content[key]).reshape(1, -1) for key in shapes}).vertices[0].numpy(force=True)
    apart = np.linalg.norm(made - people.vertices[0], axis=1).mean()
    assert apart < 2e-3
    assert float(content["fit_distance_m"]) == pytest.approx(apart, abs=1e-5)


def test_formats_without_parameters_need_none(tmp_path: Path, people: Recovered, keypoints: Keypoints) -> None:
    Results(tmp_path, BODY.faces, ("ply",)).write_people("p.jpg", "p", keypoints, people, None, Focal(None, "-"), None)
    assert {path.name for path in tmp_path.iterdir()} == {"p_0.ply", "p_2.ply"}


def test_the_help_names_every_format_and_another_is_refused() -> None:
    for name in (*MESH_WRITERS, "npz", "smpl"):
        assert parse_formats(f"{name}, {name}") == (name,)
        assert name in next(a.help for a in parser()._actions if "--format" in a.option_strings)
    with pytest.raises(InputError, match="npz, smpl"):
        parse_formats("smplx")


def test_nobody_recovered_means_no_parameters(people: Recovered) -> None:
    nobody = {name: getattr(people, name)[[1]] for name in people.__dataclass_fields__}
    found = ParameterFinder(BODY, torch.device("cpu")).find(Recovered(**nobody))
    assert found.pose.shape == (1, 24, 3) and np.isnan(found.pose).all() and np.isnan(found.fit_distance_m).all()
