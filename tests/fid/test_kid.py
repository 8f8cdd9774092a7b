"""KID against torch-fidelity, against the definition, and against what it is an estimate of."""

import inspect
import math

import numpy as np
import pytest
import torch
from absl import logging

from jpeglm.core.errors import InputError
from jpeglm.fid.kid import kernel_distance
from tests.fid import peers


def features(seed, count, dim, shift=0.0):
    return (np.random.default_rng(seed).gamma(0.5, 0.8, size=(count, dim)) + shift).astype(np.float32)


@pytest.mark.parametrize(("n_a", "n_b"), [(300, 300), (220, 500), (100, 101)])
@pytest.mark.parametrize("seed", [2020, 7])
def test_torch_fidelity_gives_the_same_mean_and_deviation_for_the_same_seed(n_a, n_b, seed):
    a, b = features(0, n_a, 64), features(1, n_b, 64, shift=0.05)
    ours = kernel_distance(a, b, subsets=20, subset_size=100, seed=seed)
    metric = peers.torch_fidelity_kid().kid_features_to_metric
    keys = ("kernel_inception_distance_mean", "kernel_inception_distance_std")
    # In float64, where it is exact, and in float32, as it is called.
    for dtype, about in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        sides = (torch.from_numpy(x).to(dtype) for x in (a, b))
        theirs = metric(*sides, kid_subsets=20, kid_subset_size=100, rng_seed=seed, verbose=False)
        assert (ours.mean, ours.deviation) == pytest.approx([theirs[key] for key in keys], rel=about)
    assert (ours.subsets, ours.subset_size) == (20, 100)


def test_defaults_are_torch_fidelitys():
    theirs = peers.torch_fidelity_defaults()
    ours = {name: parameter.default for name, parameter in inspect.signature(kernel_distance).parameters.items()}
    assert ours["subsets"] == theirs["kid_subsets"]
    assert ours["subset_size"] == theirs["kid_subset_size"]
    assert ours["seed"] == theirs["rng_seed"]
    kernel = [theirs[f"kid_kernel_poly_{name}"] for name in ("degree", "gamma", "coef0")]
    assert (theirs["kid_kernel"], kernel) == ("poly", [3, None, 1])


def test_one_subset_of_all_is_the_unbiased_estimate_by_its_definition():
    a, b = features(4, 6, 3), features(5, 6, 3)

    def kernel(x, y):
        return (math.fsum(float(p) * float(q) for p, q in zip(x, y, strict=True)) / 3 + 1) ** 3

    within = sum(kernel(s[i], s[j]) for s in (a, b) for i in range(6) for j in range(6) if i != j) / 30
    between = sum(kernel(x, y) for x in a for y in b) / 36
    value = kernel_distance(a, b, subsets=1, subset_size=6)
    assert value.mean == pytest.approx(within - 2 * between, rel=1e-12)
    assert value.deviation == 0


def test_sets_of_one_distribution_are_at_zero_on_average_however_few():
    # 0 within 4 standard errors of 400 data sets, for 10 pictures and for 80; the seeds are fixed.
    for count in (10, 80):
        estimates = [
            kernel_distance(features(2 * i, count, 8), features(2 * i + 1, count, 8), 1, count).mean
            for i in range(400)
        ]
        assert abs(np.mean(estimates)) < 4 * np.std(estimates) / 20
        assert min(estimates) < 0 < max(estimates)


def test_fewer_pictures_than_a_subset_make_smaller_subsets_and_are_told(monkeypatch):
    told = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: told.append(text % values))
    a, b = features(6, 30, 5), features(7, 40, 5)
    value = kernel_distance(a, b, subsets=4)
    assert value == kernel_distance(a, b, subsets=4, subset_size=30)
    assert value.subset_size == 30
    assert told == ["KID: subsets have 30 pictures instead of 1000, as there are only 30 and 40."]
    kernel_distance(a, b[:30], subsets=2)
    assert "all the same" in told[1]


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        (np.ones((1, 3)), np.ones((9, 3)), {}, "at least two pictures on each side, there are 1 and 9"),
        (np.ones((9, 3)), np.ones((0, 3)), {}, "there are 9 and 0"),
        (np.ones((9, 3)), np.full((9, 3), np.nan), {}, "NaN"),
        (np.ones((9, 3)), np.ones((9, 4)), {}, "3 on one side, 4 on the other"),
        (np.ones((9, 3)), np.ones((9, 3)), {"subsets": 0}, "not 0 of 1000"),
        (np.ones((9, 3)), np.ones((9, 3)), {"subset_size": 1}, "not 100 of 1"),
    ],
)
def test_what_has_no_kernel_distance_is_bad_input(a, b, options, message):
    with pytest.raises(InputError, match=message):
        kernel_distance(a, b, **options)
