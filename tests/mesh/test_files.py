"""Result files, read back by another library."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import trimesh

from mesh import files
from mesh.errors import InputError
from mesh.files import MESH_WRITERS, upright, write_npz, write_obj
from mesh.normals import vertex_normals

FORMATS = sorted(MESH_WRITERS)


@pytest.fixture(scope="module")
def body() -> tuple[np.ndarray, np.ndarray]:
    """The free body standing in the camera frame: y down, facing the camera."""
    path = Path(files.__file__).parent / "assets" / "free_body.npz"
    with np.load(path, allow_pickle=False) as arrays:
        return upright(arrays["v_template"]), arrays["f"]


TETRAHEDRON = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
TETRAHEDRON_FACES = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])


def reread(path: Path) -> trimesh.Trimesh:
    mesh = trimesh.load(path, process=False, force="mesh")
    assert isinstance(mesh, trimesh.Trimesh)
    return mesh


@pytest.mark.parametrize("kind", FORMATS)
def test_a_mesh_file_holds_the_vertices_upright_and_the_faces_as_they_were(
    kind: str, body: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    vertices, faces = body
    MESH_WRITERS[kind](tmp_path / f"body.{kind}", vertices, faces)
    mesh = reread(tmp_path / f"body.{kind}")
    expected = vertices * np.array([1, -1, -1], np.float32)
    if kind == "obj":  # micrometres
        expected = np.round(expected.astype(np.float64), 6)
    np.testing.assert_allclose(mesh.vertices, expected, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(mesh.faces, faces)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_written_body_is_closed_stands_head_up_and_looks_outwards(
    kind: str, body: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    vertices, faces = body
    head = vertices[:, 1].argmin()  # the camera's y points down
    MESH_WRITERS[kind](tmp_path / f"body.{kind}", vertices, faces)
    mesh = reread(tmp_path / f"body.{kind}")
    assert mesh.is_watertight
    assert mesh.volume > 0.03
    assert mesh.vertices[:, 1].argmax() == head


def test_a_glb_carries_unit_normals_that_point_outwards(body: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    MESH_WRITERS["glb"](tmp_path / "body.glb", *body)
    scene = trimesh.load(tmp_path / "body.glb", process=False)
    assert isinstance(scene, trimesh.Scene)
    (mesh,) = scene.geometry.values()
    assert "vertex_normals" in mesh._cache  # from the file: trimesh has computed nothing yet
    stored = mesh.vertex_normals
    np.testing.assert_allclose(np.linalg.norm(stored, axis=1), 1, atol=1e-6)
    by_angle = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).vertex_normals
    assert (stored * by_angle).sum(axis=1).min() > 0.95


def test_normals_weigh_faces_by_area() -> None:
    normals = vertex_normals(TETRAHEDRON, TETRAHEDRON_FACES)
    np.testing.assert_allclose(normals[0], -np.ones(3) / np.sqrt(3), atol=1e-12)
    np.testing.assert_allclose(normals[1], [1, 0, 0], atol=1e-12)  # (1, 1, 1) + (0, -1, 0) + (0, 0, -1)


def test_a_lone_vertex_has_a_unit_normal_in_a_glb_too(tmp_path: Path) -> None:
    MESH_WRITERS["glb"](tmp_path / "lone.glb", np.vstack([TETRAHEDRON, [[5, 5, 5]]]), TETRAHEDRON_FACES)
    scene = trimesh.load(tmp_path / "lone.glb", process=False)
    assert isinstance(scene, trimesh.Scene)
    (mesh,) = scene.geometry.values()
    np.testing.assert_allclose(np.linalg.norm(mesh.vertex_normals, axis=1), 1, atol=1e-6)


def test_obj_text_is_what_printf_would_write(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).normal(size=(300, 3)) * np.logspace(-6, 2, 300)[:, None]
    write_obj(tmp_path / "a.obj", upright(numbers), np.array([[0, 1, 2], [12, 299, 7]]))
    lines = (tmp_path / "a.obj").read_text().splitlines()
    expected = ["v {:.6f} {:.6f} {:.6f}".format(*row).replace("-0.000000", "0.000000") for row in numbers.tolist()]
    assert lines == [*expected, "f 1 2 3", "f 13 300 8"]


def test_obj_rounds_up_across_the_point_and_writes_no_minus_zero(tmp_path: Path) -> None:
    vertices = upright(np.array([[0.9999996, -1.9999999, -1e-9], [998.9999999, 0.0, -0.001]]))
    write_obj(tmp_path / "a.obj", vertices, np.array([[0, 1, 0]]))
    assert (tmp_path / "a.obj").read_text().splitlines()[:2] == [
        "v 1.000000 -2.000000 0.000000",
        "v 999.000000 0.000000 -0.001000",
    ]


def test_face_lines_follow_the_faces_even_if_the_array_was_changed_in_place(tmp_path: Path) -> None:
    faces = TETRAHEDRON_FACES.copy()
    write_obj(tmp_path / "a.obj", TETRAHEDRON, faces)
    faces[:] = faces[:, ::-1]
    write_obj(tmp_path / "a.obj", TETRAHEDRON, faces)
    np.testing.assert_array_equal(reread(tmp_path / "a.obj").faces, faces)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("vertices", "faces", "message"),
    [
        (np.where(TETRAHEDRON == 1, np.nan, TETRAHEDRON), TETRAHEDRON_FACES, "vertex 1 .* NaN"),
        (np.where(TETRAHEDRON == 1, np.inf, TETRAHEDRON), TETRAHEDRON_FACES, "infinite"),
        (TETRAHEDRON * 1700, TETRAHEDRON_FACES, "metres.*1700"),
        (TETRAHEDRON[:, :2], TETRAHEDRON_FACES, r"\(V, 3\), got \(4, 2\)"),
        (TETRAHEDRON, TETRAHEDRON_FACES + 1, r"outside 0\.\.3"),
        (TETRAHEDRON, TETRAHEDRON_FACES - 1, r"outside 0\.\.3"),
        (TETRAHEDRON, TETRAHEDRON_FACES.astype(float), "whole numbers"),
    ],
)
def test_a_mesh_that_no_viewer_could_show_is_refused_and_leaves_no_file(
    kind: str, vertices: np.ndarray, faces: np.ndarray, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        MESH_WRITERS[kind](tmp_path / f"a.{kind}", vertices, faces)
    assert not list(tmp_path.iterdir())


def test_npz_returns_the_arrays_and_refuses_objects(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", vertices=TETRAHEDRON, joint_names=np.array(["nose", "neck"]))
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["vertices"], TETRAHEDRON)
        assert arrays["joint_names"].tolist() == ["nose", "neck"]
    with pytest.raises(InputError, match=r"b\.npz.*'flags' holds Python objects"):
        write_npz(tmp_path / "b.npz", flags=np.array([None, "x"], dtype=object))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_an_interrupted_write_keeps_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), files.replacing(target) as file:
        file.write(b"ne")
        raise KeyboardInterrupt
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_program_that_reads_the_old_file_never_sees_half_of_the_new_one(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"old")
    with (tmp_path / "a.bin").open("rb") as reader:
        with files.replacing(tmp_path / "a.bin") as file:
            file.write(b"new")
        assert reader.read() == b"old"
    assert (tmp_path / "a.bin").read_bytes() == b"new"


def test_a_full_disk_is_one_line_with_the_path_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot write .*a\.bin: No space left"), files.replacing(tmp_path / "a.bin"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", FORMATS)
def test_a_folder_that_is_not_there_is_one_line_with_the_path(kind: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot write .*missing.*No such file"):
        MESH_WRITERS[kind](tmp_path / "missing" / "a", TETRAHEDRON, TETRAHEDRON_FACES)


def test_a_folder_in_the_place_of_the_file_is_refused_without_leftovers(tmp_path: Path) -> None:
    (tmp_path / "a.obj").mkdir()
    with pytest.raises(InputError, match=r"cannot write .*a\.obj"):
        write_obj(tmp_path / "a.obj", TETRAHEDRON, TETRAHEDRON_FACES)
    assert [path.name for path in tmp_path.iterdir()] == ["a.obj"]


def test_a_failure_other_than_of_the_disk_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), files.replacing(tmp_path / "a.bin"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", FORMATS)
def test_how_the_arrays_lie_in_memory_changes_no_byte(kind: str, tmp_path: Path) -> None:
    write = MESH_WRITERS[kind]
    write(tmp_path / "rows", TETRAHEDRON, TETRAHEDRON_FACES)
    write(tmp_path / "columns", np.asfortranarray(TETRAHEDRON), np.asfortranarray(TETRAHEDRON_FACES))
    assert (tmp_path / "rows").read_bytes() == (tmp_path / "columns").read_bytes()


def test_the_writers_leave_their_arguments_alone(tmp_path: Path) -> None:
    vertices, faces = TETRAHEDRON.copy(), TETRAHEDRON_FACES.copy()
    for kind, write in MESH_WRITERS.items():
        write(tmp_path / kind, vertices, faces)
    np.testing.assert_array_equal(vertices, TETRAHEDRON)
    np.testing.assert_array_equal(faces, TETRAHEDRON_FACES)


@pytest.mark.parametrize("kind", FORMATS)
def test_whole_metres_of_any_type_are_written(kind: str, tmp_path: Path) -> None:
    MESH_WRITERS[kind](tmp_path / f"whole.{kind}", TETRAHEDRON.astype(np.uint8), TETRAHEDRON_FACES.astype(np.uint16))
    np.testing.assert_array_equal(reread(tmp_path / f"whole.{kind}").vertices, TETRAHEDRON * (1, -1, -1))


def test_the_largest_coordinates_are_written_to_the_micrometre(tmp_path: Path) -> None:
    vertices = np.array([[999.0, -999.0, 998.999999], [0, 0, 0], [1e-6, 0, 0]])
    write_obj(tmp_path / "large.obj", vertices, np.array([[0, 1, 2]]))
    assert (tmp_path / "large.obj").read_text().splitlines()[0] == "v 999.000000 999.000000 -998.999999"
