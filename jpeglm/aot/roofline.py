"""The least time that a program can take on a chip."""

from typing import Any

from ml_collections import ConfigDict

from jpeglm.aot import hlo
from jpeglm.aot.cost import Cost
from jpeglm.aot.target import Target
from jpeglm.core.errors import InputError
from jpeglm.core.hardware import Chip
from jpeglm.core.human import human_seconds
from jpeglm.core.registry import MODELS


class Roofline:
    """The least time that a program can take on a chip.

    It assumes that each resource works at the vendor's peak and that all work at once, except for the network time
    that the compiled program waits for. Traffic between slices overlaps with the program.

    Attributes:
      seconds: time of each resource: "compute"; "memory"; "network", inside a slice; "dcn", the data-centre network
        between slices.
      binds: name of the resource that takes longest.
      awaited: seconds of the network time that the program waits for.
      bound: the least time in seconds.
    """

    def __init__(self, chip: Chip, compute: float, cost: Cost):
        """`compute`: least seconds of the arithmetic of one run on one chip. `cost`: of the same run."""
        across = cost.sent.get(hlo.SLICES, 0.0)
        self.seconds = {
            "compute": compute,
            "memory": cost.traffic / chip.bandwidth,
            "network": sum(size for axes, size in cost.sent.items() if axes != hlo.SLICES) / chip.network,
            "dcn": across / chip.dcn if across else 0.0,
        }
        self.binds = max(self.seconds, key=self.seconds.__getitem__)
        self.awaited = cost.awaited / chip.network
        busy = max(self.seconds["compute"], self.seconds["memory"])
        self.bound = max(busy + self.awaited, self.seconds["network"], self.seconds["dcn"])

    def __str__(self) -> str:
        parts = {name: human_seconds(value) for name, value in self.seconds.items() if name != "dcn" or value}
        parts["network"] += f", of it awaited {human_seconds(self.awaited)}"
        words = ", ".join(f"{name} {value}" for name, value in parts.items())
        return f"{human_seconds(self.bound)}: {self.binds} binds ({words})"

    def facts(self) -> dict[str, Any]:
        """All numbers by name, in seconds, and the name of the resource that binds; JSON types."""
        return self.seconds | {"awaited": self.awaited, "least": self.bound, "binds": self.binds}


def compute_seconds(config: ConfigDict, target: Target) -> float:
    """Least seconds of the arithmetic of a training step on one chip, recomputation included.

    Products in 8 bits (`model.quantise`) are counted at the chip's peak for that format.

    Raises:
      InputError: the chip has no such products.
    """
    model, chip = MODELS.of(config), target.chip
    _, executed = step_flops(config, target)
    if model.quantise == "none":
        return executed / chip.flops
    peak = {"int8": chip.int8, "fp8": chip.fp8}[model.quantise]
    if not peak:
        raise InputError(f"config.model.quantise={model.quantise}: {chip.name} has no products of this format")
    tokens = config.optim.batch_size * config.data.seq_len / target.num_chips
    quantised = model.quantised_flops_per_token * tokens
    return (executed - quantised) / chip.flops + quantised / peak


def step_flops(config: ConfigDict, target: Target) -> tuple[float, float]:
    """FLOPs of one chip in one training step: without recomputation, and with it."""
    model, seq_len = MODELS.of(config), config.data.seq_len
    tokens = config.optim.batch_size * seq_len / target.num_chips
    flops = model.flops_per_token(seq_len)
    return flops * tokens, (flops + model.recomputed_flops_per_token(seq_len)) * tokens
