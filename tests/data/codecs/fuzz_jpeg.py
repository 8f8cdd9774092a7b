"""Fuzzes everything in the JPEG codec that reads bytes, and checks its promises on every input.

    python -m tests.data.codecs.fuzz_jpeg --minutes=60 [--seed=0]

Inputs are documents and files of several sizes, changed by mutations that know the format: bits, bytes, markers,
stuffing, length fields, whole MCUs, MCUs written from random Huffman codes, splices of two files. Input i is a
function of (seed, i). Findings are printed with the bytes that show them; exit status 1 if there were any.
`tests.data.codecs.fuzz_jpeg_coverage` runs the same checks under atheris.
"""

import collections
import faulthandler
import functools
import itertools
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator

import numpy as np
import simplejpeg
from absl import app, flags
from PIL import Image

from jpeglm.data.codecs.jpeg import JpegCodec, JpegError, Scan, parse
from jpeglm.data.codecs.jpeg_header import ANNEX_K
from tests.data.codecs.jpeg_tools import jpegtran, save
from tests.photographs import photographs

SECONDS = 10  # of CPU for all checks of one input, which has some thousand bytes
CODECS = [
    JpegCodec(height, width, mode, quality)
    for height, width, mode, quality in (
        (8, 8, "L", 25),
        (16, 16, "RGB", 25),
        (33, 17, "L", 90),
        (24, 40, "RGB", 1),
        (48, 32, "RGB", 100),
        (64, 64, "L", 25),
        (64, 64, "RGB", 25),
    )
]
# `parse` needs no quantisation tables, and skips application data.
HARMLESS = ("Quantization table", "unknown JFIF revision", "Unknown Adobe color transform")
RATIOS = (0, 0.3, 0.5, 0.99, 1)


@functools.cache
def seeds(codec: JpegCodec) -> list[bytes]:
    """What mutations start from: documents and files of the codec, and files of other encoder settings."""
    size = (codec.height, codec.width)
    noise = np.random.default_rng(0).integers(0, 256, size + ((3,) if codec.mode == "RGB" else ()), np.uint8)
    pictures = [*photographs(2, *size, codec.mode), Image.fromarray(noise)]
    documents = [codec.encode(picture) for picture in pictures]
    others = [
        save(pictures[0], quality=codec.quality, **options)
        for options in (
            {"restart_marker_blocks": 1},
            {"restart_marker_blocks": 3},
            {},
            {"optimize": True},
            {"progressive": True},
            {"subsampling": "4:4:4", "restart_marker_rows": 1},
            {"subsampling": "4:2:2", "comment": b"\xff\xda"},
        )
    ]
    cmyk = save(Image.new("CMYK", pictures[0].size, (1, 80, 30, 7)), subsampling="4:4:4")
    return documents * 6 + [codec.restore(documents[0])] + others + [cmyk]


# Mutations


def _codes(is_ac: int, destination: int) -> dict[int, str]:
    """Huffman codes of Annex K by symbol."""
    specification, code, codes = ANNEX_K[is_ac, destination], 0, {}
    symbols = iter(specification[16:])
    for length, count in enumerate(specification[:16], start=1):
        for symbol in itertools.islice(symbols, count):
            codes[symbol] = f"{code:0{length}b}"
            code += 1
        code <<= 1
    return codes


CODES = {key: _codes(*key) for key in ANNEX_K}


def random_mcu(random: np.random.Generator, codec: JpegCodec, wrong: float) -> bytes:
    """An MCU of random codes; with probability `wrong`, at each turn, past coefficient 63 or without a code."""
    bits = []
    largest = int(random.integers(1, 11))  # size of the largest coefficient
    for block in range(6 if codec.mode == "RGB" else 1):
        destination = int(block >= 4)
        size = int(random.integers(12))
        bits.append(CODES[0, destination][size] + _amplitude(random, size))
        symbols = CODES[1, destination]
        index, limit = 0, random.choice([0, 3, 20, 63, 64])
        while index < limit:
            run, size = int(random.choice([0, 0, 0, 1, 2, 7, 14, 15])), int(random.integers(0, largest + 1))
            if not size:
                run = 15
            if index + run + 1 > 63 and random.random() >= wrong:
                break
            bits.append(symbols[run << 4 | size] + _amplitude(random, size))
            index += run + 1
        if index < 63 or random.random() < wrong:
            bits.append(symbols[0])
    if random.random() < wrong:
        del bits[random.integers(len(bits))]
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8).replace(b"\xff", b"\xff\x00")


