"""Measure trained weights: on datasets by a named protocol, or on poses seen by random cameras.

evaluate.py --dataset pw3d --root 3DPW --split validation --out results     official folder, or records made of it
evaluate.py --dataset poses --root POSES.npz                                exact and detector-like 2D joints
evaluate.py --dataset poses --root POSES.npz --input detected               people drawn in pictures, and detected there
evaluate.py --compare A/metrics.json B/metrics.json                         two runs, and the published table
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools import command

if TYPE_CHECKING:
    import torch

    from mesh.body import Body
    from mesh.protocols import Protocol
    from tools.evaluation_samples import Samples
    from tools.evaluation_scores import Networks, Scored
    from tools.experiment import ExperimentConfig

SYNTHETIC, FROM_RECORDS = ("poses", "prior"), ("pw3d", "records")
CAMERAS = {
    "assumed": "the size of the picture, whose diagonal is taken for the focal length (recover does so)",
    "told": "the focal length too",
    "untold": "nothing, as of keypoints without a size of the picture",
}
INPUTS = {
    "gt": "exact: COCO joints regressed from the true mesh, projected; pelvis and neck half-way in the picture",
    "detected": "as detected",
    "noisy": "exact joints with the noise of a detector",
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--weights", help="weights file, of the whole network or of a lifter (default: those that ship)")
    p.add_argument("--lifter-only", action="store_true", help="measure only the lifted joints")
    p.add_argument("--dataset", choices=(*FROM_RECORDS, *SYNTHETIC), help="prior: the shipped pose prior, not held out")
    p.add_argument("--root", help="records folder or official dataset folder; the pose file of --dataset poses")
    p.add_argument("--split", help="split of the dataset (default for pw3d: validation)")
    p.add_argument("--records", type=Path, help="where an official dataset is converted to (default: in --out)")
    p.add_argument("--protocol", help="what is measured (default: pw3d-pose2mesh for pw3d, else human36m14)")
    p.add_argument(
        "--input",
        choices=tuple(INPUTS),
        nargs="+",
        help="2D joints (default: gt and noisy, or all that the records have)",
    )
    p.add_argument("--keypoints", help="keypoint file for --input detected")
    p.add_argument("--body", help="SMPL model, .npz or .pkl (default: the free body that ships)")
    p.add_argument("--body-male", help="SMPL model for the truth of men in the records")
    p.add_argument("--body-female", help="the same for women")
    p.add_argument("--subjects", type=int, nargs="+", default=[], help="only these people of the pose file")
    p.add_argument(
        "--samples",
        type=int,
        help="draws (default 4096; 512 pictures, half a second each), or rows of the records, evenly spread (all)",
    )
    p.add_argument("--smooth", choices=("one-euro", "savgol"), help="measure smoothed sequences as well")
    p.add_argument("--rate-hz", type=float, default=30.0, help="frame rate of the sequences, for one-euro")
    p.add_argument("--config", help="experiment whose cameras and noise are used (default: configs/evaluation.yaml)")
    p.add_argument(
        "--camera",
        choices=tuple(CAMERAS),
        help="what the networks know of drawn cameras (default: as --config has it, with the shipped one assumed). "
        + "; ".join(f"{name}: {meaning}" for name, meaning in CAMERAS.items()),
    )
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--out", type=Path, help="folder for metrics.json, per_sequence.csv, per_joint.csv and pictures")
    p.add_argument(
        "--vis", type=int, default=0, metavar="N", help="meshes and pictures of N worst, median, best samples"
    )
    p.add_argument(
        "--vis-by", default="mpvpe_mm", choices=("mpjpe_mm", "pa_mpjpe_mm", "mpvpe_mm", "pa_mpvpe_mm"),
        help="by which they are chosen",
    )  # fmt: skip
    p.add_argument("--images", type=Path, help="image folder of the dataset: pictures over the photos")
    p.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"), help="two metrics.json (or their folders)")
    command.add_detector_option(p)
    p.add_argument("--mirror", action="store_true", help="average with the mirror image, as recover does")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, write, print the table."""
    args = parser().parse_args(argv)
    if args.compare:
        from tools.evaluation_compare import print_comparison

        print_comparison(*args.compare)
        return 0
    _check(args)
    from mesh.body import load_body
    from mesh.errors import InputError
    from mesh.protocols import protocol
    from tools.evaluation_report import Report, make_folder, table, write_report
    from tools.experiment import load_experiment

    if args.out:
        make_folder(args.out)
    args.config = args.config or str(files("configs") / "evaluation.yaml")
    config = load_experiment(args.config)
    if args.camera:
        told, untold = float(args.camera == "told"), float(args.camera == "untold")
        camera = replace(config.synthesis.camera, told=told, untold=untold)
        config = replace(config, synthesis=replace(config.synthesis, camera=camera))
    chosen = protocol(args.protocol or ("pw3d-pose2mesh" if args.dataset == "pw3d" else "human36m14"))
    device = command.choose_device(args.device)
    body = load_body(args.body)
    networks = _networks(args, body, device)
    if networks.mesh is None and (args.vis or args.smooth or args.mirror):
        raise InputError("--vis, --smooth and --mirror are about meshes, which a lifter has none of")
    samples, columns, card = _measure(args, config, chosen, networks, body, device)
    weights = args.weights or "shipped"
    report = Report(card=card, columns=columns, weights=str(weights))
    content = report.content()
    if args.out:
        write_report(args.out, report, content)
    if args.vis:
        for name, some in samples.items():
            _pictures(args, name, networks, some, columns[name], body, device)
    print(table(content))
    print(f"in brackets: {content['intervals are']}")
    return 0


