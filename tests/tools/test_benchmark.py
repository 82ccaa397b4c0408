from __future__ import annotations

import json
from pathlib import Path

from tools import benchmark, command


def test_a_part_is_measured_and_written_with_what_it_holds_for(tmp_path: Path, capsys) -> None:
    file = tmp_path / "b.json"
    assert command.run(benchmark.main, ["--only", "files", "synthesis", "--repeats", "2", "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert report["environment"].keys() >= {"date", "processor", "threads", "torch", "load"}
    rows = {row["name"]: row for row in report["measurements"]}
    assert rows["write .obj"]["unit"] == "meshes/s" and rows["write .obj"]["repeats"] == 2
    assert all(0 < row["low"] <= row["median"] <= row["high"] for row in rows.values()) and len(rows) == 4
    printed = capsys.readouterr().out
    assert all(name in printed for name in rows)


def test_too_few_repeats_are_refused(capsys) -> None:
    assert command.run(benchmark.main, ["--repeats", "1"]) == 2
    assert "--repeats must be at least 2" in capsys.readouterr().err


def test_a_summary_has_median_and_quartiles() -> None:
    row = benchmark.summary("x", "ms", [5.0, 1.0, 3.0, 2.0, 4.0])
    assert (row.low, row.median, row.high, row.repeats) == (2.0, 3.0, 4.0, 5)
