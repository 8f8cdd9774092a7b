"""What an import refuses, in one line: weights that are not finite, numbers out of range, files that say anything."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from jpeglm.convert import from_huggingface
from jpeglm.core import weights as weight_files
from jpeglm.core.errors import InputError
from jpeglm.models.llama import LlamaConfig
from tests.convert import llamas, mutations
from tests.convert.test_huggingface import change_json, import_into


def poison(tensor, *values):
    tensor.view(-1)[-len(values) :] = torch.tensor(values, dtype=tensor.dtype)


@pytest.mark.parametrize(
    ("name", "values", "how", "dtype", "numbers"),
    [
        ("model.embed_tokens.weight", [np.nan], "safetensors", torch.float32, "1 numbers of 20,480"),
        ("lm_head.weight", [np.inf, 1.0, -np.inf], "safetensors", torch.bfloat16, "2 numbers of 20,480"),
        ("model.layers.1.self_attn.q_proj.weight", [np.nan] * 4096, "bin", torch.float16, "4,096 numbers of 4,096"),
        ("model.layers.2.mlp.down_proj.weight", [-np.inf], "shards", torch.float32, "1 numbers of 6,144"),
        ("model.layers.0.post_attention_layernorm.weight", [np.nan, np.inf], "bin_shards", torch.bfloat16, "2 numb"),
        ("model.norm.weight", [np.nan], "bin", torch.float32, "1 numbers of 64"),
    ],
)
def test_weights_that_are_not_finite_are_refused_by_name(name, values, how, dtype, numbers, tmp_path, text):
    model = llamas.make().to(dtype)
    poison(model.state_dict()[name], *values)
    source = llamas.save(model, tmp_path / "llama", how, text)
    with pytest.raises(InputError, match=rf"llama/\S+: tensor {name} holds {numbers}.* that are NaN or infinite$"):
        import_into(tmp_path, source)
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]


@pytest.mark.parametrize("poisoned", ["model.embed_tokens.weight", "lm_head.weight"])
def test_of_a_tied_head_that_is_not_finite_that_is_said_and_no_difference(poisoned, theirs, tmp_path):
    source = llamas.copy(theirs, tmp_path / "llama")
    change_json(source / "config.json", tie_word_embeddings=True)
    state = safetensors.torch.load_file(source / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    poison(state[poisoned], np.nan)
    safetensors.torch.save_file(state, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=f"tensor {poisoned} holds 1 numbers of 20,480 that are NaN or infinite"):
        import_into(tmp_path, source)


SIZES = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads", "head_dim", "max_position_embeddings"]  # fmt: skip


@pytest.mark.parametrize("value", ["3", True, 0, -1, 3.0, 10**10, 10**300, np.nan, np.inf, [3], {}])
@pytest.mark.parametrize("key", SIZES)
def test_a_size_that_is_none_is_refused_by_name(key, value, theirs, tmp_path):
    source = llamas.copy(theirs, tmp_path / "llama")
    change_json(source / "config.json", **{key: value})
    with pytest.raises(InputError, match=rf"config.json: {key}=.{{1,100}} is no whole number from 1 to [\d,]+$"):
        from_huggingface.read_model_config(source, llamas.run_config())


@pytest.mark.parametrize("value", ["1e-5", True, 0, 0.0, -1e-5, np.nan, np.inf, -np.inf, 1e30, 10**400 % 10**350, []])
@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta", "rope_parameters"])
def test_an_eps_or_a_theta_that_cannot_be_one_is_refused_by_name(key, value, theirs, tmp_path):
    source = llamas.copy(theirs, tmp_path / "llama")
    changes = {key: value} if key == "rms_norm_eps" else {"rope_parameters": None, "rope_theta": value}
    if key == "rope_parameters":
        changes, key = {"rope_parameters": {"rope_theta": value}}, "rope_theta"
    change_json(source / "config.json", **changes)
    with pytest.raises(InputError, match=rf"config.json: {key}=.{{1,110}} is no number from [\w.-]+ to [\w.+]+$"):
        from_huggingface.read_model_config(source, llamas.run_config())


@pytest.mark.parametrize(
    "key", ["attention_bias", "mlp_bias", "tie_word_embeddings", "sliding_window", "eos_token_id"]
)
@pytest.mark.parametrize("value", ["false", 0, "", [], 0.0])
def test_what_is_of_another_type_is_not_taken_for_false(key, value, theirs, tmp_path):
    source = llamas.copy(theirs, tmp_path / "llama")
    change_json(source / "config.json", **{key: value})
    with pytest.raises(InputError, match=f"config.json: {key}=.* is not supported"):
        from_huggingface.read_model_config(source, llamas.run_config())


@pytest.mark.parametrize("layers", [4, 1_000, 1 << 20, 10**9])
def test_more_layers_than_the_files_hold_are_refused_before_their_names_are_made(
    layers, theirs, tmp_path, monkeypatch
):
    source = llamas.copy(theirs, tmp_path / "llama")
    change_json(source / "config.json", num_hidden_layers=layers)
    monkeypatch.setattr(from_huggingface, "leaves", None)
    with pytest.raises(
        InputError, match=f"model.layers.3.* is missing.*{layers}|{layers} is no whole number from 1 to"
    ):
        import_into(tmp_path, source)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/", "/etc/passwd", "a/b", "x" * 5000, "a\0b", "\ud800", "llama", " "]
)
@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_an_entry_of_an_index_that_names_no_file_beside_it_is_refused(name, weights, sharded, tmp_path):
    source = llamas.copy(sharded, tmp_path / "llama")
    (source / "llama").mkdir()
    index = json.loads((source / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.norm.weight"] = name
    (source / "model.safetensors.index.json").unlink()
    (source / f"{weights}.index.json").write_text(json.dumps(index))
    words = (
        "is missing; .*index.json names it" if name.strip("./") and "/" not in name else "is not the name of a file"
    )
    with pytest.raises(InputError, match=words) as told:
        weight_files.open_folder(source)
    assert len(str(told.value)) < 700


@pytest.mark.parametrize(
    "places", [None, [], "x", {"model.norm.weight": 3}, {"model.norm.weight": None}, {"a": ["b"]}]
)
def test_an_index_without_a_map_of_names_is_refused(places, sharded, tmp_path):
    source = llamas.copy(sharded, tmp_path / "llama")
    change_json(source / "model.safetensors.index.json", weight_map=places)
    with pytest.raises(InputError, match="index.json: no weight_map from the names of tensors to files"):
        weight_files.open_folder(source)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json", "tokenizer.json"])
@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"[" * 200_000, "not JSON that can be read: too many brackets"),
        (b'{"a":' * 200_000, "not JSON that can be read: too many brackets"),
        (b'{"a": "\xff"}', "not JSON: .*utf-8"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON: .*digits"),
        ("{}".encode("utf-16"), "not JSON"),
        (b"", "not JSON"),
        (b"null", "not a JSON object"),
    ],
    ids=["brackets", "braces", "not UTF-8", "digits", "UTF-16", "empty", "null"],
)
def test_files_that_are_no_json_are_one_line(file, content, named, sharded, tmp_path):
    source = llamas.copy(sharded, tmp_path / "llama")
    (source / file).write_bytes(content)
    with pytest.raises(InputError, match=f"{file}: {named}") as told:
        look_at(source)
    assert "\n" not in str(told.value)


def look_at(source):
    """All of an import but the copying."""
    model = LlamaConfig.of(from_huggingface.read_model_config(source, llamas.run_config()))
    from_huggingface.read_tokenizer(source)
    return from_huggingface._needed(source, weight_files.open_folder(source), model)


def check_mutations(sharded, folder, seeds):
    """Each of the directory's files damaged in turn: an import that begins, or one line. Says how many began."""
    source, began = llamas.copy(sharded, folder / "llama"), 0
    files = ["config.json", "model.safetensors.index.json", "tokenizer.json"]
    whole = {name: (source / name).read_bytes() for name in files}
    for seed in seeds:
        name = files[seed % len(files)]
        (source / name).write_bytes(mutations.mutated(whole[name], seed))
        try:
            look_at(source)
            began += 1
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000, seed
        (source / name).write_bytes(whole[name])
    return began


