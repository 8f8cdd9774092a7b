"""Clips: what is said of damaged ones, and of frames beside the true ones."""

import re

import numpy as np
import pytest

from jpeglm.data.codecs import avc_decoder, avc_parser, jpeg
from jpeglm.data.codecs.avc import AvcCodec
from jpeglm.data.codecs.base import Judged
from jpeglm.data.codecs.jpeg import JpegCodec
from jpeglm.tables.judges import judge
from jpeglm.tables.methods.last_frame import with_last_frame
from jpeglm.tables.methods.random_bytes import with_random_bytes
from jpeglm.tables.metrics import decibels
from tests.clips import FILMS, ffmpeg
from tests.photographs import photographs

CODEC = AvcCodec(48, 64, 8, 15, 37, True)
KEPT = 10
FILM_NAMES = ("bikes.mp4", "carphone_pristine.mp4", "bigbuckbunny.mp4")


@pytest.fixture(scope="module")
def originals() -> list[bytes]:
    return [CODEC.encode((FILMS / name).read_bytes()) for name in FILM_NAMES]


def judged(documents: list[bytes], originals: list[bytes]) -> list[Judged]:
    return list(judge(CODEC, documents, KEPT, originals))


def test_originals_are_perfect(originals):
    for each, original in zip(judged(originals, originals), originals, strict=True):
        assert each.scores == {"valid": 1, "readable": 1, "concealed": 0, "squared_error": 0, "ssim": 1}
        np.testing.assert_array_equal(each.seen, CODEC.decode(original))
        np.testing.assert_array_equal(each.pictures, each.seen[KEPT:])
    assert "ssim" not in next(judge(CODEC, originals, KEPT)).scores
    assert decibels(0.0) == float("inf")


def test_a_clip_that_stands_still_is_valid_and_shows_its_last_frame(originals):
    still = judged(with_last_frame(CODEC, originals, KEPT / 15), originals)
    for each in still:
        assert (each.scores["valid"], each.scores["readable"], each.scores["concealed"]) == (1, 1, 0)
        np.testing.assert_array_equal(each.pictures, np.repeat(each.seen[KEPT - 1 : KEPT], 5, axis=0))


def test_psnr_is_that_of_ffmpeg_s_filter(originals, tmp_path):
    [each] = judged(with_last_frame(CODEC, originals[:1], KEPT / 15), originals[:1])
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "64x48", "-r", 8, "-i")
    (tmp_path / "a").write_bytes(each.pictures.tobytes())
    (tmp_path / "b").write_bytes(CODEC.decode(originals[0])[KEPT:].tobytes())
    log = tmp_path / "log"
    graph = f"[0][1]psnr=stats_file={log}"
    ffmpeg(*raw, tmp_path / "a", *raw, tmp_path / "b", "-lavfi", graph, "-f", "null", "-")
    errors = [float(found) for found in re.findall(r"mse_avg:([0-9.]+)", log.read_text())]
    assert len(errors) == 5
    assert each.scores["squared_error"] == pytest.approx(np.mean(errors), abs=0.01)
    assert decibels(each.scores["squared_error"]) == pytest.approx(10 * np.log10(255**2 / np.mean(errors)), abs=0.01)


