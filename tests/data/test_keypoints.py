"""Keypoint files of every format, whole and broken; each test writes the file it reads."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.keypoints import KeypointFile, read_keypoints
from data.keypoints_json import OPENPOSE18
from mesh.errors import InputError
from mesh.joints import COCO17, COCO19, HALPE26, HUMAN36M17, MPII16, OPENPOSE25, SMPL24


def people(count: int, num_joints: int, seed: int = 0) -> np.ndarray:
    """Random x, y, confidence, (count, num_joints, 3)."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.uniform(1, 600, (count, num_joints, 2)), rng.random((count, num_joints, 1))], axis=-1)


def row(person: np.ndarray) -> list[float]:
    return person.ravel().tolist()


def read(folder: Path, content: Any, name: str = "file.json", **options: Any) -> KeypointFile:
    """Write a JSON file and read it."""
    (folder / name).write_text(json.dumps(content))
    return read_keypoints(folder / name, **options)


def assert_holds(entry: Any, expected: np.ndarray) -> None:
    np.testing.assert_allclose(entry.keypoints.positions_px, expected[..., :2], rtol=1e-6)
    np.testing.assert_allclose(entry.keypoints.confidence, expected[..., 2], rtol=1e-6)


# COCO


def test_coco_results_are_grouped_by_image_in_the_order_of_the_file(tmp_path: Path) -> None:
    table = people(3, 17)
    order = [139, 7, 139]
    results = [
        {"image_id": i, "category_id": 1, "keypoints": row(p), "score": 0.9} for i, p in zip(order, table, strict=True)
    ]
    file = read(tmp_path, results)
    assert [entry.image_id for entry in file.images] == [139, 7]
    assert_holds(file.images[0], table[[0, 2]])
    assert_holds(file.images[1], table[[1]])
    assert not file.is_array
    first = file.images[0]
    assert (first.image, first.person_ids, first.keypoints.joint_set) == (None, None, COCO17)


def coco_annotations(table: np.ndarray, **category: Any) -> dict[str, Any]:
    """A COCO annotation file with two pictures; the people are all on the second."""
    return {
        "images": [
            {"id": 1, "file_name": "a.jpg", "width": 640, "height": 480},
            {"id": 2, "file_name": "b.jpg", "width": 320, "height": 200},
        ],
        "annotations": [
            {"id": 50 + k, "image_id": 2, "category_id": 1, "keypoints": row(person)} for k, person in enumerate(table)
        ],
        "categories": [{"id": 1, "name": "person", **category}],
    }


def with_visibility(table: np.ndarray) -> np.ndarray:
    table = table.copy()
    table[..., 2] = np.arange(table.shape[1]) % 3
    return table


def test_coco_annotations_keep_names_sizes_ids_and_pictures_without_people(tmp_path: Path) -> None:
    table = with_visibility(people(2, 17))
    file = read(tmp_path, coco_annotations(table))
    assert [entry.image for entry in file.images] == ["a.jpg", "b.jpg"]
    assert [len(entry.keypoints) for entry in file.images] == [0, 2]
    assert [entry.keypoints.image_size for entry in file.images] == [(640, 480), (320, 200)]
    assert file.images[1].person_ids == (50, 51)
    np.testing.assert_allclose(file.images[1].keypoints.positions_px, table[..., :2], rtol=1e-6)


def test_visibility_flags_0_1_2_become_confidence_0_half_1(tmp_path: Path) -> None:
    file = read(tmp_path, coco_annotations(with_visibility(people(1, 17))))
    assert file.images[1].keypoints.confidence[0, :3].tolist() == [0, 0.5, 1]


def test_a_visibility_that_is_no_flag_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"visibility .* must be 0, 1 or 2, got 0\.637"):
        table = with_visibility(people(1, 17))
        table[0, 4, 2] = 0.637
        read(tmp_path, coco_annotations(table))


