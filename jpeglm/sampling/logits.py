"""From logits to one token: temperature, top-k, top-p, and a draw by inversion."""

import jax
import jax.numpy as jnp


def filtered_probabilities(logits: jax.Array, temperature: float, top_k: int, top_p: float) -> jax.Array:
    """Probabilities [..., vocab] in float32 after temperature, then top-k, then top-p, as Hugging Face orders them.

    Args:
      logits: [..., vocab]; minus infinity means impossible.
      temperature: above 0, or 0 for the most probable token alone.
      top_k: keeps the k most probable (and what ties with the last of them); 0 keeps all.
      top_p: keeps the fewest most probable tokens whose sum reaches top_p; 1 keeps all.
    """
    if temperature == 0:
        return jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
    logits = logits.astype(jnp.float32) / temperature
    candidates = min(top_k or logits.shape[-1], logits.shape[-1])
    if candidates < logits.shape[-1] or top_p < 1:
        descending = jax.lax.top_k(logits, candidates)[0]
    if candidates < logits.shape[-1]:
        logits = jnp.where(logits >= descending[..., -1:], logits, -jnp.inf)
    if top_p < 1:
        # Over all that is left: what ties with the last candidate lies behind it and changes no sum before it.
        sorted_probabilities = jnp.exp(descending - jax.nn.logsumexp(logits, axis=-1, keepdims=True))
        before = jnp.cumsum(sorted_probabilities, axis=-1) - sorted_probabilities
        least = jnp.min(jnp.where(before < top_p, descending, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return jax.nn.softmax(logits, axis=-1)


def draw(probabilities: jax.Array, uniform: jax.Array) -> jax.Array:
    """The token [...] at which the cumulative sum over ids passes `uniform` [...] in [0, 1).

    The sum runs in the order of ids, not of probabilities: a rounding difference changes a draw only where `uniform`
    lies nearer to a threshold than that difference.
    """
    cumulative = jnp.cumsum(probabilities, axis=-1)
    passed = cumulative > uniform[..., None] * cumulative[..., -1:]
    return jnp.argmax(passed & (probabilities > 0), axis=-1).astype(jnp.int32)
