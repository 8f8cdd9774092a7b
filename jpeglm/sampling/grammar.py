"""Which tokens may come next, so that what a model writes is a legal file and ends within its budget.

The bytes of each token are walked through the automaton of a codec's grammar, for all tokens at once. Nothing depends
on the model.
"""

from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jpeglm.codecs.jpeg_grammar import JpegGrammar, Place
from jpeglm.errors import InputError
from jpeglm.tokenizer import Tokenizer


class Rules(NamedTuple):
    """The arrays that `TokenGrammar.choices` reads on the device.

    Attributes:
      rows: int32 [rows, 256], of the grammar.
      distances: int32 [states], of the grammar, but in tokens where a place is in the header.
      first: int32 [vocab], the first byte of each token.
      merges: int32 [merges], the tokens of several bytes that may stand behind the header.
      rest: int32 [longest - 1, merges], their other bytes, then -1.
      column: int32 [vocab], where a token is found among first bytes and, behind them, merges; -1 for one that only
        stands in headers.
      header: int32 [header bytes, vocab], the place behind each token from each place in the header, packed.
    """

    rows: np.ndarray
    distances: np.ndarray
    first: np.ndarray
    merges: np.ndarray
    rest: np.ndarray
    column: np.ndarray
    header: np.ndarray


class Choices(NamedTuple):
    """What may come next in n files."""

    legal: jax.Array  # bool [n, vocab], by the grammar
    fits: jax.Array  # bool [n, vocab], legal tokens behind which the file can still be ended in time
    behind: jax.Array  # int32 [n, vocab], the place behind each token, packed


# A place packed into an int32, seen from an earlier one; -1 for none. One array instead of three: fewer kernels.
_STATE_BITS, _MCU_BITS = 20, 10


def _pack(place: Place, legal: jax.Array, seen_from: Place, xp: ModuleType = jnp) -> jax.Array:
    since = place.mcus - seen_from.mcus
    return xp.where(legal, place.state | (since | place.stuffed * np.int32(1 << _MCU_BITS)) << _STATE_BITS, -1)


def _unpack(packed: jax.Array, seen_from: Place) -> Place:
    upper = packed >> _STATE_BITS
    mcus = seen_from.mcus + (upper & (1 << _MCU_BITS) - 1)
    return Place(packed & (1 << _STATE_BITS) - 1, mcus, (upper >> _MCU_BITS & 1) == 1)


