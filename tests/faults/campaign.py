"""The fault campaign: a training is killed again and again, at chosen and at random moments, and must lose nothing.

    python tests/faults/campaign.py [--kills 100] [--stage posenet|meshnet] [--workers N] [--accumulate N]
                                    [--processes N] [--seed S] [--keep FOLDER]

The real command line trains a tiny network on the shipped prior, once undisturbed and then killed (SIGKILL to all its
processes; now and then SIGTERM, SIGINT, or SIGTERM twice) and resumed, until there were so many kills; a run that ends
before is compared and another one started. Moments: during start-up, at any step, while a checkpoint is being written,
right after it was renamed, during a validation, and right after its scores were written. One attempt draws plots and
samples. What must hold, else the exit code is 1:

- each finished run equals the undisturbed one bit for bit: the last checkpoint's state, the weights, the metrics
  (without timing);
- after each kill the newest checkpoint is whole, and not older than it was before;
- a signal's exit code is 143 or 130, and the work up to it is saved; a second signal ends the process;
- there are never more than keep_last + keep_best + 1 checkpoint files, half-written ones included, and never more
  bytes than so many times the largest (a watcher looks all the time).
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from training_runs import Attempt, Plan, checkpoint_steps, differences, last_row, run_to_end
from watcher import Watcher, checkpoint_sizes

from gcn.checkpoint import newest_checkpoint
from mesh.errors import InputError

# How long what is to be hit takes, seconds, so that moments inside it can be drawn: start-up, writing, validation.
DURATIONS_S = {"posenet": (4.0, 0.004, 0.05), "meshnet": (9.0, 0.3, 1.5)}
OFTEN_S = 0.0002  # between two looks for what is over in milliseconds
PLANS = {
    "posenet": Plan(),
    "meshnet": Plan(
        stage="meshnet", steps=40, validate_every=8, log_every=1, save_every=3, batch_size=4, validation_poses=260
    ),
}


@dataclass(frozen=True)
class Context:
    """What a moment is chosen from."""

    attempt: Attempt
    plan: Plan
    chance: random.Random

    @property
    def durations_s(self) -> tuple[float, float, float]:
        return DURATIONS_S[self.plan.stage]


def starting_up(c: Context) -> bool:
    """A uniformly drawn time after the start, up to about the first step."""
    begun = time.monotonic()
    delay = c.chance.uniform(0.0, c.durations_s[0] * 1.1)
    return c.attempt.wait_until(lambda: time.monotonic() - begun >= delay)


def at_a_step(c: Context) -> bool:
    """A uniformly drawn number of steps ahead, and somewhere within that step."""
    if not c.attempt.wait_until_training():
        return False
    goal = max(checkpoint_steps(c.attempt.checkpoints), default=0) + c.chance.randint(1, max(2, c.plan.steps // 10))
    reached = c.attempt.wait_until(lambda: last_row(c.attempt.folder).get("step", 0) >= goal)
    time.sleep(c.chance.uniform(0.0, 0.03))
    return reached


def _is_writing(c: Context) -> bool:
    return any(name.startswith(".") for name in checkpoint_sizes(c.attempt.checkpoints))


def writing(c: Context) -> bool:
    """A half-written file is there; sometimes at once, sometimes a little later."""
    if not c.attempt.wait_until_training():
        return False
    for _ in range(c.chance.randint(1, 4)):
        c.attempt.wait_until(lambda: not _is_writing(c))
        if not c.attempt.wait_until(lambda: _is_writing(c), poll_s=OFTEN_S):
            return False
    time.sleep(c.durations_s[1] * c.chance.random() ** 2)
    return True


def _has_newer(c: Context, step: int) -> bool:
    return max(checkpoint_steps(c.attempt.checkpoints), default=-1) > step


def renamed(c: Context) -> bool:
    """A new whole file has just appeared."""
    if not c.attempt.wait_until_training():
        return False
    for _ in range(c.chance.randint(1, 4)):
        before = max(checkpoint_steps(c.attempt.checkpoints), default=-1)
        if not c.attempt.wait_until(partial(_has_newer, c, before), poll_s=OFTEN_S):
            return False
    return True


def validating(c: Context) -> bool:
    """The step before a validation is logged, its scores are not."""
    if not c.attempt.wait_until_training():
        return False

    def due() -> bool:
        row = last_row(c.attempt.folder)
        return row != c.attempt.row_at_start and "loss" in row and row["step"] % c.plan.validate_every == 0

    reached = c.attempt.wait_until(due)
    time.sleep(c.chance.uniform(0.0, c.durations_s[2]))
    return reached


def validated(c: Context) -> bool:
    """Scores have just been written, the checkpoint that knows of them not yet."""
    if not c.attempt.wait_until_training():
        return False

    def scored() -> bool:
        row = last_row(c.attempt.folder)
        return bool(row) and row != c.attempt.row_at_start and "loss" not in row

    return c.attempt.wait_until(scored, poll_s=OFTEN_S)


@dataclass(frozen=True)
class Kind:
    """A way to end a run: when, by which signals, and how often compared to the others."""

    name: str
    moment: Callable[[Context], bool]
    signals: tuple[int, ...] = (signal.SIGKILL,)
    weight: int = 1

    @property
    def exit_codes(self) -> set[int]:
        """As subprocess counts; a second signal may come when the first is already done with."""
        first = self.signals[0]
        if first == signal.SIGKILL:
            return {-signal.SIGKILL}
        return {128 + first} | ({-first} if len(self.signals) > 1 else set())


KINDS = (
    Kind("at any step", at_a_step, weight=5),
    Kind("start-up", starting_up, weight=2),
    Kind("writing", writing, weight=5),
    Kind("renamed", renamed, weight=4),
    Kind("validation", validating, weight=3),
    Kind("validated", validated, weight=2),
    Kind("SIGTERM", at_a_step, (signal.SIGTERM,)),
    Kind("SIGINT", at_a_step, (signal.SIGINT,)),
    Kind("SIGTERM in validation", validating, (signal.SIGTERM,), weight=2),
    Kind("SIGTERM twice", at_a_step, (signal.SIGTERM, signal.SIGTERM)),
)
BY_NAME = {kind.name: kind for kind in KINDS}


def schedule(kills: int, chance: random.Random) -> list[Kind]:
    """Kinds in random order, each at least once if there is room.

    A stop in a validation is followed by a kill right after the scores that the stopped run still owed.
    """
    kinds = list(KINDS) if kills >= len(KINDS) else []
    kinds += chance.choices(KINDS, [kind.weight for kind in KINDS], k=kills - len(kinds))
    chance.shuffle(kinds)
    for place, kind in enumerate(kinds[:-1]):
        if kind.name == "SIGTERM in validation":
            kinds[place + 1] = BY_NAME["validated"]
    return kinds


@dataclass
class Report:
    """What happened, and what should not have."""

    kills: list[tuple[str, int]] = field(default_factory=list)  # kind and last logged step
    half_written: int = 0  # kills that left half a file
    unpruned: int = 0  # kills between a renaming and the removals that belong to it
    resumes: int = 0
    runs_compared: int = 0
    most_files: int = 0
    looks: int = 0
    problems: list[str] = field(default_factory=list)

    def text(self, plan: Plan) -> str:
        """The summary table."""
        lines = [f"{'kind of kill':24}{'count':>6}  at steps"]
        for name, count in Counter(name for name, _ in self.kills).most_common():
            steps = sorted(step for kind, step in self.kills if kind == name)
            lines.append(f"{name:24}{count:6}  {' '.join(map(str, steps))}")
        lines += [
            f"{'in all':24}{len(self.kills):6}  {self.resumes} resumes, {self.half_written} left half a file, "
            f"{self.unpruned} fell between renaming and removing",
            f"runs compared with the undisturbed one: {self.runs_compared}",
            f"most checkpoint files at once: {self.most_files} of {plan.most_files} allowed ({self.looks} looks)",
            *(f"PROBLEM: {problem}" for problem in self.problems),
            "verdict: " + ("FAILED" if self.problems else "all equal bit for bit, nothing lost"),
        ]
        return "\n".join(lines)


def campaign(
    plan: Plan, kinds: Sequence[Kind], folder: Path, chance: random.Random, say: Callable[[str], None] = print,
    reference: Callable[[Plan, Path], object] = run_to_end,
) -> Report:  # fmt: skip
    """Kill and resume until all `kinds` are done and the last run has ended; see the module."""
    report = Report()
    whole = folder / "whole"
    say("the undisturbed run ...")
    reference(plan, whole)
    pictured = chance.randrange(len(kinds)) if kinds else -1
    left = list(kinds)
    number = in_vain = 0
    while left or number == 0:
        number += 1
        before = len(left)
        parts = folder / f"parts{number}"
        with Watcher(parts / "checkpoints") as watcher:
            _one_run(plan, left, parts, chance, report, len(kinds) - pictured, say)
        _judge_watcher(watcher, plan, parts, report)
        found = differences(whole, parts)
        report.runs_compared += 1
        report.problems += [f"{parts.name} is not the undisturbed run: {place}" for place in found[:8]]
        if len(found) > 8:
            report.problems.append(f"{parts.name}: and {len(found) - 8} more differences, the last {found[-1]}")
        shutil.rmtree(parts)
        in_vain = in_vain + 1 if len(left) == before else 0
        if in_vain == 3 and left:
            report.problems.append(f"three runs ended before the moment for {left[0].name!r} came")
            break
    return report


def _one_run(
    plan: Plan, left: list[Kind], parts: Path, chance: random.Random, report: Report, pictured: int,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Kill and resume one run until it ends, taking the kinds from `left`."""
    newest = -1
    while True:
        if parts.is_dir() and not (parts / "config.yaml").is_file() and not (parts / "checkpoints").is_dir():
            report.problems.append(f"{parts.name}: killed so early that it can be neither resumed nor started again")
            shutil.rmtree(parts)
        resumes = parts.is_dir()
        report.resumes += resumes
        this = replace(plan, pictures=len(left) == pictured)
        attempt = Attempt(this.command(parts, *(["--resume"] if resumes else [])), parts)
        kind = left[0] if left else None
        try:
            hit = kind is not None and kind.moment(Context(attempt, plan, chance))
            if kind is not None and hit:
                _send(attempt, kind, plan, chance)
            code = attempt.end()
        except BaseException:
            attempt.signal_all(signal.SIGKILL)
            raise
        if code == 0:  # it was faster
            return
        step = int(last_row(parts).get("step", 0))
        if kind is None or not hit:
            raise RuntimeError(f"exit code {code} without a kill: {attempt.errors()}")
        left.pop(0)
        say(f"{len(left):4} kills left; {kind.name} at step {step}")
        report.kills.append((kind.name, step))
        if plan.processes == 1 and code not in kind.exit_codes:
            report.problems.append(f"{kind.name} at step {step}: exit code {code}: {attempt.said()[-300:]}")
        newest = _judge_files(plan, attempt, kind, code, newest, report)


