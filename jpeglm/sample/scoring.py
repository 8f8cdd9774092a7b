"""Bits of files under a model, for `jpeglm.score` and for `jpeglm.load(...).score`."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from jpeglm.core import checkpoint, sharding
from jpeglm.core.errors import InputError
from jpeglm.core.registry import MODELS
from jpeglm.core.workdir import read_config
from jpeglm.data import tokenizers
from jpeglm.data.tokenizers import Tokenizer
from jpeglm.models import Model, networks
from jpeglm.models.loss import cross_entropy
from jpeglm.sample.filters import NOT_FINITE, are_finite
from jpeglm.sample.programs import bucket
from jpeglm.sample.too_long import TooLong


class Scorer:
    """The negative log-likelihood of documents, each scored alone between BOS and EOS."""

    def __init__(self, model: Model, params: Any, mesh: Mesh, tokenizer: Tokenizer, limit: int, name: str):
        """
        Args:
          model: or its variant for decoding.
          params: its parameters on `mesh`.
          limit: the most tokens of a document including BOS and EOS, the run's data.seq_len.
          name: of the weights, for messages.
        """
        self._params, self._mesh, self._tokenizer, self._limit, self._name = params, mesh, tokenizer, limit, name
        graphdef, _ = networks.abstract(model.for_scoring())

        @jax.jit
        def nats(params: Any, tokens: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array]:
            place = jnp.arange(tokens.shape[1])[None]
            logits = nnx.merge(graphdef, params)(tokens, place, jnp.ones_like(tokens))
            nll, _ = cross_entropy(logits[:, :-1], tokens[:, 1:])
            counts = place[:, 1:] < length
            return jnp.sum(jnp.where(counts, nll, 0)), jnp.all(are_finite(logits, model.vocab_size)[:, :-1] | ~counts)

        self._nats = nats

    @classmethod
    def load(cls, workdir: epath.PathLike, step: int | None = None) -> "Scorer":
        """Loads the checkpoint of `step`, or the last one, of a run."""
        workdir = epath.Path(workdir)
        config = read_config(workdir)
        step = checkpoint.pick_step(workdir, step)
        tokenizer = tokenizers.load(workdir, config)
        model = MODELS.of(config)
        mesh = sharding.inference_mesh(model.tensor_parallelism, is_batched=False)
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

    def nats(self, document: bytes) -> float:
        """-ln p of the document and its EOS.

        Raises:
          TooLong: it has more tokens than `limit`.
          InputError: the model's result is not finite.
        """
        ids = self._ids(document)
        padded = np.zeros((1, bucket(len(ids), self._limit)), np.int32)
        padded[0, : len(ids)] = ids
        with jax.set_mesh(self._mesh):
            value, is_finite = jax.device_get(self._nats(self._params, padded, len(ids)))
        if not is_finite or not math.isfinite(value):
            raise InputError(f"{self._name}: {NOT_FINITE}")
        return float(value)

    def _ids(self, document: bytes) -> list[int]:
        ids = [self._tokenizer.BOS, *self._tokenizer.encode(document), self._tokenizer.EOS]
        if len(ids) > self._limit:
            raise TooLong(f"{len(ids)} tokens, more than data.seq_len={self._limit}")
        return ids
