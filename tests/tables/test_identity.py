"""What a table keeps between two starts is kept by content: made again where that changed, and only there.

Nothing is sampled here: a network's files are flat ones. What is counted is who was asked again.
"""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from jpeglm.core import checkpoint, sharding
from jpeglm.core.workdir import read_config
from jpeglm.data import batches, records
from jpeglm.data.codecs.jpeg import JpegCodec
from jpeglm.data.tokenizers import bpe
from jpeglm.data.tokenizers.bpe import BpeTokenizer
from jpeglm.models.llama_config import LlamaConfig
from jpeglm.models.networks import laid_out
from jpeglm.tables import make, methods, ngram
from jpeglm.tables.context import Context
from jpeglm.tables.methods import Completed, networks
from jpeglm.tables.methods.flat import with_flat_blocks
from tests.fid.projection import Projection
from tests.tables.test_make import make_config

NUM = 2
ROWS = ("trained", "pretrained", "untrained", "random_bytes", "flat", "training_mean", "training_picture")
NETWORKS = {"trained", "pretrained", "untrained"}
TRAINING = {"training_mean", "training_picture"}


def copied(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target, ignore=shutil.ignore_patterns("programs", "tensorboard")))


def with_other_weights(workdir: Path) -> None:
    """Puts other parameters under the same step, saved at the same time by what the checkpoint says."""
    path = epath.Path(workdir)
    config, step = read_config(path), checkpoint.pick_step(path, None)
    mesh = sharding.make_mesh({}, jax.devices()[:1])
    params = checkpoint.restore_model(path, step, laid_out(LlamaConfig.of(config), mesh))
    saved = workdir / "checkpoints" / str(step) / "_CHECKPOINT_METADATA"
    time_of_saving = saved.read_bytes()
    shutil.rmtree(workdir / "checkpoints")
    saver = checkpoint.Saver(path, config.checkpoint)
    saver.save(step, {"params": jax.tree.map(lambda x: x + 1, params)})
    saver.close()
    saved.write_bytes(time_of_saving)


def rewrite(data: Path, documents: dict[str, list[bytes]], learnt: BpeTokenizer) -> None:
    """Packs other documents into shards of the same names, as `jpeglm.prepare` would."""
    learnt.save(data / "tokenizer.json")
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["tokenizer_sha256"] = learnt.sha256
    for split, section in manifest["splits"].items():
        parts = np.array_split(np.arange(len(documents[split])), len(section["shards"]))
        for entry, part in zip(section["shards"], parts, strict=True):
            encoded = [learnt.encode(documents[split][place]) for place in part]
            entry |= records.write_shard(data / entry["name"], encoded, manifest["config"]["data"]["seq_len"])
        section |= {key: sum(entry[key] for entry in section["shards"]) for key in ("documents", "chunks", "tokens")}
    (data / "manifest.json").write_text(json.dumps(manifest))


def documents_of(data: Path) -> dict[str, list[bytes]]:
    return {split: list(batches.documents(str(data), split)) for split in records.SPLITS}


class Table:
    """A table made again and again, and who was asked for what."""

    def __init__(self, run: Path, data: Path, out: Path, pretrained: Path, monkeypatch: pytest.MonkeyPatch):
        self.config = make_config(run, data, out)
        self.config.pretrained = str(pretrained)
        self.config.num, self.config.ratios, self.config.rows = NUM, (0.5,), ROWS
        self.asked: list[str] = []
        self.extractor = Projection()

        def complete(context, row, originals, ratio, grammar=False):
            self.asked.append(row)
            flat = with_flat_blocks(context.codec, originals, ratio)
            wrote = (np.ones(NUM, bool), np.ones(NUM, np.int64)) if row in networks() else (None, None)
            return Completed(flat, *wrote, np.zeros(NUM) if grammar else None)

        fit = ngram.fit_and_score
        monkeypatch.setattr(methods, "complete", complete)
        monkeypatch.setattr(Context, "check_prompts", lambda *_: None)
        monkeypatch.setattr(ngram, "fit_and_score", lambda *a: self.asked.append("ngram") or fit(*a))

    def make(self) -> set[str]:
        """The rows that are made again."""
        self.asked.clear()
        self.extractor.seen = 0
        make.make(self.config, self.extractor)
        return set(self.asked)


