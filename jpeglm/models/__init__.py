"""Models: networks that predict the next token.

A new model is one file, and one line in jpeglm/core/registry.py: the path of a class that follows the protocol
`Model`.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from ml_collections import ConfigDict

from jpeglm.core.registry import Section


class Model(Protocol):
    """The settings of one model, as a frozen dataclass; its parameters are kept separately, as a pure dict.

    Models inherit from this class and override what differs. The module is imported whenever a config is checked, also
    when data is prepared without JAX. So the models here keep their network in a separate module, which `network`
    imports.
    """

    SECTION: ClassVar[Section]
    """The keys of `config.model` but `name`, each with its default and its range."""
    FREE: ClassVar[Sequence[str]] = ()
    """Those that change nothing that is learnt or drawn, but for rounding: a run that goes on may change them."""
    IN_TRAINING_ALONE: ClassVar[Sequence[str]] = ()
    """Those that samples do not depend on, for given weights."""
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
    quantise: str = "none"
    """Format of the products in 8 bits in training: none, int8 or fp8."""

    @classmethod
    def of(cls, config: ConfigDict) -> "Model":
        """The model of a run's config: from the section model and `tokenizer.vocab_size`.

        Raises InputError if settings are in range but do not fit together.
        """

    def network(self, rngs: Any) -> Any:
        """A fresh `nnx.Module` whose float32 parameters are drawn only from `rngs` (an `nnx.Rngs`).

        Each parameter is an `nnx.Param(value, axes=(...))` with the logical name of each dimension
        (`sharding.RULES`; one stacked over layers has one dimension more in front). `decay=False` exempts it from
        weight decay. The module has

          __call__(tokens, positions, segment_ids) -> logits: all inputs int32 [batch, length]; float32
            [batch, length, vocab_size or more], for the token after each position. For training and scoring.
          prefill(tokens, lengths) -> caches: prompts int32 [batch, bucket] from position 0, with `lengths` [batch]
            real tokens (at least one) and then arbitrary padding, on which nothing later may depend; caches as from
            `empty_caches(batch, bucket)`.
          decode(tokens, positions, caches) -> (logits, caches): one token of each sequence, int32 [batch], at
            `positions` [batch]; logits [batch, vocab_size or more], and caches of the same shapes and dtypes.

        Only the network of `for_decoding` is asked for `prefill` and `decode`.
        """

    @property
    def tensor_parallelism(self) -> int:
        """Inference shards the model over as many devices as divide this; 1: it is replicated."""
        return 1

    @property
    def num_parameters(self) -> int:
        """Without the padding of the vocabulary."""

    def flops_per_token(self, seq_len: int) -> float:
        """Training FLOPs per token of a chunk, forward and backward, without recomputation."""

    def recomputed_flops_per_token(self, seq_len: int) -> float:
        """FLOPs per token that rematerialisation adds."""
        return 0.0

    @property
    def quantised_flops_per_token(self) -> float:
        """Of the training FLOPs per token, recomputation included, those in the format of `quantise`."""
        return 0.0

    def decode_flops(self, capacity: int) -> float:
        """FLOPs of decoding one token with caches of this capacity."""

    def cache_read(self, filled: float, capacity: int, platform: str) -> float:
        """How many entries of caches with `filled` on average a decoding step reads; `platform`: cpu, gpu or tpu."""
        return capacity

    def step_bytes(self, tokens: int, tensor: int) -> float:
        """Estimated bytes that a training step needs on one device, besides the state and the gradients.

        Args:
          tokens: tokens of a microbatch on this device.
          tensor: devices over which heads, widths and vocabulary are sharded.
        """

    def for_scoring(self) -> "Model":
        """The same model with the same parameters, able to run on any machine and with chunks of any length."""
        return self

    def for_decoding(self) -> "Model":
        """The same model in the form that decoding needs."""
        return self

    def decoding_parameters(self, params: Any) -> Any:
        """Converts this model's parameters to those of `for_decoding()`, both as pure dicts; runs inside `jax.jit`.

        Matrices are cast to the computation's dtype here, once instead of at each step.
        """
        return params

    def empty_caches(self, slots: int, capacity: int) -> Any:
        """The state that `decode` keeps of earlier tokens: any pytree of arrays whose first axis is the slots.

        Of a larger capacity, an array may be larger along any of its axes, and then holds one of a smaller capacity
        in its beginning: prompts' caches are written there, over an earlier sequence, and those of running sequences
        when the capacity changes. Runs inside `jax.jit`.
        """
