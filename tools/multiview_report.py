"""Single views against what all cameras agree on: the figures, the tables and the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.images import read_image
from gcn.recovery import MeshRecovery
from mesh.errors import InputError
from mesh.joints import BLAZEPOSE33, COCO17, Keypoints
from mesh.metrics import aligned_distances_mm, facing_error_rad, point_distances_mm
from mesh.multiview import ViewCamera
from mesh.protocols import JointRegression
from mesh.render import draw_keypoints, draw_overlay, side_by_side
from tools.multiview_truth import LIMBS, Truth, Views

_HIPS = list(COCO17.indices(("left_hip", "right_hip")))
_SHOULDERS = list(COCO17.indices(("left_shoulder", "right_shoulder")))
_IN_BLAZEPOSE = list(BLAZEPOSE33.indices(COCO17.names))
_FACING_WRONG_RAD = np.pi / 2
_SHEET_EACH, _SHEET_HEIGHT_PX = 4, 420
_SHEET_REACH = 0.7  # of a person's longer side, around the middle
INPUTS = {
    "as detected": "as the detector saw the person in this one view, sides judged: what recover makes of a photo",
    "focal length told": "the same with the calibrated focal length instead of the picture's diagonal",
    "sides put right": "as detected with left and right as all cameras agree",
    "exact": "the true joints, projected into the view",
    "the detector's own 3D": "BlazePose's world landmarks, no mesh",
}
JUDGED = ("as detected", "focal length told")  # by the left/right network


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One recovered view for the contact sheet."""

    moment: int
    view: int
    error_mm: float
    vertices_px: np.ndarray
    keypoints: Keypoints


def compare(recovery: MeshRecovery, views: Views, truth: Truth) -> tuple[dict[str, Any], list[Shown]]:
    """The report, and every view that was measured, best first."""
    regress = JointRegression(recovery.body, COCO17)
    rows: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in INPUTS}
    pooled: dict[str, list[np.ndarray]] = {name: [] for name in INPUTS}
    shown: list[Shown] = []
    not_recovered = 0
    for k, camera in enumerate(truth.cameras):
        measured = np.flatnonzero(truth.trusted & views.found[:, k])
        if not len(measured):
            continue
        true_m = camera.to_camera(truth.joints_m[measured])
        is_valid = np.ones(len(measured), bool)
        for name, keypoints in _inputs(camera, views, truth, k, measured).items():
            if keypoints is None:
                errors = _errors(views.world_m[measured, k][:, _IN_BLAZEPOSE], true_m)
            else:
                focal_px = camera.focal_px if name == "focal length told" else None
                found = recovery.recover(keypoints, exchange=name in JUDGED, focal_px=focal_px)
                is_valid &= found.valid  # whom one row leaves out, all do: "as detected" comes first
                errors = _errors(regress(torch.from_numpy(found.vertices))[0].numpy(), true_m)
            if name == "as detected" and keypoints is not None:
                not_recovered += int((~is_valid).sum())
                shown += [
                    Shown(
                        moment=int(measured[i]), view=k, error_mm=float(errors[i, 1]),
                        vertices_px=found.vertices_px(i), keypoints=keypoints.select([i]),
                    )
                    for i in np.flatnonzero(is_valid).tolist()
                ]  # fmt: skip
            if is_valid.any():
                rows[name][camera.name] = _figures(errors[is_valid])
                pooled[name].append(errors[is_valid])
    if not shown:
        raise InputError("too few joints were detected to recover anybody at a moment that the cameras agree on")
    every = {name: {**rows[name], "all": _figures(np.concatenate(parts))} for name, parts in pooled.items()}
    judged = truth.trusted[:, None] & views.found  # (T, V)
    error, before = (
        [_median(e[k][judged[:, k]][:, list(LIMBS)]) for k in range(len(truth.cameras))]
        for e in (truth.error_px, truth.error_before_px)
    )
    report = {
        "moments": len(truth.trusted),
        "moments that the cameras agree on": int(truth.trusted.sum()),
        "views with too few joints to recover anybody": not_recovered,
        "joints": [COCO17.names[joint] for joint in LIMBS],
        "views": {
            camera.name: {
                "left and right exchanged by the detector": _mean(truth.exchanged[judged[:, k], k]),
                "distance of detected from true joints, median px": error[k],
                "the same with the cameras as calibrated": before[k],
            }
            for k, camera in enumerate(truth.cameras)
        },
        "errors, mm": every,
        "meaning": INPUTS,
    }
    return report, sorted(shown, key=lambda one: one.error_mm)


def _inputs(
    camera: ViewCamera, views: Views, truth: Truth, view: int, measured: np.ndarray
) -> dict[str, Keypoints | None]:
    """2D joints of one view, (N) people; None for the detector's own 3D joints."""
    detected = Keypoints(
        positions_px=views.positions_px[measured, view].astype(np.float32),
        confidence=views.confidence[measured, view].astype(np.float32),
        joint_set=BLAZEPOSE33,
        image_size=camera.size_px,
    ).to(COCO17)
    wrong = truth.exchanged[measured, view]
    order = list(COCO17.flip_permutation)
    true_m = truth.joints_m[measured]
    known = np.isfinite(true_m).all(-1)
    return {
        "as detected": detected,
        "focal length told": detected,
        "sides put right": Keypoints(
            positions_px=np.where(wrong[:, None, None], detected.positions_px[:, order], detected.positions_px),
            confidence=np.where(wrong[:, None], detected.confidence[:, order], detected.confidence),
            joint_set=COCO17,
            image_size=camera.size_px,
        ),
        "exact": Keypoints(
            positions_px=np.where(known[..., None], camera.project(np.nan_to_num(true_m, nan=1.0)), 0.0).astype(
                np.float32
            ),
            confidence=known.astype(np.float32),
            joint_set=COCO17,
            image_size=camera.size_px,
        ),
        "the detector's own 3D": None,
    }


