"""A dry run takes away what it made and nothing else, whatever happens beside it or to it."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from jpeglm.core import checkpoint, files
from jpeglm.core.errors import InputError
from jpeglm.core.workdir import Claim, check_resumable, write_run
from jpeglm.train import rehearsal
from tests.commands import finish, start
from tests.runs import differences, start_several, train_flags
from tests.tiny_config import get_config
from tests.train.test_resume import content


def config_of(data: Path) -> ConfigDict:
    config = get_config()
    config.data.path = str(data)
    return config


def training(meanwhile: Callable[[], None] = lambda: None) -> Callable:
    """A stand-in for `train_one_step` that saves a checkpoint of one array; `meanwhile` is called once in it."""
    calls = []

    def train(config: ConfigDict, workdir: epath.Path) -> tuple[int, int]:
        calls.append(config.data.verify)
        if len(calls) == 1:
            saver = checkpoint.Saver(workdir, config.checkpoint)
            saver.save(1, {"params": {"head": jax.numpy.ones(3)}})
            meanwhile()
            saver.close()
        return 2**20, 2**20

    train.calls = calls
    return train


def a_run(workdir: Path, data: Path) -> dict[Path, bytes]:
    """Makes what a training writes; returns it."""
    write_run(epath.Path(workdir), config_of(data), epath.Path(data))
    saver = checkpoint.Saver(epath.Path(workdir), get_config().checkpoint)
    saver.save(10, {"params": {"head": jax.numpy.arange(5.0)}, "opt_state": {"count": np.ones(1)}})
    saver.close()
    return content(workdir)


def rehearse(train: Callable, data: Path, workdir: Path) -> None:
    rehearsal.rehearse(config_of(data), epath.Path(workdir), train)


WHERE = ["run", "new/run", "new/er/run"]  # below a folder that exists


@pytest.mark.parametrize("where", WHERE)
def test_what_a_training_writes_meanwhile_stays(tiny_data, tmp_path, where):
    workdir, written = tmp_path / where, {}
    rehearse(training(lambda: written.update(a_run(workdir, tiny_data))), tiny_data, workdir)
    assert len(written) > 10 and content(workdir) == written
    assert checkpoint.saved_steps(epath.Path(workdir)) == [10]
    assert sorted(os.listdir(tmp_path)) == [Path(where).parts[0]]


@pytest.mark.parametrize("where", WHERE)
def test_what_another_writes_beside_the_workdir_stays(tiny_data, tmp_path, where):
    def write() -> None:
        (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / where).with_name("other").write_text("other")

    rehearse(training(write), tiny_data, tmp_path / where)
    assert list(content(tmp_path).values()) == [b"other"]
    assert not (tmp_path / where).exists()


@pytest.mark.parametrize("where", WHERE)
def test_nothing_is_left_where_nothing_was(tiny_data, tmp_path, where):
    rehearse(training(), tiny_data, tmp_path / where)
    assert not os.listdir(tmp_path)


def test_a_run_in_use_keeps_its_files_and_its_owner(tiny_data, tmp_path):
    workdir = tmp_path / "run"
    before = a_run(workdir, tiny_data)
    claim = Claim(epath.Path(workdir))
    before[Path("started.json")] = (workdir / "started.json").read_bytes()
    rehearse(training(), tiny_data, workdir)
    assert content(workdir) == before
    claim.check()  # still the owner


def test_two_dry_runs_at_once_leave_each_other_alone(tiny_data, tmp_path):
    inner = training()
    outer = training(lambda: rehearse(inner, tiny_data, tmp_path / "run"))
    rehearse(outer, tiny_data, tmp_path / "run")
    assert len(inner.calls) == len(outer.calls) == 2
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "error", [InputError("no"), RuntimeError("no"), KeyboardInterrupt(), SystemExit(75)], ids=repr
)
def test_a_dry_run_that_fails_takes_away_the_same(tiny_data, tmp_path, error):
    def fail() -> None:
        a_run(tmp_path / "new/run", tiny_data)
        raise error

    with pytest.raises(type(error)):
        rehearse(training(fail), tiny_data, tmp_path / "new/run")
    assert os.listdir(tmp_path) == ["new"] and os.listdir(tmp_path / "new") == ["run"]
    assert checkpoint.saved_steps(epath.Path(tmp_path / "new/run")) == [10]


def test_of_what_lies_there_only_the_folders_of_killed_dry_runs_are_removed(tiny_data, tmp_path):
    workdir = tmp_path / "run"
    left = [workdir / ".dry_run-0123abcd", workdir / ".dry_run-00000000", tmp_path / ".dry_run-ffffffff"]
    others = [
        workdir / "dry_run",
        workdir / ".dry_run-20261130",
        workdir / ".dry_run-0123abcd.old",
        workdir / ".dry_run",
    ]
    for folder in left + others:
        (folder / "checkpoints/1").mkdir(parents=True)
        (folder / "checkpoints/1/x").write_text("x")
    for folder in [*left, others[0], others[2]]:  # others[1] has no lock: no dry run made it
        (folder / ".lock").touch()
    alive = workdir / ".dry_run-aaaaaaaa"
    with files.owned(alive):
        rehearse(training(), tiny_data, workdir)
        assert set(workdir.iterdir()) == {*others, alive}
    assert set(tmp_path.iterdir()) == {workdir}
    assert all((folder / "checkpoints/1/x").read_text() == "x" for folder in others)


def test_the_shards_are_hashed_once(tiny_data, tmp_path):
    train = training()
    rehearse(train, tiny_data, tmp_path / "run")
    assert train.calls == [True, False]


def test_a_workdir_that_cannot_be_one_is_one_line(tiny_data, tmp_path):
    (tmp_path / "file").write_text("mine")
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match=f"cannot write {tmp_path}/file.*Not a directory"):
            rehearse(training(), tiny_data, workdir)
    with pytest.raises(InputError, match=f"^{tmp_path}/file is a file; a run needs a folder$"):
        check_resumable(epath.Path(tmp_path / "file"), config_of(tiny_data), {})
    assert content(tmp_path) == {Path("file"): b"mine"}


# The commands


def wait_for(condition: Callable[[], object], process: subprocess.Popen) -> None:
    while not condition():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)


@pytest.mark.slow
def test_a_killed_dry_run_leaves_what_the_next_one_removes(tiny_data, tmp_path):
    workdir = tmp_path / "place" / "run"
    workdir.parent.mkdir()
    flags = ["--dry_run", *train_flags(tiny_data, workdir)]
    process = start("jpeglm.train", *flags)
    wait_for(lambda: list(workdir.parent.glob(".dry_run-*/checkpoints")), process)
    process.kill()
    assert finish(process).returncode == -signal.SIGKILL
    assert list(workdir.parent.glob(".dry_run-*/config.json"))
    done = finish(start("jpeglm.train", *flags))
    assert done.returncode == 0 and "dry run: go" in done.stderr, done.stderr
    assert not os.listdir(workdir.parent)


@pytest.mark.slow
@pytest.mark.parametrize("is_there", [True, False])
def test_a_training_under_way_or_begun_meanwhile_ends_as_if_alone(tiny_data, tiny_run, tmp_path, is_there):
    workdir = tmp_path / "run"
    flags = train_flags(tiny_data, workdir, **{"eval.every": 8})
    dry = ["--dry_run", *flags]
    slow = lambda *flags: start("tests.planted", "slow:0.5", *flags)  # noqa: E731
    first = slow(*(flags if is_there else dry))
    wait_for(lambda: list(tmp_path.glob("run/started.json" if is_there else ".dry_run-*/started.json")), first)
    second = slow(*(dry if is_there else flags))
    for done in map(finish, (first, second)):
        assert done.returncode == 0, done.stderr
    assert not differences(workdir, tiny_run, 20)
    assert not list(tmp_path.rglob(".dry_run*"))


@pytest.mark.slow
def test_two_processes_rehearse_beside_two_that_train(tiny_data, tmp_path):
    changes = {"mesh.fsdp": 2, "checkpoint.every": 5}
    jobs = [
        start_several(tiny_data, tmp_path / "run", **changes),
        start_several(tiny_data, tmp_path / "run", flags=["--dry_run"], **changes),
        start_several(tiny_data, tmp_path / "run", flags=["--dry_run"], **changes),
    ]
    for done in map(finish, [process for job in jobs for process in job]):
        assert done.returncode == 0, done.stderr
    assert checkpoint.saved_steps(epath.Path(tmp_path / "run")) == [10, 15, 20]
    assert json.loads((tmp_path / "run/config.json").read_text())["steps"] == 20
    assert not list(tmp_path.rglob(".dry_run*"))
    shutil.rmtree(tmp_path / "run")
    assert not os.listdir(tmp_path)
