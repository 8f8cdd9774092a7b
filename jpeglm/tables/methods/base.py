"""What completes cut documents in a table: the protocol of a row's method.

To add one, write one file with a class of it and add one line to `methods.REGISTRY`.
"""

import abc
import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from jpeglm.data.codecs import Codec
from jpeglm.data.tokenizers import Tokenizer
from jpeglm.sample.engine import Settings

Arrays = dict[str, np.ndarray]
# The mean of so many training pictures is within a grey level or two of the mean of all; a random one is one of them.
TRAINING_PICTURES = 2_000


@dataclasses.dataclass(frozen=True)
class Completed:
    """Whole documents, one a prompt and in the order of the prompts.

    Attributes:
      documents: canonical bytes, valid or not.
      ended: bool [n], whether the model ended the file itself within its budget; None for what no model wrote.
      tokens: int64 [n], how many the model wrote; None likewise.
      removed: float64 [n], the mean share of its probability that the grammar took away at a token; None without one.
    """

    documents: list[bytes]
    ended: np.ndarray | None = None
    tokens: np.ndarray | None = None
    removed: np.ndarray | None = None

    def to_arrays(self) -> Arrays:
        arrays = {
            "bytes": np.frombuffer(b"".join(self.documents), np.uint8),
            "lengths": np.array([len(document) for document in self.documents], np.int64),
        }
        optional = {"ended": self.ended, "tokens": self.tokens, "removed": self.removed}
        return arrays | {name: values for name, values in optional.items() if values is not None}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> "Completed":
        ends = np.cumsum(arrays["lengths"])
        documents = [part.tobytes() for part in np.split(arrays["bytes"], ends[:-1])]
        return cls(documents, arrays.get("ended"), arrays.get("tokens"), arrays.get("removed"))


class Run(Protocol):
    """A run at one of its checkpoints. `weights`: a hash of its parameters."""

    workdir: epath.Path
    config: ConfigDict
    tokenizer: Tokenizer
    step: int
    weights: str


class Bench(Protocol):
    """What the methods of one table complete with.

    Attributes:
      codec: of the documents.
      manifest: of the prepared data.
      seed: of all that is drawn.
      settings: how networks draw, with or without the grammar.
      runs: by the names of networks, those that there are.
      held: of a network, what is expensive to load; it is dropped when another one is asked.
    """

    codec: Codec
    manifest: dict[str, Any]
    seed: int
    settings: Settings
    runs: Mapping[str, Run]
    held: tuple[str, Any] | None

    def training_documents(self) -> list[bytes]:
        """The first `TRAINING_PICTURES` training documents in the order of the shards, which is by a hash."""


class Method(abc.ABC):
    """A row of tables: each cut document becomes a whole one.

    Attributes:
      name: by which a table's config asks for it; also in the names of its cells.
      title: what tables call it.
      is_network: whether it draws tokens: then there is also its sampling with the grammar, if the codec has one.
      is_trained: whether it is one of the networks that the others are set beside.
      colours: of the report, on a light page and on a dark one.
      marker: of its points in charts, as matplotlib names them.
    """

    name: str
    title: str
    is_network: ClassVar[bool] = False
    is_trained: bool = False
    colours: tuple[str, str]
    marker: str

    def fits(self, codec: Codec) -> bool:
        """Whether it completes documents of this codec."""
        return self.name in codec.evaluation.controls

    @abc.abstractmethod
    def complete(self, bench: Bench, originals: Sequence[bytes], ratio: float, grammar: bool) -> Completed:
        """Completes each original from its first `ratio` of units.

        `grammar`: whether a network draws among legal tokens alone; other methods draw no tokens.
        """

    @abc.abstractmethod
    def identity(self, bench: Bench, grammar: bool) -> dict[str, Any]:
        """All that the completions depend on beside originals, ratio and codec, by content; JSON types."""

    @abc.abstractmethod
    def note(self, bench: Bench, config: ConfigDict) -> str | None:
        """A sentence below the table of this config, if its title does not say it all."""


def documents_identity(documents: Iterable[bytes]) -> str:
    """A digest of documents in their order."""
    return hashlib.sha256(b"".join(hashlib.sha256(document).digest() for document in documents)).hexdigest()


def random_of(seed: int, document: bytes) -> np.random.Generator:
    """What is drawn for a document: it depends on (seed, document) alone."""
    return np.random.default_rng([seed, int.from_bytes(hashlib.sha256(document).digest())])
