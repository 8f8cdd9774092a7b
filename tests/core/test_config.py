"""Every value of a config has a range; what lies outside is one line that names the key, before anything is done."""

import importlib
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from flax import nnx
from ml_collections import ConfigDict
from PIL import Image

from jpeglm.__main__ import commands
from jpeglm.core import config as config_lib
from jpeglm.core import distributed, ranges
from jpeglm.core.errors import Diverged, InputError
from jpeglm.data import batches
from jpeglm.data.units import heldout_units
from jpeglm.models import llama, llama_config
from jpeglm.prepare import plan
from jpeglm.tables import make
from tests.commands import ROOT
from tests.tiny_clips_config import get_config as clips
from tests.tiny_config import get_config

NAN, INF = float("nan"), float("inf")
WHOLE = [0.5, NAN, INF, "1", None, True, (1,)]  # what is no whole number
REAL = [NAN, INF, -INF, 1e39, 10**400, "1", None, True]  # what float32 has not, or is no number
COUNT = [*WHOLE, 0, -1, 2**31, 10**30]
LENGTH = [*WHOLE, 1, 0, -1, 2**24 + 1]
SEED = [*WHOLE, -1, 2**32, 2**32 + 1]
NOT_NEGATIVE = [*WHOLE, -1, 2**31]
POSITIVE = [*REAL, 0.0, -1.0, 1e-40]  # 1e-40 is 0 on a device
SHARE = [*REAL, -0.1, 1.0, 0.99999999999]  # which is 1 in float32
SWITCH = [0, 1, "True", None]
TEXT = [0, None, ("a",)]
# What no run may have, by key.
BAD = {
    "seed": SEED,
    "platform": ["cuda", "CPU", *TEXT],
    "deterministic": SWITCH,
    "steps": COUNT,
    "init_from": TEXT,
    "watchdog": [*WHOLE, -1, 10**10],
    "profile": NOT_NEGATIVE,
    "codec.name": ["png", None, 0],
    "codec.height": [*WHOLE, 0, -1, 65_501, 10**5000],
    "codec.width": [*WHOLE, 0, -1, 65_501],
    "codec.mode": ["CMYK", None],
    "codec.quality": [*WHOLE, 0, 101],
    "tokenizer.name": ["sentencepiece", None, 0],
    "tokenizer.vocab_size": [*WHOLE, 0, 258, 65_537],
    "tokenizer.documents": COUNT,
    "data.path": TEXT,
    "data.seq_len": LENGTH,
    "data.verify": SWITCH,
    "data.shards": [*COUNT, 100_000],
    "data.holdout": [*REAL, 0, -1, 1.5, 2.0**31],
    "data.background": ["grey", "White", None, 0],
    "data.augment": NOT_NEGATIVE,
    "data.stride": NOT_NEGATIVE,
    "data.seed": SEED,
    "model.name": ["gpt", None, 0],
    "model.num_layers": [*COUNT, 10**9],
    "model.width": COUNT,
    "model.num_heads": COUNT,
    "model.num_kv_heads": COUNT,
    "model.head_dim": [*COUNT, 7],
    "model.ffn_width": COUNT,
    "model.norm_eps": POSITIVE,
    "model.rope_theta": [*REAL, 0.0, -1.0, 0.5],
    "model.qk_norm": SWITCH,
    "model.mask_documents": SWITCH,
    "model.dtype": ["float16", "int8", None],
    "model.remat": ["some", None, True],
    "model.attention": ["flash", None],
    "model.quantise": ["int4", "", None, 8, True],
    "task.name": ["classify", None, 0],
    "optim.batch_size": COUNT,
    "optim.accumulate": [*COUNT, 3, 16],
    "optim.lr": [*REAL, -1.0],
    "optim.warmup_steps": [*NOT_NEGATIVE, 20],
    "optim.final_lr_ratio": [*REAL, -0.1, 1.1],
    "optim.b1": SHARE,
    "optim.b2": SHARE,
    "optim.eps": POSITIVE,
    "optim.weight_decay": [*REAL, -0.1],
    "optim.clip_norm": POSITIVE,
    "optim.z_loss": [*REAL, -1e-4],
    "mesh.data": [*COUNT, -2],
    "mesh.fsdp": [*COUNT, -2],
    "mesh.context": [*COUNT, -2],
    "mesh.tensor": [*COUNT, -2],
    "eval.every": COUNT,
    "eval.batches": COUNT,
    "checkpoint.every": COUNT,
    "checkpoint.keep": COUNT,
    "checkpoint.keep_every": NOT_NEGATIVE,
    "log.every": COUNT,
}
BAD = {key: [value for value in values if not (key[:5] == "mesh." and value == -1)] for key, values in BAD.items()}
BAD_OF_TABLES = {
    "workdir": TEXT,
    "platform": ["cuda"],
    "num": [*COUNT, 1],
    "ratios": [(), 0.5, (0.5, 1.0), (0.5, NAN), (-0.1,), (INF,), ("0.5",), (None,), None],
    "rows": [(), "trained", (1,), None],
    "ngram_tokens": NOT_NEGATIVE,
    "seed": SEED,
    "sampling.max_tokens": LENGTH,
    "sampling.temperature": [*REAL, -1.0, 1e-31, 1e31],
    "sampling.top_k": NOT_NEGATIVE,
    "sampling.top_p": [*REAL, 0.0, -0.1, 1.1, 1e-40],
    "sampling.slots": COUNT,
}


