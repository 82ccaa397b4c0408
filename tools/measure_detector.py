"""Measure the 2D detector on rendered people with known joints, beside what the noise model makes of the same."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tools import command

if TYPE_CHECKING:
    import numpy as np

    from data.detection import Detector
    from data.synthesis import PoseSource
    from tools.detector_errors import Measurements
    from tools.detector_pictures import PictureMaker

_EXAMPLE = """examples:
  python tools/measure_detector.py --out detector
  python tools/measure_detector.py --poses POSES.npz --count 500 --backgrounds photos --out detector

writes measurements.npz, report.json, report.md and contact_sheet.png. The bodies are drawn, not photographed: what
the figures say about photos is for you to judge; look at the contact sheet."""
_SHEET_COLUMNS, _SHEET_ROWS, _SHEET_SIDE_PX = 6, 4, 256


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--poses", help="pose file (.npz), see data/poses.py (default: the shipped prior)")
    p.add_argument("--count", type=int, default=1000, help="people, about half a second each (default 1000)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument(
        "--backgrounds",
        nargs="+",
        type=Path,
        metavar="FOLDER_OR_IMAGE",
        help="photos whose parts without people stand behind (default: the two that ship)",
    )
    command.add_detector_option(p)
    p.add_argument("--out", required=True, type=Path, help="folder to write")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Draw people, detect them, compare, write."""
    args = parser().parse_args(argv)
    import torch

    from data.noise import NoiseConfig
    from data.synthesis import SynthesisConfig
    from mesh.body import load_body
    from mesh.errors import require
    from tools.detector_errors import figures, imitated
    from tools.detector_pictures import SIDE_PX, PictureMaker, photo_backdrops

    require(args.count >= 1, f"--count must be at least 1, got {args.count}")
    require(args.seed >= 0, f"--seed must not be negative, got {args.seed}")
    require(not args.out.exists() or args.out.is_dir(), f"--out {args.out} is a file; name a folder")
    torch.set_num_threads(1)
    detector = command.open_detector(args.detector)
    backdrops = photo_backdrops(args.backgrounds, detector)
    maker = PictureMaker(_poses(args.poses), load_body(), SynthesisConfig(), backdrops=backdrops, side_px=SIDE_PX)
    measured, sheet = measure(maker, detector, count=args.count, seed=args.seed)
    columns = {"detector": figures(measured)}
    if measured.found.any():
        columns["noise model"] = figures(imitated(measured, NoiseConfig(), seed=args.seed))
    report = table(columns)
    _write(args.out, measured, sheet, columns, report, detector.model)
    print(report)
    return 0


def measure(maker: PictureMaker, detector: Detector, *, count: int, seed: int) -> tuple[Measurements, list[np.ndarray]]:
    """Truth and detection of `count` people; and the first pictures with what was detected drawn in."""
    import numpy as np
    from tqdm import tqdm

    from mesh.joints import COCO17
    from mesh.render import draw_keypoints
    from tools.detector_errors import Measurements, match

    rows: list[dict[str, np.ndarray]] = []
    sheet: list[np.ndarray] = []
    for shot in tqdm(maker.shots(count, seed), total=count, disable=not sys.stderr.isatty()):
        people = detector.detect(shot.image).to(COCO17)
        best = match(people, shot.joints_px, shot.inside)
        found = people.select([] if best is None else [best])
        rows.append(
            {
                "truth_px": shot.joints_px,
                "detected_px": shot.joints_px if best is None else found.positions_px[0],
                "confidence": np.zeros(len(COCO17)) if best is None else found.confidence[0],
                "found": np.array(best is not None),
                "inside": shot.inside,
                "occluded": shot.occluded,
                "facing_deg": np.array(shot.facing_deg),
                "tilted": np.array(shot.tilted),
            }
        )
        if len(sheet) < _SHEET_COLUMNS * _SHEET_ROWS:
            sheet.append(draw_keypoints(shot.image, found))
    return Measurements(**{key: np.stack([row[key] for row in rows]) for key in rows[0]}), sheet


def table(columns: dict[str, dict[str, float]]) -> str:
    """The figures of each column side by side, as a Markdown table."""
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in next(iter(columns.values())):
        lines.append(f"| {name} | " + " | ".join(f"{column[name]:.3f}" for column in columns.values()) + " |")
    return "\n".join(lines)


def _poses(path: str | None) -> PoseSource:
    from data.poses import read_poses
    from data.prior import load_pose_prior

    return load_pose_prior() if path is None else read_poses(path)


def _write(
    out: Path, measured: Measurements, sheet: list[np.ndarray], columns: dict[str, dict[str, float]], report: str,
    model: str,
) -> None:  # fmt: skip
    import numpy as np
    from PIL import Image

    from mesh.render import write_png

    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        out / "measurements.npz", **{name: getattr(measured, name) for name in measured.__dataclass_fields__}
    )
    known = {name: {k: v if v == v else None for k, v in column.items()} for name, column in columns.items()}
    content = {"detector": model, "people": len(measured), "figures": known}
    (out / "report.json").write_text(json.dumps(content, indent=1) + "\n")
    (out / "report.md").write_text(report + "\n")
    size = (_SHEET_SIDE_PX, _SHEET_SIDE_PX)
    small = [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)) for image in sheet]
    small += [np.full_like(small[0], 255)] * (-len(small) % _SHEET_COLUMNS)
    rows = [np.concatenate(small[k : k + _SHEET_COLUMNS], axis=1) for k in range(0, len(small), _SHEET_COLUMNS)]
    write_png(out / "contact_sheet.png", np.concatenate(rows))


if __name__ == "__main__":
    sys.exit(command.run(main))
