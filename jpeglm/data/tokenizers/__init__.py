"""Tokenizers: documents to ids and back.

A new tokenizer is one file, and one line in jpeglm/core/registry.py: the path of a class that follows the protocol
`Tokenizer`.
"""

import abc
import functools
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from etils import epath

from jpeglm.core import retries
from jpeglm.core.errors import InputError
from jpeglm.core.files import write_whole
from jpeglm.core.registry import TOKENIZERS, Section
from jpeglm.data.codecs import Codec

UNK, BOS, EOS = 0, 1, 2
SPECIALS = ("<unk>", "<s>", "</s>")
FILE = "tokenizer.json"  # of a prepared folder and of a workdir


class Tokenizer(abc.ABC):
    """A tokenizer that has been learnt, or that needs no learning.

    Ids 0, 1 and 2 are `<unk>` (also the padding of the last chunk), `<s>` and `</s>`. They represent no bytes, and
    `encode_batch` never returns them. The other ids represent bytes; ids are 0 to vocab_size - 1 without gaps. Shards
    store ids as uint16 (`records`), so `vocab_size` is at most 65,536.

    Any bytes can be encoded and decode to themselves. No token crosses a point at which a codec can cut a document
    (`Codec.separator_regex`, `Codec.separator_behavior`). So the tokens of the beginning are exactly a prefix of the
    tokens of the whole, and a prompt looks as in training.

    Attributes:
      SECTION: the keys of `config.tokenizer` other than `name`, each with default and range: `vocab_size`, the number
        of all ids, which the model uses, too; and `documents`, the most documents to learn from, if any.
      UNK, BOS, EOS: the ids of `<unk>`, `<s>` and `</s>`.
      text: the saved file. Tokenizers with equal texts are equal.
      vocab_size: number of ids, including these three.
      token_bytes: the bytes of each id, b"" if it represents none, like these three. A codec's grammar allows a token
        wherever its bytes are legal.
    """

    UNK, BOS, EOS = UNK, BOS, EOS
    SECTION: ClassVar[Section]
    text: str
    vocab_size: int
    token_bytes: Sequence[bytes]

    @abc.abstractmethod
    def __init__(self, text: str):
        """Reads the text of a saved file; InputError if it is not of this kind."""

    @classmethod
    @abc.abstractmethod
    def learn(cls, settings: Mapping[str, Any], documents: Iterable[bytes], codec: Codec) -> Self:
        """Learns from documents; the result does not depend on their order or the number of threads.

        Args:
          settings: the section of the config; the result has its `vocab_size`.
          documents: training documents, at most `documents` of the section; none if there is no such key.
          codec: the codec of the documents.

        Raises:
          InputError: the documents do not yield that many ids.
        """

    @abc.abstractmethod
    def encode_batch(self, batch: Sequence[bytes]) -> list[np.ndarray]:
        """Ids of each byte string, uint16 [n] each, without `<s>` and `</s>`."""

    def encode(self, data: bytes) -> np.ndarray:
        """Ids of any byte string, uint16 [n], without `<s>` and `</s>`."""
        return self.encode_batch([data])[0]

    def decode(self, ids: Iterable[int]) -> bytes:
        """The bytes of the ids; the three specials are skipped."""
        return b"".join([self.token_bytes[token] for token in np.asarray(ids).tolist()])

    @functools.cached_property
    def sha256(self) -> str:
        """Hexadecimal digest of the saved file: the identity of the tokenizer."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Reads a saved tokenizer; `InputError` if the file is missing or breaks the contract above."""
        try:
            text = retries.read(lambda: epath.Path(path).read_text(encoding="utf-8"), path)
        except retries.Damaged as error:
            raise InputError(f"cannot read the tokenizer {path}: {error.why}") from error
        try:
            return cls(text)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def save(self, path: str | os.PathLike) -> None:
        """Writes the file atomically."""
        write_whole(Path(path), self.text.encode())


def load(folder: str | os.PathLike, config: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a prepared folder or a workdir, of the kind that its config names.

    Raises:
      InputError: it is missing, of another kind, or breaks the contract of `Tokenizer`.
    """
    return TOKENIZERS.kind_of(config).load(epath.Path(folder) / FILE)
