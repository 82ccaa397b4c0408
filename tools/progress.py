"""What a person sees while a training runs: a bar or lines on the terminal, the same in a log file, TensorBoard."""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from mesh.errors import InputError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter
    from tqdm import tqdm

# The order in which loss terms are shown; a term that is not listed follows these.
TERMS = ("loss", "vertex", "normal", "edge", "mesh_joint", "lift_joint", "labeling", "uncertainty")
METRICS = {
    "mpjpe_mm": "MPJPE",
    "pa_mpjpe_mm": "PA-MPJPE",
    "mpvpe_mm": "MPVPE",
    "lift_mpjpe_mm": "lift MPJPE",
    "lift_pa_mpjpe_mm": "lift PA-MPJPE",
}
TENSORBOARD_MISSING = "TensorBoard is not installed: no event files"

_ERRORS = {"mpjpe_mm": "joint error", "lift_mpjpe_mm": "lifted joint error", "mpvpe_mm": "surface error"}
_RECENT_WINDOWS = 20
_UNKNOWN_WIDTH = 80
_BAR = "{desc} {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt}{postfix}"


class Progress:
    """Progress of one run: use it as a context manager, on one rank only.

    On a terminal the newest numbers stand in one bar, cut off where it is narrow, and every other line is written
    above it; elsewhere each update is a line. `log_file` gets all lines with the time, whatever the stream is.
    `batch_size` counts the samples of one step over all ranks and pieces, `epoch_steps` the steps of an epoch.
    Without `enabled` nothing is written at all.
    """

    def __init__(
        self, total_steps: int, step: int, *, epoch_steps: float, batch_size: int, stage: str, log_file: Path | None,
        stream: TextIO | None = None, enabled: bool = True,
    ) -> None:  # fmt: skip
        self.total_steps, self.step, self.epoch_steps, self.batch_size = total_steps, step, epoch_steps, batch_size
        self.stage, self._log_file, self._enabled = stage, log_file, enabled
        self._stream = sys.stderr if stream is None else stream  # looked up now: it may have been redirected
        self._windows: deque[tuple[int, float]] = deque(maxlen=_RECENT_WINDOWS)
        self._bar: tqdm | None = None

    def __enter__(self) -> Progress:
        if self._enabled and self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                desc=self.stage, total=self.total_steps, initial=self.step, file=self._stream,
                bar_format=_BAR, dynamic_ncols=True,
            )  # fmt: skip
            if self._bar.ncols is not None and self._bar.ncols <= 0:  # not every terminal says how wide it is
                self._bar.dynamic_ncols, self._bar.ncols, self._bar.nrows = None, _UNKNOWN_WIDTH, None
                self._bar.refresh()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if error is not None and self._enabled:
            self._log(f"stopped at step {self.step} by {type(error).__name__}: {error}".removesuffix(": "))

    def update(self, step: int, terms: Mapping[str, float], data_s: float, step_s: float) -> None:
        """Means of the window of steps that ends at `step`, which took `step_s` seconds, `data_s` of them for data.

        The time for validation and saving belongs in neither.
        """
        if not self._enabled:
            return
        seconds = max(step_s, 1e-9)
        self._windows.append((step - self.step, seconds))
        rate = f"{_rate((step - self.step) * self.batch_size / seconds)} samples/s"
        self.step = step
        numbers = [rate, f"data {min(data_s / seconds, 1):.0%}", f"eta {self._remaining()}"]
        count = f"step {step:{len(str(self.total_steps))}d}/{self.total_steps}"
        line = "  ".join([count, f"epoch {_epoch(step / self.epoch_steps)}", *_term_texts(terms), *numbers])
        if self._bar is None:
            print(line, file=self._stream, flush=True)
        else:
            self._bar.n = step
            self._bar.set_postfix_str(", ".join([*reversed(numbers), *_term_texts(terms, digits=3)]), refresh=False)
            self._bar.refresh()
        self._log(line)

    def _remaining(self) -> str:
        """Time to the end at the recent rate, h:mm:ss."""
        steps, seconds = (sum(column) for column in zip(*self._windows))
        if steps <= 0:
            return "unknown"
        return str(timedelta(seconds=round((self.total_steps - self.step) * seconds / steps)))

    def epoch(
        self, epoch: float, total_epochs: float, step: int, terms: Mapping[str, float], scores: Mapping[str, float]
    ) -> None:
        """The epoch's mean loss terms and the newest validation scores; there may be none of these yet."""
        heading = f"epoch {_epoch(epoch)}/{_epoch(total_epochs)}  step {step}"
        self.note("  ".join([heading, *_term_texts(terms), *_error_texts(scores)]))

    def validation(self, step: int, scores: Mapping[str, float], is_best: bool) -> None:
        """All scores of a validation."""
        groups = itertools.groupby(scores, key=lambda name: name.rpartition("/")[0])
        texts = []
        for group, names in groups:
            values = ", ".join(_score_text(name.rpartition("/")[2], scores[name]) for name in names)
            texts.append(f"{group}: {values}" if group else values)
        self.note(f"validation at step {step}  " + "; ".join(texts) + ("  (best so far)" if is_best else ""))

    def note(self, text: str) -> None:
        """Any line, above the bar."""
        if not self._enabled:
            return
        if self._bar is None:
            print(text, file=self._stream, flush=True)
        else:
            self._bar.write(text, file=self._stream)
            self._stream.flush()
        self._log(text)

    def _log(self, text: str) -> None:
        """Opened anew for each line, so that it is on disk at once and the folder may be moved."""
        if self._log_file is None:
            return
        now = datetime.now().isoformat(sep=" ", timespec="seconds")
        try:
            with self._log_file.open("a", encoding="utf-8") as file:
                file.writelines(f"{now}  {line}\n" for line in text.splitlines())
        except OSError as exc:
            reason = exc.strerror or str(exc)
            raise InputError(f"cannot write the log {self._log_file}: {reason}; make room or fix the folder") from exc


