from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from mesh.errors import InputError
from mesh.joints import COCO17, Keypoints
from mesh.normals import vertex_normals
from mesh.rasterise import Fragments, rasterise
from mesh.render import (
    LEFT,
    RIGHT,
    draw_keypoints,
    draw_overlay,
    draw_side_view,
    side_by_side,
    write_png,
)

TRIANGLE = np.array([[0, 1, 2]])
GREY = np.full((80, 100, 3), 128, np.uint8)


def sphere(centre: tuple[float, float, float], radius: float, subdivisions: int = 4) -> tuple[np.ndarray, np.ndarray]:
    ball = trimesh.creation.icosphere(subdivisions=subdivisions)
    return ball.vertices * radius + centre, ball.faces


def random_triangles(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.uniform(-10, 50, (3 * count, 3)), np.arange(3 * count).reshape(-1, 3)


def barycentric_of(point: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """By the linear system of the definition; shares nothing with the scan lines."""
    return np.linalg.solve(np.vstack((corners[:, :2].T, np.ones(3))), (*point, 1.0))


def assert_same_as_oracle(seen: Fragments, vertices: np.ndarray, faces: np.ndarray) -> None:
    """Every pixel not within 1e-9 of an edge, one at a time."""
    height, width = seen.face_idx.shape
    for row in range(height):
        for column in range(width):
            weights = [barycentric_of(np.array((column + 0.5, row + 0.5)), vertices[face]) for face in faces]
            if min(np.abs(w).min() for w in weights) < 1e-9:
                continue
            hits = [(w @ vertices[face, 2], k) for k, (w, face) in enumerate(zip(weights, faces)) if w.min() > 0]
            depth, owner = min(hits, default=(np.inf, -1))
            assert seen.face_idx[row, column] == owner
            assert seen.depth[row, column] == pytest.approx(depth, abs=1e-4)
            expected = weights[owner] if owner >= 0 else np.zeros(3)
            np.testing.assert_allclose(seen.barycentric[row, column], expected, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_each_pixel_shows_the_nearest_triangle_around_its_centre(seed: int) -> None:
    vertices, faces = random_triangles(8, np.random.default_rng(seed))
    seen = rasterise(vertices, faces, (24, 16))
    assert (seen.face_idx >= 0).any()
    assert_same_as_oracle(seen, vertices, faces)


def test_barycentric_weights_reproduce_the_pixel_centres_and_the_depth() -> None:
    vertices, faces = random_triangles(300, np.random.default_rng(0))
    seen = rasterise(vertices, faces, (40, 40))
    rows, columns = np.nonzero(seen.face_idx >= 0)
    weights = seen.barycentric[rows, columns]
    points = np.einsum("nk,nkc->nc", weights, vertices[faces[seen.face_idx[rows, columns]]])
    assert weights.min() >= 0
    expected = np.stack((columns + 0.5, rows + 0.5, seen.depth[rows, columns]), axis=1)
    np.testing.assert_allclose(points, expected, atol=1e-4)


def times_covered(vertices: np.ndarray, faces: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """By how many of the faces, drawn one at a time, each pixel is covered."""
    return np.sum([rasterise(vertices, face[None], size).face_idx >= 0 for face in faces], axis=0)


def test_faces_that_share_edges_cover_each_pixel_exactly_once() -> None:
    rng = np.random.default_rng(1)
    grid = trimesh.creation.icosphere(subdivisions=3)  # its front half, drawn face by face
    vertices = grid.vertices * 15.5 + (20, 20, 0)
    front = grid.faces[grid.face_normals[:, 2] < -0.05]
    vertices[:, :2] += rng.uniform(-0.05, 0.05, (len(vertices), 2))
    count = times_covered(vertices, front, (40, 40))
    assert count.max() == 1
    np.testing.assert_array_equal(count == 1, rasterise(vertices, front, (40, 40)).face_idx >= 0)


def test_edges_through_pixel_centres_leave_no_gap_and_no_overlap() -> None:
    steps = np.arange(5) * 2 + 0.5  # every grid line runs through centres
    vertices = np.stack((*np.meshgrid(steps, steps), np.zeros((5, 5))), axis=-1).reshape(-1, 3)
    corner = (np.arange(4)[:, None] * 5 + np.arange(4)).ravel()
    faces = np.concatenate([corner[:, None] + offsets for offsets in ((0, 1, 6), (0, 6, 5))])
    count = times_covered(vertices, faces, (10, 10))
    expected = np.zeros((10, 10), int)
    expected[:8, :8] = 1
    np.testing.assert_array_equal(count, expected)


def test_a_closed_surface_has_no_holes() -> None:
    vertices, faces = sphere((50.3, 40.7, 0), 37, subdivisions=5)
    covered = rasterise(vertices, faces, (100, 80)).face_idx >= 0
    for line in (*covered, *covered.T):
        inside = np.flatnonzero(line)
        assert len(inside) == 0 or np.ptp(inside) + 1 == len(inside)


def test_culling_back_faces_changes_nothing_on_a_closed_surface_but_hides_an_open_one_from_behind() -> None:
    vertices, faces = sphere((20, 20, 0), 15, subdivisions=3)
    whole, culled = (rasterise(vertices, faces, (40, 40), cull_back_faces=cull) for cull in (False, True))
    inner = whole.barycentric.min(-1) > 1e-3
    np.testing.assert_array_equal(whole.face_idx[inner], culled.face_idx[inner])
    triangle = np.array([(0, 0, 1), (0, 9, 1), (9, 0, 1)])  # counter-clockwise to the eye: y points down
    for order, seen in (((0, 1, 2), True), ((0, 2, 1), False)):
        culled = rasterise(triangle, np.array([order]), (8, 8), cull_back_faces=True)
        assert (culled.face_idx[2, 2] == 0) == seen


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_nearer_triangle_wins_whatever_the_order(order: tuple[int, int]) -> None:
    flat = np.array([(0, 0), (20, 0), (0, 20)])
    vertices = np.concatenate([np.c_[flat, np.full(3, depth)] for depth in (5.0, 2.0)])
    faces = np.array([(0, 1, 2), (3, 4, 5)])[list(order)]
    assert rasterise(vertices, faces, (8, 8)).face_idx[3, 3] == order.index(1)


def test_triangles_that_cross_the_border_are_clipped_and_those_outside_leave_nothing() -> None:
    huge = np.array([(-1e7, -1e7, 1.0), (3e7, -1e7, 1.0), (-1e7, 3e7, 1.0)])
    assert (rasterise(huge, TRIANGLE, (7, 5)).face_idx == 0).all()
    for shift in ((-40, 0), (40, 0), (0, -40), (0, 40)):
        outside = np.array([(1, 1, 1), (9, 1, 1), (1, 9, 1)]) + np.array((*shift, 0))
        seen = rasterise(outside, TRIANGLE, (10, 10))
        assert (seen.face_idx == -1).all()
        assert np.isinf(seen.depth).all()


@pytest.mark.parametrize(
    "corners",
    [[(2.5, 2.5), (2.5, 2.5), (2.5, 2.5)], [(0.5, 0.5), (4.5, 4.5), (8.5, 8.5)], [(0, 2.5), (9, 2.5), (4, 2.5)]],
    ids=["point", "slanted line", "flat line"],
)
def test_a_triangle_without_area_shows_nothing(corners: list[tuple[float, float]]) -> None:
    with np.errstate(all="raise"):
        assert (rasterise(np.c_[corners, np.ones(3)], TRIANGLE, (10, 10)).face_idx == -1).all()


def test_normals_of_a_sphere_point_away_from_its_centre() -> None:
    vertices, faces = sphere((1, 2, 3), 5.0)
    np.testing.assert_allclose(vertex_normals(vertices, faces), (vertices - (1, 2, 3)) / 5, atol=0.01)


def test_a_vertex_without_a_face_has_a_zero_normal() -> None:
    vertices = np.array([(0, 0, 0), (1, 0, 0), (0, 1, 0), (5, 5, 5)])
    np.testing.assert_array_equal(vertex_normals(vertices, TRIANGLE), [(0, 0, 1)] * 3 + [(0, 0, 0)])


def test_no_people_leave_an_equal_copy() -> None:
    drawn = draw_overlay(GREY, [], TRIANGLE)
    np.testing.assert_array_equal(drawn, GREY)
    assert not np.shares_memory(drawn, GREY)


def test_people_outside_the_picture_change_nothing() -> None:
    vertices, faces = sphere((-200, 40, 0), 30)
    np.testing.assert_array_equal(draw_overlay(GREY, [vertices], faces), GREY)


def test_the_input_picture_is_not_modified() -> None:
    image = GREY.copy()
    vertices, faces = sphere((50, 40, 0), 30)
    assert (draw_overlay(image, [vertices], faces) != GREY).any()
    np.testing.assert_array_equal(image, GREY)


def test_the_silhouette_of_a_ball_has_the_area_of_its_circle() -> None:
    black = np.zeros((80, 100, 3), np.uint8)
    vertices, faces = sphere((50.2, 39.6, 0), 30, subdivisions=5)
    on_black, on_white = (draw_overlay(image, [vertices], faces, alpha=1).astype(float) for image in (black, ~black))
    share = 1 - (on_white - on_black).mean(-1) / 255  # what of the background is hidden
    assert share.sum() == pytest.approx(np.pi * 30**2, rel=0.004)
    partial = (share > 0.05) & (share < 0.95)
    assert partial.sum() > 100, "the silhouette must be smooth"


def test_alpha_is_the_share_of_the_mesh() -> None:
    vertices, faces = sphere((50, 40, 0), 30)
    opaque, half = (draw_overlay(GREY, [vertices], faces, alpha=alpha).astype(float) for alpha in (1.0, 0.5))
    np.testing.assert_allclose(half, (opaque + GREY) / 2, atol=1.01)


@pytest.mark.parametrize("alpha", [-0.1, 1.5])
def test_an_impossible_alpha_is_refused(alpha: float) -> None:
    vertices, faces = sphere((50, 40, 0), 30)
    with pytest.raises(InputError, match="alpha"):
        draw_overlay(GREY, [vertices], faces, alpha=alpha)


def test_a_mesh_with_nan_is_refused_with_its_number() -> None:
    vertices, faces = sphere((50, 40, 0), 30)
    with pytest.raises(InputError, match="person 1"):
        draw_overlay(GREY, [vertices, vertices * np.nan], faces)


def test_the_nearer_person_hides_the_other_in_any_order() -> None:
    near, faces = sphere((40, 40, -100), 25)
    far, _ = sphere((60, 40, 100), 25)
    red, blue = (255, 0, 0), (0, 0, 255)
    one = draw_overlay(GREY, [near, far], faces, colours=[red, blue])
    other = draw_overlay(GREY, [far, near], faces, colours=[blue, red])
    np.testing.assert_array_equal(one, other)
    assert one[40, 50, 0] > one[40, 50, 2]
    assert one[40, 80, 2] > one[40, 80, 0]


def test_people_get_different_colours() -> None:
    balls = [sphere((10 + 20 * k, 40, 0), 8)[0] for k in range(5)]
    drawn = draw_overlay(GREY, balls, sphere((0, 0, 0), 1)[1], alpha=1)
    centres = [tuple(drawn[40, 10 + 20 * k]) for k in range(5)]
    assert len(set(centres)) == 5


def test_light_falls_from_the_upper_left_front() -> None:
    vertices, faces = sphere((50, 40, 0), 30)
    brightness = draw_overlay(GREY, [vertices], faces, alpha=1).sum(-1)
    assert brightness[25, 35] > brightness[40, 50] > brightness[55, 65]


def test_an_open_surface_is_lit_on_both_sides() -> None:
    corners = np.array([(10.0, 10, 0), (90, 10, 0), (50, 70, 0)])
    front, back = (draw_overlay(GREY, [corners], np.array([order])) for order in ((0, 1, 2), (0, 2, 1)))
    np.testing.assert_array_equal(front, back)


def test_bands_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    vertices, faces = sphere((50.3, 40.2, 0), 33)
    whole = draw_overlay(GREY, [vertices], faces)
    monkeypatch.setattr("mesh.render._BAND_SAMPLES", 3000)
    np.testing.assert_allclose(draw_overlay(GREY, [vertices], faces), whole, atol=1)


def test_a_huge_person_is_drawn_with_one_sample_per_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    vertices, faces = sphere((50.3, 40.2, 0), 33)
    smooth = draw_overlay(GREY, [vertices], faces)
    monkeypatch.setattr("mesh.render._MAX_SUPERSAMPLED_PIXELS", 1000)
    coarse = draw_overlay(GREY, [vertices], faces)
    is_person = rasterise(vertices, faces, (100, 80)).face_idx >= 0
    np.testing.assert_array_equal(coarse[~is_person], GREY[~is_person])
    np.testing.assert_allclose(coarse[30:50, 40:60], smooth[30:50, 40:60], atol=2)


def test_the_side_view_turns_a_camera_facing_person_to_the_left() -> None:
    body, faces = sphere((0, 0, 0), 0.3, subdivisions=2)
    nose, _ = sphere((0, 0, -0.5), 0.1, subdivisions=2)  # towards the camera
    person, faces = np.concatenate((body, nose)), np.concatenate((faces, faces + len(body)))
    view = draw_side_view([person], faces, (90, 60))
    assert view.shape == (60, 90, 3)
    rows = np.abs(view.astype(int) - draw_side_view([], faces, (90, 60))).sum(-1) > 30
    height_left, height_right = (rows[:, columns].any(1).sum() for columns in (slice(0, 20), slice(70, 90)))
    assert 0 < height_left < height_right


def test_the_side_view_sets_people_side_by_side_within_the_picture() -> None:
    ball, faces = sphere((0, 0, 0), 0.5, subdivisions=3)
    view, paper = draw_side_view([ball, ball * 0.5, ball], faces, (200, 100)), draw_side_view([], faces, (200, 100))
    touched = (view != paper).any(-1)
    assert not (touched[[0, -1]].any() or touched[:, [0, -1]].any())
    starts = np.flatnonzero(np.diff(touched.any(0).astype(int)) == 1)
    assert len(starts) == 3


def test_pictures_side_by_side_get_the_height_of_the_first() -> None:
    joined = side_by_side([np.zeros((40, 30, 3), np.uint8), np.full((80, 100, 3), 200, np.uint8)])
    assert joined.shape == (40, 30 + 50, 3)
    assert (joined[:, :30] == 0).all()
    assert (joined[:, 30:] == 200).all()


def one_person(**positions: tuple[float, float]) -> Keypoints:
    """The named joints are known, all others are not."""
    points, confidence = np.zeros((1, 17, 2)), np.zeros((1, 17))
    for name, position in positions.items():
        points[0, COCO17.index(name)] = position
        confidence[0, COCO17.index(name)] = 1
    return Keypoints(positions_px=points, confidence=confidence, joint_set=COCO17)


def test_links_are_drawn_in_the_colour_of_their_side() -> None:
    arms = {"left_shoulder": (70, 10), "left_elbow": (70, 70), "right_shoulder": (30, 10), "right_elbow": (30, 70)}
    person = one_person(**arms)
    drawn = draw_keypoints(GREY, person)
    np.testing.assert_array_equal(drawn[40, 70], LEFT)
    np.testing.assert_array_equal(drawn[40, 30], RIGHT)
    np.testing.assert_array_equal(drawn[40, 50], GREY[40, 50])


def test_an_uncertain_joint_is_left_out_with_its_links() -> None:
    person = one_person(left_shoulder=(20, 40), left_elbow=(50, 40), left_wrist=(80, 40))
    confidence = person.confidence.copy()
    confidence[0, COCO17.index("left_wrist")] = 0.2
    drawn = draw_keypoints(GREY, replace(person, confidence=confidence))
    assert (drawn[40, 35] != GREY[40, 35]).any()
    np.testing.assert_array_equal(drawn[:, 60:], GREY[:, 60:])


def test_a_person_without_known_joints_and_one_outside_the_picture_change_nothing() -> None:
    np.testing.assert_array_equal(draw_keypoints(GREY, one_person()), GREY)
    far_away = one_person(left_shoulder=(-500, 40), left_elbow=(-400, 4000))
    np.testing.assert_array_equal(draw_keypoints(GREY, far_away), GREY)


def test_skeleton_edges_are_smooth() -> None:
    drawn = draw_keypoints(np.zeros((80, 100, 3), np.uint8), one_person(nose=(50.3, 40.7)))
    levels = np.unique(drawn[..., 0])
    assert len(levels) > 4


def test_a_png_reads_back_equal_and_leaves_no_other_file(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3)).astype(np.uint8)
    write_png(tmp_path / "picture.png", image)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "picture.png")), image)
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_a_png_that_cannot_be_written_is_an_input_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "taken.png").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing" / "picture.png", tmp_path / "taken.png", tmp_path / "file" / "picture.png"):
        with pytest.raises(InputError, match=path.name):
            write_png(path, GREY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken.png"]
