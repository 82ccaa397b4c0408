"""The detector: its arithmetic against slow plain versions, and the true networks on the sample pictures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data import blazepose
from data.blazepose import Candidates, Roi, anchors, crop, decode_detections, merge_overlapping, refine, roi_of_body
from data.detection import Detector, Person, merge_looks, pose_similarity, tile_rois
from data.detector_files import detector_paths
from data.images import read_image
from mesh.camera import apply_weak_perspective, fit_weak_perspective
from mesh.errors import InputError
from mesh.joints import BLAZEPOSE33, COCO17, Keypoints

SAMPLES = Path(__file__).parents[2] / "data" / "samples"

# --- rois and crops


def test_anchors_are_the_cell_centres_of_three_grids_row_by_row() -> None:
    expected = []
    for cells, repeat in ((28, 2), (14, 2), (7, 6)):
        for row in range(cells):
            for column in range(cells):
                expected += [((column + 0.5) / cells, (row + 0.5) / cells)] * repeat
    assert len(expected) == 2254
    np.testing.assert_allclose(anchors(), expected)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_points_return_from_a_crop_to_where_they_were(seed: int) -> None:
    rng = np.random.default_rng(seed)
    roi = Roi(rng.normal(500, 300, 2), rng.uniform(1, 2000), rng.uniform(-4, 4))
    points = rng.normal(500, 500, (7, 2))
    np.testing.assert_allclose(roi.to_image(roi.from_image(points)), points, atol=1e-8)


def test_a_quarter_turn_takes_the_top_of_the_crop_to_the_right_of_the_picture() -> None:
    roi = Roi(np.array([10.0, 20.0]), 8, math.pi / 2)
    np.testing.assert_allclose(roi.to_image(np.array([0.5, 0.0])), [14, 20], atol=1e-12)


@pytest.mark.parametrize("end", [(50, 20), (90, 60), (50, 100), (25, 31)])
def test_the_body_points_up_in_its_crop(end: tuple[float, float]) -> None:
    hip, end_px = np.array([50.0, 60.0]), np.array(end, float)
    roi = roi_of_body(hip, end_px)
    np.testing.assert_allclose(roi.from_image(hip), [0.5, 0.5], atol=1e-12)
    np.testing.assert_allclose(roi.from_image(end_px), [0.5, 0.5 - 1 / 2.5], atol=1e-12)


def slow_crop(image: np.ndarray, roi: Roi, side: int) -> np.ndarray:
    """Bilinear sampling, one crop pixel after the other."""
    out = np.zeros((side, side, 3))
    for row in range(side):
        for column in range(side):
            x, y = roi.to_image(np.array([column + 0.5, row + 0.5]) / side) - 0.5
            x0, y0 = math.floor(x), math.floor(y)
            for yy, weight_y in ((y0, y0 + 1 - y), (y0 + 1, y - y0)):
                for xx, weight_x in ((x0, x0 + 1 - x), (x0 + 1, x - x0)):
                    out[row, column] += weight_y * weight_x * image[yy, xx] / 255
    return out


def gradient_image(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("angle", [0.0, 0.6, -2.5])
def test_a_crop_inside_the_picture_equals_slow_sampling(angle: float) -> None:
    image = gradient_image(60, 80)
    roi = Roi(np.array([41.3, 28.8]), 23.7, angle)
    np.testing.assert_allclose(crop(image, roi, 16), slow_crop(image, roi, 16), atol=1.5 / 255)


@pytest.mark.parametrize("angle", [0.0, 0.6])
def test_a_crop_of_a_large_roi_has_the_right_colours_in_the_right_places(angle: float) -> None:
    image = gradient_image(600, 800)
    roi = Roi(np.array([410.0, 290.0]), 370.0, angle)
    np.testing.assert_allclose(crop(image, roi, 32), slow_crop(image, roi, 32), atol=3 / 255)


def test_the_letterbox_is_black_outside_of_the_picture() -> None:
    white = np.full((50, 100, 3), 255, np.uint8)
    letterbox = crop(white, Roi(np.array([50.0, 25.0]), 100), 20)
    assert (letterbox[:4] == 0).all() and (letterbox[-4:] == 0).all()
    assert (letterbox[6:14, 1:-1] == 1).all()
    assert (crop(white, Roi(np.array([-500.0, 0.0]), 10), 4) == 0).all()


# --- detections


def test_detections_are_decoded_around_their_anchors_best_first() -> None:
    boxes, logits = np.zeros((2254, 12), np.float32), np.full((2254, 1), -200, np.float32)
    boxes[1570] = [22.4, 0, 44.8, 22.4, 0, 112, 0, -112, 2.24, 0, 0, 0]
    logits[1570], logits[3] = 2, 300
    found = decode_detections(boxes, logits, min_score=0.5)
    np.testing.assert_allclose(found.scores, [1, 1 / (1 + math.exp(-2))])
    x, y = anchors()[1570]
    expected = [(x, y - 0.05), (x + 0.2, y + 0.05), (x, y + 0.5), (x, y - 0.5), (x + 0.01, y), (x, y)]
    np.testing.assert_allclose(found.points[1], expected, atol=1e-6)


def slow_merge(scores: list[float], points: list[np.ndarray]) -> list[tuple[float, np.ndarray]]:
    """The textbook loop over boxes, in plain Python."""
    left = sorted(zip(scores, points), key=lambda pair: -pair[0])
    merged = []
    while left:
        best, others, group = left[0], left[:0], left[:1]
        for other in left[1:]:
            (ax0, ay0), (ax1, ay1), (bx0, by0), (bx1, by1) = *best[1][:2], *other[1][:2]
            shared = max(0, min(ax1, bx1) - max(ax0, bx0)) * max(0, min(ay1, by1) - max(ay0, by0))
            union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - shared
            (group if shared / union > 0.3 else others).append(other)
        weighted = np.stack([score * p for score, p in group])
        merged.append((best[0], weighted.sum(axis=0) / sum(score for score, _ in group)))
        left = others
    return merged


@given(seed=st.integers(0, 2**31), count=st.integers(0, 30))
@settings(max_examples=25, deadline=None)
def test_merging_equals_the_slow_version(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 1, (count, 6, 2))
    points[:, 1] = points[:, 0] + rng.uniform(0.2, 0.6, (count, 2))
    scores = np.sort(rng.uniform(0.5, 1, count))[::-1]
    found = merge_overlapping(Candidates(scores, points))
    expected = slow_merge(list(scores), list(points))
    assert len(found.scores) == len(expected)
    for score, merged, (slow_score, slow_points) in zip(found.scores, found.points, expected):
        assert score == slow_score
        np.testing.assert_allclose(merged, slow_points)


def test_boxes_without_area_stay_apart() -> None:
    assert len(merge_overlapping(Candidates(np.array([0.9, 0.8]), np.zeros((2, 6, 2)))).scores) == 2


# --- landmarks


def test_a_landmark_moves_to_the_centroid_of_its_heat() -> None:
    heat = np.zeros((64, 64, 2))
    heat[20, 10, 0], heat[22, 12, 0] = 0.9, 0.3
    heat[20, 10, 1] = 0.4  # too flat to trust
    heat[50, 50] = 1  # too far away to count
    start = np.array([[11.5, 21.5], [11.5, 21.5]]) / 64
    moved = refine(start, heat)
    np.testing.assert_allclose(moved[0] * 64, [10.5, 20.5])
    np.testing.assert_array_equal(moved[1], start[1])


def test_a_landmark_at_or_beyond_the_edge_is_no_error() -> None:
    heat = np.ones((64, 64, 3))
    moved = refine(np.array([[0.0, 0.0], [63.9 / 64, 63.9 / 64], [1.2, -0.4]]), heat)
    np.testing.assert_allclose(moved * 64, [[1.5, 1.5], [61.5, 61.5], [76.8, -25.6]])


def test_confidence_is_the_lower_one_of_visibility_and_presence() -> None:
    raw = np.zeros((39, 5), np.float32)
    raw[0], raw[1] = [128, 64, 0, 5, -1], [0, 0, 0, -2, 5]
    points, confidence = blazepose.decode_landmarks(raw.ravel(), np.full((64, 64, 39), -50, np.float32))
    np.testing.assert_allclose(points[0], [0.5, 0.25])
    np.testing.assert_allclose(confidence[:2], [1 / (1 + math.e), 1 / (1 + math.e**2)])


# --- people


def test_similarity_is_one_for_the_mirrored_labels_and_none_for_another_place(pose: np.ndarray) -> None:
    mirrored = pose[list(BLAZEPOSE33.flip_permutation)]
    assert pose_similarity(pose, pose) == 1
    assert pose_similarity(pose, mirrored) == 1
    assert pose_similarity(pose, pose + 300) < 0.01
    assert 0.3 < pose_similarity(pose, pose + 15) < 0.99


@pytest.fixture
def pose() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 100, (33, 2))


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (300, 300), (5000, 40), (1, 1)])
def test_tiles_cover_the_picture_and_overlap_by_half(width: int, height: int) -> None:
    rois = tile_rois(width, height)
    assert len(rois) <= 40
    for side in {roi.side_px for roi in rois}:
        for axis, length in enumerate((width, height)):
            centres = sorted({roi.centre_px[axis] for roi in rois if roi.side_px == side})
            assert centres[0] - side / 2 <= 1e-9 and centres[-1] + side / 2 >= length - 1e-9
            assert all(b - a <= side / 2 + 1e-9 for a, b in itertools.pairwise(centres))


def person(offset: float, *, scale: float = 1.0, score: float = 1.0, steadiness: float = 1.0) -> Person:
    joints = np.random.default_rng(1).uniform(0, 100, (33, 2)) * scale + offset
    return Person(
        positions_px=joints,
        confidence=np.ones(33),
        world_m=np.zeros((33, 3)),
        score=score,
        steadiness=steadiness,
        roi=Roi(np.zeros(2), 1),
    )


def test_two_looks_are_averaged_where_they_agree_and_the_surer_one_believed_where_not() -> None:
    one = person(200.0, scale=3)
    one.confidence[:] = 0.8
    other_px, sureness = one.positions_px + np.array([4, -2]), np.full(33, 0.4)
    size = np.sqrt(np.ptp(one.positions_px, axis=0).prod())
    other_px[5] += 0.2 * size
    other_px[6] += 0.2 * size
    sureness[6] = 0.9
    merged = merge_looks(one, other_px, sureness, (900, 900))
    expected = one.positions_px + np.array([2, -1])
    expected[5], expected[6] = one.positions_px[5], other_px[6]
    np.testing.assert_allclose(merged.positions_px, expected)
    np.testing.assert_allclose(merged.confidence, (0.8 + sureness) / 2)
    assert merged.roi is one.roi and merged.score == one.score


def test_a_look_that_names_the_sides_differently_is_read_the_other_way_round() -> None:
    one, order = person(200.0, scale=3), list(BLAZEPOSE33.flip_permutation)
    sureness = np.linspace(0.1, 0.9, 33)
    merged = merge_looks(one, one.positions_px[order], sureness[order], (900, 900))
    np.testing.assert_allclose(merged.positions_px, one.positions_px)
    np.testing.assert_allclose(merged.confidence, (1 + sureness) / 2)


def test_what_one_look_did_not_see_and_what_leaves_the_picture_stays_unseen() -> None:
    one = person(200.0, scale=3)
    one.confidence[3] = 0
    other_px = one.positions_px.copy()
    other_px[7] = (-20, 300)
    one.positions_px[7] = (10, 300)
    merged = merge_looks(one, other_px, np.ones(33), (900, 900))
    assert merged.confidence[3] == 0 and merged.confidence[7] == 0 and (merged.confidence == 0).sum() == 2


@pytest.mark.assets
def test_the_mirrored_look_sees_what_a_look_at_the_mirrored_picture_sees(detector: Detector) -> None:
    image = read_image(SAMPLES / "park.jpg")[:400, 300:600]
    roi = detector.people(image)[0].roi
    px, confidence = detector._look_mirrored(image, roi)
    width = image.shape[1]
    turned = Roi(np.array([width - roi.centre_px[0], roi.centre_px[1]]), roi.side_px, -roi.angle_rad)
    points, _, sureness, _ = detector._look(np.ascontiguousarray(image[:, ::-1]), turned)
    order = list(BLAZEPOSE33.flip_permutation)
    expected = (points[:33] * (-1, 1) + (width, 0))[order]
    np.testing.assert_allclose(px, expected, atol=0.02 * roi.side_px)
    assert np.median(np.abs(px - expected)) < 0.004 * roi.side_px
    np.testing.assert_allclose(confidence, sureness[:33][order], atol=0.15)


class Scripted(Detector):
    """A detector that sees what it is told: people in the whole picture, and people in its tiles."""

    def __init__(self, whole: list[Person], tiles: list[Person]) -> None:
        self.whole, self.tiles, self.looked_closer = whole, tiles, False

    def _also_in_mirror(self, image: np.ndarray, person: Person) -> Person:
        return person

    def _finds(self, image: np.ndarray, rois: Sequence[Roi], min_score: float) -> list[Person]:
        if len(rois) == 1:
            return self.whole
        self.looked_closer = True
        return self.tiles


IMAGE = np.zeros((1000, 1000, 3), np.uint8)
NEAR = person(0, scale=6)
FAR = person(800)


def test_tiles_are_left_out_when_somebody_is_near() -> None:
    detector = Scripted([NEAR], [FAR])
    assert detector.people(IMAGE) == [NEAR] and not detector.looked_closer
    assert detector.people(IMAGE, tiles=True) == [NEAR, FAR]


@pytest.mark.parametrize("whole", [[], [person(300)], [NEAR, person(700, steadiness=0.5)]])
def test_tiles_are_searched_when_nobody_is_near_or_somebody_is_doubtful(whole: list[Person]) -> None:
    detector = Scripted(whole, [FAR])
    people = detector.people(IMAGE)
    assert detector.looked_closer and any(found is FAR for found in people)
    assert not any(found is FAR for found in detector.people(IMAGE, tiles=False))


def test_tiles_only_add_people_clear_of_those_already_found() -> None:
    within = person(30)
    assert pose_similarity(within.positions_px, NEAR.positions_px) < 0.3  # a part of the body, but no similar pose
    assert Scripted([NEAR], [within, FAR, person(802)]).people(IMAGE, tiles=True) == [NEAR, FAR]


def test_a_steady_find_in_a_tile_replaces_a_doubtful_one() -> None:
    doubtful, lonely = person(805, steadiness=0.5), person(400, steadiness=0.5)
    assert Scripted([doubtful, lonely], [FAR]).people(IMAGE) == [FAR, lonely]


def test_people_that_are_implausible_or_leave_the_picture_are_dropped() -> None:
    unsure, doubtful, outside = person(100, score=0.4), person(400, steadiness=0.5), person(970)
    hidden = person(700)
    hidden.confidence[list(BLAZEPOSE33.indices(("left_shoulder", "left_hip", "right_hip")))] = 0.1
    assert Scripted([], [unsure, doubtful, outside, hidden]).people(IMAGE) == []
    assert Scripted([unsure, hidden], []).people(IMAGE) == []


def test_no_more_people_than_asked_for_are_returned() -> None:
    assert len(Scripted([NEAR], [FAR]).people(IMAGE, tiles=True, max_people=1)) == 1


def test_nobody_is_an_empty_set_of_keypoints() -> None:
    keypoints = Scripted([], []).detect(np.zeros((20, 30, 3), np.uint8))
    assert len(keypoints) == 0 and keypoints.joint_set is BLAZEPOSE33 and keypoints.image_size == (30, 20)
    assert len(keypoints.to(COCO17)) == 0


@pytest.mark.parametrize("image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8)])
def test_what_is_no_rgb_picture_is_refused(image: np.ndarray) -> None:
    with pytest.raises(InputError, match="uint8 RGB"):
        Scripted([], []).detect(image)


# --- the true networks


@pytest.fixture(scope="module")
def detector() -> Detector:
    try:
        return Detector(detector_paths())
    except InputError as error:
        pytest.skip(str(error))


def boxes(keypoints: Keypoints) -> np.ndarray:
    """Left, top, right, bottom of the joints, people from left to right, in parts of the picture."""
    low, high = keypoints.positions_px.min(axis=1), keypoints.positions_px.max(axis=1)
    assert keypoints.image_size is not None
    found = np.concatenate([low, high], axis=1) / np.tile(keypoints.image_size, 2)
    return found[np.argsort(found[:, 0])]


@pytest.mark.assets
def test_both_people_in_the_park_are_found(detector: Detector) -> None:
    keypoints = detector.detect(read_image(SAMPLES / "park.jpg"))
    jumper, walker = boxes(keypoints)  # measured by eye in the picture
    np.testing.assert_allclose(jumper, [0.29, 0.05, 0.415, 0.46], atol=0.02)
    np.testing.assert_allclose(walker, [0.72, 0.55, 0.85, 0.945], atol=0.04)


@pytest.mark.assets
def test_the_balancing_man_is_found_once(detector: Detector) -> None:
    keypoints = detector.detect(read_image(SAMPLES / "balance.jpg"))
    assert len(keypoints) in (1, 2)
    expected = {"left_wrist": (0.30, 0.56), "right_elbow": (0.49, 0.275), "left_ankle": (0.51, 0.625)}
    size = np.array(keypoints.image_size)
    for name, place in expected.items():
        found = keypoints.positions_px[:, BLAZEPOSE33.index(name)] / size
        assert (np.linalg.norm(found - place, axis=-1) < 0.04).sum() == 1, name


@pytest.mark.assets
def test_a_picture_turned_by_exif_gives_the_same_people(detector: Detector, tmp_path: Path) -> None:
    with Image.open(SAMPLES / "park.jpg") as upright:
        exif = Image.Exif()
        exif[0x0112] = 6  # shown turned clockwise by a quarter
        upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    turned = detector.detect(read_image(tmp_path / "turned.png"))
    upright_keypoints = detector.detect(read_image(SAMPLES / "park.jpg"))
    np.testing.assert_allclose(turned.positions_px, upright_keypoints.positions_px, atol=0.5)


@pytest.mark.assets
@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (480, 640), (40, 3000)])
@pytest.mark.parametrize("kind", ["black", "white", "noise"])
def test_nobody_is_found_where_there_is_nobody(detector: Detector, shape: tuple[int, int], kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    image = noise if kind == "noise" else np.full((*shape, 3), 255 * (kind == "white"), np.uint8)
    assert len(detector.detect(image)) == 0


@pytest.mark.assets
def test_a_person_in_a_very_wide_picture_is_found(detector: Detector) -> None:
    park = read_image(SAMPLES / "park.jpg")
    wide = np.full((360, 2400, 3), 200, np.uint8)
    wide[:, 1200:1500] = park[360:, 870:1170]  # the walking woman, a ninth of the picture's long side
    (found,) = boxes(detector.detect(wide))
    np.testing.assert_allclose(found, [0.523, 0.153, 0.589, 0.889], atol=0.02)


@pytest.mark.assets
def test_a_picture_of_twice_the_size_gives_the_same_people(detector: Detector) -> None:
    park = read_image(SAMPLES / "park.jpg")
    large = park.repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_allclose(boxes(detector.detect(large)), boxes(detector.detect(park)), atol=0.01)


@pytest.mark.assets
@pytest.mark.parametrize("quarter_turns", [0, 1, 3])
def test_the_detector_s_own_3d_joints_lie_over_the_2d_ones_however_the_picture_is_turned(
    detector: Detector, quarter_turns: int
) -> None:
    jumper = np.rot90(read_image(SAMPLES / "park.jpg")[:400, 300:600], quarter_turns)
    person = detector.people(np.ascontiguousarray(jumper))[0]
    seen = list(BLAZEPOSE33.indices(("left_shoulder", "right_shoulder", "left_hip", "right_hip", "left_knee", "nose")))
    points, world = (torch.from_numpy(a[seen])[None].double() for a in (person.positions_px, person.world_m))
    camera = fit_weak_perspective(world, points, torch.ones(1, len(seen), dtype=torch.float64))
    placed = apply_weak_perspective(world, camera)[0, :, :2]
    assert (placed - points[0]).norm(dim=-1).mean() < 0.1 * person.size_px
    assert np.abs(person.world_m[list(BLAZEPOSE33.indices(("left_hip", "right_hip")))].mean(0)).max() < 0.02


@pytest.mark.assets
def test_joints_outside_of_the_picture_have_no_confidence(detector: Detector) -> None:
    jumper = read_image(SAMPLES / "park.jpg")[:260, 300:600]  # cut at the knees
    keypoints = detector.detect(jumper)
    outside = keypoints.positions_px[..., 1] > 260
    assert len(keypoints) == 1 and outside[0, list(BLAZEPOSE33.indices(("left_ankle", "right_ankle")))].all()
    assert (keypoints.confidence[outside] == 0).all() and (keypoints.confidence[~outside] > 0.5).sum() >= 20


def test_joints_at_the_border_have_no_confidence(monkeypatch) -> None:
    """A person of 100 x 400 px, that is of size 200, whose joints stand 4, 7, 9 ... px from the right border."""
    points = np.stack((np.linspace(0, 100, 39), np.linspace(0, 400, 39)), axis=1) + 50
    points[:3, 0] = np.array([496, 493, 491])
    points[3:6, 0] = np.array([400, 399, 398])
    look = (points, np.zeros((39, 3)), np.ones(39, np.float32), 1.0)
    monkeypatch.setattr(Detector, "_look", lambda self, image, roi: look)
    person = object.__new__(Detector)._person(np.zeros((500, 500, 3), np.uint8), Roi(np.array([250.0, 250.0]), 500.0))
    size = np.sqrt(np.ptp(points[:33], axis=0).prod())
    gap = 500 - points[:33, 0]
    np.testing.assert_array_equal(person.confidence, gap >= 0.04 * size)
    assert 0 < (person.confidence == 0).sum() <= 3