def _amplitude(random: np.random.Generator, size: int) -> str:
    return f"{int(random.integers(1 << size)):0{size}b}" if size else ""


def _markers(data: bytes) -> list[int]:
    return [at for at in range(len(data) - 1) if data[at] == 0xFF and data[at + 1] not in (0, 0xFF)]


def _between(data: bytes, random: np.random.Generator) -> tuple[int, int]:
    """Bounds of what stands between two neighbouring markers."""
    markers = [*_markers(data), len(data)]
    which = int(random.integers(len(markers)))
    return (markers[which - 1] + 2 if which else 0), markers[which]


def _flip(data, random, codec):
    data[random.integers(len(data))] ^= 1 << int(random.integers(8))


def _set(data, random, codec):
    data[random.integers(len(data))] = random.choice(
        [0, 1, 0x3F, 0x7F, 0x80, 0xC0, 0xC4, 0xD0, 0xD7, 0xD9, 0xDA, 0xFF]
    )


def _delete(data, random, codec):
    at = random.integers(len(data))
    del data[at : at + random.choice([1, 1, 2, 3, 30])]


def _insert(data, random, codec):
    at = random.integers(len(data) + 1)
    data[at:at] = random.bytes(random.choice([1, 1, 2, 3, 30]))


def _overwrite(data, random, codec):
    at = random.integers(len(data))
    data[at : at + random.choice([1, 2, 3, 30])] = random.bytes(random.choice([1, 2, 3, 30]))


def _repeat(data, random, codec):
    at = random.integers(len(data))
    data[at:at] = data[at : at + random.choice([1, 2, 3, 30, 600])]


def _truncate(data, random, codec):
    del data[random.integers(len(data)) :]


def _swap_markers(data, random, codec):
    markers = _markers(data)
    if markers:
        a, b = random.choice(markers), random.choice(markers)
        data[a : a + 2], data[b : b + 2] = data[b : b + 2], data[a : a + 2]


def _other_marker(data, random, codec):
    markers = _markers(data)
    if markers:
        data[random.choice(markers) + 1] = random.choice([0, 0xC0, 0xC4, *range(0xD0, 0xDE), 0xE0, 0xFE, 0xFF])


def _length_field(data, random, codec):
    markers = [at for at in _markers(data) if at + 4 <= len(data)]
    if markers:
        at = random.choice(markers) + 2
        length = int.from_bytes(data[at : at + 2])
        data[at : at + 2] = int(random.choice([0, 1, 2, length + 1, max(length - 1, 0), 0xFFFF]) & 0xFFFF).to_bytes(2)


def _stuffing(data, random, codec):
    places = [at for at in range(len(data)) if data[at] == 0xFF]
    if places:
        at = int(random.choice(places))
        if random.random() < 0.5:
            data[at + 1 : at + 1] = b"\x00"
        elif data[at + 1 : at + 2] == b"\x00":
            del data[at + 1]


def _drop_mcu(data, random, codec):
    start, end = _between(data, random)
    del data[start : end + 2 * int(random.integers(2))]


def _random_mcu(data, random, codec):
    start, end = _between(data, random)
    data[start:end] = random_mcu(random, codec, 0.1)


def _random_scan(data, random, codec):
    parts, wrong = [codec.header], random.choice([0, 0.01])
    for unit in range(codec.units):
        is_last = unit == codec.units - 1
        parts += [random_mcu(random, codec, wrong), b"\xff\xd9" if is_last else bytes([0xFF, 0xD0 + unit % 8])]
    data[:] = b"".join(parts)


def _noise_in_scan(data, random, codec):
    start, end = _between(data, random)
    data[start:end] = random.bytes(max(0, end - start))


def _splice(data, random, codec):
    other = random.choice(np.array(seeds(codec), object))
    data[random.integers(len(data)) :] = other[random.integers(len(other)) :]


MUTATIONS: list[Callable[[bytearray, np.random.Generator, JpegCodec], None]] = [
    *(_flip, _flip, _set, _delete, _insert, _overwrite, _repeat, _truncate),
    *(_swap_markers, _other_marker, _length_field, _stuffing, _stuffing),
    *(_drop_mcu, _random_mcu, _random_mcu, _random_scan, _noise_in_scan, _splice),
]


