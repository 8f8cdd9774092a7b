"""The cost of compiled programs on one chip: the training step, prefill and decoding."""

import dataclasses
import math
import time

import jax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from ml_collections import ConfigDict

from jpeglm.aot import estimate, hlo
from jpeglm.aot.target import Target
from jpeglm.core import sharding
from jpeglm.core.errors import InputError
from jpeglm.core.registry import MODELS, TASKS
from jpeglm.models import networks
from jpeglm.sample.engine import Engine
from jpeglm.sample.settings import Settings
from jpeglm.train.memory import device_memory
from jpeglm.train.step import batch_shapes, build_programs


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one run of a compiled program on one chip.

    Attributes:
      held: bytes of arguments and results.
      temporary: additional bytes while it runs.
      sent: bytes sent over the network, by mesh axes; those sent to other slices are under hlo.SLICES.
      awaited: bytes of `sent` whose transfer does not overlap with computation.
      traffic: bytes read from and written to the chip's main memory.
      cache: of decoding, bytes of the caches; `traffic` counts all of them as read.
      seconds: time to compile.
    """

    held: float
    temporary: float
    sent: dict[str, float] = dataclasses.field(default_factory=dict)
    awaited: float = 0.0
    traffic: float = 0.0
    cache: float = 0.0
    seconds: float = 0.0

    @property
    def peak(self) -> float:
        """The most bytes of memory in use at once."""
        return self.held + self.temporary


def cost_of(lowered: jax.stages.Lowered, mesh: Mesh) -> Cost:
    """Compiles a program and determines its cost.

    Raises:
      InputError: it needs more memory than the chip has.
    """
    started = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        words = str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
        raise InputError(f"does not fit: {words}") from error
    seconds = time.monotonic() - started
    text = compiled.as_text()
    assert text is not None  # XLA's programs have one
    program = hlo.Program(text)
    held, temporary = device_memory(compiled)
    found = program.collectives(_one_slice(mesh))
    awaited = sum(collective.bytes * collective.times for collective in found if not collective.is_overlapped)
    return Cost(held, temporary, hlo.by_axis(found), awaited, program.memory_traffic(), seconds=seconds)


def _one_slice(mesh: Mesh) -> Mesh:
    """The part of a mesh that lies in its first slice. Only the axis "data" crosses slices."""
    data = mesh.devices.shape[0] // sharding.num_slices(list(mesh.devices.flat))
    return Mesh(mesh.devices[:data], mesh.axis_names, axis_types=mesh.axis_types)


def train_cost(config: ConfigDict, target: Target) -> Cost:
    """The cost of one step of `jpeglm.train`; for GPUs only the memory, which is estimated.

    Raises:
      InputError: config and mesh do not fit, or the step does not fit the memory.
    """
    mesh = target.mesh(config.mesh)
    programs = build_programs(config, mesh)  # before the mesh is set, because nothing can run on absent devices
    if isinstance(mesh, AbstractMesh):
        return Cost(*estimate.train_step(config, mesh, programs.abstract_state))
    batch = batch_shapes(TASKS.of(config), config.optim.batch_size, mesh)
    with jax.set_mesh(mesh):
        lowered = programs.train_step.lower(programs.abstract_state, batch)
    return cost_of(lowered, mesh)


def sampling_engine(config: ConfigDict, target: Target, slots: int) -> tuple[Engine, Mesh]:
    """An engine and its mesh that sample data.seq_len tokens, as `jpeglm.sample --nogrammar` does.

    Parameters are shapes without values. The grammar is left out, because it would need a tokenizer; with 320 tokens
    its tables take 36 MiB more on each device.
    """
    model = MODELS.of(config)
    mesh = sharding.inference_mesh(model.tensor_parallelism, True, target.devices)
    params = nnx.to_pure_dict(networks.abstract(model)[1])
    return Engine(model, params, mesh, Settings(config.data.seq_len, 1.0, 40, 0.9, slots), eos=2), mesh


def prefill_cost(config: ConfigDict, target: Target, slots: int) -> Cost:
    """The cost of prefilling the longest prompt."""
    engine, mesh = sampling_engine(config, target, slots)
    return cost_of(engine.lower_prefill(config.data.seq_len - 1), mesh)


def decode_cost(config: ConfigDict, target: Target, slots: int) -> Cost:
    """The cost of one decoding step with full caches."""
    engine, mesh = sampling_engine(config, target, slots)
    caches = jax.eval_shape(lambda: engine.weights[0].empty_caches(slots, config.data.seq_len))
    layout = NamedSharding(mesh, sharding.spec(engine.weights[0].CACHE_AXES))
    cache = sum(math.prod(layout.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(caches))
    return dataclasses.replace(cost_of(engine.lower_step(), mesh), cache=cache)


def sampling_peak(prefill: Cost, step: Cost) -> float:
    """The most bytes in use at once while sampling.

    `step.held` has the weights and the caches, which both programs use. The temporary memory of a prefill does not
    depend on the number of slots, so `prefill` may be compiled for another number.
    """
    return step.held + max(step.temporary, prefill.temporary)
