"""Weights are known by their content: wherever they lie, and whatever step or time they were saved at."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from configs import jpeglm_demo_long
from jpeglm.convert import slim
from jpeglm.core import checkpoint, sharding
from jpeglm.core.errors import InputError
from jpeglm.core.registry import MODELS
from jpeglm.core.workdir import read_config
from jpeglm.models import networks

DEMO = epath.Path(__file__).parents[1] / "pretrained" / "demo"
STEP = jpeglm_demo_long.get_config().steps


@pytest.fixture(scope="module")
def params() -> dict:
    config = read_config(DEMO)
    mesh = sharding.make_mesh({}, jax.devices()[:1])
    return checkpoint.restore_model(DEMO, STEP, networks.laid_out(MODELS.of(config), mesh))


def saved(folder: Path, state: dict, step: int) -> epath.Path:
    """A workdir of the demo's config with exactly this state, written by Orbax alone."""
    folder.mkdir()
    shutil.copy(DEMO / "config.json", folder)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "checkpoints" / str(step) / "default", state)
    (folder / "checkpoints" / str(step) / "_CHECKPOINT_METADATA").write_text(json.dumps({}))
    return epath.Path(folder)


def test_copies_and_other_steps_of_the_same_weights_are_the_same(params, tmp_path):
    expected = checkpoint.weights_hash(DEMO, STEP)
    slim.slim(DEMO, epath.Path(tmp_path / "slim"))
    assert checkpoint.weights_hash(epath.Path(tmp_path / "slim"), STEP) == expected
    prints = {"params": jax.device_get(checkpoint.fingerprints(params))}
    elsewhere = saved(tmp_path / "elsewhere", {"params": params, "fingerprints": prints}, step=7)
    assert checkpoint.weights_hash(elsewhere, 7) == expected
    without = saved(tmp_path / "without", {"params": params}, step=0)  # as old imports are
    assert checkpoint.weights_hash(without, 0) == expected


def test_an_import_without_fingerprints_is_read_one_array_after_another(params, tmp_path, monkeypatch):
    without, sizes = saved(tmp_path / "run", {"params": params}, step=0), []
    restore = ocp.PyTreeCheckpointHandler.restore

    def spy(handler: ocp.PyTreeCheckpointHandler, *args: object, **kwargs: object) -> dict:
        found = restore(handler, *args, **kwargs)
        sizes.append([x.size for x in jax.tree.leaves(found)])
        return found

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", spy)
    checkpoint.weights_hash(without, 0)
    assert sizes == [[x.size] for x in jax.tree.leaves(params)]


def test_one_changed_bit_in_any_array_makes_other_weights(params):
    before = jax.device_get(checkpoint.fingerprints(params))
    for place in range(len(before)):
        leaves, tree = jax.tree.flatten(jax.device_get(params))
        bits = leaves[place].copy().view(np.uint32)
        bits.reshape(-1)[-1] ^= 1
        leaves[place] = bits.view(np.float32)
        after = jax.device_get(checkpoint.fingerprints(jax.tree.unflatten(tree, leaves)))
        assert np.flatnonzero(after != before).tolist() == [place]


def test_a_checkpoint_that_is_not_whole_is_one_line(tmp_path):
    shutil.copytree(DEMO, tmp_path / "run")
    for path in (tmp_path / f"run/checkpoints/{STEP}/default").rglob("*"):
        if path.is_file() and "METADATA" in path.name:
            path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InputError, match=f"step {STEP} cannot be read: "):
        checkpoint.weights_hash(epath.Path(tmp_path / "run"), STEP)
