"""Damaged and strange files (`hostile.py`) through every command that reads a folder of pictures."""

import collections
import errno
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jpeglm.core.errors import Refused, printable
from jpeglm.data import records
from jpeglm.data.sources.folders import Folder
from jpeglm.data.sources.pictures import to_canonical
from jpeglm.data.sources.reading import read_file
from jpeglm.data.tokenizers.bpe import BpeTokenizer
from jpeglm.prepare import plan
from jpeglm.prepare.verify import verify
from tests.data.sources import hostile

ROOT = Path(__file__).parents[3]
CONFIG = "--config=tests/tiny_config.py"
LIMIT = 2 << 20  # KiB a process
# Root reads what it has no permission for: the tests take that right away, as an ordinary user has it not.
ORDINARY = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []


def run(module: str, *arguments: str, timeout: int = 300) -> subprocess.CompletedProcess:
    """Runs a command as an ordinary user would; one that hangs fails."""
    command = [*ORDINARY, sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=timeout)


def check_terminal(done: subprocess.CompletedProcess) -> None:
    """What came out is text in lines: nothing in a file's name can move the cursor, end a line or upset a reader."""
    for line in re.split(r"[\r\n]", (done.stdout + done.stderr).decode()):
        assert line.isprintable(), line


def refusals(out: Path) -> dict[str, dict]:
    return {line["name"]: line for line in map(json.loads, (out / plan.REFUSED).read_bytes().splitlines())}


def passed_over(out: Path) -> dict[str, str]:
    return {
        line["name"]: line["reason"] for line in map(json.loads, (out / plan.PASSED_OVER).read_bytes().splitlines())
    }


def documents(out: Path) -> collections.Counter:
    manifest, learnt = records.read_manifest(out), BpeTokenizer.load(out / "tokenizer.json")
    seq_len = manifest["config"]["data"]["seq_len"]
    listed = [shard for split in records.SPLITS for shard in manifest["splits"][split]["shards"]]
    return collections.Counter(
        learnt.decode(ids) for shard in listed for ids in records.read_documents(out, shard, seq_len)
    )


