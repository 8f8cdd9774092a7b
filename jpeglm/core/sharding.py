"""The mesh, and the only table from logical axes to mesh axes.

The model names the axes of its arrays in the field's terms ("embed", "heads", ...); this table alone maps them to mesh
axes, over which they are sharded:

    data     replicas of the parameters (across slices or nodes)
    fsdp     parameters, optimiser state and the batch
    context  the sequence
    tensor   heads, feed-forward width and vocabulary

A parameter has two layouts. It is stored sharded over fsdp, and `gather` collects it where it is used.

A sharded sequence is dealt out in stripes: member i of C holds stripes i and 2C-1-i of 2C, an early one and a late
one. Under a causal mask late queries attend to more keys, so contiguous parts would give the last member most of the
work. `global_batch` puts every array of a batch in this order. Token-wise layers are not affected by it, and attention
restores the natural order of its keys with `whole_sequence`.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from jpeglm.core.errors import InputError

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
}
AUTO = (AxisType.Auto,) * len(MESH_AXES)
STORED = "embed"  # sharded only while the parameter is stored


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices. A missing size is 1; at most one may be -1, which takes all remaining devices.

    Raises InputError if the sizes do not multiply to the number of devices, or do not fit the TPU's slices.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(sizes, len(devices))
    slices = num_slices(devices)
    if slices == 1:
        # Not jax.make_mesh: it does not allow a mesh axis that is a part of one axis of a TPU's torus.
        placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        placed = across_slices(shape, slices, devices)
    return Mesh(placed, MESH_AXES, axis_types=AUTO)


def mesh_shape(sizes: Mapping[str, int], num_devices: int) -> list[int]:
    """The sizes of MESH_AXES on `num_devices` devices; see `make_mesh`."""
    shape = [int(sizes.get(axis, 1)) for axis in MESH_AXES]
    wanted = ", ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, shape, strict=True))
    if any(size < 1 and size != -1 for size in shape) or shape.count(-1) > 1:
        raise InputError(f"mesh: sizes are positive and at most one is -1, got {wanted}")
    if -1 in shape:
        shape[shape.index(-1)] = max(1, num_devices // -math.prod(shape))
    if math.prod(shape) != num_devices:
        raise InputError(f"mesh: {wanted} does not fit {num_devices} device(s)")
    return shape


def inference_mesh(tensor_parallelism: int, is_batched: bool, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh for inference: the model on as many devices as divide `tensor_parallelism`, a batch on the rest."""
    devices = jax.devices() if devices is None else devices
    tensor = math.gcd(len(devices), tensor_parallelism)
    return make_mesh({"data": -1, "tensor": tensor}, devices if is_batched else devices[:tensor])


def num_slices(devices: Sequence[jax.Device]) -> int:
    """How many slices of a TPU the devices belong to.

    JAX counts each node of GPUs as a slice, but parameters are often sharded over nodes, so GPUs count as one slice
    here and stay in JAX's order, node by node.
    """
    if devices[0].platform != "tpu":
        return 1
    # devices of a single slice may have no slice_index
    return len({getattr(device, "slice_index", 0) for device in devices})


def across_slices(shape: Sequence[int], slices: int, devices: Sequence[jax.Device]) -> np.ndarray:
    """Devices as an array of `shape`, slice after slice along `data`, the axis with the least traffic.

    Raises InputError if `data` is not a multiple of the number of slices.
    """
    data, *rest = shape
    if data % slices:
        raise InputError(f"mesh: data={data} is no multiple of the {slices} slices of this TPU")
    within, between = (data // slices, *rest), (slices, 1, 1, 1)
    return mesh_utils.create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=True)


def spec(axes: Sequence[str | None]) -> PartitionSpec:
    """The partition of an array whose dimensions have these logical names (None: not sharded)."""
    return PartitionSpec(*(RULES[axis] if axis else None for axis in axes))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrains the layout of an activation to its logical axes; does nothing without a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes))


