"""Causal attention that never holds a [length, length] array.

`causal_attention` serves training and prefill, `cached_attention` one decoding step. Both take grouped queries:
num_heads is a multiple of num_kv_heads. Scores and softmax are float32 whatever the inputs' dtype.

Training has several implementations, which every device runs on its own part of batch, heads and sequence. This file
has the one in plain JAX, which runs everywhere; `kernels` has those for particular hardware.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jpeglm.core import sharding
from jpeglm.core.errors import InputError
from jpeglm.models import kernels
from jpeglm.models.kernels import SAVED

LONGEST_IN_BLOCKS = 1_536  # each block is compiled separately; longer sequences are cut into stripes, in a loop
KEPT_LENGTH = 1_024  # up to this length the weights are kept for the backward pass instead of recomputed
LARGEST_STRIPE = 512
MOST_QUERIES = 128  # of a stripe, processed at once
NO_KEYS = -1e30  # logsumexp over no keys; not -inf, so that differences and gradients stay finite


def causal_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """softmax(q k^T / sqrt(head_dim)) v over each position and those before it.

    The order is that of the chunk, whatever positions the rotary embedding uses. On a mesh that shards the sequence,
    all arrays are in the order of `sharding.global_batch`.

    Args:
      q: [batch, length, heads, head_dim].
      k, v: [batch, length, kv_heads, head_dim].
      segment_ids: [batch, length] int; if given, positions of different segments do not attend to each other.
      implementation: one of `llama_config.ATTENTION`; "auto" uses the best that platform, mesh and shapes allow.

    Returns:
      [batch, length, heads, head_dim] of q's dtype.

    Raises:
      InputError: the requested implementation cannot compute this, with the reason.
    """
    name = kernels.preferred(q, segment_ids) if implementation == "auto" else implementation
    reason = kernels.obstacle(name, q, segment_ids)
    if reason and implementation != "auto":
        raise InputError(f"model.attention={name}: {reason}")
    keys = ("batch", "sequence", "kv_heads", "head_dim")
    axes = [("batch", "sequence", "heads", "head_dim"), keys, keys, ("batch", "sequence")]
    arrays = [q, k, v] if segment_ids is None else [q, k, v, segment_ids]
    attend: Callable[..., jax.Array]
    if reason or name == "blockwise":
        attend = _dealt if sharding.is_spread("sequence") else _blockwise
    elif name == "splash":
        kernel, partition = kernels.splash_kernel(q.shape[2], q.shape[1])
        attend, axes, arrays = kernels.splash, [partition, *axes], [kernel, *arrays]
    else:
        attend = {"cudnn": kernels.cudnn, "triton": kernels.triton}[name]
    return sharding.per_device(attend, axes[: len(arrays)], ("batch", "sequence", "heads", "head_dim"))(*arrays)


def cached_attention(q: jax.Array, k: jax.Array, v: jax.Array, positions: jax.Array) -> jax.Array:
    """One query per sequence against a cache with the keys and values up to and including its own position.

    On TPUs a step reads only the filled part of each sequence's cache, elsewhere the whole capacity.

    Args:
      q: [batch, heads, head_dim].
      k, v: [batch, kv_heads, capacity, head_dim].
      positions: [batch] int, the query's position; later entries of the cache are masked.

    Returns:
      [batch, heads, head_dim] of q's dtype.
    """
    batch, heads, head_dim = q.shape
    if kernels.can_read_windows(k):
        cache = ("batch", "kv_heads", None, None)
        axes = ("batch", "heads", None), cache, cache, ("batch",)
        return sharding.per_device(kernels.windowed, axes, axes[0])(q, k, v, positions + 1)
    visible = jnp.arange(k.shape[2])[None, None, :] <= positions[:, None, None]  # [batch, 1, capacity]
    q = q.reshape(batch, k.shape[1], -1, 1, head_dim)
    return _attend(q, k, v, visible).reshape(batch, heads, head_dim)


def _blockwise(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None = None) -> jax.Array:
    """A short sequence in blocks: each block of queries attends only to the keys up to its own end.

    This skips most of the masked upper triangle.
    """
    if q.shape[1] > LONGEST_IN_BLOCKS:
        return _folded(q, k, v, segment_ids)
    return checkpoint_name(_attend_in_blocks(q, k, v, segment_ids), SAVED)


@jax.custom_vjp
def _attend_in_blocks(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
    """`_blockwise` with a backward pass of its own, faster on CPUs than the one that JAX derives.

    XLA for CPUs runs batched products fast only if neither operand is transposed. So the small arrays (queries, keys,
    values and their gradients) are transposed here, once, and those of [queries, keys] never.
    """
    return _forward_in_blocks(q, k, v, segment_ids)[0]


def _forward_in_blocks(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None
) -> tuple[jax.Array, tuple[Any, ...]]:
    shape = q.shape
    q, k, v = _grouped(q, k, v)
    keys = k.swapaxes(-1, -2)  # [batch, kv_heads, head_dim, length]
    outputs, kept = [], []
    for start, end in _blocks(shape[1]):
        scores = _block_scores(q, keys, segment_ids, start, end)
        top = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        mixed = jnp.einsum(
            "bhgqk,bhkd->bhgqd", weights.astype(v.dtype), v[:, :, :end], preferred_element_type=jnp.float32
        )
        outputs.append((mixed / total).astype(v.dtype))
        kept.append((weights.astype(v.dtype), total) if shape[1] <= KEPT_LENGTH else top + jnp.log(total))
    mixed = jnp.concatenate(outputs, axis=3)
    return _ungrouped(mixed, shape), (q, k, v, segment_ids, mixed, kept)


def _backward_in_blocks(
    residuals: tuple[Any, ...], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    """With weights w, values v, outputs o = w v and scores s: dv = w^T do, and ds = w (do v^T - sum(do o)).

    Dao et al. 2022, "FlashAttention", appendix B.2. Where the weights are not kept, they are exp(s - logsumexp).
    """
    q, k, v, segment_ids, mixed, kept = residuals
    scale, shape = q.shape[-1] ** -0.5, gradient.shape
    gradient = gradient.reshape(*shape[:2], *q.shape[1:3], -1).transpose(0, 2, 3, 1, 4)  # as q
    shift = jnp.sum(gradient.astype(jnp.float32) * mixed, axis=-1, keepdims=True)
    keys, values = k.swapaxes(-1, -2), v.swapaxes(-1, -2)
    dq, dk, dv = [], [], []  # of each block
    for (start, end), each in zip(_blocks(shape[1]), kept, strict=True):
        do, minus = gradient[..., start:end, :], shift[..., start:end, :]
        if isinstance(each, tuple):
            weights, total = each
            do, minus = (do / total).astype(v.dtype), minus / total
        else:
            weights = jnp.exp(_block_scores(q, keys, segment_ids, start, end) - each).astype(v.dtype)
        dw = jnp.einsum("bhgqd,bhdk->bhgqk", do, values[..., :end], preferred_element_type=jnp.float32)
        ds = (weights * (dw - minus)).astype(v.dtype)
        dq.append(scale * jnp.einsum("bhgqk,bhkd->bhgqd", ds, k[:, :, :end]))
        queries = (scale * q[..., start:end, :]).swapaxes(-1, -2)
        to_keys = functools.partial(jnp.einsum, "bhgdq,bhgqk->bhdk", preferred_element_type=jnp.float32)
        dk.append(to_keys(queries, ds))
        dv.append(to_keys(do.swapaxes(-1, -2), weights))
    gradients = (
        _ungrouped(jnp.concatenate(dq, axis=3), shape),
        _sum_of_blocks(dk, k.dtype),
        _sum_of_blocks(dv, v.dtype),
    )
    # Transposed inside the fusions that follow, they would be read in the wrong order.
    return *jax.lax.optimization_barrier(gradients), None


def _sum_of_blocks(parts: list[jax.Array], dtype: Any) -> jax.Array:
    """[batch, length, kv_heads, head_dim] from each block's [batch, kv_heads, head_dim, end], in ascending order."""
    total = parts[-1]
    for part in parts[-2::-1]:
        total = total.at[..., : part.shape[-1]].add(part)
    return total.transpose(0, 3, 1, 2).astype(dtype)