def test_joint_names_of_the_category_put_the_joints_in_order(tmp_path: Path) -> None:
    table = with_visibility(people(1, 26))
    shuffled = list(np.random.default_rng(1).permutation(26))
    names = [HALPE26.names[i].replace("_", " ").title() for i in shuffled]
    keypoints = read(tmp_path, coco_annotations(table[:, shuffled], keypoints=names)).images[1].keypoints
    assert keypoints.joint_set == HALPE26
    np.testing.assert_allclose(keypoints.positions_px, table[..., :2], rtol=1e-6)


def test_names_of_no_known_set_are_kept_and_convert_by_name(tmp_path: Path) -> None:
    names = ["left_shoulder", "right_shoulder", "left_hip", "right_hip", "tail"]
    table = with_visibility(people(1, 5))
    keypoints = read(tmp_path, coco_annotations(table, keypoints=names)).images[1].keypoints
    assert keypoints.joint_set.names == tuple(names)
    converted = keypoints.to(COCO19)
    np.testing.assert_allclose(converted.positions_px[0, COCO19.index("left_hip")], table[0, 2, :2], rtol=1e-6)
    assert converted.confidence[0, COCO19.index("nose")] == 0


def test_annotations_of_things_without_joints_are_left_out(tmp_path: Path) -> None:
    content = coco_annotations(with_visibility(people(1, 17)))
    content["annotations"].insert(0, {"id": 9, "image_id": 1, "category_id": 3, "bbox": [0, 0, 5, 5]})
    assert [len(entry.keypoints) for entry in read(tmp_path, content).images] == [0, 1]


def test_only_the_categories_in_use_name_the_joints_and_they_must_agree(tmp_path: Path) -> None:
    content = coco_annotations(with_visibility(people(2, 17)), keypoints=list(COCO17.names))
    content["categories"].append({"id": 2, "name": "horse", "keypoints": ["muzzle"]})
    assert read(tmp_path, content).images[1].keypoints.joint_set == COCO17
    content["annotations"][1]["category_id"] = 2
    with pytest.raises(InputError, match="categories in use name different joints"):
        read(tmp_path, content)


def test_a_picture_without_a_sensible_size_has_none(tmp_path: Path) -> None:
    content = coco_annotations(with_visibility(people(1, 17)))
    content["images"][0]["width"] = 0
    del content["images"][1]["height"]
    assert [entry.keypoints.image_size for entry in read(tmp_path, content).images] == [None, None]


def test_a_person_without_any_labelled_joint_stays_with_confidence_0(tmp_path: Path) -> None:
    file = read(tmp_path, coco_annotations(np.zeros((1, 17, 3))))
    assert file.images[1].keypoints.confidence.tolist() == [[0] * 17]


# OpenPose and AlphaPose


def openpose(table: np.ndarray) -> dict[str, Any]:
    return {
        "version": 1.3,
        "people": [{"person_id": [-1], "pose_keypoints_2d": row(p), "hand_left_keypoints_2d": []} for p in table],
    }


def test_an_openpose_file_is_one_picture_named_by_the_file(tmp_path: Path) -> None:
    table = people(2, 25)
    (entry,) = read(tmp_path, openpose(table), "street_keypoints.json").images
    assert (entry.image, entry.person_ids, entry.keypoints.joint_set) == ("street", None, OPENPOSE25)
    assert_holds(entry, table)


def test_a_folder_of_openpose_files_is_read_in_the_order_of_names_with_empty_frames(tmp_path: Path) -> None:
    table = people(3, 25)
    for frame, chosen in ((2, [2]), (0, [0, 1]), (1, [])):
        (tmp_path / f"clip_{frame:012d}_keypoints.json").write_text(json.dumps(openpose(table[chosen])))
    file = read_keypoints(tmp_path)
    assert [entry.image for entry in file.images] == [f"clip_{frame:012d}" for frame in range(3)]
    assert [len(entry.keypoints) for entry in file.images] == [2, 0, 1]
    assert_holds(file.images[2], table[[2]])


