"""Measuring the detector, with a detector whose errors are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mesh.joints import BLAZEPOSE33, COCO17, Keypoints
from tools import command, measure_detector
from tools.detector_pictures import Shot


def shot(number: int) -> Shot:
    """A made-up person in a grey picture."""
    joints = np.random.default_rng(number).uniform(20, 80, (17, 2))
    return Shot(
        image=np.full((100, 100, 3), 90 + number, np.uint8),
        joints_px=joints,
        occluded=np.zeros(17, bool),
        facing_deg=10.0,
        tilted=False,
        coco_m=np.zeros((19, 3)),
        human36m_m=np.zeros((17, 3)),
        vertices_m=np.zeros((4, 3)),
        pose_idx=number,
    )


class Maker:
    """Gives made-up people."""

    def shots(self, count: int, seed: int):
        return (shot(number) for number in range(count))


class ShiftingDetector:
    """Finds everybody two pixels to the right, and nobody in the picture of person 1."""

    def detect(self, image: np.ndarray) -> Keypoints:
        number = int(image[0, 0, 0]) - 90
        positions = np.array([np.add(shot(number).joints_px, (2, 0))] * (number != 1)).reshape(-1, 17, 2)
        return Keypoints(positions_px=positions, confidence=np.full(positions.shape[:2], 0.8), joint_set=COCO17)


def test_truth_and_detections_are_kept_person_by_person() -> None:
    measured, sheet = measure_detector.measure(Maker(), ShiftingDetector(), count=3, seed=0)
    assert measured.found.tolist() == [True, False, True] and len(measured) == len(sheet) == 3
    np.testing.assert_allclose(measured.detected_px[[0, 2]] - measured.truth_px[[0, 2]], (((2, 0),) * 17,) * 2)
    assert (measured.confidence[1] == 0).all() and (measured.confidence[0] == 0.8).all()
    drawn = [(picture != 90 + number).any() for number, picture in enumerate(sheet)]
    assert drawn == [True, False, True]


class BlindDetector:
    """Finds nobody."""

    model = "full"

    def detect(self, image: np.ndarray, *, tiles: bool | None = None) -> Keypoints:
        return Keypoints(positions_px=np.zeros((0, 33, 2)), confidence=np.zeros((0, 33)), joint_set=BLAZEPOSE33)


def test_the_command_writes_measurements_report_and_pictures(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("tools.command.open_detector", lambda name: BlindDetector())
    out = tmp_path / "new" / "folder"
    assert command.run(measure_detector.main, ["--count", "2", "--out", str(out)]) == 0
    assert {p.name for p in out.iterdir()} == {
        "measurements.npz", "report.json", "report.md", "contact_sheet.png",
    }  # fmt: skip
    with np.load(out / "measurements.npz") as columns:
        assert columns["truth_px"].shape == (2, 17, 2) and not columns["found"].any()
    report = json.loads((out / "report.json").read_text())
    assert report["detector"] == "full" and report["people"] == 2 and set(report["figures"]) == {"detector"}
    assert report["figures"]["detector"]["nose: median error, sizes"] is None
    assert "whole body exchanged" in capsys.readouterr().out


def test_columns_stand_side_by_side() -> None:
    text = measure_detector.table({"a": {"x": 0.5, "y": float("nan")}, "b": {"x": 0.25, "y": 1.0}})
    assert text.splitlines() == ["| | a | b |", "|---|---|---|", "| x | 0.500 | 0.250 |", "| y | nan | 1.000 |"]


@pytest.mark.parametrize(("words", "complaint"), [(["--count", "0"], "--count"), (["--seed", "-1"], "--seed")])
def test_numbers_that_mean_nothing_are_refused(tmp_path: Path, words: list[str], complaint: str, capsys) -> None:
    assert command.run(measure_detector.main, [*words, "--out", str(tmp_path / "o")]) == 2
    assert complaint in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_an_output_that_is_a_file_is_refused_before_any_work(tmp_path: Path, capsys) -> None:
    file = tmp_path / "o"
    file.write_text("mine")
    assert command.run(measure_detector.main, ["--out", str(file)]) == 2
    assert "is a file" in capsys.readouterr().err and file.read_text() == "mine"
