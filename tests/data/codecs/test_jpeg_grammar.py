"""The language of legal JPEG files: against encoders, the strict parser, jpegtran, and blocks made by hand."""

import collections
import itertools
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from PIL import Image, ImageDraw

from jpeglm.data.codecs import jpeg_header
from jpeglm.data.codecs.jpeg import JpegCodec, JpegError
from jpeglm.data.codecs.jpeg_grammar import JpegGrammar
from jpeglm.data.codecs.jpeg_header import DHT, DQT, SOS
from tests.data.codecs.grammar_tools import (
    COLOUR_CODEC,
    GREY_CODEC,
    LUMINANCE,
    YUV_420,
    header_of,
    huffman_segment,
    parser_accepts,
    random_files,
    random_grammars,
    rare_grammar,
    scan_of,
)
from tests.data.codecs.jpeg_tools import (
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

pytestmark = pytest.mark.usefixtures("tables_cache")


############################ Files of encoders ############################


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
    check_files_with_optimised_tables(3)


@pytest.mark.slow
def test_forty_files_with_optimised_huffman_tables_are_legal():
    check_files_with_optimised_tables(40)


def test_a_change_of_any_byte_of_the_header_is_seen_there():
    document = COLOUR_CODEC.encode(photographs(1, 40, 56)[0])
    grammar = JpegGrammar(COLOUR_CODEC.header)
    length = len(COLOUR_CODEC.header)
    changed = [document[:at] + bytes([document[at] ^ 1 << at % 8]) + document[at + 1 :] for at in range(length)]
    place, read = grammar.walk(changed)
    assert read.tolist() == list(range(length))
    assert grammar.distance(place).tolist() == (grammar.distance(grammar.start) - np.arange(length)).tolist()


############################ The strict parser, and jpegtran ############################


def mutate(file: bytes, start: int, changes: int, random: np.random.Generator) -> bytes:
    """Replaces, inserts or deletes bytes after the header."""
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


def seeds(
    colours: Sequence[str], count: int, random: np.random.Generator
) -> Iterator[tuple[JpegGrammar, int, list[bytes]]]:
    """Legal files of small pictures: a grammar, its header's length, and `count` of its files."""
    for codec in (COLOUR_CODEC, GREY_CODEC, JpegCodec(16, 16, "RGB", 90), JpegCodec(8, 8, "L", 95)):
        files = [codec.encode(picture) for picture in photographs(count, codec.height, codec.width, codec.mode)]
        yield JpegGrammar(codec.header), len(codec.header), files
    photos = photographs(30, 512, 512)
    for kind, restarts in itertools.product(colours, ("none", "2", "7", "a row")):
        files = [encode(random, draw(random, 24, 52, photos), kind, restarts, "Pillow") for _ in range(count)]
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
    """At least so many mutants by one byte, and enough of them legal, so that agreement says something."""
    print(", ".join(f"{n} {'legal' if legal else 'illegal'} of {what}" for (what, legal), n in sorted(counts.items())))
    by_one_byte = counts[1, True] + counts[1, False]
    assert by_one_byte >= least
    assert counts[1, True] >= 0.05 * by_one_byte and counts[2, True] > 0
    assert counts[-1, False] > 0 and not counts[-1, True]


@pytest.mark.parametrize(
    ("colours", "each", "least"),
    [
        pytest.param(("4:2:0", "grey"), 30, 1_000, id="few"),
        pytest.param(tuple(COLOURS), 2_500, 100_000, marks=pytest.mark.slow, id="many"),
    ],
)
def test_changed_files_are_legal_exactly_where_the_strict_parser_accepts_them(colours, each, least):
    random = np.random.default_rng(8)
    counts = collections.Counter()
    for grammar, start, files in seeds(colours, 5, random):
        counts += check_mutants(grammar, start, files, each, random)
    check_counts(counts, least)


@pytest.mark.parametrize(
    ("count", "most_symbols"), [(2, 40), pytest.param(20, 256, marks=pytest.mark.slow)], ids=["few", "many"]
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
        # what stands after the header of a picture of one block
        file = header + grey_block(*blocks)[len(GREY.header) :]
        assert scan_of(file).has_idle_zero_runs == is_idle
        assert JpegGrammar(header).accepts([file]).tolist() == [not is_idle]


############################ Refusals ############################


def refusal(header: bytes, tables: bytes = b"") -> str:
    with pytest.raises(JpegError) as error:
        JpegGrammar(header, tables)
    assert "\n" not in str(error.value)
    return str(error.value)


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
    assert "DNL (the number of lines given after the scan)" in refusal(with_frame(5, b"\x00\x00"))
    assert f"byte {len(header)}: the header goes on after SOS" in refusal(header + b"\x00")
    assert f"byte {len(header)}: the header goes on" in refusal(header + b"\x00", huffman_segment(1, b"\x00\x01"))
    assert "the file ends inside the header" in refusal(header[:-1])
    assert "no SOI" in refusal(b"")


def test_huffman_tables_that_can_write_no_block_are_refused():
    header = header_of(8, 8, LUMINANCE)
    for kind, symbols in (
        (0, b"\x0c\x0f"),  # differences of more than 11 bits
        (1, b"\xf0"),  # nothing but zeros
        (1, b"\x31"),  # each coefficient after three zeros: 4, 8, ... and never 63
        (1, b"\x0b\x10\x20"),  # no symbols of baseline
    ):
        assert refusal(header, huffman_segment(kind, symbols)) == "the header's Huffman tables cannot write any block"
    # Each after two zeros: 21 coefficients up to 63.
    whole = header[:2] + huffman_segment(1, b"\x21") + header[2:]
    (file,) = random_files(whole, rare_grammar(whole), [0], np.random.default_rng(11))
    assert parser_accepts(file)
    assert len(file) >= len(whole) + 21 * 9 // 8 + 2
