"""One optimiser step of a run as programs to compile, before any array exists.

`jpeglm.train` runs them; `jpeglm.aot` compiles them for machines that are not here.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from jpeglm.core import sharding
from jpeglm.core.errors import InputError
from jpeglm.core.registry import MODELS, TASKS
from jpeglm.models import networks
from jpeglm.train.optimizer import make_optimizer, make_schedule, state_shardings
from jpeglm.train.tasks import Task

Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Programs:
    """The programs of a run. A state is {"params": ..., "opt_state": ...}, sharded over the mesh.

    Attributes:
      train_step: (state, batch) -> (state, scalars: loss, grad_norm, param_norm); the old state is donated.
      eval_step: (params, batch) -> (the task's loss summed over the batch, the sum of its weights).
      new_state: () -> state.
      state_from: (params) -> state, with a fresh optimiser; `params` are donated.
      abstract_state: shapes, dtypes and layouts of a state.
      schedule: the learning rate by step.
    """

    train_step: Any
    eval_step: Any
    new_state: Any
    state_from: Any
    abstract_state: dict[str, Any]
    schedule: optax.Schedule


def build_programs(config: ConfigDict, mesh: Mesh | AbstractMesh) -> Programs:
    """The programs of a run on a mesh, not compiled yet. Lower and run them with that mesh set.

    Raises:
      InputError: config and mesh do not fit.
    """
    sharding.check_divides(config, mesh)
    model, task = MODELS.of(config), TASKS.of(config)
    if sharding.num_parts(mesh, "sequence") > 1 and not model.SPREADS_SEQUENCE:
        raise InputError(f"mesh.context: the model {config.model.name} cannot spread the sequence over devices")
    graphdef, abstract_model = networks.abstract(model)
    abstract_params = nnx.to_pure_dict(abstract_model)
    param_shardings = sharding.parameter_shardings(abstract_model, mesh)
    schedule = make_schedule(config.optim, config.steps)
    optimizer = make_optimizer(config.optim, schedule, networks.decayed(abstract_model))
    loss_of = task.make_loss(graphdef)
    accumulate = config.optim.accumulate

    def with_optimizer(params: Any) -> dict[str, Any]:
        return {"params": params, "opt_state": optimizer.init(params)}

    def train_step(state: dict[str, Any], batch: Batch) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        # Sums over microbatches are divided by the weight of the whole batch, so accumulation changes only rounding.
        total_weight = task.weight(batch)
        grad_of = jax.grad(lambda params, part: loss_of(params, part, total_weight), has_aux=True)

        def add(sums: Any, part: Batch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, grad_of(state["params"], part)), None

        if accumulate == 1:
            grads, loss = grad_of(state["params"], batch)
        else:
            zeros = (jax.tree.map(jnp.zeros_like, state["params"]), jnp.zeros(()))
            (grads, loss), _ = jax.lax.scan(add, zeros, microbatches(batch, accumulate))
        updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        # The norms cover all gradients and parameters, so that any non-finite number shows.
        norms = {"grad_norm": optax.global_norm(grads), "param_norm": optax.global_norm(params)}
        return {"params": params, "opt_state": opt_state}, {"loss": loss, **norms}

    def eval_step(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        _, loss = loss_of(params, batch, jnp.ones(()))
        return loss, task.weight(batch)

    shardings = {
        "params": param_shardings,
        "opt_state": state_shardings(optimizer, abstract_params, param_shardings, mesh),
    }
    shapes = jax.eval_shape(with_optimizer, abstract_params)
    return Programs(
        train_step=jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None)),
        eval_step=jax.jit(eval_step),
        # Created in its final layout: a large state would not fit on one device.
        new_state=jax.jit(lambda: with_optimizer(networks.init(model, config.seed)), out_shardings=shardings),
        state_from=jax.jit(with_optimizer, donate_argnums=0, out_shardings=shardings),
        abstract_state=sharding.laid_out(shapes, shardings),
        schedule=schedule,
    )


def batch_shapes(task: Task, batch_size: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a global batch, without data."""

    def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.batch_sharding(mesh, len(shape)))

    return {name: array((batch_size, *shape), dtype) for name, (shape, dtype) in task.arrays.items()}


def microbatches(batch: Batch, parts: int) -> Batch:
    """[batch, ...] -> [parts, batch / parts, ...]; strided, so that no rows move between devices."""
    return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
