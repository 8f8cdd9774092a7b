"""`jpeglm.load` and what it gives, and the page of the README that shows it."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jpeglm
from jpeglm import codecs
from jpeglm.data import sources
from jpeglm.errors import InputError
from tests.commands import run
from tests.tiny_config import get_config

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def model(tiny_run_of_256):
    return jpeglm.load(tiny_run_of_256, slots=2)


@pytest.fixture(scope="module")
def digits():
    source = sources.open_source("embedded:mnist")
    return [source.load(name) for name, _ in zip(source.names(), range(2), strict=False)]


def test_completions_begin_with_what_was_given_and_are_files_and_images(model, digits):
    codec = codecs.make(get_config().codec)
    completed = model.complete(digits, ratio=0.25, samples=2, top_k=40, top_p=0.9)
    assert [len(pictures) for pictures in completed] == [2, 2]
    for digit, pictures in zip(digits, completed, strict=True):
        prompt, _ = codec.cut(codec.encode(digit), 0.25)
        for picture in pictures:
            assert picture.file.startswith(codec.restore(prompt))
            assert picture.image.size == (32, 32) and picture.image.mode == "L"
            assert picture.is_valid == codec.is_valid(codec.strip(picture.file) if picture.is_valid else b"")
    assert completed[0][0].file != completed[0][1].file


def test_a_whole_picture_given_comes_back(model, digits):
    """With every MCU given only the end is missing; forced by the most probable token after a whole file."""
    codec = codecs.make(get_config().codec)
    (picture,) = model.complete(digits[:1], ratio=1.0, temperature=0)[0]
    prompt, units = codec.cut(codec.encode(digits[0]), 1.0)
    assert units == codec.units and picture.file.startswith(codec.restore(prompt))


def test_arrays_and_images_are_the_same_picture(model, digits):
    arrays = np.stack([np.asarray(digit) for digit in digits])
    colour = [np.repeat(array[..., None], 3, axis=2) for array in arrays]
    of_images = model.complete(digits, ratio=0.75)
    for images in (arrays, colour):
        others = model.complete(images, ratio=0.75)
        assert [[p.file for p in row] for row in others] == [[p.file for p in row] for row in of_images]


def test_the_command_writes_the_same_files(model, digits, tiny_run_of_256, tmp_path):
    (tmp_path / "digits").mkdir()
    for number, digit in enumerate(digits):
        digit.save(tmp_path / "digits" / f"{number}.png")
    out = tmp_path / "out"
    flags = ("--ratio=0.5", "--samples=2", "--top_k=40", "--top_p=0.9", "--seed=3", "--slots=2")
    done = run(
        "jpeglm.sample", f"--workdir={tiny_run_of_256}", f"--images={tmp_path / 'digits'}", f"--out={out}", *flags
    )
    assert done.returncode == 0, done.stderr
    completed = model.complete(digits, ratio=0.5, samples=2, top_k=40, top_p=0.9, seed=3)
    for number, pictures in enumerate(completed):
        for sample, picture in enumerate(pictures):
            assert (out / f"{number}.png-s{sample}.jpg").read_bytes() == picture.file


def test_pictures_from_nothing_depend_on_the_seed_alone(model):
    first, again, other = (model.generate(2, seed=seed) for seed in (0, 0, 1))
    assert [p.file for p in first] == [p.file for p in again] != [p.file for p in other]


@pytest.mark.parametrize(
    "image, message",
    [
        (np.zeros((8, 8), np.float32), r"image 1: an array of float32 \[8, 8\]"),
        (np.zeros((8, 8, 2), np.uint8), r"\[8, 8, 2\]"),
        (np.zeros((0, 8), np.uint8), r"\[0, 8\]"),
        (Image.new("F", (8, 8)), "image 1: mode F"),
    ],
)
def test_what_is_no_picture_is_refused_by_number(model, digits, image, message):
    with pytest.raises(InputError, match=message):
        model.complete([digits[0], image])


def test_settings_out_of_range_are_refused(model, digits):
    with pytest.raises(InputError, match="top_p"):
        model.complete(digits, top_p=0.0)
    with pytest.raises(InputError, match="ratio"):
        model.complete(digits, ratio=1.5)


def test_no_run_is_one_error(tmp_path):
    with pytest.raises(InputError, match="no run here"):
        jpeglm.load(tmp_path)


def test_the_page_in_the_readme_runs(digits, tmp_path, monkeypatch):
    page = README.read_text().partition("## In Python")[2]
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    (tmp_path / "pretrained").symlink_to(README.parent / "pretrained")
    digits[0].save(tmp_path / "digit.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    with Image.open(io.BytesIO((tmp_path / "completed.jpg").read_bytes())) as written:
        assert written.size == (32, 32)
