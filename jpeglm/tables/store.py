"""The cache of a table between runs of its command."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import logging

from jpeglm.core import retries
from jpeglm.core.errors import writing
from jpeglm.core.files import npz, write_whole

Arrays = dict[str, np.ndarray]


class Store:
    """Named arrays in a folder, each with an identity of its inputs; a change of identity invalidates them."""

    def __init__(self, folder: Path):
        self._folder = folder

    def get(self, name: str, identity: dict, make: Callable[[], Arrays]) -> Arrays:
        """The arrays of `name` stored with this identity, or else those of `make()`, which are then stored.

        Args:
          name: of the file, without its suffix.
          identity: everything that the arrays depend on; JSON types.
          make: makes the arrays.

        Raises:
          InputError: they cannot be written, or cannot be read for another reason than damage.
        """
        path = self._folder / f"{name}.npz"
        fingerprint = json.dumps(identity, sort_keys=True)
        if path.exists():
            found = retries.read(path.read_bytes, path)
            try:
                with np.load(io.BytesIO(found)) as file:
                    if str(file["fingerprint"]) == fingerprint:
                        return {key: file[key] for key in str(file["names"]).split()}
                logging.info("%s is of other settings: made again", path)
            except Exception as error:  # a damaged file can make the reader fail in any way
                logging.warning("%s cannot be read (%s): made again", path, error)
        arrays = make()
        content = npz({"fingerprint": np.array(fingerprint), "names": np.array(" ".join(arrays)), **arrays})
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, content)
        return arrays
