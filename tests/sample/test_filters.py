"""Filtering agrees with Hugging Face's warpers; draws follow the probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import stats
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from jpeglm.sample.filters import draw, filtered_probabilities
from jpeglm.sample.programs import uniform
from jpeglm.sample.sampler import sampling_key


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 40, 80])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 1.0])
def test_probabilities_equal_hugging_faces_warpers(temperature, top_k, top_p):
    logits = np.random.default_rng(0).normal(scale=3, size=(5, 320)).astype(np.float32)
    theirs = TemperatureLogitsWarper(temperature)(None, torch.from_numpy(logits))
    theirs = TopKLogitsWarper(top_k)(None, theirs) if top_k else theirs
    theirs = TopPLogitsWarper(top_p)(None, theirs) if top_p < 1 else theirs
    ours = filtered_probabilities(jnp.asarray(logits), temperature, top_k, top_p)
    np.testing.assert_allclose(ours, torch.softmax(theirs, -1).numpy(), atol=1e-6)


def test_temperature_zero_takes_the_most_probable():
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(4, 50)))
    probabilities = filtered_probabilities(logits, 0, 40, 0.9)
    np.testing.assert_array_equal(draw(probabilities, jnp.full(4, 0.999)), jnp.argmax(logits, -1))


@pytest.mark.parametrize("temperature", [1e-30, 1e-4, 1e30])
def test_extreme_temperatures_give_probabilities(temperature):
    logits = jnp.asarray([300.0, -jnp.inf, -200.0, 299.0])
    probabilities = filtered_probabilities(logits, temperature, 0, 0.9)
    expected = [1 / 3, 0, 1 / 3, 1 / 3] if temperature > 1 else [1, 0, 0, 0]
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)


def test_a_draw_that_rounding_leaves_without_a_token_takes_the_last_possible_one():
    # Summed in pairs, as XLA does, the sum over all is larger than the one up to the last possible token.
    probabilities = np.zeros((2000, 320), np.float32)
    random = np.random.default_rng(0)
    probabilities[:, :200] = random.dirichlet(np.ones(200), 2000)
    drawn = draw(jnp.asarray(probabilities), jnp.full(2000, np.nextafter(np.float32(1), np.float32(0))))
    assert int(drawn.max()) <= 199 and int(drawn.min()) > 150
    np.testing.assert_array_equal(draw(jnp.asarray([[0.0, 0.5, 0.0]]), jnp.asarray([1.0])), [1])


def test_draws_have_the_given_frequencies_and_never_an_impossible_token():
    logits = jnp.asarray([1.0, -jnp.inf, 0.5, 2.0, -jnp.inf, -1.0])
    probabilities = filtered_probabilities(logits, 1.0, 0, 1.0)
    drawn = draw(jnp.broadcast_to(probabilities, (100_000, 6)), jax.random.uniform(jax.random.key(0), (100_000,)))
    np.testing.assert_allclose(np.bincount(drawn, minlength=6) / 100_000, probabilities, atol=0.005)
    edges = draw(jnp.broadcast_to(probabilities, (2, 6)), jnp.asarray([0.0, np.nextafter(np.float32(1), 0)]))
    np.testing.assert_array_equal(edges, [0, 5])


@pytest.fixture(scope="module")
def uniforms() -> jax.Array:
    """The engine's uniform numbers of 100,000 requests, each at a position of its own."""
    keys = np.stack([sampling_key(0, b"a file", sample) for sample in range(100_000)])
    return jax.jit(jax.vmap(uniform))(keys, np.arange(100_000) % 977)


@pytest.mark.parametrize("temperature", [0.5, 1.7])
@pytest.mark.parametrize("top_k", [0, 3])
@pytest.mark.parametrize("top_p", [0.4, 0.9, 1.0])
def test_100_000_draws_have_the_frequencies_of_hugging_faces_warpers(uniforms, temperature, top_k, top_p):
    logits = np.random.default_rng(1).normal(scale=1.5, size=12).astype(np.float32)
    theirs = TemperatureLogitsWarper(temperature)(None, torch.from_numpy(logits)[None])
    theirs = TopKLogitsWarper(top_k)(None, theirs) if top_k else theirs
    theirs = TopPLogitsWarper(top_p)(None, theirs) if top_p < 1 else theirs
    expected = len(uniforms) * torch.softmax(theirs.double(), -1)[0].numpy()
    probabilities = filtered_probabilities(jnp.asarray(logits), temperature, top_k, top_p)
    drawn = draw(jnp.broadcast_to(probabilities, (len(uniforms), 12)), uniforms)
    counts = np.bincount(drawn, minlength=12)
    possible = expected > 0
    assert not counts[~possible].any()
    if possible.sum() > 1:
        assert stats.chisquare(counts[possible], expected[possible]).pvalue > 1e-4
