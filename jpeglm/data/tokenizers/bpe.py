"""Bytes to token ids and back: a byte-level BPE that never merges across a restart point of the file.

Ids: 0 `<unk>` (also the padding of the last chunk), 1 `<s>`, 2 `</s>`, 3 to 258 the bytes 0 to 255, then the merges.
The file is a Hugging Face `tokenizers` BPE (`tokenizer.json`) in which byte b is the character `chr(0x2800 + b)`,
a Braille pattern: 256 printable characters that no normaliser or pre-tokenizer touches.

Before any merge the text is split at each match of the codec's separator (after the restart markers of a JPEG,
before the start codes of H.264), so the tokens of a file that was cut there are exactly a prefix of the tokens of the
whole file.

A tokenizer converted from SentencePiece (`jpeglm.convert.sentencepiece`) has no such split and no such guarantee: its
merges cross restart markers, and its bytes and merges have the ids 3, 4, ... in SentencePiece's own order. It may put
a "\u2581" before every non-empty text; that character represents no byte.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tokenizers
from tokenizers import Regex, models, pre_tokenizers, trainers

from jpeglm.core.errors import InputError
from jpeglm.core.ranges import whole
from jpeglm.core.registry import Section
from jpeglm.data.codecs import Codec
from jpeglm.data.tokenizers import SPECIALS, UNK, Tokenizer

BYTE_OFFSET = 3  # id of byte 0
FIRST_MERGE = BYTE_OFFSET + 256
DUMMY_PREFIX = "\u2581"  # SentencePiece's mark of a space, which it puts before a text
_BRAILLE = 0x2800
_MOST_IDS = 1 << 16
ALPHABET = [chr(_BRAILLE + byte) for byte in range(256)]


class BpeTokenizer(Tokenizer):
    """A byte-level BPE. Like the three specials, SentencePiece's mark of a space represents no bytes."""

    SECTION: ClassVar[Section] = {
        "vocab_size": (320, whole(FIRST_MERGE, _MOST_IDS)),  # specials, bytes and merges together
        "documents": (10_000, whole(1)),  # number to learn from
    }
    BYTE_OFFSET = BYTE_OFFSET

    def __init__(self, text: str):
        """Reads the text of a `tokenizer.json`; InputError if it is neither of the two kinds above."""
        self.text = text
        _check_model(text)
        try:
            self._model = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise InputError(f"not a tokenizer.json: {error}") from error
        self._model.no_truncation()  # a document is never truncated or padded
        self._model.no_padding()
        vocab = self._model.get_vocab(with_added_tokens=True)
        tokens = sorted(vocab, key=vocab.__getitem__)
        if [vocab[token] for token in tokens] != list(range(len(tokens))):
            raise InputError("tokenizer.json: the ids have gaps")
        if tuple(tokens[:BYTE_OFFSET]) != SPECIALS:
            raise InputError("tokenizer.json: ids 0 to 2 are not <unk>, <s>, </s>")
        entries = tokens[BYTE_OFFSET:]
        if self._model.pre_tokenizer is None:  # SentencePiece's kind
            entries = [token.removeprefix(DUMMY_PREFIX) for token in entries]
            if set(ALPHABET) - set(tokens):
                raise InputError("tokenizer.json: not every byte has an id")
        elif entries[:256] != ALPHABET:
            raise InputError("tokenizer.json: ids 3 to 258 are not the 256 bytes")
        if len(tokens) > _MOST_IDS:
            raise InputError(f"tokenizer.json: {len(tokens)} entries do not fit 16 bits")
        if any(not 0 <= ord(character) - _BRAILLE < 256 for token in entries for character in token):
            raise InputError("tokenizer.json: an entry is not written in the 256 Braille characters")
        self.vocab_size = len(tokens)
        self.token_bytes = [b""] * BYTE_OFFSET + [_to_bytes(token) for token in entries]
        every_byte = bytes(range(256))
        if self.decode(self.encode(every_byte)) != every_byte:
            raise InputError("tokenizer.json: bytes do not come back from their ids")

    @classmethod
    def learn(cls, settings: Mapping[str, Any], documents: Iterable[bytes], codec: Codec) -> "BpeTokenizer":
        """See `Tokenizer` and `train`."""
        return train(documents, settings["vocab_size"], codec.separator_regex, codec.separator_behavior)

    def encode_batch(self, batch: Sequence[bytes]) -> list[np.ndarray]:
        """Ids of each byte string, uint16 [n] each; all cores unless TOKENIZERS_PARALLELISM=false."""
        encodings = self._model.encode_batch_fast([_to_text(data) for data in batch], add_special_tokens=False)
        return [np.asarray(encoding.ids, np.uint16) for encoding in encodings]


def train(
    documents: Iterable[bytes], vocab_size: int, separator_regex: str, separator_behavior: str = "merged_with_previous"
) -> BpeTokenizer:
    """Learns the merges from documents; the result does not depend on their order or the number of threads.

    Args:
      documents: files, as bytes.
      vocab_size: total number of entries, including specials and bytes.
      separator_regex: where merges end, an Oniguruma pattern over the Braille text.
      separator_behavior: "merged_with_previous" where they end after a match, "merged_with_next" where before it.

    Raises:
      InputError: vocab_size leaves no room for the bytes or exceeds 16 bits, or the documents have too few different
        pairs for that many merges. Ids must be dense, so the vocabulary is never padded.
    """
    if not FIRST_MERGE <= vocab_size <= _MOST_IDS:
        raise InputError(f"tokenizer.vocab_size must be {FIRST_MERGE} to {_MOST_IDS}, not {vocab_size}")
    model = tokenizers.Tokenizer(models.BPE(unk_token=SPECIALS[UNK]))
    model.pre_tokenizer = pre_tokenizers.Split(Regex(separator_regex), behavior=separator_behavior)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=ALPHABET,
        show_progress=False,
    )
    model.train_from_iterator(map(_to_text, documents), trainer)
    size = model.get_vocab_size()
    if size < vocab_size:
        raise InputError(
            f"the documents give a tokenizer of {size} entries, tokenizer.vocab_size asks for {vocab_size}: "
            "more documents or a smaller vocabulary are needed"
        )
    return BpeTokenizer(file_text(model))


def file_text(model: tokenizers.Tokenizer) -> str:
    """The text of `tokenizer.json`, reformatted by json so that it depends only on the content."""
    return json.dumps(json.loads(model.to_str()), indent=1) + "\n"


def _check_model(text: str) -> None:
    """Refuses settings that make ids random, and affixes, which can make the library panic."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not a tokenizer.json: {error}") from error
    model = content.get("model") if isinstance(content, dict) else None
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if isinstance(model, dict) and model.get(key) not in (None, 0, ""):
            raise InputError(f"tokenizer.json: its model has a {key}, which is not supported")


def _to_text(data: bytes) -> str:
    return (np.frombuffer(data, np.uint8).astype("<u2") + _BRAILLE).tobytes().decode("utf-16-le")


def _to_bytes(text: str) -> bytes:
    return bytes(ord(character) - _BRAILLE for character in text)