def mutate(data: bytes, random: np.random.Generator, codec: JpegCodec) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice([1, 1, 1, 2, 3, 6])):
        if changed:
            MUTATIONS[random.integers(len(MUTATIONS))](changed, random, codec)
    return bytes(changed)


def make_input(seed: int, number: int) -> tuple[JpegCodec, bytes]:
    """Input `number` of a run, and the codec that is to read it."""
    random = np.random.default_rng((seed, number))
    codec = CODECS[random.integers(len(CODECS))]
    return codec, mutate(seeds(codec)[random.integers(len(seeds(codec)))], random, codec)


# Promises


def _read(reader: Callable, *arguments: object) -> object | None:
    """What a strict reader returns; None where it refuses as it may: by a JpegError of one line."""
    try:
        return reader(*arguments)
    except JpegError as refusal:
        assert str(refusal) and "\n" not in str(refusal), refusal
        return None


def check(codec: JpegCodec, data: bytes) -> bool:
    """Raises AssertionError, or whatever comes out, where a promise of the codec does not hold.

    Returns whether the codec, or at least `parse`, accepts the input.
    """
    scan, file_scan = _read(codec.parse, data), _read(parse, data)
    assert codec.is_valid(data) == (scan is not None)
    assert (_read(codec.decode, data) is None) == (_read(codec.cut, data, 0.5) is None) == (scan is None)
    stripped = _read(codec.strip, data)
    if stripped is not None:
        assert codec.strip(codec.restore(stripped)) == stripped
    if scan is not None:
        _check_document(codec, data, scan)
    if file_scan is not None:
        _check_scan(file_scan, data)
        if scan is None:
            _check_given_back(data, file_scan)

    picture, readable = codec.decode_leniently(data)
    assert (picture.mode, picture.size) == (codec.mode, (codec.width, codec.height))
    repaired, readable_again = codec.repair(data)
    assert readable == readable_again and 0 <= readable <= codec.units
    assert codec.is_valid(repaired) and codec.repair(repaired) == (repaired, codec.units)
    assert scan is None or repaired == data
    return scan is not None or file_scan is not None


def _check_document(codec: JpegCodec, document: bytes, scan: Scan) -> None:
    _check_scan(scan, document)
    file = codec.restore(document)
    assert codec.strip(file) == document
    file_scan = parse(file)
    assert (file_scan.coefficients() == scan.coefficients()).all()
    assert (file_scan.block_ends == scan.block_ends + 8 * len(codec.tables)).all()
    pixels = simplejpeg.decode_jpeg(file, colorspace="GRAY" if codec.mode == "L" else "RGB", strict=True)
    assert pixels.shape[:2] == (codec.height, codec.width)
    decoded = codec.decode(document)
    assert (decoded.mode, decoded.size) == (codec.mode, (codec.width, codec.height))
    again = codec.encode(decoded)
    assert codec.encode(codec.decode(document)) == again and codec.is_valid(again)
    _check_given_back(file, file_scan, document[scan.starts[0] :])

    before = b""
    for ratio in RATIOS:
        prefix, kept = codec.cut(document, ratio)
        assert document.startswith(prefix) and prefix.startswith(before)
        assert kept == int(ratio * codec.units + 1e-9)
        completed = codec.complete_with_flat(prefix, kept)
        assert completed.startswith(prefix) and codec.is_valid(completed)
        before = prefix
    assert before == document


