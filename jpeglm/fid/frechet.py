"""The Fréchet distance between two sets of features, in float64.

    d = |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

(Heusel et al. 2017, equation 6). With factors S = F^T F the trace of the root is the nuclear norm of F1 F2^T, the sum
of its singular values. So no matrix square root is computed, no complex numbers appear, and no eigenvalues are
squared; squaring would lose the digits of eigenvalues far below the largest. With n pictures and d features, the
factor is the n centred and scaled rows if n < d, and a Cholesky factor of the covariance otherwise.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Self

import numpy as np
import scipy.linalg
from absl import logging
from tqdm import tqdm

from jpeglm.core.errors import InputError

RELIABLE_PICTURES = 2048  # with fewer, the distance is biased upwards, and Inception's covariance is singular
_UNCOUNTED = 2  # stands for an unknown number of pictures: for 2, scatter and covariance are equal
_ROUNDING = 1e-3  # relative error of the trace that rounding to float32 may cause, with a wide margin


@dataclasses.dataclass(frozen=True)
class _Sums:
    """Number, mean and scatter matrix of a set of vectors.

    Attributes:
      count: number of vectors.
      mean: float64 [dim].
      scatter: float64 [dim, dim], the sum of (x - mean)(x - mean)^T.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray


class Moments:
    """Mean and unbiased covariance of feature vectors that arrive in batches, in float64.

    Vectors are collected in blocks of `dim` vectors. A full block is folded into a mean and a scatter matrix around
    that mean (merged as in Chan, Golub and LeVeque 1979), so that a large common offset costs no precision. Blocks do
    not end where batches end, so the result is bit-identical for any batch size.
    """

    def __init__(self, batches: Iterable[np.ndarray] = ()):
        self._folded: _Sums | None = None  # None: no block is folded yet
        self._is_counted = True  # False for statistics without a count; then `_folded.count` is `_UNCOUNTED`
        self._block = np.empty((0, 0))  # [dim, dim] after the first batch; its first `_kept` rows are not yet folded
        self._kept = 0
        for batch in batches:
            self.update(batch)

    @classmethod
    def from_statistics(cls, mean: np.ndarray, covariance: np.ndarray, count: int | None = None) -> Self:
        """Moments from a mean [dim], an unbiased covariance [dim, dim] and the number of pictures, if it is known.

        Raises:
          ValueError: `count` is less than 2.
        """
        if count is not None and count < 2:
            raise ValueError(f"a covariance of {count} pictures")
        moments = cls()
        moments._is_counted = count is not None
        number = _UNCOUNTED if count is None else count
        scatter = np.array(covariance, np.float64) * (number - 1)
        moments._folded = _Sums(number, np.array(mean, np.float64), scatter)
        return moments

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """The exact inverse of `to_arrays`."""
        moments = cls()
        folded, rows = int(arrays["folded"]), arrays["rows"]
        if folded:
            moments._is_counted = folded > 0
            number = folded if folded > 0 else _UNCOUNTED
            moments._folded = _Sums(number, np.array(arrays["mean"]), np.array(arrays["scatter"]))
        if len(rows):
            moments.update(rows)
        return moments

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The complete state, for another process.

        Returns:
          `folded` int64 [], the number of vectors in `mean` and `scatter`, -1 if unknown; `mean` float64 [dim];
          `scatter` float64 [dim, dim]; `rows` float64 [kept, dim], the vectors not yet folded. If nothing is folded,
          the first dimension of `mean` and `scatter` is 0; if no vector is kept, that of `rows` is 0.
        """
        dim = self.dim
        folded = self._folded or _Sums(0, np.empty(0), np.empty((0, dim)))
        return {
            "folded": np.array(folded.count if self._is_counted else -1, np.int64),
            "mean": folded.mean,
            "scatter": folded.scatter,
            "rows": self._rows.copy() if self._kept else np.empty((0, dim)),
        }

    @property
    def count(self) -> int | None:
        """Number of vectors; None for statistics that do not record it."""
        return self._seen if self._is_counted else None

    @property
    def dim(self) -> int:
        """Features per vector; 0 before the first vector."""
        return len(self._folded.mean) if self._folded else self._block.shape[1]

    @property
    def mean(self) -> np.ndarray:
        """Mean vector, float64 [dim]. Raises InputError if there is no picture."""
        if self._kept == 0:
            if self._folded is None:
                raise InputError("there is no picture")
            return self._folded.mean
        mean = self._rows.mean(axis=0)
        if self._folded is None:
            return mean
        return self._folded.mean + (mean - self._folded.mean) * (self._kept / self._seen)

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance, float64 [dim, dim]. Raises InputError for fewer than two pictures."""
        freedom = self._degrees_of_freedom()
        return self._all().scatter / freedom

    def update(self, features: np.ndarray) -> None:
        """Adds a batch of features [n, dim].

        Raises:
          InputError: a feature is not finite.
          ValueError: the shape does not fit, or the number of pictures so far is unknown.
        """
        features = np.asarray(features)
        if not self._is_counted:
            raise ValueError("statistics of an unknown number of pictures cannot be added to")
        if features.ndim != 2 or features.shape[1] == 0 or features.shape[1] != (self.dim or features.shape[1]):
            raise ValueError(f"features of shape {features.shape} do not fit [n, {self.dim or 'dim'}]")
        if not np.isfinite(features).all():
            raise InputError("features hold NaN or infinity: the pictures or the weights are damaged")
        if not len(self._block):
            self._block = np.empty((features.shape[1], features.shape[1]))
        while len(features):
            taken = min(len(features), len(self._block) - self._kept)
            self._block[self._kept : self._kept + taken] = features[:taken]
            self._kept += taken
            features = features[taken:]
            if self._kept == len(self._block):
                self._folded, self._kept = self._all(), 0

    def merge(self, other: "Moments") -> None:
        """Adds the vectors of `other`.

        Raises:
          ValueError: the numbers of features differ, or one of the numbers of pictures is unknown.
        """
        if not (self._is_counted and other._is_counted):
            raise ValueError("statistics of an unknown number of pictures cannot be merged")
        if other._folded:
            if other.dim != (self.dim or other.dim):
                raise ValueError(f"moments of {other.dim} features do not fit {self.dim}")
            self._folded = _united(self._folded, other._folded)
        if other._kept:
            self.update(other._rows)

    def factor(self) -> np.ndarray:
        """A matrix F, float64 [count or rank, dim], with F^T F = covariance.

        Raises:
          InputError: there are fewer than two pictures, or the covariance has negative eigenvalues.
        """
        freedom = self._degrees_of_freedom()
        return _cholesky(self.covariance) if self._folded else (self._rows - self.mean) / np.sqrt(freedom)

    @property
    def _rows(self) -> np.ndarray:
        return self._block[: self._kept]

    @property
    def _seen(self) -> int:
        return (self._folded.count if self._folded else 0) + self._kept

    def _all(self) -> _Sums:
        """Number, mean and scatter of the folded and the kept vectors together."""
        if self._kept == 0:
            assert self._folded is not None  # callers make sure that there is a vector
            return self._folded
        mean = self._rows.mean(axis=0)
        centred = self._rows - mean
        return _united(self._folded, _Sums(self._kept, mean, centred.T @ centred))

    def _degrees_of_freedom(self) -> int:
        if self._seen < 2:
            raise InputError(f"a distance needs at least two pictures on each side, there is {self._seen or 'none'}")
        return self._seen - 1


