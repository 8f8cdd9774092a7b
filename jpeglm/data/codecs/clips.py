"""The common part of all codecs of clips: films of one length, rate and size, whose units are frames.

A codec of clips is a frozen dataclass that inherits from `ClipCodec`. What it must implement is abstract there and in
`base.Codec`.

Clips are files; `listing` says which. Beside them, a folder with pictures in it (but for gif, webp and apng, which are
clips) is one clip. Its frames are all the pictures directly in it, sorted by name with numbers compared as numbers,
`codec.fps` of them per second; each becomes RGB by the rules of `sources.pictures`.

A clip is the first frames of its film, as many as the codec has. Its variants are later windows, which begin at frame
`stride`, 2 * `stride`, ... of the film at the codec's rate, up to the film's end. They stay in memory until the film
is done, and ffmpeg has five minutes per film: cut long films into scenes first.
"""

import abc
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from absl import logging
from PIL import Image

from jpeglm.core.config import DEFAULT_BACKGROUND
from jpeglm.core.errors import InputError, Refused, printable
from jpeglm.data import render
from jpeglm.data.codecs import ffmpeg
from jpeglm.data.codecs.avc_decoder import Decoded
from jpeglm.data.codecs.base import Codec, Display, Evaluation, Items, Judged, Words
from jpeglm.data.sources.base import Source
from jpeglm.data.sources.listing import PassedOver
from jpeglm.data.sources.pictures import upright


class ClipCodec(Codec):
    """Documents of clips; a decoded one is uint8 [frames, height, width, 3]."""

    item: ClassVar[str] = "clip"
    unit: ClassVar[str] = "frame"

    @abc.abstractmethod
    def check_encoder(self) -> None:
        """Raises InputError if the encoder does not work here; otherwise every clip would be refused."""

    @abc.abstractmethod
    def encode(self, data: bytes, first: int = 0) -> bytes:
        """The canonical document of a film's file; raises `Refused`.

        `first`: the clip's first frame, counted at the codec's rate.
        """

    @abc.abstractmethod
    def encode_windows(self, data: bytes, count: int, stride: int) -> Iterator[bytes]:
        """Documents of `count` windows of a film, from frame `stride`, 2 * `stride`, ... on, as `encode` gives them.

        Raises:
          Refused: as `encode` does; "short" after the last window.
        """

    @abc.abstractmethod
    def encode_frames(self, frames: Iterable[np.ndarray]) -> bytes:
        """The canonical document of pictures, uint8 [height, width, 3] each, `fps` of them a second.

        Raises:
          Refused: fewer than the codec's number of frames, frames of different sizes, or too large or narrow ones.
        """

    @abc.abstractmethod
    def decode_stream(self, stream: bytes) -> Decoded:
        """Decodes an ordinary file, however damaged; there may be no frame at all."""

    @property
    @abc.abstractmethod
    def macroblocks(self) -> int:
        """Macroblocks of one frame, as `Decoded.concealed` counts them."""

    @abc.abstractmethod
    def readable_frames(self, document: bytes) -> int:
        """How many complete frames at the beginning of any bytes parse strictly, at most as many as a clip has."""

    @abc.abstractmethod
    def parses(self, document: bytes) -> bool:
        """Says whether `parse` accepts the document."""

    @abc.abstractmethod
    def complete_with_last(self, prefix: bytes, frames_kept: int) -> bytes:
        """A complete document: a prefix from `cut`, then its last frame repeated.

        Raises:
          InputError: `frames_kept` is outside 1 to the clip's, or the prefix is not valid.
        """

    @abc.abstractmethod
    def random_pieces(self, rest: bytes) -> list[bytes]:
        """See `Evaluation.pieces`."""

    @property
    def units(self) -> int:
        """Frames of one clip."""
        return self.frames

    def is_valid(self, document: bytes) -> bool:
        """Whether `parse` accepts the document and the decoder decodes it without warnings."""
        return self.parses(document) and self.plays(self.decode_stream(self.restore(document)))

    def plays(self, decoded: Decoded) -> bool:
        """Whether the decoder found all frames of a clip and had no warnings."""
        return len(decoded.frames) == self.frames and not decoded.concealed and not decoded.complaints

    def decode(self, document: bytes) -> np.ndarray:
        """The frames of a canonical document, uint8 [frames, height, width, 3]; raises as `parse` does."""
        self.parse(document)
        return self.decode_stream(self.restore(document)).frames

    def look(self, document: bytes) -> tuple[bool, np.ndarray, int]:
        """`is_valid` of any bytes, and the result of `decode_leniently`. A valid document is parsed only once."""
        decoded, parses = self.decode_stream(self.restore(document)), self.parses(document)
        readable = self.frames if parses else self.readable_frames(document)
        return parses and self.plays(decoded), self.filled(decoded.frames), readable

    def see(self, stream: bytes) -> np.ndarray:
        """Decodes an ordinary stream leniently, however damaged, to uint8 [frames, height, width, 3].

        Concealed parts are kept; missing frames repeat the last one, or are mid-grey if there is none; surplus ones
        are dropped.
        """
        return self.filled(self.decode_stream(stream).frames)

    def filled(self, frames: np.ndarray) -> np.ndarray:
        """Exactly as many frames as a clip has, from those of a decoder: see `see`."""
        found = frames[: self.frames]
        last = found[-1:] if len(found) else np.full((1, self.height, self.width, 3), 128, np.uint8)
        return np.concatenate([found, np.repeat(last, self.frames - len(found), axis=0)])

    @property
    def items(self) -> "ClipItems":
        return ClipItems(self)

    @property
    def display(self) -> "ClipDisplay":
        return ClipDisplay(self)

    @property
    def evaluation(self) -> "ClipEvaluation":
        return ClipEvaluation(self)


