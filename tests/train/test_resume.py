"""The rules of a workdir: what a run begins from, what it goes on from, and what stops it in one line."""

import contextlib
import errno
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from flax import nnx
from ml_collections import ConfigDict

from jpeglm.core import checkpoint, sharding
from jpeglm.core.errors import InputError
from jpeglm.core.workdir import check_resumable, read_config, write_run
from jpeglm.data import records
from jpeglm.models import llama, networks
from jpeglm.train.optimizer import make_optimizer, make_schedule
from tests.commands import ROOT, finish, start
from tests.forks import run
from tests.runs import differences, scalars, start_job, start_several, state, train_flags
from tests.tiny_config import get_config

STEPS = get_config().steps
OFTEN = {"checkpoint.every": 5}
TWO = OFTEN | {"mesh.fsdp": 2}  # of two processes
LOG = re.compile(r"[IW]\d{4} |listing: |\w+: +\d+%")  # absl's, and bars
OPENING = re.compile(
    r"(devices|mesh|peak|parameters|memory a|compiled in|\S+ data|tokens a|steps an|FLOPs (a|of)|epochs|starts at) "
)


def train(data: Path, workdir: Path, **changes: object) -> subprocess.CompletedProcess:
    return run("jpeglm.train", *train_flags(data, workdir, **(OFTEN | changes)))


def content(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def said(done: subprocess.CompletedProcess) -> str:
    """What a refused command says: one line beside the log's, and status 2."""
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line and not (LOG.match(line) or OPENING.match(line))]
    assert len(lines) == 1 and "error: " in lines[0], done.stderr
    return lines[0]


def flip(path: Path) -> None:
    """Changes one bit."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 8
    path.write_bytes(data)


def arrays_of(workdir: Path, step: int) -> Path:
    """The file that holds most of a checkpoint's arrays."""
    return max(workdir.glob(f"checkpoints/{step}/default/**/d/*"), key=lambda path: path.stat().st_size)


def alter_a_parameter(workdir: Path, step: int) -> None:
    """Writes a checkpoint again with one bit of one parameter changed and the fingerprints as they were."""
    path = workdir / "checkpoints" / str(step) / "default"
    with ocp.PyTreeCheckpointer() as checkpointer:
        to_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), checkpointer.metadata(path).item_metadata.tree
        )
        tree = checkpointer.restore(path, restore_args=to_numpy)
        tree["params"]["head"].view(np.uint32)[3, 5] ^= 1
        checkpointer.save(path, tree, force=True)


@pytest.fixture(scope="module")
def whole_run(tiny_data, tmp_path_factory) -> Path:
    """A run without disturbance, with checkpoints of the steps 10, 15 and 20."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    done = train(tiny_data, workdir)
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.fixture(scope="module")
def imported(whole_run, tmp_path_factory) -> Path:
    """What `jpeglm.convert import` leaves: a config, a tokenizer, and parameters alone as step 0."""
    workdir = tmp_path_factory.mktemp("imported") / "run"
    workdir.mkdir()
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(whole_run / name, workdir)
    saver = checkpoint.Saver(epath.Path(workdir), get_config().checkpoint)
    saver.save(0, {"params": restored(whole_run)["params"]})
    saver.close()
    return workdir


def abstract_state():
    """Shapes and layout of the tiny run's state on one device."""
    config = get_config()
    mesh = sharding.make_mesh({}, jax.devices()[:1])
    _, model = networks.abstract(llama.LlamaConfig.of(config))
    params = nnx.to_pure_dict(model)
    optimizer = make_optimizer(config.optim, make_schedule(config.optim, STEPS), networks.decayed(model))
    shapes = {"params": params, "opt_state": jax.eval_shape(optimizer.init, params)}
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return sharding.laid_out(shapes, jax.tree.map(lambda _: replicated, shapes))


def restored(workdir: Path, expected_step: int | None = None):
    step, found = checkpoint.restore_newest(epath.Path(workdir), abstract_state())
    assert expected_step in (None, step)
    return found


# What a new run begins from