def _check(args: argparse.Namespace) -> None:
    """What argparse cannot know."""
    from mesh.errors import InputError

    if not args.dataset:
        raise InputError("say what to measure on: --dataset pw3d, records, poses or prior (or --compare A B)")
    if args.dataset != "prior" and not args.root:
        kind = "FILE.npz" if args.dataset == "poses" else "DIR"
        raise InputError(f"--dataset {args.dataset} needs --root {kind}")
    if args.seed < 0:
        raise InputError(f"--seed must not be negative, got {args.seed}")
    if args.samples is not None and args.samples < 1:
        raise InputError(f"--samples must be at least 1, got {args.samples}")
    if args.dataset in SYNTHETIC and args.smooth:
        raise InputError("--smooth needs sequences: --dataset pw3d or records")
    if args.keypoints and "detected" not in (args.input or ("detected",)):
        raise InputError("--keypoints is the 2D input of --input detected")
    if args.vis < 0 or (args.vis and not args.out):
        raise InputError("--vis N needs --out DIR and an N of at least 1")
    from mesh.protocols import protocol

    if args.camera and args.dataset not in SYNTHETIC:
        raise InputError("--camera is about --dataset poses and prior; records tell their own cameras, or none")
    if args.camera not in (None, "assumed") and "detected" in (args.input or ()):
        raise InputError("of drawn pictures (--input detected) the networks always know the size: leave --camera out")
    if args.dataset in SYNTHETIC:
        useless = [name for name in ("keypoints", "split", "images", "records") if getattr(args, name)]
        if args.protocol and protocol(args.protocol).truth == "dataset":
            raise InputError(f"--protocol {args.protocol} is about recorded joints; --dataset {args.dataset} has none")
    else:
        useless = ["subjects"] if args.subjects else []
    if args.dataset == "prior" and args.subjects:
        useless = ["subjects", *useless]
    if useless:
        raise InputError(f"--{useless[0]} means nothing with --dataset {args.dataset}; leave it out")


def _networks(args: argparse.Namespace, body: Body, device: torch.device) -> Networks:
    """Lifter and mesh network of the weights file, or its lifter alone."""
    from importlib import resources

    from gcn.mirroring import MirrorAveraged
    from gcn.pose2mesh import load_pose2mesh, load_posenet
    from tools.evaluation_scores import Networks

    with resources.as_file(resources.files("gcn") / "weights" / "pose2mesh.safetensors") as shipped:
        path = Path(args.weights) if args.weights else shipped
        if args.lifter_only or _holds_only_a_lifter(path):
            posenet, config = load_posenet(path)
            return Networks(posenet=posenet.to(device), config=config, mesh=None)
        model = load_pose2mesh(path, body).to(device)
    mesh = MirrorAveraged(model, body).to(device) if args.mirror else model
    return Networks(posenet=model.posenet, config=model.config, mesh=mesh)


