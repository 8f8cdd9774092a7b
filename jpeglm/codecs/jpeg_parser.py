"""A strict parser of baseline JPEG: one scan, and where every MCU and block of it ends.

It entropy-decodes the scan and refuses what common decoders accept silently: truncation, stray or missing markers,
coefficients past 63, junk, padding that is not ones. Clauses are those of ITU-T T.81.
"""

import dataclasses
import functools
import math
import re
import struct
from collections.abc import Mapping, Sequence

import numpy as np

from jpeglm.errors import InputError

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

# An entry of a look-up table, indexed by the next 16 bits: how far one symbol moves us.
#   bits 0..4  length of the code with its amplitude bits
#   bits 5..8  size of the amplitude, SSSS
#   bits 9..   how many coefficients it covers; _END_OF_BLOCK for EOB; _NO_CODE where no legal code begins, the
#              length then being the number of bits that show it
_LENGTH_MASK, _SIZE_SHIFT, _SIZE_MASK, _ADVANCE_SHIFT = 31, 5, 15 << 5, 9
_END_OF_BLOCK, _NO_CODE = 128, 1024
_LONGEST_BLOCK = 64 * 31 // 8 + 8  # bytes that the reader may look past an end before it notices


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


@dataclasses.dataclass(frozen=True, eq=False)
class Scan:
    """Where everything lies in a valid file. All arrays are int64.

    Bit positions are 8 * byte offset + bit, bit 0 being a byte's most significant one. Zero bytes stuffed after FF
    count as bytes of the file; a position behind an FF is the one behind its zero byte.
    """

    height: int  # pixels
    width: int
    components: tuple[Component, ...]
    restart_interval: int  # MCUs; 0: no restart markers
    starts: np.ndarray  # [mcus] offset of the byte in which the MCU's first bit lies
    ends: np.ndarray  # [mcus] offset behind the last byte, with its stuffed zero, that holds a bit of the MCU
    block_ends: np.ndarray  # [mcus, blocks] bit position behind the last bit of each block
    _reader: "Reader" = dataclasses.field(repr=False)

    def coefficients(self) -> np.ndarray:
        """Returns the quantised coefficients, int32 [mcus, blocks, 64], in zig-zag order, DC prediction undone."""
        mcus, blocks = self.block_ends.shape
        result = self._reader.coded_values().reshape(mcus, blocks, 64)
        interval = self.restart_interval or mcus
        first_block = 0
        for component in self.components:
            own = slice(first_block, first_block + _blocks_of(component, self.components))
            for first in range(0, mcus, interval):
                differences = result[first : first + interval, own, 0]
                differences[...] = np.cumsum(differences).reshape(differences.shape)
            first_block = own.stop
        return result


def _blocks_of(component: Component, components: Sequence[Component]) -> int:
    """Number of the component's blocks in an MCU; a scan of one component is not interleaved (A.2.2)."""
    return 1 if len(components) == 1 else component.horizontal * component.vertical


@functools.lru_cache(maxsize=64)
def _lookup_table(specification: bytes, is_dc: bool) -> list[int]:
    """Makes the look-up table, 65,536 entries, of a Huffman table: 16 code counts, then symbols, as in DHT."""
    entries = np.empty(1 << 16, np.int64)
    filled, symbol_index = 0, 0
    for code_length, count in enumerate(specification[:16], start=1):
        for symbol in specification[16 + symbol_index : 16 + symbol_index + count]:
            run, size = symbol >> 4, symbol & 15
            if is_dc:
                legal, advance = symbol <= 11, 1
            elif size:
                legal, advance = size <= 10, run + 1
            else:
                legal, advance = run in (0, 15), 16 if run else _END_OF_BLOCK
            if legal:
                entry = advance << _ADVANCE_SHIFT | size << _SIZE_SHIFT | code_length + size
            else:
                entry = _NO_CODE << _ADVANCE_SHIFT | code_length
            entries[filled : filled + (1 << 16 - code_length)] = entry
            filled += 1 << 16 - code_length
        symbol_index += count
    unused = np.arange(filled, 1 << 16)
    for length in range(16, 0, -1):  # the shortest beginning that leaves all codes behind
        beyond = unused[unused >> 16 - length << 16 - length >= filled]
        entries[beyond] = _NO_CODE << _ADVANCE_SHIFT | length
    shared = {entry: entry for entry in entries.tolist()}  # equal entries as one object: a smaller table is faster
    return [shared[entry] for entry in entries.tolist()]