def test_a_new_run_begins_with_the_weights_of_another_and_reads_them_once(tiny_data, imported, tmp_path):
    source, workdir = tmp_path / "source", tmp_path / "run"
    shutil.copytree(imported, source)
    still = {"init_from": source, "optim.lr": 0.0}  # so that the weights stay as they were
    done = train(tiny_data, workdir, steps=10, **still)
    assert done.returncode == 0, done.stderr
    assert re.search(r"starts at step +0\n", done.stderr)
    begun, given = state(workdir, 10), state(source, 0, ("params",))
    assert given and all(np.array_equal(begun[name], array) for name, array in given.items())
    assert begun["['opt_state'][1][0]['count']"] == 10
    assert json.loads((workdir / "config.json").read_text())["init_from"] == str(source)

    shutil.rmtree(source)
    still.pop("init_from")  # what it began from need not be said again
    done = train(tiny_data, workdir, steps=12, **still)
    assert done.returncode == 0, done.stderr
    assert re.search(r"starts at step +10\n", done.stderr)
    assert json.loads((workdir / "config.json").read_text())["init_from"] == str(source)


def with_init_from(data: Path, source: str) -> ConfigDict:
    config = get_config()
    config.data.path, config.init_from = str(data), source
    return config


@pytest.mark.parametrize("first", ["", "old/run", "gs://bucket/run"])
def test_init_from_is_free_until_there_is_a_checkpoint_and_may_be_left_out_later(tiny_data, tmp_path, first):
    workdir, manifest = epath.Path(tmp_path / "run"), records.read_manifest(tiny_data)

    def start_with(source: str) -> str:
        config = with_init_from(tiny_data, source)
        check_resumable(workdir, config, manifest)
        write_run(workdir, config, epath.Path(tiny_data))
        return read_config(workdir).init_from

    assert [start_with(source) for source in ("another", "", first)] == ["another", "", first]  # each begins anew
    saver = checkpoint.Saver(workdir, get_config().checkpoint)
    saver.save(5, {"params": {"head": jax.numpy.ones(3)}, "opt_state": {"count": np.ones(1)}})
    saver.close()
    assert start_with("") == start_with(first) == first
    with pytest.raises(InputError, match=re.escape(f"init_from ({first!r} there, 'another' asked)")):
        start_with("another")


@pytest.mark.slow
def test_weights_of_a_run_begin_another_on_another_mesh(tiny_data, whole_run, tmp_path):
    flags = train_flags(tiny_data, tmp_path, init_from=whole_run, steps=6, **{"optim.lr": 0.0, "mesh.tensor": 2})
    done = run("jpeglm.train", *flags, devices=4)
    assert done.returncode == 0, done.stderr
    begun = state(tmp_path, 6, ("params",))
    for name, array in state(whole_run, STEPS, ("params",)).items():
        assert np.array_equal(begun[name], array), name


# What is refused


@pytest.fixture(scope="module")
def folders(tiny_data, whole_run, imported, tmp_path_factory) -> dict[str, Path]:
    """Workdirs and data in several states of disrepair."""
    folder = tmp_path_factory.mktemp("refused")
    found = {"data": tiny_data, "run": whole_run, "imported": imported, "new": folder / "new"}
    for name in ("other_tokenizer", "unreadable", "without_config", "last_damaged"):
        found[name] = folder / name
        shutil.copytree(whole_run, found[name])
    path = found["other_tokenizer"] / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1))
    for step in (10, 15, 20):
        flip(arrays_of(found["unreadable"], step))
    (found["without_config"] / "config.json").unlink()
    alter_a_parameter(found["last_damaged"], 20)
    found["altered_data"] = folder / "altered_data"
    shutil.copytree(tiny_data, found["altered_data"])
    flip(found["altered_data"] / "train-00001-of-00002.array_record")
    found["file"] = folder / "file"
    found["file"].write_text("")
    return found


