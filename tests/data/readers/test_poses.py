"""Pose files to records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.readers.poses import convert
from data.records import Records
from mesh.errors import InputError
from mesh.rotation import axis_angle_to_matrix
from tests.data.miniatures.poses import write_poses


def converted(file: Path, split: str = "train", **options: Any) -> Records:
    return convert(file, file.parent / "out", split=split, progress=lambda *_: None, **options)


@pytest.mark.parametrize("axis_angle", [True, False])
def test_every_pose_and_label_of_the_file_is_a_row(tmp_path: Path, axis_angle: bool) -> None:
    turns = write_poses(tmp_path / "p.npz", axis_angle=axis_angle)
    records = converted(tmp_path / "p.npz")
    assert set(records.info.columns) == {"pose", "sequence", "person", "frame"}
    expected, found = (axis_angle_to_matrix(torch.tensor(np.array(x, np.float32))) for x in (turns, records["pose"]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert records["sequence"][[0, 29]].tolist() == [b"07_01", b"09_02"]
    assert records["person"][[0, 29]].tolist() == [7, 9]
    assert records["frame"][:6].tolist() == [0, 2, 4, 6, 8, 0]
    assert [name for name, _ in records.sequences()][:2] == ["07_01#7", "07_02#7"]


def test_people_are_held_out_whole_and_levels_are_counted_when_left_out(tmp_path: Path) -> None:
    write_poses(tmp_path / "p.npz")
    for split, people, count in (("train", {7, 9}, 20), ("validation", {8}, 10)):
        records = convert(
            tmp_path / "p.npz", tmp_path / split, split=split, progress=lambda *_: None, validation_subjects=(8,)
        )
        assert set(records["person"].tolist()) == people and len(records) == count
        assert records.info.dropped == {"other people or levels": 30 - count}
    assert len(converted(tmp_path / "p.npz", max_level=1)) == 12


def test_a_file_of_poses_alone_is_enough(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", poses=np.zeros((3, 24, 3)))
    records = converted(tmp_path / "p.npz")
    assert set(records.info.columns) == {"pose"} and len(records) == 3


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"poses": None}, {}, "holds no 'poses'"),
        ({"poses": np.zeros((30, 23, 4))}, {}, r"shape \(30, 23, 4\); expected \(N, 24, 4\)"),
        ({"poses": np.zeros((30, 24, 4))}, {}, "not of length one"),
        ({"poses": np.full((30, 24, 4), np.nan)}, {}, "not of length one, or NaN"),
        ({"poses": np.full((30, 24, 3), np.inf)}, {}, "NaN or infinity"),
        ({"poses": np.array([{}] * 30)}, {}, "pickled objects"),
        ({"subject": None}, {"validation_subjects": (8,)}, "has no 'subject' column"),
        ({"subject": np.zeros(3, int)}, {}, "'subject' must be 30 whole numbers"),
        ({"sequence": np.full(30, 6)}, {}, "indices into 'sequence_names'"),
        ({}, {"split": "validation"}, "needs --validation-subjects"),
        ({}, {"split": "test"}, "splits train and validation, got 'test'"),
        ({}, {"validation_subjects": (7, 8, 9)}, "no row for split 'train'"),
    ],
)
def test_a_wrong_file_or_selection_is_refused_and_leaves_no_records(
    tmp_path: Path, changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    write_poses(tmp_path / "p.npz", **changes)
    with pytest.raises(InputError, match=message) as refused:
        converted(tmp_path / "p.npz", **options)
    assert "\n" not in str(refused.value) and not (tmp_path / "out").exists()


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    write_poses(tmp_path / "p.npz")
    (tmp_path / "p.npz").write_bytes((tmp_path / "p.npz").read_bytes()[:2000])
    with pytest.raises(InputError, match="not a whole"):
        converted(tmp_path / "p.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["p.npz"]
