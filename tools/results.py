"""What a recovery leaves on disk: meshes, arrays, pictures, a summary."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mesh.errors import InputError
from mesh.files import MESH_WRITERS, replacing, write_npz
from mesh.joints import HUMAN36M17, MIN_CONFIDENCE, Keypoints
from mesh.lock import FolderLock
from mesh.render import draw_keypoints, draw_overlay, draw_side_view, side_by_side

if TYPE_CHECKING:
    from gcn.recovery import Recovered
    from tools.body_parameters import BodyParameters
    from tools.inputs import Focal

FORMATS = (*MESH_WRITERS, "npz", "smpl")
WITH_PARAMETERS = {"npz", "smpl"}  # these hold the body model's parameters beside or instead of vertices
_PNG_LEVEL = 2


def parse_formats(text: str) -> tuple[str, ...]:
    """'obj,npz' -> ('obj', 'npz'); refuses what cannot be written."""
    formats = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise InputError(f"--format {text!r}: expected a comma-separated choice of {', '.join(FORMATS)}")
    return formats


@dataclass
class Results:
    """Writes into one folder, keeps account, and never replaces an input or another input's result."""

    folder: Path
    faces: np.ndarray
    formats: tuple[str, ...]
    protected: set[Path] = field(default_factory=set)
    detector: str | None = None  # the landmark network that pictures were read with
    entries: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    meshes: int = 0
    _reserved: set[str] = field(default_factory=set)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Make the folder, keep other calls out of it and prove that it can be written to, before any work is done."""
        if (self.folder / "summary.json").resolve() in self.protected:
            raise InputError(f"{self.folder / 'summary.json'} is an input: choose another output folder")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise InputError(f"cannot make the output folder {self.folder}: {exc.strerror}") from exc
        with FolderLock(self.folder, f"output folder {self.folder}").held():
            self.write_summary()
            yield

    def reserve(self, name: str, endings: Sequence[str]) -> str:
        """The name, or name-2, name-3 ... if one of its files is an input or was written in this call."""
        candidate, count = name, 1
        while any(self._is_taken(candidate + ending) for ending in endings):
            count += 1
            candidate = f"{name}-{count}"
        self._reserved |= {(candidate + ending).casefold() for ending in endings}
        return candidate

    def _is_taken(self, file: str) -> bool:
        return file.casefold() in self._reserved or (self.folder / file).resolve() in self.protected

    def fail(self, source: str, reason: str) -> None:
        """Note an input that gave nothing."""
        self.failed.append({"input": source, "reason": reason.removeprefix(f"{source}: ")})

    def _fail_unknown(self, source: str, nobody: str, confidence: np.ndarray) -> None:
        from gcn.recovery import MIN_JOINTS  # brings torch, which a wrong call need not wait for

        needed = f"at least {MIN_JOINTS} joints of confidence {MIN_CONFIDENCE} or more, apart from each other"
        self.fail(source, f"{nobody} with {needed}; the highest confidence is {confidence.max():.2g}")

    def write_people(
        self,
        source: str,
        name: str,
        keypoints: Keypoints,
        people: Recovered,
        parameters: BodyParameters | None,
        focal: Focal,
        image: np.ndarray | None,
    ) -> None:
        """One file per person and format, and the overlay; who has too few joints is noted and left out."""
        endings = [f"_{k}{_ending(form)}" for k in range(len(people)) for form in self.formats]
        name = self.reserve(name, [*endings, "_overlay.png"])
        written = []
        for k in range(len(people)):
            row: dict[str, Any] = {"person": k, "files": [], "flags": people.flags(k)}
            if people.valid[k]:
                row["files"] = self._write_meshes(f"{name}_{k}", people.vertices[k])
                flags = np.array(people.flags(k), dtype=str)
                row["files"] += self._write_arrays(f"{name}_{k}", keypoints, people, parameters, k, flags)
                scale, x, y = (round(float(v), 3) for v in people.camera[k])
                row["camera"] = {"px_per_m": scale, "shift_px": [x, y]}
                if people.has_place[k]:
                    row["place_m"] = [round(float(v), 3) for v in people.place[k]]
                row["misfit"] = round(float(people.misfit[k]), 4)
                row["spread_m"] = round(float(people.spread[k]), 4)
                if np.isfinite(people.mean_expected_error(k)):
                    row["expected_error_mm"] = round(1000 * people.mean_expected_error(k), 1)
                    row["unsure_joints"] = people.unsure_joints(k)
                if parameters is not None:
                    row["fit_distance_m"] = round(float(parameters.fit_distance_m[k]), 4)
                row["exchange_probability"] = round(float(people.exchange_probability[k]), 4)
            written.append(row)
        self.meshes += int(people.valid.sum())
        self.entries.append({"input": source, **focal.entry(), "people": written})
        if image is not None:
            self._write_overlay(name, image, keypoints, people)
        if not people.valid.any():
            self._fail_unknown(source, "nobody", keypoints.confidence)

    def write_array(
        self,
        source: str,
        name: str,
        keypoints: Keypoints,
        people: Recovered,
        parameters: BodyParameters | None,
        focal: Focal,
    ) -> None:
        """All poses of an array file stacked, in one `.npz` a format; `obj` and the like add a mesh per pose."""
        if not people.valid.any():
            self._fail_unknown(source, "no pose", keypoints.confidence)
            return
        meshes = [form for form in self.formats if form in MESH_WRITERS]
        stacked = {_ending(form) for form in (*self.formats, "npz") if form not in MESH_WRITERS}
        name = self.reserve(name, [*stacked, *(f"_{k}.{form}" for k in range(len(people)) for form in meshes)])
        flags = np.array([",".join(people.flags(k)) for k in range(len(people))])
        self._write_arrays(name, keypoints, people, parameters, slice(None), flags)
        for k in np.flatnonzero(people.valid) if meshes else ():
            self._write_meshes(f"{name}_{k}", people.vertices[k])
        self.meshes += int(people.valid.sum())
        counts = {"recovered": int(people.valid.sum()), "left_right_exchanged": int(people.exchanged.sum())}
        self.entries.append({"input": source, "name": name, "poses": len(people), **focal.entry(), **counts})

    def _write_arrays(
        self,
        name: str,
        keypoints: Keypoints,
        people: Recovered,
        parameters: BodyParameters | None,
        which: int | slice,
        flags: np.ndarray,
    ) -> list[str]:
        files = {}
        if "npz" in self.formats:
            assert parameters is not None
            files[f"{name}.npz"] = {**_arrays(keypoints, people, which), **parameters.arrays(which), "flags": flags}
        if "smpl" in self.formats:
            assert parameters is not None
            files[f"{name}_smpl.npz"] = parameters.smpl(which)
        for file, arrays in files.items():
            write_npz(self.folder / file, **arrays)
        return list(files)

    def _write_meshes(self, name: str, vertices: np.ndarray) -> list[str]:
        files = [f"{name}.{form}" for form in self.formats if form in MESH_WRITERS]
        for file in files:
            MESH_WRITERS[file.rpartition(".")[2]](self.folder / file, vertices, self.faces)
        return files

    def _write_overlay(self, name: str, image: np.ndarray, keypoints: Keypoints, people: Recovered) -> None:
        """The picture with joints, with meshes, and the meshes from the side, next to each other."""
        shown = np.flatnonzero(people.valid)
        meshes = placed_in_picture(people, shown)
        panels = [draw_keypoints(image, keypoints), draw_overlay(image, meshes, self.faces)]
        height, width = image.shape[:2]
        side = draw_side_view([people.vertices[k] for k in shown], self.faces, (min(width, height), height))
        self._write_picture(f"{name}_overlay.png", side_by_side([*panels, side]))

    def _write_picture(self, name: str, image: np.ndarray) -> None:
        """As .png, packed fast: a seventh larger than Pillow's default, in a third of its time."""
        from PIL import Image

        with replacing(self.folder / name) as file:
            Image.fromarray(image).save(file, format="PNG", compress_level=_PNG_LEVEL)

    def write_summary(self) -> None:
        """`summary.json`: every input, its people and files, and what failed."""
        summary = {"detector": self.detector, "inputs": self.entries, "failed": self.failed}
        text = json.dumps(summary, indent=1, allow_nan=False)
        with replacing(self.folder / "summary.json") as file:
            file.write(text.encode())


