"""The control that repeats the last given frame."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from jpeglm.data.codecs.clips import ClipCodec
from jpeglm.tables.context import Context
from jpeglm.tables.methods.base import Completed, Method


class LastFrame(Method):
    """The result of a model that knows nothing about motion."""

    name = "last_frame"
    title = "prompt + last frame repeated"
    colours = "#2f8068", "#6cc9ab"
    marker = "*"
    is_compared_in_full = True

    def complete(self, context: Context, originals: Sequence[bytes], ratio: float, grammar: bool) -> Completed:
        return Completed(with_last_frame(context.codec, originals, ratio))

    def identity(self, context: Context, grammar: bool) -> dict[str, Any]:
        return {}

    def note(self, context: Context, config: ConfigDict) -> str:
        return f"“{self.title}” copies the last frame that was given, in skipped slices."


def with_last_frame(codec: ClipCodec, documents: Sequence[bytes], ratio: float) -> list[bytes]:
    """The prompt, then its last frame repeated: a valid file."""
    return [codec.complete_with_last(*codec.cut(document, ratio)) for document in documents]
