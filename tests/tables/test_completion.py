"""The methods that complete cut files, and the store of what they made."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jpeglm.core import retries
from jpeglm.core.errors import InputError
from jpeglm.data import batches
from jpeglm.data.codecs.jpeg import JpegCodec
from jpeglm.data.codecs.pictures import PictureEvaluation
from jpeglm.sample.sampler import Sampler
from jpeglm.sample.settings import Settings
from jpeglm.tables.context import Context
from jpeglm.tables.judges import judge
from jpeglm.tables.methods import Completed, complete, identity, networks
from jpeglm.tables.methods.flat import with_flat_blocks
from jpeglm.tables.methods.random_bytes import with_random_bytes
from jpeglm.tables.methods.training import mean_document, random_others, with_rest_of
from jpeglm.tables.store import Store

ROWS = (*networks(), *PictureEvaluation.controls)
CODECS = [JpegCodec(32, 32, "L", 25), JpegCodec(50, 70, "RGB", 25)]
# As in test_tables.py, so that a session compiles the programs once.
SETTINGS = Settings(max_tokens=256, temperature=0.7, top_k=40, top_p=0.9, slots=4)


def some_documents(codec: JpegCodec, count: int, seed: int = 0) -> list[bytes]:
    """Smooth coloured noise, encoded."""
    random = np.random.default_rng(seed)
    channels = 3 if codec.mode == "RGB" else 1
    documents = []
    for _ in range(count):
        small = Image.fromarray(random.integers(0, 256, (5, 5, channels), np.uint8).squeeze())
        documents.append(codec.encode(small.resize((codec.width, codec.height), Image.Resampling.BICUBIC)))
    return documents


@pytest.mark.parametrize("codec", CODECS, ids=["grey", "colour"])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.75])
def test_controls_begin_with_the_prompt_and_end_differently(codec, ratio):
    documents = some_documents(codec, 3)
    other = some_documents(codec, 1, seed=1)[0]
    for completed in (
        with_random_bytes(codec, documents, ratio, seed=0),
        with_flat_blocks(codec, documents, ratio),
        with_rest_of(codec, documents, ratio, [other] * len(documents)),
    ):
        assert len(completed) == len(documents)
        for document, original in zip(completed, documents, strict=True):
            prompt, _ = codec.cut(original, ratio)
            assert document.startswith(prompt)
            assert document != original


@pytest.mark.parametrize("codec", CODECS, ids=["grey", "colour"])
def test_random_bytes_are_as_many_as_the_original_has_and_are_uniform(codec):
    documents = some_documents(codec, 40)
    completed = with_random_bytes(codec, documents, 0.25, seed=0)
    assert [len(document) for document in completed] == [len(document) for document in documents]
    tails = b"".join(new[len(codec.cut(old, 0.25)[0]) :] for new, old in zip(completed, documents, strict=True))
    counts = np.bincount(np.frombuffer(tails, np.uint8), minlength=256)
    chi_square = ((counts - len(tails) / 256) ** 2).sum() / (len(tails) / 256)
    assert 160 < chi_square < 370  # 255 degrees of freedom; beyond, p < 1e-5


def test_random_bytes_depend_on_seed_and_original_alone():
    codec = CODECS[0]
    documents = some_documents(codec, 3)
    whole = with_random_bytes(codec, documents, 0.5, seed=7)
    assert with_random_bytes(codec, documents[::-1], 0.5, seed=7) == whole[::-1]
    assert with_random_bytes(codec, documents, 0.5, seed=8) != whole


@pytest.mark.parametrize("codec", CODECS, ids=["grey", "colour"])
def test_flat_blocks_are_valid_and_mid_grey(codec):
    documents = some_documents(codec, 2)
    for document in with_flat_blocks(codec, documents, 0.0):
        pixels = np.asarray(codec.decode(document))
        assert (pixels == 128).all()
    for document, original in zip(with_flat_blocks(codec, documents, 0.5), documents, strict=True):
        assert codec.is_valid(document)
        assert (np.asarray(codec.decode(document))[-1, -1] == 128).all()
        assert document[: len(codec.cut(original, 0.5)[0])] == codec.cut(original, 0.5)[0]


@pytest.mark.parametrize("codec", CODECS, ids=["grey", "colour"])
def test_the_rest_of_another_picture_keeps_the_coefficients_of_both(codec):
    original, other = some_documents(codec, 2)
    spliced = with_rest_of(codec, [original], 0.4, [other])[0]
    kept = codec.cut(original, 0.4)[1]
    expected = np.concatenate([codec.parse(original).coefficients()[:kept], codec.parse(other).coefficients()[kept:]])
    np.testing.assert_array_equal(codec.parse(spliced).coefficients(), expected)


@pytest.mark.parametrize("codec", CODECS, ids=["grey", "colour"])
def test_the_mean_document_is_near_the_mean_of_the_pixels(codec):
    documents = some_documents(codec, 20)
    mean = np.mean([np.asarray(codec.decode(document), np.float64) for document in documents], axis=0)
    pixels = np.asarray(codec.decode(mean_document(codec, documents)), np.float64)
    assert pixels.shape == mean.shape
    assert np.abs(pixels - mean).mean() < 6  # what quality 25 costs


def test_judging_drops_nothing_and_counts_readable_mcus():
    codec = CODECS[0]  # 16 MCUs, 8 of them given
    original = some_documents(codec, 1)[0]
    ends = codec.parse(original).ends
    cut_in_the_last_mcu = original[: ends[14] + 2]
    judged = list(judge(codec, [original, cut_in_the_last_mcu, b""], kept=8))
    assert [each.pictures.shape for each in judged] == [(1, 32, 32)] * 3
    assert [each.scores["valid"] for each in judged] == [1.0, 0.0, 0.0]
    assert judged[0].scores["readable"] == 1.0
    assert judged[1].scores["readable"] == 7 / 8
    np.testing.assert_array_equal(judged[0].seen, np.asarray(codec.decode(original)))


def test_completions_come_back_from_their_arrays():
    documents = [b"abc", b"", b"\x00\xff"]
    plain = Completed.from_arrays(Completed(documents).to_arrays())
    assert plain.documents == documents
    assert plain.ended is None
    written = Completed.from_arrays(Completed(documents, np.array([True, False, True]), np.arange(3)).to_arrays())
    assert written.ended.tolist() == [True, False, True]
    assert written.tokens.tolist() == [0, 1, 2]
    assert written.removed is None
    with_grammar = Completed(documents, written.ended, written.tokens, np.array([0.5, 0.0, 0.25]))
    assert Completed.from_arrays(with_grammar.to_arrays()).removed.tolist() == [0.5, 0.0, 0.25]


@pytest.fixture(scope="module")
def context(tiny_run, tiny_data):
    return Context(tiny_run, str(tiny_data), SETTINGS, seed=0, pretrained=tiny_run)


@pytest.fixture(scope="module")
def originals(tiny_data):
    return list(batches.documents(str(tiny_data), "heldout", 6))


@pytest.fixture(scope="module")
def completed(context, originals):
    """By row and whether with the grammar; the trained model comes last and stays loaded."""
    return {
        (row, grammar): complete(context, row, originals, 0.5, grammar)
        for row in reversed(ROWS)
        for grammar in ((False, True) if row in networks() else (False,))
    }


def test_every_method_of_a_run_completes_every_prompt(context, originals, completed):
    for row in ROWS:
        assert len(completed[row, False].documents) == len(originals), row
        for document, original in zip(completed[row, False].documents, originals, strict=True):
            assert document.startswith(context.codec.cut(original, 0.5)[0]), row
    for grammar in (False, True):
        trained = completed["trained", grammar].documents
        assert trained != completed["untrained", grammar].documents
        assert trained == completed["pretrained", grammar].documents  # here the same run
    for row in ("training_mean", "training_picture"):
        assert all(context.codec.is_valid(document) for document in completed[row, False].documents)
    assert len(set(completed["training_picture", False].documents)) == len(originals)


def test_with_the_grammar_every_network_completes_every_prompt_to_a_valid_file(context, originals, completed):
    for row in networks():
        written = completed[row, True]
        for document, original in zip(written.documents, originals, strict=True):
            assert document.startswith(context.codec.cut(original, 0.5)[0]), row
            assert context.codec.is_valid(document), row
        assert written.removed.dtype == np.float64
        assert ((written.removed > 0) & (written.removed < 1)).all()
        assert completed[row, False].removed is None
    assert not any(context.codec.is_valid(document) for document in completed["untrained", False].documents)


def test_one_set_of_parameters_serves_both_samplings(context, originals, completed, monkeypatch):
    plain = complete(context, "trained", originals[:2], 0.5)
    monkeypatch.setattr(Sampler, "load", lambda *_: pytest.fail("loaded again"))
    with_grammar = complete(context, "trained", originals[:2], 0.5, grammar=True)
    assert complete(context, "trained", originals[:2], 0.5).documents == plain.documents
    assert plain.documents == completed["trained", False].documents[:2]
    assert with_grammar.documents == completed["trained", True].documents[:2]


def test_random_others_depend_on_seed_and_original_alone():
    documents = some_documents(CODECS[0], 6)
    pool = [bytes([number]) for number in range(100)]
    others = random_others(documents, pool, seed=3)
    assert random_others(documents[::-1], pool, seed=3) == others[::-1]
    assert random_others(documents, pool, seed=4) != others
    assert len(set(others)) > 3


def test_a_pretrained_run_that_held_out_other_files_is_refused(tiny_run, tiny_data, tmp_path):
    other = shutil.copytree(tiny_run, tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["splits"]["heldout"]["shards"][0]["sha256"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="held out other files"):
        Context(tiny_run, str(tiny_data), SETTINGS, seed=0, pretrained=other)


def test_a_models_completions_do_not_depend_on_the_order_of_the_prompts(context, originals, completed):
    backwards = complete(context, "trained", originals[::-1], 0.5)
    assert backwards.documents[::-1] == completed["trained", False].documents
    assert backwards.tokens[::-1].tolist() == completed["trained", False].tokens.tolist()


def test_identities_tell_apart_what_would_give_other_completions(context, tiny_run, tiny_data):
    identities = [identity(context, row) for row in ROWS]
    assert all(identities.count(each) == 1 for each in identities)
    other = Context(tiny_run, str(tiny_data), dataclasses.replace(SETTINGS, top_p=1.0), seed=0, pretrained=tiny_run)
    changed = [row for row in ROWS if identity(other, row) != identity(context, row)]
    assert changed == ["trained", "pretrained", "untrained"]
    assert [row for row in ROWS if identity(context, row, grammar=True) != identity(context, row)] == list(networks())


def test_data_of_another_tokenizer_is_refused(context, tiny_run, tiny_data, tmp_path):
    for path in tiny_data.iterdir():
        (tmp_path / path.name).symlink_to(path)
    manifest = (tiny_data / "manifest.json").read_text()
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "manifest.json").write_text(manifest.replace(context.tokenizer.sha256, "0" * 64))
    with pytest.raises(InputError, match="another tokenizer"):
        Context(tiny_run, str(tmp_path), SETTINGS, 0)


def test_the_store_makes_once_and_again_only_for_another_identity(tmp_path):
    calls = []

    def make():
        calls.append(len(calls))
        return {"x": np.array([len(calls)])}

    store = Store(tmp_path / "cells")
    assert store.get("a", {"n": 1}, make)["x"] == 1
    assert Store(tmp_path / "cells").get("a", {"n": 1}, make)["x"] == 1
    assert store.get("a", {"n": 2}, make)["x"] == 2
    assert store.get("b", {"n": 2}, make)["x"] == 3
    assert len(calls) == 3


def test_a_damaged_cell_is_made_again(tmp_path):
    store = Store(tmp_path)
    store.get("a", {}, lambda: {"x": np.arange(100)})
    path = tmp_path / "a.npz"
    path.write_bytes(path.read_bytes()[:60])
    assert store.get("a", {}, lambda: {"x": np.arange(3)})["x"].tolist() == [0, 1, 2]


def test_a_cell_with_any_bit_turned_is_read_right_or_made_again(tmp_path):
    def make() -> dict[str, np.ndarray]:
        return {"x": np.arange(5), "lengths": np.array([1.5])}

    store, path = Store(tmp_path), tmp_path / "a.npz"
    store.get("a", {"n": 1}, make)
    whole = path.read_bytes()
    for bit in np.random.default_rng(0).choice(8 * len(whole), 500, replace=False):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        found = store.get("a", {"n": 1}, make)
        assert found.keys() == make().keys() and all(np.array_equal(found[key], make()[key]) for key in found)


def test_a_cell_that_cannot_be_read_for_a_moment_is_kept(tmp_path, monkeypatch):
    store, path = Store(tmp_path), tmp_path / "a.npz"
    store.get("a", {}, lambda: {"x": np.arange(5)})
    whole = path.read_bytes()

    def fails(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(retries, "WAITS", ())
    with monkeypatch.context() as patched, pytest.raises(InputError, match="cannot read .*a.npz.* Input/output error"):
        patched.setattr(Path, "read_bytes", fails)
        store.get("a", {}, lambda: pytest.fail("made again"))
    assert path.read_bytes() == whole


def test_a_failed_method_leaves_no_cell(tmp_path):
    def fail():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        Store(tmp_path / "cells").get("a", {}, fail)
    assert not list(tmp_path.rglob("*.npz*"))
