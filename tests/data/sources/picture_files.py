"""Writers of picture files in layouts that Pillow does not write; each takes the stored numbers as they are."""

import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(samples: np.ndarray, bits: int, colour_type: int, *chunks: bytes, after: Sequence[bytes] = ()) -> bytes:
    """A PNG of integers [height, width, samples]; `chunks` go before its pixels, `after` after them."""
    height, width = samples.shape[:2]
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
    rows = b"".join(b"\0" + row for row in packed_rows(samples, bits, ">"))
    pixels = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join([header, *chunks, pixels, *after, png_chunk(b"IEND", b"")])


def packed_rows(samples: np.ndarray, bits: int, order: str) -> list[bytes]:
    """Rows of integers [height, width, samples], each packed to whole bytes; `order` is "<" or ">"."""
    height = samples.shape[0]
    if bits % 8 == 0:
        kind = {8: "u1", 16: "u2", 32: "u4"}[bits]
        return [row.tobytes() for row in (samples.reshape(height, -1) & (2**bits - 1)).astype(order + kind)]
    shifts = np.arange(bits)[::-1]
    return [np.packbits(row.reshape(-1, 1) >> shifts & 1).tobytes() for row in samples.astype(np.int64)]


def tiff(
    samples: np.ndarray,
    bits: int,
    photometric: int,
    *,
    order: str = "<",
    planar: int = 1,
    extra: Sequence[int] = (),
    compression: int = 1,
    predictor: int = 1,
    fill: int = 1,
    rows: int = 7,
    tile: int = 0,
    sample_format: int = 1,
    colours: Sequence[int] = (),
    tags: Mapping[int, tuple[int, Sequence[int]]] = {},  # noqa: B006
    big: bool = False,
) -> bytes:
    """A TIFF of integers [height, width, samples], in strips of `rows` or tiles of `tile`. `tags`: type and values."""
    height, width, count = samples.shape
    planes = [samples] if planar == 1 else [samples[..., [index]] for index in range(count)]
    pieces = []
    for plane in planes:
        for part in _tiles(plane, tile) if tile else [plane[top : top + rows] for top in range(0, height, rows)]:
            pieces.append(_compressed(_predicted(part, predictor), bits, order, compression, fill))
    where, long = (324, 325) if tile else (273, 279), 16 if big else 4
    offsets = np.cumsum([16 if big else 8, *map(len, pieces)]).tolist()
    entries = {
        **{256: (4, [width]), 257: (4, [height]), 258: (3, [bits] * count), 259: (3, [compression])},
        **{262: (3, [photometric]), 266: (3, [fill]), 277: (3, [count]), 284: (3, [planar])},
        **{where[0]: (long, offsets[:-1]), where[1]: (long, list(map(len, pieces)))},
        **({322: (3, [tile]), 323: (3, [tile])} if tile else {278: (4, [rows])}),
        **({317: (3, [predictor])} if predictor != 1 else {}),
        **({338: (3, list(extra))} if extra else {}),
        **({339: (3, [sample_format] * count)} if sample_format != 1 else {}),
        **({320: (3, list(colours))} if len(colours) else {}),
        **tags,
    }
    return _tiff_file(entries, b"".join(pieces), order, big)


def _tiff_file(entries: Mapping[int, tuple[int, Sequence[int]]], pixels: bytes, order: str, big: bool) -> bytes:
    kinds = {1: "B", 2: "B", 3: "H", 4: "I", 5: "I", 7: "B", 16: "Q"}
    pointer, mark = ("Q", struct.pack(order + "HHH", 43, 8, 0)) if big else ("I", struct.pack(order + "H", 42))
    room = struct.calcsize(pointer)
    start = len(mark) + 2 + room + len(pixels)
    start += start % 2
    head = (b"II" if order == "<" else b"MM") + mark + struct.pack(order + pointer, start)
    data = start + (8 if big else 2) + len(entries) * (4 + 2 * room) + room
    directory, outside = struct.pack(order + ("Q" if big else "H"), len(entries)), b""
    for tag, (kind, values) in sorted(entries.items()):
        body = struct.pack(f"{order}{len(values)}{kinds[kind]}", *values)
        count = len(values) // 2 if kind == 5 else len(values)
        directory += struct.pack(order + "HH" + pointer, tag, kind, count)
        if len(body) <= room:
            directory += body.ljust(room, b"\0")
        else:
            directory += struct.pack(order + pointer, data + len(outside))
            outside += body + b"\0" * (len(body) % 2)
    return (head + pixels).ljust(start, b"\0") + directory + struct.pack(order + pointer, 0) + outside


def _tiles(plane: np.ndarray, tile: int) -> list[np.ndarray]:
    height, width = plane.shape[:2]
    padded = np.pad(plane, ((0, -height % tile), (0, -width % tile), (0, 0)))
    corners = [(top, left) for top in range(0, height, tile) for left in range(0, width, tile)]
    return [padded[top : top + tile, left : left + tile] for top, left in corners]


def _predicted(samples: np.ndarray, predictor: int) -> np.ndarray:
    if predictor == 1:
        return samples
    return np.diff(samples.astype(np.int64), axis=1, prepend=0)


def _compressed(samples: np.ndarray, bits: int, order: str, compression: int, fill: int) -> bytes:
    rows = packed_rows(samples, bits, order)
    raw = b"".join(rows)
    if compression in (8, 32946):
        raw = zlib.compress(raw)
    elif compression == 5:
        raw = _lzw(raw)
    elif compression == 32773:
        raw = b"".join(_literal_packbits(row) for row in rows)
    return raw if fill == 1 else bytes(int(f"{byte:08b}"[::-1], 2) for byte in raw)


