"""AdamW with warm-up, cosine decay and clipping."""

from typing import Any

import jax
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from jpeglm.core.errors import InputError


def make_schedule(config: ConfigDict, steps: int) -> optax.Schedule:
    """Learning rate of step 0, 1, ...: linear warm-up to `lr` at `warmup_steps`, cosine to `lr * final_lr_ratio`."""
    if not 0 <= config.warmup_steps < steps:
        raise InputError(f"optim.warmup_steps={config.warmup_steps} does not lie in 0..steps-1={steps - 1}")
    return optax.warmup_cosine_decay_schedule(
        init_value=config.lr / (config.warmup_steps + 1),  # not 0: the first step must change something
        peak_value=config.lr,
        warmup_steps=config.warmup_steps,
        decay_steps=steps,
        end_value=config.lr * config.final_lr_ratio,
    )


def make_optimizer(config: ConfigDict, schedule: optax.Schedule, decayed: Any) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW.

    `decayed`: whether weight decay applies to each parameter, as from `networks.decayed`.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay, mask=decayed
        ),
    )


def state_shardings(
    optimizer: optax.GradientTransformation, abstract_params: Any, param_shardings: Any, mesh: Mesh | AbstractMesh
) -> Any:
    """Moments are sharded like their parameters; counters are replicated."""
    replicated = NamedSharding(mesh, PartitionSpec())
    return optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, abstract_params),
        param_shardings,
        transform_non_params=lambda _: replicated,
    )
