"""Causal attention that never holds a [length, length] array.

`causal_attention` serves training and prefill, `cached_attention` one decoding step. Both take grouped queries:
num_heads is a multiple of num_kv_heads. Scores and softmax are float32 whatever the inputs' dtype.
"""

import jax
import jax.numpy as jnp

# Queries handled at once. A block's scores are [batch, heads, BLOCK, length], so memory grows linearly with length.
BLOCK = 512


def causal_attention(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None = None) -> jax.Array:
    """softmax(q k^T / sqrt(head_dim)) v over each position's past.

    Each block of queries meets only the keys up to its own end, so the upper triangle is not computed, and where there
    are several blocks their scores are computed again in the backward pass instead of kept.

    Args:
      q: [batch, length, heads, head_dim].
      k, v: [batch, length, kv_heads, head_dim].
      segment_ids: [batch, length] int; where given, positions of different segments do not see each other.

    Returns:
      [batch, length, heads, head_dim] of q's dtype.
    """
    length = q.shape[1]
    if length <= BLOCK:
        return _attend_block(q, k, v, None if segment_ids is None else (segment_ids, segment_ids))
    blocks = []
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        segments = None if segment_ids is None else (segment_ids[:, start:end], segment_ids[:, :end])
        blocks.append(jax.checkpoint(_attend_block)(q[:, start:end], k[:, :end], v[:, :end], segments))
    return jnp.concatenate(blocks, axis=1)


def _attend_block(q: jax.Array, k: jax.Array, v: jax.Array, segments: tuple[jax.Array, jax.Array] | None) -> jax.Array:
    """The last q.shape[1] of k.shape[1] positions as queries."""
    batch, queries, heads, head_dim = q.shape
    keys, kv_heads = k.shape[1:3]
    visible = jnp.arange(keys)[None, :] <= jnp.arange(keys - queries, keys)[:, None]  # [queries, keys]
    visible = visible[None]  # [1 or batch, queries, keys]
    if segments is not None:
        visible &= segments[0][:, :, None] == segments[1][:, None, :]
    # Batch dimensions first: XLA for CPUs runs any other order of these products several times slower.
    q = q.reshape(batch, queries, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)
    mixed = _attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), visible)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, queries, heads, head_dim)


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
