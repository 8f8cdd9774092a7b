"""Pictures in zip, tar, ArrayRecord and numpy files: the same as in a folder, and what hostile files can do."""

import collections
import errno
import io
import itertools
import json
import os
import random
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jpeglm.core.errors import InputError, Refused
from jpeglm.data import sources
from jpeglm.data.sources import open_anew, reading
from jpeglm.data.sources.array_records import ArrayRecords
from jpeglm.data.sources.arrays import Arrays
from jpeglm.data.sources.folders import Folder
from jpeglm.data.sources.pictures import load_pixels
from jpeglm.data.sources.tars import Tar
from jpeglm.data.sources.zips import Zip
from jpeglm.prepare import plan
from tests.prepare.packing_tools import BY_NAME, members, pack, tar_member, write_records, zip_by_hand
from tests.tiny_config import get_config

ROOT = Path(__file__).parents[3]
NAMES = ["b.png", "a.png", "also/c.png", "deep/z.png", "deep/er/a.png", "deep/é ü.png", "z/" + "long" * 40 + ".png"]
PIXELS = np.random.default_rng(0).integers(0, 256, (7, 6, 5, 3), np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def read_all(path: Path) -> dict[str, np.ndarray]:
    source, found = open_anew(str(path)), {}
    for name in source.names():
        with source.load(name) as image:
            load_pixels(image)
            found[name] = np.asarray(image)
    return found


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for name, pixels in expected.items():
        np.testing.assert_array_equal(found[name], pixels, strict=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("archives") / "folder"
    for name, pixels in zip(NAMES, PIXELS, strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(pixels))
    return root


@pytest.fixture(scope="module", params=[*BY_NAME, "array_record", "records", "npz", "compressed.npz", "npy"])
def packed(request, folder) -> Path:
    """The folder's pictures in a file of each kind, or in a folder of two record files."""
    path = folder.with_name(f"packed.{request.param}")
    if request.param in BY_NAME:
        return pack(members(folder), path)
    if request.param == "array_record":
        return write_records(map(png, PIXELS), path)
    if request.param == "records":
        path.mkdir()
        (path / "manifest.json").touch()
        for part in range(2):
            write_records(map(png, PIXELS[4 * part : 4 * part + 4]), path / f"{part}.array_record")
    elif request.param == "npy":
        np.save(path, PIXELS)
    else:
        (np.savez if request.param == "npz" else np.savez_compressed)(path, PIXELS)
    return path


def expected_of(packed: Path, folder: Path) -> dict[str, np.ndarray]:
    if packed.name.removeprefix("packed.") in BY_NAME:
        return read_all(folder)
    names = [f"{index:09d}" for index in range(7)]
    if packed.suffix == ".array_record":
        names = [f"{packed.name}:{index}" for index in range(7)]
    elif packed.suffix == ".records":
        names = [f"{index // 4}.array_record:{index % 4}" for index in range(7)]
    return dict(zip(names, PIXELS, strict=True))


# What is read


def test_every_kind_gives_the_pictures_in_one_order(packed, folder):
    assert_same(read_all(packed), expected_of(packed, folder))


def test_many_threads_may_read_one_source(packed, folder):
    source, expected = open_anew(str(packed)), expected_of(packed, folder)
    names = random.Random(0).choices(list(expected), k=400)
    with ThreadPoolExecutor(8) as pool:
        for name, pixels in zip(names, pool.map(lambda name: np.asarray(source.load(name)), names), strict=True):
            np.testing.assert_array_equal(pixels, expected[name])


@settings(max_examples=50, deadline=None)
@given(st.sets(st.lists(st.text("ab.- ", min_size=1, max_size=2), min_size=1, max_size=3).map("/".join), min_size=1))
def test_members_are_sorted_as_a_folder_is(names):
    names = {name for name in names if not {".", ".."} & set(name.split("/"))}
    names = sorted(name for name in names if not any(other.startswith(name + "/") for other in names))
    with tempfile.TemporaryDirectory() as root:
        for name in names:
            path = Path(root, "folder", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        content = [(name, b"") for name in names]
        kinds = [pack(content, Path(root, f"a.{kind}")) for kind in ("zip", "tar")]
        for kind in kinds if names else ():
            assert list(open_anew(str(kind)).names()) == list(Folder(f"{root}/folder").names())


def test_the_last_member_of_a_name_is_the_picture(tmp_path):
    content = [("a.png", png(PIXELS[0])), ("a.png", png(PIXELS[1]))]
    with pytest.warns(UserWarning, match="Duplicate name"):
        pack(content, tmp_path / "a.zip")
    for path in (tmp_path / "a.zip", pack(content, tmp_path / "a.tar")):
        assert_same(read_all(path), {"a.png": PIXELS[1]})


@pytest.mark.parametrize("shape", [(7, 10, 9), (7, 10, 9, 1), (7, 6, 5, 3)])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_the_array_of_pictures_is_found_among_others(tmp_path, shape, save):
    pixels = PIXELS.reshape(-1)[:630].reshape(shape)
    others = {"labels": np.arange(7), "mu": np.zeros((7, 6, 5)), "names": np.array(["x", None], object)}
    pictures = pixels[..., 0] if shape[3:] == (1,) else pixels
    for file, arrays in (("a", {"pictures": pixels}), ("b", {"pictures": PIXELS[:2], "arr_0": pixels})):
        save(tmp_path / file, **others, **arrays)
        expected = {f"{index:09d}": picture for index, picture in enumerate(pictures)}
        assert_same(read_all(tmp_path / f"{file}.npz"), expected)


def test_a_compressed_file_leaves_no_name_behind(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    np.savez_compressed(tmp_path / "a.npz", PIXELS)
    opened = [open_anew(str(path)) for path in (pack(members(folder), tmp_path / "a.tar.gz"), tmp_path / "a.npz")]
    assert [len(list(source.names())) for source in opened] == [7, 7]
    assert not os.listdir(tmp_path / "temporary")


class InThisProcess:
    """`workers.Pool` without processes, which take seconds to start."""

    def __init__(self, workers: int):
        pass

    def __enter__(self) -> "InThisProcess":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map_unordered(self, function: Callable, tasks: Iterable[tuple]) -> Iterator:
        return itertools.starmap(function, tasks)


def test_prepare_gives_the_same_documents_from_every_kind(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    digits = sources.open_source("embedded:mnist")
    for name, _ in zip(digits.names(), range(30), strict=False):
        digits.load(name).save(tmp_path / "folder" / f"{name}.png")
    content = members(tmp_path / "folder")
    records = write_records((data for _, data in content), tmp_path / "a.array_record")
    found = []
    archives = [pack(content, tmp_path / f"a.{kind}") for kind in ("deflated.zip", "tar")]
    for path in (*archives, records, tmp_path / "folder"):
        out = tmp_path / f"out-{path.name}"
        manifest = plan.prepare(get_config(), str(path), out, workers=2, unit_items=8)
        monkeypatch.setattr(plan, "Pool", InThisProcess)  # after the first
        assert (manifest["counts"]["kept"], manifest["counts"]["refused"]) == (30, {})
        found.append({file.name: file.read_bytes() for file in out.iterdir() if file.name != "manifest.json"})
    assert len(found[0]) == 6  # three shards, tokenizer, refused, passed over
    assert all(files == found[0] for files in found[1:])


# What is refused


def refusal(path: Path) -> Refused:
    source = open_anew(str(path))
    (name,) = source.names()
    with pytest.raises(Refused) as caught:
        source.load(name)
    return caught.value


@pytest.mark.parametrize("name", ["/a.png", "../a.png", "a/../../b.png", "..\\a.png"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_lead_out_of_the_archive_are_refused(tmp_path, name, kind):
    assert refusal(pack([(name, png(PIXELS[0]))], tmp_path / f"a.{kind}")).reason == "unsafe name"


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(tar_member("a.png", type=kind, linkname="/etc/passwd"))
    assert refusal(tmp_path / "a.tar").reason == "not a regular file"


def test_a_file_with_holes_in_a_tar_is_refused(tmp_path):
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(1 << 20)
    done = subprocess.run(["tar", "--sparse", "-cf", "a.tar", "a.png"], cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "a.tar").stat().st_size < 1 << 19
    assert refusal(tmp_path / "a.tar").reason == "not a regular file"


def test_a_link_in_a_zip_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("a.png")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    assert refusal(tmp_path / "a.zip").reason == "not a regular file"


def test_encrypted_members_and_other_compressions_are_refused(tmp_path):
    data = png(PIXELS[0])
    found = refusal(zip_by_hand(tmp_path / "a.zip", b"a.png", data, len(data), flags=1))
    assert (found.reason, found.detail) == ("unreadable", "it is encrypted")
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.png", data)
    assert "compression method 14" in str(refusal(tmp_path / "b.zip"))


def test_a_wrong_checksum_in_a_zip_is_refused(tmp_path):
    path = pack([("a.bmp", b"BM")], tmp_path / "a.zip")
    path.write_bytes(path.read_bytes().replace(b"BM", b"MB"))
    assert (refusal(path).reason, "CRC" in refusal(path).detail) == ("broken", True)


def test_members_and_records_above_the_limit_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MOST_BYTES", 99_999)
    data = bytes(100_000)
    paths = [pack([("a.png", data)], tmp_path / f"a.{kind}") for kind in ("zip", "tar")]
    for path in (*paths, write_records([data], tmp_path / "a.array_record")):
        assert refusal(path).reason == "too large"


def test_bombs_take_the_memory_that_their_headers_admit_and_no_more(tmp_path):
    zeros = zlib.compressobj(9, wbits=-15)
    block = zeros.compress(bytes(1 << 20)) + zeros.flush(zlib.Z_FULL_FLUSH)
    bomb = block * 1024 + zeros.flush()  # 1 GiB of zeros
    lying = zip_by_hand(tmp_path / "lying.zip", b"a.png", bomb, 1000, method=8)
    admitting = zip_by_hand(tmp_path / "admitting.zip", b"a.png", bomb, 1 << 30, method=8)
    with open(tmp_path / "name.tar", "wb") as file:
        member = tar_member("././@LongLink", type=tarfile.GNUTYPE_LONGNAME, size=2 << 30)
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.truncate(3 << 30)  # a hole
    code = """
import re, sys
from pathlib import Path
from jpeglm.core.errors import InputError
from jpeglm.data import sources
for path in sys.argv[1:]:
    try:
        source = sources.open_anew(path)
        source.load(next(source.names()))
    except InputError as error:
        print(error)
    print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])  # the peak of the memory
"""
    command = [sys.executable, "-c", code, tmp_path / "absent.zip", lying, admitting, file.name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told, peaks = done.stdout.splitlines()[::2], [int(line) >> 10 for line in done.stdout.splitlines()[1::2]]
    assert told[1].startswith("broken: BadZipFile: Bad CRC-32") and told[2].startswith("too large")
    assert told[3].endswith("a header of 2147483648 bytes")
    assert peaks[-1] - peaks[0] < 50


def test_an_xz_file_that_asks_for_4_gib_of_memory_is_refused(folder, tmp_path):
    path = pack(members(folder), tmp_path / "a.tar.xz")
    data = bytearray(path.read_bytes())
    size = (data[12] + 1) * 4  # of the block's header: its size, flags, LZMA2, its dictionary's size, checksum
    assert data[14:16] == b"\x21\x01"
    data[16] = 40
    data[12 + size - 4 : 12 + size] = zlib.crc32(data[12 : 12 + size - 4]).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(InputError, match="Memory usage limit"):
        open_anew(str(path))


def test_a_tar_without_its_end_or_with_a_damaged_header_is_no_shorter_tar(folder, tmp_path):
    whole = pack(members(folder), tmp_path / "a.gnu.tar").read_bytes()
    with tarfile.open(tmp_path / "a.gnu.tar") as archive:
        second = archive.getmembers()[1].offset
    damaged = whole[: second + 3] + b"?" + whole[second + 4 :]
    for data in (whole[:second], damaged):
        (tmp_path / "b.tar").write_bytes(data)
        with pytest.raises(InputError, match=f"damaged or cut off at byte {second}"):
            open_anew(str(tmp_path / "b.tar"))


def test_a_tar_whose_member_is_followed_by_itself_ends(tmp_path):
    first, second = (bytearray(tar_member(name).tobuf(tarfile.GNU_FORMAT)) for name in ("a.png", "b.png"))
    second[124:136] = (-512).to_bytes(12, signed=True)  # its size
    second[148:156] = b" " * 8
    second[148:156] = b"%06o\0 " % sum(second)  # its checksum
    (tmp_path / "a.tar").write_bytes(first + second + bytes(1024))
    with pytest.raises(InputError, match="as a tar file"):
        open_anew(str(tmp_path / "a.tar"))


def test_no_room_to_unpack_is_one_line(folder, tmp_path, monkeypatch):
    path = pack(members(folder), tmp_path / "a.tar.gz")
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: open("/dev/full", "wb"))
    with pytest.raises(InputError, match=r"a\.tar\.gz: no room to unpack it in .*TMPDIR"):
        open_anew(str(path))


@pytest.mark.parametrize(
    "array",
    [
        np.array([PIXELS[0], None], object),
        PIXELS.astype(np.float32),
        PIXELS.astype(np.uint16),
        PIXELS[0, 0],
        np.asfortranarray(PIXELS),
        np.zeros((2, 3, 4, 4), np.uint8),
        np.zeros((3, 0, 4), np.uint8),
        np.zeros((1, 1, 1), [("a", np.uint8)]),
        np.zeros((48, 64, 3), np.uint8),
        np.zeros((28, 28, 1), np.uint8),
    ],
    ids=[
        "objects",
        "float",
        "16 bit",
        "2 axes",
        "Fortran order",
        "4 channels",
        "no rows",
        "fields",
        "one in colour",
        "one in grey",
    ],
)
def test_arrays_that_are_no_pictures_are_refused(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", array)
    for kind in ("npy", "npz"):
        with pytest.raises(InputError, match=f"a.{kind} holds no uint8 array"):
            open_anew(str(tmp_path / f"a.{kind}"))


def test_an_array_that_promises_more_than_its_file_holds_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", PIXELS)
    data = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(data.replace(b"(7, 6, 5, 3), ", b"(9999999,6,5),"))
    with pytest.raises(InputError, match="its array ends at byte"):
        open_anew(str(tmp_path / "a.npy"))


def test_a_cut_file_gives_all_pictures_or_an_error(packed, folder, tmp_path):
    if packed.is_dir():
        packed = packed / "0.array_record"
        expected = {f"0.array_record:{index}": PIXELS[index] for index in range(4)}
    else:
        expected = expected_of(packed, folder)
    data, outcomes = packed.read_bytes(), collections.Counter()
    for cut in [*np.linspace(0, len(data) - 1, 50).astype(int), *range(len(data) - 12, len(data))]:
        (tmp_path / packed.name).write_bytes(data[:cut])
        try:
            assert_same(read_all(tmp_path / packed.name), expected)
        except InputError as error:
            outcomes["error"] += 1
            assert str(error).isprintable() and len(str(error)) < 400 + len(str(tmp_path))
        else:
            outcomes["all"] += 1
    assert outcomes["error"] > (20 if packed.suffix == ".tar" else 50)  # the last 10 KiB of a tar are padding


def test_damaged_bytes_end_in_one_line(packed, folder, tmp_path):
    if packed.is_dir():
        packed = packed / "0.array_record"
    data, generator = packed.read_bytes(), random.Random(0)
    for _ in range(100):
        damaged = bytearray(data)
        for _ in range(3):
            damaged[generator.randrange(len(data))] ^= generator.randrange(1, 256)
        (tmp_path / packed.name).write_bytes(damaged)
        try:
            read_all(tmp_path / packed.name)
        except InputError as error:
            assert str(error).isprintable()


# What a path may be


def test_what_is_no_source_is_one_line(folder, tmp_path):
    (tmp_path / "notes.txt").touch()
    os.mkfifo(tmp_path / "pipe.zip")
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "a.png").touch()
    (tmp_path / "both" / "a.array_record").touch()
    for name, why in (
        ("notes.txt", "neither a folder nor a file of a kind that holds pictures"),
        ("absent", "no such folder"),
        ("absent.zip", "no such file"),
        ("pipe.zip", "not a regular file"),
        ("both", "holds .array_record files, and pictures or folders beside them"),
    ):
        with pytest.raises(InputError, match=why):
            open_anew(str(tmp_path / name))
    for kind in (*Zip.suffixes, *Tar.suffixes, *ArrayRecords.suffixes, *Arrays.suffixes):
        (tmp_path / f"empty{kind}").touch()
        with pytest.raises(InputError, match=f"cannot read .*empty{kind} as a "):
            open_anew(str(tmp_path / f"empty{kind}"))


def test_a_file_without_permission_is_one_line(tmp_path, monkeypatch):
    path = pack([("a.png", png(PIXELS[0]))], tmp_path / "a.zip")

    def refuse(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(InputError, match=r"cannot read .*a\.zip: Permission denied"):
        open_anew(str(path))


def test_a_folder_may_be_called_as_a_file(folder, tmp_path):
    (tmp_path / "a.zip").symlink_to(folder)
    assert_same(read_all(tmp_path / "a.zip"), read_all(folder))


def test_names_survive_json_and_lead_back(tmp_path):
    names = ["a\nb.png", "é.png", os.fsdecode(b"\xff.png")]
    path = pack([(name, png(PIXELS[0])) for name in names], tmp_path / "a.gnu.tar")
    source = open_anew(str(path))
    assert set(source.names()) == set(names)
    for name in source.names():
        np.testing.assert_array_equal(np.asarray(source.load(json.loads(json.dumps(name)))), PIXELS[0])


def test_a_changed_byte_of_a_large_array_is_noticed(tmp_path):
    np.savez(tmp_path / "a.npz", np.random.default_rng(0).integers(0, 256, (100, 100, 100, 3), np.uint8))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[2_000_000] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(InputError, match="cannot read .*a.npz as a numpy file: Bad CRC-32"):
        open_anew(str(tmp_path / "a.npz"))


def test_folders_beside_records_are_refused(tmp_path):
    (tmp_path / "a.array_record").touch()
    (tmp_path / "more").mkdir()
    with pytest.raises(InputError, match="pictures or folders beside them"):
        open_anew(str(tmp_path))