def parse(data: bytes) -> Scan:
    """Parses a whole baseline JPEG file of one scan, with or without tables inside.

    Huffman tables that the file does not define are those of Annex K. Quantisation tables are not needed. Any
    sampling factors and any restart interval will do. Fill bytes before markers (B.1.1.2 permits them) are refused:
    no encoder that we know writes them.

    Raises:
      JpegError: anything that is not such a file, from SOI to EOI, with nothing behind it. One line: byte offset,
        MCU (from 0), and what is wrong.
    """
    if data[:2] != b"\xff\xd8":
        raise JpegError("byte 0: no SOI marker")
    offset, frame, interval = 2, None, 0
    huffman = dict(ANNEX_K)
    while True:
        marker, body, next_offset = read_segment(data, offset)
        if marker == SOF0:
            if frame is not None:
                raise JpegError(f"byte {offset}: a second frame header")
            frame = _read_frame(body, offset)
        elif marker == DHT:
            huffman.update(read_huffman_tables(body, offset))
        elif marker == DQT:
            read_quantisation_tables(body, offset)
        elif marker == DRI:
            if len(body) != 2:
                raise JpegError(f"byte {offset}: DRI segment of {len(body)} bytes, not 2")
            interval = int.from_bytes(body)
        elif marker == SOS:
            if frame is None:
                raise JpegError(f"byte {offset}: scan without a frame header")
            height, width, components = frame
            components = _read_scan_header(body, offset, components, huffman)
            return parse_scan(data, next_offset, height, width, components, interval, huffman)
        elif marker in _REFUSED:
            raise JpegError(f"byte {offset}: {_REFUSED[marker]} JPEG is not supported, only baseline")
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE):  # APPn, COM
            raise JpegError(f"byte {offset}: marker {_name(marker)} where a header segment was expected")
        offset = next_offset


def _name(marker: int) -> str:
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
        raise JpegError(f"byte {offset}: {_name(marker)} where a header segment was expected")
    length = int.from_bytes(data[offset + 2 : offset + 4])
    if length < 2:
        raise JpegError(f"byte {offset}: segment length {length} is below 2")
    end = offset + 2 + length
    if end > len(data):
        raise JpegError(f"byte {len(data)}: the file ends inside the header")
    return marker, data[offset + 4 : end], end


def _read_frame(body: bytes, offset: int) -> tuple[int, int, tuple[Component, ...]]:
    """Reads SOF0 (B.2.2): height, width, components without their Huffman tables."""
    if len(body) < 6 or len(body) != 6 + 3 * body[5] or not body[5]:
        raise JpegError(f"byte {offset}: frame header of a wrong length")
    precision, height, width = struct.unpack(">BHH", body[:5])
    if precision != 8:
        raise JpegError(f"byte {offset}: {precision}-bit JPEG is not supported, only baseline's 8 bits")
    if not height:
        raise JpegError(f"byte {offset}: DNL (the number of lines given behind the scan) is not supported")
    if not width:
        raise JpegError(f"byte {offset}: the picture has no width")
    components = []
    for identifier, sampling, _ in zip(body[6::3], body[7::3], body[8::3], strict=True):
        component = Component(identifier, sampling >> 4, sampling & 15)
        if not (1 <= component.horizontal <= 4 and 1 <= component.vertical <= 4):
            raise JpegError(f"byte {offset}: sampling factors {sampling >> 4}x{sampling & 15} are not within 1 to 4")
        components.append(component)
    return height, width, tuple(components)


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
            # a code of ones alone is reserved, as the beginning of longer ones
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
    if sum(_blocks_of(component, read) for component in read) > 10:
        raise JpegError(f"byte {offset}: more than 10 blocks in an MCU")
    return tuple(read)


