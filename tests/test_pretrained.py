"""The checkpoint that comes with the repository: it is what its config says, and as good as its metrics say."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from configs import jpeglm_demo, jpeglm_demo_long
from jpeglm.core import checkpoint, sharding
from jpeglm.core.registry import MODELS
from jpeglm.core.workdir import read_config, read_manifest, read_metrics
from jpeglm.data import batches
from jpeglm.models import llama, networks
from jpeglm.models.llama_config import LlamaConfig
from jpeglm.models.loss import make_loss
from jpeglm.prepare import plan

DEMO = Path(__file__).parents[1] / "pretrained" / "demo"


@pytest.fixture(scope="module")
def demo_data(tmp_path_factory) -> Path:
    """What the demo prepares."""
    out = tmp_path_factory.mktemp("demo") / "data"
    plan.prepare(jpeglm_demo.get_config(), "embedded:mnist", out)
    return out


def test_it_is_of_the_config_that_is_said_to_have_made_it_and_small():
    theirs, ours = read_config(epath.Path(DEMO)), jpeglm_demo_long.get_config()
    for key in LlamaConfig.FREE:  # how it is computed may change
        theirs.model[key] = ours.model[key]
    assert theirs.to_dict() == ours.to_dict()
    assert checkpoint.saved_steps(epath.Path(DEMO)) == [ours.steps]
    assert sum(path.stat().st_size for path in DEMO.rglob("*")) < 10e6


def test_it_held_out_what_the_demo_holds_out(demo_data):
    ours = batches.records.read_manifest(demo_data)
    theirs = read_manifest(epath.Path(DEMO))
    assert ours["splits"]["heldout"] == theirs["splits"]["heldout"]
    assert ours["tokenizer_sha256"] == theirs["tokenizer_sha256"]


def test_its_held_out_loss_is_that_of_its_metrics(demo_data):
    config = read_config(epath.Path(DEMO))
    mesh = sharding.make_mesh({}, jax.devices()[:1])
    params = checkpoint.restore_model(epath.Path(DEMO), config.steps, networks.laid_out(MODELS.of(config), mesh))
    graphdef, _ = networks.abstract(llama.LlamaConfig.of(config))
    loss_of = jax.jit(lambda batch: make_loss(graphdef, 0.0)(params, batch, jnp.ones(()))[1])
    chunks = batches.Chunks(str(demo_data), "heldout", config.data.seq_len, config.model.mask_documents)
    sums = np.zeros(2)
    for batch in batches.eval_batches(chunks, 16, range(16)):
        sums += float(loss_of(batch)), batch["loss_weights"].sum()
    said = [row for row in read_metrics(DEMO) if "heldout/nats_per_token" in row][-1]
    assert said["step"] == config.steps
    assert sums[0] / sums[1] == pytest.approx(said["heldout/nats_per_token"], abs=1e-4)
