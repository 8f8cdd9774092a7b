"""The language of legal baseline JPEG files of one header, as an automaton over bytes.

Once its tables are known, a scan is a regular language over bits: Huffman codes and amplitudes block by block, no
coefficient past 63, ones as padding, a zero after each FF, restart markers in order, as many MCUs as the picture has,
EOI. `next_bit` is the readable definition of an MCU, bit by bit. `JpegGrammar` is the same automaton, minimised and
composed over bytes: one table and a few counters, which step many files at once, also on a device.

Runs of 16 zeros before the end of a block are legal but excluded, because no encoder writes them. The range of DC
values is not checked. Only the code for the header (jpeg_header.py) is shared with the strict parser; codes, blocks
and markers are implemented here independently, so that each can be tested against the other.
"""

import functools
import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from jpeglm.core.files import replacing
from jpeglm.data.codecs import jpeg_header
from jpeglm.data.codecs.jpeg_header import EOI, RST0, JpegError

############################ An MCU, bit by bit ############################


class Bit(NamedTuple):
    """The state of a reader between two bits of an MCU."""

    block: int  # of the MCU
    coefficient: int = 0  # the next one, in zig-zag order; 0 is DC
    after_zeros: bool = False  # whether a run of 16 zeros precedes it, so that the block may not end here
    code: str = ""  # bits of a Huffman code read so far
    amplitude: int = 0  # remaining bits of the last code's amplitude


FIRST_BIT = Bit(0)
END = "end"  # of the MCU


class BlockTables:
    """The Huffman codes allowed at each point of a block: those after which its end can still be reached.

    Attributes, by (coefficient, after_zeros) as in `Bit`:
      symbols: for each code, the index after its coefficient (64: the block ends), whether it is a run of 16 zeros,
        and how many bits of amplitude follow.
      beginnings: the proper prefixes of these codes.
    """

    def __init__(self, dc: bytes, ac: bytes):
        """From a DC and an AC table: 16 code counts, then symbols, as in DHT."""
        self.symbols: dict[tuple[int, bool], dict[str, tuple[int, bool, int]]] = {}
        ac_codes, dc_codes = huffman_codes(ac), huffman_codes(dc)
        for index in range(63, 0, -1):
            for after_zeros in (False, True):
                found = {code: self._read(symbol, index, after_zeros) for code, symbol in ac_codes.items()}
                self.symbols[index, after_zeros] = {code: what for code, what in found.items() if what}
        sizes = {code: (1, False, size) for code, size in dc_codes.items() if size <= 11}  # F.1.2.1, for 8 bits
        self.symbols[0, False] = sizes if self.symbols[1, False] else {}
        if not self.symbols[0, False]:
            raise JpegError("the header's Huffman tables cannot write any block")
        self.beginnings = {
            place: {code[:length] for code in codes for length in range(1, len(code))}
            for place, codes in self.symbols.items()
        }

    def _read(self, symbol: int, index: int, after_zeros: bool) -> tuple[int, bool, int] | None:
        """The effect of an AC symbol at `index` (F.1.2.2), or None if it is illegal or cannot lead to an end."""
        run, size = symbol >> 4, symbol & 15
        if size:
            after, zeros = index + run + 1, False
            is_legal = size <= 10
        elif run == 15:
            after, zeros = index + 16, True
            is_legal = after <= 63
        else:
            after, zeros = 64, False
            is_legal = run == 0 and not after_zeros
        if is_legal and (after == 64 or after < 64 and self.symbols[after, zeros]):
            return after, zeros, size
        return None


def huffman_codes(specification: bytes) -> dict[str, int]:
    """Symbols by code, as strings of 0 and 1 (C.2), from 16 code counts and the symbols, as in DHT."""
    codes, code, symbols = {}, 0, iter(specification[16:])
    for length, count in enumerate(specification[:16], start=1):
        for _ in range(count):
            codes[f"{code:0{length}b}"] = next(symbols)
            code += 1
        code <<= 1
    return codes


