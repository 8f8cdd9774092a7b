"""Which tokens may come next, so that what a model writes is a legal file and ends within its budget.

The bytes of each token are walked through the automaton of a codec's grammar, for all tokens at once. Nothing depends
on the model.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jpeglm.codecs.jpeg_grammar import JpegGrammar, Place
from jpeglm.errors import InputError
from jpeglm.tokenizer import Tokenizer


class Rules(NamedTuple):
    """The arrays that `TokenGrammar` reads on the device.

    Attributes:
      rows: int32 [rows, 256], of the grammar.
      distances: int32 [states], of the grammar, but in tokens where a place is in the header.
      first: int32 [vocab], the first byte of each token.
      merges: int32 [merges], the tokens of several bytes that may stand behind the header.
      rest: int32 [longest - 1, merges], their other bytes, then -1.
      node: int32 [vocab], where in `Choices.nodes` a token is found; -1 for one that stands in no scan.
      header: [header bytes, vocab], the place behind each token from each place in the header.
      header_legal: bool [header bytes, vocab].
      header_needed: int32 [header bytes, vocab], tokens that will do to end the file behind that.
    """

    rows: np.ndarray
    distances: np.ndarray
    first: np.ndarray
    merges: np.ndarray
    rest: np.ndarray
    node: np.ndarray
    header: Place
    header_legal: np.ndarray
    header_needed: np.ndarray


class Choices(NamedTuple):
    """What may come next in n files."""

    legal: jax.Array  # bool [n, vocab], by the grammar
    fits: jax.Array  # bool [n, vocab], legal ones behind which the file can still be ended in time
    nodes: Place  # [n, vocab + merges], behind the first bytes of all tokens and behind whole merges


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
        may_stand = [bool(data) and grammar.is_possible(data) for data in tokens]
        merges = np.array([n for n, data in enumerate(tokens) if len(data) > 1 and may_stand[n]], np.int32)
        rest = np.full((max((len(tokens[n]) - 1 for n in merges), default=0), len(merges)), -1, np.int32)
        for column, number in enumerate(merges):
            rest[: len(tokens[number]) - 1, column] = list(tokens[number][1:])
        node = np.where(may_stand, np.arange(len(tokens)), -1).astype(np.int32)
        node[merges] = len(tokens) + np.arange(len(merges))

        # Header places are few and their bytes fixed: all tokens are walked from all of them once and for all.
        count = len(grammar.distances) - grammar.in_header
        state = np.arange(grammar.in_header, grammar.in_header + count, dtype=np.int32)
        walks = [_walk(grammar, Place(state, np.zeros_like(state), np.zeros(count, bool)), data) for data in tokens]
        header = Place(*(np.stack(values, axis=1) for values in zip(*(place for place, _ in walks), strict=True)))
        legal = np.stack([legal for _, legal in walks], axis=1)
        distances = self._distances(header, legal)
        self.rules = Rules(
            rows=grammar.rows,
            distances=distances,
            first=np.array([data[0] if data else 0 for data in tokens], np.int32),
            merges=merges,
            rest=rest,
            node=node,
            header=header,
            header_legal=legal,
            header_needed=grammar.distance(header, distances) + 1,
        )

    def _distances(self, header: Place, legal: np.ndarray) -> np.ndarray:
        """The grammar's distances, in the header in tokens: the fewest, one place before the next."""
        grammar, distances = self._grammar, self._grammar.distances.copy()
        for offset in range(len(legal) - 1, -1, -1):
            behind = Place(*(values[offset, legal[offset]] for values in header))
            fewest = 1 + np.min(grammar.distance(behind, distances))
            here = Place(np.int32(grammar.in_header + offset), np.int32(0), np.bool_(False))
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
        """A number of tokens [n] that will do to end a file, EOS among them; in the header the smallest there is."""
        return self._grammar.distance(place, self.rules.distances) + 1

    def choices(self, rules: Rules, at: Place, room: jax.Array) -> Choices:
        """What may come next.

        Args:
          rules: as of this object, on the device.
          at: places [n].
          room: int32 [n], tokens that may still be written, EOS among them.
        """
        grammar = self._grammar
        place = Place(*(values[:, None] for values in at))
        begun, legal = grammar.step(place, rules.first, rules.rows, jnp)

        def read(walk: tuple[Place, jax.Array], data: jax.Array) -> tuple[tuple[Place, jax.Array], None]:
            place, legal = walk
            following, legal_here = grammar.step(place, data, rules.rows, jnp)
            following = Place(*(jnp.where(data < 0, *pair) for pair in zip(place, following, strict=True)))
            return (following, legal & (legal_here | (data < 0))), None

        merged = Place(*(values[:, rules.merges] for values in begun)), legal[:, rules.merges]
        (whole, whole_legal), _ = jax.lax.scan(read, merged, rules.rest)
        nodes = Place(*(jnp.concatenate(pair, axis=1) for pair in zip(begun, whole, strict=True)))
        needed = grammar.distance(nodes, rules.distances, jnp) + 1
        legal = jnp.concatenate([legal, whole_legal], axis=1)[:, rules.node] & (rules.node >= 0)

        # The header's places have tables of their own.
        offset, in_header = self._offset(at)
        legal = jnp.where(in_header[:, None], rules.header_legal[offset], legal)
        needed = jnp.where(in_header[:, None], rules.header_needed[offset], needed[:, rules.node])
        is_eos = jnp.arange(legal.shape[1]) == self._eos
        legal = jnp.where(is_eos, place.state == grammar.done, legal)
        return Choices(legal, legal & (is_eos | (needed < room[:, None])), nodes)

    def behind(self, rules: Rules, at: Place, choices: Choices, token: jax.Array) -> Place:
        """The places [n] behind the legal tokens [n], of what `choices` said of places `at` [n]."""
        rows = jnp.arange(len(token))
        offset, in_header = self._offset(at)
        of_header = (values[offset, token] for values in rules.header)
        of_scan = (values[rows, rules.node[token]] for values in choices.nodes)
        following = (jnp.where(in_header, *pair) for pair in zip(of_header, of_scan, strict=True))
        return Place(*(jnp.where(token == self._eos, *pair) for pair in zip(at, following, strict=True)))

    def _offset(self, at: Place) -> tuple[jax.Array, jax.Array]:
        """How far in the header places [n] are, and whether they are in it."""
        offset = at.state - self._grammar.in_header
        return jnp.maximum(offset, 0), offset >= 0


def _walk(grammar: JpegGrammar, at: Place, data: bytes) -> tuple[Place, np.ndarray]:
    """The places behind `data`, and where all of it is legal; nowhere if there is none of it."""
    all_legal = np.full(at.state.shape, bool(data))
    for byte in data:
        following, legal = grammar.step(at, byte)
        all_legal &= legal
        at = Place(*(np.where(all_legal, *pair) for pair in zip(following, at, strict=True)))
    return at, all_legal
