"""The control of random bytes."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from jpeglm.data.codecs import Codec
from jpeglm.tables.context import Context
from jpeglm.tables.methods.base import Completed, Method, random_of


class RandomBytes(Method):
    """The result of a model that knows nothing about the format."""

    name = "random_bytes"
    title = "prompt + random bytes"
    colours = "#b5336b", "#f086b1"
    marker = "D"

    def complete(self, context: Context, originals: Sequence[bytes], ratio: float, grammar: bool) -> Completed:
        return Completed(with_random_bytes(context.codec, originals, ratio, context.seed))

    def identity(self, context: Context, grammar: bool) -> dict[str, Any]:
        return {"seed": context.seed}

    def note(self, context: Context, config: ConfigDict) -> str:
        return (
            f"“{self.title}” has uniformly random bytes after the prompt, as many as the original has there, "
            f"{context.codec.evaluation.words.random}."
        )


def with_random_bytes(codec: Codec, documents: Sequence[bytes], ratio: float, seed: int) -> list[bytes]:
    """The prompt, then as many uniformly random bytes as the original has there; for clips, between its start codes.

    The bytes of a document depend only on (seed, original).
    """
    completed = []
    for document in documents:
        prefix, _ = codec.cut(document, ratio)
        random = random_of(seed, document)
        pieces = codec.evaluation.pieces(document[len(prefix) :])
        drawn = [piece if place % 2 else random.bytes(len(piece)) for place, piece in enumerate(pieces)]
        completed.append(prefix + b"".join(drawn))
    return completed
