"""Summing up, the tables and the contact sheet."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mesh.body import load_body
from tools.robustness_checks import Agreement, Limits, PersonChecks
from tools.robustness_overlap import Overlap
from tools.robustness_report import Picture, as_json, as_markdown, counts, figures, spread
from tools.robustness_sheet import ContactSheet, caption

BODY = load_body()
UNKNOWN = PersonChecks(box_px=(0, 0, 9, 9), flags=("not_recoverable",))


def person(error_px: float, flip_mm: float | None, *flags: str) -> PersonChecks:
    return PersonChecks(
        box_px=(0, 0, 50, 90),
        flags=flags,
        reprojection_px=error_px,
        reprojection_sizes=error_px / 100,
        limits=Limits(beyond=("left_knee",) if error_px > 5 else (), worst_deg=error_px, model_mm=7),
        overlap=Overlap(share=0.02, pairs={("left forearm", "trunk"): 0.02})
        if error_px > 5
        else Overlap(share=0, pairs={}),
        agreements={"flip": None if flip_mm is None else Agreement(root_mm=flip_mm, aligned_mm=flip_mm / 2)},
    )


PICTURES = [
    Picture(source="a|b.jpg", size_px=(60, 90), people=[person(1, 40), person(3, None)]),
    Picture(source="empty.jpg", size_px=(60, 90), people=[]),
    Picture(source="c.jpg", size_px=(60, 90), people=[person(8, 120, "left_right_exchanged"), UNKNOWN]),
]
FAILED = [{"input": "http://x.org/a.jpg", "reason": "the server\nanswered 404"}]


def test_counts_say_of_how_many() -> None:
    found = counts(PICTURES, FAILED)
    assert found["pictures that failed"] == "1 of 4 (25.0 %)"
    assert found["pictures with people"] == "2 of 3 (66.7 %)"
    assert found["people found"] == "4" and found["people per picture with people"] == "2.00"
    assert found["people too few of whose joints were known"] == "1 of 4 (25.0 %)"
    assert found["flagged left_right_exchanged"] == "1 of 3 (33.3 %)"
    assert found["flip: found again"] == "2 of 3 (66.7 %)"
    assert found["flip: further than 100 mm"] == "1 of 2 (50.0 %)"
    assert found["scale 0.5: found again"] == "0 of 0"
    assert (
        found["people with a joint beyond limits"] == found["people with skin inside another part"] == "1 of 3 (33.3 %)"
    )


def test_flags_that_this_report_does_not_know_are_counted() -> None:
    flagged = Picture(source="d.jpg", size_px=(60, 90), people=[person(1, None, "unsure"), person(1, None)])
    found = counts([flagged], [])
    assert found["flagged unsure"] == "1 of 2 (50.0 %)" and found["flagged left_right_exchanged"] == "0 of 2 (0.0 %)"


def test_figures_are_over_the_people_that_have_them() -> None:
    found = figures(PICTURES)
    error = found["reprojection error, px"]
    assert (error.count, error.median, error.worst) == (3, 3, 8) and error.p90 == pytest.approx(7)
    assert found["reprojection error, % of person size"].median == pytest.approx(3)
    assert found["flip: mm at the pelvis"].median == 80 and found["flip: mm after Procrustes"].median == 40
    assert found["joints beyond limits, per person"].worst == 1
    assert found["skin inside another part, %"].worst == pytest.approx(2)


def test_without_people_nothing_is_known() -> None:
    assert np.isnan(spread([]).median)
    text = json.dumps(as_json([PICTURES[1]], []), allow_nan=False)
    assert json.loads(text)["figures"]["reprojection error, px"] == {
        "count": 0,
        "median": None,
        "p90": None,
        "worst": None,
    }
    assert "| empty.jpg | nobody found |" in as_markdown([PICTURES[1]], [])
    assert "pictures with people | 0 of 0" in as_markdown([], FAILED)


def test_the_report_holds_every_picture_and_every_failure() -> None:
    rows = json.loads(json.dumps(as_json(PICTURES, FAILED), allow_nan=False))
    assert [len(row["people"]) for row in rows["pictures"]] == [2, 0, 2] and rows["failed"] == FAILED
    assert rows["pictures"][2]["people"][0]["overlap"]["pairs"] == {"left forearm in trunk": 0.02}
    assert rows["pictures"][0]["people"][1]["agreements"] == {"flip": None}


def test_the_tables_have_as_many_cells_in_every_row_whatever_files_are_called() -> None:
    lines = as_markdown(PICTURES, FAILED).splitlines()
    table = [line.replace("\\|", "") for line in lines if line.startswith("|")]
    widths = [line.count("|") for line in table]
    assert sorted(set(widths)) == [3, 6, 13]
    assert "| a\\|b.jpg | 1 | 3.0 | 3.0 | lost | - | - | - | - |  | 0.0 |  |" in lines
    assert "* http://x.org/a.jpg: the server answered 404" in lines
    assert "Most often beyond limits: left_knee (1)." in lines


def offered(errors: list[float], count: int) -> ContactSheet:
    sheet = ContactSheet(BODY.faces, count)
    for error in errors:
        body = BODY.template * (30, -30, 30) + (60, 60, 0)
        sheet.offer(np.full((120, 120, 3), 90, np.uint8), [body], (40, 20, 80, 100), error, f"$x_ {error}")
    return sheet


def test_the_sheet_keeps_the_best_and_the_worst() -> None:
    errors = np.random.default_rng(0).permutation(20).tolist()
    best, worst = offered(errors, 3).halves()
    assert [tile.error for tile in best] == [0, 1, 2] and [tile.error for tile in worst] == [19, 18, 17]


def test_few_people_are_shown_once_each() -> None:
    best, worst = offered([5, 1, 3], 8).halves()
    assert [tile.error for tile in best] == [1, 3] and [tile.error for tile in worst] == [5]


def test_the_sheet_is_a_picture_with_or_without_people(tmp_path: Path) -> None:
    for errors in ([], [1.0, 2.0, 3.0]):
        offered(errors, 2).write(tmp_path / "sheet.png")
        with Image.open(tmp_path / "sheet.png") as image:
            assert image.format == "PNG" and np.ptp(np.asarray(image.convert("L"))) > 100


@pytest.mark.parametrize("box", [(40, 20, 80, 100), (-50, -60, 300, 200), (119, 119, 119, 119), (500, 500, 600, 600)])
def test_a_tile_is_cut_from_within_the_picture_and_its_mesh_moves_along(box: tuple[float, float, float, float]) -> None:
    image = np.zeros((120, 120, 3), np.uint8)
    image[60:64, 60:64] = 255
    sheet = ContactSheet(BODY.faces, 1)
    sheet.offer(image, [np.array([(62.0, 62.0, 0.0)])], box, 1, "")
    tile = sheet.halves()[0][0]
    assert max(tile.image.shape[:2]) == 320 and tile.image.shape[2] == 3
    if box[0] < 60:
        ys, xs = np.nonzero(tile.image[..., 0] > 128)
        np.testing.assert_allclose(tile.meshes[0][0, :2], (xs.mean() + 0.5, ys.mean() + 0.5), atol=1.5)


def test_captions_keep_both_ends_of_a_long_name() -> None:
    assert caption("a" * 60 + ".jpg", 2, 3.21, 0.0456).startswith("aaaa")
    assert caption("a" * 60 + ".jpg", 2, 3.21, 0.0456).endswith(".jpg\nperson 2: 3.2 px, 4.6 % of size")
