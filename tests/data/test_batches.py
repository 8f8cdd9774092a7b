import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jpeglm.core.config import base
from jpeglm.core.errors import InputError
from jpeglm.data import batches as pipeline
from jpeglm.data.batches import Chunks, check_fits, eval_batches, train_batches
from jpeglm.data.tokenizers import BOS, EOS
from jpeglm.data.tokenizers.bpe import BpeTokenizer
from jpeglm.prepare import plan

SEQ_LEN = 512
BATCH = 16


def digits_config():
    config = base()
    config.codec.height, config.codec.width, config.codec.mode = 32, 32, "L"
    config.data.seq_len, config.data.shards, config.data.holdout = SEQ_LEN, 3, 300
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "digits"
    plan.prepare(digits_config(), "embedded:mnist", out)
    return out


@pytest.fixture(scope="module")
def train(folder) -> Chunks:
    return Chunks(folder, "train", SEQ_LEN)


def last_chunks(chunks: Chunks, split: str) -> dict[int, int]:
    """Number of the last chunk of each shard, and how many of its tokens are real, from the manifest."""
    found, end = {}, 0
    for shard in chunks.manifest["splits"][split]["shards"]:
        end += shard["chunks"]
        found[end - 1] = shard["tokens"] - (shard["chunks"] - 1) * SEQ_LEN
    return found


def assert_equal_batches(one, other):
    assert one.keys() == other.keys() == {"tokens", "targets", "loss_weights", "segment_ids", "positions"}
    for name in one:
        assert one[name].dtype == other[name].dtype
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


# One chunk


def test_a_chunk_has_the_shapes_and_types_of_the_contract(train):
    for name, array in train[7].items():
        assert array.shape == (SEQ_LEN,)
        assert array.dtype == (np.float32 if name == "loss_weights" else np.int32)


def test_targets_are_the_tokens_that_follow_and_the_last_has_no_weight(train):
    chunk = train[7]
    np.testing.assert_array_equal(chunk["targets"][:-1], chunk["tokens"][1:])
    np.testing.assert_array_equal(chunk["loss_weights"], [1.0] * (SEQ_LEN - 1) + [0.0])
    np.testing.assert_array_equal(chunk["positions"], np.arange(SEQ_LEN))


def test_padding_has_no_weight_and_no_segment(train):
    for index, length in last_chunks(train, "train").items():
        chunk = train[index]
        assert 0 < length < SEQ_LEN, "this data is chosen to end inside its chunks"
        assert chunk["tokens"][length - 1] == EOS
        assert not chunk["tokens"][length:].any()
        np.testing.assert_array_equal(chunk["loss_weights"], np.arange(SEQ_LEN) < length - 1)
        assert (chunk["segment_ids"][:length] > 0).all()
        assert not chunk["segment_ids"][length:].any()


def test_weights_come_from_lengths_and_not_from_ids(folder, train, monkeypatch):
    everywhere_zero = np.zeros(SEQ_LEN, "<u2").tobytes()

    class Zeros:
        def __getitem__(self, index):
            return everywhere_zero

    chunks = Chunks(folder, "train", SEQ_LEN)
    monkeypatch.setattr(chunks, "_source", Zeros())
    for index in (0, *last_chunks(train, "train")):
        np.testing.assert_array_equal(chunks[index]["loss_weights"], train[index]["loss_weights"])
        np.testing.assert_array_equal(chunks[index]["segment_ids"] > 0, train[index]["segment_ids"] > 0)


def test_segments_count_the_documents_of_a_chunk(train):
    starts_inside = 0
    for index in range(0, len(train), 50):
        chunk = train[index]
        real = chunk["segment_ids"] > 0
        is_start = chunk["tokens"] == BOS
        starts_inside += not is_start[0]
        assert chunk["segment_ids"][0] == 1
        np.testing.assert_array_equal(np.diff(chunk["segment_ids"][real]), is_start[real][1:])
        ends = np.flatnonzero(chunk["tokens"][real] == EOS)
        np.testing.assert_array_equal(chunk["segment_ids"][ends], np.arange(1, len(ends) + 1))
    assert starts_inside


def test_positions_begin_again_with_each_document_where_documents_are_masked(folder, train):
    masked = Chunks(folder, "train", SEQ_LEN, mask_documents=True)
    for index in (5, *last_chunks(train, "train")):
        chunk = masked[index]
        for name in ("tokens", "targets", "loss_weights", "segment_ids"):
            np.testing.assert_array_equal(chunk[name], train[index][name])
        for segment in range(1, chunk["segment_ids"].max() + 1):
            length = int((chunk["segment_ids"] == segment).sum())
            own = chunk["positions"][chunk["segment_ids"] == segment]
            np.testing.assert_array_equal(own, np.arange(length))


# The order


def test_each_epoch_has_every_chunk_once_in_its_own_order(train):
    order = chunk_numbers(train, seed=0, epochs=2)
    first, second = order[: len(train)], order[len(train) :]
    assert sorted(first) == sorted(second) == list(range(len(train)))
    assert (np.array(first) == second).mean() < 0.05
    assert (np.array(first) == np.arange(len(train))).mean() < 0.05


def test_the_second_epoch_of_a_seed_is_no_epoch_of_the_next_seed(train):
    second = chunk_numbers(train, seed=1, epochs=2)[len(train) :]
    for seed in (0, 2, 3):
        other = chunk_numbers(train, seed=seed, epochs=2)
        assert (np.array(second) == other[: len(train)]).mean() < 0.05
        assert (np.array(second) == other[len(train) :]).mean() < 0.05


