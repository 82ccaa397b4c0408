"""A miniature MPII in both its forms goes in; the same pixels must come out of the records."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from data.readers import mpii
from data.records import Records
from mesh.errors import InputError
from tests.data.miniatures.mpii import HIDDEN, MAT_NAME, MISSING, PersonTruth, write_json, write_mat


def convert(root: Path, out: Path, *, split: str = "train", **options: Any) -> Records:
    return mpii.convert(root, out, split=split, **options)


def change_json(root: Path, edit: Callable[[list[Any]], object]) -> None:
    """Edit annot/train.json in place."""
    path = root / "annot" / "train.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def change_mat(root: Path, edit: Callable[[Any], object]) -> None:
    """Edit RELEASE, as scipy reads it, in place."""
    release = loadmat(root / MAT_NAME)["RELEASE"]
    edit(release[0, 0])
    savemat(root / MAT_NAME, {"RELEASE": release})


def first_points(release: Any) -> Any:
    """The struct array of the first person's points."""
    return release["annolist"][0, 0]["annorect"][0, 0]["annopoints"][0, 0]["point"]


def assert_truth(records: Records, truths: list[PersonTruth]) -> None:
    assert len(records) == len(truths)
    for row, truth in enumerate(truths):
        known = truth.confidence > 0
        assert np.abs(records["joints2d"][row] - truth.joints)[known].max() < 0.01
        assert not records["joints2d"][row][~known].any()
        assert np.abs(records["box"][row] - truth.box).max() < 0.01
        assert records["image"][row].decode() == truth.image
        assert (records["person"][row], records["frame"][row]) == (truth.person, truth.frame)


def test_every_person_of_the_official_file_comes_back_as_it_was(tmp_path: Path) -> None:
    truths = write_mat(tmp_path)
    records = convert(tmp_path, tmp_path / "out")
    assert len(truths) == 6
    assert_truth(records, truths)
    assert np.array_equal(records["confidence"], np.stack([truth.confidence for truth in truths]))
    assert records.info.dropped == {"fewer than 1 annotated joints": 1}  # the marked head
    assert records.info.joints2d == "mpii16"


def test_a_compressed_file_gives_the_same(tmp_path: Path) -> None:
    truths = write_mat(tmp_path)
    size = (tmp_path / MAT_NAME).stat().st_size
    savemat(tmp_path / MAT_NAME, {"a": 1, "RELEASE": loadmat(tmp_path / MAT_NAME)["RELEASE"]}, do_compression=True)
    assert (tmp_path / MAT_NAME).stat().st_size < size / 2
    assert_truth(convert(tmp_path, tmp_path / "out"), truths)


def test_every_person_of_the_common_form_comes_back_as_it_was(tmp_path: Path) -> None:
    truths = write_json(tmp_path)
    records = convert(tmp_path, tmp_path / "out")
    assert_truth(records, truths)
    known = np.stack([truth.confidence > 0 for truth in truths])
    assert np.array_equal(records["confidence"], known)


def test_the_other_parts_of_the_common_form_are_read_by_name(tmp_path: Path) -> None:
    truths = write_json(tmp_path, split="valid", seed=1)
    write_json(tmp_path, split="train", seed=2)
    assert_truth(convert(tmp_path, tmp_path / "out", split="valid"), truths)


def test_the_archive_may_lie_as_it_unpacks(tmp_path: Path) -> None:
    write_mat(tmp_path / "root" / "mpii_human_pose_v1_u12_2")
    assert len(convert(tmp_path / "root", tmp_path / "out")) == 6


def test_hidden_joints_count_half_and_missing_ones_not_at_all(tmp_path: Path) -> None:
    truths = write_mat(tmp_path)
    records = convert(tmp_path, tmp_path / "out")
    odd = [row for row, truth in enumerate(truths) if truth.person % 2]
    assert odd and (records["confidence"][odd, HIDDEN] == 0.5).all()
    assert not records["confidence"][odd, MISSING].any()


