"""The best and the worst recoveries of many pictures, drawn side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mesh.files import replacing
from mesh.render import draw_overlay
from tools.results import placed_in_picture
from tools.robustness_checks import PersonChecks, resized

if TYPE_CHECKING:
    from gcn.recovery import Recovered

_SIDE_PX = 320
_COLUMNS = 4
_MARGIN = 0.2  # of the box around a person, in longer sides of it
_INCHES, _DPI = 2.6, 125
_CAPTION = 34  # characters that fit under a tile


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A person cut from a picture, drawn only if shown: `image` (h, w, 3), meshes (V, 3) each in its pixels."""

    error: float
    caption: str
    image: np.ndarray
    meshes: Sequence[np.ndarray]


class ContactSheet:
    """Keeps the `count` people of the least and of the largest error, however many are offered."""

    def __init__(self, faces: np.ndarray, count: int) -> None:
        self._faces, self._count = faces, count
        self._tiles: list[Tile] = []

    def offer_all(self, image: np.ndarray, people: Sequence[PersonChecks], recovered: Recovered, name: str) -> None:
        """Everybody of a picture (H, W, 3); `name` stands under them."""
        meshes = placed_in_picture(recovered, np.flatnonzero(recovered.valid))
        for number, person in enumerate(people):
            if person.reprojection_px is not None and person.reprojection_sizes is not None:
                text = caption(name, number, person.reprojection_px, person.reprojection_sizes)
                self.offer(image, meshes, person.box_px, person.reprojection_sizes, text)

    def offer(
        self,
        image: np.ndarray,
        meshes_px: Sequence[np.ndarray],
        box_px: tuple[float, float, float, float],
        error: float,
        caption: str,
    ) -> None:
        """A person at `box_px` (left, top, right, bottom) in a picture with all its meshes (V, 3), in pixels."""
        ordered = [tile.error for tile in self._tiles]
        if len(ordered) == 2 * self._count and ordered[self._count - 1] <= error <= ordered[self._count]:
            return
        height, width = image.shape[:2]
        left, top, right, bottom = box_px
        reach = _MARGIN * max(right - left, bottom - top)
        x0, y0 = (int(np.clip(v - reach, 0, end - 1)) for v, end in ((left, width), (top, height)))
        x1, y1 = (
            int(np.clip(v + reach, start + 1, end)) for v, start, end in ((right, x0, width), (bottom, y0, height))
        )
        scale = _SIDE_PX / max(x1 - x0, y1 - y0)
        size = (max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale)))
        part = resized(np.ascontiguousarray(image[y0:y1, x0:x1]), size)
        moved = [((mesh - (x0, y0, 0)) * scale).astype(np.float32) for mesh in meshes_px]
        self._tiles.append(Tile(error=error, caption=caption, image=part, meshes=moved))
        self._tiles.sort(key=lambda tile: tile.error)
        if len(self._tiles) > 2 * self._count:
            del self._tiles[self._count]

    def halves(self) -> tuple[list[Tile], list[Tile]]:
        """The best, best first, and the worst, worst first; nobody is among both."""
        middle = min(self._count, -(-len(self._tiles) // 2))
        return self._tiles[:middle], self._tiles[middle:][::-1]

    def write(self, path: Path) -> None:
        """Draw the sheet; without anybody, a page that says so."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        groups = [(title, tiles) for title, tiles in zip(("best", "worst"), self.halves()) if tiles]
        rows = [
            (title if first == 0 else "", tiles[first : first + _COLUMNS])
            for title, tiles in groups
            for first in range(0, len(tiles), _COLUMNS)
        ]
        figure = Figure(figsize=(_COLUMNS * _INCHES, max(1, len(rows)) * (_INCHES + 0.45)), dpi=_DPI)
        FigureCanvasAgg(figure)
        if not rows:
            figure.text(0.5, 0.5, "nobody was recovered", ha="center")
        for number, (title, tiles) in enumerate(rows):
            for column, tile in enumerate(tiles):
                axes = figure.add_subplot(len(rows), _COLUMNS, number * _COLUMNS + column + 1)
                axes.imshow(draw_overlay(tile.image, tile.meshes, self._faces))
                axes.set_xticks([])
                axes.set_yticks([])
                axes.set_xlabel(tile.caption, fontsize=8, parse_math=False)
                if title and column == 0:
                    axes.set_title(f"{title} by reprojection error", loc="left", fontsize=10)
        figure.tight_layout()
        with replacing(path) as file:
            figure.savefig(file, format="png")


def caption(name: str, person: int, error_px: float, error_sizes: float) -> str:
    """What stands under a tile: the file, shortened in its middle, and its error."""
    if len(name) > _CAPTION:
        name = f"{name[: _CAPTION // 2 - 1]}…{name[-(_CAPTION // 2 - 1) :]}"
    return f"{name}\nperson {person}: {error_px:.1f} px, {100 * error_sizes:.1f} % of size"
