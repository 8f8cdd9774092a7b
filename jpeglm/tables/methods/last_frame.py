"""The control of a film that stops."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from jpeglm.data.codecs.clips import ClipCodec
from jpeglm.tables.methods.base import Bench, Completed, Method


class LastFrame(Method):
    """What a model of clips is worth that knows nothing of motion."""

    name = "last_frame"
    title = "prompt + last frame repeated"
    colours = "#2f8068", "#6cc9ab"
    marker = "*"

    def complete(self, bench: Bench, originals: Sequence[bytes], ratio: float, grammar: bool) -> Completed:
        return Completed(with_last_frame(bench.codec, originals, ratio))

    def identity(self, bench: Bench, grammar: bool) -> dict[str, Any]:
        return {}

    def note(self, bench: Bench, config: ConfigDict) -> str:
        return f"“{self.title}” copies the last frame that was given, in skipped slices."


def with_last_frame(codec: ClipCodec, documents: Sequence[bytes], ratio: float) -> list[bytes]:
    """The prompt, then its last frame again and again: a valid file."""
    return [codec.complete_with_last(*codec.cut(document, ratio)) for document in documents]
