"""Clips from training to completed films, by the same commands as pictures."""

import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import jpeglm
from jpeglm.core.errors import InputError
from jpeglm.core.registry import CODECS
from jpeglm.data import batches
from tests.clips import FILMS, ffmpeg, planes
from tests.forks import run
from tests.tiny_clips_config import get_config

FLAGS = ("--frames=10", "--samples=2", "--num=2", "--top_k=40", "--slots=2")


@pytest.fixture(scope="module")
def data(tiny_clips_data):
    return tiny_clips_data


@pytest.fixture(scope="module")
def workdir(tiny_clips_run):
    return tiny_clips_run


@pytest.fixture(scope="module")
def completed(workdir, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("samples") / "out"
    done = run("jpeglm.sample", f"--workdir={workdir}", f"--images={data}", f"--out={out}", *FLAGS)
    assert done.returncode == 0, done.stderr
    return out


def test_each_clip_begins_with_its_frames_and_can_be_watched(completed, data):
    codec = CODECS.of(get_config())
    rows = {row["name"]: row for row in map(json.loads, (completed / "samples.jsonl").read_text().splitlines())}
    assert sorted(rows) == [f"heldout-0000{index}-s{number}" for index in range(2) for number in range(2)]
    for index, original in enumerate(batches.documents(data, "heldout", 2)):
        prompt, _ = codec.cut(original, frames=10)
        for number in range(2):
            name = f"heldout-0000{index}-s{number}"
            stream = (completed / f"{name}.h264").read_bytes()
            assert stream.startswith(codec.restore(prompt)) and len(stream) > len(codec.restore(prompt))
            assert rows[name]["prompt_units"] == 10 and rows[name]["removed"] is None
            given = planes(codec.restore(original), 32, 32)[:10]
            np.testing.assert_array_equal(planes(stream, 32, 32)[:10], given)
            film = ffmpeg("-i", completed / "films" / f"{name}.mp4", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
            seen = codec.see(stream)
            shown = np.frombuffer(film, np.uint8).reshape(15, 32, 32, 3)
            assert np.abs(shown.astype(int) - seen).mean() < 12
            with Image.open(completed / "films" / f"{name}.webp") as animation:
                assert animation.n_frames > 1 and animation.size == (32, 32)
    shown = re.findall(r'src="data:image/(png|webp);base64,([^"]*)"', (completed / "grid.html").read_text())
    grid, *moving = [Image.open(io.BytesIO(base64.b64decode(content))) for _, content in shown]
    assert grid.size == (15 * 34 - 2 + 8, 2 * 3 * 34 - 2)  # a wider gap after the tenth frame
    assert len(moving) == 2 * 3 and all(film.n_frames > 1 for film in moving)  # originals and completions


def test_beside_the_streams_nothing_lies_that_is_a_clip(completed):
    names = {path.name for path in completed.iterdir() if not path.name.startswith(".")}
    assert names - {path.name for path in completed.glob("*.h264")} == {
        "films",
        "grid.html",
        "samples.jsonl",
        "settings.json",
    }


def test_an_interrupted_command_goes_on_to_the_same_clips(completed, workdir, data, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(completed, out)
    lines = (out / "samples.jsonl").read_text().splitlines(keepends=True)
    (out / "samples.jsonl").write_text("".join(lines[:1]))
    for line in lines[1:]:
        for path in out.rglob(f"{json.loads(line)['name']}.*"):
            path.unlink()
    (out / "films" / f"{json.loads(lines[0])['name']}.webp").unlink()  # of a clip that is done
    done = run("jpeglm.sample", f"--workdir={workdir}", f"--images={data}", f"--out={out}", *FLAGS)
    assert done.returncode == 0, done.stderr
    for path in completed.glob("*.h264"):
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert sorted(path.name for path in (out / "films").iterdir()) == sorted(
        path.name for path in (completed / "films").iterdir()
    )


def test_what_does_not_fit_is_told_in_one_line(workdir, data, tiny_run, tmp_path):
    images, out = f"--images={data}", f"--out={tmp_path / 'out'}"
    for flags, message in (
        ((f"--workdir={workdir}", images, "--frames=16"), "--frames=16: a clip of this run has 15"),
        ((f"--workdir={tiny_run}", images, "--frames=3"), "--frames is for runs on clips"),
        ((f"--workdir={workdir}", images, "--frames=3", "--ratio=0.5"), "--ratio and --frames: one of the two"),
    ):
        done = run("jpeglm.sample", *flags, out)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_clips_are_scored(workdir):
    done = run("jpeglm.score", f"--workdir={workdir}", f"--images={FILMS}", "--num=2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split()[0] == "clip" and "mean" in done.stdout
    done = run("jpeglm.score", f"--workdir={workdir}", f"--images={FILMS}", "--num=2", "--compare")
    assert done.returncode == 0, done.stderr
    assert "this model" in done.stdout and "zstd" in done.stdout and "cjxl" not in done.stdout


def test_clips_are_completed_in_python(workdir, data):
    model = jpeglm.load(workdir, slots=2)
    codec = CODECS.of(get_config())
    file = (FILMS / "bikes.mp4").read_bytes()
    frames = codec.decode(codec.encode(file))
    (from_file,), (from_frames,) = model.complete([file, frames], ratio=10 / 15)
    assert from_file.file.startswith(codec.restore(codec.cut(codec.encode(file), frames=10)[0]))
    assert from_frames.image.shape == from_file.image.shape == (15, 32, 32, 3)
    assert from_file.removed is None
    assert repr(from_file).startswith(f"Picture(15 frames of 32x32, {len(from_file.file)} bytes, ")
    assert Image.open(io.BytesIO(from_file._repr_png_())).size == (15 * 34 - 2, 32)
    animation = base64.b64decode(re.search(r'src="data:image/webp;base64,([^"]*)"', from_file._repr_html_())[1])
    assert Image.open(io.BytesIO(animation)).n_frames > 1
    bits = model.score([file, frames])
    assert model.score(frames) == bits[1:] and model.score(FILMS / "bikes.mp4") == model.score(
        str(FILMS / "bikes.mp4")
    )
    assert model.score(FILMS / "bikes.mp4") == bits[:1]
    for wrong, message in ((frames[:14], "short: 14 of 15"), (frames[0], "wanted is uint8"), (b"text", "not a clip")):
        with pytest.raises(InputError, match=f"image 0: .*{message}"):
            model.complete([wrong])


def test_a_damaged_config_is_refused_in_one_line(workdir, data, tmp_path):
    shutil.copytree(workdir, tmp_path / "run")
    path = tmp_path / "run/config.json"
    stored = json.loads(path.read_text())
    for key, value in (("fps", "5"), ("strip_headers", "no"), ("name", "gif"), ("quality", 25)):
        path.write_text(json.dumps(stored | {"codec": stored["codec"] | {key: value}}))
        done = run("jpeglm.sample", f"--workdir={tmp_path / 'run'}", f"--images={data}", f"--out={tmp_path / 'out'}")
        assert done.returncode == 2 and done.stderr.count("error:") == 1 and "Traceback" not in done.stderr, (
            done.stderr
        )
