from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from torch import Tensor, nn

from gcn.pose2mesh import JOINTS, ModelConfig
from mesh import files
from mesh.body import load_body
from tools import benchmark, benchmark_data, benchmark_networks, benchmark_training, command, original_loops
from tools.benchmark_measure import Findings, Measurement, Setup, factor, memory_mb, summary
from tools.benchmark_networks import LifterAndMesh

CPU = torch.device("cpu")
SETUP = Setup(repeats=2, device=CPU, quick=True)


def row(name: str, unit: str, median: float, device: str = "cpu") -> Measurement:
    return Measurement(name=name, unit=unit, median=median, low=median, high=median, repeats=1, device=device)


def test_a_part_is_measured_and_compared_within_the_run_and_written_with_what_it_holds_for(
    tmp_path: Path, capsys
) -> None:
    file = tmp_path / "b.json"
    argv = ["--only", "files", "--quick", "--repeats", "2", "--device", "cpu", "--allocator", "system"]
    assert command.run(benchmark.main, [*argv, "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert report["environment"].keys() >= {"date", "processor", "threads", "torch", "load", "clock", "allocator"}
    rows = {row["name"]: row for row in report["measurements"]}
    assert rows["write .obj"]["unit"] == "meshes/s" and rows["write .obj"]["repeats"] == 2
    assert all(0 < row["low"] <= row["median"] <= row["high"] < math.inf for row in rows.values()) and len(rows) == 4
    assert len(report["ratios"]) == 3
    for ratio in report["ratios"]:
        assert ratio["factor"] == pytest.approx(rows[ratio["of"]]["median"] / rows[ratio["to"]]["median"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in rows)


def test_what_was_measured_is_written_before_it_is_printed(tmp_path: Path, monkeypatch) -> None:
    def gone(row: Measurement) -> NoReturn:
        raise BrokenPipeError

    monkeypatch.setattr(benchmark, "row_text", gone)
    argv = ["--only", "files", "--quick", "--repeats", "2", "--device", "cpu", "--allocator", "system"]
    with pytest.raises(BrokenPipeError):
        benchmark.main([*argv, "--json", str(tmp_path / "b")])
    assert len(json.loads((tmp_path / "b").read_text())["measurements"]) == 4


def test_each_mesh_is_written_to_a_new_file(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    for form in files.MESH_WRITERS:
        monkeypatch.setitem(files.MESH_WRITERS, form, lambda path, vertices, faces: written.append(path))
    monkeypatch.setattr(original_loops, "write_obj_by_line", files.MESH_WRITERS["obj"])
    found = benchmark_data.bench_files(SETUP)
    assert len(found.measurements) == 4 and len(written) > 4 * SETUP.repeats
    assert len(set(written)) == len(written)


def test_too_few_repeats_are_refused(capsys) -> None:
    assert command.run(benchmark.main, ["--repeats", "1"]) == 2
    assert "--repeats must be at least 2" in capsys.readouterr().err


def test_a_summary_has_median_and_quartiles() -> None:
    row = summary("x", "ms", [5.0, 1.0, 3.0, 2.0, 4.0])
    assert (row.low, row.median, row.high, row.repeats) == (2.0, 3.0, 4.0, 5)


def test_better_means_more_per_second_and_less_of_everything_else() -> None:
    assert factor(row("a", "samples/s", 30.0), row("b", "samples/s", 10.0)) == 3
    assert factor(row("a", "ms", 10.0), row("b", "ms", 30.0)) == 3
    assert factor(row("a", "MB", 10.0), row("b", "MB", 30.0)) == 3
    with pytest.raises(ValueError, match="is in ms"):
        factor(row("a", "ms", 1.0), row("b", "s", 1.0))


def test_ratios_compare_lines_of_one_device_and_leave_out_what_was_not_measured() -> None:
    rows = [row("a", "ms", 2.0), row("b", "ms", 8.0), row("a", "ms", 1.0, "cuda"), row("c", "ms", 1.0, "cuda")]
    ratios = Findings(rows, [("a", "b"), ("a", "c"), ("d", "a")]).ratios()
    assert [(r.of, r.to, r.device, r.factor) for r in ratios] == [("a", "b", "cpu", 4.0), ("a", "c", "cuda", 1.0)]


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A clock that only moves when told to."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(time, "process_time", lambda: now[0])
    return sleep


def test_contenders_take_turns_after_a_warm_up_that_does_not_count(passing: Callable[[float], None]) -> None:
    calls: list[str] = []
    durations = {"a": iter([9.0, 9.0, 1.0, 2.0]), "b": iter([9.0, 9.0, 3.0, 4.0])}

    def work(name: str) -> Callable[[], None]:
        def call() -> None:
            calls.append(name)
            passing(next(durations[name]))

        return call

    setup = Setup(repeats=2, device=CPU)
    assert setup.interleaved({name: work(name) for name in "ab"}) == {"a": [1.0, 2.0], "b": [3.0, 4.0]}
    assert calls == list("aabb" + "abab")


def test_a_turn_begins_with_a_call_that_does_not_count_unless_it_is_a_slow_one(
    passing: Callable[[float], None],
) -> None:
    def work(first_of_turn: float, others: float) -> Callable[[], None]:
        durations = iter([others, others] + [first_of_turn, others] * 3)
        return lambda: passing(next(durations))

    setup = Setup(repeats=3, device=CPU)
    times = setup.interleaved({"cold at first": work(0.4, 0.25), "slow": work(1.5, 1.25)})
    assert times["cold at first"] == pytest.approx([0.25] * 3) and times["slow"] == pytest.approx([1.5, 1.25, 1.5])


def test_a_slow_contender_is_not_asked_again_and_a_fast_one_several_times_in_its_turn(
    passing: Callable[[float], None],
) -> None:
    counts = {"slow": 0, "fast": 0}

    def work(name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            counts[name] += 1
            passing(seconds)

        return call

    setup = Setup(repeats=5, device=CPU, quick=True)
    times = setup.interleaved({"slow": work("slow", 60.0), "fast": work("fast", 1 / 64)})
    assert times["slow"] == pytest.approx([60.0, 60.0]) and times["fast"] == pytest.approx([1 / 64] * 5)
    assert counts["slow"] == 1 + 2 and counts["fast"] == 2 + 5 * (1 + 3)  # 3 / 64 s are nearly a turn


def test_other_load_is_kept_out_by_processor_time_unless_threads_or_a_gpu_work() -> None:
    assert SETUP.clock_name == "processor"
    assert Setup(repeats=2, device=CPU, threads=2).clock_name == "wall"
    assert Setup(repeats=2, device=torch.device("cuda")).clock_name == "wall"


class _Vertices(nn.Module):
    """A mesh network that is one matrix product."""

    def __init__(self, num_vertices: int) -> None:
        super().__init__()
        self.linear = nn.Linear(len(JOINTS) * 3, num_vertices * 3)

    def forward(self, features: Tensor, joints_m: Tensor) -> Tensor:
        return self.linear(joints_m.flatten(1)).unflatten(1, (-1, 3))


def tiny(name: str, num_vertices: int = 5) -> LifterAndMesh:
    config = ModelConfig(view="picture")
    lifter = nn.Sequential(nn.Flatten(), nn.Linear(19 * 3, 19 * 3), nn.Unflatten(1, (19, 3)))
    return LifterAndMesh(config, lifter, _Vertices(num_vertices))


@torch.no_grad()
def test_networks_are_compared_with_the_library_the_original_and_the_machine() -> None:
    models = {name: tiny(name) for name in benchmark_networks.MESH_NETWORKS}
    found = benchmark_networks._mesh_networks(Setup(repeats=3, device=CPU, quick=True), models, 2)
    rows = {row.name: row for row in found.measurements}
    for ours in ("default", "full"):
        name = f"mesh network, {ours}, batch 2"
        billions = 2 * 2 * (19 * 3) * (5 * 3) / 1e9  # 2 people, a multiplication and an addition each
        rate = rows[f"{name}, its matrix products"].median
        assert rate == pytest.approx(billions / (rows[name].median * 2 / 1e3))
        compared = {ratio.to for ratio in found.ratios() if ratio.of == name}
        assert compared == {"mesh network, ChebConv, batch 2", "mesh network, original, batch 2"}
    shares = [ratio for ratio in found.ratios() if "meanwhile" in ratio.to]
    assert len(shares) == 2 and all(0 < ratio.factor < math.inf for ratio in shares)


@pytest.mark.parametrize("stage", ["posenet", "meshnet"])
def test_a_training_step_gives_finite_times_and_memory(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    num_vertices = load_body().num_vertices
    monkeypatch.setattr(benchmark_networks, "lifter_and_mesh", lambda name, body, device: tiny(name, num_vertices))
    result = benchmark_training.measure(stage, "default", 2, SETUP)
    assert len(result["seconds"]) == 2 and all(0 < t < math.inf for t in result["seconds"])
    assert result["peak memory"] >= result["growth of memory"] and math.isfinite(result["peak memory"])


def test_every_network_is_trained_in_a_process_of_its_own_and_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, int]] = []

    def measured_apart(setup: Setup, stage: str, network: str, size: int) -> list[Measurement]:
        asked.append((stage, network, size))
        name = f"training, {'lifter' if stage == 'posenet' else 'lifter and mesh network'}, {network}, batch {size}"
        return [row(f"{name}, step", "samples/s", 2.0), row(f"{name}, peak memory", "MB", 5.0)]

    monkeypatch.setattr(benchmark_training, "_measured_apart", measured_apart)
    ratios = benchmark_training.bench_training(Setup(repeats=2, device=CPU)).ratios()
    assert ("meshnet", "default", 64) in asked and ("meshnet", "original", 32) in asked
    compared = {(ratio.of, ratio.to) for ratio in ratios}
    full, original = (f"training, lifter and mesh network, {name}, batch 32" for name in ("full", "original"))
    assert {(f"{full}, step", f"{original}, step"), (f"{full}, peak memory", f"{original}, peak memory")} <= compared
    assert ("training, lifter and mesh network, default, batch 64, step", f"{original}, step") in compared
    assert ("training, lifter, default, batch 256, step", "training, lifter, original, batch 256, step") in compared


@pytest.mark.slow
def test_a_fresh_process_measures_the_default_lifter() -> None:
    rows = benchmark_training._measured_apart(SETUP, "posenet", "default", 8)
    assert [row.unit for row in rows] == ["samples/s", "MB", "MB"]
    assert all(0 < row.median < math.inf for row in rows)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system tells no memory")
def test_the_peak_of_memory_is_at_least_what_is_used_now() -> None:
    assert memory_mb() >= memory_mb("VmRSS") > 10
