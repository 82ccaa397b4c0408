from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tools.reliability_plot import draw_reliability, tenths


def test_tenths_go_by_what_is_expected_and_average_both() -> None:
    expected = np.random.default_rng(0).permutation(100).astype(float)
    found = tenths(expected, 3 * expected)
    np.testing.assert_allclose(found[:, 0], np.arange(4.5, 100, 10))
    np.testing.assert_allclose(found[:, 1], 3 * found[:, 0])
    np.testing.assert_array_equal(tenths(np.array([2.0, 1.0]), np.array([5.0, 6.0])), [(1, 6), (2, 5)])


def test_the_plot_is_a_small_picture_that_replaces_the_old_one(tmp_path: Path, generator: torch.Generator) -> None:
    errors = torch.rand(50, 17, generator=generator)
    for kinds in (("exact",), ("exact", "noisy")):
        draw_reliability({kind: (errors, errors) for kind in kinds}, tmp_path / "r.png", 7)
    with Image.open(tmp_path / "r.png") as picture:
        assert picture.size[0] > 1.5 * picture.size[1]
    assert [p.name for p in tmp_path.iterdir()] == ["r.png"] and (tmp_path / "r.png").stat().st_size < 80_000
