"""ffmpeg's decoder behind H.264 documents: what it shows of damage, and counts, are the same each time."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from jpeglm.data.codecs import avc_decoder
from jpeglm.data.codecs.avc_decoder import Decoded
from jpeglm.data.codecs.avc_parser import parse
from tests.data.codecs.avc_tools import encode, units

WIDTH, HEIGHT, FRAMES = 64, 48, 15
STREAM = encode("testsrc2", (WIDTH, HEIGHT), frames=20)
CLIP = parse(STREAM)


def decode(stream: bytes) -> Decoded:
    return avc_decoder.decode(stream, FRAMES, HEIGHT, WIDTH, fps=3)


def shuffled(random: np.random.Generator) -> bytes:
    """Parameter sets and three whole frames, then slices of later ones, lost, cut or in other places."""
    slices = [unit for unit in units(STREAM[CLIP.starts[3] :]) if random.random() < 0.7]
    for number in random.integers(len(slices), size=len(slices) // 3):
        slices[number] = slices[number][: random.integers(4, 20)] + random.bytes(int(random.integers(9)))
    for number in random.integers(len(slices) - 1, size=len(slices) // 3):
        slices[number : number + 2] = slices[number : number + 2][::-1]
    return STREAM[: CLIP.ends[2]] + b"".join(slices)


def test_damage_looks_the_same_each_time():
    random = np.random.default_rng(0)
    with ThreadPoolExecutor(12) as pool:  # more than there are cores: each run is interrupted elsewhere
        for stream in [shuffled(random) for _ in range(12)]:
            first, *others = pool.map(decode, [stream] * 12)
            assert first.concealed and len(first.frames) > 3
            for other in others:
                np.testing.assert_array_equal(other.frames, first.frames)
                assert other.concealed == first.concealed


def test_what_lies_behind_the_frames_that_were_asked_for_is_not_counted():
    lost = [unit for number, unit in enumerate(units(STREAM[CLIP.starts[FRAMES + 1] :])) if number % 3]
    decoded = decode(STREAM[: CLIP.ends[FRAMES]] + b"".join(lost))
    assert len(decoded.frames) == FRAMES + 1 and not decoded.concealed and decoded.complaints
    np.testing.assert_array_equal(decoded.frames, decode(STREAM).frames)


def test_frames_of_another_size_are_scaled():
    large = encode("testsrc2", (2 * WIDTH, 2 * HEIGHT), frames=FRAMES)
    own, scaled = decode(STREAM[: CLIP.ends[FRAMES - 1]]), decode(large)
    assert scaled.frames.shape == own.frames.shape and not scaled.complaints
    halves = avc_decoder.decode(large, FRAMES, 2 * HEIGHT, 2 * WIDTH, fps=3).frames.astype(float)
    halves = halves.reshape(FRAMES, HEIGHT, 2, WIDTH, 2, 3).mean(axis=(2, 4))
    assert np.abs(scaled.frames - halves).mean() < 6

    changing = decode(STREAM[: CLIP.ends[4]] + large)
    np.testing.assert_array_equal(changing.frames[:5], own.frames[:5])
    np.testing.assert_array_equal(changing.frames[5:], scaled.frames[: len(changing.frames) - 5])


def test_a_stream_without_end_gives_as_many_frames_as_were_asked_for_and_one():
    decoded = decode(STREAM * 20)
    assert len(decoded.frames) == FRAMES + 1 and not decoded.concealed
