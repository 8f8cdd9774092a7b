"""Bytes of a training step on one device by shape arithmetic, where no compiler for the device can be asked."""

import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from jpeglm import sharding
from jpeglm.model.llama import LlamaConfig


def state_bytes(state: dict[str, Any]) -> dict[str, int]:
    """Bytes of one device's shards of each part of a state, given as shapes with their layouts."""

    def shard(x: jax.ShapeDtypeStruct) -> int:
        return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize

    return {name: sum(map(shard, jax.tree.leaves(part))) for name, part in state.items()}


def train_step(config: ConfigDict, mesh: Mesh | AbstractMesh, state: dict[str, Any]) -> tuple[float, float]:
    """Bytes on each device for the state, and what a step needs beside it for a while.

    The second is the gradients (float32; with accumulation their sums, too); what remat keeps of each layer; all
    activations of one layer with their gradients; the gathered matrices of two layers, one in use and one on its way;
    and the logits, three times in float32. What a compiler adds (copies into other layouts, scratch) is not known.
    """
    model = LlamaConfig.of(config)
    tokens = config.optim.batch_size // config.optim.accumulate * config.data.seq_len
    tokens //= sharding.num_parts(mesh, "batch") * sharding.num_parts(mesh, "sequence")
    tensor = sharding.num_parts(mesh, "heads")
    size = 2 if model.dtype == "bfloat16" else 4
    mixed = model.num_heads * model.head_dim / tensor  # width of what attention gives on one device
    keys = model.num_kv_heads * model.head_dim / tensor
    # Residual stream and its norms; queries and keys before and after rotation, values; gate, up and their product.
    layer = size * (5 * model.width + 3 * mixed + 3 * keys + 3 * model.ffn_width / tensor)
    kept = {"full": size * model.width, "attention": size * (model.width + mixed), "none": layer}[model.remat]
    matrices = model.width * (2 * mixed + 2 * keys + 3 * model.ffn_width / tensor)
    gathered = size * matrices * (model.num_layers if model.remat == "none" else 2)
    logits = 3 * 4 * model.padded_vocab_size / tensor
    held = state_bytes(state)
    grads = held["params"] * (2 if config.optim.accumulate > 1 else 1)
    step = grads + tokens * (model.num_layers * kept + 2 * layer + logits) + gathered
    return sum(held.values()), step
