"""A zoo of damaged and strange files, twenty kinds of them, and good pictures of all modes to find among them.

    python -m tests.data.sources.hostile --out=DIR [--each=50] [--good=200]

writes DIR/zoo with both and DIR/good with the good pictures alone, from one seed.
"""

import dataclasses
import io
import itertools
import os
import stat
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image

from tests.data.codecs.jpeg_tools import cjpeg
from tests.photographs import photographs

KEPT, REFUSED, EITHER = "kept", "refused", "either"
Random = np.random.Generator


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of hostile input: what must become of it, and the only reasons for which it may be refused."""

    make: Callable[[bytes, Random, int], None]  # (path without suffix, random, number): makes one file
    outcome: str
    reasons: frozenset[str] = frozenset()


KINDS: dict[str, Kind] = {}


def _kind(outcome: str, *reasons: str) -> Callable:
    def register(make: Callable) -> Callable:
        KINDS[make.__name__.strip("_").replace("_", " ")] = Kind(make, outcome, frozenset(reasons))
        return make

    return register


# Sound pictures


def picture(random: Random, mode: str = "RGB") -> Image.Image:
    """A window of a photograph, of 24 to 64 pixels a side."""
    photograph = _PHOTOGRAPHS[random.integers(len(_PHOTOGRAPHS))]
    width, height = random.integers(24, 65, 2).tolist()
    left, top = random.integers(0, 97 - np.array([width, height])).tolist()
    window = photograph.crop((left, top, left + width, top + height))
    if mode == "I;16":
        return Image.fromarray(
            np.asarray(window.convert("L"), np.uint16) * 256 + random.integers(200, dtype=np.uint16)
        )
    if mode in ("LA", "RGBA"):
        window.putalpha(photograph.convert("L").crop((0, 0, width, height)))
    return window.convert(mode)


_PHOTOGRAPHS = photographs(40, 96, 96)
_GOOD = [
    *(("png", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    *(("jpg", mode) for mode in ("L", "RGB", "CMYK")),
    *(("tif", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16")),
    *(("webp", mode) for mode in ("RGB", "RGBA")),
    *(("gif", mode) for mode in ("1", "L", "P")),
    *(("bmp", mode) for mode in ("1", "L", "P", "RGB", "RGBA")),
    *(("jp2", mode) for mode in ("L", "LA", "RGB", "RGBA")),
    *(("ppm", mode) for mode in ("1", "L", "RGB", "I;16")),
    *(("tga", mode) for mode in ("L", "P", "RGB", "RGBA")),
    *(("pcx", mode) for mode in ("1", "L", "P", "RGB")),
    *(("avif", mode) for mode in ("RGB", "RGBA")),
    ("qoi", "RGB"),
]


def encoded(image: Image.Image, suffix: str, **options) -> bytes:
    file = io.BytesIO()
    Image.init()
    image.save(file, Image.EXTENSION[f".{suffix}"], **options)
    return file.getvalue()


def _any_file(random: Random) -> tuple[bytes, str]:
    suffix, mode = _GOOD[random.integers(len(_GOOD))]
    return encoded(picture(random, mode), suffix), suffix


def _write(path: bytes, suffix: str, content: bytes) -> None:
    with open(path + b"." + suffix.encode(), "xb") as file:
        file.write(content)


# The kinds


@_kind(REFUSED, "broken", "not a picture")
def _truncated(path, random, number):
    suffix = ("png", "jpg", "webp", "gif", "tif", "bmp", "jp2", "avif", "ppm", "qoi")[number % 10]
    content = encoded(picture(random), suffix)
    _write(path, suffix, content[: max(1, int(len(content) * random.uniform(0.01, 0.9)))])


@_kind(EITHER, "broken", "not a picture", "too large", "layout", "animated", "mode I", "mode F", "mode LAB")
def _bit_flipped(path, random, number):
    content, suffix = _any_file(random)
    changed = bytearray(content)
    for _ in range(random.integers(1, 9)):
        changed[random.integers(min(len(changed), random.choice([64, 10**6])))] ^= 1 << int(random.integers(8))
    _write(path, suffix, bytes(changed))


@_kind(REFUSED, "not a picture")
def _empty(path, random, number):
    _write(path, ("jpg", "png", "txt", "webp", "tif")[number % 5], b"")


@_kind(REFUSED, "not a picture")
def _no_picture(path, random, number):
    contents = [
        *(b"A cat sat.\n" * 50, b"<html><body>404 Not Found</body></html>", b"\x7fELF" + random.bytes(500)),
        *(b"<svg xmlns='http://www.w3.org/2000/svg'/>", b'{"a": 1}', random.bytes(3000), bytes(3000), b"\xff" * 3000),
        *(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", b"PK\x03\x04" + random.bytes(300)),
    ]
    _write(path, ("jpg", "png", "txt")[number % 3], contents[number % len(contents)])


@_kind(KEPT)
def _wrong_extension(path, random, number):
    suffix, wrong = (("png", "jpg"), ("jpg", "png"), ("webp", "txt"), ("bmp", "jpeg"), ("tif", "gif"))[number % 5]
    _write(path, wrong, encoded(picture(random), suffix))


@_kind(REFUSED, "too large")
def _bomb(path, random, number):
    if number % 5 == 0:  # 90 to 400 million white pixels in some kilobytes, in earnest
        side = int(random.integers(9_500, 20_001))
        rows = zlib.compressobj(1)
        data = b"".join(rows.compress(bytes(1 + side // 8 + 1)) for _ in range(side)) + rows.flush()
        _write(path, "png", png(side, side, 1, 0, data))
    elif number % 5 == 1:  # scans that each pass over all pixels
        file = encoded(Image.new("L", (2000, 2000), int(random.integers(256))), "jpg", progressive=True)
        last = file.rindex(b"\xff\xda")
        _write(path, "jpg", file[:-2] + file[last:-2] * int(random.integers(1_000, 5_000)) + b"\xff\xd9")
    elif number % 5 == 2:  # a hole
        _write(path, "png", encoded(picture(random), "png"))
        os.truncate(path + b".png", 600 << 20)
    elif number % 5 == 3:
        file = bytearray(encoded(picture(random, "P"), "gif"))
        struct.pack_into("<HH", file, 6, 65_535, 65_535)
        _write(path, "gif", bytes(file))
    else:
        _write(path, "jpg", _jpeg_of_size(random, 65_500, 65_500))


@_kind(KEPT)
def _thin(path, random, number):
    width, height = ((1, 1), (1, 20_000), (20_000, 1), (1, 2), (3, 5_000))[number % 5]
    image = Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))
    _write(path, ("png", "jpg", "tif")[number % 3], encoded(image, ("png", "jpg", "tif")[number % 3]))


@_kind(KEPT)
def _cmyk(path, random, number):
    suffix = ("jpg", "tif")[number % 2]
    _write(path, suffix, encoded(picture(random, "CMYK"), suffix))


@_kind(KEPT)
def _sixteen_bit(path, random, number):
    suffix = ("png", "tif", "ppm")[number % 3]
    if number % 4 == 3:
        width, height = 40, 30
        rows = b"".join(b"\x00" + random.bytes(6 * width) for _ in range(height))
        _write(path, "png", png(width, height, 16, 2, zlib.compress(rows)))
    else:
        _write(path, suffix, encoded(picture(random, "I;16"), suffix))


@_kind(KEPT)
def _progressive(path, random, number):
    mode = ("RGB", "L", "CMYK")[number % 3]
    _write(path, "jpg", encoded(picture(random, mode), "jpg", progressive=True, subsampling=number % 3))


@_kind(EITHER, "broken")
def _arithmetic_coded(path, random, number):
    options = ["-arithmetic", *(["-progressive"] if number % 2 else []), *(["-grayscale"] if number % 3 == 0 else [])]
    _write(path, "jpg", cjpeg(picture(random), *options))


@_kind(REFUSED, "unreadable", "not a regular file")
def _link(path, random, number):
    link = path + b".png"
    targets = (b"..", b"nothing-there.png", os.path.basename(link), b"/", b"../..")
    os.symlink(targets[number % 5], link)


@_kind(REFUSED, "unreadable")
def _unreadable(path, random, number):
    _write(path, "png", encoded(picture(random), "png"))
    os.chmod(path + b".png", 0)


@_kind(KEPT)
def _odd_name(path, random, number):
    folder, name = os.path.split(path)
    odd = (
        *(
            b"\n",
            b"\xff\xfe\x80",
            b"-rf ",
            b"long" * 55,
            "\U0001f408\u200d\u2b1b".encode(),
            b"  ",
            b"\\n\\",
            b"%s%n{}",
        ),
        *(
            b"\x1b[2J\x1b]0;title\x07",
            "\u202egnp".encode(),
            b"\"'`$(id);",
            b"\r\t",
            b"*?[",
            "\u2028".encode(),
            b"...",
        ),
        *(b".hidden", b"C:", b"\xed\xa0\x80", "e\u0301\u00e9".encode(), b"\x7f\x01"),
    )[number % 20]
    content = encoded(picture(random), "png")
    with open(os.path.join(folder, odd + str(number).encode()), "xb") as file:
        file.write(content)


@_kind(REFUSED, "not a regular file")
def _pipe_socket_or_device(path, random, number):
    kind = (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR)[number % 3]
    try:
        os.mknod(path + b".jpg", kind | 0o644, os.makedev(1, 5) if kind == stat.S_IFCHR else 0)  # /dev/zero
    except PermissionError:  # devices are root's to make, where at all
        os.mkfifo(path + b".jpg")


@_kind(REFUSED, "not a picture")
def _folder_named_like_a_picture(path, random, number):
    os.mkdir(path + b".jpg")
    _write(path + b".jpg/inside", "png", b"nothing")


@_kind(REFUSED, "animated")
def _animated(path, random, number):
    frames = [picture(random).resize((32, 32)) for _ in range(2 + number % 5)]
    suffix = ("gif", "webp", "png")[number % 3]
    _write(path, suffix, encoded(frames[0], suffix, save_all=True, append_images=frames[1:]))


@_kind(EITHER, "broken", "not a picture", "too large", "layout", "mode I", "mode F", "mode LAB")
def _lying_tiff(path, random, number):
    image = picture(random, ("RGB", "L", "1", "CMYK", "I;16")[number % 5])
    compression = (None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg")[number // 5 % 5]
    if compression == "jpeg" and image.mode in ("1", "I;16"):
        compression = None
    content = bytearray(encoded(image, "tif", compression=compression))
    (directory,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, directory)
    for _ in range(random.integers(1, 4)):
        entry = directory + 2 + 12 * int(random.integers(count))
        lie = random.choice([0, 1, 2, 3, 255, 65_535, 2**31, 2**32 - 1, directory, entry])
        if random.random() < 0.7:
            struct.pack_into("<I", content, entry + 8, lie)  # value, or where it lies
        else:
            struct.pack_into("<HI", content, entry + 2, lie & 15, lie)  # type and count
    if number % 4 == 0:
        struct.pack_into("<I", content, directory + 2 + 12 * count, directory)  # the next page is this one
    _write(path, "tif", bytes(content))


@_kind(REFUSED, "too large", "broken", "layout", "not a picture")
def _absurd_header(path, random, number):
    side = int(random.choice([30_000, 65_535]))
    little = random.bytes(int(random.integers(1, 300)))
    absurd = (
        ("png", png(2**31 - 1, 2**31 - 1, 8, 6, zlib.compress(little))),
        ("png", png(8_000, 8_000, 8, 2, zlib.compress(little))),  # below the limit, and nearly nothing there
        ("png", png(0, side, 8, 2, little)),
        ("jpg", _jpeg_of_size(random, side, side)),
        ("jpg", _jpeg_of_size(random, 0, 40)),
        ("bmp", b"BM" + struct.pack("<IIIIiiHHII", 2**31, 0, 54, 40, side, -side, 1, 24, 0, 0) + bytes(16) + little),
        ("bmp", b"BM" + struct.pack("<IIIIiiHHII", 2**31, 0, 54, 40, 8_000, 8_000, 1, 24, 0, 0) + bytes(16) + little),
        ("qoi", b"qoif" + struct.pack(">IIBB", 2**32 - 1, 2**32 - 1, 4, 0) + little),
        ("qoi", b"qoif" + struct.pack(">IIBB", 8_000, 8_000, 3, 0)),
        ("ico", struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, 2**31, 22) + png(side, side, 8, 6, little)),
        ("ppm", b"P6 8000 8000 255\n" + little),
        ("ppm", b"P6 99999999999999999999 9 255\n" + little),
        ("tga", struct.pack("<BBBHHBHHHHBB", 0, 0, 10, 0, 0, 0, 0, 0, 65_535, 65_535, 32, 0) + little),
        (
            "webp",
            b"RIFF" + struct.pack("<I", 2**32 - 1) + b"WEBPVP8L" + struct.pack("<I", 2**31) + b"/" + b"\xff" * 40,
        ),
        ("jp2", encoded(picture(random), "jp2").replace(b"ihdr", b"ihdr\x7f\xff\xff\xff")),
        ("dds", b"DDS " + struct.pack("<IIII", 124, 4103, side, side) + bytes(108)),
        ("psd", b"8BPS" + struct.pack(">H6xHIIHH", 1, 4, 30_000, 30_000, 8, 3) + bytes(12) + little),
    )
    suffix, content = absurd[number % len(absurd)]
    _write(path, suffix, content)


@_kind(KEPT)
def _odd_metadata(path, random, number):
    junk, image = random.bytes(int(random.integers(1, 3_000))), picture(random)
    exif = Image.Exif()
    exif[0x0112] = 6
    cut = exif.tobytes()[: int(random.integers(7, 20))]
    text = zlib.compress(bytes(100 << 20), 1) if number % 6 == 5 else b""
    suffix, content = (
        ("jpg", lambda: encoded(image, "jpg", exif=cut)),
        ("png", lambda: encoded(image, "png", exif=cut)),
        ("jpg", lambda: encoded(image, "jpg", icc_profile=junk)),
        ("png", lambda: encoded(image, "png", icc_profile=junk)),
        ("jpg", lambda: encoded(image, "jpg", exif=b"Exif\x00\x00" + junk, comment=junk)),
        ("png", lambda: _with_chunk(encoded(image, "png"), b"zTXt", b"bomb\x00\x00" + text)),
    )[number % 6]
    _write(path, suffix, content())


# Parts of files


def png(width: int, height: int, bits: int, colour_type: int, data: bytes) -> bytes:
    """A PNG file around compressed `data`."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    chunks = (_chunk(b"IHDR", header), _chunk(b"IDAT", data), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _with_chunk(file: bytes, kind: bytes, body: bytes) -> bytes:
    return file[:33] + _chunk(kind, body) + file[33:]  # after IHDR


