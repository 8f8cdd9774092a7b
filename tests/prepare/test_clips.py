"""Clips through `prepare`: tokenizer, chunks and manifest are those of any codec."""

import json
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from jpeglm.core.config import avc as avc_section
from jpeglm.core.config import base
from jpeglm.core.errors import InputError, Refused
from jpeglm.core.registry import CODECS
from jpeglm.data import batches, sources
from jpeglm.data.codecs.avc import AvcCodec
from jpeglm.data.tokenizers import bpe
from jpeglm.prepare import plan
from jpeglm.prepare.verify import verify
from tests.clips import FILMS, ffmpeg, papers_command
from tests.forks import run

SCENES = 12  # windows of films


def config_of_clips():
    """64x64, 15 frames of 5 a second."""
    config = base()
    config.codec = avc_section()
    config.codec.update({"height": 64, "width": 64, "fps": 5})
    config.tokenizer.vocab_size = 400
    config.data.update({"seq_len": 1024, "shards": 2, "holdout": 3})
    return config


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    """A folder of windows of real films, a folder of frames, and what is no clip."""
    folder = tmp_path_factory.mktemp("windows")
    for number in range(SCENES):
        film, start = ("world.mp4", 2 * number) if number % 2 else ("bikes.mp4", number / 2)
        ffmpeg("-ss", start, "-i", FILMS / film, "-t", "4", "-an", "-vf", "scale=192:-2", folder / f"{number:02}.mp4")
    (folder / "frames").mkdir()
    ffmpeg("-i", FILMS / "carphone_pristine.mp4", "-vf", "fps=5", folder / "frames/%d.png")
    shutil.copy(FILMS / "rectangles.gif", folder)
    (folder / "note.txt").write_text("no clip")
    return folder