def _errors(joints_m: np.ndarray, true_m: np.ndarray) -> np.ndarray:
    """MPJPE, PA-MPJPE in mm and the facing error in radians of each person: (N, 17, 3) twice -> (N, 3)."""
    sides = []
    for joints in (joints_m, true_m):
        limbs = torch.from_numpy(np.ascontiguousarray(joints[:, list(LIMBS)])).double()
        sides.append(limbs - torch.from_numpy(joints[:, _HIPS].mean(1, keepdims=True)).double())
    trunks = [
        torch.from_numpy(np.stack((*j[:, _HIPS].swapaxes(0, 1), j[:, _SHOULDERS].mean(1), j[:, _HIPS].mean(1)), axis=1))
        for j in (joints_m, true_m)
    ]
    facing = facing_error_rad(trunks[0].double(), trunks[1].double(), left=0, right=1, up=2, root=3)
    return torch.stack(
        (point_distances_mm(*sides).mean(1), aligned_distances_mm(*sides).mean(1), facing), dim=1
    ).numpy()


def _figures(errors: np.ndarray) -> dict[str, float]:
    return {
        "people": len(errors),
        "mpjpe_mm": float(errors[:, 0].mean()),
        "pa_mpjpe_mm": float(errors[:, 1].mean()),
        "pa_mpjpe_mm (median)": float(np.median(errors[:, 1])),
        "facing wrong by > 90 deg (%)": float(100 * (errors[:, 2] > _FACING_WRONG_RAD).mean()),
    }


def _median(values: np.ndarray) -> float | None:
    """None where nothing is known."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else None


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None


def _text(value: float | None, pattern: str, factor: float = 1.0) -> str:
    return "-" if value is None else pattern.format(factor * value)


def markdown(report: Mapping[str, Any]) -> str:
    """The report as two tables."""
    left_out = report["views with too few joints to recover anybody"]
    lines = [
        f"{report['moments that the cameras agree on']} of {report['moments']} moments can be measured; "
        f"{len(report['joints'])} limb joints, MPJPE at the middle of the hips."
        + (f" Not measured: {left_out} views with too few joints." if left_out else ""),
        "",
        "| camera | exchanged by the detector | detected from true joints, median px | cameras as calibrated |",
        "|---|---|---|---|",
    ]
    for name, view in report["views"].items():
        share, now, before = view.values()
        known = (_text(share, "{:.0f} %", 100), _text(now, "{:.1f}"), _text(before, "{:.1f}"))
        lines.append(f"| {name} | " + " | ".join(known) + " |")
    figures = report["errors, mm"]
    columns = list(next(iter(figures.values())))
    lines += [
        "",
        "| 2D joints; mean PA-MPJPE (median), mm | " + " | ".join(columns) + " | MPJPE, all | facing wrong, all |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for name, by_view in figures.items():
        cells = [f"{by_view[c]['pa_mpjpe_mm']:.1f} ({by_view[c]['pa_mpjpe_mm (median)']:.1f})" for c in columns]
        total = by_view["all"]
        cells += [f"{total['mpjpe_mm']:.1f}", f"{total['facing wrong by > 90 deg (%)']:.1f} %"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def contact_sheet(moments: Sequence[Sequence[Path]], shown: Sequence[Shown], faces: np.ndarray) -> np.ndarray:
    """The best, middle and worst views: joints and mesh over the picture, three rows."""
    middle = max(0, len(shown) // 2 - _SHEET_EACH // 2)
    rows = [shown[:_SHEET_EACH], shown[middle : middle + _SHEET_EACH], shown[-_SHEET_EACH:]]
    drawn = [[_tile(moments, one, faces) for one in row] for row in rows if row]
    width = max(sum(tile.shape[1] for tile in row) for row in drawn)
    sheet = np.full((_SHEET_HEIGHT_PX * len(drawn), width, 3), 255, np.uint8)
    for number, row in enumerate(drawn):
        line = np.concatenate(row, axis=1)
        sheet[number * _SHEET_HEIGHT_PX : (number + 1) * _SHEET_HEIGHT_PX, : line.shape[1]] = line
    return sheet


def _tile(moments: Sequence[Sequence[Path]], one: Shown, faces: np.ndarray) -> np.ndarray:
    from PIL import Image

    image = read_image(moments[one.moment][one.view])
    pair = [draw_keypoints(image, one.keypoints), draw_overlay(image, [one.vertices_px], faces)]
    points = one.keypoints.positions_px[0]
    middle, reach = (points.min(0) + points.max(0)) / 2, _SHEET_REACH * np.ptp(points, axis=0).max()
    left, top = np.maximum(middle - reach, 0).astype(int)
    right, bottom = np.ceil(middle + reach).astype(int)
    tile = side_by_side([picture[top:bottom, left:right] for picture in pair])
    width = round(tile.shape[1] * _SHEET_HEIGHT_PX / tile.shape[0])
    return np.asarray(Image.fromarray(tile).resize((width, _SHEET_HEIGHT_PX), Image.Resampling.LANCZOS))
