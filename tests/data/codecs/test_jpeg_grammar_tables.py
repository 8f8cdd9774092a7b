"""The automaton of legal JPEG files: against its definition over bits, by walks, on JAX, and its tables on disk."""

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpeglm.data.codecs import jpeg_grammar, jpeg_header
from jpeglm.data.codecs.jpeg_grammar import BlockTables, JpegGrammar, Place, minimise, next_bit
from jpeglm.data.codecs.jpeg_header import DHT
from tests.data.codecs.grammar_tools import (
    COLOUR_CODEC,
    GREY_CODEC,
    LUMINANCE,
    YUV_420,
    header_of,
    huffman_segment,
    parser_accepts,
    pick,
    random_files,
    random_grammars,
    segment,
    step_all,
    take,
)
from tests.photographs import photographs

pytestmark = pytest.mark.usefixtures("tables_cache")


############################ The definition over bits ############################


ILLEGAL, END = -1, -2


class Places:
    """All places of an MCU that `next_bit` comes to, numbered: what each bit leads to, and the table's states.

    Attributes:
      following: of each place, after a 0 and after a 1: a place, END or ILLEGAL.
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
                place, after = next_bit(at, bit, blocks), int(self.bits[state, bit])
                if place is None:
                    assert after == -1
                elif place == jpeg_grammar.END:
                    assert after == len(self.bits)
                elif place in numbers:
                    assert self.state[numbers[place]] == after
                else:
                    numbers[place] = len(places)
                    places.append(place)
                    self.state.append(after)
                pair.append({None: ILLEGAL, jpeg_grammar.END: END}.get(place, numbers.get(place)))
            self.following.append(pair)
        assert set(self.state) == set(range(len(self.bits)))
        assert [self.state[numbers[place]] for place in self.representatives] == list(range(len(self.bits)))
        self.numbers = [numbers[place] for place in self.representatives]

    def read_byte(self, at: int, byte: int, follow: int) -> tuple[int, int] | None:
        """Reads a byte bit by bit, `follow` more MCUs being to come in the interval; None where it is illegal.

        Returns:
          The place after it, END where the interval is complete, and how many MCUs ended.
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
    read = jpeg_header.read(header, quantisation_elsewhere=True)
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


@pytest.mark.parametrize("count", [40_000, pytest.param(1_000_000, marks=pytest.mark.slow)], ids=["few", "many"])
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


@pytest.mark.parametrize(
    ("count", "most_symbols"), [(2, 40), pytest.param(20, 256, marks=pytest.mark.slow)], ids=["few", "many"]
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
        after, legal = step_all(grammar, take(at, again))
        byte = pick(legal, random)
        for values, others in zip(following, after, strict=True):
            values[again] = others[np.arange(len(again)), byte]
        done = following.state == grammar.done
        ended += int(np.sum(done))
        at = Place(*(np.where(done, first, values) for first, values in zip(begin, following, strict=True)))
    return ended


@pytest.mark.parametrize("count", [80_000, pytest.param(10_000_000, marks=pytest.mark.slow)], ids=["few", "many"])
def test_random_walks_meet_no_dead_end(count):
    random = np.random.default_rng(5)
    headers = [header_of(16, 60, sampling, interval) for sampling in (YUV_420, LUMINANCE) for interval in (0, 1, 2, 7)]
    walkers = 20 if count < 1_000_000 else 2000
    ended = [walk_at_random(header, walkers, count // walkers // len(headers), random) for header in headers]
    print(f"{count} bytes; files that ended: {ended}")
    assert min(ended) >= walkers


@pytest.mark.parametrize("count", [20, pytest.param(1000, marks=pytest.mark.slow)], ids=["few", "many"])
def test_files_end_within_the_distance_from_anywhere_and_the_parser_takes_them(count):
    random = np.random.default_rng(6)
    for sampling, interval in itertools.product((YUV_420, LUMINANCE), (0, 1, 2, 7)):
        header = header_of(24, 90, sampling, interval)
        files = random_files(header, JpegGrammar(header), random.integers(0, 200, count).tolist(), random)
        assert len(set(files)) > 0.9 * count
        assert all(parser_accepts(file) for file in files)


def test_with_a_marker_behind_each_mcu_no_real_file_ends_sooner_than_the_distance_says():
    for codec in (COLOUR_CODEC, GREY_CODEC):
        grammar = JpegGrammar(codec.header)
        for picture in photographs(5, codec.height, codec.width, codec.mode):
            document = codec.encode(picture)
            beginnings = [document[:length] for length in range(len(document) + 1)]
            place, read = grammar.walk(beginnings)
            assert read.tolist() == [len(beginning) for beginning in beginnings]
            assert np.all(grammar.distance(place) <= len(document) - read)
            assert grammar.distance(place)[-1] == 0


class Graph:
    """Every place after the header that a file can come to.

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
            after = np.append(fewest, 1 << 20)[self.edges].min(axis=1)
            shorter = np.minimum(fewest, after + 1)
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


def test_the_zero_behind_an_ff_that_cannot_be_avoided_counts_in_the_distance():
    bare = header_of(8, 8, LUMINANCE)
    dc = bytes([0x00, 1, *[0] * 15, 0])  # 0: no difference
    ac = bytes([0x10, *[1] * 16, *range(0x01, 0x0B), *range(0x11, 0x16), 0x00])  # 15 ones and a 0: end of block
    header = bare[:2] + segment(DHT, dc) + segment(DHT, ac) + bare[2:]
    graph = Graph(header)
    block = b"\x7f\xff\x00\x7f"
    assert graph.grammar.accepts([header + block + b"\xff\xd9"]).all()
    assert graph.grammar.distance(graph.grammar.start) == len(header) + len(block) + 2
    assert np.array_equal(graph.fewest_bytes(), graph.grammar.distance(graph.places))


def test_jax_walks_as_numpy_does():
    random = np.random.default_rng(7)
    for interval in (1, 3):
        grammar = JpegGrammar(header := header_of(24, 40, LUMINANCE, interval))
        files = random_files(header, grammar, [40] * 50, random)
        at, _ = grammar.walk([file[: random.integers(len(header), len(file))] for file in files])
        on_device = Place(*(jnp.asarray(values) for values in at))
        lookup = jax.tree.map(jnp.asarray, grammar.lookup())
        step = jax.jit(functools.partial(grammar.step, xp=jnp))
        distance = jax.jit(functools.partial(grammar.distance, xp=jnp))(on_device, lookup)
        assert distance.tolist() == grammar.distance(at).tolist()
        for byte in (*range(0, 256, 5), 0xFF):
            expected, is_legal = grammar.step(at, byte)
            following, legal = step(on_device, byte, lookup)
            assert legal.tolist() == is_legal.tolist()
            for values, others in zip(following, expected, strict=True):
                assert np.asarray(values)[is_legal].tolist() == others[is_legal].tolist()
                assert values.dtype == others.dtype


############################ The tables on disk ############################


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
    places = random.choice(ends, 25, replace=False).tolist() + [whole.index(b"'shape': (") + len("'shape': (")]
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
    assert made_again > 15  # a zip file has bytes that say nothing


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