@pytest.fixture(scope="module", params=[(5, 40), pytest.param((50, 200), marks=pytest.mark.slow)], ids=["100", "1000"])
def prepared(request, tmp_path_factory):
    """A zoo and its good pictures alone, both prepared: their folder, names of the good ones, the command's end."""
    each, good = request.param
    folder = tmp_path_factory.mktemp("hostile")
    for name in ("zoo", "good"):
        (folder / name).mkdir()
        names = hostile.make_good(folder / name, good)
    hostile.make_hostile(folder / "zoo", each)
    for name in ("good", "zoo"):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        done = run(
            "jpeglm.prepare", CONFIG, f"--source={folder / name}", f"--out={folder / f'{name}.out'}", "--workers=2"
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert peak < max(LIMIT, before + 1)  # earlier tests' children count too, where they are larger
    return folder, set(names), each, done


def test_every_input_is_kept_or_refused_as_its_kind_demands(prepared):
    folder, good, each, _ = prepared
    refused, others = refusals(folder / "zoo.out"), passed_over(folder / "zoo.out")
    assert not good & (set(refused) | set(others))
    assert set(others.values()) <= {".txt", "linked folder", "hidden", "no suffix", "not a regular file .jpg"}
    for name, kind in hostile.KINDS.items():
        found = [line for line in refused.values() if line["name"].startswith(f"{name}/")]
        assert {line["reason"] for line in found} <= kind.reasons, name
        passed = [reason for other, reason in others.items() if other.startswith(f"{name}/")]
        assert len(found) + len(passed) <= each
        if kind.outcome == hostile.REFUSED:
            assert len(found) + len(passed) == each, name
        if kind.outcome == hostile.KEPT:
            assert not found and set(passed) <= {"hidden"}, name


def test_each_refusal_is_counted_and_named(prepared):
    folder, good, each, done = prepared
    manifest = verify(folder / "zoo.out", workers=1)
    refused, counts = refusals(folder / "zoo.out"), manifest["counts"]
    others = passed_over(folder / "zoo.out")
    assert counts["seen"] == len(good) + each * len(hostile.KINDS) - len(others) == counts["kept"] + len(refused)
    assert counts["passed_over"] == collections.Counter(others.values())
    assert counts["refused"] == collections.Counter(line["reason"] for line in refused.values())
    for line in refused.values():
        assert os.path.lexists(folder / "zoo" / line["name"])
        assert line["detail"].isprintable() and 0 < len(line["detail"]) < 300 and " at 0x" not in line["detail"]
    for name in others:
        assert os.path.lexists(folder / "zoo" / name)
    told = ", ".join(f"{count} {reason}" for reason, count in counts["refused"].items())
    assert f"{counts['kept']} of {counts['seen']} pictures kept; refused: {told}\n" in done.stdout.decode()


def test_good_pictures_give_the_documents_that_they_give_alone(prepared):
    folder, good, _, _ = prepared
    alone, among_others = documents(folder / "good.out"), documents(folder / "zoo.out")
    assert alone.total() == len(good)
    assert alone <= among_others


def test_what_is_refused_does_not_depend_on_the_number_of_workers(prepared):
    folder, *_ = prepared
    done = run("jpeglm.prepare", CONFIG, f"--source={folder / 'zoo'}", f"--out={folder / 'again'}", "--workers=1")
    assert done.returncode == 0
    for name in sorted(os.listdir(folder / "again")):
        assert (folder / "again" / name).read_bytes() == (folder / "zoo.out" / name).read_bytes(), name
    shutil.rmtree(folder / "again")


def test_no_name_upsets_the_terminal(prepared):
    folder, _, _, done = prepared
    check_terminal(done)
    check_terminal(run("jpeglm.inspect", str(folder / "zoo.out")))


def test_memory_does_not_grow_from_picture_to_picture(prepared):
    folder, *_ = prepared
    code = """
import sys
from pathlib import Path
from jpeglm.data import sources
from jpeglm.core.errors import Refused
source = sources.open_source(sys.argv[1])
for turn in range(5):
    for name in source.names():
        try:
            source.canonical(name, 32, 32, "L")
        except Refused:
            pass
    print(Path("/proc/self/statm").read_text().split()[1])
"""
    done = subprocess.run([sys.executable, "-c", code, folder / "zoo"], cwd=ROOT, capture_output=True, timeout=300)
    pages = [int(line) for line in done.stdout.split()]
    assert len(pages) == 5
    assert (pages[4] - pages[1]) * resource.getpagesize() < 8 << 20


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["progressive JPEG", "PNG with alpha", "16 bit PNG", "lossless WebP", "raw TIFF"])
def test_the_largest_pictures_stay_below_2_gib(tmp_path, kind):
    side = 9_459  # squared, just below the limit
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 4), np.uint8))
    image = small.resize((side, side), Image.Resampling.NEAREST)
    if kind == "progressive JPEG":
        exif = Image.Exif()
        exif[0x0112] = 6
        image.convert("RGB").save(tmp_path / "a.jpg", quality=90, subsampling=0, progressive=True, exif=exif)
    elif kind == "PNG with alpha":
        image.save(tmp_path / "a.png", compress_level=1)
    elif kind == "16 bit PNG":
        wide = np.asarray(image.getchannel(0)).astype(np.uint16) * 257
        Image.fromarray(wide).save(tmp_path / "a.png", compress_level=1)
    elif kind == "lossless WebP":
        image.save(tmp_path / "a.webp", lossless=True, quality=0, method=0)
    else:
        image.save(tmp_path / "a.tif")
    code = """
import re, sys
from pathlib import Path
from jpeglm.data import sources
from jpeglm.prepare import plan  # which a worker has loaded, too
source = sources.open_source(sys.argv[1])
(name,) = source.names()
source.canonical(name, 256, 256, "RGB")
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])  # ru_maxrss counts the parent's
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    print(f"{kind}: {int(done.stdout) >> 10} MiB")
    assert int(done.stdout) < LIMIT


# What happens between listing and reading


def read(folder: Path, name: str) -> np.ndarray:
    return np.asarray(Folder(str(folder)).canonical(name, 32, 32, "RGB"))


def test_every_name_survives_json_and_leads_back_to_its_file(tmp_path):
    (tmp_path / "odd name").mkdir()
    hostile.KINDS["odd name"].make(os.fsencode(tmp_path / "odd name" / "x"), np.random.default_rng(0), 0)
    for number in range(1, 20):
        hostile.KINDS["odd name"].make(os.fsencode(tmp_path / "odd name" / "x"), np.random.default_rng(0), number)
    names = list(Folder(str(tmp_path)).names())
    assert len(names) == 18 and any("\n" in name for name in names) and any("\udcff" in name for name in names)
    for name in names:
        line = json.dumps(name)
        assert line.isascii() and line.isprintable() and json.loads(line) == name
        assert printable(name).isprintable()
        assert read(tmp_path, json.loads(line)).shape == (32, 32, 3)
    assert len({printable(name) for name in names}) == 18


def test_a_file_that_vanishes_or_becomes_something_else_is_refused(tmp_path, monkeypatch):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a.png")
    source = Folder(str(tmp_path))
    (name,) = source.names()
    as_listed = os.stat(tmp_path / name)
    (tmp_path / name).unlink()
    with pytest.raises(Refused, match="unreadable: No such file"):
        source.load(name)
    os.mkfifo(tmp_path / name)
    monkeypatch.setattr(os, "stat", lambda path: as_listed)  # it changes between that and opening
    with pytest.raises(Refused, match="not a regular file: it was replaced"):
        source.load(name)


@pytest.mark.parametrize("suffix", ["bmp", "tif", "png", "jpg"])
def test_a_file_that_is_shortened_while_it_is_decoded_gives_the_picture_that_it_was(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / f"a.{suffix}")
    before = read(tmp_path, f"a.{suffix}")
    with Folder(str(tmp_path)).load(f"a.{suffix}") as image:
        os.truncate(tmp_path / f"a.{suffix}", 100)
        np.testing.assert_array_equal(np.asarray(to_canonical(image, 32, 32, "RGB")), before)


def test_an_error_while_reading_is_a_refusal(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(Refused, match="unreadable: Input/output error"), monkeypatch.context() as patch:
        patch.setattr(os, "fstat", fail)
        read_file(tmp_path / "a.png")


def test_a_folder_that_cannot_be_listed_ends_the_command_in_one_line(tmp_path):
    (tmp_path / "in" / "clo\nsed").mkdir(parents=True)
    (tmp_path / "in" / "clo\nsed").chmod(0)
    done = run("jpeglm.prepare", CONFIG, f"--source={tmp_path / 'in'}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 2
    assert rf"error: cannot list {tmp_path}/in/clo\nsed: Permission denied" in done.stderr.decode()
    check_terminal(done)


def test_more_pixels_than_the_limit_and_more_scans_are_refused(tmp_path):
    for side, reason in ((9_459, "broken"), (9_460, "too large")):
        (tmp_path / "a.png").write_bytes(hostile.png(side, side, 8, 0, b""))
        with pytest.raises(Refused) as refusal:
            read(tmp_path, "a.png")
        assert refusal.value.reason == reason
    Image.new("L", (40, 40), "grey").save(tmp_path / "a.jpg", progressive=True, comment=b"\xff\xda" * 200)
    file = (tmp_path / "a.jpg").read_bytes()
    flat = read(tmp_path, "a.jpg")
    last, own = file.rindex(b"\xff\xda"), file[file.index(b"\xff\xc2") :].count(b"\xff\xda")
    (tmp_path / "a.jpg").write_bytes(file[:-2] + file[last:-2] * (100 - own) + b"\xff\xd9" + b"\xff\xda" * 200)
    np.testing.assert_array_equal(read(tmp_path, "a.jpg"), flat)
    (tmp_path / "a.jpg").write_bytes(file[:-2] + file[last:-2] * (101 - own) + b"\xff\xd9")
    with pytest.raises(Refused, match="too large: a JPEG of more than 100 scans"):
        read(tmp_path, "a.jpg")


# The other commands


@pytest.fixture(scope="module")
def small_zoo(tmp_path_factory) -> Path:
    """Two good pictures, two of names that need care, and one of each kind that is refused."""
    folder = tmp_path_factory.mktemp("small_zoo")
    names = hostile.make_good(folder, 2)
    (folder / "sub").mkdir()
    shutil.copy(folder / names[0], os.fsencode(folder) + b"/sub/\x1b[2J\xff\n" + b"x" * 240)
    shutil.copy(folder / names[1], folder / "sub" / names[1])
    for name, kind in hostile.KINDS.items():
        if kind.outcome == hostile.REFUSED:
            kind.make(os.fsencode(folder / name), np.random.default_rng(0), 0)
    return folder


def check_left_out(done: subprocess.CompletedProcess) -> None:
    check_terminal(done)
    told = done.stderr.decode()
    assert done.returncode == 0, told
    kinds = [name for name, kind in hostile.KINDS.items() if kind.outcome == hostile.REFUSED and name != "link"]
    assert "passed over: 1 linked folder (link.png/)" in told
    for name in kinds:
        assert f"left out {name}" in told
    assert f"{len(kinds)} files left out, 4 pictures read" in told


@pytest.mark.slow
def test_sampling_leaves_out_and_counts_what_it_cannot_read(tiny_run_of_256, small_zoo, tmp_path):
    flags = (f"--images={small_zoo}", f"--out={tmp_path / 'out'}", "--top_k=40", "--top_p=0.9", "--slots=4")
    done = run("jpeglm.sample", f"--workdir={tiny_run_of_256}", *flags)
    check_left_out(done)
    rows = [json.loads(line)["name"] for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert len(set(rows)) == 4 and all((tmp_path / "out" / f"{name}.jpg").exists() for name in rows)
    assert sum(bool(re.fullmatch(r"picture-[0-9a-f]{16}-s0", name)) for name in rows) == 1
    assert "is called picture-" in done.stderr.decode()


def test_scoring_leaves_out_and_counts_what_it_cannot_read(tiny_run_of_256, small_zoo):
    done = run("jpeglm.score", f"--workdir={tiny_run_of_256}", f"--images={small_zoo}")
    check_left_out(done)
    names = [line.split("  ")[0] for line in done.stdout.decode().splitlines()[2:]]
    assert len(set(names)) == 4 + 1 and names[-1] == "mean"
    assert sum(bool(re.fullmatch(r"picture-[0-9a-f]{16}", name)) for name in names) == 1


def test_the_evaluator_names_every_file_that_is_no_picture_and_gives_no_number(tmp_path):
    for side in ("real", "fake"):
        (tmp_path / side).mkdir()
        hostile.make_good(tmp_path / side, 3)
        (tmp_path / side / "good-001-L.png").unlink()
    for name in ("good-000-1.png", "good-002-LA.png"):
        (tmp_path / "fake" / name).unlink()
    shutil.copy(tmp_path / "real" / "good-000-1.png", tmp_path / "real" / "another.png")
    shutil.copy(tmp_path / "real" / "good-000-1.png", tmp_path / "fake" / "fine.png")
    fake = tmp_path / "fake"
    shutil.move(tmp_path / "real" / "good-002-LA.png", fake / "alpha.png")
    os.mkfifo(fake / "pipe\n.png")
    (fake / "gone.png").symlink_to("nothing")
    (fake / "drawing.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    (fake / "bomb.png").write_bytes(hostile.png(9_460, 9_460, 8, 0, b""))
    (fake / "empty.jpg").touch()
    (fake / "cut.png").write_bytes((fake / "fine.png").read_bytes()[:-40])
    done = run("jpeglm.fid", f"--real={tmp_path / 'real'}", f"--fake={fake}", "--background=refuse")
    told = done.stderr.decode()
    assert done.returncode == 2 and not done.stdout
    check_terminal(done)
    for name, why in (
        ("alpha.png", "transparent"),
        (r"pipe\n.png", "not a regular file"),
        ("gone.png", "unreadable"),
        ("drawing.png", "not a picture"),
        ("bomb.png", "too large"),
        ("empty.jpg", "not a picture"),
        ("cut.png", "truncated"),
    ):
        assert re.search(rf"{re.escape(f'{fake}: {name}')}: .*{why}", told), name
    assert "7 of 8 pictures cannot be used" in told