def _united(a: _Sums | None, b: _Sums) -> _Sums:
    """Number, mean and scatter of all vectors of `a` and `b`."""
    if a is None:
        return b
    count = a.count + b.count
    shift = b.mean - a.mean
    between = np.outer(shift, shift) * (a.count * b.count / count)
    return _Sums(count, a.mean + shift * (b.count / count), a.scatter + b.scatter + between)


def _cholesky(covariance: np.ndarray) -> np.ndarray:
    """F [rank, dim] with F^T F = covariance, by pivoted Cholesky decomposition, which stops at the numerical rank."""
    upper, pivots, rank, _ = scipy.linalg.lapack.dpstrf(covariance, lower=0)
    factor = np.zeros((rank, len(covariance)))
    factor[:, pivots - 1] = np.triu(upper)[:rank]  # LAPACK counts from 1 and does not clear the other triangle
    trace = np.trace(covariance)
    if abs(np.square(factor).sum() - trace) > _ROUNDING * trace:
        raise InputError("the covariance has negative eigenvalues: the statistics are damaged")
    return factor


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared Fréchet distance between two Gaussians with these moments, at least 0.

    Logs a warning, once per process, if a side has fewer than 2,048 pictures.

    Raises:
      InputError: a side has fewer than two pictures, the numbers of features differ, or a covariance has negative
        eigenvalues.
    """
    roots = a.factor(), b.factor()
    if a.dim != b.dim:
        raise InputError(f"features of two networks: {a.dim:,} on one side, {b.dim:,} on the other")
    if any(side.count is not None and side.count < RELIABLE_PICTURES for side in (a, b)):
        logging.log_first_n(
            logging.WARNING,
            "Distances of fewer than %d pictures (here %s and %s) are biased upwards, and implementations differ in "
            "the fourth digit: compare only distances of the same number of pictures by the same program.",
            1,
            RELIABLE_PICTURES,
            *("an unknown number" if side.count is None else side.count for side in (a, b)),
        )
    return _distance(a.mean, roots[0], b.mean, roots[1])


def _distance(mean_a: np.ndarray, root_a: np.ndarray, mean_b: np.ndarray, root_b: np.ndarray) -> float:
    """The distance from means [dim] and factors [any, dim] of the covariances."""
    trace_of_root = scipy.linalg.svdvals(root_a @ root_b.T).sum() if root_a.size and root_b.size else 0.0
    traces = np.square(root_a).sum() + np.square(root_b).sum()
    return max(0.0, float(np.square(mean_a - mean_b).sum() + traces - 2.0 * trace_of_root))


@dataclasses.dataclass(frozen=True)
class Interval:
    """A Fréchet distance and its spread.

    Attributes:
      value: the distance between the given sets.
      deviation: standard deviation of the distance over resampled sets.
      low: lower end of the interval, value - 1.96 deviation, at least 0.
      high: its upper end, value + 1.96 deviation.
    """

    value: float
    deviation: float
    low: float
    high: float


def bootstrap(features_a: np.ndarray, features_b: np.ndarray, replicates: int = 200, seed: int = 0) -> Interval:
    """A 95% interval of the Fréchet distance, from sets of the same size drawn from these with replacement.

    The interval covers the random choice of pictures: in about 95 of 100 experiments, or more, it contains the mean
    distance between sets of *these sizes*. It does not cover the upward bias of small sets: the distance between
    infinitely large sets may be far below it. It also does not cover choices that were not random (captions, seeds,
    the checkpoint), or pictures that depend on each other, such as two made from one.

    Resampled sets contain duplicates, so their distances are biased upwards once more: percentile intervals lie above
    the true value, and reflected ("basic") intervals below it. So only the standard deviation of the resampled
    distances is used, around `value`. It is close to the true deviation if the distributions differ clearly. It is two
    to three times too large if they are nearly equal, or if there are far fewer pictures than features; the interval
    is then too wide.

    Args:
      features_a: [n, dim].
      features_b: [m, dim].
      replicates: number of resampled pairs of sets; one takes about a second for 2,000 pictures with 2,048 features.
      seed: of the resampling.

    Raises:
      InputError: `replicates` is less than 2, a side has fewer than two pictures, a number is not finite, or the
        numbers of features differ.
    """
    if replicates < 2:
        raise InputError(f"{replicates} replicates have no spread: two or more are needed")
    value = frechet_distance(Moments([features_a]), Moments([features_b]))
    sides = [np.asarray(features, np.float64) for features in (features_a, features_b)]
    rng = np.random.default_rng(seed)
    distances = []
    for _ in tqdm(range(replicates), desc="bootstrap", unit=" replicates", dynamic_ncols=True):
        (mean_a, root_a), (mean_b, root_b) = (_resampled(side, rng) for side in sides)
        distances.append(_distance(mean_a, root_a, mean_b, root_b))
    deviation = float(np.std(distances, ddof=1))
    return Interval(value, deviation, max(0.0, value - 1.96 * deviation), value + 1.96 * deviation)


def _resampled(features: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Mean [dim] and a factor [any, dim] of the covariance of n vectors drawn with replacement from `features`.

    `features`: float64 [n, dim].
    """
    count, dim = features.shape
    copies = np.bincount(rng.integers(count, size=count), minlength=count)
    mean = copies @ features / count
    drawn = copies > 0  # about 63%; a vector drawn k times is one row, multiplied by sqrt(k)
    rows = (features[drawn] - mean) * np.sqrt(copies[drawn] / (count - 1))[:, None]
    return mean, rows if len(rows) < dim else _cholesky(rows.T @ rows)