@pytest.fixture(scope="module")
def finished(tiny_run, tiny_data, tmp_path_factory) -> Path:
    """A folder of a run, another one, data, and a table of them."""
    folder = tmp_path_factory.mktemp("finished")
    for name, source in {"run": tiny_run, "pretrained": tiny_run, "data": tiny_data}.items():
        copied(source, folder / name)
    with pytest.MonkeyPatch.context() as monkeypatch:
        table = Table(*(folder / name for name in ("run", "data", "out", "pretrained")), monkeypatch)
        assert table.make() == {*ROWS, "ngram"}
    return folder


@pytest.fixture
def table(finished, tmp_path, monkeypatch) -> Table:
    """All of that copied elsewhere, to be changed."""
    folder = copied(finished, tmp_path / "copy")
    return Table(*(folder / name for name in ("run", "data", "out", "pretrained")), monkeypatch)


def test_the_same_content_elsewhere_changes_nothing_nor_do_the_slots(table):
    table.config.sampling.slots = 2
    assert table.make() == set() and table.extractor.seen == 0


def test_other_weights_of_the_same_step_are_sampled_again(table):
    with_other_weights(Path(table.config.workdir))
    assert table.make() == {"trained"}


@pytest.mark.parametrize("key, rows", [("workdir", {"trained", "untrained"}), ("pretrained", {"pretrained"})])
def test_what_no_weight_shows_counts_too(table, key, rows):
    path = Path(table.config[key]) / "config.json"
    config = json.loads(path.read_text())
    config["model"]["rope_theta"] = 500.0
    path.write_text(json.dumps(config))
    assert table.make() == rows


def test_other_training_data_of_the_same_names_make_their_rows_and_the_ngram_model_again(table):
    data = Path(table.config.data)
    documents = documents_of(data)
    documents["train"] = documents["train"][::-1][:200]
    rewrite(data, documents, BpeTokenizer.load(data / "tokenizer.json"))
    assert table.make() == TRAINING | {"ngram"}


def test_other_held_out_data_of_the_same_names_make_everything_again(table):
    data = Path(table.config.data)
    documents = documents_of(data)
    documents["heldout"] = documents["heldout"][::-1]
    rewrite(data, documents, BpeTokenizer.load(data / "tokenizer.json"))
    (Path(table.config.pretrained) / "manifest.json").write_text((data / "manifest.json").read_text())
    seen = NUM * (2 + len(ROWS) + len(NETWORKS))
    assert table.make() == {*ROWS, "ngram"} and 0 < table.extractor.seen <= seen


def test_another_tokenizer_makes_again_what_networks_write_and_the_ngram_model(table):
    data, codec = Path(table.config.data), JpegCodec(32, 32, "L", 25)
    documents = documents_of(data)
    learnt = bpe.train(iter(documents["train"][:20]), 320, codec.separator_regex, codec.separator_behavior)
    assert learnt.sha256 != BpeTokenizer.load(data / "tokenizer.json").sha256
    rewrite(data, documents, learnt)
    for workdir in (table.config.workdir, table.config.pretrained):
        shutil.copy(data / "tokenizer.json", Path(workdir) / "tokenizer.json")
        shutil.copy(data / "manifest.json", Path(workdir) / "manifest.json")
    assert table.make() == NETWORKS | {"ngram"}


def test_other_weights_of_the_extractor_measure_everything_again(table):
    table.extractor = Projection(seed=1)
    assert table.make() == set()
    assert table.extractor.seen > 0


def test_other_versions_of_the_codec_s_libraries_make_again_what_they_decode(table, monkeypatch):
    monkeypatch.setattr(JpegCodec, "encoder_versions", lambda codec: {"pillow": "another"})
    assert table.make() == set(ROWS)
    assert table.extractor.seen > 0


def test_cells_of_an_older_program_are_made_again_and_never_taken_for_others(table):
    for path in (Path(table.config.out) / "cells").glob("*.npz"):
        with np.load(path) as file:
            arrays = dict(file)
        identity = json.loads(str(arrays["fingerprint"]))
        identity |= {"step": 20, "slots": 4} if path.name.startswith(tuple(NETWORKS)) else {}
        arrays["fingerprint"] = np.array(json.dumps(identity, sort_keys=True))
        np.savez(path, **arrays)
    assert table.make() == NETWORKS
