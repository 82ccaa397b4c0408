"""The curves of a training: losses and errors over the epochs, redrawn as a whole from the run's metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mesh.errors import InputError
from mesh.files import replacing
from tools.progress import METRICS, TERMS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, float]]

# Of the plots: colour-blind safe (Okabe and Ito), one colour per loss term or metric in every picture.
_TERM_COLOURS = dict(
    zip(TERMS, ("#222222", "#0072B2", "#CC79A7", "#009E73", "#D55E00", "#E69F00", "#56B4E9", "#56B4E9"))
)
_TERM_UNITS = {"normal": "cosine", "labeling": "cross-entropy", "uncertainty": "likelihood"}  # all others: m
_METRIC_COLOURS = {
    "mpjpe_mm": "#0072B2",
    "pa_mpjpe_mm": "#D55E00",
    "lift_mpjpe_mm": "#0072B2",
    "lift_pa_mpjpe_mm": "#D55E00",
    "mpvpe_mm": "#009E73",
    "wrongly_exchanged": "#0072B2",
    "exchange_missed": "#D55E00",
    "share_wrong": "#222222",
    "nll": "#0072B2",
}
_STYLES = ("solid", (0, (5, 2)), (0, (1, 1.5)))  # exact, noisy, anything else
_WIDTH_IN, _HEIGHT_IN, _DPI = 6.4, 4.8, 110
_MAX_POINTS = 600
_LOG_RATIO = 8.0  # errors that span more than this get a log axis: the late ones could not be told apart


@dataclass(frozen=True)
class _Curve:
    """Values over epochs, (N,) each, finite."""

    epochs: np.ndarray
    values: np.ndarray


def draw_plots(rows: Rows, folder: Path) -> list[Path]:
    """Draw `train_loss.png`, `joint_error.png`, `surface_error.png`, `labeling_error.png` and `expected_error.png`.

    Returns those drawn. `rows`: the lines of `metrics.jsonl` in the order written, each with "step" and "epoch"; loss
    terms in some, validation scores in others. What a resumed run did again counts once. A picture nothing is known for
    is left out.
    """
    rows = _without_repeated(rows)
    if not rows:
        return []
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise InputError(f"cannot make the folder for plots {folder}: {exc.strerror}") from exc
    drawn = []
    for name, draw in _PICTURES.items():
        figure = draw(rows)
        if figure is not None:
            with replacing(folder / name) as file:
                figure.savefig(file, format="png", dpi=_DPI)
            drawn.append(folder / name)
    return drawn


def _without_repeated(rows: Rows) -> list[Mapping[str, float]]:
    """Rows from the last attempt at each step: a row is dropped when a later one belongs to an earlier step."""
    kept: list[Mapping[str, float]] = []
    earliest = math.inf
    for row in reversed(rows):
        if row["step"] <= earliest:
            earliest = row["step"]
            kept.append(row)
    return kept[::-1]


def _curve(rows: Rows, name: str) -> _Curve | None:
    """One quantity where it is known and finite; None if it nowhere is."""
    points = np.array([(row["epoch"], row[name]) for row in rows if name in row], float).reshape(-1, 2)
    points = points[np.isfinite(points).all(1)]
    return _Curve(points[:, 0], points[:, 1]) if len(points) else None


def _thinned(curve: _Curve) -> _Curve:
    """At most `_MAX_POINTS` points: means of neighbours, as a window of steps is one already."""
    size = -(-len(curve.epochs) // _MAX_POINTS)
    if size == 1:
        return curve
    starts = np.arange(0, len(curve.epochs), size)
    counts = np.diff([*starts, len(curve.epochs)])
    return _Curve(*(np.add.reduceat(column, starts) / counts for column in (curve.epochs, curve.values)))


def _figure(num_axes: int) -> tuple[Figure, list[Axes]]:
    """Axes next to each other on a canvas of their own: nothing global is touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = _WIDTH_IN * num_axes
    figure = Figure(figsize=(width, _HEIGHT_IN))
    FigureCanvasAgg(figure)
    gap = 1.2 / (_WIDTH_IN - 1.2)  # fixed margins: finding them takes as long as drawing
    figure.subplots_adjust(left=0.95 / width, right=1 - 0.25 / width, top=1 - 0.75 / _HEIGHT_IN, wspace=gap)
    axes = list(figure.subplots(1, num_axes, squeeze=False)[0])
    for ax in axes:
        ax.grid(True, which="major", color="#dddddd", linewidth=0.8)
        ax.grid(True, which="minor", color="#eeeeee", linewidth=0.5)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_color("#bbbbbb")
    return figure, axes