@pytest.fixture(scope="module")
def prepared(windows, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "data"
    return out, plan.prepare(config_of_clips(), str(windows), out, workers=2)


def test_clips_are_prepared_as_pictures_are(prepared, windows):
    out, manifest = prepared
    assert manifest["counts"]["seen"] == SCENES + 2 and manifest["counts"]["kept"] == SCENES + 1
    refused = {json.loads(line)["name"]: json.loads(line) for line in (out / plan.REFUSED).read_text().splitlines()}
    assert {name: line["reason"] for name, line in refused.items()} == {
        "rectangles.gif": "short",
    }
    assert manifest["counts"]["passed_over"] == {".txt": 1}
    assert manifest["encoder_versions"]["x264"].startswith("x264 - core")
    verify(out, workers=1)
    codec = CODECS.of(config_of_clips())
    expected = {codec.encode((windows / f"{number:02}.mp4").read_bytes()) for number in range(SCENES)}
    found = [*batches.documents(out, "train"), *batches.documents(out, "heldout")]
    assert len(found) == SCENES + 1 and expected < set(found)


def test_the_result_does_not_depend_on_workers_or_the_number_of_units(prepared, windows, tmp_path):
    out, _ = prepared
    plan.prepare(config_of_clips(), str(windows), tmp_path / "again", workers=1, unit_items=4)
    for path in sorted(out.iterdir()):
        if path.name != "refused.jsonl":
            assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("strip_headers", [False, True])
def test_tokens_of_a_clip_cut_between_frames_or_slices_are_a_prefix(prepared, strip_headers):
    out, _ = prepared
    config = config_of_clips()
    whole = CODECS.of(config)
    config.codec.strip_headers = strip_headers
    codec = CODECS.of(config)
    clips = [codec.strip(document) for document in batches.documents(out, "train")]
    learnt = bpe.train(clips, 400, codec.separator_regex, codec.separator_behavior)
    assert whole.parse(codec.restore(clips[0])).starts[0] == 0
    for document in clips[:3]:
        ids = learnt.encode(document)
        assert learnt.decode(ids) == document
        parsed = codec.parse(document)
        boundaries = [*parsed.ends, *parsed.slice_starts.ravel(), *parsed.slice_ends.ravel()]
        assert len(boundaries) == 15 + 2 * 15 * codec.macroblocks
        for boundary in np.unique(boundaries)[::7]:
            prefix = learnt.encode(document[:boundary])
            np.testing.assert_array_equal(prefix, ids[: len(prefix)])
    start_codes = [merge for merge in learnt.token_bytes if b"\0\0\1" in merge]
    assert start_codes and all(merge.startswith((b"\0\0\1", b"\0\0\0\1")) for merge in start_codes)
    assert all(merge.count(b"\0\0\1") == 1 for merge in start_codes)


def test_what_does_not_go_with_clips_is_refused_in_one_line(windows, tmp_path):
    config = config_of_clips()
    config.data.stride = -1
    with pytest.raises(InputError, match="config.data.stride=-1: a whole number from 0"):
        plan.prepare(config, str(windows), tmp_path / "out")
    pictures = base()
    pictures.data.stride = 5
    with pytest.raises(InputError, match="data.stride=5: .* for pictures it is 0"):
        plan.prepare(pictures, "embedded:mnist", tmp_path / "out")
    with pytest.raises(InputError, match="embedded:mnist holds pixels"):
        plan.prepare(config_of_clips(), "embedded:mnist", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_prepares_and_inspect_tells(windows, tmp_path):
    flags = ("--config=configs/avclm_7b.py", "--config.tokenizer.vocab_size=300", "--config.codec.fps=5")
    flags += ("--config.data.shards=1", "--config.data.holdout=1", f"--source={windows}", f"--out={tmp_path / 'out'}")
    done = run("jpeglm.prepare", *flags, "--verify")
    assert done.returncode == 0, done.stderr
    assert f"{SCENES + 1} of {SCENES + 2} clips kept; refused: 1 short" in done.stdout
    told = run("jpeglm.inspect", str(tmp_path / "out"))
    assert told.returncode == 0 and "x264 - core" in told.stdout, told.stderr


def test_strange_folders_and_archives_refuse_a_clip_and_not_the_run(windows, tmp_path):
    source = tmp_path / "source"
    (source / "tall").mkdir(parents=True)
    for number in range(15):
        Image.new("RGB", (1, 4000)).save(source / f"tall/{number}.png")
    shutil.copy(windows / "00.mp4", source)
    shutil.copy(windows / "01.mp4", source)
    config = config_of_clips()
    config.data.holdout = 1
    config.tokenizer.vocab_size = 300
    manifest = plan.prepare(config, str(source), tmp_path / "folder", workers=1)
    assert manifest["counts"]["kept"] == 2 and manifest["counts"]["refused"] == {"broken": 1}

    outside = tmp_path / "outside"
    shutil.copytree(windows / "frames", outside)
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        tar.add(windows / "00.mp4", "00.mp4")
        tar.add(windows / "01.mp4", "01.mp4")
        member = tarfile.TarInfo(f"{outside}/")
        tar.addfile(member)
    manifest = plan.prepare(config, str(tmp_path / "evil.tar"), tmp_path / "tar", workers=1)
    assert manifest["counts"]["kept"] == 2 and manifest["counts"]["passed_over"] == {"folder": 1}


FILM_LENGTHS = {"bikes.mp4": 50, "b.mp4": 25, "screenshot.gif": 21}  # in frames, at 5 a second


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    for film in FILM_LENGTHS:
        shutil.copy(FILMS / film, folder)
    return folder


@pytest.mark.parametrize("film", FILM_LENGTHS)
def test_a_window_is_what_the_paper_s_command_makes_of_the_film_from_that_frame_on(film, films, tmp_path):
    codec = CODECS.of(config_of_clips())
    source = sources.open_anew(str(films))
    found = codec.items.documents(source, film, variants=100, stride=4)
    assert len(found) == 1 + (FILM_LENGTHS[film] - 15) // 4
    over_white = "split[a][b];[a]drawbox=c=white:t=fill:replace=1[a];[a][b]overlay=format=auto," * film.endswith(
        ".gif"
    )
    resampled = tmp_path / "resampled.mkv"  # without loss
    ffmpeg("-i", films / film, "-vf", f"{over_white}fps=5", "-c:v", "ffv1", "-an", resampled)
    for number in (0, 1, len(found) - 1):
        cut = tmp_path / f"{number}.mkv"
        frames = f"select=gte(n\\,{4 * number}),setpts=N/5/TB"
        ffmpeg("-i", resampled, "-vf", frames, "-c:v", "ffv1", "-r", 5, cut)
        assert found[number] == papers_command(cut, "64:64", 5, "3")
    assert codec.items.documents(source, film) == found[:1]
    assert codec.items.documents(source, film, variants=1)[1:] == codec.items.documents(source, film, 1, stride=15)[1:]


TAGS = ("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "pc")


@pytest.mark.parametrize("size, fps, strip_headers", [((64, 64), 5, False), ((48, 80), 7, True), ((32, 32), 3, False)])
def test_a_film_decoded_once_gives_the_windows_of_one_decoded_each_time(tmp_path, size, fps, strip_headers):
    """Tags of colour, range and aspect, a variable frame rate, a rotation: the same bytes."""
    height, width = size
    codec = AvcCodec(height, width, fps, 15, 37, strip_headers)
    strange = ("-vf", "select=not(mod(n\\,7))+gt(n\\,90),setsar=16/15,scale=out_range=pc", "-fps_mode", "vfr", *TAGS)
    ffmpeg("-i", FILMS / "bikes.mp4", "-c:v", "libx264", *strange, "-an", tmp_path / "strange.mp4")
    ffmpeg("-display_rotation", 90, "-i", tmp_path / "strange.mp4", "-c", "copy", tmp_path / "turned.mp4")
    for film in (tmp_path / "strange.mp4", tmp_path / "turned.mp4", FILMS / "screenshot.gif"):
        data = film.read_bytes()
        windows = codec.encode_windows(data, 3, 2)
        for number in range(1, 4):
            try:
                expected = codec.encode(data, 2 * number)
            except Refused as refusal:
                with pytest.raises(Refused, match=f"^{refusal}$"):
                    next(windows)
                break
            assert next(windows) == expected


def test_a_film_damaged_late_gives_the_windows_before_the_damage(tmp_path):
    codec = CODECS.of(config_of_clips())
    ffmpeg("-i", FILMS / "bikes.mp4", "-c:v", "libx264", "-g", 25, "-an", tmp_path / "whole.ts")
    data = bytearray((tmp_path / "whole.ts").read_bytes())
    at = int(0.9 * len(data))
    data[at : at + 4000] = np.random.default_rng(0).bytes(4000)
    (tmp_path / "whole.ts").write_bytes(data)
    source = sources.open_anew(str(tmp_path))
    found = codec.items.documents(source, "whole.ts", variants=99, stride=4)
    assert 3 < len(found) < 9
    assert found == [codec.encode(bytes(data), 4 * number) for number in range(len(found))]
    with pytest.raises(Refused, match="broken"):
        codec.encode(bytes(data), 4 * len(found))


def test_windows_of_a_folder_of_frames(tmp_path):
    (tmp_path / "frames").mkdir()
    ffmpeg("-i", FILMS / "carphone_pristine.mp4", "-vf", "fps=5", "-frames:v", 19, tmp_path / "frames/%d.png")
    codec = CODECS.of(config_of_clips())
    source = sources.open_anew(str(tmp_path))
    found = codec.items.documents(source, "frames/", variants=9, stride=2)
    assert len(found) == 3
    for number in range(4):
        (tmp_path / f"frames/{1 + number}.png").unlink()
    assert codec.items.documents(source, "frames/") == found[2:]


def test_no_window_of_a_held_out_film_is_learnt(tmp_path):
    """Held out by film: from each, its first clip."""
    (tmp_path / "films").mkdir()
    colours = ("red", "green", "blue", "yellow", "cyan", "magenta", "gray", "orange")
    for colour in colours:  # a film is known by its colour
        ffmpeg(
            "-f",
            "lavfi",
            "-i",
            f"color={colour}:s=64x64:r=5:d=8,noise=alls=30:allf=t",
            tmp_path / f"films/{colour}.mp4",
        )
    config = config_of_clips()
    config.tokenizer.vocab_size = 300
    config.data.update({"augment": 99, "stride": 5})
    manifest = plan.prepare(config, str(tmp_path / "films"), tmp_path / "data", workers=1)
    codec = CODECS.of(config)

    def colours_of(split: str) -> list[tuple[int, ...]]:
        clips = [codec.decode(document) for document in batches.documents(tmp_path / "data", split)]
        return [tuple(np.rint(clip.mean(axis=(0, 1, 2)) / 32).astype(int).tolist()) for clip in clips]

    heldout, train = colours_of("heldout"), colours_of("train")
    assert len(heldout) == len(set(heldout)) == 3 and len(set(train)) == 5 and not set(heldout) & set(train)
    # Six windows a film, but for those whose key lies in the held-out part.
    assert manifest["counts"]["kept"] == 8 and 10 < len(train) <= 30
    assert manifest["counts"]["variants"] == len(train) - 5
    verify(tmp_path / "data", workers=1)


def test_a_finished_folder_of_before_there_were_windows_is_still_finished(windows, prepared, tmp_path):
    out, manifest = prepared
    shutil.copytree(out, tmp_path / "data")
    older = json.loads((out / "manifest.json").read_text())
    del older["config"]["data"]["stride"]
    (tmp_path / "data/manifest.json").write_text(json.dumps(older))
    assert plan.prepare(config_of_clips(), str(windows), tmp_path / "data") == older
    config = config_of_clips()
    config.data.stride = 3
    with pytest.raises(InputError, match="data.stride=0, now 3"):
        plan.prepare(config, str(windows), tmp_path / "data")
