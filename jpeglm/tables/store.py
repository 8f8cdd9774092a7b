"""The cache of a table's results, which is kept between runs of the command."""

import io
import json
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
from absl import logging

from jpeglm.core import retries
from jpeglm.core.errors import writing
from jpeglm.core.files import npz, write_whole

Arrays = dict[str, np.ndarray]


class Missing(LookupError):
    """A set of arrays is not in the store, and is not to be made."""


class Store:
    """Named sets of arrays in a folder, each with an identity: all that it depends on.

    A set is made again if its identity has changed.

    Attributes:
      makes: whether `get` makes what is missing; otherwise it raises Missing.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self.makes = True

    def get(
        self, name: str, identity: dict, make: Callable[[], Arrays], needed: Collection[str] = frozenset()
    ) -> Arrays:
        """The arrays of `name` if they are there with this identity; otherwise those of `make()`, which are then kept.

        Args:
          name: of the file, without its suffix.
          identity: all that the arrays depend on; JSON types.
          make: makes the arrays.
          needed: names of arrays that kept ones must include. An older version may not have made all of them.

        Raises:
          InputError: the file cannot be written, or cannot be read for another reason than damage.
          Missing: there is no such set, and `makes` is false.
        """
        path = self._folder / f"{name}.npz"
        fingerprint = json.dumps(identity, sort_keys=True)
        if path.exists():
            found = retries.read(path.read_bytes, path)
            try:
                with np.load(io.BytesIO(found)) as file:
                    names = str(file["names"]).split()
                    if str(file["fingerprint"]) == fingerprint and set(needed) <= set(names):
                        return {key: file[key] for key in names}
                logging.info("%s is of other settings or metrics: made again", path)
            except Exception as error:  # a damaged file can make the reader fail in any way
                logging.warning("%s cannot be read (%s): made again", path, error)
        if not self.makes:
            raise Missing(name)
        arrays = make()
        content = npz({"fingerprint": np.array(fingerprint), "names": np.array(" ".join(arrays)), **arrays})
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, content)
        return arrays
