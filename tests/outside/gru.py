"""A language model of one GRU layer (Cho et al. 2014). Its cache is the state after the last token of the prompt."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jpeglm.core.ranges import whole
from jpeglm.models import Model


@dataclasses.dataclass(frozen=True)
class Gru(Model):
    SECTION = {"width": (32, whole(1, 4_096))}
    num_layers = 1
    vocab_size: int
    width: int

    @classmethod
    def of(cls, config) -> "Gru":
        return cls(config.tokenizer.vocab_size, config.model.width)

    @property
    def num_parameters(self) -> int:
        return 2 * self.vocab_size * self.width + 6 * self.width**2 + 3 * self.width

    def flops_per_token(self, seq_len: int) -> float:
        return 3 * self.decode_flops(seq_len)

    def decode_flops(self, capacity: int) -> float:
        return 2.0 * self.width * (self.vocab_size + 6 * self.width)

    def step_bytes(self, tokens: int, tensor: int) -> float:
        return 4.0 * tokens * (12 * self.width + 3 * self.vocab_size)

    def network(self, rngs: nnx.Rngs) -> "GruNetwork":
        return GruNetwork(self, rngs)

    def empty_caches(self, slots: int, capacity: int) -> jax.Array:
        return jnp.zeros((slots, self.width))


class GruNetwork(nnx.Module):
    def __init__(self, model: Gru, rngs: nnx.Rngs):
        def matrix(rows: int, columns: int, *axes: str) -> nnx.Param:
            return nnx.Param(jax.random.normal(rngs.params(), (rows, columns)) * model.width**-0.5, axes=axes)

        self.embedding = matrix(model.vocab_size, model.width, "vocab", "embed")
        self.inputs, self.recurrent = (matrix(model.width, 3 * model.width, "embed", "ffn") for _ in range(2))
        self.bias = nnx.Param(jnp.zeros(3 * model.width), axes=("ffn",), decay=False)
        self.head = matrix(model.width, model.vocab_size, "embed", "vocab")

    def _step(self, state: jax.Array, tokens: jax.Array) -> jax.Array:
        x = jnp.split(self.embedding[...][tokens] @ self.inputs[...] + self.bias[...], 3, axis=-1)
        h = jnp.split(state @ self.recurrent[...], 3, axis=-1)
        reset, keep = jax.nn.sigmoid(x[0] + h[0]), jax.nn.sigmoid(x[1] + h[1])
        return keep * state + (1 - keep) * jnp.tanh(x[2] + reset * h[2])

    def _states(self, tokens: jax.Array) -> jax.Array:
        start = jnp.zeros((tokens.shape[0], self.head.shape[0]))
        return jax.lax.scan(lambda h, t: (self._step(h, t),) * 2, start, tokens.T)[1].swapaxes(0, 1)

    def __call__(self, tokens: jax.Array, positions: jax.Array, segment_ids: jax.Array) -> jax.Array:
        return self._states(tokens) @ self.head[...]

    def prefill(self, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        return self._states(tokens)[jnp.arange(len(lengths)), lengths - 1]

    def decode(self, tokens: jax.Array, positions: jax.Array, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        state = self._step(state, tokens)
        return state @ self.head[...], state
