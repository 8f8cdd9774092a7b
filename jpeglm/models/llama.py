"""Llama-2: a decoder of RMSNorm, rotary attention and SwiGLU blocks, without biases, with an untied head.

    x   = E[tokens]
    x  += Wo attention(rope(Wq norm(x)), rope(Wk norm(x)), Wv norm(x))     for each layer
    x  += Wdown (silu(Wgate norm(x)) * Wup norm(x))
    logits = Whead norm(x)

Touvron et al. 2023, "Llama 2"; rotary halves are laid out as in Hugging Face's LlamaForCausalLM. The layers are
stacked and run by one `lax.scan`, or kept separate for decoding (`unstack`). This file has only the mathematics:
arrays have logical axis names, and only `jpeglm.core.sharding` maps these to a mesh.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jpeglm.core.errors import InputError
from jpeglm.core.sharding import constrain, gather, is_spread, platform
from jpeglm.models.attention import cached_attention, causal_attention
from jpeglm.models.kernels import SAVED
from jpeglm.models.llama_config import LlamaConfig
from jpeglm.models.quantise import product as quantised_product

INIT_STD = 0.02
LONGEST_TABLE = 65_536  # tokens; a longer table of cosines would be a large part of the program
MOST_UNROLLED = 32  # layers, each of which is compiled separately
REMAT = {  # what the forward pass of a layer saves for the backward pass
    "none": None,  # everything
    "full": jax.checkpoint_policies.nothing_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names(SAVED),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of one layer, [batch, kv_heads, capacity, head_dim], the layout that decoding reads."""

    k: jax.Array
    v: jax.Array

    @staticmethod
    def zeros(config: LlamaConfig, batch: int, capacity: int) -> "list[Cache]":
        """Empty caches of all layers."""
        shape = (batch, config.num_kv_heads, capacity, config.head_dim)
        return [
            Cache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype)) for _ in range(config.num_layers)
        ]


def _matrix(key: jax.Array, shape: tuple[int, ...], axes: tuple[str, ...], std: float = INIT_STD) -> nnx.Param:
    return nnx.Param(std * jax.random.normal(key, shape, jnp.float32), axes=axes)


