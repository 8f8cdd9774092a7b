"""The H.264 codec against the paper's command on real films, and the rules for all that is no ordinary clip."""

import dataclasses
import re

import numpy as np
import pytest
from PIL import Image

from jpeglm.core.config import avc
from jpeglm.core.errors import InputError, Refused
from jpeglm.core.registry import CODECS
from jpeglm.data import sources
from jpeglm.data.codecs import avc_header
from jpeglm.data.codecs.avc import AvcCodec, AvcError
from tests.clips import FILMS, ffmpeg, papers_command, planes, transcoded

PAPER = AvcCodec(height=144, width=256, fps=3, frames=15, qp=37, strip_headers=False)
STRIPPED = dataclasses.replace(PAPER, strip_headers=True)
SHORT = ("-t", "5.2")
LONG_ENOUGH = ("a.mp4", "b.avi", "b.mp4", "bigbuckbunny.mp4", "bikes.mp4", "muted_b.mp4", "world.mp4")
TRANSCODED = {
    "bikes.webm": ("bikes.mp4", "-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", *SHORT),
    "world.mkv": ("world.mp4", "-c:v", "copy", *SHORT),
    "bikes.gif": ("bikes.mp4", "-vf", "fps=6,scale=160:-2", *SHORT),
    "bigbuckbunny.webp": ("bigbuckbunny.mp4", "-vf", "fps=6,scale=160:-2", "-c:v", "libwebp_anim", *SHORT),
}


@pytest.fixture(scope="session")
def films(tmp_path_factory):
    """Eleven real clips by name: mp4, avi, webm, mkv, gif, webp."""
    folder = tmp_path_factory.mktemp("films")
    found = {name: FILMS / name for name in LONG_ENOUGH}
    for name, (film, *options) in TRANSCODED.items():
        found[name] = transcoded(film, folder, "." + name.partition(".")[2], *options)
    return found


@pytest.fixture(scope="session")
def streams(films):
    """What the paper's command makes of them."""
    return {name: papers_command(path) for name, path in films.items()}


@pytest.fixture(scope="module")
def stream(streams):
    """One with a scene cut: an IDR picture in the middle."""
    assert PAPER.parse(streams["bikes.mp4"]).is_idr.sum() == 2
    return streams["bikes.mp4"]


def test_ten_real_clips_become_the_bytes_that_the_paper_s_command_gives(films, streams):
    for name, path in films.items():
        document = PAPER.encode(path.read_bytes())
        assert document == streams[name], name
        assert PAPER.is_valid(document) and PAPER.restore(document) == document


def parts(stream):
    """Header bytes of each NAL unit without the tags of colour and aspect, and whole slices."""
    for nal in avc_header.split(stream):
        content = stream[nal.begin : nal.end]
        yield avc_header.without_tags(content) if nal.type == avc_header.SPS else content


def test_stripped_documents_restore_to_the_same_bytes_but_for_tags_and_to_the_same_frames(films, streams):
    equal = 0
    for name, path in films.items():
        document = STRIPPED.encode(path.read_bytes())
        assert {nal.type for nal in avc_header.split(document)} <= {1, 5}
        assert STRIPPED.is_valid(document)
        restored = STRIPPED.restore(document)
        assert STRIPPED.strip(restored) == document
        np.testing.assert_array_equal(planes(restored), planes(streams[name]))
        assert list(parts(restored)) == list(parts(streams[name]))
        assert re.findall(b"\0\0\0?\1", restored) == re.findall(b"\0\0\0?\1", streams[name])
        equal += restored == streams[name]
    assert equal >= 1  # those whose source has the tags of the codec's own header


def test_a_second_decoder_sees_the_same_frames(stream):
    np.testing.assert_array_equal(planes(stream), planes(stream, decoder="libopenh264"))


