from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mesh.errors import InputError
from mesh.joints import COCO17
from tools.inputs import file_name, plan_jobs, skipped_files
from tools.results import Results


def people(image_id: object, x: float) -> dict:
    return {"image_id": image_id, "category_id": 1, "score": 1, "keypoints": [x, 5.0, 1.0] * 17}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a/p.jpg", "b/p.jpg", "b/000000000007.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"not looked at yet")
    return tmp_path


def plan(folder: Path, inputs: list[str], rows: list[dict] | None = None):
    if rows is not None:
        (folder / "k.json").write_text(json.dumps(rows))
    given = None if rows is None else str(folder / "k.json")
    return plan_jobs([str(folder / i) for i in inputs], given, None)


def x_of(job) -> float:
    return float(job.keypoints.positions_px[0, 0, 0])


def test_photos_of_one_name_get_the_people_of_their_own_folder(photos: Path) -> None:
    jobs = plan(photos, ["a/p.jpg", "b/p.jpg"], [people("b/p.jpg", 2), people("a/p.jpg", 1)])
    assert [x_of(job) for job in jobs] == [1, 2]


def test_people_that_fit_a_photo_equally_well_are_refused(photos: Path) -> None:
    with pytest.raises(InputError, match=r"names p\.jpg 2 times"):
        plan(photos, ["a/p.jpg"], [people("x/p.jpg", 2), people("y/p.jpg", 1)])


def test_a_number_names_a_coco_picture_and_a_photo_without_people_is_a_failed_input(photos: Path) -> None:
    jobs = plan(photos, ["b/000000000007.png", "a/p.jpg"], [people(7, 3)])
    assert x_of(jobs[0]) == 3 and jobs[1].problem is not None and "no people" in jobs[1].problem


def openpose(folder: Path, frames: dict[str, float]) -> Path:
    folder.mkdir()
    for name, x in frames.items():
        person = {"pose_keypoints_2d": [x, 5.0, 1.0] * 25}
        (folder / f"{name}_keypoints.json").write_text(json.dumps({"people": [person]}))
    return folder


def test_a_dot_in_a_frames_name_belongs_to_the_name(photos: Path) -> None:
    frames = openpose(photos / "o", {f"video.{k:04}": k for k in (7, 8)})
    for name in ("c/video.0007.jpg", "c/video.0008.JPG", "c/video.jpg"):
        (photos / "c").mkdir(exist_ok=True)
        (photos / name).write_bytes(b"not looked at yet")
    jobs = plan_jobs([str(photos / "c")], str(frames), None)
    assert [job.keypoints and x_of(job) for job in jobs] == [7, 8, None]
    assert jobs[2].problem is not None and "no people" in jobs[2].problem
    alone = plan_jobs([str(frames)], None, None)
    assert [(job.name, job.source) for job in alone] == [(f"video.{k:04}", f"{frames}: video.{k:04}") for k in (7, 8)]
    (photos / "k.json").write_text(json.dumps([people("v.1", 1), people("v.2", 2), people("w.png", 3)]))
    assert [job.name for job in plan_jobs([str(photos / "k.json")], None, None)] == ["v.1", "v.2", "w"]


def test_keypoints_beside_something_that_is_no_image_are_refused(photos: Path) -> None:
    np.save(photos / "p.npy", np.ones((1, 17, 2)))
    with pytest.raises(InputError, match="is no image"):
        plan(photos, ["p.npy"], [people("p", 1)])


def test_one_array_belongs_to_one_photo(photos: Path) -> None:
    np.save(photos / "k.npy", np.full((2, 17, 2), 4.0))
    (job,) = plan_jobs([str(photos / "a/p.jpg")], str(photos / "k.npy"), COCO17)
    assert x_of(job) == 4 and len(job.keypoints) == 2
    for several in (["a/p.jpg", "b/p.jpg"], ["b"]):
        with pytest.raises(InputError, match=r"one array of poses, which belongs to one photo: got 2"):
            plan_jobs([str(photos / name) for name in several], str(photos / "k.npy"), COCO17)


