"""The compressors beside a model: real programs, whose results count only if they decompress to the same bytes."""

import io
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jpeglm.core.errors import InputError
from jpeglm.data import sources
from jpeglm.data.codecs.avc import AvcCodec
from jpeglm.data.codecs.jpeg import JpegCodec
from jpeglm.data.codecs.jpeg_header import without_unused_tables
from jpeglm.score import compressors
from jpeglm.score.compressors import COMPRESSORS, JpegTranscoder, Sizes
from tests.photographs import photographs

GREY, COLOUR = JpegCodec(32, 32, "L", 25), JpegCodec(64, 64, "RGB", 25)
CJXL = "cjxl --lossless_jpeg=1 -e 9"


@pytest.fixture(scope="module")
def digits() -> list[bytes]:
    source = sources.open_source("embedded:mnist")
    return [GREY.items.documents(source, name)[0] for name, _ in zip(source.names(), range(12), strict=False)]


@pytest.fixture(scope="module")
def colourful() -> list[bytes]:
    return [COLOUR.encode(picture) for picture in photographs(4, 64, 64)]


def packed(*command: str, data: bytes) -> int:
    """The size of what a program makes of its standard input."""
    return len(subprocess.run(command, input=data, capture_output=True, check=True).stdout)


def test_whole_sizes_are_those_of_the_programs(digits):
    digits = digits[:3]  # xz clears 64 MiB for each
    joined = b"".join(digits)
    for name, command in (("xz -9e", ("xz", "-9e")), ("zstd --ultra -22", ("zstd", "--ultra", "-22"))):
        each = sum(packed(*command, data=digit) for digit in digits)
        # With a file's size at hand, zstd writes it into the frame; of a pipe it does not know it.
        slack = len(digits) if command[0] == "zstd" else 0
        assert COMPRESSORS[name].sizes(GREY, digits).whole == pytest.approx(each, abs=slack)
        together = COMPRESSORS[f"{name}, all as one"].sizes(GREY, digits)
        assert together.whole == pytest.approx(packed(*command, data=joined), abs=4)
        assert together.whole < each


def test_the_rest_is_without_container_and_header(digits):
    """Of bytes that cannot be compressed, all remain, and nearly nothing else."""
    random = np.random.default_rng(0)
    noise = [GREY.header + random.bytes(3000) for _ in range(3)]
    for name, compressor in COMPRESSORS.items():
        if isinstance(compressor, JpegTranscoder):
            continue
        sizes = compressor.sizes(GREY, noise)
        assert 9000 <= sizes.rest <= 9000 + 3 * 4, name
        assert sizes.whole > sizes.rest + len(GREY.header), name
        assert compressor.sizes(GREY, [GREY.header] * 3).rest <= 0, name
    assert COMPRESSORS["file"].sizes(GREY, digits).whole == sum(len(GREY.restore(digit)) for digit in digits)


@pytest.mark.parametrize("codec", [GREY, COLOUR], ids=["grey", "colour"])
def test_cjxl_gets_ordinary_files_and_a_flat_picture_costs_nothing(codec, digits, colourful):
    flat = codec.encode(Image.new(codec.mode, (codec.width, codec.height), (128,) * len(codec.mode)))
    assert COMPRESSORS[CJXL].sizes(codec, [flat, flat]).rest == 0
    given = digits if codec is GREY else colourful
    sizes, files = COMPRESSORS[CJXL].sizes(codec, given), COMPRESSORS["file"].sizes(codec, given)
    assert 0.5 * files.rest < sizes.rest < files.rest < sizes.whole


def test_files_without_their_unused_tables_are_the_same_pictures(digits, colourful):
    for document in digits:
        file = GREY.restore(document)
        without = without_unused_tables(file)
        assert len(file) - len(without) == 69 + 33 + 183  # DQT, DHT DC, DHT AC of the chrominance
        seen, expected = (np.asarray(Image.open(io.BytesIO(data))) for data in (without, file))
        np.testing.assert_array_equal(seen, expected)
        assert GREY.strip(without) == document
    for document in colourful:
        assert without_unused_tables(COLOUR.restore(document)) == COLOUR.restore(document)


def program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def broken(tmp_path, monkeypatch) -> Path:
    """A folder that is first on PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def test_a_program_that_gives_other_bytes_back_is_refused(broken, digits):
    program(broken, "djxl", f'{shutil.which("djxl")} "$@" && printf x >> "$2"')
    with pytest.raises(InputError, match=r"^djxl does not give a file of \d+ bytes back: it gives \d+ others$"):
        COMPRESSORS[CJXL].sizes(GREY, digits)
    program(broken, "zstd", f'{shutil.which("zstd")} "$@" && case "$*" in *--decompress*) for last; do :; done; '
            'for file in "$last"/*; do printf x >> "$file"; done;; esac')  # fmt: skip
    with pytest.raises(InputError, match="^zstd does not give a file"):
        COMPRESSORS["zstd --ultra -22"].sizes(GREY, digits)


def test_a_program_that_fails_is_told_in_its_own_words(broken, digits):
    program(broken, "cjxl", "echo this is new >&2; echo no disk left >&2; exit 3")
    with pytest.raises(InputError, match="^cjxl ended with status 3: no disk left$"):
        COMPRESSORS[CJXL].sizes(GREY, digits)


def test_clips_are_compared_with_general_compressors_alone():
    found = compressors.for_codec(AvcCodec(32, 32, 5, 15, 37, False))
    assert found.keys() == COMPRESSORS.keys() - {CJXL}


def test_the_header_of_a_clip_ends_where_its_first_slice_and_a_token_begin():
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    for strip_headers in (False, True):
        codec = AvcCodec(32, 32, 5, 3, 37, strip_headers)
        document = codec.encode_frames(frames)
        header, rest = codec.header_of(document), document[len(codec.header_of(document)) :]
        # The tag of the aspect may differ, which is in front.
        assert not header if strip_headers else header[-500:] == codec.header[-500:]
        assert re.match(rb"\x00?\x00\x00\x01\x65", rest)
        text = "".join(chr(0x2800 + byte) for byte in document)
        assert any(found.start() == len(header) for found in re.finditer(codec.separator_regex, text))
        assert COMPRESSORS["document"].sizes(codec, [document]) == Sizes(len(document), len(rest))
        for name in compressors.for_codec(codec):
            assert COMPRESSORS[name].sizes(codec, [document] * 2).rest <= 2 * len(rest) + 8, name
