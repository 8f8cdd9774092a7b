"""Import and export against transformers: the same directories, the same logits, the same continuations."""

import json
import os
import resource
import shutil
import struct

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from absl import logging
from etils import epath

from jpeglm.convert import from_huggingface, sentencepiece, to_huggingface
from jpeglm.core import checkpoint
from jpeglm.core.errors import InputError
from jpeglm.core.workdir import read_config
from jpeglm.data.tokenizers import BOS, EOS
from jpeglm.data.tokenizers.bpe import BpeTokenizer
from jpeglm.sample.engine import Engine, Request
from jpeglm.sample.settings import Settings
from tests.commands import run
from tests.convert import llamas
from tests.convert.test_sentencepiece import train

SHAPES = pytest.mark.parametrize("shape", list(llamas.SHAPES))
TOKENS = np.random.default_rng(0).integers(0, 320, (2, 200)).astype(np.int32)


@pytest.fixture(scope="module")
def workdir(theirs, tmp_path_factory):
    target = tmp_path_factory.mktemp("ours") / "run"
    from_huggingface.import_model(theirs, target, llamas.run_config())
    return target


def import_into(tmp_path, source):
    from_huggingface.import_model(source, tmp_path / "run", llamas.run_config())
    return tmp_path / "run"


def export_into(tmp_path, workdir, dtype="float32", step=None):
    to_huggingface.export_model(epath.Path(workdir), tmp_path / "export", step, dtype)
    return tmp_path / "export"


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Import


@SHAPES
@pytest.mark.parametrize("how", ["safetensors", "shards", "bin", "bin_shards"])
def test_an_imported_model_has_transformers_logits(shape, how, tmp_path, text):
    model = llamas.make(shape)
    source = llamas.save(model, tmp_path / "llama", how, text)
    expected_files = {"safetensors": 1, "shards": 7 if shape == "multi_head" else 11, "bin": 0, "bin_shards": 0}
    assert len(list(source.glob("*.safetensors"))) == expected_files[how]
    ours = llamas.logits(import_into(tmp_path, source), TOKENS)
    expected = llamas.their_logits(model, TOKENS)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", ["safetensors", "bin"])
def test_half_precision_weights_are_imported_exactly(dtype, how, tmp_path, text):
    model = llamas.make().to(dtype)
    _, params = llamas.restored(import_into(tmp_path, llamas.save(model, tmp_path / "llama", how, text)))
    up = model.model.layers[1].mlp.up_proj.weight.float().detach().numpy()
    assert params["layers"]["w_up"].dtype == np.float32
    np.testing.assert_array_equal(params["layers"]["w_up"][1], up.T)
    np.testing.assert_array_equal(params["embedding"][:320], model.model.embed_tokens.weight.float().detach().numpy())


def test_a_tied_head_becomes_a_copy_of_the_embedding(tmp_path, text):
    model = llamas.make(tie_word_embeddings=True)
    source = llamas.save(model, tmp_path / "llama", "safetensors", text)
    assert "lm_head.weight" not in safetensors.torch.load_file(source / "model.safetensors")
    workdir = import_into(tmp_path, source)
    np.testing.assert_allclose(
        llamas.logits(workdir, TOKENS), llamas.their_logits(model, TOKENS), atol=1e-4, rtol=1e-4
    )
    export = export_into(tmp_path, workdir)
    assert json.loads((export / "config.json").read_text())["tie_word_embeddings"] is False


def test_the_workdir_has_the_files_of_a_run_and_the_config_of_the_model(workdir, theirs):
    assert sorted(path.name for path in workdir.iterdir()) == ["checkpoints", "config.json", "tokenizer.json"]
    assert [path.name for path in workdir.parent.iterdir()] == ["run"]
    config = read_config(epath.Path(workdir))
    assert (config.model.num_layers, config.model.width, config.model.head_dim) == (3, 64, 16)
    assert (config.model.rope_theta, config.model.norm_eps) == (10_000.0, 1e-5)
    assert config.codec.width == 32 and config.data.seq_len == 256  # the config file's
    assert (workdir / "tokenizer.json").read_text() == (theirs / "tokenizer.json").read_text()