TRAIN, RUN_DATA = "jpeglm.train", ["--config=tests/tiny_config.py", "--config.data.path={data}"]
# name -> command, flags, and what the line must name. Braces are filled with folders.
REFUSED = {
    "init_from of another tokenizer": (
        TRAIN,
        [*RUN_DATA, "--config.init_from={other_tokenizer}", "--workdir={new}"],
        ["{other_tokenizer}", "another tokenizer", "--tokenizer="],
    ),
    "init_from of other shapes": (
        TRAIN,
        [*RUN_DATA, "--config.init_from={run}", "--config.model.ffn_width=96", "--workdir={new}"],
        ["{run}", "layers.w_down is [2, 64, 32]", "[2, 96, 32] in this model"],
    ),
    "init_from of no run": (
        TRAIN,
        [*RUN_DATA, "--config.init_from={new}/nothing", "--workdir={new}"],
        ["{new}/nothing", "no run here"],
    ),
    "init_from given to a run that began without": (
        TRAIN,
        [*RUN_DATA, "--config.init_from={imported}", "--workdir={run}"],
        ["{run}", "init_from ('' there"],
    ),
    "training where an imported model lies": (
        TRAIN,
        [*RUN_DATA, "--workdir={imported}"],
        ["--config.init_from={imported}"],
    ),
    "checkpoints without a config": (TRAIN, [*RUN_DATA, "--workdir={without_config}"], ["config.json is missing"]),
    "no checkpoint that can be restored": (
        TRAIN,
        [*RUN_DATA, "--workdir={unreadable}"],
        ["{unreadable}", "step 20: ", "step 15: ", "step 10: ", "left as they are"],
    ),
    "altered shard": (
        TRAIN,
        ["--config=tests/tiny_config.py", "--config.data.path={altered_data}", "--workdir={new}"],
        ["{altered_data}/train-00001-of-00002.array_record", "checksum"],
    ),
    "workdir below a file": (TRAIN, [*RUN_DATA, "--workdir={file}/run"], ["cannot write {file}/run"]),
    "samples of a damaged checkpoint": (
        "jpeglm.sample",
        ["--workdir={last_damaged}", "--num=1", "--out={new}"],
        ["{last_damaged}", "step 20", "not as they were saved", "10, 15"],
    ),
    "score under a damaged checkpoint": (
        "jpeglm.score",
        ["--workdir={last_damaged}", "--step=20", "--images={data}"],
        ["{last_damaged}", "step 20", "not as they were saved", "10, 15"],
    ),
}


@pytest.fixture(scope="module")
def refusals(folders):
    """Every refused command, two at a time, and what lay in the folders before."""
    before = {name: content(path) for name, path in folders.items() if path.is_dir()}

    def refuse(case: str) -> subprocess.CompletedProcess:
        command, flags, _ = REFUSED[case]
        return run(command, *(flag.format(**folders) for flag in flags))

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(REFUSED, pool.map(refuse, REFUSED), strict=True)), before


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(folders, refusals, case):
    line = said(refusals[0][case])
    for part in REFUSED[case][2]:
        assert part.format(**folders) in line


def test_what_is_refused_changes_nothing(folders, refusals):
    assert not folders["new"].exists()
    for name, before in refusals[1].items():
        after = content(folders[name])
        for files in before, after:
            for name_of_run in ("started.json", "config.json"):  # who, and with which free keys
                files.pop(Path(name_of_run), None)
        assert after == before, name


def test_a_read_only_workdir_is_one_line_before_training(tiny_data, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir(mode=0o555)
    # root may write anywhere, unless it gives that right up
    without_rights = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]
    process = start(
        "jpeglm.train", *train_flags(tiny_data, workdir), prefix=without_rights if os.geteuid() == 0 else ()
    )
    line = said(finish(process))
    assert f"cannot write {workdir}: Permission denied" in line
    assert not content(workdir)


