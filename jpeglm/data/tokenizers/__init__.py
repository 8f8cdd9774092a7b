"""Tokenizers: documents to ids and back.

A new tokenizer is one file, and one line in jpeglm/core/registry.py: the place of a class that keeps the protocol
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
    """A tokenizer that has been learnt, or that had nothing to learn.

    Ids 0, 1 and 2 are `<unk>` (also the padding of the last chunk), `<s>` and `</s>`. They stand for no bytes, and
    `encode_batch` gives none of them. The other ids stand for bytes, 0 .. vocab_size - 1 without gaps. Shards hold ids
    as uint16 (`records`), so that `vocab_size` is at most 65,536.

    Any bytes can be encoded, and decode to themselves. Where a codec can cut a document, no token goes across: the
    tokens of the beginning are then exactly a prefix of the tokens of the whole, and a prompt is what the model has
    learnt. `Codec.separator_regex` and `Codec.separator_behavior` say where that is.

    Attributes:
      SECTION: the keys of `config.tokenizer` but `name`, each with its default and its range: `vocab_size`, all ids
        together, which the model takes from there; and `documents`, from how many at most it is learnt, if it is.
      UNK, BOS, EOS: the ids of `<unk>`, `<s>` and `</s>`.
      text: the saved file. Tokenizers of equal texts are the same.
      vocab_size: number of ids, these three included.
      token_bytes: the bytes of each id, b"" where it stands for none, as these three. The grammar of a codec walks
        them: a token is legal where its bytes are.
    """

    UNK, BOS, EOS = UNK, BOS, EOS
    SECTION: ClassVar[Section]
    text: str
    vocab_size: int
    token_bytes: Sequence[bytes]

    @abc.abstractmethod
    def __init__(self, text: str):
        """Reads the text of a saved file; `InputError` if it is not this kind's."""

    @classmethod
    @abc.abstractmethod
    def learn(cls, settings: Mapping[str, Any], documents: Iterable[bytes], codec: Codec) -> Self:
        """Learns from documents, the same tokenizer whatever their order and the number of threads.

        Args:
          settings: the section of the config, whose `vocab_size` the result has.
          documents: training documents, at most `documents` of the section; none where it has no such key.
          codec: which made them.

        Raises:
          InputError: the documents do not give so many ids.
        """

    @abc.abstractmethod
    def encode_batch(self, batch: Sequence[bytes]) -> list[np.ndarray]:
        """Ids of each byte string, uint16 [n] each, without `<s>` and `</s>`."""

    def encode(self, data: bytes) -> np.ndarray:
        """Ids of any byte string, uint16 [n], without `<s>` and `</s>`."""
        return self.encode_batch([data])[0]

    def decode(self, ids: Iterable[int]) -> bytes:
        """The bytes of the ids; the three specials stand for no bytes and are passed over."""
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
        """Writes the file, whole or not at all."""
        write_whole(Path(path), self.text.encode())


def load(folder: str | os.PathLike, config: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a prepared folder or a workdir, of the kind that its config names.

    Raises:
      InputError: there is none, it is not of this kind, or it breaks the contract of `Tokenizer`.
    """
    return TOKENIZERS.kind_of(config).load(epath.Path(folder) / FILE)
