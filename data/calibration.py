"""Files that say where several cameras stand: Pose2Sim's and Anipose's `.toml`, Qualisys' `.qca.txt`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from scipy.spatial.transform import Rotation

from mesh.errors import InputError, require
from mesh.multiview import ViewCamera

SUFFIXES = (".toml", ".qca.txt")
_LARGEST_BYTES = 10_000_000
_QCA_PARTS = 64.0  # of a pixel, the unit of Qualisys' intrinsics
_QCA_FROM_CAMERA = np.diag([1.0, -1.0, -1.0])  # Qualisys' camera looks along -z with y up
_ROTATION_TOLERANCE = 1e-3
_LONGEST_NAME = 100


def read_calibration(path: str | Path) -> list[ViewCamera]:
    """The cameras of a file, by name; at least two. Fisheye lenses are refused."""
    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        raise InputError(f"{path}: expected a calibration file ending in {' or '.join(SUFFIXES)}")
    try:
        require(path.stat().st_size <= _LARGEST_BYTES, f"{path} is too large for a calibration file")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text: expected a calibration file") from error
    cameras = _toml_cameras(text, path) if path.suffix == ".toml" else _qca_cameras(text, path)
    names = [camera.name for camera in cameras]
    require(len(cameras) >= 2, f"{path} holds {len(cameras)} cameras; at least two are needed")
    require(len(set(names)) == len(names), f"{path} holds two cameras of one name: {', '.join(names)}")
    return cameras


def _toml_cameras(text: str, path: Path) -> list[ViewCamera]:
    if sys.version_info < (3, 11):
        raise InputError(f"{path}: reading .toml needs Python 3.11 or newer; give a .qca.txt or use a newer Python")
    import tomllib

    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # among them TOMLDecodeError
        raise InputError(f"{path} is not TOML: {_one_line(error)}") from error
    entries = {key: entry for key, entry in content.items() if isinstance(entry, dict) and "matrix" in entry}
    return [_toml_camera(f"{path}: [{key}]", str(entry.get("name", key)), entry) for key, entry in entries.items()]


def _toml_camera(place: str, name: str, entry: Mapping[str, Any]) -> ViewCamera:
    require(not entry.get("fisheye", False), f"{place} is a fisheye lens, which is not supported")
    distortion = np.zeros(5)
    given = _numbers(entry, "distortions", None, place)
    require(len(given) in (4, 5), f"{place}: distortions must be 4 or 5 numbers (k1, k2, p1, p2, k3), got {len(given)}")
    distortion[: len(given)] = given
    width, height = _numbers(entry, "size", (2,), place)
    return _checked(
        ViewCamera(
            name=name,
            matrix=_numbers(entry, "matrix", (3, 3), place),
            distortion=distortion,
            rotation=Rotation.from_rotvec(_numbers(entry, "rotation", (3,), place)).as_matrix(),
            translation_m=_numbers(entry, "translation", (3,), place),
            size_px=(int(width), int(height)),
        ),
        place,
    )


def _numbers(entry: Mapping[str, Any], key: str, shape: tuple[int, ...] | None, place: str) -> np.ndarray:
    try:
        values = np.asarray(entry.get(key), np.float64)
    except (TypeError, ValueError, OverflowError):
        values = np.full(1, np.nan)
    if (shape is not None and values.shape != shape) or values.ndim == 0 or not np.isfinite(values).all():
        wanted = "numbers" if shape is None else f"numbers of shape {shape}"
        raise InputError(f"{place}: {key} must be {wanted}, got {str(entry.get(key))[:80]}")
    return values


def _qca_cameras(text: str, path: Path) -> list[ViewCamera]:
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputError(f"{path} declares entities, which no calibration needs")
    try:
        root = ElementTree.fromstring(text.encode())
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise InputError(f"{path} is not XML: {_one_line(error)}") from error
    return [_qca_camera(element, path) for element in root.iter("camera") if element.get("active", "1") != "0"]


def _qca_camera(element: ElementTree.Element, path: Path) -> ViewCamera:
    name = element.get("serial", "")
    place = f"{path}: camera {name[:_LONGEST_NAME]!r}"

    def values(tag: str, *keys: str) -> list[float]:
        child = element.find(tag)
        attributes = {} if child is None else child.attrib
        try:
            numbers = [float(attributes[key]) for key in keys]
        except (KeyError, ValueError):
            numbers = [np.nan]
        require(bool(np.isfinite(numbers).all()), f"{place}: expected <{tag}> with the numbers {', '.join(keys)}")
        return numbers

    rotation = np.reshape(values("transform", *(f"r{a}{b}" for a in (1, 2, 3) for b in (1, 2, 3))), (3, 3))
    centre_m = np.array(values("transform", "x", "y", "z")) / 1000
    focal_u, focal_v, centre_u, centre_v, skew = values(
        "intrinsic", "focalLengthU", "focalLengthV", "centerPointU", "centerPointV", "skew"
    )
    k1, k2, k3, p1, p2 = values(
        "intrinsic", "radialDistortion1", "radialDistortion2", "radialDistortion3", "tangentalDistortion1",
        "tangentalDistortion2",
    )  # fmt: skip
    left, top, right, bottom = values("fov_video", "left", "top", "right", "bottom")
    require(left == top == 0, f"{place} shows a part of its sensor (fov_video), which is not supported")
    require(element.get("viewrotation", "0") == "0", f"{place} is turned (viewrotation), which is not supported")
    turned = _QCA_FROM_CAMERA @ rotation
    matrix = np.array(((focal_u, skew, centre_u), (0, focal_v, centre_v), (0, 0, _QCA_PARTS))) / _QCA_PARTS
    return _checked(
        ViewCamera(
            name=name, matrix=matrix, distortion=np.array((k1, k2, p1, p2, k3)), rotation=turned,
            translation_m=-turned @ centre_m, size_px=(int(right - left) + 1, int(bottom - top) + 1),
        ),
        place,
    )  # fmt: skip


def _checked(camera: ViewCamera, place: str) -> ViewCamera:
    off = np.abs(camera.rotation @ camera.rotation.T - np.eye(3)).max()
    require(off <= _ROTATION_TOLERANCE and np.linalg.det(camera.rotation) > 0, f"{place}: the rotation is no rotation")
    require(bool((camera.matrix[[0, 1], [0, 1]] > 0).all()), f"{place}: the focal lengths must be positive")
    elsewhere = camera.matrix - np.diag(np.diag(camera.matrix))
    elsewhere[:2, 2] = 0
    require(
        not elsewhere.any() and camera.matrix[2, 2] == 1,
        f"{place}: the matrix must be fx, 0, cx; 0, fy, cy; 0, 0, 1 (skew is not supported)",
    )
    require(min(camera.size_px) > 0, f"{place}: the size must be positive, got {camera.size_px}")
    is_name = (
        camera.name.isprintable() and len(camera.name) <= _LONGEST_NAME and camera.name not in ("", ".", "..", "all")
    )
    require(is_name and Path(camera.name).name == camera.name, f"{place}: the name must be one of a folder")
    return camera


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