def test_of_the_people_of_a_picture_the_surest_are_taken_or_the_first(photos: Path) -> None:
    rows = [{**people("a/p.jpg", x), "score": score} for x, score in ((1, 0.2), (2, 0.9), (3, 0.5))]
    given = photos / "k.json"
    np.save(photos / "k.npy", np.arange(1, 4)[:, None, None] * np.ones((3, 17, 2)))
    for scored, expected in ((True, [2, 3]), (False, [1, 2])):
        given.write_text(json.dumps([row if scored else {**row, "score": None} for row in rows]))
        for job in (
            *plan_jobs([str(photos / "a/p.jpg")], str(given), None, 2),
            *plan_jobs([str(given)], None, None, 2),
        ):
            assert job.keypoints.positions_px[:, 0, 0].tolist() == expected
    (job,) = plan_jobs([str(photos / "a/p.jpg")], str(photos / "k.npy"), COCO17, 2)
    assert job.keypoints.positions_px[:, 0, 0].tolist() == [1, 2]
    (whole,) = plan_jobs([str(photos / "k.npy")], None, COCO17, 2)
    assert len(whole.keypoints) == 3


def test_a_folder_with_images_is_a_folder_of_images_whatever_json_lies_beside(photos: Path) -> None:
    (photos / "b" / "p_keypoints.json").write_text("{}")
    (photos / "b" / "summary.json").write_text("{}")
    (photos / "b" / "p_overlay.png").write_bytes(b"")
    assert [job.name for job in plan(photos, ["b"])] == ["000000000007", "p"]


def test_what_a_folder_holds_besides_is_told_in_one_line(photos: Path) -> None:
    for name in ("b.heic", "a.avif", ".hidden"):
        (photos / "a" / name).write_bytes(b"")
    (line,) = skipped_files([str(photos / "a"), str(photos / "b"), str(photos / "a" / "p.jpg")])
    assert line.startswith(f"{photos / 'a'}: 2 skipped, such as a.avif: ") and ".jpg" in line
    (photos / "b" / "p_0.obj").write_bytes(b"")
    assert list(skipped_files([str(photos / "b")]))
    (photos / "b" / "summary.json").write_bytes(b"{}")  # results of an earlier call
    assert not list(skipped_files([str(photos / "b")]))
    frames = openpose(photos / "o", {"a": 1})
    (frames / "a.avif").write_bytes(b"")
    (line,) = skipped_files([str(frames)])
    assert "a.avif" in line and line.endswith("end in .json")


def test_nothing_and_an_empty_name_are_refused(photos: Path) -> None:
    with pytest.raises(InputError, match="nothing to do"):
        plan_jobs([], None, None)
    with pytest.raises(InputError, match="no such input"):
        plan_jobs([""], None, None)


def test_names_from_files_become_names_of_files() -> None:
    assert file_name('a/b\\c:"\x00d') == "a_b_c___d" and file_name("") == "unnamed" and len(file_name("x" * 999)) == 150


def test_no_result_takes_the_place_of_an_input_or_of_another_result(tmp_path: Path) -> None:
    results = Results(tmp_path, np.zeros((0, 3)), ("obj",), protected={(tmp_path / "in.npz").resolve()})
    assert results.reserve("in", [".npz"]) == "in-2"
    assert results.reserve("p", ["_0.obj", "_1.obj"]) == "p"
    assert results.reserve("P_0", [".obj"]) == "P_0-2"
    assert results.reserve("p", ["_0.obj"]) == "p-2"
    protected = {(tmp_path / "summary.json").resolve()}
    with (
        pytest.raises(InputError, match="is an input"),
        Results(tmp_path, np.zeros((0, 3)), ("obj",), protected=protected).writing(),
    ):
        pass
