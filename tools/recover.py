"""Recover body meshes from photos, folders of photos, or 2D keypoint files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tools import command

if TYPE_CHECKING:
    import numpy as np

    from data.detection import Detector
    from gcn.recovery import MeshRecovery
    from mesh.joints import JointSet, Keypoints
    from tools.results import Results

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
    p.add_argument(
        "inputs", nargs="*", metavar="INPUT", help="image, folder of images, or keypoint file (.json, .npy, .npz)"
    )
    p.add_argument(
        "--out", required=True, type=Path, help="folder for the results; files of the same name are replaced"
    )
    p.add_argument("--body", help="SMPL model, .npz or .pkl (default: the free body that ships)")
    p.add_argument("--weights", help="weights file (default: the weights that ship)")
    p.add_argument("--joint-set", help="joint set of a keypoint file that does not name its joints")
    p.add_argument("--keypoints", help="2D joints of the images, used instead of the detector; alone: the input")
    p.add_argument("--format", help="comma-separated: obj, ply, glb, npz (default: obj,npz; for arrays npz)")
    p.add_argument("--overlay", action=argparse.BooleanOptionalAction, default=True, help="draw NAME_overlay.png")
    p.add_argument("--max-people", type=int, default=10, help="people per image at most")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return p


@dataclass(frozen=True)
class Job:
    """One unit of work: a picture, the joints of a picture's people, or an array of poses."""

    source: str
    name: str
    image: Path | None = None
    keypoints: Keypoints | None = None
    is_array: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Check everything that can be checked, then work through the inputs."""
    args = parser().parse_args(argv)
    from mesh.errors import InputError
    from mesh.joints import joint_set

    if not args.inputs and not args.keypoints:
        raise InputError("nothing to do: give an image, a folder or a keypoint file; see --help")
    named_set = joint_set(args.joint_set) if args.joint_set else None
    jobs = _jobs(args.inputs, args.keypoints, named_set)
    from tools.results import Results, parse_formats

    formats = parse_formats(args.format or ("npz" if all(job.is_array for job in jobs) else "obj,npz"))
    recovery = _recovery(args)
    detector = _detector(jobs)
    results = Results(args.out, recovery.body.faces, formats)
    results.prepare()
    for job in jobs:
        try:
            _recover(job, recovery, detector, results, overlay=args.overlay, max_people=args.max_people)
        except InputError as error:
            results.fail(job.source, str(error))
        results.write_summary()
    return _report(results)


def _jobs(inputs: Sequence[str], keypoint_file: str | None, joints: JointSet | None) -> list[Job]:
    """The work, with every input looked at: a missing path or a broken keypoint file ends the call here."""
    from data.images import IMAGE_SUFFIXES, find_images
    from data.keypoints import read_keypoints
    from mesh.errors import InputError

    given = {} if keypoint_file is None else _by_image(keypoint_file, joints)
    jobs: list[Job] = []
    for text in inputs or [keypoint_file or ""]:
        path = Path(text)
        if not path.exists():
            raise InputError(f"no such input: {path}")
        if path.is_dir() and not any(path.glob("*.json")):
            images = find_images(path)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            images = [path]
        else:
            jobs += _keypoint_jobs(path, read_keypoints(path, joint_set=joints))
            continue
        jobs += [Job(str(image), image.stem, image, given.get(image.stem)) for image in images]
    if given and inputs:
        unmatched = [job.source for job in jobs if job.image and job.keypoints is None]
        if unmatched:
            raise InputError(f"{keypoint_file} holds no people for {unmatched[0]}; it has {', '.join(list(given)[:5])}")
    return jobs


def _by_image(path: str, joints: JointSet | None) -> dict[str, Keypoints]:
    """People of a keypoint file by the stem of their picture's name."""
    from data.keypoints import read_keypoints

    content = read_keypoints(path, joint_set=joints)
    return {_image_name(entry.image, entry.image_id, Path(path).stem): entry.keypoints for entry in content.images}


def _image_name(image: str | None, image_id: int | str | None, otherwise: str) -> str:
    if image is not None:
        return Path(image).stem
    return otherwise if image_id is None else Path(str(image_id)).stem


def _keypoint_jobs(path: Path, content: object) -> Iterator[Job]:
    from data.keypoints import KeypointFile

    assert isinstance(content, KeypointFile)
    for entry in content.images:
        name = path.stem if content.is_array else _image_name(entry.image, entry.image_id, path.stem)
        source = str(path) if content.is_array else f"{path}: {name}"
        yield Job(source, name, keypoints=entry.keypoints, is_array=content.is_array)


def _detector(jobs: Sequence[Job]) -> Detector | None:
    """Only if a picture comes without joints."""
    if all(job.keypoints is not None for job in jobs):
        return None
    from data.detection import Detector

    return Detector()


def _recovery(args: argparse.Namespace) -> MeshRecovery:
    from gcn.recovery import MeshRecovery

    return MeshRecovery.from_pretrained(args.weights, body=args.body, device=command.choose_device(args.device))


def _recover(
    job: Job, recovery: MeshRecovery, detector: Detector | None, results: Results, *, overlay: bool, max_people: int
) -> None:
    """One job from its pixels or joints to its files."""
    image: np.ndarray | None = None
    keypoints = job.keypoints
    if job.image is not None:
        from data.images import read_image

        image = read_image(job.image)
    if keypoints is None:
        assert image is not None and detector is not None
        keypoints = detector.detect(image, max_people=max_people)
    if not len(keypoints):
        results.fail(job.source, "no person found")
        return
    people = recovery.recover(keypoints)
    name = results.unique(job.name)
    if job.is_array:
        results.write_array(job.source, name, keypoints, people)
        return
    results.write_people(job.source, name, keypoints, people)
    if overlay and image is not None:
        results.write_overlay(name, image, keypoints, people)


def _report(results: Results) -> int:
    """Say what was done and where it lies."""
    people = sum(
        e["recovered"] if "poses" in e else sum(bool(p["files"]) for p in e["people"]) for e in results.entries
    )
    print(f"{people} {'mesh' if people == 1 else 'meshes'} recovered, results in {results.folder}")
    for failure in results.failed:
        print(f"failed: {failure['input']}: {failure['reason']}", file=sys.stderr)
    return 1 if results.failed else 0


if __name__ == "__main__":
    sys.exit(command.run(main))
