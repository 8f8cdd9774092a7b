"""Headers, walks, random Huffman tables and random files, for the tests of the JPEG grammar."""

import itertools
import struct
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from jpeglm.data.codecs import jpeg_header
from jpeglm.data.codecs.jpeg import JpegCodec, JpegError
from jpeglm.data.codecs.jpeg_grammar import JpegGrammar, Place
from jpeglm.data.codecs.jpeg_header import DHT, DRI, SOF0, SOS
from jpeglm.data.codecs.jpeg_parser import Scan, parse_scan

# Sampling factors of each component.
YUV_420, YUV_444, LUMINANCE = ((2, 2), (1, 1), (1, 1)), ((1, 1),) * 3, ((1, 1),)
COLOUR_CODEC, GREY_CODEC = JpegCodec(40, 56, "RGB", 25), JpegCodec(17, 30, "L", 60)


def parser_accepts(file: bytes) -> bool:
    """Whether the file is of the language, as the strict parser judges it."""
    try:
        return not scan_of(file).has_idle_zero_runs
    except JpegError:
        return False


def scan_of(file: bytes) -> Scan:
    """The scan of a file whose quantisation tables, on which no code depends, may lie elsewhere."""
    return parse_scan(file, jpeg_header.read(file, quantisation_elsewhere=True))


############################ Headers and their grammars ############################


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body


def header_of(height: int, width: int, sampling: Sequence[tuple[int, int]], interval: int = 0) -> bytes:
    """A header without tables: luminance has the Huffman tables 0, what follows it 1."""
    frame, scan = struct.pack(">BHHB", 8, height, width, len(sampling)), bytes([len(sampling)])
    for number, (horizontal, vertical) in enumerate(sampling):
        frame += bytes([number + 1, horizontal << 4 | vertical, 0])
        scan += bytes([number + 1, 0x11 * min(number, 1)])
    restart = segment(DRI, interval.to_bytes(2)) if interval else b""
    return b"\xff\xd8" + segment(SOF0, frame) + restart + segment(SOS, scan + b"\x00\x3f\x00")


def huffman_segment(kind: int, symbols: bytes) -> bytes:
    """A DHT segment of the symbols with codes of 8 bits."""
    return segment(DHT, bytes([kind << 4, *[0] * 7, len(symbols), *[0] * 8]) + symbols)


def rare_grammar(header: bytes, tables: bytes = b"") -> JpegGrammar:
    """A grammar of rare tables, which are not kept."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", folder)
        return JpegGrammar(header, tables)


def random_huffman_table(random: np.random.Generator, symbols: Sequence[int]) -> bytes:
    """A table of these symbols with random code lengths, as in DHT; often some codes are left unused."""
    lengths = [0]
    while len(lengths) <= len(symbols):  # one more, as the code of ones alone is reserved
        at = int(random.integers(len(lengths)))
        if lengths[at] < 16:
            lengths[at] += 1
            lengths.append(lengths[at])
    lengths = sorted(lengths)[:-1]
    return bytes(np.bincount(lengths, minlength=17)[1:].tolist()) + bytes(random.permutation(symbols).tolist())


def random_tables(random: np.random.Generator, most_symbols: int) -> bytes:
    """DHT segments of four random tables: with symbols that baseline does not have, and now and then without EOB."""
    segments = b""
    for destination in (0, 1):
        dc = random.choice(16, random.integers(1, 17), replace=False)
        ac = random.choice(256, random.choice([2, 5, most_symbols // 5, most_symbols]), replace=False)
        if random.random() < 0.8:
            ac = np.union1d(ac, [0x00, 0xF0])  # the end of a block, and 16 zeros
        for kind, symbols in enumerate((dc, ac)):
            segments += segment(DHT, bytes([kind << 4 | destination]) + random_huffman_table(random, symbols))
    return segments


def random_grammars(random: np.random.Generator, count: int, most_symbols: int) -> Iterator[tuple[bytes, JpegGrammar]]:
    """Headers with random Huffman tables, and their grammars."""
    while count:
        sampling = [LUMINANCE, LUMINANCE, YUV_444, ((1, 1), (1, 2))][random.integers(4)]
        height, width = random.integers(1, 41, 2).tolist()
        bare = header_of(height, width, sampling, int(random.choice([0, 1, 2, 3])))
        header = bare[:2] + random_tables(random, most_symbols) + bare[2:]
        try:
            grammar = rare_grammar(header)
        except JpegError as refusal:
            assert "cannot write any block" in str(refusal)
            continue
        count -= 1
        yield header, grammar


############################ Walks ############################


def take(places: Place, which: np.ndarray) -> Place:
    return Place(*(values[which] for values in places))


def step_all(grammar: JpegGrammar, at: Place) -> tuple[Place, np.ndarray]:
    """What follows each of n places with each byte, [n, 256]; illegal bytes lead to the end, as a stand-in."""
    following, legal = grammar.step(Place(*(values[:, None] for values in at)), np.arange(256))
    return following._replace(state=np.where(legal, following.state, grammar.done)), legal


def pick(legal: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """One legal byte of each row of [n, 256], all equally likely; fails at a dead end."""
    assert legal.any(axis=1).all()
    return np.argmax(random.random(legal.shape) * legal, axis=1)


def random_files(header: bytes, grammar: JpegGrammar, wild: Sequence[int], random: np.random.Generator) -> list[bytes]:
    """Files that each have so many random legal bytes (or fewer), then random ones that lead nearer to the end.

    Fails where a file needs more of the latter than the distance said.
    """
    at, _ = grammar.walk([header] * len(wild))
    files = [bytearray(header) for _ in wild]
    budgets = np.zeros(len(wild), np.int64)
    for number in itertools.count():
        budgets = np.where(number <= np.array(wild), grammar.distance(at), budgets - 1)
        (open_ones,) = np.nonzero(at.state != grammar.done)
        if not len(open_ones):
            return [bytes(file) for file in files]
        assert np.all(budgets[open_ones] > 0)
        here = take(at, open_ones)
        following, legal = step_all(grammar, here)
        is_nearer = grammar.distance(following) < grammar.distance(here)[:, None]
        byte = pick(legal & (is_nearer | (number < np.array(wild)[open_ones, None])), random)
        for values, others in zip(at, following, strict=True):
            values[open_ones] = others[np.arange(len(open_ones)), byte]
        for file, new in zip(open_ones.tolist(), byte.tolist(), strict=True):
            files[file].append(new)
