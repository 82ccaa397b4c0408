"""A miniature MuCo-3DHP with known truth goes in; the same truth must come out of the records."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.readers import muco
from data.records import Records
from mesh.errors import InputError
from mesh.joints import HUMAN36M17
from tests.data.miniatures.coco import BODY_FILE, lbs, pinhole
from tests.data.miniatures.muco import CENTRE_PX, FIRST_ID, FOCAL_PX, STAND_INS, PersonTruth, write_muco

JOINTS, SMPL = "MuCo-3DHP.json", "smpl_param.json"
MASKED = HUMAN36M17.indices(("torso", "nose"))
KNOWN = [i for i in range(len(HUMAN36M17)) if i not in MASKED]


def convert(root: Path, out: Path, **options: Any) -> Records:
    return muco.convert(root, out, split="train", **({"body": BODY_FILE} | options))


def change(root: Path, name: str, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit a JSON file in place."""
    content = json.loads((root / "data" / name).read_text())
    edit(content)
    (root / "data" / name).write_text(json.dumps(content))


def person(content: dict[str, Any], annotation_id: int = FIRST_ID) -> dict[str, Any]:
    return next(a for a in content["annotations"] if a["id"] == annotation_id)


def assert_truth(records: Records, truths: list[PersonTruth]) -> None:
    assert sorted(records["person"].tolist()) == sorted(truth.annotation_id for truth in truths)
    for truth in truths:
        row = records["person"].tolist().index(truth.annotation_id)
        vertices = lbs(records["pose"][row], records["shape"][row]) + records["trans"][row]
        assert np.abs(vertices - truth.vertices).max() < 1e-4
        assert np.abs(records["joints3d"][row] - truth.joints)[KNOWN].max() < 1e-4
        assert np.abs(records["joints2d"][row] - truth.pixels)[KNOWN].max() < 0.1
        camera = records["intrinsics"][row]
        shown = pinhole(records["joints3d"][row][KNOWN], camera[:2], camera[2:])
        assert np.abs(shown - truth.pixels[KNOWN]).max() < 0.1
        assert records["frame"][row] == truth.image_id


def test_every_person_comes_back_as_it_was(tmp_path: Path) -> None:
    truths = write_muco(tmp_path)
    records = convert(tmp_path, tmp_path / "out", people="all")
    assert len(truths) == 6
    assert_truth(records, truths)
    assert records["mesh_valid"].all() and not records["gender"].any()
    np.testing.assert_allclose(records["intrinsics"][0], [*FOCAL_PX, *CENTRE_PX])
    assert (records.info.joints2d, records.info.joints3d) == ("human36m17", "human36m17")
    assert records["image"][0] == b"augmented_set/1/000900_01.jpg"


def test_by_default_only_the_closest_of_a_picture_stays(tmp_path: Path) -> None:
    truths = write_muco(tmp_path)
    records = convert(tmp_path, tmp_path / "out")
    assert_truth(records, [truth for truth in truths if truth.is_closest])
    assert records.info.dropped == {"not the closest to the camera": 3}


def test_joints_that_muco_places_elsewhere_are_masked(tmp_path: Path) -> None:
    write_muco(tmp_path)
    records = convert(tmp_path, tmp_path / "out")
    assert records["joint_valid"][:, KNOWN].all() and not records["joint_valid"][:, MASKED].any()
    assert not records["confidence"][:, MASKED].any() and not records["joints3d"][:, MASKED].any()


def test_the_crown_is_not_mistaken_for_the_skull(tmp_path: Path) -> None:
    write_muco(tmp_path)
    point = list(STAND_INS).index("head_top")
    change(tmp_path, JOINTS, lambda c: [a["keypoints_vis"].__setitem__(point, 0) for a in c["annotations"]])
    records = convert(tmp_path, tmp_path / "out")
    assert (records["confidence"][:, HUMAN36M17.index("head")] == 0.5).all()


def test_a_hidden_joint_counts_half(tmp_path: Path) -> None:
    write_muco(tmp_path)
    confidence = convert(tmp_path, tmp_path / "out")["confidence"]
    assert (confidence[:, HUMAN36M17.index("left_wrist")] == 0.5).all()
    assert (confidence[:, HUMAN36M17.index("right_wrist")] == 1).all()


def test_visibility_may_be_written_as_truth_values(tmp_path: Path) -> None:
    write_muco(tmp_path)
    numbers = convert(tmp_path, tmp_path / "numbers")["confidence"]
    change(
        tmp_path,
        JOINTS,
        lambda c: [a.update(keypoints_vis=[v == 1 for v in a["keypoints_vis"]]) for a in c["annotations"]],
    )
    assert np.array_equal(numbers, convert(tmp_path, tmp_path / "booleans")["confidence"])


def bend(content: dict[str, Any], mm: float) -> None:
    """Move both ankles of the first person apart, across the view, so that the mean error is `mm`."""
    entry = person(content)
    names = list(STAND_INS)
    shift = mm * len(KNOWN) / 2
    for name, sign in (("left_ankle", 1), ("right_ankle", -1)):
        entry["keypoints_cam"][names.index(name)][0] += sign * shift
    entry["keypoints_img"] = pinhole(np.array(entry["keypoints_cam"]), FOCAL_PX, CENTRE_PX).tolist()


@pytest.mark.parametrize(("error_mm", "stays"), [(44.99, True), (45.01, False)])
def test_the_fit_is_the_mean_distance_over_the_joints_of_both_sets(
    tmp_path: Path, error_mm: float, stays: bool
) -> None:
    write_muco(tmp_path)
    change(tmp_path, JOINTS, lambda c: bend(c, error_mm))
    records = convert(tmp_path, tmp_path / "out", people="all")
    assert (FIRST_ID in records["person"]) == stays
    assert records.info.dropped.get("mesh further than 45 mm from the joints", 0) == (not stays)


