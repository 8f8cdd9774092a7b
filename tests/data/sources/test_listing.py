"""What folders and archives hold: files that were joined, files of other names, hidden ones, links, samples."""

import bz2
import collections
import gzip
import io
import itertools
import json
import lzma
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jpeglm.core.errors import InputError
from jpeglm.core.registry import CODECS
from jpeglm.data import documents
from jpeglm.data.codecs.avc import AvcCodec
from jpeglm.data.codecs.jpeg import JpegCodec
from jpeglm.data.sources import listing, open_anew, reading
from jpeglm.fid import images
from jpeglm.fid import moments as statistics
from jpeglm.fid.frechet import Moments
from tests.clips import ffmpeg
from tests.prepare.packing_tools import BY_NAME, members, pack, write_records, zip_by_hand

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
JPEG = JpegCodec(16, 16, "RGB", 25)
CLIPS = AvcCodec(32, 32, 3, 5, 37, False)


def encoded(format: str, image: Image.Image = PICTURE, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


PNG = encoded("PNG")


def write(folder: Path, *names: str, content: bytes = PNG) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def listed(path: Path) -> tuple[list[str], dict[str, int]]:
    """What is taken of a path, and the numbers of what is not."""
    passed_over = listing.PassedOver()
    names = list(open_anew(str(path)).names(listing.pictures(), passed_over))
    assert passed_over.counts.total() >= len(passed_over.names)
    return names, dict(passed_over.counts)


# Files that were joined


def numbered(first: int, count: int, side: int = 8) -> list[tuple[str, bytes]]:
    """Pictures, each of one grey, their number."""
    numbers = range(first, first + count)
    return [(f"{n:03}.bmp", encoded("BMP", Image.new("L", (side, side), n))) for n in numbers]


def container(kind: str, content: list[tuple[str, bytes]], path: Path) -> bytes:
    """The bytes of a file of this kind with these pictures."""
    if kind == "array_record":
        return write_records([data for _, data in content], path, "group_size:1,uncompressed").read_bytes()
    if kind in ("npy", "npz", "compressed.npz"):
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(data))) for _, data in content])
        buffer = io.BytesIO()
        {"npy": np.save, "npz": np.savez, "compressed.npz": np.savez_compressed}[kind](buffer, pixels)
        return buffer.getvalue()
    return pack(content, path).read_bytes()


def greys(path: Path) -> list[int]:
    source = open_anew(str(path))
    return sorted(np.asarray(source.load(name)).max().item() for name in source.names())