def placed_in_picture(people: Recovered, shown: Sequence[int] | np.ndarray) -> list[np.ndarray]:
    """Meshes in pixels with depths that compare: those of the perspective camera, or where people have none, a larger
    scale means nearer."""
    if not len(shown):
        return []
    scales = people.camera[shown, 0]
    meshes = []
    for person, scale in zip(shown, scales):
        vertices = people.vertices_px(int(person))
        if people.has_place[shown].all():
            vertices[:, 2] = (people.vertices[person][:, 2] + people.place[person, 2]) * scales.mean()
        else:
            vertices[:, 2] += scales.mean() / scale * 1000.0
        meshes.append(vertices)
    return meshes


def _ending(form: str) -> str:
    return "_smpl.npz" if form == "smpl" else f".{form}"


def _arrays(keypoints: Keypoints, people: Recovered, which: int | slice) -> dict[str, np.ndarray]:
    """The contents of a result file, for one person or stacked for all."""
    return {
        "vertices": people.vertices[which],
        "joints3d": people.joints[which],
        "joint_names": np.array(HUMAN36M17.names),
        "joint_error_m": people.expected_error[which],
        "camera": people.camera[which],
        "intrinsics": people.intrinsics[which],
        "place_m": people.place[which],
        "keypoints2d": keypoints.positions_px[which],
        "keypoint_names": np.array(keypoints.joint_set.names),
        "confidence": keypoints.confidence[which],
    }
