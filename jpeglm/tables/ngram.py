"""An interpolated n-gram model of the tokens: a baseline that the loss of a trained model should beat.

Modified Kneser-Ney (Chen and Goodman 1998, section 4.1.6 and equation 26), interpolated at every order down to the
uniform distribution. Contexts stay within a chunk, as in training; an extra symbol stands for positions before the
chunk.
"""

import hashlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from jpeglm.core.errors import InputError
from jpeglm.data import records
from jpeglm.data.batches import Batch, Chunks
from jpeglm.data.units import heldout_units

_SMALLEST_DISCOUNT = 0.1  # reserves some probability for unseen tokens
_BLOCK = 1 << 20  # tokens read at once


def identity(data_dir: str | os.PathLike, order: int = 4, limit: int | None = None) -> dict[str, Any]:
    """Everything that `fit_and_score` depends on, by content; JSON types."""
    manifest, digests = records.read_manifest(data_dir), {}
    for split in records.SPLITS:
        digest = hashlib.sha256()
        for batch in _batches(_chunks(data_dir, manifest, split), limit if split == "train" else None):
            digest.update(batch["tokens"].tobytes() + batch["loss_weights"].tobytes())
        digests[split] = digest.hexdigest()
    vocab_size = manifest["config"]["tokenizer"]["vocab_size"]
    return digests | {"order": order, "vocab_size": vocab_size} | heldout_units(1.0, manifest)


def training_tokens(manifest: dict[str, Any]) -> int:
    """The number of training tokens that follow another token of their chunk: the most that a model is fitted on."""
    split = manifest["splits"]["train"]
    return split["tokens"] - split["chunks"]


def fit_and_score(data_dir: str | os.PathLike, order: int = 4, limit: int | None = None) -> dict[str, float]:
    """Fits the model on the training chunks of a prepared folder and scores its held-out ones.

    Args:
      data_dir: the folder.
      order: n.
      limit: number of tokens to fit on, rounded down to whole chunks, the first in the order of the shards (by a hash
        of the documents); None: all. A token takes about 75 bytes of memory, 115 at most.

    Returns:
      `order`; `train_tokens` and `heldout_tokens`, the numbers of tokens with loss weight that were fitted and scored;
      and the loss in the units of `heldout_units`.

    Raises:
      InputError: the folder is unfinished or damaged, the limit is below one chunk, or the n-grams do not fit 64 bits.
    """
    manifest = records.read_manifest(data_dir)
    vocab_size = manifest["config"]["tokenizer"]["vocab_size"]
    contexts, targets = examples(_chunks(data_dir, manifest, "train"), order, vocab_size, limit)
    model, train_tokens = KneserNey(contexts, targets, vocab_size), len(targets)
    del contexts, targets
    nats, heldout_tokens = 0.0, 0
    for batch in _batches(_chunks(data_dir, manifest, "heldout"), None):
        contexts, targets = _examples_of(batch, order, vocab_size)
        nats -= np.log(model.probabilities(contexts, targets)).sum()
        heldout_tokens += len(targets)
    counts: dict[str, Any] = {"order": order, "train_tokens": train_tokens, "heldout_tokens": heldout_tokens}
    return counts | heldout_units(float(nats / heldout_tokens), manifest)