def test_people_who_stand_apart_can_be_chosen(tmp_path: Path) -> None:
    truths = write_mat(tmp_path)
    records = convert(tmp_path, tmp_path / "out", single_person=True)
    assert_truth(records, [truth for truth in truths if truth.stands_apart])
    assert records.info.dropped["does not stand apart"] == 2


def test_the_fewest_joints_can_be_chosen(tmp_path: Path) -> None:
    truths = write_mat(tmp_path)
    records = convert(tmp_path, tmp_path / "out", min_joints=16)
    assert_truth(records, [truth for truth in truths if truth.person % 2 == 0])


def test_two_forms_at_once_need_a_choice(tmp_path: Path) -> None:
    in_mat, in_json = write_mat(tmp_path), write_json(tmp_path)
    with pytest.raises(InputError, match="choose form mat or json"):
        convert(tmp_path, tmp_path / "out")
    assert len(convert(tmp_path, tmp_path / "mat", form="mat")) == len(in_mat)
    assert len(convert(tmp_path, tmp_path / "json", form="json")) == len(in_json)


def test_implausible_people_of_the_common_form_are_dropped_by_the_named_rule(tmp_path: Path) -> None:
    write_json(tmp_path)

    def spoil(content: list[Any]) -> None:
        content[0]["scale"] = -1
        content[1]["joints"][3] = [5000, 5000]

    change_json(tmp_path, spoil)
    records = convert(tmp_path, tmp_path / "out")
    assert len(records) == 1
    assert records.info.dropped == {"joint further than 3 box sides from the centre": 1, "no centre or scale": 1}


@pytest.mark.parametrize("number", [3, 16, -1, 2.5])
def test_a_point_marked_twice_or_with_an_unknown_number_drops_the_person(tmp_path: Path, number: float) -> None:
    truths = write_mat(tmp_path)

    def spoil(release: Any) -> None:
        points = first_points(release)
        spare = next(i for i in range(points.size) if points[0, i]["id"] != 3)
        points[0, spare]["id"] = np.array([[number]])

    change_mat(tmp_path, spoil)
    records = convert(tmp_path, tmp_path / "out")
    assert_truth(records, truths[1:])
    assert records.info.dropped["joint with an unknown number, or marked twice"] == 1


def test_a_person_without_a_place_is_dropped(tmp_path: Path) -> None:
    truths = write_mat(tmp_path)
    empty = np.zeros((0, 0))
    change_mat(tmp_path, lambda r: r["annolist"][0, 0]["annorect"][0, 0].__setitem__("objpos", empty))
    records = convert(tmp_path, tmp_path / "out")
    assert_truth(records, truths[1:])
    assert records.info.dropped["no centre or scale"] == 1


BROKEN_JSON: dict[str, tuple[Callable[[list[Any]], object], str]] = {
    "no scale": (lambda c: c[1].pop("scale"), "entry 1 lacks scale"),
    "17 joints": (lambda c: c[1]["joints"].append([0, 0]), "must be 32 numbers"),
    "flags": (lambda c: c[1].update(joints_vis=[2] * 16), "joints_vis must be 0 or 1"),
    "path": (lambda c: c[1].update(image="../secret.jpg"), "below the image folder"),
    "texts": (lambda c: c[1].update(scale="1.5"), "must be 1 numbers"),
    "empty": (lambda c: c.clear(), "expected MPII's people as a list"),
}


@pytest.mark.parametrize("case", BROKEN_JSON)
def test_a_wrong_json_is_one_line_that_names_it(tmp_path: Path, case: str) -> None:
    edit, message = BROKEN_JSON[case]
    write_json(tmp_path)
    change_json(tmp_path, edit)
    with pytest.raises(InputError, match=message) as error:
        convert(tmp_path, tmp_path / "out")
    assert "\n" not in str(error.value) and "train.json" in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == {"annot"}  # nothing half-written


def drop_field(release: Any, name: str) -> np.ndarray:
    """RELEASE without a field."""
    kept = [n for n in release.dtype.names if n != name]
    array = np.zeros((1, 1), [(n, object) for n in kept])
    for n in kept:
        array[0, 0][n] = release[n]
    return array


