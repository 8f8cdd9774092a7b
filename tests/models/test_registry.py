"""A model is one file and one line: a GRU of the tests trains, goes on, samples and scores, as a Llama does."""

import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import nnx
from jax.sharding import AbstractMesh

from jpeglm.aot.report import train_report
from jpeglm.aot.search import search_train
from jpeglm.aot.target import describe
from jpeglm.convert import slim, to_huggingface
from jpeglm.core import checkpoint, sharding
from jpeglm.core import config as config_lib
from jpeglm.core.errors import InputError
from jpeglm.core.registry import MODELS
from jpeglm.core.workdir import check_resumable, read_manifest
from jpeglm.data import batches
from jpeglm.models import networks
from jpeglm.sample.job import Job
from jpeglm.sample.sampler import Sampler
from jpeglm.sample.scoring import Scorer
from jpeglm.sample.settings import Settings
from jpeglm.train.optimizer import make_optimizer, make_schedule
from jpeglm.train.step import build_programs
from tests.commands import run
from tests.models.gru_config import get_config
from tests.outside.gru import Gru
from tests.runs import losses, state
from tests.tiny_config import get_config as llama_config

CONFIG = "--config=tests/models/gru_config.py"
SMALL = Gru(vocab_size=40, width=16)


def test_prefill_and_decoding_agree_with_the_whole_forward_pass_whatever_a_prompt_is_padded_with():
    params = jax.tree.map(lambda x: 3 * x, networks.init(SMALL, 0))
    model = nnx.merge(networks.abstract(SMALL)[0], params)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 40, (3, 32)), jnp.int32)
    lengths = jnp.array([1, 7, 20])
    full = model(tokens, None, None)
    rows = jnp.arange(3)
    padded = jnp.where(jnp.arange(32) < lengths[:, None], tokens, 39)
    caches = model.prefill(padded, lengths)
    for step in range(12):
        positions = lengths + step
        logits, caches = model.decode(tokens[rows, positions], positions, caches)
        np.testing.assert_allclose(logits, full[rows, positions], atol=1e-5)


def test_its_attribute_keeps_weight_decay_from_a_parameter():
    _, model = networks.abstract(SMALL)
    decayed = networks.decayed(model)
    assert decayed == {"embedding": True, "inputs": True, "recurrent": True, "bias": False, "head": True}
    _, model = networks.abstract(MODELS.of(llama_config()))
    paths = jax.tree_util.tree_leaves_with_path(networks.decayed(model))
    assert len(paths) == len(jax.tree.leaves(model)) and {decays for _, decays in paths} == {True, False}
    assert all(decays == (path[-1].key != "scale") for path, decays in paths)  # norms alone

    config = get_config()
    config.optim.lr, config.optim.warmup_steps = 0.5, 0
    optimizer = make_optimizer(config.optim, make_schedule(config.optim, 20), decayed)
    ones = jax.tree.map(lambda x: jnp.ones(x.shape), nnx.to_pure_dict(networks.abstract(SMALL)[1]))
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, ones), optimizer.init(ones), ones)
    assert {name: bool(jnp.any(update)) for name, update in updates.items()} == decayed


############################ A run ############################


@pytest.fixture(scope="module")
def workdir(tiny_data, tmp_path_factory) -> Path:
    """A run of 20 steps, with checkpoints after 10 and 20."""
    workdir = tmp_path_factory.mktemp("gru") / "run"
    done = run("jpeglm.train", CONFIG, f"--config.data.path={tiny_data}", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert f"{MODELS.of(get_config()).num_parameters:,} (vocabulary of 320)" in done.stderr
    return workdir


@pytest.fixture(scope="module")
def workdir_of_256(workdir, tmp_path_factory) -> epath.Path:
    """That run with room for whole files, of about 130 tokens."""
    copy = epath.Path(shutil.copytree(workdir, tmp_path_factory.mktemp("gru_of_256") / "run"))
    config = json.loads((copy / "config.json").read_text())
    config["data"]["seq_len"] = 256
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def test_it_learns_and_goes_on_to_the_same_bits(workdir, tiny_data, tmp_path):
    found = losses(workdir, 20)
    assert found[-5:].mean() < found[:5].mean() - 0.1
    again = shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(again / "checkpoints/20")
    done = run("jpeglm.train", CONFIG, f"--config.data.path={tiny_data}", f"--workdir={again}")
    assert done.returncode == 0, done.stderr
    before, after = state(workdir, 20), state(again, 20)
    assert before.keys() == after.keys() and any("recurrent" in name for name in before)
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)


def test_greedy_samples_are_argmax_of_the_whole_model_and_those_with_the_grammar_are_whole_files(
    workdir_of_256, tiny_data
):
    originals = list(batches.documents(tiny_data, "heldout", 3))
    sampler = Sampler.load(workdir_of_256, Settings(200, temperature=0, slots=2, grammar=False))
    _, params, _ = sampler._engine.weights
    model = nnx.merge(networks.abstract(MODELS.of(sampler.config))[0], params)
    keys = [np.array([0, number], np.uint32) for number in range(3)]
    requests = sampler._requests([sampler.codec.cut(document, 0.3)[0] for document in originals], keys)
    new = 0
    for written in sampler._engine.generate(requests):
        prompt = requests[written.number].prompt
        assert len(prompt) not in (32, 64)  # so that it was padded
        expected = np.asarray(model(jnp.array([[*prompt, *written.ids]]), None, None))[0].argmax(-1)
        assert expected[len(prompt) - 1 : -1].tolist() == written.ids.tolist()
        assert (expected[-1] == sampler.tokenizer.EOS) == written.ended
        new += len(written.ids)
    assert new > 60

    whole = list(sampler.with_settings(Settings(200, slots=2)).complete(originals, 0.3, samples=2))
    assert len(whole) == 6 and all(sampler.codec.is_valid(completion.document) for completion in whole)


