"""The folder of samples: done is what has the right content, whatever names, kills and disks did meanwhile."""

import base64
import hashlib
import io
import json
import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image

from jpeglm.core import checkpoint, files
from jpeglm.core.errors import InputError
from jpeglm.sample.folder import Samples
from tests.sample.writer import CODEC, DOCUMENTS, ORIGINALS, Writer, complete, generate, job
from tests.tiny_config import get_config


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A finished folder: two samples of each of three pictures."""
    out = tmp_path_factory.mktemp("samples") / "out"
    complete(Writer(), ORIGINALS, job(out))
    return out


@pytest.fixture
def out(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "out")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(folder: Path) -> dict[str, dict]:
    return {row["name"]: row for row in map(json.loads, (folder / "samples.jsonl").read_text().splitlines())}


def check_whole(out: Path, whole: Path) -> None:
    """`out` has all that `whole` has, to the byte, each sample once in the log, and nothing else."""
    ours, theirs = content(out), content(whole)
    logs = ours.pop("samples.jsonl"), theirs.pop("samples.jsonl")
    assert ours == theirs
    assert sorted(logs[0].splitlines()) == sorted(logs[1].splitlines())


def test_each_row_names_the_content_of_its_original_and_its_file(whole):
    assert sorted(rows(whole)) == [f"{name}-s{number}" for name in ORIGINALS for number in range(2)]
    for name, row in rows(whole).items():
        assert row["original"] == hashlib.sha256(ORIGINALS[name[:-3]]).hexdigest()
        assert row["sha256"] == hashlib.sha256((whole / f"{name}.jpg").read_bytes()).hexdigest()
        assert (row["valid"], row["removed"], row["prompt_units"]) == (True, 0.25, 8)


def test_beside_the_samples_nothing_lies_that_is_a_picture(whole):
    names = {path.name for path in whole.iterdir() if not path.name.startswith(".")}
    assert names == {f"{name}.jpg" for name in rows(whole)} | {"samples.jsonl", "settings.json", "grid.html"}


def test_the_overview_needs_no_other_file(whole):
    page = (whole / "grid.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 1 and sources[0].startswith("data:image/png;base64,")
    grid = Image.open(io.BytesIO(base64.b64decode(sources[0].partition(",")[2])))
    assert grid.size == (4 * 34 - 2, 3 * 34 - 2)  # prompt, two completions, original; 2 pixels between
    tile = np.asarray(grid)[34 : 34 + 32, 34 : 34 + 32]
    np.testing.assert_array_equal(tile, CODEC.see((whole / "b.png-s0.jpg").read_bytes()))


def test_a_finished_folder_is_left_as_it_is(out, whole):
    writer = Writer()
    assert complete(writer, ORIGINALS, job(out)) == out / "grid.html"
    assert writer.written == 0
    assert content(out) == content(whole)


############################ Identity is content ############################


A, B, C = ORIGINALS.values()
ALIKE = CODEC.complete_with_flat(*CODEC.cut(C, 0.9))  # begins as C does
REFUSED = {  # case -> pictures, changes of the job and of the sampler's settings, and what the line says
    "a picture replaced": (ORIGINALS | {"b.png": DOCUMENTS[5]}, {}, {}, "b.png-s0, which completes"),
    "a picture whose end is changed": (ORIGINALS | {"c.png": ALIKE}, {}, {}, "c.png-s0, which completes"),
    "a picture renamed": ({"a.png": A, "new.png": B, "c.png": C}, {}, {}, "b.png-s0, and nothing of that name"),
    "two names swapped": ({"a.png": B, "b.png": A, "c.png": C}, {}, {}, "a.png-s0, which completes"),
    "a picture removed": ({"a.png": A, "c.png": C}, {}, {}, "b.png-s0, and nothing of that name"),
    "a run trained anew": (ORIGINALS, {"weights": "of another"}, {}, "weights=of the run, now of another"),
    "another seed": (ORIGINALS, {"seed": 1}, {}, "seed=0, now 1"),
    "another share": (ORIGINALS, {"ratio": 0.25}, {}, "ratio=0.5, now 0.25"),
    "another temperature": (ORIGINALS, {}, {"temperature": 0.5}, "temperature=1.0, now 0.5"),
    "without the grammar": (ORIGINALS, {}, {"grammar": False}, "grammar=True, now False"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_samples_of_something_else_are_refused_and_kept(out, whole, case):
    pictures, changes, settings, message = REFUSED[case]
    with pytest.raises(InputError, match=f"^{re.escape(str(out))} holds .*{message}.*: another --out$"):
        complete(Writer(**settings), pictures, job(out, **changes))
    assert content(out) == content(whole)


@pytest.mark.parametrize("part", ["tokenizer", "codec", "model"])
def test_another_tokenizer_codec_or_model_is_refused(out, whole, part):
    writer = Writer()
    if part == "tokenizer":
        writer.tokenizer.sha256, message = "of another", "tokenizer=of the tokenizer, now of another"
    elif part == "codec":
        writer.config.codec.quality, message = 50, "codec.quality=25, now 50"
    else:
        writer.config.model.rope_theta, message = 500_000.0, "model.rope_theta=10000.0, now 500000.0"
    with pytest.raises(InputError, match=message):
        complete(writer, ORIGINALS, job(out))
    assert content(out) == content(whole)


def test_any_mixing_of_names_is_refused_and_any_order_goes_on(whole, tmp_path):
    random = np.random.default_rng(0)
    names, documents = list(ORIGINALS), list(ORIGINALS.values())
    for number in range(12):
        out = shutil.copytree(whole, tmp_path / str(number))
        order = random.permutation(3)
        mixed = {name: documents[place] for name, place in zip(names, order, strict=True)}
        if mixed == ORIGINALS:
            mixed["b.png"] = DOCUMENTS[3 + number % 3]
        with pytest.raises(InputError, match="completes another original than has that name now"):
            complete(Writer(), mixed, job(out))
        assert content(out) == content(whole)
        in_order = {names[place]: documents[place] for place in order}
        writer = Writer()
        complete(writer, in_order, job(out))
        assert writer.written == 0 and rows(out) == rows(whole)


def test_what_changes_no_file_goes_on(out, whole):
    """Another number of slots, another place of run and pictures, more pictures."""
    writer = Writer(slots=3)
    complete(writer, ORIGINALS | {"d.png": DOCUMENTS[4]}, job(out, about={"workdir": "elsewhere", "step": 7}))
    assert writer.written == 2
    assert rows(out).items() > rows(whole).items()
    told = json.loads((out / "settings.json").read_text())
    assert (told["workdir"], told["step"]) == ("elsewhere", 7) and "slots" not in told


def test_a_folder_without_hashes_is_refused(out):
    kept = ("name", "valid", "ended", "prompt_units", "tokens", "removed")
    old = [json.dumps({key: row[key] for key in kept}) + "\n" for row in rows(out).values()]
    (out / "samples.jsonl").write_text("".join(old))
    (out / "settings.json").write_text(json.dumps({"workdir": "runs/a", "step": 20, "samples": 2, "seed": 0}))
    before = content(out)
    with pytest.raises(InputError, match="samples of an older version, which kept no hashes of weights and pictures"):
        complete(Writer(), ORIGINALS, job(out))
    assert content(out) == before


def test_runs_of_the_same_step_have_weights_of_their_own(tmp_path):
    """Two trainings that stopped at the same step, and a copy of one: hashes are equal where the weights are."""
    hashes = {}
    for name, value in (("one", 0.5), ("other", 0.25), ("copy", 0.5)):
        workdir = epath.Path(tmp_path / name)
        workdir.mkdir()
        saver = checkpoint.Saver(workdir, get_config().checkpoint)
        saver.save(20, {"params": {"scale": jnp.full(8, value)}})
        saver.close()
        hashes[name] = checkpoint.weights_hash(workdir, 20)
    assert hashes["one"] == hashes["copy"] != hashes["other"]


############################ What kills and disks leave ############################


def test_a_log_cut_at_any_byte_leaves_the_samples_before_the_cut(out, whole):
    log = out / "samples.jsonl"
    text = b"".join(log.read_bytes().splitlines(keepends=True)[:1])
    identity = job(out).identity(Writer())
    lines = text.splitlines(keepends=True)
    ends = np.cumsum([len(line) for line in lines])
    for cut in range(len(text) + 1):
        log.write_bytes(text[:cut])
        found = Samples(out, ".jpg", identity, {})
        found.begin()
        before = np.sum(ends - 1 <= cut)  # a line that lacks no more than its end is whole
        assert list(found.done) == list(rows(whole))[:before]
        assert log.read_bytes() == b"".join(lines[:before])


@pytest.mark.parametrize("name", ["samples.jsonl", "settings.json"])
def test_files_cut_anywhere_are_mended_to_the_same_folder(whole, tmp_path, name):
    text = (whole / name).read_bytes()
    for cut in np.linspace(0, len(text) - 1, 12).astype(int):
        out = shutil.copytree(whole, tmp_path / str(cut))
        (out / name).write_bytes(text[:cut])
        complete(Writer(), ORIGINALS, job(out))
        check_whole(out, whole)


def test_cut_settings_of_another_job_are_still_refused(out, whole):
    text = (whole / "settings.json").read_bytes()
    for cut in np.linspace(0, len(text) - 3, 20).astype(int):
        (out / "settings.json").write_bytes(text[:cut])
        before = content(out)
        with pytest.raises(InputError, match="holds samples of other settings: another --out"):
            complete(Writer(), ORIGINALS, job(out, seed=1))
        assert content(out) == before


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a sample is gone": lambda out: (out / "b.png-s1.jpg").unlink(),
    "a sample is cut": lambda out: (out / "b.png-s1.jpg").write_bytes((out / "b.png-s1.jpg").read_bytes()[:-9]),
    "a sample is altered": lambda out: (out / "a.png-s0.jpg").write_bytes((out / "b.png-s0.jpg").read_bytes()),
    "all samples are gone": lambda out: [path.unlink() for path in out.glob("*.jpg")],
    "the log is gone": lambda out: (out / "samples.jsonl").unlink(),
    "the settings are gone": lambda out: (out / "settings.json").unlink(),
    "a line is no JSON": lambda out: (out / "samples.jsonl").write_bytes(
        (out / "samples.jsonl").read_bytes().replace(b'{"name": "b.png-s0"', b"\0\0\0\0\xff")
    ),
    "a line is other JSON": lambda out: (out / "samples.jsonl").write_bytes(
        b'[1]\n{}\n"x"\n\n' + b"[" * 100_000 + b"\n" + (out / "samples.jsonl").read_bytes()
    ),
    "lines lack what belongs to them": lambda out: (out / "samples.jsonl").write_bytes(
        b'{"name": "a.png-s0", "settings": "x"}\n{"name": 3}\n' + (out / "samples.jsonl").read_bytes()
    ),
    "each line stands twice": lambda out: (out / "samples.jsonl").write_bytes(
        2 * (out / "samples.jsonl").read_bytes()
    ),
    "files were being written": lambda out: [
        (out / name).write_bytes(b"half")
        for name in (".a.png-s0.jpg.4711", ".samples.jsonl.12", ".a.png-s0.tmp", ".settings.tmp")
    ],
    "the overview is gone": lambda out: (out / "grid.html").unlink(),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_mended_to_the_same_folder(out, whole, case):
    DAMAGE[case](out)
    complete(Writer(), ORIGINALS, job(out))
    check_whole(out, whole)


def test_new_files_are_mended_and_refused_alike(tmp_path):
    out = tmp_path / "out"
    generate(Writer(), 5, job(out, samples=1))
    before = content(out)
    (out / "sample-00003.jpg").unlink()
    (out / "samples.jsonl").write_bytes(before["samples.jsonl"][:-20])
    writer = Writer()
    assert generate(writer, 5, job(out, samples=1)) == out / "grid.html"
    assert writer.written == 2
    after = content(out)
    assert sorted(after.pop("samples.jsonl").splitlines()) == sorted(before.pop("samples.jsonl").splitlines())
    assert after == before
    writer = Writer()
    generate(writer, 7, job(out, samples=1))  # more of them: the first ones stay
    assert writer.written == 2
    assert {name: data for name, data in content(out).items() if name in after and name[-4:] == ".jpg"} == {
        name: data for name, data in after.items() if name[-4:] == ".jpg"
    }
    with pytest.raises(InputError, match="holds sample-00006, and nothing of that name is asked now"):
        generate(Writer(), 6, job(out, samples=1))


def test_more_samples_of_each_join_those_that_are_there(out, whole):
    complete(Writer(), ORIGINALS, job(out, samples=3))
    ours, theirs = content(out), content(whole)
    assert {name: ours[name] for name in theirs if name.endswith(".jpg")} == {
        name: data for name, data in theirs.items() if name.endswith(".jpg")
    }
    assert sorted(rows(out)) == [f"{name}-s{number}" for name in ORIGINALS for number in range(3)]


def test_what_others_have_put_there_is_left_alone(tmp_path):
    (tmp_path / ".history.tmp").write_text("mine")
    (tmp_path / ".bashrc.1").write_text("mine")
    complete(Writer(), ORIGINALS, job(tmp_path))
    assert (tmp_path / ".history.tmp").read_text() == (tmp_path / ".bashrc.1").read_text() == "mine"


def test_settings_of_another_program_are_refused_and_left_alone(tmp_path):
    (tmp_path / "settings.json").write_text('{"editor.fontSize": 12}')
    with pytest.raises(InputError, match="a settings.json of another program"):
        complete(Writer(), ORIGINALS, job(tmp_path))
    assert (tmp_path / "settings.json").read_text() == '{"editor.fontSize": 12}'


def test_films_of_an_earlier_sample_of_the_same_name_are_removed(tmp_path):
    folder = Samples(tmp_path, ".h264", {"seed": 0}, {})
    folder.begin()
    for name in ("a-s0", "b-s0"):
        folder.add(name, b"first", {"valid": True})
        folder.add_films(name, {".mp4": b"film of the first", ".webp": b"the same"})
    (tmp_path / "samples.jsonl").unlink()
    folder = Samples(tmp_path, ".h264", {"seed": 0}, {})
    folder.begin()
    folder.add("a-s0", b"second", {"valid": True})
    assert not folder.has_films("a-s0", (".mp4",)) and not folder.has_films("a-s0", (".webp",))
    assert folder.has_films("b-s0", (".mp4", ".webp"))


@pytest.mark.parametrize("limit", [100, 700, 1_200, 2_000, 2_500])
def test_a_full_disk_is_one_line_and_room_lets_it_go_on(whole, tmp_path, limit):
    """Files that may not grow past so many bytes stand for it: settings, samples, the log or the page do not fit."""
    out = tmp_path / "out"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(InputError, match=f"^cannot write {out}: File too large$"):
            complete(Writer(), ORIGINALS, job(out))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    complete(Writer(), ORIGINALS, job(out))
    check_whole(out, whole)


@pytest.mark.parametrize(
    ("place", "why"), [("file", "File exists"), ("file/out", "Not a directory"), ("/proc/out", "No such file")]
)
def test_a_folder_that_cannot_be_is_one_line(tmp_path, place, why):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match=f"^cannot write .*{place}: {why}"):
        complete(Writer(), ORIGINALS, job(tmp_path / place))
    assert (tmp_path / "file").read_text() == "kept"


def test_two_commands_never_write_one_folder(out, whole):
    writer = Writer()
    with files.owned(out):
        with pytest.raises(InputError, match=f"^{out}: another command is writing here"):
            complete(writer, ORIGINALS, job(out))
        with pytest.raises(InputError, match=f"^{out}: another command is writing here"):
            generate(writer, 3, job(out))
    assert writer.written == 0 and content(out) == content(whole)
    complete(writer, ORIGINALS, job(out))
