"""Functions for the network of any model: shapes, fresh parameters, shardings, and weight decay."""

from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from jpeglm.core import sharding
from jpeglm.models import Model


def abstract(model: Model) -> tuple[nnx.GraphDef, nnx.State]:
    """A model without values: its graph, and its parameters as shapes with their metadata."""
    return nnx.split(nnx.eval_shape(lambda: model.network(nnx.Rngs(params=0))))


def init(model: Model, seed: int) -> Any:
    """Fresh parameters as a pure dict, the same for a seed on any mesh; to be called inside `jax.jit`."""
    return nnx.to_pure_dict(nnx.state(model.network(nnx.Rngs(params=seed))))


def laid_out(model: Model, mesh: Mesh) -> Any:
    """The parameters as shapes, dtypes and shardings on a mesh, as needed for restoring."""
    _, state = abstract(model)
    return sharding.laid_out(nnx.to_pure_dict(state), sharding.parameter_shardings(state, mesh))


def decayed(state: nnx.State) -> Any:
    """Whether weight decay applies to each parameter, as a pure dict of bools: all but those with `decay=False`."""
    is_variable = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
    decays = lambda variable: variable.replace(variable.get_metadata("decay", True))  # noqa: E731
    return nnx.to_pure_dict(jax.tree.map(decays, state, is_leaf=is_variable))
