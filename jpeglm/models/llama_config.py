"""The settings of a Llama, and its arithmetic: parameters, FLOPs, bytes. The network itself is in llama.py."""

import dataclasses
import importlib
from types import ModuleType
from typing import Any, ClassVar

from ml_collections import ConfigDict

from jpeglm.core.errors import InputError
from jpeglm.core.ranges import SWITCH, check, one_of, real, whole
from jpeglm.core.registry import Section
from jpeglm.models import Model

DTYPES = ("float32", "bfloat16")
REMAT = ("none", "full", "attention")
QUANTISE = ("none", "int8", "fp8")
ATTENTION = ("auto", "blockwise", "splash", "cudnn", "triton")
LANES = 128  # of a TPU
WINDOW = 512  # entries of a cache that a decoding step on TPUs reads at a time
VOCAB_MULTIPLE = 128  # arrays are padded to a multiple of this: full TPU lanes, and divisible over `tensor`


@dataclasses.dataclass(frozen=True)
class LlamaConfig(Model):
    """Shapes and numerics of one model. `vocab_size` counts every id; arrays hold `padded_vocab_size`."""

    SECTION: ClassVar[Section] = {  # defaults: JPEG-LM 7B; for gaps in the paper see BUILD_NOTES.md
        "num_layers": (32, whole(1, 10_000)),
        "width": (4096, whole(1, 2**20)),
        "num_heads": (32, whole(1, 2**16)),
        "num_kv_heads": (32, whole(1, 2**16)),
        "head_dim": (128, whole(2, 2**16)),
        "ffn_width": (11_008, whole(1, 2**22)),
        "norm_eps": (1e-5, real(above=0)),
        "rope_theta": (10_000.0, real(least=1)),
        "qk_norm": (False, SWITCH),
        "mask_documents": (False, SWITCH),  # the papers concatenate without a mask
        "dtype": ("bfloat16", one_of(*DTYPES)),  # of the computation; parameters, softmax and loss are float32
        "remat": ("full", one_of(*REMAT)),  # "none", or "attention": recompute a layer except attention's output
        # Products of the layers in training and scoring, forward and for the gradients of activations: quantise.py. An
        # estimate by jpeglm.aot counts them at the chip's peak for that format. Sampling computes in `dtype`.
        "quantise": ("none", one_of(*QUANTISE)),
        "attention": ("auto", one_of(*ATTENTION)),  # or blockwise, splash (TPU), cudnn, triton (GPU): attention.py
    }
    FREE: ClassVar = ("remat", "attention")
    IN_TRAINING_ALONE: ClassVar = ("quantise",)
    REMAT_POLICIES: ClassVar = ("full", "attention", "none")
    SPREADS_SEQUENCE: ClassVar = True
    CACHE_AXES: ClassVar = ("batch", "kv_heads", None, None)

    vocab_size: int
    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_width: int
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    qk_norm: bool = False
    mask_documents: bool = False
    dtype: str = "float32"
    remat: str = "none"
    quantise: str = "none"
    attention: str = "auto"
    stacked: bool = True  # stacked layers, for training; False: separate layers, for decoding

    def __post_init__(self) -> None:
        values = {key: getattr(self, key) for key in self.SECTION}
        check("config.model.", values, {key: range_ for key, (_, range_) in self.SECTION.items()})
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"config.model.num_heads={self.num_heads} is no multiple of num_kv_heads={self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise InputError(f"config.model.head_dim={self.head_dim} is odd; rotary embedding turns pairs")

    @classmethod
    def of(cls, config: ConfigDict) -> "LlamaConfig":
        """The model of a run's config."""
        return cls(config.tokenizer.vocab_size, **{key: config.model[key] for key in cls.SECTION})

    ############################ The network ############################

    @property
    def _llama(self) -> ModuleType:
        # Imported by name on first use: checking a config needs no JAX.
        return importlib.import_module("jpeglm.models.llama")

    def network(self, rngs: Any) -> Any:
        """See `Model`."""
        return self._llama.Llama(self, rngs=rngs)

    def for_scoring(self) -> "LlamaConfig":
        """With portable attention: the kernel of training may not support this machine or this length."""
        return dataclasses.replace(self, attention="auto")

    def for_decoding(self) -> "LlamaConfig":
        """With separate layers, and no products in 8 bits."""
        return dataclasses.replace(self, stacked=False, quantise="none")

    def decoding_parameters(self, params: Any) -> Any:
        """Separate layers; matrices in `dtype`, norms in float32."""
        return self._llama.unstack(self._llama.cast_matrices(params, self.dtype))

    def empty_caches(self, slots: int, capacity: int) -> Any:
        """Keys and values of each layer."""
        return self._llama.Cache.zeros(self, slots, capacity)

    @property
    def tensor_parallelism(self) -> int:
        """The heads of the cache."""
        return self.num_kv_heads

    ############################ Arithmetic ############################

    @property
    def padded_vocab_size(self) -> int:
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def num_parameters(self) -> int:
        """Number of parameters, without the padding of the vocabulary."""
        attention = 2 * self.width * self.head_dim * (self.num_heads + self.num_kv_heads)
        attention += 2 * self.head_dim * self.qk_norm
        per_layer = attention + 3 * self.width * self.ffn_width + 2 * self.width
        return self.num_layers * per_layer + 2 * self.vocab_size * self.width + self.width

    def flops_per_token(self, seq_len: int) -> float:
        """Training FLOPs per token, forward and backward, causal, without recomputation.

        Six for each weight of a matrix product (Kaplan et al. 2020, section 2.1) and, in each layer, six times the
        2 * heads * head_dim * (seq_len + 1) / 2 multiply-adds of scores and mixing over an average context of half a
        chunk.
        """
        norms = self.num_layers * (2 * self.width + 2 * self.head_dim * self.qk_norm) + self.width
        matrices = self.num_parameters - self.vocab_size * self.width - norms
        mixing = self.num_layers * self.num_heads * self.head_dim * (seq_len + 1)
        return 6.0 * (matrices + mixing)

    def recomputed_flops_per_token(self, seq_len: int) -> float:
        """FLOPs per token that rematerialisation adds: the layers' forward pass, or all of it except attention.

        Recomputation inside the backward pass of attention kernels is not counted.
        """
        head = self.vocab_size * self.width
        mixing = self.num_layers * self.num_heads * self.head_dim * (seq_len + 1)
        forward = self.flops_per_token(seq_len) / 3 - 2 * head
        return {"none": 0.0, "attention": forward - 2 * mixing, "full": forward}[self.remat]

    @property
    def quantised_flops_per_token(self) -> float:
        """Products of the layers' matrices, forward, for the gradients of activations, and recomputed ones."""
        if self.quantise == "none":
            return 0.0
        attention = 2 * self.width * self.head_dim * (self.num_heads + self.num_kv_heads)
        matrices = self.num_layers * (attention + 3 * self.width * self.ffn_width)
        return (4.0 if self.remat == "none" else 6.0) * matrices

    def decode_flops(self, capacity: int) -> float:
        """FLOPs of decoding one token, attending over all `capacity` entries of a cache."""
        mixing = self.num_layers * self.num_heads * self.head_dim
        return self.flops_per_token(0) / 3 + 2 * mixing * (2 * capacity - 1)

    def cache_read(self, filled: float, capacity: int, platform: str) -> float:
        """On TPUs whole windows (`kernels.windowed`), the last of which is half full on average."""
        if platform != "tpu" or self.dtype != "bfloat16" or self.head_dim % LANES or capacity % WINDOW:
            return capacity
        return min(filled + WINDOW / 2, capacity)

    def step_bytes(self, tokens: int, tensor: int) -> float:
        """Bytes of a training step on one device, besides state and gradients.

        The sum of: what remat saves of each layer; all activations of one layer with their gradients; the gathered
        matrices of two layers, one in use and one being fetched; and the logits, three times in float32.
        """
        size = 2 if self.dtype == "bfloat16" else 4
        mixed = self.num_heads * self.head_dim / tensor  # width of attention's output on one device
        keys = self.num_kv_heads * self.head_dim / tensor
        # Residual stream and its norms; queries and keys before and after rotation, values; gate, up, their product.
        layer = size * (5 * self.width + 3 * mixed + 3 * keys + 3 * self.ffn_width / tensor)
        kept = {"full": size * self.width, "attention": size * (self.width + mixed), "none": layer}[self.remat]
        matrices = self.width * (2 * mixed + 2 * keys + 3 * self.ffn_width / tensor)
        gathered = size * matrices * (self.num_layers if self.remat == "none" else 2)
        logits = 3 * 4 * self.padded_vocab_size / tensor
        return tokens * (self.num_layers * kept + 2 * layer + logits) + gathered
