"""Pictures from disk, whatever their format, as plain RGB arrays."""

from __future__ import annotations

import math
import struct
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mesh.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
# EXIF tags, and which focal lengths on full frame are lenses at all.
_EXIF, _FOCAL_FULL_FRAME_MM, _STATED_WIDTH, _STATED_HEIGHT = 0x8769, 0xA405, 0xA002, 0xA003
_FULL_FRAME_DIAGONAL_MM = 43.27
_LEAST_FOCAL_MM, _LARGEST_FOCAL_MM = 6.0, 3000.0
_SAME_PROPORTION = 0.02
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error)  # what Pillow's decoders raise on damaged files


def read_image(path: str | Path) -> np.ndarray:
    """The picture upright as its EXIF orientation says: (H, W, 3) uint8 RGB, transparency over white.

    Raises InputError if there is no picture at `path` or it is damaged or too large.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: expected an image file, {'this is a folder' if path.is_dir() else 'no such file'}")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty; copy or export the picture again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large, but below the limit
            with Image.open(path) as image:
                return _as_rgb(ImageOps.exif_transpose(image), path)
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise InputError(f"{path}: more than {limit} million pixels; make the picture smaller first") from error
    except UnidentifiedImageError as error:
        known = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
        raise InputError(f"{path}: not a picture in a known format ({known}); convert it first") from error
    except InputError:
        raise
    except _BROKEN as error:
        raise InputError(f"{path}: the picture is damaged ({error}); copy or export it again") from error


def read_focal(path: str | Path) -> float | None:
    """The focal length that a photo's EXIF data tell, in diagonals of the picture; None if they tell none.

    It is that of a full-frame camera with the same angle of view, whose diagonal is 43.27 mm. A picture whose sides are
    not in the proportion that EXIF states has been cropped, and nothing is known.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures, which `read_image` judges, and damaged EXIF data
            with Image.open(path) as image:
                exif, size = image.getexif().get_ifd(_EXIF), image.size
            focal, stated = exif.get(_FOCAL_FULL_FRAME_MM), (exif.get(_STATED_WIDTH), exif.get(_STATED_HEIGHT))
            focal_mm, stated_px = float(focal or 0), [float(side or 0) for side in stated]
    except (*_BROKEN, TypeError, ArithmeticError, Image.DecompressionBombError):  # no picture, or no sound EXIF data
        return None
    if not _LEAST_FOCAL_MM <= focal_mm <= _LARGEST_FOCAL_MM:  # some cameras write 0 for unknown
        return None
    if all(side > 0 for side in stated_px):
        proportion = max(stated_px) / min(stated_px) / (max(size) / min(size))
        if abs(math.log(proportion)) > _SAME_PROPORTION:
            return None
    return focal_mm / _FULL_FRAME_DIAGONAL_MM


def find_images(folder: str | Path) -> list[Path]:
    """The pictures directly in a folder, sorted by name; a folder without any is an InputError."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder with images, no such folder")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not found:
        raise InputError(f"{folder}: no images in this folder; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    return found


def _as_rgb(image: Image.Image, path: Path) -> np.ndarray:
    """Any Pillow mode -> (H, W, 3) uint8."""
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        return np.repeat(_deep_grey(np.asarray(image), path)[..., None], 3, axis=-1)
    if "A" in image.getbands() or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.array(image.convert("RGB"))  # a copy: the array owns its memory and can be written to


def _deep_grey(values: np.ndarray, path: Path) -> np.ndarray:
    """16-bit grey values -> uint8; Pillow's own conversion would clip them at 255."""
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise InputError(f"{path}: 32-bit pixels have no agreed black and white; save the picture with 8 or 16 bits")
    return (values // 257).astype(np.uint8)
