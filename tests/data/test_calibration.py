"""Calibration files of both kinds, right and wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data.calibration import read_calibration
from mesh.errors import InputError

TURNS = {"cam01": (0.1, 2.0, -0.2), "cam02": (0.3, -1.0, 0.1)}
SHIFT = (0.1, -0.2, 3.5)
LENS = {"k1": -0.05, "k2": 0.13, "p1": 0.0006, "p2": -0.0007, "k3": 0.02}

needs_toml = pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")


def toml(**changes: str) -> str:
    cameras = []
    for name, turn in TURNS.items():
        entries = {
            "name": f'"{name}"',
            "size": "[1088.0, 1920.0]",
            "matrix": "[[1681.0, 0.0, 533.0], [0.0, 1682.0, 948.0], [0.0, 0.0, 1.0]]",
            "distortions": f"[{', '.join(str(LENS[k]) for k in ('k1', 'k2', 'p1', 'p2', 'k3'))}]",
            "rotation": str(list(turn)),
            "translation": str(list(SHIFT)),
            "fisheye": "false",
            **changes,
        }
        cameras.append(f"[{name}]\n" + "\n".join(f"{key} = {value}" for key, value in entries.items()))
    return "\n\n".join((*cameras, "[metadata]\nadjusted = false\nerror = 0.0\n"))


def qca(**changes: object) -> str:
    """The same cameras as Qualisys writes them: millimetres, 1/64 px, the camera looking along -z with y up."""
    cameras = []
    for name, turn in TURNS.items():
        ours = Rotation.from_rotvec(turn).as_matrix()
        theirs, centre = np.diag([1, -1, -1]) @ ours, -ours.T @ np.array(SHIFT) * 1000
        transform = {f"r{a + 1}{b + 1}": theirs[a, b] for a in range(3) for b in range(3)}
        transform |= dict(zip("xyz", centre))
        intrinsic = {
            "focalLengthU": 1681 * 64, "focalLengthV": 1682 * 64, "centerPointU": 533 * 64, "centerPointV": 948 * 64,
            "skew": 0, "radialDistortion1": LENS["k1"], "radialDistortion2": LENS["k2"],
            "radialDistortion3": LENS["k3"], "tangentalDistortion1": LENS["p1"], "tangentalDistortion2": LENS["p2"],
        }  # fmt: skip
        for key, value in changes.items():
            (transform if key in transform else intrinsic)[key] = value
        tags = {"fov_video": {"left": 0, "top": 0, "right": 1087, "bottom": 1919}, "transform": transform,
                "intrinsic": intrinsic}  # fmt: skip
        body = "".join(f"<{tag} " + " ".join(f'{k}="{v}"' for k, v in a.items()) + "/>" for tag, a in tags.items())
        cameras.append(f'<camera serial="{name}">{body}</camera>')
    return f"<?xml version='1.0' encoding='ASCII'?><calibration><cameras>{''.join(cameras)}</cameras></calibration>"


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


@needs_toml
def test_both_kinds_tell_the_same_cameras(tmp_path: Path) -> None:
    both = [read_calibration(written(tmp_path, *file)) for file in (("Calib.toml", toml()), ("Calib.qca.txt", qca()))]
    for a, b in zip(*both):
        assert a.name == b.name and a.size_px == b.size_px == (1088, 1920)
        for key in ("matrix", "distortion", "rotation", "translation_m"):
            np.testing.assert_allclose(getattr(a, key), getattr(b, key), atol=1e-9)
        np.testing.assert_allclose(a.rotation, Rotation.from_rotvec(TURNS[a.name]).as_matrix())
        np.testing.assert_allclose(a.translation_m, SHIFT)
        np.testing.assert_allclose(a.distortion, [LENS[k] for k in ("k1", "k2", "p1", "p2", "k3")])


@needs_toml
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fisheye": "true"}, "fisheye"),
        ({"matrix": "[[1.0, 0.0], [0.0, 1.0]]"}, r"matrix must be numbers of shape \(3, 3\)"),
        ({"rotation": '["a", 0.0, 0.0]'}, "rotation must be numbers"),
        ({"rotation": "[nan, 0.0, 0.0]"}, "rotation must be numbers"),
        ({"distortions": "[0.1]"}, "4 or 5 numbers"),
        ({"name": '"../cam"'}, "the name must be one of a folder"),
        ({"name": '"cam"'}, "two cameras of one name"),
        ({"matrix": "[[0.0, 0.0, 5.0], [0.0, 9.0, 5.0], [0.0, 0.0, 1.0]]"}, "focal lengths must be positive"),
        ({"size": "= 3"}, "is not TOML"),
        ({"size": "[0.0, 9.0]"}, "the size must be positive"),
        ({"matrix": "[[9.0, 0.1, 5.0], [0.0, 9.0, 5.0], [0.0, 0.0, 1.0]]"}, "skew is not supported"),
        ({"matrix": "[[9.0, 0.0, 5.0], [0.0, 9.0, 5.0], [0.0, 0.0, 7.0]]"}, "the matrix must be"),
        ({"translation": "[1" + "0" * 400 + ", 0, 0]"}, "translation must be numbers"),
        ({"translation": "[1" + "0" * 5000 + ", 0, 0]"}, "is not TOML"),
        ({"translation": "[" * 20000}, "is not TOML"),
        ({"name": '"' + "a" * 300 + '"'}, "the name must be one of a folder"),
        ({"name": '"a\\nb"'}, "the name must be one of a folder"),
        ({"name": '".."'}, "the name must be one of a folder"),
    ],
)
def test_a_wrong_toml_is_refused_in_one_line(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_calibration(written(tmp_path, "Calib.toml", toml(**changes)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (qca(r11=0.0), "the rotation is no rotation"),
        (qca(focalLengthU="wide"), "expected <intrinsic> with the numbers focalLengthU"),
        (qca().replace("<transform", "<transformed"), "expected <transform> with the numbers"),
        (qca()[:-30], "is not XML"),
        ('<!DOCTYPE a [<!ENTITY b "c">]>' + qca(), "declares entities"),
        (qca().split("<camera ")[0] + "</cameras></calibration>", "holds 0 cameras"),
        (qca(focalLengthU="nan"), "expected <intrinsic> with the numbers"),
        (qca(skew=9000), "skew is not supported"),
        (qca().replace('right="1087"', 'right="nan"'), "expected <fov_video> with the numbers"),
        (qca().replace('right="1087"', 'right="1e999"'), "expected <fov_video> with the numbers"),
        (qca().replace('left="0"', 'left="100"'), "a part of its sensor"),
        (qca().replace("<camera ", '<camera viewrotation="90" '), "viewrotation"),
        (qca().replace("ASCII", "foo"), "is not XML"),
        (qca().replace("ASCII", "utf-32"), "is not XML"),
        (qca().replace("<camera ", '<camera active="0" '), "holds 0 cameras"),
    ],
)
def test_a_wrong_qca_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_calibration(written(tmp_path, "Calib.qca.txt", text))
    assert "\n" not in str(error.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ending in \.toml or \.qca\.txt"):
        read_calibration(written(tmp_path, "cameras.json", "{}"))
    with pytest.raises(InputError, match="cannot read"):
        read_calibration(tmp_path / "none.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(InputError, match="is not text"):
        read_calibration(tmp_path / "b.toml")
