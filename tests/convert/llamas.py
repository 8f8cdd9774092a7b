"""Llamas of transformers with random weights, and directories that hold them."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import torch
import transformers
from flax import nnx

from jpeglm.core import checkpoint, sharding
from jpeglm.core.registry import MODELS
from jpeglm.core.workdir import read_config
from jpeglm.data.tokenizers import bpe
from jpeglm.models import llama, networks
from tests.tiny_config import get_config

SHAPES = {
    "multi_head": dict(num_attention_heads=4, num_key_value_heads=4, head_dim=16),
    "grouped_queries": dict(
        num_attention_heads=8, num_key_value_heads=2, head_dim=32, rope_theta=50_000.0, rms_norm_eps=1e-6
    ),
}


def make(shape: str = "multi_head", seed: int = 0, **changes) -> transformers.LlamaForCausalLM:
    """Weights large enough that nothing hides behind an initialisation near zero, norms' scales away from 1."""
    settings = dict(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        rms_norm_eps=1e-5,
        max_position_embeddings=512,
    )
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings | SHAPES[shape] | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter * (3 if parameter.ndim > 1 else 1) + 0.1 * torch.randn_like(parameter))
    return model


def tokenizer_text() -> str:
    """A tokenizer.json of ours with 320 entries."""
    random = np.random.default_rng(0)
    documents = [bytes([0xFF, 0xD8]) + random.integers(0, 12, 100, np.uint8).tobytes() for _ in range(200)]
    return bpe.train(documents, 320, chr(0x28FF) + "[" + chr(0x28D0) + "-" + chr(0x28D7) + "]").text


def save(model: transformers.LlamaForCausalLM, folder: Path, how: str, text: str) -> Path:
    """Writes a Hugging Face directory. `how`: safetensors, shards, bin or bin_shards."""
    model.save_pretrained(folder, max_shard_size="100KB" if how == "shards" else "5GB")
    (folder / "tokenizer.json").write_text(text)
    if how.startswith("bin"):
        (folder / "model.safetensors").unlink()
        state = model.state_dict()
        if how == "bin":
            torch.save(state, folder / "pytorch_model.bin")
        else:
            save_torch_shards(state, folder)
    return folder


def save_torch_shards(state: dict[str, torch.Tensor], folder: Path) -> None:
    """As transformers wrote them before safetensors: two files and an index."""
    names, places = list(state), {}
    for number, part in enumerate((names[:7], names[7:]), 1):
        file_name = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: state[name] for name in part}, folder / file_name)
        places |= dict.fromkeys(part, file_name)
    size = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def run_config():
    """What an import takes codec and settings from."""
    config = get_config()
    config.data.seq_len = 256
    return config


def restored(workdir: Path, step: int | None = None):
    """(model config, parameters) of a workdir, as sampling and scoring restore them."""
    config = read_config(workdir)
    mesh = sharding.make_mesh({}, jax.devices()[:1])
    params = checkpoint.restore_model(
        workdir, checkpoint.pick_step(workdir, step), networks.laid_out(MODELS.of(config), mesh)
    )
    return llama.LlamaConfig.of(config), params


def logits(workdir: Path, tokens: np.ndarray) -> np.ndarray:
    """Ours, [batch, length, vocab_size]."""
    config, params = restored(workdir)
    graphdef, _ = networks.abstract(config)
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    model = nnx.merge(graphdef, params)
    return np.asarray(nnx.jit(lambda m: m(tokens, positions, np.ones_like(tokens)))(model))[..., : config.vocab_size]


def their_logits(model: transformers.LlamaForCausalLM, tokens: np.ndarray) -> np.ndarray:
    """transformers', in float32."""
    with torch.no_grad():
        return model(torch.from_numpy(tokens.astype(np.int64))).logits.numpy()


def copy(folder: Path, target: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(folder, target)
    return target