@pytest.mark.slow
def test_a_damaged_record_is_named_when_training_meets_it(tiny_data, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    for shard in data.glob("train-*"):
        content = bytearray(shard.read_bytes())
        for place in range(500, 20_000, 50):
            content[place] ^= 1
        shard.write_bytes(content)
    line = said(train(data, tmp_path / "run", **{"data.verify": False}))
    assert re.search(rf"{data}/train-0000[01]-of-00002\.array_record: record \d+ cannot be read: .*hash", line)


# Damaged checkpoints

FILES = ("_METADATA", "manifest.ocdbt", "d/*", "ocdbt.process_0/manifest.ocdbt", "ocdbt.process_0/d/*")


def test_any_damage_to_the_newest_checkpoint_is_survived(whole_run, tmp_path, caplog):
    expected = {step: state(whole_run, step) for step in (15, 20)}
    files = [path for pattern in FILES for path in whole_run.glob(f"checkpoints/20/default/{pattern}")]
    assert len(files) >= 8
    used = []
    for number, path in enumerate(files):
        for how in ("deleted", "cut", "changed"):
            workdir = tmp_path / f"{number} {how}"
            shutil.copytree(whole_run, workdir)
            victim = workdir / path.relative_to(whole_run)
            if how == "deleted":
                victim.unlink()
            elif how == "cut":
                os.truncate(victim, victim.stat().st_size // 2)
            else:
                flip(victim)
            caplog.clear()
            step, found = checkpoint.restore_newest(epath.Path(workdir), abstract_state())
            for leaf, array in zip(jax.tree.leaves(found), expected[step].values(), strict=True):
                assert np.asarray(leaf).tobytes() == array.tobytes(), (path, how)
            names = sorted(os.listdir(workdir / "checkpoints"))
            assert names == (["10", "15", "20"] if step == 20 else ["10", "15", "20.damaged"])
            assert ("is damaged" in caplog.text) == (step == 15)
            used.append(step)
            shutil.rmtree(workdir)
    assert 15 in used


def test_the_run_goes_on_from_the_last_good_checkpoint_bit_for_bit(tiny_data, whole_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole_run, workdir)
    flip(arrays_of(workdir, 20))
    damaged = content(workdir / "checkpoints" / "20")
    done = train(tiny_data, workdir)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if line.startswith("W")]
    assert len(warnings) == 1
    for part in (
        "step 20 of",
        "is damaged (1 arrays are not as they were saved, the first is",
        "20.damaged",
        "step 15",
    ):
        assert part in warnings[0]
    assert content(workdir / "checkpoints" / "20.damaged") == damaged
    assert not differences(workdir, whole_run, STEPS)
    shown, expected = scalars(workdir), scalars(whole_run)
    assert shown["loss"] == expected["loss"] and len(shown["loss"]) == STEPS


# A disk without room


@pytest.mark.slow
def test_metrics_that_cannot_be_written_are_one_line_and_nothing_is_lost(tiny_data, whole_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole_run, workdir)
    for step in (15, 20):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    line = said(run("tests.planted", "full:0", *train_flags(tiny_data, workdir, **OFTEN)))
    assert f"cannot write {workdir}: No space left on device" in line
    assert checkpoint.pick_step(epath.Path(workdir), None) == 10
    done = train(tiny_data, workdir)
    assert done.returncode == 0, done.stderr
    assert not differences(workdir, whole_run, STEPS)


@contextlib.contextmanager
def limited_to(size: int) -> Iterator[None]:
    """No file may become larger than so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def check_soon(saver: checkpoint.Saver) -> None:
    """What the loop does after each step, for some seconds."""
    for _ in range(1_000):
        saver.check()
        time.sleep(0.01)


def test_a_save_that_fails_in_the_background_is_noticed_without_another_save(tmp_path):
    saver = checkpoint.Saver(epath.Path(tmp_path / "run"), get_config().checkpoint)
    arrays = {"params": {"head": jax.random.normal(jax.random.key(0), (512, 512))}}
    with limited_to(300_000):
        saver.save(10, arrays)
        with pytest.raises(InputError, match=f"cannot write {tmp_path}/run/checkpoints: File too large"):
            check_soon(saver)
    with pytest.raises(InputError):  # and it is not forgotten
        saver.check()
    assert not checkpoint.saved_steps(epath.Path(tmp_path / "run"))


def test_an_old_checkpoint_that_cannot_be_removed_is_noticed_without_another_save(tmp_path, monkeypatch):
    config = get_config().checkpoint
    config.keep = 1
    saver = checkpoint.Saver(epath.Path(tmp_path / "run"), config)
    arrays = {"params": {"head": jax.numpy.ones(3)}}
    saver.save(5, arrays)
    saver._manager.wait_until_finished()

    def refused(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(saver._manager._checkpoint_deleter, "delete_steps", refused)
    saver.save(10, arrays)
    with pytest.raises(InputError, match=f"cannot write {tmp_path}/run/checkpoints: Input/output error"):
        check_soon(saver)


def on_a_small_disk(disk: Path, kib: int, command: list[str], out: Path) -> tuple[list[str], str]:
    """Runs a command on a disk of so many KiB until it is full, then gives room and runs it again.

    The disk is a tmpfs of the test's own or, where a user may not mount one, a limit to the size of each file.

    Returns:
      what was in DISK/run/checkpoints when it was full, and what the command had said. What is in DISK/run in the end
      is copied to `out`.
    """
    disk.mkdir()
    can_mount = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(disk)]).returncode == 0
    small = f"mount -t tmpfs -o size={kib}k none {disk}" if can_mount else f"ulimit -S -f {kib // 4}"
    large = f"mount -o remount,size=1g {disk}" if can_mount else "ulimit -S -f unlimited"
    words = "No space left on device" if can_mount else "File too large"
    script = f"""
        {small}
        {shlex.join(command)} > {out}.log 2>&1
        echo $? > {out}.status
        ls {disk}/run/checkpoints > {out}.left
        {large}
        {shlex.join(command)} || exit
        cp -r {disk}/run {out}
    """
    done = subprocess.run(
        [*(["unshare", "-rm"] if can_mount else []), "bash", "-c", script], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    status, log = (Path(f"{out}.{name}").read_text() for name in ("status", "log"))
    line = said(subprocess.CompletedProcess(command, int(status), "", log))
    assert f"cannot write {disk}/run" in line and words in line
    return Path(f"{out}.left").read_text().split(), log


@pytest.mark.slow
def test_a_full_disk_stops_the_run_at_the_next_step_and_room_lets_it_go_on_bit_for_bit(tiny_data, whole_run, tmp_path):
    flags = train_flags(tiny_data, tmp_path / "disk" / "run", **OFTEN)
    command = [sys.executable, "-m", "tests.planted", "slow:0.5", *flags]
    left, log = on_a_small_disk(tmp_path / "disk", 1200, command, tmp_path / "out")
    assert any("tmp" in name for name in left)  # it was full during a save
    saving, last = (int(re.findall(pattern, log)[-1]) for pattern in (r"step (\d+)  checkpoint: ", r"step (\d+)/20 "))
    assert saving <= last <= saving + 2  # the next save would come after five
    assert not differences(tmp_path / "out", whole_run, STEPS)


@pytest.mark.slow
def test_two_processes_end_at_the_next_steps_when_one_cannot_write(tiny_data, run_of_two, tmp_path):
    flags = train_flags(tiny_data, tmp_path / "run", **TWO | {"checkpoint.every": 10, "watchdog": 60})
    limit = ["bash", "-c", 'ulimit -S -f 30; exec "$@"', "limited"]  # KiB: too few for the arrays
    lead, other = map(finish, start_job("tests.planted", "slow:0.3", *flags, lead_prefix=limit))
    assert f"cannot write {tmp_path}/run/checkpoints: File too large" in said(lead)
    assert other.returncode in (75, -signal.SIGABRT), other.stderr
    assert 10 <= int(re.findall(r"step (\d+)/", lead.stderr)[-1]) <= 13


@pytest.mark.slow
@pytest.mark.parametrize("kib", [1000, 4000], ids=["while encoding", "while packing"])
def test_a_full_disk_stops_prepare_and_room_lets_it_go_on_to_the_same_bytes(tmp_path, kib):
    flags = ["--config=tests/tiny_config.py", "--source=embedded:mnist", "--workers=2"]
    command = [sys.executable, "-m", "jpeglm.prepare", *flags]
    done = run("jpeglm.prepare", *flags, f"--out={tmp_path / 'undisturbed'}")
    assert done.returncode == 0, done.stderr
    on_a_small_disk(tmp_path / "disk", kib, [*command, f"--out={tmp_path / 'disk' / 'run'}"], tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "undisturbed")


# Several processes


@pytest.mark.slow
def test_of_two_trainings_in_one_workdir_the_later_goes_on(tiny_data, tmp_path):
    flags = train_flags(tiny_data, tmp_path / "run", steps=100_000, **{"checkpoint.every": 20, "log.every": 20})
    first = start("jpeglm.train", *flags)
    wait_for(lambda: (tmp_path / "run" / "checkpoints" / "20").exists(), first)
    second = start("jpeglm.train", *flags)
    try:
        line = said(finish(first))
        assert re.search(rf"{tmp_path}/run: another training was started here .*process {second.pid}\)", line)
        newest = checkpoint.pick_step(epath.Path(tmp_path / "run"), None)
        wait_for(lambda: checkpoint.pick_step(epath.Path(tmp_path / "run"), None) > newest + 40, second)
    finally:
        second.kill()
    assert "Traceback" not in finish(second).stderr


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    while not condition():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def run_of_two(tiny_data, tmp_path_factory) -> Path:
    """A run without disturbance of two processes."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    for done in map(finish, start_several(tiny_data, workdir, **TWO)):
        assert done.returncode == 0, done.stderr
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cut", "changed"])
def test_two_processes_agree_on_a_checkpoint_when_one_finds_it_damaged(tiny_data, run_of_two, tmp_path, how):
    workdir = tmp_path / "run"
    shutil.copytree(run_of_two, workdir)
    files = (workdir / "checkpoints" / "20" / "default" / "ocdbt.process_1" / "d").iterdir()
    path = max(files, key=lambda path: path.stat().st_size)
    if how == "cut":
        os.truncate(path, 1000)
    else:
        flip(path)
    lead, other = map(finish, start_several(tiny_data, workdir, **TWO))
    assert lead.returncode == other.returncode == 0, lead.stderr + other.stderr
    assert lead.stderr.count("is damaged") == 1 and "is damaged" not in other.stderr
    assert re.search(r"starts at step +15\n", lead.stderr)
    assert (workdir / "checkpoints" / "20.damaged").exists()
    assert not differences(workdir, run_of_two, STEPS)


@pytest.mark.slow
def test_two_processes_stop_alike_when_one_cannot_read_its_part_and_nothing_is_set_aside(
    tiny_data, run_of_two, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(run_of_two, workdir)
    files = (workdir / "checkpoints" / "20" / "default" / "ocdbt.process_1" / "d").iterdir()
    path = max(files, key=lambda path: path.stat().st_size)
    beside = path.rename(workdir / "beside")
    path.symlink_to(path)
    for done in map(finish, start_several(tiny_data, workdir, **TWO)):
        assert re.search(r"error: cannot read step 20 of .*, tried 4 times: .*Too many levels of symbolic", said(done))
    assert checkpoint.saved_steps(epath.Path(workdir)) == [10, 15, 20]
    path.unlink()
    beside.rename(path)
    for done in map(finish, start_several(tiny_data, workdir, **TWO)):
        assert done.returncode == 0, done.stderr
    assert not differences(workdir, run_of_two, STEPS)


@pytest.mark.slow
def test_two_processes_that_are_killed_go_on_bit_for_bit(tiny_data, run_of_two, tmp_path):
    processes = start_several(tiny_data, tmp_path / "run", **TWO)
    wait_for(lambda: (tmp_path / "run" / "checkpoints" / "5").exists(), processes[0])
    for process in processes:
        process.kill()
    assert [finish(process).returncode for process in processes] == [-signal.SIGKILL] * 2
    for done in map(finish, start_several(tiny_data, tmp_path / "run", **TWO)):
        assert done.returncode == 0, done.stderr
    assert not differences(tmp_path / "run", run_of_two, STEPS)


@pytest.mark.slow
def test_two_processes_end_when_one_is_refused(tiny_data, run_of_two, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run_of_two, workdir)
    for step in (10, 15, 20):
        flip(arrays_of(workdir, step))
    for done in map(finish, start_several(tiny_data, workdir, **TWO)):  # on all of them alike
        assert "no checkpoint can be restored" in said(done)
    shutil.rmtree(workdir / "checkpoints")
    full = start_job("tests.planted", "full:0", *train_flags(tiny_data, workdir, **TWO))
    lead, other = map(finish, full)  # on the first alone, which writes the metrics
    assert "No space left on device" in said(lead)
    assert other.returncode != 0
