"""The memory that a step needs on each device, and the memory available."""

import os

import jax

from jpeglm.core.errors import InputError
from jpeglm.core.human import human_bytes


def device_memory(compiled: jax.stages.Compiled) -> tuple[int, int]:
    """Bytes on each device while a compiled program runs: for arguments and results, and for temporaries."""
    sizes = compiled.memory_analysis()
    assert sizes is not None  # CPU, GPU and TPU all report it
    held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return held, sizes.temp_size_in_bytes


def memory_limit(device: jax.Device) -> int | None:
    """Bytes of a device's memory, or None if it does not report it; CPU devices share the machine's memory."""
    if device.platform == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // jax.local_device_count()
    return (device.memory_stats() or {}).get("bytes_limit")


def check_memory(needed: tuple[int, int], device: jax.Device) -> None:
    """Raises InputError if a step needs more than the device has."""
    limit = memory_limit(device)
    if limit and sum(needed) > limit:
        raise InputError(
            f"a step needs {human_bytes(sum(needed))} of each device's memory, {human_bytes(limit)} are there: more "
            "devices, a larger optim.accumulate, or model.remat=full"
        )