KINDS = (*BY_NAME, "array_record", "npy", "npz", "compressed.npz")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first, second", [(3, 3), (1, 5), (5, 1), (40, 2), (2, 40)])
def test_of_joined_files_all_is_read_or_nothing(tmp_path, kind, first, second):
    path = tmp_path / f"a.{kind}"
    one = container(kind, numbered(0, first), path)
    other = container(kind, numbered(first, second), path)
    path.write_bytes(one)
    assert greys(path) == list(range(first))
    halves = (one + other, one + other[: len(other) // 2], one + other[-len(other) // 2 :], one + b"junk", other + one)
    for data in (*halves, b"#!/bin/sh\n" + one):
        if not data.removeprefix(one).strip(b"\0"):
            continue  # half of a tar may be padding
        path.write_bytes(data)
        with pytest.raises(InputError) as error:
            greys(path)
        assert str(error.value).isprintable() and str(path) in str(error.value)


@pytest.mark.parametrize("kind", ["zip", "tar", "gnu.tar", "tar.gz", "tar.bz2", "tar.xz", "npy", "npz"])
def test_zeros_behind_a_file_change_nothing(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    whole = container(kind, numbered(0, 4), path)
    for zeros in (4, 512, 4096, 10_240, 60_000):
        path.write_bytes(whole + bytes(zeros))
        assert greys(path) == [0, 1, 2, 3]


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("parts", [2, 3, 5, 20])
def test_one_tar_in_several_streams_is_one_tar(tmp_path, compress, parts):
    whole = pack(numbered(0, 30), tmp_path / "a.tar").read_bytes()
    size = -(-len(whole) // parts)
    streams = [compress(whole[start : start + size]) for start in range(0, len(whole), size)]
    (tmp_path / "b.tar.gz").write_bytes(b"".join(streams))
    assert greys(tmp_path / "b.tar.gz") == list(range(30))
    for damaged in ([*streams, b"more"], [*streams[:-1], streams[-1][:-9]], [*streams, *streams]):
        (tmp_path / "b.tar.gz").write_bytes(b"".join(damaged))
        with pytest.raises(InputError, match="b.tar.gz as a tar file"):
            open_anew(str(tmp_path / "b.tar.gz"))


def test_records_of_all_sizes_are_no_joined_files(tmp_path):
    random = np.random.default_rng(0)
    for count, size, options in itertools.product(
        (0, 1, 7, 3000), (0, 11, 30_000), ("group_size:1", "group_size:16", "uncompressed")
    ):
        if count * size < 1 << 25:
            path = write_records([random.bytes(size)] * count, tmp_path / "a.array_record", options)
            assert len(list(open_anew(str(path)).names())) == count
            path.write_bytes(path.read_bytes() * 2)
            with pytest.raises(InputError, match="as a ArrayRecord file"):
                open_anew(str(path))


def test_joined_statistics_are_refused(tmp_path):
    for number in range(2):
        moments = Moments([np.random.default_rng(number).normal(size=(9, 3))])
        statistics.save_statistics(tmp_path / f"{number}.npz", moments, {})
    joined = (tmp_path / "0.npz").read_bytes() + (tmp_path / "1.npz").read_bytes()
    (tmp_path / "both.npz").write_bytes(joined)
    with pytest.raises(InputError, match="bytes stand in front of it: another file"):
        statistics.load_statistics(tmp_path / "both.npz")


def test_members_that_later_ones_replace_and_members_without_a_name_are_counted(tmp_path):
    content = [("a.png", PNG), ("b/a.png", PNG), ("./a.png", PNG), ("a.png", PNG), ("", PNG), ("b/a.png", PNG)]
    assert listed(pack(content, tmp_path / "a.tar")) == (
        ["a.png", "b/a.png"],
        {"replaced .png": 3, "without a name": 1},
    )
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = pack(content[:2] + content[3:4] + content[5:], tmp_path / "a.zip")
    assert listed(path) == (["a.png", "b/a.png"], {"replaced .png": 2})
    nameless = zip_by_hand(tmp_path / "b.zip", b"", PNG, len(PNG))
    assert listed(nameless) == ([], {"without a name": 1})


# Names


FORMATS = (*("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "AVIF", "QOI", "PPM", "DDS", "ICO", "SGI"),)
NO_PICTURES = {
    "text": b"A cat sat.\n" * 50,
    "page": b"<!DOCTYPE html><html></html>",
    "json": b'{"a": 1}',
    "python": b"Python is a language\n",
    "P1 notes": b"P1 is urgent",
    "program": b"\x7fELF" + bytes(100),
    "archive": b"PK\3\4" + bytes(100),
    "pdf": b"%PDF-1.7\n",
    "drawing": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "sound": b"RIFF\x24\0\0\0WAVEfmt ",
    "film": b"\0\0\0\x20ftypisom\0\0\2\0isom",
    "phone": b"\0\0\0\x20ftypheic\0\0\0\0heic",
    "numbers": b"\x93NUMPY\1\0",
    "zeros": bytes(600),
    "nothing": b"",
}


@pytest.mark.parametrize("format", FORMATS)
def test_a_picture_is_found_by_its_suffix_in_any_case_and_without_one_by_its_first_bytes(tmp_path, format):
    suffix = next(suffix for suffix, name in Image.registered_extensions().items() if name == format)
    names = [f"a{suffix}", f"b{suffix.upper()}", "c", "d.1234", "e.txt", "f.data", "deep/g.v2"]
    write(tmp_path, *names, content=encoded(format))
    assert listed(tmp_path) == (names, {})
    assert len(images.open_pictures(tmp_path)) == 7


def test_what_is_no_picture_is_passed_over_by_its_suffix(tmp_path):
    for name, content in NO_PICTURES.items():
        write(tmp_path, f"{name}.xyz", name, content=content)
    assert listed(write(tmp_path, "a.jfif")) == (["a.jfif"], {".xyz": 15, "no suffix": 15})


def test_suffixes_are_those_that_pillow_decodes():
    assert {".jfif", ".avif", ".jpe", ".jp2", ".tga", ".apng", ".mpo", ".psd"} < listing.pictures().suffixes
    assert not {".eps", ".pdf", ".h5", ".mpg", ".wmf", ".txt", ".npy", ""} & listing.pictures().suffixes


HIDDEN = (".a.png", "._b.png", "deep/._b.png", "Thumbs.db", "deep/desktop.ini", ".DS_Store")
HIDDEN_FOLDERS = (".ipynb_checkpoints", "deep/.git", "__MACOSX", "@eaDir", "deep/.cache")


@pytest.mark.parametrize("kind", ["folder", *BY_NAME])
def test_hidden_files_and_all_in_hidden_folders_are_passed_over(tmp_path, kind):
    folder = write(tmp_path / "folder", "a.png", "deep/b.png", "deep/notes.txt", *HIDDEN)
    write(folder, *(f"{name}/{inside}" for name in HIDDEN_FOLDERS for inside in ("a.png", "b/c.png", "d.txt")))
    path = folder if kind == "folder" else pack(members(folder), tmp_path / f"a.{kind}")
    (folder / "deep/notes.txt").write_text("none")
    if kind != "folder":
        path = pack(members(folder), path)
    names, counts = listed(path)
    assert names == ["a.png", "deep/b.png"]
    expected = collections.Counter("hidden " + listing.suffix_of(name) for name in HIDDEN)
    assert counts == {".txt": 1, "hidden folder": 5} | {key.strip(): count for key, count in expected.items()}
    source = open_anew(str(path))
    pictures = images.Pictures(source)
    assert pictures.names == names and pictures.passed_over.to_json()["counts"] == counts
    assert list(JPEG.items.names(source)) == names and list(documents.read(str(path), JPEG)) == [
        "a.png",
        "deep_b.png",
    ]


def test_many_kinds_and_odd_suffixes_are_counted_in_few_words(tmp_path):
    passed_over = listing.PassedOver()
    for number in range(500):
        passed_over.add(f"a.{number}")
        passed_over.add(f"a.s{number}")
        passed_over.add(f"a.{'long' * 9}")
        passed_over.add(f"a.\x1b{number}")
    assert passed_over.counts.total() == 2000 and len(passed_over.counts) <= 101 and len(passed_over.names) == 100
    assert passed_over.counts["no suffix"] == 1500
    assert passed_over.after("; ").isprintable() and len(passed_over.after("")) < 300


def test_only_files_whose_names_are_silent_are_opened(tmp_path, monkeypatch):
    write(tmp_path, *(f"{n}.JPEG" for n in range(50)), *(f".{n}.txt" for n in range(50)), "a", "b.txt")
    opened = []
    read_file = reading.read_file
    monkeypatch.setattr(reading, "read_file", lambda path, *size: opened.append(path) or read_file(path, *size))
    assert len(listed(tmp_path)[0]) == 52
    assert sorted(map(os.path.basename, opened)) == ["a", "b.txt"]


# Links


def test_linked_folders_are_listed_once_and_loops_end(tmp_path):
    top, beside = write(tmp_path / "top", "a.png", "deep/b.png"), write(tmp_path / "beside", "c.png", "more/d.png")
    links = {
        "deep/loop": top, "deep/up": tmp_path, "root": Path("/"), "again": top / "deep", "beside": beside,
        "same": beside, "zmore": beside / "more",
    }  # fmt: skip
    for name, target in links.items():
        (top / name).symlink_to(target)
    (beside / "back").symlink_to(top)
    (beside / "self").symlink_to(beside)
    (top / "file.png").symlink_to(beside / "c.png")
    (top / "gone.png").symlink_to("nothing")
    (top / "circle").symlink_to("circle")
    names, counts = listed(top)
    assert names == ["a.png", "file.png", "gone.png", "beside/c.png", "beside/more/d.png", "deep/b.png"]
    assert counts == {"linked folder": 8, "unreadable": 1}


def test_a_link_to_what_is_hidden_here_is_followed(tmp_path):
    write(tmp_path, ".store/a.png", ".store/deep/b.png")
    (tmp_path / "shown").symlink_to(tmp_path / ".store")
    assert listed(tmp_path) == (["shown/a.png", "shown/deep/b.png"], {"hidden folder": 1})


# Clips


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    """A film of a second in each container, and its frames."""
    folder = tmp_path_factory.mktemp("films")
    for name in ("a.mp4", "a.mov", "a.mkv", "a.webm", "a.avi", "a.ts", "a.flv", "a.gif", "a.webp"):
        codec = {".webm": ("-c:v", "libvpx"), ".flv": ("-c:v", "flv"), ".avi": ("-c:v", "mpeg4")}.get(name[1:], ())
        ffmpeg("-f", "lavfi", "-i", "testsrc=s=32x32:r=3:d=2", *codec, folder / name)
    (folder / "frames").mkdir()
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=32x32:r=3:d=2", folder / "frames" / "%d.png")
    return folder


def test_films_are_found_by_suffix_or_first_bytes_and_frames_are_a_clip(films, tmp_path):
    every = sorted(path.name for path in films.glob("a.*"))
    assert list(CLIPS.items.names(open_anew(str(films)))) == [*every, "frames/"]
    for name in every:
        shutil.copy(films / name, tmp_path / name[2:])  # mp4, mov, ... without a dot
    write(tmp_path, "notes.txt", content=b"text")
    passed_over = listing.PassedOver()
    assert list(CLIPS.items.names(open_anew(str(tmp_path)), passed_over)) == sorted(name[2:] for name in every)
    assert passed_over.counts == {".txt": 1}
    assert listed(films)[1] == {suffix: 1 for suffix in (".mp4", ".mov", ".mkv", ".webm", ".avi", ".ts", ".flv")}


@pytest.mark.parametrize(
    "name", ["._3.png", ".DS_Store", "Thumbs.db", "notes.txt", ".ipynb_checkpoints/3.png", "__MACOSX/._3.png"]
)
def test_a_clip_of_frames_is_the_same_beside_what_is_no_frame(films, tmp_path, name):
    [expected] = CLIPS.items.documents(open_anew(str(films)), "frames/")
    shutil.copytree(films / "frames", tmp_path / "frames")
    write(tmp_path / "frames", name, content=b"\0\5\x16\7 attributes")
    source = open_anew(str(tmp_path))
    assert list(CLIPS.items.names(source)) == ["frames/"]
    assert CLIPS.items.documents(source, "frames/") == [expected]
    (tmp_path / "frames/1.png").rename(tmp_path / "frames/1")
    (tmp_path / "frames/2.png").rename(tmp_path / "frames/2.PNG")
    assert CLIPS.items.documents(source, "frames/") == [expected]


def test_films_are_passed_over_where_pictures_are_wanted(films, tmp_path):
    shutil.copy(films / "a.mp4", tmp_path)
    with pytest.raises(InputError, match=r"holds no picture that can be read; passed over: 1 .mp4 \(a.mp4\)"):
        documents.read(str(tmp_path), JPEG)


# Samples


def samples(folder: Path, count: int = 4, suffix: str = ".jpg") -> Path:
    """A folder as `jpeglm.sample` leaves it."""
    names = [f"x{number}-s0" for number in range(count)]
    content = encoded("JPEG") if suffix == ".jpg" else b"\0\0\0\1\x67 a stream"
    write(folder, *(name + suffix for name in names), content=content)
    rows = [json.dumps({"name": name, "valid": True}) + "\n" for name in names]
    (folder / "samples.jsonl").write_text("".join(rows))
    (folder / "settings.json").write_text("{}")
    return folder


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
@pytest.mark.parametrize(
    "others",
    [
        ("grid.html",),
        ("grid.png",),
        ("grid.png", ".x9-s0.tmp", ".lock"),
        ("films/x0-s0.webp", "films/x0-s0.mp4"),
        ("x0-s0.png", "x9-s0.jpg", "notes"),
    ],
)
def test_of_a_folder_of_samples_the_samples_are_taken(tmp_path, kind, others):
    folder = samples(tmp_path / "runs" / "out")
    write(folder, *others)
    for path, below in ((folder, ""), (tmp_path / "runs", "out/")):
        if kind != "folder":
            path = pack(members(path), tmp_path / f"a{len(below)}.{kind}")
        assert images.open_pictures(path).names == [f"{below}x{number}-s0.jpg" for number in range(4)]
        assert list(documents.read(str(path), JPEG)) == [f"{below.replace('/', '_')}x{n}-s0.jpg" for n in range(4)]


@pytest.mark.parametrize("damage", ["missing", "cut", "no name", "leads out", "no object"])
@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_samples_that_are_missing_or_not_named_are_an_error(tmp_path, damage, kind):
    folder = samples(tmp_path / "out")
    log = folder / "samples.jsonl"
    lines = log.read_text()
    if damage == "missing":
        (folder / "x2-s0.jpg").unlink()
        told = "1 of 4 samples in its samples.jsonl are missing, the first is x2-s0"
    else:
        row = {"cut": '{"name": "x5', "no name": "{}", "leads out": '{"name": "../x"}', "no object": "[1]"}[damage]
        log.write_text(lines + row)
        told = "line 5 of samples.jsonl names no sample"
    path = folder if kind == "folder" else pack(members(folder), tmp_path / f"a.{kind}")
    for opened in (lambda: images.open_pictures(path), lambda: documents.read(str(path), JPEG)):
        with pytest.raises(InputError, match=re.escape(told)):
            opened()


def test_samples_of_clips_are_no_frames(tmp_path):
    folder = samples(tmp_path, suffix=".h264")
    write(folder, "x0-s0.mp4", "x0-s0.webp", "grid.png")  # as older versions had them
    assert list(CLIPS.items.names(open_anew(str(folder)))) == [f"x{number}-s0.h264" for number in range(4)]


def test_a_sample_that_is_named_twice_counts_once(tmp_path):
    folder = samples(tmp_path)
    (folder / "samples.jsonl").write_text((folder / "samples.jsonl").read_text() * 2)
    assert len(images.open_pictures(folder)) == 4


# Prepared data, and names as files


def test_names_of_documents_are_good_names_of_files(tmp_path):
    odd = ["a/b.png", "a_b.png", "a\nb.png", "é.png", "日本.png", "x" * 230 + ".png", os.fsdecode(b"\xff.png")]
    pack([(name, PNG) for name in odd], tmp_path / "a.gnu.tar")
    found = documents.read(str(tmp_path / "a.gnu.tar"), JPEG)
    assert len(found) == 7 and {"é.png", "日本.png"} < set(found)
    for name in found:
        assert name.isprintable() and "/" not in name and len(name.encode()) <= 200 and not name.startswith(".")


def test_in_a_locale_without_its_characters_a_name_is_a_hash(tmp_path, monkeypatch):
    pack([("é.png", PNG), ("a.png", PNG)], tmp_path / "a.zip")
    path, fsencode = str(tmp_path / "a.zip"), os.fsencode
    monkeypatch.setattr(documents.os, "fsencode", lambda name: fsencode(name) and name.encode("ascii"))
    assert sorted(re.sub("[0-9a-f]{16}", "HASH", name) for name in documents.read(path, JPEG)) == [
        "a.png",
        "picture-HASH",
    ]


@pytest.mark.parametrize("key, value", [("quality", 75), ("height", 64), ("width", 16), ("mode", "RGB")])
def test_prepared_data_of_another_codec_are_refused(tiny_data, key, value):
    made_by = json.loads((Path(tiny_data) / "manifest.json").read_text())["config"]["codec"]
    codec = CODECS.of({"codec": made_by})
    assert len(documents.read(str(tiny_data), codec, 3)) == 3
    with pytest.raises(InputError, match=f"was prepared with .*{key}={made_by[key]!r}.*codec is .*{key}={value!r}"):
        documents.read(str(tiny_data), CODECS.of({"codec": {**made_by, key: value}}), 3)
    with pytest.raises(InputError, match="was prepared with JpegCodec.*codec is AvcCodec"):
        documents.read(str(tiny_data), CLIPS, 3)


def test_the_evaluator_takes_the_held_out_pictures_of_prepared_data(tiny_data):
    codec = CODECS.of(json.loads((Path(tiny_data) / "manifest.json").read_text())["config"])
    expected = documents.read(str(tiny_data), codec)
    found = images.open_pictures(tiny_data)
    assert found.names == list(expected)
    for index in range(0, len(found), 5):
        np.testing.assert_array_equal(found[index], np.asarray(codec.decode(expected[found.names[index]])))
    with pytest.raises(InputError, match="holds prepared data: documents, and no pictures to encode"):
        documents.check(open_anew(str(tiny_data)), codec)


def test_prepared_clips_are_no_pictures(tiny_clips_data):
    with pytest.raises(InputError, match="holds prepared clips, and pictures are needed"):
        images.open_pictures(tiny_clips_data)


# Arrays


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def numbers(count: int, *shape: int) -> np.ndarray:
    return np.arange(count * int(np.prod(shape))).astype(np.uint8).reshape(count, *shape)


MNIST = {"x_train": numbers(6, 4, 4), "y_train": numbers(6), "x_test": numbers(2, 4, 4), "y_test": numbers(2)}
MEDICAL = {f"{part}_{kind}": array for part, count in (("train", 5), ("val", 3), ("test", 4))
           for kind, array in (("images", numbers(count, 4, 4, 3)), ("labels", numbers(count, 1)))}  # fmt: skip
CASES = [
    (MNIST, "x_train", "x_train uint8 [6, 4, 4], x_test uint8 [2, 4, 4]: name one, as "),
    (MNIST, "x_test", "several arrays of pictures"),
    (MEDICAL, "train_images", "train_images uint8 [5, 4, 4, 3], val_images uint8 [3, 4, 4, 3], test_images"),
    (MEDICAL, "val_images", "several arrays of pictures"),
    (
        {"a": numbers(3, 4, 4), "b": numbers(2, 4, 4, 1), "c": numbers(2)},
        "b",
        "a uint8 [3, 4, 4], b uint8 [2, 4, 4, 1]",
    ),
]


@pytest.mark.parametrize("arrays, name, told", CASES)
@pytest.mark.parametrize("suffix", [".npz", ".NPZ"])
def test_of_several_arrays_of_pictures_the_user_names_one(tmp_path, arrays, name, told, suffix):
    path = save(tmp_path / "data.npz", **arrays).rename(tmp_path / f"data{suffix}")
    with pytest.raises(InputError, match=re.escape(told)):
        open_anew(str(path))
    source = open_anew(f"{path}:{name}")
    pictures = [np.asarray(source.load(index)) for index in source.names()]
    expected = arrays[name]
    np.testing.assert_array_equal(pictures, expected[..., 0] if expected.shape[3:] == (1,) else expected)
    assert len(images.open_pictures(f"{path}:{name}")) == len(expected)


@pytest.mark.parametrize(
    "array, told",
    [
        (numbers(2, 4, 4).astype(np.int32), "pictures int32 [2, 4, 4]"),
        (numbers(2, 4, 4).astype(np.float32), "pictures float32 [2, 4, 4]"),
        (numbers(2, 4, 4).astype(np.uint16), "pictures uint16 [2, 4, 4]"),
        (numbers(2, 4, 4, 4), "pictures uint8 [2, 4, 4, 4]"),
        (np.asfortranarray(numbers(2, 4, 4)), "pictures uint8 in Fortran's order [2, 4, 4]"),
        (numbers(2), "pictures uint8 [2]"),
    ],
)
def test_what_an_array_is_instead_is_told(tmp_path, array, told):
    path = save(tmp_path / "a.npz", pictures=array, labels=numbers(3))
    for asked in (path, f"{path}:pictures"):
        with pytest.raises(InputError, match=re.escape(told.removeprefix("" if asked == path else "pictures "))):
            open_anew(str(asked))
    with pytest.raises(InputError, match="a.npz:nothing: no such array; the file holds pictures"):
        open_anew(f"{path}:nothing")
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(InputError, match=re.escape("it is " + told.removeprefix("pictures "))):
        open_anew(str(tmp_path / "a.npy"))


@pytest.mark.parametrize("kind", KINDS)
def test_suffixes_of_containers_may_be_in_capitals(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(container(kind, numbered(0, 3), path))
    assert greys(path.rename(tmp_path / f"A.{kind.upper()}")) == [0, 1, 2]


def test_statistics_in_capitals_are_statistics(tmp_path):
    moments = Moments([np.random.default_rng(0).normal(size=(9, 3))])
    statistics.save_statistics(tmp_path / "a.npz", moments, {})
    path = (tmp_path / "a.npz").rename(tmp_path / "A.NPZ")
    assert statistics.holds_statistics(path)
    np.testing.assert_allclose(statistics.load_statistics(path)[0].mean, moments.mean)


def test_records_in_capitals_and_beside_hidden_files_are_records(tmp_path):
    content = [data for _, data in numbered(0, 3)]
    write_records(content, tmp_path / "a.array_record").rename(tmp_path / "A.ARRAY_RECORD")
    write(tmp_path, ".ipynb_checkpoints/a.png", "._A.ARRAY_RECORD", "features.json", "Thumbs.db")
    assert greys(tmp_path) == [0, 1, 2]
    assert listed(tmp_path)[1] == {".json": 1, "hidden": 1, "hidden .array_record": 1, "hidden .db": 1}