def chunk_numbers(chunks: Chunks, seed: int, epochs: int) -> list[int]:
    """Which chunks the stream of a seed consists of, found by their content."""
    number = {chunks[index]["tokens"].tobytes(): index for index in range(len(chunks))}
    assert len(number) == len(chunks)
    wanted = epochs * len(chunks)
    steps = train_batches(chunks, seed, BATCH, range(BATCH), 0, -(-wanted // BATCH))
    rows = itertools.chain.from_iterable(batch["tokens"] for _, batch in steps)
    return [number[row.tobytes()] for row in itertools.islice(rows, wanted)]


def test_a_batch_is_a_function_of_seed_and_step(train):
    whole = dict(train_batches(train, 3, BATCH, range(BATCH), 0, 40))
    assert list(whole) == list(range(40))
    for threads in (1, 3):
        resumed = dict(train_batches(train, 3, BATCH, range(BATCH), 25, 40, threads=threads))
        assert list(resumed) == list(range(25, 40))
        for step, batch in resumed.items():
            assert_equal_batches(batch, whole[step])
    other_seed = dict(train_batches(train, 4, BATCH, range(BATCH), 25, 26))
    assert not np.array_equal(other_seed[25]["tokens"], whole[25]["tokens"])


def test_a_process_gets_its_rows_of_the_global_batch_whatever_they_are(train):
    step, whole = next(train_batches(train, 0, BATCH, range(BATCH), 200, 201))  # the second epoch begins inside it
    assert step == 200
    for rows in ([0, 1, 2], [9, 3], [15], [4, 4]):
        _, own = next(train_batches(train, 0, BATCH, rows, 200, 201))
        assert_equal_batches(own, {name: array[rows] for name, array in whole.items()})


# Held-out chunks


def test_evaluation_reads_every_chunk_once_and_fills_the_last_batch_with_weight_0(folder):
    chunks = Chunks(folder, "heldout", SEQ_LEN)
    batches = list(eval_batches(chunks, 7, range(7)))
    assert len(batches) == -(-len(chunks) // 7)
    assert len(chunks) % 7, "this data is chosen to leave the last batch unfilled"
    rows = [{name: array[row] for name, array in batch.items()} for batch in batches for row in range(7)]
    for index in range(len(chunks)):
        assert_equal_batches(rows[index], chunks[index])
    for row in rows[len(chunks) :]:
        assert not any(row[name].any() for name in ("tokens", "targets", "loss_weights", "segment_ids"))
    assert sum(row["loss_weights"].sum() for row in rows) == sum(
        shard["tokens"] - shard["chunks"] for shard in chunks.manifest["splits"]["heldout"]["shards"]
    )


def test_evaluation_stops_after_so_many_batches_and_gives_the_rows_asked_for(folder):
    chunks = Chunks(folder, "heldout", SEQ_LEN)
    whole = list(eval_batches(chunks, 7, range(7)))
    some = list(eval_batches(chunks, 7, [5, 1], max_batches=2))
    assert len(some) == 2
    for batch, full in zip(some, whole, strict=False):
        assert_equal_batches(batch, {name: array[[5, 1]] for name, array in full.items()})


# Documents


def test_documents_come_back_in_packing_order(folder, train):
    documents = list(pipeline.documents(folder, "train"))
    assert len(documents) == len(set(documents)) == 9700
    assert documents[:5] == list(pipeline.documents(folder, "train", limit=5))
    learnt = BpeTokenizer.load(folder / "tokenizer.json")
    first_shard = train.manifest["splits"]["train"]["shards"][0]
    stream = np.concatenate([train[index]["tokens"] for index in range(first_shard["chunks"])])
    packed = [[BOS, *ids, EOS] for ids in learnt.encode_batch(documents[: first_shard["documents"]])]
    np.testing.assert_array_equal(stream[: first_shard["tokens"]], np.concatenate(packed))


# Refusals


@pytest.fixture
def copied(folder, tmp_path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


def test_an_unfinished_folder_is_refused(copied):
    (copied / "manifest.json").unlink()
    with pytest.raises(InputError, match="no finished prepared data"):
        Chunks(copied, "train", SEQ_LEN)
    with pytest.raises(InputError, match="no finished prepared data"):
        pipeline.documents(copied, "train")


def test_a_missing_shard_is_refused(copied):
    (copied / "train-00001-of-00003.array_record").unlink()
    for opening in (lambda: Chunks(copied, "train", SEQ_LEN), lambda: pipeline.documents(copied, "train")):
        with pytest.raises(InputError, match="shard train-00001-of-00003.array_record is missing"):
            opening()
    assert len(Chunks(copied, "heldout", SEQ_LEN))


def test_a_shard_of_another_size_is_refused(copied):
    path = copied / "train-00002-of-00003.array_record"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match="train-00002-of-00003.array_record has .* bytes, the manifest says"):
        Chunks(copied, "train", SEQ_LEN)


def test_another_chunk_length_is_refused(folder):
    with pytest.raises(InputError, match="chunks of 512 tokens, data.seq_len is 256"):
        Chunks(folder, "train", 256)


def test_a_manifest_of_another_format_is_refused(copied):
    path = copied / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    with pytest.raises(InputError, match="format version 99"):
        Chunks(copied, "train", SEQ_LEN)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("codec", "quality", 50), ("codec", "mode", "RGB"), ("tokenizer", "vocab_size", 300), ("data", "seq_len", 256)],
)
def test_data_that_does_not_fit_a_config_is_refused(train, section, key, value):
    config = digits_config()
    config.tokenizer.documents = 5  # how the tokenizer came about is of no concern to a run
    check_fits(train.manifest, config)
    found = config[section][key]
    config[section][key] = value
    with pytest.raises(InputError, match=f"{section}.{key}={found}, the config says {value}"):
        check_fits(train.manifest, config)
