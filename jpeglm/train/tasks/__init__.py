"""Tasks: what a model learns of a batch. A new task is one file, and one line in jpeglm/core/registry.py."""

import os
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

from ml_collections import ConfigDict

from jpeglm.core.registry import Section
from jpeglm.models import Model


class Task(Protocol):
    """What a batch holds, what of it is learnt, and what an evaluation says: the settings of a task, as a dataclass.

    Its module is imported wherever a config is checked, as a model's.
    """

    SECTION: ClassVar[Section]
    """The keys of `config.task` but `name`, each with its default and its range."""
    arrays: Mapping[str, tuple[tuple[int, ...], Any]]
    """The arrays of a batch by name: shape without the first axis, (seq_len,) or (), and dtype."""

    @classmethod
    def of(cls, config: ConfigDict) -> "Task":
        """The task of a run's config."""

    def data(self, path: os.PathLike, split: str, model: Model) -> Any:
        """The examples of a split ("train" or "heldout") of a prepared folder for a model, as `batches.Chunks` has.

        They have a length, `manifest`, `paths` of their shards, and batch(indices): `arrays` in numpy, with rows of
        weight 0 for indices below 0.

        Raises:
          InputError: the folder is not fit for it.
        """

    def weight(self, batch: Mapping[str, Any]) -> Any:
        """The sum of the weights of all that is learnt of a batch: float32 []. Inside `jax.jit`."""

    def make_loss(self, graphdef: Any) -> Callable[[Any, Mapping[str, Any], Any], tuple[Any, Any]]:
        """loss(params, batch, total_weight) for the network of `graphdef` (`networks.abstract`).

        Weighted sums over the batch divided by `total_weight`, float32 []: what the optimiser lessens, and what is
        told as the loss. With the weight of all microbatches as `total_weight`, their gradients and losses add up to
        those of the batch.
        """

    def scores(self, loss: float, manifest: Mapping[str, Any]) -> dict[str, float]:
        """What an evaluation says, by name.

        Args:
          loss: the second loss, over all batches, by the weight of all.
          manifest: of the held-out data.

        Raises:
          Diverged: the loss is no finite number.
        """
