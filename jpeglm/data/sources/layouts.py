"""Layouts of picture files that Pillow opens but misreads: read correctly here, or refused as "layout".

`tests/data/sources/test_layouts.py` writes files of each kind and compares the result with what was written and with
other readers. The middle column is Pillow's result without a rule here.

| layout | Pillow alone | here |
|---|---|---|
| PNG, grey of 1, 2, 4 bits with a transparent value | opaque | transparent |
| PNG, 16 bits a colour with a transparent colour | other colours transparent | transparent |
| any palette, a number beyond its end | black | refused, "broken" |
| TIFF, uncompressed planes of 16 bits | noise | read by libtiff |
| TIFF, one sample "in planes" | inversion and bit order lost | read |
| TIFF, planes of grey or palette with alpha | wrong alpha | refused |
| TIFF, 12-bit grey; 16-bit grey, white is zero | too dark; negative | read |
| TIFF, colour map of 8-bit numbers | black | read |
| TIFF, colour map of a wrong length, 8 bits with a sign | as if ordinary | refused |
| TIFF without a photometric interpretation, inks that are not CMYK | as if ordinary | refused |
| TIFF, uncompressed YCbCr with reduced chroma or coefficients of its own | as if ordinary | refused |
| TGA whose header tells of no alpha, or of one that means nothing | transparent | opaque |
| BMP, TGA: alpha that is 0 everywhere | white | opaque |
| TGA, attribute bits of 16 bits that are all the same, or in a colour map | inverted alpha | opaque |
| TGA, attribute bits of 16 bits that differ | inverted alpha | refused |
| TGA, alpha multiplied in advance, interleaved rows | as if ordinary | refused |
| BMP of 4 or 8 bits with a palette of black and white | noise | read |
| BMP, 16 bits with alpha | opaque | refused |
| ICO, its header and its picture of different depth | opaque | refused |
| ICO, alpha that is 0 everywhere | white | refused |
| ICO, a PNG inside | some transparency lost | read as a PNG |
| PSD, a fourth channel that is no transparency | transparent | opaque |
| PSD, bitmap | negative | refused |
| PSD, transparency of grey, palette or CMYK, or before further channels | opaque | refused |
| PSD, multichannel | the first channel alone | refused |
| PCX, rows longer than Pillow thinks | torn | refused |
| PCX without the palette that it needs where it belongs | grey or black | refused |
| Sun raster, 32 bits; run lengths of 1 bit | wrong colours; negative | refused |
| Sun raster converted from TIFF or IFF | as if ordinary | refused |
| SGI, one row, or a colour map | as if grey | refused |
| JPEG 2000, more than 8 bits a colour | white becomes black | refused |
| JPEG 2000, fewer than 8 bits | white becomes grey | refused |
| JPEG 2000, numbers with a sign | as if without | refused |
| GIF, an opaque picture that does not fill its screen | the rest in a colour that viewers do not show | refused |
"""

import io
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image, ImageChops, ImagePalette

from jpeglm.core.errors import Refused

if TYPE_CHECKING:  # the import of a reader would register it, in another order than Pillow does
    from PIL.GifImagePlugin import GifImageFile
    from PIL.IcoImagePlugin import IcoImageFile
    from PIL.PngImagePlugin import PngImageFile
    from PIL.TiffImagePlugin import TiffImageFile

_TIFF_PLANES = ("L", "P", "I;16", "I;16B", "RGB", "RGBA", "CMYK", "YCbCr", "LAB")  # modes whose planes can be read
_TIFF_COMMON_YCBCR = ((), (0, 255, 128, 255, 128, 255))  # ReferenceBlackWhite
_LUMA = (0.299, 0.587, 0.114)  # YCbCrCoefficients


def right(image: Image.Image, data: bytes) -> Image.Image:
    """The correct picture of `data`, given the image that Pillow opened from it lazily; raises `Refused`.

    Returns the same image if Pillow reads it correctly, and a decoded one if it had to be corrected.
    """
    rule = _RULES.get(image.format or "")
    return rule(image, data) if rule else image


def png_inside(image: Image.Image, data: bytes) -> bytes | None:
    """The PNG that an icon shows, or None."""
    if image.format != "ICO":
        return None
    entry = cast("IcoImageFile", image).ico.entry[0]
    inner = data[entry.offset : entry.offset + entry.size]
    return inner if inner.startswith(b"\x89PNG\r\n\x1a\n") else None


