"""The automaton of legal JPEG files, against encoders, its own definition over bits, and the strict parser."""

import collections
import functools
import itertools
import struct
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageDraw

from jpeglm.codecs import jpeg_grammar, jpeg_header
from jpeglm.codecs.jpeg import JpegCodec, JpegError, parse
from jpeglm.codecs.jpeg_grammar import BlockTables, JpegGrammar, Place, minimise, next_bit
from jpeglm.codecs.jpeg_header import DHT, DQT, DRI, SOF0, SOS
from tests.codecs.jpeg_tools import (
    DC_ZERO,
    END_OF_BLOCK,
    GREY,
    ONE,
    ONE_BEHIND_14_ZEROS,
    ONE_BEHIND_15_ZEROS,
    SIXTEEN_ZEROS,
    cjpeg,
    grey_block,
    jpegtran,
    save,
)
from tests.photographs import photographs

# Sampling factors of each component.
YUV_420, YUV_422, YUV_444 = ((2, 2), (1, 1), (1, 1)), ((2, 1), (1, 1), (1, 1)), ((1, 1),) * 3
LUMINANCE = ((1, 1),)
COLOUR_CODEC, GREY_CODEC = JpegCodec(40, 56, "RGB", 25), JpegCodec(17, 30, "L", 60)


@pytest.fixture(scope="module", autouse=True)
def cache() -> Iterator[Path]:
    """A cache of this module's own: what earlier code left in the user's is not what is tested."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", folder)
        jpeg_grammar._tables.cache_clear()
        yield Path(folder)
        jpeg_grammar._tables.cache_clear()


def rare_grammar(header: bytes, tables: bytes = b"") -> JpegGrammar:
    """A grammar of rare tables, which are not kept."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", folder)
        return JpegGrammar(header, tables)


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


def without(markers: Sequence[int], file: bytes) -> tuple[bytes, bytes, bytes]:
    """The header of a file without segments of these kinds, its scan, and those segments."""
    header, left_out, offset, marker = file[:2], b"", 2, None
    while marker != SOS:
        start = offset
        marker, _, offset = jpeg_header.read_segment(file, start)
        if marker in markers:
            left_out += file[start:offset]
        else:
            header += file[start:offset]
    return header, file[offset:], left_out


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


############################ Files of encoders ############################


def draw(random: np.random.Generator, height: int, width: int, photos: Sequence[Image.Image]) -> Image.Image:
    """A photograph's window of any scale, a drawing, noise, a gradient or one colour."""
    kind = random.choice(["photograph", "drawing", "noise", "gradient", "flat"], p=[0.5, 0.2, 0.1, 0.1, 0.1])
    if kind == "noise" and height * width > 128 * 128:
        kind = "photograph"  # noise makes long files, and a walk lasts as long as its longest file
    if kind == "photograph":
        photo = photos[random.integers(len(photos))]
        scale = random.uniform(0.3, 1) * min(photo.width / width, photo.height / height)
        across, down = width * scale, height * scale
        left, top = random.uniform(0, photo.width - across), random.uniform(0, photo.height - down)
        return photo.resize((width, height), Image.Resampling.LANCZOS, (left, top, left + across, top + down))
    colours = [tuple(colour) for colour in random.integers(0, 256, (16, 3)).tolist()]
    if kind == "flat":
        return Image.new("RGB", (width, height), colours[0])
    if kind == "noise":
        amplitude = random.integers(1, 129)
        return Image.fromarray(random.integers(128 - amplitude, 128 + amplitude, (height, width, 3)).astype(np.uint8))
    if kind == "gradient":
        corners = Image.fromarray(np.array(colours[:4], np.uint8).reshape(2, 2, 3))
        return corners.resize((width, height), Image.Resampling.BILINEAR)
    picture = Image.new("RGB", (width, height), colours[0])
    pen = ImageDraw.Draw(picture)
    for number, colour in enumerate(colours[1:]):
        left, right = sorted(random.integers(0, width, 2).tolist())
        top, bottom = sorted(random.integers(0, height, 2).tolist())
        if number % 4 == 0:
            pen.line((left, bottom, right, top), colour, width=int(random.integers(1, 5)))
        elif number % 4 == 1:
            pen.text((left, top), "JPEG 4:2:0", colour)
        else:
            (pen.ellipse if number % 4 == 2 else pen.rectangle)((left, top, right, bottom), colour)
    return picture


