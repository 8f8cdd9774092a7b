"""Damaged and oversized metadata around sound pictures, and damage to the pixels themselves."""

import io
import os
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from jpeglm.core.errors import Refused
from jpeglm.data.sources import pictures
from tests.data.sources.picture_files import png, png_chunk, tiff

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pytest undoes what `sources` ignores of Pillow's
HEIGHT, WIDTH = 24, 36
Y, X = np.mgrid[:HEIGHT, :WIDTH]
RGB = np.stack([X * 255 // 35, Y * 255 // 23, (X + Y) * 255 // 58], -1)
PICTURE = Image.fromarray(RGB.astype(np.uint8))
TURNED = np.rot90(RGB, -1)  # orientation 6
LITTLE_EXIF = b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"  # orientation 6


def encoded(format: str, **options) -> bytes:
    file = io.BytesIO()
    PICTURE.save(file, format, **options)
    return file.getvalue()


def read(file: bytes) -> np.ndarray:
    return np.asarray(pictures.upright(pictures.open_picture(file)).convert("RGB")).astype(np.int64)


def wrong_sum(chunk: bytes) -> bytes:
    return chunk[:-1] + bytes([chunk[-1] ^ 1])


# PNG

NOISE = np.random.default_rng(0).bytes(1_200_000)
CHUNKS = {
    "large profile": png_chunk(b"iCCP", b"LUT\0\0" + zlib.compress(NOISE)),
    "profile of unknown compression": png_chunk(b"iCCP", b"LUT\0\5junk"),
    "empty profile": png_chunk(b"iCCP", b""),
    "large packed text": png_chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(2 << 20))),
    "text of unknown packing": png_chunk(b"zTXt", b"note\0\7junk"),
    "large packed international text": png_chunk(b"iTXt", b"note\0\1\0\0\0" + zlib.compress(NOISE)),
    "70 MB of international text": png_chunk(b"iTXt", b"note\0\0\0\0\0" + b"a" * (70 << 20)),
    "70 MB of text": png_chunk(b"tEXt", b"note\0" + b"a" * (70 << 20)),
    "large packed XMP": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(2 << 20))),
    "damaged packed XMP": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0junk"),
    "large EXIF in text": png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(2 << 20))),
    "text with a wrong checksum": wrong_sum(png_chunk(b"tEXt", b"note\0hello")),
    "EXIF with a wrong checksum": wrong_sum(png_chunk(b"eXIf", LITTLE_EXIF)),
    "EXIF that is none": png_chunk(b"eXIf", b"junk"),
    "EXIF that is cut off": png_chunk(b"eXIf", LITTLE_EXIF[:9]),
    "private chunk with a wrong checksum": wrong_sum(png_chunk(b"prVt", b"x")),
    "short gamma": png_chunk(b"gAMA", b"\0"),
    "short chromaticities": png_chunk(b"cHRM", bytes(5)),
    "short density": png_chunk(b"pHYs", bytes(3)),
    "empty sRGB": png_chunk(b"sRGB", b""),
}


@pytest.mark.parametrize("name", CHUNKS)
def test_a_png_is_sound_whatever_its_ancillary_chunks(name):
    for file in (png(RGB, 8, 2, CHUNKS[name]), png(RGB, 8, 2, after=[CHUNKS[name]])):
        np.testing.assert_array_equal(read(file), RGB)


def test_the_orientation_of_a_png_is_kept_beside_damaged_chunks():
    bad = (CHUNKS["large profile"], CHUNKS["text with a wrong checksum"])
    np.testing.assert_array_equal(read(png(RGB, 8, 2, *bad, png_chunk(b"eXIf", LITTLE_EXIF))), TURNED)
    np.testing.assert_array_equal(read(png(RGB, 8, 2, *bad, after=[png_chunk(b"eXIf", LITTLE_EXIF)])), TURNED)
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    for text in (b"\0\0\0\0" + xmp, b"\1\0\0\0" + zlib.compress(xmp)):
        file = png(RGB, 8, 2, *bad, png_chunk(b"iTXt", b"XML:com.adobe.xmp\0" + text))
        np.testing.assert_array_equal(read(file), TURNED)


