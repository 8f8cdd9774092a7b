"""Bits of files under a model, for `jpeglm.score` and for `jpeglm.load(...).score`."""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from jpeglm.core import checkpoint, sharding
from jpeglm.core.errors import InputError
from jpeglm.core.registry import MODELS
from jpeglm.core.workdir import read_config
from jpeglm.data import tokenizers
from jpeglm.data.tokenizers import Tokenizer
from jpeglm.models import Model, networks
from jpeglm.models.loss import cross_entropy
from jpeglm.sample.filters import NOT_FINITE, are_finite
from jpeglm.sample.too_long import TooLong

TOKENS_A_BATCH = 16_384  # on each device; not measured
TOKENS_ON_CPUS = 1_024  # there larger batches are slower: docs/measurements.md
SHORTEST = 32  # tokens to which a shorter document is padded
FINER_FROM = 512  # tokens; for shorter documents it would take longer to compile more programs than to pad
THREADS = 2  # each runs a batch, on a mesh of one device
AHEAD = 1_024  # documents after the oldest unfinished one that may be read before it is scored

Group = list[tuple[int, np.ndarray]]  # documents of one padded length: number, and ids int32 [tokens]


class Scorer:
    """The negative log-likelihood of documents, each scored alone between BOS and EOS.

    Documents of about the same length make a batch: rows of one padded length, of about TOKENS_A_BATCH tokens in all,
    which also bounds the memory for logits. Every batch of a length has the same shape, if need be with empty rows. So
    there is one program for each length, and a document's result does not depend on which others are in its batch.
    """

    def __init__(self, model: Model, params: Any, mesh: Mesh, tokenizer: Tokenizer, limit: int, name: str):
        """
        Args:
          model: or its variant for decoding.
          params: its parameters on `mesh`.
          mesh: the rows of a batch are sharded over it, as far as they divide.
          limit: the most tokens of a document including BOS and EOS, the run's data.seq_len.
          name: of the weights, for messages.
        """
        self._params, self._mesh, self._tokenizer, self._limit, self._name = params, mesh, tokenizer, limit, name
        graphdef, _ = networks.abstract(model.for_scoring())

        @jax.jit
        def nats(params: Any, tokens: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
            place = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
            logits = nnx.merge(graphdef, params)(tokens, place, jnp.ones_like(tokens))
            nll, _ = cross_entropy(logits[:, :-1], tokens[:, 1:])
            is_padding = place[:, 1:] >= lengths[:, None]
            finite = are_finite(logits, model.vocab_size)[:, :-1] & jnp.isfinite(nll)
            return nll, jnp.all(finite | is_padding)

        self._nats = nats
        self._layouts = tuple(NamedSharding(mesh, sharding.spec(axes)) for axes in (("batch", None), ("batch",)))
        self._programs: dict[int, Any] = {}  # by padded length, compiled

    @classmethod
    def load(cls, workdir: epath.PathLike, step: int | None = None) -> "Scorer":
        """Loads the checkpoint of `step`, or the last one, of a run."""
        workdir = epath.Path(workdir)
        config = read_config(workdir)
        step = checkpoint.pick_step(workdir, step)
        tokenizer = tokenizers.load(workdir, config)
        model = MODELS.of(config)
        mesh = sharding.inference_mesh(model.tensor_parallelism, is_batched=True)
        params = checkpoint.restore_model(workdir, step, networks.laid_out(model, mesh))
        name = f"{workdir}, step {step}"
        return cls(model, params, mesh, tokenizer, config.data.seq_len, name)

    def too_long(self, documents: Mapping[str, bytes]) -> dict[str, str]:
        """By name, why a document is longer than the model was trained for; contains only those that are."""
        found = {}
        for name, document in documents.items():
            try:
                self._ids(document)
            except TooLong as error:
                found[name] = str(error)
        return found

    def num_tokens(self, data: bytes) -> int:
        """Tokens of any bytes, without BOS and EOS."""
        return len(self._tokenizer.encode(data))

    def nats(self, document: bytes) -> float:
        """-ln p of a document and its EOS; raises as `nats_of`."""
        return float(next(self.nats_of([document])).sum(dtype=np.float64))

    def nats_of(self, documents: Iterable[bytes]) -> Iterator[np.ndarray]:
        """Yields for each document, in order, -ln p of each of its tokens and of its EOS: float32 [tokens + 1].

        At most AHEAD documents and their results are held, however many there are.

        Raises:
          TooLong: a document has more tokens than `limit`; see `too_long`.
          InputError: the model's result is not finite.
        """
        ids = map(self._ids, documents)
        groups = grouped(ids, lambda length: padded_length(length, self._limit), self._rows, AHEAD)
        done: dict[int, np.ndarray] = {}
        following = 0
        for results in self._scored(groups):
            done |= results
            while following in done:
                yield done.pop(following)
                following += 1

    def _scored(self, groups: Iterable[tuple[int, Group]]) -> Iterator[dict[int, np.ndarray]]:
        """The results of each group by number, in the order of the groups."""
        running: collections.deque[Future[dict[int, np.ndarray]]] = collections.deque()
        # Several devices must get programs that communicate in one order, so only one thread may start them.
        threads = THREADS if self._mesh.size == 1 else 1
        with ThreadPoolExecutor(threads) as pool:
            for length, group in groups:
                program = self._program(length)  # compiled here, so that no two threads compile the same one
                running.append(pool.submit(self._score, program, length, group))
                if len(running) > threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()

    def _score(self, program: Any, length: int, group: Group) -> dict[int, np.ndarray]:
        tokens, lengths = np.zeros((self._rows(length), length), np.int32), np.zeros(self._rows(length), np.int32)
        for row, (_, ids) in enumerate(group):
            tokens[row, : len(ids)], lengths[row] = ids, len(ids)
        with jax.set_mesh(self._mesh):
            given = jax.device_put((tokens, lengths), self._layouts)
            nats, is_finite = jax.device_get(program(self._params, *given))
        if not is_finite:
            raise InputError(f"{self._name}: {NOT_FINITE}")
        return {number: nats[row, : len(ids) - 1].copy() for row, (number, ids) in enumerate(group)}

    def _program(self, length: int) -> Any:
        """The program for documents of this padded length, compiled when it is first asked for."""
        if length not in self._programs:
            rows = self._rows(length)
            shapes = (
                jax.ShapeDtypeStruct(shape, np.int32, sharding=layout)
                for shape, layout in zip(((rows, length), (rows,)), self._layouts, strict=True)
            )
            with jax.set_mesh(self._mesh):
                self._programs[length] = self._nats.lower(self._params, *shapes).compile()
        return self._programs[length]

    def _rows(self, length: int) -> int:
        """Rows of a batch of this padded length: TOKENS_A_BATCH tokens on each device, at least one row."""
        tokens = TOKENS_ON_CPUS if self._mesh.devices.flat[0].platform == "cpu" else TOKENS_A_BATCH
        return sharding.num_parts(self._mesh, "batch") * max(1, tokens // length)

    def _ids(self, document: bytes) -> np.ndarray:
        """int32 [tokens + 2], with BOS and EOS."""
        ids = np.array([self._tokenizer.BOS, *self._tokenizer.encode(document), self._tokenizer.EOS], np.int32)
        if len(ids) > self._limit:
            raise TooLong(f"{len(ids)} tokens, more than data.seq_len={self._limit}")
        return ids


def padded_length(length: int, limit: int) -> int:
    """The next power of two, from FINER_FROM on also three quarters of one; at least SHORTEST and at most `limit`."""
    size = SHORTEST
    while size < length:
        size *= 2
    if size > FINER_FROM and length <= size * 3 // 4:
        size = size * 3 // 4
    return min(size, limit)


def grouped(
    documents: Iterable[np.ndarray], padded: Callable[[int], int], rows: Callable[[int], int], ahead: int
) -> Iterator[tuple[int, Group]]:
    """Groups documents of one padded length.

    A group is complete with `rows(length)` documents. Fewer are in it only if the oldest waits since `ahead`
    documents, or after the last document.

    Args:
      documents: ids of each, int32 [tokens]; read as needed.
      padded: length -> padded length.

    Yields:
      padded length, and the documents with their numbers.
    """
    waiting: dict[int, Group] = {}  # in the order of their oldest documents
    for number, ids in enumerate(documents):
        length = padded(len(ids))
        group = waiting.setdefault(length, [])
        group.append((number, ids))
        if len(group) == rows(length):
            yield length, waiting.pop(length)
        oldest = next(iter(waiting), None)
        if oldest is not None and number - waiting[oldest][0][0] >= ahead:
            yield oldest, waiting.pop(oldest)
    yield from waiting.items()
