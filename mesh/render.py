"""Pictures of meshes and skeletons, drawn with numpy alone."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mesh.errors import InputError
from mesh.joints import MIN_CONFIDENCE, JointSet, Keypoints
from mesh.normals import vertex_normals
from mesh.rasterise import is_front_facing, rasterise

# One colour per person, taken in turn: pastels of one lightness, neighbours far apart in hue.
PALETTE = np.array(
    [
        (138, 180, 226), (240, 162, 132), (154, 202, 142), (192, 160, 222),
        (236, 204, 122), (116, 202, 202), (234, 158, 188), (184, 186, 194),
    ],
    np.uint8,
)  # fmt: skip
LEFT, RIGHT, MIDDLE = (255, 146, 60), (64, 156, 255), (240, 240, 244)
OUTLINE = (24, 26, 32)
PAPER_TOP, PAPER_BOTTOM = (250, 250, 252), (222, 226, 232)

_SUPERSAMPLING = 2
_MAX_SUPERSAMPLED_PIXELS = 1 << 23  # about a 4K frame; beyond it smooth edges cost seconds and are hardly seen
_BAND_SAMPLES = 1 << 20  # bounds the memory: a picture is drawn in bands of rows
_GAMMA = 2.2
_SIDE_VIEW_FILL = 0.88


def draw_overlay(
    image: np.ndarray,
    people: Sequence[np.ndarray],
    faces: np.ndarray,
    *,
    alpha: float = 0.9,
    colours: Sequence[Sequence[int]] | np.ndarray | None = None,
) -> np.ndarray:
    """The picture (H, W, 3) uint8 with every person's mesh over it, the nearer in front.

    `people`: (V, 3) each, x right and y down in pixels and depth in the same unit, comparable between people.
    `alpha` is the opacity of a mesh, `colours` one RGB in 0..255 per person, else `PALETTE` in turn. Silhouettes are
    smooth unless the people extend over more than 8 megapixels.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha, the opacity of the meshes, must lie in [0, 1], got {alpha}")
    canvas = image.copy()
    if not len(people):
        return canvas
    scene = _Scene(people, faces, PALETTE if colours is None else np.asarray(colours))
    left, top, right, bottom = scene.bounds(image.shape[1], image.shape[0])
    if left >= right:
        return canvas
    factor = _SUPERSAMPLING if (right - left) * (bottom - top) <= _MAX_SUPERSAMPLED_PIXELS else 1
    rows = max(1, _BAND_SAMPLES // (factor**2 * (right - left)))
    for first in range(top, bottom, rows):
        last = min(first + rows, bottom)
        shade, coverage = scene.draw((left, first, right, last), factor)
        band = canvas[first:last, left:right]
        canvas[first:last, left:right] = np.rint(alpha * shade + (1 - alpha * coverage) * band)
    return canvas


class _Scene:
    """The people as one mesh, lit at its vertices."""

    def __init__(self, people: Sequence[np.ndarray], faces: np.ndarray, colours: np.ndarray) -> None:
        for k, vertices in enumerate(people):
            if not np.isfinite(vertices).all():
                raise InputError(f"the mesh of person {k} holds NaN or infinity and cannot be drawn")
        counts = [len(vertices) for vertices in people]
        starts = np.cumsum([0, *counts[:-1]])
        self.vertices = np.concatenate(people).astype(np.float64)
        self.faces = np.concatenate([faces + start for start in starts])
        normals = np.concatenate([vertex_normals(vertices, faces) for vertices in people])
        chosen = colours[np.arange(len(people)) % len(colours)]
        albedo = np.repeat((chosen / 255) ** _GAMMA, counts, axis=0)
        self.colours = np.concatenate((light(normals, albedo), light(-normals, albedo))).astype(np.float32)
        is_back = ~is_front_facing(self.vertices[self.faces])  # seen only where a surface is open; lit all the same
        self.colour_idx = self.faces + len(self.vertices) * is_back[:, None]

    def bounds(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of the pixels that the people can touch."""
        size = (width, height)
        low = np.clip(np.floor(self.vertices[:, :2].min(0)), 0, size).astype(int)
        high = np.clip(np.ceil(self.vertices[:, :2].max(0)), 0, size).astype(int)
        return (*low, *high)

    def draw(self, box: tuple[int, int, int, int], factor: int) -> tuple[np.ndarray, np.ndarray]:
        """Colour times coverage (h, w, 3) in 0..255, and coverage (h, w, 1) in 0..1, of a box of the picture.

        Both are means over `factor` x `factor` samples per pixel.
        """
        left, top, right, bottom = box
        size = (factor * (right - left), factor * (bottom - top))
        samples = rasterise((self.vertices - (left, top, 0)) * factor, self.faces, size)
        covered = samples.face_idx >= 0
        corners = self.colour_idx[samples.face_idx[covered]]
        weights = samples.barycentric[covered]
        layer = np.zeros((*covered.shape, 4), np.float32)
        layer[covered, :3] = np.einsum("nk,nkc->nc", weights, self.colours[corners])
        layer[covered, 3] = 1
        mean = np.zeros((bottom - top, right - left, 4), np.float32)
        for i, j in itertools.product(range(factor), repeat=2):
            mean += layer[i::factor, j::factor] / factor**2
        return mean[..., :3], mean[..., 3:]


def _unit(*xyz: float) -> np.ndarray:
    return np.array(xyz, np.float32) / np.float32(np.linalg.norm(xyz))


# Directions towards the lights and the viewer, in the camera frame: x right, y down, z away from the viewer.
_KEY, _FILL, _VIEWER = _unit(-0.55, -0.75, -0.85), _unit(0.9, -0.05, -0.55), _unit(0, 0, -1)
_HALFWAY = _unit(*(_KEY + _VIEWER))


def light(normals: np.ndarray, albedo: np.ndarray) -> np.ndarray:
    """Display colours 0..255 of surfaces by a soft key light, a fill light, the sky and a thin rim: (N, 3) each.

    `normals` unit, camera frame; `albedo` linear RGB in 0..1.
    """
    key = np.clip((normals @ _KEY + 0.1) / 1.1, 0, 1)
    fill = np.clip((normals @ _FILL + 0.3) / 1.3, 0, 1)
    sky = 0.5 - 0.5 * normals[:, 1]
    facing = np.clip(normals @ _VIEWER, 0, 1)
    diffuse = 1.0 * key + 0.18 * fill + 0.09 + 0.12 * sky
    gloss = 0.14 * np.clip(normals @ _HALFWAY, 0, 1) ** 24 + 0.10 * (1 - facing) ** 4 * (0.3 + 0.7 * sky)
    linear = albedo * diffuse[:, None] + gloss[:, None]
    return 255 * np.clip(linear, 0, 1) ** np.float32(1 / _GAMMA)


def draw_side_view(
    people: Sequence[np.ndarray], faces: np.ndarray, size: tuple[int, int], *, angle_rad: float = np.pi / 2
) -> np.ndarray:
    """The meshes seen from the side, next to each other on one floor, on a light picture of (width, height).

    `people`: (V, 3) each, metres, camera frame. They are turned about the vertical; at the default angle whoever
    faces the camera looks to the left. All share one scale.
    """
    width, height = size
    paper = np.linspace(PAPER_TOP, PAPER_BOTTOM, height)[:, None].repeat(width, axis=1)
    image = np.rint(paper).astype(np.uint8)
    if not len(people):
        return image
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    turn = np.array([(cos, 0, -sin), (0, 1, 0), (sin, 0, cos)])
    row = _in_a_row([vertices @ turn for vertices in people])
    low, high = np.concatenate(row).min(0), np.concatenate(row).max(0)
    scale = _SIDE_VIEW_FILL * min(size / np.maximum(high - low, 1e-6)[:2])
    centre = (width / 2, height / 2, 0)
    return draw_overlay(image, [(vertices - (low + high) / 2) * scale + centre for vertices in row], faces, alpha=1)


def _in_a_row(people: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Shifted so that the first starts at x = 0, each follows the one before, and the lowest points lie at y = 0."""
    low, high = (np.array([extreme(vertices, axis=0) for vertices in people]) for extreme in (np.min, np.max))
    widths = high[:, 0] - low[:, 0]
    steps = widths + 0.15 * widths.mean()
    shift = np.stack((np.cumsum(steps) - steps - low[:, 0], -high[:, 1], np.zeros(len(people))), axis=1)
    return [vertices + offset for vertices, offset in zip(people, shift)]


def side_by_side(images: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures in a row, each scaled to the height of the first."""
    from PIL import Image

    height = len(images[0])
    widths = [max(1, round(image.shape[1] * height / len(image))) for image in images]
    scaled = [
        np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
        for image, width in zip(images, widths)
    ]
    return np.concatenate(scaled, axis=1)


def draw_keypoints(image: np.ndarray, keypoints: Keypoints) -> np.ndarray:
    """The picture (H, W, 3) uint8 with every person's skeleton over it, left orange and right blue.

    Joints of confidence below `MIN_CONFIDENCE` are left out, with their links.
    """
    canvas = image.copy()
    for points, confidence in zip(keypoints.positions_px, keypoints.confidence):
        strokes = _skeleton(points, confidence >= MIN_CONFIDENCE, keypoints.joint_set)
        for stroke in strokes:
            _draw_stroke(canvas, stroke, OUTLINE, outset_px=max(0.8, 0.4 * strokes[0].radius_px))
        for stroke in strokes:
            _draw_stroke(canvas, stroke, stroke.colour)
    return canvas


@dataclass(frozen=True)
class _Stroke:
    """A line with round ends, or a dot where they coincide."""

    start: np.ndarray
    end: np.ndarray
    radius_px: float
    colour: tuple[int, int, int]


def _skeleton(points: np.ndarray, known: np.ndarray, joints: JointSet) -> list[_Stroke]:
    """Links, then joints, as thick as suits the person; short links are thinner, which keeps the face readable."""
    if not known.any():
        return []
    full_radius = 0.006 * float(np.linalg.norm(np.ptp(points[known], axis=0)))
    strokes = []
    dots = dict.fromkeys(np.flatnonzero(known).tolist(), 1.0)
    for a, b in joints.edges:
        if known[a] and known[b]:
            radius = max(1.0, min(full_radius, float(np.linalg.norm(points[b] - points[a])) / 8))
            strokes.append(_Stroke(points[a], points[b], radius, _side_colour(joints, a, b)))
            dots = {**dots, a: max(dots[a], radius), b: max(dots[b], radius)}
    strokes.sort(key=lambda stroke: -stroke.radius_px)
    dot_strokes = [_Stroke(points[j], points[j], 1.7 * dots[j], _side_colour(joints, j)) for j in dots]
    return strokes + dot_strokes


def _side_colour(joints: JointSet, *joint_idx: int) -> tuple[int, int, int]:
    """Of a joint or a link; a link between the two sides belongs to neither."""
    sides = {joints.names[j].partition("_")[0] for j in joint_idx} & {"left", "right"}
    return {"left": LEFT, "right": RIGHT}[sides.pop()] if len(sides) == 1 else MIDDLE


def _draw_stroke(canvas: np.ndarray, stroke: _Stroke, colour: tuple[int, int, int], outset_px: float = 0) -> None:
    """Blend a stroke into the canvas; a pixel's share is told by its distance from the stroke's edge."""
    size = (canvas.shape[1], canvas.shape[0])
    start, end, radius = stroke.start, stroke.end, stroke.radius_px + outset_px
    left, top = np.clip(np.floor(np.minimum(start, end) - radius - 1), 0, size).astype(int)
    right, bottom = np.clip(np.ceil(np.maximum(start, end) + radius + 1), 0, size).astype(int)
    x = np.arange(left, right, dtype=np.float32) + 0.5 - start[0]
    y = np.arange(top, bottom, dtype=np.float32)[:, None] + 0.5 - start[1]
    dx, dy = (float(d) for d in end - start)
    along = np.clip((x * dx + y * dy) / max(dx * dx + dy * dy, 1e-12), 0, 1)
    distance = np.hypot(x - along * dx, y - along * dy)
    share = np.clip(radius + 0.5 - distance, 0, 1)[..., None]
    region = canvas[top:bottom, left:right]
    canvas[top:bottom, left:right] = np.rint(share * np.asarray(colour) + (1 - share) * region)


def write_png(path: Path, image: np.ndarray) -> None:
    """Write a picture (H, W, 3) uint8; a broken-off run leaves the old file or none, never half a one."""
    from PIL import Image

    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        Image.fromarray(image).save(partial, format="PNG")
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise InputError(f"cannot write the picture {path}: {error.strerror or error}") from error
