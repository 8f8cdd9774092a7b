"""A second tokenizer, in one file: every byte is a token, and nothing is learnt."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from jpeglm.core.errors import InputError
from jpeglm.core.ranges import whole
from jpeglm.core.registry import TOKENIZERS
from jpeglm.data.codecs import Codec
from jpeglm.data.tokenizers import Tokenizer

TEXT = '{"plain": "bytes"}\n'


class PlainTokenizer(Tokenizer):
    SECTION: ClassVar = {"vocab_size": (259, whole(259, 259))}
    vocab_size = 259
    token_bytes = (b"", b"", b"", *(bytes([byte]) for byte in range(256)))

    def __init__(self, text: str):
        if text != TEXT:
            raise InputError("no tokenizer of plain bytes")
        self.text = text

    @classmethod
    def learn(cls, settings: Mapping[str, Any], documents: Iterable[bytes], codec: Codec) -> "PlainTokenizer":
        assert not list(documents)
        return cls(TEXT)

    def encode_batch(self, batch: Sequence[bytes]) -> list[np.ndarray]:
        return [np.frombuffer(data, np.uint8).astype(np.uint16) + 3 for data in batch]


TOKENIZERS.kinds["plain"] = PlainTokenizer
