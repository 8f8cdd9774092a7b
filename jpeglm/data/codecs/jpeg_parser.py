"""A strict parser of baseline JPEG with one scan; it locates the end of every MCU and block.

It entropy-decodes the scan and refuses what common decoders accept silently: truncation, stray or missing markers,
coefficients past 63, junk, padding that is not ones. Clauses refer to ITU-T T.81.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence

import numpy as np

from jpeglm.data.codecs import jpeg_header
from jpeglm.data.codecs.jpeg_header import EOI, RST0, Component, Header, JpegError, blocks_of, marker_name

# An entry of a look-up table, indexed by the next 16 bits: what one symbol consumes.
#   bits 0..4  length of the code with its amplitude bits
#   bits 5..8  size of the amplitude, SSSS
#   bits 9..   how many coefficients it covers; _END_OF_BLOCK for EOB; _NO_CODE if no legal code begins, the
#              length then being the number of bits that show it
_LENGTH_MASK, _SIZE_SHIFT, _SIZE_MASK, _ADVANCE_SHIFT = 31, 5, 15 << 5, 9
_END_OF_BLOCK, _NO_CODE = 128, 1024
_LONGEST_BLOCK = 64 * 31 // 8 + 8  # bytes that the reader may read past an end before it notices


@dataclasses.dataclass(frozen=True, eq=False)
class Scan:
    """The layout of a valid file. All arrays are int64.

    Bit positions are 8 * byte offset + bit, bit 0 being a byte's most significant one. Zero bytes stuffed after FF
    count as bytes of the file; a position after an FF is the one after its zero byte.
    """

    height: int  # pixels
    width: int
    components: tuple[Component, ...]
    restart_interval: int  # MCUs; 0: no restart markers
    starts: np.ndarray  # [mcus] offset of the byte in which the MCU's first bit lies
    ends: np.ndarray  # [mcus] offset after the last byte, with its stuffed zero, that holds a bit of the MCU
    block_ends: np.ndarray  # [mcus, blocks] bit position after the last bit of each block
    _reader: "Reader" = dataclasses.field(repr=False)

    def coefficients(self) -> np.ndarray:
        """Returns the quantised coefficients, int32 [mcus, blocks, 64], in zig-zag order, DC prediction undone."""
        mcus, blocks = self.block_ends.shape
        result = self._reader.coded_values().reshape(mcus, blocks, 64)
        interval = self.restart_interval or mcus
        first_block = 0
        for component in self.components:
            own = slice(first_block, first_block + blocks_of(component, self.components))
            for first in range(0, mcus, interval):
                differences = result[first : first + interval, own, 0]
                differences[...] = np.cumsum(differences).reshape(differences.shape)
            first_block = own.stop
        return result

    @property
    def has_idle_zero_runs(self) -> bool:
        """Whether a run of 16 zeros comes before the end of a block: legal, but no encoder writes it."""
        return self._reader.has_idle_zero_runs()


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
    for length in range(16, 0, -1):  # finally: the shortest prefix that belongs to no code
        beyond = unused[unused >> 16 - length << 16 - length >= filled]
        entries[beyond] = _NO_CODE << _ADVANCE_SHIFT | length
    shared = {entry: entry for entry in entries.tolist()}  # equal entries share one object: a smaller table is faster
    return [shared[entry] for entry in entries.tolist()]


class Reader:
    """Entropy decoder (F.2.2) over a file's bytes from `scan_start` on.

    Its positions count bits of the file without the stuffed zeros; `position` and `offset` convert.
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
        self.origin = np.flatnonzero(~stuffed)  # file offset of each byte that is not stuffed, then the length
        self._index = (np.cumsum(~stuffed) - 1).tolist()
        plain = np.zeros(len(self.origin) + _LONGEST_BLOCK, np.int64)
        plain[: len(self.origin) - 1] = whole[self.origin[:-1]]
        self.plain = plain.astype(np.uint8).tobytes()
        self._windows = (plain[:-2] << 16 | plain[1:-1] << 8 | plain[2:]).tolist()  # the 24 bits from each byte on
        self._tables = [  # DC and AC table of each block of an MCU
            (_lookup_table(huffman[0, component.dc_table], True), _lookup_table(huffman[1, component.ac_table], False))
            for component in components
            for _ in range(blocks_of(component, components))
        ]
        self.blocks = len(self._tables)
        self._entries: list[int] = []  # of every symbol read
        self._symbols: list[int] = []  # of every block read: number of symbols up to its end
        self.block_ends: list[int] = []  # of every block read: position after its last bit

    def position(self, offset: int) -> int:
        """Position of the first bit of the byte at `offset` in the file."""
        return self._index[offset] * 8

    def offset(self, position: int) -> int:
        """Offset in the file of the byte in which the bit at `position` lies; the file's length after its end."""
        return int(self.origin[min(position >> 3, len(self.origin) - 1)])

    def read_mcus(self, mcus: range, position: int, end: int, total: int) -> int:
        """Reads `mcus` (their numbers and `total` are for messages) and returns the position after them.

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
                # a run of 16 zeros up to index 63 needs a coefficient after it, which would be number 64
                past = covered - 1 if entry & _SIZE_MASK else covered
                raise JpegError(f"{where}: coefficient {past} of block {block} is past 63")
        return position

    def has_idle_zero_runs(self) -> bool:
        """Whether any EOB follows a run of 16 zeros."""
        advance, size = (np.array(self._entries) >> _ADVANCE_SHIFT), np.array(self._entries) & _SIZE_MASK
        return bool(np.any((advance[:-1] == 16) & (size[:-1] == 0) & (advance[1:] == _END_OF_BLOCK)))

    def coded_values(self) -> np.ndarray:
        """Returns the values of all blocks read, int32 [blocks, 64] in zig-zag order; DC as coded, a difference."""
        entries = np.array(self._entries)
        ends = np.array(self._symbols)
        block = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))  # [symbols]
        # Cumulative lengths and runs within each block give each symbol's end and its last coefficient.
        length = np.cumsum(entries & _LENGTH_MASK)
        symbol_end = np.array(self.block_ends)[block] - (length[ends - 1][block] - length)
        covered = np.cumsum(entries >> _ADVANCE_SHIFT)
        index = covered - np.concatenate([[0], covered[ends[:-1] - 1]])[block] - 1
        size = (entries & _SIZE_MASK) >> _SIZE_SHIFT
        start = symbol_end - size
        amplitude = np.array(self._windows)[start >> 3] >> 24 - (start & 7) - size & (1 << size) - 1
        # F.2.2.1: an amplitude whose first bit is 0 is negative
        value = np.where(amplitude >> np.maximum(size - 1, 0), amplitude, amplitude + 1 - (1 << size))
        result = np.zeros((len(ends), 64), np.int32)
        result[block[size > 0], index[size > 0]] = value[size > 0]
        return result


def parse(data: bytes) -> Scan:
    """Parses a complete baseline JPEG file of one scan, with any sampling factors and restart interval.

    Raises:
      JpegError: anything that is not such a file, from SOI to EOI, with nothing after it. One line: byte offset,
        MCU (from 0), and what is wrong.
    """
    return parse_scan(data, jpeg_header.read(data))


def parse_scan(data: bytes, header: Header) -> Scan:
    """Parses everything from the end of the header to the end of the file."""
    mcus, components, scan_start = header.mcus, header.components, header.end
    interval = header.restart_interval or mcus
    reader = Reader(data, scan_start, components, header.huffman)
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
            raise JpegError(f"byte {len(data)}, {where}: the file ends without a marker after this MCU")
        found, expected = marker.group()[1], EOI if last == mcus - 1 else RST0 + number % 8
        spare = end - position
        if spare >= 8:
            junk = f"{spare // 8} bytes of junk between this MCU and {marker_name(found)}"
            wrong = f"{junk}; {marker_name(expected)} was expected"
            raise JpegError(f"byte {reader.offset(position + 7)}, {where}: {wrong}")
        if spare and ~reader.plain[position >> 3] & (1 << spare) - 1:
            raise JpegError(f"byte {reader.offset(position)}, {where}: the padding after this MCU is not all ones")
        if found != expected:
            wrong = f"marker {marker_name(found)} after this MCU; {marker_name(expected)} was expected"
            raise JpegError(f"byte {marker_offset}, {where}: {wrong}")
        offset = marker_offset + 2
    if offset != len(data):
        raise JpegError(f"byte {offset}: {len(data) - offset} bytes after EOI")

    origin = reader.origin
    block_ends = np.array(reader.block_ends).reshape(mcus, reader.blocks)
    mcu_starts = np.concatenate([[0], block_ends[:-1, -1]])
    mcu_starts[::interval] = starts
    return Scan(
        height=header.height,
        width=header.width,
        components=components,
        restart_interval=header.restart_interval,
        starts=origin[mcu_starts >> 3],
        ends=origin[block_ends[:, -1] + 7 >> 3],
        block_ends=origin[block_ends >> 3] * 8 + (block_ends & 7),
        _reader=reader,
    )
