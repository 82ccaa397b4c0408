"""Recover body meshes from photos, folders of photos, or 2D keypoint files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tools import command

if TYPE_CHECKING:
    import numpy as np

    from data.detection import Detector
    from gcn.recovery import MeshRecovery
    from tools.body_parameters import ParameterFinder
    from tools.inputs import Job
    from tools.results import Results

_MAX_DETECTED = 10
_EXAMPLES = """examples:
  python tools/recover.py photo.jpg --out out
  python tools/recover.py photos/ --out out --format obj,glb
  python tools/recover.py poses.npz --joint-set coco17 --out out
  python tools/recover.py photo.jpg --keypoints detections.json --out out

exit code: 0 all inputs worked, 1 some failed (named in summary.json, the others written), 2 wrong call"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("inputs", nargs="*", metavar="INPUT", help="image, folder of images, or keypoint file or folder")
    p.add_argument(
        "--out", required=True, type=Path,
        help="folder for the results; files of the same names are replaced, others stay",
    )  # fmt: skip
    p.add_argument("--body", help="SMPL model, .npz or .pkl (default: the free body that ships)")
    p.add_argument("--weights", help="weights file (default: the weights that ship)")
    p.add_argument("--joint-set", help="joint set of a keypoint file that does not name its joints")
    p.add_argument("--keypoints", help="2D joints of the images, used instead of the detector; alone: the input")
    p.add_argument("--format", help="comma-separated: obj, ply, glb, npz, smpl (default: obj,npz; for arrays npz)")
    p.add_argument("--overlay", action=argparse.BooleanOptionalAction, default=True, help="draw NAME_overlay.png")
    p.add_argument(
        "--exchange",
        action=argparse.BooleanOptionalAction,
        help="mend left and right taken for each other (default: on for the detector's joints, off for given ones)",
    )
    p.add_argument(
        "--focal-px", type=float, metavar="F",
        help="focal length of the pictures in px (default: what a photo's EXIF data tell, else its diagonal)",
    )  # fmt: skip
    command.add_detector_option(p)
    p.add_argument(
        "--max-people", type=int, metavar="N",
        help=f"people per image at most (default: {_MAX_DETECTED} of the detector's, all of given keypoints): "
        "the surest, or the first of keypoints without scores; an array file as an input is recovered whole",
    )  # fmt: skip
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Check everything that can be checked, then work through the inputs."""
    args = parser().parse_args(argv)
    from mesh.errors import InputError
    from mesh.joints import LARGEST_PX, joint_set
    from tools.inputs import check_size_known, plan_jobs, skipped_files

    if args.max_people is not None and args.max_people < 1:
        raise InputError(f"--max-people must be at least 1, got {args.max_people}")
    if args.focal_px is not None and not 1 <= args.focal_px <= LARGEST_PX:
        raise InputError(f"--focal-px must lie between 1 and {LARGEST_PX:g}, got {args.focal_px:g}")
    joints = None if args.joint_set is None else joint_set(args.joint_set)
    jobs = plan_jobs(args.inputs, args.keypoints, joints, args.max_people)
    if args.focal_px is not None:
        for job in jobs:
            check_size_known(job)
    from tools.results import WITH_PARAMETERS, Results, parse_formats

    default = "npz" if all(job.is_array for job in jobs) else "obj,npz"
    formats = parse_formats(default if args.format is None else args.format)
    with command.starting():
        detector = _detector(jobs, args.detector)
        recovery = _recovery(args)
        finder = _finder(recovery) if WITH_PARAMETERS & set(formats) else None
    inputs = [*args.inputs, *([args.keypoints] if args.keypoints else []), *(job.image for job in jobs if job.image)]
    protected = {Path(p).resolve() for p in inputs}
    model = detector.model if detector else None
    results = Results(args.out, recovery.body.faces, formats, protected=protected, detector=model)
    with results.writing():
        for line in skipped_files(args.inputs or [args.keypoints]):
            print(line, file=sys.stderr)
        for job in jobs:
            try:
                _recover(job, recovery, detector, finder, results, args)
            except InputError as error:
                results.fail(job.source, str(error))
            results.write_summary()
    return _report(results)


def _detector(jobs: Sequence[Job], name: str) -> Detector | None:
    """Only if a picture comes without joints."""
    if all(job.keypoints is not None or job.problem for job in jobs):
        return None
    return command.open_detector(name)


def _recovery(args: argparse.Namespace) -> MeshRecovery:
    from gcn.recovery import MeshRecovery

    return MeshRecovery.from_pretrained(args.weights, body=args.body, device=command.choose_device(args.device))


def _finder(recovery: MeshRecovery) -> ParameterFinder:
    from tools.body_parameters import ParameterFinder

    return ParameterFinder(recovery.body, recovery.device)


def _recover(
    job: Job,
    recovery: MeshRecovery,
    detector: Detector | None,
    finder: ParameterFinder | None,
    results: Results,
    args: argparse.Namespace,
) -> None:
    """One job from its pixels or joints to its files."""
    from tools.inputs import find_focal, with_size

    if job.problem:
        results.fail(job.source, job.problem)
        return
    image: np.ndarray | None = None
    keypoints = job.keypoints
    if job.image is not None:
        from data.images import read_image

        image = read_image(job.image)
    if keypoints is None:
        assert image is not None and detector is not None
        keypoints = detector.detect(image, max_people=args.max_people or _MAX_DETECTED)
    if not len(keypoints):
        results.fail(job.source, "no person found")
        return
    exchange = job.keypoints is None if args.exchange is None else args.exchange
    if image is not None:
        keypoints = with_size(job, keypoints, (image.shape[1], image.shape[0]))
    focal = find_focal(job, keypoints, args.focal_px)
    people = recovery.recover(keypoints, exchange=exchange, focal_px=focal.known_px)
    focal = focal.as_taken(people.has_camera[people.valid])
    parameters = None if finder is None else finder.find(people)
    if job.is_array:
        results.write_array(job.source, job.name, keypoints, people, parameters, focal)
    else:
        shown = image if args.overlay else None
        results.write_people(job.source, job.name, keypoints, people, parameters, focal, shown)


def _report(results: Results) -> int:
    """Say what was done and where it lies."""
    print(f"{results.meshes} {'mesh' if results.meshes == 1 else 'meshes'} recovered, results in {results.folder}")
    for failure in results.failed:
        print(f"failed: {failure['input']}: {failure['reason']}", file=sys.stderr)
    return 1 if results.failed else 0


if __name__ == "__main__":
    sys.exit(command.run(main))
