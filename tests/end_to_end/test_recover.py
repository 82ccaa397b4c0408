"""The real command line on the real samples, and on everything that can be wrong with its input."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from gcn.recovery import MIN_JOINTS, UNSURE_JOINT_M, MeshRecovery
from mesh.body import load_body
from mesh.errors import InputError
from mesh.joints import COCO17, HUMAN36M17, MIN_CONFIDENCE, Keypoints
from mesh.lock import FolderLock
from tools import cli, command, recover

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "data" / "samples"
BODY = load_body()


def detector_is_there() -> bool:
    from data.detector_files import detector_paths

    try:
        detector_paths()
    except InputError:
        return False
    return True


needs_detector = pytest.mark.skipif(not detector_is_there(), reason="the detector's files are not there: make setup")


def run(*argv: object) -> int:
    return command.run(recover.main, [str(a) for a in argv])


@pytest.fixture
def standing() -> np.ndarray:
    """COCO-17 joints of the free body facing the camera, 400 px to the metre."""
    joints = BODY.regressor(COCO17) @ BODY.template
    return (joints[:, :2] * (400, -400) + (500, 600)).astype(np.float32)


@needs_detector
@pytest.mark.assets
def test_a_photo_becomes_a_plausible_mesh(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools/recover.py", SAMPLES / "balance.jpg", "--out", tmp_path],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 mesh recovered" in done.stdout
    mesh = trimesh.load(tmp_path / "balance_0.obj", process=False)
    assert isinstance(mesh, trimesh.Trimesh)
    assert mesh.vertices.shape == (6890, 3) and mesh.is_watertight and mesh.volume > 0.03
    joints = dict(zip(HUMAN36M17.names, BODY.regressor(HUMAN36M17) @ mesh.vertices))
    limbs = [("hip", "knee"), ("knee", "ankle"), ("shoulder", "elbow"), ("elbow", "wrist")]
    lengths = [np.linalg.norm(joints[f"{s}_{a}"] - joints[f"{s}_{b}"]) for s in ("left", "right") for a, b in limbs]
    assert min(lengths) > 0.15 and max(lengths) < 0.6
    with np.load(tmp_path / "balance_0.npz") as result:
        placed = (BODY.regressor(COCO17) @ result["vertices"])[:, :2] * result["camera"][0] + result["camera"][1:]
        names = result["keypoint_names"].tolist()
        detected = result["keypoints2d"][[names.index(n) for n in COCO17.names]]
        np.testing.assert_allclose(result["vertices"] * (1, -1, -1), mesh.vertices, atol=1e-5)
    size = np.ptp(detected, axis=0).max()
    assert np.linalg.norm(placed - detected, axis=1).mean() < 0.12 * size
    with Image.open(tmp_path / "balance_overlay.png") as picture:
        assert picture.size[1] == 1280 and picture.size[0] > 2 * 725


@needs_detector
@pytest.mark.assets
def test_both_people_in_the_park_are_found(tmp_path: Path) -> None:
    assert run(SAMPLES / "park.jpg", "--out", tmp_path, "--no-overlay") == 0
    assert sorted(p.name for p in tmp_path.glob("*.obj")) == ["park_0.obj", "park_1.obj"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["detector"] in ("full", "heavy")
    assert [person["files"] for person in summary["inputs"][0]["people"]] == [
        ["park_0.obj", "park_0.npz"], ["park_1.obj", "park_1.npz"]
    ]  # fmt: skip
    assert not list(tmp_path.glob("*.png")) and not list(tmp_path.glob(".*"))


@needs_detector
@pytest.mark.assets
def test_a_picture_without_people_and_a_broken_one_fail_and_the_others_are_written(tmp_path: Path, capsys) -> None:
    Image.new("RGB", (320, 240), (90, 120, 60)).save(tmp_path / "meadow.png")
    (tmp_path / "text.jpg").write_text("not a picture")
    inputs = [tmp_path / "meadow.png", tmp_path / "text.jpg", SAMPLES / "balance.jpg"]
    assert run(*inputs, "--out", tmp_path / "out", "--no-overlay") == 1
    errors = capsys.readouterr().err
    assert "meadow.png: no person found" in errors and "text.jpg" in errors
    assert (tmp_path / "out" / "balance_0.obj").is_file()
    failed = json.loads((tmp_path / "out" / "summary.json").read_text())["failed"]
    assert [Path(f["input"]).name for f in failed] == ["meadow.png", "text.jpg"]


def test_the_detector_that_is_named_must_be_there(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("MESHRECOVERY_CACHE", str(tmp_path / "cache"))
    assert run(SAMPLES / "park.jpg", "--out", tmp_path / "out", "--detector", "heavy") == 2
    assert "missing" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_standing_pose_becomes_a_standing_body(tmp_path: Path, standing: np.ndarray) -> None:
    np.save(tmp_path / "pose.npy", standing[None])
    assert run(tmp_path / "pose.npy", "--joint-set", "coco17", "--format", "obj,npz", "--out", tmp_path) == 0
    mesh = trimesh.load(tmp_path / "pose_0.obj", process=False)
    joints = dict(zip(HUMAN36M17.names, BODY.regressor(HUMAN36M17) @ mesh.vertices))
    assert 1.2 < np.ptp(mesh.vertices[:, 1]) < 2.1
    assert joints["head"][1] > 0.4 and joints["left_ankle"][1] < -0.5 and joints["right_ankle"][1] < -0.5
    # Whoever faces the camera has the left hand where the picture has its right, that is at positive x.
    assert joints["left_wrist"][0] > 0.3 and joints["right_wrist"][0] < -0.3


def test_many_poses_run_as_batches_into_one_file(tmp_path: Path, standing: np.ndarray) -> None:
    poses = standing + np.random.default_rng(0).normal(0, 4, (600, 17, 2))
    np.savez(tmp_path / "poses.npz", keypoints=poses)
    assert run(tmp_path / "poses.npz", "--joint-set", "coco17", "--out", tmp_path / "o") == 0
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == ["poses.npz", "summary.json"]
    with np.load(tmp_path / "o" / "poses.npz") as result:
        assert result["vertices"].shape == (600, 6890, 3) and np.isfinite(result["vertices"]).all()
        assert result["camera"].shape == (600, 3) and result["flags"].shape == (600,)
        assert result["joint_error_m"].shape == (600, 17)
    (entry,) = json.loads((tmp_path / "o" / "summary.json").read_text())["inputs"]
    counts = {"name": "poses", "poses": 600, "recovered": 600}
    assert counts.items() <= entry.items() and "left_right_exchanged" in entry and "people" not in entry


def test_joints_given_for_a_photo_replace_the_detector(tmp_path: Path, standing: np.ndarray, monkeypatch) -> None:
    monkeypatch.setenv("MESHRECOVERY_CACHE", str(tmp_path / "empty"))  # no detector there
    Image.new("RGB", (1000, 1100), (200, 200, 200)).save(tmp_path / "studio.png")
    people = [{"image_id": "studio.png", "category_id": 1, "score": 1.0,
               "keypoints": np.append(standing, np.ones((17, 1)), axis=1).ravel().tolist()}]  # fmt: skip
    (tmp_path / "k.json").write_text(json.dumps(people))
    assert run(tmp_path / "studio.png", "--keypoints", tmp_path / "k.json", "--out", tmp_path / "o") == 0
    with Image.open(tmp_path / "o" / "studio_overlay.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    over = pixels[:, 1000:2000]
    body = (np.abs(over.astype(int) - 200).max(-1) > 20).mean()
    assert 0.05 < body < 0.4  # a body stands in the second panel


def test_expected_errors_are_written_with_the_results(tmp_path: Path, standing: np.ndarray) -> None:
    hidden = np.append(standing, np.ones((17, 1)), axis=1)
    hidden[[COCO17.index("left_wrist"), COCO17.index("left_elbow")], 2] = 0
    people = [{"image_id": "studio.png", "category_id": 1, "score": 1.0, "keypoints": k.ravel().tolist()}
              for k in (np.append(standing, np.ones((17, 1)), axis=1), hidden)]  # fmt: skip
    (tmp_path / "k.json").write_text(json.dumps(people))
    assert run(tmp_path / "k.json", "--out", tmp_path / "o") == 0
    (entry,) = json.loads((tmp_path / "o" / "summary.json").read_text())["inputs"]
    wrist = []
    for row in entry["people"]:
        with np.load(tmp_path / "o" / row["files"][1]) as result:
            errors, names = result["joint_error_m"], result["joint_names"].tolist()
        assert errors.shape == (17,) and row["expected_error_mm"] == pytest.approx(1000 * errors.sum() / 16, abs=0.06)
        assert row["unsure_joints"] == [name for name, error in zip(names, errors) if error > UNSURE_JOINT_M]
        wrist.append(errors[names.index("left_wrist")])
    assert "left_wrist" in entry["people"][1]["unsure_joints"] and wrist[1] > 1.1 * wrist[0]

    own = tmp_path / "own.safetensors"
    shutil.copy(ROOT / "gcn" / "weights" / "pose2mesh.safetensors", own)  # nothing beside it tells expected errors
    assert run(tmp_path / "k.json", "--weights", own, "--out", tmp_path / "p") == 0
    row = json.loads((tmp_path / "p" / "summary.json").read_text())["inputs"][0]["people"][0]
    assert not {"expected_error_mm", "unsure_joints"} & row.keys() and "spread_m" in row
    with np.load(tmp_path / "p" / row["files"][1]) as result:
        assert np.isnan(result["joint_error_m"]).all()


def test_the_focal_length_is_found_used_and_reported(tmp_path: Path, standing: np.ndarray) -> None:
    beside = standing + np.float32((900, 0))
    np.savez(tmp_path / "sized.npz", keypoints=beside[None], image_size=np.array([1600, 1200]))
    np.savez(tmp_path / "plain.npz", keypoints=beside[None])
    words = ("--joint-set", "coco17", "--out")
    assert run(tmp_path / "sized.npz", tmp_path / "plain.npz", *words, tmp_path / "a") == 0
    sized, plain = json.loads((tmp_path / "a" / "summary.json").read_text())["inputs"]
    assert (sized["focal_px"], sized["focal_from"]) == (2000.0, "assumed: the diagonal")
    assert plain["focal_px"] is None and plain["focal_from"].startswith("not known")
    assert run(tmp_path / "sized.npz", *words, tmp_path / "b", "--focal-px", "900") == 0
    (given,) = json.loads((tmp_path / "b" / "summary.json").read_text())["inputs"]
    assert (given["focal_px"], given["focal_from"]) == (900.0, "--focal-px")
    joints = [np.load(tmp_path / where)["joints3d"][0] for where in ("a/sized.npz", "a/plain.npz", "b/sized.npz")]
    left, right = (HUMAN36M17.index(f"{side}_shoulder") for side in ("left", "right"))
    depths = [j[left, 2] - j[right, 2] for j in joints]
    # Who looks straight out of the picture at its right border has turned away from the camera, the more the wider.
    assert depths[1] < depths[0] - 0.02 < depths[2] - 0.04 or depths[1] > depths[0] + 0.02 > depths[2] + 0.04


def test_an_assumed_focal_length_is_left_away_for_who_lies_far_outside(tmp_path: Path, standing: np.ndarray) -> None:
    size = (1000, 1000)
    poses = np.stack((standing, standing + np.float32((1600, 0))))
    words = ("--joint-set", "coco17", "--out", tmp_path / "o")
    for name, which in (("both", slice(None)), ("outside", slice(1, 2))):
        np.savez(tmp_path / f"{name}.npz", keypoints=poses[which], image_size=np.array(size))
    assert run(tmp_path / "both.npz", tmp_path / "outside.npz", *words) == 0
    given = Keypoints(positions_px=poses, confidence=np.ones((2, 17)), joint_set=COCO17, image_size=size)
    expected = MeshRecovery.from_pretrained().recover(given)
    with np.load(tmp_path / "o" / "both.npz") as result:
        np.testing.assert_allclose(result["vertices"], expected.vertices, atol=1e-5)
        np.testing.assert_array_equal(np.isfinite(result["intrinsics"][:, 0]), [True, False])
    both, outside = json.loads((tmp_path / "o" / "summary.json").read_text())["inputs"]
    assert both["focal_px"] == 1414.2 and both["focal_from"].startswith("assumed: the diagonal; not for 1 of 2 people")
    assert outside["focal_px"] is None and outside["focal_from"].startswith("not known: ")


@pytest.mark.parametrize("value", ["0", "-3", "nan", "inf", "1e39", "1e-50", "0.5"])
def test_a_focal_length_that_is_none_is_refused(tmp_path: Path, standing: np.ndarray, capsys, value: str) -> None:
    np.save(tmp_path / "p.npy", standing[None])
    assert run(tmp_path / "p.npy", "--joint-set", "coco17", "--out", tmp_path / "o", "--focal-px", value) == 2
    assert "--focal-px" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_focal_length_needs_the_size_of_the_picture(tmp_path: Path, standing: np.ndarray, capsys) -> None:
    np.save(tmp_path / "p.npy", standing[None])
    assert run(tmp_path / "p.npy", "--joint-set", "coco17", "--out", tmp_path / "o", "--focal-px", "900") == 2
    assert "--focal-px needs the size of the picture" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_keypoints_of_a_picture_of_another_size_are_refused(tmp_path: Path, standing: np.ndarray, capsys) -> None:
    Image.new("RGB", (1000, 1200)).save(tmp_path / "p.png")
    np.savez(tmp_path / "k.npz", keypoints=standing[None], image_size=np.array([2000, 2400]))
    words = ("--joint-set", "coco17", "--out", tmp_path / "o")
    assert run(tmp_path / "p.png", "--keypoints", tmp_path / "k.npz", *words) == 1
    error = "it is 1000 x 1200 px, but its keypoints are of a picture of 2000 x 2400 px: scale them first"
    assert capsys.readouterr().err == f"failed: {tmp_path / 'p.png'}: {error}\n"


def test_a_frame_without_people_fails_alone(tmp_path: Path, standing: np.ndarray, capsys) -> None:
    Image.new("RGB", (1000, 1100)).save(tmp_path / "p.png")
    frame = {"people": [{"pose_keypoints_2d": np.append(standing, np.ones((17, 1)), axis=1).ravel().tolist()}]}
    (tmp_path / "a.json").write_text(json.dumps(frame))
    (tmp_path / "b.json").write_text('{"people": []}')
    words = ("--joint-set", "coco17", "--format", "obj", "--out", tmp_path / "o")
    assert run(tmp_path / "a.json", tmp_path / "b.json", *words) == 1
    assert capsys.readouterr().err == f"failed: {tmp_path / 'b.json'}: b: no person found\n"
    assert (tmp_path / "o" / "a_0.obj").is_file()
    assert run(tmp_path / "p.png", "--keypoints", tmp_path / "b.json", *words) == 1
    assert "b.json holds no people for it" in capsys.readouterr().err


def test_two_calls_at_once_do_not_share_an_output_folder(tmp_path: Path, standing: np.ndarray, capsys) -> None:
    np.save(tmp_path / "p.npy", standing[None])
    words = (tmp_path / "p.npy", "--joint-set", "coco17", "--out", tmp_path / "o")
    with FolderLock(tmp_path / "o", "folder").held():
        assert run(*words) == 2
        assert not (tmp_path / "o" / "summary.json").exists()
    error = capsys.readouterr().err
    assert error.startswith(f"error: output folder {tmp_path / 'o'} is in use by process ") and error.count("\n") == 1
    assert run(*words) == 0 and {p.name for p in (tmp_path / "o").iterdir()} == {"p.npz", "summary.json"}


def test_of_an_earlier_call_files_of_the_same_names_are_replaced_and_others_stay(
    tmp_path: Path, standing: np.ndarray
) -> None:
    np.save(tmp_path / "p.npy", standing[None])
    out = tmp_path / "o"
    out.mkdir()
    for name in ("p.npz", "q.npz"):
        (out / name).write_bytes(b"earlier")
    assert run(tmp_path / "p.npy", "--joint-set", "coco17", "--out", out) == 0
    assert [name for name in ("p.npz", "q.npz") if (out / name).read_bytes() == b"earlier"] == ["q.npz"]
    told = next(a.help for a in recover.parser()._actions if "--out" in a.option_strings)
    assert "files of the same names are replaced, others stay" in str(told)


def test_max_people_counts_for_given_keypoints_too(tmp_path: Path, standing: np.ndarray) -> None:
    row = np.append(standing, np.ones((17, 1)), axis=1).ravel().tolist()
    (tmp_path / "k.json").write_text(json.dumps([{"image_id": "p.png", "keypoints": row}] * 3))
    words = (tmp_path / "k.json", "--format", "obj", "--out")
    for option, count in (((), 3), (("--max-people", "1"), 1)):
        assert run(*words, tmp_path / str(count), *option) == 0
        assert len(list((tmp_path / str(count)).glob("*.obj"))) == count


def test_skipped_files_of_a_folder_are_told_and_do_not_fail(tmp_path: Path, standing: np.ndarray, capsys) -> None:
    row = np.append(standing, np.ones((17, 1)), axis=1).ravel().tolist()
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a.json").write_text(json.dumps({"people": [{"pose_keypoints_2d": row}]}))
    (tmp_path / "f" / "a.avif").write_bytes(b"")
    assert run(tmp_path / "f", "--joint-set", "coco17", "--out", tmp_path / "o") == 0
    error = capsys.readouterr().err
    assert error.startswith(f"{tmp_path / 'f'}: 1 skipped, such as a.avif") and error.count("\n") == 1


def test_guesses_alone_are_nobody_and_the_line_says_what_a_person_needs(
    tmp_path: Path, standing: np.ndarray, capsys
) -> None:
    np.save(tmp_path / "p.npy", np.append(standing, np.full((17, 1), 0.2), axis=1)[None])
    assert run(tmp_path / "p.npy", "--joint-set", "coco17", "--out", tmp_path / "o") == 1
    needed = f"at least {MIN_JOINTS} joints of confidence {MIN_CONFIDENCE} or more"
    error = capsys.readouterr().err
    assert needed in error and error.endswith("the highest confidence is 0.2\n")


def test_a_missing_detector_says_how_to_get_it(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("MESHRECOVERY_CACHE", str(tmp_path / "empty"))
    assert run(SAMPLES / "balance.jpg", "--out", tmp_path / "o") == 2
    assert "make setup" in capsys.readouterr().err


class Hostile:
    def __reduce__(self):
        return (os.system, ("touch canary",))


def wrong_calls(tmp: Path) -> dict[str, tuple[list[object], str]]:
    np.save(tmp / "thirteen.npy", np.ones((2, 13, 2)))
    np.save(tmp / "nan.npy", np.full((2, 17, 2), np.nan))
    np.save(tmp / "good.npy", np.random.default_rng(0).normal(300, 90, (2, 17, 2)))
    (tmp / "body.npz").write_bytes(b"PK\x03\x04 not an archive")
    (tmp / "body.pkl").write_bytes(pickle.dumps(Hostile()))
    (tmp / "weights.safetensors").write_bytes(b"nonsense")
    (tmp / "file").write_text("")
    good = [tmp / "good.npy", "--joint-set", "coco17"]
    return {
        "nothing": ([], "nothing to do"),
        "missing file": ([tmp / "none.jpg"], "no such input"),
        "13 joints": ([tmp / "thirteen.npy"], "13 joints"),
        "NaN": ([tmp / "nan.npy", "--joint-set", "coco17"], "NaN"),
        "joint set": ([tmp / "good.npy", "--joint-set", "cocoo17"], "did you mean 'coco17'"),
        "wrong joint set": ([tmp / "good.npy", "--joint-set", "mpii16"], "16"),
        "format": ([*good, "--format", "fbx"], "obj, ply, glb, npz"),
        "corrupt body": ([*good, "--body", tmp / "body.npz"], "body.npz"),
        "hostile body": ([*good, "--body", tmp / "body.pkl"], "not allowed"),
        "bad weights": ([*good, "--weights", tmp / "weights.safetensors"], "safetensors"),
        "output is a file": ([*good, "--out", tmp / "file"], "cannot make the output folder"),
    }


@pytest.mark.parametrize("case", [
    "nothing", "missing file", "13 joints", "NaN", "joint set", "wrong joint set", "format", "corrupt body",
    "hostile body", "bad weights", "output is a file",
])  # fmt: skip
def test_a_wrong_call_is_one_line_and_exit_code_2(case: str, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    argv, message = wrong_calls(tmp_path)[case]
    out = [] if "--out" in argv else ["--out", tmp_path / "out"]
    assert run(*argv, *out) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "out").exists() and not (tmp_path / "canary").exists()


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root can write everywhere")
def test_a_read_only_output_folder_is_one_line(tmp_path: Path, capsys) -> None:
    np.save(tmp_path / "good.npy", np.random.default_rng(0).normal(300, 90, (2, 17, 2)))
    (tmp_path / "locked").mkdir(mode=0o555)
    assert run(tmp_path / "good.npy", "--joint-set", "coco17", "--out", tmp_path / "locked") == 2
    assert "cannot write" in capsys.readouterr().err


def test_every_script_is_a_command_of_the_installed_program() -> None:
    folder = Path(cli.__file__).parent
    scripts = {p.stem for p in folder.glob("*.py") if "sys.exit(command.run(main))" in p.read_text()}
    parts = {"benchmark_training"}  # a process of its own that `benchmark` starts
    assert {name.replace("-", "_") for name in cli.COMMANDS} == scripts - parts


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_explains_itself(name: str, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([name, "--help"])
    assert caught.value.code == 0 and "usage: " in capsys.readouterr().out


def test_an_unknown_command_lists_the_known_ones(capsys) -> None:
    assert cli.main(["recovr"]) == 2
    assert "train-posenet" in capsys.readouterr().err
