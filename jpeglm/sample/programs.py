"""The compiled programs of sampling, and the state that they keep on the device.

    prefill   a batch of prompts of one bucket -> their caches
    seat      puts prompts into slots: copies their caches, sets their last token
    decode    a number of steps of all slots: the last token in, logits, filters, a draw
    resize    gives the caches another capacity

A prompt is prefilled without its last token, which the first decoding step takes in. So a prefill computes no logits,
several samples of a prompt share one, and a prompt of BOS alone needs none. Shapes do not depend on the requests, so
nothing is compiled twice, and what a slot computes does not depend on its neighbours.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jpeglm.core import sharding
from jpeglm.data.codecs.grammar import Place
from jpeglm.models import Model, networks
from jpeglm.models.llama_config import WINDOW
from jpeglm.sample.filters import are_finite, draw, filtered_probabilities
from jpeglm.sample.grammar import Rules, TokenGrammar
from jpeglm.sample.settings import Settings

LONGEST_CALL = 32  # most steps in one call of `decode`
PREFILLED_TOKENS = 1024  # in one call of `prefill`, if there are that many short prompts
SMALLEST_BUCKET = 32
SMALLEST_CAPACITY = 128


class Walks(NamedTuple):
    """The state of each sequence in its grammar."""

    place: Place  # [slots]
    removed: jax.Array  # [slots] float32, removed probability, summed over tokens
    was_cut: jax.Array  # [slots] bool, whether the budget ever removed a legal token


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """All that decoding keeps on the device."""

    caches: Any  # of `Model.empty_caches`; without `last`
    last: jax.Array  # [slots] int32, the last id of each sequence
    lengths: jax.Array  # [slots] int32, its length, the prompt included
    keys: jax.Array  # [slots, 2] uint32
    done: jax.Array  # [slots] bool; also an empty slot
    finite: jax.Array  # [slots] bool, whether all logits so far were finite
    log_likelihood: jax.Array  # [slots] float32, of the tokens drawn so far, by the model alone
    walks: Walks | None  # None without a grammar


class Arrivals(NamedTuple):
    """Prompts that take a seat. All arrays have one entry per slot, of which the first `number` count."""

    number: np.int32
    rows: np.ndarray  # int32, the row of each prompt in its prefilled batch
    seats: np.ndarray  # int32, its slot; the number of slots for entries that do not count
    last: np.ndarray  # int32, its last id
    lengths: np.ndarray  # int32
    keys: np.ndarray  # [slots, 2] uint32
    places: Place | None  # [slots], None without a grammar


def bucket(length: int, limit: int) -> int:
    """The padded length of `length` prefilled tokens: the next power of two, at most `limit`; 0 for none."""
    if not length:
        return 0
    size = SMALLEST_BUCKET
    while size < length:
        size *= 2
    return min(size, limit)


def capacities(limit: int, platform: str) -> list[int]:
    """The capacities of caches of at most `limit` tokens, ascending: quarters by doubling.

    A step reads the whole capacity, and each one is compiled by itself. On TPUs it reads only what is filled, so there
    is only one, of whole windows.
    """
    if platform == "tpu":
        return [-(-limit // WINDOW) * WINDOW]
    found = {limit} | {size for part in (4, 2) if (size := -(-limit // part)) >= SMALLEST_CAPACITY}
    return sorted(found)


class Programs:
    """The programs for one model, mesh and settings. Each may be called from several threads.

    Attributes:
      slots: of one state.
      capacities: those that a state may have.
    """

    def __init__(
        self, model: Model, mesh: Mesh, settings: Settings, slots: int, eos: int, grammar: TokenGrammar | None
    ):
        """
        Args:
          model: in its form for decoding.
          eos: the id that ends a sequence.
        """
        self._model, self._mesh, self._settings = model, mesh, settings
        self._eos, self._grammar = eos, grammar
        self._graphdef, _ = networks.abstract(model)
        self.slots, self.capacities = slots, capacities(settings.max_tokens, mesh.devices.flat[0].platform)
        self._members = sharding.num_parts(mesh, "batch")
        # The slots have the same sharding before and after each call: another one would compile the program again.
        whole = NamedSharding(mesh, PartitionSpec())
        spread = NamedSharding(mesh, sharding.spec(model.CACHE_AXES))
        layouts: dict[str, Any] = {field.name: whole for field in dataclasses.fields(Slots)} | {"caches": spread}
        layout = Slots(**layouts)
        self._start = jax.jit(self._empty, static_argnums=0, out_shardings=layout)
        self._resize = jax.jit(self._resized, static_argnums=1, out_shardings=layout)
        self._prefill = jax.jit(self._prefilled, out_shardings=spread)
        self._seat = jax.jit(self._seated, donate_argnums=0, out_shardings=layout)
        self._decode = jax.jit(self._decoded, donate_argnums=2, out_shardings=(layout, whole))
        self._one_step = jax.jit(self._step, donate_argnums=2, out_shardings=layout)
        self._compiled: set[Hashable] = set()
        self._compiling = threading.Lock()

    @contextlib.contextmanager
    def _calling(self, *program: Hashable) -> Iterator[None]:
        """Around a call, under the mesh. A program's first call excludes others: two threads would both compile it."""
        known = program in self._compiled
        with contextlib.nullcontext() if known else self._compiling, jax.set_mesh(self._mesh):
            yield
        self._compiled.add(program)

    def rows(self, size: int) -> int:
        """How many prompts of a bucket one call of `prefill` takes, always the same number."""
        members = self._members
        most = self.slots if size == 0 else min(self.slots, max(1, PREFILLED_TOKENS // size))
        return -(-most // members) * members

    def start(self, capacity: int) -> Slots:
        """Empty slots."""
        with self._calling("start", capacity):
            return self._start(capacity)

    def resize(self, slots: Slots, capacity: int) -> Slots:
        """The same slots with another capacity, which must hold all sequences."""
        with self._calling("resize", _shape(slots.caches), capacity):
            return self._resize(slots, capacity)

    def prefill(self, params: Any, prompts: np.ndarray, lengths: np.ndarray) -> Any:
        """Caches of prompts int32 [rows, bucket], each padded after its length (`lengths`: int32 [rows])."""
        with self._calling("prefill", prompts.shape):
            return self._prefill(params, prompts, lengths)

    def seat(self, slots: Slots, caches: Any, arrivals: Arrivals) -> Slots:
        """Puts prompts into slots; consumes `slots`. `caches`: those of the prompts' batch, from `prefill`."""
        with self._calling("seat", _shape(slots.caches), _shape(caches)):
            return self._seat(slots, caches, arrivals)

    def decode(
        self, params: Any, rules: Rules | None, slots: Slots, most: int, enough: int
    ) -> tuple[Slots, jax.Array]:
        """Decodes until `most` steps (at most LONGEST_CALL) or `enough` slots are done; consumes `slots`.

        Returns:
          the slots, and int32 [slots, LONGEST_CALL], the drawn ids of each, of which as many count as its length grew.
        """
        with self._calling("decode", _shape(slots.caches)):
            return self._decode(params, rules, slots, np.int32(most), np.int32(enough))

    def lower_prefill(self, params: Any, size: int) -> jax.stages.Lowered:
        """`prefill` for a bucket, not compiled yet."""
        rows = self.rows(size)
        with jax.set_mesh(self._mesh):
            return self._prefill.lower(params, np.zeros((rows, size), np.int32), np.ones(rows, np.int32))

    def lower_step(self, params: Any, rules: Rules | None) -> jax.stages.Lowered:
        """One step of `decode` with the largest capacity, not compiled yet."""
        with jax.set_mesh(self._mesh):
            return self._one_step.lower(params, rules, self._start.eval_shape(self.capacities[-1]))

    def _empty(self, capacity: int) -> Slots:
        slots = self.slots
        return Slots(
            caches=self._model.empty_caches(slots, capacity),
            last=jnp.zeros(slots, jnp.int32),
            lengths=jnp.ones(slots, jnp.int32),
            keys=jnp.zeros((slots, 2), jnp.uint32),
            done=jnp.ones(slots, bool),
            finite=jnp.ones(slots, bool),
            log_likelihood=jnp.zeros(slots, jnp.float32),
            walks=_first_walks(jax.tree.map(lambda x: jnp.full(slots, x), self._grammar.done))
            if self._grammar
            else None,
        )

    def _resized(self, slots: Slots, capacity: int) -> Slots:
        def resize(old: jax.Array, empty: jax.Array) -> jax.Array:
            kept = old[tuple(slice(min(sizes)) for sizes in zip(old.shape, empty.shape, strict=True))]
            return jax.lax.dynamic_update_slice(empty, kept, (0,) * empty.ndim)

        empty = self._model.empty_caches(self.slots, capacity)
        return dataclasses.replace(slots, caches=jax.tree.map(resize, slots.caches, empty))

    def _prefilled(self, params: Any, prompts: jax.Array, lengths: jax.Array) -> Any:
        if not prompts.shape[1]:
            return self._model.empty_caches(len(prompts), 1)
        return nnx.merge(self._graphdef, params).prefill(prompts, lengths)

    def _seated(self, slots: Slots, caches: Any, new: Arrivals) -> Slots:
        def copy(n: jax.Array, all_caches: Any) -> Any:
            def into(all_slots: jax.Array, batch: jax.Array) -> jax.Array:
                row = jax.lax.dynamic_index_in_dim(batch, new.rows[n]).astype(all_slots.dtype)
                return jax.lax.dynamic_update_slice(all_slots, row, (new.seats[n], *[0] * (batch.ndim - 1)))

            return jax.tree.map(into, all_caches, caches)

        def put(all_slots: jax.Array, values: Any) -> jax.Array:
            return all_slots.at[new.seats].set(values, mode="drop")

        return Slots(
            caches=jax.lax.fori_loop(0, new.number, copy, slots.caches),
            last=put(slots.last, new.last),
            lengths=put(slots.lengths, new.lengths),
            keys=put(slots.keys, new.keys),
            done=put(slots.done, False),
            finite=put(slots.finite, True),
            log_likelihood=put(slots.log_likelihood, 0.0),
            walks=jax.tree.map(put, slots.walks, _first_walks(new.places)) if self._grammar else None,
        )

    def _decoded(
        self, params: Any, rules: Rules | None, slots: Slots, most: jax.Array, enough: jax.Array
    ) -> tuple[Slots, jax.Array]:
        def goes_on(carry: tuple[jax.Array, Slots, jax.Array]) -> jax.Array:
            steps, slots, _ = carry
            return (steps < most) & (jnp.sum(slots.done) < enough)

        def body(carry: tuple[jax.Array, Slots, jax.Array]) -> tuple[jax.Array, Slots, jax.Array]:
            steps, slots, ids = carry
            slots = self._step(params, rules, slots)
            return steps + 1, slots, jax.lax.dynamic_update_index_in_dim(ids, slots.last, steps, axis=1)

        ids = jnp.zeros((self.slots, LONGEST_CALL), jnp.int32)
        _, slots, ids = jax.lax.while_loop(goes_on, body, (jnp.int32(0), slots, ids))
        return slots, ids

    def _step(self, params: Any, rules: Rules | None, slots: Slots) -> Slots:
        """One token of each slot. A slot that is done stays as it is until the host has read it."""
        model = nnx.merge(self._graphdef, params)
        logits, caches = model.decode(slots.last, slots.lengths - 1, slots.caches)
        token, walks = self._next(rules, logits, slots)
        log_likelihood = slots.log_likelihood + _log_probability(logits, token)
        lengths = slots.lengths + 1
        finite = are_finite(logits, self._model.vocab_size)
        done = (token == self._eos) | (lengths >= self._settings.max_tokens) | ~finite
        new = Slots(caches, token, lengths, slots.keys, done, finite, log_likelihood, walks)

        def kept(old: jax.Array, new: jax.Array) -> jax.Array:
            return jnp.where(slots.done.reshape(-1, *[1] * (old.ndim - 1)), old, new)

        # The cache of a slot that is done got its last token again, where it belongs or will be overwritten.
        merged = jax.tree.map(kept, dataclasses.replace(slots, caches=None), dataclasses.replace(new, caches=None))
        return dataclasses.replace(merged, caches=caches)

    def _next(self, rules: Rules | None, logits: jax.Array, slots: Slots) -> tuple[jax.Array, Walks | None]:
        """The next token [slots] from logits [slots, vocab], and the walks after it."""
        if not slots.walks:
            return self._draw(logits, slots), None
        assert self._grammar and rules  # walks exist only with a grammar
        walks = slots.walks
        choices = self._grammar.choices(rules, walks.place, self._settings.max_tokens - slots.lengths)
        vocab = choices.legal.shape[1]
        # Measured at temperature 1 and before top-k and top-p, and without the budget: a property of the model alone.
        mass = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)[:, :vocab]
        removed = walks.removed + jnp.sum(mass, axis=-1, where=~choices.legal)
        was_cut = walks.was_cut | jnp.any(choices.legal & ~choices.fits, axis=-1)
        token = self._draw(jnp.where(choices.fits, logits[:, :vocab], -jnp.inf), slots)
        return token, Walks(self._grammar.after(walks.place, choices, token), removed, was_cut)

    def _draw(self, logits: jax.Array, slots: Slots) -> jax.Array:
        settings = self._settings
        probabilities = filtered_probabilities(logits, settings.temperature, settings.top_k, settings.top_p)
        return draw(probabilities, jax.vmap(uniform)(slots.keys, slots.lengths))


def _first_walks(places: Place) -> Walks:
    """Walks that start at `places` [slots]."""
    slots = len(jax.tree.leaves(places)[0])
    places = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), places)
    return Walks(places, jnp.zeros(slots, jnp.float32), jnp.zeros(slots, bool))


def _log_probability(logits: jax.Array, token: jax.Array) -> jax.Array:
    """ln p of each token [slots], from logits [slots, vocab]."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def uniform(key: jax.Array, position: jax.Array) -> jax.Array:
    """A number in [0, 1) from a request's key [2] and the position of the token that it draws."""
    key = jax.random.wrap_key_data(key, impl="threefry2x32")
    return jax.random.uniform(jax.random.fold_in(key, position))


def _shape(tree: Any) -> tuple[int, ...]:
    """The shape of the first array, which tells caches of one model apart."""
    return jax.tree.leaves(tree)[0].shape
