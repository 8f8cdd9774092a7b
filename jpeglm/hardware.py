"""What the makers say of their accelerators: dense bf16 FLOP/s, memory and bandwidths of one chip."""

import dataclasses

import jax

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
      name: as `jpeglm.aot --topology` and people call it.
      kind: how the device's own `device_kind` begins, after the maker's name.
      flops: multiply-adds in bf16 a second, times two.
      memory: bytes that a program can have. Of TPUs what libtpu 0.0.42 says when a program asks for more, of GPUs
        three quarters of the card, JAX's share (XLA_PYTHON_CLIENT_MEM_FRACTION).
      bandwidth: bytes a second between a chip and its memory.
      network: bytes a second that a chip can send over all its links to its neighbours together (ICI, NVLink).
    """

    name: str
    kind: str
    flops: float
    memory: float
    bandwidth: float
    network: float

    @property
    def is_tpu(self) -> bool:
        return self.kind.startswith("TPU")


# From the makers' data sheets; where one `kind` begins another, the longer stands first.
CHIPS = (
    Chip("v4", "TPU v4", 275e12, 31.25 * GIB, 1228e9, 300e9),
    Chip("v5e", "TPU v5 lite", 197e12, 15.75 * GIB, 819e9, 200e9),
    Chip("v5e", "TPU v5e", 197e12, 15.75 * GIB, 819e9, 200e9),
    Chip("v5p", "TPU v5", 459e12, 95.74 * GIB, 2765e9, 600e9),
    Chip("v6e", "TPU v6", 918e12, 31.25 * GIB, 1640e9, 400e9),
    Chip("a100-40gb", "A100-SXM4-40GB", 312e12, 0.75 * 40 * GIB, 1555e9, 300e9),
    Chip("a100", "A100", 312e12, 0.75 * 80 * GIB, 2039e9, 300e9),
    Chip("h100-pcie", "H100 PCIe", 756e12, 0.75 * 80 * GIB, 2000e9, 64e9),
    Chip("h100-nvl", "H100 NVL", 835e12, 0.75 * 94 * GIB, 3900e9, 300e9),
    Chip("h100", "H100", 989e12, 0.75 * 80 * GIB, 3350e9, 450e9),
    Chip("h200", "H200", 989e12, 0.75 * 141e9, 4800e9, 450e9),
)


def chip_of(device: jax.Device) -> Chip | None:
    """The chip that a device is, or None where it is not known (a CPU)."""
    return next((chip for chip in CHIPS if chip.kind in device.device_kind), None)


def peak_flops(device: jax.Device) -> float | None:
    """FLOP/s of one device in bf16, or None where it is not known."""
    chip = chip_of(device)
    return chip and chip.flops
