"""Where the samples of `evaluate` come from: poses, a records folder, or an official dataset converted on the way."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.keypoints import read_keypoints
from data.poses import read_poses
from data.records import Records, open_records
from data.synthesis import PoseSource
from mesh.body import Body, load_body
from mesh.errors import InputError
from mesh.protocols import Protocol
from tools import command
from tools.evaluation_drawn import DEFAULT_COUNT, DrawnSamples, drawn_samples
from tools.evaluation_records import GENDERS, Input, RecordSamples, RecordSettings
from tools.evaluation_samples import SyntheticSamples, synthetic_samples
from tools.experiment import ExperimentConfig, pose_source


def synthetic(
    args: argparse.Namespace, config: ExperimentConfig, name: str, body: Body, device: torch.device
) -> SyntheticSamples | DrawnSamples:
    """Draws with exact or detector-like 2D joints, or with those of the detector in drawn pictures."""
    source: PoseSource
    if args.dataset == "poses":
        source = read_poses(args.root, subjects=tuple(args.subjects))
    else:
        source = pose_source(replace(config.poses, source="prior"), validation=True)
    if name == "detected":
        count = args.samples or DEFAULT_COUNT
        detector = command.open_detector(args.detector)
        return drawn_samples(source, body, config.synthesis, detector, count=count, seed=args.seed, device=device)
    return synthetic_samples(
        source, body, config.synthesis, clean=name == "gt", count=args.samples or 4096, seed=args.seed, device=device
    )


def from_records(
    args: argparse.Namespace, config: ExperimentConfig, protocol: Protocol, body: Body,
    body_files: dict[str, str | None], device: torch.device,
) -> tuple[dict[str, RecordSamples], dict[str, Any]]:  # fmt: skip
    """Samples by input, and what the card says about them."""
    records = _records(args)
    bodies = {"neutral": body, **{name: load_body(path) for name, path in body_files.items() if path}}
    detections = read_keypoints(args.keypoints) if args.keypoints else None
    noise = config.synthesis.to_measure(clean=0.0).noise
    made: dict[str, RecordSamples] = {}
    inputs: tuple[Input, ...] = args.input or _inputs_of(records, args.keypoints)
    for chosen in inputs:
        settings = RecordSettings(
            protocol=protocol,
            input=chosen,
            bodies=bodies,
            noise=noise,
            device=device,
            seed=args.seed,
            count=args.samples,
        )
        made[chosen] = RecordSamples(records, settings, detections)
    _warn_of_gender(records, set(bodies))
    for name, some in made.items():
        for reason, count in {**some.left_out, **some.notes}.items():
            print(f"note: {name}: {reason}: {count} of {len(records)} rows", file=sys.stderr)
    info = records.info
    about = {
        "source": info.source,
        "split": info.split,
        "bodies of the truth": {name: each.name for name, each in bodies.items()},
        "not measured": {name: dict(some.left_out) for name, some in made.items()},
        "dropped in conversion": dict(info.dropped),
        "seed": args.seed,
    }
    return made, about


def _inputs_of(records: Records, keypoints: str | None) -> tuple[Input, ...]:
    """Every input that the records allow without inventing anything."""
    exact: tuple[Input, ...] = ("gt",) if "intrinsics" in records else ()
    return (*exact, "detected") if keypoints or "joints2d" in records else exact or ("gt",)


def _records(args: argparse.Namespace) -> Records:
    """The records folder that is given, or that an official 3DPW folder is converted to, never inside the dataset."""
    root = Path(args.root)
    split = args.split or ("validation" if args.dataset == "pw3d" else None)
    if args.dataset == "records" or (root / "records.yaml").is_file():
        records = open_records(root)
    else:
        from data.readers import pw3d

        if not root.is_dir():
            raise InputError(f"no folder {root}: expected records or the official folder of 3DPW")
        if not args.records and not args.out:
            raise InputError(
                "an official folder is converted to records first: say where with --records DIR or --out DIR"
            )
        target = args.records or args.out / f"records_pw3d_{split}"
        if root.resolve() in (target.resolve(), *target.resolve().parents):
            raise InputError(f"--records {target} lies inside the dataset; choose a folder outside it")
        if not (target / "records.yaml").is_file():
            print(f"converting {root} to {target}", file=sys.stderr)
        records = pw3d.convert(root, target, split=str(split))
    if split and records.info.split != split:
        raise InputError(f"{records.path} is the split {records.info.split!r}, not {split!r}: give --split to match")
    return records


def _warn_of_gender(records: Records, bodies: set[str]) -> None:
    if "gender" not in records:
        return
    lacking = [GENDERS[number] for number in np.unique(records["gender"]) if GENDERS[number] not in bodies]
    if lacking:
        options = " and ".join(f"--body-{name}" for name in lacking)
        print(
            f"note: the true meshes of {', '.join(lacking)} people are made by the neutral body; give {options}",
            file=sys.stderr,
        )
