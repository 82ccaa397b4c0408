"""Writing of results: meshes as .obj, .ply and .glb, arrays as .npz; each file appears whole or not at all.

Vertices come in the camera frame (x right, y down, z forward), metres. In mesh files the body stands upright.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import struct
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mesh.errors import InputError
from mesh.normals import vertex_normals

_LARGEST_M = 999.0  # beyond it a body is certainly not in metres; also what three digits can write

# One coordinate of an .obj file: a sign, up to three digits before the point and six behind it. Digits are looked up
# three at a time; the zero bytes that pad an entry are deleted from the finished text.
_COORDINATE = np.dtype([("sign", "S3"), ("metres", "S4"), ("milli", "S3"), ("micro", "S3"), ("end", "S1")])
_SIGN = np.array([[b"v ", b" ", b" "], [b"v -", b" -", b" -"]])  # row 1: negative; columns x, y, z
_END = np.array([b"", b"", b"\n"])
_METRES = np.array([b"%d." % i for i in range(1000)])
_THREE_DIGITS = np.array([b"%03d" % i for i in range(1000)])

_PLY_FACE = np.dtype([("count", "u1"), ("corners", "V12")])  # three little-endian int32, copied in one piece
_PLY_HEADER = """ply
format binary_little_endian 1.0
element vertex {num_vertices}
property float x
property float y
property float z
element face {num_faces}
property list uchar int vertex_indices
end_header
"""

_GLB_FLOAT, _GLB_UINT32 = 5126, 5125
_GLB_VERTEX_DATA, _GLB_INDEX_DATA = 34962, 34963


def upright(vertices: np.ndarray) -> np.ndarray:
    """Camera frame (y down, z forward) to viewer frame (y up, z backward) or back: half a turn about x. (..., 3)."""
    turned = vertices.copy()
    for axis in (1, 2):
        turned[..., axis] *= -1
    return turned


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write bytes to, which takes the place of `path` when the block ends well and vanishes when not."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
        os.replace(temporary, path)
    except OSError as exc:
        reason = exc.strerror or str(exc)
        raise InputError(f"cannot write {path}: {reason}; choose a folder that can be written to") from exc
    finally:
        with contextlib.suppress(OSError):  # already moved, or never made
            temporary.unlink()


def write_obj(path: Path, vertices: np.ndarray, faces: np.ndarray) -> None:
    """Text with micrometres: `v x y z` lines, then `f a b c` lines that count from 1. (V, 3), (F, 3)."""
    vertices, faces = _checked(vertices, faces)
    with replacing(path) as file:
        file.write(_vertex_lines(vertices))
        file.write(_face_lines(faces.tobytes()))


def write_ply(path: Path, vertices: np.ndarray, faces: np.ndarray) -> None:
    """Binary little endian, float32. (V, 3), (F, 3)."""
    vertices, faces = _checked(vertices, faces)
    lists = np.empty(len(faces), _PLY_FACE)
    lists["count"], lists["corners"] = 3, faces.astype("<i4", copy=False).view("V12")[:, 0]
    header = _PLY_HEADER.format(num_vertices=len(vertices), num_faces=len(faces)).encode()
    with replacing(path) as file:
        file.write(b"".join((header, vertices.astype("<f4", copy=False).data, lists.data)))


def write_glb(path: Path, vertices: np.ndarray, faces: np.ndarray) -> None:
    """Binary glTF 2.0, float32, with vertex normals so that viewers shade smoothly. (V, 3), (F, 3)."""
    vertices, faces = _checked(vertices, faces)
    normals = vertex_normals(vertices, faces)
    normals[~normals.any(axis=1)] = (0, 0, 1)  # glTF wants a unit vector also where no face gives a direction
    parts = (vertices.astype("<f4"), normals.astype("<f4"), faces.astype("<u4"))
    text = json.dumps(_glb_scene(*parts), separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    size = sum(part.nbytes for part in parts)
    with replacing(path) as file:
        file.write(struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + size))
        file.write(struct.pack("<I4s", len(text), b"JSON") + text)
        file.write(struct.pack("<I4s", size, b"BIN\0"))
        file.writelines(part.tobytes() for part in parts)


MESH_WRITERS: dict[str, Callable[[Path, np.ndarray, np.ndarray], None]] = {
    "obj": write_obj,
    "ply": write_ply,
    "glb": write_glb,
}


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Named arrays, uncompressed; refuses objects, which only a pickle could hold."""
    for name, array in arrays.items():
        if np.asarray(array).dtype.hasobject:
            raise InputError(f"cannot write {path}: array {name!r} holds Python objects; give numbers or text")
    with replacing(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # its own options share the keyword space


def _checked(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vertices upright and the faces as int32, after a look at both."""
    if vertices.ndim != 2 or vertices.shape[1] != 3:
        raise InputError(f"vertices must have shape (V, 3), got {vertices.shape}")
    if faces.ndim != 2 or faces.shape[1] != 3 or faces.dtype.kind not in "iu":
        raise InputError(f"faces must be whole numbers of shape (F, 3), got {faces.dtype} of shape {faces.shape}")
    if vertices.dtype.kind != "f":
        vertices = vertices.astype(np.float64)
    largest = np.abs(vertices).max(initial=0)
    if not np.isfinite(largest):
        raise InputError(f"vertex {np.argwhere(~np.isfinite(vertices))[0, 0]} of the mesh is NaN or infinite")
    if largest > _LARGEST_M:
        raise InputError(f"vertices must be in metres, at most {_LARGEST_M:.0f}; got a coordinate of {largest:.6g}")
    if faces.min(initial=0) < 0 or faces.max(initial=0) >= max(len(vertices), 1):
        raise InputError(f"faces name vertices outside 0..{len(vertices) - 1}")
    return upright(vertices), np.ascontiguousarray(faces, np.int32)


def _vertex_lines(vertices: np.ndarray) -> bytes:
    """The same bytes as `v %.6f %.6f %.6f` line by line (except that there is no minus zero), ten times as fast."""
    micrometres = np.rint(vertices.astype(np.float64) * 1e6).astype(np.int32)  # at most 999,999,999 and a bit
    millimetres, micro = np.divmod(np.abs(micrometres), 1000)
    metres, milli = np.divmod(millimetres, 1000)
    text = np.empty(vertices.shape, _COORDINATE)
    text["sign"] = np.where(micrometres < 0, _SIGN[1], _SIGN[0])
    text["metres"], text["milli"], text["micro"] = _METRES[metres], _THREE_DIGITS[milli], _THREE_DIGITS[micro]
    text["end"] = _END
    return text.tobytes().translate(None, b"\0")


@lru_cache(maxsize=4)
def _face_lines(faces: bytes) -> bytes:
    """The `f` lines of (F, 3) int32 faces; kept, because many bodies share one topology."""
    corners = np.frombuffer(faces, np.int32) + 1
    return b"f %d %d %d\n" * (len(corners) // 3) % tuple(corners.tolist())


def _glb_scene(positions: np.ndarray, normals: np.ndarray, indices: np.ndarray) -> dict[str, object]:
    """The JSON part of a .glb file whose binary part is the three arrays one after the other."""
    views, offset = [], 0
    for part, target in ((positions, _GLB_VERTEX_DATA), (normals, _GLB_VERTEX_DATA), (indices, _GLB_INDEX_DATA)):
        views.append({"buffer": 0, "byteOffset": offset, "byteLength": part.nbytes, "target": target})
        offset += part.nbytes
    box = {"min": positions.min(axis=0).tolist(), "max": positions.max(axis=0).tolist()}
    return {
        "asset": {"version": "2.0", "generator": "meshrecovery"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "NORMAL": 1}, "indices": 2}]}],
        "accessors": [
            {"bufferView": 0, "componentType": _GLB_FLOAT, "count": len(positions), "type": "VEC3", **box},
            {"bufferView": 1, "componentType": _GLB_FLOAT, "count": len(normals), "type": "VEC3"},
            {"bufferView": 2, "componentType": _GLB_UINT32, "count": indices.size, "type": "SCALAR"},
        ],
        "bufferViews": views,
        "buffers": [{"byteLength": offset}],
    }