def grey_range(image: Image.Image) -> tuple[int, int]:
    """The values of black and white in a picture of 16-bit grey."""
    if image.format != "TIFF":
        return 0, 65_535
    tags = cast("TiffImageFile", image).tag_v2
    most = (1 << tags.get(258, (16,))[0]) - 1
    return (most, 0) if tags.get(262) == 0 else (0, most)


def check_palette(image: Image.Image) -> None:
    """Raises Refused if a decoded picture uses a number for which its palette has no colour."""
    if image.mode == "P" and image.palette:
        colours = len(image.palette.palette) // len(image.palette.mode)
        _, most = cast("tuple[int, int]", image.getextrema())  # of the one channel
        if most >= colours:
            raise Refused("broken", f"colour {most} of a palette of {colours}")


def _refuse(image: Image.Image, what: str) -> Refused:
    return Refused("layout", f"{image.format} {what}")


def _make_opaque(image: Image.Image) -> Image.Image:
    image.load()
    image.putalpha(255)
    return image


def _opaque_if_blank(image: Image.Image) -> Image.Image:
    image.load()
    is_blank = image.mode in ("LA", "RGBA") and image.getchannel("A").getextrema() == (0, 0)
    return _make_opaque(image) if is_blank else image


def _png(image: "PngImageFile", data: bytes) -> Image.Image:
    bits, colour_type = data[24], data[25]
    transparent = image.info.get("transparency")
    if transparent is None:
        return image
    if colour_type == 0 and bits < 16:  # Pillow takes the number in the file for one of 0 to 255
        most = (1 << bits) - 1
        stored = int.from_bytes(_png_chunk(data, b"tRNS")[:2])
        image.info["transparency"] = (stored & most) * 255 // most
    elif colour_type == 2 and bits == 16:
        return _png_of_wide_colours(image, data, transparent)
    return image


def _png_chunk(data: bytes, kind: bytes) -> bytes:
    start = 8
    while data[start + 4 : start + 8] != kind:
        start += 12 + int.from_bytes(data[start : start + 4])
    return data[start + 8 : start + 8 + int.from_bytes(data[start : start + 4])]


def _png_of_wide_colours(image: "PngImageFile", data: bytes, transparent: tuple[int, int, int]) -> Image.Image:
    """Pillow keeps only the high bytes, so that close colours look the same; this also reads the low ones."""
    low = Image.open(io.BytesIO(data), formats=["PNG"])
    low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
    differs = Image.new("L", image.size)
    for half, shift in ((image, 8), (low, 0)):
        for channel, value in zip(half.split(), transparent, strict=True):
            wanted = Image.new("L", image.size, value >> shift & 255)
            difference = ImageChops.difference(channel, wanted)
            differs = ImageChops.lighter(differs, difference)
    del image.info["transparency"]
    image.putalpha(differs.point(lambda value: 255 if value else 0))
    return image


def _tiff(image: "TiffImageFile", data: bytes) -> Image.Image:
    tags = image.tag_v2
    bits = tags.get(258, (1,))
    if 262 not in tags:
        raise _refuse(image, "without a photometric interpretation")
    if 2 in tags.get(339, ()) and bits[0] == 8:
        raise _refuse(image, "of signed numbers")
    if tags[262] == 5 and tags.get(332, 1) != 1:
        raise _refuse(image, "of inks that are not CMYK")
    if image.mode in ("P", "PA"):
        colours = tags[320]
        if len(colours) != 3 << bits[0]:
            raise _refuse(image, f"with a colour map of {len(colours)} numbers")
        if max(colours) < 256:
            image.palette = ImagePalette.raw("RGB;L", bytes(colours))
    if tags[262] == 6 and not image.use_load_libtiff:
        _check_plain_ycbcr(image)
    if tags.get(284, 1) == 2:
        return _tiff_planes(image, data)
    return image


def _check_plain_ycbcr(image: "TiffImageFile") -> None:
    tags = image.tag_v2
    is_common = (
        tags.get(530, (2, 2)) == (1, 1)
        and tuple(map(float, tags.get(532, ()))) in _TIFF_COMMON_YCBCR
        and np.allclose([float(value) for value in tags.get(529, _LUMA)], _LUMA, atol=1e-3)
    )
    if len(tags.get(258, ())) == 3 and not is_common:
        raise _refuse(image, "of uncompressed YCbCr with reduced chroma or coefficients of its own")


