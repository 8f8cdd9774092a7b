"""Training on Cloud TPU VMs, with a fake in the place of gcloud and folders in the place of hosts."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT
from tests.launch.fakes import TRAINING, wait_until, write_program


@pytest.fixture
def tpus(fakes) -> Path:
    """A repository, and two hosts with an environment that fits."""
    (fakes / "repository").mkdir()
    for name in ("launch", ".gitignore"):
        subprocess.run(["cp", "-r", ROOT / name, fakes / "repository"], check=True)
    for path in ROOT.glob("requirements*.txt"):
        shutil.copy(path, fakes / "repository")
    committing = "git init -q . && git add . && git -c user.name=a -c user.email=a@b commit -q -m c"
    subprocess.run(committing, shell=True, cwd=fakes / "repository", check=True)

    write_program(fakes / "bin" / "hostname", '#!/bin/sh\nbasename "$HOME"\n')
    hash_all = ["sh", "-c", "cat requirements*.txt | sha256sum | cut -d' ' -f1"]
    stamp = subprocess.run(hash_all, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    for name in ("worker-0", "worker-1"):
        environment = fakes / "hosts" / name / "jpeglm" / ".venv"
        write_program(environment / "training.py", TRAINING)
        python = f'#!/bin/sh\nexec {sys.executable} -S {environment}/training.py "$@"\n'
        write_program(environment / "bin" / "python", python)
        (environment / ".fits-requirements-tpu.txt").write_bytes(stamp)
        (fakes / "workdir" / name).mkdir(parents=True)
        (fakes / "workdir" / name / "statuses").touch()
    yield fakes
    for path in fakes.glob("hosts/*/jpeglm-run/pid"):  # what a failed test has left
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(path.read_text()), signal.SIGTERM)


def tpu_vm(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([folder / "launch/tpu_vm.sh", *arguments], capture_output=True, text=True)


def train(tpus: Path, *flags: str) -> subprocess.CompletedProcess:
    flags = ("--config=configs/jpeglm_7b.py", f"--workdir={tpus}/workdir", *flags)
    return tpu_vm("train", "pod", "--", *flags, folder=tpus / "repository")


def calls(fakes: Path) -> list[list[str]]:
    return [json.loads(line) for line in (fakes / "calls").read_text().splitlines()]


def told() -> list[str]:
    done = tpu_vm("status", "pod")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_tpus_are_asked_for_and_waited_for(fakes):
    (fakes / "states").unlink()
    done = tpu_vm("create", "pod", "v5p-128", "--spot")
    assert done.returncode == 0, done.stderr
    [create] = [call for call in calls(fakes) if call[0] == "create"]
    assert create[1:] == [
        "pod",
        "--accelerator-type=v5p-128",
        "--spot",
        "--runtime-version=v2-alpha-tpuv5",
        "--node-id=pod",
    ]
    assert done.stderr.splitlines() == ["pod: WAITING_FOR_RESOURCES", "pod: PROVISIONING", "pod: ACTIVE"]


def test_several_slices_and_a_runtime_version_of_ones_own(fakes):
    (fakes / "states").unlink()
    assert tpu_vm("create", "pod", "v9x-8", "--node-count=2", "--runtime-version=new").returncode == 0
    [create] = [call for call in calls(fakes) if call[0] == "create"]
    assert create[2:] == ["--accelerator-type=v9x-8", "--node-count=2", "--runtime-version=new"]


def test_tpus_that_were_taken_away_are_asked_for_anew(fakes):
    (fakes / "states").write_text("SUSPENDED\n")
    assert tpu_vm("create", "pod", "v6e-16").returncode == 0
    assert [call[0] for call in calls(fakes)] == ["describe", "delete", "create", *["describe"] * 3]


def test_an_interrupted_wait_goes_on_without_asking_again(fakes):
    (fakes / "states").write_text("PROVISIONING\nPROVISIONING\nACTIVE\n")
    assert tpu_vm("create", "pod", "v6e-16").returncode == 0
    assert "create" not in [call[0] for call in calls(fakes)]


def test_tpus_that_do_not_come_end_the_wait(fakes):
    (fakes / "states_after_create").write_text("WAITING_FOR_RESOURCES\nFAILED\n")
    (fakes / "states").unlink()
    done = tpu_vm("create", "pod", "v6e-16")
    assert done.returncode == 1 and "the TPUs did not come" in done.stderr


def test_a_training_starts_on_all_hosts_stops_and_goes_on(tpus):
    done = train(tpus, "--config.optim.lr=1e-4", "--config.note=it's $HOME")
    assert done.returncode == 0, done.stderr
    workers = [tpus / "workdir" / name for name in ("worker-0", "worker-1")]
    wait_until(lambda: all((worker / "starts").exists() for worker in workers))
    for worker in workers:
        flags = f"-m jpeglm.train --config=configs/jpeglm_7b.py --workdir={tpus}/workdir --config.optim.lr=1e-4"
        assert (worker / "starts").read_text() == f"{flags} --config.note=it's $HOME --config.platform=tpu\n"
        assert (tpus / "hosts" / worker.name / "jpeglm" / "requirements.txt").exists()
    wait_until(lambda: told() == ["pod: ACTIVE", "worker-0: running; step 1", "worker-1: running; step 1"])

    again = train(tpus)
    assert again.returncode == 2 and "pod is training" in again.stderr

    done = tpu_vm("stop", "pod")
    assert done.returncode == 0, done.stderr
    for line, worker in zip(done.stdout.splitlines(), workers, strict=True):
        assert line.startswith(f"{worker.name}: not running; ") and line.endswith("ended with status 75")
        assert (worker / "stop").read_text() == "asked\nsaved\n"

    assert train(tpus).returncode == 0
    wait_until(lambda: all(len((worker / "starts").read_text().splitlines()) == 2 for worker in workers))
    assert tpu_vm("stop", "pod").returncode == 0
    lines = tpu_vm("logs", "pod", "-n", "100").stdout.splitlines()
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=tpus / "repository", stdout=subprocess.PIPE, text=True
    ).stdout.strip()
    for worker in workers:
        log = [line for line in lines if line.startswith(f"{worker.name}: ")]
        assert sum(line.startswith(f"{worker.name}: == commit {commit}: --config=configs/") for line in log) == 2


def test_hosts_that_wait_for_a_process_0_that_stopped_make_room_for_the_next_training(tpus):
    (tpus / "workdir" / "worker-0" / "statuses").write_text("2")
    (tpus / "workdir" / "worker-1" / "statuses").write_text("134")
    assert train(tpus).returncode == 0
    wait_until(lambda: "worker-0: not running" in told()[1] and told()[2] == "worker-1: running; step 1")
    assert told()[1].endswith("ended with status 2 and is not started again")

    assert train(tpus).returncode == 0
    starts = {name: tpus / "workdir" / name / "starts" for name in ("worker-0", "worker-1")}
    wait_until(lambda: [len(path.read_text().splitlines()) for path in starts.values()] == [2, 3])
    assert tpu_vm("stop", "pod").returncode == 0


def test_hosts_whose_python_is_too_old_get_another(tpus):
    write_program(tpus / "uv", f"#!/bin/sh\necho {sys.executable}\n")
    pip = f"mkdir -p ~/.local/bin && cp {tpus}/uv ~/.local/bin"
    write_program(tpus / "bin" / "python3", f'#!/bin/sh\n[ "$1" = -m ] && {pip}\n')
    (tpus / "workdir" / "worker-0" / "statuses").write_text("0")
    (tpus / "workdir" / "worker-1" / "statuses").write_text("0")
    done = train(tpus)
    assert done.returncode == 0, done.stderr
    wait_until(lambda: all(line.endswith("ended with status 0 and is not started again") for line in told()[1:]))


def test_a_host_where_pip_fails_starts_nothing(tpus):
    environment = tpus / "hosts" / "worker-1" / "jpeglm" / ".venv"
    (environment / ".fits-requirements-tpu.txt").unlink()
    write_program(environment / "bin" / "python", "#!/bin/sh\nexit 1\n")
    assert train(tpus).returncode == 1
    assert not list(tpus.glob("hosts/*/jpeglm-run/log")) and not (environment / ".fits-requirements-tpu.txt").exists()


def test_further_flags_of_ssh_are_passed_on(tpus, monkeypatch):
    monkeypatch.setenv("TPU_SSH_FLAGS", "--internal-ip --batch-size=all")
    (tpus / "workdir" / "worker-0" / "statuses").write_text("0")
    (tpus / "workdir" / "worker-1" / "statuses").write_text("0")
    assert train(tpus).returncode == 0
    used = [call for call in calls(tpus) if call[0] in ("ssh", "scp")]
    assert len(used) == 4 and all({"--internal-ip", "--batch-size=all"} <= set(call) for call in used)


def test_a_command_runs_on_every_host(tpus):
    done = tpu_vm("run", "pod", "echo \"$(hostname)\" | sed 's/-/ /'")
    assert sorted(done.stdout.splitlines()) == ["worker 0", "worker 1"]


def test_tpus_that_are_given_back_are_gone(fakes):
    assert tpu_vm("delete", "pod").returncode == 0
    assert calls(fakes) == [["delete", "pod", "--force", "--quiet"]]
    done = tpu_vm("status", "pod")
    assert done.returncode != 0 and "NOT_FOUND" in done.stderr


def test_training_needs_tpus_that_are_there(tpus):
    (tpus / "states").write_text("SUSPENDED\n")
    done = train(tpus)
    assert done.returncode == 2 and "pod is SUSPENDED, not ACTIVE" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "crate pod v5p-128",
        "create",
        "create pod",
        "create pod quantum-8",
        "create --spot pod v5p-128",
        "run pod",
        "run pod two words",
        "train pod",
        "train pod --",
        "train pod --config=configs/jpeglm_7b.py",
        "train -- --config=configs/jpeglm_7b.py",
        "status",
        "status pod more",
        "logs",
        "stop",
        "stop pod more",
        "delete",
        "delete pod more",
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(fakes, arguments):
    done = tpu_vm(*shlex.split(arguments))
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert not (fakes / "calls").exists()