@pytest.mark.parametrize(("wanted", "joints"), [(None, OPENPOSE25), (COCO17, COCO17)])
def test_a_frame_without_people_is_a_picture_with_nobody(wanted: Any, joints: Any, tmp_path: Path) -> None:
    (alone,) = read(tmp_path, {"people": []}, "a_keypoints.json", joint_set=wanted).images
    (in_folder,) = read_keypoints(tmp_path, joint_set=wanted).images
    for entry in (alone, in_folder):
        assert (entry.image, len(entry.keypoints), entry.keypoints.joint_set) == ("a", 0, joints)


def test_the_18_joints_of_older_openpose_models_are_known_by_name(tmp_path: Path) -> None:
    # order of the model's documentation: right arm, left arm, right leg, left leg, eyes, ears
    assert OPENPOSE18.names[:5] == ("nose", "neck", "right_shoulder", "right_elbow", "right_wrist")
    assert OPENPOSE18.names[7:12] == ("left_wrist", "right_hip", "right_knee", "right_ankle", "left_hip")
    assert OPENPOSE18.names[13:] == ("left_ankle", "right_eye", "left_eye", "right_ear", "left_ear")
    linked = {frozenset(OPENPOSE18.names[i].split("_")[-1] for i in edge) for edge in OPENPOSE18.edges}
    assert {frozenset(pair) for pair in (("hip", "knee"), ("eye", "ear"), ("elbow", "wrist"))} <= linked
    assert all(
        OPENPOSE18.names[a].split("_")[0] == OPENPOSE18.names[b].split("_")[0]
        for a, b in OPENPOSE18.edges
        if not {"nose", "neck"} & {OPENPOSE18.names[a], OPENPOSE18.names[b]}
    )
    table = people(1, 18)
    assert_holds(read(tmp_path, openpose(table)).images[0], table)


@pytest.mark.parametrize("joints", [COCO17, HALPE26])
def test_alphapose_results_are_named_by_their_image_and_tracked_by_idx(joints: Any, tmp_path: Path) -> None:
    table = people(2, len(joints))
    results = [
        {"image_id": f"{k}.jpg", "category_id": 1, "keypoints": row(p), "score": 2.7, "box": [0, 0, 9, 9], "idx": idx}
        for k, (p, idx) in enumerate(zip(table, [[4.0], 5], strict=True))
    ]
    file = read(tmp_path, results)
    assert [entry.image for entry in file.images] == ["0.jpg", "1.jpg"]
    assert [entry.person_ids for entry in file.images] == [(4,), (5,)]
    assert file.images[0].keypoints.joint_set == joints
    assert_holds(file.images[1], table[[1]])


def test_alphapose_in_the_formats_of_openpose_and_cmu_is_read_the_same(tmp_path: Path) -> None:
    table = people(2, 18)
    as_open = {"x.jpg": openpose(table)}
    as_cmu = {"x.jpg": {"version": "AlphaPose v0.3", "bodies": [{"joints": row(p)} for p in table]}}
    for content in (as_open, as_cmu):
        (entry,) = read(tmp_path, content).images
        assert (entry.image, entry.keypoints.joint_set) == ("x.jpg", OPENPOSE18)
        assert_holds(entry, table)


def test_confidence_beyond_0_and_1_is_clipped(tmp_path: Path) -> None:
    table = people(1, 17)
    table[0, :2, 2] = 1.07, -0.02
    (entry,) = read(tmp_path, [{"image_id": "a.jpg", "keypoints": row(table[0])}]).images
    assert entry.keypoints.confidence[0, :2].tolist() == [1, 0]


