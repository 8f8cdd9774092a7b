"""Batches of prepared chunks, read with Grain. The batch of a step is a pure function of (seed, step).

Chunks are numbered consecutively over the shards of a split. The global order is a stream: all chunks in an order
drawn from (seed, epoch), epoch after epoch; step t takes positions t * batch_size to (t + 1) * batch_size - 1. A
process reads only its own rows, and a resumed run just starts at a later step, so no iterator state is saved.
"""

import itertools
import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
from ml_collections import ConfigDict

from jpeglm.core import retries
from jpeglm.core.errors import InputError
from jpeglm.data import records, tokenizers
from jpeglm.data.tokenizers import BOS

Batch = dict[str, np.ndarray]


class Chunks:
    """The chunks of one split of a prepared folder, by number, each as a training example."""

    def __init__(self, path: str | os.PathLike, split: str, seq_len: int, mask_documents: bool = False):
        """Opens the folder.

        Args:
          path: the folder that `jpeglm.prepare` wrote.
          split: "train" or "heldout".
          seq_len: tokens a chunk.
          mask_documents: whether positions restart at each document.

        Raises:
          InputError: the folder is not finished, has no chunks or chunks of another length, or a shard is missing or
            of another size.
        """
        self.manifest = records.read_manifest(path)
        found = self.manifest["config"]["data"]["seq_len"]
        if found != seq_len:
            raise InputError(f"{path} has chunks of {found} tokens, data.seq_len is {seq_len}")
        self.seq_len = seq_len
        self.mask_documents = mask_documents
        entries = self.manifest["splits"][split]["shards"]
        paths = records.shard_paths(path, self.manifest, split)
        # Shards without chunks are left out: the reader cannot open them.
        self.paths = [str(found) for found, entry in zip(paths, entries, strict=True) if entry["chunks"]]
        entries = [entry for entry in entries if entry["chunks"]]
        if not entries:
            raise InputError(f"{path} holds no chunks of the split {split}")
        chunks = [entry["chunks"] for entry in entries]
        self._ends = np.cumsum(chunks)  # of each shard, in chunks
        try:
            retries.read(self._open, f"{path}: a shard of {split}")
        except retries.Damaged as error:
            raise InputError(f"{path}: a shard of {split} is damaged: {error.why}") from error
        if len(self._source) != sum(chunks):
            raise InputError(f"{path}: {len(self._source)} chunks in {split}, the manifest says {sum(chunks)}")
        # Real tokens of the last chunk of each shard; all others are full.
        self._short = {
            last: entry["tokens"] - (entry["chunks"] - 1) * seq_len
            for last, entry in zip(self._ends - 1, entries, strict=True)
        }

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Batch:
        """One chunk: the arrays of `batch` without their first axis."""
        return {name: array[0] for name, array in self.batch([index]).items()}

    def _open(self) -> None:
        self._source = grain.sources.ArrayRecordDataSource(self.paths)

    def _read(self, index: int) -> np.ndarray:
        """The tokens of one chunk, uint16 [seq_len]. ArrayRecord compares a hash of each record."""

        def read() -> np.ndarray:
            try:
                return np.frombuffer(self._source[index], "<u2").reshape(self.seq_len)
            except Exception:
                self._open()  # a reader that has failed repeats its error
                raise

        shard = np.searchsorted(self._ends, index, side="right")
        record = index - (self._ends[shard - 1] if shard else 0)
        try:
            return retries.read(read, f"record {record} of {self.paths[shard]}")
        except retries.Damaged as error:
            why = f"record {record} cannot be read: it is damaged: {error.why}"
            raise InputError(f"{self.paths[shard]}: {why}") from error

    def batch(self, indices: Sequence[int]) -> Batch:
        """Several chunks; a negative index gives an empty one, of weight 0.

        Raises:
          InputError: a chunk cannot be read.

        Returns, all [len(indices), seq_len]:
          tokens: int32.
          targets: int32, the token that follows; 0 at the end.
          loss_weights: float32, 1 where the target is a real token of the same chunk, else 0.
          segment_ids: int32, 1, 2, ... for the documents of a chunk, 0 for padding.
          positions: int32, 0, 1, ..., from 0 again at each document with `mask_documents`.
        """
        tokens = np.zeros((len(indices), self.seq_len), np.int32)
        for row, index in enumerate(indices):
            if index >= 0:
                tokens[row] = self._read(index)
        lengths = [self._short.get(index, self.seq_len) if index >= 0 else 0 for index in indices]
        place = np.arange(self.seq_len, dtype=np.int32)
        is_real = place < np.array(lengths)[:, None]
        is_start = (tokens == BOS) & is_real
        is_start[:, 0] = True  # it may continue a document of the previous chunk
        positions = np.broadcast_to(place, tokens.shape)
        if self.mask_documents:
            positions = place - np.maximum.accumulate(np.where(is_start, place, 0), axis=1)
        nothing = np.zeros((len(indices), 1), np.int32)  # follows the last token
        return {
            "tokens": tokens,
            "targets": np.concatenate([tokens[:, 1:], nothing], axis=1),
            "loss_weights": np.concatenate([is_real[:, 1:], nothing], axis=1).astype(np.float32),
            "segment_ids": np.where(is_real, np.cumsum(is_start, axis=1), 0).astype(np.int32),
            "positions": positions,
        }