def examples(chunks: Chunks, order: int, vocab_size: int, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """All targets with loss weight and the tokens before each in its chunk; with a limit, of the first chunks.

    Returns:
      contexts: int32 [m, order - 1], oldest token first; `vocab_size` stands for positions before the chunk.
      targets: int32 [m].
    """
    found = [_examples_of(batch, order, vocab_size) for batch in _batches(chunks, limit)]
    contexts, targets = zip(*found, strict=True)
    return np.concatenate(contexts), np.concatenate(targets)


def _examples_of(batch: Batch, order: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.pad(batch["tokens"], ((0, 0), (order - 1, 0)), constant_values=vocab_size)
    # The context of the target after position i is tokens i - order + 2 .. i.
    windows = np.lib.stride_tricks.sliding_window_view(tokens, order, axis=1)[:, :, 1:]
    scored = batch["loss_weights"] > 0
    return windows[scored], batch["targets"][scored]


def _chunks(data_dir: str | os.PathLike, manifest: dict[str, Any], split: str) -> Chunks:
    return Chunks(os.fspath(data_dir), split, manifest["config"]["data"]["seq_len"])


def _batches(chunks: Chunks, limit: int | None) -> Iterator[Batch]:
    """The chunks in order, at most `limit` tokens, in blocks."""
    count = len(chunks) if limit is None else min(len(chunks), limit // chunks.seq_len)
    if limit is not None and count < 1:
        raise InputError(f"config.ngram_tokens={limit}: less than a chunk of {chunks.seq_len} tokens")
    step = max(1, _BLOCK // chunks.seq_len)
    for start in range(0, count, step):
        yield chunks.batch(range(start, min(start + step, count)))


class KneserNey:
    """p(target | context), exactly normalised over the vocabulary.

    For n = 1 .. order, over the n - 1 newest tokens h of the context, and p_0 = 1 / vocab_size,

        p_n(w | h) = (c(h w) - D(c(h w)) + sum_v D(c(h v)) p_{n-1}(w | h without its oldest token)) / sum_v c(h v),

    p_n = p_{n-1} where h was never seen. c counts occurrences at the highest order, and below it the distinct tokens
    that were seen before h w.
    """

    def __init__(self, contexts: np.ndarray, targets: np.ndarray, vocab_size: int):
        """Counts `targets` int [m] after `contexts` int [m, order - 1], ids up to `vocab_size`.

        Raises:
          InputError: there are too many possible n-grams to number them in 64 bits.
        """
        self.vocab_size = vocab_size
        self._base = vocab_size + 1  # including the symbol for positions before a chunk
        order = contexts.shape[1] + 1
        if self._base**order >= 2**63:
            raise InputError(f"{order}-grams over {vocab_size} ids do not fit 64 bits")
        grams, counts = np.unique(self._key(contexts, targets, order), return_counts=True)
        tables = []
        for n in range(order, 0, -1):
            tables.append(_Table(grams, counts, self._base))
            grams, counts = np.unique(grams % self._base ** (n - 1), return_counts=True)  # without the oldest token
        self._tables = tables[::-1]

    def probabilities(self, contexts: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """p(targets [m] | contexts [m, order - 1]), float64 [m]."""
        p = np.full(len(targets), 1 / self.vocab_size)
        for n, table in enumerate(self._tables, 1):
            p = table.interpolate(self._key(contexts, targets, n), p)
        return p

    def _key(self, contexts: np.ndarray, targets: np.ndarray, n: int) -> np.ndarray:
        """The n-gram that ends in the target as one number, its oldest token the most significant digit."""
        key = np.zeros(len(targets), np.int64)
        for column in contexts[:, contexts.shape[1] - (n - 1) :].T:
            key = key * self._base + column
        return key * self._base + targets


class _Table:
    """Discounted counts of the n-grams of one order."""

    def __init__(self, grams: np.ndarray, counts: np.ndarray, base: int):
        self._base = base
        self._grams = grams
        discounts = _discounts(counts)[np.minimum(counts, 3) - 1]
        self._kept = counts - discounts
        self._contexts, starts = np.unique(grams // base, return_index=True)
        self._totals = np.add.reduceat(counts, starts).astype(np.float64)
        self._freed = np.add.reduceat(discounts, starts)

    def interpolate(self, grams: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Probabilities [m] of n-grams [m] from those of the next lower order."""
        contexts = grams // self._base
        total = _look_up(self._contexts, self._totals, contexts)
        kept = _look_up(self._grams, self._kept, grams)
        freed = _look_up(self._contexts, self._freed, contexts)
        return np.where(total > 0, (kept + freed * lower) / np.maximum(total, 1), lower)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """The discounts for counts of 1, 2, and 3 or more: float64 [3]."""
    n1, n2, n3, n4 = (int(np.count_nonzero(counts == count)) for count in (1, 2, 3, 4))
    y = n1 / max(1, n1 + 2 * n2)
    estimates = [1 - 2 * y * n2 / max(1, n1), 2 - 3 * y * n3 / max(1, n2), 3 - 4 * y * n4 / max(1, n3)]
    return np.clip(estimates, _SMALLEST_DISCOUNT, None)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Values [m] of the wanted keys [m]; 0 for keys that are missing from the sorted keys."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
