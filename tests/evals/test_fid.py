"""The Fréchet distance against closed forms and against the classical formula."""

import mpmath
import numpy as np
import pytest
import scipy.linalg

from jpeglm.errors import InputError
from jpeglm.evals.fid import Moments, frechet_distance


def gaussian(seed, count, dim, rank=None, shift=0.0):
    """Correlated features [count, dim] of the given rank."""
    rng = np.random.default_rng(seed)
    rank = rank or dim
    mixing = np.random.default_rng(seed + 1000).normal(size=(rank, dim)) / np.sqrt(rank)
    return rng.normal(size=(count, rank)) @ mixing + shift


def distance(a, b):
    return frechet_distance(Moments([a]), Moments([b]))


def classical(a, b):
    """|mu1 - mu2|^2 + tr(S1 + S2 - 2 sqrtm(S1 S2)), as it is usually computed."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    return np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2 * root)


@pytest.mark.parametrize(("n_a", "n_b"), [(300, 300), (300, 100), (41, 64), (200, 41)])
def test_full_rank_distances_equal_the_classical_formula(n_a, n_b):
    a, b = gaussian(0, n_a, 40), gaussian(1, n_b, 40, shift=0.3)
    assert distance(a, b) == pytest.approx(classical(a, b), rel=1e-8)


@pytest.mark.parametrize(
    ("n_a", "n_b", "rank"),
    [(15, 20, 40), (40, 40, 40), (39, 40, 40), (2, 30, 40), (15, 300, 40), (300, 200, 6), (20, 20, 6)],
    ids=["n<d", "n=d", "n=d-1 and n=d", "two pictures", "n<d and n>d", "rank-deficient", "both"],
)
def test_rank_deficient_distances_equal_the_classical_formula(n_a, n_b, rank):
    # On singular matrices the classical formula itself is only good to the root of the rounding error, about 1e-8 for
    # each vanishing eigenvalue; the exact test is the next one.
    a, b = gaussian(2, n_a, 40, rank), gaussian(3, n_b, 40, rank, shift=0.1)
    assert distance(a, b) == pytest.approx(classical(a, b), rel=2e-5)


def test_n_below_d_equals_an_exact_computation_in_the_common_span():
    # The singular values of the centred cross matrix, by eigenvalues with 40 digits.
    a, b = gaussian(4, 4, 30), gaussian(5, 5, 30, shift=0.2)
    xa, xb = (a - a.mean(0)) / np.sqrt(3), (b - b.mean(0)) / 2
    with mpmath.workdps(40):
        cross = mpmath.matrix(xa @ xb.T)
        root = sum(mpmath.sqrt(abs(value)) for value in mpmath.eigsy(cross * cross.T, eigvals_only=True))
    expected = np.square(a.mean(0) - b.mean(0)).sum() + (xa**2).sum() + (xb**2).sum() - 2 * float(root)
    assert distance(a, b) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("count", [20, 40, 300], ids=["n<d", "n=d", "n>d"])
def test_equal_covariances_leave_the_squared_distance_of_the_means(count):
    a = gaussian(6, count, 40)
    shift = np.linspace(-1, 1, 40)
    assert distance(a, a + shift) == pytest.approx(np.square(shift).sum(), rel=1e-9)


@pytest.mark.parametrize("rank", [40, 5])
def test_scaling_a_set_gives_the_closed_form(rank):
    # Sb = 9 Sa: the trace of (Sa Sb)^(1/2) is 3 tr Sa, so the distance is |2 mean|^2 + 4 tr Sa.
    a = gaussian(7, 200, 40, rank, shift=0.5)
    expected = 4 * np.square(a.mean(0)).sum() + 4 * np.trace(np.cov(a, rowvar=False))
    assert distance(a, 3 * a) == pytest.approx(expected, rel=1e-9)


def test_commuting_covariances_give_the_closed_form():
    rng = np.random.default_rng(8)
    noise = rng.normal(size=(500, 17))
    basis = np.linalg.qr(noise - noise.mean(0))[0] * np.sqrt(499)  # uncorrelated columns of variance 1, mean 0
    deviations_a, deviations_b = rng.uniform(0.1, 2, 17), rng.uniform(0.1, 2, 17)
    value = distance(basis * deviations_a, basis * deviations_b)
    assert value == pytest.approx(np.square(deviations_a - deviations_b).sum(), rel=1e-9)


@pytest.mark.parametrize(("count", "rank"), [(20, 40), (40, 40), (300, 40), (300, 5), (20, 5)])
def test_identical_sets_are_at_distance_zero(count, rank):
    a = gaussian(9, count, 40, rank, shift=3.0)
    assert 0.0 <= distance(a, a.copy()) <= 1e-6 * np.trace(np.cov(a, rowvar=False))


@pytest.mark.parametrize(("n_a", "n_b"), [(20, 30), (20, 300), (200, 300)])
def test_the_distance_is_symmetric_and_ignores_order(n_a, n_b):
    a, b = gaussian(10, n_a, 40), gaussian(11, n_b, 40)
    value = distance(a, b)
    assert distance(b, a) == pytest.approx(value, rel=1e-9)
    assert distance(a[::-1], np.random.default_rng(0).permutation(b)) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("count", [10, 100])
def test_constant_pictures_are_at_the_distance_of_their_means_and_the_other_trace(count):
    constant, a = np.full((count, 40), 0.25), gaussian(12, 90, 40)
    expected = np.square(a.mean(0) - 0.25).sum() + np.trace(np.cov(a, rowvar=False))
    assert distance(constant, a) == pytest.approx(expected, rel=1e-9)
    assert distance(constant, constant + 1) == pytest.approx(40, rel=1e-9)


@pytest.mark.parametrize("sizes", [[7, 1, 30, 12], [1] * 50, [60, 3, 100], [39, 1], [39, 2]])
def test_streamed_moments_equal_those_of_the_whole(sizes):
    # A common offset of 1e6 would leave nothing of a covariance computed from sums of squares.
    a = gaussian(13, sum(sizes), 40, shift=1e6)
    moments = Moments(np.split(a, np.cumsum(sizes)[:-1]))
    assert moments.count == len(a)
    np.testing.assert_allclose(moments.mean, a.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(a, rowvar=False), rtol=1e-7, atol=1e-7)
    factor = moments.factor()
    np.testing.assert_allclose(factor.T @ factor, np.cov(a, rowvar=False), rtol=1e-7, atol=1e-7)


def test_merged_moments_equal_those_of_the_union_and_float32_features_are_summed_in_float64():
    a = gaussian(14, 500, 40, shift=1e3).astype(np.float32)
    merged = Moments([a[:20]])
    merged.merge(Moments([a[20:30]]))
    merged.merge(Moments())
    merged.merge(Moments([a[30:]]))
    assert merged.count == 500
    np.testing.assert_allclose(merged.covariance, np.cov(a.astype(np.float64), rowvar=False), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_pictures_are_bad_input(count):
    enough = Moments([gaussian(15, 9, 4)])
    few = Moments([np.ones((count, 4))])
    for pair in ((few, enough), (enough, few)):
        with pytest.raises(InputError, match="at least two pictures"):
            frechet_distance(*pair)


def test_features_that_are_not_finite_are_bad_input():
    with pytest.raises(InputError, match="NaN"):
        Moments([np.array([[1.0, np.nan]])])
