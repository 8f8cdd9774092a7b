"""The checkpoint that comes with the repository: it is what its config says, and as good as its metrics say."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from configs import jpeglm_demo, jpeglm_demo_long
from jpeglm.core import checkpoint, sharding
from jpeglm.core.registry import MODELS, TASKS
from jpeglm.core.workdir import read_config, read_manifest, read_metrics
from jpeglm.data import batches, records, tokenizers
from jpeglm.models import llama, networks
from jpeglm.models.llama_config import LlamaConfig
from jpeglm.models.loss import make_loss
from jpeglm.prepare import plan
from jpeglm.sample.scoring import Scorer
from jpeglm.train import loop
from jpeglm.train.inputs import Inputs
from jpeglm.train.step import build_programs

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


def one_a_chunk(data: Path, count: int, out: Path) -> Path:
    """Prepared data whose held-out split is the first `count` of that of `data`, each in a chunk of its own."""
    manifest = records.read_manifest(data)
    tokenizer, seq_len = tokenizers.load(data, manifest["config"]), manifest["config"]["data"]["seq_len"]
    shutil.copytree(data, out)
    given = list(batches.documents(data, "heldout", count))
    names = [records.shard_name("heldout", number, count) for number in range(count)]
    shards = [
        {"name": name} | records.write_shard(out / name, [tokenizer.encode(document)], seq_len)
        for name, document in zip(names, given, strict=True)
    ]
    manifest["splits"]["heldout"] |= {
        "shards": shards,
        "documents": count,
        "tokens": sum(shard["tokens"] for shard in shards),
        "bytes": sum(map(len, given)),
    }
    (out / records.MANIFEST).write_text(json.dumps(manifest))
    return out


def test_the_scores_of_100_held_out_digits_sum_to_the_evaluation_of_training(demo_data, tmp_path):
    """A chunk of packed documents also has targets between them, and cut documents; a document alone has neither."""
    data = one_a_chunk(demo_data, 100, tmp_path / "data")
    config = read_config(epath.Path(DEMO))
    config.data.path, config.data.verify = str(data), False
    mesh, model, task = sharding.make_mesh({}, jax.devices()[:1]), MODELS.of(config), TASKS.of(config)
    params = checkpoint.restore_model(epath.Path(DEMO), config.steps, networks.laid_out(model, mesh))
    with jax.set_mesh(mesh):
        trained = SimpleNamespace(
            watchdog=SimpleNamespace(beat=lambda _: None),
            inputs=Inputs(config, mesh, model, task),
            eval_step=build_programs(config, mesh).eval_step,
            state={"params": params},
            task=task,
        )
        nats_a_token = loop.evaluate(trained)["nats_per_token"]
    scores = list(Scorer.load(DEMO).nats_of(batches.documents(data, "heldout")))
    assert len(scores) == 100
    total = sum(nats.sum(dtype=np.float64) for nats in scores)
    assert total == pytest.approx(nats_a_token * sum(map(len, scores)), rel=1e-5)
