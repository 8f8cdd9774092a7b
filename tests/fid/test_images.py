"""Which pictures the evaluator reads, what it makes of them, and how it names those that it cannot use."""

import io
import os
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jpeglm.core.errors import InputError, Refused
from jpeglm.data.sources.folders import Folder
from jpeglm.data.sources.pictures import upright
from jpeglm.fid import images
from tests.fid import peers
from tests.prepare.packing_tools import members, pack, write_records

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pytest undoes what `sources` ignores of Pillow's
COLOUR = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)
PICTURE = Image.fromarray(COLOUR)
GREY = PICTURE.convert("L")


def with_alpha(image: Image.Image, alpha: int) -> Image.Image:
    """The picture with this alpha in one pixel, and opaque otherwise."""
    image = image.copy()
    image.putalpha(255)
    image.putpixel((3, 5), (*image.getpixel((3, 5))[:-1], alpha))
    return image


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


# What is found


def test_pictures_are_found_in_the_same_order_in_folders_zip_and_tar_files(tmp_path):
    folder = tmp_path / "folder"
    for name in ("b.png", "a/z.JPG", "a/b/c.png", "c.jpeg", "notes.txt", "a-.png", "png", "a/.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    for path in (folder, *(pack(members(folder), tmp_path / f"a.{kind}") for kind in ("zip", "tar", "tar.gz"))):
        pictures = images.open_pictures(path)
        assert pictures.names == ["a-.png", "b.png", "c.jpeg", "a/z.JPG", "a/b/c.png"]
        assert (len(pictures), pictures.path) == (5, str(path))


def test_records_and_arrays_need_no_suffix(tmp_path):
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG")
    np.save(tmp_path / "a.npy", COLOUR[None])
    for path in (write_records([buffer.getvalue()], tmp_path / "a.array_record"), tmp_path / "a.npy"):
        (picture,) = images.open_pictures(path)
        np.testing.assert_array_equal(picture, COLOUR, strict=True)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "array_record", "npy"])