def _lzw(raw: bytes) -> bytes:
    """LZW without a single match: the table is cleared before its codes grow beyond 9 bits."""
    codes = []
    for start in range(0, len(raw), 250):
        codes += [256, *raw[start : start + 250]]
    text = "".join(f"{code:09b}" for code in [*codes, 257])
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8)


def _literal_packbits(row: bytes) -> bytes:
    parts = [row[start : start + 128] for start in range(0, len(row), 128)]
    return b"".join(bytes([len(part) - 1]) + part for part in parts)


def tga(
    pixels: np.ndarray,
    depth: int,
    *,
    kind: int = 2,
    descriptor: int = 0,
    colours: bytes = b"",
    colour_depth: int = 0,
    alpha_meaning: int | None = None,
) -> bytes:
    """An uncompressed TGA whose rows go down; `pixels` are as stored: uint8 or uint16 [height, width, ...]."""
    height, width = pixels.shape[:2]
    count = len(colours) * 8 // colour_depth if colours else 0
    head = struct.pack("<BBBHHB", 0, bool(colours), kind, 0, count, colour_depth)
    file = head + struct.pack("<HHHHBB", 0, 0, width, height, depth, descriptor | 0x20) + colours + pixels.tobytes()
    if alpha_meaning is None:
        return file
    extension = struct.pack("<H", 495) + bytes(492) + bytes([alpha_meaning])
    return file + extension + struct.pack("<II", len(file), 0) + b"TRUEVISION-XFILE.\0"


def bmp(
    samples: np.ndarray, bits: int, *, compression: int = 0, header: int = 40, masks: bytes = b"", colours: bytes = b""
) -> bytes:
    """A BMP of integers [height, width, samples]; `colours`: 4 bytes each."""
    height, width = samples.shape[:2]
    rows = b"".join(row + b"\0" * (-len(row) % 4) for row in packed_rows(samples[::-1], bits, "<"))
    used = len(colours) // 4
    head = struct.pack("<IiiHHIIiiII", header, width, height, 1, bits, compression, len(rows), 0, 0, used, 0)
    head += masks.ljust(header - 40, b"\0")
    start = 14 + len(head) + len(colours)
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + head + colours + rows


def ico(samples: np.ndarray, bits: int, *, told_bits: int | None = None, inside: bytes = b"") -> bytes:
    """An icon of integers [height, width, samples] with nothing masked, or with a picture file `inside` instead."""
    height, width = samples.shape[:2]
    if not inside:
        inside = bytearray(bmp(samples, bits)[14:])
        struct.pack_into("<i", inside, 8, 2 * height)
        inside += bytes((width + 31) // 32 * 4 * height)
    told_bits = bits if told_bits is None else told_bits
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, width, height, 0, 0, 1, told_bits, len(inside), 22) + bytes(inside)


def pcx(planes: Sequence[np.ndarray], bits: int, *, colours: bytes = b"", tail: bytes = b"", stride: int = 0) -> bytes:
    """A PCX of planes [height, width] of numbers below 64 or 192, or of 1 bit; 16 `colours` stand in its header."""
    height, width = planes[0].shape
    lines = [packed_rows(plane[..., None], bits, "<") for plane in planes]
    stride = stride or (len(lines[0][0]) + 1) // 2 * 2
    head = struct.pack("<BBBBHHHHHH", 10, 5, 1, bits, 0, 0, width - 1, height - 1, 72, 72) + colours.ljust(48, b"\0")
    head += bytes([0, len(planes)]) + struct.pack("<HH", stride, 1)
    rows = b"".join(line[row].ljust(stride, b"\0") for row in range(height) for line in lines)
    body = b"".join(bytes([0xC1, byte]) if byte >= 0xC0 else bytes([byte]) for byte in rows)
    return head.ljust(128, b"\0") + body + tail


def sgi(planes: Sequence[np.ndarray], size: int, *, dimension: int = 3, colour_map: int = 0) -> bytes:
    """An uncompressed SGI file of planes [height, width], `size` bytes a number."""
    height, width = planes[0].shape
    head = struct.pack(">HBBHHHHII", 474, 0, size, dimension, width, height, len(planes), 0, 255)
    head = head.ljust(104, b"\0") + struct.pack(">I", colour_map)
    return head.ljust(512, b"\0") + b"".join(plane[::-1].astype(f">u{size}").tobytes() for plane in planes)


def sun(samples: np.ndarray, bits: int, kind: int = 1) -> bytes:
    """A Sun raster file of integers [height, width, samples]; kind 2 is written without a run."""
    height, width = samples.shape[:2]
    rows = b"".join(row + b"\0" * (len(row) % 2) for row in packed_rows(samples, bits, "<"))
    if kind == 2:
        rows = rows.replace(b"\x80", b"\x80\0")
    return struct.pack(">8I", 0x59A66A95, width, height, bits, len(rows), kind, 0, 0) + rows


def psd(planes: Sequence[np.ndarray], mode: int, *, bits: int = 8, num_layers: int = 0, colours: bytes = b"") -> bytes:
    """An uncompressed PSD of planes [height, width]; fewer than no layers: the first further one is transparency."""
    height, width = planes[0].shape
    layers = b""
    if num_layers:
        layer = struct.pack(">hiiiiH", num_layers, 0, 0, 0, 0, 0) + b"8BIMnorm" + bytes([255, 0, 0, 0]) + bytes(4)
        layer += b"\0" * (len(layer) % 2)
        layers = struct.pack(">I", len(layer)) + layer + bytes(4)
    file = b"8BPS" + struct.pack(">H6xHIIHH", 1, len(planes), height, width, bits, mode)
    file += b"".join(struct.pack(">I", len(part)) + part for part in (colours, b"", layers)) + b"\0\0"
    return file + b"".join(b"".join(packed_rows(plane[..., None], bits, ">")) for plane in planes)
