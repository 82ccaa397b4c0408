"""AMASS: a folder of sub-datasets with `SUBJECT/TRIAL_poses.npz` (SMPL-H) or `SUBJECT/TRIAL_stageii.npz` (SMPL-X).

Keys that are read: `poses` (T, 156 or 165) axis-angle, `trans` (T, 3) m, `betas` (10 or more), `gender`, and
`mocap_framerate` or `mocap_frame_rate`. The first 22 joints are those of SMPL; the fingers are dropped and SMPL's two
hand joints stay zero. The shape is the first 10 numbers of `betas`: of SMPL-X files these belong to the shape space of
SMPL-X, which is not that of SMPL.

AMASS has z up, records of poses have y up. Turning the world turns the body about its pelvis, whose rest position only
the body model knows: `trans` is therefore written with `body` (exact), or with `world` z-up (the source's parameters
as they are), and left out otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.spatial.transform import Rotation

from data.readers import Progress
from data.readers.frame_rates import kept_frames
from data.record_sources import settings_of
from data.records import Records, RecordsWriter
from mesh.archives import read_arrays
from mesh.body import NUM_SHAPE, load_body
from mesh.errors import InputError, require
from mesh.joints import SMPL24

LICENCE = "AMASS: non-commercial research only, registration at amass.is.tue.mpg.de; cite AMASS and each sub-dataset"
SUFFIXES = ("_poses.npz", "_stageii.npz")
GENDERS = {"neutral": 0, "male": 1, "female": 2}

_MODEL_JOINTS = {52: "SMPL-H", 55: "SMPL-X"}
_BODY_JOINTS = 22  # SMPL without the two hand joints
_Y_UP = Rotation.from_euler("x", -90, degrees=True)  # (x, y, z) -> (x, z, -y)
_KEYS = ("poses", "trans", "betas", "gender")
_FRAME_RATE_KEYS = ("mocap_framerate", "mocap_frame_rate")
_LARGEST_TURN_RAD = 1000.0  # certainly not in radians; the root may have turned around often


@dataclass(frozen=True, kw_only=True)
class AmassOptions:
    """`rate`: poses per second that are kept (0: all; a slower recording is kept whole). `validation`, `test`: folders
    of these splits, under their old and new names; train is everything else, `--split all` takes all of it. `world`:
    see above. `body`: the SMPL-H or SMPL-X model, `{gender}` in its path stands for male, female or neutral.
    """

    rate: float = 30.0
    world: Literal["y-up", "z-up"] = "y-up"
    body: str | None = None
    validation: tuple[str, ...] = ("HumanEva", "MPI_HDM05", "HDM05", "SFU", "MPI_mosh", "MoSh")
    test: tuple[str, ...] = ("Transitions_mocap", "Transitions", "SSM_synced", "SSM")


def convert(root: Path, out: Path, *, split: str, progress: Progress, **options: Any) -> Records:
    """Motion of people without a camera: `pose`, `shape`, `gender`, `sequence`, `frame` (counted in the source)."""
    chosen = AmassOptions(**options)
    require(0 <= chosen.rate < math.inf, f"--rate must be 0 or more poses per second, got {chosen.rate}")
    both = {name.casefold() for name in chosen.validation} & {name.casefold() for name in chosen.test}
    require(not both, f"--validation and --test both name {', '.join(sorted(both))}; a folder belongs to one split")
    files = _files(root, split, chosen)
    with RecordsWriter(
        out, source="AMASS", split=split, licence=LICENCE, joints2d=None, joints3d=None,
        up="y" if chosen.world == "y-up" else "z", settings=settings_of(chosen, "body"),
    ) as writer:  # fmt: skip
        for number, file in enumerate(files):
            key = file.relative_to(root).as_posix()
            progress(number, len(files), key)
            if not writer.has(key, [file, *_body_files(chosen)]):
                writer.add(key, _columns(file, key, chosen))
        progress(len(files), len(files), "")
        return writer.finish()


def _files(root: Path, split: str, options: AmassOptions) -> list[Path]:
    """The files of a split; a sub-dataset is a folder directly below the root."""
    require(split in ("train", "validation", "test", "all"), f"AMASS: no split {split!r}; train, validation, test, all")
    found = sorted(path for path in root.rglob("*.npz") if path.name.endswith(SUFFIXES) and path.is_file())
    expected = "expected SUBDATASET/SUBJECT/TRIAL_poses.npz or ..._stageii.npz below it"
    require(bool(found), f"{root} holds no file of AMASS; {expected}")
    chosen = [path for path in found if split in ("all", _split_of(path.relative_to(root).parts[0], options))]
    folders = ", ".join(sorted({path.relative_to(root).parts[0] for path in found}))
    require(bool(chosen), f"{root}: no folder of split {split} among {folders}; see --validation and --test")
    return chosen


def _body_files(options: AmassOptions) -> list[Path]:
    """The models of all genders that are there, where they are used."""
    if options.body is None or options.world == "z-up":
        return []
    found = dict.fromkeys(Path(options.body.replace("{gender}", gender)) for gender in GENDERS)
    return [path for path in found if path.is_file()]


def _split_of(folder: str, options: AmassOptions) -> str:
    for split, names in (("validation", options.validation), ("test", options.test)):
        if folder.casefold() in (name.casefold() for name in names):
            return split
    return "train"


def _columns(file: Path, key: str, options: AmassOptions) -> dict[str, np.ndarray]:
    """The rows of one file; none if it has no frame."""
    arrays = _read(file)
    poses, trans = arrays["poses"], arrays["trans"]
    if poses.ndim != 2 or poses.shape[1] not in [3 * joints for joints in _MODEL_JOINTS]:
        models = " or ".join(f"(T, {3 * joints}) of {model}" for joints, model in _MODEL_JOINTS.items())
        raise InputError(f"{file}: poses must be {models}, got shape {poses.shape}")
    require(trans.shape == (len(poses), 3), f"{file}: trans must have shape {(len(poses), 3)}, got {trans.shape}")
    betas = arrays["betas"]
    wanted = f"{NUM_SHAPE} or more numbers"
    require(betas.ndim == 1 and len(betas) >= NUM_SHAPE, f"{file}: betas must be {wanted}, got shape {betas.shape}")
    gender = _gender(arrays["gender"], file)
    frames = kept_frames(len(poses), float(arrays["rate"]), options.rate)
    count = len(frames)
    if not count:
        return {}
    pose = np.zeros((count, len(SMPL24), 3))
    pose[:, :_BODY_JOINTS] = poses[frames, : 3 * _BODY_JOINTS].reshape(count, _BODY_JOINTS, 3)
    shape = betas[:NUM_SHAPE].astype(np.float64)
    columns = {
        "pose": pose,
        "shape": np.repeat(shape[None], count, axis=0),
        "trans": trans[frames].astype(np.float64),
        "gender": np.full(count, GENDERS[gender]),
        "sequence": np.full(count, key.removesuffix(".npz").encode()),
        "person": np.zeros(count, np.int32),
        "frame": frames,
    }
    for name in ("pose", "shape", "trans"):
        require(bool(np.isfinite(columns[name]).all()), f"{file}: {name} holds NaN or infinity")
    largest = np.abs(columns["pose"]).max()
    require(largest < _LARGEST_TURN_RAD, f"{file}: poses turn by {largest:.3g}; expected axis-angle in radians")
    return columns if options.world == "z-up" else _turned(columns, gender, shape, options.body)


def _turned(
    columns: dict[str, np.ndarray], gender: str, shape: np.ndarray, body: str | None
) -> dict[str, np.ndarray]:  # fmt: skip
    """With y up: R (LBS(pose) + t) = LBS(R pose) + R t + R p - p, where the root turns about the rest pelvis p."""
    pose = columns["pose"].copy()
    pose[:, 0] = (_Y_UP * Rotation.from_rotvec(pose[:, 0])).as_rotvec()
    if body is None:
        return {name: pose if name == "pose" else array for name, array in columns.items() if name != "trans"}
    mean, dirs = _rest_pelvis(body.replace("{gender}", gender))
    pelvis = mean + dirs @ shape[: dirs.shape[1]]
    return {**columns, "pose": pose, "trans": _Y_UP.apply(columns["trans"] + pelvis) - pelvis}


@lru_cache(maxsize=4)
def _rest_pelvis(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Position (3,) of the root joint at rest and how the shape moves it (3, S)."""
    body = load_body(path)
    row = body.joint_regressor[0].astype(np.float64)
    return row @ body.template, np.einsum("v,vcs->cs", row, body.shape_dirs)


