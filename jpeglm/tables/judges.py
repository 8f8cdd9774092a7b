"""Scores and pictures of completed documents, however damaged they are, and comparison with their originals."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from skimage.metrics import structural_similarity

from jpeglm.data.codecs import Codec
from jpeglm.data.codecs.base import Judged


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
      what the codec's evaluation says of each. With originals, and if the evaluation `measures_rest`, there are two
      more scores of the completed pictures: `squared_error`, the mean over all values 0..255, and `ssim`, the mean
      structural similarity (Wang et al. 2004, Gaussian windows of 11x11).
    """
    for number, document in enumerate(documents):
        judged = codec.evaluation.judge(document, kept)
        if originals and codec.evaluation.measures_rest:
            truth = np.asarray(codec.see(codec.restore(originals[number])))[kept:]
            judged = dataclasses.replace(judged, scores=judged.scores | _compared(judged.pictures, truth))
        yield judged


def _compared(pictures: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """How far pictures uint8 [n, height, width, 3] are from others."""
    pairs = list(zip(pictures, truth, strict=True))
    return {
        "squared_error": float(np.mean([np.square(a.astype(float) - b) for a, b in pairs])),
        "ssim": float(np.mean([_ssim(a, b) for a, b in pairs])),
    }


def _ssim(frame: np.ndarray, other: np.ndarray) -> float:
    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return structural_similarity(frame, other, channel_axis=-1, data_range=255, **wang)


def psnr(squared_error: float) -> float:
    """Decibels of a mean squared error of values 0..255; infinite for none."""
    return float("inf") if squared_error == 0 else 10 * np.log10(255**2 / squared_error)