# Restart intervals: Pillow's option, and cjpeg's.
RESTARTS = {
    "none": ({}, ()),
    "1": ({"restart_marker_blocks": 1}, ("-restart", "1B")),
    "2": ({"restart_marker_blocks": 2}, ("-restart", "2B")),
    "7": ({"restart_marker_blocks": 7}, ("-restart", "7B")),
    "a row": ({"restart_marker_rows": 1}, ("-restart", "1")),
}
COLOURS = {
    "4:2:0": ({"subsampling": "4:2:0"}, ("-sample", "2x2")),
    "4:4:4": ({"subsampling": "4:4:4"}, ("-sample", "1x1")),
    "grey": ({"subsampling": "4:4:4"}, ("-grayscale",)),
}


def encode(
    random: np.random.Generator, picture: Image.Image, colours: str, restarts: str, by: str, optimised: bool = False
) -> bytes:
    """The file of a picture, of any quality."""
    picture.info = {}  # Pillow would write a comment that it finds there
    picture = picture.convert("L") if colours == "grey" else picture
    quality = int(random.integers(5, 96))
    if by == "Pillow":
        return save(picture, quality=quality, optimize=optimised, **COLOURS[colours][0], **RESTARTS[restarts][0])
    options = ("-quality", str(quality), "-baseline", *["-optimize"] * optimised)
    return cjpeg(picture, *options, *COLOURS[colours][1], *RESTARTS[restarts][1])


def assert_legal(header: bytes, files: Sequence[bytes]) -> None:
    grammar = JpegGrammar(header)
    place, read = grammar.walk(files)
    mistakes = [f"byte {n} of {len(file)}" for n, file in zip(read, files, strict=True) if n != len(file)]
    assert not mistakes
    assert np.all(place.state == grammar.done) and np.all(place.mcus == grammar.mcus)


def check_real_files(
    random: np.random.Generator, colours: Sequence[str], sizes: Sequence[tuple[int, int]], each: int
) -> collections.Counter:
    """Writes `each` pictures of each size, and checks that all of their files are legal. Returns what they were."""
    photos = photographs(30, 512, 512)
    counts = collections.Counter()
    variants = itertools.product(colours, RESTARTS)
    for (height, width), (kind, restarts) in zip(sizes, itertools.cycle(variants), strict=False):
        groups = collections.defaultdict(list)
        for number in range(each):
            by = ("Pillow", "cjpeg")[number % 2]
            file = encode(random, draw(random, height, width, photos), kind, restarts, by)
            header, scan, _ = without([DQT], file)  # so that files of all qualities have one header
            groups[header].append(header + scan)
            counts.update(files=1, bytes=len(file), **{f"by {by}": 1, kind: 1, f"restarts: {restarts}": 1})
        for header, files in groups.items():
            assert_legal(header, files)
    return counts


def test_files_of_pillow_and_cjpeg_are_legal():
    random = np.random.default_rng(0)
    sizes = [(8, 8), (96, 8), (8, 96), (17, 33), *random.integers(8, 33, (6, 2)).tolist()]
    counts = check_real_files(random, ("4:2:0", "grey"), sizes, each=30)
    assert counts["files"] == 300 and min(counts.values()) >= 60


@pytest.mark.slow
def test_ten_thousand_files_of_pillow_and_cjpeg_are_legal():
    random = np.random.default_rng(1)
    started = time.monotonic()
    sides = np.exp(random.uniform(np.log(8), np.log(513), (96, 2))).astype(int)  # half of them below 64
    sizes = [(8, 8), (512, 512), (8, 512), (512, 8), *sides.tolist()]
    counts = check_real_files(random, tuple(COLOURS), sizes, each=100)
    assert counts["files"] == 10_000 and min(counts.values()) >= 2_000
    print(f"{dict(counts)} in {time.monotonic() - started:.0f} s")


def check_files_with_optimised_tables(count: int) -> None:
    random = np.random.default_rng(2)
    photos = photographs(30, 512, 512)
    variants = itertools.product(RESTARTS, COLOURS)
    for number, (restarts, colours) in zip(range(count), itertools.cycle(variants), strict=False):
        height, width = random.integers(8, 129, 2).tolist()
        picture = draw(random, height, width, photos)
        file = encode(random, picture, colours, restarts, ("Pillow", "cjpeg")[number % 2], optimised=True)
        header, scan, tables = without([DHT], file)
        assert rare_grammar(header, tables).accepts([header + scan, file]).tolist() == [True, False]
        if number % 4 == 0:
            assert rare_grammar(file[: -len(scan)]).accepts([header + scan, file]).tolist() == [False, True]


def test_files_with_optimised_huffman_tables_are_legal():
    check_files_with_optimised_tables(4)


