from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from matplotlib.figure import Figure
from PIL import Image

from mesh.joints import COCO19
from mesh.render import LEFT, RIGHT
from tools import snapshots
from tools.snapshots import write_mesh_samples, write_pose_samples

BALL = trimesh.creation.icosphere(subdivisions=2)
FACES = np.asarray(BALL.faces)
RNG = np.random.default_rng(0)
POINTS_PX = RNG.uniform(100, 500, (2, 19, 2))
SEEN = np.ones((2, 19))
TRUE_M = np.stack([BALL.vertices * 0.5] * 2)
JOINTS_M = RNG.normal(size=(2, 19, 3)) * 0.4
PANEL_PX, PITCH_PX, TOP_PX, LEFT_PX = 320, 328, 66, 8


def write_meshes(folder: Path, predicted: np.ndarray, *, confidence: np.ndarray = SEEN, step: int = 100) -> list[Path]:
    count = len(predicted)
    return write_mesh_samples(
        folder, POINTS_PX[:count], confidence[:count], predicted, TRUE_M[:count], FACES, step
    )  # fmt: skip


def write_poses(folder: Path, predicted: np.ndarray, *, confidence: np.ndarray = SEEN) -> list[Path]:
    return write_pose_samples(folder, POINTS_PX, confidence, predicted, JOINTS_M, COCO19, 100)


def panel(path: Path, row: int, column: int) -> np.ndarray:
    """One panel of a picture, (320, 320, 3)."""
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    top, left = TOP_PX + row * PITCH_PX, LEFT_PX + column * PITCH_PX
    return picture[top : top + PANEL_PX, left : left + PANEL_PX]


def blue(image: np.ndarray) -> np.ndarray:
    """Where the predicted mesh is seen."""
    return image[..., 2] - image[..., 0] > 40


