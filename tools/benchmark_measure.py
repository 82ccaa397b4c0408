"""How the benchmark measures: contenders in turn, medians and quartiles, ratios within one run."""

from __future__ import annotations

import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Work = Callable[[], object]
_MIN_REPEATS = 2
_TURN_S, _MOST_CALLS = 0.05, 100  # a contender's turn lasts about so long
_WARMED_S = 1.0  # a contender that takes longer fills the cache by itself soon enough
# Of glibc's malloc: large blocks from the heap instead of mmap, and never given back. Without it half of the time of a
# network with large activations goes into page faults; with it both sides of a ratio are at their best.
_MALLOPT = {-4: 0, -1: 2**31 - 1, -2: 2**30}  # mmap_max, trim_threshold, top_pad


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One line of the table: the median of some repeats, and the quartiles around it."""

    name: str
    unit: str
    median: float
    low: float
    high: float
    repeats: int
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times better one measurement is than another of the same run: faster, smaller."""

    of: str
    to: str
    device: str
    factor: float


@dataclass
class Findings:
    """What one part of the benchmark found, and which of its lines are to be compared."""

    measurements: list[Measurement] = field(default_factory=list)
    pairs: list[tuple[str, str]] = field(default_factory=list)

    def add(self, other: Findings) -> None:
        """Take over another part's lines."""
        self.measurements += other.measurements
        self.pairs += other.pairs

    def ratios(self) -> list[Ratio]:
        """Of every pair that was measured."""
        rows = {(row.name, row.device): row for row in self.measurements}
        return [
            Ratio(of=of, to=to, device=device, factor=factor(rows[of, device], rows[to, device]))
            for device in dict.fromkeys(row.device for row in self.measurements)
            for of, to in self.pairs
            if (of, device) in rows and (to, device) in rows
        ]


def factor(of: Measurement, to: Measurement) -> float:
    """More is better in units per second, less in all others."""
    if of.unit != to.unit:
        raise ValueError(f"{of.name} is in {of.unit}, {to.name} in {to.unit}")
    return of.median / to.median if of.unit.endswith("/s") else to.median / of.median


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What the parts share. `budget_s`: a contender that took so long is not asked again, if it has two repeats."""

    repeats: int
    device: torch.device
    threads: int = 1
    quick: bool = False
    allocator: str = "system"

    @property
    def budget_s(self) -> float:
        return 3.0 if self.quick else 20.0

    @property
    def clock(self) -> Callable[[], float]:
        """Processor time where one thread does all the work, which other load disturbs little; else wall time."""
        return time.process_time if self.device.type == "cpu" and self.threads == 1 else time.perf_counter

    @property
    def clock_name(self) -> str:
        return "processor" if self.clock is time.process_time else "wall"

    def seconds(self, work: Work) -> list[float]:
        """Time of each repeat; see `interleaved`."""
        return self.interleaved({"": work})[""]

    def interleaved(self, contenders: Mapping[str, Work]) -> dict[str, list[float]]:
        """Seconds of one call, for each repeat of each contender; they take turns.

        Before that each is called twice (a slow one once). A fast one is called several times in its turn. Unless it
        is slow (a second and more), a turn begins with a call that does not count: it finds the cache full of what the
        others left.
        """
        calls: dict[str, int] = {}
        warmed: dict[str, bool] = {}
        for name, work in contenders.items():
            once = self._timed(work, 1)
            if once < self.budget_s:
                once = self._timed(work, 1)
            warmed[name] = once < _WARMED_S
            calls[name] = int(min(_MOST_CALLS, max(1.0, _TURN_S / max(once, 1e-9))))
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(self.repeats):
            for name, work in contenders.items():
                if len(times[name]) < _MIN_REPEATS or sum(times[name]) * calls[name] < self.budget_s:
                    if warmed[name]:
                        work()
                    times[name].append(self._timed(work, calls[name]) / calls[name])
        return times

    def _timed(self, work: Work, calls: int) -> float:
        """On a GPU until the work is done."""
        self._wait()
        began = self.clock()
        for _ in range(calls):
            work()
        self._wait()
        return self.clock() - began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize()

    def per_unit(self, unit: str, contenders: Mapping[str, Work], *, scale: float) -> list[Measurement]:
        """Time of one call times `scale`, of contenders that take turns."""
        return [
            self.summary(name, unit, [scale * t for t in times]) for name, times in self.interleaved(contenders).items()
        ]

    def rates(self, unit: str, contenders: Mapping[str, tuple[float, Work]]) -> list[Measurement]:
        """Units per second, of contenders that take turns; each does so many units in one call."""
        times = self.interleaved({name: work for name, (_, work) in contenders.items()})
        return [self.summary(name, unit, [count / t for t in times[name]]) for name, (count, _) in contenders.items()]

    def summary(self, name: str, unit: str, values: Sequence[float]) -> Measurement:
        """Median and quartiles."""
        return summary(name, unit, values, device=self.device.type)


def summary(name: str, unit: str, values: Sequence[float], *, device: str = "cpu") -> Measurement:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return Measurement(name=name, unit=unit, median=median, low=low, high=high, repeats=len(values), device=device)


def tune_allocator() -> bool:
    """Keep large blocks of memory (see `_MALLOPT`) for the rest of this process; False where malloc is not glibc's."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(option, value) == 1 for option, value in _MALLOPT.items())


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """The same random weights and inputs in every run; the caller's generator is left as it was."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def memory_mb(entry: str = "VmHWM") -> float:
    """Resident memory of this process: its peak (VmHWM) or what it is now (VmRSS); NaN where /proc is missing."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(f"{entry}:"))