_attend_in_blocks.defvjp(_forward_in_blocks, _backward_in_blocks)


def _blocks(length: int) -> list[tuple[int, int]]:
    """Start and end of each block of queries. The sizes are the fastest of 64, 128 and 256 on CPUs."""
    size = 64 if length <= 512 else 128
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _block_scores(q: jax.Array, keys: jax.Array, segment_ids: jax.Array | None, start: int, end: int) -> jax.Array:
    """Scores of the queries [start, end) for the keys [batch, kv_heads, head_dim, length] before `end`."""
    visible = _visible(jnp.arange(start, end), jnp.arange(end), segment_ids)
    q = q[..., start:end, :] * q.shape[-1] ** -0.5
    scores = jnp.einsum("bhgqd,bhdk->bhgqk", q, keys[..., :end], preferred_element_type=jnp.float32)
    return jnp.where(visible[:, None, None], scores, -jnp.inf)


def _folded(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None = None) -> jax.Array:
    """A long sequence on one device, cut into pairs of stripes as if it were sharded; one pair at a time.

    Memory grows linearly with the length; the size of the compiled program is constant.
    """
    length, shape = q.shape[1], q.shape
    pairs = -(-length // (2 * LARGEST_STRIPE))
    stripe = -(-length // (2 * pairs))
    # Causality masks the padding: it comes after every real token.
    fill = lambda x: jnp.pad(x, ((0, 0), (0, 2 * pairs * stripe - length), *[(0, 0)] * (x.ndim - 2)))  # noqa: E731
    q, k, v = _grouped(fill(q), fill(k), fill(v))
    segments = None if segment_ids is None else fill(segment_ids)
    stripes = jnp.stack(jnp.split(q, 2 * pairs, axis=3))

    def attend(pair: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        i, early, late = pair
        return _attend_pair(i, early, late, k, v, segments)

    each = (jnp.arange(pairs), stripes[:pairs], stripes[: pairs - 1 : -1])
    early, late = jax.lax.map(jax.checkpoint(attend), each)
    mixed = jnp.concatenate([*early, *late[::-1]], axis=3)
    mixed = _ungrouped(mixed, (shape[0], 2 * pairs * stripe, *shape[2:]))
    return checkpoint_name(mixed, SAVED)[:, :length]


def _dealt(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None = None) -> jax.Array:
    """One member's share of a sharded sequence: its two stripes of queries against all keys."""
    shape = q.shape
    q, k, v = _grouped(q, sharding.whole_sequence(k, 1), sharding.whole_sequence(v, 1))
    segments = None if segment_ids is None else sharding.whole_sequence(segment_ids, 1)
    early, late = jnp.split(q, 2, axis=3)
    mixed = _attend_pair(sharding.member("sequence"), early, late, k, v, segments)
    return checkpoint_name(_ungrouped(jnp.concatenate(mixed, axis=3), shape), SAVED)


def _attend_pair(
    i: jax.Array, early: jax.Array, late: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Attention of stripes i and 2C-1-i of the queries, given all keys and values in natural order.

    Stripe s attends to the key stripes 0..s, so the two together attend to 2C+1 of them, whatever i is. Every member
    of a sharded sequence thus computes the same number of equal squares, which one program on many devices requires;
    only the choice of squares depends on i. With contiguous parts the last member would have 2C-1 times the work of
    the first, or every member would compute the whole square. The results of a stripe's squares are merged by their
    logsumexp.
    """
    stripe = early.shape[3]
    last = k.shape[2] // stripe - 1  # 2C-1
    # float32: a key's gradient is a sum over many squares.
    k, v = k.astype(jnp.float32), v.astype(jnp.float32)

    def square(n: jax.Array) -> tuple[jax.Array, jax.Array]:
        is_early = n <= i
        first_query = jnp.where(is_early, i, last - i) * stripe
        first_key = jnp.where(is_early, n, n - i - 1) * stripe
        keys, values = (jax.lax.dynamic_slice_in_dim(x, first_key, stripe, axis=2) for x in (k, v))

        def part(q: jax.Array, start: jax.Array | int) -> tuple[jax.Array, jax.Array]:
            places = first_query + start + jnp.arange(q.shape[-2])
            visible = _visible(places, first_key + jnp.arange(stripe), segment_ids)
            return _attend_partly(q, keys.astype(q.dtype), values.astype(q.dtype), visible)

        return _in_turn(part, jnp.where(is_early, early, late))

    squares = jnp.arange(last + 2)
    mixed, logsumexp = jax.lax.map(jax.checkpoint(square), squares)  # [2C+1, batch, kv_heads, group, stripe, ...]

    def merged(mine: jax.Array) -> jax.Array:
        mine = mine.reshape(-1, *[1] * (mixed.ndim - 1))
        shares = jax.nn.softmax(jnp.where(mine, logsumexp, NO_KEYS), axis=0)
        return jnp.sum(shares * mixed, axis=0).astype(early.dtype)

    return merged(squares <= i), merged(squares > i)


def _grouped(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """q as [batch, kv_heads, group, length, head_dim]; k, v as [batch, kv_heads, length, head_dim].

    Batch dimensions come first: on CPUs, XLA runs other layouts of these products several times slower.
    """
    batch, length, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    q = q.reshape(batch, length, kv_heads, heads // kv_heads, head_dim).transpose(0, 2, 3, 1, 4)
    return q, k.swapaxes(1, 2), v.swapaxes(1, 2)


def _ungrouped(mixed: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return mixed.transpose(0, 3, 1, 2, 4).reshape(shape)


def _in_turn(attend: Callable[[jax.Array, Any], Any], q: jax.Array) -> Any:
    """attend(queries, index of the first) for MOST_QUERIES of [..., queries, head_dim] at a time.

    This bounds the memory for scores; the backward pass recomputes them in the same pieces.
    """
    attend = jax.checkpoint(attend)
    parts, rest = divmod(q.shape[-2], MOST_QUERIES)
    if parts <= 1:
        return attend(q, 0)
    even = parts * MOST_QUERIES
    xs = jnp.moveaxis(q[..., :even, :].reshape(*q.shape[:-2], parts, MOST_QUERIES, -1), -3, 0)
    results = jax.lax.map(lambda x: attend(*x), (xs, MOST_QUERIES * jnp.arange(parts)))
    results = jax.tree.map(lambda y: jnp.moveaxis(y, 0, -3).reshape(*q.shape[:-2], even, -1), results)
    if not rest:
        return results
    return jax.tree.map(lambda *ys: jnp.concatenate(ys, axis=-2), results, attend(q[..., even:, :], even))


def _visible(queries: jax.Array, keys: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
    """Which of the consecutive positions `keys` each of `queries` attends to: [1 or batch, queries, keys]."""
    visible = (keys[None, :] <= queries[:, None])[None]
    if segment_ids is None:
        return visible
    ours, theirs = (
        jax.lax.dynamic_slice_in_dim(segment_ids, places[0], places.size, axis=1) for places in (queries, keys)
    )
    return visible & (ours[:, :, None] == theirs[:, None, :])


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> jax.Array:
    """[batch, kv_heads, group, queries, head_dim] over [batch, kv_heads, keys, head_dim] where `visible` is true."""
    probabilities = jax.nn.softmax(_scores(q, k, visible), axis=-1).astype(v.dtype)
    return jnp.einsum("bhgqk,bhkd->bhgqd", probabilities, v)


def _attend_partly(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`_attend` to some of a query's keys, possibly none: mixed values, and logsumexp [..., queries, 1]."""
    scores = _scores(q, k, visible)
    top = jax.lax.stop_gradient(jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), NO_KEYS))
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    some = total > 0
    total = jnp.where(some, total, 1)
    mixed = jnp.einsum("bhgqk,bhkd->bhgqd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32) / total
    return mixed, jnp.where(some, top + jnp.log(total), NO_KEYS)


def _scores(q: jax.Array, k: jax.Array, visible: jax.Array) -> jax.Array:
    scores = jnp.einsum("bhgqd,bhkd->bhgqk", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    return jnp.where(visible[:, None, None], scores, -jnp.inf)
