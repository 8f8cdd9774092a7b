"""What befalls a run: requests to stop, processes and batches that hang, numbers that are not finite."""

import json
import re
import shutil
import signal
import time
from pathlib import Path
from subprocess import Popen

import numpy as np
import pytest
from etils import epath

from jpeglm.core import checkpoint
from jpeglm.core.workdir import read_metrics
from jpeglm.data.batches import Chunks, chunk_numbers, train_batches
from jpeglm.train.clock import Stopwatch
from jpeglm.train.memory import check_memory
from tests.commands import finish, start
from tests.forks import run
from tests.runs import differences, losses, start_job, start_several, state, train_flags
from tests.tiny_config import get_config

STEPS = 50
LONG = {"steps": STEPS, "checkpoint.every": 20, "optim.warmup_steps": 5}
EIGHT = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.context": 2}
WATCHDOG = 10


def saved(workdir: Path) -> list[int]:
    return checkpoint.saved_steps(epath.Path(workdir))


def wait_for(step: int, *processes: Popen) -> None:
    """Until a run has told of a step."""
    told = ""
    while f"step {step}/" not in told:
        told = processes[0].stderr.readline()
        assert told and all(process.poll() is None for process in processes), [p.stderr.read() for p in processes]


def test_a_run_asked_to_stop_saves_its_step_and_goes_on_bit_for_bit(tiny_data, tiny_run, tmp_path):
    flags = train_flags(tiny_data, tmp_path, profile=2, **{"eval.every": 8})
    process = start("tests.planted", "slow:0.3", *flags)
    wait_for(5, process)
    process.send_signal(signal.SIGTERM)
    done = finish(process)
    assert done.returncode == 75, done.stderr
    [step] = saved(tmp_path)
    assert 5 <= step < 20
    assert f"stopped on request after step {step}:" in done.stderr
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))

    done = run("jpeglm.train", *flags)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"starts at step +{step}\n", done.stderr)
    assert not differences(tmp_path, tiny_run, 20)


def test_a_request_to_one_of_two_processes_stops_both_after_the_same_step(tiny_data, tmp_path):
    two = {"mesh.fsdp": 2, "steps": 1_000}
    processes = start_several(tiny_data, tmp_path, **two)
    wait_for(5, *processes)
    processes[1].send_signal(signal.SIGTERM)
    lead, other = map(finish, processes)
    assert (lead.returncode, other.returncode) == (75, 75), lead.stderr + other.stderr
    [step] = saved(tmp_path)
    assert f"stopped on request after step {step}:" in lead.stderr
    assert "stopped on request" not in other.stderr


@pytest.mark.slow
def test_a_request_before_the_first_step_of_a_resumed_run_stops_all_processes(tiny_data, tmp_path):
    flags = train_flags(tiny_data, tmp_path, **{"mesh.fsdp": 2})
    assert not any(finish(process).returncode for process in start_job("jpeglm.train", *flags))
    processes = start_job("tests.planted", "late:15", *flags, "--config.steps=1000")
    while processes[1].stderr.readline() != "late\n":
        assert processes[1].poll() is None
    processes[1].send_signal(signal.SIGTERM)
    lead, other = map(finish, processes)
    assert (lead.returncode, other.returncode) == (75, 75), lead.stderr + other.stderr
    assert "stopped on request after step 20:" in lead.stderr and saved(tmp_path) == [20]


