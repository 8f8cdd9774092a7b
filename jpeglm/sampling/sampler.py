"""A trained run as something that writes files: whole ones, or the rest of cut ones."""

import copy
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jpeglm import checkpoint, codecs, sharding
from jpeglm.codecs.jpeg_grammar import Place
from jpeglm.model import llama
from jpeglm.model.llama import LlamaConfig
from jpeglm.sampling.engine import Engine, Request, Settings
from jpeglm.sampling.grammar import TokenGrammar
from jpeglm.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Completion:
    """One generated file.

    Attributes:
      index: number of the prompt it completes.
      sample: number of the sample for this prompt.
      document: prompt and continuation as canonical bytes; not necessarily a valid file.
      prompt_units: units of the codec (MCUs of a JPEG) that were given.
      tokens: how many were generated.
      ended: whether the model ended the file itself: with a grammar, the budget of tokens never narrowed its choice.
      removed: the mean share of its probability that the grammar took away at a token; None without a grammar.
    """

    index: int
    sample: int
    document: bytes
    prompt_units: int
    tokens: int
    ended: bool
    removed: float | None


class Sampler:
    """Parameters, codec and tokenizer of one run, ready to generate."""

    def __init__(self, config: ConfigDict, tokenizer: Tokenizer, params: Any, mesh: Mesh, settings: Settings):
        self.config = config
        self.codec = codecs.make(config.codec)
        self.tokenizer = tokenizer
        self._grammar = self._make_grammar() if settings.grammar else None
        self._engine = Engine(LlamaConfig.of(config), params, mesh, settings, tokenizer.EOS, self._grammar)

    @property
    def settings(self) -> Settings:
        return self._engine.settings

    def with_settings(self, settings: Settings) -> "Sampler":
        """A sampler of the same parameters with other settings."""
        other = copy.copy(self)
        if settings.grammar and self._grammar is None:
            other._grammar = self._make_grammar()
        other._engine = self._engine.with_settings(settings, None if self._grammar else other._grammar)
        return other

    @classmethod
    def load(cls, workdir: epath.PathLike, settings: Settings, step: int | None = None) -> "Sampler":
        """The checkpoint of `step`, or the last one, of a run."""
        workdir = epath.Path(workdir)
        config = checkpoint.read_config(workdir)
        step = checkpoint.pick_step(workdir, step)
        mesh = sharding.inference_mesh(config.model.num_kv_heads, is_batched=True)
        params = checkpoint.restore_model(workdir, step, config, mesh)
        return cls(config, Tokenizer.load(workdir / "tokenizer.json"), params, mesh, settings)

    @classmethod
    def untrained(cls, workdir: epath.PathLike, settings: Settings) -> "Sampler":
        """The run's model as it was before its first step."""
        workdir = epath.Path(workdir)
        config = checkpoint.read_config(workdir)
        mesh = sharding.inference_mesh(config.model.num_kv_heads, is_batched=True)
        model_config = LlamaConfig.of(config)
        shardings = sharding.parameter_shardings(llama.abstract(model_config)[1], mesh)
        params = jax.jit(lambda: llama.init_params(model_config, config.seed), out_shardings=shardings)()
        return cls(config, Tokenizer.load(workdir / "tokenizer.json"), params, mesh, settings)

    def _make_grammar(self) -> TokenGrammar | None:
        """None for a codec that has none."""
        return TokenGrammar(self.codec.grammar(), self.tokenizer) if self.codec.has_grammar else None

    def complete(
        self, documents: Sequence[bytes], ratio: float, samples: int = 1, seed: int = 0
    ) -> Iterator[Completion]:
        """Completes each canonical document from its first `ratio` of units, `samples` times, in the order they end.

        The draws depend on (seed, SHA-256 of the whole document, sample number, position) alone.
        """
        prompts = [self.codec.cut(document, ratio) for document in documents]
        keys = [
            sampling_key(seed, hashlib.sha256(document).digest(), sample)
            for document in documents
            for sample in range(samples)
        ]
        yield from self._run(prompts, keys, samples)

    def generate(self, num: int, seed: int = 0) -> Iterator[Completion]:
        """Writes `num` files from nothing but BOS."""
        keys = [sampling_key(seed, hashlib.sha256(b"").digest(), sample) for sample in range(num)]
        yield from self._run([(b"", 0)], keys, num)

    def _run(
        self, prompts: Sequence[tuple[bytes, int]], keys: Sequence[np.ndarray], samples: int
    ) -> Iterator[Completion]:
        bos = np.array([self.tokenizer.BOS], np.int32)
        encoded = [np.concatenate([bos, self.tokenizer.encode(prefix)]) for prefix, _ in prompts]
        places = [None] * len(prompts)
        if self._grammar and self.settings.grammar:
            behind = self._grammar.places([prefix for prefix, _ in prompts])
            places = [Place(*place) for place in zip(*behind, strict=True)]
        requests = [Request(encoded[n // samples], key, places[n // samples]) for n, key in enumerate(keys)]
        for request in requests[::samples]:  # before the first one is begun
            self._engine.check(request)
        for written in self._engine.generate(requests):
            index, sample = divmod(written.number, samples)
            prefix, units = prompts[index]
            document = prefix + self.tokenizer.decode(written.ids)
            yield Completion(index, sample, document, units, len(written.ids), written.ended, written.removed)


def sampling_key(seed: int, digest: bytes, sample: int) -> np.ndarray:
    """Two uint32 out of (seed, SHA-256 of the file, sample number)."""
    words = hashlib.sha256(b"%d %s %d" % (seed, digest, sample)).digest()[:8]
    return np.frombuffer(words, np.dtype("<u4")).astype(np.uint32)