class TokenGrammar:
    """A byte grammar by the tokens of a tokenizer.

    Attributes:
      rules: arrays for the device.
      done: place [] of a file that is whole.
    """

    def __init__(self, grammar: JpegGrammar, tokenizer: Tokenizer):
        self._grammar = grammar
        self._eos = tokenizer.EOS
        self.done = grammar.start._replace(state=np.int32(grammar.done), mcus=np.int32(grammar.mcus))

        tokens = tokenizer.token_bytes
        most_ends = 4 * max(map(len, tokens))  # of MCUs, none of which has less than two bits
        if len(grammar.distances) > 1 << _STATE_BITS or most_ends >= 1 << _MCU_BITS:
            raise InputError("too many states of the grammar, or too long a token, for sampling by it")

        may_stand = [bool(data) and grammar.is_possible(data) for data in tokens]
        merges = np.array([n for n, data in enumerate(tokens) if len(data) > 1 and may_stand[n]], np.int32)
        rest = np.full((max((len(tokens[n]) - 1 for n in merges), default=0), len(merges)), -1, np.int32)
        for number, token in enumerate(merges):
            rest[: len(tokens[token]) - 1, number] = list(tokens[token][1:])
        column = np.where(may_stand, np.arange(len(tokens)), -1).astype(np.int32)
        column[merges] = len(tokens) + np.arange(len(merges))

        # Header places are few and their bytes fixed: all tokens are walked from all of them once and for all.
        state = np.arange(grammar.in_header, len(grammar.distances), dtype=np.int32)
        here = Place(state, np.zeros_like(state), np.zeros(len(state), bool))
        header = np.stack([_pack(*_walk(grammar, here, data), here, np) for data in tokens], axis=1)
        self.rules = Rules(
            rows=grammar.rows,
            distances=self._distances(header),
            first=np.array([data[0] if data else 0 for data in tokens], np.int32),
            merges=merges,
            rest=rest,
            column=column,
            header=header.astype(np.int32),
        )

    def _distances(self, header: np.ndarray) -> np.ndarray:
        """The grammar's distances, in the header in tokens: the fewest, one place before the next."""
        grammar, distances = self._grammar, self._grammar.distances.copy()
        for offset in range(len(header) - 1, -1, -1):
            here = Place(np.int32(grammar.in_header + offset), np.int32(0), np.bool_(False))
            behind = _unpack(header[offset, header[offset] >= 0], here)
            fewest = 1 + np.min(grammar.distance(behind, distances))
            distances[here.state] += fewest - grammar.distance(here, distances)
        return distances

    def places(self, prefixes: list[bytes]) -> Place:
        """The place [n] behind each beginning of a file.

        Raises:
          InputError: one that no legal file begins with.
        """
        place, read = self._grammar.walk(prefixes)
        for number, prefix in enumerate(prefixes):
            if read[number] < len(prefix):
                raise InputError(
                    f"prompt {number}: byte {read[number]} is {prefix[read[number]]:02X}, no file goes on so"
                )
        return place

    def tokens_needed(self, place: Place) -> np.ndarray:
        """A number of tokens [n] that will do to end a file, EOS among them: the header's fewest, then its bytes."""
        return self._grammar.distance(place, self.rules.distances) + 1

    def choices(self, rules: Rules, at: Place, room: jax.Array) -> Choices:
        """What may come next.

        Args:
          rules: as of this object, on the device.
          at: places [n].
          room: int32 [n], tokens that may still be written, EOS among them.
        """
        grammar = self._grammar
        at = Place(*(values[:, None] for values in at))
        begun = _pack(*grammar.step(at, rules.first, rules.rows, jnp), at)

        def read(packed: jax.Array, byte: jax.Array) -> tuple[jax.Array, None]:
            following, legal = grammar.step(_unpack(packed, at), byte, rules.rows, jnp)
            return jnp.where(byte < 0, packed, _pack(following, legal & (packed >= 0), at)), None

        merged, _ = jax.lax.scan(read, begun[:, rules.merges], rules.rest)
        behind = jnp.concatenate([begun, merged], axis=1)[:, rules.column]
        behind = jnp.where(rules.column < 0, -1, behind)
        # The header's places have a table of their own.
        offset = at.state - grammar.in_header
        behind = jnp.where(offset >= 0, rules.header[jnp.maximum(offset[:, 0], 0)], behind)
        is_eos = jnp.arange(behind.shape[1]) == self._eos
        behind = jnp.where(is_eos, jnp.where(at.state == grammar.done, at.state, -1), behind)

        legal = behind >= 0
        needed = grammar.distance(_unpack(behind, at), rules.distances, jnp) + 1
        return Choices(legal, legal & (is_eos | (needed < room[:, None])), behind)

    def behind(self, at: Place, choices: Choices, token: jax.Array) -> Place:
        """The places [n] behind the legal tokens [n], of what `choices` said of places `at` [n]."""
        return _unpack(choices.behind[jnp.arange(len(token)), token], at)


def _walk(grammar: JpegGrammar, at: Place, data: bytes) -> tuple[Place, np.ndarray]:
    """The places behind `data`, and where all of it is legal; nowhere if there is none of it."""
    all_legal = np.full(at.state.shape, bool(data))
    for byte in data:
        following, legal = grammar.step(at, byte)
        all_legal &= legal
        at = Place(*(np.where(all_legal, *pair) for pair in zip(following, at, strict=True)))
    return at, all_legal