def changed(config: ConfigDict, **changes: object) -> ConfigDict:
    """The config with other values, of other types too; keys with dots as "optim__lr"."""
    tree = config.to_dict()
    for key, value in changes.items():
        *sections, last = key.replace("__", ".").split(".")
        section = tree
        for name in sections:
            section = section[name]
        section[last] = value
    return ConfigDict(tree, convert_dict=True)


def table_config() -> ConfigDict:
    return config_lib.load("configs/eval/demo.py")


def line_of(check, config) -> str:
    with pytest.raises(InputError) as caught:
        check(config)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    return str(caught.value)


def test_every_key_has_a_range_and_every_range_a_key():
    keys = set(ranges.flat(config_lib.base().to_dict()))
    of_runs = set(config_lib.allowed(ranges.flat(config_lib.base().to_dict())))
    assert {key for key in keys if not key.startswith("codec.")} == of_runs
    assert keys == set(BAD)
    keys = set(ranges.flat(table_config().to_dict()))
    assert keys <= set(config_lib.TABLE)
    assert set(llama.REMAT) == set(llama_config.REMAT) == set(llama_config.LlamaConfig.REMAT_POLICIES)
    assert set(distributed.PLATFORMS) == set(config_lib.PLATFORMS)


@pytest.mark.parametrize("key", BAD)
def test_a_value_out_of_range_is_one_line_that_begins_with_its_key(key):
    for value in BAD[key]:
        line = line_of(config_lib.check, changed(get_config(), **{key: value}))
        assert line.startswith(f"config.{key}") or (key.startswith("codec.") and "config.codec" in line), (value, line)


@pytest.mark.parametrize("key", BAD_OF_TABLES)
def test_a_value_of_a_table_out_of_range_is_one_line_that_begins_with_its_key(key):
    for value in BAD_OF_TABLES[key]:
        assert line_of(make.check, changed(table_config(), **{key: value})).startswith(f"config.{key}"), value