def _tiff_planes(image: "TiffImageFile", data: bytes) -> Image.Image:
    """Planes of one sample are ordinary data; several are left to libtiff, as Pillow does if they are compressed."""
    tags = image.tag_v2
    bits, photometric = tags.get(258, (1,))[0], tags[262]
    if tags.get(277, 1) == 1:
        chunky = _with_tag(data, 284, 1)
        return _tiff(cast("TiffImageFile", Image.open(io.BytesIO(chunky), formats=["TIFF"])), chunky)
    if image.mode not in _TIFF_PLANES:
        raise _refuse(image, f"of mode {image.mode} in planes")
    if image.use_load_libtiff or (image.mode in ("L", "P") and bits == 8 and photometric != 0):
        return image
    rawmode = "RGBa" if tags.get(338) == (1,) else image.mode
    if bits == 16:
        rawmode = "I;16N" if image.mode.startswith("I") else f"{rawmode};16N"
    elif bits != 8 or image.mode in ("L", "P", "YCbCr"):
        raise _refuse(image, f"of mode {image.mode} in planes of {bits} bits")
    (tile, *_), size = image.tile, image.size
    args = (rawmode, False, tags.offset)
    image.tile = [tile._replace(codec_name="libtiff", extents=(0, 0, *size), offset=0, args=args)]
    image.use_load_libtiff = True
    return image


def _with_tag(data: bytes, tag: int, value: int) -> bytes:
    """A TIFF with another value of a tag that its first directory has as a single short number, or has not."""
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    pointer, size = ("Q", 20) if big else ("I", 12)
    (start,) = struct.unpack_from(order + pointer, data, 8 if big else 4)
    number = "Q" if big else "H"
    (count,) = struct.unpack_from(order + number, data, start)
    changed = bytearray(data)
    for entry in range(count):
        at = start + struct.calcsize(order + number) + size * entry
        if struct.unpack_from(order + "H", data, at)[0] == tag:
            struct.pack_into(order + "H", changed, at + size - struct.calcsize(order + pointer), value)
    return bytes(changed)


def _tga(image: Image.Image, data: bytes) -> Image.Image:
    depth, descriptor, map_depth = data[16], data[17], data[7]
    if descriptor & 0xC0:
        raise _refuse(image, "of interleaved rows")
    if image.mode == "P":
        palette = image.palette
        if palette and palette.mode == "RGBA" and (map_depth == 16 or not descriptor & 15):
            rawmode = {16: "BGR;15", 32: "BGRX"}[map_depth]
            image.palette = ImagePalette.raw(rawmode, palette.palette)
        return image
    if image.mode not in ("LA", "RGBA"):
        return image
    if depth == 16 and image.mode == "RGBA":
        image.load()
        if len(set(image.getchannel("A").getextrema())) > 1:
            raise _refuse(image, "of 16 bits whose attribute bits differ")
        return _make_opaque(image)
    meaning = _tga_alpha(data)
    if meaning == 4:
        raise _refuse(image, "of alpha multiplied in advance")
    if not descriptor & 15 or meaning in (0, 1, 2):
        return _make_opaque(image)
    return _opaque_if_blank(image)


def _tga_alpha(data: bytes) -> int | None:
    """The kind of alpha according to the file's extension area; None without one."""
    footer = data[-26:]
    if not footer.endswith(b"TRUEVISION-XFILE.\0"):
        return None
    extension = int.from_bytes(footer[:4], "little")
    return data[extension + 494] if extension and extension + 494 < len(data) else None


def _bmp(image: Image.Image, data: bytes) -> Image.Image:
    header, bits = int.from_bytes(data[14:18], "little"), int.from_bytes(data[28:30], "little")
    if header == 12:
        return image
    compression, colours = struct.unpack_from("<I", data, 30)[0], struct.unpack_from("<I", data, 46)[0]
    if bits == 16 and compression == 3 and header >= 56 and any(data[66:70]):
        raise _refuse(image, "of 16 bits with alpha")
    if bits in (4, 8) and image.mode == "1":  # a palette of black and white: Pillow takes the numbers for bits
        all_colours = Image.open(io.BytesIO(data[:46] + bytes(4) + data[50:]), formats=["BMP"])
        all_colours.load()
        if all_colours.getextrema()[1] >= colours:
            raise Refused("broken", f"colour {all_colours.getextrema()[1]} of a palette of {colours}")
        return all_colours
    return _opaque_if_blank(image) if image.mode == "RGBA" else image


