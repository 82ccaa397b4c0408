"""Measure speed and memory of every stage on this machine, and compare within the same run."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tools import command
from tools.benchmark_measure import Findings, Measurement, Ratio, Setup, tune_allocator


@dataclass(frozen=True)
class Part:
    """A function of a module, which takes a `Setup` and gives `Findings`; most need no GPU."""

    module: str
    function: str
    on_gpu: bool = False

    def run(self, setup: Setup) -> Findings:
        """The module is imported only now."""
        found: Findings = getattr(importlib.import_module(self.module), self.function)(setup)
        return found


PARTS = {
    "machine": Part("tools.benchmark_networks", "bench_machine", on_gpu=True),
    "start": Part("tools.benchmark_data", "bench_start"),
    "detection": Part("tools.benchmark_data", "bench_detection"),
    "networks": Part("tools.benchmark_networks", "bench_networks", on_gpu=True),
    "synthesis": Part("tools.benchmark_data", "bench_synthesis", on_gpu=True),
    "skinning": Part("tools.benchmark_data", "bench_skinning", on_gpu=True),
    "metrics": Part("tools.benchmark_data", "bench_metrics", on_gpu=True),
    "files": Part("tools.benchmark_data", "bench_files"),
    "records": Part("tools.benchmark_data", "bench_records"),
    "training": Part("tools.benchmark_training", "bench_training", on_gpu=True),
    "checkpoints": Part("tools.benchmark_training", "bench_checkpoints"),
}


def environment(setup: Setup) -> dict[str, str]:
    """What the figures hold for."""
    import torch

    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "load": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown",
        "threads": str(torch.get_num_threads()),
        "clock": setup.clock_name,
        "allocator": setup.allocator,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def row_text(row: Measurement) -> str:
    """A line of the table."""
    name = row.name if row.device == "cpu" else f"{row.name} [{row.device}]"
    return f"{name:68} {row.median:10.4g} {row.unit:10} ({row.low:.4g} .. {row.high:.4g}, {row.repeats})"


def ratio_text(ratio: Ratio) -> str:
    """A line of the comparison."""
    of, to = ((name if ratio.device == "cpu" else f"{name} [{ratio.device}]") for name in (ratio.of, ratio.to))
    return f"{ratio.factor:10.3g}x  {of}  :  {to}"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART", help=" ".join(PARTS))
    p.add_argument("--quick", action="store_true", help="few repeats and small batches, a third of the memory")
    p.add_argument("--repeats", type=int, help="repeats that count (default: 9, quick: 3)")
    p.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: the CPU, then a GPU too")
    p.add_argument(
        "--allocator", choices=("tuned", "system"), default="tuned",
        help="tuned: keep large blocks of memory, which favours networks that need much of it (default)",
    )  # fmt: skip
    p.add_argument("--json", type=Path, help="write everything to this file as well")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, print the tables."""
    args = parser().parse_args(argv)
    repeats = args.repeats if args.repeats is not None else 3 if args.quick else 9
    from mesh.errors import require

    require(repeats >= 2, f"--repeats must be at least 2, got {repeats}")
    require(args.threads >= 1, f"--threads must be at least 1, got {args.threads}")
    import torch

    torch.set_num_threads(args.threads)
    allocator = "tuned" if args.allocator == "tuned" and tune_allocator() else "system"
    names = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])] if args.device == "auto" else [args.device]
    setups = [
        Setup(
            repeats=repeats, device=command.choose_device(name), threads=args.threads, quick=args.quick,
            allocator=allocator,
        )
        for name in names
    ]  # fmt: skip
    about = environment(setups[0])
    print("  ".join(f"{key}: {value}" for key, value in about.items()))
    found = Findings()
    for name in args.only:
        for setup in setups:
            if setup.device.type == "cpu" or PARTS[name].on_gpu or len(setups) == 1:
                part = PARTS[name].run(setup)
                found.add(part)
                _write(args.json, about, found)
                print("\n".join(map(row_text, part.measurements)), flush=True)
    print("\nhow many times better within this run:")
    print("\n".join(map(ratio_text, found.ratios())))
    return 0


def _write(path: Path | None, about: dict[str, str], found: Findings) -> None:
    """Everything so far: a run that is interrupted leaves what it found."""
    from mesh.files import replacing

    if path is None:
        return
    report = {
        "environment": about,
        "measurements": [asdict(row) for row in found.measurements],
        "ratios": [asdict(ratio) for ratio in found.ratios()],
    }
    with replacing(path) as file:
        file.write(json.dumps(report, indent=1).encode())


if __name__ == "__main__":
    sys.exit(command.run(main))
