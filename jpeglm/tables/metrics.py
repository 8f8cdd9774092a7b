"""Metrics with their own column in a table, besides validity, distances and tokens (`rows.Row`).

A new metric is one entry of `METRICS`. It needs a score of each completed document: one from the codec's evaluation
(`Judged.scores`), or one from the comparison with the original, which is made if the evaluation `measures_rest`.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from skimage.metrics import structural_similarity

# Measures of the n documents of a cell: `features` float32 [pictures, dim], `video` float32 [n, dim] if whole clips
# are measured, and scores float64 [n] by name.
Measures = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Metric:
    """A column of the main table.

    Attributes:
      name: in `Row.scores`, table.csv and table.json.
      header: of the column.
      of_row: computes the number of a row from the measures of its documents and, if these are completions, from those
        of the originals; None if there is no number. A column without any number is left out.
      digits: after the decimal point; None for a share, which is printed in per cent.
      score: name of the score that `of_pictures` computes for each document.
      of_pictures: that score of one document: its completed pictures uint8 [n, height, width, 3], and the true ones.
      note: a sentence below the table that explains the column.
    """

    name: str
    header: str
    of_row: Callable[[Measures, Measures | None], float | None]
    digits: int | None = None
    score: str = ""
    of_pictures: Callable[[np.ndarray, np.ndarray], float] | None = None
    note: str = ""


def mean_of(score: str) -> Callable[[Measures, Measures | None], float | None]:
    """A `Metric.of_row` that computes the mean of a score over the documents."""
    return lambda measured, truth: float(measured[score].mean()) if score in measured else None


def squared_error(pictures: np.ndarray, truth: np.ndarray) -> float:
    """Mean squared error over all values in 0..255 of pictures uint8 [n, height, width, 3]."""
    pairs = zip(pictures, truth, strict=True)
    return float(np.mean([np.square(a.astype(float) - b) for a, b in pairs]))


def ssim(pictures: np.ndarray, truth: np.ndarray) -> float:
    """Mean structural similarity (Wang et al. 2004, Gaussian windows of 11x11) of pictures [n, height, width, 3]."""
    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    pairs = zip(pictures, truth, strict=True)
    return float(np.mean([structural_similarity(a, b, channel_axis=-1, data_range=255, **wang) for a, b in pairs]))


def decibels(squared_error: float) -> float:
    """PSNR in dB for a mean squared error of values in 0..255; infinity if the error is 0."""
    return float("inf") if squared_error == 0 else float(10 * np.log10(255**2 / squared_error))


def _psnr(measured: Measures, truth: Measures | None) -> float | None:
    if truth is None or "squared_error" not in measured:
        return None
    error = float(measured["squared_error"].mean())
    return decibels(error) if error else None


def _true_distance(measured: Measures, truth: Measures | None) -> float | None:
    if truth is None or "squared_error" not in measured:
        return None
    return float(np.linalg.norm(measured["features"] - truth["features"], axis=1).mean())


# In the order of the columns.
METRICS = (
    Metric(
        "concealed",
        "concealed",
        mean_of("concealed"),
        note="“concealed” is the share of the macroblocks to be completed that ffmpeg's decoder made up, or that "
        "never came: a frame that is missing shows the one before it. “valid” wants every slice of every frame, "
        "once and in order, and a decoder without warnings.",
    ),
    Metric(
        "true_distance",
        "to true frames",
        _true_distance,
        digits=3,
        note="“to true frames” is the mean distance between the features of each completed frame and those of the "
        "true one.",
    ),
    Metric(
        "psnr",
        "PSNR, dB",
        _psnr,
        digits=2,
        score="squared_error",
        of_pictures=squared_error,
        note="PSNR is of the squared error of all completed frames of a row together (in RGB), SSIM the mean over "
        "frames; both against the clip's own continuation, of which a prompt allows many.",
    ),
    Metric("ssim", "SSIM", mean_of("ssim"), digits=4, score="ssim", of_pictures=ssim),
)


def score_names() -> set[str]:
    """The names of the scores that `compared` returns."""
    return {metric.score for metric in METRICS if metric.of_pictures}


def compared(pictures: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """The scores of completed pictures uint8 [n, height, width, 3] against the true ones of that shape, by name."""
    return {metric.score: metric.of_pictures(pictures, truth) for metric in METRICS if metric.of_pictures}


def scores_of_row(measured: Measures, truth: Measures | None) -> dict[str, float | None]:
    """The number of each metric, by name."""
    return {metric.name: metric.of_row(measured, truth) for metric in METRICS}