def test_confidence_above_coco_s_flag_for_visible_is_refused(tmp_path: Path) -> None:
    table = people(1, 25)
    for top, message in ((2.0, None), (87.0, "confidence must lie between 0 and 1, got 87; divide per cent by 100")):
        table[0, 3, 2] = top
        np.save(tmp_path / "poses.npy", table)
        (tmp_path / "frame.json").write_text(json.dumps(openpose(table)))
        for name in ("poses.npy", "frame.json"):
            if message is None:
                assert read_keypoints(tmp_path / name).images[0].keypoints.confidence[0, 3] == 1
            else:
                with pytest.raises(InputError, match=rf"{name}: .*{message}"):
                    read_keypoints(tmp_path / name)


def test_a_track_id_comes_before_the_id_of_the_annotation(tmp_path: Path) -> None:
    content = coco_annotations(with_visibility(people(1, 17)))
    content["annotations"][0]["track_id"] = 3
    assert read(tmp_path, content).images[1].person_ids == (3,)


# Arrays


def save(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "poses.npz", **arrays)
    return folder / "poses.npz"


def test_an_npy_with_confidence_is_one_entry_of_poses(tmp_path: Path) -> None:
    table = people(5, 25)
    np.save(tmp_path / "poses.npy", table)
    file = read_keypoints(tmp_path / "poses.npy")
    (entry,) = file.images
    assert file.is_array
    assert entry.keypoints.joint_set == OPENPOSE25
    assert entry.keypoints.positions_px.dtype == np.float32
    assert_holds(entry, table)


def test_an_array_without_confidence_is_sure_of_all_joints_but_those_at_zero(tmp_path: Path) -> None:
    table = people(2, 24)[..., :2]
    table[1, 3] = 0
    table[1, 4, 0] = 0
    (entry,) = read_keypoints(save(tmp_path, keypoints=table)).images
    expected = np.ones((2, 24))
    expected[1, 3] = 0
    assert entry.keypoints.joint_set == SMPL24
    np.testing.assert_array_equal(entry.keypoints.confidence, expected)


def test_an_npz_gives_confidence_names_and_picture_size(tmp_path: Path) -> None:
    table = people(4, 17)
    shuffled = np.random.default_rng(2).permutation(17)
    path = save(
        tmp_path,
        keypoints=table[:, shuffled, :2],
        confidence=table[:, shuffled, 2],
        names=np.array(HUMAN36M17.names)[shuffled],
        image_size=np.array([640, 480]),
    )
    (entry,) = read_keypoints(path).images
    assert (entry.keypoints.joint_set, entry.keypoints.image_size) == (HUMAN36M17, (640, 480))
    assert_holds(entry, table)


def test_the_content_and_not_the_name_tells_the_format(tmp_path: Path) -> None:
    save(tmp_path, keypoints=people(1, 25)).rename(tmp_path / "poses.json")
    assert read_keypoints(tmp_path / "poses.json").is_array
    assert not read(tmp_path, openpose(people(1, 25)), "poses.npy").is_array


def test_ten_thousand_poses_and_people_lose_none(tmp_path: Path) -> None:
    table = people(10_000, 17).astype(np.float32)
    file = read_keypoints(save(tmp_path, keypoints=table), joint_set=COCO17)
    assert_holds(file.images[0], table)


# Which joint set


def test_the_wanted_joint_set_decides_between_sets_of_one_size(tmp_path: Path) -> None:
    path = save(tmp_path, keypoints=people(1, 17))
    with pytest.raises(InputError, match=r"poses\.npz: 17 joints can be coco17 or human36m17"):
        read_keypoints(path)
    for wanted in (COCO17, HUMAN36M17):
        assert read_keypoints(path, joint_set=wanted).images[0].keypoints.joint_set == wanted


def test_a_wanted_joint_set_of_another_size_is_refused_with_both_counts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected the 16 joints of mpii16, got 17"):
        read(tmp_path, [{"image_id": 1, "keypoints": row(people(1, 17))}], joint_set=MPII16)


