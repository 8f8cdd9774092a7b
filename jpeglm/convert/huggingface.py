"""Runs of jpeglm out of Hugging Face's Llama directories, and the other way round.

The parameters are the same numbers: a matrix lies there as [outputs, inputs] with heads and their dimensions folded
into one axis, here as [inputs, outputs] with the layers stacked. Rotary halves agree, so nothing is permuted.
"""

import gc
import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from flax import nnx
from ml_collections import ConfigDict
from tqdm import tqdm

from jpeglm.convert import sentencepiece
from jpeglm.core import checkpoint, files, retries
from jpeglm.core import config as config_lib
from jpeglm.core.errors import InputError
from jpeglm.core.weights import SHARD_BYTES, SafetensorsWriter, Tensor, open_folder, read_json, shown
from jpeglm.core.workdir import read_config
from jpeglm.data.tokenizers import BOS, EOS, SPECIALS, UNK
from jpeglm.data.tokenizers.bpe import DUMMY_PREFIX, BpeTokenizer
from jpeglm.models import llama, networks
from jpeglm.models.llama_config import LlamaConfig

# Ours -> theirs, with the number of leading axes of ours that are inputs (0: not turned).
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
# Keys of config.json that change the function, beside shapes and rotary embedding: what they may be.
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
_MOST = 1 << 20  # of any size of the model
_RANGES = {"rms_norm_eps": (1e-12, 0.1), "rope_theta": (1.0, 1e12)}
_WEIGHTS = ("float32", "float16", "bfloat16")
_BLOCK = 1 << 16  # elements that are hashed at once
_FILE_BYTES = 1 << 26  # of the checkpoint's files; as much of it waits in memory to be written


class Leaf(NamedTuple):
    """A parameter of ours, and the tensors of theirs that it consists of."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    names: tuple[str, ...]  # one for each layer where ours is stacked over layers
    inputs: int
    vocab_size: int | None  # where an axis of ours is the padded vocabulary

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Of what one tensor of theirs becomes."""
        return self.shape[1:] if self.path[0] == "layers" else self.shape

    @property
    def their_shape(self) -> tuple[int, ...]:
        """Of each tensor of theirs."""
        shape = self.part_shape
        if self.inputs:
            shape = (math.prod(shape[self.inputs :]), math.prod(shape[: self.inputs]))
        return (self.vocab_size, *shape[1:]) if self.vocab_size else shape

    def to_ours(self, theirs: np.ndarray) -> np.ndarray:
        """A tensor of theirs, turned and padded with zeros."""
        if self.vocab_size:
            padding = self.shape[self.inputs] - self.vocab_size
            theirs = np.pad(theirs, ((0, padding), (0, 0)))
        return (theirs.T if self.inputs else theirs).reshape(self.part_shape)

    def to_theirs(self, part: np.ndarray) -> np.ndarray:
        """The other way."""
        if self.inputs:
            part = part.reshape(math.prod(part.shape[: self.inputs]), -1).T
        return part[: self.vocab_size] if self.vocab_size else part

    def parts(self, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """The whole parameter as tensors of theirs by name."""
        for name, part in zip(self.names, array if self.path[0] == "layers" else [array], strict=True):
            yield name, self.to_theirs(part)


def leaves(config: LlamaConfig) -> list[Leaf]:
    """All parameters of a model. Raises InputError where Hugging Face's Llama has no place for it."""
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


# Import


def import_model(source: Path, workdir: Path, config: ConfigDict) -> LlamaConfig:
    """Makes a workdir of a Hugging Face Llama directory: its weights, in float32, as the checkpoint of step 0.

    Args:
      source: config.json, weights (see `weight_files`) and tokenizer.model or tokenizer.json.
      workdir: to be made. WORKDIR.partial is where it grows, with the parameters once more beside the checkpoint.
      config: of a run; says the codec and all that Hugging Face does not. Its model is replaced, but for `dtype`,
        `remat` and `mask_documents`.

    Raises:
      InputError: what jpeglm's Llama cannot express, a tensor that is missing, surplus or of another shape, and so on.
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
                _put(params, leaf.path, np.memmap(path, np.float32, "r", shape=leaf.shape))
        _save(folder, params)
        shutil.rmtree(scratch)
        (folder / "config.json").write_text(config_lib.to_json(config))
    return model


def read_model_config(source: Path, config: ConfigDict) -> ConfigDict:
    """A run's config with the model and the vocabulary of a Hugging Face directory's config.json.

    Raises:
      InputError: a key asks for what jpeglm's Llama cannot express, or is no number in its range.
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
    _check_is_llama(config, "the config given")
    config.tokenizer.vocab_size = whole("vocab_size", most=2**16)
    config.model.num_layers = whole("num_hidden_layers", most=10_000)
    config.model.width = width
    config.model.num_heads = heads
    config.model.num_kv_heads = whole("num_key_value_heads", heads)
    config.model.head_dim = whole("head_dim", width // heads)
    config.model.ffn_width = whole("intermediate_size")
    config.model.norm_eps = real("rms_norm_eps", 1e-6)  # what an absent key means there
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


def _check_is_llama(config: ConfigDict, whose: str) -> None:
    if config.model.name != "llama":
        raise InputError(f"{whose}: model.name={config.model.name}, Hugging Face's Llama is none")


def _check_plain(path: Path, theirs: dict[str, Any]) -> None:
    """Refuses by name what changes the function and is not ours; leaves the rotary base in `rope_theta`."""
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
    """The tokenizer of a Hugging Face directory: tokenizer.model, from which others are derived, or tokenizer.json."""
    if (source / "tokenizer.model").exists():
        return BpeTokenizer(sentencepiece.convert(source / "tokenizer.model"))
    path = source / "tokenizer.json"
    if not path.exists():
        raise InputError(f"{source} holds no tokenizer: neither tokenizer.json nor tokenizer.model")
    content = read_json(path) | {"decoder": None}  # from their ids to text; ours go to bytes
    try:
        return BpeTokenizer(json.dumps(content, indent=1) + "\n")
    except (InputError, RecursionError) as error:
        raise InputError(f"{path}: {str(error)[:300]}") from error


def _needed(source: Path, theirs: dict[str, Tensor], model: LlamaConfig) -> dict[str, Tensor]:
    """Exactly the tensors of the model, a tied head untied by reading the embedding twice."""
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
    """Before the names of so many layers are made: the files must hold as many at least."""
    there = {name.split(".")[2] for name in theirs if name.startswith("model.layers.")}
    if num_layers > len(there):
        first = next(number for number in range(len(there) + 1) if str(number) not in there)
        raise InputError(
            f"{source}: tensor model.layers.{first}.* is missing: num_hidden_layers={num_layers} in config.json, the "
            f"files hold {len(there)}"
        )


def _check_frequencies(table: Tensor, model: LlamaConfig) -> None:
    """A stored table of rotary frequencies must be that of the base."""
    fits = table.shape == (model.head_dim // 2,)
    if fits:
        expected = model.rope_theta ** (-np.arange(0, model.head_dim, 2) / model.head_dim)
        fits = np.allclose(table.read(), expected, rtol=2**-7)  # bfloat16's precision
    if not fits:
        raise InputError(f"{table.file}: tensor {table.name} does not fit rope_theta={model.rope_theta}")


def _save(workdir: Path, params: dict[str, Any]) -> None:
    """The checkpoint of step 0, from maps of files: Orbax neither copies them nor collects much before it writes."""
    maps = ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)
    registry = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, maps), (jax.Array, ocp.type_handlers.ArrayHandler())
    )
    prints = np.array([_fingerprint(array) for array in jax.tree.leaves(params)])
    with ocp.CheckpointManager(
        epath.Path(workdir / "checkpoints").absolute(),
        options=ocp.CheckpointManagerOptions(enable_async_checkpointing=False),
        item_handlers=ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
    ) as manager:
        state = {"params": params, "fingerprints": {"params": prints}}
        manager.save(0, args=ocp.args.PyTreeSave(state, ocdbt_target_data_file_size=_FILE_BYTES))


