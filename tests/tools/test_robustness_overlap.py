"""Self-intersection, on bodies whose overlap is known."""

from __future__ import annotations

import numpy as np
import pytest

from mesh.body import load_body
from tools.robustness_overlap import PARTS, OverlapMeter, winding_number

BODY = load_body()
CUBE = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
QUADS = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))
CUBE_CORNERS = CUBE[np.array([t for a, b, c, d in QUADS for t in ((a, b, c), (a, c, d))])]


@pytest.fixture(scope="module")
def meter() -> OverlapMeter:
    return OverlapMeter(BODY)


def test_the_winding_number_is_one_inside_and_zero_outside() -> None:
    points = np.array([(0.5, 0.5, 0.5), (0.1, 0.9, 0.2), (1.5, 0.5, 0.5), (-3, 2, 9)])
    np.testing.assert_allclose(winding_number(points, CUBE_CORNERS), (1, 1, 0, 0), atol=1e-5)
    np.testing.assert_allclose(winding_number(points, CUBE_CORNERS[:, ::-1]), (-1, -1, 0, 0), atol=1e-5)


def test_points_by_the_thousand_are_those_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.random.default_rng(0).uniform(-0.5, 1.5, (50, 3))
    whole = winding_number(points, CUBE_CORNERS)
    monkeypatch.setattr("tools.robustness_overlap._BLOCK_PAIRS", 40)
    np.testing.assert_allclose(winding_number(points, CUBE_CORNERS), whole, atol=1e-6)


def test_every_part_is_closed(meter: OverlapMeter) -> None:
    assert [part.name for part in meter._parts] == list(PARTS)
    for part in meter._parts:
        edges = np.concatenate([part.faces[:, [0, 1]], part.faces[:, [1, 2]], part.faces[:, [2, 0]]]).tolist()
        there = {tuple(edge) for edge in edges}
        assert len(there) == len(edges) and all((b, a) in there for a, b in there), part.name


def test_a_body_at_rest_does_not_intersect_itself_in_any_frame(meter: OverlapMeter) -> None:
    for vertices in (BODY.template, BODY.template * (1, -1, -1) + 3):
        found = meter(vertices)
        assert found.share == 0 and found.pairs == {}


def test_a_forearm_in_the_trunk_is_found_and_is_as_much_as_lies_there(meter: OverlapMeter) -> None:
    names = list(PARTS)
    forearm, trunk = (meter.label == names.index(name) for name in ("left forearm", "trunk"))
    vertices = BODY.template.astype(np.float64)
    middle = vertices[trunk].mean(0)
    vertices[forearm] = middle + 0.05 * (vertices[forearm] - vertices[forearm].mean(0))  # small, and wholly inside
    found = meter(vertices)
    whole = np.isin(meter.samples, np.flatnonzero(forearm)).mean()
    assert next(iter(found.pairs)) == ("left forearm", "trunk")
    assert found.pairs["left forearm", "trunk"] == pytest.approx(whole, rel=0.1) and found.share >= 0.9 * whole


def test_samples_stand_for_equal_areas(meter: OverlapMeter) -> None:
    corners = BODY.template[BODY.faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=-1)
    for number, name in enumerate(PARTS):
        share = area[(meter.label[BODY.faces] == number).sum(1) >= 2].sum() / area.sum()
        assert (meter.label[meter.samples] == number).mean() == pytest.approx(share, abs=0.01), name
