"""Imports Hugging Face's Llama directories as workdirs."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from ml_collections import ConfigDict
from tqdm import tqdm

from jpeglm.convert import sentencepiece
from jpeglm.convert.llama_tensors import check_is_llama, fingerprint, insert, leaves
from jpeglm.core import config as config_lib
from jpeglm.core import files
from jpeglm.core.errors import InputError
from jpeglm.core.weights import Tensor, open_folder, read_json, shown
from jpeglm.data.tokenizers import BOS, EOS
from jpeglm.data.tokenizers.bpe import BpeTokenizer
from jpeglm.models.llama_config import LlamaConfig

# Allowed values for keys of config.json that change what the model computes, besides shapes and rotary embedding.
_PLAIN = {
    "hidden_act": (None, "silu"),
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "sliding_window": (None,),
    "partial_rotary_factor": (None, 1, 1.0),
    "quantization_config": (None,),
    "bos_token_id": (None, BOS),
    "eos_token_id": (None, [EOS], EOS),
    "tie_word_embeddings": (None, False, True),
}
_PLAIN_ROPE = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1}
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_MOST = 1 << 20  # limit of any dimension of the model
_RANGES = {"rms_norm_eps": (1e-12, 0.1), "rope_theta": (1.0, 1e12)}
_WEIGHTS = ("float32", "float16", "bfloat16")
_FILE_BYTES = 1 << 26  # size of the checkpoint's files; also bounds the memory used while writing


def import_model(source: Path, workdir: Path, config: ConfigDict) -> LlamaConfig:
    """Makes a workdir from a Hugging Face Llama directory. Its weights, in float32, are the checkpoint of step 0.

    Args:
      source: directory with config.json, weights (see `jpeglm.core.weights`), and tokenizer.model or tokenizer.json.
      workdir: to be made. It is written as WORKDIR.partial, which also holds a second copy of the parameters until the
        checkpoint is complete.
      config: of a run, for the codec and all else that Hugging Face does not state. Its model is replaced except for
        `dtype`, `remat`, `attention` and `mask_documents`.

    Returns:
      the model's config.

    Raises:
      InputError: jpeglm's Llama cannot express the model; a tensor is missing, surplus or of another shape; a file
        cannot be read; or the workdir exists or cannot be written.
    """
    config = read_model_config(source, config)
    model = LlamaConfig.of(config)
    tokenizer = read_tokenizer(source)
    if tokenizer.vocab_size != model.vocab_size:
        raise InputError(
            f"{source}: vocab_size={model.vocab_size} in config.json, its tokenizer has {tokenizer.vocab_size} entries"
        )
    with files.new_folder(workdir) as folder:
        theirs = _needed(source, open_folder(source), model)
        tokenizer.save(folder / "tokenizer.json")
        scratch = folder / "scratch"
        scratch.mkdir()
        params: dict[str, Any] = {}
        with tqdm(total=len(theirs), unit="tensor", desc="import", disable=None) as bar:
            for leaf in leaves(model):
                path = scratch / ".".join(leaf.path)
                with path.open("wb") as file:
                    for name in leaf.names:
                        array = leaf.to_ours(theirs[name].read())
                        file.write(np.ascontiguousarray(array).view(np.uint8))
                        bar.update()
                insert(params, leaf.path, np.memmap(path, np.float32, "r", shape=leaf.shape))
        _save(folder, params)
        shutil.rmtree(scratch)
        (folder / "config.json").write_text(config_lib.to_json(config))
    return model


def read_model_config(source: Path, config: ConfigDict) -> ConfigDict:
    """A run's config with the model and the vocabulary of a Hugging Face directory's config.json.

    Raises:
      InputError: a key asks for something that jpeglm's Llama cannot express, or is not a number in its range.
    """
    path = source / "config.json"
    theirs = read_json(path)
    _check_plain(path, theirs)

    def whole(key: str, default: int | None = None, most: int = _MOST) -> int:
        value = default if theirs.get(key) is None else theirs[key]
        if type(value) is not int or not 1 <= value <= most:
            raise InputError(f"{path}: {key}={shown(theirs.get(key))} is no whole number from 1 to {most:,}")
        return value

    def real(key: str, default: float) -> float:
        value = default if theirs.get(key) is None else theirs[key]
        least, most = _RANGES[key]
        if type(value) not in (int, float) or not least <= value <= most:
            raise InputError(f"{path}: {key}={shown(value)} is no number from {least:g} to {most:g}")
        return float(value)

    heads, width = whole("num_attention_heads"), whole("hidden_size")
    if width < heads and theirs.get("head_dim") is None:
        raise InputError(
            f"{path}: hidden_size={width} is less than num_attention_heads={heads}, and no head_dim is given"
        )
    config = config.copy_and_resolve_references()
    check_is_llama(config, "the config given")
    config.tokenizer.vocab_size = whole("vocab_size", most=2**16)
    config.model.num_layers = whole("num_hidden_layers", most=10_000)
    config.model.width = width
    config.model.num_heads = heads
    config.model.num_kv_heads = whole("num_key_value_heads", heads)
    config.model.head_dim = whole("head_dim", width // heads)
    config.model.ffn_width = whole("intermediate_size")
    config.model.norm_eps = real("rms_norm_eps", 1e-6)  # the default if the key is absent
    config.model.rope_theta = real("rope_theta", 10_000.0)
    config.model.qk_norm = False
    config.data.path = ""
    try:
        config_lib.check(config)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    limit = whole("max_position_embeddings", config.data.seq_len, most=2**31 - 1)
    if limit < config.data.seq_len:
        logging.warning("%s: made for %d positions, data.seq_len is %d", path, limit, config.data.seq_len)
    return config


def _check_plain(path: Path, theirs: dict[str, Any]) -> None:
    """Refuses settings that are not supported, and copies the rotary base to `rope_theta`. Raises InputError."""
    if theirs.get("model_type") != "llama" or theirs.get("architectures") not in (None, ["LlamaForCausalLM"]):
        architecture = shown(theirs.get("architectures") or theirs.get("model_type"))
        raise InputError(f"{path}: architecture {architecture}, only LlamaForCausalLM can be imported")
    for key, plain in _PLAIN.items():
        value = theirs.get(key)
        if not any(type(value) is type(allowed) and value == allowed for allowed in plain):
            known = " or ".join(repr(allowed) for allowed in plain if allowed is not None) or "null"
            raise InputError(f"{path}: {key}={shown(value)} is not supported, only {known}")
    # transformers 5 has rope_parameters; before, there were rope_theta and rope_scaling.
    for key in ("rope_scaling", "rope_parameters"):
        rope = {} if theirs.get(key) is None else theirs[key]
        if not isinstance(rope, dict) or rope.keys() - _PLAIN_ROPE.keys() - {"rope_theta"}:
            raise InputError(f"{path}: {key}={shown(rope)} is not supported, only plain rotary embedding")
        if any(rope.get(name) not in (None, value) for name, value in _PLAIN_ROPE.items()):
            raise InputError(f"{path}: {key}={shown(rope)} is not supported, only plain rotary embedding")
        theirs["rope_theta"] = rope.get("rope_theta", theirs.get("rope_theta"))


def read_tokenizer(source: Path) -> BpeTokenizer:
    """The tokenizer of a Hugging Face directory.

    It is read from tokenizer.model, from which tokenizer.json is usually derived, or else from tokenizer.json.

    Raises:
      InputError: there is neither file, or it is not a tokenizer that jpeglm can express.
    """
    if (source / "tokenizer.model").exists():
        return BpeTokenizer(sentencepiece.convert(source / "tokenizer.model"))
    path = source / "tokenizer.json"
    if not path.exists():
        raise InputError(f"{source} holds no tokenizer: neither tokenizer.json nor tokenizer.model")
    content = read_json(path) | {"decoder": None}  # theirs turns ids into text; ours turns them into bytes
    try:
        return BpeTokenizer(json.dumps(content, indent=1) + "\n")
    except (InputError, RecursionError) as error:
        raise InputError(f"{path}: {str(error)[:300]}") from error


def _needed(source: Path, theirs: dict[str, Tensor], model: LlamaConfig) -> dict[str, Tensor]:
    """The tensors of the model, checked to be complete. A tied head becomes a second copy of the embedding."""
    theirs = dict(theirs)
    _check_layers(source, theirs, model.num_layers)
    is_tied = bool(read_json(source / "config.json").get("tie_word_embeddings")) and _EMBEDDING in theirs
    if is_tied:
        theirs.setdefault(_HEAD, theirs[_EMBEDDING])
    for name in [name for name in theirs if name.endswith(".rotary_emb.inv_freq")]:  # older files hold them
        _check_frequencies(theirs.pop(name), model)
    shapes = {name: leaf.their_shape for leaf in leaves(model) for name in leaf.names}
    for name, shape in shapes.items():
        if name not in theirs:
            raise InputError(f"{source}: tensor {name} is missing")
        found = theirs[name]
        if found.shape != shape:
            raise InputError(f"{found.file}: tensor {name} is {list(found.shape)}, config.json asks for {list(shape)}")
        if found.dtype not in _WEIGHTS:
            raise InputError(f"{found.file}: tensor {name} is {found.dtype}, none of {', '.join(_WEIGHTS)}")
    for name in sorted(theirs.keys() - shapes.keys()):
        raise InputError(f"{theirs[name].file}: tensor {name[:100]} has no place in a Llama of config.json's shape")
    if is_tied and theirs[_HEAD] is not theirs[_EMBEDDING]:
        if not np.array_equal(theirs[_HEAD].read(), theirs[_EMBEDDING].read()):
            raise InputError(f"{source}: tie_word_embeddings is true, yet {_HEAD} differs from {_EMBEDDING}")
    return theirs


def _check_layers(source: Path, theirs: dict[str, Tensor], num_layers: int) -> None:
    """Checks that the files have this many layers, before the names of all layers are made."""
    there = {name.split(".")[2] for name in theirs if name.startswith("model.layers.")}
    if num_layers > len(there):
        first = next(number for number in range(len(there) + 1) if str(number) not in there)
        raise InputError(
            f"{source}: tensor model.layers.{first}.* is missing: num_hidden_layers={num_layers} in config.json, the "
            f"files hold {len(there)}"
        )


def _check_frequencies(table: Tensor, model: LlamaConfig) -> None:
    """Checks that a stored table of rotary frequencies is that of `rope_theta`."""
    fits = table.shape == (model.head_dim // 2,)
    if fits:
        expected = model.rope_theta ** (-np.arange(0, model.head_dim, 2) / model.head_dim)
        fits = np.allclose(table.read(), expected, rtol=2**-7)  # bfloat16's precision
    if not fits:
        raise InputError(f"{table.file}: tensor {table.name} does not fit rope_theta={model.rope_theta}")


def _save(workdir: Path, params: dict[str, Any]) -> None:
    """Saves the checkpoint of step 0 from memory-mapped files, which Orbax writes without copying all to memory."""
    maps = ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)
    registry = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, maps), (jax.Array, ocp.type_handlers.ArrayHandler())
    )
    prints = np.array([fingerprint(array) for array in jax.tree.leaves(params)])
    with ocp.CheckpointManager(
        epath.Path(workdir / "checkpoints").absolute(),
        options=ocp.CheckpointManagerOptions(enable_async_checkpointing=False),
        item_handlers=ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
    ) as manager:
        state = {"params": params, "fingerprints": {"params": prints}}
        manager.save(0, args=ocp.args.PyTreeSave(state, ocdbt_target_data_file_size=_FILE_BYTES))
