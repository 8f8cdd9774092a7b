"""Reads the header of a baseline JPEG: frame, tables, restart interval. Clauses refer to ITU-T T.81."""

import dataclasses
import math
import struct
from collections.abc import Mapping, Sequence

from jpeglm.core.errors import InputError

SOI, EOI, SOF0, DHT, SOS, DQT, DRI, RST0 = 0xD8, 0xD9, 0xC0, 0xC4, 0xDA, 0xDB, 0xDD, 0xD0
_REFUSED = {
    0xC1: "extended sequential",
    0xC2: "progressive",
    0xC3: "lossless",
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xDE, 0xDF), "hierarchical"),
    **dict.fromkeys((0xC9, 0xCA, 0xCB, 0xCC, 0xCD, 0xCE, 0xCF), "arithmetic-coded"),
}

# Code lengths (number of codes of 1..16 bits) and symbols of the typical Huffman tables, K.3.
_DC_SYMBOLS = bytes(range(12))
_AC_LUMINANCE = (
    "01020300041105122131410613516107227114328191a1082342b1c11552d1f02433627282090a161718191a25262728292a343536373839"
    "3a434445464748494a535455565758595a636465666768696a737475767778797a838485868788898a92939495969798999aa2a3a4a5a6"
    "a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae1e2e3e4e5e6e7e8e9eaf1f2f3f4f5f6f7f8f9fa"
)
_AC_CHROMINANCE = (
    "000102031104052131061241510761711322328108144291a1b1c109233352f0156272d10a162434e125f11718191a262728292a35363738"
    "393a434445464748494a535455565758595a636465666768696a737475767778797a82838485868788898a92939495969798999aa2a3a4"
    "a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae2e3e4e5e6e7e8e9eaf2f3f4f5f6f7f8f9fa"
)
# (class, destination) as in a DHT segment: class 0 is DC, 1 is AC; destination 0 is luminance, 1 chrominance.
ANNEX_K: Mapping[tuple[int, int], bytes] = {
    (0, 0): bytes.fromhex("00010501010101010100000000000000") + _DC_SYMBOLS,
    (0, 1): bytes.fromhex("00030101010101010101010000000000") + _DC_SYMBOLS,
    (1, 0): bytes.fromhex("0002010303020403050504040000017d") + bytes.fromhex(_AC_LUMINANCE),
    (1, 1): bytes.fromhex("00020102040403040705040400010277") + bytes.fromhex(_AC_CHROMINANCE),
}


class JpegError(InputError):
    """A file that is not a valid JPEG of the kind asked for; the message names the byte offset, and the MCU."""


@dataclasses.dataclass(frozen=True)
class Component:
    """A component of a frame: its identifier, sampling factors and Huffman table destinations."""

    identifier: int
    horizontal: int
    vertical: int
    dc_table: int = 0
    ac_table: int = 0


@dataclasses.dataclass(frozen=True)
class Header:
    """The header of a file with one scan of all components."""

    height: int  # pixels
    width: int
    components: tuple[Component, ...]
    restart_interval: int  # MCUs; 0: no restart markers
    huffman: Mapping[tuple[int, int], bytes]  # by (class, destination), as ANNEX_K
    end: int  # offset of the scan's first byte

    @property
    def mcus(self) -> int:
        """Number of MCUs of the scan."""
        return count_mcus(self.height, self.width, self.components)


