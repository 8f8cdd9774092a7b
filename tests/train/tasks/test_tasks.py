"""A task is one file and one line: one of the tests, whose chunks count as much as the data says of each."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from jpeglm.core import config as config_lib
from jpeglm.core import sharding
from jpeglm.core.errors import InputError
from jpeglm.core.ranges import real
from jpeglm.core.registry import MODELS, TASKS
from jpeglm.data import batches
from jpeglm.models import networks
from jpeglm.models.loss import cross_entropy
from jpeglm.train.step import batch_shapes, build_programs
from jpeglm.train.tasks.lm import LanguageModelling
from tests.tiny_config import get_config


class Shares(batches.Chunks):
    def batch(self, indices):
        return super().batch(indices) | {"share": np.array([index % 3 if index >= 0 else 0 for index in indices])}


@dataclasses.dataclass(frozen=True)
class ByShare(LanguageModelling):
    SECTION = {"temperature": (1.0, real(above=0))}

    temperature: float

    @classmethod
    def of(cls, config):
        return cls(config.data.seq_len, config.optim.z_loss, config.task.temperature)

    @property
    def arrays(self):
        return super().arrays | {"share": ((), np.int32)}

    def data(self, path, split, model):
        return Shares(path, split, self.seq_len, model.mask_documents)

    def weight(self, batch):
        return (batch["loss_weights"] * batch["share"][:, None]).sum()

    def make_loss(self, graphdef):
        def loss(params, batch, total_weight):
            logits = nnx.merge(graphdef, params)(batch["tokens"], batch["positions"], batch["segment_ids"])
            nll, _ = cross_entropy(logits / self.temperature, batch["targets"])
            value = jnp.sum(nll * batch["loss_weights"] * batch["share"][:, None]) / total_weight
            return value, value

        return loss


@pytest.fixture
def config(monkeypatch) -> ConfigDict:
    monkeypatch.setitem(TASKS.kinds, "by_share", ByShare)
    config = get_config()
    config.task = ConfigDict(TASKS.defaults("by_share"))
    config.task.temperature = 2.0
    config.optim.accumulate = 2
    return config


def test_a_task_brings_its_arrays_its_weights_and_its_loss(config, tiny_data):
    mesh, model, task = sharding.make_mesh({}, jax.devices()[:1]), MODELS.of(config), TASKS.of(config)
    local = task.data(tiny_data, "train", model).batch(range(8))
    batch = sharding.global_batch(local, np.arange(8), sharding.batch_sharding(mesh), 8)
    shapes = batch_shapes(task, 8, mesh)
    assert {name: x.shape for name, x in batch.items()} == {name: x.shape for name, x in shapes.items()}
    with jax.set_mesh(mesh):
        programs = build_programs(config, mesh)
        state = programs.new_state()
        logits = nnx.merge(networks.abstract(model)[0], state["params"])(
            local["tokens"], local["positions"], local["segment_ids"]
        )
        nll, _ = cross_entropy(logits / 2, local["targets"])
        weights = local["loss_weights"] * local["share"][:, None]
        total, count = jax.device_get(programs.eval_step(state["params"], batch))
        _, scalars = programs.train_step(state, batch)
    expected = float((nll * weights).sum() / weights.sum())
    assert expected != pytest.approx(
        float((nll * local["loss_weights"]).sum() / local["loss_weights"].sum()), rel=1e-6
    )
    assert float(scalars["loss"]) == pytest.approx(expected, rel=1e-5)
    assert count == weights.sum() and total / count == pytest.approx(expected, rel=1e-5)


def test_its_section_is_checked_and_comes_back_from_json(config):
    assert config_lib.parse("config.json", config_lib.to_json(config)).to_dict() == config.to_dict()
    config.task.temperature = 0.0
    with pytest.raises(InputError, match=r"^config\.task\.temperature=0\.0: a finite number above 0$"):
        config_lib.check(config)
