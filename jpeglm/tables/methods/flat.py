"""The control of flat blocks."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from jpeglm.data.codecs.pictures import PictureCodec
from jpeglm.tables.context import Context
from jpeglm.tables.methods.base import Completed, Method


class Flat(Method):
    """The simplest valid rest of a picture."""

    name = "flat"
    title = "prompt + flat blocks"
    colours = "#2f8068", "#6cc9ab"
    marker = "^"

    def complete(self, context: Context, originals: Sequence[bytes], ratio: float, grammar: bool) -> Completed:
        return Completed(with_flat_blocks(context.codec, originals, ratio))

    def identity(self, context: Context, grammar: bool) -> dict[str, Any]:
        return {}

    def note(self, context: Context, config: ConfigDict) -> str:
        return f"“{self.title}” has mid-grey {context.codec.unit}s after the prompt."


def with_flat_blocks(codec: PictureCodec, documents: Sequence[bytes], ratio: float) -> list[bytes]:
    """The prompt, then flat mid-grey units to the end: a valid file."""
    return [codec.complete_with_flat(*codec.cut(document, ratio)) for document in documents]