@pytest.mark.parametrize("number", [signal.SIGSTOP, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_no_process_waits_for_ever_for_one_that_hangs_or_dies(tiny_data, tmp_path, number):
    processes = start_several(tiny_data, tmp_path, **{"mesh.fsdp": 2, "steps": 1_000, "watchdog": WATCHDOG})
    wait_for(5, *processes)
    processes[1].send_signal(number)
    started = time.monotonic()
    try:
        lead = finish(processes[0])
    finally:
        processes[1].kill()
    assert lead.returncode == 75, lead.stderr
    assert time.monotonic() - started < WATCHDOG + 15
    if number == signal.SIGSTOP:
        assert re.search(rf"process 0 of 2: step \d+ has not ended in {WATCHDOG} s", lead.stderr)
        assert "Thread 0x" in lead.stderr and 'loop.py", line' in lead.stderr  # where it stands
    else:
        assert "process 0 of 2: another may be gone" in lead.stderr and "Traceback" not in lead.stderr


@pytest.mark.slow
def test_a_batch_that_never_comes_ends_the_run_with_stacks(tiny_data, tmp_path):
    done = run("tests.planted", "stuck:7", *train_flags(tiny_data, tmp_path, watchdog=3))
    assert done.returncode == 75
    assert "process 0 of 1: step 7 has not ended in 3 s" in done.stderr and "planted.py" in done.stderr


def test_a_number_that_is_not_finite_in_the_data_stops_before_anything_is_saved(tiny_data, tmp_path):
    done = run("tests.planted", "nan:13", *train_flags(tiny_data, tmp_path, **{"checkpoint.every": 5}))
    assert done.returncode == 1
    *_, line = done.stderr.splitlines()
    assert "step 13: " in line and "loss nan" in line and "the last good checkpoint is of step 10" in line
    assert "Traceback" not in done.stderr
    assert saved(tmp_path) == [5, 10]
    config, chunks = get_config(), Chunks(tiny_data, "train", get_config().data.seq_len)
    told = list(map(int, line.rpartition("this step: ")[2].split()))
    assert len(told) == config.optim.batch_size
    [(_, learnt)] = train_batches(chunks, config.seed, config.optim.batch_size, range(8), 12, 13)
    assert np.array_equal(chunks.batch(told)["tokens"], learnt["tokens"])
    assert told == chunk_numbers(chunks, config.seed, config.optim.batch_size, 12)


def test_a_weight_that_is_not_finite_stops_even_if_no_token_meets_it(tiny_data, tiny_run, tmp_path):
    source, workdir = tmp_path / "source", tmp_path / "run"
    source.mkdir()
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(tiny_run / name, source)
    params = {}
    for name, array in state(tiny_run, get_config().steps, ("params",)).items():
        *folders, leaf = re.findall(r"\['(\w+)'\]", name)[1:]
        place = params
        for folder in folders:
            place = place.setdefault(folder, {})
        place[leaf] = array
    params["embedding"][0, 3] = np.nan  # of <unk>, which no file has
    saver = checkpoint.Saver(epath.Path(source), get_config().checkpoint)
    saver.save(0, {"params": params})
    saver.close()
    done = run("jpeglm.train", *train_flags(tiny_data, workdir, init_from=source, **{"checkpoint.every": 1}))
    assert done.returncode == 1
    *_, line = done.stderr.splitlines()
    assert "step 1: " in line and "param_norm nan" in line and "there is no checkpoint" in line
    assert not saved(workdir)


def test_waiting_for_data_is_told_and_counted(tiny_data, tmp_path):
    flags = train_flags(tiny_data, tmp_path, **{"log.every": 10, "eval.every": 10, "checkpoint.every": 10})
    done = run("tests.planted", "slow:0.2", *flags)
    assert done.returncode == 0, done.stderr
    [_, row] = [row for row in read_metrics(tmp_path) if "goodput" in row]
    assert row["seconds/data"] > 10 * 0.2 > row["seconds/steps"]
    assert re.search(r"step 20/20 .* DATA WAIT [5-9]\d\.\d%", done.stderr)
    assert all(row[f"seconds/{part}"] > 0 for part in Stopwatch.PARTS)
    told = dict(re.findall(r"^(\w+) +\d:\d\d:\d\d +([\d.]+)%$", done.stderr, re.M))
    assert list(told) == list(Stopwatch.PARTS)
    assert sum(map(float, told.values())) == pytest.approx(100, abs=0.5)
    assert re.search(r"step 10  checkpoint: the run waited \d+\.\d\d s", done.stderr)


# --dry_run


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_dry_run_tries_everything_says_go_and_leaves_nothing(tiny_data, tmp_path, processes):
    workdir = tmp_path / "new" / "run"
    changes = {"mesh.fsdp": processes, "deterministic": True}
    started = start_several(tiny_data, workdir, processes, flags=["--dry_run"], **changes)
    lead, *others = map(finish, started)
    assert lead.returncode == 0, lead.stderr
    assert not any(other.returncode or other.stderr for other in others)
    first, again = re.findall(r"starts at step +(\d)\n", lead.stderr)
    assert (first, again) == ("0", "1") and "step 1/20" in lead.stderr  # it found what it had saved
    for words in (f"{processes} x cpu", f"fsdp {processes}", "of 64 tokens in 2 shards", "memory a device", "run: go"):
        assert words in lead.stderr
    assert not workdir.exists()


def test_a_dry_run_says_no_where_the_disk_is_too_small(tiny_data, tiny_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run, workdir)
    before = sorted(workdir.rglob("*"))
    done = run("jpeglm.train", "--dry_run", *train_flags(tiny_data, workdir, **{"checkpoint.keep": 10**9}))
    assert done.returncode == 2
    *_, line = done.stderr.splitlines()
    assert "error: dry run: no" in line and "TiB more" in line and "checkpoint.keep" in line
    assert sorted(workdir.rglob("*")) == before


def test_a_step_that_does_not_fit_this_machine_is_refused_before_anything_is_allocated(tiny_data, tmp_path):
    flags = train_flags(tiny_data, tmp_path / "run", **{"optim.batch_size": 2**22})
    done = run("jpeglm.train", "--dry_run", *flags)
    assert done.returncode == 2, done.stderr
    assert re.search(r"error: a step needs [\d.]+ [GT]iB of each device's memory", done.stderr.splitlines()[-1])
    assert not (tmp_path / "run").exists()


def test_a_step_that_does_not_fit_the_device_is_refused():
    class Device:
        platform = "gpu"

        def memory_stats(self):
            return {"bytes_limit": 80 * 2**30}

    check_memory((60 * 2**30, 20 * 2**30), Device())
    with pytest.raises(ValueError, match="needs 81.0 GiB .* 80.0 GiB are there"):
        check_memory((61 * 2**30, 20 * 2**30), Device())


# Other processes, other meshes


@pytest.mark.slow
def test_a_run_goes_on_in_other_numbers_of_processes_with_the_same_losses(tiny_data, tmp_path):
    """Two processes of four devices, stopped; one of eight, stopped; four of two to the end."""
    changes = LONG | EIGHT
    done = run("jpeglm.train", *train_flags(tiny_data, tmp_path / "one", **changes), devices=8)
    assert done.returncode == 0, done.stderr
    two = [finish(process) for process in start_several(tiny_data, tmp_path / "two", 2, 4, **changes)]
    assert not any(done.returncode for done in two), two
    expected = losses(tmp_path / "one", STEPS)
    assert np.abs(losses(tmp_path / "two", STEPS) - expected).max() < 1e-5

    workdir = tmp_path / "run"
    processes = start_several(tiny_data, workdir, 2, 4, **changes)
    wait_for(5, *processes)
    processes[1].send_signal(signal.SIGTERM)
    assert [finish(process).returncode for process in processes] == [75, 75]
    [first] = saved(workdir)
    assert first < 30
    shutil.copytree(workdir, tmp_path / "same_mesh")
    again = [finish(process) for process in start_several(tiny_data, tmp_path / "same_mesh", 2, 4, **changes)]
    assert not any(done.returncode for done in again), again
    assert not differences(tmp_path / "same_mesh", tmp_path / "two", STEPS)

    process = start("jpeglm.train", *train_flags(tiny_data, workdir, **changes), devices=8)
    wait_for(first + 5, process)
    process.send_signal(signal.SIGTERM)
    assert finish(process).returncode == 75
    *_, second = saved(workdir)
    assert first + 5 <= second < STEPS
    four = [finish(process) for process in start_several(tiny_data, workdir, 4, 2, **changes)]
    assert not any(done.returncode for done in four), four
    assert np.abs(losses(workdir, STEPS) - expected).max() < 1e-5
    assert json.loads((workdir / "config.json").read_text())["steps"] == STEPS