def _gender(array: np.ndarray, file: Path) -> str:
    text = array.item() if array.size == 1 else None
    gender = (text.decode(errors="replace") if isinstance(text, bytes) else str(text)).strip().lower()
    require(gender in GENDERS, f"{file}: gender must be one of {', '.join(GENDERS)}, got {gender[:40]!r}")
    return gender


def _read(file: Path) -> dict[str, np.ndarray]:
    """The keys that are needed and the frame rate as `rate`; others, some of them pickles, are never read."""
    arrays = read_arrays(file, "a motion of AMASS; download it again", only=(*_KEYS, *_FRAME_RATE_KEYS))
    (rate_key, *_) = [key for key in _FRAME_RATE_KEYS if key in arrays] or _FRAME_RATE_KEYS
    missing = [key for key in (*_KEYS, rate_key) if key not in arrays]
    if missing:
        needed = f"{', '.join(_KEYS)} and {' or '.join(_FRAME_RATE_KEYS)}"
        raise InputError(f"{file} has no {missing[0]!r}; a motion of AMASS has {needed}")
    arrays["rate"] = arrays[rate_key]
    for key in ("poses", "trans", "betas", "rate"):
        require(arrays[key].dtype.kind in "fiu", f"{file}: {key} must be numbers, got {arrays[key].dtype}")
    rate = arrays["rate"]
    positive = rate.size == 1 and np.isfinite(rate).all() and rate.min() > 0
    require(positive, f"{file}: {rate_key} must be one positive number, got {str(rate)[:40]}")
    arrays["rate"] = rate.reshape(())
    return arrays
