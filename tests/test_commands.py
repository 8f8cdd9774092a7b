"""What the user can mend is one line on standard error and exit status 2, and nothing is written."""

import json
import re
import shutil
from pathlib import Path

import pytest
from etils import epath

from jpeglm.core.workdir import write_run
from tests.commands import run as run_alone
from tests.forks import run
from tests.tiny_config import get_config

TINY = "--config=tests/tiny_config.py"
LOG_LINE = re.compile(r"[IW]\d{4} ")  # absl's
# name -> flags and variables of `jpeglm.train`, and what the line must name. Braces are filled with folders.
BAD_TRAININGS = {
    "misspelt key": (
        [TINY, "--config.optim.lrr=1", "--workdir={new}"],
        ["config.optim.lrr: no such key; did you mean config.optim.lr?"],
    ),
    "value of another type": ([TINY, "--config.optim.lr=high", "--workdir={new}"], ["config.optim.lr=high"]),
    "misspelt flag": ([TINY, "--workdirr={new}"], ["workdirr", "workdir"]),
    "config file that does not exist": (["--config=configs/nope.py", "--workdir={new}"], ["configs/nope.py"]),
    "no workdir": ([TINY, "--config.data.path={data}"], ["--workdir"]),
    "an argument that is no flag": ([TINY, "--workdir={new}", "more"], ["'more'"]),
    "no data": ([TINY, "--workdir={new}"], ["--config.data.path=DIR"]),
    "data that does not exist": ([TINY, "--config.data.path=/no/data", "--workdir={new}"], ["/no/data"]),
    "missing shard": (
        [TINY, "--config.data.path={broken}", "--workdir={new}"],
        ["{broken}", "train-00001-of-00002.array_record is missing"],
    ),
    "data of another codec": (
        [TINY, "--config.data.path={data}", "--config.codec.quality=50", "--workdir={new}"],
        ["codec.quality", "25", "50"],
    ),
    "no such GPU": (
        [TINY, "--config.data.path={data}", "--config.platform=gpu", "--workdir={new}"],
        ["'gpu'", "not there"],
    ),
    "mesh of more devices": (
        [TINY, "--config.data.path={data}", "--config.mesh.tensor=4", "--config.mesh.fsdp=1", "--workdir={new}"],
        ["tensor=4", "1 device"],
    ),
    "batch that does not divide": (
        [TINY, "--config.data.path={data}", "--config.optim.accumulate=3", "--workdir={new}"],
        ["optim.batch_size=8", "optim.accumulate=3"],
    ),
    "workdir that cannot be written": (
        [TINY, "--config.data.path={data}", "--workdir=/proc/run"],
        ["cannot write /proc/run"],
    ),
    "run of another learning rate, width and seed": (
        [TINY, "--config.data.path={data}", "--config.optim.lr=1.0", "--config.model.width=64", "--config.seed=3"]
        + ["--workdir={old}"],
        ["{old}", "optim.lr (0.003 there, 1.0 asked)", "model.width (32 there, 64 asked)", "seed (0 there, 3 asked)"],
    ),
    "run on other data": (
        [
            TINY,
            "--config.data.path={other}",
            "--config.data.verify=False",
            "--workdir={old}",
        ],  # a manifest changed by hand
        ["{old}", "{other}"],
    ),
    "data in a bucket": ([TINY, "--config.data.path=gs://nobody/data", "--workdir={new}"], ["mount the bucket"]),
    "half of the cluster's variables": ([TINY, "--workdir={new}", "JAX_PROCESS_ID=0"], ["JAX_COORDINATOR_ADDRESS"]),
}


@pytest.fixture(scope="module")
def folders(tiny_data, tmp_path_factory) -> dict[str, Path]:
    """Data as it should be, without a shard, and with other content; a workdir of a run, and one to be made."""
    folder = tmp_path_factory.mktemp("bad")
    found = {"data": tiny_data} | {name: folder / name for name in ("broken", "other", "old", "new")}
    shutil.copytree(tiny_data, found["broken"])
    (found["broken"] / "train-00001-of-00002.array_record").unlink()
    shutil.copytree(tiny_data, found["other"])
    manifest = json.loads((tiny_data / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"][0]["sha256"] = "0" * 64
    (found["other"] / "manifest.json").write_text(json.dumps(manifest))
    write_run(epath.Path(found["old"]), get_config(), epath.Path(tiny_data))
    return found


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def refusals(folders):
    """Every bad training; and what lay in the old workdir before."""
    before = content(folders["old"])

    def train(case: str):
        arguments = [argument.format(**folders) for argument in BAD_TRAININGS[case][0]]
        variables = dict(argument.split("=") for argument in arguments if argument.startswith("JAX_"))
        return run("jpeglm.train", *(a for a in arguments if not a.startswith("JAX_")), **variables)

    return {case: train(case) for case in BAD_TRAININGS}, before


@pytest.mark.parametrize("case", BAD_TRAININGS)
def test_bad_input_to_training_is_one_line_and_status_2(folders, refusals, case):
    done = refusals[0][case]
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if not LOG_LINE.match(line)]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("python -m jpeglm.train: error: ")
    for part in BAD_TRAININGS[case][1]:
        assert part.format(**folders) in lines[0]
    assert not done.stdout


def test_refused_training_writes_nothing(folders, refusals, tmp_path):
    assert not folders["new"].exists()
    # Nor does it where nothing but the workdir can keep compiled programs.
    where = (f"--workdir={tmp_path / 'new'}", f"--config.data.path={tmp_path / 'none'}")
    done = run_alone("jpeglm.train", TINY, *where, JAX_COMPILATION_CACHE_DIR="")
    assert done.returncode == 2 and not (tmp_path / "new").exists()
    assert content(folders["old"]) == refusals[1]


def test_help_says_what_a_command_does_and_names_its_own_flags_alone():
    modules = ("prepare", "train", "sample", "score", "fid", "inspect", "tables")
    for module in modules:
        done = run(f"jpeglm.{module}", "--help")
        assert done.returncode == 0
        assert f"python -m jpeglm.{module}" in done.stdout
        assert len(done.stdout.splitlines()) < 60
        assert not done.stderr
        assert "\n  --" in done.stdout or module == "inspect"  # which has none
