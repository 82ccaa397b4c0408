"""Sample bodies and poses of the validation set, as pictures and meshes that show how far a training has come."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mesh.errors import InputError
from mesh.files import replacing, write_obj
from mesh.joints import COCO19, MIN_CONFIDENCE, JointSet
from mesh.render import LEFT, PALETTE, RIGHT, draw_overlay

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL_PX, _GAP_PX, _HEAD_PX, _DPI = 320, 8, 66, 100
_FILL = 0.8  # of a panel by the larger extent of the true body
_PAPER = (247, 248, 250)
_INK, _MIDDLE_COLOUR, _TRUE_COLOUR = "#333333", "#555560", "#b4b8c0"
_PREDICTED_MESH, _TRUE_MESH = PALETTE[0].tolist(), PALETTE[7].tolist()
_LARGEST_M = 100.0  # what lies further out is not a body that is worth a file
# Area of all faces together, in panels, beyond which a surface is a tangle: a body has about 0.5 on its two sides.
_TANGLED_PANELS = 8.0
_SIDE = np.array([(0, 0, -1), (0, 1, 0), (1, 0, 0)])  # a quarter turn: who faces the camera looks to the left


def write_mesh_samples(
    folder: Path, keypoints_px: np.ndarray, confidence: np.ndarray, predicted_m: np.ndarray, true_m: np.ndarray,
    faces: np.ndarray, step: int,
) -> list[Path]:  # fmt: skip
    """`person0.obj`, `person0_truth.obj` and so on, and all people in `people.png`; returns what was written.

    `keypoints_px` (n, 19, 2) and `confidence` (n, 19) of coco19; vertices (n, V, 3) camera frame, predicted and true
    relative to one root, the true ones finite. Bodies are upright in the `.obj`. A prediction that is not finite, or
    further out than 100 m, is named in the picture and gets no `.obj`.
    """
    _make(folder)
    written = []
    for k, (predicted, true) in enumerate(zip(predicted_m, true_m)):
        mesh, truth = folder / f"person{k}.obj", folder / f"person{k}_truth.obj"
        write_obj(truth, true, faces)
        written.append(truth)
        if _is_drawable(predicted):
            write_obj(mesh, predicted, faces)
            written.append(mesh)
        else:
            _remove(mesh)  # of an earlier step: it would pass for this one
    if not len(predicted_m):
        return []
    columns = ("2D input", "true mesh", "predicted mesh", "predicted mesh, from the side")
    note = "outline: the true mesh; seen from the side, the camera stands on the left"
    figure, rows = _sheet(f"step {step}", columns, len(predicted_m), note)
    for k, axes in enumerate(rows):
        _draw_input(axes[0], f"person {k}", keypoints_px[k], confidence[k], COCO19)
        _draw_meshes(axes[1:], predicted_m[k], true_m[k], faces)
    return [*written, _save(figure, folder / "people.png")]


def write_pose_samples(
    folder: Path, keypoints_px: np.ndarray, confidence: np.ndarray, predicted_m: np.ndarray, true_m: np.ndarray,
    joint_set: JointSet, step: int,
) -> list[Path]:  # fmt: skip
    """All people in `poses.png`: 2D input, then true and predicted joints over each other, from two sides.

    `keypoints_px` (n, J, 2), `confidence` (n, J), joints (n, J, 3) metres, camera frame, relative to one root, the
    true ones finite.
    """
    _make(folder)
    if not len(predicted_m):
        return []
    columns = ("2D input", "3D joints", "3D joints, from the side")
    note = "grey: the true joints; seen from the side, the camera stands on the left"
    figure, rows = _sheet(f"step {step}", columns, len(predicted_m), note)
    everyone = np.ones(len(joint_set), bool)
    for k, axes in enumerate(rows):
        _draw_input(axes[0], f"person {k}", keypoints_px[k], confidence[k], joint_set)
        for ax, turn in ((axes[1], np.eye(3)), (axes[2], _SIDE)):
            true, predicted = _placed(true_m[k], predicted_m[k], turn=turn)
            _draw_skeleton(ax, true[:, :2], everyone, joint_set, colour=_TRUE_COLOUR)
            if _is_drawable(predicted_m[k]):
                _draw_skeleton(ax, predicted[:, :2], everyone, joint_set)
        _caption(axes[1], _error_text("joint error", predicted_m[k], true_m[k]))
    return [_save(figure, folder / "poses.png")]


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise InputError(f"cannot make the folder for samples {folder}: {exc.strerror}") from exc


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _is_drawable(points_m: np.ndarray) -> bool:
    return bool(np.isfinite(points_m).all() and np.abs(points_m).max() < _LARGEST_M)


def _error_text(label: str, predicted_m: np.ndarray, true_m: np.ndarray) -> str:
    error_mm = 1000 * np.linalg.norm(predicted_m - true_m, axis=-1).mean()
    return f"{label} {error_mm:.1f} mm" if np.isfinite(error_mm) else "the prediction is not finite"


def _placed(true_m: np.ndarray, predicted_m: np.ndarray, *, turn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in pixels of a panel: the true one in its middle, the predicted one at the same scale and root.

    The scale is that of the largest extent, so that it is the same from every side.
    """
    scale = _FILL * _PANEL_PX / max(float(np.ptp(true_m, axis=0).max()), 1e-3)
    true, predicted = true_m @ turn, predicted_m @ turn
    middle = (true.min(0) + true.max(0)) / 2
    centre = (_PANEL_PX / 2, _PANEL_PX / 2, 0)
    return (true - middle) * scale + centre, (predicted - middle) * scale + centre


