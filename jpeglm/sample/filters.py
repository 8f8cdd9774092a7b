"""From logits to one token: temperature, top-k, top-p, and a draw by inversion."""

import jax
import jax.numpy as jnp
import numpy as np

NOT_FINITE = "the model's probabilities are not numbers: a damaged or diverged checkpoint"


def are_finite(logits: jax.Array, vocab_size: int) -> jax.Array:
    """Whether logits [..., padded vocab] give probabilities at all: bool [...].

    Every logit of the vocabulary must be finite; those of its padding are minus infinity. Otherwise sampling and
    scoring stop with `NOT_FINITE`: greedy decoding, for one, would silently take token 0.
    """
    return jnp.all(jnp.isfinite(logits[..., :vocab_size]), axis=-1)


def filtered_probabilities(logits: jax.Array, temperature: float, top_k: int, top_p: float) -> jax.Array:
    """Probabilities [..., vocab] in float32 after temperature, then top-k, then top-p, in Hugging Face's order.

    Args:
      logits: [..., vocab]; minus infinity means impossible.
      temperature: above 0, or 0 for only the most probable token.
      top_k: keeps the k most probable (and ties with the last of them); 0 keeps all.
      top_p: keeps the fewest most probable tokens whose sum reaches top_p, and ties; 1 keeps all.
    """
    if temperature == 0:
        return jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
    logits = logits.astype(jnp.float32)
    if temperature < 1e-3:  # dividing by almost 0 must not overflow: all but the largest become minus infinity
        logits -= jnp.max(logits, axis=-1, keepdims=True)
    logits /= temperature
    if 0 < top_k < logits.shape[-1]:
        logits = jnp.where(_heaviest(logits, jnp.ones_like(logits), top_k), logits, -jnp.inf)
    if top_p < 1:
        logits = jnp.where(_heaviest(logits, jax.nn.softmax(logits, axis=-1), top_p), logits, -jnp.inf)
    return jax.nn.softmax(logits, axis=-1)


def _heaviest(x: jax.Array, weights: jax.Array, least: float) -> jax.Array:
    """Mask of the fewest largest elements of x [..., n] whose weights sum to `least`, and ties with the last.

    Returns bool [..., n]. The threshold is found bit by bit: 32 masked sums, which take less time than sorting.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    ordered = jnp.where(x < 0, ~bits, bits | np.uint32(1 << 31))  # integers in the same order as the floats

    def set_bit(i: jax.Array, threshold: jax.Array) -> jax.Array:
        higher = threshold | (np.uint32(1 << 31) >> i.astype(jnp.uint32))
        sums = jnp.sum(jnp.where(ordered >= higher[..., None], weights, 0), axis=-1)
        return jnp.where(sums >= least, higher, threshold)

    threshold = jax.lax.fori_loop(0, 32, set_bit, jnp.zeros(x.shape[:-1], jnp.uint32))
    return ordered >= threshold[..., None]


def draw(probabilities: jax.Array, uniform: jax.Array) -> jax.Array:
    """The token [...] at which the cumulative sum over ids passes `uniform` [...] in [0, 1).

    The sum is in the order of ids, not of probabilities. So a rounding difference changes a draw only if `uniform` is
    closer to a threshold than that difference.
    """
    cumulative = jnp.cumsum(probabilities, axis=-1)
    possible = probabilities > 0
    passed = possible & (cumulative > uniform[..., None] * cumulative[..., -1:])
    # If `uniform` is almost 1, rounding may leave no token: take the last possible one.
    last = probabilities.shape[-1] - 1 - jnp.argmax(possible[..., ::-1], axis=-1)
    return jnp.where(jnp.any(passed, axis=-1), jnp.argmax(passed, axis=-1), last).astype(jnp.int32)
