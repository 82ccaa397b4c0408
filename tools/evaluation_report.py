"""What an evaluation leaves: the table, `metrics.json` with the protocol card, and tables per sequence and joint."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mesh.errors import InputError
from mesh.files import replacing
from tools.evaluation_scores import ACCELERATION, Scored

BOOTSTRAP_SEED = 0
_FEW = 10


@dataclass(frozen=True, kw_only=True)
class Report:
    """Columns by the name of their 2D input ("gt", "gt one-euro" ...), and what they were measured by."""

    card: Mapping[str, Any]
    columns: Mapping[str, Scored]
    weights: str

    def content(self) -> dict[str, Any]:
        """What `metrics.json` holds."""
        scored = next(iter(self.columns.values()))
        groups = scored.groups(scored.tracks)
        over = "samples" if groups is None else _sequences_text(len(set(groups.tolist())))
        return {
            "protocol": dict(self.card),
            "metrics": {name: column.summary() for name, column in self.columns.items()},
            "intervals": {
                name: {metric: list(bounds) for metric, bounds in column.intervals(BOOTSTRAP_SEED).items()}
                for name, column in self.columns.items()
            },
            "intervals are": f"95 %, percentile bootstrap of the mean over {over}, seed {BOOTSTRAP_SEED}",
            "weights": self.weights,
        }


def _sequences_text(count: int) -> str:
    few = "; so few sequences give a hint only" if count < _FEW else ""
    return f"{count} sequences (people of one drawn together{few})"


def table(content: Mapping[str, Any]) -> str:
    """Rows of metrics, a column for each input, with intervals where there are some."""
    metrics, intervals = content["metrics"], content.get("intervals", {})
    names = list(dict.fromkeys(name for column in metrics.values() for name in column))
    cells = [["", *metrics]]
    for name in names:
        cells.append([name, *(_cell(metrics[k].get(name), intervals.get(k, {}).get(name)) for k in metrics)])
    return aligned(cells)


def _cell(value: float | None, bounds: Sequence[float] | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" + (f" [{bounds[0]:.2f}, {bounds[1]:.2f}]" if bounds else "")


def aligned(cells: Sequence[Sequence[str]]) -> str:
    """The first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))
        )
        for row in cells
    )


def make_folder(folder: Path) -> None:
    """The output folder, proven before the work begins."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise InputError(f"cannot make the output folder {folder}: {exc.strerror}") from exc


def write_report(folder: Path, report: Report, content: Mapping[str, Any]) -> None:
    """`metrics.json`, `per_sequence.csv` and `per_joint.csv`."""
    with replacing(folder / "metrics.json") as file:
        file.write(json.dumps(content, indent=1).encode())
    _write_csv(folder / "per_sequence.csv", _per_sequence(report.columns))
    _write_csv(folder / "per_joint.csv", _per_joint(report.columns))


def _per_sequence(columns: Mapping[str, Scored]) -> list[list[Any]]:
    """A row for each input and person of a sequence, or one for all samples where there are no sequences."""
    metrics = list(dict.fromkeys(name for column in columns.values() for name in column.values))
    rows: list[list[Any]] = [["input", "sequence", "person", "samples", *metrics, ACCELERATION]]
    for name, column in columns.items():
        labels = np.array(column.track_names)[column.tracks]
        moving = np.array(column.track_names)[column.motion_tracks]
        for track in dict.fromkeys(column.track_names):
            some, motion = labels == track, column.motion[moving == track]
            sequence, _, person = track.rpartition("#")
            means = [round(float(column.values[m][some].mean()), 4) if m in column.values else "" for m in metrics]
            acceleration = round(float(motion.mean()), 4) if len(motion) else ""
            rows.append([name, sequence, person, int(some.sum()), *means, acceleration])
    return rows


def _per_joint(columns: Mapping[str, Scored]) -> list[list[Any]]:
    rows: list[list[Any]] = [["input", "joint", "mean_mm", "median_mm", "aligned_mean_mm"]]
    for name, column in columns.items():
        for i, joint in enumerate(column.joint_names):
            errors, aligned_mm = column.joints_mm[:, i], column.aligned_joints_mm
            last = "" if aligned_mm is None else round(float(aligned_mm[:, i].mean()), 4)
            rows.append([name, joint, round(float(errors.mean()), 4), round(float(np.median(errors)), 4), last])
    return rows


def _write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    with replacing(path) as file:
        file.write(text.getvalue().encode())


def read_report(path: Path) -> dict[str, Any]:
    """A `metrics.json`, or that of an output folder."""
    path = path / "metrics.json" if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise InputError(f"cannot read {path}: {exc.strerror}; expected a metrics.json of tools/evaluate.py") from exc
    except ValueError as exc:
        raise InputError(f"{path} is no metrics.json of tools/evaluate.py: {exc}") from exc
    if not isinstance(content, dict) or not all(isinstance(content.get(k), dict) for k in ("protocol", "metrics")):
        raise InputError(f"{path} is no metrics.json of tools/evaluate.py: it has no protocol and metrics")
    if not all(
        isinstance(column, dict) and all(isinstance(value, (int, float)) for value in column.values())
        for column in content["metrics"].values()
    ):
        raise InputError(f"{path} is no metrics.json of tools/evaluate.py: its metrics are not numbers by name")
    return content
