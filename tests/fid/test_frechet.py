"""The Fréchet distance against closed forms, the classical formula and other programs, and its spread."""

import mpmath
import numpy as np
import pytest
import scipy.linalg
from absl import logging
from hypothesis import given, settings
from hypothesis import strategies as st

from jpeglm.core.errors import InputError
from jpeglm.fid import frechet
from jpeglm.fid.frechet import Moments, bootstrap, frechet_distance
from tests.fid import peers


def gaussian(seed, count, dim, rank=None, shift=0.0):
    """Correlated features [count, dim] of the given rank."""
    rng = np.random.default_rng(seed)
    rank = rank or dim
    mixing = np.random.default_rng(seed + 1000).normal(size=(rank, dim)) / np.sqrt(rank)
    return rng.normal(size=(count, rank)) @ mixing + shift


def distance(a, b):
    return frechet_distance(Moments([a]), Moments([b]))


def inception_like(seed, count, dim, gap=0.1):
    """Features [count, dim] of mean 0.4 and trace 200 whose covariance's spectrum spans ten orders of magnitude."""
    rng = np.random.default_rng(seed)
    spectrum = 10.0 ** (-10 * (np.arange(dim) / (dim - 1)) ** 0.6)
    deviations = np.sqrt(spectrum * 200 / spectrum.sum()) * np.exp(gap * rng.normal(size=dim))
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(dim, dim)))[0]
    return rng.normal(size=(count, dim)) * deviations @ basis + 0.4


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


@pytest.mark.parametrize("gap", [0.0, 0.1, 1.0])
def test_small_eigenvalues_count_beside_large_ones(gap):
    # By 60 digits on the float64 covariances; the roots of eigenvalues of S1 S2 would be off by 1e-6.
    a, b = inception_like(20, 120, 24, gap), inception_like(21, 150, 24, gap)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    with mpmath.workdps(60):
        values, vectors = mpmath.eigsy(mpmath.matrix(cov_a))
        half = vectors * mpmath.diag([mpmath.sqrt(value) for value in values]) * vectors.T
        root = sum(mpmath.sqrt(value) for value in mpmath.eigsy(half * mpmath.matrix(cov_b) * half, eigvals_only=True))
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b) - 2 * float(root)
    assert distance(a, b) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("n_a", "n_b"), [(150, 150), (150, 700), (700, 150)])
def test_statistics_without_the_pictures_give_the_distance_of_the_pictures(n_a, n_b):
    # Of fewer pictures than features the covariance is singular but for its rounding.
    a, b = inception_like(22, n_a, 300), inception_like(23, n_b, 300)
    statistics = [Moments.from_statistics(x.mean(0), np.cov(x, rowvar=False), len(x)) for x in (a, b)]
    assert frechet_distance(*statistics) == pytest.approx(distance(a, b), rel=1e-9)
    assert frechet_distance(statistics[0], Moments([b])) == pytest.approx(distance(a, b), rel=1e-9)


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
    assert 0.0 <= distance(a, a.copy()) <= 1e-9 * np.trace(np.cov(a, rowvar=False))


@pytest.mark.parametrize("count", [100, 299, 300, 301, 900])
def test_identical_sets_with_the_spectrum_of_inception_are_at_distance_zero(count):
    a = inception_like(24, count, 300)
    covariance = np.cov(a, rowvar=False)
    assert distance(a, a[::-1]) <= 1e-9
    statistics = Moments.from_statistics(a.mean(0), covariance, count)
    assert frechet_distance(statistics, Moments([a])) <= 1e-6


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


@pytest.mark.parametrize("cuts", [[1] * 50, [7, 1, 30, 12], [0, 39, 1, 10], [41, 9], [20, 30]])
def test_no_bit_depends_on_how_the_stream_was_cut(cuts):
    a = gaussian(16, 50, 20, shift=1e3).astype(np.float32)
    whole, streamed = Moments([a]), Moments(np.split(a, np.cumsum(cuts)[:-1]))
    np.testing.assert_array_equal(streamed.mean, whole.mean)
    np.testing.assert_array_equal(streamed.covariance, whole.covariance)
    np.testing.assert_array_equal(streamed.factor(), whole.factor())


