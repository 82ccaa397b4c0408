"""Train the rows of a table under an equal budget and write the table: configs/ablations/ has ready-made ones.

ablate.py configs/ablations/posenet_width.yaml --out out/width           train what is not trained yet, write the table
ablate.py configs/ablations/lifters.yaml --out out/lifters --jobs 2 --set poses.source=file poses.file=POSES.npz
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tools import command

if TYPE_CHECKING:
    import torch

    from tools.ablation_config import Ablation, Run
    from tools.ablation_runs import Folder, Trainings

EPILOG = """\
The same command again goes on where it stopped and trains no row twice. Exit code: 0 the table is complete; 1 a row
failed, the others are in the table; 2 wrong call or bad input, nothing was trained; 130 and 143: Ctrl-C or SIGTERM,
the running rows saved themselves."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )  # fmt: skip
    p.add_argument("file", type=Path, metavar="FILE", help="the ablation's YAML, see docs/ablations.md")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="run folders, table.md, table.csv, plot.png")
    p.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="for all rows, after the file's own `set`")
    p.add_argument("--only", nargs="+", metavar="ROW", help="train only these rows, and those that they start from")
    p.add_argument("--jobs", type=int, default=1, metavar="N", help="rows trained at a time, one thread each")
    p.add_argument("--budget", help="samples=N or minutes=M, in place of the file's")
    p.add_argument("--seeds", type=int, nargs="+", metavar="K", help="in place of the file's")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Read, check every row, train, judge, write."""
    args = parser().parse_args(argv)
    from mesh.errors import require
    from tools.ablation_config import selected
    from tools.ablation_file import load_ablation
    from tools.ablation_runs import Folder, Trainings
    from tools.signals import StopSignals

    require(args.jobs >= 1, f"--jobs must be at least 1, got {args.jobs}")
    ablation = load_ablation(args.file, args.set, args.budget, args.seeds)
    chosen = ablation if args.only is None else selected(ablation, args.only)
    device = command.choose_device(args.device)
    folder = Folder(args.out)
    lock = folder.lock()
    lock.acquire()
    try:
        folder.make()
        trainings = Trainings(ablation, folder, args.jobs, device)
        trainings.check(ablation.runs())
        trainings.check_data(chosen.runs())
        with StopSignals() as signals:
            trainings.train(chosen.runs(), signals)
        if signals.caught:
            return signals.exit_code
        _report(
            ablation, folder, trainings, shlex.join(["ablate.py", *(sys.argv[1:] if argv is None else argv)]), device
        )
    finally:
        lock.release()
    return 1 if trainings.failures else 0


def _report(ablation: Ablation, folder: Folder, trainings: Trainings, call: str, device: torch.device) -> None:
    """The table and the picture of all finished runs."""
    from mesh.files import replacing
    from tools.ablation_plot import draw_curves
    from tools.ablation_runs import say
    from tools.ablation_scores import measure
    from tools.ablation_table import csv_text, header, markdown

    runs = ablation.runs()
    finished = [run for run in runs if trainings.is_finished(run)]
    if not finished:
        say("no row is trained: no table")
        return
    say(f"judging {len(finished)} of {len(runs)} runs")
    by_place = {row.label: place for place, row in enumerate(ablation.rows)}
    results = measure(ablation, finished, folder.runs, device)
    results.sort(key=lambda result: (by_place[result.run.row.label], ablation.seeds.index(result.run.seed)))
    head = header(ablation, call, max(len(values) for values in results[0].errors.values()))
    text = markdown(ablation, results, head, _lost(trainings, runs))
    for name, content in (("table.md", text), ("table.csv", csv_text(ablation, results))):
        with replacing(folder.path / name) as file:
            file.write(content.encode())
    draw_curves(ablation, results, folder.path / "plot.png")
    print(text)


def _lost(trainings: Trainings, runs: Sequence[Run]) -> dict[str, str]:
    """What is missing in the table, and why."""
    missing = [run for run in runs if not trainings.is_finished(run)]
    return {run.name: f"failed: {trainings.failures.get(run.name)}" if run.name in trainings.failures
            else "not trained yet" for run in missing}  # fmt: skip


if __name__ == "__main__":
    sys.exit(command.run(main))