def next_bit(at: Bit, bit: int, blocks: Sequence[BlockTables]) -> Bit | str | None:
    """The state after reading `bit` at `at`: another `Bit`, END, or None if the bit is illegal.

    `blocks`: the tables of each block of an MCU.
    """
    if at.amplitude:
        at = at._replace(amplitude=at.amplitude - 1)
    else:
        tables, place, code = blocks[at.block], (at.coefficient, at.after_zeros), at.code + str(bit)
        if code in tables.beginnings[place]:
            return at._replace(code=code)
        if code not in tables.symbols[place]:
            return None
        index, zeros, size = tables.symbols[place][code]
        at = Bit(at.block, index, zeros, amplitude=size)
    if at.coefficient == 64 and not at.amplitude:
        return Bit(at.block + 1) if at.block + 1 < len(blocks) else END
    return at


############################ The same automaton as tables ############################

_FORMAT = 1  # version of the files on disk
_ENDS_SHIFT = 24  # an entry has the next state in its low bits, and above them how many MCUs the byte ended
_ILLEGAL = -1


def minimise(blocks: Sequence[BlockTables]) -> tuple[np.ndarray, list[Bit]]:
    """The minimal set of states of an MCU.

    The automaton has no cycles, so a state is identified by its two successors, and one pass from the end suffices.

    Returns:
      int32 [states, 2], the state after each bit; the number of states means END, -1 illegal. State 0 begins an MCU.
      Also, for each state, one `Bit` that it represents.
    """
    # Numbered from the end (END is 0); reversed below, so that the start becomes 0 and END the highest.
    states: dict[Bit | str | None, int] = {None: _ILLEGAL, END: 0}
    known: dict[tuple[int, int], int] = {}
    representatives: list[Bit] = []
    stack = [(FIRST_BIT, next_bit(FIRST_BIT, 0, blocks), next_bit(FIRST_BIT, 1, blocks))]
    while stack:
        at, *after = stack[-1]
        unknown = [place for place in after if isinstance(place, Bit) and place not in states]
        if unknown:
            stack += [(place, next_bit(place, 0, blocks), next_bit(place, 1, blocks)) for place in unknown]
            continue
        stack.pop()
        pair = states[after[0]], states[after[1]]
        if pair not in known:
            known[pair] = len(known) + 1
            representatives.append(at)
        states[at] = known[pair]
    count = len(known)
    pairs = np.array(list(known), np.int32)
    return np.where(pairs == _ILLEGAL, _ILLEGAL, count - pairs)[::-1].copy(), representatives[::-1]