def count_mcus(height: int, width: int, components: Sequence[Component]) -> int:
    """Number of MCUs of the scan (A.2); those at the right and lower border may lie partly outside the picture."""
    if len(components) == 1:
        return math.ceil(height / 8) * math.ceil(width / 8)
    mcu_height = 8 * max(component.vertical for component in components)
    mcu_width = 8 * max(component.horizontal for component in components)
    return math.ceil(height / mcu_height) * math.ceil(width / mcu_width)


class Reader:
    """Entropy decoder (F.2.2) over a file's bytes from `scan_start` on.

    Its positions count bits of the file without the stuffed zeros; `position` and `offset` lead there and back.
    """

    def __init__(
        self,
        data: bytes,
        scan_start: int,
        components: Sequence[Component],
        huffman: Mapping[tuple[int, int], bytes],
    ):
        whole = np.frombuffer(data, np.uint8)
        stuffed = np.zeros(len(data) + 1, bool)
        stuffed[scan_start + 1 : -1] = (whole[scan_start:-1] == 0xFF) & (whole[scan_start + 1 :] == 0)
        self.origin = np.flatnonzero(~stuffed)  # offset in the file of each byte that is not stuffed; and its length
        self._index = (np.cumsum(~stuffed) - 1).tolist()
        plain = np.zeros(len(self.origin) + _LONGEST_BLOCK, np.int64)
        plain[: len(self.origin) - 1] = whole[self.origin[:-1]]
        self.plain = plain.astype(np.uint8).tobytes()
        self._windows = (plain[:-2] << 16 | plain[1:-1] << 8 | plain[2:]).tolist()  # the 24 bits from each byte on
        self._tables = [  # DC and AC table of each block of an MCU
            (_lookup_table(huffman[0, component.dc_table], True), _lookup_table(huffman[1, component.ac_table], False))
            for component in components
            for _ in range(_blocks_of(component, components))
        ]
        self.blocks = len(self._tables)
        self._entries: list[int] = []  # of every symbol read
        self._symbols: list[int] = []  # of every block read: number of symbols up to its end
        self.block_ends: list[int] = []  # of every block read: position behind its last bit

    def position(self, offset: int) -> int:
        """Position of the first bit of the byte at `offset` in the file."""
        return self._index[offset] * 8

    def offset(self, position: int) -> int:
        """Offset in the file of the byte in which the bit at `position` lies; the file's length behind its end."""
        return int(self.origin[min(position >> 3, len(self.origin) - 1)])

    def read_mcus(self, mcus: range, position: int, end: int, total: int) -> int:
        """Reads MCUs (`mcus` and `total` are for messages) and returns the position behind them.

        Raises:
          JpegError: they run past position `end`, hold bits that are no code, or a coefficient past 63.
        """
        windows, entries, symbols, block_ends = self._windows, self._entries, self._symbols, self.block_ends
        add = entries.append
        for mcu in mcus:
            for block, (dc_table, ac_table) in enumerate(self._tables):
                entry = dc_table[windows[position >> 3] >> 8 - (position & 7) & 0xFFFF]
                add(entry)
                position += entry & 31
                covered = entry >> 9
                while covered < 64:
                    entry = ac_table[windows[position >> 3] >> 8 - (position & 7) & 0xFFFF]
                    add(entry)
                    position += entry & 31
                    covered += entry >> 9
                symbols.append(len(entries))
                block_ends.append(position)
                if position > end:
                    where = f"byte {self.offset(end)}, MCU {mcu} of {total}"
                    raise JpegError(f"{where}: the data of this MCU end inside its block {block}")
                if covered == 64 and entry & _SIZE_MASK or _END_OF_BLOCK < covered < _NO_CODE:
                    continue
                where = f"byte {self.offset(position - (entry & 31))}, MCU {mcu} of {total}"
                if covered >= _NO_CODE:
                    raise JpegError(f"{where}: no Huffman code matches the bits in block {block}")
                # a run of 16 zeros up to index 63 needs a coefficient behind it, and that would be number 64
                past = covered - 1 if entry & _SIZE_MASK else covered
                raise JpegError(f"{where}: coefficient {past} of block {block} is past 63")
        return position

    def coded_values(self) -> np.ndarray:
        """Returns the values of all blocks read, int32 [blocks, 64] in zig-zag order; DC as coded, a difference."""
        entries = np.array(self._entries)
        ends = np.array(self._symbols)
        block = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))  # [symbols]
        # Lengths and runs, summed up within each block, give where a symbol ends and what its last coefficient is.
        length = np.cumsum(entries & _LENGTH_MASK)
        symbol_end = np.array(self.block_ends)[block] - (length[ends - 1][block] - length)
        covered = np.cumsum(entries >> _ADVANCE_SHIFT)
        index = covered - np.concatenate([[0], covered[ends[:-1] - 1]])[block] - 1
        size = (entries & _SIZE_MASK) >> _SIZE_SHIFT
        start = symbol_end - size
        amplitude = np.array(self._windows)[start >> 3] >> 24 - (start & 7) - size & (1 << size) - 1
        # F.2.2.1: an amplitude whose first bit is 0 stands for a negative value
        value = np.where(amplitude >> np.maximum(size - 1, 0), amplitude, amplitude + 1 - (1 << size))
        result = np.zeros((len(ends), 64), np.int32)
        result[block[size > 0], index[size > 0]] = value[size > 0]
        return result


