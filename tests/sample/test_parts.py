"""Several processes that share a sampling job: together they write what one does, whoever dies meanwhile."""

import collections
import json
import multiprocessing
import re
import time
from pathlib import Path

import numpy as np
import pytest

from jpeglm.core import parts
from jpeglm.core.errors import InputError
from jpeglm.core.parts import ALONE, Part
from jpeglm.sample import job as jobs
from tests import forks
from tests.sample.writer import ALL, Given, Writer, cells, complete, job, work

_FORKS = multiprocessing.get_context("forkserver")  # its server is that of `forks`, which has imported the libraries


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """What an undisturbed process leaves: six pictures, two ratios, two seeds, two samples."""
    out = tmp_path_factory.mktemp("whole")
    jobs.complete(Writer(), Given(ALL), cells(out))
    return out


def files(out: Path) -> dict[str, bytes]:
    """All that readers see besides indexes, by path."""
    found = (path for path in out.rglob("*") if path.is_file() and path.name[0] != "." and path.suffix != ".jsonl")
    return {str(path.relative_to(out)): path.read_bytes() for path in found}


def lines(out: Path) -> list[str]:
    """The lines of all indexes below a folder, sorted."""
    return sorted(line for log in out.rglob("*.jsonl") for line in log.read_text().splitlines())


def check_same(out: Path, whole: Path) -> None:
    """The same files as of one process, and each sample once in the indexes."""
    assert files(out) == files(whole)
    assert lines(out) == lines(whole)


def start(out: Path, part: Part, record: Path, seconds: float = 0.0, several: bool = True):
    process = _FORKS.Process(target=work, args=(out, part, record, seconds, several))
    process.start()
    return process


def disturbed(out: Path, of: int, kills: int, seed: int, records: Path) -> None:
    """Runs all parts at once, and kills each `kills` times at random moments; then they finish."""
    random = np.random.default_rng(seed)
    left = {number: kills for number in range(1, of + 1)}
    running = {}
    while left:
        for number in left:
            if number not in running:
                running[number] = start(out, Part(number, of), records / f"{number}", 0.02)
        time.sleep(random.uniform(0.05, 0.4))
        number = int(random.choice(list(left)))
        process = running.pop(number)
        if left[number]:
            process.kill()
            process.join()
            left[number] -= 1
        else:
            process.join()
            assert process.exitcode == 0
            del left[number]
    for process in running.values():
        process.join()


def test_each_request_falls_to_one_part_and_each_part_gets_its_share():
    taken = [[Part(k, 5).takes(f"{n:064x}", 0, s) for k in range(1, 6)] for n in range(200) for s in range(5)]
    assert all(sum(row) == 1 for row in taken)
    assert (np.sum(taken, axis=0) > 140).all()
    assert all(ALONE.takes(str(n)) for n in range(9))


def test_two_processes_killed_again_and_again_write_what_one_does(whole, tmp_path):
    out = tmp_path / "out"
    disturbed(out, 2, 3, 0, tmp_path)
    check_same(out, whole)
    asked = collections.Counter(name for k in "12" for name in (tmp_path / k).read_text().splitlines())
    assert sum(asked.values()) <= 4 * 12 + 2 * 3  # a kill loses the file that was being written, and no other


@pytest.mark.parametrize("then", [ALONE, Part(1, 3)], ids=str)
def test_another_number_of_parts_goes_on(whole, tmp_path, then):
    out = tmp_path / "out"
    first = start(out, Part(1, 2), tmp_path / "first", 0.02)
    while len(lines(out)) < 8:
        time.sleep(0.01)
    first.kill()
    first.join()
    before = len(lines(out))
    log = next(log for log in out.rglob("*.jsonl") if log.stat().st_size)
    with log.open("a") as file:
        file.write('{"name": "5.png-s')  # a line that the kill has cut
    writer = Writer()
    others = [then] if then.is_alone else [Part(k, then.of) for k in range(1, then.of + 1)]
    for part in others:
        pages = jobs.complete(writer, Given(ALL), cells(out), part).pages
    assert writer.written == 48 - before
    assert [page.name for page in pages] == ["grid.html"] * 4
    check_same(out, whole)
    if then.is_alone:
        assert [log.name for log in out.rglob("*.jsonl")] == ["samples.jsonl"] * 4


def test_parts_that_overlap_are_refused_while_the_first_is_at_work(tmp_path):
    out = tmp_path / "out"
    refused = {
        ALONE: "another command is writing here",
        Part(1, 2): "part 1/2 is at work here already",
        Part(1, 3): "a job of 2 parts is at work here, and this is part 1/3",
    }
    with parts.owned(out, Part(1, 2)):
        for part, why in refused.items():
            with pytest.raises(InputError, match=f"^{re.escape(str(out))}: {why}"):
                complete(Writer(), ALL, job(out), part)
        complete(Writer(), ALL, job(out), Part(2, 2))
    with parts.owned(out, ALONE), pytest.raises(InputError, match="another command is writing here"):
        complete(Writer(), ALL, job(out), Part(1, 2))
    before = len(lines(out))
    assert 0 < before < 12
    complete(Writer(), ALL, job(out), Part(1, 3))
    assert before < len(lines(out)) < 12


