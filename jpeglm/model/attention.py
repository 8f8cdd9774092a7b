"""Causal attention that never holds a [length, length] array.

`causal_attention` serves training and prefill, `cached_attention` one decoding step. Both take grouped queries:
num_heads is a multiple of num_kv_heads. Scores and softmax are float32 whatever the inputs' dtype.
"""

import jax
import jax.numpy as jnp

# Queries handled at once, at least, and blocks at most, since each is compiled anew. A block's scores are
# [batch, heads, block, length].
SMALLEST_BLOCK = 64
MOST_BLOCKS = 24
KEPT_LENGTH = 512  # up to here the backward pass finds the scores where the forward pass left them


def causal_attention(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None = None) -> jax.Array:
    """softmax(q k^T / sqrt(head_dim)) v over each position's past.

    Each block of queries meets only the keys up to its own end, so the upper triangle is not computed. Of long
    sequences the scores are computed again in the backward pass instead of kept.

    Args:
      q: [batch, length, heads, head_dim].
      k, v: [batch, length, kv_heads, head_dim].
      segment_ids: [batch, length] int; where given, positions of different segments do not see each other.

    Returns:
      [batch, length, heads, head_dim] of q's dtype.
    """
    batch, length, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    # Batch dimensions first: XLA for CPUs runs any other order of these products several times slower.
    q = q.reshape(batch, length, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)
    k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
    block = max(SMALLEST_BLOCK, -(-length // MOST_BLOCKS))
    attend = _attend if length <= KEPT_LENGTH else jax.checkpoint(_attend)
    blocks = []
    for start in range(0, length, block):
        end = min(start + block, length)
        visible = jnp.arange(end)[None, :] <= jnp.arange(start, end)[:, None]  # [queries, keys]
        visible = visible[None]  # [1 or batch, queries, keys]
        if segment_ids is not None:
            visible &= segment_ids[:, start:end, None] == segment_ids[:, None, :end]
        blocks.append(attend(q[..., start:end, :], k[:, :, :end], v[:, :, :end], visible))
    mixed = jnp.concatenate(blocks, axis=3)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, head_dim)


def cached_attention(q: jax.Array, k: jax.Array, v: jax.Array, positions: jax.Array) -> jax.Array:
    """One query a sequence against a cache that holds its keys and values up to and including its own.

    Args:
      q: [batch, heads, head_dim].
      k, v: [batch, kv_heads, capacity, head_dim].
      positions: [batch] int, the query's position; later places of the cache are not seen.

    Returns:
      [batch, heads, head_dim] of q's dtype.
    """
    batch, heads, head_dim = q.shape
    visible = jnp.arange(k.shape[2])[None, None, :] <= positions[:, None, None]  # [batch, 1, capacity]
    q = q.reshape(batch, k.shape[1], -1, 1, head_dim)
    return _attend(q, k, v, visible).reshape(batch, heads, head_dim)


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> jax.Array:
    """[batch, kv_heads, group, queries, head_dim] over [batch, kv_heads, keys, head_dim] where `visible` is true."""
    scores = jnp.einsum("bhgqd,bhkd->bhgqk", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    scores = jnp.where(visible[:, None, None], scores, -jnp.inf)
    probabilities = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhgqk,bhkd->bhgqd", probabilities, v)
