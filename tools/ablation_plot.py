"""The picture of an ablation: validation curves of all rows against the samples they have seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mesh.files import replacing
from tools.ablation_config import Ablation
from tools.ablation_scores import MAIN_METRIC, Result
from tools.progress import METRICS

if TYPE_CHECKING:
    from matplotlib.lines import Line2D

# Okabe and Ito: told apart by colour-blind people as well; then the same again dashed, and dotted.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222")
_STYLES: tuple[object, ...] = ("solid", (0, (5, 2)), (0, (1, 1.5)))
_WIDTH_IN, _HEIGHT_IN, _LEGEND_LINE_IN, _DPI = 12.0, 5.0, 0.24, 110
_LOG_RATIO = 4.0


def draw_curves(ablation: Ablation, results: Sequence[Result], path: Path) -> None:
    """One axis per kind of 2D joints, one colour per row; several seeds are several lines of that colour."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator

    metric = MAIN_METRIC[ablation.stage]
    names = [name for name in results[0].training.scores if name.endswith(f"/{metric}")]
    labels = list(dict.fromkeys(result.run.row.label for result in results))
    columns = min(len(labels), 4 if max(map(len, labels)) <= 24 else 2)
    legend_in = _LEGEND_LINE_IN * -(-len(labels) // columns)
    height = _HEIGHT_IN + legend_in
    figure = Figure(figsize=(_WIDTH_IN, height))
    FigureCanvasAgg(figure)
    bottom = (0.75 + legend_in) / height
    figure.subplots_adjust(left=0.06, right=0.985, top=1 - 0.75 / height, bottom=bottom, wspace=0.15)
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    lines: dict[str, Line2D] = {}
    for ax, name in zip(axes, names):
        shown: list[np.ndarray] = []
        for result in results:
            place = labels.index(result.run.row.label)
            curve = result.training
            (line,) = ax.plot(
                curve.samples, curve.scores[name], color=_COLOURS[place % len(_COLOURS)],
                linestyle=_STYLES[place // len(_COLOURS) % len(_STYLES)], linewidth=1.7,
                marker="o" if len(curve.samples) <= 40 else "", markersize=3.5,
            )  # fmt: skip
            lines.setdefault(result.run.row.label, line)
            shown.append(curve.scores[name])
        values = np.concatenate(shown)
        if np.nanmin(values) > 0 and np.nanmax(values) > _LOG_RATIO * np.nanmin(values):
            ax.set_yscale("log")
            plain = FuncFormatter(lambda value, _: f"{value:g}")
            ax.yaxis.set_minor_locator(LogLocator(subs=(1.5, 2, 3, 4, 5, 7)))
            ax.yaxis.set_major_formatter(plain)
            ax.yaxis.set_minor_formatter(plain)
        ax.set_title(f"{name.partition('/')[0]} 2D joints", fontsize=11)
        ax.set_xlabel("training samples seen")
        ax.set_ylabel(f"held-out {METRICS[metric].removeprefix('lift ')} (mm)")
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.set_xlim(left=0)
        ax.grid(True, which="both", color="#e2e2e2", linewidth=0.7)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_color("#bbbbbb")
    title = f"{ablation.path.stem}: {ablation.budget} per row"
    figure.suptitle(title, fontweight="bold", fontsize=12, parse_math=False)
    shown_labels = [f" {label}" for label in lines]  # what begins with an underscore is left out
    legend = figure.legend(
        list(lines.values()), shown_labels, loc="lower center", ncols=columns, frameon=False, fontsize=9
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a dollar is a dollar
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=_DPI)