def _finish(figure: Figure, ax: Axes, rows: Rows, title: str, unit: str) -> None:
    """Title, axes and a legend below, where it hides nothing."""
    from matplotlib.ticker import EngFormatter

    ax.set_title(title, fontweight="bold", fontsize=11)
    ax.set_xlabel("epoch")
    ax.set_ylabel(unit)
    ax.set_xlim(left=0)
    ratios = [row["step"] / row["epoch"] for row in rows if row["epoch"] > 0 and row["step"] > 0]
    if ratios:
        steps_per_epoch = ratios[-1]

        def to_steps(epochs: Any) -> Any:
            return epochs * steps_per_epoch

        def to_epochs(steps: Any) -> Any:
            return steps / steps_per_epoch

        top = ax.secondary_xaxis("top", functions=(to_steps, to_epochs))
        top.xaxis.set_major_formatter(EngFormatter(sep=""))
        top.set_xlabel("step", fontsize=8)
        top.tick_params(labelsize=8)
    labels = ax.get_legend_handles_labels()[1]
    if labels:
        longest = max(map(len, labels))
        columns = min(3 if longest <= 22 else 2 if longest <= 42 else 1, len(labels))
        bottom = (0.68 + 0.2 * -(-len(labels) // columns)) / _HEIGHT_IN
        figure.subplots_adjust(bottom=max(bottom, figure.subplotpars.bottom))
        foot = 0.5, 0.02
        ax.legend(
            loc="lower center", bbox_to_anchor=foot, bbox_transform=figure.transFigure, borderaxespad=0,
            ncols=columns, frameon=False, fontsize=9,
        )  # fmt: skip


def _log_axis(ax: Axes) -> None:
    """Logarithmic, with plain numbers also where it spans less than a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_yscale("log")
    low, high = ax.get_ylim()
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    ax.yaxis.set_major_formatter(plain)
    ax.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5) if high < 20 * low else (2, 5)))
    ax.yaxis.set_minor_formatter(plain if high < 2000 * low else NullFormatter())
    ax.tick_params(axis="y", which="minor", labelsize=8)


def _plot(
    ax: Axes,
    curve: _Curve,
    label: str,
    colour: str,
    *,
    style: Any = "solid",
    best: Callable[[float], str] | None = None,
) -> None:
    """One line; with `best`, which writes a value, its lowest point gets a ring and a place in the legend."""
    few = len(curve.epochs) <= 40
    if best is not None:
        lowest = int(curve.values.argmin())
        epoch, value = curve.epochs[lowest], curve.values[lowest]
        label = f"{label}, best {best(value)} (epoch {epoch:.3g})"
        ax.plot(epoch, value, "o", markersize=9, markerfacecolor="white", markeredgecolor=colour, markeredgewidth=2)
    ax.plot(
        curve.epochs, curve.values, label=label, color=colour, linestyle=style, linewidth=1.7,
        marker="o" if few else "", markersize=3.5,
    )  # fmt: skip


def _draw_losses(rows: Rows) -> Figure | None:
    """The total on the left, every term on the right."""
    curves = {name: curve for name in TERMS if (curve := _positive(_curve(rows, name))) is not None}
    if not curves:
        return None
    figure, (left, right) = _figure(2)
    for name, curve in curves.items():
        if name == "loss":
            _plot(left, _thinned(curve), "loss", _TERM_COLOURS[name], best="{:.4g}".format)
        else:
            _plot(right, _thinned(curve), f"{name} ({_TERM_UNITS.get(name, 'm')})", _TERM_COLOURS[name])
    _log_axis(left)
    _log_axis(right)
    _finish(figure, left, rows, "Training loss", "weighted sum of the terms")
    _finish(figure, right, rows, "Terms of the training loss", "term before its weight")
    return figure


def _positive(curve: _Curve | None) -> _Curve | None:
    """What a logarithmic axis can show."""
    if curve is None or not (curve.values > 0).any():
        return None
    return _Curve(curve.epochs[curve.values > 0], curve.values[curve.values > 0])


def _draw_scores(rows: Rows, metrics: Sequence[str], title: str, unit: str, number: str) -> Figure | None:
    """A curve of every metric on every kind of validation samples, the best of each marked."""
    names = dict.fromkeys(name for row in rows for name in row)
    groups = list(dict.fromkeys(name.partition("/")[0] for name in names if "/" in name))
    chosen = [name for metric in metrics for name in names if name.rpartition("/")[2] == metric]
    curves = {name: curve for name in chosen if (curve := _curve(rows, name)) is not None}
    if not curves:
        return None
    figure, (ax,) = _figure(1)
    for name, curve in curves.items():
        group, _, metric = name.rpartition("/")
        label = f"{group} {METRICS.get(metric, metric.replace('_', ' '))}".strip()
        style = _STYLES[min(groups.index(group), len(_STYLES) - 1) if group else 0]
        _plot(ax, curve, label, _METRIC_COLOURS[metric], style=style, best=number.format)
    everything = np.concatenate([curve.values for curve in curves.values()])
    if everything.min() > 0 and everything.max() > _LOG_RATIO * everything.min():
        _log_axis(ax)
    _finish(figure, ax, rows, title, unit)
    return figure


_JOINT_METRICS = ("mpjpe_mm", "pa_mpjpe_mm", "lift_mpjpe_mm", "lift_pa_mpjpe_mm")
_LABELING_METRICS = ("wrongly_exchanged", "exchange_missed", "share_wrong")
_PICTURES: dict[str, Callable[[Rows], Figure | None]] = {
    "train_loss.png": _draw_losses,
    "joint_error.png": lambda rows: _draw_scores(
        rows, _JOINT_METRICS, "Validation: joint error", "mean error (mm)", "{:.1f}"
    ),
    "surface_error.png": lambda rows: _draw_scores(
        rows, ("mpvpe_mm",), "Validation: surface error", "mean error (mm)", "{:.1f}"
    ),
    "labeling_error.png": lambda rows: _draw_scores(
        rows, _LABELING_METRICS, "Validation: left and right", "share of samples", "{:.3g}"
    ),
    "expected_error.png": lambda rows: _draw_scores(
        rows, ("nll",), "Validation: expected errors", "negative log-likelihood", "{:.3f}"
    ),
}
