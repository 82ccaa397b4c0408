"""The table of an ablation: one line per row in markdown, one line per run at full precision in CSV."""

from __future__ import annotations

import csv
import io
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from tools.ablation_config import Ablation
from tools.ablation_scores import MAIN_METRIC, TIMED_BATCHES, Result
from tools.progress import METRICS

_SHOWN = {
    "posenet": ("lift_mpjpe_mm", "lift_pa_mpjpe_mm"),
    "meshnet": ("mpjpe_mm", "pa_mpjpe_mm", "mpvpe_mm"),
}


def header(ablation: Ablation, command: str, num_samples: int) -> dict[str, str]:
    """What the table was made by and from."""
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command,
        "experiment": f"{ablation.base}, stage {ablation.stage}" + "".join(f", {o}" for o in ablation.common),
        "budget of a row": f"{ablation.budget}, one thread",
        "seeds": ", ".join(map(str, ablation.seeds)),
        "judged on": f"{num_samples} held-out samples, the same for every row",
        "software": f"meshrecovery {_version('meshrecovery')}, torch {_version('torch')}, numpy {np.__version__}, "
        f"Python {platform.python_version()}",
        "commit": commit() or "not in a git checkout",
        "machine": f"{_processor()}, {platform.system()}",
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def commit() -> str | None:
    """Of the checkout this package lies in, and whether it was changed since."""
    try:
        words = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def markdown(ablation: Ablation, results: Sequence[Result], head: Mapping[str, str], lost: Mapping[str, str]) -> str:
    """The whole of table.md. `lost`: rows that are not complete, and why."""
    kinds = _kinds(results)
    shown = [(kind, metric) for kind in kinds for metric in _SHOWN[ablation.stage]]
    main = f"{kinds[0]}/{MAIN_METRIC[ablation.stage]}" if kinds else ""
    titles = [f"{kind} {METRICS[metric].removeprefix('lift ')}" for kind, metric in shown]
    times = [f"µs/pose, batch {size}" for size in TIMED_BATCHES]
    cells = [["row", *titles, "against first row", "parameters", *times, "samples", "minutes"]]
    of_row = {row.label: [r for r in results if r.run.row.label == row.label] for row in ablation.rows}
    first = next((some for some in of_row.values() if some), [])
    for label, some in of_row.items():
        if not some:
            cells.append([label, *["-"] * (len(cells[0]) - 1)])
            continue
        scores = [_with_spread([_mean_and_error(r.errors[f"{k}/{m}"]) for r in some]) for k, m in shown]
        change = "" if some is first else _with_spread(_changes(some, first, main), sign="+")
        speeds = [f"{statistics.median(r.us_per_pose[size] for r in some):.1f}" for size in TIMED_BATCHES]
        took = [f"{some[0].training.samples_seen:,}", f"{statistics.mean(r.training.minutes for r in some):.1f}"]
        cells.append([label, *scores, change, f"{some[0].parameters:,}", *speeds, *took])
    cells = [[cell.replace("|", "\\|") for cell in row] for row in cells]
    lines = [f"# Ablation: {ablation.path.stem}", "", *(f"* {name}: {value}" for name, value in head.items()), ""]
    lines += [*_aligned(cells), "", _legend(ablation)]
    lines += ["", *(f"* {label}: {why}" for label, why in lost.items())] if lost else []
    return "\n".join(lines) + "\n"


def _legend(ablation: Ablation) -> str:
    spread = (
        f"mean and standard deviation over {len(ablation.seeds)} seeds" if len(ablation.seeds) > 1
        else "mean and its standard error over the held-out samples"
    )  # fmt: skip
    return (
        f"Errors in mm, {spread}; of the weights that were best in validation. \"against first row\": "
        f"{METRICS[MAIN_METRIC[ablation.stage]].removeprefix('lift ')} with exact 2D, sample by sample. Samples and "
        "minutes (of training steps) count those of the row that a row starts from."
    )  # fmt: skip


def _kinds(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(name.partition("/")[0] for result in results for name in result.errors))


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error; (N,)."""
    values = values.astype(np.float64)
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


def _changes(some: Sequence[Result], first: Sequence[Result], main: str) -> list[tuple[float, float]]:
    """Mean difference to the first row and its standard error, for each seed that both have."""
    by_seed = {r.run.seed: r for r in first}
    both = [(r, by_seed[r.run.seed]) for r in some if r.run.seed in by_seed]
    return [_mean_and_error(r.errors[main] - other.errors[main]) for r, other in both]


def _with_spread(values: Sequence[tuple[float, float]], sign: str = "") -> str:
    """One seed: its mean and standard error; several: the mean over them and their standard deviation."""
    if not values:
        return "-"
    means = [mean for mean, _ in values]
    spread = statistics.stdev(means) if len(means) > 1 else values[0][1]
    return f"{statistics.mean(means):{sign}.2f} ± {spread:.2f}"


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """A markdown table whose source is a table as well."""
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(cells[0]))]
    rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]

    def line(row: Sequence[str]) -> str:
        padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))]
        return f"| {' | '.join(padded)} |"

    return [line(cells[0]), line(rule), *map(line, cells[1:])]


def csv_text(ablation: Ablation, results: Sequence[Result]) -> str:
    """The whole of table.csv: every run, every number as it is."""
    first = {r.run.seed: r for r in results if results and r.run.row.label == results[0].run.row.label}
    rows: list[dict[str, Any]] = []
    for result in results:
        training = result.training
        row: dict[str, Any] = {"row": result.run.row.label, "seed": result.run.seed, "run": result.run.name}
        for name, values in result.errors.items():
            row[name], row[f"{name} standard error"] = _mean_and_error(values)
            if result.run.seed in first:
                change = _mean_and_error(values - first[result.run.seed].errors[name])
                row[f"{name} against first row"], row[f"{name} against first row standard error"] = change
        row["parameters"] = result.parameters
        row |= {f"us_per_pose_batch_{size}": time for size, time in result.us_per_pose.items()}
        row |= {"steps": training.steps, "best_step": training.best_step, "samples": training.samples_seen}
        row["minutes"] = training.minutes
        rows.append(row)
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row)) or ["row", "seed", "run"]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