def test_scores_are_the_models_own_log_probabilities(workdir_of_256, tiny_data):
    scorer, [document] = Scorer.load(workdir_of_256), batches.documents(tiny_data, "heldout", 1)
    ids = np.array(scorer._ids(document))
    layout = networks.laid_out(Gru(320, 32), sharding.make_mesh({}, jax.devices()[:1]))
    model = nnx.merge(networks.abstract(Gru(320, 32))[0], checkpoint.restore_model(workdir_of_256, 20, layout))
    nll = -jax.nn.log_softmax(model(ids[None], None, None)[0])[np.arange(len(ids) - 1), ids[1:]]
    assert scorer.nats(document) == pytest.approx(float(nll.sum()), rel=1e-5)
    assert 2 < scorer.nats(document) / len(ids) < math.log(320)


def test_slim_copies_it_and_a_llama_it_is_not(workdir, tmp_path):
    assert slim.slim(epath.Path(workdir), epath.Path(tmp_path / "slim")) == Gru(320, 32)
    weights = checkpoint.weights_hash(epath.Path(workdir), 20)
    assert checkpoint.weights_hash(epath.Path(tmp_path / "slim"), 20) == weights
    with pytest.raises(InputError, match="model.name=gru"):
        to_huggingface.export_model(epath.Path(workdir), tmp_path / "llama", None, "float32")


############################ Its config ############################


def test_its_section_has_its_own_keys_and_ranges():
    config = get_config()
    config_lib.check(config)
    assert config_lib.parse("config.json", config_lib.to_json(config)).to_dict() == config.to_dict()
    config.model.width = 5_000
    with pytest.raises(InputError, match=r"^config\.model\.width=5000: a whole number from 1 to 4,096$"):
        config_lib.check(config)
    with pytest.raises(InputError, match=r"^config\.model\.attention: no such key"):
        config.model = llama_config().model.copy_and_resolve_references()
        config.model.name = "gru"
        config_lib.check(config)
    with pytest.raises(InputError, match=r"config\.model\.name='gpt': one of 'llama', 'gru'$"):
        config_lib.parse("config.json", json.dumps({"version": 1, "model": {"name": "gpt", "heads": 3}}))


def test_a_run_goes_on_only_with_its_own_model(workdir, tiny_data):
    config = llama_config()
    config.data.path = str(tiny_data)
    with pytest.raises(InputError, match=r"holds a run of another config: model.* \('gru' there, 'llama' asked\)"):
        check_resumable(epath.Path(workdir), config, read_manifest(epath.Path(workdir)))


def test_a_mesh_that_spreads_the_sequence_is_refused():
    mesh = AbstractMesh((1, 1, 2, 1), sharding.MESH_AXES, axis_types=sharding.AUTO)
    with pytest.raises(InputError, match="mesh.context: the model gru cannot spread the sequence"):
        build_programs(get_config(), mesh)


def test_what_it_takes_of_a_pod_is_estimated():
    target = describe("h100:1")
    config, cost, largest = search_train(get_config(), target)
    rows, facts = train_report(config, target, cost)
    assert largest == {"none": 8} and facts["parameters"] == Gru(320, 32).num_parameters and facts["remat"] == "none"
    assert cost.temporary > SMALL.step_bytes(8 * 64, 1) and any("parameters" in row for row in rows)


############################ What was written before models had names ############################


def test_identities_of_results_do_not_name_what_had_no_name():
    assert "name" not in MODELS.identity(llama_config().model) and MODELS.identity(get_config().model)["name"] == "gru"
    assert {"config.model.name", "model.name"}.isdisjoint(MODELS.identity(llama_config().model))


def test_a_config_of_an_older_version_is_upgraded_and_one_of_a_newer_is_refused():
    old = llama_config().to_dict()
    del old["model"]["name"], old["task"], old["tokenizer"]["name"]
    assert config_lib.parse("config.json", json.dumps(old)).to_dict() == llama_config().to_dict()
    newer = config_lib.VERSION + 1
    with pytest.raises(InputError, match=f"version {newer}, this program reads up to {config_lib.VERSION}"):
        config_lib.parse("config.json", json.dumps(old | {"version": newer}))


def test_a_folder_of_samples_written_before_goes_on():
    sampler = type("Sampler", (), {"settings": Settings(64), "config": llama_config(), "tokenizer": None})
    sampler.tokenizer = type("Tokenizer", (), {"sha256": "s"})
    assert {key for key in Job(Path("out"), "w").identity(sampler) if key.startswith("model.")} == {
        f"model.{key}"
        for key in (
            "num_layers", "width", "num_heads", "num_kv_heads", "head_dim", "ffn_width", "norm_eps", "rope_theta",
            "qk_norm", "mask_documents", "dtype",
        )
    }  # fmt: skip
