"""The examples of a run, as global batches on its mesh."""

from collections.abc import Iterator, Mapping

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jpeglm.core import sharding
from jpeglm.core.errors import InputError
from jpeglm.data import batches, records
from jpeglm.models import Model
from jpeglm.train.step import Batch
from jpeglm.train.tasks import Task


class Inputs:
    """The training and held-out examples of prepared data. Each process reads the rows that its devices hold.

    Attributes:
      folder: of the prepared data.
      manifest: of the prepared data.
      train, heldout: the examples, as `Task.data` gives them.
      batch_size: examples of a training batch.
      microbatch_size: examples that the devices process at once, also in an evaluation.
    """

    def __init__(self, config: ConfigDict, mesh: Mesh, model: Model, task: Task):
        """Opens the prepared data that the config names, and verifies checksums if the config asks for it.

        Raises:
          InputError: there is none, it is damaged, or it does not fit config, model or task.
        """
        if not config.data.path:
            why = "config.data.path is not set: --config.data.path=DIR, what `python -m jpeglm.prepare` wrote"
            raise InputError(why)
        self.folder = epath.Path(config.data.path)
        self.manifest = records.read_manifest(self.folder)
        batches.check_fits(self.manifest, config)
        if config.data.verify:
            records.check_checksums(self.folder, self.manifest, jax.process_index(), jax.process_count())
        self.train, self.heldout = (task.data(self.folder, split, model) for split in ("train", "heldout"))
        self.batch_size = config.optim.batch_size
        self.microbatch_size = config.optim.batch_size // config.optim.accumulate
        self._seed, self._eval_batches = config.seed, config.eval.batches * config.optim.accumulate
        self._layout = sharding.batch_sharding(mesh)
        self._rows = {
            size: sharding.local_rows(self._layout, (size, config.data.seq_len))
            for size in (self.batch_size, self.microbatch_size)
        }

    def train_batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """The batches of the steps `first_step` .. `last_step`, counted from 1; threads read ahead."""
        # `batches` counts steps from 0, and its second bound is exclusive.
        numbered = batches.train_batches(
            self.train, self._seed, self.batch_size, self._rows[self.batch_size], first_step - 1, last_step,
            place=lambda local: self._global(local, self.batch_size),
        )  # fmt: skip
        return (batch for _, batch in numbered)

    def chunk_numbers(self, step: int) -> list[int]:
        """The numbers of the chunks in the batch of a step, counted from 1."""
        return batches.chunk_numbers(self.train, self._seed, self.batch_size, step - 1)

    def eval_batches(self) -> Iterator[Batch]:
        """The held-out examples of `eval.batches` full batches, in batches of `microbatch_size`."""
        size = self.microbatch_size
        for local in batches.eval_batches(self.heldout, size, self._rows[size], self._eval_batches):
            yield self._global(local, size)

    def _global(self, local: Mapping[str, np.ndarray], size: int) -> Batch:
        return sharding.global_batch(local, self._rows[size], self._layout, size)
