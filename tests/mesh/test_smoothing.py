"""Smoothing takes noise away, keeps motion, and stops at gaps."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import savgol_filter

from mesh.errors import InputError
from mesh.smoothing import MAX_GAP_FRAMES, SMOOTHERS, OneEuro, SavitzkyGolay

BOTH = pytest.mark.parametrize("smoother", [OneEuro(), SavitzkyGolay()], ids=SMOOTHERS)


def walk(count: int, points: int = 5) -> np.ndarray:
    """Points that swing by 0.2 m once in two seconds, at 30 frames a second."""
    phase = np.linspace(0, 1, points)[:, None] + np.arange(3) / 3
    return 0.2 * np.sin(2 * np.pi * (np.arange(count)[:, None, None] / 60 + phase))


def jerk(points: np.ndarray) -> float:
    return float(np.abs(np.diff(points, n=2, axis=0)).mean())


@BOTH
def test_noise_becomes_less_and_the_motion_stays(smoother) -> None:
    true = walk(120)
    noisy = true + np.random.default_rng(0).normal(0, 0.04, true.shape)
    smooth = smoother(noisy, np.arange(120))
    assert np.abs(smooth - true)[10:-10].mean() < 0.8 * np.abs(noisy - true)[10:-10].mean()
    assert jerk(smooth) < 0.6 * jerk(noisy)


@BOTH
def test_what_rests_stays_where_it_is(smoother) -> None:
    still = np.full((20, 3, 3), 0.7)
    np.testing.assert_allclose(smoother(still, np.arange(20)), still, atol=1e-12)


@BOTH
def test_each_coordinate_is_smoothed_by_itself(smoother) -> None:
    noisy = walk(30) + np.random.default_rng(1).normal(0, 0.02, (30, 5, 3))
    alone = smoother(noisy[:, 2:3], np.arange(30))
    np.testing.assert_allclose(smoother(noisy, np.arange(30))[:, 2:3], alone, atol=1e-12)


@BOTH
def test_nothing_is_carried_over_a_cut(smoother) -> None:
    noisy = np.random.default_rng(2).normal(size=(40, 2, 3))
    frames = np.r_[0:20, 20 + MAX_GAP_FRAMES : 40 + MAX_GAP_FRAMES]
    apart = [smoother(noisy[:20], frames[:20]), smoother(noisy[20:], frames[20:])]
    np.testing.assert_allclose(smoother(noisy, frames), np.concatenate(apart), atol=1e-12)
    bridged = smoother(noisy, np.r_[0:20, 19 + MAX_GAP_FRAMES : 39 + MAX_GAP_FRAMES])
    assert np.abs(bridged - np.concatenate(apart)).max() > 0.01


@BOTH
def test_missing_frames_do_not_bend_a_straight_motion(smoother) -> None:
    frames = np.array([0, 1, 2, 4, 5, 8, 9, 10, 11, 12, 15, 16])
    line = frames[:, None, None] * np.full((1, 2, 3), 0.01)
    smooth = smoother(line, frames)
    if isinstance(smoother, SavitzkyGolay):
        np.testing.assert_allclose(smooth, line, atol=1e-12)
    else:  # it lags, by no more than the way of two frames
        assert (smooth <= line + 1e-12).all() and (line - smooth).max() < 0.04


@BOTH
@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_short_sequences_come_back_whole(smoother, count: int) -> None:
    points = walk(count).astype(np.float32)
    smooth = smoother(points, np.arange(count))
    assert smooth.shape == points.shape and smooth.dtype == np.float32 and np.isfinite(smooth).all()


@BOTH
def test_the_input_is_left_as_it_was(smoother) -> None:
    points = walk(15)
    before = points.copy()
    smoother(points, np.arange(15))
    np.testing.assert_array_equal(points, before)


def test_savitzky_golay_without_gaps_is_that_of_scipy() -> None:
    noisy = np.random.default_rng(3).normal(size=(30, 4, 3))
    smooth = SavitzkyGolay(window=7, order=3)(noisy, np.arange(100, 130))
    np.testing.assert_allclose(smooth, savgol_filter(noisy, 7, 3, axis=0), atol=1e-12)


def test_one_euro_follows_its_published_recursion() -> None:
    signal = np.random.default_rng(4).normal(size=12)
    frames, rate = np.array([0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 12, 13]), 25.0
    config = OneEuro(min_cutoff_hz=1.3, beta=0.7, speed_cutoff_hz=0.9, rate_hz=rate)

    def alpha(cutoff: float, step: float) -> float:
        return 1 / (1 + 1 / (2 * np.pi * cutoff * step))

    expected, speed = [signal[0]], 0.0
    for k in range(1, 12):
        step = (frames[k] - frames[k - 1]) / rate
        raw = (signal[k] - expected[-1]) / step
        a = alpha(0.9, step)
        speed = a * raw + (1 - a) * speed
        a = alpha(1.3 + 0.7 * abs(speed), step)
        expected.append(a * signal[k] + (1 - a) * expected[-1])
    found = config(signal[:, None, None].repeat(3, axis=2), frames)
    np.testing.assert_allclose(found[:, 0, 0], expected, rtol=1e-12)


def test_one_euro_lags_less_when_the_speed_counts() -> None:
    line = np.arange(30.0)[:, None, None] * np.full((1, 1, 3), 0.1)  # 3 m/s
    lags = [np.abs(OneEuro(beta=beta)(line, np.arange(30)) - line)[-1].max() for beta in (0.0, 10.0)]
    assert lags[1] < 0.5 * lags[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OneEuro(min_cutoff_hz=0), "min_cutoff_hz must be positive"),
        (lambda: OneEuro(beta=-1), "beta must not be negative"),
        (lambda: SavitzkyGolay(window=8), "window must be odd"),
        (lambda: SavitzkyGolay(window=3, order=3), "order must lie"),
        (lambda: SavitzkyGolay()(walk(3), np.array([0, 2, 1])), "must ascend"),
        (lambda: OneEuro()(walk(3), np.arange(4)), "a frame number for each of 3 poses"),
    ],
)
def test_impossible_settings_are_refused(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
