"""Language modelling: each next token of a chunk."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from ml_collections import ConfigDict

from jpeglm.registry import Section


@dataclasses.dataclass(frozen=True)
class LanguageModelling:
    """Next-token cross-entropy, with z-loss by `config.optim.z_loss`; see jpeglm/model/loss.py."""

    SECTION: ClassVar[Section] = {}
    ARRAYS: ClassVar[Mapping[str, Any]] = {  # what they hold: jpeglm/data/pipeline.py
        "tokens": np.int32,
        "targets": np.int32,
        "loss_weights": np.float32,
        "segment_ids": np.int32,
        "positions": np.int32,
    }

    z_loss: float

    @classmethod
    def of(cls, config: ConfigDict) -> "LanguageModelling":
        """See `Task`."""
        return cls(config.optim.z_loss)

    def weight(self, batch: Mapping[str, Any]) -> Any:
        """How many targets are real tokens."""
        return batch["loss_weights"].sum()

    def make_loss(self, graphdef: Any) -> Callable[[Any, Mapping[str, Any], Any], tuple[Any, Any]]:
        """With z-loss, and without."""
        from jpeglm.model.loss import make_loss  # not above: whoever only checks a config needs no JAX

        return make_loss(graphdef, self.z_loss)

    def scores(self, loss: float, manifest: Mapping[str, Any]) -> dict[str, float]:
        """Nats a token, bits a byte and a pixel."""
        from jpeglm.metrics import heldout_units

        return heldout_units(loss, manifest)
