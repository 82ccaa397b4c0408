from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh

from mesh.body import Body, load_body
from mesh.errors import InputError
from mesh.joints import COCO17, COCO19, HUMAN36M17, MPII16, SMPL24

ASSET = Path(__file__).parents[2] / "mesh" / "assets" / "free_body.npz"


@pytest.fixture(scope="module")
def body() -> Body:
    return load_body()


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    with np.load(ASSET) as archive:
        return {key: archive[key] for key in archive.files}


def test_the_free_body_is_one_closed_surface_with_normals_outwards(body: Body) -> None:
    mesh = trimesh.Trimesh(body.template, body.faces, process=False)
    assert (body.num_vertices, len(body.faces)) == (6890, 13776)
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.volume > 0.05
    assert len(body.edges) == 13776 * 3 / 2


def test_every_regressor_row_is_an_average_of_vertices(body: Body) -> None:
    for joints in (COCO17, COCO19, HUMAN36M17, SMPL24):
        regressor = body.regressor(joints)
        assert regressor.shape == (len(joints), body.num_vertices)
        np.testing.assert_allclose(regressor.sum(1), 1, atol=1e-5)


def test_the_template_stands_upright_with_its_left_at_positive_x(body: Body) -> None:
    joints = body.regressor(COCO17) @ body.template
    left, right, ankle = COCO17.indices(("left_wrist", "right_wrist", "left_ankle"))
    assert joints[left, 0] > 0.5 > -0.5 > joints[right, 0]
    assert joints[COCO17.index("nose"), 1] > joints[ankle, 1] + 1.2


def test_derived_joints_are_regressed_as_the_mean_of_their_parts(body: Body) -> None:
    coco19 = body.regressor(COCO19) @ body.template
    hips = coco19[list(COCO19.indices(("left_hip", "right_hip")))]
    np.testing.assert_allclose(coco19[COCO19.index("pelvis")], hips.mean(0), atol=1e-6)


def test_a_joint_set_without_regressor_says_how_to_add_one(body: Body) -> None:
    with pytest.raises(InputError, match=r"no regressor for mpii16.*convert_body"):
        body.regressor(MPII16)


def test_an_original_root_parent_is_read_as_none(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    arrays["kintree_table"] = arrays["kintree_table"].astype(np.uint32)  # -1 becomes 4294967295
    np.savez(tmp_path / "b.npz", **arrays)
    assert load_body(tmp_path / "b.npz").parents[:4] == (-1, 0, 0, 0)


def test_more_shape_coefficients_than_ten_are_cut(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    arrays["shapedirs"] = np.concatenate([arrays["shapedirs"]] * 3, axis=-1)
    np.savez(tmp_path / "b.npz", **arrays)
    assert load_body(tmp_path / "b.npz").shape_dirs.shape == (6890, 3, 10)


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("weights", None, "lacks weights"),
        ("v_template", lambda a: a * np.nan, "v_template holds NaN"),
        ("f", lambda a: a + 7000, "faces name vertices outside"),
        ("weights", lambda a: a * 0, "must add up to 1"),
        ("v_template", lambda a: np.array("text"), "v_template must be an array of numbers"),
        ("J_regressor_coco", lambda a: a[:10], r"J_regressor_coco must have shape \(17, 6890\), got \(10, 6890\)"),
        ("J_regressor_h36m", lambda a: a * np.nan, "J_regressor_h36m holds NaN"),
        ("posedirs", lambda a: a[..., :100], r"posedirs must have shape \(6890, 3, 207\), got \(6890, 3, 100\)"),
        ("kintree_table", lambda a: a[:, ::-1], "every parent before its children"),
        ("kintree_table", lambda a: a[0], r"kintree_table must have shape \(2, 24\), got \(24,\)"),
    ],
)
def test_a_broken_body_is_refused_in_one_line(
    tmp_path: Path, arrays: dict[str, np.ndarray], key: str, change, message: str
) -> None:
    if change is None:
        del arrays[key]
    else:
        arrays[key] = change(arrays[key])
    np.savez(tmp_path / "broken.npz", **arrays)
    with pytest.raises(InputError, match=message) as caught:
        load_body(tmp_path / "broken.npz")
    assert "broken.npz" in str(caught.value) and "\n" not in str(caught.value)


def test_a_truncated_or_missing_body_is_refused(tmp_path: Path) -> None:
    cut = tmp_path / "cut.npz"
    cut.write_bytes(ASSET.read_bytes()[:100_000])
    with pytest.raises(InputError, match="not a whole"):
        load_body(cut)
    with pytest.raises(InputError, match="no such file; expected an SMPL model"):
        load_body(tmp_path / "nowhere.npz")
