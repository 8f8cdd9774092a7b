"""What there is to see and to say of completed documents, however damaged: the one place that knows both codecs."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from skimage.metrics import structural_similarity

from jpeglm.codecs import Codec
from jpeglm.codecs.avc import AvcCodec


@dataclasses.dataclass(frozen=True)
class Judged:
    """One document.

    Attributes:
      seen: all that a tolerant decoder makes of it: uint8 [h, w] or [h, w, 3]; of a clip [frames, h, w, 3].
      pictures: uint8 [n, h, w] or [n, h, w, 3], what enters a distance between pictures: the one picture; of a clip
        the frames behind those that were given.
      scores: by name, floats:
        valid: 1 if it decodes strictly, else 0.
        readable: the share of the units to be completed that are readable in sequence.
        concealed: of clips, the share of the macroblocks to be completed that the decoder made up or never gave.
        squared_error: of clips with an original, the mean over those frames' values of 0..255.
        ssim: likewise, the mean structural similarity (Wang et al. 2004, Gaussian windows of 11x11) of those frames.
    """

    seen: np.ndarray
    pictures: np.ndarray
    scores: dict[str, float]


def judge(
    codec: Codec, documents: Iterable[bytes], kept: int, originals: Sequence[bytes] | None = None
) -> Iterator[Judged]:
    """Judges each document.

    Args:
      codec: of the documents.
      documents: any bytes.
      kept: units (MCUs, frames) that were given, fewer than there are.
      originals: valid documents that they began as; None where there is nothing to compare with.
    """
    for number, document in enumerate(documents):
        if isinstance(codec, AvcCodec):
            yield _clip(codec, document, kept, originals and originals[number])
        else:
            is_valid, picture, readable = codec.look(document)
            seen = np.asarray(picture)
            scores = {"valid": float(is_valid), "readable": _share(readable, kept, codec.units)}
            yield Judged(seen, seen[None], scores)


def _clip(codec: AvcCodec, document: bytes, kept: int, original: bytes | None) -> Judged:
    decoded = codec.decode_stream(codec.restore(document))
    missing = max(0, codec.frames - max(kept, len(decoded.frames)))
    made_up = decoded.concealed + missing * codec.macroblocks
    seen = codec.filled(decoded.frames)
    parses = codec.parses(document)
    readable = codec.frames if parses else codec.readable_frames(document)
    scores = {
        "valid": float(codec.plays(decoded) and parses),
        "readable": _share(readable, kept, codec.frames),
        "concealed": min(1.0, made_up / ((codec.frames - kept) * codec.macroblocks)),
    }
    if original is not None:
        pairs = list(zip(seen[kept:], codec.see(codec.restore(original))[kept:], strict=True))
        scores["squared_error"] = float(np.mean([np.square(a.astype(float) - b) for a, b in pairs]))
        scores["ssim"] = float(np.mean([_ssim(a, b) for a, b in pairs]))
    return Judged(seen, seen[kept:], scores)


def _share(readable: int, kept: int, units: int) -> float:
    """Of the units to be completed; what follows can make the last given frame of a clip unreadable, too."""
    return max(0, readable - kept) / (units - kept)


def _ssim(frame: np.ndarray, other: np.ndarray) -> float:
    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return structural_similarity(frame, other, channel_axis=-1, data_range=255, **wang)


def psnr(squared_error: float) -> float:
    """Decibels of a mean squared error of values 0..255; infinite for none."""
    return float("inf") if squared_error == 0 else 10 * np.log10(255**2 / squared_error)
