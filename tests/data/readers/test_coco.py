"""A miniature COCO with known truth goes in; the same truth must come out of the records."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.readers import annotations, coco
from data.records import Records, open_records
from mesh.errors import InputError
from mesh.joints import COCO17
from tests.data.miniatures.coco import (
    BODY_FILE,
    FIRST_ID,
    FIRST_IMAGE,
    HIDDEN,
    IMAGE_SIZE,
    UNLABELLED,
    PersonTruth,
    free_body,
    lbs,
    pinhole,
    write_coco,
)

KEYPOINTS = "annotations/person_keypoints_train2017.json"
SMPL = "annotations/coco_smplify_train.json"


def convert(root: Path, out: Path, *, split: str = "train", **options: Any) -> Records:
    if split == "train" and options.get("mesh") != "none":
        options = {"body": BODY_FILE} | options
    return coco.convert(root, out, split=split, **options)


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit a JSON file in place."""
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def person(content: dict[str, Any], annotation_id: int = FIRST_ID) -> dict[str, Any]:
    return next(a for a in content["annotations"] if a["id"] == annotation_id)


def assert_meshes(records: Records, truths: list[PersonTruth]) -> None:
    regressor = free_body().regressor(COCO17)
    for row, truth in enumerate(truths):
        vertices = lbs(records["pose"][row], records["shape"][row]) + records["trans"][row]
        shift = truth.vertices.mean(0) - vertices.mean(0) if records["trans"][row][2] == coco.WEAK_CAMERA_M else 0
        assert np.abs(vertices + shift - truth.vertices).max() < 1e-4
        camera = records["intrinsics"][row]
        assert np.abs(pinhole(regressor @ vertices, camera[:2], camera[2:]) - truth.joints).max() < 0.1


@pytest.mark.parametrize("camera", ["weak", "pinhole"])
def test_every_person_comes_back_as_it_was(tmp_path: Path, camera: Any) -> None:
    truths = write_coco(tmp_path, camera=camera)
    records = convert(tmp_path, tmp_path / "out")
    assert len(records) == len(truths) == 6
    assert_meshes(records, truths)
    for row, truth in enumerate(truths):
        known = truth.confidence > 0
        assert np.abs(records["joints2d"][row] - truth.joints)[known].max() < 1e-3
        assert records["confidence"][row].tolist() == truth.confidence.tolist()
        assert (records["person"][row], records["frame"][row]) == (truth.annotation_id, truth.image_id)
        assert records["image"][row].decode() == truth.image
    assert records["mesh_valid"].all() and not records["gender"].any()
    assert (records["image_size"] == IMAGE_SIZE).all()
    assert records.info.joints2d == "coco17"


def test_hidden_joints_count_half_and_unlabelled_ones_not_at_all(tmp_path: Path) -> None:
    truths = write_coco(tmp_path)
    records = convert(tmp_path, tmp_path / "out", mesh="none")
    odd = [row for row, truth in enumerate(truths) if truth.annotation_id % 2]
    assert odd and (records["confidence"][odd, HIDDEN] == 0.5).all()
    assert not records["confidence"][odd, UNLABELLED].any() and not records["joints2d"][odd, UNLABELLED].any()


def test_crowds_and_people_without_joints_are_dropped_and_counted(tmp_path: Path) -> None:
    write_coco(tmp_path)
    dropped = convert(tmp_path, tmp_path / "out").info.dropped
    assert dropped == {"crowd": 1, "fewer than 1 labelled joints": 1}


def test_val_has_no_parameters_and_needs_none(tmp_path: Path) -> None:
    truths = write_coco(tmp_path, split="val")
    records = convert(tmp_path, tmp_path / "out", split="val")
    assert len(records) == len(truths) and "pose" not in records
    assert records["image"][0].startswith(b"val2017/")


def worsen_fit(content: dict[str, Any], px: float) -> None:
    """Shift the first person's picture by so many pixels of the 64 px box."""
    fit = content[str(FIRST_ID)]
    fit["cam_param"]["t"][0][0] += px


def box_side(truth: PersonTruth) -> float:
    """The original's box: tight, a pixel less, square."""
    return float(np.ptp(truth.joints, axis=0).max() - 1)


