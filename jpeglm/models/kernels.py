"""Attention kernels for particular hardware: splash for TPUs, cuDNN's and Pallas' for GPUs.

`preferred` chooses one for the hardware, `obstacle` says why one cannot compute a given case. On CPUs the Pallas
kernels are interpreted, which is so slow that only tests use them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jpeglm.core import sharding
from jpeglm.models.llama_config import LANES, WINDOW

SAVED = "attention"  # name of the values that the remat policy "attention" saves
LARGEST_SPLASH_BLOCK = 1024  # several times faster than splash's default of 128
SMALLEST_SPLASH_BLOCK = LANES
TRITON_BLOCK = 128

PLATFORMS = {"splash": ("tpu", "cpu"), "cudnn": ("gpu",), "triton": ("gpu", "cpu")}


def preferred(q: jax.Array, segment_ids: jax.Array | None) -> str:
    """The preferred implementation on this platform."""
    platform = sharding.platform()
    if platform == "tpu":
        return "splash"
    if platform == "gpu" and q.dtype == jnp.bfloat16:  # the kernels would round float32
        return "cudnn" if segment_ids is None else "triton"
    return "blockwise"


def obstacle(name: str, q: jax.Array, segment_ids: jax.Array | None) -> str | None:
    """Why an implementation cannot handle q [batch, length, heads, head_dim]; None if it can."""
    if name == "blockwise":
        return None
    platform = sharding.platform()
    if platform not in PLATFORMS[name]:
        return f"does not run on {platform}"
    length, head_dim = q.shape[1], q.shape[3]
    if name == "splash":
        stripe = _stripe(length, sharding.parts("sequence"))
        if stripe % SMALLEST_SPLASH_BLOCK:
            return f"needs sequences or stripes of them that {SMALLEST_SPLASH_BLOCK} divides, not of {stripe} tokens"
        return None
    if sharding.is_spread("sequence"):
        return "cannot attend over a sequence that is spread over devices"
    if name == "cudnn":
        if segment_ids is not None:
            return "cannot mask documents"
        if q.dtype != jnp.bfloat16:
            return f"needs bfloat16, not {q.dtype}"
        return f"needs a head_dim of 8, 16, ... 128, not {head_dim}" if head_dim % 8 or head_dim > 128 else None
    if length % TRITON_BLOCK:
        return f"needs sequences that {TRITON_BLOCK} divides, not of {length} tokens"
    return None if head_dim in (16, 32, 64, 128) else f"needs a head_dim of 16, 32, 64 or 128, not {head_dim}"


def cudnn(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """NVIDIA's kernel; shapes as in `causal_attention`."""
    mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
    return checkpoint_name(mixed, SAVED)


def triton(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None = None) -> jax.Array:
    """FlashAttention-2 (Dao 2023) as Pallas' kernel for GPUs; shapes as in `causal_attention`."""
    from jax.experimental.pallas.ops.gpu import attention

    group = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, group, axis=2) for x in (k, v))  # the kernel does not support grouped queries
    blocks = attention.BlockSizes(
        block_q=TRITON_BLOCK, block_k=TRITON_BLOCK, block_q_dkv=32, block_kv_dkv=32, block_q_dq=32, block_kv_dq=32
    )
    mixed = attention.mha(
        q, k, v, segment_ids, sm_scale=q.shape[3] ** -0.5, causal=True, block_sizes=blocks, interpret=_interpreted()
    )
    return checkpoint_name(mixed, SAVED)


def splash_kernel(heads: int, length: int) -> tuple[Any, Any]:
    """The first argument of `splash`, which encodes the keys that each block of queries needs; and its partition.

    The partition is for `per_device`. Processing the mask takes a second for 12,288 tokens, but only once: splash
    caches it.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    parts = sharding.parts("sequence")
    # The mask is lazy: it holds only the positions of the queries, in dealt order if the sequence is sharded.
    mask = splash_attention_mask.CausalMask((length, length))
    mask.q_sequence = sharding.dealt_order(length, parts).astype(np.int32)
    block = LARGEST_SPLASH_BLOCK
    while _stripe(length, parts) % block:
        block //= 2
    kernel = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * heads),
        block_sizes=splash_attention_kernel.BlockSizes(
            block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
        ),
        head_shards=sharding.parts("heads"),
        q_seq_shards=parts,
        residual_checkpoint_name=SAVED,
        interpret=_interpreted(),
    )
    layout = sharding.layout("heads", "sequence")
    return kernel, layout and kernel.manual_sharding_spec(layout)


def splash(kernel: Any, q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array | None = None) -> jax.Array:
    """FlashAttention that skips fully masked blocks; shapes as in `causal_attention`.

    `kernel` is from `splash_kernel`. Queries stay on their device; keys and values of a sharded sequence are gathered.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    q, k, v = (x.swapaxes(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))
    is_spread = sharding.is_spread("sequence")
    if is_spread:
        k, v = (sharding.whole_sequence(x, 2) for x in (k, v))
    if segment_ids is None:
        mixed = jax.vmap(kernel)(q, k, v)
    else:
        of_keys = sharding.whole_sequence(segment_ids, 1) if is_spread else segment_ids
        mixed = jax.vmap(kernel)(q, k, v, splash_attention_kernel.SegmentIds(segment_ids, of_keys))
    return mixed.swapaxes(1, 2)  # splash itself names its output and logsumexp for remat


def can_read_windows(cache: jax.Array) -> bool:
    """Whether `windowed` can attend to a cache [batch, kv_heads, capacity, head_dim] on this platform."""
    fits = cache.shape[3] % LANES == 0 and cache.shape[2] % WINDOW == 0
    return sharding.platform() == "tpu" and fits and cache.dtype == jnp.bfloat16  # the kernel would round float32


def windowed(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array) -> jax.Array:
    """Attends to the first `lengths` [batch] entries of caches, and reads no more than the windows that hold these.

    JAX's paged attention for TPUs: each head of each sequence counts as a sequence, whose pages are the windows of its
    cache, in order. Other shapes as in `cached_attention`.
    """
    batch, kv_heads, capacity, head_dim = k.shape
    sequences, pages = batch * kv_heads, capacity // WINDOW
    device = jax.sharding.get_abstract_mesh().abstract_device
    has_two_cores = device is not None and device.num_cores == 2 and sequences % 2 == 0
    from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention

    mixed = paged_attention(
        (q.astype(jnp.float32) * head_dim**-0.5).reshape(sequences, -1, head_dim),
        *(x.reshape(1, sequences * pages, WINDOW, head_dim) for x in (k, v)),
        jnp.repeat(lengths, kv_heads),
        jnp.arange(sequences * pages, dtype=jnp.int32).reshape(sequences, pages),
        pages_per_compute_block=1,
        megacore_mode="batch" if has_two_cores else None,
    )
    return mixed.reshape(q.shape).astype(q.dtype)


def _stripe(length: int, parts: int) -> int:
    """Number of consecutive tokens on one device."""
    return length if parts == 1 else length // (2 * parts)


def _interpreted() -> bool:
    return sharding.platform() == "cpu"
