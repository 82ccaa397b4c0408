"""What every command line shares: sane threads, one-line errors, exit codes."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from mesh.errors import InputError

if TYPE_CHECKING:
    import argparse

    import torch

    from data.detection import Detector

# Before torch is imported: threads that spin while they wait slow a busy machine down by an order of magnitude. The
# first name is OpenMP's own, the second that of Intel's and LLVM's; whoever sets them is heard.
_PATIENT_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
for _name, _value in _PATIENT_THREADS.items():
    os.environ.setdefault(_name, _value)


def run(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> int:
    """Run a command; bad input becomes one line on stderr and exit code 2, an interrupt 130, a closed pipe 141."""
    try:
        return _run(main, argv)
    except BrokenPipeError:
        # Python writes what is left on its way out, as its documentation of SIGPIPE says: to nobody.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in (1, 2):
            os.dup2(nowhere, descriptor)
        return 128 + 13


def _run(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None) -> int:
    try:
        try:
            return main(argv)
        finally:
            for stream in (sys.stdout, sys.stderr):  # a reader that has gone is noticed here at the latest
                print(end="", file=stream, flush=True)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """While packages and networks are loaded nothing becomes garbage: looking for it costs a tenth of the start."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def choose_device(name: str) -> torch.device:
    """auto, cpu or cuda; asking for a device that is not there is an error."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this machine has no CUDA device that torch can use; take --device cpu")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def add_detector_option(parser: argparse.ArgumentParser) -> None:
    """--detector, for whatever looks at pictures."""
    parser.add_argument(
        "--detector",
        choices=("auto", "full", "heavy"),
        default="auto",
        help="network that finds the 2D joints; auto: heavy if it was fetched (tools/fetch_detector.py), else full",
    )


def open_detector(name: str) -> Detector:
    """The detector that --detector names."""
    from data.detection import Detector
    from data.detector_files import detector_paths

    return Detector(detector_paths(None if name == "auto" else name))  # type: ignore[arg-type]
