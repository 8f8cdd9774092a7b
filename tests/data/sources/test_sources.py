import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from jpeglm.core.config import BACKGROUNDS
from jpeglm.core.errors import InputError, Refused
from jpeglm.data.sources import open_source
from jpeglm.data.sources.pictures import to_canonical

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pytest undoes what `sources` ignores of Pillow's
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def through_file(tmp_path, image: Image.Image, name: str, mode="RGB", size=(32, 32), **options) -> np.ndarray:
    """Saves a picture, and reads it back as `prepare` does: uint8 [height, width] or [height, width, 3]."""
    image.save(tmp_path / name, **options)
    return read(tmp_path, name, mode, size)


def read(tmp_path, name: str, mode="RGB", size=(32, 32)) -> np.ndarray:
    height, width = size
    result = open_source(str(tmp_path)).canonical(name, height, width, mode)
    assert (result.mode, result.size) == (mode, (width, height))
    return np.asarray(result)


def refusal(tmp_path, name: str) -> Refused:
    with pytest.raises(Refused) as caught:
        read(tmp_path, name)
    return caught.value


def png(width: int, height: int, bits: int, colour_type: int, rows: bytes, chunks=()) -> bytes:
    """A PNG file written by hand, for the kinds that Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )


# What is converted


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = np.zeros((32, 32, 3), np.uint8)
    upright[:16, :16], upright[:16, 16:], upright[16:, :16] = RED, GREEN, BLUE
    # the stored picture is the upright one after the inverse of what the tag asks for
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = through_file(tmp_path, Image.fromarray(np.ascontiguousarray(stored)), "a.png", exif=exif)
    np.testing.assert_array_equal(found, upright)


def test_alpha_is_composited_over_white(tmp_path):
    image = Image.new("RGBA", (32, 32), (*RED, 255))
    image.paste((*RED, 0), (0, 0, 16, 32))
    image.paste((*RED, 51), (0, 0, 16, 8))
    found = through_file(tmp_path, image, "a.png")
    assert tuple(found[16, 0]) == WHITE
    assert tuple(found[16, 31]) == RED
    np.testing.assert_allclose(found[0, 0], (255, 204, 204), atol=1)


def test_grey_with_alpha_is_composited_over_white(tmp_path):
    image = Image.new("LA", (32, 32), (100, 255))
    image.paste((0, 0), (0, 0, 16, 32))
    found = through_file(tmp_path, image, "a.png", mode="L")
    assert (found[0, 0], found[0, 31]) == (255, 100)


def test_a_transparent_palette_entry_is_white(tmp_path):
    image = Image.new("P", (32, 32), 1)
    image.putpalette([*RED, *GREEN])
    image.paste(0, (0, 0, 16, 32))
    for name in ("a.png", "a.gif"):
        found = through_file(tmp_path, image, name, transparency=0)
        assert (tuple(found[0, 0]), tuple(found[0, 31])) == (WHITE, GREEN), name


def test_a_transparent_colour_is_white(tmp_path):
    image = Image.new("RGB", (32, 32), GREEN)
    image.paste(RED, (0, 0, 16, 32))
    found = through_file(tmp_path, image, "a.png", transparency=RED)
    assert (tuple(found[0, 0]), tuple(found[0, 31])) == (WHITE, GREEN)


GLASS = {
    "RGBA": (Image.new("RGBA", (32, 32), (200, 100, 0, 51)), {}),
    "LA": (Image.new("LA", (32, 32), (100, 51)), {}),
    "palette": (Image.new("P", (32, 32), 0), {"transparency": bytes([51])}),
    "colour": (Image.new("RGB", (32, 32), (9, 8, 7)), {"transparency": (9, 8, 7)}),
    "grey": (Image.new("L", (32, 32), 9), {"transparency": 9}),
    "16-bit grey": (Image.fromarray(np.full((32, 32), 1000, np.uint16)), {"transparency": 1000}),
}


@pytest.mark.parametrize("kind", GLASS)
def test_the_background_of_transparent_pictures_is_chosen(tmp_path, kind):
    image, options = GLASS[kind]
    if kind == "palette":
        image.putpalette([200, 100, 0])
    image.save(tmp_path / "a.png", **options)
    colour = {"RGBA": (200, 100, 0), "LA": 100, "palette": (200, 100, 0)}.get(kind, 0)
    opacity = 0.2 if kind in ("RGBA", "LA", "palette") else 0
    source = open_source(str(tmp_path))
    for background, value in (("white", 255), ("black", 0)):
        found = np.asarray(source.canonical("a.png", 32, 32, "RGB", background))
        expected = np.broadcast_to(np.multiply(colour, opacity) + value * (1 - opacity), found.shape)
        np.testing.assert_allclose(found, expected, atol=1)
    np.testing.assert_array_equal(read(tmp_path, "a.png"), source.canonical("a.png", 32, 32, "RGB", "white"))
    with pytest.raises(Refused, match="^transparent: "):
        source.canonical("a.png", 32, 32, "RGB", "refuse")


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_opaque_pictures_have_no_background(tmp_path, background):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 4), np.uint8)
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = open_source(str(tmp_path)).canonical("a.png", 32, 32, "RGB", background)
    np.testing.assert_array_equal(found, pixels[..., :3])


def test_palette_is_converted(tmp_path):
    image = Image.new("P", (32, 32), 1)
    image.putpalette([*RED, *GREEN])
    assert (through_file(tmp_path, image, "a.png") == GREEN).all()
    assert (through_file(tmp_path, image, "a.bmp", mode="L") == 150).all()  # 0.587 * 255


def test_one_bit_is_converted(tmp_path):
    image = Image.new("1", (32, 32), 0)
    image.paste(1, (0, 0, 16, 32))
    found = through_file(tmp_path, image, "a.png", mode="L")
    assert (found[0, 0], found[0, 31]) == (255, 0)


def test_cmyk_is_converted(tmp_path):
    for name in ("a.jpg", "a.tif"):
        found = through_file(tmp_path, Image.new("CMYK", (32, 32), (0, 255, 255, 0)), name)
        np.testing.assert_allclose(found, np.broadcast_to(RED, found.shape), atol=3, err_msg=name)


def test_ycbcr_is_converted(tmp_path):
    image = Image.new("RGB", (32, 32), RED).convert("YCbCr")
    found = through_file(tmp_path, image, "a.tif")
    np.testing.assert_allclose(found, np.broadcast_to(RED, found.shape), atol=2)


def test_hsv_is_converted():
    found = np.asarray(to_canonical(Image.new("RGB", (8, 8), RED).convert("HSV"), 32, 32, "RGB"))
    np.testing.assert_allclose(found, np.broadcast_to(RED, found.shape), atol=2)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bit_grey_is_divided_by_257_and_rounded(tmp_path, name):
    values = np.linspace(0, 65_535, 1024).astype(np.uint16).reshape(32, 32)
    found = through_file(tmp_path, Image.fromarray(values), name, mode="L")
    np.testing.assert_array_equal(found, np.rint(values / 257))


def test_big_endian_16_bit_grey_is_the_same(tmp_path):
    values = np.linspace(0, 65_535, 1024).astype(np.uint16).reshape(32, 32)
    image = Image.frombytes("I;16B", (32, 32), values.astype(">u2").tobytes())
    np.testing.assert_array_equal(through_file(tmp_path, image, "a.tif", mode="L"), np.rint(values / 257))


def test_the_transparent_value_of_16_bit_grey_is_white(tmp_path):
    values = np.full((32, 32), 1000, np.uint16)
    values[:, 16:] = 1001  # the same 8-bit grey
    found = through_file(tmp_path, Image.fromarray(values), "a.png", mode="L", transparency=1000)
    assert (found[0, 0], found[0, 31]) == (255, 4)


def test_16_bits_a_channel_keep_the_high_byte(tmp_path):
    row = b"\x00" + bytes([200, 255, 100, 0, 50, 128]) * 32
    (tmp_path / "a.png").write_bytes(png(32, 32, 16, 2, row * 32))
    assert (read(tmp_path, "a.png") == (200, 100, 50)).all()


def test_a_colour_profile_changes_nothing(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    found = through_file(tmp_path, Image.new("RGB", (32, 32), (10, 20, 30)), "a.png", icc_profile=profile)
    assert (found == (10, 20, 30)).all()


@pytest.mark.parametrize(("name", "format"), [("a.mpo", "MPO"), ("a.tif", "TIFF")])
def test_the_first_of_several_pictures_is_taken(tmp_path, name, format):
    pages = [Image.new("RGB", (32, 32), colour) for colour in (RED, GREEN)]
    found = through_file(tmp_path, pages[0], name, format=format, save_all=True, append_images=pages[1:])
    with Image.open(tmp_path / name) as opened:
        assert (opened.format, opened.n_frames) == (format, 2)
    np.testing.assert_allclose(found, np.broadcast_to(RED, found.shape), atol=3)


def test_the_centre_is_cropped_to_the_aspect(tmp_path):
    image = Image.new("RGB", (96, 32), RED)
    image.paste(GREEN, (32, 0, 64, 32))
    assert (through_file(tmp_path, image, "a.png") == GREEN).all()
    assert (through_file(tmp_path, image.rotate(90, expand=True), "b.png") == GREEN).all()
    assert (through_file(tmp_path, image, "c.png", size=(16, 48)) == np.repeat([RED, GREEN, RED], 16, 0)).mean() > 0.9


def test_reduction_is_antialiased(tmp_path):
    stripes = np.zeros((320, 320), np.uint8)
    stripes[:, ::2] = 255
    found = through_file(tmp_path, Image.fromarray(stripes), "a.png", mode="L")
    np.testing.assert_allclose(found, np.full((32, 32), 127.5), atol=5)


def test_a_picture_of_the_right_size_and_mode_is_not_touched(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    np.testing.assert_array_equal(through_file(tmp_path, Image.fromarray(pixels), "a.png"), pixels)


def test_a_single_pixel_becomes_a_picture(tmp_path):
    assert (through_file(tmp_path, Image.new("RGB", (1, 1), GREEN), "a.png") == GREEN).all()


# What is refused


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_animated_pictures_are_refused(tmp_path, name):
    frames = [Image.new("RGB", (32, 32), colour) for colour in (RED, GREEN, BLUE)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    found = refusal(tmp_path, name)
    assert found.reason == "animated"
    assert "3 frames" in found.detail


def test_a_still_gif_is_converted(tmp_path):
    assert (through_file(tmp_path, Image.new("RGB", (32, 32), GREEN), "a.gif") == GREEN).all()


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
def test_modes_without_a_rule_are_refused_by_name(tmp_path, mode):
    Image.new(mode, (32, 32)).save(tmp_path / "a.tif")
    assert refusal(tmp_path, "a.tif").reason == f"mode {mode}"


def test_decompression_bombs_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(png(20_000, 20_000, 8, 0, b""))
    assert refusal(tmp_path, "a.png").reason == "too large"


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_truncated_files_are_refused(tmp_path, format):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(buffer, format=format)
    for share in (0.9, 0.5, 0.1):
        (tmp_path / "a").write_bytes(buffer.getvalue()[: int(len(buffer.getvalue()) * share)])
        assert refusal(tmp_path, "a").reason in ("broken", "not a picture"), share
    (tmp_path / "a").write_bytes(buffer.getvalue()[:-600])
    assert refusal(tmp_path, "a").reason == "broken"


def test_a_picture_without_width_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(png(0, 8, 8, 0, b"\x00" * 8))
    assert refusal(tmp_path, "a.png").reason in ("broken", "not a picture")


def test_damaged_bytes_never_do_more_than_refuse(tmp_path):
    source = open_source(str(tmp_path))
    random = np.random.default_rng(0)
    for format in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "ICO"):
        buffer = io.BytesIO()
        image = Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8))
        image.save(buffer, format=format)
        for _ in range(60):
            damaged = bytearray(buffer.getvalue())
            for place in random.integers(0, min(len(damaged), 200), 4):
                damaged[place] = random.integers(256)
            (tmp_path / "a").write_bytes(damaged)
            try:
                assert source.canonical("a", 16, 16, "RGB").size == (16, 16)
            except Refused as refused:
                assert refused.reason and refused.detail


def test_other_files_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("a cat")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "drawing.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n")
    for name in ("notes.txt", "empty.jpg", "drawing.eps"):
        assert refusal(tmp_path, name).reason == "not a picture"


def test_what_is_no_readable_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nothing.png")
    assert refusal(tmp_path, "pipe").reason == "not a regular file"
    assert refusal(tmp_path, "loop").reason == "not a regular file"
    assert refusal(tmp_path, "dangling.png").reason == "unreadable"


# Listing


def test_a_folder_is_listed_to_its_depth_in_one_order_without_going_in_circles(tmp_path):
    for name in ("b.png", "deep/er/a.png", "deep/z.png", "a.png", "also/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    expected = ["a.png", "b.png", "also/c.png", "deep/z.png", "deep/er/a.png"]
    assert list(open_source(str(tmp_path)).names()) == expected


def test_a_missing_folder_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no such folder: .*nothing"):
        open_source(str(tmp_path / "nothing"))


def test_embedded_digits_have_two_black_pixels_around(tmp_path):
    source = open_source("embedded:mnist")
    names = list(source.names())
    assert len(set(names)) == 10_000
    assert {name[-6:] for name in names} == {f"digit{digit}" for digit in range(10)}
    for name in names[::500]:
        pixels = np.asarray(source.canonical(name, 32, 32, "L"))
        assert pixels[2:30, 2:30].max() > 200
        pixels = pixels.copy()
        pixels[2:30, 2:30] = 0
        assert not pixels.any()
    assert source.canonical(names[0], 64, 48, "RGB").size == (48, 64)


# TensorFlow Datasets


def test_a_prepared_tfds_dataset_is_a_source_without_tensorflow(tmp_path):
    make = Path(__file__).with_name("make_tfds_dataset.py")
    subprocess.run([sys.executable, str(make), str(tmp_path)], check=True, capture_output=True)
    code = (
        "import sys\n"
        "import numpy as np\n"
        "from jpeglm.data.sources import open_source\n"
        "for path in ('tfds:stripes', 'tfds:stripes:test'):\n"
        "    source = open_source(path)\n"
        "    pictures = [np.asarray(source.canonical(name, 32, 32, 'RGB')) for name in source.names()]\n"
        "    assert all((picture == picture[0, 0]).all() for picture in pictures)\n"
        "    print(sorted(picture[0, 0, 0].item() for picture in pictures))\n"
        "sys.exit('tensorflow' in sys.modules)\n"
    )
    environment = os.environ | {"TFDS_DATA_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[0, 10, 20, 30, 40]", "[50, 60]"]


@pytest.mark.parametrize("path", ["tfds:no_such_dataset", "tfds:"])
def test_an_unknown_tfds_dataset_is_an_input_error(path):
    with pytest.raises(InputError, match=f"cannot read {path} "):
        open_source(path)
