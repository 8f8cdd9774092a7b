"""Scores and pictures of completed documents, however damaged they are, and comparison with their originals."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from jpeglm.data.codecs import Codec
from jpeglm.data.codecs.base import Judged
from jpeglm.tables.metrics import compared


def judge(
    codec: Codec, documents: Iterable[bytes], kept: int, originals: Sequence[bytes] | None = None
) -> Iterator[Judged]:
    """Judges each document.

    Args:
      codec: of the documents.
      documents: any bytes.
      kept: how many units (MCUs, frames) were given; fewer than there are.
      originals: the valid documents whose beginnings were given, to compare with; or None.

    Yields:
      what the codec's evaluation says of each. With originals, and if the evaluation `measures_rest`, there are also
      the scores of `metrics.compared`.
    """
    for number, document in enumerate(documents):
        judged = codec.evaluation.judge(document, kept)
        if originals and codec.evaluation.measures_rest:
            truth = np.asarray(codec.see(codec.restore(originals[number])))[kept:]
            judged = dataclasses.replace(judged, scores=judged.scores | compared(judged.pictures, truth))
        yield judged
