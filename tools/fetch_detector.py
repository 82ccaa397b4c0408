"""Fetch the weights of the 2D detector into the user's cache."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data.detector_files import MEDIAPIPE_VERSION, fetch_detector
from tools import command

DESCRIPTION = f"""\
Fetch the two weight files of the 2D detector (BlazePose, Apache-2.0, 9 MB) out of the official mediapipe
{MEDIAPIPE_VERSION} wheel, check them by sha256 and keep them in ~/.cache/meshrecovery, or in the folder that
$MESHRECOVERY_CACHE names. Nothing is installed. Does nothing if the files are there."""

EXAMPLE = """\
examples:
  python tools/fetch_detector.py
  python tools/fetch_detector.py --wheel mediapipe-0.10.14-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    files = fetch_detector(args.wheel)
    print(f"2D detector ready: {files.pose_detection}, {files.pose_landmarks}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fetch_detector",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--wheel", type=Path, metavar="PATH", help="take them from this wheel, for use without network")
    return parser


if __name__ == "__main__":
    sys.exit(command.run(main))
