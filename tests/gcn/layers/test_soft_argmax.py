from __future__ import annotations

import pytest
import torch

from gcn.layers.soft_argmax import soft_argmax, soft_argmax_confidence
from mesh.errors import InputError


def peak(*shape: int, at: tuple[int, ...], height: float = 50.0) -> torch.Tensor:
    heatmaps = torch.zeros(1, 1, *shape)
    heatmaps[(0, 0, *at)] = height
    return heatmaps


def test_a_sharp_peak_is_found_at_the_centre_of_its_cell_x_before_y() -> None:
    found = soft_argmax(peak(4, 8, at=(3, 1)))  # the last of 4 rows, the second of 8 columns
    torch.testing.assert_close(found, torch.tensor([[[-1 + 3 / 8, 1 - 1 / 4]]]))


def test_in_a_volume_depth_comes_last() -> None:
    found = soft_argmax(peak(2, 4, 8, at=(0, 3, 1)))
    torch.testing.assert_close(found, torch.tensor([[[-1 + 3 / 8, 1 - 1 / 4, -1 / 2]]]))


def test_the_expectation_is_taken_over_each_axis_and_not_over_the_flat_index() -> None:
    two = peak(5, 9, at=(1, 2)) + peak(5, 9, at=(3, 6))
    torch.testing.assert_close(soft_argmax(two), torch.zeros(1, 1, 2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [1, 2, 64, 72])
def test_a_flat_map_points_to_its_middle_at_every_size(size: int) -> None:
    torch.testing.assert_close(soft_argmax(torch.zeros(1, 2, size, size)), torch.zeros(1, 2, 2), atol=1e-6, rtol=0)


def test_the_same_place_has_the_same_coordinates_on_a_finer_map() -> None:
    coarse = peak(4, 6, at=(2, 1))
    fine = coarse.repeat_interleave(3, 2).repeat_interleave(3, 3)
    torch.testing.assert_close(soft_argmax(fine), soft_argmax(coarse), atol=1e-5, rtol=0)


def test_a_known_mixture_has_its_mean() -> None:
    heatmaps = torch.log(torch.tensor([[[[0.5, 0.25, 0.125, 0.125]]]]))  # centres -3/4, -1/4, 1/4, 3/4
    torch.testing.assert_close(soft_argmax(heatmaps)[0, 0, 0], torch.tensor(-0.3125))
    torch.testing.assert_close(soft_argmax(2 * heatmaps, temperature=2.0), soft_argmax(heatmaps))


def test_gradients_reach_every_cell_and_equal_the_numerical_ones(generator: torch.Generator) -> None:
    heatmaps = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h: soft_argmax(h, 0.7), heatmaps)
    assert torch.autograd.gradcheck(lambda h: soft_argmax_confidence(h, 0.7)[1], heatmaps)
    soft_argmax(heatmaps).square().sum().backward()
    assert heatmaps.grad is not None and (heatmaps.grad != 0).all()


def test_confidence_is_one_for_a_single_cell_and_zero_for_what_points_nowhere() -> None:
    corners = peak(9, 9, at=(0, 0)) + peak(9, 9, at=(8, 8))
    maps = torch.cat((peak(9, 9, at=(2, 7)), torch.zeros(1, 1, 9, 9), corners), dim=1)
    positions, confidence = soft_argmax_confidence(maps)
    torch.testing.assert_close(confidence, torch.tensor([[1.0, 0.0, 0.0]]), atol=2e-3, rtol=0)
    torch.testing.assert_close(positions, soft_argmax(maps))


def test_confidence_falls_as_the_map_widens() -> None:
    place = torch.arange(32.0) - 15.5
    distance = place[:, None].square() + place[None].square()
    blobs = torch.stack([-distance / (2 * sd**2) for sd in (1.0, 2.0, 4.0)])[None]
    confidence = soft_argmax_confidence(blobs)[1][0]
    # A Gaussian of sd cells against a flat map, whose sd is (32^2 - 1) / 12 under the root.
    expected = 1 - torch.tensor([1.0, 2.0, 4.0]) / ((32**2 - 1) / 12) ** 0.5
    torch.testing.assert_close(confidence, expected, atol=1e-3, rtol=0)


def test_half_precision_maps_are_computed_in_single() -> None:
    found = soft_argmax(peak(72, 96, at=(70, 1)).half())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([[[-1 + 3 / 96, 1 - 3 / 72]]]), atol=1e-5, rtol=0)


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(InputError, match="temperature above 0"):
        soft_argmax(torch.zeros(1, 1, 2, 2), temperature=0.0)