def test_a_part_of_a_job_with_other_settings_is_refused(tmp_path):
    out = tmp_path / "out"
    complete(Writer(), ALL, job(out), Part(1, 2))
    before = files(out), lines(out)
    with pytest.raises(InputError, match=f"^{out} holds samples with seed=0, now 1 is asked: another --out$"):
        complete(Writer(), ALL, job(out, seed=1), Part(2, 2))
    assert (files(out), lines(out)) == before


def test_what_one_part_has_done_is_seen_as_samples(tmp_path):
    from jpeglm.data import sources

    assert complete(Writer(), ALL, job(tmp_path), Part(1, 2)) == tmp_path
    (tmp_path / ".7.png-s0.jpg.4711").write_bytes(b"half")
    done = [json.loads(line)["name"] for line in lines(tmp_path)]
    assert sorted(sources.open_anew(str(tmp_path)).names()) == sorted(f"{name}.jpg" for name in done)
    assert complete(Writer(), ALL, job(tmp_path), Part(2, 2)) == tmp_path / "grid.html"
    assert len(lines(tmp_path)) == len(set(lines(tmp_path))) == 12


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, ALONE),
        ({"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4"}, Part(3, 4)),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"}, ALONE),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, Part(1, 2)),
        ({"JAX_PROCESS_ID": "7", "JAX_NUM_PROCESSES": "8", "SLURM_STEP_NUM_TASKS": "2"}, Part(8, 8)),
    ],
    ids=str,
)
def test_the_launcher_says_which_part_this_is(monkeypatch, variables, expected):
    for name in [name for pair in parts._LAUNCHERS for name in pair]:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert parts.find() == expected
    assert parts.find("3/16") == Part(3, 16)


@pytest.mark.parametrize("given", ["0/4", "5/4", "1/0", "3", "3/", "-1/4", "1/4/4", "a/b", ""])
def test_a_part_out_of_range_is_one_line(given):
    with pytest.raises(InputError, match=f"^--part={given}: K/N, part K of N, from 1/N to N/N$"):
        parts.find(given)


@pytest.mark.parametrize("number", ["2", "-1", "", "x"])
def test_variables_of_a_launcher_that_contradict_each_other_are_one_line(monkeypatch, number):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", number)
    with pytest.raises(InputError, match=f"^JAX_NUM_PROCESSES=2 and JAX_PROCESS_ID={number}: "):
        parts.find()


def gpus(monkeypatch, visible: str, **variables: str) -> str:
    """What JAX is told of its GPUs."""
    told = {}
    monkeypatch.setattr(parts.jax.config, "update", told.__setitem__)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    parts._separate_gpus()
    return told.get("jax_cuda_visible_devices", "all")


def test_processes_of_one_host_share_its_gpus(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "4(x2),2")
    monkeypatch.setenv("SLURM_NODEID", "1")
    assert [gpus(monkeypatch, "0,1,2,3", SLURM_LOCALID=str(n)) for n in range(4)] == ["0", "1", "2", "3"]
    assert gpus(monkeypatch, "3") == "all"  # Slurm shows each task its own
    monkeypatch.setenv("SLURM_NODEID", "2")
    assert [gpus(monkeypatch, "0,1,2,3", SLURM_LOCALID=str(n)) for n in range(2)] == ["0,1", "2,3"]
    monkeypatch.setenv("SLURM_GPUS_PER_TASK", "4")
    assert gpus(monkeypatch, "0,1,2,3") == "all"


def test_a_worker_of_a_slice_of_tpus_is_a_host_of_its_own(monkeypatch):
    """The variables alone: there is no TPU here."""
    monkeypatch.setattr(parts.glob, "glob", lambda pattern: ["a"] * 4 if "accel" in pattern else [])
    for name in ("TPU_PROCESS_BOUNDS", "TPU_CHIPS_PER_PROCESS_BOUNDS", "CLOUD_TPU_TASK_ID"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("TPU_WORKER_ID", "3")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b,c,d")
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", "2")
    parts._separate_tpus()
    told = {name: value for name, value in parts.os.environ.items() if name.startswith(("TPU_P", "TPU_W", "TPU_C"))}
    assert (
        told.items()
        >= {
            "TPU_PROCESS_BOUNDS": "1,1,1",
            "TPU_CHIPS_PER_PROCESS_BOUNDS": "2,2,1",
            "TPU_WORKER_ID": "0",
            "TPU_WORKER_HOSTNAMES": "localhost",
        }.items()
    )
    assert "MEGASCALE_NUM_SLICES" not in parts.os.environ
    for name in ("TPU_PROCESS_BOUNDS", "TPU_CHIPS_PER_PROCESS_BOUNDS", "CLOUD_TPU_TASK_ID"):
        parts.os.environ.pop(name)


assert forks  # imported for its server