def test_joints_that_the_two_sets_do_not_share_do_not_count_in_the_fit(tmp_path: Path) -> None:
    write_muco(tmp_path)

    def move_hands(content: dict[str, Any]) -> None:
        for entry in content["annotations"]:
            for name in ("right_hand", "left_hand", "left_toe", "skull", "spine"):
                entry["keypoints_cam"][list(STAND_INS).index(name)][0] += 2000.0
            entry["keypoints_img"] = pinhole(np.array(entry["keypoints_cam"]), FOCAL_PX, CENTRE_PX).tolist()

    change(tmp_path, JOINTS, move_hands)
    assert len(convert(tmp_path, tmp_path / "out", people="all", max_fit_mm=0.1)) == 6


def test_a_mesh_elsewhere_in_the_room_still_fits(tmp_path: Path) -> None:
    write_muco(tmp_path)
    change(tmp_path, SMPL, lambda c: c[str(FIRST_ID)]["trans"].__setitem__(0, 7.0))
    assert FIRST_ID in convert(tmp_path, tmp_path / "out", people="all")["person"]


def test_a_person_without_a_trusted_mesh_can_keep_its_joints(tmp_path: Path) -> None:
    truths = write_muco(tmp_path)
    change(tmp_path, SMPL, lambda c: c.pop(str(FIRST_ID)))
    change(tmp_path, SMPL, lambda c: c[str(FIRST_ID + 3)]["trans"].__setitem__(0, float("nan")))
    needed = convert(tmp_path, tmp_path / "needed", people="all")
    assert len(needed) == 4
    assert needed.info.dropped == {"implausible SMPL parameters": 1, "no SMPL parameters": 1}
    optional = convert(tmp_path, tmp_path / "optional", people="all", mesh="optional")
    assert optional["mesh_valid"].sum() == 4 and optional["joint_valid"].any(1).all()
    assert (optional["intrinsics"][:, 0] > 0).all()
    without = muco.convert(tmp_path, tmp_path / "none", split="train", people="all", mesh="none")
    assert len(without) == len(truths) and "pose" not in without


def test_implausible_people_are_dropped_by_the_named_rule(tmp_path: Path) -> None:
    write_muco(tmp_path)

    def spoil(content: dict[str, Any]) -> None:
        people = [person(content, FIRST_ID + 3 * n) for n in range(5)]
        people[0]["keypoints_cam"][3][2] = -5.0
        people[1]["keypoints_img"][2][0] += 30.0
        people[2]["bbox"][3] = 0.0
        people[3]["keypoints_img"][2][0] = float("inf")
        people[4]["keypoints_cam"] = (np.array(people[4]["keypoints_cam"]) * 1e3).tolist()  # micrometres

    change(tmp_path, JOINTS, spoil)
    records = convert(tmp_path, tmp_path / "out", people="all")
    assert len(records) == 1
    assert records.info.dropped == {
        "joint behind the camera": 1,
        "3D joints project further than 20 px from the 2D joints": 1,
        "box smaller than a pixel": 1,
        "position or camera without sense": 2,
    }


def test_the_files_may_lie_in_the_root_itself(tmp_path: Path) -> None:
    write_muco(tmp_path)
    assert len(convert(tmp_path / "data", tmp_path / "out")) == 3


BROKEN: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "no focal length": (JOINTS, lambda c: c["images"][0].pop("f"), "lacks f"),
    "no joints": (JOINTS, lambda c: person(c).pop("keypoints_cam"), "lacks keypoints_cam"),
    "17 joints": (JOINTS, lambda c: person(c).update(keypoints_cam=[[1, 2, 3]] * 17), "must be 63 numbers"),
    "visibility": (JOINTS, lambda c: person(c).update(keypoints_vis=[2] * 21), "must be 0 or 1"),
    "unknown image": (JOINTS, lambda c: person(c).update(image_id=7), "image_id 7 is not among the images"),
    "path": (JOINTS, lambda c: c["images"][0].update(file_name="/etc/passwd"), "below the image folder"),
    "no trans": (SMPL, lambda c: c[str(FIRST_ID)].pop("trans"), "lacks trans"),
    "texts": (SMPL, lambda c: c[str(FIRST_ID)].update(pose="0" * 72), "must be 72 numbers"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path: Path, case: str) -> None:
    name, edit, message = BROKEN[case]
    write_muco(tmp_path)
    change(tmp_path, name, edit)
    with pytest.raises(InputError, match=message) as error:
        convert(tmp_path, tmp_path / "out", people="all")
    assert "\n" not in str(error.value) and name in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == {"data"}  # nothing half-written


@pytest.mark.parametrize("name", [JOINTS, SMPL])
@pytest.mark.parametrize("content", [None, b'{"images": [{"id": 1', b"[]", b"\x80\x02}q\x00."])
def test_a_missing_or_damaged_file_is_one_line_that_names_it(tmp_path: Path, name: str, content: bytes | None) -> None:
    write_muco(tmp_path)
    path = tmp_path / "data" / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match=name) as error:
        convert(tmp_path, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"people": "some"}, "people must be one of closest, all"),
        ({"mesh": "maybe"}, "mesh must be one of needed, optional, none"),
        ({"max_projection_px": 0.0}, "max_projection_px must be positive"),
        ({"body": None}, "give that file as body"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write_muco(tmp_path)
    with pytest.raises(InputError, match=message):
        convert(tmp_path, tmp_path / "out", **options)


def test_there_is_only_a_training_part(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only the split train"):
        muco.convert(tmp_path, tmp_path / "out", split="test")