def _holds_only_a_lifter(path: Path) -> bool:
    """By the file's own header; what is wrong with a file is said where it is loaded."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as archive:
            return (archive.metadata() or {}).get("kind") == "posenet"
    except (SafetensorError, OSError):
        return False


def _measure(
    args: argparse.Namespace, config: ExperimentConfig, protocol: Protocol, networks: Networks, body: Body,
    device: torch.device,
) -> tuple[dict[str, Samples], dict[str, Scored], dict[str, Any]]:  # fmt: skip
    """The samples and the scores of each input, and the card of what was measured."""
    from tools.evaluation_drawn import DrawnSamples
    from tools.evaluation_scores import score
    from tools.evaluation_sources import from_records, synthetic

    card: dict[str, Any] = {**protocol.card(), "dataset": args.dataset, "root": args.root}
    if networks.mesh is None:
        card["joints"] = "19 of coco19 as lifted, against those regressed from the true mesh"
        card["root of joints"] = "coco19 pelvis"
    samples: dict[str, Samples]
    if args.dataset in SYNTHETIC:
        samples = {name: synthetic(args, config, name, body, device) for name in args.input or ("gt", "noisy")}
        card |= {"subjects": args.subjects or "all", "seed": args.seed, "cameras and noise": args.config}
        card["frames"] = "random draws of pose, body and camera"
        card["gender"] = "one body for everybody"
        camera = config.synthesis.camera
        shares = {"assumed": 1 - camera.told - camera.untold, "told": camera.told, "untold": camera.untold}
        if "detected" in samples:
            shares = {"assumed": 1.0}
        card["cameras known to the networks"] = {CAMERAS[k]: round(v, 4) for k, v in shares.items() if v > 0}
    else:
        bodies = {"male": args.body_male, "female": args.body_female}
        found, about = from_records(args, config, protocol, body, bodies, device)
        samples = dict(found)
        card |= about
        card["cameras known to the networks"] = "as the records tell"
    for some in samples.values():
        if isinstance(some, DrawnSamples):
            card["detector"] = f"BlazePose {some.detector.model}"
            card["not found by the detector, so not measured"] = some.not_found
            print(f"note: the detector did not find {some.not_found} of {some.count} people", file=sys.stderr)
    if args.mirror:
        card["mesh"] = "mean of the results for the 2D pose and for its mirror image"
    columns = {}
    smoother = _smoother(args)
    for name, some in samples.items():
        for kind, scored in score(networks, some, protocol, body, smoother, device).items():
            columns[f"{name} {args.smooth}" if kind else name] = scored
    counts = {name: len(scored.rows) for name, scored in columns.items()}
    if networks.config.view == "picture":
        card["cameras known to the networks"] = "these networks ask for none"
    card["samples"] = counts if len(set(counts.values())) > 1 else max(counts.values())
    card["2D input"] = {name: INPUTS[name] for name in samples}
    if smoother is not None:
        card["smoothing"] = str(smoother)
    return samples, columns, card


def _smoother(args: argparse.Namespace) -> Any:
    if not args.smooth:
        return None
    from mesh.smoothing import OneEuro, SavitzkyGolay

    return OneEuro(rate_hz=args.rate_hz) if args.smooth == "one-euro" else SavitzkyGolay()


def _pictures(
    args: argparse.Namespace, name: str, networks: Networks, samples: Samples, scored: Scored, body: Body,
    device: torch.device,
) -> None:  # fmt: skip
    from tools.evaluation_pictures import choose, write_pictures
    from tools.evaluation_report import make_folder

    folder = args.out / "pictures" / name
    make_folder(folder)
    chosen = choose(scored, args.vis_by, args.vis)
    write_pictures(folder, networks, samples, body, chosen, args.vis_by, args.images, device)


if __name__ == "__main__":
    sys.exit(command.run(main))
