"""Accelerators, from the vendors' data sheets: dense operations a second, memory and bandwidths of one chip."""

import dataclasses

import jax

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
      name: as in `jpeglm.aot --topology`.
      kinds: JAX's `device_kind` of such a device, each in full: a name that only begins or ends the same way (GH200,
        H20, a MIG share of a card) is another chip.
      flops: bf16 FLOP/s; a multiply-add counts as two.
      memory: bytes available to a program. For TPUs, the limit that libtpu 0.0.42 reports when a program needs more;
        for GPUs, three quarters of the card, JAX's default share (XLA_PYTHON_CLIENT_MEM_FRACTION).
      bandwidth: bytes a second between a chip and its memory.
      network: bytes a second that a chip can send over all its links to its neighbours together (ICI, NVLink).
      int8: int8 operations a second, dense; 0 if it has no such products.
      fp8: the same of fp8.
      dcn: bytes a second that a chip can send to other slices over the data-centre network; 0 if Google publishes
        none, and for GPUs, which have no slices. From docs.cloud.google.com/tpu/docs, pages v5e (6.4 Tbit/s for a pod
        of 256 chips), v5p (50 Gbit/s a chip) and v6e (25.6 Tbit/s for a pod of 256).
    """

    name: str
    kinds: tuple[str, ...]
    flops: float
    memory: float
    bandwidth: float
    network: float
    int8: float
    fp8: float = 0.0
    dcn: float = 0.0

    @property
    def is_tpu(self) -> bool:
        return self.kinds[0].startswith("TPU")


# From the vendors' data sheets.
CHIPS = (
    Chip("v4", ("TPU v4",), 275e12, 31.25 * GIB, 1228e9, 300e9, 275e12),
    Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 15.75 * GIB, 819e9, 200e9, 393e12, dcn=3.125e9),
    Chip("v5p", ("TPU v5", "TPU v5p"), 459e12, 95.74 * GIB, 2765e9, 600e9, 918e12, dcn=6.25e9),
    Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 31.25 * GIB, 1640e9, 400e9, 1836e12, dcn=12.5e9),
    Chip("a100-40gb", ("NVIDIA A100-SXM4-40GB",), 312e12, 0.75 * 40 * GIB, 1555e9, 300e9, 624e12),
    Chip("a100", ("NVIDIA A100-SXM4-80GB",), 312e12, 0.75 * 80 * GIB, 2039e9, 300e9, 624e12),
    Chip("a100-pcie-40gb", ("NVIDIA A100-PCIE-40GB",), 312e12, 0.75 * 40 * GIB, 1555e9, 32e9, 624e12),
    Chip("a100-pcie", ("NVIDIA A100 80GB PCIe",), 312e12, 0.75 * 80 * GIB, 1935e9, 32e9, 624e12),
    Chip("h100-pcie", ("NVIDIA H100 PCIe",), 756e12, 0.75 * 80 * GIB, 2000e9, 64e9, 1513e12, 1513e12),
    Chip("h100-nvl", ("NVIDIA H100 NVL",), 835e12, 0.75 * 94 * GIB, 3900e9, 300e9, 1671e12, 1671e12),
    Chip("h100", ("NVIDIA H100 80GB HBM3",), 989e12, 0.75 * 80 * GIB, 3350e9, 450e9, 1979e12, 1979e12),
    Chip("h200", ("NVIDIA H200",), 989e12, 0.75 * 141e9, 4800e9, 450e9, 1979e12, 1979e12),
    Chip("h200-nvl", ("NVIDIA H200 NVL",), 835e12, 0.75 * 141e9, 4800e9, 450e9, 1671e12, 1671e12),
)


def chip_of(device: jax.Device) -> Chip | None:
    """The chip of a device, or None if its `device_kind` is not listed above (a CPU, another card)."""
    return next((chip for chip in CHIPS if device.device_kind in chip.kinds), None)


def peak_flops(device: jax.Device) -> float | None:
    """FLOP/s of one device in bf16, or None if unknown."""
    chip = chip_of(device)
    return chip.flops if chip else None
