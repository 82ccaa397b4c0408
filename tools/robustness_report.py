"""The figures of a robustness report: kept picture by picture, summed up, written as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tools.robustness_checks import VARIANTS, PersonChecks

_LARGE_MM = 100.0  # root-aligned: above, the two meshes are different poses
_PAIRS_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture that could be read: where it came from (an address, if it was downloaded), and who was found."""

    source: str
    size_px: tuple[int, int]
    people: Sequence[PersonChecks]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Of `count` people; NaN if there are none."""

    count: int
    median: float
    p90: float
    worst: float


def spread(values: Sequence[float]) -> Spread:
    """Median, 90 % quantile and largest value."""
    if not len(values):
        return Spread(count=0, median=float("nan"), p90=float("nan"), worst=float("nan"))
    median, p90, worst = np.quantile(values, (0.5, 0.9, 1.0))
    return Spread(count=len(values), median=float(median), p90=float(p90), worst=float(worst))


def figures(pictures: Sequence[Picture]) -> dict[str, Spread]:
    """Every measure over all people, by name."""
    people = [person for picture in pictures for person in picture.people if person.reprojection_px is not None]
    result = {
        "reprojection error, px": spread([p.reprojection_px for p in people if p.reprojection_px is not None]),
        "reprojection error, % of person size": spread(
            [100 * p.reprojection_sizes for p in people if p.reprojection_sizes is not None]
        ),
    }
    for variant in VARIANTS:
        found = [a for p in people if (a := p.agreements.get(variant)) is not None]
        result[f"{variant}: mm at the pelvis"] = spread([a.root_mm for a in found])
        result[f"{variant}: mm after Procrustes"] = spread([a.aligned_mm for a in found])
    limits = [p.limits for p in people if p.limits is not None]
    result["joints beyond limits, per person"] = spread([len(limit.beyond) for limit in limits])
    result["furthest beyond limits, degrees"] = spread([limit.worst_deg for limit in limits])
    result["distance from the body model, mm"] = spread([limit.model_mm for limit in limits])
    result["skin inside another part, %"] = spread([100 * p.overlap.share for p in people if p.overlap is not None])
    return result


def counts(pictures: Sequence[Picture], failed: Sequence[dict[str, str]]) -> dict[str, str]:
    """How many, by name, as text "some of all (share)"."""
    people = [person for picture in pictures for person in picture.people]
    made = [person for person in people if person.reprojection_px is not None]
    with_people = sum(1 for picture in pictures if picture.people)
    result = {
        "pictures that failed": _of(len(failed), len(pictures) + len(failed)),
        "pictures with people": _of(with_people, len(pictures)),
        "people found": str(len(people)),
        "people per picture with people": f"{len(people) / with_people:.2f}" if with_people else "0",
        "people too few of whose joints were known": _of(len(people) - len(made), len(people)),
    }
    for flag in dict.fromkeys(("left_right_exchanged", *(flag for person in made for flag in person.flags))):
        result[f"flagged {flag}"] = _of(sum(flag in person.flags for person in made), len(made))
    for variant in VARIANTS:
        tried = [p.agreements[variant] for p in made if variant in p.agreements]
        again = [agreement for agreement in tried if agreement is not None]
        result[f"{variant}: found again"] = _of(len(again), len(tried))
        large = sum(agreement.root_mm > _LARGE_MM for agreement in again)
        result[f"{variant}: further than {_LARGE_MM:g} mm"] = _of(large, len(again))
    result["people with a joint beyond limits"] = _of(sum(bool(p.limits and p.limits.beyond) for p in made), len(made))
    result["people with skin inside another part"] = _of(
        sum(bool(p.overlap and p.overlap.share > 0) for p in made), len(made)
    )
    return result


def _of(some: int, every: int) -> str:
    return f"{some} of {every} ({100 * some / every:.1f} %)" if every else f"{some} of 0"


def as_json(pictures: Sequence[Picture], failed: Sequence[dict[str, str]]) -> dict[str, Any]:
    """Everything, with None for what is not known."""
    return {
        "counts": counts(pictures, failed),
        "figures": {name: _known(asdict(value)) for name, value in figures(pictures).items()},
        "pictures": [
            {
                "input": picture.source,
                "size_px": list(picture.size_px),
                "people": [_person_row(person) for person in picture.people],
            }
            for picture in pictures
        ],
        "failed": list(failed),
    }


def _known(values: dict[str, float]) -> dict[str, float | None]:
    return {name: None if value != value else value for name, value in values.items()}


def _person_row(person: PersonChecks) -> dict[str, Any]:
    row = asdict(person)
    if person.overlap is not None:
        row["overlap"]["pairs"] = {f"{part} in {other}": share for (part, other), share in person.overlap.pairs.items()}
    return row


def as_markdown(pictures: Sequence[Picture], failed: Sequence[dict[str, str]]) -> str:
    """The summary, then one line per person, then what failed."""
    lines = ["# Robustness report", "", "| count | |", "|---|---|"]
    lines += [f"| {name} | {text} |" for name, text in counts(pictures, failed).items()]
    lines += ["", "| per person | people | median | 90 % | largest |", "|---|---|---|---|---|"]
    for name, value in figures(pictures).items():
        numbers = " | ".join(_number(v) for v in (value.median, value.p90, value.worst))
        lines.append(f"| {name} | {value.count} | {numbers} |")
    lines += _often(pictures)
    lines += ["", "## People", ""]
    header = ("picture", "person", "px", "% of size", *VARIANTS, "beyond limits", "% inside", "flags")
    lines += ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for picture in pictures:
        for number, person in enumerate(picture.people):
            lines.append("| " + " | ".join((_cell(picture.source), str(number), *_cells(person))) + " |")
        if not picture.people:
            lines.append(f"| {_cell(picture.source)} | nobody found |" + " |" * (len(header) - 2))
    lines += [
        "",
        "Variants: mean distance of the vertices from those in the original picture, in mm, both at the pelvis.",
    ]
    if failed:
        lines += ["", "## Failed", "", *(f"* {_cell(row['input'])}: {_cell(row['reason'])}" for row in failed)]
    return "\n".join(lines) + "\n"


def _often(pictures: Sequence[Picture]) -> list[str]:
    """Which joints and which body parts it concerns most often."""
    people = [person for picture in pictures for person in picture.people]
    joints = Counter(name for p in people if p.limits for name in p.limits.beyond)
    pairs = Counter(f"{a} in {b}" for p in people if p.overlap for a, b in p.overlap.pairs)
    lines = []
    for title, names in (("Most often beyond limits", joints), ("Most often inside", pairs)):
        if names:
            shown = ", ".join(f"{name} ({count})" for name, count in names.most_common(_PAIRS_SHOWN))
            lines += ["", f"{title}: {shown}."]
    return lines


def _cells(person: PersonChecks) -> list[str]:
    if person.reprojection_px is None or person.reprojection_sizes is None:
        return ["-"] * (4 + len(VARIANTS)) + [", ".join(person.flags)]
    cells = [_number(person.reprojection_px), _number(100 * person.reprojection_sizes)]
    for variant in VARIANTS:
        if variant not in person.agreements:
            cells.append("-")
        else:
            agreement = person.agreements[variant]
            cells.append("lost" if agreement is None else _number(agreement.root_mm))
    cells.append("-" if person.limits is None else ", ".join(person.limits.beyond))
    cells.append("-" if person.overlap is None else _number(100 * person.overlap.share))
    return [*cells, ", ".join(person.flags)]


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.1f}"


def _cell(text: str) -> str:
    """Text from outside in one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")
