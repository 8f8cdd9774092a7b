"""What becomes of films that begin late, carry side data, hold several streams, or are damaged."""

import contextlib
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jpeglm.core.errors import Refused
from jpeglm.data.codecs import avc_header, avc_parser
from jpeglm.data.codecs import ffmpeg as program
from jpeglm.data.codecs.avc import AvcCodec
from jpeglm.data.codecs.film import dropped_gap
from tests.clips import ffmpeg, papers_command

CODEC = AvcCodec(height=32, width=32, fps=3, frames=15, qp=37, strip_headers=False)
STRIPPED = AvcCodec(height=32, width=32, fps=3, frames=15, qp=37, strip_headers=True)
X264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-coder", "vlc")  # whose decoder notices most damage
VP9 = ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8")
MOVING = ("-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=9,hue=H=2*t,noise=alls=30:allf=t")
# By name: suffix, codec of the pictures, codec of the sound.
CONTAINERS = {
    "mp4": (".mp4", X264, ("-c:a", "aac")),
    "mov": (".mov", X264, ("-c:a", "pcm_s16le")),
    "mkv": (".mkv", X264, ("-c:a", "aac")),
    "webm": (".webm", (*VP9, "-cluster_time_limit", "500"), ("-c:a", "libopus")),
    "ts": (".ts", X264, ("-c:a", "mp2")),
    "mpeg": (".mpg", ("-c:v", "mpeg2video", "-q:v", "4", "-bf", "2"), ("-c:a", "mp2")),
    "flv": (".flv", ("-c:v", "flv", "-q:v", "4"), ("-c:a", "libmp3lame")),
    "avi": (".avi", ("-c:v", "mjpeg", "-q:v", "4", "-pix_fmt", "yuvj420p"), ("-c:a", "pcm_s16le")),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("films")


def plain(folder: Path, container: str) -> Path:
    """A film that moves, 9 s, without sound."""
    suffix, pictures, _ = CONTAINERS[container]
    path = folder / f"plain{suffix}"
    if not path.exists():
        ffmpeg(*MOVING, *pictures, path)
    return path


def with_sound(folder: Path, container: str, late: float, path: Path | None = None) -> Path:
    """The same pictures, `late` seconds after a sound; before it if that is negative."""
    suffix, _, sound = CONTAINERS[container]
    tone, found = folder / f"tone{suffix}", folder / f"late{late}{suffix}"
    if not tone.exists():
        ffmpeg("-f", "lavfi", "-i", "sine=d=14:r=44100", *sound, tone)
    pictures = ("-itsoffset", max(late, 0), "-i", path or plain(folder, container))
    ffmpeg("-itsoffset", max(-late, 0), "-i", tone, *pictures, "-map", "0:a", "-map", "1:v", "-c", "copy", found)
    return found


def assert_moves(codec: AvcCodec, document: bytes) -> None:
    frames = codec.decode(document).astype(int)
    assert (np.abs(np.diff(frames, axis=0)).max(axis=(1, 2, 3)) > 8).all()


def clips(data: bytes) -> list[bytes]:
    """A film's first clip and two windows."""
    return [CODEC.encode(data), *CODEC.encode_windows(data, 2, 3)]


# When a film begins


@pytest.mark.parametrize(
    ("container", "late"),
    [
        *(("mp4", 2), ("mkv", 0.5), ("webm", 1), ("mp4", -1)),
        pytest.param("mov", 3.3, marks=pytest.mark.slow),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in (("ts", 4.71), ("mpeg", 2.2), ("flv", 1.7))),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in (("mp4", 0.2), ("mkv", 3.3), ("webm", -0.4))),
    ],
)
def test_a_film_whose_pictures_begin_late_gives_the_clips_of_the_pictures_alone(folder, container, late):
    alone = plain(folder, container).read_bytes()
    assert_moves(CODEC, CODEC.encode(alone))
    expected = [CODEC.encode(alone), CODEC.encode(alone, 3), CODEC.encode(alone, 6)]
    assert clips(with_sound(folder, container, late).read_bytes()) == expected


def test_a_late_start_in_the_header_of_an_avi_file_is_dropped(folder):
    data = bytearray(plain(folder, "avi").read_bytes())
    expected = clips(bytes(data))
    start = data.index(b"strh") + 8 + 28  # dwStart of AVISTREAMHEADER, in frames
    for frames in (13, 50):
        data[start : start + 4] = struct.pack("<I", frames)
        assert clips(bytes(data)) == expected


