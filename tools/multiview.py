"""Measure the recovery on real pictures: one person seen by three or more calibrated cameras at the same time."""

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

    from data.detection import Detector, Person
    from mesh.multiview import ViewCamera
    from tools.multiview_truth import Views

_EPILOG = """RECORDING holds one folder of pictures for each camera, named as the camera is in the calibration, and the
calibration: Calib*.toml (Pose2Sim, Anipose) or *.qca.txt (Qualisys). The k-th picture of every folder, by name, shows
the same moment. Videos become pictures by

  ffmpeg -i videos/cam01.mp4 RECORDING/cam01/%05d.jpg

What three or more cameras agree on, by triangulation of the detected joints, is taken for the truth; each single view
is then recovered on its own and compared with it. Writes report.json, report.md, truth.npz and contact_sheet.png;
docs/evaluation.md says what each figure means."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("recording", type=Path, metavar="RECORDING", help="folder with a folder of pictures for each camera")
    p.add_argument("--calibration", type=Path, help="calibration file (default: the only one in RECORDING)")
    p.add_argument("--out", required=True, type=Path, help="folder to write")
    p.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th moment (default 1)")
    p.add_argument("--keep-cameras", action="store_true", help="do not refine the cameras on the joints they see")
    command.add_detector_option(p)
    p.add_argument("--body", help="SMPL model, .npz or .pkl (default: the free body that ships)")
    p.add_argument("--weights", help="weights file (default: the weights that ship)")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Check the call, detect, triangulate, recover, compare, write."""
    args = parser().parse_args(argv)
    import numpy as np

    from data.calibration import read_calibration
    from mesh.errors import InputError, require
    from mesh.files import replacing
    from mesh.render import write_png
    from tools.evaluation_report import make_folder
    from tools.multiview_truth import check_count, find_truth

    require(args.every >= 1, f"--every must be at least 1, got {args.every}")
    if not args.recording.is_dir():
        raise InputError(f"no folder {args.recording}: expected a folder of pictures for each camera in it")
    require(not args.out.exists() or args.out.is_dir(), f"--out {args.out} is a file; name a folder")
    cameras = read_calibration(args.calibration or find_calibration(args.recording))
    check_count(cameras)
    for camera in cameras:
        own = (args.recording / camera.name).resolve()
        if own == args.out.resolve() or own in args.out.resolve().parents:
            raise InputError(f"--out {args.out} lies among the pictures of camera {camera.name}: choose another folder")
    moments = find_moments(args.recording, cameras)[:: args.every]
    make_folder(args.out)
    with command.starting():
        from gcn.recovery import MeshRecovery
        from tools.multiview_report import compare, contact_sheet, markdown

        recovery = MeshRecovery.from_pretrained(args.weights, body=args.body, device=command.choose_device(args.device))
        detector = command.open_detector(args.detector)
    views = detect(detector, moments, cameras)
    truth = find_truth(cameras, views, refine=not args.keep_cameras)
    report, recovered = compare(recovery, views, truth)
    report = {"detector": detector.model, **report}
    sheet = contact_sheet(moments, recovered, recovery.body.faces)
    with replacing(args.out / "truth.npz") as file:
        np.savez_compressed(
            file,
            joints_m=truth.joints_m.astype(np.float32),
            trusted=truth.trusted,
            exchanged=truth.exchanged,
            rotation=np.stack([camera.rotation for camera in truth.cameras]),
            translation_m=np.stack([camera.translation_m for camera in truth.cameras]),
        )
    with replacing(args.out / "report.json") as file:
        file.write((json.dumps(report, indent=1, allow_nan=False) + "\n").encode())
    with replacing(args.out / "report.md") as file:
        file.write(markdown(report).encode())
    write_png(args.out / "contact_sheet.png", sheet)
    print(markdown(report))
    return 0


def find_calibration(folder: Path) -> Path:
    """The only calibration file of a recording, also in its folder `calibration`."""
    from mesh.errors import InputError

    found = [
        path
        for place in (folder, folder / "calibration")
        if place.is_dir()
        for path in sorted(place.iterdir())
        if path.name.endswith(".qca.txt") or (path.suffix == ".toml" and path.name.lower().startswith("calib"))
    ]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise InputError(
            f"{folder}: expected one calibration file (Calib*.toml or *.qca.txt), found {names}; "
            "say which with --calibration"
        )
    return found[0]


def find_moments(folder: Path, cameras: Sequence[ViewCamera]) -> list[list[Path]]:
    """The pictures of each moment, camera by camera."""
    from data.images import find_images
    from mesh.errors import InputError

    pictures = []
    for camera in cameras:
        own = folder / camera.name
        if not own.is_dir():
            raise InputError(f"no folder {own}: expected the pictures of camera {camera.name} there")
        pictures.append(find_images(own))
    counts = {camera.name: len(found) for camera, found in zip(cameras, pictures)}
    if len(set(counts.values())) != 1 or not pictures[0]:
        raise InputError(f"the cameras must have equally many pictures, at least one: {counts}")
    return [list(moment) for moment in zip(*pictures)]


def detect(detector: Detector, moments: Sequence[Sequence[Path]], cameras: Sequence[ViewCamera]) -> Views:
    """The largest person of every picture."""
    import numpy as np
    from tqdm import tqdm

    from data.images import read_image
    from mesh.errors import InputError
    from tools.multiview_truth import Views

    shape = (len(moments), len(cameras), 33)
    positions, confidence, world = np.zeros((*shape, 2)), np.zeros(shape), np.zeros((*shape, 3))
    for t, moment in enumerate(tqdm(moments, disable=not sys.stderr.isatty())):
        for k, (path, camera) in enumerate(zip(moment, cameras)):
            image = read_image(path)
            _check_size(image, camera, path)
            people: list[Person] = detector.people(image, tiles=False)
            if people:
                largest = max(people, key=lambda person: person.size_px)
                positions[t, k], confidence[t, k], world[t, k] = (
                    largest.positions_px, largest.confidence, largest.world_m,
                )  # fmt: skip
    if not confidence.any():
        raise InputError("nobody was found in any picture")
    return Views(positions_px=positions, confidence=confidence, world_m=world)


def _check_size(image: np.ndarray, camera: ViewCamera, path: Path) -> None:
    """A calibration for pictures of another size is a mistake; a few columns of padding are not."""
    from mesh.errors import InputError

    size = (image.shape[1], image.shape[0])
    if any(abs(came - expected) > 0.01 * expected for came, expected in zip(size, camera.size_px)):
        raise InputError(
            f"{path} has {size[0]} x {size[1]} px; camera {camera.name} is calibrated for {camera.size_px}"
        )


if __name__ == "__main__":
    sys.exit(command.run(main))
