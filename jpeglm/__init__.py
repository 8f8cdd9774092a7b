"""Language models on the bytes of compressed files.

import jpeglm
model = jpeglm.load("WORKDIR")
pictures = model.complete([image], ratio=0.5)
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jpeglm.sample.api import Model


def load(workdir: str | os.PathLike, step: int | None = None, slots: int = 8) -> "Model":
    """Loads a trained run, which can complete and generate pictures; see `jpeglm.sample.api.Model`.

    Args:
      workdir: the folder of the run.
      step: the checkpoint to use; the last one if None.
      slots: pictures decoded at once.

    Raises:
      InputError: no run there, or no such checkpoint.
    """
    from jpeglm.sample.api import Model  # imported here: users of codecs or data alone need no JAX

    return Model.load(workdir, step, slots)
