"""Reading pictures: every common kind of file gives the same upright RGB, every broken one a clear line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.images import find_images, read_focal, read_image
from mesh.errors import InputError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def two_colours() -> Image.Image:
    """Left half red, right half green, 6 wide and 4 high."""
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:, :3], pixels[:, 3:] = RED, GREEN
    return Image.fromarray(pixels)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.gif", "a.WEBP"])
def test_formats_give_the_same_pixels(tmp_path: Path, name: str) -> None:
    options = {"lossless": True} if name.endswith("WEBP") else {}
    image = read_image(save(tmp_path / name, two_colours(), **options))
    assert image.dtype == np.uint8 and image.shape == (4, 6, 3)
    np.testing.assert_array_equal(image, np.asarray(two_colours()))


@pytest.mark.parametrize(
    ("orientation", "upper_left", "shape"),
    [(1, RED, (4, 6, 3)), (2, GREEN, (4, 6, 3)), (3, GREEN, (4, 6, 3)), (6, RED, (6, 4, 3)), (8, GREEN, (6, 4, 3))],
)
def test_exif_orientation_is_applied(
    tmp_path: Path, orientation: int, upper_left: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = read_image(save(tmp_path / "turned.png", two_colours(), exif=exif))
    assert image.shape == shape
    assert tuple(image[0, 0]) == upper_left


def test_transparent_pixels_become_white(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0] = (*BLUE, 255)
    image = read_image(save(tmp_path / "cut_out.png", Image.fromarray(pixels)))
    assert (image[0] == BLUE).all() and (image[1] == WHITE).all()


def test_transparent_palette_colour_becomes_white(tmp_path: Path) -> None:
    paletted = Image.new("P", (2, 1))
    paletted.putpalette([*BLUE, *RED])
    paletted.putdata([0, 1])
    image = read_image(save(tmp_path / "p.png", paletted, transparency=1))
    assert tuple(image[0, 0]) == BLUE and tuple(image[0, 1]) == WHITE


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "grey.png", Image.new("L", (3, 2), 77)))
    assert image.shape == (2, 3, 3) and (image == 77).all()


def test_sixteen_bit_grey_keeps_its_tones(tmp_path: Path) -> None:
    tones = np.array([[0, 257 * 100, 65535]], np.uint16)
    image = read_image(save(tmp_path / "deep.png", Image.fromarray(tones)))
    np.testing.assert_array_equal(image[0, :, 0], [0, 100, 255])


def test_floating_point_pictures_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "float.tif", Image.fromarray(np.ones((2, 2), np.float32)))
    with pytest.raises(InputError, match="8 or 16 bits"):
        read_image(path)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "print.jpg", Image.new("CMYK", (16, 16), (0, 255, 255, 0)), quality=95))
    red, green, blue = image[8, 8].astype(int)
    assert red > 200 and green < 60 and blue < 60


def test_the_array_can_be_written_to(tmp_path: Path) -> None:
    image = read_image(save(tmp_path / "a.png", two_colours()))
    image[0, 0] = 0  # raises for a read-only view of Pillow's memory


def truncated(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    save(path, Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("missing.jpg", lambda path: None, "no such file"),
        ("folder.jpg", lambda path: path.mkdir(), "this is a folder"),
        ("empty.jpg", lambda path: path.touch(), "empty"),
        ("text.jpg", lambda path: path.write_text("not a picture"), "known format"),
        ("cut.jpg", truncated, "damaged"),
        ("cut.png", truncated, "damaged"),
    ],
)
def test_unreadable_files_are_refused_in_one_line(
    tmp_path: Path, name: str, make: Callable[[Path], object], message: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(InputError, match=message) as refusal:
        read_image(tmp_path / name)
    assert name in str(refusal.value) and "\n" not in str(refusal.value)


def test_too_many_pixels_are_refused_with_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "huge.png", Image.new("RGB", (2001, 1001)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    with pytest.raises(InputError, match="more than 2 million pixels"):
        read_image(path)


def test_a_large_picture_below_the_limit_is_read_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    path = save(tmp_path / "large.png", Image.new("RGB", (1500, 1000)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    assert read_image(path).shape == (1000, 1500, 3)
    assert not recwarn.list


def test_images_of_a_folder_come_sorted_and_without_other_files(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "notes.txt", "c.jpeg"):
        (tmp_path / name).touch()
    (tmp_path / "d.png").mkdir()
    assert [path.name for path in find_images(tmp_path)] == ["a.jpg", "b.PNG", "c.jpeg"]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no images in this folder"):
        find_images(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        find_images(tmp_path / "missing")


def photo(path: Path, size: tuple[int, int], **tags: Any) -> Path:
    """A picture with these EXIF tags of its camera."""
    exif = Image.Exif()
    numbers = {"focal": 0xA405, "width": 0xA002, "height": 0xA003, "true_focal": 0x920A}
    exif.get_ifd(0x8769).update({numbers[name]: value for name, value in tags.items()})
    return save(path, Image.new("RGB", size), exif=exif)


def test_the_focal_length_comes_from_exif_in_diagonals_of_the_picture(tmp_path: Path) -> None:
    assert read_focal(photo(tmp_path / "a.jpg", (60, 40), focal=50)) == pytest.approx(50 / 43.27)
    stated = photo(tmp_path / "b.jpg", (40, 60), focal=26, width=6000, height=4000)  # made smaller and turned
    assert read_focal(stated) == pytest.approx(26 / 43.27)


def test_a_cropped_photo_and_one_that_does_not_tell_have_no_focal_length(tmp_path: Path) -> None:
    assert read_focal(photo(tmp_path / "a.jpg", (40, 40), focal=50, width=6000, height=4000)) is None
    assert read_focal(photo(tmp_path / "b.jpg", (60, 40))) is None
    assert read_focal(photo(tmp_path / "c.jpg", (60, 40), focal=0, true_focal=4.2)) is None
    assert read_focal(photo(tmp_path / "d.jpg", (60, 40), focal=65535)) is None
    (tmp_path / "e.jpg").write_bytes(b"no picture")
    assert read_focal(tmp_path / "e.jpg") is None and read_focal(tmp_path / "missing.jpg") is None


@pytest.mark.parametrize("value", ["fifty", (50, 50), b"5", float("nan")])
def test_exif_data_of_another_type_tell_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: object) -> None:
    picture = photo(tmp_path / "a.jpg", (60, 40), focal=50)
    monkeypatch.setattr(Image.Exif, "get_ifd", lambda self, tag: {0xA405: value})
    assert read_focal(picture) is None
