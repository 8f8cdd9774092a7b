"""The kernel distance between two sets of features (KID), in float64.

The unbiased estimate of the squared maximum mean discrepancy with the kernel (x.y / d + 1)^3 (Bińkowski et al. 2018,
section 4), averaged over subsets of equal size. Unlike the Fréchet distance it has no bias that depends on the number
of pictures, so a few hundred are enough to compare sets. The estimate may be slightly below 0.
"""

import dataclasses

import numpy as np
from absl import logging
from tqdm import tqdm

from jpeglm.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class KernelDistance:
    """KID over subsets.

    Attributes:
      mean: mean of the subsets' estimates; this is the reported number.
      deviation: standard deviation of the subsets' estimates (with divisor n), not the standard error of the mean.
      subsets: number of subsets.
      subset_size: pictures of each side in a subset.
    """

    mean: float
    deviation: float
    subsets: int
    subset_size: int


def kernel_distance(
    a: np.ndarray, b: np.ndarray, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> KernelDistance:
    """KID of features `a` [n, dim] and `b` [m, dim].

    The defaults are those of torch-fidelity, and the same seed draws the same subsets. If a side has fewer than
    `subset_size` pictures, subsets have as many as the smaller side, and a warning is logged.

    Raises:
      InputError: a side has fewer than two pictures, a number is not finite, the numbers of features differ, or
        `subsets` is less than 1 or `subset_size` less than 2.
      ValueError: `a` or `b` does not have two axes.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.ndim != 2 or b.ndim != 2:
        raise ValueError(f"features of shapes {a.shape} and {b.shape} are not [n, dim]")
    if a.shape[1] != b.shape[1]:
        raise InputError(f"features of two networks: {a.shape[1]:,} on one side, {b.shape[1]:,} on the other")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("features hold NaN or infinity: the pictures or the weights are damaged")
    if min(len(a), len(b)) < 2:
        raise InputError(f"KID needs at least two pictures on each side, there are {len(a)} and {len(b)}")
    if subsets < 1 or subset_size < 2:
        raise InputError(f"KID needs a subset of two pictures or more, not {subsets} of {subset_size}")
    size = min(subset_size, len(a), len(b))
    if size < subset_size:
        logging.warning(
            "KID: subsets have %d pictures instead of %d, as there are only %d and %d%s.",
            size,
            subset_size,
            len(a),
            len(b),
            ", and are all the same: the deviation says nothing" if len(a) == len(b) else "",
        )
    rng = np.random.RandomState(seed)  # NumPy's legacy generator, as in torch-fidelity
    estimates = []
    for _ in tqdm(range(subsets), desc="KID", unit=" subsets", dynamic_ncols=True):
        x = a[rng.choice(len(a), size, replace=False)].astype(np.float64)
        y = b[rng.choice(len(b), size, replace=False)].astype(np.float64)
        within = _without_diagonal(_kernel(x, x)) + _without_diagonal(_kernel(y, y))
        estimates.append(within / (size * (size - 1)) - 2 * _kernel(x, y).mean())
    return KernelDistance(float(np.mean(estimates)), float(np.std(estimates)), subsets, size)


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    base = x @ y.T / x.shape[1] + 1.0
    return base * base * base


def _without_diagonal(kernel: np.ndarray) -> float:
    return kernel.sum() - np.trace(kernel)
