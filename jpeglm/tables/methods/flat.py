"""The control of flat blocks."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from jpeglm.data.codecs.pictures import PictureCodec
from jpeglm.tables.methods.base import Bench, Completed, Method


class Flat(Method):
    """The plainest rest of a picture that is valid."""

    name = "flat"
    title = "prompt + flat blocks"
    colours = "#2f8068", "#6cc9ab"
    marker = "^"

    def complete(self, bench: Bench, originals: Sequence[bytes], ratio: float, grammar: bool) -> Completed:
        return Completed(with_flat_blocks(bench.codec, originals, ratio))

    def identity(self, bench: Bench, grammar: bool) -> dict[str, Any]:
        return {}

    def note(self, bench: Bench, config: ConfigDict) -> str:
        return f"“{self.title}” has mid-grey {bench.codec.unit}s after the prompt."


def with_flat_blocks(codec: PictureCodec, documents: Sequence[bytes], ratio: float) -> list[bytes]:
    """The prompt, then flat mid-grey units to the end: a valid file."""
    return [codec.complete_with_flat(*codec.cut(document, ratio)) for document in documents]
