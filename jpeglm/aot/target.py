"""Target machines, which need not be available: a TPU slice as libtpu describes it, or a number of GPUs."""

import dataclasses
import math
import os

import jax
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from jpeglm.core import hardware, libtpu, sharding
from jpeglm.core.errors import InputError
from jpeglm.core.hardware import Chip

LIBTPU = {  # environment variables with which libtpu does not look for a TPU and can be loaded twice
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
}


@dataclasses.dataclass(frozen=True)
class Target:
    """The machine that a topology names.

    Attributes:
      name: the topology, such as "v5p:4x4x4" or "h100:32", and the number of slices if there are several.
      chip: its kind of chip.
      num_chips: of all slices together.
      devices: libtpu's descriptions of the devices, which need not exist; empty for GPUs.
      slices: number of TPU slices.
    """

    name: str
    chip: Chip
    num_chips: int
    devices: list[jax.Device]
    slices: int = 1

    def mesh(self, sizes: ConfigDict) -> Mesh | AbstractMesh:
        """The mesh of these axis sizes; for GPUs an abstract mesh. Raises InputError if the sizes do not fit."""
        if self.devices:
            return sharding.make_mesh(sizes, self.devices)
        shape = sharding.mesh_shape(sizes, self.num_chips)
        return AbstractMesh(tuple(shape), sharding.MESH_AXES, axis_types=sharding.AUTO)


def describe(topology: str, slices: int = 1, dcn_bandwidth: float | None = None) -> Target:
    """Describes a machine that need not be available.

    Args:
      topology: CHIP:SHAPE of a TPU slice, or CHIP:NUMBER of GPUs.
      slices: number of slices of that shape.
      dcn_bandwidth: GB/s (1e9 bytes) that a chip can send to other slices; None takes the maker's figure.

    Raises:
      InputError: there is no such chip or slice, libtpu is missing, or an argument is out of its range.
    """
    name, _, shape = topology.partition(":")
    chip = next((chip for chip in hardware.CHIPS if chip.name == name), None)
    if chip is None or not shape:
        names = ", ".join(chip.name for chip in hardware.CHIPS)
        raise InputError(f"--topology={topology}: CHIP:SHAPE, as v5p:4x4x4 or h100:32; CHIP is one of {names}")
    if dcn_bandwidth is not None:
        if slices == 1 or not 0 < dcn_bandwidth < math.inf:
            raise InputError(f"--dcn_bandwidth={dcn_bandwidth}: GB/s of a chip, above 0, with --slices of 2 or more")
        chip = dataclasses.replace(chip, dcn=1e9 * dcn_bandwidth)
    if not chip.is_tpu:
        if not shape.isdecimal() or int(shape) < 1 or slices != 1:
            raise InputError(f"--topology={topology}: of GPUs their number, as {name}:32, and no slices")
        return Target(topology, chip, int(shape), [])
    devices = _describe_tpu(topology, slices)
    chips = slices * math.prod(map(int, shape.split("_")[0].split("x")))  # 4x4x8_twisted is a shape, too
    if len(devices) != chips:  # on v4, where a real slice runs two cores as one device
        raise InputError(f"--topology={topology}: libtpu describes {chips} chips as {len(devices)} devices")
    return Target(topology + (f" x {slices} slices" if slices > 1 else ""), chip, len(devices), devices, slices)


def _describe_tpu(topology: str, slices: int) -> list[jax.Device]:
    os.environ.update(LIBTPU | os.environ)
    libtpu.set_flags()
    from jax.experimental import topologies

    options = {"num_slices": slices} if slices > 1 else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    except (RuntimeError, ValueError) as error:
        if "not installed" in str(error):
            raise InputError("the TPU's compiler is not here: pip install -r requirements-tpu.txt") from error
        raise InputError(f"--topology={topology}: {str(error).splitlines()[0]}") from error
