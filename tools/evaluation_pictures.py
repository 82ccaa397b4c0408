"""The worst, median and best samples of an evaluation, as meshes and as pictures to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gcn.evaluation import predict_mesh
from mesh.body import Body
from mesh.camera import apply_weak_perspective, fit_weak_perspective
from mesh.errors import InputError
from mesh.files import write_obj
from mesh.joints import COCO19, HUMAN36M17, Keypoints
from mesh.protocols import JointRegression
from mesh.render import PALETTE, PAPER_BOTTOM, PAPER_TOP, draw_keypoints, draw_overlay, draw_side_view, write_png
from tools.evaluation_samples import Samples, Track
from tools.evaluation_scores import Networks, Scored

_HEIGHT_PX = 480
_MARGIN = 0.12  # of the larger side of what is shown
_PREDICTED, _TRUE = PALETTE[0], PALETTE[2]
_CAPTION_PX, _NARROWEST_PX = 22, 160


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A sample of a kind ("worst_0", "median_1" ...): its track, its place in it, its error."""

    kind: str
    track: int
    place: int
    row: int
    error: float


def choose(scored: Scored, metric: str, count: int) -> list[Chosen]:
    """`count` worst, nearest to the median and best samples; each once, fewer where there are not as many."""
    if metric not in scored.values:
        raise InputError(f"--vis-by {metric}: expected one of {', '.join(scored.values)}")
    errors = scored.values[metric]
    order = np.argsort(errors, kind="stable")
    if "percent" in metric:  # more is better
        order = order[::-1]
    middle = max(0, len(order) // 2 - count // 2)
    parts = {"worst": order[::-1][:count], "median": order[middle : middle + count], "best": order[:count]}
    first = np.searchsorted(scored.tracks, np.arange(len(scored.track_names)))
    taken: set[int] = set()
    chosen = []
    for kind, samples in parts.items():
        for rank, n in enumerate(int(n) for n in samples if int(n) not in taken):
            track = int(scored.tracks[n])
            place = n - int(first[track])
            chosen.append(
                Chosen(kind=f"{kind}_{rank}", track=track, place=place, row=int(scored.rows[n]), error=float(errors[n]))
            )
            taken.add(n)
    return chosen


def write_pictures(
    folder: Path, networks: Networks, samples: Samples, body: Body, chosen: Sequence[Chosen], metric: str,
    images: Path | None, device: torch.device,
) -> None:  # fmt: skip
    """Of each chosen sample `KIND.png`, `KIND_predicted.obj` and `KIND_true.obj`."""
    assert networks.mesh is not None
    regress = JointRegression(body, COCO19, HUMAN36M17, device=device)
    for number in dict.fromkeys(one.track for one in chosen):
        track = samples.track(number)
        for one in (one for one in chosen if one.track == number):
            part = _only(track, one.place)
            predicted = predict_mesh(networks.mesh, part.batch)
            predicted = predicted - regress(predicted)[1][:, HUMAN36M17.root_idx, None].float()
            assert part.batch.vertices_m is not None
            meshes = (predicted, part.batch.vertices_m)
            for name, mesh in zip(("predicted", "true"), meshes):
                write_obj(folder / f"{one.kind}_{name}.obj", mesh[0].cpu().numpy(), body.faces)
            picture = _picture(part, meshes, body.faces, regress, images)
            where = f"{track.name or 'sample'} row {one.row}"
            write_png(
                folder / f"{one.kind}.png", _captioned(picture, f"{one.kind}: {metric} {one.error:.1f}   {where}")
            )


def _only(track: Track, place: int) -> Track:
    """One sample of a track."""
    from dataclasses import fields, replace

    one = slice(place, place + 1)
    named = {f.name: getattr(track.batch, f.name) for f in fields(track.batch)}
    batch = replace(track.batch, **{name: value[one] for name, value in named.items() if value is not None})
    view = track.view
    if view is not None:
        shown = None if view.images is None else view.images[one]
        view = replace(view, pelvis_m=view.pelvis_m[one], intrinsics=view.intrinsics[one], images=shown)
    return Track(batch=batch, rows=track.rows[one], name=track.name, view=view)


def _picture(
    track: Track, meshes: Sequence[Tensor], faces: np.ndarray, regress: JointRegression, images: Path | None
) -> np.ndarray:
    """The 2D input, the predicted and the true mesh over the photo or a plain ground, and both from the side."""
    keypoints, confidence = track.batch.keypoints_px[0].cpu().numpy(), track.batch.confidence[0].cpu().numpy()
    placed = [_in_picture(track, mesh, regress) for mesh in meshes]
    known = keypoints[confidence > 0]
    low = np.concatenate([known, *(mesh[:, :2] for mesh in placed)]).min(0)
    high = np.concatenate([known, *(mesh[:, :2] for mesh in placed)]).max(0)
    margin = _MARGIN * float((high - low).max())
    size = high - low + 2 * margin
    scale = _HEIGHT_PX / float(size.max())
    width = max(_NARROWEST_PX, round(float(size[0]) * scale))
    corner = (low + high) / 2 - np.array([width, _HEIGHT_PX]) / (2 * scale)
    ground = _ground(track, corner, scale, (width, _HEIGHT_PX), images)
    pose = Keypoints(
        positions_px=((keypoints - corner) * scale)[None].astype(np.float32),
        confidence=confidence[None],
        joint_set=COCO19,
    )
    panels = [draw_keypoints(ground, pose)]
    for mesh, colour in zip(placed, (_PREDICTED, _TRUE)):
        shown = np.concatenate(((mesh[:, :2] - corner) * scale, mesh[:, 2:] * scale), axis=1)
        panels.append(draw_overlay(ground, [shown], faces, alpha=0.9, colours=[colour]))
    panels.append(_side_views([mesh[0].cpu().numpy() for mesh in meshes], faces))
    return np.concatenate(panels, axis=1)


def _side_views(meshes: Sequence[np.ndarray], faces: np.ndarray) -> np.ndarray:
    """Predicted and true from the side in one scale, the true one on the right."""
    width = _HEIGHT_PX
    image = draw_side_view([], faces, (width, _HEIGHT_PX))
    turned = [np.stack((mesh[:, 2], mesh[:, 1], -mesh[:, 0]), axis=1) for mesh in meshes]
    low, high = np.concatenate(turned).min(0), np.concatenate(turned).max(0)
    scale = 0.88 * min(width / (2 * max(high[0] - low[0], 1e-6)), _HEIGHT_PX / max(high[1] - low[1], 1e-6))
    middle = (low + high) / 2
    for n, (mesh, colour) in enumerate(zip(turned, (_PREDICTED, _TRUE))):
        place = np.array([width * (0.25 + 0.5 * n), _HEIGHT_PX / 2, 0])
        image = draw_overlay(image, [(mesh - middle) * scale + place], faces, alpha=1, colours=[colour])
    return image


def _in_picture(track: Track, mesh: Tensor, regress: JointRegression) -> np.ndarray:
    """Root-relative vertices in the picture, (1, V, 3) m -> (V, 3) px with depth.

    By the record's camera with the pelvis at its true place, as the protocol puts it; where there is none, by the weak
    perspective that fits the 2D input best.
    """
    if track.view is not None and bool(track.view.intrinsics.any()):
        points = mesh.double() + track.view.pelvis_m[:, None]
        focal, centre = track.view.intrinsics[:, None, :2], track.view.intrinsics[:, None, 2:]
        depth = points[..., 2:].clamp_min(0.1)
        per_m = focal.mean() / track.view.pelvis_m[0, 2].clamp_min(0.1)
        return torch.cat((points[..., :2] / depth * focal + centre, points[..., 2:] * per_m), dim=-1)[0].cpu().numpy()
    joints = regress(mesh)[0].float()
    camera = fit_weak_perspective(joints, track.batch.keypoints_px, track.batch.confidence)
    return apply_weak_perspective(mesh, camera)[0].double().cpu().numpy()


def _ground(track: Track, corner: np.ndarray, scale: float, size: tuple[int, int], images: Path | None) -> np.ndarray:
    """The cut of the photo around the person, or paper: (height, width, 3) uint8."""
    width, height = size
    paper = np.linspace(PAPER_TOP, PAPER_BOTTOM, height)[:, None].repeat(width, axis=1)
    image = np.rint(paper).astype(np.uint8)
    if images is None:
        return image
    if track.view is None or track.view.images is None:
        raise InputError("--images: these samples name no images")
    from PIL import Image

    from data.images import read_image

    photo = Image.fromarray(read_image(images / track.view.images[0]))
    box = (*corner, *(corner + np.array(size) / scale))
    return np.asarray(photo.transform(size, Image.Transform.EXTENT, box, Image.Resampling.BILINEAR))


def _captioned(picture: np.ndarray, text: str) -> np.ndarray:
    """A line of text above, then what the panels are."""
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (picture.shape[1], _CAPTION_PX), PAPER_TOP)
    ImageDraw.Draw(strip).text((8, 5), f"{text}   |  2D input, predicted, true, both from the side", fill=(40, 42, 48))
    return np.concatenate((np.asarray(strip), picture), axis=0)