def test_a_sentencepiece_model_goes_before_a_tokenizer_json(theirs, tmp_path):
    source = llamas.copy(theirs, tmp_path / "llama")
    every_pair = np.stack(np.meshgrid(np.arange(256), np.arange(256)), -1).astype(np.uint8).tobytes()
    (source / "tokenizer.model").write_bytes(train([every_pair[i : i + 256] for i in range(0, 1 << 17, 256)]))
    found = from_huggingface.read_tokenizer(source)
    assert found.text == sentencepiece.convert(source / "tokenizer.model")
    assert found.vocab_size == 320 and found.text != (source / "tokenizer.json").read_text()


@SHAPES
def test_older_configs_and_rotary_tables_mean_the_same(shape, tmp_path, text):
    """Before transformers 5 the base was rope_theta; before 4.31 each layer's frequencies were stored."""
    model = llamas.make(shape)
    source = llamas.save(model, tmp_path / "llama", "bin", text)
    content = json.loads((source / "config.json").read_text())
    theta = content.pop("rope_parameters")["rope_theta"]
    (source / "config.json").write_text(json.dumps(content | {"rope_theta": theta, "rope_scaling": None}))
    table = model.model.rotary_emb.inv_freq.bfloat16()
    tables = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": table for layer in range(3)}
    torch.save(model.state_dict() | tables, source / "pytorch_model.bin")
    workdir = import_into(tmp_path, source)
    assert read_config(epath.Path(workdir)).model.rope_theta == theta
    tables["model.layers.1.self_attn.rotary_emb.inv_freq"] = table / 2
    torch.save(model.state_dict() | tables, source / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"model\.layers\.1\.self_attn\.rotary_emb\.inv_freq does not fit rope_theta"):
        from_huggingface.import_model(source, tmp_path / "other", llamas.run_config())


def test_a_config_for_fewer_positions_than_a_chunk_is_told(theirs, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(logging, "warning", lambda message, *values: told.append(message % values))
    config = llamas.run_config()
    from_huggingface.read_model_config(theirs, config)
    assert not told
    config.data.seq_len = 4096
    from_huggingface.read_model_config(theirs, config)
    assert "512 positions, data.seq_len is 4096" in told[0]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "mistral", "architectures": ["MistralForCausalLM"]}, "MistralForCausalLM"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling=.*linear"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}}, "rope_parameters=.*llama3"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"sliding_window": 4096}, "sliding_window=4096"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"eos_token_id": 7}, "eos_token_id=7"),
        ({"vocab_size": 400}, "vocab_size=400.* 320 entries"),
        ({"hidden_size": None}, "hidden_size=None"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers='3'"),
        ({"num_key_value_heads": 3}, "num_kv_heads=3"),
        ({"num_hidden_layers": 4}, r"model\.layers\.3\..* is missing.*files hold 3"),
        ({"hidden_size": 2, "head_dim": None}, "hidden_size=2 is less than num_attention_heads=4"),
        ({"num_hidden_layers": 2}, r"model\.safetensors: tensor model\.layers\.2\..* has no place"),
        ({"intermediate_size": 97}, r"mlp\.\w+_proj\.weight is \[.*96.*\], config.json asks for \[.*97"),
        ({"tie_word_embeddings": True}, "lm_head.weight differs"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_our_model_cannot_express_is_refused_by_name(changes, named, theirs, tmp_path):
    source = llamas.copy(theirs, tmp_path / "llama")
    change_json(source / "config.json", **changes)
    with pytest.raises(InputError, match=named):
        import_into(tmp_path, source)
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]


def test_weights_in_other_dtypes_are_refused_by_name(tmp_path, text):
    source = llamas.save(llamas.make().double(), tmp_path / "llama", "safetensors", text)
    with pytest.raises(InputError, match="tensor .* is float64, none of float32"):
        import_into(tmp_path, source)
    state = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in llamas.make().state_dict().items()}
    safetensors.torch.save_file(state, source / "model.safetensors")
    with pytest.raises(InputError, match="tensor .* is F8_E4M3"):
        import_into(tmp_path, source)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_malicious_bin_is_refused_and_nothing_is_executed(tmp_path, text):
    source = llamas.save(llamas.make(), tmp_path / "llama", "bin", text)
    state = llamas.make().state_dict()
    torch.save(state | {"extra": Hostile(tmp_path / "marker")}, source / "pytorch_model.bin")
    with pytest.raises(InputError, match="refused: the file asks for .*system"):
        import_into(tmp_path, source)
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]