@pytest.mark.parametrize(
    "key, value, line",
    [
        ("optim.lr", NAN, "config.optim.lr=nan: a finite number from 0"),
        ("optim.lr", 10**400, f"config.optim.lr=1{'0' * 76}...: a finite number from 0"),
        ("optim.b2", 0.99999999999, "config.optim.b2=0.99999999999: a finite number from 0 to below 1"),
        ("optim.final_lr_ratio", -0.1, "config.optim.final_lr_ratio=-0.1: a finite number from 0 to 1"),
        ("checkpoint.keep", 0, "config.checkpoint.keep=0: a whole number from 1 to 2,147,483,647"),
        ("eval.batches", 0, "config.eval.batches=0: a whole number from 1 to 2,147,483,647"),
        ("eval.every", True, "config.eval.every=True: a whole number from 1 to 2,147,483,647"),
        ("log.every", "10", "config.log.every='10': a whole number from 1 to 2,147,483,647"),
        ("steps", None, "config.steps=None: a whole number from 1 to 2,147,483,647"),
        ("seed", 2**32 + 1, "config.seed=4294967297: a whole number from 0 to 4,294,967,295"),
        ("mesh.data", 0, "config.mesh.data=0: a whole number from 1 to 2,147,483,647, or -1"),
        ("tokenizer.vocab_size", 65_537, "config.tokenizer.vocab_size=65537: a whole number from 259 to 65,536"),
        ("model.remat", "some", "config.model.remat='some': one of 'none', 'full', 'attention'"),
        ("codec.quality", 0, "config.codec.quality: 0 is not within 1 to 100"),
        ("codec.quality", "25", "config.codec.quality='25': a whole number of at most 32 bits"),
        (
            "codec.height",
            10**5000,
            "config.codec.height=(a number of thousands of digits): a whole number of at most 32 bits",
        ),
        (
            "data.holdout",
            1.5,
            "config.data.holdout=1.5: a fraction above 0 and below 1, or a whole number from 1 to 2,147,483,647",
        ),
        ("optim.accumulate", 3, "config.optim.accumulate=3 does not divide config.optim.batch_size=8"),
        ("optim.warmup_steps", 20, "config.optim.warmup_steps=20: fewer than config.steps=20 are needed"),
        ("model.num_kv_heads", 3, "config.model.num_heads=4 is no multiple of num_kv_heads=3"),
        ("model.head_dim", 7, "config.model.head_dim=7 is odd; rotary embedding turns pairs"),
        ("optim.learning_rate", 1, "config.optim.learning_rate: no such key; did you mean config.optim.lr?"),
        ("optim", {"lr": 1.0}, "config.optim.batch_size is missing: a whole number from 1 to 2,147,483,647"),
        ("codec", {"height": 32}, "config.codec.name is missing: one of 'jpeg', 'avc'"),
    ],
    ids=lambda value: "large" if isinstance(value, int) and value > 2**64 else None,
)
def test_the_line_says_key_value_and_range(key, value, line):
    assert line_of(config_lib.check, changed(get_config(), **{key: value})) == line


GOOD = {
    "seed": [0, 2**31, 2**32 - 1],
    "optim.lr": [1e-8, 1, 1e30],
    "optim.b1": [0, 0.0, 0.999999],
    "optim.clip_norm": [1e9],
    "optim.warmup_steps": [0, 19],
    "optim.accumulate": [1, 2, 4, 8],
    "data.holdout": [1e-9, 0.5, 1, 20.0, 1_000],
    "data.seed": [2**32 - 1],
    "checkpoint.keep_every": [0],
    "watchdog": [0],
    "mesh.tensor": [-1, 1, 4_096],
    "model.num_kv_heads": [1, 2, 4],
    "tokenizer.vocab_size": [259, 65_536],
}


def test_the_ends_of_the_ranges_are_allowed():
    for key, values in GOOD.items():
        for value in values:
            config_lib.check(changed(get_config(), **{key: value}))
    config_lib.check(clips())
    for temperature in (0, 0.0, 1e-30, 1, 1e30):
        config_lib.check_table(changed(table_config(), sampling__temperature=temperature))