@pytest.mark.parametrize("name", ["annolist", "img_train", "single_person"])
def test_a_mat_without_a_field_names_it(tmp_path: Path, name: str) -> None:
    write_mat(tmp_path)
    savemat(tmp_path / MAT_NAME, {"RELEASE": drop_field(loadmat(tmp_path / MAT_NAME)["RELEASE"][0, 0], name)})
    with pytest.raises(InputError, match=f"RELEASE lacks {name}"):
        convert(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("content", [{"RELEASE": 5.0}, {"other": 1}, {"RELEASE": np.array(["x", "y"], object)}])
def test_a_mat_of_something_else_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    savemat(tmp_path / MAT_NAME, content)
    with pytest.raises(InputError, match="RELEASE"):
        convert(tmp_path, tmp_path / "out")


def test_a_mat_with_too_few_marks_for_its_pictures_is_refused(tmp_path: Path) -> None:
    write_mat(tmp_path)
    change_mat(tmp_path, lambda r: r.__setitem__("img_train", np.array([[1, 0]])))
    with pytest.raises(InputError, match="as long as each other"):
        convert(tmp_path, tmp_path / "out")


def assert_refused(root: Path, content: bytes) -> None:
    (root / MAT_NAME).write_bytes(content)
    with pytest.raises(InputError) as error:
        convert(root, root / "out")
    assert "\n" not in str(error.value) and MAT_NAME in str(error.value)
    assert {path.name for path in root.iterdir()} == {MAT_NAME}  # nothing half-written


@pytest.mark.parametrize("packed", [False, True])
def test_a_mat_cut_short_or_of_other_bytes_is_one_line_that_names_it(tmp_path: Path, packed: bool) -> None:
    write_mat(tmp_path)
    savemat(tmp_path / MAT_NAME, {"RELEASE": loadmat(tmp_path / MAT_NAME)["RELEASE"]}, do_compression=packed)
    whole = (tmp_path / MAT_NAME).read_bytes()
    for cut in (0, 3, 100, 128, 131, 200, len(whole) // 2, len(whole) - 9):
        assert_refused(tmp_path, whole[:cut])
    assert_refused(tmp_path, np.random.default_rng(0).bytes(3000))
    assert_refused(tmp_path, b"\x80\x02cos\nsystem\n.")
    assert_refused(tmp_path, whole[:124] + b"\x00\x02IM" + whole[128:])  # MATLAB 7.3, which is HDF5


def test_no_damage_to_a_mat_ends_in_anything_but_records_or_one_line(tmp_path: Path) -> None:
    write_mat(tmp_path)
    whole, rng = (tmp_path / MAT_NAME).read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[rng.integers(124, len(whole))] = rng.integers(256)
        (tmp_path / MAT_NAME).write_bytes(damaged)
        try:
            list(mpii._mat_people(tmp_path / MAT_NAME))
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert 10 < refused < 60


@pytest.mark.parametrize("content", [b"", b'[{"image": "1.jpg"', b"{}", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_json_is_one_line_that_names_it(tmp_path: Path, content: bytes) -> None:
    write_json(tmp_path)
    (tmp_path / "annot" / "train.json").write_bytes(content)
    with pytest.raises(InputError, match=r"train\.json") as error:
        convert(tmp_path, tmp_path / "out")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "are not published"),
        ({"split": "all"}, "splits train, valid, trainval"),
        ({"form": "mat"}, "no such file; expected the official annotations"),
        ({"form": "xml"}, "form must be one of auto, mat, json"),
        ({"single_person": True}, "only said by the form mat"),
        ({"split": "valid"}, r"valid\.json: no such file"),
        ({"max_reach": 0.0}, "max_reach must be positive"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write_json(tmp_path)
    with pytest.raises(InputError, match=message):
        convert(tmp_path, tmp_path / "out", **options)


def test_an_empty_folder_names_both_forms(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"train\.json: no such file; expected it, or {MAT_NAME}"):
        convert(tmp_path, tmp_path / "out")


def test_the_official_file_has_no_validation_part(tmp_path: Path) -> None:
    write_mat(tmp_path)
    with pytest.raises(InputError, match="for the split train alone"):
        convert(tmp_path, tmp_path / "out", split="valid")