def test_a_wanted_joint_set_that_the_names_of_the_file_deny_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, keypoints=people(1, 17), names=np.array(COCO17.names))
    with pytest.raises(InputError, match="expected human36m17, but the file names the joints of coco17"):
        read_keypoints(path, joint_set=HUMAN36M17)


# Bad input: one line each, with the path and the reason

ROW = row(people(1, 17)[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "holds no people"),
        ({}, "expected COCO results .* got an object with nothing"),
        ({"tracks": [1]}, "got an object with tracks"),
        (3, "got a int"),
        ([1, 2], "entry 0 must be an object"),
        ([{"image_id": 1}], "entry 0 lacks keypoints; it has image_id"),
        ([{"image_id": 1.5, "keypoints": ROW}], "whole number or a file name, got 1.5"),
        ([{"image_id": True, "keypoints": ROW}], "whole number or a file name, got True"),
        ([{"image_id": 1, "keypoints": ROW[:-1]}], "image 1: expected x, y, confidence of each joint, got 50 numbers"),
        ([{"image_id": 1, "keypoints": []}], "got 0 numbers"),
        ([{"image_id": 1, "keypoints": ROW[:48]}, {"image_id": 2, "keypoints": ROW}], "image 2: expected 16 .* got 17"),
        ([{"image_id": 1, "keypoints": ROW[:21]}], "no joint set has 7 joints"),
        ([{"image_id": 1, "keypoints": "abc"}], "must be a list of numbers, got str"),
        ([{"image_id": 1, "keypoints": ["a", *ROW[1:]]}], "plain numbers"),
        ([{"image_id": 1, "keypoints": [ROW[:3]] * 51}], "plain numbers"),
        ([{"image_id": 1, "keypoints": [10**400, *ROW[1:]]}], "plain numbers"),
        ([{"image_id": "a.jpg", "keypoints": [float("nan"), *ROW[1:]]}], "image a.jpg: .*person 0 .*NaN.* at nose"),
        ([{"image_id": 1, "keypoints": [1e300, *ROW[1:]]}], "image 1: .*infinity at nose"),
        ({"people": {}}, "people must be a list, got dict"),
        ({"people": [{"face": []}]}, r"people\[0\] lacks pose_keypoints_2d; it has face"),
        ({"annotations": []}, "images must be a list"),
        ({"images": [], "annotations": [{"image_id": 4, "keypoints": ROW}]}, "image_id 4 is not among the images"),
        ({"images": [{"id": 1}], "annotations": [{"image_id": 1, "bbox": []}]}, "no annotation has keypoints"),
        ({"images": [{"id": []}], "annotations": []}, "whole number or a file name"),
    ],
)
def test_bad_json_is_one_line(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, content)
    assert str(caught.value).startswith(f"{tmp_path / 'file.json'}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not whole JSON"),
        (b"hello", "not whole JSON"),
        (json.dumps([{"image_id": 1, "keypoints": ROW}]).encode()[:200], "not whole JSON"),
        (b"\x89PNG\r\n\x1a\n\0\0", "neither JSON nor .npy nor .npz"),
        (b"\x80\x04\x95pickle", "neither JSON nor .npy nor .npz"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_file_that_is_no_json_is_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_keypoints(tmp_path / "file.json")


@pytest.mark.parametrize("name", ["x.avif", "jp2.jp2", "noext"])
@pytest.mark.parametrize("content", [b"\0\0\0\x0cjP  \r\n", b"\xff\xd8\xff\xe0", b"hello"])
def test_a_file_of_an_unknown_suffix_is_told_which_are_known(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"no keypoints \(\.json, .*\.npz\), and no photo \(\.jpg, .*: convert it$"):
        read_keypoints(tmp_path / name)


def test_a_missing_file_and_an_empty_folder_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no keypoint file .*nothing\.json"):
        read_keypoints(tmp_path / "nothing.json")
    with pytest.raises(InputError, match=r"expected a folder of OpenPose \.json files"):
        read_keypoints(tmp_path)


def test_a_strange_file_in_an_openpose_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(openpose(people(1, 25))))
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(InputError, match=r"b\.json: a file of an OpenPose folder must be an object with people"):
        read_keypoints(tmp_path)


