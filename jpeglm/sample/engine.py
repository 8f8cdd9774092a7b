"""Prefill and decode with caches over a fixed number of slots.

Every slot decodes one sequence; when it finishes, the slot takes the next request (continuous batching). Shapes never
depend on the requests (prompts are padded to fixed buckets, caches have a fixed capacity), so nothing is recompiled. A
draw depends only on its request and position, so a sequence does not depend on its neighbours or its place in the
queue. With a grammar, each step draws only from the tokens that it allows; see grammar.py.
"""

import copy
import dataclasses
import operator
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jpeglm.core import config as config_lib
from jpeglm.core import sharding
from jpeglm.core.errors import InputError
from jpeglm.data.codecs.grammar import Place
from jpeglm.models import Model, networks
from jpeglm.sample.filters import NOT_FINITE, are_finite, draw, filtered_probabilities
from jpeglm.sample.grammar import Rules, TokenGrammar
from jpeglm.sample.too_long import TooLong

STEPS_A_CALL = 16  # tokens decoded per slot and call; each return to the host costs a synchronisation
SMALLEST_BUCKET = 32


def integer(name: str, value: Any, least: int | None = None) -> int:
    """`value` as an int; raises InputError if it is not a whole number, or is below `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name}={value!r} is no whole number") from None
    if least is not None and number < least:
        raise InputError(f"{name}={number}: {least} is the least")
    return number


@dataclasses.dataclass(frozen=True)
class Request:
    """One sequence to continue.

    prompt: ids, BOS first. key: two uint32; the draws depend on nothing else. place: the grammar's state after it.
    """

    prompt: np.ndarray
    key: np.ndarray
    place: Place | None = None


class Written(NamedTuple):
    """The result of one request.

    Attributes:
      number: of the request.
      ids: generated ones, int32 [n], without EOS.
      ended: whether EOS came; with a grammar, also that the token budget never removed a legal token.
      removed: the mean share of the model's probability that the grammar removed per token; None without one.
      log_likelihood: sum of ln p of the generated tokens, EOS included.
    """

    number: int
    ids: np.ndarray
    ended: bool
    removed: float | None
    log_likelihood: float = float("nan")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How tokens are drawn.

    `max_tokens` limits prompt and continuation together. `grammar`: write only legal files, if the codec has a
    grammar.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    slots: int = 8
    grammar: bool = True

    def __post_init__(self) -> None:
        for name in ("max_tokens", "top_k", "slots"):
            object.__setattr__(self, name, integer(name, getattr(self, name)))
        if isinstance(self.grammar, np.bool_):
            object.__setattr__(self, "grammar", bool(self.grammar))
        config_lib.check_sampling(dataclasses.asdict(self))


class _Walks(NamedTuple):
    """The state of each sequence in its grammar."""

    place: Place  # [slots]
    removed: jax.Array  # [slots] float32, removed probability, summed over tokens
    was_cut: jax.Array  # [slots] bool, whether the budget ever removed a legal token


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Slots:
    caches: Any  # of `Model.empty_caches`
    tokens: jax.Array  # [slots, max_tokens] ids so far
    lengths: jax.Array  # [slots] how many of them
    keys: jax.Array  # [slots, 2] uint32
    done: jax.Array  # [slots] bool
    finite: jax.Array  # [slots] bool, whether all logits so far were finite
    walks: _Walks | None  # None without a grammar


class Engine:
    """Decodes many requests with one set of parameters.

    Args:
      model: the trained model.
      params: pure dict of its parameters, sharded on `mesh`; or their shapes, for an engine that is only lowered.
      mesh: slots and heads are sharded over it.
      eos: the id that ends a sequence.
      grammar: of the files, or None.
      name: of the weights, for messages.
    """

    def __init__(
        self,
        model: Model,
        params: Any,
        mesh: Mesh,
        settings: Settings,
        eos: int,
        grammar: TokenGrammar | None = None,
        name: str = "sampling",
    ):
        self._model = model.for_decoding()
        self._mesh = mesh
        self._name = name
        self._eos = eos
        self._give(grammar)
        self._graphdef, abstract_model = networks.abstract(self._model)
        layout = sharding.parameter_shardings(abstract_model, mesh)
        prepare = jax.jit(model.decoding_parameters, out_shardings=layout)
        is_abstract = isinstance(jax.tree.leaves(params)[0], jax.ShapeDtypeStruct)
        self._params = prepare.eval_shape(params) if is_abstract else prepare(params)
        self._set(settings)

    def with_settings(self, settings: Settings, grammar: TokenGrammar | None = None) -> "Engine":
        """An engine with the same parameters (not copied), other settings and, if it had none, a grammar."""
        other = copy.copy(self)
        if grammar:
            other._give(grammar)
        other._set(settings)
        return other

    @property
    def weights(self) -> tuple[Model, Any, Mesh]:
        """The decoding model, its parameters and their mesh."""
        return self._model, self._params, self._mesh

    def _give(self, grammar: TokenGrammar | None) -> None:
        whole = NamedSharding(self._mesh, PartitionSpec())
        self._grammar_and_rules = grammar, jax.device_put(grammar.rules, whole) if grammar else None

    def _set(self, settings: Settings) -> None:
        mesh = self._mesh
        members = sharding.num_parts(mesh, "batch")
        if settings.slots % members:
            raise InputError(f"slots={settings.slots} do not divide over {members} devices")
        self.settings = settings
        # The slots have the same sharding before and after each call: another one would compile the program again.
        whole = NamedSharding(mesh, PartitionSpec())
        spread = NamedSharding(mesh, sharding.spec(self._model.CACHE_AXES))
        layouts: dict[str, Any] = {field.name: whole for field in dataclasses.fields(_Slots)} | {"caches": spread}
        layout = _Slots(**layouts)
        self._grammar, self._rules = self._grammar_and_rules if settings.grammar else (None, None)
        self._start = jax.jit(self._empty, out_shardings=layout)
        self._insert = jax.jit(self._insert_impl, donate_argnums=2, out_shardings=layout)
        self._decode = jax.jit(self._decode_impl, donate_argnums=2, out_shardings=layout)

    def lower_prefill(self, length: int) -> jax.stages.Lowered:
        """The program that prefills a prompt of this length, not compiled yet."""
        prompt = np.zeros((1, bucket(length, self.settings.max_tokens)), np.int32)
        place = self._grammar.done if self._grammar else None
        request = prompt, np.int32(length), np.int32(0), np.zeros(2, np.uint32), place
        with jax.set_mesh(self._mesh):
            return self._insert.lower(self._params, self._rules, self._start.eval_shape(), *request)

    def lower_decode(self) -> jax.stages.Lowered:
        """The program of STEPS_A_CALL steps of all slots, not compiled yet."""
        with jax.set_mesh(self._mesh):
            return self._decode.lower(self._params, self._rules, self._start.eval_shape())

    def generate(self, requests: Iterable[Request]) -> Iterator[Written]:
        """Yields the result of each request, in the order in which they finish.

        Raises:
          InputError: logits are not finite, whatever the settings.
          TooLong: a prompt that leaves no room.
        """
        with jax.set_mesh(self._mesh):
            yield from self._generate(requests)

    def _generate(self, requests: Iterable[Request]) -> Iterator[Written]:
        waiting = iter(enumerate(requests))
        state = self._start()
        running: dict[int, tuple[int, int]] = {}  # slot -> (number, prompt length)
        while True:
            for slot in range(self.settings.slots):
                if slot in running:
                    continue
                following = next(waiting, None)
                if following is None:
                    break
                number, request = following
                state = self._prefill(state, slot, request)
                running[slot] = number, len(request.prompt)
            if not running:
                return
            # A sequence may end in the middle of a call; its slot is refilled only after the call.
            state = self._decode(self._params, self._rules, state)
            done, finite, lengths, walks = jax.device_get((state.done, state.finite, state.lengths, state.walks))
            if not all(finite[slot] for slot in running):
                raise InputError(f"{self._name}: {NOT_FINITE}")
            for slot in [slot for slot in running if done[slot]]:
                number, prompt_length = running.pop(slot)
                ids = np.asarray(state.tokens[slot])[prompt_length : lengths[slot]]
                written = ids[:-1] if ids[-1] == self._eos else ids
                ended, removed = len(written) < len(ids), None
                if walks:
                    ended = ended and not walks.was_cut[slot]
                    removed = float(walks.removed[slot]) / len(ids)
                yield Written(number, written, ended, removed)

    def check(self, request: Request) -> None:
        """Raises TooLong if a prompt leaves no room for a token, or with a grammar for a complete file."""
        length, limit = len(request.prompt), self.settings.max_tokens
        if not 0 < length < limit:
            raise TooLong(f"a prompt of {length} tokens leaves no room within max_tokens={limit}")
        if self._grammar and (least := length + int(self._grammar.tokens_needed(request.place))) > limit:
            raise TooLong(
                f"to become a whole file, a prompt of {length} tokens needs max_tokens={least} or more; "
                "without the grammar nothing is promised or refused"
            )

    def _prefill(self, state: _Slots, slot: int, request: Request) -> _Slots:
        self.check(request)
        length, limit = len(request.prompt), self.settings.max_tokens
        place = request.place if self._grammar else None
        padded = np.zeros((1, bucket(length, limit)), np.int32)
        padded[0, :length] = request.prompt
        return self._insert(
            self._params, self._rules, state, padded, np.int32(length), np.int32(slot), request.key, place
        )

    def _empty(self) -> _Slots:
        slots, limit = self.settings.slots, self.settings.max_tokens
        return _Slots(
            caches=self._model.empty_caches(slots, limit),
            tokens=jnp.zeros((slots, limit), jnp.int32),
            lengths=jnp.ones(slots, jnp.int32),
            keys=jnp.zeros((slots, 2), jnp.uint32),
            done=jnp.ones(slots, bool),
            finite=jnp.ones(slots, bool),
            walks=_first_walks(self._grammar.done, slots) if self._grammar else None,
        )

    def _insert_impl(
        self,
        params: Any,
        rules: Rules | None,
        state: _Slots,
        prompt: jax.Array,
        length: jax.Array,
        slot: jax.Array,
        key: jax.Array,
        place: Place | None,
    ) -> _Slots:
        """Runs one prompt [1, bucket] and puts its cache and its first new token in a slot."""
        logits, caches = nnx.merge(self._graphdef, params).prefill(prompt, length[None])
        logits = logits[:, length - 1]
        finite = are_finite(logits, self._model.vocab_size)[0]
        walks = _first_walks(place, 1) if self._grammar else None
        token, walks = self._next(rules, logits, key[None], length[None], walks)
        token = token[0]

        def into(all_slots: jax.Array, one: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice(all_slots, one.astype(all_slots.dtype), (slot, *[0] * (one.ndim - 1)))

        row = jnp.zeros(self.settings.max_tokens, jnp.int32).at[: prompt.shape[1]].set(prompt[0]).at[length].set(token)
        return _Slots(
            caches=jax.tree.map(into, state.caches, caches),
            tokens=state.tokens.at[slot].set(row),
            lengths=state.lengths.at[slot].set(length + 1),
            keys=state.keys.at[slot].set(key),
            done=state.done.at[slot].set(self._ends(token, length + 1)),
            finite=state.finite.at[slot].set(finite),
            walks=jax.tree.map(lambda all_slots, one: all_slots.at[slot].set(one[0]), state.walks, walks),
        )

    def _decode_impl(self, params: Any, rules: Rules | None, state: _Slots) -> _Slots:
        model = nnx.merge(self._graphdef, params)
        rows = jnp.arange(self.settings.slots)

        def step(state: _Slots, _: None) -> tuple[_Slots, None]:
            last = state.lengths - 1
            logits, caches = model.decode(state.tokens[rows, last], last, state.caches)
            token, walks = self._next(rules, logits, state.keys, state.lengths, state.walks)
            finite = state.finite & (state.done | are_finite(logits, self._model.vocab_size))
            # All slots run in one program, so a finished one must be kept unchanged until the host has read it.
            place = jnp.where(state.done, last, state.lengths)
            token = jnp.where(state.done, state.tokens[rows, last], token)
            walks = jax.tree.map(lambda old, new: jnp.where(state.done, old, new), state.walks, walks)
            lengths = place + 1
            done = state.done | self._ends(token, lengths)
            tokens = state.tokens.at[rows, place].set(token)
            return _Slots(caches, tokens, lengths, state.keys, done, finite, walks), None

        return jax.lax.scan(step, state, None, length=STEPS_A_CALL)[0]

    def _next(
        self, rules: Rules | None, logits: jax.Array, keys: jax.Array, positions: jax.Array, walks: _Walks | None
    ) -> tuple[jax.Array, _Walks | None]:
        """Tokens [n] at `positions` [n], from logits [n, vocab] and keys [n, 2]; and the walks after them."""
        if not walks:
            return self._draw(logits, keys, positions), None
        assert self._grammar and rules  # walks exist only with a grammar
        choices = self._grammar.choices(rules, walks.place, self.settings.max_tokens - positions)
        vocab = choices.legal.shape[1]
        # Measured at temperature 1 and before top-k and top-p, and without the budget: a property of the model alone.
        mass = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)[:, :vocab]
        removed = walks.removed + jnp.sum(mass, axis=-1, where=~choices.legal)
        was_cut = walks.was_cut | jnp.any(choices.legal & ~choices.fits, axis=-1)
        token = self._draw(jnp.where(choices.fits, logits[:, :vocab], -jnp.inf), keys, positions)
        return token, _Walks(self._grammar.after(walks.place, choices, token), removed, was_cut)

    def _draw(self, logits: jax.Array, keys: jax.Array, positions: jax.Array) -> jax.Array:
        """Tokens [n]; arguments as of `_next`."""
        settings = self.settings
        probabilities = filtered_probabilities(logits, settings.temperature, settings.top_k, settings.top_p)
        return draw(probabilities, jax.vmap(_uniform)(keys, positions))

    def _ends(self, token: jax.Array, length: jax.Array) -> jax.Array:
        return (token == self._eos) | (length >= self.settings.max_tokens)


def _first_walks(place: Place, slots: int) -> _Walks:
    """Walks of `slots` sequences that start at `place` []."""
    places = jax.tree.map(lambda value: jnp.full(slots, value, jnp.result_type(value)), place)
    return _Walks(places, jnp.zeros(slots, jnp.float32), jnp.zeros(slots, bool))


def _uniform(key: jax.Array, position: jax.Array) -> jax.Array:
    key = jax.random.wrap_key_data(key, impl="threefry2x32")
    return jax.random.uniform(jax.random.fold_in(key, position))


def bucket(length: int, limit: int) -> int:
    """The padded length of a prompt: the next power of two, at most `limit`."""
    size = SMALLEST_BUCKET
    while size < length:
        size *= 2
    return min(size, limit)
