"""Scores and pictures of completed documents, however damaged, and the comparison with their originals."""

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
      kept: number of given units (MCUs, frames); fewer than an item has.
      originals: the valid documents that the prompts were cut from, to compare with; or None.

    Yields:
      the judgement of the codec's evaluation for each. With originals, and if the evaluation `measures_rest`, it
      includes the scores of `metrics.compared`.
    """
    for number, document in enumerate(documents):
        judged = codec.evaluation.judge(document, kept)
        if originals and codec.evaluation.measures_rest:
            truth = np.asarray(codec.see(codec.restore(originals[number])))[kept:]
            judged = dataclasses.replace(judged, scores=judged.scores | compared(judged.pictures, truth))
        yield judged