def test_an_input_without_pictures_is_bad_input(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "folder":
        path.mkdir()
        (path / "notes.txt").touch()
    elif kind == "array_record":
        write_records([], path)
    elif kind == "npy":
        np.save(path, np.zeros((0, 4, 4), np.uint8))
    else:
        pack([("notes.txt", b"x")], path)
    with pytest.raises(InputError, match="holds no pictures"):
        images.open_pictures(path)
    with pytest.raises(InputError, match="no such folder"):
        images.open_pictures(tmp_path / "absent")


def test_a_file_that_was_replaced_is_opened_anew(tmp_path):
    for colour in (10, 20):
        np.save(tmp_path / "a.npy", np.full((1, 2, 2), colour, np.uint8))
        assert images.open_pictures(tmp_path / "a.npy")[0][0, 0] == colour


def test_arrays_in_memory_are_pictures():
    for arrays in (COLOUR[None], COLOUR[None, ..., 0], [COLOUR, COLOUR[..., 0], COLOUR[:3, :2]]):
        pictures = images.open_pictures(arrays)
        assert len(pictures) == len(arrays)
        for found, expected in zip(pictures, arrays, strict=True):
            np.testing.assert_array_equal(found, expected, strict=True)
    for wrong in ([COLOUR.astype(np.float32)], [COLOUR, COLOUR[..., :2]], COLOUR[0]):
        with pytest.raises(InputError, match=r"not uint8 \[h, w\] or \[h, w, 3\]"):
            images.open_pictures(wrong)
    with pytest.raises(InputError, match="holds no pictures"):
        images.open_pictures([])


# What becomes of one


def read(path) -> np.ndarray:
    return images.open_pictures(path.parent)[0]


@pytest.mark.parametrize(
    ("name", "image", "options"),
    [
        ("1.png", PICTURE.convert("1"), {}),
        ("1.tif", PICTURE.convert("1"), {}),
        ("L.png", GREY, {}),
        ("L.jpg", GREY, {}),
        ("L.pgm", GREY, {}),
        ("L.gif", GREY, {}),
        ("P.png", PICTURE.quantize(16), {}),
        ("P.gif", PICTURE.quantize(16), {}),
        ("P.bmp", PICTURE.quantize(16), {}),
        ("RGB.png", PICTURE, {}),
        ("RGB.jpg", PICTURE, {}),
        ("progressive.jpg", PICTURE, {"progressive": True}),
        ("RGB.bmp", PICTURE, {}),
        ("RGB.ppm", PICTURE, {}),
        ("RGB.tiff", PICTURE, {}),
        ("RGB.webp", PICTURE, {}),
        ("CMYK.jpg", PICTURE.convert("CMYK"), {}),
        ("CMYK.tif", PICTURE.convert("CMYK"), {}),
        ("YCbCr.tif", PICTURE.convert("YCbCr"), {}),
        ("turned.jpg", PICTURE, {"exif": turned()}),
        ("turned.png", PICTURE, {"exif": turned()}),
        ("turned.webp", PICTURE, {"exif": turned()}),
        ("opaque RGBA.png", with_alpha(PICTURE, 255), {}),
        ("opaque RGBA.tif", with_alpha(PICTURE, 255), {}),
        ("opaque LA.png", with_alpha(GREY, 255), {}),
        ("unused transparent entry.png", PICTURE.quantize(16), {"transparency": 200}),
        ("unused transparent grey.png", Image.new("L", (9, 9), 7), {"transparency": 8}),
        ("unused transparent colour.png", Image.new("RGB", (9, 9), (7, 8, 9)), {"transparency": (7, 8, 8)}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_are_those_of_pillows_conversion_to_rgb(tmp_path, name, image, options):
    image.save(tmp_path / name, **options)
    with Image.open(tmp_path / name) as opened:
        is_grey, expected = opened.mode in ("1", "L", "LA"), np.asarray(opened.convert("RGB"))
    found = read(tmp_path / name)
    assert found.ndim == (2 if is_grey else 3)
    np.testing.assert_array_equal(found if found.ndim == 3 else np.stack([found] * 3, -1), expected, strict=True)
    if name.startswith("turned"):
        assert found.shape == COLOUR.shape


@pytest.mark.parametrize(
    ("name", "image", "options", "mode"),
    [
        ("a.png", Image.fromarray(COLOUR[..., 0].astype(np.uint16) * 257), {}, "I;16"),
        ("a.tif", Image.new("I", (9, 9)), {}, "I"),
        ("a.tif", Image.new("F", (9, 9)), {}, "F"),
        ("a.tif", Image.new("LAB", (9, 9)), {}, "LAB"),
    ],
)
def test_pictures_without_one_right_meaning_are_refused_by_mode(tmp_path, name, image, options, mode):
    image.save(tmp_path / name, **options)
    with pytest.raises(Refused) as refusal:
        read(tmp_path / name)
    assert refusal.value.reason == f"mode {mode}"


TRANSPARENT = [
    ("a.png", with_alpha(PICTURE, 254), {}),
    ("a.webp", with_alpha(PICTURE, 0), {"lossless": True}),
    ("a.png", with_alpha(GREY, 0), {}),
    ("a.tif", with_alpha(GREY, 100), {}),
    ("a.png", PICTURE.quantize(16), {"transparency": 3}),
    ("a.gif", PICTURE.quantize(16), {"transparency": 3}),
    ("a.png", Image.new("RGB", (9, 9), (7, 8, 9)), {"transparency": (7, 8, 9)}),
    ("a.png", Image.new("L", (9, 9), 7), {"transparency": 7}),
]


@pytest.mark.parametrize(("name", "image", "options"), TRANSPARENT)
def test_transparent_pictures_are_what_prepare_makes_of_them(tmp_path, name, image, options):
    image.save(tmp_path / name, **options)
    with Image.open(tmp_path / name) as opened:
        rgba = np.asarray(opened.convert("RGBA"), np.float64)
    for background, value in (("white", 255), ("black", 0)):
        (found,) = images.open_pictures(tmp_path, background)
        found = found if found.ndim == 3 else np.stack([found] * 3, -1)
        opacity = rgba[..., 3:] / 255
        np.testing.assert_allclose(found, rgba[..., :3] * opacity + value * (1 - opacity), atol=1)
        with Folder(str(tmp_path)).load(name) as opened:
            np.testing.assert_array_equal(found, upright(opened, background).convert("RGB"))
    np.testing.assert_array_equal(read(tmp_path / name), images.open_pictures(tmp_path, "white")[0])
    with pytest.raises(Refused, match="^transparent: "):
        images.open_pictures(tmp_path, "refuse")[0]


@pytest.mark.parametrize("background", ["white", "black", "refuse"])
def test_the_background_changes_nothing_of_opaque_pictures(tmp_path, background):
    for number, image in enumerate((PICTURE, with_alpha(PICTURE, 255), with_alpha(GREY, 255), PICTURE.quantize(16))):
        image.save(tmp_path / f"{number}.png", **({"transparency": 200} if number == 3 else {}))
    for found, image in zip(images.open_pictures(tmp_path, background), (PICTURE, PICTURE, GREY, None), strict=True):
        np.testing.assert_array_equal(
            found, image.convert(image.mode) if image else PICTURE.quantize(16).convert("RGB")
        )


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_several_frames_are_refused(tmp_path, name):
    frames = [Image.fromarray(np.roll(COLOUR, i, 0)) for i in range(3)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    with pytest.raises(Refused, match="several frames: .* of 3 frames"):
        read(tmp_path / name)


# Reading ahead


class Numbers(list):
    """Stands for `Pictures`: an index is its own picture, unless it is in `bad`; some take a little longer."""

    def __init__(self, count, bad=(), naps=0.0):
        super().__init__(range(count))
        self.path, self.names = "numbers", [f"n{i}" for i in range(count)]
        self.bad, self.naps, self.started = bad, naps, 0

    def __getitem__(self, index):
        self.started += 1
        time.sleep(self.naps * (index * 7 % 5))
        if index in self.bad:
            raise Refused("broken", f"number {index}")
        return index


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(0, 200), st.integers(1, 8), st.booleans())
def test_all_that_can_be_used_are_given_in_order_and_all_others_named(data, count, threads, allow):
    start, step = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 3))
    bad = data.draw(st.sets(st.integers(0, 200), max_size=4))
    wanted = range(start, count, step)
    reader = images.Reader(
        Numbers(count, bad, naps=1e-5), lambda n: -n, wanted, allow_unreadable=allow, threads=threads
    )
    refused = [n for n in wanted if n in bad]
    end = len(wanted) if allow or not refused else wanted.index(refused[0])
    for _ in range(2):  # a reader can be used again
        assert list(reader) == [-n for n in wanted[:end] if n not in bad]
        assert reader.refused == [(f"n{n}", f"broken: number {n}") for n in refused]


def test_pictures_are_converted_in_several_threads_at_once():
    together = threading.Barrier(4, timeout=20)
    assert list(images.Reader(Numbers(8), lambda n: together.wait() and n or n, threads=4)) == list(range(8))


def test_no_more_than_some_pictures_are_ahead_of_who_takes_them():
    numbers = Numbers(10_000)
    for taken, _ in enumerate(images.Reader(numbers, lambda n: n, threads=4), 1):
        assert numbers.started <= taken + 64
        if taken == 200:
            break
        time.sleep(1e-3)
    assert numbers.started > 200


def test_leaving_early_ends_the_threads():
    before = threading.active_count()
    numbers = Numbers(1000, naps=1e-3)
    reading = iter(images.Reader(numbers, lambda n: n, threads=4))
    assert next(reading) == 0
    assert threading.active_count() == before + 4
    reading.close()
    assert threading.active_count() == before
    started = numbers.started
    time.sleep(0.05)
    assert numbers.started == started < 70


@pytest.mark.parametrize("allow", [False, True])
def test_other_errors_of_a_thread_are_not_swallowed(allow):
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        list(images.Reader(Numbers(300), lambda n: 1 // (n - 100), allow_unreadable=allow, threads=2))
    assert threading.active_count() == before


def test_each_unusable_picture_is_named_and_counted(tmp_path, caplog):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i in range(5):
            buffer = io.BytesIO()
            PICTURE.save(buffer, "PNG")
            archive.writestr(f"{i}.png", buffer.getvalue()[: -200 if i in (2, 4) else None])
    reader = images.Reader(images.open_pictures(tmp_path / "a.zip"), np.shape)
    assert list(reader) == [COLOUR.shape] * 2
    assert [f"a.zip: {i}.png: broken: " in caplog.text for i in range(5)] == [False, False, True, False, True]
    told = str(images.unreadable("a.zip", reader.refused, 5))
    assert "a.zip: 2 of 5 pictures cannot be used, the first is 2.png (broken: " in told
    assert "--allow_unreadable goes on without them" in told
    allowing = images.Reader(images.open_pictures(tmp_path / "a.zip"), np.shape, allow_unreadable=True)
    assert len(list(allowing)) == 3 and [name for name, _ in allowing.refused] == ["2.png", "4.png"]


def test_of_each_reason_the_first_ten_are_named_and_the_others_counted(tmp_path, caplog):
    for number in range(25):
        with_alpha(PICTURE, 3).save(tmp_path / f"a{number:02}.png")
    for number in range(12):
        (tmp_path / f"b{number:02}.png").write_bytes(b"no picture")
    (tmp_path / "c.png").write_bytes(b"")
    reader = images.Reader(images.open_pictures(tmp_path, "refuse"), np.shape)
    assert list(reader) == []
    told = [message.removeprefix(f"{tmp_path}: ") for message in caplog.messages]
    assert [sum(f": {reason}: " in line for line in told) for reason in ("transparent", "not a picture")] == [10, 10]
    assert told[-2:] == ["and 15 more: transparent", "and 3 more: not a picture"]
    assert len(reader.refused) == 38
    line = str(images.unreadable("photos", reader.refused, 38))
    assert "photos: 38 of 38 pictures cannot be used, the first is a00.png (transparent: " in line
    assert "by reason: 25 transparent, 13 not a picture; --allow_unreadable" in line


def test_names_are_printable(tmp_path, caplog):
    (tmp_path / "a\n\x1b.png").touch()
    reader = images.Reader(images.open_pictures(tmp_path), np.shape)
    assert list(reader) == []
    told = str(images.unreadable("a folder", reader.refused, 1))
    assert told.isprintable() and all(message.isprintable() for message in caplog.messages)


def test_files_of_attributes_that_macos_puts_into_archives_are_no_pictures(tmp_path):
    content = io.BytesIO()
    PICTURE.save(content, "PNG")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("a.png", "__MACOSX/._a.png", "b/._c.png"):
            archive.writestr(name, content.getvalue())
    assert images.open_pictures(tmp_path / "a.zip").names == ["a.png"]


# Other evaluators' listings


def peers_lists(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """What pytorch-fid, clean-fid and torch-fidelity (as it is, and told to look below) take of a folder."""
    found, defaults = {}, peers.torch_fidelity_defaults()

    def keep(peer: str) -> Callable:
        return lambda files, *_, **__: found.update({peer: files}) or (None, None)

    monkeypatch.setattr(peers.pytorch_fid(), "calculate_activation_statistics", keep("pytorch-fid"))
    peers.pytorch_fid().compute_statistics_of_path(str(folder), None, 1, 2048, "cpu")
    monkeypatch.setattr(peers.clean_fid(), "get_files_features", keep("clean-fid"))
    peers.clean_fid().get_folder_features(str(folder), verbose=False)
    for peer, deep in (("torch-fidelity", False), ("torch-fidelity deep", True)):
        extensions = defaults["samples_find_ext"]
        found[peer] = peers.torch_fidelity_listing()(str(folder), deep, extensions, verbose=False)
    return {peer: {os.path.relpath(file, folder) for file in files} for peer, files in found.items()}


ALL = {"ours", "pytorch-fid", "clean-fid", "torch-fidelity", "torch-fidelity deep"}


@pytest.mark.parametrize(
    "name, takers",
    [
        ("a.png", ALL),
        ("a.jpeg", ALL),
        ("A.JPG", ALL - {"pytorch-fid"}),
        ("a.Png", ALL - {"pytorch-fid", "clean-fid"}),
        ("a.jfif", {"ours"}),
        ("a.avif", {"ours"}),
        ("a.gif", {"ours"}),
        ("a.webp", ALL - {"torch-fidelity", "torch-fidelity deep"}),
        ("a.tiff", ALL - {"torch-fidelity", "torch-fidelity deep"}),
        ("a", {"ours"}),
        ("a.npy", {"clean-fid"}),
        ("a.txt", set()),
        ("deep/er/a.png", ALL - {"pytorch-fid", "torch-fidelity"}),
        (".a.png", ALL - {"ours", "clean-fid"}),
        ("._a.png", ALL - {"ours", "clean-fid"}),
        (".ipynb_checkpoints/a.png", {"torch-fidelity deep"}),
        ("__MACOSX/a.png", {"clean-fid", "torch-fidelity deep"}),
        ("linked/a.png", {"ours", "clean-fid"}),
    ],
)
def test_the_listing_differs_from_other_evaluators_as_the_readme_says(tmp_path, monkeypatch, name, takers):
    folder = tmp_path / "folder"
    (folder / name).parent.mkdir(parents=True)
    target = folder / name
    if name.startswith("linked"):
        (tmp_path / "beside").mkdir()
        (folder / "linked").rmdir()
        (folder / "linked").symlink_to(tmp_path / "beside")
    if name == "a.npy":
        np.save(target, COLOUR)
    else:
        buffer = io.BytesIO()
        PICTURE.save(buffer, "PNG")
        target.write_bytes(b"text" if name == "a.txt" else buffer.getvalue())
    PICTURE.save(folder / "other.png")
    found = peers_lists(folder, monkeypatch) | {"ours": set(images.open_pictures(folder).names)}
    assert {peer for peer, names in found.items() if name in names} == takers
    assert all("other.png" in names for names in found.values())
