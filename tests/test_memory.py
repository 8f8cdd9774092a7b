"""Memory of the long paths: restoring over processes, and chunks of 32,768 tokens."""

import json
import subprocess
import sys

import pytest

from tests.commands import ROOT, finish, run, start
from tests.runs import start_job

MIB = 2**20


@pytest.mark.slow
def test_a_process_that_restores_holds_its_own_shards_and_what_it_reads_of_them(tmp_path):
    """A CPU's devices live in the host's memory: once for the shards, once for what is on its way to them."""
    saving = finish(start("tests.restoring", "save", str(tmp_path), devices=8))
    assert saving.returncode == 0, saving.stderr
    for process in start_job("tests.restoring", "restore", str(tmp_path), processes=4, devices=2):
        done = finish(process)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["step"] == 1
        assert found["device"] < 1.01 * found["whole"] / 8
        assert found["own"] < 1.01 * found["whole"] / 4
        assert found["peak"] < 2.2 * found["own"] + 128 * MIB < found["whole"], found


@pytest.mark.slow
def test_chunks_of_32768_tokens_train_on_a_cpu_within_2_gib(tmp_path):
    """Scores of all pairs at once would take 4 GiB a head."""
    config = ["--config=tests/tiny_config.py", "--config.data.seq_len=32768", "--config.data.shards=1"]
    data = tmp_path / "data"
    done = run("jpeglm.prepare", *config, "--config.data.holdout=300", "--source=embedded:mnist", f"--out={data}")
    assert done.returncode == 0, done.stderr
    model = ["--config.model.num_layers=1", "--config.model.num_heads=2", "--config.model.num_kv_heads=2"]
    optim = ["--config.optim.batch_size=1", "--config.optim.warmup_steps=1", "--config.steps=3"]
    flags = [*config, *model, *optim, f"--config.data.path={data}", f"--workdir={tmp_path / 'run'}"]
    # A process of its own, so that no other child's memory counts.
    code = (
        "import resource, subprocess, sys; status = subprocess.call(sys.argv[1:]); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(status)"
    )
    command = [sys.executable, "-c", code, sys.executable, "-m", "jpeglm.train", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1_800)
    assert done.returncode == 0, done.stderr
    assert "step 3/3" in done.stderr
    assert int(done.stdout) < 2 * 2**20  # KiB
