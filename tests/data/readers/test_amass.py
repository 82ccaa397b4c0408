"""AMASS to records: known motion in, the same motion out."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.readers.amass import convert
from data.records import Records
from mesh.body import load_body
from mesh.errors import InputError
from mesh.rotation import axis_angle_to_matrix
from mesh.skinning import BodyModel
from tests.data.miniatures.amass import FRAMES, TRIALS, write_amass, write_trial

FREE_BODY = str(files("mesh") / "assets" / "free_body.npz")
ONE = "CMU/01/01_01_poses.npz"


def converted(root: Path, split: str = "all", out: str = "out", **options: Any) -> Records:
    return convert(root / "amass", root / out, split=split, progress=lambda *_: None, **options)


@lru_cache(maxsize=1)
def body_model() -> BodyModel:
    return BodyModel(load_body())


def vertices(pose: np.ndarray, shape: np.ndarray, trans: np.ndarray) -> np.ndarray:
    """The free body in the world, (N, V, 3) m."""
    rotations, betas = (torch.from_numpy(np.array(x, np.float32)) for x in (pose, shape))
    return body_model()(axis_angle_to_matrix(rotations), betas)[0].numpy() + np.asarray(trans)[:, None]


@pytest.mark.parametrize("world", ["y-up", "z-up"])
def test_vertices_of_every_frame_are_those_of_the_source(tmp_path: Path, world: str) -> None:
    truth = write_amass(tmp_path / "amass")
    records = converted(tmp_path, rate=0, body=FREE_BODY, world=world)
    assert len(records) == FRAMES * len(TRIALS)
    for name, trial in truth.items():
        rows = records["sequence"] == name.removesuffix(".npz").encode()
        assert set(records["gender"][rows]) == {("neutral", "male", "female").index(trial.gender)} and records["frame"][
            rows
        ].tolist() == [*range(9)]
        expected = vertices(trial.pose, np.tile(trial.shape, (FRAMES, 1)), trial.trans)
        if world == "y-up":  # up is the third number in AMASS and the second in records
            expected = np.stack([expected[..., 0], expected[..., 2], -expected[..., 1]], axis=-1)
        found = vertices(records["pose"][rows], records["shape"][rows], records["trans"][rows])
        assert np.abs(found - expected).max() < 1e-5


def test_without_a_body_the_place_of_a_turned_person_is_left_out(tmp_path: Path) -> None:
    write_amass(tmp_path / "amass")
    assert "trans" not in converted(tmp_path)
    assert "trans" in converted(tmp_path, out="other", world="z-up")


def test_a_slower_rate_keeps_the_frames_nearest_to_its_times(tmp_path: Path) -> None:
    write_trial(tmp_path / "amass" / ONE, "male")  # 9 frames at 120 per second
    for rate, frames in ((60, [0, 2, 4, 6, 8]), (50, [0, 2, 5, 7]), (30, [0, 4, 8]), (500, list(range(9)))):
        assert converted(tmp_path, out=str(rate), rate=rate)["frame"].tolist() == frames


def test_sub_datasets_are_split_by_their_folders(tmp_path: Path) -> None:
    write_amass(tmp_path / "amass")
    found = {split: converted(tmp_path, split, out=split) for split in ("train", "validation", "test")}
    folders = {split: {name.split(b"/")[0] for name in set(r["sequence"].tolist())} for split, r in found.items()}
    assert folders == {"train": {b"CMU", b"KIT"}, "validation": {b"SFU"}, "test": {b"Transitions_mocap"}}
    assert converted(tmp_path, "test", out="mine", test=("KIT",)).sequences()[0][0].startswith("KIT/")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"poses": np.zeros((9, 72))},
            r"poses must be \(T, 156\) of SMPL-H or \(T, 165\) of SMPL-X, got shape \(9, 72\)",
        ),
        ({"poses": np.full((9, 156), np.nan)}, "pose holds NaN"),
        ({"poses": np.full((9, 156), 57.0)}, "expected axis-angle in radians"),
        ({"poses": np.full((9, 156), 1e300)}, r"poses turn by 1e\+300; expected axis-angle in radians"),
        ({"betas": np.full(16, 1e30)}, "shape of row 0 has a coefficient beyond 1000"),
        ({"gender": np.array("x" * 5000)}, "gender must be one of neutral, male, female, got 'x{40}'$"),
        ({"trans": np.zeros((8, 3))}, r"trans must have shape \(9, 3\)"),
        ({"betas": np.zeros(6)}, "betas must be 10 or more"),
        ({"gender": np.array("robot")}, "gender must be one of neutral, male, female, got 'robot'"),
        ({"mocap_framerate": None}, "has no 'mocap_framerate'; a motion of AMASS has poses, trans"),
        ({"mocap_framerate": np.array(0.0)}, "mocap_framerate must be one positive number"),
        ({"trans": None}, "has no 'trans'"),
        ({"poses": np.array([{}] * 9)}, "it holds pickled objects"),
    ],
)
def test_a_wrong_or_hostile_file_is_named_in_one_line_and_no_records_are_left(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_trial(tmp_path / "amass" / ONE, "male", **changes)
    with pytest.raises(InputError, match=f"01_01_poses.npz.*{message}") as refused:
        converted(tmp_path)
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["amass"]


def an_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros((9, 156)))


def nested_brackets(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("poses.npy", b"\x93NUMPY\x01\x00\x00\x27" + b"(" * 9984)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (an_array, "has no 'poses'"),
        (nested_brackets, "not a whole .npz"),
        (lambda path: path.write_bytes(b""), "not a whole .npz"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "holds no file of AMASS"),  # reading would wait for ever
        (lambda path: (path.unlink(), path.mkdir()), "holds no file of AMASS"),
    ],
)
def test_what_is_no_archive_is_refused_in_one_line(tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    file = tmp_path / "amass" / ONE
    write_trial(file, "male", poses=None)
    damage(file)
    with pytest.raises(InputError, match=message) as refused:
        converted(tmp_path)
    assert "\n" not in str(refused.value) and [path.name for path in tmp_path.iterdir()] == ["amass"]


@pytest.mark.parametrize(("source_rate", "rate"), [(1e300, 30.0), (120.0, 1e-300), (1e300, 1e-300)])
def test_of_absurdly_rare_frames_the_first_is_kept(tmp_path: Path, source_rate: float, rate: float) -> None:
    write_trial(tmp_path / "amass" / ONE, "male", mocap_framerate=np.array(source_rate))
    assert converted(tmp_path, rate=rate)["frame"].tolist() == [0]


def test_a_truncated_file_ends_the_conversion_which_goes_on_when_it_is_whole(tmp_path: Path) -> None:
    write_amass(tmp_path / "amass")
    bad = tmp_path / "amass" / list(TRIALS)[2]
    content = bad.read_bytes()
    os.truncate(bad, 3000)
    with pytest.raises(InputError, match=r"0005_Jogging001_poses\.npz: not a whole"):
        converted(tmp_path)
    assert not (tmp_path / "out").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out.partial").glob("*.npz")}
    assert len(kept) == 2
    bad.write_bytes(content)
    assert len(converted(tmp_path)) == 3 * len(TRIALS)
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    ("split", "options", "message"),
    [
        ("all", {}, "holds no file of AMASS; expected SUBDATASET/SUBJECT/TRIAL_poses.npz"),
        ("dev", {}, "no split 'dev'"),
        ("all", {"test": ("sfu", "KIT")}, "--validation and --test both name sfu"),
        ("all", {"rate": -1}, "--rate must be 0 or more"),
        ("all", {"rate": float("inf")}, "--rate must be 0 or more"),
    ],
)
def test_a_wrong_call_is_refused(tmp_path: Path, split: str, options: dict[str, Any], message: str) -> None:
    (tmp_path / "amass").mkdir()
    with pytest.raises(InputError, match=message):
        converted(tmp_path, split, **options)


def test_a_split_without_a_folder_says_which_folders_there_are(tmp_path: Path) -> None:
    write_trial(tmp_path / "amass" / ONE, "male")
    with pytest.raises(InputError, match="no folder of split validation among CMU"):
        converted(tmp_path, "validation")