def parse_scan(
    data: bytes,
    scan_start: int,
    height: int,
    width: int,
    components: tuple[Component, ...],
    restart_interval: int,
    huffman: Mapping[tuple[int, int], bytes],
) -> Scan:
    """Parses everything from `scan_start` to the end of the file."""
    mcus = count_mcus(height, width, components)
    interval = restart_interval or mcus
    reader = Reader(data, scan_start, components, huffman)
    starts = []  # position of each interval
    markers = re.compile(rb"\xff[^\x00]").finditer(data, scan_start)
    offset = scan_start
    for number, first in enumerate(range(0, mcus, interval)):
        last = min(first + interval, mcus) - 1
        marker = next(markers, None)
        marker_offset = marker.start() if marker else len(data)
        end = reader.position(marker_offset)
        starts.append(reader.position(offset))
        position = reader.read_mcus(range(first, last + 1), starts[-1], end, mcus)

        where = f"MCU {last} of {mcus}"
        if marker is None:
            raise JpegError(f"byte {len(data)}, {where}: the file ends without a marker behind this MCU")
        found, expected = marker.group()[1], EOI if last == mcus - 1 else RST0 + number % 8
        spare = end - position
        if spare >= 8:
            junk = f"{spare // 8} bytes of junk between this MCU and {_name(found)}; {_name(expected)} was expected"
            raise JpegError(f"byte {reader.offset(position + 7)}, {where}: {junk}")
        if spare and ~reader.plain[position >> 3] & (1 << spare) - 1:
            raise JpegError(f"byte {reader.offset(position)}, {where}: the padding behind this MCU is not all ones")
        if found != expected:
            wrong = f"marker {_name(found)} behind this MCU; {_name(expected)} was expected"
            raise JpegError(f"byte {marker_offset}, {where}: {wrong}")
        offset = marker_offset + 2
    if offset != len(data):
        raise JpegError(f"byte {offset}: {len(data) - offset} bytes behind EOI")

    origin = reader.origin
    block_ends = np.array(reader.block_ends).reshape(mcus, reader.blocks)
    mcu_starts = np.concatenate([[0], block_ends[:-1, -1]])
    mcu_starts[::interval] = starts
    return Scan(
        height=height,
        width=width,
        components=components,
        restart_interval=restart_interval,
        starts=origin[mcu_starts >> 3],
        ends=origin[block_ends[:, -1] + 7 >> 3],
        block_ends=origin[block_ends >> 3] * 8 + (block_ends & 7),
        _reader=reader,
    )
