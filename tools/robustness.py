"""Check the recovery on pictures without any truth: does it find people, agree with itself, look like a body?"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tools import command

if TYPE_CHECKING:
    import numpy as np

    from data.downloads import Downloader
    from tools.robustness_checks import Checker
    from tools.robustness_report import Picture
    from tools.robustness_sheet import ContactSheet

_EPILOG = """examples:
  python tools/robustness.py photos/ --out report
  python tools/robustness.py photo.jpg urls.txt --out report

A .txt file lists pictures on the web, one http or https address a line, # starts a comment. They are fetched politely
(robots.txt, rate and size limits) into OUT/downloads and kept there: a rerun does not ask for them again.
Writes report.md, report.json and contact_sheet.png; docs/robustness.md says what each figure means.

exit code: 0 all pictures were read, with or without people, 1 some failed (named in the report), 2 wrong call"""
_MAX_SIDE_PX = 4000  # larger pictures are reduced first: one and a half times a picture has to fit in memory
_REPORTS = ("report.json", "report.md", "contact_sheet.png")


@dataclass(frozen=True)
class _Source:
    """A picture by its path, or by its address."""

    text: str
    is_url: bool = False


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("inputs", nargs="+", metavar="INPUT", help="image, folder of images, or .txt list of addresses")
    p.add_argument("--out", required=True, type=Path, help="folder to write; a report in it is replaced")
    p.add_argument("--body", help="SMPL model, .npz or .pkl (default: the free body that ships)")
    p.add_argument("--weights", help="weights file (default: the weights that ship)")
    command.add_detector_option(p)
    p.add_argument("--max-people", type=int, default=10, help="people per image at most")
    p.add_argument("--sheet", type=int, default=8, metavar="N", help="best and worst people drawn (default 8 each)")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    web = p.add_argument_group("downloads")
    web.add_argument("--interval", type=float, default=1.0, metavar="S", help="seconds between requests to one host")
    web.add_argument("--timeout", type=float, default=30.0, metavar="S", help="seconds that one request may take")
    web.add_argument("--max-mb", type=float, default=20.0, metavar="MB", help="largest picture that is fetched")
    web.add_argument(
        "--private-addresses",
        action="store_true",
        help="also fetch from this machine and private networks, which is refused otherwise",
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Check the call, then the pictures one by one, then write the report."""
    args = parser().parse_args(argv)
    from data.downloads import Downloader
    from data.web_requests import DownloadLimits
    from mesh.errors import require

    require(args.max_people >= 1, f"--max-people must be at least 1, got {args.max_people}")
    require(args.sheet >= 1, f"--sheet must be at least 1, got {args.sheet}")
    limits = DownloadLimits(
        interval_s=args.interval,
        timeout_s=args.timeout,
        max_megabytes=args.max_mb,
        private_addresses=args.private_addresses,
    )
    sources = plan(args.inputs)
    _prepare(args.out, sources)
    with command.starting():
        checker = _checker(args)
        from tools.robustness_sheet import ContactSheet
    sheet = ContactSheet(checker.faces, args.sheet)
    failed: list[dict[str, str]] = []
    pictures: list[Picture] = []
    try:
        for picture in _checked(sources, checker, Downloader(args.out / "downloads", limits), sheet, failed):
            pictures.append(picture)
    finally:  # hours of work are not lost to an interrupt
        _write(args.out, pictures, failed, sheet, checker.detector)
    return 1 if failed else 0


def plan(inputs: Sequence[str]) -> list[_Source]:
    """The pictures in the order of the inputs, each once; a missing path or a broken list ends the call here."""
    from data.downloads import read_url_list
    from data.images import IMAGE_SUFFIXES, find_images
    from mesh.errors import InputError

    sources: list[_Source] = []
    for text in inputs:
        path = Path(text)
        if text.lower().startswith(("http://", "https://")):
            raise InputError(f"{text} is an address: write it into a .txt file, one a line, and give that")
        if not text or not path.exists():
            raise InputError(f"no such input: {text!r}")
        if path.is_dir():
            sources += [_Source(str(image)) for image in find_images(path)]
        elif path.suffix.lower() == ".txt":
            sources += [_Source(url, is_url=True) for url in read_url_list(path)]
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            sources.append(_Source(str(path)))
        else:
            known = ", ".join(IMAGE_SUFFIXES)
            raise InputError(f"{path}: expected an image ({known}), a folder of images or a .txt list of addresses")
    return list(dict.fromkeys(sources))


def _prepare(out: Path, sources: Sequence[_Source]) -> None:
    """Make the folder, and make sure that no input would be replaced."""
    from mesh.errors import InputError

    inputs = {Path(source.text).resolve() for source in sources if not source.is_url}
    for name in _REPORTS:
        if (out / name).resolve() in inputs:
            raise InputError(f"{out / name} is an input and would be replaced: choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the output folder {out}: {error.strerror}") from error


def _checker(args: argparse.Namespace) -> Checker:
    from gcn.recovery import MeshRecovery
    from tools.robustness_checks import Checker

    recovery = MeshRecovery.from_pretrained(args.weights, body=args.body, device=command.choose_device(args.device))
    return Checker(command.open_detector(args.detector), recovery, max_people=args.max_people)


def _checked(
    sources: Sequence[_Source],
    checker: Checker,
    downloader: Downloader,
    sheet: ContactSheet,
    failed: list[dict[str, str]],
) -> Iterator[Picture]:
    """Picture by picture; what cannot be had or read is added to `failed`."""
    from tqdm import tqdm

    from data.images import read_image
    from mesh.errors import InputError
    from tools.robustness_report import Picture

    for source in tqdm(sources, disable=not sys.stderr.isatty()):
        try:
            path = downloader.fetch(source.text) if source.is_url else Path(source.text)
            image = _reduced(read_image(path))
            people, recovered = checker.check(image)
        except InputError as error:
            failed.append({"input": source.text, "reason": str(error).removeprefix(f"{source.text}: ")})
            continue
        name = source.text.rpartition("/")[2] if source.is_url else path.name
        sheet.offer_all(image, people, recovered, name)
        yield Picture(source=source.text, size_px=(image.shape[1], image.shape[0]), people=people)


def _reduced(image: np.ndarray) -> np.ndarray:
    """The picture, if it is not too large, else the largest that is not."""
    from tools.robustness_checks import resized

    height, width = image.shape[:2]
    scale = _MAX_SIDE_PX / max(height, width)
    return image if scale >= 1 else resized(image, (max(1, round(width * scale)), max(1, round(height * scale))))


def _write(
    out: Path, pictures: Sequence[Picture], failed: Sequence[dict[str, str]], sheet: ContactSheet, detector: str
) -> None:
    from mesh.files import replacing
    from tools.robustness_report import as_json, as_markdown, counts

    with replacing(out / "report.json") as file:
        file.write((json.dumps({"detector": detector, **as_json(pictures, failed)}, indent=1) + "\n").encode())
    with replacing(out / "report.md") as file:
        file.write(as_markdown(pictures, failed).encode())
    sheet.write(out / "contact_sheet.png")
    summary = counts(pictures, failed)
    print(f"pictures with people: {summary['pictures with people']}, people: {summary['people found']}, see {out}")
    for failure in failed:
        print(f"failed: {failure['input']}: {failure['reason']}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(command.run(main))