class ClipItems(Items[ClipCodec]):
    """Clips of files, and of folders of frames, whose names end with a slash."""

    def check_data(self, data: Mapping[str, Any]) -> None:
        if data["background"] != DEFAULT_BACKGROUND:
            raise InputError(
                f"data.background={data['background']}: transparent clips are put over {DEFAULT_BACKGROUND} alone"
            )

    def check_source(self, source: Source) -> None:
        if not source.holds_files:
            raise InputError(f"{source.path} holds pixels, and the codec {self.codec.name} reads files of clips")
        self.codec.check_encoder()

    def a_minute(self, variants: int) -> int:
        # a window takes a tenth of a second; each unit of work makes three files
        return max(16, 512 // (1 + variants))

    def names(self, source: Source, passed_over: PassedOver | None = None) -> Iterator[str]:
        return source.clips(passed_over)

    def documents(
        self,
        source: Source,
        name: str,
        variants: int = 0,
        stride: int = 0,
        background: str = DEFAULT_BACKGROUND,
    ) -> list[bytes]:
        """See `Items.documents`. `variants` is a maximum; transparent clips are always put over white."""
        codec, found = self.codec, []
        try:
            for window in self._windows(source, name, 1 + variants, stride or codec.frames):
                found.append(codec.checked(window))
        except Refused as refusal:
            if not found:
                raise
            if refusal.reason != "short":  # "short" is just the film's end
                logging.warning("%s: %d of its windows kept, then: %s", printable(name), len(found), refusal)
        return found

    def encode(self, given: np.ndarray | bytes, background: str) -> bytes:
        codec = self.codec
        return codec.encode(given) if isinstance(given, bytes) else codec.encode_frames(_from_array(given))

    def axes(self, shape: Sequence[int]) -> int:
        return 4

    def _windows(self, source: Source, name: str, count: int, stride: int) -> Iterator[bytes]:
        """The documents of a clip and of its later windows, `count` in total, unless `Refused` ends them."""
        codec = self.codec
        if (stills := source.stills(name)) is not None:
            stills.sort(key=_by_number)
            for number in range(count):
                yield codec.encode_frames(self._frames(source, stills[number * stride :]))
            return
        data = source.read(name)
        yield codec.encode(data)
        if count > 1:
            yield from codec.encode_windows(data, count - 1, stride)

    def _frames(self, source: Source, stills: list[str]) -> Iterator[np.ndarray]:
        """The first of these pictures, as many as a clip has frames, uint8 [height, width, 3] each."""
        frames = self.codec.frames
        if len(stills) < frames:
            raise Refused("short", f"{len(stills)} of {frames} frames")
        for still in stills[:frames]:
            with source.load(still) as image:
                yield np.asarray(upright(image).convert("RGB"))


def _from_array(frames: np.ndarray) -> list[np.ndarray]:
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        wanted = "uint8 [frames, height, width, 3], or a file's bytes"
        raise InputError(f"an array of {frames.dtype} {list(frames.shape)}; wanted is {wanted}")
    return list(np.ascontiguousarray(frames))


def _by_number(name: str) -> list[tuple[int, str]]:
    """Sorts frame2 before frame10, and by name if the numbers are equal."""
    parts = [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split("([0-9]+)", name)]
    return [*parts, (-2, name)]


class ClipDisplay(Display[ClipCodec]):
    """A row of frames for each clip: the original, then completions, with a gap after the given frames."""

    caption: ClassVar[str] = (
        "Of each clip a row of frames for the original, then one for each completion; moving below."
    )
    film_suffixes: ClassVar[tuple[str, ...]] = (".mp4", ".webp")

    def rows(self, prompt: bytes, kept: int, files: Sequence[bytes], original: bytes) -> list[list[Image.Image]]:
        return [[render.strip(self.codec.see(file), kept)] for file in (original, *files)]

    def tile(self, file: bytes) -> Image.Image:
        return render.strip(self.codec.see(file), 0)

    def films(self, file: bytes) -> dict[str, bytes]:
        """An mp4 and an animated WebP."""
        codec = self.codec
        frames = codec.see(file)
        size = f"{codec.width}x{codec.height}"
        fine = ("-c:v", "libx264", "-crf", "12", "-pix_fmt", "yuv420p", "-movflags", "frag_keyframe+empty_moov")
        raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(codec.fps))
        film, _ = ffmpeg.run(raw, frames.tobytes(), (*fine, "-f", "mp4"))
        return {".mp4": film, ".webp": render.animation(frames, codec.fps)}


