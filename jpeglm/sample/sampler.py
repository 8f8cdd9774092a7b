"""A trained run that writes files: new ones, or the rest of cut ones."""

import copy
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jpeglm.core import checkpoint, sharding
from jpeglm.core.errors import InputError, printable
from jpeglm.core.registry import CODECS, MODELS
from jpeglm.core.workdir import read_config
from jpeglm.data import tokenizers
from jpeglm.data.tokenizers import Tokenizer
from jpeglm.models import networks
from jpeglm.sample.engine import Engine, Request
from jpeglm.sample.grammar import TokenGrammar
from jpeglm.sample.scoring import Scorer
from jpeglm.sample.settings import Settings, integer
from jpeglm.sample.too_long import TooLong

_NO_KEY = np.zeros(2, np.uint32)  # for a request that is only checked
# Tasks that are prepared at once: the grammar reads the prompts of many in hardly more time than that of one.
_AT_ONCE = 32


@dataclasses.dataclass(frozen=True)
class Task:
    """One file to write. Its draws depend on document, seed and sample alone.

    Attributes:
      document: the canonical document whose beginning is given; None: nothing is given.
      ratio: share of its units that is given, 0 to 1.
      seed: any whole number.
      sample: number of the sample.
      tag: whatever the caller recognises the task by.
    """

    document: bytes | None
    ratio: float = 0.0
    seed: int = 0
    sample: int = 0
    tag: Any = None

    @property
    def key(self) -> np.ndarray:
        """Of the draws, as `Request.key`."""
        return sampling_key(self.seed, hashlib.sha256(self.document or b"").digest(), self.sample)


@dataclasses.dataclass(frozen=True)
class Completion:
    """One generated file.

    Attributes:
      task: what was asked.
      document: prompt and continuation as canonical bytes; may not be a valid file.
      prompt_units: units of the codec (MCUs of a JPEG) that were given.
      tokens: how many were generated.
      ended: whether the model ended the file itself; with a grammar, also that the token budget never restricted it.
      removed: the mean share of its probability that the grammar removed per token; None without a grammar.
      log_likelihood: ln p of the generated tokens, EOS included, under the model at temperature 1, without filters or
        grammar.
    """

    task: Task
    document: bytes
    prompt_units: int
    tokens: int
    ended: bool
    removed: float | None
    log_likelihood: float

    @property
    def index(self) -> Any:
        """For the results of `Sampler.complete`: the number of the document."""
        return self.task.tag

    @property
    def sample(self) -> int:
        """The number of the sample."""
        return self.task.sample


