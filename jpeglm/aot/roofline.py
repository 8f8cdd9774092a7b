"""The least time that a program can take on a chip."""

from typing import Any

from ml_collections import ConfigDict

from jpeglm.aot import hlo
from jpeglm.aot.cost import Cost
from jpeglm.aot.target import Target
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

    def __init__(self, chip: Chip, flops: float, cost: Cost):
        """`flops`: FLOPs of one run on one chip, including recomputation. `cost`: of the same run."""
        across = cost.sent.get(hlo.SLICES, 0.0)
        self.seconds = {
            "compute": flops / chip.flops,
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


def step_flops(config: ConfigDict, target: Target) -> tuple[float, float]:
    """FLOPs of one chip in one training step: without recomputation, and with it."""
    model, seq_len = MODELS.of(config), config.data.seq_len
    tokens = config.optim.batch_size * seq_len / target.num_chips
    flops = model.flops_per_token(seq_len)
    return flops * tokens, (flops + model.recomputed_flops_per_token(seq_len)) * tokens