def near(image: np.ndarray, colour: tuple[int, int, int]) -> int:
    """How many pixels have about that colour."""
    return int((np.abs(image - colour).max(-1) < 12).sum())


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Everything that is written in the pictures."""
    found: list[str] = []
    original = Figure.savefig

    def savefig(figure: Figure, *args: Any, **kwargs: Any) -> None:
        original(figure, *args, **kwargs)
        found.extend(text.get_text() for axes in (figure, *figure.axes) for text in axes.texts)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return found


def test_every_person_gets_two_upright_meshes_and_a_row_in_the_picture(tmp_path: Path) -> None:
    predicted = TRUE_M * (1.0, 0.5, 0.8) + (0.1, 0.2, 0.3)
    written = write_meshes(tmp_path, predicted)
    assert {path.name for path in written} == {
        "person0.obj", "person0_truth.obj", "person1.obj", "person1_truth.obj", "people.png",
    }  # fmt: skip
    assert set(tmp_path.iterdir()) == set(written)
    for name, vertices in (("person1.obj", predicted[1]), ("person1_truth.obj", TRUE_M[1])):
        loaded = trimesh.load(tmp_path / name, process=False)
        np.testing.assert_allclose(loaded.vertices, vertices * (1, -1, -1), atol=1e-6)
    assert Image.open(tmp_path / "people.png").size == (LEFT_PX + 4 * PITCH_PX, TOP_PX + 2 * PITCH_PX)


def test_later_samples_take_the_place_of_earlier_ones(tmp_path: Path) -> None:
    first = write_meshes(tmp_path, TRUE_M[:1]) + write_poses(tmp_path, JOINTS_M)
    before = {path: path.read_bytes() for path in first}
    second = write_meshes(tmp_path, TRUE_M[:1] * 0.8, step=200) + write_poses(tmp_path, JOINTS_M * 0.8)
    assert set(second) == set(first) == set(tmp_path.iterdir())
    same = {path.name for path in first if path.read_bytes() == before[path]}
    assert same == {"person0_truth.obj"}


def test_a_prediction_is_shown_at_the_scale_of_the_truth(tmp_path: Path) -> None:
    write_meshes(tmp_path, TRUE_M * np.array([1.0, 0.5])[:, None, None])
    whole, half = (blue(panel(tmp_path / "people.png", row, 2)).sum() for row in range(2))
    assert whole == pytest.approx(np.pi * (0.4 * PANEL_PX) ** 2, rel=0.1)
    assert half == pytest.approx(whole / 4, rel=0.15)


def test_seen_from_the_side_what_is_nearer_to_the_camera_is_further_left(tmp_path: Path) -> None:
    write_meshes(tmp_path, TRUE_M[:1] * 0.2 + (0.0, 0.0, -0.25))
    front, side = (np.argwhere(blue(panel(tmp_path / "people.png", 0, k)))[:, 1].mean() for k in (2, 3))
    assert front == pytest.approx(PANEL_PX / 2, abs=2)
    assert side == pytest.approx(PANEL_PX * (0.5 - 0.25 * 0.8), abs=2)


def test_the_pictures_tell_step_errors_and_how_many_joints_were_seen(tmp_path: Path, texts: list[str]) -> None:
    confidence = SEEN.copy()
    confidence[0, :4] = 0.1
    write_meshes(tmp_path, TRUE_M[:1] + np.array((0.03, 0.04, 0.0)), confidence=confidence, step=1234)
    assert {"step 1234", "person 0", "15 of 19 joints seen", "surface error 50.0 mm"} <= set(texts)
    write_poses(tmp_path, JOINTS_M + np.array((0.0, 0.0, 0.1)), confidence=confidence)
    assert {"step 100", "joint error 100.0 mm", "person 1", "19 of 19 joints seen"} <= set(texts)


def test_a_prediction_that_is_not_finite_or_far_out_is_named_and_leaves_no_mesh(
    tmp_path: Path, texts: list[str]
) -> None:
    write_meshes(tmp_path, TRUE_M)
    predicted = TRUE_M.copy()
    predicted[0, 3] = np.nan
    predicted[1, 3] = 1e6
    write_meshes(tmp_path, predicted)
    assert {path.name for path in tmp_path.iterdir()} == {"person0_truth.obj", "person1_truth.obj", "people.png"}
    write_poses(tmp_path, JOINTS_M * np.array([np.nan, 1e6])[:, None, None])
    assert texts.count("the prediction is not finite") == 2


def test_a_tangled_surface_is_shown_as_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = []
    original = snapshots.draw_overlay

    def draw_overlay(image: np.ndarray, people: list[np.ndarray], *args: Any, **kwargs: Any) -> np.ndarray:
        rendered.extend(people)
        return original(image, people, *args, **kwargs)

    monkeypatch.setattr(snapshots, "draw_overlay", draw_overlay)
    write_meshes(tmp_path, RNG.normal(size=(1, len(BALL.vertices), 3)))
    assert len(rendered) == 2  # the true one from two sides
    assert near(panel(tmp_path / "people.png", 0, 2), (138, 180, 226)) > 20


def test_true_joints_are_grey_under_predicted_ones_in_the_colours_of_their_side(tmp_path: Path) -> None:
    write_poses(tmp_path, JOINTS_M * np.array([1.0, np.nan])[:, None, None])
    for column in (1, 2):
        shown, missing = (panel(tmp_path / "poses.png", row, column) for row in range(2))
        assert near(shown, LEFT) > 50 and near(shown, RIGHT) > 50
        assert near(missing, LEFT) == near(missing, RIGHT) == 0
        assert near(missing, (0xB4, 0xB8, 0xC0)) > 50


def test_joints_that_were_not_seen_are_not_drawn(tmp_path: Path) -> None:
    left = np.array([name.startswith("left") for name in COCO19.names])
    write_poses(tmp_path, JOINTS_M, confidence=np.stack([np.where(left, 0.0, 1.0), np.zeros(19)]))
    some, none = (panel(tmp_path / "poses.png", row, 0) for row in range(2))
    assert near(some, RIGHT) > 50 and near(some, LEFT) == 0
    assert near(none, RIGHT) == near(none, LEFT) == 0


def test_without_people_there_is_no_picture(tmp_path: Path) -> None:
    assert write_meshes(tmp_path, TRUE_M[:0]) == []
    nobody = np.zeros((0, 19, 3))
    assert write_pose_samples(tmp_path, nobody[..., :2], nobody[..., 0], nobody, nobody, COCO19, 1) == []
    assert list(tmp_path.iterdir()) == []
