"""A tokenizer is one file and one line: plain bytes are prepared, learnt and sampled, as a BPE is."""

import json
import re
import shutil
from pathlib import Path

import pytest
from etils import epath

from jpeglm.core import config as config_lib
from jpeglm.core.config import base
from jpeglm.core.errors import InputError
from jpeglm.core.registry import CODECS, TOKENIZERS
from jpeglm.core.workdir import read_config
from jpeglm.data import batches, records, tokenizers
from jpeglm.prepare import plan, verify
from jpeglm.sample.sampler import Sampler
from jpeglm.sample.settings import Settings
from tests.commands import run
from tests.data.tokenizers.plain import PlainTokenizer
from tests.data.tokenizers.plain_config import get_config
from tests.tiny_config import get_config as bpe_config

CONFIG = "tests/data/tokenizers/plain_config.py"


@pytest.fixture(scope="module")
def pictures(tiny_data, tmp_path_factory) -> Path:
    """60 digits."""
    folder = tmp_path_factory.mktemp("digits")
    codec = CODECS.of(bpe_config())
    for number, document in enumerate(batches.documents(str(tiny_data), "train", 60)):
        codec.decode(document).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def prepared(pictures, tmp_path_factory) -> Path:
    """By two processes, which have no more of it than the registry of this one."""
    out = tmp_path_factory.mktemp("plain") / "data"
    plan.prepare(get_config(), str(pictures), out, workers=2, unit_items=20)
    return out


def test_no_file_but_its_own_the_registry_and_those_about_bpe_files_name_the_bpe():
    named = {
        path.relative_to("jpeglm").as_posix()
        for path in Path("jpeglm").rglob("*.py")
        if re.search(r"\bBpeTokenizer\b|tokenizers\.bpe\b|\bbpe\.", path.read_text())
    }
    assert {name for name in named if not name.startswith("convert/")} == {
        "core/registry.py",
        "data/tokenizers/bpe.py",
    }


def test_documents_of_its_data_come_back_and_are_verified(prepared):
    manifest = verify.verify(prepared, workers=2)
    assert manifest["config"]["tokenizer"] == {"name": "plain", "vocab_size": 259}
    documents = list(batches.documents(str(prepared), "train"))
    assert len(documents) == 40
    split = manifest["splits"]["train"]
    assert split["tokens"] == split["bytes"] + 2 * len(documents) == sum(map(len, documents)) + 2 * len(documents)


def test_a_run_with_another_tokenizer_does_not_take_its_data(prepared):
    config = bpe_config()
    config.data.seq_len = 512
    with pytest.raises(InputError, match="prepared with tokenizer.name=plain, the config says bpe"):
        batches.check_fits(records.read_manifest(prepared), config)
    with pytest.raises(InputError, match="was prepared with config.tokenizer.name=plain, now bpe is asked for"):
        plan.prepare(config, json.loads((prepared / "manifest.json").read_text())["source"], prepared)


def test_a_run_with_it_is_trained_and_samples_whole_files_with_the_grammar(prepared, tmp_path):
    workdir = epath.Path(tmp_path / "run")
    done = run("jpeglm.train", f"--config={CONFIG}", f"--config.data.path={prepared}", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert isinstance(tokenizers.load(workdir, read_config(workdir)), PlainTokenizer)
    sampler = Sampler.load(workdir, Settings(512, slots=2))
    originals = list(batches.documents(str(prepared), "heldout", 2))
    for completion in sampler.complete(originals, 0.5):
        prompt, _ = sampler.codec.cut(originals[completion.index], 0.5)
        assert completion.document.startswith(prompt) and sampler.codec.is_valid(completion.document)
        assert completion.tokens == len(completion.document) - len(prompt)


############################ What was written before tokenizers had names ############################


def test_a_config_of_an_older_version_asks_for_the_first_tokenizer():
    old = bpe_config().to_dict()
    del old["tokenizer"]["name"]
    assert config_lib.parse("config.json", json.dumps({"version": 1} | old)).to_dict() == bpe_config().to_dict()
    assert TOKENIZERS.default == base().tokenizer.name == "bpe"
    with pytest.raises(InputError, match=r"config\.tokenizer\.name='words': one of 'bpe', 'plain'$"):
        config_lib.parse("config.json", json.dumps({"version": 2} | old | {"tokenizer": {"name": "words"}}))


def test_data_that_was_prepared_before_fits_and_is_not_made_again(tiny_data, tmp_path):
    before = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    manifest = json.loads((before / "manifest.json").read_text())
    del manifest["config"]["tokenizer"]["name"]
    (before / "manifest.json").write_text(json.dumps(manifest))
    read = records.read_manifest(before)
    assert read == records.read_manifest(tiny_data)
    batches.check_fits(read, bpe_config())
    for ours, theirs in zip(
        batches.documents(before, "heldout"), batches.documents(tiny_data, "heldout"), strict=True
    ):
        assert ours == theirs
    assert plan.prepare(bpe_config(), manifest["source"], before, workers=1) == read
    assert verify.verify(before, workers=1) == read
