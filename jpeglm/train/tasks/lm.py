"""Language modelling: predicts each next token of a chunk."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from ml_collections import ConfigDict

from jpeglm.core.registry import Section
from jpeglm.models import Model


@dataclasses.dataclass(frozen=True)
class LanguageModelling:
    """Next-token cross-entropy, with z-loss weighted by `config.optim.z_loss`; see jpeglm/models/loss.py."""

    SECTION: ClassVar[Section] = {}

    seq_len: int
    z_loss: float

    @classmethod
    def of(cls, config: ConfigDict) -> "LanguageModelling":
        """See `Task`."""
        return cls(config.data.seq_len, config.optim.z_loss)

    @property
    def arrays(self) -> Mapping[str, tuple[tuple[int, ...], Any]]:
        """See jpeglm/data/batches.py."""
        integers = dict.fromkeys(("tokens", "targets", "segment_ids", "positions"), np.int32)
        dtypes = integers | {"loss_weights": np.float32}
        return {name: ((self.seq_len,), dtype) for name, dtype in dtypes.items()}

    def data(self, path: os.PathLike, split: str, model: Model) -> Any:
        """Chunks of documents."""
        from jpeglm.data import batches  # imported here: checking a config needs no data

        return batches.Chunks(path, split, self.seq_len, model.mask_documents)

    def weight(self, batch: Mapping[str, Any]) -> Any:
        """How many targets are real tokens."""
        return batch["loss_weights"].sum()

    def make_loss(self, graphdef: Any) -> Callable[[Any, Mapping[str, Any], Any], tuple[Any, Any]]:
        """With z-loss, and without."""
        from jpeglm.models.loss import make_loss  # imported here: checking a config needs no JAX

        return make_loss(graphdef, self.z_loss)

    def scores(self, loss: float, manifest: Mapping[str, Any]) -> dict[str, float]:
        """Nats a token, bits a byte and a pixel."""
        from jpeglm.data.units import heldout_units

        return heldout_units(loss, manifest)