@pytest.mark.parametrize("count", [0, 7, 20, 50])
def test_moments_come_back_from_arrays_to_the_bit_and_take_more(count):
    a, more = gaussian(17, count, 20), gaussian(18, 33, 20)
    moments = Moments([a])
    arrays = moments.to_arrays()
    again = Moments.from_arrays(arrays)
    assert again.count == moments.count == count
    for side in (moments, again):
        side.update(more)
    np.testing.assert_array_equal(again.covariance, moments.covariance)
    np.testing.assert_array_equal(again.mean, moments.mean)
    assert len(arrays["rows"]) == count % 20, "what came later must not show in the arrays"


def test_parts_of_a_stream_merge_in_order_to_nearly_the_bits_of_the_whole():
    a = gaussian(19, 130, 20)
    merged = Moments()
    for part in np.split(a, [15, 15, 58, 63]):
        merged.merge(Moments([part]))
    np.testing.assert_allclose(merged.covariance, np.cov(a, rowvar=False), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(merged.mean, a.mean(0), rtol=1e-12, atol=1e-14)
    few = Moments([a[:6]])
    few.merge(Moments([a[6:13]]))
    np.testing.assert_array_equal(few.factor(), Moments([a[:13]]).factor())


def test_a_batch_that_is_refused_leaves_the_moments_as_they_were():
    a = gaussian(25, 30, 20)
    moments = Moments([a])
    with pytest.raises(InputError):
        moments.update(np.vstack([a[:5], np.full((1, 20), np.inf)]))
    with pytest.raises(ValueError, match="do not fit"):
        moments.update(a[:, :19])
    with pytest.raises(ValueError, match="do not fit"):
        Moments([a[:, :0]])
    with pytest.raises(ValueError, match="do not fit"):
        moments.merge(Moments([a[:, :19]]))
    np.testing.assert_array_equal(moments.covariance, Moments([a]).covariance)


def test_features_of_different_length_are_bad_input():
    with pytest.raises(InputError, match="4 on one side, 5 on the other"):
        distance(gaussian(0, 9, 4), gaussian(0, 9, 5))


def test_a_covariance_with_negative_eigenvalues_is_bad_input():
    damaged = Moments.from_statistics(np.zeros(2), np.array([[1.0, 3.0], [3.0, 1.0]]), 9)
    with pytest.raises(InputError, match="negative eigenvalues"):
        frechet_distance(damaged, damaged)


def test_a_small_or_an_unknown_number_of_pictures_is_warned_of_as_it_deserves(monkeypatch):
    told = []
    monkeypatch.setattr(logging, "log_first_n", lambda level, text, n, *values: told.append(text % values))
    a = gaussian(26, 2048, 3)
    statistics = Moments.from_statistics(a.mean(0), np.cov(a, rowvar=False))
    assert frechet_distance(statistics, Moments([a])) <= 1e-9
    assert statistics.count is None and not told
    distance(a, a[:2047])
    frechet_distance(Moments([a[:9]]), statistics)
    assert "2048 pictures (here 2048 and 2047)" in told[0] and "(here 9 and an unknown number)" in told[1]


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


@st.composite
def two_sets(draw):
    """Two sets of 2 to 20 features' vectors of 2 to 12 features, full rank, rank-deficient or fewer than features."""
    dim = draw(st.integers(2, 12))
    counts = draw(st.integers(2, 20)), draw(st.integers(2, 20))
    ranks = draw(st.integers(1, dim)), draw(st.integers(1, dim))
    seed = draw(st.integers(0, 2**31))
    return [gaussian(seed + i, counts[i], dim, ranks[i], shift=0.4) for i in range(2)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(two_sets(), st.integers(0, 2**31), st.floats(0.01, 100))
def test_the_distance_is_symmetric_ignores_rotation_and_a_common_shift_and_scales_by_the_square(sets, seed, factor):
    a, b = sets
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(a.shape[1], a.shape[1])))[0]
    shift = rng.normal(size=a.shape[1])
    value = distance(a, b)
    about = {"rel": 1e-7, "abs": 1e-7 * (np.trace(np.cov(a, rowvar=False)) + np.trace(np.cov(b, rowvar=False)))}
    assert distance(b, a) == pytest.approx(value, **about)
    assert distance(a @ rotation, b @ rotation) == pytest.approx(value, **about)
    assert distance(a + shift, b + shift) == pytest.approx(value, **about)
    assert distance(factor * a, factor * b) / factor**2 == pytest.approx(value, **about)


####################################### Other programs #######################################


