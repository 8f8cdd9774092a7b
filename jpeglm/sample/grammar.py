"""Which tokens may come next, so that a model writes a legal file within its token budget.

The bytes of each token are run through the automaton of a codec's grammar, for all tokens at once. This does not
depend on the model.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jpeglm.core.errors import InputError
from jpeglm.data.codecs.grammar import Grammar, Lookup, Place
from jpeglm.data.tokenizers import Tokenizer


class Rules(NamedTuple):
    """The arrays that `TokenGrammar.choices` uses on the device.

    Attributes:
      lookup: the grammar's tables; distances from places in the header are in tokens.
      first: int32 [vocab], the first byte of each token.
      merges: int32 [merges], the tokens of several bytes that may occur after the header.
      rest: int32 [longest - 1, merges], their other bytes, then -1.
      column: int32 [vocab], the index of a token among first bytes followed by merges; -1 if it occurs only in
        headers.
      header: int32 [header bytes, vocab], the place after each token from each place in the header, packed.
    """

    lookup: Lookup
    first: np.ndarray
    merges: np.ndarray
    rest: np.ndarray
    column: np.ndarray
    header: np.ndarray


class Choices(NamedTuple):
    """What may come next in n files."""

    legal: jax.Array  # bool [n, vocab], allowed by the grammar
    fits: jax.Array  # bool [n, vocab], legal tokens after which the file can still end within the budget
    after: jax.Array  # int32 [n, vocab], the place after each token, packed


class TokenGrammar:
    """A byte grammar applied to the tokens of a tokenizer.

    Attributes:
      rules: arrays for the device.
      done: place [] of a complete file.
    """

    def __init__(self, grammar: Grammar, tokenizer: Tokenizer):
        self._grammar = grammar
        self._eos = tokenizer.EOS
        self.done = grammar.end

        tokens = tokenizer.token_bytes
        if not grammar.can_pack(max(map(len, tokens))):
            raise InputError("too many states of the grammar, or too long a token, for sampling by it")

        may_stand = [bool(data) and grammar.is_possible(data) for data in tokens]
        merges = np.array([n for n, data in enumerate(tokens) if len(data) > 1 and may_stand[n]], np.int32)
        rest = np.full((max((len(tokens[n]) - 1 for n in merges), default=0), len(merges)), -1, np.int32)
        for number, token in enumerate(merges):
            rest[: len(tokens[token]) - 1, number] = list(tokens[token][1:])
        column = np.where(may_stand, np.arange(len(tokens)), -1).astype(np.int32)
        column[merges] = len(tokens) + np.arange(len(merges))

        # The header has few places and fixed bytes, so all tokens are run from all of its places in advance.
        here = grammar.header
        header = np.stack([grammar.pack(*_walk(grammar, here, data), here) for data in tokens], axis=1)
        self.rules = Rules(
            lookup=grammar.lookup(self._fewest_tokens(header)),
            first=np.array([data[0] if data else 0 for data in tokens], np.int32),
            merges=merges,
            rest=rest,
            column=column,
            header=header.astype(np.int32),
        )

    def _fewest_tokens(self, header: np.ndarray) -> np.ndarray:
        """Distances from the header's places, int32 [header bytes]: the fewest tokens to its end, then bytes."""
        grammar, fewest = self._grammar, np.zeros(len(header), np.int32)
        for offset in range(len(header) - 1, -1, -1):  # backwards: each place needs the later ones
            here = jax.tree.map(lambda values, offset=offset: values[offset], grammar.header)
            after = grammar.unpack(header[offset, header[offset] >= 0], here)
            place = grammar.header_index(after)
            fewest[offset] = 1 + np.min(np.where(place < 0, grammar.distance(after), fewest[np.maximum(place, 0)]))
        return fewest

    def places(self, prefixes: list[bytes]) -> Place:
        """The place [n] after each prefix of a file.

        Raises:
          InputError: a prefix of no legal file.
        """
        place, read = self._grammar.walk(prefixes)
        for number, prefix in enumerate(prefixes):
            if read[number] < len(prefix):
                raise InputError(
                    f"prompt {number}: byte {read[number]} is {prefix[read[number]]:02X}, which is not legal there"
                )
        return place

    def tokens_needed(self, place: Place) -> np.ndarray:
        """A number of tokens [n] that suffices to end a file with EOS: the header's fewest, then one per byte."""
        return self._grammar.distance(place, self.rules.lookup) + 1

    def choices(self, rules: Rules, at: Place, room: jax.Array) -> Choices:
        """What may come next.

        Args:
          rules: those of this object, on the device.
          at: places [n].
          room: int32 [n], tokens that may still be written, including EOS.
        """
        grammar = self._grammar
        at = jax.tree.map(lambda values: values[:, None], at)
        begun = grammar.pack(*grammar.step(at, rules.first, rules.lookup, jnp), at, jnp)

        def read(packed: jax.Array, byte: jax.Array) -> tuple[jax.Array, None]:
            following, legal = grammar.step(grammar.unpack(packed, at), byte, rules.lookup, jnp)
            return jnp.where(byte < 0, packed, grammar.pack(following, legal & (packed >= 0), at, jnp)), None

        merged, _ = jax.lax.scan(read, begun[:, rules.merges], jnp.asarray(rules.rest))
        after = jnp.concatenate([begun, merged], axis=1)[:, rules.column]
        after = jnp.where(rules.column < 0, -1, after)
        if len(rules.header):  # places in the header have their own table
            offset = grammar.header_index(at)
            after = jnp.where(offset >= 0, rules.header[jnp.maximum(offset[:, 0], 0)], after)
        is_eos = jnp.arange(after.shape[1]) == self._eos
        after = jnp.where(is_eos, grammar.pack(at, grammar.is_end(at), at, jnp), after)

        legal = after >= 0
        needed = grammar.distance(grammar.unpack(after, at), rules.lookup, jnp) + 1
        return Choices(legal, legal & (is_eos | (needed < room[:, None])), after)

    def after(self, at: Place, choices: Choices, token: jax.Array) -> Place:
        """The places [n] after the legal tokens [n], given the `choices` at places `at` [n]."""
        return self._grammar.unpack(choices.after[jnp.arange(len(token)), token], at)


def _walk(grammar: Grammar, at: Place, data: bytes) -> tuple[Place, np.ndarray]:
    """The places after `data`, and from which places all of it is legal (none if it is empty)."""
    all_legal = np.full(jax.tree.leaves(at)[0].shape, bool(data))
    for byte in data:
        following, legal = grammar.step(at, byte)
        all_legal &= legal
        at = jax.tree.map(lambda new, old, moves=all_legal: np.where(moves, new, old), following, at)
    return at, all_legal
