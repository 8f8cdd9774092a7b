"""Training: the same losses on any mesh, with any accumulation, in any number of processes, and after a kill."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from flax import nnx

from jpeglm.core import checkpoint, sharding
from jpeglm.core.registry import MODELS
from jpeglm.core.workdir import read_config, read_metrics
from jpeglm.data.batches import Chunks
from jpeglm.models import llama, networks
from tests.commands import ROOT, finish, run, start
from tests.runs import differences, losses, start_several, state, train_flags, without_speed
from tests.tiny_config import get_config

STEPS = get_config().steps


def train_all(data: Path, folder: Path, runs: list[tuple[int, dict]]) -> list[Path]:
    """Trains runs (devices, changed keys), half of them in each of two processes; the workdirs."""
    workdirs = [folder / str(index) for index in range(len(runs))]
    listed = [
        {"workdir": str(workdir), "devices": devices, "set": {"data.path": str(data), **changes}}
        for workdir, (devices, changes) in zip(workdirs, runs, strict=True)
    ]
    halves = [start("tests.trainings", json.dumps(listed[half::2]), devices=8) for half in range(2)]
    for process in halves:
        done = finish(process)
        assert done.returncode == 0, done.stderr
    return workdirs


OFTEN = {"eval.every": 1, "checkpoint.every": 5}


@pytest.fixture(scope="module")
def whole_run(tiny_data, tmp_path_factory):
    """A run without disturbance, and what it wrote to standard error."""
    workdir = tmp_path_factory.mktemp("whole") / "new" / "run"
    done = run("jpeglm.train", *train_flags(tiny_data, workdir, **OFTEN), JAX_LOG_COMPILES="1")
    assert done.returncode == 0, done.stderr
    return workdir, done.stderr


ONE_DEVICE = [(1, {}), (1, {"optim.accumulate": 4})]
EIGHT_DEVICES = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "optim.accumulate": 2}
MESHES = [(4, {"mesh.fsdp": 2, "mesh.context": 2}), (8, EIGHT_DEVICES)]  # tests/core/test_sharding.py has all of them
MORE_MESHES = [
    (2, {"mesh.tensor": 2}),
    (2, {"optim.accumulate": 2}),
    (4, {"mesh.context": 4}),
    (8, {"mesh.fsdp": 8}),
    (8, {"mesh.data": 8, "mesh.fsdp": 1}),
    (8, {"mesh.fsdp": 2, "mesh.context": 2, "mesh.tensor": 2}),
    (8, {"mesh.data": 2, "mesh.context": 2, "mesh.tensor": 2, "optim.accumulate": 4}),
]


@pytest.mark.parametrize("meshes", [MESHES, pytest.param(MORE_MESHES, marks=pytest.mark.slow)], ids=["few", "more"])
def test_losses_are_the_same_on_any_mesh_and_with_any_accumulation(tiny_data, tmp_path, meshes):
    runs = train_all(tiny_data, tmp_path, ONE_DEVICE + meshes)
    first, accumulated, *others = (losses(workdir, STEPS) for workdir in runs)
    assert first[-1] < first[0] - 0.1  # it learns
    np.testing.assert_allclose(accumulated, first, rtol=1e-6)
    for mesh, other in zip(meshes, others, strict=True):
        assert np.abs(other - first).max() < 1e-5, mesh


def test_a_run_compiles_its_step_once(whole_run):
    _, log = whole_run
    assert log.count("Compiling jit(train_step)") == 1
    assert log.count("Compiling jit(eval_step)") == 1


def test_evaluation_is_the_mean_over_all_heldout_tokens(tiny_data, whole_run):
    workdir, _ = whole_run
    config = read_config(epath.Path(workdir))
    heldout = Chunks(tiny_data, "heldout", config.data.seq_len)
    assert len(heldout) % config.optim.batch_size  # so the last batch has empty rows
    batch = heldout.batch(range(len(heldout)))

    mesh = sharding.make_mesh({}, jax.devices()[:1])
    params = checkpoint.restore_model(epath.Path(workdir), STEPS, networks.laid_out(MODELS.of(config), mesh))
    graphdef, _ = networks.abstract(llama.LlamaConfig.of(config))
    logits = nnx.merge(graphdef, params)(batch["tokens"], batch["positions"], batch["segment_ids"])
    logits = np.asarray(logits, np.float64)[..., : config.tokenizer.vocab_size]

    nats, count = 0.0, 0
    for row in range(len(heldout)):
        for place in np.flatnonzero(batch["loss_weights"][row]):
            here = logits[row, place]
            nats += np.log(np.exp(here - here.max()).sum()) + here.max() - here[batch["tokens"][row, place + 1]]
            count += 1
    split = heldout.manifest["splits"]["heldout"]
    assert count == split["tokens"] - len(heldout)  # all but the first token of each chunk

    *_, reported = [row for row in read_metrics(workdir) if "heldout/nats_per_token" in row]
    assert reported["step"] == STEPS
    assert reported["heldout/nats_per_token"] == pytest.approx(nats / count, rel=1e-6)
    bits = nats / count / np.log(2) * split["tokens"]
    assert reported["heldout/bits_per_byte"] == pytest.approx(bits / split["bytes"], rel=1e-6)
    assert reported["heldout/bits_per_pixel"] == pytest.approx(bits / (20 * 32 * 32), rel=1e-6)


def test_a_killed_run_goes_on_bit_for_bit(tiny_data, whole_run, tmp_path):
    flags = train_flags(tiny_data, tmp_path, **OFTEN)
    process = start("jpeglm.train", *flags)
    while not (tmp_path / "checkpoints" / "5").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert finish(process).returncode == -signal.SIGKILL
    assert checkpoint.pick_step(epath.Path(tmp_path), None) < STEPS

    done = run("jpeglm.train", *flags)
    assert done.returncode == 0, done.stderr
    assert "starts at step    0" not in done.stderr
    assert not differences(tmp_path, whole_run[0], STEPS)


def test_a_run_goes_on_with_the_same_losses_on_another_mesh(tiny_data, whole_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole_run[0], workdir)
    for step in (15, 20):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    flags = train_flags(tiny_data, workdir, **OFTEN, **EIGHT_DEVICES)
    done = run("jpeglm.train", *flags, devices=8, JAX_LOG_COMPILES="1")
    assert done.returncode == 0, done.stderr
    assert "starts at step    10" in done.stderr
    assert done.stderr.count("Compiling jit(train_step)") == 1
    assert np.abs(losses(workdir, STEPS) - losses(whole_run[0], STEPS)).max() < 1e-5
    assert not np.array_equal(losses(workdir, STEPS), losses(whole_run[0], STEPS))  # it did train the last ten steps


def test_a_finished_run_is_left_as_it_is(tiny_data, whole_run):
    workdir, _ = whole_run
    before = without_speed(workdir)
    relative = Path(os.path.relpath(workdir, ROOT))
    done = run("jpeglm.train", *train_flags(tiny_data, relative, **OFTEN))
    assert done.returncode == 0, done.stderr
    assert f"{STEPS} steps done" in done.stderr
    assert without_speed(workdir) == before


@pytest.mark.parametrize("axis", ["fsdp", pytest.param("context", marks=pytest.mark.slow)])
def test_two_processes_train_as_one(tiny_data, whole_run, tmp_path, axis):
    workdir = tmp_path / "run"
    processes = start_several(tiny_data, workdir, **{"mesh.fsdp": 1, f"mesh.{axis}": 2, "checkpoint.every": 10})
    lead, other = map(finish, processes)
    assert lead.returncode == 0, lead.stderr
    assert other.returncode == 0, other.stderr
    assert "2 process(es)" in lead.stderr and "step 20/20" in lead.stderr
    assert not other.stderr  # only process 0 logs
    assert len(list((workdir / "tensorboard").iterdir())) == 1
    assert np.abs(losses(workdir, STEPS) - losses(whole_run[0], STEPS)).max() < 1e-5
    undisturbed = state(whole_run[0], STEPS)
    for name, array in state(workdir, STEPS).items():
        np.testing.assert_allclose(array, undisturbed[name], atol=2e-5, err_msg=name)