def _ico(image: "IcoImageFile", data: bytes) -> Image.Image:
    entry = image.ico.entry[0]
    stored = int.from_bytes(data[entry.offset + 14 : entry.offset + 16], "little")
    if stored != entry.bpp and not (entry.bpp == 0 and stored < 32):
        raise _refuse(image, f"whose header says {entry.bpp} bits and whose picture {stored}")
    image.load()
    if stored == 32 and image.getchannel("A").getextrema() == (0, 0):
        raise _refuse(image, "of 32 bits whose alpha is 0 everywhere")
    return image


def _psd(image: Image.Image, data: bytes) -> Image.Image:
    channels, mode = struct.unpack_from(">H", data, 12)[0], struct.unpack_from(">H", data, 24)[0]
    if mode in (0, 7):
        raise _refuse(image, ("of 1 bit", "of several channels without a meaning")[mode == 7])
    start = 26
    for _ in range(2):  # colours, resources
        start += 4 + int.from_bytes(data[start : start + 4])
    (size, layers_size), layers = struct.unpack_from(">II", data, start), data[start + 8 : start + 10]
    # a negative number of layers: the first channel after the colours is the transparency of the whole
    is_transparent = bool(size and layers_size) and int.from_bytes(layers, signed=True) < 0
    if is_transparent and image.mode != "RGBA" and channels > len(image.getbands()):
        raise _refuse(image, f"of mode {image.mode} with transparency")
    return image if is_transparent or image.mode != "RGBA" else _make_opaque(image)


def _pcx(image: Image.Image, data: bytes) -> Image.Image:
    version, bits, planes = data[1], data[3], data[65]
    stored = int.from_bytes(data[66:68], "little")
    least = (image.width * bits + 7) // 8
    if stored not in (least, least + least % 2):
        raise _refuse(image, f"of rows of {stored} bytes for {image.width} pixels")
    if bits == 8 and planes == 1 and data[-769:-768] != b"\x0c":
        raise _refuse(image, "of 8 bits without a palette at its end")
    if bits == 1 and planes > 1 and (version == 3 or not any(data[16:64])):
        raise _refuse(image, "of several planes without a palette")
    return image


def _sun(image: Image.Image, data: bytes) -> Image.Image:
    depth, kind = struct.unpack_from(">I", data, 12)[0], struct.unpack_from(">I", data, 20)[0]
    if depth == 32 or kind in (4, 5) or (depth == 1 and kind == 2):
        raise _refuse(image, f"of {depth} bits and type {kind}")
    return image


def _sgi(image: Image.Image, data: bytes) -> Image.Image:
    if int.from_bytes(data[4:6]) == 1 or any(data[104:108]):
        raise _refuse(image, "of one row or with a colour map")
    return image


def _jpeg2000(image: Image.Image, data: bytes) -> Image.Image:
    size = data.find(b"\xff\x4f\xff\x51")  # SOC and SIZ
    if size < 0:
        raise Refused("broken", "JPEG2000 without a SIZ marker")
    (count,) = struct.unpack_from(">H", data, size + 40)
    depths = data[size + 42 : size + 42 + 3 * count : 3]
    if any(depth & 128 for depth in depths) or (count > 1 and max(depths) > 7) or min(depths) < 7:
        raise _refuse(image, "of signed numbers, or more or fewer bits a colour than 8")
    return image


def _gif(image: "GifImageFile", data: bytes) -> Image.Image:
    fills = not image.tile or image.tile[0].extents == (0, 0, *image.size)
    if not fills and "transparency" not in image.info and not image.is_animated:
        raise _refuse(image, "whose opaque picture does not fill its screen")
    return image


_RULES: dict[str, Callable[[Any, bytes], Image.Image]] = {  # each gets the image class of its format
    "BMP": _bmp,
    "GIF": _gif,
    "ICO": _ico,
    "JPEG2000": _jpeg2000,
    "PCX": _pcx,
    "PNG": _png,
    "PSD": _psd,
    "SGI": _sgi,
    "SUN": _sun,
    "TGA": _tga,
    "TIFF": _tiff,
}
