"""Writing whole files, outside the input and one command at a time."""

import fcntl
import os
import subprocess
import sys

import pytest
from etils import epath
from PIL import Image

from jpeglm.core import files
from jpeglm.core.errors import InputError
from jpeglm.data import sources
from jpeglm.data.sources import listing


@pytest.mark.parametrize(
    ("out", "given"),
    [
        ("pictures", "pictures"),
        ("pictures/out", "pictures"),
        ("pictures/a/b/out.json", "pictures/"),
        ("pictures/../pictures/out", "pictures"),
        ("link/out", "pictures"),
        ("pictures/out", "link"),
        ("sub/link/out", "pictures"),
        ("elsewhere/out", "pictures"),
    ],
)
def test_an_output_inside_an_input_is_refused_by_the_flag_that_names_it(tmp_path, monkeypatch, out, given):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures/a").mkdir(parents=True)
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to("pictures")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "pictures/results").symlink_to("../elsewhere")
    (tmp_path / "sub/link").symlink_to("../pictures")
    with pytest.raises(InputError, match=f"^{out} lies in --images={given}: "):
        files.check_outside(out, images=given, workdir=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "link", "pictures", "sub"]


@pytest.mark.parametrize("out", ["cifar.npz", "sub/../cifar.npz", "link.npz"])
def test_an_output_that_is_the_file_of_an_input_is_refused(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "cifar.npz").write_bytes(b"pictures")
    (tmp_path / "link.npz").symlink_to("cifar.npz")
    with pytest.raises(InputError, match=f"^{out} is the file that --real=cifar.npz reads: it would be overwritten"):
        files.check_outside(out, real="cifar.npz")


@pytest.mark.parametrize("out", ["gs://bucket/out", "s3://bucket/out"])
def test_an_output_on_a_store_is_refused(out):
    with pytest.raises(InputError, match=f"^{out}: not a local path"):
        files.check_outside(out)


@pytest.mark.parametrize(
    ("out", "given"),
    [
        ("out", "pictures"),
        ("pictures-out", "pictures"),
        ("out/pictures", "pictures"),
        ("pictures/../out", "pictures"),
        ("pictures.zip.out", "pictures.zip"),
        ("out", "tfds:mnist"),
        ("out", "gs://bucket/out"),
    ],
)
def test_an_output_beside_an_input_is_fine(tmp_path, monkeypatch, out, given):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures.zip").touch()
    files.check_outside(out, images=given)


@pytest.mark.parametrize("loop", ["..", ".", "../..", "../beside"])
def test_a_link_that_no_listing_follows_makes_no_output_an_input(tmp_path, loop):
    (tmp_path / "sub/pictures").mkdir(parents=True)
    (tmp_path / "beside").symlink_to("sub")
    (tmp_path / "sub/beside").symlink_to("../beside")
    (tmp_path / "sub/pictures/link").symlink_to(loop)
    Image.new("L", (8, 8)).save(tmp_path / "sub/other.png")
    passed_over = listing.PassedOver()
    source = sources.open_source(str(tmp_path / "sub/pictures"))
    assert not list(source.names(listing.pictures(), passed_over)) and passed_over.counts
    files.check_outside(tmp_path / "sub/out", images=tmp_path / "sub/pictures")


def test_a_folder_is_held_by_one_command_and_let_go_when_that_is_killed(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDS, str(tmp_path / "a/out")], stdout=subprocess.PIPE, cwd=os.getcwd()
    )
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(InputError, match="a/out: another command is writing here"):
        with files.owned(tmp_path / "a/out"):
            pytest.fail("two commands hold one folder")
    holder.kill()
    holder.wait()
    holder.stdout.close()
    for _ in range(2):  # again, too, after one that ended well
        with files.owned(tmp_path / "a/out"):
            pass


def test_a_folder_is_gone_again_if_nothing_was_written(tmp_path):
    with pytest.raises(InputError, match="refused"):
        with files.owned(tmp_path / "out"):
            raise InputError("refused")
    assert not (tmp_path / "out").exists()
    with files.owned(tmp_path / "out"):
        (tmp_path / "out/sample.jpg").touch()
    with files.owned(tmp_path / "out"):
        pass
    assert (tmp_path / "out/sample.jpg").exists()


_HOLDS = """
import sys, time
from jpeglm.core import files
from jpeglm.data import sources
from jpeglm.data.sources import listing
with files.owned(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file/out"):
        with pytest.raises(InputError, match=f"cannot write {path}: "):
            with files.owned(path):
                pass


def test_a_lock_that_fails_for_another_reason_says_so(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(files.errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fails)
    with pytest.raises(InputError, match="cannot lock .*: Input/output error"):
        with files.owned(tmp_path / "out"):
            pass


def test_where_there_are_no_locks_a_warning_says_so(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(files.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with files.owned(tmp_path / "out"):
        pass
    assert "this file system has no locks" in caplog.text


@pytest.mark.parametrize("error", [OSError("no room"), KeyboardInterrupt()])
def test_what_is_not_written_to_its_end_changes_nothing(tmp_path, error):
    path = tmp_path / "a.json"
    path.write_text("before")
    with pytest.raises(type(error)), files.replacing(path) as beside:
        beside.write_text("half")
        raise error
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    kept = {"metrics.jsonl", ".lock", ".dry_run-0123abcd", "notes.123", ".note.txt"}
    for name in (*kept, ".metrics.jsonl.4711", ".config.json.9"):
        (tmp_path / name).touch()
    (tmp_path / ".folder.1").mkdir()
    files.remove_unfinished(epath.Path(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == kept | {".folder.1"}
