"""The protocol of a method, which completes the cut documents for a row of a table.

To add one, write one file with a class that inherits from `Method`, and add one line to `jpeglm.tables.methods`.
"""

import abc
import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
from ml_collections import ConfigDict

from jpeglm.data.codecs import Codec
from jpeglm.tables.context import Context
from jpeglm.tables.store import Arrays


@dataclasses.dataclass(frozen=True)
class Completed:
    """Complete documents, one per prompt and in the order of the prompts.

    Attributes:
      documents: canonical bytes, valid or not.
      ended: bool [n], whether the model ended the file itself within its budget; None without a model.
      tokens: int64 [n], how many the model wrote; None without a model.
      removed: float64 [n], the share of its probability that the grammar removed per token, on average over the file's
        tokens; None without the grammar.
    """

    documents: list[bytes]
    ended: np.ndarray | None = None
    tokens: np.ndarray | None = None
    removed: np.ndarray | None = None

    def to_arrays(self) -> Arrays:
        """The arrays for a store."""
        arrays: Arrays = {
            "bytes": np.frombuffer(b"".join(self.documents), np.uint8),
            "lengths": np.array([len(document) for document in self.documents], np.int64),
        }
        for name, values in (("ended", self.ended), ("tokens", self.tokens), ("removed", self.removed)):
            if values is not None:
                arrays[name] = values
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> "Completed":
        """The inverse of `to_arrays`."""
        ends = np.cumsum(arrays["lengths"])
        documents = [part.tobytes() for part in np.split(arrays["bytes"], ends[:-1])]
        return cls(documents, arrays.get("ended"), arrays.get("tokens"), arrays.get("removed"))


class Method(abc.ABC):
    """A row of tables: completes each cut document.

    Attributes:
      name: its name in a table's config and in the names of its cells.
      title: its name in tables.
      run: for a network, the key of a table's config that names its run: "workdir" or "pretrained"; else "".
      is_network: whether it draws tokens: then there is also its sampling with the grammar, if the codec has one.
      is_trained: whether it is a trained network; all other methods are controls.
      is_compared_in_full: whether the notes compare it with the trained networks by each measure of clips, not only by
        the distance.
      colours: of the report, on a light page and on a dark one.
      marker: of its points in charts, a name of matplotlib's.
    """

    name: str
    title: str
    run: str = ""
    is_network: ClassVar[bool] = False
    is_trained: bool = False
    is_compared_in_full: ClassVar[bool] = False
    colours: tuple[str, str]
    marker: str

    def fits(self, codec: Codec) -> bool:
        """Whether it can complete documents of this codec; by default, whether it is one of the codec's controls."""
        return self.name in codec.evaluation.controls

    def is_available(self, config: ConfigDict) -> bool:
        """Whether a table's config names what this row needs; otherwise the row is left out."""
        return True

    @abc.abstractmethod
    def complete(self, context: Context, originals: Sequence[bytes], ratio: float, grammar: bool) -> Completed:
        """Completes each original from its first `ratio` of units.

        `grammar`: whether a network draws only from legal tokens; other methods draw no tokens.
        """

    @abc.abstractmethod
    def identity(self, context: Context, grammar: bool) -> dict[str, Any]:
        """Everything that the completions depend on besides originals, ratio and codec, by content; JSON types."""

    @abc.abstractmethod
    def note(self, context: Context, config: ConfigDict) -> str | None:
        """A sentence for the notes below the table, if the title needs one."""


def documents_identity(documents: Iterable[bytes]) -> str:
    """A digest of documents, in order."""
    return hashlib.sha256(b"".join(hashlib.sha256(document).digest() for document in documents)).hexdigest()


def random_of(seed: int, document: bytes) -> np.random.Generator:
    """A random generator for a document; depends only on (seed, document)."""
    return np.random.default_rng([seed, int.from_bytes(hashlib.sha256(document).digest())])
