"""Exports workdirs as Hugging Face's Llama directories."""

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from tqdm import tqdm

from jpeglm.convert.llama_tensors import Leaf, check_is_llama, fingerprint, insert, leaves
from jpeglm.core import checkpoint, files, retries
from jpeglm.core.errors import InputError
from jpeglm.core.weights import SHARD_BYTES, SafetensorsWriter
from jpeglm.core.workdir import read_config
from jpeglm.data.tokenizers import BOS, EOS, SPECIALS, UNK
from jpeglm.data.tokenizers.bpe import DUMMY_PREFIX, BpeTokenizer
from jpeglm.models import llama
from jpeglm.models.llama_config import LlamaConfig


def export_model(workdir: epath.Path, target: Path, step: int | None, dtype: str) -> LlamaConfig:
    """Makes a Hugging Face Llama directory from a run: config, generation config, safetensors, tokenizer.

    Args:
      workdir: of the run.
      target: to be made; it is written as TARGET.partial and then renamed.
      step: of the checkpoint; None takes the last.
      dtype: float32 or bfloat16, of the weights written.

    Returns:
      the model's config.

    Raises:
      InputError: the run's model is not Llama, its checkpoint cannot be read, the target exists or cannot be written.
    """
    config = read_config(workdir)
    check_is_llama(config, str(workdir))
    model = LlamaConfig.of(config)
    step = checkpoint.pick_step(workdir, step)
    ours = leaves(model)
    read = _open_checkpoint(workdir, step, ours)
    tokenizer = BpeTokenizer.load(workdir / "tokenizer.json")
    shapes = {name: leaf.their_shape for leaf in ours for name in leaf.names}
    # The order of transformers: layers by number, not by text, so that 10 comes after 9.
    order = sorted(shapes, key=lambda name: [int(part) if part.isdecimal() else part for part in name.split(".")])
    with files.new_folder(target) as folder:
        _write_json(folder / "config.json", _their_config(model, config.data.seq_len, dtype))
        ids = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": UNK}
        _write_json(folder / "generation_config.json", ids | {"max_length": config.data.seq_len})
        _write_tokenizer(folder, tokenizer, config.data.seq_len)
        writer = SafetensorsWriter(folder, {name: shapes[name] for name in order}, np.dtype(dtype), SHARD_BYTES)
        with tqdm(total=len(shapes), unit="tensor", desc="export", disable=None) as bar:
            for leaf in ours:
                for name, tensor in leaf.parts(read(leaf)):
                    writer.put(name, tensor)
                    bar.update()
                del tensor  # a view: free the whole parameter before the next is read
    return model


def _open_checkpoint(workdir: epath.Path, step: int, ours: list[Leaf]) -> Callable[[Leaf], np.ndarray]:
    """Returns a function that reads one parameter of a checkpoint. Both raise InputError if it is damaged."""
    folder = workdir / "checkpoints" / str(step) / "default"
    folder = folder if "://" in str(folder) else folder.absolute()
    handler = ocp.PyTreeCheckpointHandler()

    @contextmanager
    def reading() -> Iterator[None]:
        try:
            yield
        except InputError as error:
            raise InputError(f"{workdir}: the checkpoint of step {step} cannot be read: {error}") from error
        except Exception as error:  # Orbax and TensorStore raise many kinds on damaged bytes
            raise InputError(
                f"{workdir}: the checkpoint of step {step} cannot be read: {retries.cause(error)}"
            ) from error

    def restore(*path: str) -> np.ndarray:
        item: dict[str, Any] = {}
        insert(item, path, ocp.RestoreArgs(restore_type=np.ndarray))
        args = ocp.args.PyTreeRestore(item, restore_args=item, partial_restore=True)
        restored = retries.read(lambda: handler.restore(folder, args=args), ".".join(path))
        for key in path:
            restored = restored[key]
        gc.collect()  # Orbax leaves reference cycles behind, which would keep the array in memory
        return restored

    with reading():
        has_prints = "fingerprints" in handler.metadata(folder).tree
        prints = dict(zip(ours, restore("fingerprints", "params"), strict=True)) if has_prints else {}

    def read(leaf: Leaf) -> np.ndarray:
        name = ".".join(leaf.path)
        with reading():
            array = restore("params", *leaf.path)
            if array.shape != leaf.shape:
                raise InputError(f"{name} is {list(array.shape)}, the config asks for {list(leaf.shape)}")
            if leaf in prints and fingerprint(array) != prints[leaf]:
                raise InputError(f"{name} is not as it was saved")
            return array

    return read


def _their_config(model: LlamaConfig, seq_len: int, dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": model.vocab_size,
        "hidden_size": model.width,
        "intermediate_size": model.ffn_width,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": seq_len,
        "initializer_range": llama.INIT_STD,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": UNK,
        "torch_dtype": dtype,
    }


def _write_tokenizer(folder: Path, tokenizer: BpeTokenizer, seq_len: int) -> None:
    """Writes our tokenizer with a decoder to Braille text. Without one transformers puts spaces between tokens."""
    no_prefix = {"type": "Replace", "pattern": {"String": DUMMY_PREFIX}, "content": ""}
    decoder = {"type": "Sequence", "decoders": [no_prefix, {"type": "Fuse"}]}
    _write_json(folder / "tokenizer.json", json.loads(tokenizer.text) | {"decoder": decoder})
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIALS[BOS],
        "eos_token": SPECIALS[EOS],
        "unk_token": SPECIALS[UNK],
        "pad_token": SPECIALS[UNK],
        "model_max_length": seq_len,
        "clean_up_tokenization_spaces": False,
    }
    _write_json(folder / "tokenizer_config.json", content)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