def read(data: bytes, quantisation_elsewhere: bool = False) -> Header:
    """Reads the header of a file of one scan, from SOI to SOS, with or without tables inside.

    Huffman tables that it does not define are those of Annex K. Quantisation tables are checked but not kept: a file
    with any table inside must define those that it names; one without tables (B.4) has them elsewhere. Fill bytes
    before markers (permitted by B.1.1.2) are refused, because no known encoder writes them.

    Args:
      data: the file, or its beginning.
      quantisation_elsewhere: whether a file with Huffman tables inside may have its quantisation tables elsewhere.

    Raises:
      JpegError: anything else, including DNL, several scans, and progressive, 12-bit, arithmetic-coded, hierarchical
        and lossless JPEG; the message names which.
    """
    if data[:2] != b"\xff\xd8":
        raise JpegError("byte 0: no SOI marker")
    offset, frame, interval = 2, None, 0
    huffman = dict(ANNEX_K)
    quantisation: set[int] | None = None  # the destinations of tables; None: no table inside
    while True:
        marker, body, next_offset = read_segment(data, offset)
        if marker == SOF0:
            if frame is not None:
                raise JpegError(f"byte {offset}: a second frame header")
            frame = _read_frame(body, offset)
        elif marker == DHT:
            huffman.update(read_huffman_tables(body, offset))
            if not quantisation_elsewhere:
                quantisation = quantisation or set()
        elif marker == DQT:
            quantisation = {*(quantisation or ()), *read_quantisation_tables(body, offset)}
        elif marker == DRI:
            if len(body) != 2:
                raise JpegError(f"byte {offset}: DRI segment of {len(body)} bytes, not 2")
            interval = int.from_bytes(body)
        elif marker == SOS:
            if frame is None:
                raise JpegError(f"byte {offset}: scan without a frame header")
            height, width, components, named = frame
            components = _read_scan_header(body, offset, components, huffman)
            if quantisation is not None and (missing := named - quantisation):
                raise JpegError(f"byte {offset}: no quantisation table {min(missing)}, which the frame header names")
            return Header(height, width, components, interval, huffman, next_offset)
        elif marker in _REFUSED:
            raise JpegError(f"byte {offset}: {_REFUSED[marker]} JPEG is not supported, only baseline")
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE):  # APPn, COM
            raise JpegError(f"byte {offset}: marker {marker_name(marker)} where a header segment was expected")
        offset = next_offset


def without_unused_tables(file: bytes) -> bytes:
    """The file without DQT and DHT segments all of whose tables no component uses: an equivalent file.

    libjpeg writes the chrominance's tables into files of one component, too, and libjxl refuses them there.

    Raises:
      JpegError: the header is not one that `read` accepts.
    """
    components = read(file).components
    offset, marker, frame = 2, SOI, b""
    segments: list[tuple[int, bytes, int, int]] = []  # marker, body, start, end
    while marker != SOS:
        start = offset
        marker, body, offset = read_segment(file, offset)
        segments.append((marker, body, start, offset))
        frame = body if marker == SOF0 else frame
    quantisation = set(frame[8::3])
    huffman = {(0, each.dc_table) for each in components} | {(1, each.ac_table) for each in components}
    kept = [file[:2]]
    for marker, body, start, end in segments:
        is_unused = (marker == DQT and not quantisation & read_quantisation_tables(body, start).keys()) or (
            marker == DHT and not huffman & read_huffman_tables(body, start).keys()
        )
        if not is_unused:
            kept.append(file[start:end])
    return b"".join(kept) + file[offset:]


def marker_name(marker: int) -> str:
    if RST0 <= marker <= RST0 + 7:
        return f"RST{marker - RST0}"
    return {SOI: "SOI", EOI: "EOI", SOS: "SOS", DHT: "DHT", DQT: "DQT"}.get(marker, f"FF{marker:02X}")


def read_segment(data: bytes, offset: int) -> tuple[int, bytes, int]:
    """Returns marker, body and end of the marker segment at `offset`."""
    if len(data) < offset + 4:
        raise JpegError(f"byte {len(data)}: the file ends inside the header")
    if data[offset] != 0xFF:
        raise JpegError(f"byte {offset}: {data[offset]:02X} where a marker was expected")
    marker = data[offset + 1]
    if marker in (0x00, 0x01, 0xFF) or RST0 <= marker <= EOI:
        raise JpegError(f"byte {offset}: {marker_name(marker)} where a header segment was expected")
    length = int.from_bytes(data[offset + 2 : offset + 4])
    if length < 2:
        raise JpegError(f"byte {offset}: segment length {length} is below 2")
    end = offset + 2 + length
    if end > len(data):
        raise JpegError(f"byte {len(data)}: the file ends inside the header")
    return marker, data[offset + 4 : end], end


def _read_frame(body: bytes, offset: int) -> tuple[int, int, tuple[Component, ...], set[int]]:
    """Reads SOF0 (B.2.2): height, width, components without their Huffman tables; quantisation tables by number."""
    if len(body) < 6 or len(body) != 6 + 3 * body[5] or not body[5]:
        raise JpegError(f"byte {offset}: frame header of a wrong length")
    precision, height, width = struct.unpack(">BHH", body[:5])
    if precision != 8:
        raise JpegError(f"byte {offset}: {precision}-bit JPEG is not supported, only baseline's 8 bits")
    if not height:
        raise JpegError(f"byte {offset}: DNL (the number of lines given after the scan) is not supported")
    if not width:
        raise JpegError(f"byte {offset}: the picture has no width")
    components: list[Component] = []
    for identifier, sampling, table in zip(body[6::3], body[7::3], body[8::3], strict=True):
        component = Component(identifier, sampling >> 4, sampling & 15)
        if not (1 <= component.horizontal <= 4 and 1 <= component.vertical <= 4):
            raise JpegError(f"byte {offset}: sampling factors {sampling >> 4}x{sampling & 15} are not within 1 to 4")
        if any(identifier == other.identifier for other in components):
            raise JpegError(f"byte {offset}: two components of the frame header are called {identifier}")
        if table > 3:
            raise JpegError(f"byte {offset}: the frame header names quantisation table {table}, which is above 3")
        components.append(component)
    return height, width, tuple(components), set(body[8::3])


