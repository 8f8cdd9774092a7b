"""The scripts that start trainings: linted, and run with fakes in the place of gcloud and of the training."""

import contextlib
import fnmatch
import functools
import json
import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from operator import getitem
from pathlib import Path

import jsonschema
import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from jpeglm import runtime
from jpeglm.cli import EXIT_BAD_INPUT
from tests.commands import ROOT

PROGRAMS = Path(sys.executable).parent
AGAIN = ROOT / "launch" / "again.sh"
DOCKERFILES = [*ROOT.glob("launch/Dockerfile.*")]
JOBSETS = [*ROOT.glob("launch/*.yaml")]
SCRIPTS = [
    *ROOT.glob("launch/*.sh"),
    *ROOT.glob("launch/*.sbatch"),
    *ROOT.glob("tests/launch/*.sh"),
    ROOT / ".ci" / "run",
]

# In the place of a training: ends with the next of the statuses in its workdir, or lives until it is asked to stop.
TRAINING = """
import os, pathlib, signal, sys, time
[workdir] = [pathlib.Path(flag.partition("=")[2]) for flag in sys.argv if flag.startswith("--workdir=")]
workdir = workdir / pathlib.Path.home().name
with open(workdir / "starts", "a") as file:
    print(*sys.argv[1:], file=file)
def stop(number, frame):
    with open(workdir / "stop", "a") as file:
        print("asked", file=file, flush=True)
        time.sleep(0.2)
        print("saved", file=file)
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
statuses = (workdir / "statuses").read_text().split()
if not statuses:
    print("step 1", flush=True)
    time.sleep(600)
(workdir / "statuses").write_text(" ".join(statuses[1:]))
status = int(statuses[0])
if status < 0:
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(100):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it does not come")


@pytest.fixture
def fakes(tmp_path, monkeypatch) -> Path:
    """A folder with programs that come first on PATH: gcloud with TPUs that are there, and an instant sleep."""
    write_program(tmp_path / "bin" / "sleep", f'#!/bin/sh\necho "$1" >>{tmp_path}/slept\n')
    gcloud = f'#!/bin/sh\nexec {sys.executable} -S {ROOT}/tests/launch/fake_gcloud.py "$@"\n'
    write_program(tmp_path / "bin" / "gcloud", gcloud)
    (tmp_path / "states").write_text("ACTIVE\n")
    (tmp_path / "states_after_create").write_text("WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(tmp_path))
    return tmp_path


def training(folder: Path, *statuses: int) -> list[str]:
    """The command of a training that ends with these statuses, one after the other."""
    workdir = folder / folder.name
    workdir.mkdir(exist_ok=True)
    (workdir / "statuses").write_text(" ".join(map(str, statuses)))
    write_program(folder / "training.py", TRAINING)
    return ["env", f"HOME={folder}", sys.executable, "-S", str(folder / "training.py"), f"--workdir={folder}"]


def starts(folder: Path) -> int:
    path = folder / folder.name / "starts"
    return len(path.read_text().splitlines()) if path.exists() else 0


# Linters


def test_shell_scripts_pass_shellcheck():
    assert len(SCRIPTS) >= 5
    done = subprocess.run([PROGRAMS / "shellcheck", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def hadolint(*paths: Path) -> subprocess.CompletedProcess:
    """The linter of Dockerfiles. It knows their grammar and bad habits, not whether they can be built."""
    return subprocess.run([PROGRAMS / "hadolint", "--no-color", *paths], capture_output=True, text=True)


def test_dockerfiles_pass_hadolint():
    assert len(DOCKERFILES) == 2
    done = hadolint(*DOCKERFILES)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("good", "bad", "rule"),
    [
        ("FROM python:3.12.12-slim-bookworm", "FROM python", "DL3006"),
        ('ENTRYPOINT ["python", "-m"]', "ENTRYPOINT python -m", "DL3025"),
        ("USER 1000", "USER root", "DL3002"),
        (" --no-cache-dir", "", "DL3042"),
        ("WORKDIR", "WORKDIRECTORY", "missing whitespace"),
    ],
)
def test_hadolint_would_tell(tmp_path, good, bad, rule):
    text = (ROOT / "launch" / "Dockerfile.tpu").read_text()
    assert good in text
    (tmp_path / "Dockerfile").write_text(text.replace(good, bad))
    done = hadolint(tmp_path / "Dockerfile")
    assert done.returncode == 1 and rule in done.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_a_dockerfile_copies_is_there_and_is_sent(path):
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [name for line in path.read_text().splitlines() if line.startswith("COPY") for name in line.split()[1:-1]]
    assert "jpeglm" in copied and "requirements.txt" in copied
    for name in copied:
        assert (ROOT / name).exists() and any(fnmatch.fnmatch(name, pattern) for pattern in sent)


# JobSets


@pytest.fixture(scope="module")
def judge() -> jsonschema.Draft202012Validator:
    """Of JobSets, by their published types. A field that these do not have is an error: Kubernetes would drop it."""
    schema = JobsetV1alpha2JobSet.model_json_schema()
    for kind in (schema, *schema["$defs"].values()):
        if "actual_instance" in kind["properties"]:  # quantities, and numbers or strings
            kind.clear()
            kind["type"] = ["number", "string"]
        else:
            kind["additionalProperties"] = False
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", JOBSETS, ids=lambda path: path.name)
def test_jobsets_fit_their_schema(judge, path):
    assert not [f"{error.json_path}: {error.message}" for error in judge.iter_errors(yaml.safe_load(path.read_text()))]


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("  failurePolicy:", "  failurePolicies:"),
        ("maxRestarts: 100", "maxRestart: 100"),
        ("maxRestarts: 100", "maxRestarts: many"),
        ("backoffLimit: 0", "backofflimit: 0"),
        ("terminationGracePeriodSeconds: 600", "terminationGracePeriodSeconds: 10m"),
        ("google.com/tpu: 4", "google.com/tpu: [4]"),
        ("values: [1, 2]", "values: 1"),
        ("name: train", "Name: train"),
        ("mountPath: /data", "mountpath: /data"),
        ("action: FailJobSet", "actions: FailJobSet"),
        ("bucketName: BUCKET", "bucketName: 7"),
    ],
)
def test_a_jobset_that_does_not_fit_is_noticed(judge, good, bad):
    text = (ROOT / "launch" / "gke_jobset.yaml").read_text()
    assert good in text
    assert not judge.is_valid(yaml.safe_load(text.replace(good, bad)))


@pytest.mark.parametrize("path", JOBSETS, ids=lambda path: path.name)
def test_a_jobset_ends_where_the_same_command_would_end_the_same_way_and_else_restarts(path):
    """By what JobSet's and Kubernetes' documentation say of these fields: no cluster is asked."""
    jobset = yaml.safe_load(path.read_text())
    [rule] = jobset["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    [replicated] = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert job["backoffLimit"] == 0 and job["completionMode"] == "Indexed"
    assert job["parallelism"] == job["completions"]
    disrupted, ended = job["podFailurePolicy"]["rules"]
    assert disrupted["action"] == "Count" and disrupted["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert ended["action"] == "FailJob" and ended["onExitCodes"]["operator"] == "In"
    assert set(ended["onExitCodes"]["values"]) == {1, EXIT_BAD_INPUT}
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    assert pod["restartPolicy"] == "Never" and ended["onExitCodes"]["containerName"] == container["name"]
    for mount in container["volumeMounts"]:
        assert mount["name"] in [volume["name"] for volume in pod["volumes"]]
    for variable in container.get("env", []):
        if variable["name"] == "JAX_NUM_PROCESSES":
            assert variable["value"] == str(job["completions"])
        if variable["name"] == "JAX_COORDINATOR_ADDRESS":
            name = jobset["metadata"]["name"]
            assert variable["value"].startswith(f"{name}-{replicated['name']}-0-0.{name}:")


@pytest.mark.parametrize("path", JOBSETS, ids=lambda path: path.name)
def test_the_flags_of_a_jobset_are_those_of_its_config(path):
    [replicated] = yaml.safe_load(path.read_text())["spec"]["replicatedJobs"]
    [container] = replicated["template"]["spec"]["template"]["spec"]["containers"]
    module, *flags = container["args"]
    assert module == "jpeglm.train"
    values = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    config = runpy.run_path(ROOT / values.pop("config"))["get_config"]()
    assert values.pop("workdir").startswith("gs://")
    assert values.pop("config.platform") in runtime.PLATFORMS
    for key in values:
        functools.reduce(getitem, key.split(".")[1:], config)


# again.sh


@pytest.mark.parametrize("status", [0, 1, 2, 3, 255])
def test_an_end_that_would_come_again_is_the_last(fakes, status):
    done = subprocess.run([AGAIN, *training(fakes, status, 0)])
    assert (done.returncode, starts(fakes)) == (status, 1)


@pytest.mark.parametrize("status", [75, 134, -signal.SIGKILL, -signal.SIGSEGV])
def test_an_end_that_may_go_better_next_time_is_not_the_last(fakes, status):
    done = subprocess.run([AGAIN, *training(fakes, status, status, 2)])
    assert (done.returncode, starts(fakes)) == (2, 3)


def test_ten_short_lives_in_a_row_are_the_last(fakes):
    done = subprocess.run([AGAIN, *training(fakes, *[134] * 20)], capture_output=True, text=True)
    assert (done.returncode, starts(fakes)) == (134, 10)
    assert list(map(int, (fakes / "slept").read_text().split())) == [10, 20, 40, 80, 160, 240, 240, 240, 240]
    assert done.stderr.splitlines()[-1].endswith("as ten short lives in a row did, and is not started again")


def test_a_long_life_starts_the_count_anew(fakes):
    # This clock goes on by ten minutes in the third life, between the fifth and the sixth look at it.
    clock = f"#!/bin/sh\necho >>{fakes}/looks\n[ $(wc -l <{fakes}/looks) -lt 6 ] && echo 0 || echo 600\n"
    write_program(fakes / "bin" / "date", clock)
    done = subprocess.run([AGAIN, *training(fakes, *[75] * 20)])
    assert (done.returncode, starts(fakes)) == (75, 12)


def test_a_hundred_lives_are_the_last_however_long_they_are(fakes):
    # By this clock every life is ten minutes long.
    clock = f"#!/bin/sh\necho >>{fakes}/looks\nexpr $(wc -l <{fakes}/looks) \\* 600\n"
    write_program(fakes / "bin" / "date", clock)
    done = subprocess.run([AGAIN, *training(fakes, *[75] * 120)], capture_output=True, text=True)
    assert (done.returncode, starts(fakes)) == (75, 100)
    assert done.stderr.splitlines()[-1].endswith("for the hundredth time, and is not started again")


def test_a_request_to_stop_is_passed_on_and_is_the_end(fakes):
    process = subprocess.Popen([AGAIN, *training(fakes)])
    wait_until(lambda: starts(fakes) == 1)
    time.sleep(0.1)
    for _ in range(3):  # impatience does not disturb the saving
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    assert (process.wait(5), starts(fakes)) == (75, 1)
    assert (fakes / fakes.name / "stop").read_text() == "asked\nsaved\n"


def test_a_request_to_stop_in_a_pause_is_the_end(fakes):
    (fakes / "bin" / "sleep").unlink()
    process = subprocess.Popen([AGAIN, *training(fakes, 134)], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: "started again in 10 s" in process.stderr.readline())
    process.send_signal(signal.SIGTERM)
    assert (process.wait(5), starts(fakes)) == (134, 1)


def test_nothing_to_run_is_refused_in_one_line():
    done = subprocess.run([AGAIN], capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


# tpu_vm.sh


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