@pytest.mark.parametrize(("error", "stays"), [(2.99, True), (3.01, False)])
def test_the_fit_is_measured_in_a_box_of_64_pixels(tmp_path: Path, error: float, stays: bool) -> None:
    truths = write_coco(tmp_path)
    change(tmp_path / SMPL, lambda c: worsen_fit(c, error * box_side(truths[0]) / 64))
    records = convert(tmp_path, tmp_path / "out")
    assert (FIRST_ID in records["person"]) == stays
    assert records.info.dropped.get("mesh further than 3 px from the labelled joints", 0) == (not stays)


def test_a_bad_fit_can_be_trusted_or_kept_without_its_mesh(tmp_path: Path) -> None:
    write_coco(tmp_path)
    change(tmp_path / SMPL, lambda c: worsen_fit(c, 100))
    trusting = coco.convert(tmp_path, tmp_path / "trusting", split="train", max_fit_px=float("inf"))
    assert len(trusting) == 6 and trusting["mesh_valid"].all()
    keeping = convert(tmp_path, tmp_path / "keeping", mesh="optional")
    assert keeping["mesh_valid"].tolist() == [False, *[True] * 5]
    assert not keeping["pose"][0].any() and keeping["joints2d"][0].any()


def test_a_person_without_parameters_is_dropped_unless_the_mesh_is_optional(tmp_path: Path) -> None:
    write_coco(tmp_path)
    change(tmp_path / SMPL, lambda c: c.pop(str(FIRST_ID)))
    records = convert(tmp_path, tmp_path / "needed")
    assert (len(records), records.info.dropped["no SMPL parameters"]) == (5, 1)
    assert convert(tmp_path, tmp_path / "optional", mesh="optional")["mesh_valid"].sum() == 5


def test_parameters_are_matched_by_id_not_by_position(tmp_path: Path) -> None:
    truths = write_coco(tmp_path)
    path = tmp_path / SMPL
    path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items()))))
    change(tmp_path / KEYPOINTS, lambda c: c["annotations"].reverse())
    assert_meshes(convert(tmp_path, tmp_path / "out"), truths[::-1])


@pytest.mark.parametrize("key", ["pose", "shape"])
def test_parameters_that_are_not_finite_are_dropped(tmp_path: Path, key: str) -> None:
    write_coco(tmp_path)
    change(tmp_path / SMPL, lambda c: c[str(FIRST_ID)]["smpl_param"][key].__setitem__(3, float("nan")))
    records = convert(tmp_path, tmp_path / "out")
    assert (len(records), records.info.dropped["implausible SMPL parameters"]) == (5, 1)


def test_an_extreme_shape_becomes_the_mean_shape(tmp_path: Path) -> None:
    truths = write_coco(tmp_path)
    change(tmp_path / SMPL, lambda c: c[str(FIRST_ID)]["smpl_param"]["shape"].__setitem__(9, 3.1))
    records = convert(tmp_path, tmp_path / "out", max_fit_px=20)
    assert not records["shape"][0].any()
    np.testing.assert_allclose(records["shape"][1], truths[1].shape, rtol=1e-6)


def test_implausible_people_are_dropped_by_the_named_rule(tmp_path: Path) -> None:
    write_coco(tmp_path)

    def spoil(content: dict[str, Any]) -> None:
        first, second, third = (person(content, FIRST_ID + 11 * n) for n in range(3))
        first["bbox"][2] = 0.5
        second["keypoints"][0] = -400.0
        third["num_keypoints"] -= 1

    change(tmp_path / KEYPOINTS, spoil)
    records = convert(tmp_path, tmp_path / "out")
    assert len(records) == 3
    assert {rule: n for rule, n in records.info.dropped.items() if "crowd" not in rule and "fewer" not in rule} == {
        "box smaller than a pixel": 1,
        "joint far outside the picture": 1,
        "num_keypoints is not the number of labelled joints": 1,
    }


def test_the_fewest_labelled_joints_can_be_chosen(tmp_path: Path) -> None:
    write_coco(tmp_path)
    records = convert(tmp_path, tmp_path / "out", min_joints=17)
    assert records["person"].tolist() == [FIRST_ID + 11 * n for n in (0, 2, 4)]


def test_without_the_body_the_fits_cannot_be_checked(tmp_path: Path) -> None:
    write_coco(tmp_path)
    with pytest.raises(InputError, match="give that file as body; or choose inf"):
        coco.convert(tmp_path, tmp_path / "out", split="train")


