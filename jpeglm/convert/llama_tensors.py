"""Maps each parameter of our Llama to the tensors of Hugging Face's Llama that it consists of.

The values are the same. Hugging Face stores a matrix as [outputs, inputs], with heads and their dimensions folded
into one axis; ours is [inputs, outputs], with the layers stacked. Both lay out rotary halves alike, so nothing is
permuted.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from jpeglm.core.errors import InputError
from jpeglm.models import networks
from jpeglm.models.llama_config import LlamaConfig

# Our name -> theirs, and how many leading axes of ours are inputs (0: not transposed).
_OUTER = {
    "embedding": ("model.embed_tokens.weight", 0),
    "final_norm.scale": ("model.norm.weight", 0),
    "head": ("lm_head.weight", 1),
}
_LAYER = {
    "attention_norm.scale": ("input_layernorm.weight", 0),
    "wq": ("self_attn.q_proj.weight", 1),
    "wk": ("self_attn.k_proj.weight", 1),
    "wv": ("self_attn.v_proj.weight", 1),
    "wo": ("self_attn.o_proj.weight", 2),
    "ffn_norm.scale": ("post_attention_layernorm.weight", 0),
    "w_gate": ("mlp.gate_proj.weight", 1),
    "w_up": ("mlp.up_proj.weight", 1),
    "w_down": ("mlp.down_proj.weight", 1),
}
_BLOCK = 1 << 16  # elements that are hashed at once


class Leaf(NamedTuple):
    """One of our parameters, and Hugging Face's tensors that it consists of.

    Attributes:
      path: of the parameter in our tree.
      shape: of the parameter, layers included.
      names: of Hugging Face's tensors.
      inputs: number of leading axes, after that of layers, that are inputs; 0: not transposed.
      vocab_size: without padding.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    names: tuple[str, ...]  # one for each layer where ours is stacked over layers
    inputs: int
    vocab_size: int | None  # where an axis of ours is the padded vocabulary

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Shape of what one tensor of theirs becomes."""
        return self.shape[1:] if self.path[0] == "layers" else self.shape

    @property
    def their_shape(self) -> tuple[int, ...]:
        """Shape of each tensor of theirs."""
        shape = self.part_shape
        if self.inputs:
            shape = (math.prod(shape[self.inputs :]), math.prod(shape[: self.inputs]))
        return (self.vocab_size, *shape[1:]) if self.vocab_size else shape

    def to_ours(self, theirs: np.ndarray) -> np.ndarray:
        """Converts one of their tensors to `part_shape`: transposed, and with the vocabulary padded with zeros."""
        if self.vocab_size:
            padding = self.shape[self.inputs] - self.vocab_size
            theirs = np.pad(theirs, ((0, padding), (0, 0)))
        return (theirs.T if self.inputs else theirs).reshape(self.part_shape)

    def to_theirs(self, part: np.ndarray) -> np.ndarray:
        """The inverse of `to_ours`: from `part_shape` to `their_shape`."""
        if self.inputs:
            part = part.reshape(math.prod(part.shape[: self.inputs]), -1).T
        return part[: self.vocab_size] if self.vocab_size else part

    def parts(self, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Yields the tensors of theirs that a whole parameter consists of, each with its name."""
        for name, part in zip(self.names, array if self.path[0] == "layers" else [array], strict=True):
            yield name, self.to_theirs(part)


def leaves(config: LlamaConfig) -> list[Leaf]:
    """All parameters of a model. Raises InputError if Hugging Face's Llama cannot express the model."""
    if config.qk_norm:
        raise InputError("model.qk_norm=True: Hugging Face's Llama has no normalised queries and keys")
    if config.width % config.num_heads:
        raise InputError(
            f"model.width={config.width} is no multiple of model.num_heads={config.num_heads}, as Hugging Face wants"
        )
    found = []
    for keys, leaf in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(networks.abstract(config)[1])):
        path = tuple(key.key for key in keys)
        if path[0] == "layers":
            name, inputs = _LAYER[".".join(path[1:])]
            names = tuple(f"model.layers.{layer}.{name}" for layer in range(config.num_layers))
        else:
            name, inputs = _OUTER[".".join(path)]
            names = (name,)
        vocab_size = config.vocab_size if path[0] in ("embedding", "head") else None
        found.append(Leaf(path, leaf.shape, names, inputs, vocab_size))
    return found


def check_is_llama(config: ConfigDict, whose: str) -> None:
    """Raises InputError if the model of a run's config is not Llama. `whose` begins the message."""
    if config.model.name != "llama":
        raise InputError(f"{whose}: model.name={config.model.name}, Hugging Face's Llama is none")


def fingerprint(array: np.ndarray) -> np.uint32:
    """The hash of a float32 array as in `checkpoint.fingerprints`, computed on the host in blocks, without a copy."""
    bits, total = array.reshape(-1).view(np.uint32), np.uint32(0)
    for start in range(0, bits.size, _BLOCK):
        block = np.arange(start, min(start + _BLOCK, bits.size)).astype(np.uint32)
        block *= np.uint32(0x9E3779B9)
        block ^= bits[start : start + _BLOCK]
        block ^= block >> 16
        block *= np.uint32(0x85EBCA6B)
        block ^= block >> 13
        block *= np.uint32(0xC2B2AE35)
        block ^= block >> 16
        total = np.sum(block, dtype=np.uint32, initial=total)
    return total


def insert(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Puts a value into a tree of dicts. Missing dicts are made."""
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