def statistics_of(features):
    return {"mu": np.mean(features, axis=0), "sigma": np.cov(features, rowvar=False)}


@pytest.mark.parametrize(("n_a", "n_b"), [(500, 600), (160, 161), (80, 500), (50, 60)])
def test_torch_fidelity_pytorch_fid_and_clean_fid_agree(n_a, n_b):
    # On singular covariances, those of fewer pictures than features, they themselves differ by more than this.
    a, b = inception_like(30, n_a, 160), inception_like(31, n_b, 160)
    ours, (one, other) = distance(a, b), (statistics_of(x) for x in (a, b))
    theirs = {
        "torch-fidelity": peers.torch_fidelity_fid().fid_statistics_to_metric(one, other, verbose=False)[
            "frechet_inception_distance"
        ],
        "pytorch-fid": peers.pytorch_fid().calculate_frechet_distance(*one.values(), *other.values()),
        "clean-fid": peers.clean_fid().frechet_distance(*one.values(), *other.values()),
    }
    assert theirs == {name: pytest.approx(ours, rel=1e-5 if min(n_a, n_b) >= 160 else 3e-4) for name in theirs}


@pytest.mark.slow
@pytest.mark.parametrize("count", [1000, 2100, 5000])
def test_pytorch_fid_agrees_on_2048_features(count):
    a, b = (inception_like(seed, count, 2048).astype(np.float32) for seed in (32, 33))
    theirs = peers.pytorch_fid().calculate_frechet_distance(*statistics_of(a).values(), *statistics_of(b).values())
    assert distance(a, b) == pytest.approx(theirs, rel=1e-5 if count > 2048 else 3e-4)


####################################### The spread #######################################


def test_the_interval_holds_the_mean_distance_of_sets_of_this_size_and_no_percentile_interval_would(monkeypatch):
    # 400 data sets tell the mean distance of 120 pictures a side, and its spread; 60 others are asked for intervals.
    dim, count = 16, 120

    def pair(seed):
        return gaussian_of(seed, 1.0), gaussian_of(seed + 10_000, 1.3)

    def gaussian_of(seed, scale):
        return np.random.default_rng(seed).normal(size=(count, dim)) * scale + (scale - 1)

    truth = np.array([distance(*pair(seed)) for seed in range(400)])
    replicates = []
    resampled_distance = frechet._distance
    monkeypatch.setattr(frechet, "_distance", lambda *x: replicates.append(resampled_distance(*x)) or replicates[-1])
    held = by_percentiles = 0
    deviations = []
    for seed in range(1000, 1060):
        replicates.clear()
        interval = bootstrap(*pair(seed), replicates=50, seed=seed)
        assert interval.value == pytest.approx(distance(*pair(seed)), rel=1e-12)
        assert interval.low < interval.value < interval.high
        held += interval.low <= truth.mean() <= interval.high
        low, high = np.quantile(replicates[1:51], [0.025, 0.975])
        by_percentiles += low <= truth.mean() <= high
        deviations.append(interval.deviation)
    assert held >= 54  # of 60
    assert by_percentiles <= 10
    assert 0.9 < np.mean(deviations) / truth.std(ddof=1) < 1.4


@pytest.mark.parametrize(("n_a", "n_b"), [(60, 70), (12, 90), (12, 14)])
def test_a_resampled_set_is_the_set_with_its_copies(n_a, n_b):
    a, b = gaussian(40, n_a, 20), gaussian(41, n_b, 20, shift=0.2)
    rng = np.random.default_rng(7)
    expected = []
    for _ in range(5):
        chosen_a, chosen_b = a[rng.integers(n_a, size=n_a)], b[rng.integers(n_b, size=n_b)]
        expected.append(distance(chosen_a, chosen_b))
    interval = bootstrap(a, b, replicates=5, seed=7)
    assert interval.deviation == pytest.approx(np.std(expected, ddof=1), rel=1e-9)
    assert interval == bootstrap(a, b, replicates=5, seed=7) != bootstrap(a, b, replicates=5, seed=8)


def test_the_interval_shows_its_progress_and_needs_a_spread(capsys):
    a = gaussian(42, 9, 4)
    interval = bootstrap(a, a + 1e-3, replicates=3)
    assert interval.low == 0.0
    assert "3/3" in capsys.readouterr().err
    with pytest.raises(InputError, match="1 replicates"):
        bootstrap(a, a, replicates=1)
