"""Writers of picture files in layouts that Pillow does not write; each takes the stored numbers as they are."""

import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(samples: np.ndarray, bits: int, colour_type: int, *chunks: bytes, behind: Sequence[bytes] = ()) -> bytes:
    """A PNG of integers [height, width, samples]; `chunks` go before its pixels, `behind` after them."""
    height, width = samples.shape[:2]
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
    rows = b"".join(b"\0" + row for row in packed_rows(samples, bits, ">"))
    pixels = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join([header, *chunks, pixels, *behind, png_chunk(b"IEND", b"")])


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