@pytest.mark.slow
def test_forty_files_with_optimised_huffman_tables_are_legal():
    check_files_with_optimised_tables(40)


def test_with_a_marker_behind_each_mcu_no_real_file_ends_sooner_than_the_distance_says():
    for codec in (COLOUR_CODEC, GREY_CODEC):
        grammar = JpegGrammar(codec.header)
        for picture in photographs(10, codec.height, codec.width, codec.mode):
            document = codec.encode(picture)
            beginnings = [document[:length] for length in range(len(document) + 1)]
            place, read = grammar.walk(beginnings)
            assert read.tolist() == [len(beginning) for beginning in beginnings]
            assert np.all(grammar.distance(place) <= len(document) - read)
            assert grammar.distance(place)[-1] == 0


def test_a_change_of_any_byte_of_the_header_is_seen_there():
    document = COLOUR_CODEC.encode(photographs(1, 40, 56)[0])
    grammar = JpegGrammar(COLOUR_CODEC.header)
    length = len(COLOUR_CODEC.header)
    changed = [document[:at] + bytes([document[at] ^ 1 << at % 8]) + document[at + 1 :] for at in range(length)]
    place, read = grammar.walk(changed)
    assert read.tolist() == list(range(length))
    assert grammar.distance(place).tolist() == (grammar.distance(grammar.start) - np.arange(length)).tolist()


############################ The definition over bits ############################

ILLEGAL, END = -1, -2


class Places:
    """All places of an MCU that `next_bit` comes to, numbered: what each bit leads to, and the table's states.

    Attributes:
      following: of each place, behind a 0 and behind a 1: a place, END or ILLEGAL.
      bits, representatives: what `minimise` returns.
      state: of each place, the state that the same bits lead to. Fails where two ways lead to two states, or where
        `next_bit` and `bits` do not agree about what is legal.
    """

    def __init__(self, blocks: Sequence[BlockTables]):
        self.bits, self.representatives = minimise(blocks)
        numbers, self.following, self.state = {jpeg_grammar.FIRST_BIT: 0}, [], [0]
        places = [jpeg_grammar.FIRST_BIT]
        for at in places:  # which grows meanwhile
            pair, state = [], self.state[len(self.following)]
            for bit in (0, 1):
                place, behind = next_bit(at, bit, blocks), int(self.bits[state, bit])
                if place is None:
                    assert behind == -1
                elif place == jpeg_grammar.END:
                    assert behind == len(self.bits)
                elif place in numbers:
                    assert self.state[numbers[place]] == behind
                else:
                    numbers[place] = len(places)
                    places.append(place)
                    self.state.append(behind)
                pair.append({None: ILLEGAL, jpeg_grammar.END: END}.get(place, numbers.get(place)))
            self.following.append(pair)
        assert set(self.state) == set(range(len(self.bits)))
        assert [self.state[numbers[place]] for place in self.representatives] == list(range(len(self.bits)))
        self.numbers = [numbers[place] for place in self.representatives]

    def read_byte(self, at: int, byte: int, follow: int) -> tuple[int, int] | None:
        """Reads a byte bit by bit, `follow` more MCUs being to come in the interval; None where it is illegal.

        Returns:
          The place behind it, END where the interval is complete, and how many MCUs ended.
        """
        ended = 0
        for shift in range(7, -1, -1):
            bit = byte >> shift & 1
            if ended > follow:  # padding
                if not bit:
                    return None
                continue
            at = self.following[at][bit]
            if at == ILLEGAL:
                return None
            if at == END:
                at, ended = 0, ended + 1
        return (END if ended > follow else at), ended


def blocks_of(header: bytes) -> list[BlockTables]:
    read = jpeg_header.read(header)
    made = {}
    for component in read.components:
        key = component.dc_table, component.ac_table
        made[key] = made.get(key) or BlockTables(read.huffman[0, key[0]], read.huffman[1, key[1]])
    return [
        made[component.dc_table, component.ac_table]
        for component in read.components
        for _ in range(component.horizontal * component.vertical if len(read.components) > 1 else 1)
    ]