def train_batches(
    chunks: Chunks,
    seed: int,
    batch_size: int,
    rows: Collection[int],
    first_step: int,
    num_steps: int,
    threads: int = 2,
    place: Callable[[Batch], Any] = lambda batch: batch,
) -> Iterator[tuple[int, Any]]:
    """Batches of the steps first_step to num_steps - 1, prefetched by threads.

    Args:
      seed: of the order; the same on all processes.
      batch_size: rows of the global batch.
      rows: the ones that this process needs, 0 to batch_size - 1, in the desired order.
      first_step: the first step to read, from 0.
      num_steps: the end, exclusive.
      threads: number of threads that read.
      place: called on each batch in these threads, so that the loop does not wait for the transfer to the devices.

    Yields:
      (step, place(batch)); a batch is the arrays of `Chunks.batch`, [len(rows), seq_len] each.
    """
    order = _order(chunks, seed)

    def read(step: int) -> tuple[int, Batch]:
        return step, place(chunks.batch([order[step * batch_size + row] for row in rows]))

    steps = grain.MapDataset.range(first_step, num_steps).map(read)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return iter(steps.to_iter_dataset(options))


def chunk_numbers(chunks: Chunks, seed: int, batch_size: int, step: int) -> list[int]:
    """The chunks of the global batch that `train_batches` yields as `step`."""
    order = _order(chunks, seed)
    return [order[step * batch_size + row] for row in range(batch_size)]


def _order(chunks: Chunks, seed: int) -> grain.MapDataset:
    """The numbers of all chunks, epoch after epoch, endlessly."""
    # Seeded like this, each epoch draws its own order. With shuffle(seed=...), epoch 2 of seed s would have the order
    # of epoch 1 of seed s + 1.
    return grain.MapDataset.range(len(chunks)).seed(seed).shuffle().repeat()


def eval_batches(
    chunks: Chunks, batch_size: int, rows: Collection[int], max_batches: int | None = None
) -> Iterator[Batch]:
    """All chunks in order, at most `max_batches` batches; rows beyond the last chunk are empty, with weight 0.

    Yields:
      batches as in `train_batches`: the given rows of each global batch.
    """
    num_batches = math.ceil(len(chunks) / batch_size)
    if max_batches is not None:
        num_batches = min(num_batches, max_batches)
    for batch in range(num_batches):
        indices = [batch * batch_size + row for row in rows]
        yield chunks.batch([index if index < len(chunks) else -1 for index in indices])


def documents(path: str, split: str, limit: int | None = None) -> Iterator[bytes]:
    """The canonical documents of a prepared folder, read back from its shards in the order in which they are packed.

    Args:
      limit: at most so many.

    Raises:
      InputError: no finished folder, a missing or damaged shard.
    """
    manifest = records.read_manifest(path)
    learnt = tokenizers.load(path, manifest["config"])
    records.shard_paths(path, manifest, split)  # checks them
    seq_len = manifest["config"]["data"]["seq_len"]
    ids = itertools.chain.from_iterable(
        records.read_documents(Path(path), shard, seq_len) for shard in manifest["splits"][split]["shards"]
    )
    return map(learnt.decode, itertools.islice(ids, limit))


def check_fits(manifest: dict, config: ConfigDict) -> None:
    """Raises InputError that names the first key in which the run's config differs from that of the data."""
    data = manifest["config"]
    keys = [("codec", "name"), ("tokenizer", "name")]  # first, because other keys depend on them
    keys += [("codec", key) for key in data["codec"]] + [("tokenizer", "vocab_size"), ("data", "seq_len")]
    for section, key in keys:
        if config[section][key] != data[section][key]:
            raise InputError(
                f"the data in {config.data.path} was prepared with {section}.{key}={data[section][key]}, "
                f"the config says {config[section][key]}"
            )
