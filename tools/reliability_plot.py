"""Expected against true errors, by tenths: a curve on the diagonal means that the expected errors can be believed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from mesh.files import replacing
from mesh.joints import HUMAN36M17
from mesh.metrics import MM_PER_M

_COLOURS = ("#0072B2", "#D55E00", "#009E73")
_NOT_ROOT = [k for k in range(len(HUMAN36M17)) if k != HUMAN36M17.root_idx]


def tenths(expected: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Means of what is expected and of what is true in the tenths by rising expectation, (N,) twice -> (<= 10, 2)."""
    order = np.argsort(expected, kind="stable")
    parts = [part for part in np.array_split(order, 10) if len(part)]
    return np.array([(expected[part].mean(), true[part].mean()) for part in parts])


def draw_reliability(judged: Mapping[str, tuple[torch.Tensor, torch.Tensor]], path: Path, step: int) -> None:
    """`judged`: of each kind of 2D the expected and true errors, (N, 17) metres; left by joint, right by person."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2)
    for kind, colour in zip(judged, _COLOURS):
        expected, true = (t.double().numpy()[:, _NOT_ROOT] * MM_PER_M for t in judged[kind])
        views = (expected.ravel(), true.ravel()), (expected.mean(1), true.mean(1))
        for ax, view in zip(axes, views):
            ax.plot(*tenths(*view).T, "o-", color=colour, label=f"{kind} 2D", markersize=4)
    for ax, title in zip(axes, ("joints", "people (mean of 16 joints)")):
        top = 1.05 * max(ax.get_xlim()[1], ax.get_ylim()[1])
        ax.plot((0, top), (0, top), color="#999999", linewidth=1, linestyle="--", label="as expected", zorder=0)
        ax.set(xlim=(0, top), ylim=(0, top), xlabel="expected error (mm)", ylabel="true error (mm)")
        ax.set_title(f"Held-out {title}, tenths, step {step}", fontsize=10)
        ax.grid(True, color="#dddddd", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.legend(frameon=False, fontsize=9)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=80)
