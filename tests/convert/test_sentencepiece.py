"""Converted SentencePiece models give SentencePiece's ids: the library itself is the oracle."""

import io
import json

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from jpeglm.convert import sentencepiece as converter
from jpeglm.core.errors import InputError
from jpeglm.data.codecs.jpeg import JpegCodec
from jpeglm.data.tokenizers.bpe import BpeTokenizer
from tests.photographs import photographs

CODEC = JpegCodec(height=64, width=96, mode="RGB", quality=25)
UNMARKED = "\u2581"


def braille(data: bytes) -> str:
    return "".join(chr(0x2800 + byte) for byte in data)


@pytest.fixture(scope="module")
def documents():
    return [CODEC.encode(picture) for picture in photographs(60, 64, 96)]


def train(documents, **settings) -> bytes:
    """A model of 320 entries with SentencePiece's defaults, but that no byte may be missing."""
    every_byte = bytes(range(256))
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([braille(data) for data in (every_byte, *documents)]),
        model_writer=written,
        **dict(vocab_size=320, model_type="bpe", character_coverage=1.0, minloglevel=2) | settings,
    )
    return written.getvalue()


def convert(tmp_path, model: bytes) -> BpeTokenizer:
    (tmp_path / "tokenizer.model").write_bytes(model)
    return BpeTokenizer(converter.convert(tmp_path / "tokenizer.model"))


@pytest.fixture(
    scope="module",
    params=[{}, {"add_dummy_prefix": False}, {"max_sentencepiece_length": 64, "vocab_size": 600}],
    ids=["defaults", "no dummy prefix", "long pieces"],
)
def pair(request, documents, tmp_path_factory):
    """(SentencePiece, ours)."""
    model = train(documents[:40], **request.param)
    ours = convert(tmp_path_factory.mktemp("model"), model)
    return sentencepiece.SentencePieceProcessor(model_proto=model), ours


@pytest.fixture(scope="module", params=[True, False], ids=["dummy prefix", "no dummy prefix"])
def repetitive(request, tmp_path_factory):
    """Learnt from runs of three bytes, so that most texts have many ways to be merged."""
    random = np.random.default_rng(0)
    texts = [bytes(random.choice([0, 65, 255], 60, p=[0.5, 0.3, 0.2]).astype(np.uint8)) for _ in range(300)]
    model = train(texts, add_dummy_prefix=request.param, vocab_size=600)
    ours = convert(tmp_path_factory.mktemp("model"), model)
    return sentencepiece.SentencePieceProcessor(model_proto=model), ours


@settings(deadline=None, max_examples=300)
@given(data=st.binary(max_size=300))
def test_any_byte_string_has_sentencepiece_s_ids(pair, data):
    theirs, ours = pair
    assert ours.encode(data).tolist() == theirs.encode(braille(data))
    assert ours.decode(ours.encode(data)) == data


@settings(deadline=None, max_examples=500)
@given(data=st.lists(st.sampled_from([0, 0, 65, 65, 255, 7]), max_size=120).map(bytes))
def test_texts_with_many_ways_to_be_merged_have_sentencepiece_s_ids(repetitive, data):
    theirs, ours = repetitive
    assert ours.encode(data).tolist() == theirs.encode(braille(data))


def test_jpeg_documents_and_their_beginnings_have_sentencepiece_s_ids(pair, documents):
    theirs, ours = pair
    for document in documents:
        ids = ours.encode(document)
        assert ids.tolist() == theirs.encode(braille(document))
        assert len(ids) < len(document) and ours.decode(ids) == document
        prompt, _ = CODEC.cut(document, 0.5)
        assert ours.encode(prompt).tolist() == theirs.encode(braille(prompt))


def test_ids_are_sentencepiece_s_pieces_in_their_own_order(pair):
    theirs, ours = pair
    assert ours.vocab_size == theirs.vocab_size()
    pieces = [theirs.id_to_piece(number) for number in range(ours.vocab_size)]
    assert pieces[:3] == ["<unk>", "<s>", "</s>"]
    assert [braille(data) for data in ours.token_bytes[3:]] == [piece.removeprefix(UNMARKED) for piece in pieces[3:]]
    assert ours.token_bytes[3:259] != [bytes([byte]) for byte in range(256)]


def test_nothing_is_no_ids_and_the_dummy_prefix_stands_for_no_byte(pair):
    theirs, ours = pair
    assert ours.encode(b"").tolist() == theirs.encode("") == []
    first = theirs.id_to_piece(int(ours.encode(b"\x07")[0]))
    assert first.startswith(UNMARKED) == (theirs.piece_to_id(UNMARKED) != theirs.unk_id())


