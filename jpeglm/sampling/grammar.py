"""Which tokens may come next, so that what a model writes is a legal file and ends within its budget.

The bytes of each token are walked through the automaton of a codec's grammar, for all tokens at once: those of
several bytes along a tree of their beginnings. Nothing depends on the model.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jpeglm.codecs.jpeg_grammar import JpegGrammar, Place
from jpeglm.errors import InputError
from jpeglm.tokenizer import Tokenizer


class Rules(NamedTuple):
    """The arrays that `TokenGrammar.choices` reads, to be put on the device."""

    rows: np.ndarray  # int32 [rows, 256], of the grammar
    distances: np.ndarray  # int32 [states], likewise, but in tokens where a place is in the header
    node: np.ndarray  # int32 [vocab], of the tree, where a token's bytes end; -1 for a token of the header alone
    header: Place  # int32 or bool [header bytes, vocab], the place behind each token
    header_legal: np.ndarray  # bool [header bytes, vocab]


class Choices(NamedTuple):
    """What may come next in n files."""

    legal: jax.Array  # bool [n, vocab], by the grammar
    fits: jax.Array  # bool [n, vocab], whether the file can still be ended in time behind a legal token
    following: Place  # [n, vocab], behind each legal token


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
        node, self._levels = _tree([data if grammar.is_possible(data) else b"" for data in tokens])

        # Header places are few and their bytes fixed: all tokens are walked from all of them once and for all.
        count = len(grammar.distances) - grammar.in_header
        first = Place(
            grammar.in_header + np.arange(count, dtype=np.int32), np.zeros(count, np.int32), np.zeros(count, bool)
        )
        walks = [_walk(grammar, first, data) for data in tokens]
        following = Place(*(np.stack(values, axis=1) for values in zip(*(place for place, _ in walks), strict=True)))
        legal = np.stack([legal for _, legal in walks], axis=1)
        self.rules = Rules(grammar.rows, self._distances(following, legal), node, following, legal)

    def _distances(self, following: Place, legal: np.ndarray) -> np.ndarray:
        """The grammar's distances, where the header is concerned in tokens."""
        grammar, distances = self._grammar, self._grammar.distances.copy()
        for offset in range(len(legal) - 1, -1, -1):
            behind = Place(*(values[offset, legal[offset]] for values in following))
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
        level, legal = grammar.step(place, jnp.arange(256), rules.rows, jnp)
        nodes, legals = [level], [legal]
        for parents, data in self._levels:
            level, legal_here = grammar.step(Place(*(values[:, parents] for values in level)), data, rules.rows, jnp)
            legal = legal[:, parents] & legal_here
            nodes.append(level)
            legals.append(legal)
        # The header's places have a table of their own.
        offset = jnp.maximum(at.state - grammar.in_header, 0)
        in_header = (at.state >= grammar.in_header)[:, None]
        of_header = (values[offset] for values in rules.header)
        of_scan = (jnp.concatenate(values, axis=1)[:, rules.node] for values in zip(*nodes, strict=True))
        following = Place(*(jnp.where(in_header, *pair) for pair in zip(of_header, of_scan, strict=True)))
        in_scan = jnp.concatenate(legals, axis=1)[:, rules.node] & (rules.node >= 0)
        legal = jnp.where(in_header, rules.header_legal[offset], in_scan)
        needed = grammar.distance(following, rules.distances, jnp) + 1
        fits = needed < room[:, None]

        is_eos = jnp.arange(legal.shape[1]) == self._eos
        following = Place(*(jnp.where(is_eos, old, new) for old, new in zip(place, following, strict=True)))
        legal = jnp.where(is_eos, place.state == grammar.done, legal)
        return Choices(legal, legal & (fits | is_eos), following)


def _tree(tokens: list[bytes]) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """The tree of all beginnings of tokens. Its first 256 nodes are the bytes.

    Returns:
      int32 [tokens], the node of each, -1 for one without bytes; and, level by level from the second on, the number
      that each node's parent has within its own level, and the node's byte.
    """
    level = {bytes([byte]): byte for byte in range(256)}  # number within the level
    node, levels, before = np.full(len(tokens), -1, np.int32), [], 0
    for length in range(1, 1 + max(map(len, tokens))):
        if length > 1:
            parents, level = level, {}
            for data in tokens:
                if len(data) >= length:
                    level.setdefault(data[:length], len(level))
            levels.append((np.array([parents[data[:-1]] for data in level]), np.array([data[-1] for data in level])))
        for number, data in enumerate(tokens):
            if len(data) == length:
                node[number] = before + level[data]
        before += len(level)
    return node, levels


def _walk(grammar: JpegGrammar, at: Place, data: bytes) -> tuple[Place, np.ndarray]:
    """The places behind `data`, and where all of it is legal; nowhere if there is none of it."""
    all_legal = np.full(at.state.shape, bool(data))
    for byte in data:
        following, legal = grammar.step(at, byte)
        all_legal &= legal
        at = Place(*(np.where(all_legal, *pair) for pair in zip(following, at, strict=True)))
    return at, all_legal