def test_configs_that_ship_are_allowed():
    for path in sorted(ROOT.glob("configs/*.py")):
        config_lib.check(config_lib.load(str(path)))
    for path in sorted(ROOT.glob("configs/eval/*.py")):
        config_lib.check_table(config_lib.load(str(path)))
    for path in sorted(ROOT.glob("pretrained/*/config.json")):
        assert config_lib.parse(path, path.read_bytes()).codec.height == 32


def test_seeds_that_are_allowed_are_told_apart():
    seeds = (0, 1, 2, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)
    for seed in seeds:
        config_lib.check(changed(get_config(), seed=seed))
        batches.grain.MapDataset.range(4).seed(seed).shuffle()[0]  # the order of chunks takes it too
    keys = {tuple(jax.random.key_data(nnx.Rngs(params=seed).params()).tolist()) for seed in seeds}  # of the parameters
    assert len(keys) == len(seeds)


############################ Files ############################

FILES = {  # content -> the line, after the name of the file
    "def get_config(:\n    pass": ", line 1: SyntaxError: invalid syntax",
    "import math\nimport nowhere": ", line 2: ModuleNotFoundError: No module named 'nowhere'",
    "def get_config():\n    return {'steps': 1}": ": get_config() gives dict, not a ConfigDict as base() does",
    "def get_config():\n    pass": ": get_config() gives NoneType, not a ConfigDict as base() does",
    "def get_config():\n    return 3": ": get_config() gives int, not a ConfigDict as base() does",
    "x = 1": ": it has no get_config()",
    "": ": it has no get_config()",
    "raise RuntimeError('no')": ", line 1: RuntimeError: no",
    "\n\nassert False": ", line 3: AssertionError: ",
    "import sys\nsys.exit(0)": ", line 2: SystemExit: 0",
    "def get_config():\n    return get_config()": ", line 2: RecursionError: maximum recursion depth exceeded",
    "def get_config(a):\n    pass": ": TypeError: get_config() missing 1 required positional argument: 'a'",
    "from jpeglm.core.config import base\ndef get_config():\n    c = base()\n    c.optim.lrr = 1\n    return c": (
        ', line 4: AttributeError: \'Key "lrr" does not exist and cannot be added since the config is locked.'
    ),
    "from jpeglm.core.config import base\ndef get_config():\n    c = base()\n    c.steps = 'x'\n    return c": (
        ", line 4: TypeError: Could not override field 'steps' (reference). x is of original type <class 'str'> and "
        "cannot be casted to type <class 'int'>"
    ),
    "x = '\udcff'": (
        ", line 1: SyntaxError: (unicode error) 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"
    ),
    "def get_config():\n    open('/no/mine.json')": (
        ", line 2: FileNotFoundError: [Errno 2] No such file or directory: '/no/mine.json'"
    ),
    "true = {\n'seed': true}": ", line 2: NameError: name 'true' is not defined",
}


@pytest.mark.parametrize("content", FILES)
def test_a_file_that_is_no_config_is_one_line_with_its_place(tmp_path, content):
    path = tmp_path / "config.py"
    path.write_bytes(content.encode(errors="surrogateescape"))
    line = line_of(config_lib.load, str(path))
    assert line.startswith(f"{path}{FILES[content]}")
    assert line == f"{path}{FILES[content]}" or "Recursion" in line


def test_what_is_no_file_of_python_is_one_line(tmp_path):
    assert line_of(config_lib.load, "") == "--config=FILE: a Python file with get_config() is needed"
    assert line_of(config_lib.load, "/no.py") == "cannot read the config /no.py: No such file or directory"
    assert line_of(config_lib.load, str(tmp_path)) == f"cannot read the config {tmp_path}: Is a directory"
    line = line_of(config_lib.load, "pretrained/demo/config.json")
    assert line.endswith("config.json: a config is a Python file with get_config(), as configs/jpeglm_demo.py")


