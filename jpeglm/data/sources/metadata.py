"""Removes metadata that prevents Pillow from opening a picture file. Pixels and orientation stay as they are.

| file | removed |
|---|---|
| PNG, always | ancillary chunks but transparency, animation, and EXIF or XMP that is sound and small |
| JPEG, where it does not open | APPn and comments but JFIF, Adobe's colour transform and the orientation |
| WebP, where it does not open | all after the pixels from the first chunk on that is cut off |
| AVIF, where it does not open | EXIF: its orientation is stored elsewhere |

A wrong checksum in a PNG chunk with pixels is damage, which Pillow does not always notice.
"""

import re
import struct
import zlib
from collections.abc import Iterator

from PIL import ExifTags, Image

from jpeglm.core.errors import Refused

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = {b"IHDR", b"PLTE", b"IDAT", b"tRNS", b"acTL", b"fcTL", b"fdAT"}
_PNG_ORIENTATION = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # keywords of text
_MOST_TEXT = 1 << 20  # bytes, decompressed
_EXIF = b"Exif\0\0"


def checked(data: bytes) -> bytes:
    """A file without the parts that are always removed; raises `Refused` if a checksum shows damaged pixels."""
    return b"".join(_png_parts(data)) if data.startswith(_PNG) else data


def stripped(data: bytes) -> bytes:
    """A file that did not open, without the metadata that may be the reason; unchanged if there is none."""
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    if data[4:8] == b"ftyp":
        return re.sub(rb"(infe\x02.{7})Exif", rb"\1none", data, flags=re.DOTALL)
    return data


def _png_parts(data: bytes) -> Iterator[bytes]:
    yield _PNG
    start, after = len(_PNG), False
    while start + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        chunk = data[start : start + 12 + length]
        is_critical = not kind[0] & 32
        if len(chunk) < 12 + length:  # cut off: the decoder judges chunks with pixels
            if is_critical or kind in _PNG_PIXELS:
                yield chunk
            return
        is_sound = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])
        if kind == b"tRNS" and after:  # comes too late to have an effect
            pass
        elif kind in _PNG_PIXELS:
            if not is_sound:
                raise Refused("broken", f"a wrong checksum of the chunk {kind.decode()}")
            yield chunk
        elif (is_critical and not after) or (is_sound and _tells_orientation(kind, chunk[8:-4])):
            yield chunk
        if kind == b"IEND":
            yield chunk if after else b""
            return
        after |= kind == b"IDAT"
        start += len(chunk)


def _tells_orientation(kind: bytes, body: bytes) -> bool:
    """Whether an ancillary chunk of a PNG may have an orientation that Pillow finds and can read."""
    if kind == b"eXIf":
        return True
    if kind not in (b"tEXt", b"zTXt", b"iTXt") or not body.startswith(_PNG_ORIENTATION):
        return False
    rest, packed, method = body.partition(b"\0")[2], False, b"\0"
    if kind == b"zTXt":
        packed, method, rest = True, rest[:1], rest[1:]
    elif kind == b"iTXt":  # language and translated keyword come before the text
        packed, method, rest = rest[:1] == b"\1", rest[1:2], rest[2:].split(b"\0", 2)[-1]
    return (method == b"\0" and _unpacks_small(rest)) if packed else len(rest) <= _MOST_TEXT


def _unpacks_small(text: bytes) -> bool:
    decompressor = zlib.decompressobj()
    try:
        decompressor.decompress(text, _MOST_TEXT)
    except zlib.error:
        return False
    return not decompressor.unconsumed_tail


def _jpeg(data: bytes) -> bytes:
    kept, exif, start = [], b"", 2
    while data[start : start + 1] == b"\xff" and start + 4 <= len(data):
        marker, length = data[start + 1], int.from_bytes(data[start + 2 : start + 4])
        segment = data[start : start + 2 + length]
        if marker == 0xDA or length < 2 or len(segment) < 2 + length:  # SOS, or damage
            break
        body = segment[4:]
        if marker == 0xE1 and body.startswith(_EXIF):
            exif += body[len(_EXIF) :]
        is_whole = (marker == 0xE0 and body.startswith(b"JFIF") and len(body) >= 14) or (
            marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12
        )
        if is_whole or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(segment)
        start += len(segment)
    return b"\xff\xd8" + _orientation_segment(exif) + b"".join(kept) + data[start:]


def _orientation_segment(exif: bytes) -> bytes:
    """A JPEG segment with only the orientation from `exif`; empty if that cannot be read."""
    found, small = Image.Exif(), Image.Exif()
    try:
        found.load(_EXIF + exif)
        orientation = int(found[ExifTags.Base.Orientation])
    except Exception:  # readers raise nearly everything on damaged metadata
        return b""
    small[ExifTags.Base.Orientation] = orientation
    body = small.tobytes()
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def _webp(data: bytes) -> bytes:
    start, has_pixels = 12, False
    while start < len(data):
        kind, length = data[start : start + 4], int.from_bytes(data[start + 4 : start + 8], "little")
        end = start + 8 + length + length % 2
        if kind in (b"VP8 ", b"VP8L", b"ANMF"):
            has_pixels = True
        elif has_pixels and (end > len(data) or kind not in (b"EXIF", b"XMP ", b"ICCP")):
            return b"RIFF" + struct.pack("<I", start - 8) + data[8:start]
        start = end
    return data
