"""Estimates the bytes of a training step on one device from shapes, for devices without an offline compiler."""

import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from jpeglm.core import sharding
from jpeglm.core.registry import MODELS


def state_bytes(state: dict[str, Any]) -> dict[str, int]:
    """Bytes of one device's shards, for each part of a state. The leaves of `state` are shapes with shardings."""

    def shard(x: jax.ShapeDtypeStruct) -> int:
        return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize

    return {name: sum(map(shard, jax.tree.leaves(part))) for name, part in state.items()}


def train_step(config: ConfigDict, mesh: Mesh | AbstractMesh, state: dict[str, Any]) -> tuple[float, float]:
    """Bytes on each device for the state, and the temporary bytes of a step.

    The temporary bytes are the gradients (float32; with accumulation also their sums) plus `Model.step_bytes`. What a
    compiler adds (layout copies, scratch memory) is not included.
    """
    tokens = config.optim.batch_size // config.optim.accumulate * config.data.seq_len
    tokens //= sharding.num_parts(mesh, "batch") * sharding.num_parts(mesh, "sequence")
    held = state_bytes(state)
    grads = held["params"] * (2 if config.optim.accumulate > 1 else 1)
    return sum(held.values()), grads + MODELS.of(config).step_bytes(tokens, sharding.num_parts(mesh, "heads"))
