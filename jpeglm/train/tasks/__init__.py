"""Tasks: which part of a batch a model learns. A new task is one file, and one line in jpeglm/core/registry.py."""

import os
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

from ml_collections import ConfigDict

from jpeglm.core.registry import Section
from jpeglm.models import Model


class Task(Protocol):
    """What a batch holds, which part is learnt, and what an evaluation reports: a task's settings, as a dataclass.

    Its module is imported whenever a config is checked, so it must import quickly, like a model's.
    """

    SECTION: ClassVar[Section]
    """The keys of `config.task` but `name`, each with its default and its range."""
    arrays: Mapping[str, tuple[tuple[int, ...], Any]]
    """The arrays of a batch by name: shape without the first axis, (seq_len,) or (), and dtype."""

    @classmethod
    def of(cls, config: ConfigDict) -> "Task":
        """The task of a run's config."""

    def data(self, path: os.PathLike, split: str, model: Model) -> Any:
        """The examples of a split ("train" or "heldout") of a prepared folder for a model, such as `batches.Chunks`.

        They have a length, `manifest`, `paths` of their shards, and batch(indices), which returns `arrays` in NumPy,
        with rows of weight 0 for negative indices.

        Raises:
          InputError: the folder does not fit the task or the model.
        """

    def weight(self, batch: Mapping[str, Any]) -> Any:
        """The total weight of everything learnt from a batch: float32 []. Runs inside `jax.jit`."""

    def make_loss(self, graphdef: Any) -> Callable[[Any, Mapping[str, Any], Any], tuple[Any, Any]]:
        """loss(params, batch, total_weight) for the network of `graphdef` (`networks.abstract`).

        Returns two weighted sums over the batch divided by `total_weight`, float32 []: what the optimiser minimises,
        and what is reported as the loss. With the weight of all microbatches as `total_weight`, their gradients and
        losses add up to those of the batch.
        """

    def scores(self, loss: float, manifest: Mapping[str, Any]) -> dict[str, float]:
        """The scores that an evaluation reports, by name.

        Args:
          loss: the reported loss over all batches, divided by their total weight.
          manifest: of the held-out data.

        Raises:
          Diverged: the loss is not finite.
        """