def first_shard(folder):
    return min(folder.glob("*.safetensors"))


def overwrite_header(path, change):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = change(json.loads(data[8 : 8 + length]))
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def shift_offsets(header):
    for value in header.values():
        if "data_offsets" in value:
            value["data_offsets"] = [offset + 8 for offset in value["data_offsets"]]
    return header


def move_in_index(folder):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    names = sorted(set(index["weight_map"].values()))
    index["weight_map"]["model.norm.weight"] = next(x for x in names if x != index["weight_map"]["model.norm.weight"])
    path.write_text(json.dumps(index))


def outside_of_the_folder(folder):
    first_shard(folder).rename(folder.parent / "outside.safetensors")
    path = folder / "model.safetensors.index.json"
    path.write_text(path.read_text().replace(min(json.loads(path.read_text())["weight_map"].values()), "../outside"))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda f: first_shard(f).unlink(), r"model-00001-of-00007\.safetensors is missing"),
        (lambda f: first_shard(f).write_bytes(first_shard(f).read_bytes()[:-1]), "model-00001.*not a whole"),
        (lambda f: first_shard(f).write_bytes(first_shard(f).read_bytes()[:20]), "model-00001.*not a whole"),
        (lambda f: first_shard(f).write_bytes(b""), "model-00001.*not a whole"),
        (lambda f: overwrite_header(first_shard(f), shift_offsets), "model-00001.*not a whole"),
        (move_in_index, r"tensor model\.norm\.weight is .* in model\.safetensors\.index\.json"),
        (outside_of_the_folder, "'../outside' is not the name of a file beside it"),
        (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {'), "index.json: not JSON"),
        (lambda f: (f / "model.safetensors.index.json").write_text("[]"), "not a JSON object"),
        (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "no weight_map"),
        (lambda f: (f / "model.safetensors.index.json").unlink(), "holds no weights"),
        (lambda f: (f / "config.json").unlink(), "cannot read .*config.json"),
        (lambda f: (f / "tokenizer.json").unlink(), "holds no tokenizer"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json: not a tokenizer.json"),
    ],
    ids=[
        "missing shard",
        "truncated numbers",
        "truncated header",
        "empty shard",
        "offsets past the end",
        "tensor in another shard",
        "shard outside of the folder",
        "truncated index",
        "index that is a list",
        "index without its map",
        "no index",
        "no config",
        "no tokenizer",
        "another tokenizer",
    ],
)
def test_damaged_directories_are_one_line_and_leave_nothing(damage, named, sharded, tmp_path):
    source = llamas.copy(sharded, tmp_path / "in" / "llama")
    damage(source)
    with pytest.raises(InputError, match=named) as raised:
        import_into(tmp_path, source)
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_flipped_bit_in_a_bin_is_noticed(tmp_path, text):
    source = llamas.save(llamas.make(), tmp_path / "llama", "bin", text)
    data = bytearray((source / "pytorch_model.bin").read_bytes())
    data[len(data) // 2] ^= 1
    (source / "pytorch_model.bin").write_bytes(data)
    with pytest.raises(InputError, match="pytorch_model.bin: .*Bad CRC"):
        import_into(tmp_path, source)


def test_nothing_is_overwritten(theirs, workdir, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match="run exists"):
        import_into(tmp_path, theirs)
    (tmp_path / "export").write_text("precious")
    with pytest.raises(InputError, match="export exists"):
        export_into(tmp_path, workdir)
    assert (tmp_path / "export").read_text() == "precious"
    (tmp_path / "other.partial").mkdir()
    with pytest.raises(InputError, match="other.partial exists"):
        from_huggingface.import_model(theirs, tmp_path / "other", llamas.run_config())


def test_a_full_disk_is_one_line_and_leaves_nothing(theirs, workdir, tmp_path):
    """Files that may not grow past 50 KB stand for it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(InputError, match=f"cannot write {tmp_path}/run: File too large"):
            import_into(tmp_path, theirs)
        with pytest.raises(InputError, match=f"cannot write {tmp_path}/export: File too large"):
            export_into(tmp_path, workdir)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


# Export


@SHAPES
def test_what_we_export_transformers_loads_with_our_logits(shape, tmp_path, text):
    workdir = import_into(tmp_path, llamas.save(llamas.make(shape), tmp_path / "llama", "safetensors", text))
    export = export_into(tmp_path, workdir)
    model = transformers.LlamaForCausalLM.from_pretrained(export)
    assert model.dtype == torch.float32
    assert model.get_input_embeddings().weight.shape == (320, 64)
    np.testing.assert_allclose(
        llamas.logits(workdir, TOKENS), llamas.their_logits(model, TOKENS), atol=1e-4, rtol=1e-4
    )


def test_a_trained_run_goes_out_and_generates_what_it_generates_here(tiny_run, tmp_path):
    export = export_into(tmp_path, tiny_run)
    model = transformers.LlamaForCausalLM.from_pretrained(export).eval()
    np.testing.assert_allclose(
        llamas.logits(tiny_run, TOKENS), llamas.their_logits(model, TOKENS), atol=1e-4, rtol=1e-4
    )
    config, params = llamas.restored(tiny_run)
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    engine = Engine(config, params, mesh, Settings(max_tokens=64, temperature=0, slots=2), EOS)
    prompts = [np.array([BOS], np.int32), np.concatenate([[BOS], TOKENS[0, :20]]).astype(np.int32)]
    ours = {}
    for written in engine.generate(Request(prompt, np.zeros(2, np.uint32)) for prompt in prompts):
        ours[written.number] = [*prompts[written.number], *written.ids, *([EOS] if written.ended else [])]
    for number, prompt in enumerate(prompts):
        inputs = torch.from_numpy(prompt[None].astype(np.int64))
        # The length is the exported generation config's.
        generated = model.generate(inputs, attention_mask=torch.ones_like(inputs), do_sample=False)[0].tolist()
        assert generated == ours[number]


@pytest.mark.parametrize("how", ["safetensors", "shards", "bin"])
def test_import_and_export_give_back_the_same_tensors(how, tmp_path, text):
    model = llamas.make("grouped_queries")
    export = export_into(tmp_path, import_into(tmp_path, llamas.save(model, tmp_path / "llama", how, text)))
    found, expected = safetensors.torch.load_file(export / "model.safetensors"), model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert BpeTokenizer(text).sha256 == from_huggingface.read_tokenizer(export).sha256


def test_bfloat16_weights_make_the_whole_way_unchanged(tmp_path, text):
    model = llamas.make().bfloat16()
    workdir = import_into(tmp_path, llamas.save(model, tmp_path / "llama", "bin", text))
    export = export_into(tmp_path, workdir, "bfloat16")
    found, expected = safetensors.torch.load_file(export / "model.safetensors"), model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert transformers.LlamaForCausalLM.from_pretrained(export).dtype == torch.bfloat16


def test_export_and_import_give_back_the_same_parameters(tiny_run, tmp_path):
    again = import_into(tmp_path, export_into(tmp_path, tiny_run))
    (config, before), (config_again, after) = llamas.restored(tiny_run), llamas.restored(again)
    assert config == config_again
    real = config.vocab_size  # the padding may differ: it is multiplied with nothing
    before["embedding"], after["embedding"] = before["embedding"][:real], after["embedding"][:real]
    before["head"], after["head"] = before["head"][:, :real], after["head"][:, :real]
    jax.tree.map(np.testing.assert_array_equal, before, after)
    np.testing.assert_array_equal(llamas.logits(tiny_run, TOKENS), llamas.logits(again, TOKENS))
    assert (again / "tokenizer.json").read_text() == (tiny_run / "tokenizer.json").read_text()


def test_shards_are_cut_as_transformers_cuts_them(workdir, theirs, tmp_path, monkeypatch):
    monkeypatch.setattr(to_huggingface, "SHARD_BYTES", 100_000)
    export = export_into(tmp_path, workdir)
    model = transformers.LlamaForCausalLM.from_pretrained(theirs)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="100KB")
    index = "model.safetensors.index.json"
    mine, their = (json.loads((folder / index).read_text()) for folder in (export, tmp_path / "theirs"))
    assert mine["weight_map"] == their["weight_map"]
    assert mine["metadata"]["total_size"] == their["metadata"]["total_size"]
    for path in export.glob("*.safetensors"):
        found, expected = (safetensors.torch.load_file(folder / path.name) for folder in (export, tmp_path / "theirs"))
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    again = transformers.LlamaForCausalLM.from_pretrained(export).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


def test_auto_tokenizer_gives_our_ids_and_text(workdir, tmp_path):
    theirs = transformers.AutoTokenizer.from_pretrained(export_into(tmp_path, workdir))
    ours = BpeTokenizer.load(workdir / "tokenizer.json")
    for data in (
        b"",
        bytes(range(256)),
        b"\xff\xd8" + np.random.default_rng(1).integers(0, 12, 500, np.uint8).tobytes(),
    ):
        braille = "".join(chr(0x2800 + byte) for byte in data)
        ids = theirs(braille, add_special_tokens=False).input_ids
        assert ids == ours.encode(data).tolist()
        assert theirs.decode(ids) == braille
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.unk_token_id, theirs.pad_token_id) == (1, 2, 0, 0)
    assert (len(theirs), theirs.model_max_length) == (320, 256)


def test_a_step_that_was_saved_can_be_named_and_no_other(tiny_run, tmp_path):
    step = checkpoint.pick_step(epath.Path(tiny_run), None)
    export_into(tmp_path, tiny_run, step=step)
    with pytest.raises(InputError, match=f"no checkpoint of step 7; there are {step}"):
        to_huggingface.export_model(epath.Path(tiny_run), tmp_path / "other", 7, "float32")


def test_normalised_queries_and_keys_are_refused(workdir, tmp_path):
    other = llamas.copy(workdir, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["model"]["qk_norm"] = True
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="model.qk_norm=True"):
        export_into(tmp_path, other)


def test_a_damaged_checkpoint_is_one_line_and_leaves_nothing(workdir, tmp_path):
    other = llamas.copy(workdir, tmp_path / "other")
    largest = max((other / "checkpoints").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    with pytest.raises(InputError, match="the checkpoint of step 0 cannot be read"):
        export_into(tmp_path, other)
    shutil.rmtree(largest.parent)
    with pytest.raises(InputError, match="the checkpoint of step 0 cannot be read"):
        export_into(tmp_path, other)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


# Memory


@pytest.mark.slow
@pytest.mark.parametrize("how", ["safetensors", "bin"])
def test_neither_direction_holds_the_checkpoint_in_memory(how, tmp_path):
    """227M parameters, 0.9 GB as float32: what the process itself takes, beside pages of files, stays below."""
    run("tests.convert.peak", "make", str(tmp_path / "llama"), how, "32", "768")
    imported = run("tests.convert.peak", "import", str(tmp_path / "llama"), str(tmp_path / "run"))
    exported = run("tests.convert.peak", "export", str(tmp_path / "run"), str(tmp_path / "export"))
    size = (tmp_path / "export" / "model.safetensors").stat().st_size
    assert size > 900e6
    assert json.loads(imported.stdout)["anonymous"] < 0.4 * size
    assert json.loads(exported.stdout)["anonymous"] < 0.7 * size