def check_bytes(grammar: JpegGrammar, places: Places, count: int, random: np.random.Generator) -> int:
    """Compares random (state, byte) pairs, anywhere in the picture. Returns the most MCUs that one byte ended."""
    state = random.integers(len(places.bits), size=count)
    # three in ten of them near the end of an MCU, where states have the highest numbers
    late = random.integers(max(0, len(places.bits) - 200), len(places.bits), size=count)
    state = np.where(random.random(count) < 0.3, late, state)
    byte = random.integers(256, size=count)
    mcus = random.integers(grammar.mcus, size=count)
    at = Place(state.astype(np.int32), mcus.astype(np.int32), np.zeros(count, bool))
    following, legal = grammar.step(at, byte)
    most = 0
    got = zip(
        state.tolist(),
        byte.tolist(),
        mcus.tolist(),
        legal.tolist(),
        following.state.tolist(),
        following.mcus.tolist(),
        following.stuffed.tolist(),
        strict=True,
    )
    for state, byte, mcus, legal, next_state, next_mcus, stuffed in got:
        end_of_interval = min((mcus // grammar.interval + 1) * grammar.interval, grammar.mcus)
        read = places.read_byte(places.numbers[state], byte, end_of_interval - 1 - mcus)
        assert legal == (read is not None), (state, byte, mcus)
        if read is not None:
            place, ended = read
            expected = len(places.bits) if place == END else places.state[place]
            assert (next_state, next_mcus, stuffed) == (expected, mcus + ended, byte == 0xFF), (state, byte, mcus)
            most = max(most, ended)
    return most


@pytest.mark.parametrize("count", [100_000, pytest.param(1_000_000, marks=pytest.mark.slow)], ids=["few", "many"])
@pytest.mark.parametrize(
    ("sampling", "intervals", "most_ends"), [(YUV_420, (1,), 1), (LUMINANCE, (1, 2, 7, 0), 2)], ids=["colour", "grey"]
)
def test_bytes_do_what_their_bits_do(sampling, intervals, most_ends, count):
    random = np.random.default_rng(3)
    places = Places(blocks_of(header_of(8, 8, sampling)))
    # No bit leads back, so states are the fewest where no two of them do the same.
    assert len(np.unique(places.bits, axis=0)) == len(places.bits)
    found = 0
    for interval in intervals:
        grammar = JpegGrammar(header_of(8 * 5, 8 * 21, sampling, interval))
        found = max(found, check_bytes(grammar, places, count // len(intervals), random))
    assert found == most_ends


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


@pytest.mark.parametrize(
    ("count", "most_symbols"), [(3, 40), pytest.param(20, 256, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_bytes_do_what_their_bits_do_whatever_the_huffman_tables(count, most_symbols):
    random = np.random.default_rng(4)
    for header, grammar in random_grammars(random, count, most_symbols):
        check_bytes(grammar, Places(blocks_of(header)), 10_000, random)


############################ Walks ############################


def walk_at_random(header: bytes, walkers: int, steps: int, random: np.random.Generator) -> int:
    """Walks legal bytes, each as likely as the others, again and again. Returns how many files came to their end."""
    grammar = JpegGrammar(header)
    begin, _ = grammar.walk([header] * walkers)
    at, ended = begin, 0
    for _ in range(steps):
        following, legal = grammar.step(at, random.integers(256, size=walkers))
        (again,) = np.nonzero(~legal)
        behind, legal = step_all(grammar, take(at, again))
        byte = pick(legal, random)
        for values, others in zip(following, behind, strict=True):
            values[again] = others[np.arange(len(again)), byte]
        done = following.state == grammar.done
        ended += int(np.sum(done))
        at = Place(*(np.where(done, first, values) for first, values in zip(begin, following, strict=True)))
    return ended


@pytest.mark.parametrize("count", [200_000, pytest.param(10_000_000, marks=pytest.mark.slow)], ids=["few", "many"])
def test_random_walks_meet_no_dead_end(count):
    random = np.random.default_rng(5)
    headers = [header_of(16, 60, sampling, interval) for sampling in (YUV_420, LUMINANCE) for interval in (0, 1, 2, 7)]
    walkers = 50 if count < 1_000_000 else 2000
    ended = [walk_at_random(header, walkers, count // walkers // len(headers), random) for header in headers]
    print(f"{count} bytes; files that ended: {ended}")
    assert min(ended) >= walkers


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


@pytest.mark.parametrize("count", [30, pytest.param(1000, marks=pytest.mark.slow)], ids=["few", "many"])
def test_files_end_within_the_distance_from_anywhere_and_the_parser_takes_them(count):
    random = np.random.default_rng(6)
    for sampling, interval in itertools.product((YUV_420, LUMINANCE), (0, 1, 2, 7)):
        header = header_of(24, 90, sampling, interval)
        files = random_files(header, JpegGrammar(header), random.integers(0, 200, count).tolist(), random)
        assert len(set(files)) > 0.9 * count
        assert all(parser_accepts(file) for file in files)


class Graph:
    """Every place behind the header that a file can come to.

    Attributes:
      places: of them, [n].
      edges: int32 [n, 256], what each byte leads to; -1 for illegal bytes.
    """

    def __init__(self, header: bytes):
        self.grammar = JpegGrammar(header)
        number = np.full((self.grammar.done + 1) * (self.grammar.mcus + 1) * 2, -1, np.int32)  # of a place's key
        found, edges = [], []
        frontier = np.unique(self._keys(take(self.grammar.walk([header])[0], np.array([0]))))
        number[frontier] = 0
        count = 1
        while len(frontier):
            found.append(frontier)
            new = []
            for part in np.array_split(frontier, len(frontier) // 4096 + 1):
                following, legal = step_all(self.grammar, self._place(part))
                keys = np.where(legal, self._keys(following), -1)
                edges.append(keys.astype(np.int32))
                new.append(np.unique(keys[legal]))
            new = np.unique(np.concatenate(new))
            frontier = new[number[new] < 0]
            number[frontier] = np.arange(count, count + len(frontier))
            count += len(frontier)
        self.places = self._place(np.concatenate(found))
        keys = np.concatenate(edges)
        self.edges = np.where(keys < 0, -1, number[keys])

    def _keys(self, at: Place) -> np.ndarray:
        return (at.state.astype(np.int64) * (self.grammar.mcus + 1) + at.mcus) * 2 + at.stuffed

    def _place(self, keys: np.ndarray) -> Place:
        state, mcus = np.divmod(keys // 2, self.grammar.mcus + 1)
        return Place(state.astype(np.int32), mcus.astype(np.int32), keys % 2 == 1)

    def fewest_bytes(self) -> np.ndarray:
        """To the end, int [n]: found step by step, from the end."""
        fewest = np.where(self.places.state == self.grammar.done, 0, 1 << 20)
        while True:
            behind = np.append(fewest, 1 << 20)[self.edges].min(axis=1)
            shorter = np.minimum(fewest, behind + 1)
            if np.array_equal(shorter, fewest):
                return fewest
            fewest = shorter


@pytest.mark.parametrize(
    ("sampling", "height", "width", "intervals"),
    [
        pytest.param(LUMINANCE, 8, 16, (1, 2), id="grey"),
        pytest.param(LUMINANCE, 24, 24, (1, 2, 7, 0), id="grey with more MCUs", marks=pytest.mark.slow),
        pytest.param(YUV_420, 16, 48, (1, 2, 0), id="colour", marks=pytest.mark.slow),
    ],
)
def test_from_every_place_a_byte_leads_nearer_to_the_end(sampling, height, width, intervals):
    for interval in intervals:
        graph = Graph(header_of(height, width, sampling, interval))
        distance = graph.grammar.distance(graph.places)
        is_done = graph.places.state == graph.grammar.done
        assert np.sum(is_done) == 1 and np.all((distance == 0) == is_done) and np.all(distance >= 0)
        nearest = np.append(distance, 1 << 20)[graph.edges].min(axis=1)
        assert np.all((nearest < distance) | is_done)
        fewest = graph.fewest_bytes()
        assert np.all(fewest <= distance)
        print(
            f"interval {interval}: {len(distance)} places, at most {np.max(distance)} bytes, {np.max(fewest)} will do"
        )
        if interval == 1:
            assert np.array_equal(fewest, distance)


def test_jax_walks_as_numpy_does():
    random = np.random.default_rng(7)
    for interval in (1, 3):
        grammar = JpegGrammar(header := header_of(24, 40, LUMINANCE, interval))
        files = random_files(header, grammar, [40] * 50, random)
        at, _ = grammar.walk([file[: random.integers(len(header), len(file))] for file in files])
        on_device = Place(*(jnp.asarray(values) for values in at))
        rows, distances = jnp.asarray(grammar.rows), jnp.asarray(grammar.distances)
        step = jax.jit(functools.partial(grammar.step, xp=jnp))
        distance = jax.jit(functools.partial(grammar.distance, xp=jnp))(on_device, distances)
        assert distance.tolist() == grammar.distance(at).tolist()
        for byte in (*range(0, 256, 5), 0xFF):
            expected, is_legal = grammar.step(at, byte)
            following, legal = step(on_device, byte, rows)
            assert legal.tolist() == is_legal.tolist()
            for values, others in zip(following, expected, strict=True):
                assert np.asarray(values)[is_legal].tolist() == others[is_legal].tolist()
                assert values.dtype == others.dtype


############################ The strict parser, and jpegtran ############################


def parser_accepts(file: bytes) -> bool:
    try:
        return not parse(file).has_idle_zero_runs
    except JpegError:
        return False


def mutate(file: bytes, start: int, changes: int, random: np.random.Generator) -> bytes:
    """Replaces, inserts or deletes bytes behind the header."""
    data = bytearray(file)
    for _ in range(changes):
        at = int(random.integers(start, len(data) + 1))
        new = int(
            random.choice([0x00, 0xFF, 0xD9, *range(0xD0, 0xD8)]) if random.random() < 0.1 else random.integers(256)
        )
        kind = random.choice(["replace", "flip", "insert", "delete"], p=[0.3, 0.4, 0.15, 0.15])
        if kind == "insert":
            data.insert(at, new)
        elif at < len(data):
            if kind == "replace":
                data[at] = new
            elif kind == "flip":
                data[at] ^= 1 << new % 8
            else:
                del data[at]
    return bytes(data)


def seeds(count: int, random: np.random.Generator) -> Iterator[tuple[JpegGrammar, int, list[bytes]]]:
    """Legal files of small pictures: a grammar, its header's length, and `count` of its files."""
    for codec in (COLOUR_CODEC, GREY_CODEC, JpegCodec(16, 16, "RGB", 90), JpegCodec(8, 8, "L", 95)):
        files = [codec.encode(picture) for picture in photographs(count, codec.height, codec.width, codec.mode)]
        yield JpegGrammar(codec.header), len(codec.header), files
    photos = photographs(30, 512, 512)
    for colours, restarts in itertools.product(("4:2:0", "grey"), ("none", "2", "7", "a row")):
        files = [encode(random, draw(random, 24, 52, photos), colours, restarts, "Pillow") for _ in range(count)]
        split = [without([DQT], file)[:2] for file in files]
        yield JpegGrammar(split[0][0]), len(split[0][0]), [header + scan for header, scan in split]


def check_mutants(
    grammar: JpegGrammar, start: int, files: Sequence[bytes], each: int, random: np.random.Generator
) -> collections.Counter:
    """Compares both judges on `each` mutants of each file, and on beginnings. Counts (changes, whether legal)."""
    mutants = {}  # and the number of changes; -1 for a beginning
    for file in files:
        assert parser_accepts(file)
        for changes in random.choice([1, 1, 1, 2], each).tolist():
            mutants[mutate(file, start, changes, random)] = changes
        for length in random.integers(start, len(file), each // 20).tolist():
            mutants[file[:length]] = -1
    counts = collections.Counter()
    for (mutant, changes), is_legal in zip(mutants.items(), grammar.accepts(list(mutants)).tolist(), strict=True):
        if mutant not in files:
            assert is_legal == parser_accepts(mutant), mutant.hex()
            counts[changes, is_legal] += 1
    return counts


def check_counts(counts: collections.Counter, least: int) -> None:
    """Enough mutants, and enough of them legal, so that agreement says something."""
    print(", ".join(f"{n} {'legal' if legal else 'illegal'} of {what}" for (what, legal), n in sorted(counts.items())))
    assert sum(counts.values()) >= least
    assert counts[1, True] >= 0.05 * (counts[1, True] + counts[1, False]) and counts[2, True] > 0
    assert counts[-1, False] > 0 and not counts[-1, True]


@pytest.mark.parametrize("each", [60, pytest.param(2_500, marks=pytest.mark.slow)], ids=["few", "many"])
def test_changed_files_are_legal_exactly_where_the_strict_parser_accepts_them(each):
    random = np.random.default_rng(8)
    counts = collections.Counter()
    for grammar, start, files in seeds(5, random):
        counts += check_mutants(grammar, start, files, each, random)
    check_counts(counts, least=40 * each)


@pytest.mark.parametrize(
    ("count", "most_symbols"), [(3, 40), pytest.param(20, 256, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_so_are_random_files_of_random_huffman_tables(count, most_symbols):
    random = np.random.default_rng(9)
    counts = collections.Counter()
    for header, grammar in random_grammars(random, count, most_symbols):
        files = random_files(header, grammar, [0, 5, 10, 20, 40], random)
        counts += check_mutants(grammar, len(header), files, 40, random)
    check_counts(counts, least=100 * count)


@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.slow)], ids=["few", "many"])
def test_jpegtran_gives_legal_changed_documents_back(count):
    random = np.random.default_rng(10)
    codec = JpegCodec(height=48, width=48, mode="RGB", quality=25)  # whole MCUs only: jpegtran makes others anew
    grammar = JpegGrammar(codec.header)
    documents = [codec.encode(picture) for picture in photographs(20, 48, 48)]
    choices = random.integers(len(documents), size=20 * count).tolist()
    mutants = list(dict.fromkeys(mutate(documents[number], len(codec.header), 1, random) for number in choices))
    legal = [mutant for mutant, verdict in zip(mutants, grammar.accepts(mutants), strict=True) if verdict]
    assert len(legal) >= count
    for mutant in legal[:count]:
        transcoded, complaints = jpegtran(codec.restore(mutant))
        assert not complaints
        assert codec.strip(transcoded) == mutant


@pytest.mark.parametrize(
    ("codes", "is_idle"),
    [
        ((DC_ZERO, END_OF_BLOCK), False),
        ((DC_ZERO, SIXTEEN_ZEROS, ONE, END_OF_BLOCK), False),
        ((DC_ZERO, SIXTEEN_ZEROS, SIXTEEN_ZEROS, SIXTEEN_ZEROS, ONE_BEHIND_14_ZEROS), False),
        ((DC_ZERO, ONE_BEHIND_15_ZEROS, END_OF_BLOCK), False),
        ((DC_ZERO, SIXTEEN_ZEROS, END_OF_BLOCK), True),
        ((DC_ZERO, SIXTEEN_ZEROS, SIXTEEN_ZEROS, SIXTEEN_ZEROS, END_OF_BLOCK), True),
        ((DC_ZERO, ONE, SIXTEEN_ZEROS, END_OF_BLOCK), True),
        ((DC_ZERO, SIXTEEN_ZEROS, ONE, SIXTEEN_ZEROS, END_OF_BLOCK), True),
    ],
)
def test_idle_runs_of_zeros_are_seen_and_are_not_of_the_language(codes, is_idle):
    document = grey_block(*codes)
    assert GREY.parse(document).has_idle_zero_runs == is_idle
    assert JpegGrammar(GREY.header).accepts([document]).tolist() == [not is_idle]


def test_no_code_goes_past_coefficient_63():
    zeros = [SIXTEEN_ZEROS] * 3
    for codes, is_legal in (
        ((DC_ZERO, *zeros, ONE_BEHIND_14_ZEROS), True),
        ((DC_ZERO, *zeros, ONE_BEHIND_15_ZEROS), False),
        ((DC_ZERO, ONE, *zeros, ONE_BEHIND_14_ZEROS), False),
        ((DC_ZERO, *[ONE] * 63), True),
        ((DC_ZERO, *[ONE] * 63, END_OF_BLOCK), False),
        ((DC_ZERO, *[ONE] * 15, *zeros), False),  # zeros up to 63
        ((DC_ZERO, *[ONE] * 15, *zeros, END_OF_BLOCK), False),
    ):
        assert JpegGrammar(GREY.header).accepts([grey_block(*codes)]).tolist() == [is_legal], codes


def test_an_idle_run_is_seen_in_any_block_and_none_where_a_block_follows():
    header = header_of(8, 24, LUMINANCE)
    fine = DC_ZERO + SIXTEEN_ZEROS * 3 + ONE_BEHIND_14_ZEROS  # up to coefficient 63, without EOB
    idle = DC_ZERO + SIXTEEN_ZEROS + END_OF_BLOCK
    for blocks, is_idle in (([fine] * 3, False), ([fine, fine, idle], True), ([idle, fine, fine], True)):
        # what stands behind the header of a picture of one block
        file = header + grey_block(*blocks)[len(GREY.header) :]
        assert parse(file).has_idle_zero_runs == is_idle
        assert JpegGrammar(header).accepts([file]).tolist() == [not is_idle]


############################ Refusals, and the tables on disk ############################


def refusal(header: bytes, tables: bytes = b"") -> str:
    with pytest.raises(JpegError) as error:
        JpegGrammar(header, tables)
    assert "\n" not in str(error.value)
    return str(error.value)


def huffman_segment(kind: int, symbols: bytes) -> bytes:
    """A DHT segment of the symbols with codes of 8 bits."""
    return segment(DHT, bytes([kind << 4, *[0] * 7, len(symbols), *[0] * 8]) + symbols)


def test_headers_of_other_jpegs_are_refused_in_a_line():
    header = header_of(40, 56, YUV_420, 1)
    frame = header.index(b"\xff\xc0")

    def with_frame(offset: int, replacement: bytes) -> bytes:
        return header[: frame + offset] + replacement + header[frame + offset + len(replacement) :]

    progressive = save(photographs(1, 40, 56)[0], progressive=True)
    assert "progressive JPEG is not supported" in refusal(progressive[: progressive.index(b"\xff\xda")])
    assert "extended sequential JPEG is not supported" in refusal(with_frame(1, b"\xc1"))
    assert "arithmetic-coded JPEG is not supported" in refusal(with_frame(1, b"\xc9"))
    assert "12-bit JPEG is not supported" in refusal(with_frame(4, b"\x0c"))
    assert "DNL (the number of lines given behind the scan)" in refusal(with_frame(5, b"\x00\x00"))
    assert f"byte {len(header)}: the header goes on behind SOS" in refusal(header + b"\x00")
    assert f"byte {len(header)}: the header goes on" in refusal(header + b"\x00", huffman_segment(1, b"\x00\x01"))
    assert "the file ends inside the header" in refusal(header[:-1])
    assert "no SOI" in refusal(b"")


def test_huffman_tables_that_can_write_no_block_are_refused():
    header = header_of(8, 8, LUMINANCE)
    for kind, symbols in (
        (0, b"\x0c\x0f"),  # differences of more than 11 bits
        (1, b"\xf0"),  # nothing but zeros
        (1, b"\x31"),  # each coefficient behind three zeros: 4, 8, ... and never 63
        (1, b"\x0b\x10\x20"),  # no symbols of baseline
    ):
        assert refusal(header, huffman_segment(kind, symbols)) == "the header's Huffman tables cannot write any block"
    # Each behind two zeros: 21 coefficients up to 63.
    whole = header[:2] + huffman_segment(1, b"\x21") + header[2:]
    (file,) = random_files(whole, rare_grammar(whole), [0], np.random.default_rng(11))
    assert parser_accepts(file)
    assert len(file) >= len(whole) + 21 * 9 // 8 + 2


@pytest.fixture
def fresh(tmp_path, monkeypatch) -> Path:
    """An empty cache, for what is made here and nowhere else."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jpeg_grammar._tables.cache_clear()
    yield tmp_path
    jpeg_grammar._tables.cache_clear()


SMALL = huffman_segment(0, b"\x00\x01") + huffman_segment(1, b"\x00\x01\x02")  # few states: quickly made


def make(monkeypatch) -> tuple[JpegGrammar, int]:
    """The grammar of SMALL as a new process makes it, and how often it minimised."""
    calls = []
    jpeg_grammar._tables.cache_clear()
    monkeypatch.setattr(jpeg_grammar, "minimise", lambda blocks: calls.append(blocks) or minimise(blocks))
    return JpegGrammar(header_of(8, 24, LUMINANCE, 2), SMALL), len(calls)


def assert_same(one: JpegGrammar, other: JpegGrammar) -> None:
    assert np.array_equal(one.rows, other.rows) and np.array_equal(one.distances, other.distances)
    assert one.distance(one.start) == other.distance(other.start)


def test_tables_are_made_once_and_read_again(fresh, monkeypatch):
    first, calls = make(monkeypatch)
    (path,) = fresh.rglob("*.*")
    assert calls == 1 and path.match("jpeglm/jpeg-grammar-*.npz")
    second, calls = make(monkeypatch)
    assert calls == 0
    assert_same(first, second)
    with monkeypatch.context() as patch:  # nor are they read twice in a process
        patch.setattr(np, "load", None)
        assert_same(first, JpegGrammar(header_of(8, 24, LUMINANCE, 2), SMALL))


def test_tables_of_a_damaged_file_are_made_again(fresh, monkeypatch, caplog):
    first, _ = make(monkeypatch)
    (path,) = fresh.rglob("*.npz")
    whole = path.read_bytes()
    random = np.random.default_rng(12)
    ends = np.concatenate([np.arange(400), np.arange(len(whole) - 400, len(whole))])  # where the lists of contents are
    places = random.choice(ends, 40, replace=False).tolist() + [whole.index(b"'shape': (") + len("'shape': (")]
    damaged = [b"", b"junk", whole[: len(whole) // 2], whole[:-1]]
    damaged += [whole[:at] + bytes([whole[at] ^ 1 << random.integers(3)]) + whole[at + 1 :] for at in places]
    made_again = 0
    for data in damaged:
        path.write_bytes(data)
        caplog.clear()
        grammar, calls = make(monkeypatch)
        assert_same(first, grammar)
        assert ("cannot be read" in caplog.text) == (calls == 1)
        made_again += calls
        if calls:
            assert path.read_bytes() == whole
    assert made_again > 25  # a zip file has bytes that say nothing


def test_a_cache_that_cannot_be_written_is_no_obstacle(fresh, monkeypatch, caplog):
    first, _ = make(monkeypatch)
    file = fresh / "file"
    file.write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    caplog.clear()
    second, calls = make(monkeypatch)
    assert calls == 1
    assert_same(first, second)
    assert "are not kept" in caplog.text