def read_huffman_tables(body: bytes, offset: int) -> dict[tuple[int, int], bytes]:
    """Reads DHT (B.2.4.2): code counts and symbols by (class, destination)."""
    tables = {}
    while body:
        kind, destination, counts = body[0] >> 4, body[0] & 15, body[1:17]
        end = 17 + sum(counts)
        if len(body) < end:
            raise JpegError(f"byte {offset}: DHT segment ends inside a table")
        if kind > 1 or destination > 1:
            raise JpegError(f"byte {offset}: Huffman table class {kind}, number {destination} is not baseline")
        if sum(count << 16 - length for length, count in enumerate(counts, start=1)) >= 1 << 16:
            # an all-ones code is reserved as the prefix of longer codes
            raise JpegError(f"byte {offset}: Huffman table with more codes than its code lengths can hold")
        if kind == 0 and any(symbol > 15 for symbol in body[17:end]):
            raise JpegError(f"byte {offset}: DC Huffman table with a symbol above 15")
        tables[kind, destination], body = body[1:end], body[end:]
    return tables


def read_quantisation_tables(body: bytes, offset: int) -> dict[int, bytes]:
    """Reads DQT (B.2.4.1): 64 bytes in zig-zag order by destination."""
    tables = {}
    while body:
        if body[0] >> 4:
            raise JpegError(f"byte {offset}: 16-bit quantisation tables are not supported, only baseline's 8 bits")
        if len(body) < 65 or body[0] > 3:
            raise JpegError(f"byte {offset}: DQT segment ends inside a table, or names a table above 3")
        if 0 in body[1:65]:
            raise JpegError(f"byte {offset}: a 0 in quantisation table {body[0]}")
        tables[body[0]], body = body[1:65], body[65:]
    return tables


def _read_scan_header(
    body: bytes, offset: int, components: tuple[Component, ...], huffman: Mapping[tuple[int, int], bytes]
) -> tuple[Component, ...]:
    """Reads SOS (B.2.3): the frame's components with their Huffman tables."""
    if not body or len(body) != 4 + 2 * body[0]:
        raise JpegError(f"byte {offset}: scan header of a wrong length")
    if body[0] != len(components):
        raise JpegError(f"byte {offset}: several scans (components not interleaved) are not supported")
    if body[-3:] != b"\x00\x3f\x00":
        raise JpegError(f"byte {offset}: spectral selection or successive approximation in a baseline scan")
    read = []
    for component, identifier, tables in zip(components, body[1:-3:2], body[2:-3:2], strict=True):
        if identifier != component.identifier:
            raise JpegError(f"byte {offset}: scan names component {identifier}, frame {component.identifier}")
        component = dataclasses.replace(component, dc_table=tables >> 4, ac_table=tables & 15)
        if (0, component.dc_table) not in huffman or (1, component.ac_table) not in huffman:
            raise JpegError(f"byte {offset}: component {identifier} names a Huffman table that baseline has not")
        read.append(component)
    if sum(blocks_of(component, read) for component in read) > 10:
        raise JpegError(f"byte {offset}: more than 10 blocks in an MCU")
    return tuple(read)


def blocks_of(component: Component, components: Sequence[Component]) -> int:
    """Number of the component's blocks in an MCU; a scan of one component is not interleaved (A.2.2)."""
    return 1 if len(components) == 1 else component.horizontal * component.vertical


def count_mcus(height: int, width: int, components: Sequence[Component]) -> int:
    """Number of MCUs of the scan (A.2); those at the right and lower border may lie partly outside the picture."""
    if len(components) == 1:
        return math.ceil(height / 8) * math.ceil(width / 8)
    mcu_height = 8 * max(component.vertical for component in components)
    mcu_width = 8 * max(component.horizontal for component in components)
    return math.ceil(height / mcu_height) * math.ceil(width / mcu_width)
