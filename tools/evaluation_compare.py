"""Two evaluations side by side, and beside them what others published."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tools.evaluation_report import aligned, read_report

_NOT_COMPARED = ("root",)  # where the data lay


class Published(NamedTuple):
    """MPJPE / PA-MPJPE / MPVPE in mm on the test split of 3DPW, as printed in `source`."""

    method: str
    input: str
    mpjpe: str
    pa_mpjpe: str
    mpvpe: str
    source: str


PUBLISHED_3DPW = (
    Published("Pose2Mesh (2020)", "detected", "88.9", "58.3", "106.3", "Pose2Mesh README"),
    Published("Pose2Mesh + AMASS", "detected", "89.5", "56.3", "105.3", "Pose2Mesh README"),
    Published("Pose2Mesh (2020)", "gt", "63.10", "35.37", "-", "Pose2Mesh README"),
    Published("Pose2Mesh (2020)", "gt", "65.1", "34.6", "-", "as cited by GTRS and GATOR"),
    Published("PQ-GCN (2022)", "detected", "89.2", "58.3", "106.4", "GATOR's table"),
    Published("GTRS (2022)", "detected", "88.5", "58.9", "106.2", "GATOR's table"),
    Published("GTRS (2022)", "gt", "53.8", "34.5", "61.6", "not named in our notes"),
    Published("GATOR (2023)", "detected", "87.5", "56.8", "104.5", "GATOR README"),
    Published("GATOR (2023)", "gt", "50.8", "30.5", "59.6", "GATOR README"),
)


def print_comparison(first: Path, second: Path) -> None:
    """Both runs by metric and input with their difference, the published table, and a warning if protocols differ."""
    a, b = read_report(first), read_report(second)
    print(f"A: {first} ({a.get('weights', 'weights not named')})")
    print(f"B: {second} ({b.get('weights', 'weights not named')})\n")
    rows = [["", "input", "A", "B", "B - A"]]
    for column in dict.fromkeys((*a["metrics"], *b["metrics"])):
        left, right = (report["metrics"].get(column, {}) for report in (a, b))
        for name in dict.fromkeys((*left, *right)):
            x, y = left.get(name), right.get(name)
            change = "-" if x is None or y is None else f"{y - x:+.2f}"
            rows.append([name, column, *("-" if v is None else f"{v:.2f}" for v in (x, y)), change])
    print(aligned(rows))
    print("\npublished, not measured here: 3DPW test split, protocol pw3d-pose2mesh, mm")
    heads = ["published", "2D input", "MPJPE", "PA-MPJPE", "MPVPE", "source"]
    print(aligned([heads, *([f"{p.method} (published)", *p[1:]] for p in PUBLISHED_3DPW)]))
    for side, report in (("A", a), ("B", b)):
        for reason in _not_as_published(report["protocol"]):
            print(f"{side} is not comparable with the published figures: {reason}")
    for line in card_differences(a["protocol"], b["protocol"]):
        print(f"warning: the protocols differ: {line}", file=sys.stderr)


def _not_as_published(card: Mapping[str, Any]) -> list[str]:
    """What keeps a run from being set beside the published figures."""
    expected = {"name": "pw3d-pose2mesh", "source": "3DPW", "split": "test"}
    reasons = [
        f"{key} is {card.get(key, '-')}, not {value}" for key, value in expected.items() if card.get(key) != value
    ]
    if not {"male", "female"} <= set(card.get("bodies of the truth", ())):
        reasons.append("its true meshes are not made by the male and female SMPL bodies")
    return reasons


def card_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """One line for each entry of the cards that is not the same."""
    keys = [key for key in dict.fromkeys((*a, *b)) if key not in _NOT_COMPARED]
    return [f"{key}: A {a.get(key, '-')!s}, B {b.get(key, '-')!s}" for key in keys if a.get(key) != b.get(key)]