def _send(attempt: Attempt, kind: Kind, plan: Plan, chance: random.Random) -> None:
    """The signals; what is not SIGKILL goes to the main process alone or, as Ctrl-C does, to all."""
    everybody = kind.signals == (signal.SIGKILL,) or (plan.processes == 1 and chance.random() < 0.5)
    for place, number in enumerate(kind.signals):
        if place:
            time.sleep(chance.uniform(0.001, 0.01))
        (attempt.signal_all if everybody else attempt.signal_main)(number)


def _judge_files(plan: Plan, attempt: Attempt, kind: Kind, code: int, newest: int, report: Report) -> int:
    """Nothing that was there is lost; the step of the newest checkpoint."""
    sizes = checkpoint_sizes(attempt.checkpoints)
    half_written = sum(name.startswith(".") for name in sizes)
    report.half_written += half_written > 0
    report.unpruned += len(sizes) - half_written > plan.keep_last + plan.keep_best
    try:
        found = newest_checkpoint(attempt.checkpoints)
    except InputError as exc:
        report.problems.append(f"{kind.name}: {exc}")
        return newest
    step = -1 if found is None else int(found[1]["state"]["step"])
    if found is not None and found[2]:
        report.problems.append(f"{kind.name}: damaged: {'; '.join(found[2])}")
    if step < newest:
        report.problems.append(f"{kind.name}: the newest checkpoint is of step {step}, was {newest}")
    logged = int(last_row(attempt.folder).get("step", 0))
    if code in (128 + signal.SIGTERM, 128 + signal.SIGINT) and step < logged:
        report.problems.append(f"{kind.name}: stopped after step {logged}, but saved step {step}")
    return step