def test_a_film_begins_where_its_edit_list_says(folder):
    """It begins within a group of pictures, so that frames before its beginning are decoded and not shown."""
    ffmpeg("-ss", "1.28", "-i", plain(folder, "mp4"), "-c", "copy", folder / "cut.mp4")
    shown = ffmpeg("-i", folder / "cut.mp4", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    assert len(shown) == (225 - 32) * 64 * 48 * 3
    assert CODEC.encode((folder / "cut.mp4").read_bytes()) == papers_command(folder / "cut.mp4", "32:32")


def test_films_that_begin_within_half_a_frame_keep_the_bytes_of_the_paper_s_command(folder):
    reordered = folder / "no_edit_list.mp4"  # the first picture is at 0.08 s
    ffmpeg("-i", plain(folder, "mp4"), "-c", "copy", "-use_editlist", "0", reordered)
    films = [reordered, *(with_sound(folder, container, 0) for container in ("mkv", "flv"))]
    for path in (*films, with_sound(folder, "mp4", 0.12)):
        assert CODEC.encode(path.read_bytes()) == papers_command(path, "32:32"), path.name
    with_gap = with_sound(folder, "mp4", 0.2)
    assert CODEC.encode(with_gap.read_bytes()) != papers_command(with_gap, "32:32")


def test_the_gap_is_dropped_where_ffmpeg_s_fps_filter_rounds_it_to_a_frame():
    for fps in (3, 7, 25, 240):
        for base in (1000, 12_800, 90_000):
            edge = -(-base // (2 * fps))  # the first stamp at half a frame or after
            for stamp, dropped in ((edge - 1, False), (edge, True), (-edge, True)):
                start = repr(stamp / base)
                expression = dropped_gap(fps).removeprefix("setpts=PTS-STARTPTS*").replace("\\,", ",")
                gate = eval(expression.replace("STARTT", start), {"gte": lambda a, b: float(a >= b), "abs": abs})
                assert gate == dropped, (fps, base, stamp)


# Side data


def remuxed(path: Path, name: str, *filters: str) -> Path:
    """A film without what its container says, its stream passed through bitstream filters."""
    raw, made = path.with_name("raw.h264"), path.with_name(name)
    ffmpeg("-i", path, "-c", "copy", "-bsf:v", ",".join(("h264_mp4toannexb", *filters)), "-f", "h264", raw)
    ffmpeg("-framerate", 25, "-i", raw, "-c", "copy", made)
    return made


def captioned(path: Path) -> Path:
    """Captions of television in each frame, as ATSC A/53 has them: an SEI message of registered user data."""
    raw, made = path.with_name("captions.h264"), path.with_name("captions.mp4")
    ffmpeg("-i", path, "-c", "copy", "-bsf:v", "h264_mp4toannexb", "-f", "h264", raw)
    text = bytes.fromhex("b50031") + b"GA94" + bytes.fromhex("0342fffc9420fd8080ff")
    message = b"\0\0\0\1\x06" + bytes([4, len(text)]) + text + b"\x80"
    first, *others = re.split(b"(?=\0\0\1[\x01\x21\x41\x61\x25\x45\x65])", raw.read_bytes())
    raw.write_bytes(first + b"".join(message + part for part in others))
    ffmpeg("-framerate", 25, "-i", raw, "-c", "copy", made)
    return made


MASTERING = "mastering-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1)"


@pytest.fixture(scope="module")
def with_side_data(folder) -> dict[str, tuple[Path, Path]]:
    """Films by what they carry, and the same pictures without it."""
    alone = plain(folder, "mp4")
    films = {"captions": (captioned(alone), remuxed(alone, "no_captions.mp4"))}
    for mode in ("left_right", "top_bottom"):
        ffmpeg("-i", alone, "-c", "copy", "-metadata:s:v", f"stereo_mode={mode}", folder / f"{mode}.mkv")
        films[mode] = folder / f"{mode}.mkv", alone
    light = "cll=1000,400"
    for name, options in (("mastering", MASTERING), ("light", light), ("several", f"{MASTERING}:{light}")):
        ffmpeg(*MOVING, *X264, "-x264-params", options, folder / f"{name}.mp4")
        films[name] = folder / f"{name}.mp4", alone
    ffmpeg(*MOVING, *X264, "-x264-params", "frame-packing=5", folder / "packed.mp4")  # which changes the stream, too
    without = remuxed(folder / "packed.mp4", "not_packed.mp4", "filter_units=remove_types=6")
    films["packed"] = remuxed(folder / "packed.mp4", "packed_only.mp4"), without
    return films


def test_side_data_of_any_kind_leave_the_document_of_the_pictures_alone(with_side_data):
    for name, (film, alone) in with_side_data.items():
        with pytest.raises(avc_header.AvcError):  # the paper's command passes them on
            avc_parser.parse(papers_command(film, "32:32"))
        data = film.read_bytes()
        document = CODEC.encode(data)
        assert document == papers_command(alone, "32:32") and CODEC.is_valid(document), name
        assert next(CODEC.encode_windows(data, 1, 3)) == CODEC.encode(data, 3), name
        stripped = STRIPPED.encode(data)
        assert stripped == STRIPPED.strip(document) and STRIPPED.is_valid(stripped), name
        assert len(avc_parser.parse(STRIPPED.restore(stripped)).starts) == 15


def test_interlaced_films_become_documents_that_parse(folder):
    ffmpeg(*MOVING, "-vf", "setfield=tff", "-flags", "+ildct+ilme", *X264, folder / "interlaced.mp4")
    document = CODEC.encode((folder / "interlaced.mp4").read_bytes())
    assert document == papers_command(folder / "interlaced.mp4", "32:32") and CODEC.is_valid(document)


# Which stream


def test_of_several_streams_a_clip_is_that_of_the_default_one_unless_another_is_far_larger(folder):
    red, blue, huge = (
        ("-f", "lavfi", "-i", f"color={colour}:s={size}:r=3:d=5")
        for colour, size in (("red", "64x48"), ("blue", "128x96"), ("lime", "2880x2048"))
    )
    streams = ("-map", "0", "-map", "1", "-c:v", "mjpeg", "-pix_fmt", "yuvj420p")
    first, second = ("-disposition:0", "default", "-disposition:1", "0"), ("-disposition", "0")
    for inputs, default, channel in (((red, blue), first, 0), ((red, blue), second, 2), ((red, huge), first, 1)):
        ffmpeg(*inputs[0], *inputs[1], *streams, *default, folder / "streams.mkv")
        document = CODEC.encode((folder / "streams.mkv").read_bytes())
        assert document == papers_command(folder / "streams.mkv", "32:32")
        middle = CODEC.decode(document)[:, 16, 16].astype(int)
        assert (middle[:, channel] > 200).all() and (np.delete(middle, channel, 1) < 60).all()


# Damage


@contextlib.contextmanager
def busy():
    """A loop for each core, so that ffmpeg's threads run ahead of each other as chance will have it."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count())]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def outcomes(data: bytes, calls: int) -> set[bytes | str]:
    """What `calls` calls make of a film: documents, and reasons why there is none."""
    found = set()
    for _ in range(calls):
        try:
            found.add(CODEC.encode(data))
        except Refused as refusal:
            found.add(refusal.reason)
    return found


def packet_place(path: Path, number: int) -> tuple[int, int]:
    """Offset and length in a file of a picture's packet, counted in decoding order."""
    one = f"noise=drop=not(eq(n\\,{number}))"
    packet = ffmpeg("-i", path, "-map", "0:v", "-c", "copy", "-bsf:v", one, "-f", "data", "-")
    return path.read_bytes().index(packet), len(packet)


def damaged(path: Path, number: int) -> bytes:
    """A film in which the second half of a picture is zeros, which no slice of H.264 has inside."""
    data, (begin, length) = bytearray(path.read_bytes()), packet_place(path, number)
    data[begin + length // 2 : begin + length] = bytes(length - length // 2)
    return bytes(data)


def cut_off(path: Path, number: int) -> bytes:
    """A film that ends within a picture."""
    begin, length = packet_place(path, number)
    return path.read_bytes()[: begin + length // 2]


def fast_start(folder: Path) -> Path:
    """An mp4 whose index stands before its pictures, so that it can be cut off."""
    if not (path := folder / "fast.mp4").exists():
        ffmpeg("-i", plain(folder, "mp4"), "-c", "copy", "-movflags", "faststart", path)
    return path


def film(folder: Path, container: str) -> Path:
    return fast_start(folder) if container == "mp4" else plain(folder, container)


# The clip ends at 5 s; the last frame that it shows is at 4.8 s, frame 120.
def test_films_cut_off_behind_the_clip_are_kept_and_within_it_refused_at_each_call(folder):
    with busy():
        for container in ("mp4", "mkv"):
            path = film(folder, container)
            assert outcomes(cut_off(path, 133), 2) == {CODEC.encode(path.read_bytes())}, container
            assert outcomes(cut_off(path, 100), 1) < {"broken", "short"}, container


@pytest.mark.slow
@pytest.mark.parametrize("container", ["mp4", "mkv", "webm", "flv", "avi", "mpeg", "ts"])
def test_what_becomes_of_a_damaged_film_is_the_same_at_each_of_many_calls(folder, container):
    path = film(folder, container)
    whole = CODEC.encode(path.read_bytes())
    with busy():
        for share in np.linspace(0.45, 0.7, 9):
            data = path.read_bytes()[: int(share * path.stat().st_size)]
            found = outcomes(data, 8)
            assert found in ({whole}, {"broken"}, {"short"}), share
            assert share < 0.6 or found == {whole}, share
            assert share > 0.5 or found != {whole}, share
        if container in ("mp4", "mkv"):
            for number in (70, 100, 118, 127, 130, 140):
                assert outcomes(damaged(path, number), 8) == ({whole} if number > 120 else {"broken"}), number


def test_no_picture_behind_the_last_one_that_a_clip_needs_refuses_it(folder):
    """At the film's own rate, with pictures in another order than that in which they are shown."""
    path = plain(folder, "mkv")
    codec = AvcCodec(height=32, width=32, fps=25, frames=40, qp=37, strip_headers=False)
    lines = ffmpeg("-i", path, "-map", "0:v", "-c", "copy", "-copyts", "-f", "framecrc", "-").decode().splitlines()
    shown = [int(line.split(",")[2]) // 40 for line in lines if line.startswith("0,")]
    needed = 1 + max(number for number, frame in enumerate(shown) if frame < 40)
    assert any(frame >= 40 for frame in shown[:needed])  # some are decoded before the clip's last one
    whole = codec.encode(path.read_bytes())
    for number in range(needed, needed + 3):
        assert codec.encode(damaged(path, number)) == whole
    with pytest.raises(Refused, match="broken"):
        codec.encode(damaged(path, needed - 3))


def test_a_film_that_lacks_its_last_seconds_gives_the_windows_before_them(folder):
    path = fast_start(folder)
    data = cut_off(path, 165)  # at 6.6 s
    windows = CODEC.encode_windows(data, 9, 2)
    expected = CODEC.encode(path.read_bytes(), 2), CODEC.encode(path.read_bytes(), 4)
    assert (next(windows), next(windows)) == expected
    with pytest.raises(Refused, match="broken|short"):
        next(windows)


def test_complaints_are_errors_and_data_that_are_not_whole():
    said = [
        "  Stream #0:1: Audio: aac (LC)",
        "[aac @ 0x1] [error] sound",
        "[in#0/mpegts @ 0x1] [warning] corrupt input packet in stream 0",
        "[vist#0:0/h264 @ 0x2] [dec:h264 @ 0x3] [warning] corrupt decoded frame",
        "[h264 @ 0x3] [warning] another",
        "[h264 @ 0x3] [error] no frame!",
    ]
    assert program.errors(said) == ["no frame!"]
    assert program.complaints(said) == ["corrupt input packet in stream 0", "corrupt decoded frame", "no frame!"]


def test_damage_between_packets_counts_if_it_lies_within_the_clip(folder):
    """Matroska's reader passes over what it cannot read, and the decoder need not miss a picture."""
    path = plain(folder, "webm")
    whole = CODEC.encode(path.read_bytes())
    for number, kept in ((60, False), (140, True)):
        data = bytearray(path.read_bytes())
        at, _ = packet_place(path, number)
        data[at : at + 3000] = bytes(3000)
        assert outcomes(bytes(data), 2) == ({whole} if kept else {"broken"})
