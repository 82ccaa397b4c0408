"""CMU motion capture: folders of `SUBJECT_TRIAL.amc` beside `SUBJECT.asf`, or of `SUBJECT_TRIAL.bvh` (cgspeed's
MotionBuilder-friendly release), anywhere below the root.

Bones become SMPL joints as `data.retargeting` describes; feet are levelled per subject. `trans` puts the pelvis where
the source's root is, in metres; leg lengths are the body's, so the feet may miss the floor. A `.amc` without a rate is
taken as `source_rate`; `frame` counts the frames of the source from 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.asf import Skeleton, read_amc, read_asf
from data.bvh import read_bvh
from data.motion import MotionFile
from data.readers import Progress
from data.readers.frame_rates import kept_frames
from data.record_sources import settings_of
from data.records import Records, RecordsWriter
from data.retargeting import ACCLAIM, MOTION_BUILDER, BoneMap, Poses, Retargeter, twist_about
from mesh.body import load_body
from mesh.errors import InputError, require
from mesh.joints import SMPL24

LICENCE = (
    "CMU: free for all uses, may not be resold or redistributed directly, even in converted form. The data used in "
    "this project was obtained from mocap.cs.cmu.edu. The database was created with funding from NSF EIA-0196217."
)
_ANALYSIS_RATE = 30.0  # at least; jumps and standing feet are looked for at this rate
_KNEE_BACKWARDS_DEG = 30.0
_ROOT_MARGIN_S = 5 / 30  # before and after a jump of the root
# Turns that no person makes: wide, so that only broken frames are beyond.
_LIMITS_DEG = {
    **{"spine1": 60, "spine2": 75, "spine3": 75, "neck": 90, "head": 90},
    **{"collar": 60, "shoulder": 175, "elbow": 170, "wrist": 130, "hip": 160, "knee": 170, "ankle": 90},
}


@dataclass(frozen=True, kw_only=True)
class CmuOptions:
    """`rate`: poses per second that are kept (0: all). `source_rate`: of files that do not say theirs. `format`: take
    only these files (auto: `.amc` where a trial has both). `asf`: skeleton of `.amc` files without one beside them
    (axes are alike between subjects). `validation_subjects`: the people of split validation; train takes the others.
    `max_turn_deg`, `max_root_turn_deg`: faster turns within 1/30 s are capture errors. `body`: whose rest pose and bone
    directions the poses are for (default: the free body).
    """

    rate: float = 30.0
    source_rate: float = 120.0
    format: Literal["auto", "amc", "bvh"] = "auto"
    asf: str | None = None
    validation_subjects: tuple[int, ...] = ()
    max_turn_deg: float = 70.0
    max_root_turn_deg: float = 40.0
    body: str | None = None


def convert(root: Path, out: Path, *, split: str, progress: Progress, **options: Any) -> Records:
    """Motion of people without camera and shape: `pose`, `trans`, `sequence` (the trial), `person` (the subject)."""
    chosen = CmuOptions(**options)
    require(chosen.rate >= 0 and chosen.source_rate > 0, "--rate and --source-rate must be positive frames per second")
    subjects = _subjects(root, split, chosen)
    retargeter = Retargeter(load_body(chosen.body))
    total = sum(map(len, subjects.values()))
    done = 0
    with RecordsWriter(
        out, source="CMU motion capture", split=split, licence=LICENCE, joints2d=None, joints3d=None,
        up="y", settings=settings_of(chosen, "asf", "body"),
    ) as writer:  # fmt: skip
        for subject, files in subjects.items():
            key = f"subject {subject:02} ({len(files)} trials)"
            trials = _Trials(files, chosen, lambda name, at=done: progress(at, total, name))
            if not writer.has(key, [*trials.all_files(), *([Path(chosen.body)] if chosen.body else [])]):
                writer.add(key, *_subject_columns(subject, trials, retargeter, chosen))
            done += len(files)
        progress(total, total, "")
        return writer.finish()


def _subjects(root: Path, split: str, options: CmuOptions) -> dict[int, list[Path]]:
    """The trials of each person of the split, each trial once."""
    require(split in ("train", "validation"), f"CMU has the splits train and validation, got {split!r}")
    if split == "validation" and not options.validation_subjects:
        raise InputError("split validation needs --validation-subjects: people, not frames, are held out")
    suffixes = (".amc", ".bvh") if options.format == "auto" else (f".{options.format}",)
    trials: dict[str, Path] = {}
    for suffix in suffixes:
        for path in sorted(path for path in root.rglob("*") if path.suffix.lower() == suffix and path.is_file()):
            other = trials.setdefault(path.stem, path)
            if other != path and other.suffix == path.suffix:
                raise InputError(f"{root} holds trial {path.stem} twice: {other} and {path}")
    require(bool(trials), f"{root} holds no {' or '.join(suffixes)} file; expected SUBJECT/SUBJECT_TRIAL.amc or .bvh")
    subjects: dict[int, list[Path]] = {}
    for name in sorted(trials):
        match = re.match(r"(\d{1,6})_", name)
        if match is None:
            raise InputError(f"{trials[name]}: expected a name like 01_02, subject and trial")
        subjects.setdefault(int(match[1]), []).append(trials[name])
    held_out = set(options.validation_subjects)
    chosen = {s: files for s, files in sorted(subjects.items()) if (s in held_out) == (split == "validation")}
    require(bool(chosen), f"{root}: no subject of split {split} among {', '.join(map(str, sorted(subjects)))}")
    return chosen


class _Trials:
    """Opens the files of a subject one after the other, each skeleton once."""

    def __init__(self, files: list[Path], options: CmuOptions, report: Any) -> None:
        self.files, self._options, self._report = files, options, report
        self._skeletons: dict[Path, Skeleton] = {}

    def read(self, path: Path) -> tuple[MotionFile, BoneMap]:
        """A file and what its bones mean."""
        self._report(path.name)
        if path.suffix.lower() == ".bvh":
            bvh = read_bvh(path)
            if "abdomen" in bvh.joints:
                raise InputError(f"{path} is of the DAZ-friendly release; its rest pose differs: take MotionBuilder's")
            return bvh, MOTION_BUILDER
        asf = self._asf_of(path)
        if asf not in self._skeletons:
            self._skeletons[asf] = read_asf(asf)
        return read_amc(path, self._skeletons[asf]), ACCLAIM

    def all_files(self) -> list[Path]:
        """The files and their skeletons."""
        skeletons = dict.fromkeys(self._asf_of(path) for path in self.files if path.suffix.lower() == ".amc")
        return [*self.files, *skeletons]

    def _asf_of(self, path: Path) -> Path:
        beside = sorted(p for p in path.parent.iterdir() if p.suffix.lower() == ".asf")
        own = [p for p in beside if p.stem == path.stem.partition("_")[0]] or beside
        if len(own) == 1:
            return own[0]
        if self._options.asf is None:
            raise InputError(f"{path} has no {path.stem.partition('_')[0]}.asf beside it; name a skeleton with --asf")
        return Path(self._options.asf)


def _subject_columns(
    subject: int, trials: _Trials, retargeter: Retargeter, options: CmuOptions
) -> tuple[dict[str, np.ndarray], dict[str, int]]:  # fmt: skip
    """The rows of one person, and how many frames each rule left out."""
    poses: list[Poses] = []
    frames: list[np.ndarray] = []
    rates: list[float] = []
    analysis_rate = options.rate and max(options.rate, _ANALYSIS_RATE)
    for path in trials.files:
        file, bones = trials.read(path)
        source_rate = file.rate or options.source_rate
        frames.append(kept_frames(file.num_frames, source_rate, analysis_rate))
        rates.append(min(source_rate, analysis_rate or source_rate))
        poses.append(retargeter.poses(file.motion(frames[-1]), bones, str(path)))
    poses = retargeter.level_feet(poses, rates)
    columns: dict[str, list[np.ndarray]] = {"pose": [], "trans": [], "sequence": [], "person": [], "frame": []}
    dropped: dict[str, int] = {}
    for path, trial, source_frames, rate in zip(trials.files, poses, frames, rates):
        wanted = kept_frames(len(trial), rate, options.rate)
        keep = np.ones(len(wanted), bool)
        for rule, bad in _broken(trial, rate, options).items():
            dropped[rule] = dropped.get(rule, 0) + int((bad[wanted] & keep).sum())
            keep &= ~bad[wanted]
        rows = wanted[keep]
        columns["pose"].append(trial.axis_angle()[rows])
        columns["trans"].append(trial.root_m[rows] - retargeter.rest_m[0])
        columns["sequence"].append(np.full(len(rows), path.stem.encode()))
        columns["person"].append(np.full(len(rows), subject, np.int32))
        columns["frame"].append(source_frames[rows])
    merged = {name: np.concatenate(parts) for name, parts in columns.items()}
    return (merged if len(merged["frame"]) else {}), dropped


def _broken(poses: Poses, rate: float, options: CmuOptions) -> dict[str, np.ndarray]:
    """Rule -> frames that break it, (T,)."""
    per_frame = _ANALYSIS_RATE / rate
    jumps = np.zeros(len(poses), bool)
    limits = np.zeros(len(poses), bool)
    root_jumps = _turns_beyond(poses, 0, options.max_root_turn_deg * per_frame)
    margin = int(np.ceil(_ROOT_MARGIN_S * rate))
    near = np.convolve(root_jumps, np.ones(2 * margin + 1), "full")[margin : margin + len(poses)] > 0.5
    for joint, name in enumerate(SMPL24.names):
        part = name.partition("_")[2] or name
        if joint:
            jumps |= _turns_beyond(poses, joint, options.max_turn_deg * per_frame)
        if part in _LIMITS_DEG:
            limits |= poses.joints[joint].magnitude() > np.radians(_LIMITS_DEG[part])
        if part == "knee":
            limits |= twist_about(poses.joints[joint], np.array([1.0, 0, 0])) < -np.radians(_KNEE_BACKWARDS_DEG)
    return {"the root jumps": near, "a joint jumps": jumps, "beyond the limits of joints": limits}


def _turns_beyond(poses: Poses, joint: int, limit_deg: float) -> np.ndarray:
    """Frames on both sides of a too large turn of a joint, (T,)."""
    bad = np.zeros(len(poses), bool)
    if len(poses) > 1:
        local = poses.joints[joint]
        large = (local[:-1].inv() * local[1:]).magnitude() > np.radians(limit_deg)
        bad[:-1] |= large
        bad[1:] |= large
    return bad