def test_of_mutated_files_an_import_says_one_line(sharded, tmp_path):
    assert 5 < check_mutations(sharded, tmp_path, range(60)) < 50


@pytest.mark.slow
def test_of_many_mutated_files_an_import_says_one_line(sharded, tmp_path):
    assert check_mutations(sharded, tmp_path, range(1_000, 3_500)) > 100


@pytest.mark.parametrize(
    "changes",
    [{"dropout": 1.0}, {"dropout": 0.1}, {"continuing_subword_prefix": "##"}, {"end_of_word_suffix": "</w>"}],
    ids=str,
)
def test_a_tokenizer_of_random_ids_or_with_affixes_is_refused(changes, theirs, tmp_path):
    source = llamas.copy(theirs, tmp_path / "llama")
    content = json.loads((source / "tokenizer.json").read_text())
    (source / "tokenizer.json").write_text(json.dumps(content | {"model": content["model"] | changes}))
    with pytest.raises(InputError, match=f"its model has a {next(iter(changes))}, which is not supported"):
        from_huggingface.read_tokenizer(source)


def test_a_tokenizer_that_truncates_or_pads_gives_every_document_whole(theirs, tmp_path):
    source = llamas.copy(theirs, tmp_path / "llama")
    plain = from_huggingface.read_tokenizer(source)
    change_json(
        source / "tokenizer.json",
        truncation={"direction": "Right", "max_length": 400, "strategy": "LongestFirst", "stride": 0},
        padding={"strategy": {"Fixed": 600}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                 "pad_type_id": 0, "pad_token": "<unk>"},
    )  # fmt: skip
    document = np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes()
    ids = from_huggingface.read_tokenizer(source).encode(document)
    assert ids.tolist() == plain.encode(document).tolist() and len(ids) > 600
