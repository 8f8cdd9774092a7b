"""`launch/slurm.sbatch` on a real Slurm of two nodes (`slurm_cluster.py`), with tiny trainings on CPUs."""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from jpeglm.core import distributed
from tests.commands import ROOT, UNOPTIMISED
from tests.launch.slurm_cluster import NODES, environment
from tests.runs import differences, losses, without_speed

STEPS = 40


class Slurm:
    """The commands of a cluster that runs in a process of its own, and ends with this one."""

    def __init__(self, process: subprocess.Popen, conf: str):
        self._process = process
        self._environment = environment(conf)

    def tell(self, command: str) -> None:
        """`kill NODE` or `start NODE`."""
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def run(self, *command: str, **variables: str) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(command, env=self._environment | variables, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    command = [sys.executable, "-m", "tests.launch.slurm_cluster"]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        line = process.stdout.readline()
        assert line.startswith("export SLURM_CONF="), "the cluster did not start; see standard error"
        yield Slurm(process, line.strip().partition("=")[2])
    assert process.returncode == 0  # it has waited for the last of its processes


class Job:
    """A job of `launch/slurm.sbatch`."""

    def __init__(
        self,
        slurm: Slurm,
        folder: Path,
        program: str,
        *arguments: str,
        nodes: int = 2,
        gpus: int = 0,
        flags: Sequence[str] = (),
        **variables: str,
    ):
        """Submits it.

        Args:
          program: what stands for `python -m jpeglm.train`, in shell; its arguments are the positional parameters.
          arguments: of the script.
          gpus: on each node; they are pretended.
          flags: further ones of sbatch.
          variables: of the environment.
        """
        self.slurm = slurm
        python = folder / "bin" / "python"
        python.parent.mkdir(parents=True)
        other = f'[ "$2" = jpeglm.train ] || exec {sys.executable} "$@"'
        python.write_text(f"#!/bin/bash\n{other}\nshift 2\n{program}\n")
        python.chmod(0o755)
        self.log = folder / "log"
        self.number = slurm.run(
            *("sbatch", "--parsable", f"--nodes={nodes}", f"--gpus-per-node={gpus}", f"--output={self.log}"),
            *(*flags, "launch/slurm.sbatch", *arguments),
            PATH=f"{python.parent}:{os.environ['PATH']}",
            VIRTUAL_ENV=sys.prefix,
            **variables,
        )

    def told(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def shown(self) -> dict[str, str]:
        """What Slurm knows of it."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.slurm.run("scontrol", "show", "job", self.number)))

    def wait_for(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 600
        while not condition():
            assert time.monotonic() < deadline and not self.has_ended(), f"{self.shown()}\n{self.told()}"
            time.sleep(0.2)

    def has_ended(self) -> bool:
        return self.shown()["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")

    def end(self) -> tuple[str, str, str]:
        """How it ended: state, exit status, how often it was started again."""
        deadline = time.monotonic() + 600
        while not self.has_ended():
            assert time.monotonic() < deadline, f"{self.shown()}\n{self.told()}"
            time.sleep(0.2)
        shown = self.shown()
        status, _ = shown["ExitCode"].split(":")
        return shown["JobState"], status, shown["Restarts"]


def training(slurm: Slurm, folder: Path, data: Path, slow: float = 0, **changes: object) -> Job:
    """A tiny training over both nodes; in its first start each batch takes so many seconds to read."""
    changes = {"steps": STEPS, "checkpoint.every": 5, "mesh.fsdp": 2, "platform": "cpu", "data.path": data} | changes
    flags = [f"--config.{key}={value}" for key, value in changes.items()]
    program = f"""
        [ "${{SLURM_RESTART_COUNT:-0}}" != 0 ] || exec {sys.executable} -m tests.planted slow:{slow} "$@"
        exec {sys.executable} -m jpeglm.train "$@"
    """
    variables = {"XLA_FLAGS": UNOPTIMISED}
    arguments = ["--config=tests/tiny_config.py", f"--workdir={folder / 'run'}", *flags]
    return Job(slurm, folder, program, *arguments, **variables)


@pytest.fixture(scope="module")
def undisturbed(slurm, tiny_data, tmp_path_factory) -> Path:
    """The workdir of a training that came to its end at once."""
    folder = tmp_path_factory.mktemp("undisturbed")
    job = training(slurm, folder, tiny_data)
    assert job.end() == ("COMPLETED", "0", "0"), job.told()
    assert "2 x cpu, 2 process(es)" in job.told()
    return folder / "run"


def assert_same(workdir: Path, undisturbed: Path) -> None:
    assert (losses(workdir, STEPS) == losses(undisturbed, STEPS)).all()
    assert without_speed(workdir) == without_speed(undisturbed)
    assert not differences(workdir, undisturbed, STEPS)


@pytest.mark.slow
def test_a_time_limit_that_comes_up_saves_queues_again_and_changes_no_bit(slurm, tiny_data, tmp_path, undisturbed):
    job = training(slurm, tmp_path, tiny_data, slow=3)  # 31 s pass at most until Slurm looks at its limits again
    job.wait_for(lambda: f"step 2/{STEPS}" in job.told())
    slurm.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=10")  # minutes: --signal is due at once
    job.wait_for(lambda: job.shown()["JobState"] == "PENDING")
    slurm.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=60")
    assert job.end() == ("COMPLETED", "0", "1"), job.told()
    [stopped] = re.findall(r"stopped on request after step (\d+)", job.told())
    assert 2 <= int(stopped) < STEPS
    assert re.findall(r"starts at step +(\d+)", job.told()) == ["0", stopped]
    assert_same(tmp_path / "run", undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("node", NODES, ids=["with_the_script", "without_the_script"])
def test_a_node_that_dies_changes_no_bit(slurm, tiny_data, tmp_path, undisturbed, node):
    job = training(slurm, tmp_path, tiny_data, slow=1)
    job.wait_for(lambda: f"step 8/{STEPS}" in job.told())
    slurm.tell(f"kill {node}")
    job.wait_for(lambda: job.shown()["JobState"] == "PENDING")
    slurm.tell(f"start {node}")
    assert job.end() == ("COMPLETED", "0", "1"), job.told()
    assert re.findall(r"starts at step +(\d+)", job.told()) == ["0", "5"]
    assert_same(tmp_path / "run", undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes, words",
    [({"optim.typo": 1}, "typo"), ({"data.path": "/nowhere"}, "/nowhere holds no finished prepared data")],
)
def test_bad_input_ends_with_2_and_is_not_queued_again(slurm, tiny_data, tmp_path, changes, words):
    job = training(slurm, tmp_path, tiny_data, **changes)
    assert job.end() == ("FAILED", "2", "0"), job.told()
    assert words in job.told() and "Traceback" not in job.told()


@pytest.mark.slow
@pytest.mark.parametrize("lead, other, state", [(0, 134, "COMPLETED"), (2, 134, "FAILED"), (1, 75, "FAILED")])
def test_the_status_of_process_0_counts(slurm, tmp_path, lead, other, state):
    job = Job(slurm, tmp_path, f'[ "$SLURM_PROCID" = 0 ] && exit {lead}; exit {other}', f"--workdir={tmp_path}")
    assert job.end() == (state, str(lead), "0"), job.told()


@pytest.mark.slow
@pytest.mark.parametrize("death", ["exit 75", "kill -9 $$"])
def test_starts_that_bring_no_checkpoint_come_to_an_end(slurm, tmp_path, death):
    job = Job(slurm, tmp_path, death, f"--workdir={tmp_path}", MAX_STARTS="2")
    assert job.end() == ("FAILED", "1", "2"), job.told()
    assert "error: 2 starts in a row have brought no checkpoint after step 0" in job.told()


@pytest.mark.slow
def test_scancel_lets_training_save_and_is_final(slurm, tmp_path):
    program = "trap 'sleep 2; echo saved; exit 75' TERM; echo runs; while true; do sleep 0.1; done"
    job = Job(slurm, tmp_path, program, f"--workdir={tmp_path}")
    job.wait_for(lambda: job.told().count("runs") == 2)
    slurm.run("scancel", job.number)
    state, _, restarts = job.end()
    assert (state, restarts, job.told().count("saved")) == ("CANCELLED", "0", 2), job.told()
    time.sleep(10)  # a job that is queued again starts sooner
    assert job.shown()["JobState"] == "CANCELLED"


@pytest.mark.slow
def test_a_job_that_may_not_be_queued_again_saves_at_leisure_and_ends(slurm, tmp_path):
    program = "trap 'echo saved; exit 75' TERM; echo runs; while true; do sleep 0.1; done"
    job = Job(slurm, tmp_path, program, f"--workdir={tmp_path}")
    job.wait_for(lambda: job.told().count("runs") == 2)
    slurm.run("scontrol", "update", f"JobId={job.number}", "Requeue=0")
    slurm.run("scancel", "--signal=TERM", job.number)
    assert job.end() == ("FAILED", "75", "0"), job.told()
    assert job.told().count("saved") == 2


@pytest.mark.slow
def test_a_preempted_job_saves_makes_room_and_goes_on(slurm, tmp_path):
    program = """
        [ "${SLURM_RESTART_COUNT:-0}" = 0 ] || exit 0
        trap 'echo saved; exit 75' TERM; echo runs; while true; do sleep 0.1; done
    """
    job = Job(slurm, tmp_path, program, f"--workdir={tmp_path}")
    job.wait_for(lambda: job.told().count("runs") == 2)
    slurm.run("srun", "--partition=urgent", "--nodes=2", "--exclusive", "true")
    assert job.told().count("saved") == 2
    assert job.end() == ("COMPLETED", "0", "1"), job.told()


@pytest.mark.slow
def test_shards_are_copied_to_the_node_once(slurm, tiny_data, tmp_path):
    stage, found = tmp_path / "local", []
    for name in ("first", "second"):
        flags = (f"--workdir={tmp_path}", f"--config.data.path={tiny_data}")
        job = Job(slurm, tmp_path / name, 'echo "reads ${@: -1}"', *flags, nodes=1, STAGE=str(stage))
        assert job.end() == ("COMPLETED", "0", "0"), job.told()
        [copy] = stage.iterdir()
        assert f"reads --config.data.path={copy}\n" in job.told()
        assert {path.name: path.read_bytes() for path in copy.iterdir()} == {
            path.name: path.read_bytes() for path in tiny_data.iterdir()
        }
        found.append(copy.stat().st_ino)
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags, arguments, words",
    [
        ([], [], "--workdir=WORKDIR is missing"),
        (["--chdir=/"], ["--workdir=runs/a"], "/ is not the repository's root"),
        (["--gpus-per-node=2", "--gpus-per-task=1", "--ntasks=2"], ["--workdir=runs/a"], "--gpus-per-task"),
    ],
)
def test_a_submission_that_cannot_run_is_told_in_one_line(slurm, tmp_path, flags, arguments, words):
    job = Job(slurm, tmp_path, "echo it ran", *arguments, flags=flags)
    assert job.end() == ("FAILED", "2", "0"), job.told()
    [line] = job.told().splitlines()
    assert line.startswith("error: ") and words in line


@pytest.mark.slow
def test_each_gpu_has_its_process(slurm, tmp_path):
    job = Job(slurm, tmp_path, 'echo "$SLURM_LOCALID of $CUDA_VISIBLE_DEVICES"', f"--workdir={tmp_path}", gpus=2)
    assert job.end() == ("COMPLETED", "0", "0"), job.told()
    assert sorted(re.findall(r". of .*", job.told())) == ["0 of 0,1", "0 of 0,1", "1 of 0,1", "1 of 0,1"]


@pytest.mark.slow
def test_a_command_without_srun_runs_alone(slurm, tmp_path):
    """In a job of two tasks, which moreover was submitted from the shell of another's."""
    code = "from jpeglm.core import distributed; print('devices:', len(distributed.start('cpu')))"
    command = shlex.join([sys.executable, "-c", code])
    job = ["sbatch", "--wait", "--nodes=2", "--ntasks-per-node=1", f"--output={tmp_path / 'log'}", "--wrap", command]
    slurm.run("srun", "--ntasks=1", *job)
    assert (tmp_path / "log").read_text() == "devices: 1\n"


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({}, False),
        ({"SLURM_NTASKS": "16"}, False),  # a batch script
        ({"SLURM_NTASKS": "16", "SLURM_STEP_NODELIST": "n1", "SLURM_STEP_NUM_TASKS": "1"}, False),  # salloc's shell
        ({"SLURM_NTASKS": "16", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_NUM_TASKS": "16"}, True),  # srun
    ],
)
def test_only_a_step_of_several_tasks_is_joined(monkeypatch, variables, expected):
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert distributed._in_cluster() == expected