def in_order(terms: Sequence[str]) -> list[str]:
    """Names of loss terms as people know their order."""
    return [name for name in TERMS if name in terms] + [name for name in terms if name not in TERMS]


def _term_texts(terms: Mapping[str, float], digits: int = 4) -> list[str]:
    return [f"{name} {terms[name]:.{digits}g}" for name in in_order(list(terms))]


def _score_text(metric: str, value: float) -> str:
    """mpjpe_mm 61.234 -> 'MPJPE 61.2 mm'; what is not in mm keeps its name and gets four digits."""
    if metric.endswith("_mm"):
        return f"{METRICS.get(metric, metric.removesuffix('_mm'))} {value:.1f} mm"
    return f"{metric} {value:.4g}"


def _error_texts(scores: Mapping[str, float]) -> list[str]:
    """'joint error exact 45.3 mm, noisy 60.1 mm' and the same of the surface; `share_wrong` where that is judged."""
    texts = []
    for metric, label in _ERRORS.items():
        found = {name.rpartition("/")[0]: value for name, value in scores.items() if name.rpartition("/")[2] == metric}
        if found:
            texts.append(f"{label} " + ", ".join(f"{group} {value:.1f} mm".strip() for group, value in found.items()))
    if "share_wrong" in scores:
        texts.append(_score_text("share_wrong", scores["share_wrong"]))
    return texts


def _epoch(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _rate(per_second: float) -> str:
    return f"{per_second:.0f}" if per_second >= 10 else f"{per_second:.2g}"


class Board:
    """Event files for TensorBoard where the package `tensorboard` is installed; else it does nothing.

    A resumed run gives the `step` it goes on from: what an earlier attempt wrote beyond it is then hidden.
    """

    def __init__(self, folder: Path, *, step: int | None = None) -> None:
        self._writer: SummaryWriter | None = None
        if find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=None if step is None else step + 1)

    @property
    def is_active(self) -> bool:
        """Whether event files are written; if not, tell the user `TENSORBOARD_MISSING`."""
        return self._writer is not None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One point of each curve."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is still held back."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