def compose(bits: np.ndarray, classes: int) -> np.ndarray:
    """The automaton over bytes, from the states of `minimise`.

    In class 0 the interval ends with the current MCU, and ones pad its last byte. In class c, c more MCUs follow; in
    the last class, more than one byte can end.

    Returns:
      int32 [classes * states, 256], class by class: the next state (the number of states if the interval ended), and,
      shifted by _ENDS_SHIFT, how many MCUs ended; -1 for an illegal byte.
    """
    states = len(bits)
    padding, dead = classes * states, classes * states + 1
    steps = np.full((classes * states + 2, 2), dead)
    for c in range(classes):
        after = np.where(bits == states, padding if c == 0 else (c - 1) * states, c * states + bits)
        steps[c * states : (c + 1) * states] = np.where(bits == _ILLEGAL, dead, after)
    steps[padding] = dead, padding
    at = np.arange(classes * states)[:, None]
    for _ in range(8):  # composes the bits of a byte, most significant first
        at = steps[at].reshape(len(at), -1)
    began = (np.arange(classes * states) // states)[:, None]
    ends = np.where(at == padding, began + 1, began - at // states)
    entries = np.where(at == padding, states, at % states) | ends << _ENDS_SHIFT
    return np.where(at == dead, _ILLEGAL, entries).astype(np.int32)


def bytes_to_end(bits: np.ndarray) -> np.ndarray:
    """The fewest bytes, int32 [states], from each state to the end of an MCU that ends its interval."""
    states, entries = len(bits), compose(bits, 1)
    following = np.where(entries == _ILLEGAL, states + 1, entries & (1 << _ENDS_SHIFT) - 1)
    cost = 1 + (np.arange(256) == 0xFF)  # a zero is stuffed after FF
    far = 1 << 20
    distance = np.full(states + 2, far, np.int32)
    distance[states] = 0
    while True:
        shorter = np.min(distance[following] + cost, axis=1, initial=far)
        if np.array_equal(shorter, distance[:states]):
            return shorter.astype(np.int32)
        distance[:states] = shorter


def shortest_mcu(bits: np.ndarray) -> list[int]:
    """The states before each bit of a shortest MCU."""
    states = len(bits)
    far = 1 << 20
    distance = [far] * states + [0, far]  # index -1, for illegal bits, is the last entry
    for state in range(states - 1, -1, -1):  # successors have higher numbers
        distance[state] = 1 + min(distance[following] for following in bits[state].tolist())
    path = [0]
    while distance[path[-1]] > 1:
        path.append(min(bits[path[-1]].tolist(), key=distance.__getitem__))
    return path


class Tables(NamedTuple):
    """The tables of `JpegGrammar` for one choice of Huffman tables and sampling factors."""

    table: np.ndarray  # from `compose`
    distance: np.ndarray  # from `bytes_to_end`
    mcu_bytes: np.ndarray  # [], bytes that suffice for an MCU, whichever bit of a byte it begins at


def _build(blocks: tuple[tuple[bytes, bytes], ...], restarts_each: bool) -> Tables:
    """The tables; arguments as of `_tables`."""
    made = {pair: BlockTables(*pair) for pair in blocks}
    bits, _ = minimise([made[pair] for pair in blocks])
    distance, shortest = bytes_to_end(bits), shortest_mcu(bits)
    if restarts_each:
        return Tables(compose(bits, 1), distance, np.array(distance[0]))
    most_ends = 1 + 7 // len(shortest)  # in one byte: one after its first bit, then as many as fit
    return Tables(compose(bits, 1 + most_ends), distance, np.max(distance[shortest[:8]]))


@functools.lru_cache(maxsize=4)
def _tables(blocks: tuple[tuple[bytes, bytes], ...], restarts_each: bool) -> Tables:
    """The tables, from a cache on disk if they were made before.

    Args:
      blocks: specifications of the DC and AC table of each block of an MCU.
      restarts_each: whether every MCU ends its interval.
    """
    specification = hashlib.sha256(repr((_FORMAT, blocks, restarts_each)).encode()).hexdigest()
    home = os.path.expanduser("~")  # returns "~" if there is no home, as in a container without users
    default = tempfile.gettempdir() if home == "~" else os.path.join(home, ".cache")
    folder = Path(os.environ.get("XDG_CACHE_HOME") or default) / "jpeglm"
    path = folder / f"jpeg-grammar-{specification[:24]}.npz"
    try:
        with np.load(path) as file:
            if file.zip.testzip():  # numpy may stop early at a damaged shape, and then verifies no checksum
                raise ValueError("wrong checksum")
            return Tables(**file)
    except FileNotFoundError:
        pass
    except Exception as error:  # a damaged zip file raises many kinds of errors
        logging.warning("%s cannot be read (%s): made again", path, error)
    tables = _build(blocks, restarts_each)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as beside, open(beside, "wb") as file:
            np.savez(file, **tables._asdict())
    except OSError as error:
        logging.warning("the tables of the JPEG grammar are not kept: %s", error)
    return tables


def _next_states(entries: np.ndarray) -> np.ndarray:
    return np.unique(entries[entries != _ILLEGAL] & (1 << _ENDS_SHIFT) - 1)


############################ Whole files ############################


class Place(NamedTuple):
    """The state of a reader between two bytes of a file, or of many files (arrays of one shape)."""

    state: Any  # int32; `JpegGrammar` says what its numbers mean
    mcus: Any  # int32, ended so far
    stuffed: Any  # bool, whether the last byte was an FF after which a zero must come


class Lookup(NamedTuple):
    """The arrays for `step` and `distance`."""

    rows: Any  # int32 [rows, 256], by `step`
    distances: Any  # int32 [states], by `distance`


_STATE_BITS, _MCU_BITS = 20, 10  # bits of a packed place; one more for `stuffed`


class JpegGrammar:
    """All legal files of one header, byte by byte: a `Grammar`.

    `step` reads a file from `start`; it is complete when the state is `done`. That end can be reached from every
    place, and `distance` bounds the bytes it takes.

    Attributes:
      mcus: of the picture.
      interval: MCUs between two restart markers; all of them if there are no markers.
      done: the state after EOI.
      in_header: the first state of the header; these states have the highest numbers.
      rows, distances: as in `Lookup`.
    """

    def __init__(self, header: bytes, tables: bytes = b""):
        """The grammar of files that begin with `header`, from SOI to SOS.

        Args:
          header: of every file.
          tables: DHT segments that are not in the files, if they are not those of Annex K.

        Raises:
          JpegError: not such a header, or not one of a sequential baseline JPEG with one scan.
        """
        read = jpeg_header.read(header[:2] + tables + header[2:], quantisation_elsewhere=True)
        if read.end != len(header) + len(tables):
            raise JpegError(f"byte {read.end - len(tables)}: the header goes on after SOS")
        self.mcus = read.mcus
        self.interval = min(read.restart_interval or read.mcus, read.mcus)
        blocks = tuple(
            (read.huffman[0, component.dc_table], read.huffman[1, component.ac_table])
            for component in read.components
            for _ in range(jpeg_header.blocks_of(component, read.components))
        )
        found = _tables(blocks, self.interval == 1)
        self._states, self._mcu_bytes = len(found.distance), int(found.mcu_bytes)
        self._classes = len(found.table) // self._states
        # After the states of an MCU come: before a marker, inside it, after EOI, and before each byte of the header.
        self._marker = self._states + 1
        self.done = self._states + 2
        self.in_header = self._states + 3
        self.start = Place(np.int32(self.in_header), np.int32(0), np.bool_(False))
        self.end = Place(np.int32(self.done), np.int32(self.mcus), np.bool_(False))
        states = self.in_header + np.arange(len(header), dtype=np.int32)
        self.header = Place(states, np.zeros_like(states), np.zeros(len(states), bool))
        others = np.full((3 + len(header), 256), _ILLEGAL, np.int32)
        others[0, 0xFF] = self._marker
        others[1, RST0 : RST0 + 8] = 0
        others[1, EOI] = self.done
        for offset, byte in enumerate(header):
            others[3 + offset, byte] = self.in_header + offset + 1 if offset + 1 < len(header) else 0
        self.rows = np.concatenate([found.table, others])
        # Added to the result of `distance`: complete MCUs, including the current one, and complete markers.
        self.distances = np.concatenate(
            [found.distance - self._mcu_bytes, [0, -1, -2], np.arange(len(header), 0, -1)], dtype=np.int32
        )

    def lookup(self, header: np.ndarray | None = None) -> Lookup:
        """See `Grammar.lookup`."""
        distances = self.distances.copy()
        if header is not None:
            distances[self.in_header :] += header - self.distance(self.header)
        return Lookup(self.rows, distances)

    def step(self, at: Place, byte: Any, lookup: Lookup | None = None, xp: ModuleType = np) -> tuple[Place, Any]:
        """Reads a byte; see `Grammar.step`."""
        rows = self.rows if lookup is None else lookup.rows
        in_mcu = at.state < self._states
        follow = xp.minimum(self.interval - at.mcus % self.interval, self.mcus - at.mcus) - 1  # in this interval
        row_of_class = xp.clip(follow, 0, self._classes - 1) * self._states
        entry = rows[xp.where(in_mcu, row_of_class, (self._classes - 1) * self._states) + at.state, byte]
        marker = xp.where(at.mcus == self.mcus, EOI, RST0 + (at.mcus - 1) // self.interval % 8)
        legal = (entry != _ILLEGAL) & ((at.state != self._marker) | (byte == marker))
        stays = at.stuffed | (entry == _ILLEGAL)
        following = Place(
            xp.where(stays, at.state, entry & (1 << _ENDS_SHIFT) - 1),
            at.mcus + xp.where(stays, 0, entry >> _ENDS_SHIFT),
            in_mcu & (byte == 0xFF) & ~at.stuffed,
        )
        return following, xp.where(at.stuffed, byte == 0, legal)

    def distance(self, at: Place, lookup: Lookup | None = None, xp: ModuleType = np) -> Any:
        """A number of bytes that suffices to end the file; from every place a legal byte leads to a smaller one.

        With a restart marker after every MCU it is the smallest such number.
        """
        distances = self.distances if lookup is None else lookup.distances
        at_marker = (at.state >= self._states) & (at.state <= self.done)  # and after EOI
        written = (at.mcus - at_marker) // self.interval  # markers
        markers = -(-self.mcus // self.interval) - written
        rest = (self.mcus - at.mcus) * self._mcu_bytes + 2 * markers
        return distances[at.state] + rest + at.stuffed

    def is_end(self, at: Place) -> Any:
        """See `Grammar.is_end`."""
        return at.state == self.done

    def header_index(self, at: Place) -> Any:
        """See `Grammar.header_index`."""
        return at.state - self.in_header

    def can_pack(self, longest: int) -> bool:
        """See `Grammar.can_pack`."""
        most_ends = 4 * longest  # MCUs, each of at least two bits
        return len(self.distances) <= 1 << _STATE_BITS and most_ends < 1 << _MCU_BITS

    def pack(self, place: Place, legal: Any, seen_from: Place, xp: ModuleType = np) -> Any:
        """See `Grammar.pack`."""
        since = place.mcus - seen_from.mcus
        return xp.where(legal, place.state | (since | place.stuffed * np.int32(1 << _MCU_BITS)) << _STATE_BITS, -1)

    def unpack(self, packed: Any, seen_from: Place) -> Place:
        """See `Grammar.unpack`."""
        upper = packed >> _STATE_BITS
        mcus = seen_from.mcus + (upper & (1 << _MCU_BITS) - 1)
        return Place(packed & (1 << _STATE_BITS) - 1, mcus, (upper >> _MCU_BITS & 1) == 1)

    def is_possible(self, data: bytes) -> bool:
        """Whether these bytes may occur together somewhere after the header.

        May be True for a few that cannot, because it ignores which states occur at which position of an interval.
        """
        states, stuffed = np.arange(self.done), np.empty(0, np.int64)
        for byte in data:
            in_mcu = states[states < self._states]
            rows = [in_mcu + number * self._states for number in range(self._classes)]
            rows.append(states[states >= self._states] + (self._classes - 1) * self._states)
            *behind_mcu, behind_marker = (self.rows[some, byte] for some in rows)
            zero = stuffed if byte == 0 else stuffed[:0]
            stuffed = _next_states(np.concatenate(behind_mcu))
            plain, stuffed = (stuffed[:0], stuffed) if byte == 0xFF else (stuffed, stuffed[:0])
            states = np.concatenate([plain, _next_states(behind_marker), zero])
        return bool(len(states) + len(stuffed))

    def walk(self, files: Sequence[bytes]) -> tuple[Place, np.ndarray]:
        """Reads prefixes of files, all at once.

        Returns:
          The place [n] after each, and how many of its bytes, int64 [n], are legal. If not all are, the place is that
          before the first illegal byte.
        """
        lengths = np.array([len(file) for file in files], np.int64)
        order = np.argsort(-lengths, kind="stable")
        data = np.zeros((max(lengths, default=0), len(files)), np.uint8)  # byte by byte, the longest file first
        for column, number in enumerate(order):
            data[: lengths[number], column] = np.frombuffer(files[number], np.uint8)
        place = Place(*(np.full(len(files), value) for value in self.start))
        read = np.zeros(len(files), np.int64)
        for offset, column in enumerate(data):
            reading = order[: np.searchsorted(-lengths[order], -offset)]  # files with a byte at this offset
            is_on = read[reading] == offset  # and no illegal byte before it
            reading = reading[is_on]
            at = Place(*(values[reading] for values in place))
            following, legal = self.step(at, column[: len(is_on)][is_on])
            for values, new, old in zip(place, following, at, strict=True):
                values[reading] = np.where(legal, new, old)
            read[reading] += legal
        return place, read

    def accepts(self, files: Sequence[bytes]) -> np.ndarray:
        """Which files are complete and legal, bool [n]."""
        place, read = self.walk(files)
        return (read == [len(file) for file in files]) & (place.state == self.done)
