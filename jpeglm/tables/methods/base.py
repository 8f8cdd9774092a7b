"""What completes cut documents in a table: the protocol of a row's method.

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
    """Whole documents, one a prompt and in the order of the prompts.

    Attributes:
      documents: canonical bytes, valid or not.
      ended: bool [n], whether the model ended the file itself within its budget; None where no model wrote.
      tokens: int64 [n], how many the model wrote; None where no model wrote.
      removed: float64 [n], the share of its probability that the grammar took away at a token, on average over the
        file's tokens; None without the grammar.
    """

    documents: list[bytes]
    ended: np.ndarray | None = None
    tokens: np.ndarray | None = None
    removed: np.ndarray | None = None

    def to_arrays(self) -> Arrays:
        """What a store keeps."""
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
        """What `to_arrays` gave."""
        ends = np.cumsum(arrays["lengths"])
        documents = [part.tobytes() for part in np.split(arrays["bytes"], ends[:-1])]
        return cls(documents, arrays.get("ended"), arrays.get("tokens"), arrays.get("removed"))


class Method(abc.ABC):
    """A row of tables: each cut document becomes a whole one.

    Attributes:
      name: by which a table's config asks for it; also in the names of its cells.
      title: what tables call it.
      run: of a network, the key of a table's config that names its run: "workdir" or "pretrained"; "" of others.
      is_network: whether it draws tokens: then there is also its sampling with the grammar, if the codec has one.
      is_trained: whether it is one of the networks that the table is about; the others are controls.
      is_compared_in_full: whether the notes compare it with the trained networks by each measure of clips, and not by
        the distance alone.
      colours: of the report, on a light page and on a dark one.
      marker: of its points in charts, as matplotlib names them.
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
        """Whether it completes documents of this codec: here, whether it is among the codec's controls."""
        return self.name in codec.evaluation.controls

    def is_available(self, config: ConfigDict) -> bool:
        """Whether the config of a table that asks for this row names what it needs; without, the row is left out."""
        return True

    @abc.abstractmethod
    def complete(self, context: Context, originals: Sequence[bytes], ratio: float, grammar: bool) -> Completed:
        """Completes each original from its first `ratio` of units.

        `grammar`: whether a network draws among legal tokens alone; other methods draw no tokens.
        """

    @abc.abstractmethod
    def identity(self, context: Context, grammar: bool) -> dict[str, Any]:
        """All that the completions depend on beside originals, ratio and codec, by content; JSON types."""

    @abc.abstractmethod
    def note(self, context: Context, config: ConfigDict) -> str | None:
        """A sentence below the table of this config, if its title does not say it all."""


def documents_identity(documents: Iterable[bytes]) -> str:
    """A digest of documents in their order."""
    return hashlib.sha256(b"".join(hashlib.sha256(document).digest() for document in documents)).hexdigest()


def random_of(seed: int, document: bytes) -> np.random.Generator:
    """What is drawn for a document: it depends on (seed, document) alone."""
    return np.random.default_rng([seed, int.from_bytes(hashlib.sha256(document).digest())])
