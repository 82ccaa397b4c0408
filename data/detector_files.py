"""The weight files of the 2D detector: where they lie, what they must be, how they get there.

They are BlazePose's (Apache-2.0): the network that finds people and the "full" one that finds their joints are
published inside the mediapipe wheel, the "heavy" one, which is optional, inside the npm package @mediapipe/pose.
Neither is installed: the wheel's dependencies clash with ours, and only these members are used.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mesh.errors import InputError

MEDIAPIPE_VERSION = "0.10.14"
NPM_PACKAGE = "@mediapipe/pose@0.5.1675469404"
LandmarkModel = Literal["full", "heavy"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PackageMember:
    """One file inside a published package."""

    package: str
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
                f"{source}: {self.name} is not the file of {self.package} (expected {self.num_bytes} "
                f"bytes with sha256 {self.sha256[:12]}..., got {len(content)} bytes)"
            )


POSE_DETECTION = PackageMember(
    package=f"mediapipe {MEDIAPIPE_VERSION}",
    path="mediapipe/modules/pose_detection/pose_detection.tflite",
    num_bytes=2_959_046,
    sha256="9ba9dd3d42efaaba86b4ff0122b06f29c4122e756b329d89dca1e297fd8f866c",
)
POSE_LANDMARKS = PackageMember(
    package=f"mediapipe {MEDIAPIPE_VERSION}",
    path="mediapipe/modules/pose_landmark/pose_landmark_full.tflite",
    num_bytes=6_440_512,
    sha256="e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
)
HEAVY_LANDMARKS = PackageMember(
    package=NPM_PACKAGE,
    path="package/pose_landmark_heavy.tflite",
    num_bytes=27_709_200,
    sha256="59e42d71bcd44cbdbabc419f0ff76686595fd265419566bd4009ef703ea8e1fe",
)


@dataclass(frozen=True, kw_only=True)
class DetectorFiles:
    """Paths of the checked weight files, and which of the landmark networks it is."""

    pose_detection: Path
    pose_landmarks: Path
    model: LandmarkModel


def cache_dir() -> Path:
    """$MESHRECOVERY_CACHE, else the user's cache folder; not created here."""
    if own := os.environ.get("MESHRECOVERY_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "meshrecovery"


def detector_paths(model: LandmarkModel | None = None) -> DetectorFiles:
    """The weight files in the cache, of the better landmark network that is there or of the one that is named.

    A missing or changed file is an InputError that says how to fetch it.
    """
    if model is None:
        model = "heavy" if (cache_dir() / HEAVY_LANDMARKS.name).exists() else "full"
    landmarks = HEAVY_LANDMARKS if model == "heavy" else POSE_LANDMARKS
    return DetectorFiles(pose_detection=_cached(POSE_DETECTION), pose_landmarks=_cached(landmarks), model=model)


def _cached(member: PackageMember) -> Path:
    """The checked file in the cache."""
    path = cache_dir() / member.name
    fetch = "`python tools/fetch_detector.py" + (" --heavy`" if member is HEAVY_LANDMARKS else "`")
    if not path.is_file():
        setup = "" if member is HEAVY_LANDMARKS else "`make setup` or "
        raise InputError(f"the 2D detector's weights are missing ({path}): run {setup}{fetch}")
    try:
        member.check(path.read_bytes(), path)
    except InputError as error:
        raise InputError(f"{error}: run {fetch} to replace it") from error
    return path


def fetch_detector(wheel: str | Path | None = None) -> DetectorFiles:
    """Bring the weight files of the full network into the cache; does nothing if they are there and right.

    They come from `wheel` where given, else from an installed mediapipe that holds the same files, else from the
    package index through pip. Nothing is written unless both files have the right checksum.
    """
    try:
        return detector_paths("full")
    except InputError as reason:
        _log.info("fetching, because %s", reason)
    _store(_read_wheel(Path(wheel)) if wheel is not None else _read_installed() or _download())
    return detector_paths("full")


def fetch_heavy(package: str | Path | None = None) -> DetectorFiles:
    """The same for the heavy landmark network, from the npm package's .tgz where given, else through npm."""
    fetch_detector()
    try:
        return detector_paths("heavy")
    except InputError as reason:
        _log.info("fetching, because %s", reason)
    _store(_read_tarball(Path(package)) if package is not None else _pack())
    return detector_paths("heavy")


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
        command = [sys.executable, "-m", "pip", "download", *options.split(), *platform.split(), "--dest", folder]
        what = f"mediapipe {MEDIAPIPE_VERSION}"
        _run(
            "pip",
            [*command, f"mediapipe=={MEDIAPIPE_VERSION}"],
            what,
            "that wheel elsewhere and give it with --wheel PATH",
        )
        return _read_wheel(next(Path(folder).glob("*.whl")))


def _pack() -> dict[str, bytes]:
    """Name -> checked content of the heavy network, from the npm package as `npm pack` downloads it."""
    elsewhere = "that package's .tgz elsewhere and give it with --package PATH"
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(
            f"{NPM_PACKAGE} comes through npm, which is not installed: install Node.js, or get {elsewhere}"
        )
    with tempfile.TemporaryDirectory() as folder:
        _run(
            "npm",
            [npm, "pack", "--loglevel=error", "--fetch-retries=1", "--pack-destination", folder, NPM_PACKAGE],
            NPM_PACKAGE,
            elsewhere,
        )
        packed = next(Path(folder).glob("*.tgz"), None)
        if packed is None:
            raise InputError(f"npm downloaded nothing (a dry run?): call it without, or get {elsewhere}")
        return _read_tarball(packed)


def _run(client: str, command: Sequence[str], what: str, elsewhere: str) -> None:
    """Let a package client download; its last word on a failure becomes an InputError."""
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{client} could not download {what} ({reason}); without a network, get {elsewhere}")


def _read_tarball(package: Path) -> dict[str, bytes]:
    """Name -> checked content of the heavy network in the npm package."""
    member = HEAVY_LANDMARKS
    try:
        with tarfile.open(package, "r:gz") as archive:
            stream = archive.extractfile(member.path)
            content = b"" if stream is None else stream.read(member.num_bytes + 1)  # never more than was asked for
    except FileNotFoundError as error:
        raise InputError(f"{package}: no such file; expected the .tgz of {NPM_PACKAGE}") from error
    except KeyError as error:
        raise InputError(f"{package}: {error.args[0]}; expected the .tgz of {NPM_PACKAGE}") from error
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, OverflowError) as error:
        raise InputError(f"{package}: not a readable .tgz ({error}); download it again") from error
    member.check(content, package)
    return {member.name: content}


def _store(contents: dict[str, bytes]) -> None:
    """Write all files beside their places, then move them there, so that no half file is ever seen."""
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder} of the detector's files: {error.strerror}") from error
    with tempfile.TemporaryDirectory(dir=folder) as partial:
        for name, content in contents.items():
            (Path(partial) / name).write_bytes(content)
        for name in contents:
            (Path(partial) / name).replace(folder / name)
