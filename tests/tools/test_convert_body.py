"""The command that turns an SMPL file into a clean .npz."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse

from mesh.body import load_body
from tools import command, convert_body

V = 12


def convert(argv: list[str]) -> int:
    """The exit code of the command line."""
    return command.run(convert_body.main, argv)


def small_model() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "v_template": rng.normal(size=(V, 3)),
        "f": rng.integers(0, V, (20, 3)).astype(np.uint32),
        "weights": np.full((V, 4), 0.25),
        "J_regressor": scipy.sparse.csc_matrix(rng.random((4, V))),
        "kintree_table": np.array([[2**32 - 1, 0, 1, 1], [0, 1, 2, 3]], np.uint32),
        "shapedirs": rng.normal(size=(V, 3, 300)),
        "posedirs": rng.normal(size=(V, 3, 27)),
        "vert_sym_idxs": np.arange(V),
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(small_model(), 2))
    return path


def regressor(path: Path, rows: int, *, value: float = 0.5) -> str:
    np.save(path, np.full((rows, V), value) + np.arange(rows)[:, None])
    return str(path)


def test_a_pickle_becomes_a_clean_archive_in_the_layout_of_the_free_body(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "body.npz"
    assert convert([str(model), str(out)]) == 0
    given = small_model()
    expected = {
        "v_template": given["v_template"].astype(np.float32),
        "f": given["f"],
        "weights": given["weights"].astype(np.float32),
        "J_regressor": given["J_regressor"].toarray().astype(np.float32),
        "kintree_table": np.array([[-1, 0, 1, 1], [0, 1, 2, 3]], np.int64),
        "shapedirs": given["shapedirs"][:, :, :10].astype(np.float32),
        "posedirs": given["posedirs"].astype(np.float32),
    }
    with np.load(out, allow_pickle=False) as written:
        assert set(written.files) == set(expected)
        for key, array in expected.items():
            np.testing.assert_array_equal(written[key], array, strict=True)


@pytest.mark.parametrize("coco_rows", [17, 19])
def test_regressors_are_added_under_their_joint_sets(model: Path, tmp_path: Path, coco_rows: int) -> None:
    out = tmp_path / "body.npz"
    coco, human36m = regressor(tmp_path / "coco.npy", coco_rows), regressor(tmp_path / "h36m.npy", 17, value=0.25)
    assert convert([str(model), str(out), "--coco-regressor", coco, "--human36m-regressor", human36m]) == 0
    with np.load(out) as written:
        np.testing.assert_array_equal(written["J_regressor_coco"], np.load(coco)[:17].astype(np.float32), strict=True)
        np.testing.assert_array_equal(written["J_regressor_h36m"], np.load(human36m).astype(np.float32), strict=True)


def test_converting_the_free_body_keeps_every_value_and_type(tmp_path: Path) -> None:
    import mesh

    shipped = Path(mesh.__file__).parent / "assets" / "free_body.npz"
    out = tmp_path / "copy.npz"
    assert convert([str(shipped), str(out)]) == 0
    with np.load(shipped) as before, np.load(out) as after:
        assert set(before.files) - set(after.files) == {"J"}
        for key in after.files:
            np.testing.assert_array_equal(after[key], before[key], strict=True)
    assert load_body(out).parents == load_body().parents


@pytest.mark.parametrize(
    ("option", "rows", "reason"),
    [
        ("--coco-regressor", 18, "must hold numbers of shape (17, 12) or (19, 12), got float64 of shape (18, 12)"),
        ("--human36m-regressor", 19, "must hold numbers of shape (17, 12), got float64 of shape (19, 12)"),
        ("--coco-regressor", 0, "is no .npy file of numbers"),
        ("--coco-regressor", -1, "cannot read"),
    ],
)
def test_a_regressor_that_does_not_fit_is_refused_in_one_line(
    option: str, rows: int, reason: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "regressor.npy"
    if rows > 0:
        regressor(path, rows)
    elif rows == 0:
        path.write_text("17 numbers")
    assert convert([str(model), str(tmp_path / "body.npz"), option, str(path)]) == 2
    message = capsys.readouterr().err
    assert reason in message and message.count("\n") == 1
    assert not (tmp_path / "body.npz").exists()


def test_a_regressor_with_nan_is_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = regressor(tmp_path / "nan.npy", 17, value=np.nan)
    assert convert([str(model), str(tmp_path / "body.npz"), "--coco-regressor", path]) == 2
    assert "NaN" in capsys.readouterr().err


def test_an_existing_file_is_replaced_only_by_force(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "body.npz"
    out.write_text("precious")
    assert convert([str(model), str(out)]) == 2
    assert "--force" in capsys.readouterr().err and out.read_text() == "precious"
    assert convert([str(model), str(out), "--force"]) == 0
    assert load_body(out).num_vertices == V
    assert sorted(path.name for path in tmp_path.iterdir()) == ["body.npz", "model.pkl"]


def test_a_run_that_fails_while_writing_leaves_the_old_file_and_no_remains(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "body.npz"
    out.write_text("precious")

    def fail(file: Any, **arrays: np.ndarray) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", fail)
    assert convert([str(model), str(out), "--force"]) == 2
    assert out.read_text() == "precious" and not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("out", ["body.pkl", "absent/body.npz"])
def test_an_output_of_another_kind_or_in_no_folder_is_refused(out: str, model: Path, tmp_path: Path) -> None:
    assert convert([str(model), str(tmp_path / out)]) == 2


def test_a_hostile_pickle_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = tmp_path / "evil.pkl"
    evil.write_bytes(f"cposix\nsystem\n(S'touch {tmp_path}/canary'\ntR.".encode())
    assert convert([str(evil), str(tmp_path / "body.npz")]) == 2
    message = capsys.readouterr().err
    assert "posix.system is not allowed" in message and message.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pkl"]


def test_help_says_where_the_regressors_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        convert(["--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0 and "Pose2Mesh" in text and "J_regressor_h36m_correct.npy" in text
