"""Converts SentencePiece's `tokenizer.model` over Braille characters to the `tokenizer.json` that jpeglm reads.

The public JPEG-LM checkpoint (uwnlp/jpeg-lm-reimplementation) has such a file: BPE over the characters
chr(0x2800 + byte). Both libraries merge adjacent symbols until nothing is left to merge. SentencePiece merges the pair
whose *concatenation* is the piece with the highest score, and the leftmost of equal ones. `tokenizers` ranks pairs, so
two pairs with the same concatenation cannot have the same rank there. One pair per piece is enough: the merges inside
a span of text that becomes a piece depend only on that text (no symbol crosses its ends). So the last merge is always
of the same pair, and encoding the piece alone finds it.
"""

import math
from itertools import pairwise
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from sentencepiece import sentencepiece_model_pb2 as pb
from tokenizers import AddedToken, models, normalizers
from tokenizers import Tokenizer as BpeTokenizer

from jpeglm.core.errors import InputError
from jpeglm.data.tokenizers import SPECIALS, UNK
from jpeglm.data.tokenizers.bpe import ALPHABET, DUMMY_PREFIX, file_text

_PIECE = pb.ModelProto.SentencePiece


def convert(path: str | Path) -> str:
    """Text of the `tokenizer.json` that gives the ids of the SentencePiece model in `path` for every byte string.

    Raises:
      InputError: the file cannot be read, or asks for something that `bpe.BpeTokenizer` does not support: another
        algorithm than BPE, other special tokens than <unk>, <s>, </s> at 0, 1, 2, a byte without a piece, byte
        fallback, user-defined symbols, a normalisation that alters Braille characters, and so on.
    """
    try:
        data = Path(path).read_bytes()
        model = pb.ModelProto()
        model.ParseFromString(data)
        processor = SentencePieceProcessor(model_proto=data)
    except OSError as error:
        raise InputError(f"cannot read the tokenizer {path}: {error.strerror}") from error
    except Exception as error:  # protobuf's DecodeError, and RuntimeError with the C++ source line
        raise InputError(f"{path}: not a SentencePiece model") from error
    try:
        _check(model, processor)
        prefix = DUMMY_PREFIX if model.normalizer_spec.add_dummy_prefix else ""
        converted = _build(model, prefix)
        _compare(converted, processor, [piece.piece for piece in model.pieces[len(SPECIALS) :]])
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return file_text(converted)


def _check(model: pb.ModelProto, processor: SentencePieceProcessor) -> None:
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    if not model.pieces:
        raise InputError("not a SentencePiece model")
    if trainer.model_type != pb.TrainerSpec.BPE:
        raise InputError(f"model type {pb.TrainerSpec.ModelType.Name(trainer.model_type)}, only BPE can be converted")
    if trainer.byte_fallback:
        raise InputError("byte_fallback is not supported: a byte would have two ids")
    if trainer.treat_whitespace_as_suffix:
        raise InputError("treat_whitespace_as_suffix is not supported")
    if normalizer.add_dummy_prefix and not normalizer.escape_whitespaces:
        raise InputError("a dummy prefix without escape_whitespaces is not supported")
    kinds = [_PIECE.UNKNOWN, _PIECE.CONTROL, _PIECE.CONTROL]
    if [(piece.piece, piece.type) for piece in model.pieces[:3]] != list(zip(SPECIALS, kinds, strict=True)):
        raise InputError(f"ids 0, 1, 2 are not {', '.join(SPECIALS)}")
    for number, piece in enumerate(model.pieces[3:], 3):
        if piece.type != _PIECE.NORMAL:
            kind = _PIECE.Type.Name(piece.type).lower().replace("_", "-")
            raise InputError(f"piece {number}, {piece.piece!r}, is {kind}, which is not supported")
    for number, piece in enumerate(model.pieces):
        if not math.isfinite(piece.score):
            raise InputError(f"piece {number}, {piece.piece!r}, has the score {piece.score}")
    missing = set(ALPHABET) - {piece.piece for piece in model.pieces}
    if missing:
        byte = ALPHABET.index(min(missing))
        raise InputError(f"no piece for {len(missing)} of the 256 bytes, the first is 0x{byte:02x}")
    # A user-supplied rule of more than two Braille characters is left to `_compare`.
    prefix = DUMMY_PREFIX if normalizer.add_dummy_prefix else ""
    if processor.normalize(_pairs()) != prefix + _pairs():
        raise InputError(f"its normalisation ({normalizer.name or 'user-defined'}) alters Braille characters")


def _build(model: pb.ModelProto, prefix: str) -> BpeTokenizer:
    scores = {piece.piece: piece.score for piece in model.pieces[len(SPECIALS) :]}
    merges = {piece: merge for piece in scores if (merge := _last_merge(piece, scores))}
    ranked = sorted(merges, key=scores.__getitem__, reverse=True)
    for one, other in pairwise(ranked):
        if scores[one] == scores[other]:
            raise InputError(f"pieces {one!r} and {other!r} have the same score")
    vocab = {piece.piece: number for number, piece in enumerate(model.pieces)}
    converted = BpeTokenizer(
        models.BPE(vocab, [merges[piece] for piece in ranked], unk_token=SPECIALS[UNK], fuse_unk=True)
    )
    if prefix:
        converted.normalizer = normalizers.Prepend(prefix)
    converted.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return converted


def _last_merge(piece: str, scores: dict[str, float]) -> tuple[str, str] | None:
    """The two symbols that SentencePiece joins last when it encodes `piece`; None if it never makes this piece."""
    symbols = list(piece)
    while len(symbols) > 1:
        joined = [scores.get(left + right, float("-inf")) for left, right in pairwise(symbols)]
        best = max(joined)
        if best == float("-inf"):
            return None
        place = joined.index(best)  # the leftmost
        if len(symbols) == 2:
            return symbols[0], symbols[1]
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
    return None


def _compare(converted: BpeTokenizer, processor: SentencePieceProcessor, pieces: list[str]) -> None:
    # The module's docstring argues from SentencePiece's algorithm. This checks the given file.
    braille = [piece.removeprefix(DUMMY_PREFIX) for piece in pieces]
    for text in ["", _pairs(), *braille, "".join(braille)]:
        if converted.encode(text).ids != processor.encode(text):
            raise InputError(f"the conversion gives other ids than SentencePiece for {text[:20]!r}")


def _pairs() -> str:
    """A text of all pairs of bytes."""
    return "".join(one + other for one in ALPHABET for other in ALPHABET)