def _sheet(heading: str, columns: Sequence[str], num_rows: int, note: str) -> tuple[Figure, list[list[Axes]]]:
    """Panels in rows with a heading, each in pixels of its own: (0, 0) its upper left corner."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pitch = _PANEL_PX + _GAP_PX
    width, height = _GAP_PX + len(columns) * pitch, _HEAD_PX + num_rows * pitch
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    FigureCanvasAgg(figure)
    figure.text(_GAP_PX / width, 1 - 18 / height, heading, fontsize=13, fontweight="bold", color=_INK, va="center")
    figure.text(1 - _GAP_PX / width, 1 - 18 / height, note, fontsize=9, color=_INK, ha="right", va="center")
    rows: list[list[Axes]] = []
    for row in range(num_rows):
        rows.append([])
        for column, title in enumerate(columns):
            left, top = _GAP_PX + column * pitch, _HEAD_PX + row * pitch
            box = (left / width, 1 - (top + _PANEL_PX) / height, _PANEL_PX / width, _PANEL_PX / height)
            ax = figure.add_axes(box)
            ax.set(xlim=(0, _PANEL_PX), ylim=(_PANEL_PX, 0), xticks=[], yticks=[])
            ax.set_facecolor(_hex(_PAPER))
            ax.spines[:].set_visible(False)
            if row == 0:
                ax.set_title(title, fontsize=10, color=_INK, pad=6)
            rows[-1].append(ax)
    return figure, rows


def _save(figure: Figure, path: Path) -> Path:
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=_DPI)
    return path


def _caption(ax: Axes, text: str, *, top: bool = False) -> None:
    """In a corner on the left, with a rim of paper that keeps it readable over a body."""
    from matplotlib.patheffects import withStroke

    at_y, align = (8, "top") if top else (_PANEL_PX - 8, "bottom")
    written = ax.text(8, at_y, text, fontsize=9, color=_INK, va=align, zorder=5)
    written.set_path_effects([withStroke(linewidth=3, foreground=_hex(_PAPER))])


def _draw_input(ax: Axes, name: str, points_px: np.ndarray, confidence: np.ndarray, joints: JointSet) -> None:
    """The joints that count as seen, as large as the panel allows."""
    known = (confidence >= MIN_CONFIDENCE) & np.isfinite(points_px).all(-1)
    _caption(ax, name, top=True)
    _caption(ax, f"{known.sum()} of {len(joints)} joints seen")
    if not known.any():
        return
    low, high = points_px[known].min(0), points_px[known].max(0)
    scale = _FILL * _PANEL_PX / max(float((high - low).max()), 1e-3)
    _draw_skeleton(ax, (points_px - (low + high) / 2) * scale + _PANEL_PX / 2, known, joints)


def _draw_skeleton(
    ax: Axes, points: np.ndarray, known: np.ndarray, joints: JointSet, *, colour: str | None = None
) -> None:
    """Links and joints, (J, 2) in the panel; left orange and right blue, or all in one colour and broader."""
    from matplotlib.collections import LineCollection

    links = [(a, b) for a, b in joints.edges if known[a] and known[b]]
    shown = np.flatnonzero(known)
    broad = 1.0 if colour is None else 2.0
    link_colours = [colour or _side_colour(joints, a, b) for a, b in links]
    joint_colours = [colour or _side_colour(joints, int(j)) for j in shown]
    segments = [points[list(link)] for link in links]
    ax.add_collection(LineCollection(segments, colors=link_colours, linewidths=2.4 * broad, capstyle="round", zorder=2))
    ax.scatter(points[shown, 0], points[shown, 1], s=20 * broad, c=joint_colours, zorder=3, linewidths=0)


def _side_colour(joints: JointSet, *joint_idx: int) -> str:
    """Of a joint or a link; a link between the two sides belongs to neither."""
    sides = {joints.names[j].partition("_")[0] for j in joint_idx} & {"left", "right"}
    if len(sides) != 1:
        return _MIDDLE_COLOUR
    return _hex({"left": LEFT, "right": RIGHT}[sides.pop()])


def _hex(colour: Sequence[int]) -> str:
    return "#" + bytes(colour).hex()


def _draw_meshes(axes: Sequence[Axes], predicted_m: np.ndarray, true_m: np.ndarray, faces: np.ndarray) -> None:
    """True, predicted, and predicted from the side, each predicted one with the outline of the true one."""
    true_front, predicted_front = _placed(true_m, predicted_m, turn=np.eye(3))
    true_side, predicted_side = _placed(true_m, predicted_m, turn=_SIDE)
    front, side = (_rendered(true, faces, _TRUE_MESH) for true in (true_front, true_side))
    _show(axes[0], front)
    for ax, predicted, true in ((axes[1], predicted_front, front), (axes[2], predicted_side, side)):
        if _is_drawable(predicted_m):
            _draw_predicted(ax, predicted, faces)
        outline = (true != np.array(_PAPER)).any(-1)
        at = np.arange(_PANEL_PX) + 0.5
        ax.contour(at, at, outline, levels=[0.5], colors=_INK, linewidths=0.8)
    _caption(axes[1], _error_text("surface error", predicted_m, true_m))


def _draw_predicted(ax: Axes, vertices: np.ndarray, faces: np.ndarray) -> None:
    """The surface, or its vertices as points while it is a tangle, which would take long to draw and show nothing."""
    a, b, c = np.moveaxis(vertices[faces][..., :2], 1, 0)
    area = np.abs(np.linalg.det(np.stack((b - a, c - a), axis=1))).sum() / 2
    if area <= _TANGLED_PANELS * _PANEL_PX**2:
        _show(ax, _rendered(vertices, faces, _PREDICTED_MESH))
    else:
        ax.plot(*vertices[:, :2].T, linestyle="", marker=",", color=_hex(_PREDICTED_MESH))


def _rendered(vertices: np.ndarray, faces: np.ndarray, colour: Sequence[int]) -> np.ndarray:
    paper = np.full((_PANEL_PX, _PANEL_PX, 3), _PAPER, np.uint8)
    return draw_overlay(paper, [vertices], faces, alpha=1, colours=[colour])


def _show(ax: Axes, image: np.ndarray) -> None:
    """Pixel by pixel; the panel has as many."""
    ax.imshow(image, extent=(0, _PANEL_PX, _PANEL_PX, 0), interpolation="none")
