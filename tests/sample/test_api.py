"""`jpeglm.load` and what it gives, and the page that shows it."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jpeglm
from jpeglm.core.errors import InputError
from jpeglm.core.registry import CODECS
from jpeglm.data import sources
from jpeglm.sample.scoring import Scorer
from tests.forks import run
from tests.tiny_config import get_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tiny_run_of_256):
    return jpeglm.load(tiny_run_of_256, slots=2)


@pytest.fixture(scope="module")
def digits():
    source = sources.open_source("embedded:mnist")
    return [source.load(name) for name, _ in zip(source.names(), range(2), strict=False)]


def test_completions_begin_with_what_was_given_and_are_files_and_images(model, digits):
    codec = CODECS.of(get_config())
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
    codec = CODECS.of(get_config())
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


def save(image, path):
    image.save(path)
    return path


def test_a_picture_is_the_same_in_every_form_and_alone(model, digits, tmp_path):
    """Bits hang on each byte of the document."""
    digit, array = digits[0], np.asarray(digits[0])
    colour = np.repeat(array[..., None], 3, axis=2)
    path = save(digit, tmp_path / "digit.png")
    forms = [
        digit,
        path,
        str(path),
        path.read_bytes(),
        array,
        array[..., None],
        colour,
        np.dstack([colour, np.full((32, 32), 255, "B")]),
    ]
    expected = model.score([digit])
    for form in forms:
        assert model.score(form) == model.score([form]) == expected
    assert model.score(iter(forms)) == len(forms) * expected
    assert model.score(np.stack([array, array])) == model.score(np.stack([colour, colour])) == 2 * expected
    assert model.score([]) == model.complete([]) == []
    in_colour = np.random.default_rng(0).integers(0, 256, (4, 32, 3), np.uint8)
    assert len(model.complete(in_colour, ratio=0.1)) == 1  # not four pictures of 32x3
    [[of_path]], [[of_array]] = model.complete(path, seed=-1), model.complete(array, seed=-1)
    assert of_path.file == of_array.file


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (None, "images: NoneType is neither a picture nor a list of them"),
        (3, "images: int is neither"),
        (np.zeros(8, np.uint8), r"image 0: an array of uint8 \[8\]"),
        (np.zeros((8, 8, 3)), r"image 0: an array of float64 \[8, 8, 3\]"),
        ([None], r"image 0: an array of object \[\]"),
        ("nowhere.png", "image 0: nowhere.png: unreadable: No such file or directory"),
        (Path("tests"), "image 0: tests: not a regular file"),
        (Path("README.md"), "image 0: README.md: not a picture"),
        (b"", "image 0: not a picture: the file is empty"),
    ],
)
def test_what_is_no_list_of_pictures_is_one_line(model, images, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    for use in (model.complete, model.score):
        with pytest.raises(InputError, match=f"^{message}") as told:
            use(images)
        assert "\n" not in str(told.value)


def test_none_of_anything_is_an_empty_list(model, digits):
    assert model.generate(0) == []
    assert model.complete(digits, samples=0) == [[], []]
    assert model.complete([], samples=2) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"samples": -1},
        {"samples": 1.5},
        {"seed": 1.5},
        {"seed": None},
        {"seed": "1"},
        {"ratio": float("nan")},
        {"ratio": -0.1},
        {"ratio": "half"},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"top_k": 1.5},
        {"top_p": float("nan")},
        {"top_p": 1e-40},
        {"temperature": 1e-31},
        {"grammar": "no"},
    ],
    ids=str,
)
def test_numbers_without_sense_are_one_line(model, digits, changes):
    [name] = changes
    with pytest.raises(InputError, match=name) as told:
        model.complete(digits, **changes)
    assert "\n" not in str(told.value)
    if name not in ("samples", "ratio"):
        with pytest.raises(InputError, match=name):
            model.generate(1, **changes)


def test_any_whole_number_is_a_seed_of_its_own(model):
    files = [model.generate(1, seed=seed)[0].file for seed in (1, np.int64(1), -1, 1 + 2**32, 2**100)]
    assert files[0] == files[1] and len(set(files)) == 4
    for num in (-1, 1.5, "2", None):
        with pytest.raises(InputError, match="num"):
            model.generate(num)


def test_scores_are_those_of_the_command(model, digits, tiny_run_of_256):
    codec, scorer = CODECS.of(get_config()), Scorer.load(tiny_run_of_256)  # as the command does
    expected = [scorer.nats(codec.encode(digit)) / np.log(2) for digit in digits]
    np.testing.assert_allclose(model.score(digits), expected, rtol=1e-5)


def test_a_picture_that_is_too_long_is_named(model, digits):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    with pytest.raises(InputError, match=r"^image 1: \d+ tokens, more than data.seq_len=256"):
        model.score([digits[0], noise])
    with pytest.raises(InputError, match="^image 1: .*max_tokens"):
        model.complete([digits[0], noise], ratio=0.9)


def test_a_picture_and_a_model_print_as_one_line_and_show_themselves(model, digits):
    [[picture]] = model.complete(digits[:1], samples=1)
    line = f"Picture(32x32 L, {len(picture.file)} bytes, valid, ended, removed {picture.removed:.1%})"
    assert repr(picture) == str(picture) == line
    shown = Image.open(io.BytesIO(picture._repr_png_()))
    assert shown.format == "PNG" and np.array_equal(np.asarray(shown), np.asarray(picture.image))
    assert picture._repr_html_() is None
    [bare] = model.generate(1, grammar=False)
    assert "not valid" in repr(bare) and "removed" not in repr(bare)
    assert re.fullmatch(r"Model\(.*run, step 20: [\d,]+ parameters, JpegCodec\(height=32, .*\)\)", repr(model))


def test_settings_out_of_range_are_refused(model, digits):
    with pytest.raises(InputError, match="top_p"):
        model.complete(digits, top_p=0.0)
    with pytest.raises(InputError, match="ratio"):
        model.complete(digits, ratio=1.5)


def test_no_run_is_one_error(tmp_path):
    with pytest.raises(InputError, match="no run here"):
        jpeglm.load(tmp_path)


def test_the_page_about_python_runs(digits, tmp_path, monkeypatch):
    page = (ROOT / "docs" / "researchers.md").read_text().partition("## In Python")[2]
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    (tmp_path / "pretrained").symlink_to(ROOT / "pretrained")
    digits[0].save(tmp_path / "digit.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "researchers.md", "exec"), {})
    with Image.open(io.BytesIO((tmp_path / "completed.jpg").read_bytes())) as written:
        assert written.size == (32, 32)