class Sampler:
    """Parameters, codec and tokenizer of one run, ready to generate. `name`: of the weights, for messages."""

    def __init__(
        self,
        config: ConfigDict,
        tokenizer: Tokenizer,
        params: Any,
        mesh: Mesh,
        settings: Settings,
        name: str = "sampling",
    ):
        self.config = config
        self.name = name
        self.codec = CODECS.of(config)
        self.tokenizer = tokenizer
        self._grammar = self._make_grammar() if settings.grammar else None
        self._engine = Engine(MODELS.of(config), params, mesh, settings, tokenizer.EOS, self._grammar, name)

    @property
    def settings(self) -> Settings:
        return self._engine.settings

    def with_settings(self, settings: Settings) -> "Sampler":
        """A sampler with the same parameters and other settings."""
        other = copy.copy(self)
        if settings.grammar and self._grammar is None:
            other._grammar = self._make_grammar()
        other._engine = self._engine.with_settings(settings, None if self._grammar else other._grammar)
        return other

    @classmethod
    def load(cls, workdir: epath.PathLike, settings: Settings, step: int | None = None) -> "Sampler":
        """Loads the checkpoint of `step`, or the last one, of a run."""
        workdir = epath.Path(workdir)
        config = read_config(workdir)
        step = checkpoint.pick_step(workdir, step)
        model = MODELS.of(config)
        mesh = sharding.inference_mesh(model.tensor_parallelism, is_batched=True)
        params = checkpoint.restore_model(workdir, step, networks.laid_out(model, mesh))
        name = f"{workdir}, step {step}"
        return cls(config, tokenizers.load(workdir, config), params, mesh, settings, name)

    @classmethod
    def untrained(cls, workdir: epath.PathLike, settings: Settings) -> "Sampler":
        """The run's model with the parameters from before its first step."""
        workdir = epath.Path(workdir)
        config = read_config(workdir)
        model = MODELS.of(config)
        mesh = sharding.inference_mesh(model.tensor_parallelism, is_batched=True)
        shardings = sharding.parameter_shardings(networks.abstract(model)[1], mesh)
        params = jax.jit(lambda: networks.init(model, config.seed), out_shardings=shardings)()
        name = f"{workdir} before its first step"
        return cls(config, tokenizers.load(workdir, config), params, mesh, settings, name)

    def scorer(self) -> Scorer:
        """A scorer of documents with the same parameters, which are not copied."""
        return Scorer(*self._engine.weights, self.tokenizer, self.config.data.seq_len, self.name)

    def _make_grammar(self) -> TokenGrammar | None:
        """None for a codec that has none."""
        grammar = self.codec.grammar()
        return TokenGrammar(grammar, self.tokenizer) if grammar else None

    def too_long(self, documents: Mapping[str, bytes], ratio: float) -> dict[str, str]:
        """By name, why the first `ratio` of a document leaves no room; contains only documents that do not fit.

        Raises:
          InputError: a document is not valid, or the ratio is outside [0, 1].
        """
        prefixes, found = [], {}
        for name, document in documents.items():
            try:
                prefixes.append(self.codec.cut(document, ratio)[0])
            except InputError as error:
                raise InputError(f"{printable(name)}: {error}") from error
        for name, request in zip(documents, self._requests(prefixes, [_NO_KEY] * len(prefixes)), strict=True):
            if why := self._why_too_long(request):
                found[name] = why
        return found

    def complete(
        self, documents: Sequence[bytes], ratio: float, samples: int = 1, seed: int = 0
    ) -> Iterator[Completion]:
        """Completes each canonical document `samples` times from its first `ratio` of units, as they finish.

        The draws depend only on (seed, SHA-256 of the whole document, sample number, position).

        Args:
          documents: valid canonical documents.
          ratio: 0 to 1.
          samples: per document, 0 or more.
          seed: any whole number.

        Raises:
          InputError: an argument is out of range, or logits are not finite.
          TooLong: a document, named by its number, leaves no room; raised before any is started.
        """
        samples, seed = integer("samples", samples, 0), integer("seed", seed)
        for name, why in self.too_long({f"prompt {n}": each for n, each in enumerate(documents)}, ratio).items():
            raise TooLong(f"{name}: {why}")
        yield from self.run(
            Task(document, ratio, seed, sample, index)
            for index, document in enumerate(documents)
            for sample in range(samples)
        )

    def generate(self, num: int, seed: int = 0, done: Collection[int] = ()) -> Iterator[Completion]:
        """Writes `num` files, 0 or more, from BOS alone, except those numbered in `done`.

        Raises as `complete` does.
        """
        num, seed = integer("num", num, 0), integer("seed", seed)
        yield from self.run(Task(None, seed=seed, sample=number) for number in range(num) if number not in done)

    def run(
        self, tasks: Iterable[Task], on_too_long: Callable[[Task, str], object] | None = None
    ) -> Iterator[Completion]:
        """Writes a file for each task, as they finish; only a few tasks more than there are slots are read ahead.

        Tasks with the same prompt should follow each other: they share its prefill.

        Args:
          tasks: possibly read in another thread.
          on_too_long: called with a task that leaves no room, and the reason, in the thread that reads the tasks.

        Raises:
          InputError: an argument is out of range, or logits are not finite.
          TooLong: a task leaves no room, and there is no `on_too_long`.
        """
        pending: dict[int, tuple[Task, bytes, int]] = {}  # read, and not yet written; by the number of the request
        numbers = itertools.count()

        def requests() -> Iterator[Request]:
            for some in _in_groups(tasks, _AT_ONCE):
                cuts = [self._cut(task) for task in some]
                prepared = self._requests([prefix for prefix, _ in cuts], [task.key for task in some])
                for task, (prefix, units), request in zip(some, cuts, prepared, strict=True):
                    if why := self._why_too_long(request):
                        if on_too_long is None:
                            raise TooLong(why)
                        on_too_long(task, why)
                        continue
                    pending[next(numbers)] = task, prefix, units
                    yield request

        for written in self._engine.generate(requests()):
            task, prefix, units = pending.pop(written.number)
            document = prefix + self.tokenizer.decode(written.ids)
            yield Completion(
                task, document, units, len(written.ids), written.ended, written.removed, written.log_likelihood
            )

    def _cut(self, task: Task) -> tuple[bytes, int]:
        """The prompt of a task and the number of its units."""
        return (b"", 0) if task.document is None else self.codec.cut(task.document, task.ratio)

    def _why_too_long(self, request: Request) -> str:
        """Why a request leaves no room; "" if it fits."""
        try:
            self._engine.check(request)
        except TooLong as error:
            return str(error)
        return ""

    def _requests(self, prefixes: Sequence[bytes], keys: Sequence[np.ndarray]) -> list[Request]:
        """One request for each prefix and its key."""
        distinct = dict.fromkeys(prefixes)
        bos = np.array([self.tokenizer.BOS], np.int32)
        encoded = {prefix: np.concatenate([bos, self.tokenizer.encode(prefix)]) for prefix in distinct}
        places = dict.fromkeys(distinct)
        if distinct and self._grammar and self.settings.grammar:
            after = self._grammar.places(list(distinct))
            places = {
                prefix: jax.tree.map(lambda values, number=number: values[number], after)
                for number, prefix in enumerate(distinct)
            }
        return [Request(encoded[prefix], key, places[prefix]) for prefix, key in zip(prefixes, keys, strict=True)]


def _in_groups(tasks: Iterable[Task], size: int) -> Iterator[list[Task]]:
    """Groups of at most `size` tasks, in order."""
    reading = iter(tasks)
    while group := list(itertools.islice(reading, size)):
        yield group


def sampling_key(seed: int, digest: bytes, sample: int) -> np.ndarray:
    """Two uint32 derived from (seed, SHA-256 of the file, sample number)."""
    words = hashlib.sha256(b"%d %s %d" % (seed, digest, sample)).digest()[:8]
    return np.frombuffer(words, np.dtype("<u4")).astype(np.uint32)