def test_many_chunks_cost_neither_memory_nor_time():
    bombs = [png_chunk(kind, key + zlib.compress(bytes(50 << 20))) for kind, key in (
        (b"zTXt", b"Raw profile type exif\0\0"), (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0"), (b"iCCP", b"x\0\0"),
    )]  # fmt: skip
    file = png(RGB, 8, 2, *(bombs * 100))
    tracemalloc.start()
    start = time.monotonic()
    np.testing.assert_array_equal(read(file), RGB)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20 and time.monotonic() - start < 10, (peak, time.monotonic() - start)


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"IDAT", b"tRNS"])
@pytest.mark.parametrize("place", [8, -1])
def test_a_wrong_checksum_of_what_holds_pixels_is_damage(kind, place):
    palette = png_chunk(b"PLTE", bytes(range(255)) * 3 + bytes(3)), png_chunk(b"tRNS", b"\0")
    file = bytearray(png(RGB[..., :1], 8, 3, *palette))
    np.testing.assert_array_equal(read(bytes(file)).shape, RGB.shape)
    start = file.index(kind) - 4
    end = start + 12 + int.from_bytes(file[start : start + 4])
    file[start + place if place > 0 else end - 1] ^= 1
    with pytest.raises(Refused, match=f"^broken: .*{kind.decode()}"):
        read(bytes(file))


# JPEG


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def exif_with(entries: bytes, count: int, after: bytes = b"") -> bytes:
    return segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", count) + entries + bytes(4) + after)


