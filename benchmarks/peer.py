"""What the benchmarks share: the same model in transformers, a clock, and the machine in words."""

import os
import platform
import time
from collections.abc import Callable

import jax
import torch
import transformers

from jpeglm.model.llama import LlamaConfig


def huggingface_llama(config: LlamaConfig, max_length: int) -> transformers.LlamaForCausalLM:
    """transformers' Llama of the same shapes, with random weights, in float32 or bfloat16 as the config says."""
    shapes = transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        intermediate_size=config.ffn_width,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.norm_eps,
        max_position_embeddings=max_length,
        tie_word_embeddings=False,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return transformers.LlamaForCausalLM(shapes).to(device, getattr(torch, config.dtype))


def seconds(run: Callable[..., object], *arguments: object) -> float:
    """Wall-clock time of one call."""
    started = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - started


def machine() -> str:
    """Hardware and versions, as a table of results must name them."""
    device = jax.devices()[0]
    versions = f"jax {jax.__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
    cores = len(os.sched_getaffinity(0))
    return f"{device.device_kind}, {cores} cores, Python {platform.python_version()}, {versions}"