def _judge_watcher(watcher: Watcher, plan: Plan, parts: Path, report: Report) -> None:
    report.looks += watcher.looks
    report.most_files = max(report.most_files, watcher.most_files)
    if watcher.most_files > plan.most_files:
        report.problems.append(f"{parts.name} had {watcher.most_files} checkpoint files: {watcher.most_names}")
    if watcher.most_bytes > plan.most_files * watcher.largest:
        report.problems.append(f"{parts.name} had {watcher.most_bytes} bytes of checkpoints")


def make_plan(
    stage: str, folder: Path, *, workers: int = 0, accumulate: int = 1, processes: int = 1, seed: int = 0
) -> Plan:
    """The tiny training of a stage; for the mesh stage, a lifter is trained first."""
    lifter = None
    if stage == "meshnet":
        lifter = folder / "lifter"
        run_to_end(Plan(steps=4, validate_every=4, log_every=4, validation_poses=8, seed=seed), lifter)
    return replace(PLANS[stage], workers=workers, accumulate=accumulate, processes=processes, seed=seed, lifter=lifter)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, kill, judge."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kills", type=int, default=100)
    p.add_argument("--stage", choices=tuple(PLANS), default="posenet")
    p.add_argument("--workers", type=int, default=0, help="train.workers")
    p.add_argument("--accumulate", type=int, default=1, help="pieces of a batch")
    p.add_argument("--processes", type=int, default=1, help="more than one: by torchrun")
    p.add_argument("--seed", type=int, default=0, help="of the kills and of the training")
    p.add_argument("--keep", type=Path, help="folder for the runs (default: a temporary one, removed at the end)")
    args = p.parse_args(argv)
    with ExitStack() as stack:
        folder = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
        folder.mkdir(parents=True, exist_ok=True)
        plan = make_plan(
            args.stage, folder, workers=args.workers, accumulate=args.accumulate, processes=args.processes,
            seed=args.seed,
        )  # fmt: skip
        chance = random.Random(args.seed)
        report = campaign(plan, schedule(args.kills, chance), folder, chance)
        print(report.text(plan))
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
