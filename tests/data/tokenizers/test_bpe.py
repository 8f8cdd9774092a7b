import json

import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from jpeglm.core.errors import InputError
from jpeglm.data.codecs.jpeg import JpegCodec
from jpeglm.data.tokenizers import bpe
from jpeglm.data.tokenizers.bpe import BpeTokenizer

COLOUR = JpegCodec(height=64, width=96, mode="RGB", quality=25)
GREY = JpegCodec(height=32, width=32, mode="L", quality=25)


def documents_of(codec: JpegCodec, count: int) -> list[bytes]:
    """Photographs, each a different window of one of four."""
    documents = []
    for index in range(count):
        image = Image.fromarray(getattr(skimage.data, ("astronaut", "chelsea", "coffee", "rocket")[index % 4])())
        image = image.crop((index * 2, index, image.width - index * 3, image.height - index))
        documents.append(codec.encode(ImageOps.fit(image, (codec.width, codec.height)).convert(codec.mode)))
    return documents


@pytest.fixture(scope="module", params=[COLOUR, GREY], ids=["colour", "grey"])
def trained(request):
    codec = request.param
    documents = documents_of(codec, 60)
    return codec, documents, bpe.train(documents[:40], 320, codec.separator_regex)


def test_ids_are_specials_then_bytes_then_merges(trained):
    _, _, learnt = trained
    assert learnt.vocab_size == 320 == len(learnt.token_bytes)
    assert learnt.token_bytes[:3] == [b"", b"", b""]
    assert learnt.token_bytes[3:259] == [bytes([byte]) for byte in range(256)]
    assert all(len(merge) > 1 for merge in learnt.token_bytes[259:])
    assert len(set(learnt.token_bytes[3:])) == 317


def test_cut_tokens_are_a_prefix_of_whole_tokens_at_every_mcu(trained):
    codec, documents, learnt = trained
    for document in documents[40:]:
        whole = learnt.encode(document)
        cuts = [codec.cut(document, mcus / codec.units) for mcus in range(codec.units)]
        assert [kept for _, kept in cuts] == list(range(codec.units))
        for mcus, ids in enumerate(learnt.encode_batch([prefix for prefix, _ in cuts])):
            assert np.array_equal(ids, whole[: len(ids)]), f"{mcus} MCUs"


def test_documents_become_fewer_tokens_than_bytes_and_come_back(trained):
    _, documents, learnt = trained
    for document in documents[40:]:
        ids = learnt.encode(document)
        assert ids.dtype == np.uint16
        assert len(ids) < len(document)
        assert ids.min() >= learnt.BYTE_OFFSET
        assert learnt.decode(ids) == document


@settings(deadline=None)
@given(data=st.binary(max_size=400))
def test_any_byte_string_comes_back(trained, data):
    _, _, learnt = trained
    ids = learnt.encode(data)
    assert learnt.decode(ids) == data
    assert learnt.UNK not in ids


def test_every_pair_of_bytes_comes_back(trained):
    _, _, learnt = trained
    pairs = np.stack(np.meshgrid(np.arange(256), np.arange(256)), -1).astype(np.uint8).tobytes()
    assert learnt.decode(learnt.encode(pairs)) == pairs


def test_no_merge_goes_on_behind_a_restart_marker_or_the_header(trained):
    codec, _, learnt = trained
    ends = [bytes([0xFF, 0xD0 + marker]) for marker in range(8)] + [codec.header]
    for merge in learnt.token_bytes[259:]:
        assert not any(end in merge[:-1] for end in ends), merge.hex()


def test_specials_decode_to_nothing(trained):
    _, documents, learnt = trained
    ids = learnt.encode(documents[0])
    assert learnt.decode([learnt.BOS, *ids, learnt.EOS, learnt.UNK]) == documents[0]


def test_training_does_not_depend_on_the_order_of_documents_or_on_threads(trained, monkeypatch):
    codec, documents, learnt = trained
    shuffled = [documents[index] for index in np.random.default_rng(0).permutation(40)]
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert bpe.train(shuffled, 320, codec.separator_regex).sha256 == learnt.sha256
    assert bpe.train(documents[:20], 320, codec.separator_regex).sha256 != learnt.sha256


def test_a_saved_tokenizer_is_the_same_one(trained, tmp_path):
    _, documents, learnt = trained
    learnt.save(tmp_path / "tokenizer.json")
    again = BpeTokenizer.load(tmp_path / "tokenizer.json")
    assert again.sha256 == learnt.sha256
    assert again.token_bytes == learnt.token_bytes
    assert np.array_equal(again.encode(documents[50]), learnt.encode(documents[50]))
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_the_saved_file_writes_a_byte_as_a_braille_character(trained, tmp_path):
    _, _, learnt = trained
    learnt.save(tmp_path / "tokenizer.json")
    vocab = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    assert [vocab["<unk>"], vocab["<s>"], vocab["</s>"]] == [0, 1, 2]
    assert [vocab[chr(0x2800 + byte)] for byte in range(256)] == list(range(3, 259))


def test_too_little_data_for_the_vocabulary_is_refused():
    with pytest.raises(InputError, match=r"gives? a tokenizer of 260 entries, tokenizer.vocab_size asks for 320"):
        bpe.train([b"ab"], 320, GREY.separator_regex)
    assert bpe.train([b"ab"], 260, GREY.separator_regex).token_bytes[259:] == [b"ab"]


@pytest.mark.parametrize("vocab_size", [258, 65_537])
def test_impossible_vocabulary_sizes_are_refused(vocab_size):
    with pytest.raises(InputError, match="259 to 65536"):
        bpe.train([b"ab"], vocab_size, GREY.separator_regex)


def test_files_that_break_the_contract_are_refused(trained, tmp_path):
    _, _, learnt = trained
    path = tmp_path / "tokenizer.json"
    with pytest.raises(InputError, match="cannot read the tokenizer .*tokenizer.json"):
        BpeTokenizer.load(path)
    path.write_text("{}")
    with pytest.raises(InputError, match="tokenizer.json: not a tokenizer.json"):
        BpeTokenizer.load(path)
    learnt.save(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    vocab = content["model"]["vocab"]
    vocab["\u2800"], vocab["\u2801"] = vocab["\u2801"], vocab["\u2800"]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="ids 3 to 258"):
        BpeTokenizer.load(path)
