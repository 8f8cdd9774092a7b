"""Models: networks that give the probabilities of each next token.

A new model is one file, and one line in jpeglm/core/registry.py: the place of a class that keeps the protocol `Model`.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from ml_collections import ConfigDict

from jpeglm.core.registry import Section


class Model(Protocol):
    """The settings of one model, as a frozen dataclass; its parameters are held elsewhere, as a pure dict.

    A model inherits from this class what it has no reason to say otherwise. Its module is imported wherever a config
    is checked. Preparing data needs no JAX: of a model that ships, the network stands in a module of its own, which
    `network` imports.
    """

    SECTION: ClassVar[Section]
    """The keys of `config.model` but `name`, each with its default and its range."""
    FREE: ClassVar[Sequence[str]] = ()
    """Those that change nothing that is learnt or drawn, but for rounding: a run that goes on may change them."""
    REMAT_POLICIES: ClassVar[Sequence[str]] = ("none",)
    """What the key `remat` may be, from the least memory to the least computing, where there is such a key."""
    SPREADS_SEQUENCE: ClassVar[bool] = False
    """Whether a mesh may spread the sequence (mesh.context above 1): it is then in the order of
    `sharding.global_batch`."""
    CACHE_AXES: ClassVar[Sequence[str | None]] = ("batch",)
    """Logical axes (`sharding.RULES`) of each array of a cache, the first of which is "batch", the slots. Dimensions
    beyond them are whole on each device."""

    num_layers: int
    vocab_size: int
    """Ids that there are. Logits may have more columns, of minus infinity."""
    mask_documents: bool = False
    """Whether no token sees another document of its chunk; positions then start at 0 with each document."""
    tensor_parallelism: int = 1
    """Inference spreads the model over as many devices as divide this; 1: it is whole on each."""

    @classmethod
    def of(cls, config: ConfigDict) -> "Model":
        """The model of a run's config: of the section model, and the ids of `tokenizer.vocab_size`.

        Raises InputError where settings, each in its range, do not fit each other.
        """

    def network(self, rngs: Any) -> Any:
        """A fresh `nnx.Module` that draws its parameters, float32, from `rngs` (an `nnx.Rngs`) alone.

        Each parameter is an `nnx.Param(value, axes=(...))` with the logical name of each dimension
        (`sharding.RULES`; one stacked over layers has one dimension more in front). `decay=False` keeps weight decay
        from it. The module has

          __call__(tokens, positions, segment_ids) -> logits: all inputs int32 [batch, length]; float32
            [batch, length, vocab_size or more], of the token after each position. For training and scoring.
          prefill(tokens, lengths) -> (logits, caches): prompts int32 [batch, bucket] from position 0, real up to
            `lengths` [batch], with anything after that, which no later logits may depend on. Logits as above; caches
            as of `empty_caches(batch, bucket)`.
          decode(tokens, positions, caches) -> (logits, caches): one token of each sequence, int32 [batch], at
            `positions` [batch]; logits [batch, vocab_size or more], and caches of the same shapes and dtypes.

        Only the network of `for_decoding` is asked for `prefill` and `decode`.
        """

    @property
    def num_parameters(self) -> int:
        """Without the padding of the vocabulary."""

    def flops_per_token(self, seq_len: int) -> float:
        """Training FLOPs a token of a chunk, forward and backward; what is computed again does not count."""

    def recomputed_flops_per_token(self, seq_len: int) -> float:
        """FLOPs a token that rematerialisation adds."""
        return 0.0

    def decode_flops(self, capacity: int) -> float:
        """FLOPs of decoding one token with caches of this capacity."""

    def step_bytes(self, tokens: int, tensor: int) -> float:
        """Bytes that a training step needs on one device beside the state and the gradients, estimated.

        Args:
          tokens: of a microbatch that are on this device.
          tensor: devices over which heads, widths and vocabulary are spread.
        """

    def for_scoring(self) -> "Model":
        """The same model, of the same parameters, that runs on any machine, over chunks of any length."""
        return self

    def for_decoding(self) -> "Model":
        """The same model as decoding wants it."""
        return self

    def decoding_parameters(self, params: Any) -> Any:
        """The parameters of `for_decoding()` out of this model's, both as pure dicts; runs inside `jax.jit`.

        Here matrices are cast to the dtype of the computation, once and not at each step.
        """
        return params

    def empty_caches(self, slots: int, capacity: int) -> Any:
        """What `decode` knows of the tokens before: any pytree of arrays whose first axis is the slots.

        A prompt's caches, [1, ...] and perhaps of smaller capacity, are put at the beginning of a slot's, which may
        hold what an earlier sequence left. Runs inside `jax.jit`.
        """