def _used(parameter: nnx.Param, dtype: Any) -> jax.Array:
    """A parameter, gathered and cast for use in a product."""
    return gather(parameter[...], dtype, *parameter.get_metadata("axes"))


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * scale over the last dimension, in float32."""

    def __init__(self, size: int, eps: float, axis: str):
        self.scale = nnx.Param(jnp.ones(size, jnp.float32), axes=(axis,), decay=False)
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        return (wide * _used(self.scale, jnp.float32)).astype(x.dtype)


def rope_tables(positions: jax.Array, length: int, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines [..., 1, head_dim / 2] in float32 for positions [...], which are below `length`.

    On CPUs they are rows of a constant table, and NaN for larger positions: computed in the program, they would be
    computed again in each fusion that uses them.
    """
    frequencies = np.float32(theta) ** (-np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    if platform() != "cpu" or length > LONGEST_TABLE:
        angles = positions[..., None, None].astype(jnp.float32) * frequencies
        return jnp.cos(angles), jnp.sin(angles)
    table = np.arange(length, dtype=np.float32)[:, None, None] * frequencies
    return jnp.take(np.cos(table), positions, axis=0), jnp.take(np.sin(table), positions, axis=0)


def apply_rope(x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates the pairs (x[i], x[i + head_dim / 2]) of [..., heads, head_dim] by the angles of their position."""
    cos, sin = tables
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def _product(x: jax.Array, matrix: jax.Array, how: str) -> jax.Array:
    """[..., n] times [n, m]; `how` is `config.quantise`."""
    return jnp.einsum("...n,nm->...m", x, matrix) if how == "none" else quantised_product(x, matrix, how)


def _heads(h: jax.Array, matrix: jax.Array, how: str) -> jax.Array:
    """[..., embed] times [embed, heads, head_dim]: [..., heads, head_dim].

    Heads are folded for the product: XLA for CPUs would copy the matrix, or its gradient, at every use.
    """
    folded = _product(h, matrix.reshape(matrix.shape[0], -1), how)
    return folded.reshape(*h.shape[:-1], *matrix.shape[1:])


@jax.checkpoint  # computed again from its inputs, which is faster than reading more arrays
def _swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    return jax.nn.silu(gate) * up


class Block(nnx.Module):
    """One decoder layer."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        width, ffn = config.width, config.ffn_width
        # keeps the scale of the residual stream independent of depth
        residual_std = INIT_STD * (2 * config.num_layers) ** -0.5
        self.dtype, self.quantise = jnp.dtype(config.dtype), config.quantise
        self.attention_norm = RMSNorm(width, config.norm_eps, "embed")
        self.wq = _matrix(rngs.params(), (width, heads, head_dim), ("embed", "heads", "head_dim"))
        self.wk = _matrix(rngs.params(), (width, kv_heads, head_dim), ("embed", "kv_heads", "head_dim"))
        self.wv = _matrix(rngs.params(), (width, kv_heads, head_dim), ("embed", "kv_heads", "head_dim"))
        self.wo = _matrix(rngs.params(), (heads, head_dim, width), ("heads", "head_dim", "embed"), residual_std)
        self.ffn_norm = RMSNorm(width, config.norm_eps, "embed")
        self.w_gate = _matrix(rngs.params(), (width, ffn), ("embed", "ffn"))
        self.w_up = _matrix(rngs.params(), (width, ffn), ("embed", "ffn"))
        self.w_down = _matrix(rngs.params(), (ffn, width), ("ffn", "embed"), residual_std)
        self.q_norm = RMSNorm(head_dim, config.norm_eps, "head_dim") if config.qk_norm else None
        self.k_norm = RMSNorm(head_dim, config.norm_eps, "head_dim") if config.qk_norm else None

    def __call__(self, x: jax.Array, rope: tuple[jax.Array, jax.Array], attend: Callable[..., Any]) -> Any:
        """`attend(q, k, v)` returns mixed values and any state of the caller. Returns (x, state)."""
        how = self.quantise
        h = self.attention_norm(x)
        q, k, v = (_heads(h, _used(matrix, self.dtype), how) for matrix in (self.wq, self.wk, self.wv))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        mixed, state = attend(apply_rope(q, rope), apply_rope(k, rope), v)
        wo = _used(self.wo, self.dtype).reshape(-1, x.shape[-1])
        x = x + _product(mixed.reshape(*mixed.shape[:-2], -1), wo, how)
        h = self.ffn_norm(x)
        gate, up = (_product(h, _used(matrix, self.dtype), how) for matrix in (self.w_gate, self.w_up))
        x = x + _product(_swiglu(gate, up), _used(self.w_down, self.dtype), how)
        return x, state


class Llama(nnx.Module):
    """The whole model. Parameters are float32; products run in `config.dtype`; logits are float32."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        self.config = config
        vocab, width = config.padded_vocab_size, config.width
        self.embedding = _matrix(rngs.params(), (vocab, width), ("vocab", "embed"))
        keys = jax.random.split(rngs.params(), config.num_layers)
        make_block = lambda key: Block(config, rngs=nnx.Rngs(params=key))  # noqa: E731
        if config.stacked:
            # One after another: all at once would need twice the memory.
            graphdef = nnx.graphdef(nnx.eval_shape(make_block, keys[0]))
            self.layers = nnx.merge(graphdef, jax.lax.map(lambda key: nnx.state(make_block(key)), keys))
        else:
            self.layers = nnx.List(map(make_block, keys))
        self.final_norm = RMSNorm(width, config.norm_eps, "embed")
        self.head = _matrix(rngs.params(), (width, vocab), ("embed", "vocab"))

    def __call__(self, tokens: jax.Array, positions: jax.Array, segment_ids: jax.Array) -> jax.Array:
        """Logits [batch, length, ids] for the token after each position; all inputs [batch, length].

        The ids are those of the vocabulary; with its padding, whose logits are minus infinity, if the head is sharded.
        `segment_ids` matters only with `config.mask_documents`.
        """
        segments = segment_ids if self.config.mask_documents else None
        how = self.config.attention
        x, _ = self._layers(tokens, positions, lambda q, k, v: (causal_attention(q, k, v, segments, how), None))
        if any(map(is_spread, ("vocab", "embed", "sequence"))):  # a cut head's gradient would be scattered as a whole
            return self._logits(x)
        return self._logits(x.reshape(-1, x.shape[-1]), is_cut=True).reshape(*tokens.shape, -1)

    def prefill(self, tokens: jax.Array, lengths: jax.Array) -> list[Cache]:
        """Runs prompts [batch, bucket] from position 0, and returns their caches, of capacity `bucket`.

        Cache entries after a prompt's end (`lengths`) are overwritten before any query attends to them. The mesh must
        not shard the sequence, because the tokens are in natural order. Prompts may have any length, so the
        implementation of attention is chosen here, not by `config.attention`.
        """
        del lengths
        if is_spread("sequence"):
            raise InputError("prompts are sampled whole: the mesh must not spread the sequence")
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Cache]:
            return causal_attention(q, k, v), Cache(k.swapaxes(1, 2), v.swapaxes(1, 2))

        _, caches = self._layers(tokens, positions, attend)
        if self.config.stacked:
            caches = [jax.tree.map(lambda stack: stack[i], caches) for i in range(self.config.num_layers)]  # noqa: B023
        return caches

    def decode(
        self, tokens: jax.Array, positions: jax.Array, caches: Sequence[Cache]
    ) -> tuple[jax.Array, list[Cache]]:
        """Tokens [batch] at positions [batch] -> logits [batch, padded_vocab_size] and the caches with them.

        Needs unstacked layers, each with its own cache: slices of stacks would be copied at every step.
        """
        x = self._embed(tokens)
        capacity = caches[0].k.shape[2]
        rope = rope_tables(positions, capacity, self.config.head_dim, self.config.rope_theta)
        rows, new = jnp.arange(tokens.shape[0]), []
        for block, cache in zip(self.layers, caches, strict=True):

            def attend(q: jax.Array, k: jax.Array, v: jax.Array, cache: Cache = cache) -> tuple[jax.Array, Cache]:
                cache = Cache(cache.k.at[rows, :, positions].set(k), cache.v.at[rows, :, positions].set(v))
                return cached_attention(q, cache.k, cache.v, positions), cache

            x, cache = block(x, rope, attend)
            new.append(cache)
        return self._logits(x), new

    def _embed(self, tokens: jax.Array) -> jax.Array:
        # Looked up in float32: a row's gradient is a sum over all its tokens, thousands with so small a vocabulary.
        return _used(self.embedding, jnp.float32)[tokens].astype(self.config.dtype)

    def _layers(self, tokens: jax.Array, positions: jax.Array, attend: Callable[..., Any]) -> tuple[jax.Array, Any]:
        """Runs all layers: [batch, length] -> [batch, length, width], and `attend`'s states of all layers."""

        # Outside attention, batch and length are folded into rows: with two leading axes XLA for CPUs transposes every
        # activation in the backward pass, which takes as long as the products. A sharded axis cannot be folded.
        def rows(x: jax.Array) -> jax.Array:
            return x if is_spread("sequence") else x.reshape(-1, *x.shape[2:])

        def sequences(x: jax.Array) -> jax.Array:
            return x if is_spread("sequence") else x.reshape(*tokens.shape, *x.shape[1:])

        def attend_rows(*qkv: jax.Array) -> Any:
            mixed, state = attend(*map(sequences, qkv))
            return rows(mixed), state

        tables = rope_tables(positions, tokens.shape[1], self.config.head_dim, self.config.rope_theta)
        rope = jax.tree.map(rows, tables)

        def layer(x: jax.Array, block: Block) -> Any:
            x, state = block(rows(x), rope, attend_rows)
            return constrain(sequences(x), "batch", "sequence", None), state

        x = constrain(self._embed(tokens), "batch", "sequence", None)
        if not self.config.stacked:
            states = []
            for block in self.layers:
                x, state = layer(x, block)
                states.append(state)
            return x, states

        graphdef, stacked = nnx.split(self.layers)
        body = lambda x, parameters: layer(x, nnx.merge(graphdef, parameters))  # noqa: E731
        if policy := REMAT[self.config.remat]:
            body = jax.checkpoint(body, prevent_cse=False, policy=policy)  # not needed inside scan
        # XLA for CPUs copies what a loop saves for the backward pass; elsewhere a loop is as fast and compiles sooner.
        is_unrolled = platform() == "cpu" and self.config.remat == "none" and self.config.num_layers <= MOST_UNROLLED
        return jax.lax.scan(body, x, stacked, unroll=is_unrolled or 1)

    def _logits(self, x: jax.Array, is_cut: bool = False) -> jax.Array:
        """[..., width] -> [..., padded_vocab_size], or [..., vocab_size] if `is_cut`, in float32."""
        vocab = self.config.vocab_size
        h = self.final_norm(x)
        head = _used(self.head, self.config.dtype)[:, : vocab if is_cut else None]
        logits = jnp.einsum("...e,ev->...v", h, head, preferred_element_type=jnp.float32)
        return logits if is_cut else jnp.where(jnp.arange(head.shape[1]) >= vocab, -jnp.inf, logits)


def unstack(params: Any) -> Any:
    """Converts the parameters of a stacked model to those of one with separate layers; both as pure dicts."""
    layers = params["layers"]
    num_layers = len(jax.tree.leaves(layers)[0])
    return params | {"layers": {i: jax.tree.map(lambda stack: stack[i], layers) for i in range(num_layers)}}  # noqa: B023


def cast_matrices(params: Any, dtype: str) -> Any:
    """Casts matrices to the computation's dtype; the scales of norms stay float32."""
    return jax.tree_util.tree_map_with_path(lambda p, x: x if p[-1].key == "scale" else x.astype(dtype), params)