BROKEN: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "no images": (KEYPOINTS, lambda c: c.pop("images"), "images"),
    "annotations no list": (KEYPOINTS, lambda c: c.update(annotations={}), "annotations must be a list"),
    "no bbox": (KEYPOINTS, lambda c: person(c).pop("bbox"), "lacks bbox"),
    "16 joints": (KEYPOINTS, lambda c: person(c).update(keypoints=[1] * 48), "must be 51 numbers"),
    "texts": (KEYPOINTS, lambda c: person(c).update(keypoints=["1"] * 51), "must be 51 numbers"),
    "flag 3": (KEYPOINTS, lambda c: person(c).update(keypoints=[3] * 51), "visibility must be 0, 1 or 2"),
    "NaN": (KEYPOINTS, lambda c: person(c).update(keypoints=[float("nan")] * 51), "NaN or infinity"),
    "unknown image": (KEYPOINTS, lambda c: person(c).update(image_id=5), "image_id 5 is not among the images"),
    "same id": (KEYPOINTS, lambda c: c["annotations"][2].update(id=FIRST_ID), "two annotations have the id"),
    "no size": (KEYPOINTS, lambda c: c["images"][0].update(width=0), "must have a size"),
    "path": (KEYPOINTS, lambda c: c["images"][0].update(file_name="../../etc/passwd"), "below the image folder"),
    "crowd flag": (KEYPOINTS, lambda c: person(c).update(iscrowd="no"), "iscrowd must be 0 or 1"),
    "no camera": (SMPL, lambda c: c[str(FIRST_ID)].pop("cam_param"), "lacks cam_param"),
    "half a camera": (SMPL, lambda c: c[str(FIRST_ID)]["cam_param"].pop("t"), "lacks t"),
    "other camera": (SMPL, lambda c: c[str(FIRST_ID)].update(cam_param={"K": 1}), "lacks focal, princpt"),
    "23 rotations": (SMPL, lambda c: c[str(FIRST_ID)]["smpl_param"].update(pose=[0.0] * 69), "must be 72 numbers"),
    "no object": (SMPL, lambda c: c.update({str(FIRST_ID): [1]}), "must be an object"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path: Path, case: str) -> None:
    name, edit, message = BROKEN[case]
    write_coco(tmp_path)
    change(tmp_path / name, edit)
    with pytest.raises(InputError, match=message) as error:
        convert(tmp_path, tmp_path / "out")
    assert "\n" not in str(error.value) and Path(name).name in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == {"annotations"}  # nothing half-written


@pytest.mark.parametrize("name", [KEYPOINTS, SMPL])
@pytest.mark.parametrize("content", [None, b"", b'{"images": [{"id": 1', b"[1, 2]", b"\xff\xfe\x00", b"[" * 100_000])
def test_a_missing_or_damaged_file_is_one_line_that_names_it(tmp_path: Path, name: str, content: bytes | None) -> None:
    write_coco(tmp_path)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=Path(name).name) as error:
        convert(tmp_path, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == {"annotations"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "splits train, val"),
        ({"mesh": "maybe"}, "mesh must be one of needed, optional, none"),
        ({"max_fit_px": 0.0}, "max_fit_px must be positive"),
        ({"max_outside": -1.0}, "max_outside must not be negative"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write_coco(tmp_path)
    with pytest.raises(InputError, match=message):
        convert(tmp_path, tmp_path / "out", **options)


def test_a_stopped_conversion_goes_on_and_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotations, "CHUNK_ROWS", 3)
    write_coco(tmp_path)
    whole = convert(tmp_path, tmp_path / "whole")

    def stop(done: int, total: int, text: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path, tmp_path / "out", progress=stop)
    assert not (tmp_path / "out").exists() and (tmp_path / "out.partial").is_dir()
    seen: list[int] = []
    convert(tmp_path, tmp_path / "out", progress=lambda done, *_: seen.append(done))
    assert seen == [0, 3, 6, 8]
    resumed = open_records(tmp_path / "out")
    assert {n: c.sha256 for n, c in resumed.info.columns.items()} == {
        n: c.sha256 for n, c in whole.info.columns.items()
    }


def test_image_ids_and_file_names_come_from_the_image_entry(tmp_path: Path) -> None:
    write_coco(tmp_path)
    records = convert(tmp_path, tmp_path / "out", mesh="none")
    assert sorted(set(records["frame"].tolist())) == [FIRST_IMAGE, FIRST_IMAGE + 7, FIRST_IMAGE + 14]
    assert len(set(records["image"].tolist())) == 3
