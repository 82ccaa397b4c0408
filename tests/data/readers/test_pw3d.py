"""3DPW in both of its forms: known people in, the same people out; damaged and hostile files in one clear line."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.readers import pw3d
from data.records import Records
from mesh.errors import InputError
from mesh.joints import COCO17, COCO19
from tests.data.miniatures import pw3d as miniature
from tests.data.miniatures.pw3d import PersonTruth, dump_python2, posed, write_official, write_pose2mesh


def assert_recovered(records: Records, truth: list[PersonTruth]) -> None:
    """Body model, camera and projection applied to the records give the people that made them."""
    assert len(records) == len(truth)
    vertices, joints = posed(records["pose"], records["shape"], np.asarray(records["trans"], np.float64))
    regressor = miniature.load_body().regressor(COCO17)
    for row, person in enumerate(truth):
        named = records["sequence"][row].decode(), records["person"][row], records["frame"][row]
        assert named == (person.sequence, person.person, person.frame)
        image = f"imageFiles/{person.sequence}/image_{person.frame:05d}.jpg"
        assert records["image"][row].decode() == image
        camera = records["extrinsics"][row].astype(np.float64) if "extrinsics" in records else np.eye(4)
        fx, fy, cx, cy = records["intrinsics"][row].astype(np.float64)
        in_camera = miniature.moved(camera, vertices[row])
        np.testing.assert_allclose(in_camera, person.vertices, atol=1e-4)
        np.testing.assert_allclose(miniature.moved(camera, joints[row]), person.joints, atol=1e-4)
        np.testing.assert_allclose(records["joints3d"][row], person.joints, atol=1e-4)
        shown = miniature.projected(regressor @ in_camera, (fx, fy), (cx, cy))
        np.testing.assert_allclose(shown, person.coco[:17], atol=0.1)
        known = records["confidence"][row] > 0
        np.testing.assert_allclose(records["joints2d"][row][known], person.coco[known], atol=0.1)
        assert records["gender"][row] == person.gender


@pytest.mark.parametrize(("protocol", "python2"), [(0, True), (1, True), (2, True), (2, False)])
def test_official_sequences_give_back_every_person_and_frame(protocol: int, python2: bool, tmp_path: Path) -> None:
    truth = write_official(tmp_path / "3DPW", protocol=protocol, python2=python2)
    records = pw3d.convert(tmp_path / "3DPW", tmp_path / "records", split="validation")
    assert_recovered(records, truth)
    assert records.info.split == "validation" and "non-commercial" in records.info.licence


def test_the_miniature_is_what_python_2_writes() -> None:
    content = dump_python2({"trans": np.arange(3.0), "genders": ["m"]})
    assert b"U\x05trans" in content and b"U\x18" + np.arange(3.0).tobytes() in content
    assert b"cnumpy.core.multiarray\n_reconstruct" in content and b"_codecs" not in content
    loaded = pickle.loads(content, encoding="latin1")
    np.testing.assert_array_equal(loaded["trans"], np.arange(3.0))


def test_a_frame_without_a_valid_camera_is_left_out_and_counted(tmp_path: Path) -> None:
    write_official(tmp_path / "3DPW")
    records = pw3d.convert(tmp_path / "3DPW", tmp_path / "records", split="validation")
    assert records.info.dropped == {"camera pose not valid": 1}
    rows = list(zip(records["sequence"].tolist(), records["person"].tolist(), records["frame"].tolist()))
    assert (b"courtyard_mini_00", 1, 2) not in rows and (b"courtyard_mini_00", 0, 2) in rows


def test_an_invalid_frame_may_hold_anything(tmp_path: Path) -> None:
    truth = write_official(tmp_path)

    def spoil(content: dict[str, Any]) -> None:
        for key in ("poses", "trans", "jointPositions", "poses2d"):
            content[key][1][2] = np.nan

    change(tmp_path, spoil)
    assert_recovered(pw3d.convert(tmp_path, tmp_path / "records", split="validation"), truth)


def test_openpose_joints_are_matched_by_name_and_unseen_ones_unknown(tmp_path: Path) -> None:
    truth = write_official(tmp_path / "3DPW")
    records = pw3d.convert(tmp_path / "3DPW", tmp_path / "records", split="validation")
    unseen = [(t.sequence, t.person, t.frame) == miniature.UNSEEN[:3] for t in truth].index(True)
    wrist = COCO19.index("left_wrist")
    expected = np.full((len(truth), len(COCO19)), 0.75)
    expected[unseen, wrist] = 0
    np.testing.assert_allclose(records["confidence"], expected)
    assert (records["joints2d"][unseen, wrist] == 0).all()
    hips = records["joints2d"][:, COCO19.indices(("left_hip", "right_hip"))]
    np.testing.assert_allclose(records["joints2d"][:, COCO19.index("pelvis")], hips.mean(1), atol=1e-3)


def test_an_unseen_hip_leaves_the_pelvis_unknown() -> None:
    rows = np.ones((1, 17, 3))
    rows[0, COCO17.index("left_hip"), 2] = 0
    positions, confidence = pw3d.as_coco19(rows, COCO17, "here")
    for joint in ("left_hip", "pelvis"):
        assert confidence[0, COCO19.index(joint)] == 0 and (positions[0, COCO19.index(joint)] == 0).all()
    assert confidence[0, COCO19.index("neck")] == 1


def test_pose2mesh_files_give_back_every_person(tmp_path: Path) -> None:
    truth = write_pose2mesh(tmp_path / "PW3D")
    records = pw3d.convert(tmp_path / "PW3D", tmp_path / "records", split="validation")
    assert_recovered(records, truth)
    assert "extrinsics" not in records
    assert (records["image_size"] == miniature.IMAGE_SIZE).all() and (records["confidence"] == 1).all()
    low = np.stack([t.coco.min(0) for t in truth])
    np.testing.assert_allclose(records["box"][:, :2], low, atol=0.1)


def test_detections_are_matched_by_annotation_id_wherever_they_stand(tmp_path: Path) -> None:
    truth = write_pose2mesh(tmp_path)
    path = tmp_path / "data" / "darkpose_3dpw_validationset_output.json"
    detections = json.loads(path.read_text())
    path.write_text(json.dumps(sorted(detections, key=lambda entry: entry["annotation_id"])[1:]))
    records = pw3d.convert(tmp_path, tmp_path / "records", split="validation")
    assert_recovered(records, truth)
    assert (records["confidence"][-1] == 0).all() and (records["confidence"][:-1] == 1).all()


def test_openpose_results_of_the_annotations_can_be_chosen(tmp_path: Path) -> None:
    truth = write_pose2mesh(tmp_path)
    (tmp_path / "data" / "darkpose_3dpw_validationset_output.json").unlink()
    with pytest.raises(InputError, match=r"darkpose_3dpw_validationset_output.json: no such file; .* openpose"):
        pw3d.convert(tmp_path, tmp_path / "records", split="validation")
    records = pw3d.convert(tmp_path, tmp_path / "records", split="validation", detections="openpose")
    assert_recovered(records, truth)
    assert (records["confidence"] == 0.5).all()


def test_without_detections_there_are_no_2d_joints(tmp_path: Path) -> None:
    for number, write in enumerate((write_official, write_pose2mesh)):
        write(tmp_path / f"{number}")
        records = pw3d.convert(tmp_path / f"{number}", tmp_path / f"r{number}", split="validation", detections="none")
        assert "joints2d" not in records and "confidence" not in records and records.info.joints2d is None


def test_a_box_smaller_than_a_pixel_is_left_out_and_counted(tmp_path: Path) -> None:
    truth = write_pose2mesh(tmp_path)
    path = tmp_path / "data" / "3DPW_latest_validation.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"] = [5, 5, 0, 100]  # the last person: the file lists them backwards
    path.write_text(json.dumps(content))
    records = pw3d.convert(tmp_path, tmp_path / "records", split="validation")
    assert records.info.dropped == {"box smaller than a pixel": 1}
    assert_recovered(records, truth[:-1])


def test_annotations_without_joints_are_read_without(tmp_path: Path) -> None:
    write_pose2mesh(tmp_path)
    path = tmp_path / "data" / "3DPW_latest_validation.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        del annotation["joint_cam"]
    path.write_text(json.dumps(content))
    assert "joints3d" not in pw3d.convert(tmp_path, tmp_path / "records", split="validation")


def test_where_both_forms_lie_the_choice_is_the_users(tmp_path: Path) -> None:
    truth = write_official(tmp_path / "3DPW")
    everybody = write_pose2mesh(tmp_path / "3DPW")
    with pytest.raises(InputError, match="choose form official or pose2mesh"):
        pw3d.convert(tmp_path / "3DPW", tmp_path / "records", split="validation")
    assert_recovered(pw3d.convert(tmp_path / "3DPW", tmp_path / "a", split="validation", form="official"), truth)
    assert_recovered(pw3d.convert(tmp_path / "3DPW", tmp_path / "b", split="validation", form="pose2mesh"), everybody)


def test_an_interrupted_conversion_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = write_official(tmp_path / "3DPW")
    read, seen = pw3d.read_sequence, []

    def interrupted(path: Path, detections: Any) -> Any:
        seen.append(path.stem)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return read(path, detections)

    monkeypatch.setattr(pw3d, "read_sequence", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pw3d.convert(tmp_path / "3DPW", tmp_path / "records", split="validation")
    assert not (tmp_path / "records").exists()
    assert_recovered(pw3d.convert(tmp_path / "3DPW", tmp_path / "records", split="validation"), truth)
    assert seen == ["courtyard_mini_00", "downtown_mini_00", "downtown_mini_00"]


# What is wrong is said in one line, and nothing is written


def refusal(root: Path, **options: Any) -> str:
    out = root.parent / "records"
    with pytest.raises(InputError) as caught:
        pw3d.convert(root, out, **{"split": "validation", **options})
    assert not out.exists()
    message = str(caught.value)
    assert "\n" not in message and message.isprintable()
    return message


def change(root: Path, edit: Callable[[dict[str, Any]], None], name: str = "courtyard_mini_00") -> None:
    """Edit an official sequence."""
    path = root / "sequenceFiles" / "validation" / f"{name}.pkl"
    content = pickle.loads(path.read_bytes(), encoding="latin1")
    edit(content)
    path.write_bytes(dump_python2(content))


def test_a_folder_without_the_files_is_told_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "3DPW").mkdir()
    message = refusal(tmp_path / "3DPW")
    assert "sequenceFiles/validation/*.pkl" in message and "3DPW_latest_validation.json" in message
    assert "splits train, validation, test; got 'val'" in refusal(tmp_path / "3DPW", split="val")
    assert "form must be one of auto, official, pose2mesh" in refusal(tmp_path / "3DPW", form="coco")
    write_official(tmp_path / "3DPW")
    assert "detections darkpose come with the json files" in refusal(tmp_path / "3DPW", detections="darkpose")


@pytest.mark.parametrize("key", pw3d._KEYS)
def test_a_key_that_a_sequence_lacks_is_named(key: str, tmp_path: Path) -> None:
    write_official(tmp_path / "3DPW")
    change(tmp_path / "3DPW", lambda content: content.pop(key))
    assert re.search(rf"courtyard_mini_00.pkl lacks {key};", refusal(tmp_path / "3DPW"))


def set_entry(key: str, value: object, *index: Any) -> Callable[[dict[str, Any]], None]:
    def edit(content: dict[str, Any]) -> None:
        if index:
            content[key][index[0]][index[1:]] = value
        else:
            content[key] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (set_entry("poses", [np.zeros((4, 72)), np.zeros((3, 72))]), r"poses\[1\] .* \(4, 72\), got .* \(3, 72\)"),
        (set_entry("trans", [np.zeros((4, 3))]), "trans has entries for 1 people, poses for 2"),
        (set_entry("poses", {"a": 1}), "poses must be a list with an entry for each person, got dict"),
        (set_entry("poses", []), "entries for .* poses for 0"),
        (set_entry("cam_poses", np.zeros((3, 4, 4))), r"campose_valid\[0\] must be .* \(3\), got .* \(4,\)"),
        (set_entry("cam_poses", np.zeros((4, 4))), r"cam_poses must be an array of numbers \(T, 4, 4\)"),
        (set_entry("cam_poses", 2.0, 1, 3, 3), "last row 0 0 0 1"),
        (set_entry("cam_poses", 2.0, 1, 0, 0), "extrinsics of row 1 is no rotation"),
        (set_entry("cam_poses", np.inf, 1, 0, 3), "cam_poses of person 0 holds NaN or infinity in frame 1"),
        (set_entry("cam_intrinsics", np.eye(4)), r"cam_intrinsics must be an array of numbers \(3, 3\)"),
        (set_entry("cam_intrinsics", np.ones((3, 3))), r"cam_intrinsics must be \[\[fx, 0, cx\]"),
        (set_entry("betas", [np.zeros(8)] * 2), r"betas\[0\] must be 10 or 300 finite numbers, got 8"),
        (set_entry("betas", [[0.0] * 10] * 2), r"betas\[0\] must be .* got list"),
        (set_entry("genders", ["x", "m"]), "genders must be one of .* got 'x'"),
        (set_entry("genders", ["m", 3]), "genders must be one of .* got '3'"),
        (set_entry("poses", np.nan, 0, 3, 70), r"poses of person 0 holds NaN or infinity in frame 3"),
        (set_entry("poses2d", np.nan, 0, 3, 0, 4), r"poses2d\[0\] holds NaN or infinity in row 3"),
        (set_entry("poses2d", [np.zeros((4, 18, 3))] * 2), r"\(4, 3, 18\), got float64 \(4, 18, 3\)"),
        (set_entry("poses", [np.array(["a"])] * 2), r"poses\[0\] must be an array of numbers"),
        (set_entry("jointPositions", [np.full((4, 72), 1500.0)] * 2), r"pelvis lies .* m from trans; .* metres"),
    ],
)  # fmt: skip
def test_an_inconsistent_sequence_is_refused_by_name(
    edit: Callable[[dict[str, Any]], None], reason: str, tmp_path: Path
) -> None:
    write_official(tmp_path / "3DPW")
    change(tmp_path / "3DPW", edit)
    message = refusal(tmp_path / "3DPW")
    assert re.search(reason, message) and "courtyard_mini_00.pkl" in message


def test_a_sequence_that_would_run_a_command_runs_nothing(tmp_path: Path) -> None:
    class Canary:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "canary",))

    root = tmp_path / "3DPW"
    write_official(root)
    path = root / "sequenceFiles" / "validation" / "downtown_mini_00.pkl"
    content = pickle.loads(path.read_bytes(), encoding="latin1")
    path.write_bytes(pickle.dumps({**content, "texture_maps": Canary()}, 2))
    assert "downtown_mini_00.pkl" in (message := refusal(root)) and "not allowed" in message
    assert not (tmp_path / "canary").exists()
    pickle.loads(path.read_bytes())
    assert (tmp_path / "canary").exists()  # it would have


@pytest.mark.parametrize("content", [b"", b"{}", b"\x80\x02}q\x00.", b"\x80\x02]q\x00."])
def test_a_file_that_is_no_sequence_is_refused(content: bytes, tmp_path: Path) -> None:
    write_official(tmp_path / "3DPW")
    (tmp_path / "3DPW" / "sequenceFiles" / "validation" / "broken.pkl").write_bytes(content)
    assert "broken.pkl" in refusal(tmp_path / "3DPW")


def test_a_sequence_cut_short_is_refused(tmp_path: Path) -> None:
    write_official(tmp_path / "3DPW")
    path = tmp_path / "3DPW" / "sequenceFiles" / "validation" / "downtown_mini_00.pkl"
    whole = path.read_bytes()
    for share in (0.1, 0.5, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        assert "cut short" in refusal(tmp_path / "3DPW")
    shutil.rmtree(tmp_path / "records.partial")


def edited(path: Path, edit: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(edit(content) or content))


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


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        *(
            (put("REMOVE", "annotations", 2, key), rf"annotation \d+ lacks {key};")
            for key in ("image_id", "person_id", "bbox", "smpl_param", "joint_cam")
        ),
        *(
            (put("REMOVE", "annotations", 2, "smpl_param", key), rf"smpl_param lacks {key};")
            for key in ("pose", "shape", "trans", "gender")
        ),
        *(
            (put("REMOVE", "images", 1, key), rf"image 101 lacks {key};")
            for key in ("file_name", "sequence", "width", "height", "cam_param")
        ),
        (put("REMOVE", "images", 1, "cam_param", "focal"), "cam_param lacks focal;"),
        (put("REMOVE", "images"), "lacks images; it has annotations"),
        (put("REMOVE", "annotations", 0, "id"), r"annotations\[0\] lacks id"),
        (put(7, "annotations", 0, "image_id"), "image_id 7 is not among the images"),
        (put(101, "images", 0, "id"), "two images have the id 101"),
        (put([1, 2, 3], "annotations", 0, "bbox"), r"bbox must be 4 numbers \(4,\), got 3"),
        (put(["1"] * 4, "annotations", 0, "bbox"), "bbox must be 4 numbers .* got something else"),
        (put([[1], [1, 2]], "annotations", 0, "bbox"), "bbox must be 4 numbers .* got something else"),
        (put([1, 2, 3, 10**400], "annotations", 0, "bbox"), "bbox must be 4 numbers"),
        (put([float("nan")] * 3, "annotations", 0, "smpl_param", "trans"), "trans holds NaN"),
        (put([1e3] * 72, "annotations", 0, "smpl_param", "pose"), "expected axis-angle in radians"),
        (put("x", "annotations", 0, "smpl_param", "gender"), "gender must be one of"),
        (put("../../etc/image_1.jpg", "images", 0, "file_name"), "file name below the image folder"),
        *(
            (put(name, "images", 0, "sequence"), "sequence must be a file name below the image folder")
            for name in ("/etc", "..", "a/../../b", "..\\b", "C:\\b", "", "a\nb", 5)
        ),
        (put("photo.jpg", "images", 0, "file_name"), "must end with the frame's number"),
        (put([0, 0], "images", 0, "cam_param", "focal"), "no focal length"),
        (put("five", "annotations", 0, "person_id"), "person_id must be a whole number"),
        (put(5, "annotations"), "annotations must be a list"),
        (put(None, "annotations", 0), r"annotations\[0\] must be an object"),
    ],
)  # fmt: skip
def test_a_wrong_annotation_is_refused_by_name(edit: Callable[[Any], Any], reason: str, tmp_path: Path) -> None:
    write_pose2mesh(tmp_path / "PW3D")
    edited(tmp_path / "PW3D" / "data" / "3DPW_latest_validation.json", edit)
    assert re.search(reason, message := refusal(tmp_path / "PW3D")), message
    assert "3DPW_latest_validation.json" in message


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (put("REMOVE", 0, "annotation_id"), r"\[0\] lacks annotation_id"),
        (put("REMOVE", 3, "keypoints"), r"\[3\] lacks keypoints"),
        (put([[1, 2]] * 17, 3, "keypoints"), r"\[3\]: keypoints must be 51 numbers \(17, 3\), got 34"),
        (lambda content: [*content, content[0]], "comes twice"),
        (lambda content: [{**entry, "annotation_id": 5} for entry in content[:1]], "do not belong"),
        (lambda content: {"a": 1}, "holds a dict; expected a list of detections"),
    ],
)
def test_wrong_detections_are_refused_by_name(edit: Callable[[Any], Any], reason: str, tmp_path: Path) -> None:
    write_pose2mesh(tmp_path / "PW3D")
    edited(tmp_path / "PW3D" / "data" / "darkpose_3dpw_validationset_output.json", edit)
    assert re.search(reason, message := refusal(tmp_path / "PW3D")), message
    assert "darkpose_3dpw_validationset_output.json" in message


def test_joints_in_millimetres_are_refused(tmp_path: Path) -> None:
    write_pose2mesh(tmp_path / "PW3D")

    def to_mm(content: Any) -> None:
        for annotation in content["annotations"]:
            annotation["joint_cam"] = (np.array(annotation["joint_cam"]) * 1000).tolist()

    edited(tmp_path / "PW3D" / "data" / "3DPW_latest_validation.json", to_mm)
    assert re.search(r"joint_cam: the pelvis lies \d+ m from trans; .* metres", refusal(tmp_path / "PW3D"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "damaged, cut short or no json"),
        (b'{"images": [{"id": 1', "damaged, cut short or no json"),
        (b"\xff\xfe\x00", "damaged, cut short or no json"),
        (b"[" * 100_000, "nested too deeply|damaged"),
        (b'{"images": ' + b"1" * 5000 + b"}", "damaged, cut short or no json"),
        (b"[]", "holds a list; expected annotations"),
        (b'{"images": [], "annotations": []}', "no row for split"),
    ],
)
def test_a_damaged_annotation_file_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    write_pose2mesh(tmp_path / "PW3D")
    (tmp_path / "PW3D" / "data" / "3DPW_latest_validation.json").write_bytes(content)
    assert re.search(reason, message := refusal(tmp_path / "PW3D", detections="none")), message