POSES = people(2, 25)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"poses": POSES}, r"needs an array `keypoints` .*it has poses"),
        ({"keypoints": POSES[0]}, r"must have shape \(N, J, 2 or 3\), got \(25, 3\)"),
        ({"keypoints": np.zeros((2, 25, 4))}, "got .2, 25, 4."),
        ({"keypoints": POSES[:0]}, "no poses"),
        ({"keypoints": POSES.astype(str)}, "must be numbers, got <U"),
        ({"keypoints": POSES.astype(complex)}, "must be numbers, got complex128"),
        ({"keypoints": POSES.astype(object)}, "without pickles"),
        ({"keypoints": np.where(POSES > 599, np.nan, POSES) * np.nan}, "person 0 hold NaN .* at nose"),
        ({"keypoints": POSES * 1e300}, "infinity at nose"),
        ({"keypoints": POSES, "confidence": POSES[..., 2]}, "confidence is given twice"),
        ({"keypoints": POSES[..., :2], "confidence": POSES[0]}, r"confidence must have shape \(2, 25\), got \(25, 3\)"),
        ({"keypoints": POSES, "names": np.array(["a"])}, "25 joints need 25 different names"),
        ({"keypoints": POSES, "names": np.array(["nose"] * 25)}, "25 joints need 25 different names"),
        ({"keypoints": POSES, "names": np.arange(25)}, "list of joint names, got int"),
        ({"keypoints": POSES, "image_size": np.array([640, 480, 3])}, "width and height"),
        ({"keypoints": POSES[:, :9]}, "no joint set has 9 joints"),
    ],
)
def test_bad_arrays_are_one_line(arrays: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_keypoints(save(tmp_path, **arrays))
    assert str(caught.value).startswith(f"{tmp_path / 'poses.npz'}: ")
    assert "\n" not in str(caught.value)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (Path.touch, (tmp_path / "sprung",))  # type: ignore[return-value]

    for name, saved in (("a.npy", np.save), ("a.npz", np.savez)):
        saved(tmp_path / name, np.array([Trap()], dtype=object))
        with pytest.raises(InputError):
            read_keypoints(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("kind", ["npy", "npz", "compressed"])
def test_an_array_file_cut_anywhere_is_one_line(kind: str, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    if kind == "npy":
        np.save(buffer, POSES)
    else:
        (np.savez if kind == "npz" else np.savez_compressed)(buffer, keypoints=POSES)
    whole = buffer.getvalue()
    for length in (9, 40, 100, 131, 200, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"not a whole \.npz or \.npy file"):
            read_keypoints(tmp_path / "cut")


@pytest.mark.parametrize(
    ("whole", "damaged"),
    [
        (b"'shape': (2, 25, 3)", b"'shape': (2, 25, 3("),
        (b"'shape': (2, 25, 3)", b"'shape':(99999999,9"),
        (b"'descr': '<f8'", b"'descr': '<zz'"),
        (b"keypoints.npy", b"keypoints.nqy"),
        (POSES.tobytes()[:8], b"damaged!"),
    ],
)
def test_a_damaged_npz_is_one_line(whole: bytes, damaged: bytes, tmp_path: Path) -> None:
    path = save(tmp_path, keypoints=POSES)
    path.write_bytes(path.read_bytes().replace(whole, damaged, 1))
    with pytest.raises(InputError, match=r"not a whole \.npz or \.npy file"):
        read_keypoints(path)


def test_a_zip_of_other_things_is_one_line(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(InputError, match=r"it has readme\.txt"):
        read_keypoints(tmp_path / "a.zip")