def test_a_file_may_define_dataclasses(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from __future__ import annotations\nimport dataclasses\nfrom jpeglm.core.config import base\n"
        "@dataclasses.dataclass\nclass Size:\n    width: int = 64\n"
        "def get_config():\n    config = base()\n    config.model.width = Size().width\n    return config\n"
    )
    assert config_lib.load(str(path)).model.width == 64


def test_a_file_may_take_an_argument(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from jpeglm.core.config import base\ndef get_config(x):\n    c = base()\n    c.steps = int(x)\n    return c"
    )
    assert config_lib.load(f"{path}:7").steps == 7


def stored(**changes: object) -> str:
    return json.dumps(changed(get_config(), **changes).to_dict())


RUNS = {  # what config.json holds -> the line, after the name of the file
    "[" * 200_000: "not a readable config of a run (RecursionError: maximum recursion depth exceeded",
    '{"a":' * 200_000: "not a readable config of a run (RecursionError: maximum recursion depth exceeded",
    stored()[:300]: "not a readable config of a run (JSONDecodeError: ",
    "": "not a readable config of a run (JSONDecodeError: ",
    '{"a": "\udcff"}': "not a readable config of a run (UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff",
    "[]": "not the config of a run: list instead of an object",
    "null": "not the config of a run: NoneType instead of an object",
    '{"model": {"num_layers": 1%s}}' % ("0" * 5000): "not a readable config of a run (ValueError: Exceeds the limit",
    stored(model__num_layers=10**9): "config.model.num_layers=1000000000: a whole number from 1 to 10,000",
    stored(model__norm_eps=NAN): "config.model.norm_eps=nan: a finite number above 0",
    stored(model__rope_theta=-INF): "config.model.rope_theta=-inf: a finite number from 1",
    stored(steps=1.5): "not the config of a run: Could not override field 'steps'",
    stored(steps=None): "config.steps=None: a whole number from 1",
    stored(model=3): "not the config of a run: config.model is a section",
    stored(model__heads=3): "not the config of a run: config.model.heads: no such key",
    stored(codec={"name": "png"}): "config.codec.name='png': one of 'jpeg', 'avc'",
    stored(codec=["avc"]): "not the config of a run: config.codec is a section",
    stored(seed={"a": 1}): "not the config of a run: config.seed.a: no such key",
}


@pytest.mark.parametrize("content", RUNS, ids=range(len(RUNS)))
def test_a_damaged_config_of_a_run_is_one_line(tmp_path, content):
    path = tmp_path / "config.json"
    line = line_of(lambda text: config_lib.parse(path, text), content.encode(errors="surrogateescape"))
    assert line.startswith(f"{path}: {RUNS[content]}")


def test_the_config_of_an_older_run_takes_the_defaults_of_newer_keys():
    tree = get_config().to_dict()
    del tree["data"]["augment"], tree["deterministic"], tree["model"]["attention"], tree["model"]["name"], tree["task"]
    assert config_lib.parse("config.json", json.dumps(tree)).to_dict() == get_config().to_dict()
    assert config_lib.parse("config.json", json.dumps(clips().to_dict())).to_dict() == clips().to_dict()


############################ Hints ############################

HINTS = {
    "optim.learning_rate": "optim.lr",
    "optim.lrr": "optim.lr",
    "lr": "optim.lr",
    "learning-rate": "optim.lr",
    "optim.beta2": "optim.b2",
    "optim.warmup": "optim.warmup_steps",
    "optim.grad_clip": "optim.clip_norm",
    "optim.gradient_accumulation_steps": "optim.accumulate",
    "batch_size": "optim.batch_size",
    "max_steps": "steps",
    "model.hidden_size": "model.width",
    "model.num_layer": "model.num_layers",
    "model.n_layers": "model.num_layers",
    "model.num_attention_heads": "model.num_heads",
    "model.seq_len": "data.seq_len",
    "data.block_size": "data.seq_len",
    "eval_every": "eval.every",
    "checkpoint.evry": "checkpoint.every",
    "checkpoint.max_to_keep": "checkpoint.keep",
    "codec.qualty": "codec.quality",
    "tokenizer.vocab": "tokenizer.vocab_size",
}


