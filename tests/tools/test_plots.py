from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from mesh.errors import InputError
from tools.plots import draw_plots

ROOT = Path(__file__).parent.parent.parent
TERMS = {"loss": 0.5, "vertex": 0.1, "normal": 0.2, "edge": 0.01, "mesh_joint": 0.1, "lift_joint": 0.05}
SCORES = {
    "exact/mpjpe_mm": 60.0, "exact/pa_mpjpe_mm": 40.0, "exact/mpvpe_mm": 70.0, "exact/facing_error_rad": 0.1,
    "noisy/mpjpe_mm": 80.0, "noisy/pa_mpjpe_mm": 50.0, "noisy/mpvpe_mm": 90.0,
}  # fmt: skip


def trained(step: int, values: dict[str, float]) -> dict[str, float]:
    """A line of metrics.jsonl in a run with 100 steps per epoch."""
    return {"step": step, "epoch": step / 100, **values, "samples_per_s": 400.0, "lr": 1e-3}


def validated(step: int, values: dict[str, float]) -> dict[str, float]:
    return {"step": step, "epoch": step / 100, **values}


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The figures that are drawn, by the first title."""
    saved: dict[str, Any] = {}
    original = Figure.savefig

    def savefig(figure: Figure, *args: Any, **kwargs: Any) -> None:
        original(figure, *args, **kwargs)
        saved[figure.axes[0].get_title()] = figure

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


def legend(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_the_mesh_stage_draws_losses_joint_and_surface_errors(tmp_path: Path) -> None:
    rows = [trained(50, TERMS), validated(50, SCORES), trained(100, TERMS), validated(100, SCORES)]
    drawn = draw_plots(rows, tmp_path / "plots")
    assert [path.name for path in drawn] == ["train_loss.png", "joint_error.png", "surface_error.png"]
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == sorted(path.name for path in drawn)
    for path in drawn:
        Image.open(path).verify()


def test_the_lifter_stage_draws_its_lifted_joints_and_no_surface(figures: dict[str, Any], tmp_path: Path) -> None:
    scores = {"exact/lift_mpjpe_mm": 60.0, "exact/lift_pa_mpjpe_mm": 40.0}
    rows = [trained(50, {"loss": 0.1, "lift_joint": 0.1}), validated(50, scores)]
    assert [path.name for path in draw_plots(rows, tmp_path)] == ["train_loss.png", "joint_error.png"]
    assert legend(figures["Validation: joint error"].axes[0]) == [
        "exact lift MPJPE, best 60.0 (epoch 0.5)",
        "exact lift PA-MPJPE, best 40.0 (epoch 0.5)",
    ]


def test_the_left_right_stage_draws_its_share_of_mistakes(tmp_path: Path) -> None:
    rows = [validated(50, {"exact/wrongly_exchanged": 0.0, "exact/exchange_missed": 0.1, "share_wrong": 0.01})]
    assert [path.name for path in draw_plots(rows, tmp_path)] == ["labeling_error.png"]


def test_without_rows_there_is_no_file(tmp_path: Path) -> None:
    assert draw_plots([], tmp_path / "plots") == []
    assert draw_plots([trained(50, {})], tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("error")
def test_a_single_row_values_that_are_not_finite_and_zeros_are_drawn(tmp_path: Path) -> None:
    rows = [{"step": 0, "epoch": 0.0, **TERMS, "edge": 0.0, "normal": math.nan}]
    rows += [validated(50, {**SCORES, "exact/mpjpe_mm": math.inf, "exact/mpvpe_mm": 0.0, "noisy/mpvpe_mm": math.nan})]
    assert len(draw_plots(rows[:1], tmp_path)) == 1
    assert len(draw_plots(rows, tmp_path)) == 3
    assert draw_plots([validated(50, {"exact/mpvpe_mm": math.nan})], tmp_path) == []


def test_the_best_value_is_marked_and_written(figures: dict[str, Any], tmp_path: Path) -> None:
    errors = (90.0, 52.345, 61.0)
    draw_plots([validated(100 * k, {"exact/mpvpe_mm": mm}) for k, mm in enumerate(errors, start=1)], tmp_path)
    axes = figures["Validation: surface error"].axes[0]
    assert legend(axes) == ["exact MPVPE, best 52.3 (epoch 2)"]
    (ring,) = (line for line in axes.lines if line.get_label().startswith("_"))
    assert (ring.get_xdata().item(), ring.get_ydata().item()) == (2.0, 52.345)


def test_axes_tell_epochs_steps_and_units_and_no_legend_hides_a_line(figures: dict[str, Any], tmp_path: Path) -> None:
    draw_plots([trained(50, TERMS), trained(400, TERMS), validated(400, SCORES)], tmp_path)
    assert len(figures) == 3
    for figure in figures.values():
        for axes in figure.axes:
            assert axes.get_xlabel() == "epoch" and axes.get_ylabel()
            (steps,) = axes.child_axes
            assert steps.get_xlabel() == "step"
            np.testing.assert_allclose(steps.get_xlim(), np.multiply(axes.get_xlim(), 100))
            shown = axes.get_legend().get_window_extent()
            assert shown.y1 <= axes.get_window_extent().y0
            assert shown.x0 >= 0 and shown.y0 >= 0 and shown.x1 <= figure.bbox.x1
    assert "mm" in figures["Validation: joint error"].axes[0].get_ylabel()
    assert legend(figures["Training loss"].axes[1]) == [
        "vertex (m)", "normal (cosine)", "edge (m)", "mesh_joint (m)", "lift_joint (m)",
    ]  # fmt: skip


def test_a_legend_of_long_names_lies_within_the_picture(figures: dict[str, Any], tmp_path: Path) -> None:
    scores = {f"{kind}/{name}": 39.7 for kind in ("exact", "noisy") for name in ("lift_mpjpe_mm", "lift_pa_mpjpe_mm")}
    draw_plots([validated(15500, scores)], tmp_path)
    figure = figures["Validation: joint error"]
    shown = figure.axes[0].get_legend().get_window_extent()
    assert shown.x0 >= 0 and shown.x1 <= figure.bbox.x1


def test_what_a_resumed_run_did_again_counts_once(tmp_path: Path) -> None:
    old, new = {"loss": 9.0}, {"loss": 1.0}
    killed = [trained(100, old), validated(100, SCORES), trained(200, old), validated(250, SCORES)]
    resumed = [trained(150, new), trained(200, new)]
    draw_plots(killed + resumed, tmp_path / "a")
    draw_plots(killed[:2] + resumed, tmp_path / "b")
    for name in ("train_loss.png", "joint_error.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_long_run_is_drawn_from_means_of_neighbours(figures: dict[str, Any], tmp_path: Path) -> None:
    draw_plots([trained(k, {"loss": float(k)}) for k in range(1, 6001)], tmp_path)
    line = max(figures["Training loss"].axes[0].lines, key=lambda line: len(line.get_xdata()))
    assert len(line.get_xdata()) == 600
    np.testing.assert_allclose(line.get_ydata(), np.arange(5.5, 6000, 10))
    np.testing.assert_allclose(line.get_xdata(), np.arange(5.5, 6000, 10) / 100)


def test_a_picture_that_cannot_be_finished_leaves_the_old_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (path,) = draw_plots([trained(50, TERMS)], tmp_path)
    before = path.read_bytes()

    def fail(figure: Figure, file: Any, **kwargs: Any) -> None:
        file.write(b"half a picture")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(InputError, match=r"train_loss\.png: disk full"):
        draw_plots([trained(50, TERMS)], tmp_path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_matplotlib_is_loaded_only_to_draw_and_nothing_global_of_it(tmp_path: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path; from tools.plots import draw_plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        "assert draw_plots([{'step': 1, 'epoch': 1.0, 'loss': 1.0}], Path('plots'))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