def _jpeg_of_size(random: Random, height: int, width: int) -> bytes:
    file = bytearray(encoded(picture(random), "jpg"))
    struct.pack_into(">HH", file, file.index(b"\xff\xc0") + 5, height, width)
    return bytes(file)


# The zoo


def make_good(folder: Path, count: int) -> list[str]:
    """Writes good pictures of all modes; returns their names."""
    random, names = np.random.default_rng(1), []
    for number, (suffix, mode) in zip(range(count), itertools.cycle(_GOOD), strict=False):
        names.append(f"good-{number:03d}-{mode.replace(';', '')}.{suffix}")
        (folder / names[-1]).write_bytes(encoded(picture(random, mode), suffix))
    return names


def make_hostile(folder: Path, each: int) -> None:
    """Writes `each` inputs of every kind, in a folder a kind; eleven steps apart, few show many variants."""
    for index, (name, kind) in enumerate(KINDS.items()):
        (folder / name).mkdir()
        random = np.random.default_rng((2, index))
        for number in range(0, 11 * each, 11):
            kind.make(os.fsencode(folder / name / f"{number:03d}"), random, number)


def main(_: list[str]) -> None:
    out = Path(flags.FLAGS.out)
    for folder in (out / "zoo", out / "good"):
        folder.mkdir(parents=True)
        make_good(folder, flags.FLAGS.good)
    make_hostile(out / "zoo", flags.FLAGS.each)


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "An empty folder.")
    flags.DEFINE_integer("each", 50, "Inputs of each kind.")
    flags.DEFINE_integer("good", 200, "Good pictures.")
    flags.mark_flag_as_required("out")
    app.run(main)