def test_a_misspelt_key_or_one_of_other_programs_hints_at_ours():
    known = ranges.flat(config_lib.base().to_dict())
    assert {key: ranges.did_you_mean(key, known) for key in HINTS} == {
        key: f"; did you mean {ours}?" for key, ours in HINTS.items()
    }
    assert ranges.did_you_mean("zzzzzz", known) == ""


############################ Nothing that is not a number ############################


def test_metrics_are_never_nan(tiny_data):
    manifest = json.loads((tiny_data / "manifest.json").read_text())
    assert math.isfinite(heldout_units(1.0, manifest)["bits_per_byte"])
    for loss in (NAN, INF, -INF, np.float64(0) / 1e999 * NAN):
        with pytest.raises(Diverged, match="the held-out loss is"):
            heldout_units(loss, manifest)


def test_a_split_without_chunks_is_refused(tiny_data, tmp_path):
    manifest = json.loads((tiny_data / "manifest.json").read_text())
    manifest["splits"]["heldout"]["shards"] = []
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=f"{tmp_path} holds no chunks of the split heldout"):
        batches.Chunks(tmp_path, "heldout", 64)


def test_types_of_64_bits_are_switched_off(monkeypatch):
    jax.config.update("jax_enable_x64", True)
    try:
        assert jnp.arange(3.0).dtype == jnp.float64
        distributed.start("cpu")
        assert jnp.arange(3.0).dtype == jnp.float32
    finally:
        jax.config.update("jax_enable_x64", False)


def test_all_commands_can_be_imported_together():
    for name in commands():
        importlib.import_module(f"jpeglm.{name}.__main__")
    assert not {"config", "source", "out", "workdir", "merges"} & set(flags.FLAGS)


############################ A folder whose prepare failed ############################


def small(**changes: object) -> ConfigDict:
    return changed(get_config(), **{"tokenizer__vocab_size": 259, "data__holdout": 1, "data__shards": 1} | changes)


@pytest.mark.parametrize(
    "pictures, change, words",
    [
        (0, {}, "holds no "),
        (0, {"data__seed": 3}, "holds no "),
        (4, {"data__holdout": 4}, "leaves nothing of 4 documents for training"),
        (4, {"tokenizer__vocab_size": 60_000}, "more documents or a smaller vocabulary are needed"),
        (4, {"tokenizer__vocab_size": 60_000, "codec__quality": 90}, "or a smaller vocabulary"),
    ],
)
def test_a_folder_in_which_nothing_could_be_prepared_takes_another_config(
    tmp_path, monkeypatch, pictures, change, words
):
    monkeypatch.setattr(plan, "Pool", InProcess)
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    for number in range(pictures):
        Image.new("L", (32, 32), 40 * number).save(source / f"{number}.png")
    for _ in range(2):  # the same again says the same
        with pytest.raises(InputError, match=words):
            plan.prepare(small(**change), str(source), out, workers=1)
    for number in range(5):
        Image.new("L", (32, 32), 50 * number).save(source / f"{number}.png")
    manifest = plan.prepare(small(), str(source), out, workers=1)
    assert manifest["counts"]["kept"] == 5
    assert manifest["config"]["codec"]["quality"] == 25 and manifest["config"]["data"]["seed"] == 0
    fresh = plan.prepare(small(), str(source), tmp_path / "fresh", workers=1)
    assert manifest == fresh
    assert (out / "refused.jsonl").read_bytes() == b""


class InProcess:
    """A pool without processes."""

    def __init__(self, workers: int):
        pass

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map_unordered(self, function, tasks):
        return [function(*task) for task in tasks]
