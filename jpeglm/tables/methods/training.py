"""The controls that continue with other pictures: the mean of training pictures, or a random one of them."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from jpeglm.data.codecs.pictures import PictureCodec
from jpeglm.tables.context import TRAINING_PICTURES, Context
from jpeglm.tables.methods.base import Completed, Method, documents_identity, random_of


class TrainingMean(Method):
    """The result of a model that knows the mean picture and ignores the prompt."""

    name = "training_mean"
    title = "prompt + training mean"
    colours = "#7450b4", "#b99cf0"
    marker = "v"

    def complete(self, context: Context, originals: Sequence[bytes], ratio: float, grammar: bool) -> Completed:
        mean = mean_document(context.codec, context.training_documents())
        return Completed(with_rest_of(context.codec, originals, ratio, [mean] * len(originals)))

    def identity(self, context: Context, grammar: bool) -> dict[str, Any]:
        return {"pictures": documents_identity(context.training_documents())}

    def note(self, context: Context, config: ConfigDict) -> str:
        return (
            f"“{self.title}” has the {context.codec.unit}s of the mean of {_count(context)} training pictures there."
        )


class TrainingPicture(Method):
    """The result of a model that recites a training picture and ignores the prompt."""

    name = "training_picture"
    title = "prompt + rest of a random training picture"
    colours = "#8a6d3b", "#d9bd8b"
    marker = "X"

    def complete(self, context: Context, originals: Sequence[bytes], ratio: float, grammar: bool) -> Completed:
        others = random_others(originals, context.training_documents(), context.seed)
        return Completed(with_rest_of(context.codec, originals, ratio, others))

    def identity(self, context: Context, grammar: bool) -> dict[str, Any]:
        return {"seed": context.seed, "pictures": documents_identity(context.training_documents())}

    def note(self, context: Context, config: ConfigDict) -> str:
        return (
            f"“{self.title}” has the {context.codec.unit}s of one of {_count(context)} training pictures there, drawn "
            "without regard to the prompt."
        )


def _count(context: Context) -> str:
    return f"{min(TRAINING_PICTURES, context.manifest['splits']['train']['documents']):,}"


def with_rest_of(
    codec: PictureCodec, documents: Sequence[bytes], ratio: float, others: Sequence[bytes]
) -> list[bytes]:
    """Each prompt, completed with the units at the missing places of its (canonical) partner in `others`: valid files.

    DC prediction restarts at each MCU here, so MCUs of another document look the same as there.
    """

    def joined(document: bytes, other: bytes) -> bytes:
        return codec.cut(document, ratio)[0] + other[len(codec.cut(other, ratio)[0]) :]

    return [joined(document, other) for document, other in zip(documents, others, strict=True)]


def random_others(documents: Sequence[bytes], pool: Sequence[bytes], seed: int) -> list[bytes]:
    """One of `pool` for each document; the choice depends only on (seed, document)."""
    return [pool[int(random_of(seed, document).integers(len(pool)))] for document in documents]


def mean_document(codec: PictureCodec, documents: Iterable[bytes]) -> bytes:
    """The canonical document of the pictures' mean, pixel by pixel."""
    total: np.ndarray | float = 0.0
    count = 0
    for document in documents:
        total = total + np.asarray(codec.decode(document), np.float64)
        count += 1
    return codec.encode(Image.fromarray(np.rint(total / count).astype(np.uint8), codec.mode))