def _fingerprint(array: np.ndarray) -> np.uint32:
    """What `checkpoint.fingerprints` gives for a float32 array, without a copy of it: on the host, block by block."""
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


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


# Export


def export_model(workdir: epath.Path, target: Path, step: int | None, dtype: str) -> LlamaConfig:
    """Makes a Hugging Face Llama directory of a run: config, generation config, safetensors, tokenizer.

    Args:
      workdir: of the run.
      target: to be made; TARGET.partial is where it grows.
      step: of the checkpoint; None takes the last.
      dtype: float32 or bfloat16, of the weights written.

    Raises:
      InputError: the run's model is not Llama, its checkpoint cannot be read, the target exists or cannot be written.
    """
    config = read_config(workdir)
    _check_is_llama(config, str(workdir))
    model = LlamaConfig.of(config)
    step = checkpoint.pick_step(workdir, step)
    ours = leaves(model)
    read = _open_checkpoint(workdir, step, ours)
    tokenizer = BpeTokenizer.load(workdir / "tokenizer.json")
    shapes = {name: leaf.their_shape for leaf in ours for name in leaf.names}
    # As transformers: layer after layer, also past the tenth.
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
                del tensor  # a view of the whole parameter, which goes before the next is read
    return model


def _open_checkpoint(workdir: epath.Path, step: int, ours: list[Leaf]) -> Callable[[Leaf], np.ndarray]:
    """A function that reads one parameter of a checkpoint. Both raise InputError where it is damaged."""
    folder = workdir / "checkpoints" / str(step) / "default"
    folder = folder if "://" in str(folder) else folder.absolute()
    handler = ocp.PyTreeCheckpointHandler()

    @contextmanager
    def reading() -> Iterator[None]:
        try:
            yield
        except InputError as error:
            raise InputError(f"{workdir}: the checkpoint of step {step} cannot be read: {error}") from error
        except Exception as error:  # whatever Orbax and TensorStore make of damaged bytes
            raise InputError(
                f"{workdir}: the checkpoint of step {step} cannot be read: {retries.cause(error)}"
            ) from error

    def restore(*path: str) -> np.ndarray:
        item: dict[str, Any] = {}
        _put(item, path, ocp.RestoreArgs(restore_type=np.ndarray))
        args = ocp.args.PyTreeRestore(item, restore_args=item, partial_restore=True)
        restored = retries.read(lambda: handler.restore(folder, args=args), ".".join(path))
        for key in path:
            restored = restored[key]
        gc.collect()  # Orbax leaves cycles behind, which would hold the array for longer than we do
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
            if leaf in prints and _fingerprint(array) != prints[leaf]:
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
    """Ours, with a decoder to Braille text: without one transformers would put spaces between tokens."""
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


# Both


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