def test_a_dummy_prefix_without_its_piece_is_unknown(documents, tmp_path):
    """The public checkpoint may have no piece for it: 3 + 256 + 61 = 320."""
    model = parsed(train(documents[:20], add_dummy_prefix=False))
    model.normalizer_spec.add_dummy_prefix = True
    ours = convert(tmp_path, model.SerializeToString())
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    for document in (b"\x07", *documents[20:30]):
        ids = ours.encode(document)
        assert ids.tolist() == theirs.encode(braille(document))
        assert ids[0] == ours.UNK and ours.decode(ids) == document


def test_a_converted_tokenizer_is_saved_and_loaded(pair, documents, tmp_path):
    _, ours = pair
    ours.save(tmp_path / "tokenizer.json")
    again = BpeTokenizer.load(tmp_path / "tokenizer.json")
    assert again.sha256 == ours.sha256
    assert np.array_equal(again.encode(documents[50]), ours.encode(documents[50]))


def parsed(model: bytes) -> sentencepiece_model_pb2.ModelProto:
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    return proto


def equal_scores(proto):
    merges = [piece for piece in proto.pieces[3:] if len(piece.piece) == 2]
    merges[1].score = merges[0].score


def without_byte(proto):
    index = next(index for index, piece in enumerate(proto.pieces) if piece.piece == chr(0x2807))
    del proto.pieces[index]


@pytest.mark.parametrize(
    ("options", "change", "named"),
    [
        ({}, lambda proto: setattr(proto.trainer_spec, "model_type", 1), "model type UNIGRAM"),
        ({"vocab_size": 600, "byte_fallback": True}, None, "byte_fallback"),
        ({"user_defined_symbols": [braille(b"\xff\xd0")]}, None, "piece 3, .*, is user-defined"),
        ({"control_symbols": ["<image>"]}, None, "piece 3, '<image>', is control"),
        ({"pad_id": 3}, None, "piece 3, '<pad>', is control"),
        ({"unk_id": 2, "eos_id": 0}, None, "ids 0, 1, 2 are not <unk>, <s>, </s>"),
        ({"treat_whitespace_as_suffix": True}, None, "treat_whitespace_as_suffix"),
        ({"normalization_rule_tsv": "rules.tsv"}, None, "normalisation .* alters Braille"),
        ({}, lambda proto: setattr(proto.normalizer_spec, "escape_whitespaces", False), "escape_whitespaces"),
        ({}, equal_scores, "have the same score"),
        ({}, without_byte, "no piece for 1 of the 256 bytes, the first is 0x07"),
        ({}, lambda proto: setattr(proto.pieces[10], "piece", "abc"), "not written in the 256 Braille"),
        ({}, lambda proto: setattr(proto.pieces[10], "type", 5), "piece 10, .*, is unused"),
        ({}, lambda proto: setattr(proto.pieces[270], "score", float("nan")), "piece 270, .*, has the score nan"),
        ({}, lambda proto: setattr(proto.pieces[4], "score", float("-inf")), "piece 4, .*, has the score -inf"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_what_cannot_be_converted_is_refused_by_name(options, change, named, documents, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rules.tsv").write_text("2801 2802\t2803\n")
    proto = parsed(train(documents[:20], **options))
    if change:
        change(proto)
    with pytest.raises(InputError, match=named):
        convert(tmp_path, proto.SerializeToString())


@pytest.mark.parametrize("data", [b"", b"hello, this is text", bytes(1000)], ids=["empty", "text", "zeros"])
def test_other_files_are_refused(data, tmp_path):
    with pytest.raises(InputError, match=r"tokenizer\.model: not a SentencePiece model"):
        convert(tmp_path, data)


def test_a_truncated_model_is_refused(documents, tmp_path):
    with pytest.raises(InputError, match=r"tokenizer\.model"):
        convert(tmp_path, train(documents[:20])[:3000])


def test_an_absent_model_is_one_line(tmp_path):
    with pytest.raises(InputError, match="cannot read the tokenizer .*absent.model: No such file"):
        converter.convert(tmp_path / "absent.model")


def test_a_file_of_our_own_kind_keeps_its_strict_order(pair):
    """Only a file without our split at restart markers may have SentencePiece's order."""
    _, ours = pair
    content = json.loads(ours.text)
    split = {"type": "Split", "pattern": {"Regex": "\u2800"}, "behavior": "MergedWithPrevious", "invert": False}
    with pytest.raises(InputError, match="ids 3 to 258"):
        BpeTokenizer(json.dumps(content | {"pre_tokenizer": split}))
    content["model"]["vocab"][UNMARKED + "x"] = ours.vocab_size
    with pytest.raises(InputError, match="not written in the 256 Braille"):
        BpeTokenizer(json.dumps(content))
