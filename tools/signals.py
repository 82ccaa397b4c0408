"""SIGTERM and SIGINT (Ctrl-C) as a wish that is granted at the next good moment."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any


class StopSignals:
    """While this is entered, the first SIGTERM or SIGINT is remembered; a second one ends the process at once."""

    caught: int = 0

    def __enter__(self) -> StopSignals:
        self._before: dict[int, Any] = {
            number: signal.signal(number, self._remember) for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.caught = number
        for other in self._before:
            signal.signal(other, signal.SIG_DFL)
        print(f"{signal.Signals(number).name}: saving, then stopping; once more stops at once", file=sys.stderr)

    @property
    def exit_code(self) -> int:
        """As shells count: 128 and the signal's number."""
        return 128 + self.caught
