"""Layouts of picture files, compared with what was written and with libvips and ffmpeg: read right, or refused."""

import io
import struct
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
import pyvips
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jpeglm.core.errors import Refused
from jpeglm.data.sources import pictures
from tests.data.sources.picture_files import bmp, ico, pcx, png, png_chunk, psd, sgi, sun, tga, tiff

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning"
)  # pytest undoes what `sources` ignores of Pillow's
HEIGHT, WIDTH = 24, 36
Y, X = np.mgrid[:HEIGHT, :WIDTH]
RGB = np.stack([X * 7 % 256, Y * 10 % 256, (255 - (X * 3 + Y * 4)) % 256], -1)  # int64 [height, width, 3]
BGR, GREY = RGB[..., ::-1], RGB[..., 0]
ALPHA = np.clip(X * 12, 0, 255)
NONE, FULL = np.zeros_like(ALPHA), np.full_like(ALPHA, 255)
BITS = GREY >> 7  # 0 and 1
COLOURS = np.random.default_rng(0).integers(0, 256, (256, 3))
REFUSED = None


def as_bytes(*channels: np.ndarray) -> np.ndarray:
    return np.concatenate([channel.reshape(HEIGHT, WIDTH, -1) for channel in channels], -1).astype(np.uint8)


def scaled(values: np.ndarray, bits: int) -> np.ndarray:
    return np.round(values / 255 * (2**bits - 1)).astype(np.int64)


