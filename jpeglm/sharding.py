"""The mesh, and the only table from logical axes to mesh axes.

The model names the axes of its arrays in the field's terms ("embed", "heads", ...); this table alone says over which
mesh axes each of them is spread:

    data     replicas of the parameters (across slices or nodes)
    fsdp     parameters, optimiser state and the batch
    context  the sequence
    tensor   heads, feed-forward width and vocabulary
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jpeglm.errors import InputError

MESH_AXES = ("data", "fsdp", "context", "tensor")

RULES: dict[str, str | tuple[str, ...] | None] = {
    # activations
    "batch": ("data", "fsdp"),
    "sequence": "context",
    # parameters
    "layers": None,
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "ffn": "tensor",
    "norm": None,
}


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices; at most one size may be -1: what the others leave.

    Raises InputError where the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [int(sizes[axis]) for axis in MESH_AXES]
    wanted = ", ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, shape, strict=True))
    if any(size < 1 and size != -1 for size in shape) or shape.count(-1) > 1:
        raise InputError(f"mesh: sizes are positive and at most one is -1, got {wanted}")
    if -1 in shape:
        shape[shape.index(-1)] = max(1, len(devices) // -math.prod(shape))
    if math.prod(shape) != len(devices):
        raise InputError(f"mesh: {wanted} does not fit {len(devices)} device(s)")
    return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices)


def spec(axes: Sequence[str | None]) -> PartitionSpec:
    """The partition of an array whose dimensions carry these logical names (None: not spread)."""
    return PartitionSpec(*(RULES[axis] if axis else None for axis in axes))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins the layout of an activation to its logical axes; does nothing where no mesh is set."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes))


def parameter_shardings(abstract: nnx.State, mesh: Mesh) -> Any:
    """Shardings of the parameters, as the pure dict `nnx.to_pure_dict` gives.

    Each `nnx.Param` carries its logical `axes`; a parameter stacked over layers has one leading dimension more.
    Raises InputError where a dimension does not divide over its mesh axes.
    """

    def sharding(path: Any, variable: nnx.Variable) -> nnx.Variable:
        shape = variable.get_value().shape
        axes = variable.get_metadata("axes")
        axes = ("layers",) * (len(shape) - len(axes)) + tuple(axes)
        for axis, size in zip(axes, shape, strict=True):
            parts = num_parts(mesh, axis)
            if size % parts:
                name = jax.tree_util.keystr(path)
                raise InputError(f"mesh: {name} has {axis}={size}, which does not divide over {parts} devices")
        return variable.replace(NamedSharding(mesh, spec(axes)))

    is_variable = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
    return nnx.to_pure_dict(jax.tree_util.tree_map_with_path(sharding, abstract, is_leaf=is_variable))


def is_spread(axis: str) -> bool:
    """Whether a logical axis is spread over more than one device of the mesh that is set."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and num_parts(mesh, axis) > 1


def num_parts(mesh: Mesh | AbstractMesh, axis: str) -> int:
    """Over how many devices a logical axis is spread."""
    names = RULES[axis] or ()
    return math.prod(mesh.shape[name] for name in ((names,) if isinstance(names, str) else names))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The layout of a batch [batch, sequence]."""
    return NamedSharding(mesh, spec(("batch", "sequence")))


def local_rows(sharding: NamedSharding, shape: tuple[int, int]) -> np.ndarray:
    """Rows of a global batch that this process's devices hold, ascending.

    Where `context` or `tensor` runs across processes, several of them need the same rows.
    """
    slices = [index[0] for index in sharding.addressable_devices_indices_map(shape).values()]
    return np.unique(np.concatenate([np.arange(shape[0])[rows] for rows in slices]))


def global_batch(
    local: Mapping[str, np.ndarray], rows: np.ndarray, sharding: NamedSharding, batch_size: int
) -> dict[str, jax.Array]:
    """Global arrays [batch_size, seq_len] out of the rows that this process read."""
    place = np.full(batch_size, -1)
    place[rows] = np.arange(len(rows))

    def assemble(array: np.ndarray) -> jax.Array:
        shape = (batch_size, array.shape[1])
        return jax.make_array_from_callback(shape, sharding, lambda index: array[place[index[0]], index[1]])

    return {name: assemble(array) for name, array in local.items()}