@pytest.mark.parametrize("codec", [PAPER, STRIPPED], ids=["whole", "stripped"])
def test_a_cut_clip_decodes_to_exactly_its_first_frames(codec, stream):
    document = codec.strip(stream)
    whole, all_frames = planes(stream), codec.decode(document)
    for frames in range(1, 15):
        prefix, kept = codec.cut(document, frames=frames)
        assert kept == frames and document.startswith(prefix)
        np.testing.assert_array_equal(planes(codec.restore(prefix)), whole[:frames])
        decoded = codec.decode_stream(codec.restore(prefix))
        assert not decoded.concealed and not decoded.complaints
        np.testing.assert_array_equal(decoded.frames, all_frames[:frames])
    assert codec.cut(document, frames=0) == (b"", 0)
    assert codec.cut(document, frames=15) == (document, 15) == codec.cut(document, 1.0)
    assert codec.cut(document, 2 / 3) == codec.cut(document, frames=10)


@pytest.mark.parametrize("codec", [PAPER, STRIPPED], ids=["whole", "stripped"])
def test_a_last_frame_that_is_repeated_is_a_valid_clip_that_stands_still(codec, stream):
    document = codec.strip(stream)
    frames = planes(stream)
    for kept in (1, 4, 10, 14, 15):  # the scene is cut after the fourth
        frozen = codec.complete_with_last(*codec.cut(document, frames=kept))
        assert codec.is_valid(frozen)
        seen = planes(codec.restore(frozen))
        np.testing.assert_array_equal(seen[:kept], frames[:kept])
        assert (seen[kept:] == frames[kept - 1]).all()
    with pytest.raises(InputError, match="there must be one to repeat"):
        codec.complete_with_last(b"", 0)


def test_cuts_that_cannot_be_are_refused(stream):
    for wrong in ({"ratio": 1.1}, {"ratio": -0.1}, {"frames": 16}, {"frames": -1}, {}, {"ratio": 0.5, "frames": 3}):
        with pytest.raises(InputError):
            PAPER.cut(stream, **wrong)
    with pytest.raises(AvcError):
        PAPER.cut(stream[:-1], frames=3)


def test_what_the_decoder_concealed_is_counted(stream):
    clip = PAPER.parse(stream)
    start, end = clip.slice_starts[7, 60], clip.slice_ends[7, 60]
    without_one = stream[:start] + stream[end:]
    decoded = PAPER.decode_stream(without_one)
    assert len(decoded.frames) == 15 and decoded.concealed == 1
    assert not PAPER.is_valid(without_one)
    np.testing.assert_array_equal(decoded.frames[:7], PAPER.decode(stream)[:7])
    _, readable = PAPER.decode_leniently(without_one)
    assert readable == 7
    nothing = PAPER.decode_stream(b"\x12" * 300)
    assert nothing.frames.shape == (0, 144, 256, 3) and nothing.complaints


@pytest.mark.parametrize("codec", [PAPER, STRIPPED], ids=["whole", "stripped"])
def test_any_bytes_can_be_seen_and_tell_how_much_of_them_is_readable(codec, stream):
    document = codec.strip(stream)
    clip, frames = codec.parse(document), codec.decode(document)
    seen, readable = codec.decode_leniently(document)
    assert readable == 15
    np.testing.assert_array_equal(seen, frames)
    for cut, expected in (
        (clip.ends[9], 10),
        (clip.ends[9] + 2, 10),
        (clip.ends[9] + 5, 10),
        (clip.slice_ends[9, 70], 9),
        (clip.ends[0] - 1, 0),
        (0, 0),
    ):
        seen, readable = codec.decode_leniently(document[:cut])
        assert readable == expected and seen.shape == frames.shape
        np.testing.assert_array_equal(seen[:expected], frames[:expected])
    seen, _ = codec.decode_leniently(document[: clip.ends[9]])
    assert (seen[10:] == frames[9]).all()  # the last one, repeated
    damaged = bytearray(document)
    damaged[clip.starts[10] + 4] ^= 0x20
    assert codec.decode_leniently(bytes(damaged))[1] == 10
    swapped = document[: clip.starts[4]] + document[clip.starts[5] : clip.ends[5]] + document[clip.starts[4] :]
    assert codec.decode_leniently(swapped)[1] == 4
    assert codec.decode_leniently(document + document[clip.starts[14] :])[1] == 15
    seen, readable = codec.decode_leniently(bytes(range(256)) * 9)
    assert readable == 0 and (seen == 128).all()


