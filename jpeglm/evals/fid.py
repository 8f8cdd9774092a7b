"""The Fréchet distance between two sets of features, in float64.

    d = |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

(Heusel et al. 2017, equation 6). With factors S = F^T F the trace of the root is the nuclear norm of F1 F2^T, the sum
of its singular values: no matrix root is taken, nothing turns complex, and for n pictures of n < d features the
factor is just the n centred rows, so the decomposition is n x n.
"""

from collections.abc import Iterable

import numpy as np
import scipy.linalg
from absl import logging

from jpeglm.errors import InputError

RELIABLE_PICTURES = 2048  # below, the distance is biased upwards, and rank-deficient for the 2,048 Inception features


class Moments:
    """Mean and unbiased covariance of feature vectors that arrive in batches, in float64.

    Batches are merged around their own means (Chan, Golub and LeVeque 1979), so a large common offset costs no digits.
    The vectors themselves are kept as long as there are fewer of them than dimensions.
    """

    def __init__(self, batches: Iterable[np.ndarray] = ()):
        self.count = 0
        self.mean: np.ndarray | None = None  # [dim]
        self._scatter: np.ndarray | None = None  # [dim, dim], sum of (x - mean)(x - mean)^T; None while rows are kept
        self._rows: np.ndarray | None = None  # [count, dim] while count < dim
        for batch in batches:
            self.update(batch)

    def update(self, features: np.ndarray) -> None:
        """Adds a batch of features [n, dim]; raises InputError where a number is not finite."""
        features = np.asarray(features, np.float64)
        if features.ndim != 2 or (self.mean is not None and features.shape[1] != len(self.mean)):
            raise ValueError(f"features of shape {features.shape} do not fit [n, dim]")
        if not np.isfinite(features).all():
            raise InputError("features hold NaN or infinity: the pictures or the weights are damaged")
        if len(features) == 0:
            return
        batch = Moments()
        batch.count, batch.mean = len(features), features.mean(axis=0)
        if batch.count < features.shape[1]:
            batch._rows = features
        else:
            batch._scatter = _scatter(features)
        self.merge(batch)

    def merge(self, other: "Moments") -> None:
        """Adds what `other` has seen."""
        if other.count == 0:
            return
        if self.count == 0:
            self.count, self.mean, self._scatter, self._rows = other.count, other.mean, other._scatter, other._rows
            return
        count = self.count + other.count
        shift = other.mean - self.mean
        if self._rows is not None and other._rows is not None and count < len(self.mean):
            self._rows = np.concatenate([self._rows, other._rows])
        else:
            between = np.outer(shift, shift) * (self.count * other.count / count)
            self._scatter, self._rows = self._scatter_now() + other._scatter_now() + between, None
        self.mean = self.mean + shift * (other.count / count)
        self.count = count

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance, float64 [dim, dim]; raises InputError for fewer than two pictures."""
        return self._scatter_now() / self._degrees_of_freedom()

    def factor(self) -> np.ndarray:
        """A matrix F [rank or count, dim] with F^T F = covariance."""
        if self._rows is not None:
            return (self._rows - self.mean) / np.sqrt(self._degrees_of_freedom())
        values, vectors = scipy.linalg.eigh(self.covariance)
        # What rounding leaves of zero eigenvalues is of either sign, and its root would be 1e-8 instead of 1e-16.
        real = values > values[-1] * len(values) * np.finfo(np.float64).eps
        return np.sqrt(values[real])[:, None] * vectors[:, real].T

    def _scatter_now(self) -> np.ndarray:
        return _scatter(self._rows) if self._rows is not None else self._scatter

    def _degrees_of_freedom(self) -> int:
        if self.count < 2:
            raise InputError(f"a distance needs at least two pictures on each side, there is {self.count or 'none'}")
        return self.count - 1


def _scatter(rows: np.ndarray) -> np.ndarray:
    centred = rows - rows.mean(axis=0)
    return centred.T @ centred


def frechet_distance(a: Moments, b: Moments) -> float:
    """The squared Fréchet distance between two Gaussians with these moments, at least 0.

    Warns once per process where a side has fewer than 2,048 pictures. Raises InputError where one has fewer than two.
    """
    root_a, root_b = a.factor(), b.factor()
    if min(a.count, b.count) < RELIABLE_PICTURES:
        logging.log_first_n(
            logging.WARNING,
            "Distances of fewer than %d pictures (here %d and %d) are biased upwards: compare only distances of "
            "the same number of pictures.",
            1,
            RELIABLE_PICTURES,
            a.count,
            b.count,
        )
    trace_of_root = scipy.linalg.svdvals(root_a @ root_b.T).sum() if root_a.size and root_b.size else 0.0
    between_means = np.square(a.mean - b.mean).sum()
    return max(0.0, float(between_means + np.square(root_a).sum() + np.square(root_b).sum() - 2.0 * trace_of_root))