def gather(x: jax.Array, dtype: Any, *axes: str | None) -> jax.Array:
    """A float32 parameter as it is used: in `dtype`, gathered over the devices that store it.

    It is cast before the all-gather, so that only the narrower dtype is sent. Its gradient is scattered back to the
    stored layout. Without a mesh it is only cast.
    """
    x = x.astype(dtype)
    return x if jax.sharding.get_abstract_mesh().empty else _gather(axes, x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gather(axes: tuple[str | None, ...], x: jax.Array) -> jax.Array:
    return constrain(x, *(None if axis == STORED else axis for axis in axes))


def _scatter(axes: tuple[str | None, ...], _: None, gradient: jax.Array) -> tuple[jax.Array]:
    # A sum over the batch, of which each device keeps a part: a reduce-scatter. If only the second layout were given,
    # the compiler would move activations instead, to compute each part where it is kept. The sum has the dtype of the
    # product: a cast here would come after it.
    return (constrain(_gather(axes, gradient), *axes),)


_gather.defvjp(lambda axes, x: (_gather(axes, x), None), _scatter)


def parameter_shardings(abstract: nnx.State, mesh: Mesh | AbstractMesh) -> Any:
    """Shardings of the parameters, as a pure dict like that of `nnx.to_pure_dict`.

    Each `nnx.Param` has its logical `axes`; a parameter stacked over layers has one more leading dimension. Raises
    InputError if a dimension does not divide over its mesh axes.
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


def laid_out(shapes: Any, shardings: Any) -> Any:
    """Shapes and dtypes with their layouts, as needed for restoring."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def is_spread(axis: str) -> bool:
    """Whether a logical axis is sharded over more than one device of the current mesh."""
    return parts(axis) > 1


def parts(axis: str) -> int:
    """The number of devices of the current mesh over which a logical axis is sharded; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else num_parts(mesh, axis)


def num_parts(mesh: Mesh | AbstractMesh, axis: str) -> int:
    """The number of devices over which a logical axis is sharded."""
    names = RULES[axis] or ()
    return math.prod(mesh.shape[name] for name in ((names,) if isinstance(names, str) else names))


def platform() -> str:
    """cpu, gpu or tpu: the devices of the current mesh, which need not be in this machine."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def layout(*axes: str | None) -> NamedSharding | None:
    """The sharding of an array with these logical axes on the current mesh; None without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else NamedSharding(mesh, spec(axes))


def per_device(function: Callable[..., jax.Array], in_axes: Sequence[Any], out_axes: Sequence[str | None]) -> Any:
    """`function`, run by each device on its own shards, for kernels that the compiler cannot partition.

    Args:
      function: takes arrays, returns one.
      in_axes: for each argument its logical axes, or the partitions of a pytree's leaves, as from `spec`.
      out_axes: logical axes of the result.

    A dimension that does not divide (one prompt over many devices) is replicated.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function

    def run(*arguments: Any) -> jax.Array:
        named = [(axes, x.shape) for axes, x in zip(in_axes, arguments, strict=True) if isinstance(axes, tuple)]
        whole = {a for axes, shape in named for a, n in zip(axes, shape, strict=True) if a and n % num_parts(mesh, a)}
        spread = lambda axes: spec([None if axis in whole else axis for axis in axes])  # noqa: E731
        in_specs = tuple(spread(axes) if isinstance(axes, tuple) else axes for axes in in_axes)
        return jax.shard_map(function, in_specs=in_specs, out_specs=spread(out_axes), check_vma=False)(*arguments)

    return run


def member(axis: str) -> jax.Array:
    """Inside `per_device`: the index of this device's part of a logical axis."""
    return jax.lax.axis_index(RULES[axis])


def whole_sequence(x: jax.Array, dim: int) -> jax.Array:
    """Inside `per_device`: all-gathers a sharded sequence into natural order along `dim`."""
    early, late = jnp.split(jax.lax.all_gather(x, RULES["sequence"], axis=0), 2, axis=dim + 1)
    stripes = jnp.concatenate([early, late[::-1]])  # [2C, ..., stripe, ...]
    shape = (*x.shape[:dim], -1, *x.shape[dim + 1 :])
    return jnp.moveaxis(stripes, 0, dim).reshape(shape)


def dealt_order(length: int, members: int) -> np.ndarray:
    """Positions [length] in the chunk, in the order in which the members of a sharded sequence hold the tokens."""
    if members == 1:
        return np.arange(length)
    stripes = np.arange(length).reshape(2 * members, -1)
    return np.stack([stripes[:members], stripes[: members - 1 : -1]], axis=1).reshape(-1)


def check_divides(config: ConfigDict, mesh: Mesh | AbstractMesh) -> None:
    """Checks that batch and sequence divide over the mesh; `parameter_shardings` checks the parameters.

    Raises InputError that names the keys to change and values that would fit.
    """
    batch_size, accumulate = config.optim.batch_size, config.optim.accumulate
    members = num_parts(mesh, "batch")
    if batch_size % (accumulate * members):
        raise InputError(
            f"optim.batch_size={batch_size} does not divide into optim.accumulate={accumulate} microbatches "
            f"over {members} devices (mesh data x fsdp): {_what_divides(batch_size, accumulate, members)}"
        )
    members = num_parts(mesh, "sequence")
    if members > 1 and config.data.seq_len % (2 * members):
        raise InputError(
            f"data.seq_len={config.data.seq_len} does not divide into two stripes for each of mesh.context={members}"
        )


def microbatches_that_fit(batch_size: int, members: int) -> list[int]:
    """The values of optim.accumulate with which a batch divides over `members` devices, ascending; may be empty."""
    each, rest = divmod(batch_size, members)
    return [] if rest else [parts for parts in range(1, each + 1) if each % parts == 0]


def _what_divides(batch_size: int, accumulate: int, members: int) -> str:
    """Describes the changes of a single key that would make the batch fit."""
    fitting = ", ".join(map(str, microbatches_that_fit(batch_size, members)))
    unit = accumulate * members
    sizes = ", ".join(str(size) for size in (batch_size // unit * unit, (batch_size // unit + 1) * unit) if size)
    with_accumulate = f"with this optim.accumulate, optim.batch_size={sizes} or another multiple of {unit}"
    if not fitting:
        return f"no optim.accumulate fits; {with_accumulate}"
    return f"optim.accumulate={fitting} fits; {with_accumulate}"


def batch_sharding(mesh: Mesh | AbstractMesh, ndim: int = 2) -> NamedSharding:
    """The layout of an array of a batch: [batch, sequence], or [batch] alone."""
    return NamedSharding(mesh, spec(("batch", "sequence")[:ndim]))


def local_rows(sharding: NamedSharding, shape: tuple[int, int]) -> np.ndarray:
    """The rows of a global batch that this process's devices hold, ascending.

    If `context` or `tensor` runs across processes, several of them need the same rows.
    """
    indices = sharding.addressable_devices_indices_map(shape).values()
    return np.unique(np.concatenate([np.arange(shape[0])[index[0]] for index in indices if index]))


def global_batch(
    local: Mapping[str, np.ndarray], rows: np.ndarray, sharding: NamedSharding, batch_size: int
) -> dict[str, jax.Array]:
    """Makes global arrays [batch_size, seq_len] or [batch_size] from the rows that this process read.

    A sharded sequence is in dealt order. `sharding`: of the arrays with a sequence.

    Each device takes its columns from rows that are already on this host, so the reordering needs no communication.
    """
    place = np.full(batch_size, -1)
    place[rows] = np.arange(len(rows))

    def assemble(array: np.ndarray) -> jax.Array:
        has_sequence = array.ndim > 1
        order = dealt_order(array.shape[1], num_parts(sharding.mesh, "sequence")) if has_sequence else None

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index  # every device of the mesh holds a part
            found = place[index[0]]
            return array[found] if order is None else array[np.ix_(found, order[index[1]])]

        layout = sharding if has_sequence else batch_sharding(sharding.mesh, 1)
        return jax.make_array_from_callback((batch_size, *array.shape[1:]), layout, part)

    return {name: assemble(array) for name, array in local.items()}
