"""Human3.6M: known people in, the same people out in every camera; damaged files in one clear line."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.readers import human36m
from data.readers.fits import FitCheck, centred_distance_mm
from data.records import Records
from mesh.errors import InputError
from mesh.joints import HUMAN36M17
from tests.data.miniatures import human36m as miniature
from tests.data.miniatures.human36m import BODY, MISFITTED, ODD_SHAPE, UNFITTED, ImageTruth, write, write_detections
from tests.data.miniatures.pw3d import moved, posed, projected

WITH_BODY = {"body": str(BODY)}
UNCHECKED = {"max_fit_mm": float("inf")}


def assert_recovered(records: Records, truth: Sequence[ImageTruth]) -> None:
    """Body model, camera and projection applied to the records give the people that made them."""
    assert len(records) == len(truth)
    vertices, _ = posed(records["pose"], records["shape"], np.asarray(records["trans"], np.float64))
    for row, image in enumerate(truth):
        assert records["sequence"][row].decode() == image.sequence and records["frame"][row] == image.frame
        assert records["image"][row].decode() == f"images/{image.name}" and records["person"][row] == image.subject
        camera = records["extrinsics"][row].astype(np.float64)
        focal, centre = np.split(records["intrinsics"][row].astype(np.float64), 2)
        np.testing.assert_allclose(records["joints3d"][row], image.joints, atol=1e-4)
        np.testing.assert_allclose(projected(records["joints3d"][row], focal, centre), image.joints2d, atol=0.1)
        if image.take != UNFITTED:
            np.testing.assert_allclose(moved(camera, vertices[row]), image.vertices, atol=1e-4)


def test_every_camera_of_every_take_gives_back_the_person(tmp_path: Path) -> None:
    truth = write(tmp_path / "h36m")
    records = human36m.convert(tmp_path / "h36m", tmp_path / "records", split="test", **WITH_BODY)
    assert_recovered(records, truth)
    np.testing.assert_allclose(records["joints2d"], np.stack([image.joints2d for image in truth]), atol=0.1)
    assert (records["confidence"] == 1).all() and records["joint_valid"].all() and (records["gender"] == 0).all()
    assert (records["image_size"] == miniature.IMAGE_SIZE).all()
    low = np.stack([image.joints2d.min(0) for image in truth])
    np.testing.assert_allclose(records["box"][:, :2], low, atol=0.1)


def test_the_training_split_has_its_subjects_and_every_fifth_frame(tmp_path: Path) -> None:
    truth = write(tmp_path, subjects=miniature.TRAIN, every=5)
    records = human36m.convert(tmp_path, tmp_path / "records", split="train", **UNCHECKED)
    assert_recovered(records, truth)
    assert np.unique(records["person"]).tolist() == [1, 5, 6, 7, 8]
    assert np.unique(records["frame"]).tolist() == [0, 5, 50, 100]
    skipped = len(miniature.TRAIN) * len(miniature.TAKES) * miniature.NUM_CAMERAS
    assert records.info.dropped == {"frame between those kept": skipped}


def test_all_frames_can_be_kept(tmp_path: Path) -> None:
    truth = write(tmp_path, every=1)
    records = human36m.convert(tmp_path, tmp_path / "records", split="test", every=1, **UNCHECKED)
    assert_recovered(records, truth)
    assert records.info.dropped == {}


def test_only_parameters_that_fit_are_truth(tmp_path: Path) -> None:
    truth = write(tmp_path)
    records = human36m.convert(tmp_path, tmp_path / "records", split="test", **WITH_BODY)
    expected = [image.take not in (UNFITTED, MISFITTED) for image in truth]
    assert records["mesh_valid"].tolist() == expected
    unfitted = [image.take == UNFITTED for image in truth]
    assert not records["pose"][unfitted].any() and not records["trans"][unfitted].any()
    assert human36m.convert(tmp_path, tmp_path / "b", split="test", body=str(BODY), max_fit_mm=45.0)[
        "mesh_valid"
    ].tolist() == [image.take != UNFITTED for image in truth]


def test_the_fitting_error_is_the_mean_distance_after_aligning_the_means() -> None:
    take = miniature.takes(9)[(2, 1, 0)]
    check = FitCheck.load(str(BODY), HUMAN36M17, 25.0)
    offsets = np.zeros((17, 3))
    offsets[:2] = (0.3, 0, 0), (-0.3, 0, 0)
    joints = take["joints"] + offsets + (5.0, -3.0, 2.0)
    (error,) = centred_distance_mm(check.joints(take["pose"][None], take["shape"][None]), joints[None])
    assert error == pytest.approx(600 / 17, abs=1e-2)


def test_frames_without_trusted_parameters_can_be_left_out(tmp_path: Path) -> None:
    truth = write(tmp_path)
    kept = [image for image in truth if image.take not in (UNFITTED, MISFITTED)]
    records = human36m.convert(tmp_path, tmp_path / "records", split="test", require_mesh=True, **WITH_BODY)
    assert_recovered(records, kept)
    assert records.info.dropped["no usable SMPL parameters"] == len(truth) - len(kept)


def test_a_shape_beyond_the_limit_becomes_the_mean_shape(tmp_path: Path) -> None:
    truth = write(tmp_path)
    odd = [image.take == ODD_SHAPE for image in truth]
    records = human36m.convert(tmp_path, tmp_path / "a", split="test", **UNCHECKED)
    assert not records["shape"][odd].any() and records["mesh_valid"][odd].all()
    wide = human36m.convert(tmp_path, tmp_path / "b", split="test", max_shape=4.0, **UNCHECKED)
    np.testing.assert_allclose(wide["shape"][odd][:, 0], -3.5)


def test_detections_are_matched_by_file_name(tmp_path: Path) -> None:
    truth = write(tmp_path)
    write_detections(tmp_path / "absnet_output_on_testset.json", truth[1:])
    options = {"detections": str(tmp_path / "absnet_output_on_testset.json"), **UNCHECKED}
    records = human36m.convert(tmp_path, tmp_path / "records", split="test", **options)
    expected = np.stack([image.joints2d for image in truth]) + miniature.DETECTION_SHIFT_PX
    np.testing.assert_allclose(records["joints2d"][1:], expected[1:], atol=0.1)
    assert (records["confidence"][1:] == 1).all()
    assert not records["confidence"][0].any() and not records["joints2d"][0].any()
    np.testing.assert_allclose(records["joints3d"], np.stack([image.joints for image in truth]), atol=1e-4)


def test_detections_with_a_confidence_keep_it(tmp_path: Path) -> None:
    truth = write(tmp_path)
    rows = {image.name: np.append(image.joints2d, [[0.5]] * 16 + [[0.0]], axis=1).tolist() for image in truth}
    (tmp_path / "found.json").write_text(json.dumps(rows))
    options = {"detections": str(tmp_path / "found.json"), **UNCHECKED}
    records = human36m.convert(tmp_path, tmp_path / "records", split="test", **options)
    assert (records["confidence"][:, :16] == 0.5).all()
    assert not records["confidence"][:, 16].any() and not records["joints2d"][:, 16].any()


def test_sequences_are_whole_and_in_the_order_of_time(tmp_path: Path) -> None:
    write(tmp_path, every=1)
    records = human36m.convert(tmp_path, tmp_path / "records", split="test", every=1, **UNCHECKED)
    sequences = records.sequences()
    assert len(sequences) == 2 * len(miniature.TAKES) * miniature.NUM_CAMERAS
    assert all(isinstance(rows, slice) for _, rows in sequences)
    assert all(records["frame"][rows].tolist() == list(miniature.FRAMES) for _, rows in sequences)


def test_an_interrupted_conversion_goes_on_with_the_next_subject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = write(tmp_path / "h36m")
    read, seen = human36m.read_subject, []

    def interrupted(folder: Path, subject: int, *rest: Any) -> Any:
        seen.append(subject)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return read(folder, subject, *rest)

    monkeypatch.setattr(human36m, "read_subject", interrupted)
    with pytest.raises(KeyboardInterrupt):
        human36m.convert(tmp_path / "h36m", tmp_path / "records", split="test", **UNCHECKED)
    assert not (tmp_path / "records").exists()
    assert_recovered(human36m.convert(tmp_path / "h36m", tmp_path / "records", split="test", **UNCHECKED), truth)
    assert seen == [9, 11, 11]


# What is wrong is said in one line, and nothing is written


def refusal(root: Path, **options: Any) -> str:
    out = root.parent / "records"
    with pytest.raises(InputError) as caught:
        human36m.convert(root, out, **{"split": "test", **UNCHECKED, **options})
    assert not out.exists()
    message = str(caught.value)
    assert "\n" not in message and message.isprintable()
    return message


def test_a_fit_cannot_be_checked_without_the_body(tmp_path: Path) -> None:
    write(tmp_path / "h36m")
    assert "needs body, the neutral SMPL file of the fits" in refusal(tmp_path / "h36m", max_fit_mm=25.0)


@pytest.mark.parametrize("part", ["data", "camera", "joint_3d", "smpl_param"])
def test_a_missing_file_is_named_before_anything_is_read(part: str, tmp_path: Path) -> None:
    write(tmp_path / "h36m")
    (tmp_path / "h36m" / "annotations" / f"Human36M_subject11_{part}.json").unlink()
    message = refusal(tmp_path / "h36m")
    assert f"Human36M_subject11_{part}.json: no such file" in message and "subjects 9, 11" in message
    assert not (tmp_path / "records.partial").exists()


def test_an_unknown_split_or_option_value_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "h36m")
    assert "has the splits train, test; got 'validation'" in refusal(tmp_path / "h36m", split="validation")
    assert "every must be 1 or more, got 0" in refusal(tmp_path / "h36m", every=0)
    assert "max_shape must be positive" in refusal(tmp_path / "h36m", max_shape=0.0)


def put(value: object, *keys: Any) -> Callable[[Any], None]:
    """Set what lies under the keys; REMOVE takes it away."""

    def edit(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        if value == "REMOVE":
            del content[keys[-1]]
        else:
            content[keys[-1]] = value

    return edit


TAKE = ("2", "1", "0")


@pytest.mark.parametrize(
    ("part", "edit", "reason"),
    [
        *(
            ("data", put("REMOVE", "images", 0, key), rf"image 9000 lacks {key};")
            for key in (
                *("file_name", "width", "height", "subject"),
                *("action_idx", "subaction_idx", "cam_idx", "frame_idx"),
            )
        ),
        ("data", put("REMOVE", "annotations", 3, "bbox"), r"annotation \d+ lacks bbox;"),
        ("data", put("REMOVE", "annotations", 3, "image_id"), r"annotation \d+ lacks image_id;"),
        ("data", put("REMOVE", "images"), "lacks images; it has annotations"),
        ("data", put(5, "images", 0, "subject"), "image 9000 is of subject 5, the file is of subject 9"),
        ("data", put("../x.jpg", "images", 0, "file_name"), "file name below the image folder"),
        ("data", put(7, "annotations", 3, "image_id"), "image_id 7 is not among the images"),
        ("data", put(4, "images", 0, "cam_idx"), "lacks camera 4"),
        ("data", put(150, "images", 0, "frame_idx"), "action 2, subaction 1, frame 150 is missing"),
        ("data", put("one", "images", 0, "frame_idx"), "frame_idx must be a whole number, got 'one'"),
        *(("camera", put("REMOVE", "1", key), rf"camera 1 lacks {key};") for key in ("R", "t", "f", "c")),
        ("camera", put([[2, 0, 0], [0, 2, 0], [0, 0, 2]], "1", "R"), "subject 9: extrinsics of row 0 is no rotation"),
        ("camera", put([1, 2], "1", "t"), r"camera 1: t must be 3 numbers"),
        ("camera", put([0, 0, -50_000], "1", "t"), "behind camera 1; expected millimetres"),
        ("joint_3d", put("REMOVE", *TAKE), "action 2, subaction 1, frame 0 is missing"),
        ("joint_3d", put([[0, 0, 0]] * 16, *TAKE), r"frame 0 must be 51 numbers \(17, 3\), got 48"),
        ("joint_3d", put([["a", 0, 0]] * 17, *TAKE), r"frame 0 must be 51 numbers \(17, 3\), got something else"),
        ("joint_3d", put([[float("inf"), 0, 0]] * 17, *TAKE), "frame 0 holds NaN or infinity"),
        *(
            ("smpl_param", put("REMOVE", *TAKE, key), rf"frame 0 lacks {key};") for key in ("pose", "shape", "trans")
        ),
        ("smpl_param", put([0] * 70, *TAKE, "pose"), r"frame 0: pose must be 72 numbers \(24, 3\), got 70"),
        ("smpl_param", put([5], *TAKE), "frame 0 must be an object with pose, shape, trans; got list"),
        ("smpl_param", put([300, 2000, 1e7], *TAKE, "trans"), "trans of row 0 is further out than 1 km"),
    ],
)  # fmt: skip
def test_a_wrong_entry_is_refused_by_name(part: str, edit: Callable[[Any], Any], reason: str, tmp_path: Path) -> None:
    write(tmp_path / "h36m")
    path = tmp_path / "h36m" / "annotations" / f"Human36M_subject9_{part}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    assert re.search(reason, message := refusal(tmp_path / "h36m")), message


@pytest.mark.parametrize("part", ["data", "camera", "joint_3d", "smpl_param"])
def test_a_file_cut_short_is_refused(part: str, tmp_path: Path) -> None:
    write(tmp_path / "h36m")
    path = tmp_path / "h36m" / "annotations" / f"Human36M_subject11_{part}.json"
    whole = path.read_bytes()
    for share in (0.0, 0.5, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        message = refusal(tmp_path / "h36m")
        assert path.name in message and "damaged, cut short or no json" in message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"other.jpg": [[1, 2]] * 17}, "no detection for any image of .*; the files do not belong"),
        ({"a.jpg": [[1, 2]] * 16}, r"'a.jpg' must be 34 numbers \(17, 2\), got 32"),
        ({"a.jpg": 5}, r"'a.jpg' must be 34 numbers"),
        ([1, 2], "holds a list; expected image file name"),
    ],
)
def test_wrong_detections_are_refused(content: object, reason: str, tmp_path: Path) -> None:
    write(tmp_path / "h36m")
    (tmp_path / "found.json").write_text(json.dumps(content))
    message = refusal(tmp_path / "h36m", detections=str(tmp_path / "found.json"))
    assert re.search(reason, message), message