def over_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Float [height, width, 3]."""
    colours, alpha = np.broadcast_to(colours.reshape(HEIGHT, WIDTH, -1), RGB.shape), alpha[..., None] / 255
    return colours * alpha + 255 * (1 - alpha)


def read(file: bytes) -> np.ndarray:
    """What `prepare` makes of a file: int64 [height, width, 3]; raises `Refused`."""
    return np.asarray(pictures.upright(pictures.open_picture(file)).convert("RGB")).astype(np.int64)


def read_by_ffmpeg(file: bytes, codec: str, folder) -> np.ndarray:
    """Colours alone, int64 [height, width, 3]."""
    (folder / "picture").write_bytes(file)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-f", "image2", "-c:v", codec]
    command += ["-i", str(folder / "picture"), "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgba", "-"]
    pixels = subprocess.run(command, check=True, capture_output=True).stdout
    return np.frombuffer(pixels, np.uint8).reshape(HEIGHT, WIDTH, 4)[..., :3].astype(np.int64)


def read_by_vips(file: bytes) -> np.ndarray:
    """Over white, float [height, width, 3]."""
    found = pyvips.Image.new_from_buffer(file, "", fail_on="error").numpy().reshape(HEIGHT, WIDTH, -1)
    found = found / (257 if found.dtype == np.uint16 else 1)
    if found.shape[2] in (2, 4):
        return over_white(found[..., :-1], found[..., -1])
    return np.broadcast_to(found, RGB.shape)


def check(name: str, file: bytes, expected: np.ndarray | None, tolerance: float = 1) -> None:
    """`expected`: [height, width] or [height, width, 3]; REFUSED: refused as a layout."""
    if expected is REFUSED:
        with pytest.raises(Refused) as refusal:
            read(file)
        assert refusal.value.reason == "layout", (name, refusal.value)
        return
    expected = np.broadcast_to(expected.reshape(HEIGHT, WIDTH, -1), RGB.shape)
    np.testing.assert_allclose(read(file), expected, atol=tolerance, err_msg=name)


# PNG


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_transparent_grey_of_a_png_is_the_number_in_the_file(bits):
    most, values = (1 << bits) - 1, scaled(GREY, bits)
    for transparent in sorted({0, 1, most // 2, most, most + 1 & 0xFFFF}):
        file = png(values[..., None], bits, 0, png_chunk(b"tRNS", struct.pack(">H", transparent)))
        expected = np.where(values == transparent & most, 255, np.round(values / most * 255))
        check(f"{transparent}", file, expected)
        np.testing.assert_allclose(read_by_vips(file), expected[..., None].repeat(3, -1), atol=1)


@pytest.mark.parametrize("bits", [8, 16])
def test_the_transparent_colour_of_a_png_is_compared_in_all_its_bits(bits):
    close = np.full((HEIGHT, WIDTH, 3), 200 << bits - 8)
    close[:, :9], close[:, 9:18], close[:, 18:27] = (0, 1, 0), (0, 2, 0), (1 << bits - 8, 1, 0)
    for colour in ((0, 1, 0), (0, 2, 0), (1 << bits - 8, 1, 0), (7, 7, 7)):
        file = png(close, bits, 2, png_chunk(b"tRNS", struct.pack(">HHH", *colour)))
        expected = np.where((close == colour).all(-1, keepdims=True), 255, close >> bits - 8)
        check(f"{colour}", file, expected)
        np.testing.assert_allclose(read_by_vips(file), expected, atol=1)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_number_beyond_the_palette_is_damage(bits):
    values, count = scaled(GREY, bits), 1 << bits
    for kept in (count, count // 2):
        file = png(values[..., None], bits, 3, png_chunk(b"PLTE", COLOURS[:kept].astype(np.uint8).tobytes()))
        if kept == count:
            check("whole", file, COLOURS[values])
        else:
            with pytest.raises(Refused, match=f"broken: colour {values.max()} of a palette of {kept}"):
                read(file)


# TIFF


def described(kind: str, bits: int, extra: tuple[int, ...]) -> tuple[np.ndarray, int, dict, np.ndarray]:
    """What to store, photometric interpretation, options and the picture that it stands for."""
    most = 2**bits - 1
    if kind == "palette":
        colours = COLOURS[: 2**bits]
        values = scaled(GREY, bits)
        return (
            values[..., None],
            3,
            {"colours": (colours.T.ravel() * (257, 1)[bits % 4 == 0]).tolist()},
            colours[values],
        )
    channels, photometric = {"black": (GREY, 1), "white": (GREY, 0), "rgb": (RGB, 2), "cmyk": (255 - RGB, 5)}[kind]
    picture = RGB if kind == "cmyk" else channels
    if extra and extra[0] == 1:
        channels = np.round(channels * (ALPHA if channels.ndim == 2 else ALPHA[..., None]) / 255)
    stored = scaled(channels, bits).reshape(HEIGHT, WIDTH, -1)
    if kind == "white":
        stored = most - stored
    if kind == "cmyk":
        stored = np.concatenate([stored, NONE[..., None]], -1)
    if extra:
        stored = np.concatenate([stored, *[scaled(ALPHA, bits)[..., None]] * len(extra)], -1)
        picture = over_white(picture, ALPHA) if extra[0] else picture
    return stored, photometric, {"extra": extra}, picture


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(["black", "white", "rgb", "cmyk", "palette"]),
    bits=st.sampled_from([1, 2, 4, 8, 8, 12, 16, 16, 16]),
    order=st.sampled_from("<>"),
    planar=st.sampled_from([1, 2]),
    extra=st.sampled_from([(), (), (0,), (1,), (2,), (2, 0)]),
    coding=st.sampled_from([(1, 1), (1, 1), (5, 1), (5, 2), (8, 1), (8, 2), (32773, 1)]),
    fill=st.sampled_from([1, 1, 2]),
    tile=st.sampled_from([0, 16]),
    big=st.booleans(),
)
def test_a_tiff_is_read_right_or_refused(kind, bits, order, planar, extra, coding, fill, tile, big):
    compression, predictor = coding
    if kind == "palette":
        extra, bits, predictor = (), min(bits, 8), 1
    if bits % 8:
        predictor = 1
    stored, photometric, options, picture = described(kind, bits, extra)
    file = tiff(
        stored, bits, photometric, order=order, planar=planar, compression=compression, predictor=predictor,
        fill=fill, tile=tile, big=big, **options,
    )  # fmt: skip
    try:
        found = read(file)
    except Refused as refusal:
        assert refusal.reason in ("layout", "not a picture", "broken"), refusal
        is_plain = fill == 1 and not extra and (bits == 8 or (bits == 16 and kind in ("black", "rgb", "cmyk")))
        # Pillow knows no big-endian BigTIFF, and no 16 bits whose white is 0 in this order
        is_known = order == "<" or not (big or (bits, kind) == (16, "white"))
        assert not (is_plain and is_known), refusal
        return
    tolerance = 4 if extra else (255 / (2**bits - 1) / 2 + 1)
    expected = np.broadcast_to(picture.reshape(HEIGHT, WIDTH, -1), RGB.shape)
    np.testing.assert_allclose(found, expected, atol=tolerance)
    if not extra and kind != "cmyk" and bits in (8, 16) and not (tile and planar == 2):  # these libvips refuses
        np.testing.assert_allclose(read_by_vips(file), expected, atol=tolerance)


TIFFS = {
    "16-bit planes": (tiff(RGB * 257, 16, 2, planar=2), RGB),
    "16-bit planes with alpha": (
        tiff(np.concatenate([RGB, ALPHA[..., None]], -1) * 257, 16, 2, planar=2, extra=(2,)),
        over_white(RGB, ALPHA),
    ),
    "16-bit CMYK in planes": (
        tiff(np.concatenate([255 - RGB, NONE[..., None]], -1) * 257, 16, 5, planar=2, order=">"),
        RGB,
    ),
    "one inverted plane": (tiff(255 - GREY[..., None], 8, 0, planar=2), GREY),
    "one plane of reversed bits": (tiff(GREY[..., None], 8, 1, planar=2, fill=2), GREY),
    "white is 0": (tiff(65_535 - GREY[..., None] * 257, 16, 0), GREY),
    "white is 0, turned": (tiff(65_535 - GREY[..., None] * 257, 16, 0, tags={274: (3, [3])}), GREY[::-1, ::-1]),
    "12 bits": (tiff(scaled(GREY, 12)[..., None], 12, 1), GREY),
    "small colours": (tiff(GREY[..., None], 8, 3, colours=COLOURS.T.ravel().tolist()), COLOURS[GREY]),
    "small colours in one plane": (
        tiff(GREY[..., None], 8, 3, planar=2, colours=COLOURS.T.ravel().tolist()),
        COLOURS[GREY],
    ),
    "grey times its alpha": (
        tiff(np.stack([GREY * ALPHA // 255, ALPHA], -1), 8, 1, extra=(1,)),
        over_white(GREY, ALPHA),
    ),
    "grey and alpha in planes": (tiff(np.stack([GREY, ALPHA], -1), 8, 1, extra=(2,), planar=2), REFUSED),
    "with a sign": (tiff(GREY[..., None] // 2, 8, 1, sample_format=2), REFUSED),
    "too few colours": (tiff(GREY[..., None] // 2, 8, 3, colours=COLOURS[:128].T.ravel().tolist()), REFUSED),
    "other inks": (tiff(as_bytes(RGB, NONE).astype(int), 8, 5, tags={332: (3, [2])}), REFUSED),
    "YCbCr of reduced chroma": (tiff(RGB, 8, 6, tags={530: (3, [2, 2])}), REFUSED),
    "YCbCr of a narrow range": (
        tiff(RGB, 8, 6, tags={530: (3, [1, 1]), 532: (5, [15, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1])}),
        REFUSED,
    ),
    "YCbCr of other coefficients": (
        tiff(RGB, 8, 6, tags={530: (3, [1, 1]), 529: (5, [2126, 10_000, 7152, 10_000, 722, 10_000])}),
        REFUSED,
    ),
}


@pytest.mark.parametrize("name", TIFFS)
def test_kinds_of_tiff(name):
    check(name, *TIFFS[name], tolerance=3)


def test_a_tiff_without_a_photometric_interpretation_is_refused():
    file = tiff(GREY[..., None], 8, 1)
    check("", file.replace(struct.pack("<HHI", 262, 3, 1), struct.pack("<HHI", 263, 3, 1)), REFUSED)


# Formats that ffmpeg reads: each file as it is written, what it stands for, and whether ffmpeg must agree


def words(colours: np.ndarray, attribute: np.ndarray | int) -> np.ndarray:
    """16 bits a pixel, five of them a colour, uint16 [height, width]."""
    red, green, blue = np.moveaxis(colours >> 3, -1, 0)
    return (red << 10 | green << 5 | blue | attribute << 15).astype("<u2")


def xpm() -> bytes:
    """Transparent where `BITS` is 0."""
    lines = [f"{WIDTH} {HEIGHT} 2 1", ". c None", "# c #0A141E", *("".join(".#"[bit] for bit in row) for row in BITS)]
    return ("/* XPM */\nstatic char *a[] = {\n" + ",\n".join(f'"{line}"' for line in lines) + "\n};\n").encode()


COARSE = np.round((RGB >> 3) / 31 * 255)
OPAQUE_MAP, BLANK_MAP = (np.c_[COLOURS[:, ::-1], np.full(256, alpha)].astype(np.uint8).tobytes() for alpha in (255, 0))
ALPHA_MASKS = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
BLACK_AND_WHITE = bytes([0, 0, 0, 0, 255, 255, 255, 0])
AGREES, ALONE = True, False
FILES = {
    "targa": {
        "24 bits": (tga(as_bytes(BGR), 24), RGB, AGREES),
        "alpha": (tga(as_bytes(BGR, ALPHA), 32, descriptor=8), over_white(RGB, ALPHA), ALONE),
        "no alpha, 0": (tga(as_bytes(BGR, NONE), 32), RGB, AGREES),
        "no alpha, anything": (tga(as_bytes(BGR, ALPHA), 32), RGB, AGREES),
        "alpha 0 everywhere": (tga(as_bytes(BGR, NONE), 32, descriptor=8), RGB, AGREES),
        "alpha without meaning": (tga(as_bytes(BGR, ALPHA), 32, descriptor=8, alpha_meaning=2), RGB, AGREES),
        "alpha that counts": (
            tga(as_bytes(BGR, ALPHA), 32, descriptor=8, alpha_meaning=3),
            over_white(RGB, ALPHA),
            ALONE,
        ),
        "multiplied": (tga(as_bytes(BGR, ALPHA), 32, descriptor=8, alpha_meaning=4), REFUSED, ALONE),
        "16 bits, attribute 0": (tga(words(RGB, 0), 16), COARSE, AGREES),
        "16 bits, attribute 1": (tga(words(RGB, 1), 16, descriptor=1), COARSE, AGREES),
        "16 bits, attributes differ": (tga(words(RGB, BITS), 16, descriptor=1), REFUSED, ALONE),
        "grey, no alpha": (tga(as_bytes(GREY, NONE), 16, kind=3), GREY, ALONE),
        "grey and alpha": (tga(as_bytes(GREY, ALPHA), 16, kind=3, descriptor=8), over_white(GREY, ALPHA), ALONE),
        "opaque map": (tga(as_bytes(GREY), 8, kind=1, colours=OPAQUE_MAP, colour_depth=32), COLOURS[GREY], AGREES),
        "blank map": (tga(as_bytes(GREY), 8, kind=1, colours=BLANK_MAP, colour_depth=32), COLOURS[GREY], AGREES),
        "map of 16 bits": (
            tga(as_bytes(GREY), 8, kind=1, colours=words(COLOURS, 1).tobytes(), colour_depth=16),
            np.round((COLOURS >> 3) / 31 * 255)[GREY],
            AGREES,
        ),
        "interleaved": (tga(as_bytes(BGR), 24, descriptor=0x40), REFUSED, ALONE),
    },
    "bmp": {
        "24 bits": (bmp(BGR, 8).replace(struct.pack("<HH", 1, 8), struct.pack("<HH", 1, 24), 1), RGB, AGREES),
        "8 bits, black and white": (bmp(BITS[..., None], 8, colours=BLACK_AND_WHITE), BITS * 255, AGREES),
        "4 bits, black and white": (bmp(BITS[..., None], 4, colours=BLACK_AND_WHITE), BITS * 255, AGREES),
        "1 bit, white and black": (
            bmp(BITS[..., None], 1, colours=BLACK_AND_WHITE[4:] + BLACK_AND_WHITE[:4]),
            255 - BITS * 255,
            AGREES,
        ),
    },
    "pcx": {
        "palette": (pcx([GREY], 8, tail=b"\x0c" + COLOURS.astype(np.uint8).tobytes()), COLOURS[GREY], AGREES),
        "4 planes": (
            pcx([scaled(GREY, 4) >> n & 1 for n in range(4)], 1, colours=COLOURS[:16].astype(np.uint8).tobytes()),
            COLOURS[scaled(GREY, 4)],
            AGREES,
        ),
        "24 bits": (pcx(list(np.moveaxis(RGB, -1, 0)), 8), RGB, AGREES),
        "long rows": (pcx(list(np.moveaxis(RGB, -1, 0)), 8, stride=WIDTH + 4), REFUSED, ALONE),
        "long rows of a palette": (pcx([GREY], 8, stride=40, tail=b"\x0c" + bytes(768)), REFUSED, ALONE),
        "palette before the end": (pcx([GREY], 8, tail=b"\x0c" + bytes(768) + b"\x1a"), REFUSED, ALONE),
        "no palette": (pcx([GREY], 8), REFUSED, ALONE),
        "planes without colours": (pcx([BITS, BITS, BITS, BITS], 1), REFUSED, ALONE),
    },
    "sgi": {
        "grey": (sgi([GREY], 1, dimension=2), GREY, AGREES),
        "16 bits": (sgi([plane * 257 for plane in np.moveaxis(RGB, -1, 0)], 2), RGB, AGREES),
        "alpha": (sgi([*np.moveaxis(RGB, -1, 0), ALPHA], 1), over_white(RGB, ALPHA), ALONE),
        "colour map": (sgi([GREY], 1, dimension=2, colour_map=1), REFUSED, ALONE),
        "one row": (sgi([GREY], 1, dimension=1), REFUSED, ALONE),
    },
    "sunrast": {
        "24 bits": (sun(BGR, 8).replace(struct.pack(">I", 8), struct.pack(">I", 24), 1), RGB, AGREES),
        "1 bit": (sun(1 - BITS[..., None], 1), BITS * 255, AGREES),
        "32 bits": (sun(as_bytes(NONE, BGR).view(">u4").astype(np.int64), 32), REFUSED, ALONE),
        "1 bit in runs": (sun(1 - BITS[..., None], 1, kind=2), REFUSED, ALONE),
        "from TIFF": (sun(GREY[..., None], 8, kind=4), REFUSED, ALONE),
    },
    "xpm": {"colours and none": (xpm(), np.where(BITS[..., None] == 0, 255, (10, 20, 30)), ALONE)},
    "psd": {
        "grey": (psd([GREY], 1), GREY, AGREES),
        "colours": (psd(list(np.moveaxis(RGB, -1, 0)), 3), RGB, AGREES),
        "palette": (psd([GREY], 2, colours=COLOURS.T.astype(np.uint8).tobytes()), COLOURS[GREY], AGREES),
        "transparency": (psd([*np.moveaxis(RGB, -1, 0), ALPHA], 3, num_layers=-1), over_white(RGB, ALPHA), ALONE),
        "spot colour": (psd([*np.moveaxis(RGB, -1, 0), ALPHA], 3), RGB, AGREES),
        "mask beside layers": (psd([*np.moveaxis(RGB, -1, 0), ALPHA], 3, num_layers=1), RGB, AGREES),
        "transparent grey": (psd([GREY, ALPHA], 1, num_layers=-1), REFUSED, ALONE),
        "transparency and more": (psd([*np.moveaxis(RGB, -1, 0), ALPHA, FULL], 3, num_layers=-1), REFUSED, ALONE),
        "1 bit": (psd([1 - BITS], 0, bits=1), REFUSED, ALONE),
        "multichannel": (psd([GREY, GREY], 7), REFUSED, ALONE),
    },
}


@pytest.mark.parametrize(("codec", "name"), [(codec, name) for codec, files in FILES.items() for name in files])
def test_kinds_of_older_formats(codec, name, tmp_path):
    file, expected, agrees = FILES[codec][name]
    check(name, file, expected, tolerance=2)
    if agrees:
        np.testing.assert_allclose(read(file), read_by_ffmpeg(file, codec, tmp_path), atol=2)


def rgba_bmp(alpha: np.ndarray, **options) -> bytes:
    return bmp(as_bytes(BGR, alpha).view("<u4").astype(np.int64), 32, **options)


def test_alpha_of_a_bmp_counts_where_its_masks_name_it_and_where_it_is_not_0_everywhere():
    for header in (56, 108, 124):
        masked = {"compression": 3, "header": header, "masks": ALPHA_MASKS}
        check("alpha", rgba_bmp(ALPHA, **masked), over_white(RGB, ALPHA))
        check("blank", rgba_bmp(NONE, **masked), RGB)
    check("no mask", rgba_bmp(ALPHA), RGB)
    masks = struct.pack("<IIII", 0x7C00, 0x3E0, 0x1F, 0x8000)
    check("16 bits", bmp(words(RGB, BITS).astype(int)[..., None], 16, compression=3, header=108, masks=masks), REFUSED)
    with pytest.raises(Refused, match="broken: colour 2 of a palette of 2"):
        read(bmp(BITS[..., None] * 2, 8, colours=BLACK_AND_WHITE))


def test_kinds_of_icons():
    def icon(alpha: np.ndarray, **options) -> bytes:
        return ico(as_bytes(BGR, alpha).view("<u4").astype(np.int64), 32, **options)

    check("alpha", icon(ALPHA), over_white(RGB, ALPHA))
    check("blank", icon(NONE), REFUSED)
    check("told 24", icon(ALPHA, told_bits=24), REFUSED)
    check("told 0", icon(ALPHA, told_bits=0), REFUSED)
    inside = png(scaled(GREY, 2)[..., None], 2, 0, png_chunk(b"tRNS", b"\0\1"))
    check("PNG", ico(GREY[..., None], 32, inside=inside), np.where(scaled(GREY, 2) == 1, 255, scaled(GREY, 2) * 85))


@pytest.mark.parametrize("bits", [1, 2, 4, 7, 8])
def test_jpeg_2000_of_fewer_than_8_bits_is_refused(bits):
    """The header alone says how many bits there are: it is changed after the encoder."""
    file = io.BytesIO()
    Image.fromarray(GREY.astype(np.uint8)).save(file, "JPEG2000", no_jp2=True, irreversible=False)
    changed = bytearray(file.getvalue())
    place = changed.index(b"\xff\x51") + 40
    assert changed[place] == 7
    changed[place] = bits - 1
    check(f"{bits} bits", bytes(changed), GREY if bits == 8 else REFUSED)


def test_jpeg_2000_of_more_than_8_bits_a_colour_is_refused(tmp_path):
    def encoded(pixels: np.ndarray, pixel_format: str) -> bytes:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", pixel_format]
        command += [
            "-s",
            f"{WIDTH}x{HEIGHT}",
            "-i",
            "-",
            "-c:v",
            "jpeg2000",
            "-pred",
            "1",
            str(tmp_path / "a.jp2"),
            "-y",
        ]
        subprocess.run(command, input=np.ascontiguousarray(pixels).tobytes(), check=True)
        return (tmp_path / "a.jp2").read_bytes()

    check("colours", encoded(RGB.astype(np.uint8), "rgb24"), RGB)
    check("12-bit grey", encoded(scaled(GREY, 12).astype("<u2"), "gray12le"), GREY)
    check("16-bit colours", encoded((RGB * 257).astype("<u2"), "rgb48le"), REFUSED)


def test_an_opaque_gif_that_does_not_fill_its_screen_is_refused():
    image = Image.fromarray(as_bytes(RGB)).quantize(16)
    for options, width in (({}, WIDTH), ({}, WIDTH + 5), ({"transparency": 3}, WIDTH + 5)):
        file = io.BytesIO()
        image.save(file, "GIF", **options)
        changed = bytearray(file.getvalue())
        struct.pack_into("<H", changed, 6, width)
        if width > WIDTH and not options:
            check("smaller", bytes(changed), REFUSED)
        else:
            found = read(bytes(changed))
            by_vips = pyvips.Image.new_from_buffer(bytes(changed), "").numpy()
            by_vips = by_vips[..., :3] if by_vips.shape[2] == 3 else np.where(by_vips[..., 3:], by_vips[..., :3], 255)
            np.testing.assert_array_equal(found, by_vips)


def test_formats_that_no_other_reader_checks_are_not_read():
    for format in ("DDS", "IM", "XBM", "SPIDER"):
        file = io.BytesIO()
        Image.new("1" if format == "XBM" else "F" if format == "SPIDER" else "RGB", (32, 32)).save(file, format)
        with pytest.raises(Refused, match="not a picture: no format that is read here"):
            read(file.getvalue())
