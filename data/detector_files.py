"""The two weight files of the 2D detector: where they lie, what they must be, how they get there.

They are BlazePose's (Apache-2.0), published inside the mediapipe wheel. The wheel is never installed: its
dependencies clash with ours, and only these two members of it are used.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from mesh.errors import InputError

MEDIAPIPE_VERSION = "0.10.14"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WheelMember:
    """One file inside the mediapipe wheel."""

    path: str
    num_bytes: int
    sha256: str

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    def check(self, content: bytes, source: object) -> None:
        """Raise InputError unless this is the file byte by byte."""
        if len(content) != self.num_bytes or hashlib.sha256(content).hexdigest() != self.sha256:
            raise InputError(
                f"{source}: {self.name} is not the file of mediapipe {MEDIAPIPE_VERSION} (expected {self.num_bytes} "
                f"bytes with sha256 {self.sha256[:12]}..., got {len(content)} bytes)"
            )


POSE_DETECTION = WheelMember(
    path="mediapipe/modules/pose_detection/pose_detection.tflite",
    num_bytes=2_959_046,
    sha256="9ba9dd3d42efaaba86b4ff0122b06f29c4122e756b329d89dca1e297fd8f866c",
)
POSE_LANDMARKS = WheelMember(
    path="mediapipe/modules/pose_landmark/pose_landmark_full.tflite",
    num_bytes=6_440_512,
    sha256="e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
)


@dataclass(frozen=True, kw_only=True)
class DetectorFiles:
    """Paths of the checked weight files."""

    pose_detection: Path
    pose_landmarks: Path


def cache_dir() -> Path:
    """$MESHRECOVERY_CACHE, else the user's cache folder; not created here."""
    if own := os.environ.get("MESHRECOVERY_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "meshrecovery"


def detector_paths() -> DetectorFiles:
    """The weight files in the cache; a missing or changed one is an InputError that says how to fetch it."""
    for member in (POSE_DETECTION, POSE_LANDMARKS):
        path = cache_dir() / member.name
        if not path.is_file():
            raise InputError(
                f"the 2D detector's weights are missing ({path}): run `make setup` or `python tools/fetch_detector.py`"
            )
        try:
            member.check(path.read_bytes(), path)
        except InputError as error:
            raise InputError(f"{error}: run `python tools/fetch_detector.py` to replace it") from error
    return DetectorFiles(
        pose_detection=cache_dir() / POSE_DETECTION.name, pose_landmarks=cache_dir() / POSE_LANDMARKS.name
    )


def fetch_detector(wheel: str | Path | None = None) -> DetectorFiles:
    """Bring the weight files into the cache; does nothing if they are there and right.

    They come from `wheel` where given, else from an installed mediapipe that holds the same files, else from the
    package index through pip. Nothing is written unless both files have the right checksum.
    """
    try:
        return detector_paths()
    except InputError as reason:
        _log.info("fetching, because %s", reason)
    _store(_read_wheel(Path(wheel)) if wheel is not None else _read_installed() or _download())
    return detector_paths()


def _read_wheel(wheel: Path) -> dict[str, bytes]:
    """Name -> checked content of both members."""
    contents = {}
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in (POSE_DETECTION, POSE_LANDMARKS):
                with archive.open(member.path) as stream:
                    content = stream.read(member.num_bytes + 1)  # never unpacks more than was asked for
                member.check(content, wheel)
                contents[member.name] = content
    except FileNotFoundError as error:
        raise InputError(f"{wheel}: no such file; expected the mediapipe {MEDIAPIPE_VERSION} wheel") from error
    except KeyError as error:
        raise InputError(f"{wheel}: {error.args[0]}; expected the mediapipe {MEDIAPIPE_VERSION} wheel") from error
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{wheel}: not a readable wheel ({error}); download it again") from error
    return contents


def _read_installed() -> dict[str, bytes] | None:
    """The same from an installed mediapipe package, None if there is none with these files."""
    spec = importlib.util.find_spec("mediapipe")
    if spec is None or spec.origin is None:
        return None
    site = Path(spec.origin).parents[1]
    contents = {}
    for member in (POSE_DETECTION, POSE_LANDMARKS):
        path = site / member.path
        if not path.is_file():
            return None
        contents[member.name] = path.read_bytes()
        try:
            member.check(contents[member.name], path)
        except InputError as reason:
            _log.info("%s", reason)
            return None
    return contents


def _download() -> dict[str, bytes]:
    """The same from the wheel as pip downloads it; works from any Python and platform, nothing gets installed."""
    options = "--no-deps --only-binary=:all: --disable-pip-version-check --python-version 3.11 --implementation cp"
    platform = "--abi cp311 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", *options.split(), *platform.split()]
        result = subprocess.run(
            [*command, "--dest", folder, f"mediapipe=={MEDIAPIPE_VERSION}"], capture_output=True, text=True
        )
        if result.returncode != 0:
            reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise InputError(
                f"pip could not download mediapipe {MEDIAPIPE_VERSION} ({reason}); without a network, get that wheel "
                "elsewhere and give it with --wheel PATH"
            )
        return _read_wheel(next(Path(folder).glob("*.whl")))


def _store(contents: dict[str, bytes]) -> None:
    """Write all files beside their places, then move them there, so that no half file is ever seen."""
    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as partial:
        for name, content in contents.items():
            (Path(partial) / name).write_bytes(content)
        for name in contents:
            (Path(partial) / name).replace(folder / name)