class ClipEvaluation(Evaluation[ClipCodec]):
    """Judges the frames after the given ones, each as a picture."""

    controls: ClassVar[tuple[str, ...]] = ("last_frame", "random_bytes")
    measures_rest: ClassVar[bool] = True
    least_given: ClassVar[int] = 1  # a control repeats the last given frame
    words: ClassVar[Words] = Words(
        real="frames of real clips",
        completed="the frames after the given ones, each",
        unreadable="as a decoder makes it up",
        shown=(
            "as ffmpeg's decoder makes it up; a frame that is missing shows the one before it. Every clip begins with "
            "the frames that were given."
        ),
        random="between the start codes of its slices",
    )

    def judge(self, document: bytes, kept: int) -> Judged:
        codec = self.codec
        decoded = codec.decode_stream(codec.restore(document))
        missing = max(0, codec.frames - max(kept, len(decoded.frames)))
        made_up = decoded.concealed + missing * codec.macroblocks
        seen = codec.filled(decoded.frames)
        parses = codec.parses(document)
        readable = codec.frames if parses else codec.readable_frames(document)
        scores = {
            "valid": float(codec.plays(decoded) and parses),
            "readable": self.share(readable, kept),
            "concealed": min(1.0, made_up / ((codec.frames - kept) * codec.macroblocks)),
        }
        return Judged(seen, seen[kept:], scores)

    def given(self, ratio: float, kept: int) -> str:
        return f"{kept} of {self.codec.units} {self.codec.unit}s"

    def pieces(self, rest: bytes) -> list[bytes]:
        return self.codec.random_pieces(rest)