SEGMENTS = {
    "cut JFIF": segment(0xE0, b"JFIF\0\1"),
    "cut profile": segment(0xE2, b"ICC_PROFILE\0"),
    "cut Photoshop": segment(0xED, b"Photoshop 3.0\x008BIM\3\xed"),
    "cut Photoshop name": segment(0xED, b"Photoshop 3.0\x008BIM\3\xed\0"),
    "cut Adobe": segment(0xEE, b"Adobe"),
    "cut Adobe version": segment(0xEE, b"Adobe\0"),
    "empty EXIF": segment(0xE1, b"Exif\0\0"),
    "EXIF that is none": segment(0xE1, b"Exif\0\0" + bytes(range(99))),
    "EXIF in a circle": exif_with(struct.pack(">HHII", 0x8769, 4, 1, 8), 1),
    "EXIF without density": exif_with(struct.pack(">HHIIHHIHH", 0x11A, 5, 1, 2**31, 0x128, 3, 1, 2, 0), 2),
    "EXIF of density 0/0": exif_with(struct.pack(">HHIIHHIHH", 0x11A, 5, 1, 38, 0x128, 3, 1, 2, 0), 2, bytes(8)),
    "cut multi-picture": segment(0xE2, b"MPF\0II*\0"),
    "cut XMP": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmp\xff"),
    "empty comment": segment(0xFE, b""),
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_a_jpeg_is_sound_whatever_its_metadata(name):
    plain = encoded("JPEG", quality=95)
    without_jfif = plain[:2] + plain[2 + 2 + int.from_bytes(plain[4:6]) :]
    for file in (plain, without_jfif):
        np.testing.assert_array_equal(read(file[:2] + SEGMENTS[name] + file[2:]), read(plain))


def test_jpegs_with_damaged_exif_are_read():
    """What is changed may be the orientation, which then is one of eight."""
    plain = encoded("JPEG", quality=95)
    start, exif = 4 + int.from_bytes(plain[4:6]), Image.Exif()
    exif[0x112], exif[0x11A], exif[0x128], exif[0x10F] = 1, 72.0, 2, "maker"
    whole, pixels, random = exif.tobytes(), read(plain), np.random.default_rng(5)
    turns = [np.rot90(side, turns) for side in (pixels, pixels[:, ::-1]) for turns in range(4)]
    for number in range(600):
        damaged = bytearray(whole)
        for place in random.integers(6, len(whole), random.integers(1, 6)):
            damaged[place] = random.choice([0, 1, 2, 3, 5, 7, 10, 12, 13, 255])
        if number % 3 == 0:
            damaged = damaged[: random.integers(6, len(whole))]
        found = read(plain[:2] + segment(0xE1, bytes(damaged)) + plain[start:])
        assert any(np.array_equal(found, turned) for turned in turns)


def test_the_orientation_of_a_jpeg_is_kept_beside_damaged_segments():
    plain = encoded("JPEG", quality=95)
    for name in ("cut profile", "cut Photoshop", "cut Adobe"):
        file = plain[:2] + segment(0xE1, b"Exif\0\0" + LITTLE_EXIF) + SEGMENTS[name] + plain[2:]
        np.testing.assert_array_equal(read(file), np.rot90(read(plain), -1))


def test_colours_of_a_jpeg_do_not_depend_on_damaged_segments():
    cmyk = io.BytesIO()
    PICTURE.convert("CMYK").save(cmyk, "JPEG", quality=95)
    for plain in (cmyk.getvalue(), encoded("JPEG", quality=95, keep_rgb=True)):
        file = plain[:2] + SEGMENTS["cut Photoshop"] + SEGMENTS["cut profile"] + plain[2:]
        np.testing.assert_array_equal(read(file), read(plain))


def test_a_frame_of_motion_jpeg_is_read_with_damaged_exif():
    plain = encoded("JPEG", quality=95)
    start, parts = 2, [plain[:2], SEGMENTS["cut Photoshop"], segment(0xE0, b"AVI1\0\0\0\0")]
    while plain[start + 1] != 0xDA:
        end = start + 2 + int.from_bytes(plain[start + 2 : start + 4])
        if plain[start + 1] not in (0xC4, 0xE0):  # the tables are the standard's, and so left out
            parts.append(plain[start:end])
        start = end
    np.testing.assert_array_equal(read(b"".join(parts) + plain[start:]), read(plain))


# Others


def test_a_webp_is_sound_whatever_stands_behind_its_pixels():
    exif = Image.Exif()
    exif[0x10F] = "a maker of cameras"
    whole = encoded("WEBP", lossless=True, exif=exif)
    start = whole.index(b"EXIF")
    files = [whole[: start + cut] for cut in (6, 8, 12, 30)]
    for length in (0, 3, 2**31, 2**32 - 1):
        changed = bytearray(whole)
        struct.pack_into("<I", changed, start + 4, length)
        files.append(bytes(changed))
    for file in files:
        np.testing.assert_array_equal(read(file), RGB)
    with pytest.raises(Refused, match="broken"):
        read(whole[: whole.index(b"VP8L") + 30])


def test_an_avif_is_sound_whatever_its_exif():
    exif = Image.Exif()
    exif[0x10F] = "maker"
    whole = encoded("AVIF", exif=exif)
    start = whole.index(b"MM\0*")
    for place, value in ((0, b"XX"), (2, b"\0\0"), (4, b"\xff\xff\xff\xff"), (8, b"\xff\xff")):
        changed = whole[: start + place] + value + whole[start + place + len(value) :]
        np.testing.assert_array_equal(read(changed), read(whole))


@pytest.mark.parametrize("compression", [1, 8])
def test_a_tiff_is_sound_whatever_its_metadata(compression):
    for tag, entry in {
        34665: (4, [2**31]),  # EXIF
        34853: (4, [7]),  # GPS
        34675: (7, [1] * 50),  # profile
        700: (1, [255] * 40),  # XMP
        34377: (1, list(b"8BIM\3\xed")),  # Photoshop
        33723: (4, [1, 2, 3]),  # IPTC
        282: (5, [0, 0]),  # density
    }.items():
        np.testing.assert_array_equal(read(tiff(RGB, 8, 2, compression=compression, tags={tag: entry})), RGB)


def test_damage_outside_the_metadata_is_still_refused():
    for format in ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "GIF"):
        whole = encoded(format)
        for share in (0.2, 0.5, 0.8):
            with pytest.raises(Refused) as refusal:
                read(whole[: int(len(whole) * share)])
            assert refusal.value.reason in ("broken", "not a picture"), (format, share)


def test_what_opens_is_what_it_was():
    """Metadata that is sound changes nothing, whatever there is of it."""
    noise = os.urandom(3000)
    for format in ("PNG", "JPEG", "WEBP", "AVIF", "TIFF"):
        plain, exif = encoded(format), Image.Exif()
        exif[0x112], exif[0x10F] = 3, "maker"
        rich = encoded(format, exif=exif, icc_profile=noise, xmp=b"<x:xmpmeta/>", comment=b"a comment")
        np.testing.assert_array_equal(read(rich), read(plain)[::-1, ::-1])