def test_frames_are_those_of_the_stream_in_colour(stream):
    frames = PAPER.decode(stream)
    assert frames.shape == (15, 144, 256, 3) and frames.dtype == np.uint8
    luminance = frames @ np.array([0.299, 0.587, 0.114])
    expected = (planes(stream)[:, :144].astype(float) - 16) * 255 / 219
    assert np.abs(luminance - np.clip(expected, 0, 255)).mean() < 2


def test_sources_that_are_no_clip_are_refused_by_reason(films, tmp_path):
    def made(name, *arguments):
        ffmpeg(*arguments, tmp_path / name)
        return (tmp_path / name).read_bytes()

    tone = ("-f", "lavfi", "-i", "sine=duration=6")
    still = FILMS.parent / "still.png"
    Image.new("RGB", (64, 48), "red").save(tmp_path / still.name)
    cover = ("-i", tmp_path / still.name, "-map", "0", "-map", "1", "-c:v", "png", "-disposition:v", "attached_pic")
    film = films["b.mp4"].read_bytes()
    cases = {
        "audio alone": (made("tone.mp4", *tone), "no video"),
        "a song with a cover": (made("song.mp4", *tone, *cover), "short: [01] of 15 frames"),
        "a picture": ((tmp_path / still.name).read_bytes(), "not a clip"),
        "a short clip": ((FILMS / "carphone_pristine.mp4").read_bytes(), "short: 12 of 15 frames"),
        "cut in the middle": (film[: len(film) // 2], "not a clip|broken|short"),
        "text": (b"#EXTM3U\n#EXTINF:5,\nfile:///etc/passwd\n" * 9, "not a clip"),
        "nothing": (b"", "not a clip"),
        "a playlist of ffmpeg's": (b"ffconcat version 1.0\nfile '/etc/passwd'\n", "not a clip"),
    }
    for what, (data, reason) in cases.items():
        with pytest.raises(Refused, match=reason):
            print(what, PAPER.encode(data)[:0])


def test_a_cut_off_film_is_kept_if_its_first_seconds_are_whole(tmp_path):
    ffmpeg("-i", FILMS / "world.mp4", "-an", "-c:v", "copy", tmp_path / "whole.mkv")
    whole = (tmp_path / "whole.mkv").read_bytes()
    assert PAPER.encode(whole[: len(whole) // 2]) == PAPER.encode(whole)


def test_a_variable_frame_rate_odd_aspects_and_rotation_are_as_in_the_paper_s_command(tmp_path):
    source = ("-i", FILMS / "bikes.mp4", "-t", "6")
    made = {
        "variable.mkv": (*source, "-vf", "select='not(mod(n,7))+lt(n,20)'", "-fps_mode", "vfr"),
        "tall.mp4": (*source, "-vf", "crop=90:270"),
        "wide.mp4": (*source, "-vf", "crop=640:36"),
        "odd.mkv": (*source, "-vf", "crop=101:77", "-pix_fmt", "yuv444p"),
    }
    for name, options in made.items():
        ffmpeg(*options, "-an", "-c:v", "libx264", tmp_path / name)
    ffmpeg("-display_rotation", "90", "-i", FILMS / "b.mp4", "-c", "copy", tmp_path / "turned.mp4")
    for name in (*made, "turned.mp4"):
        assert PAPER.encode((tmp_path / name).read_bytes()) == papers_command(tmp_path / name), name
    upright, turned = (
        PAPER.decode(PAPER.encode(path.read_bytes())) for path in (FILMS / "b.mp4", tmp_path / "turned.mp4")
    )
    assert (turned[:, :, :80] < 20).all() and not (upright[:, :, :80] < 20).all()  # black bars beside a tall picture


def test_transparency_of_animations_is_white(tmp_path):
    frames = []
    for number in range(30):
        frame = Image.new("RGBA", (256, 144), (0, 0, 0, 0))
        frame.paste((200, 30, 30, 255), (8 * number, 40, 8 * number + 20, 60))
        frames.append(frame)
    for suffix in ("gif", "webp", "png"):
        path = tmp_path / f"ball.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=200, disposal=2, lossless=True, loop=0)
        decoded = PAPER.decode(PAPER.encode(path.read_bytes())).astype(int)
        assert (decoded[:, 100:] > 245).all(), suffix
        red = [np.argwhere(frame[50, :, 1] < 128).mean() for frame in decoded]
        assert np.all(np.diff(red) > 5), suffix


def test_a_folder_of_frames_is_what_ffmpeg_reads_from_it(tmp_path):
    (tmp_path / "clips/bikes").mkdir(parents=True)
    ffmpeg("-i", FILMS / "bikes.mp4", "-vf", "fps=4,scale=320:136", "-t", "5", tmp_path / "clips/bikes/f%d.png")
    (tmp_path / "clips/beside.mp4").write_bytes((FILMS / "b.mp4").read_bytes())
    (tmp_path / "clips/bikes/note.txt").write_text("not a frame")
    source = sources.open_anew(str(tmp_path / "clips"))
    assert list(PAPER.items.names(source)) == ["beside.mp4", "bikes/"]
    expected = papers_command(tmp_path / "clips/bikes/f%d.png", before=("-framerate", "3"))
    [document] = PAPER.items.documents(source, "bikes/")
    assert list(parts(document)) == list(parts(expected))
    np.testing.assert_array_equal(planes(document), planes(expected))
    assert PAPER.items.documents(source, "beside.mp4") == [PAPER.encode((FILMS / "b.mp4").read_bytes())]
    (tmp_path / "clips/bikes/f15.png").unlink()
    (tmp_path / "clips/bikes/f2.png").unlink()
    assert PAPER.items.documents(source, "bikes/") != [document]
    Image.new("RGB", (64, 64)).save(tmp_path / "clips/bikes/f3.png")
    with pytest.raises(Refused, match="sizes: frame 1 has 64x64 pixels, the first 320x136"):
        PAPER.items.documents(source, "bikes/")
    for number in range(4, 20):
        (tmp_path / f"clips/bikes/f{number}.png").unlink(missing_ok=True)
    with pytest.raises(Refused, match="short: 3 of 15 frames"):
        PAPER.items.documents(source, "bikes/")


def test_films_of_full_range_look_the_same_with_and_without_headers(tmp_path):
    ffmpeg("-i", FILMS / "bikes.mp4", "-t", "5.2", "-vf", "scale=out_range=pc", "-c:v", "mjpeg", tmp_path / "full.avi")
    data = (tmp_path / "full.avi").read_bytes()
    whole, bare = PAPER.encode(data), STRIPPED.encode(data)
    assert whole == papers_command(tmp_path / "full.avi")
    assert PAPER.is_valid(whole) and STRIPPED.is_valid(bare)
    seen, expected = STRIPPED.decode(bare), PAPER.decode(whole)
    assert abs(seen.mean() - expected.mean()) < 0.7 and abs(seen.std() - expected.std()) < 0.7


def test_words_in_metadata_and_damaged_sound_refuse_no_film(tmp_path):
    film = FILMS / "b.mp4"
    ffmpeg("-i", film, "-c", "copy", "-metadata", "title=How to mend [error] 42", tmp_path / "title.mp4")
    ffmpeg("-i", film, "-c", "copy", "-bsf:a", "noise=amount=1", tmp_path / "sound.mp4")
    for name in ("title.mp4", "sound.mp4"):
        assert PAPER.encode((tmp_path / name).read_bytes()) == PAPER.encode(film.read_bytes()), name


def test_what_is_too_large_or_too_narrow_is_refused(tmp_path):
    Image.new("P", (9000, 9000)).save(tmp_path / "bomb.gif", save_all=True, append_images=[Image.new("P", (9, 9))])
    with pytest.raises(Refused, match="too large: Picture size 9000x9000"):
        PAPER.encode((tmp_path / "bomb.gif").read_bytes())
    with pytest.raises(Refused, match="broken: Rescaled dimensions"):
        PAPER.encode_frames([np.zeros((4000, 1, 3), np.uint8)] * 15)
    with pytest.raises(Refused, match="too large: frames of 8000x5000"):
        PAPER.encode_frames(iter([np.zeros((5000, 8000, 3), np.uint8)]))


def test_an_ffmpeg_that_is_killed_or_missing_is_not_blamed_on_the_clip(stream, tmp_path, monkeypatch):
    program = tmp_path / "ffmpeg"
    for script, error in (("kill -9 $$", "stopped by SIGKILL"), ("kill -11 $$", None)):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
        with pytest.raises(RuntimeError if error else Refused, match=error or "status -11"):
            PAPER.encode(stream)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "none"))
    with pytest.raises(InputError, match="cannot start .*none: No such file"):
        PAPER.encode(stream)
    program.write_text("#!/bin/sh\nyes '[mjpeg @ 0x0] [error] no' | head -c 300000000 >&2\nexit 1\n")
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    with pytest.raises(Refused, match="broken: no"):
        PAPER.encode(stream)


def test_a_clip_of_another_header_is_refused_when_headers_are_stripped(stream):
    other = papers_command(FILMS / "bikes.mp4", fps=4, seconds="3.75")
    with pytest.raises(AvcError, match="sequence parameter set is not that of the codec"):
        STRIPPED.strip(other)
    with pytest.raises(AvcError, match="not 256x144"):
        PAPER.parse(papers_command(FILMS / "bikes.mp4", size="128:144"))
    with pytest.raises(AvcError, match="12 frames, a clip has 15"):
        PAPER.parse(papers_command(FILMS / "carphone_pristine.mp4"))


def test_other_sizes_rates_and_lengths(tmp_path):
    codec = AvcCodec(height=64, width=64, fps=5, frames=15, qp=30, strip_headers=True)
    document = codec.encode((FILMS / "carphone_pristine.mp4").read_bytes())
    assert codec.decode(document).shape == (15, 64, 64, 3) and codec.is_valid(document)
    fast = AvcCodec(height=64, width=64, fps=240, frames=15, qp=30, strip_headers=False)
    assert fast.is_valid(fast.encode_frames(PAPER.decode(papers_command(FILMS / "bikes.mp4"))))
    thirds = AvcCodec(height=48, width=80, fps=7, frames=5, qp=20, strip_headers=False)
    assert len(thirds.decode(thirds.encode((FILMS / "bikes.mp4").read_bytes()))) == 5


def test_the_config_s_section_makes_the_codec():
    def make(section):
        return CODECS.of({"codec": section})

    assert make(avc()) == PAPER
    for key, value in (
        ("height", 100),
        ("width", 0),
        ("height", 4096),
        ("fps", 0),
        ("frames", 0),
        ("qp", 0),
        ("qp", 52),
    ):
        with pytest.raises(InputError, match="config.codec"):
            make(avc().to_dict() | {key: value} | ({"width": 4096} if value == 4096 else {}))
    with pytest.raises(InputError, match="config.codec.quality is nothing that the codec avc has"):
        make(avc().to_dict() | {"quality": 25})
    with pytest.raises(InputError, match="config.codec.fps is missing"):
        make({key: value for key, value in avc().items() if key != "fps"})
    assert PAPER.encoder_versions()["x264"].startswith("x264 - core 1")