def _check_given_back(file: bytes, scan: Scan, scan_bytes: bytes | None = None) -> None:
    """jpegtran reads the same coefficients; and writes the same scan, where one with Annex K's tables is given.

    Different are runs of zeros before the end of a block, which it leaves out, and blocks outside the picture, which
    it makes anew.
    """
    transcoded, complaints = jpegtran(file)
    if any(harmless in complaints for harmless in HARMLESS):
        return
    assert not complaints, complaints
    single = len(scan.components) == 1
    sides = (("vertical", scan.height), ("horizontal", scan.width))
    down, across = (size / (8 if single else 8 * max(getattr(c, key) for c in scan.components)) for key, size in sides)
    row, column = np.divmod(np.arange(len(scan.starts)), -int(-across // 1))
    inside = (row < int(down)) & (column < int(across))
    if not inside.all() and abs(scan.coefficients()[..., 0]).max() > 1023:
        return  # no picture has such; made anew, blocks outside may need a difference that has no code
    other = parse(transcoded)
    if scan_bytes == transcoded[other.starts[0] :]:
        return
    assert (other.coefficients() == scan.coefficients())[inside].all()
    assert not inside.all() or scan_bytes is None or _bits(other, transcoded) < _bits(scan, file)


def _bits(scan: Scan, file: bytes) -> int:
    """Bits of a scan with a restart marker after each MCU, without padding and stuffed zeros."""
    zeros = [found.start() + 1 for found in re.finditer(b"\xff\x00", file)]
    ends = scan.block_ends[:, -1]
    stuffed = np.searchsorted(zeros, ends >> 3) - np.searchsorted(zeros, scan.starts)
    return int((ends - 8 * scan.starts - 8 * stuffed).sum())


def _check_scan(scan: Scan, data: bytes) -> None:
    assert len(scan.starts) == len(scan.ends) == len(scan.block_ends)
    assert (np.diff(scan.block_ends.reshape(-1)) >= 2).all()  # the shortest code and EOB
    assert (scan.starts < scan.ends).all() and scan.ends[-1] + 2 == len(data)
    assert scan.coefficients().shape == (*scan.block_ends.shape, 64)


def explain(error: BaseException) -> str:
    """Where an exception came from: equal for equal findings."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {os.path.basename(last.filename)}:{last.lineno}: {error}"[:300]


def check_in_time(codec: JpegCodec, data: bytes) -> bool:
    """`check`, or TimeoutError when it took longer than SECONDS by the clock and of CPU.

    Nothing interrupts it: a handler of SIGPROF would also be called for signals that are not its own. A check that
    does not end prints where it is, and ends the process.
    """
    faulthandler.dump_traceback_later(60 * SECONDS, exit=True)
    clock, cpu = time.monotonic(), time.process_time()
    try:
        return check(codec, data)
    finally:
        faulthandler.cancel_dump_traceback_later()
        if min(time.monotonic() - clock, time.process_time() - cpu) > SECONDS:
            raise TimeoutError(f"more than {SECONDS} s of CPU")


# Runs


def fuzz(seed: int, numbers: Iterator[int]) -> tuple[dict[str, tuple[int, JpegCodec, bytes]], collections.Counter]:
    """Checks inputs; returns the first one of each kind of finding, by what went wrong, and counts."""
    findings, counts = {}, collections.Counter()
    for number in numbers:
        codec, data = make_input(seed, number)
        counts["inputs"] += 1
        start = time.process_time()
        try:
            counts["accepted"] += check_in_time(codec, data)
        except Exception as error:
            counts["failed"] += 1
            if explain(error) not in findings:
                findings[explain(error)] = number, codec, data
                report(explain(error), f"seed {seed}, input {number}", codec, data)
        counts["longest_ms"] = max(counts["longest_ms"], round(1000 * (time.process_time() - start)))
    return findings, counts


def report(what: str, which: str, codec: JpegCodec, data: bytes) -> None:
    print(f"{what}\n  {which}, {codec}\n  bytes.fromhex({data.hex()!r})", flush=True)


def _until(seconds: float) -> Iterator[int]:
    end, beat = time.monotonic() + seconds, time.monotonic()
    for number in itertools.count():
        if time.monotonic() > end:
            return
        if time.monotonic() > beat:
            print(f"{number} inputs, {time.process_time():.0f} s of CPU", file=sys.stderr, flush=True)
            beat += 60
        yield number


_MINUTES = flags.DEFINE_float("minutes", None, "How long.", required=True)
_SEED = flags.DEFINE_integer("seed", 0, "Of the inputs.")


def main(_: list[str]) -> None:
    start = time.monotonic()
    findings, counts = fuzz(_SEED.value, _until(60 * _MINUTES.value))
    wall, cpu = time.monotonic() - start, time.process_time()
    print(f"{dict(counts)}; {wall:.0f} s, {cpu:.0f} s of CPU, {counts['inputs'] / cpu:.1f} inputs a CPU second")
    print(f"{len(findings)} kinds of findings")
    sys.exit(bool(findings))


if __name__ == "__main__":
    app.run(main)
