"""Drawn people as evaluation samples: who is found is measured against the body in the picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data.prior import load_pose_prior
from data.synthesis import SynthesisConfig, with_derived
from mesh.body import load_body
from mesh.errors import InputError
from mesh.joints import BLAZEPOSE33, COCO17, COCO19, HUMAN36M17, Keypoints
from tools import command, evaluate, evaluation_drawn
from tools.detector_pictures import PictureMaker
from tools.evaluation_drawn import DrawnSamples

BODY = load_body()


class TruthfulDetector:
    """Finds every person but the second, without error: it watches what is drawn."""

    model = "full"

    def __init__(self, maker: PictureMaker) -> None:
        self.drawn: list[np.ndarray] = []
        shots = maker.shots

        def watched(count: int, seed: int):
            for shot in shots(count, seed):
                self.drawn.append(shot.joints_px)
                yield shot

        maker.shots = watched  # type: ignore[method-assign]

    def detect(self, image: np.ndarray) -> Keypoints:
        if len(self.drawn) == 2:
            return Keypoints(
                positions_px=np.zeros((0, 33, 2), np.float32),
                confidence=np.zeros((0, 33), np.float32),
                joint_set=BLAZEPOSE33,
            )
        positions = np.zeros((1, 33, 2), np.float32)
        positions[0, list(BLAZEPOSE33.indices(COCO17.names))] = self.drawn[-1]
        return Keypoints(positions_px=positions, confidence=np.full((1, 33), 0.75, np.float32), joint_set=BLAZEPOSE33)


def samples(count: int) -> DrawnSamples:
    maker = PictureMaker(load_pose_prior(), BODY, SynthesisConfig(), backdrops=(), side_px=48)
    return DrawnSamples(maker=maker, detector=TruthfulDetector(maker), count=count, seed=4)  # type: ignore[arg-type]


def test_who_is_found_comes_with_the_detected_joints_and_the_truth_of_the_picture(monkeypatch) -> None:
    monkeypatch.setattr(evaluation_drawn, "BLOCK", 3)
    made = samples(5)
    assert len(made) == 2 and made.not_found == 1
    tracks = [made.track(k) for k in range(2)]
    assert [track.rows.tolist() for track in tracks] == [[0, 2, 3], [4]]
    shots = list(PictureMaker(load_pose_prior(), BODY, SynthesisConfig(), backdrops=(), side_px=48).shots(5, 4))
    for track in tracks:
        for row, number in enumerate(track.rows):
            shot, batch = shots[number], track.batch
            truth, known = with_derived(torch.from_numpy(shot.joints_px)[None].float(), torch.full((1, 17), 0.75))
            torch.testing.assert_close(batch.keypoints_px[row], truth[0], rtol=0, atol=1e-3)
            torch.testing.assert_close(batch.confidence[row], known[0])
            np.testing.assert_allclose(batch.vertices_m[row], shot.vertices_m, atol=1e-6)
            np.testing.assert_allclose(batch.regressed_m[row], BODY.regressor(HUMAN36M17) @ shot.vertices_m, atol=1e-4)
            coco = shot.coco_m - shot.coco_m[COCO19.root_idx]
            np.testing.assert_allclose(batch.joints_m[row], coco, atol=1e-6)
            assert batch.ids[row] == shot.pose_idx
    again = samples(5).track(0).batch
    assert torch.equal(again.keypoints_px, tracks[0].batch.keypoints_px)


def test_the_picture_is_not_kept() -> None:
    assert all(found.shot.image.size == 0 for found in samples(3)._found)


def test_nobody_found_is_refused() -> None:
    maker = PictureMaker(load_pose_prior(), BODY, SynthesisConfig(), backdrops=(), side_px=16)
    detector = TruthfulDetector(maker)
    detector.drawn = [np.zeros((17, 2))]  # the first person is the second now
    with pytest.raises(InputError, match="found nobody in 1 pictures"):
        len(DrawnSamples(maker=maker, detector=detector, count=1, seed=0))  # type: ignore[arg-type]


def test_the_card_says_how_many_were_not_found(tmp_path: Path, monkeypatch, capsys) -> None:
    asked = []

    def drawn(source, body, config, detector, *, count, seed, device):
        asked.append((count, config.camera.tilted, detector))
        return samples(count)

    monkeypatch.setattr("tools.evaluation_sources.drawn_samples", drawn)
    monkeypatch.setattr("tools.command.open_detector", lambda name: f"{name} it is")
    argv = ["--dataset", "prior", "--input", "detected", "--samples", "4", "--device", "cpu", "--out", str(tmp_path)]
    argv += ["--detector", "heavy"]
    assert command.run(evaluate.main, argv) == 0
    assert asked == [(4, 0.0, "heavy it is")]  # the cameras of configs/evaluation.yaml
    assert "did not find 1 of 4 people" in capsys.readouterr().err
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["protocol"]["detector"] == "BlazePose full"  # the stand-in's
    assert report["protocol"]["not found by the detector, so not measured"] == 1
    assert report["metrics"]["detected"]["mpjpe_mm"] > 0
