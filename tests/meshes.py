"""Loss and gradients of one small model on meshes of eight CPU devices, and what one device bears at the start.

    python -m tests.meshes '[[1, 8, 1, 1], [2, 2, 2, 1], ...]' ['{"quantise": "int8"}']

The second argument changes the model. Meshes as sizes of data, fsdp, context and tensor. Prints JSON: for each mesh
the difference of its loss from that on one device, and the name and error of the gradient furthest off, in shares of
its largest value; and `start()`.
"""

import dataclasses
import itertools
import json
import math
import sys

import jax
import numpy as np
from flax import nnx

from jpeglm.core import sharding
from jpeglm.models import llama, networks
from jpeglm.models.loss import make_loss
from jpeglm.train.optimizer import make_optimizer, make_schedule, state_shardings
from tests.tiny_config import get_config

ALL = [sizes for sizes in itertools.product((1, 2, 4, 8), repeat=4) if math.prod(sizes) == 8]
MODEL = llama.LlamaConfig(
    vocab_size=320, num_layers=2, width=64, num_heads=8, num_kv_heads=8, head_dim=8, ffn_width=128, qk_norm=True,
    mask_documents=True,
)  # fmt: skip
BATCH, LENGTH = 8, 64


def mesh_of(sizes):
    return sharding.make_mesh(dict(zip(sharding.MESH_AXES, sizes, strict=True)), jax.devices()[: math.prod(sizes)])


def batch():
    """Rows of ragged documents as the pipeline gives them."""
    random = np.random.default_rng(0)
    tokens = random.integers(0, MODEL.vocab_size, (BATCH, LENGTH + 1))
    segments = 1 + np.cumsum(random.random((BATCH, LENGTH)) < 0.05, axis=1)
    starts = np.stack([np.searchsorted(row, row) for row in segments])
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "loss_weights": random.random((BATCH, LENGTH), np.float32),
        "segment_ids": segments,
        "positions": np.arange(LENGTH) - starts,
    }


def loss_and_grads(sizes, params):
    mesh = mesh_of(sizes)
    graphdef, model = networks.abstract(MODEL)
    layout = sharding.parameter_shardings(model, mesh)
    loss = make_loss(graphdef, z_loss=1e-3)
    with jax.set_mesh(mesh):
        spread = sharding.global_batch(batch(), np.arange(BATCH), sharding.batch_sharding(mesh), BATCH)
        run = jax.jit(jax.value_and_grad(loss, has_aux=True), out_shardings=(None, layout))
        (total, _), grads = run(jax.device_put(params, layout), spread, np.float32(BATCH * LENGTH / 2))
    return float(total), jax.tree.map(np.asarray, grads)


def compare(meshes):
    params = jax.tree.map(np.asarray, jax.jit(lambda: networks.init(MODEL, 0))())
    one, expected = loss_and_grads((1, 1, 1, 1), params)
    for sizes in meshes:
        loss, grads = loss_and_grads(sizes, params)
        errors = jax.tree.map(lambda a, b: float(np.abs(a - b).max() / np.abs(b).max()), grads, expected)
        worst = max((error, jax.tree_util.keystr(path)) for path, error in jax.tree_util.tree_leaves_with_path(errors))
        yield {"mesh": sizes, "loss": loss, "loss_error": abs(loss - one), "worst": worst}


def start():
    """Parameters and moments of a model of 14M on fsdp=8, made in one program.

    Gives the bytes of the whole state, the bytes that the program takes on each device, and the names of arrays of
    which some device holds more than an eighth.
    """
    model_config = llama.LlamaConfig(
        vocab_size=1024, num_layers=4, width=512, num_heads=8, num_kv_heads=8, head_dim=64, ffn_width=1408
    )
    mesh = mesh_of((1, 8, 1, 1))
    abstract = networks.abstract(model_config)[1]
    config = get_config()
    optimizer = make_optimizer(config.optim, make_schedule(config.optim, config.steps), networks.decayed(abstract))
    params = sharding.parameter_shardings(abstract, mesh)
    moments = state_shardings(optimizer, nnx.to_pure_dict(abstract), params, mesh)

    def make():
        fresh = networks.init(model_config, 0)
        return fresh, optimizer.init(fresh)

    with jax.set_mesh(mesh):
        program = jax.jit(make, out_shardings=(params, moments)).lower().compile()
        state = program()
    memory = program.memory_analysis()
    leaves = jax.tree_util.tree_leaves_with_path(state)
    too_large = [
        jax.tree_util.keystr(path)
        for path, array in leaves
        if array.ndim and any(8 * shard.data.nbytes > array.nbytes for shard in array.addressable_shards)
    ]
    return {
        "state": sum(array.nbytes for _, array in leaves),
        "device": memory.temp_size_in_bytes + memory.output_size_in_bytes,
        "arrays": sum(array.ndim > 0 for _, array in leaves),
        "too_large": too_large,
    }


if __name__ == "__main__":
    MODEL = dataclasses.replace(MODEL, **json.loads(sys.argv[2] if len(sys.argv) > 2 else "{}"))
    print(json.dumps({"meshes": list(compare(json.loads(sys.argv[1]))), "start": start()}))