def test_ssim_is_wang_s(originals):
    """Gaussian windows of 11x11 with a deviation of 1.5, by an independent sum over windows of one channel."""
    frames = CODEC.decode(originals[0])
    [each] = judged(with_last_frame(CODEC, originals[:1], KEPT / 15), originals[:1])
    place = np.arange(-5, 6)
    window = np.exp(-(place**2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2

    def ssim(a: np.ndarray, b: np.ndarray) -> float:
        a, b = (np.lib.stride_tricks.sliding_window_view(x.astype(float), (11, 11)) for x in (a, b))
        mean = lambda x: (x * window).sum(axis=(-1, -2))  # noqa: E731
        covariance = mean(a * b) - mean(a) * mean(b)
        variances = mean(a * a) - mean(a) ** 2 + mean(b * b) - mean(b) ** 2
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        values = (2 * mean(a) * mean(b) + c1) * (2 * covariance + c2)
        return np.mean(values / ((mean(a) ** 2 + mean(b) ** 2 + c1) * (variances + c2)))

    pairs = [(each.pictures[n, ..., c], frames[KEPT + n, ..., c]) for n in range(5) for c in range(3)]
    assert each.scores["ssim"] == pytest.approx(np.mean([ssim(a, b) for a, b in pairs]), abs=1e-6)


def test_random_bytes_stand_between_the_original_s_start_codes(originals):
    drawn = with_random_bytes(CODEC, originals, KEPT / 15, seed=0)
    start_codes = lambda data: [found.span() for found in re.finditer(rb"\x00\x00\x01", data)]  # noqa: E731
    for document, original in zip(drawn, originals, strict=True):
        prompt, _ = CODEC.cut(original, frames=KEPT)
        assert document.startswith(prompt) and len(document) == len(original) and document != original
        assert start_codes(document) == start_codes(original)
    for each in judged(drawn, originals):
        assert each.scores["valid"] == 0 and each.scores["readable"] == 0 and each.scores["concealed"] > 0.9
        assert each.pictures.shape == (5, 48, 64, 3)


def test_what_never_came_counts_as_concealed(originals):
    for frames, readable, concealed in ((12, 2, 3), (14, 4, 1), (10, 0, 5)):
        [each] = judged([CODEC.cut(originals[0], frames=frames)[0]], originals[:1])
        assert each.scores["valid"] == 0
        assert each.scores["readable"] == readable / 5 and each.scores["concealed"] == pytest.approx(concealed / 5)
    [nothing] = judged([b""], originals[:1])
    assert nothing.scores["concealed"] == 1 and (nothing.seen == 128).all()


def test_a_continuation_that_spoils_the_last_given_frame_reads_no_less_than_nothing(originals):
    prompt, _ = CODEC.cut(originals[0], frames=KEPT)
    [each] = judged([prompt + b"\x55" * 40], originals[:1])
    assert each.scores["readable"] == 0 and each.scores["valid"] == 0


# How often a document is parsed and decoded


def counted(monkeypatch, module, name: str) -> list[None]:
    """A list that grows with each call of a function."""
    calls, function = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *arguments: (calls.append(None), function(*arguments))[1])
    return calls


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_valid_picture_is_parsed_once_and_looks_as_decoded(mode, monkeypatch):
    codec = JpegCodec(height=40, width=56, mode=mode, quality=25)
    for picture in photographs(3, 40, 56, mode):
        document = codec.encode(picture)
        expected = codec.decode(document)
        calls, mcus = counted(monkeypatch, jpeg, "parse_scan"), counted(monkeypatch, JpegCodec, "_readable_mcu")
        assert codec.see(codec.restore(document)).tobytes() == expected.tobytes() and len(calls) == 1
        is_valid, seen, readable = codec.look(document)
        assert (is_valid, seen.tobytes(), readable) == (True, expected.tobytes(), codec.units) and len(calls) == 2
        [each] = judge(codec, [document], 2)
        np.testing.assert_array_equal(each.seen, np.asarray(expected))
        assert each.scores == {"valid": 1, "readable": 1} and len(calls) == 3 and not mcus
        monkeypatch.undo()


def test_a_damaged_picture_is_seen_as_before_whether_its_header_is_whole_or_not():
    codec = JpegCodec(height=40, width=56, mode="RGB", quality=25)
    document = codec.encode(photographs(1, 40, 56)[0])
    for at in (3, 30, 70, 200, len(document) - 5):
        damaged = document[:at] + b"\xff\xd3" + document[at + 2 :]
        repaired, readable = codec.repair(damaged)
        is_valid, seen, found = codec.look(damaged)
        assert not is_valid and found == readable
        assert seen.tobytes() == codec.decode(repaired).tobytes() == codec.see(codec.restore(damaged)).tobytes()


def test_a_valid_clip_is_parsed_once_and_decoded_once(originals, monkeypatch):
    expected = CODEC.decode(originals[0])
    parsed, decoded = counted(monkeypatch, avc_parser, "parse"), counted(monkeypatch, avc_decoder, "decode")
    is_valid, seen, readable = CODEC.look(originals[0])
    assert is_valid and readable == 15 and (len(parsed), len(decoded)) == (1, 1)
    np.testing.assert_array_equal(seen, expected)
    [each] = judge(CODEC, originals[:1], KEPT)
    assert each.scores == {"valid": 1, "readable": 1, "concealed": 0} and (len(parsed), len(decoded)) == (2, 2)
    monkeypatch.undo()
    cut = originals[0][: CODEC.parse(originals[0]).ends[11]]
    is_valid, seen, readable = CODEC.look(cut)
    assert not is_valid and readable == 12
    np.testing.assert_array_equal(seen, CODEC.see(CODEC.restore(cut)))
