"""H.264 as a language: canonical documents of clips, strict and lenient decoding, and cuts between frames.

A document is the Annex B stream that ffmpeg's libx264 writes with the paper's options (AVC-LM, section 3.1): each
macroblock is a separate slice, after a start code. With `strip_headers` the parameter sets and x264's message about
itself, which are the same for every clip of one size, are left out and put back by `AvcCodec.restore`.

| input | result |
|---|---|
| another frame rate, or a variable one | resampled by ffmpeg's `fps` filter |
| another aspect | scaled to fit, black bars around it |
| rotation in the metadata | applied |
| transparency in GIF, WebP and APNG | over white; in other containers it is ignored |
| a first picture later than the sound | the film begins at it; a gap below half a frame of the clip stays |
| more than the clip's length | the beginning |
| several video streams | as ffmpeg chooses: the largest; one marked as default counts 5 million pixels more |
| side data: captions, HDR, 3D and all others | left out; x264 would write them as further SEI messages |
| scene cuts | x264 starts again there: parameter sets and an IDR picture in the middle of the document |
| fewer frames than a clip has, the cover of a song | refused, "short" |
| audio alone | refused, "no video" |
| damage that ffmpeg tells of, in what the clip needs | refused, "broken"; see `film` |
| damage after the clip's end, a file cut off there | kept |
| a still picture, a playlist, nothing that ffmpeg knows | refused, "not a clip" |
| frames of more than 89 million pixels, more than 5 minutes of work | refused, "too large" |
| other tags in the header than colour and aspect differ (`strip_headers`) | refused, "other header" |
"""

import bisect
import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterable, Iterator
from typing import ClassVar

import numpy as np

from jpeglm.core.errors import InputError, Refused
from jpeglm.core.ranges import INTEGER, SWITCH
from jpeglm.core.registry import Section
from jpeglm.data.codecs import avc_decoder, avc_header, avc_parser, ffmpeg, film
from jpeglm.data.codecs.avc_decoder import Decoded
from jpeglm.data.codecs.avc_header import IDR, PPS, SEI, SPS, AvcError, Nal
from jpeglm.data.codecs.avc_parser import Clip
from jpeglm.data.codecs.clips import ClipCodec

__all__ = ["AvcCodec", "AvcError", "Decoded"]

_MACROBLOCK = 16  # pixels
_MOST_MACROBLOCKS = 36_864  # of a frame: levels 5.1 and 5.2, Table A-1 of ITU-T H.264
_OVER_WHITE = "split[white][clip];[white]drawbox=c=white:t=fill:replace=1[white];[white][clip]overlay=format=auto,"
_START_CODE = rb"(\x00?\x00\x00\x01)"
_FILM = ("-format_whitelist", ffmpeg.DEMUXERS)  # how a source is opened


@dataclasses.dataclass(frozen=True)
class AvcCodec(ClipCodec):
    """Canonical H.264 documents of one size, length and quantiser (AVC-LM, section 3.1).

    Raises:
      InputError: a size, rate, length or quantiser that the format does not have.
    """

    name: ClassVar[str] = "avc"
    extension: ClassVar[str] = ".h264"
    separator_behavior: ClassVar[str] = "merged_with_next"  # merges end before each slice and each frame
    SECTION: ClassVar[Section] = {  # AVC-LM, sections 3.1 and 4.2: the first 5 seconds of a film
        "height": (144, INTEGER),
        "width": (256, INTEGER),
        "fps": (3, INTEGER),
        "frames": (15, INTEGER),
        "qp": (37, INTEGER),
        "strip_headers": (False, SWITCH),
    }

    height: int  # pixels, a multiple of 16
    width: int
    fps: int  # frames a second
    frames: int  # of a clip
    qp: int  # quantiser, 1 (fine) to 51 (coarse)
    strip_headers: bool  # leave out parameter sets and messages; the paper keeps them

    def __post_init__(self) -> None:
        for key in ("height", "width"):
            if not 16 <= getattr(self, key) <= 4096 or getattr(self, key) % _MACROBLOCK:
                raise InputError(f"config.codec.{key}: {getattr(self, key)} is no multiple of 16 within 16 to 4096")
        if self.macroblocks > _MOST_MACROBLOCKS:
            raise InputError(f"config.codec: {self.width}x{self.height} pixels are more than a frame may have")
        for key, most in (("fps", 240), ("frames", 10_000), ("qp", 51)):
            if not 1 <= getattr(self, key) <= most:
                raise InputError(f"config.codec.{key}: {getattr(self, key)} is not within 1 to {most}")

    @property
    def macroblocks(self) -> int:
        """Macroblocks, and so slices, of one frame."""
        return self.height * self.width // _MACROBLOCK**2

    @property
    def separator_regex(self) -> str:
        """A start code, over text in which byte b is chr(0x2800 + b)."""
        zero, one = chr(0x2800), chr(0x2801)
        return f"{zero}?{zero}{zero}{one}"

    @functools.cached_property
    def header(self) -> bytes:
        """The beginning of a clip: SPS, PPS and x264's message with its version and options, 583 bytes at 256x144."""
        grey = np.full((self.height, self.width, 3), 128, np.uint8)
        stream = self._encode_raw(grey.shape, [grey], "setsar=1,")  # the most common aspect tag
        nals = avc_header.split(stream)
        return stream[: next(nal.start for nal in nals if nal.type == IDR)]

    def header_of(self, document: bytes) -> bytes:
        """SPS, PPS and x264's message, as `header`, but with the clip's own tags of colour and aspect."""
        if self.strip_headers:
            return b""
        return document[: next((nal.start for nal in avc_header.split(document) if nal.type == IDR), 0)]

    def check_encoder(self) -> None:
        """Raises InputError if ffmpeg or its x264 does not work here."""
        try:
            self.header  # noqa: B018  a trial
        except ffmpeg.FfmpegError as error:
            raise InputError(f"ffmpeg cannot encode: {error}") from error

    def encode(self, data: bytes, first: int = 0) -> bytes:
        """Returns the canonical document of a clip.

        Args:
          data: a file: mp4, mov, mkv, webm, avi, gif, animated webp or png, mpeg, ogg, flv, asf.
          first: the clip's first frame, counted at the codec's rate from the film's first picture.

        Raises:
          Refused: by the table above.
        """
        return self._clip(_FILM, data, _over_white(data), first)

    def encode_windows(self, data: bytes, count: int, stride: int) -> Iterator[bytes]:
        """Yields the documents of `count` windows, from frame `stride`, 2 * `stride`, ... on, as `encode` gives them.

        The film is decoded only once: its resampled and scaled frames are kept as lossless H.264, which can carry
        every tag of the windows' own header. If a film is damaged anywhere, each window is decoded separately, up to
        the damage.

        Raises:
          Refused: as `encode` does; "short" after the last window.
        """
        last = ("-frames:v", str(count * stride + self.frames))
        lossless = ("-pix_fmt", "yuv420p", "-an", "-sn", "-c:v", "libx264", "-qp", "0", "-preset", "ultrafast")
        filters = self._filters(_over_white(data))
        options = ("-vf", filters, *last, *lossless, "-threads", "1", "-f", "h264")
        try:
            frames, said = ffmpeg.run(_FILM, data, options)
            is_whole = not ffmpeg.complaints(said)
        except ffmpeg.FfmpegError:
            is_whole = False
        kept = ("-framerate", str(self.fps), "-f", "h264")
        for first in range(stride, (1 + count) * stride, stride):
            yield self._clip(kept, frames, "", first) if is_whole else self.encode(data, first)

    def _clip(self, before: tuple[str, ...], data: bytes, first_filters: str, first: int) -> bytes:
        """The document of a film from frame `first` on; raises `Refused`."""
        options = self._options(first_filters, first)
        try:
            written, said = ffmpeg.run(before, data, options)
            wrong = ffmpeg.complaints(said) and film.complaint(before, data, options, first + self.frames, self.fps)
        except ffmpeg.FfmpegError as error:
            raise _refusal(str(error)) from error
        if wrong:
            raise Refused("broken", wrong)
        return self._document(written)

    def encode_frames(self, frames: Iterable[np.ndarray]) -> bytes:
        """Returns the canonical document of pictures, uint8 [height, width, 3] each, `fps` of them a second.

        They are consumed one at a time, no more than a clip has.

        Raises:
          Refused: fewer than the codec's number of frames, frames of different sizes, or too large or narrow ones.
        """
        frames = itertools.islice(frames, self.frames)
        first = next(frames, None)
        if first is None:
            raise Refused("short", f"0 of {self.frames} frames")
        if first.shape[0] * first.shape[1] > ffmpeg.MAX_PIXELS:
            raise Refused("too large", f"frames of {first.shape[1]}x{first.shape[0]} pixels")
        count = 1

        def checked() -> Iterator[np.ndarray]:
            nonlocal count
            yield first
            for frame in frames:
                if frame.shape != first.shape:
                    sizes = [f"{shape[1]}x{shape[0]}" for shape in (frame.shape, first.shape)]
                    raise Refused("sizes", f"frame {count} has {sizes[0]} pixels, the first {sizes[1]}")
                count += 1
                yield frame

        try:
            stream = self._encode_raw(first.shape, checked())
        except ffmpeg.FfmpegError as error:
            raise _refusal(str(error)) from error
        if count < self.frames:
            raise Refused("short", f"{count} of {self.frames} frames")
        return self._document(stream)

    def strip(self, stream: bytes) -> bytes:
        """Returns the document of a complete stream or of the beginning of one: the inverse of `restore`.

        Raises:
          AvcError: the parameter sets are not the codec's, apart from tags of colour and aspect.
        """
        if not self.strip_headers:
            return stream
        expected = {nal.type: _content(self.header, nal) for nal in avc_header.split(self.header)}
        parts, first = [], True
        for nal in avc_header.split(stream):
            content = _content(stream, nal)
            if nal.type == SPS:
                if avc_header.without_tags(content) != avc_header.without_tags(expected[SPS]):
                    raise AvcError(f"byte {nal.start}: the sequence parameter set is not that of the codec")
            elif nal.type == PPS:
                if content != expected[PPS]:
                    raise AvcError(f"byte {nal.start}: the picture parameter set is not that of the codec")
            elif nal.type != SEI:
                start_code = b"\0\0\0\1" if first else stream[nal.start : nal.begin]
                parts.append(start_code + content)
                first = False
                continue
            first = True
        return b"".join(parts)

    def restore(self, document: bytes) -> bytes:
        """Returns the ordinary stream of a document or of the beginning of one; damaged ones stay damaged."""
        if not self.strip_headers:
            return document
        parameters = self.header[: next(nal.start for nal in avc_header.split(self.header) if nal.type == SEI)]
        # The first slice of a frame has a start code of four bytes, but of three after parameter sets.
        pieces = re.split(rb"\x00\x00\x00\x01(?=\x65)", document)
        return (self.header + b"\0\0\1" if len(pieces) > 1 and not pieces[0] else pieces[0]) + (
            parameters + b"\0\0\1"
        ).join(pieces[1:])

    def parse(self, document: bytes) -> Clip:
        """Parses a canonical document; see `avc_parser`.

        Raises:
          AvcError: the document is anything else; one line names the byte offset, frame and slice, and what is wrong.
        """
        clip = self._parse_any(document)
        if (clip.width, clip.height) != (self.width, self.height):
            raise AvcError(f"a clip of {clip.width}x{clip.height} pixels, not {self.width}x{self.height}")
        if len(clip.starts) != self.frames:
            raise AvcError(f"byte {len(document)}: {len(clip.starts)} frames, a clip has {self.frames}")
        return clip

    def parses(self, document: bytes) -> bool:
        """Says whether `parse` accepts the document."""
        try:
            self.parse(document)
        except AvcError:
            return False
        return True

    def readable_frames(self, document: bytes) -> int:
        """How many complete frames at the beginning of any bytes parse strictly, at most as many as a clip has."""
        # Every start code of 4 bytes but that of a PPS; the end, or where the zeros at the end begin.
        starts = [found.start() for found in re.finditer(rb"\x00\x00\x00\x01(?!\x68)", document)]

        def frames(end: int) -> int:
            try:
                return len(self._parse_any(document[:end]).starts)
            except AvcError:
                return 0

        # In a valid stream, frames begin only there. So prefixes that end at these offsets parse up to one of them and
        # not beyond, which allows a binary search.
        ends = [*starts[1 : self.frames + 1], len(document.rstrip(b"\0")), len(document)]
        readable = bisect.bisect(ends, 0, key=lambda end: not frames(end))
        return min(frames(ends[readable - 1]), self.frames) if readable else 0

    def decode_stream(self, stream: bytes) -> Decoded:
        """Decodes an ordinary stream with ffmpeg, however damaged; there may be no frame at all."""
        return avc_decoder.decode(stream, self.frames, self.height, self.width, self.fps)

    def cut(self, document: bytes, ratio: float | None = None, *, frames: int | None = None) -> tuple[bytes, int]:
        """Returns the beginning of a canonical document, up to the end of a frame, and how many frames it keeps.

        Args:
          document: a valid one.
          ratio: floor(ratio * frames of the clip) frames are kept; a product within 1e-9 of the next whole number is
            rounded up to it.
          frames: the number of frames, instead of a ratio.

        Raises:
          InputError: a ratio outside [0, 1], or frames outside 0 to the clip's; as `AvcError`, an invalid document.
        """
        if ratio is not None and frames is None:
            frames = self.units_of(ratio)
        elif ratio is not None or frames is None:
            raise InputError("a ratio or a number of frames is needed, and not both")
        if not 0 <= frames <= self.frames:
            raise InputError(f"{frames} frames kept of a clip of {self.frames}")
        return document[: self.parse(document).ends[frames - 1] if frames else 0], frames

    def complete_with_last(self, prefix: bytes, frames_kept: int) -> bytes:
        """Returns a complete document: a prefix from `cut`, then its last frame repeated.

        Each macroblock is skipped: it copies the same macroblock of the previous frame exactly.

        Raises:
          InputError: `frames_kept` is outside 1 to the clip's; as `AvcError`, the prefix is not valid.
        """
        if not 1 <= frames_kept <= self.frames:
            raise InputError(f"{frames_kept} frames kept of a clip of {self.frames}: there must be one to repeat")
        is_idr = self._parse_any(prefix).is_idr
        since_idr = frames_kept - int(np.flatnonzero(is_idr)[-1])
        parts = [prefix]
        for frame_num in range(since_idr, since_idr + self.frames - frames_kept):
            for macroblock in range(self.macroblocks):
                start_code = b"\0\0\1" if macroblock else b"\0\0\0\1"
                parts += [start_code, avc_parser.skipped_slice(self._parameters, macroblock, frame_num)]
        return b"".join(parts)

    def random_pieces(self, rest: bytes) -> list[bytes]:
        """The rest of a document, split at its start codes, which are at the odd indices."""
        return re.split(_START_CODE, rest)

    def encoder_versions(self) -> dict[str, str]:
        """Returns the versions of the programs that write the bytes."""
        build = re.search(rb"x264 - core (\d+)[^-]*", self.header)
        return {"ffmpeg": ffmpeg.version(), "x264": build[0].decode().strip() if build else "unknown"}

    @functools.cached_property
    def _parameters(self) -> avc_header.Parameters:
        nals = {nal.type: _content(self.header, nal) for nal in avc_header.split(self.header)}
        return avc_header.read_pps(nals[PPS], avc_header.read_sps(nals[SPS]))

    def _parse_any(self, document: bytes) -> Clip:
        """Parses a stream of any size and number of frames."""
        return avc_parser.parse(document, self._parameters if self.strip_headers else None)

    def _encode_raw(self, shape: tuple[int, ...], frames: Iterable[np.ndarray], first_filters: str = "") -> bytes:
        height, width, _ = shape
        before = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(self.fps))
        return ffmpeg.run(before, (frame.tobytes() for frame in frames), self._options(first_filters))[0]

    def _filters(self, first_filters: str = "", first: int = 0) -> str:
        size = f"{self.width}:{self.height}"
        scale = f"scale={size}:force_original_aspect_ratio=decrease"
        if self.strip_headers:
            # strip_headers removes the tag of full range, so convert such films; they are rare
            scale += ":out_range=tv"
        # A filter instead of -ss: seeking differs between containers, and WebP cannot seek.
        window = f"trim=start_frame={first},setpts=PTS-STARTPTS," if first else ""
        pad = f"pad={size}:(ow-iw)/2:(oh-ih)/2"
        # Without side data x264 writes no message except the one about itself.
        return f"{first_filters}{film.dropped_gap(self.fps)},fps={self.fps},{window}{scale},{pad},sidedata=delete"

    def _options(self, first_filters: str = "", first: int = 0) -> tuple[str, ...]:
        """The paper's options (appendix B); `-t` is 5 there, 15 frames at 3 a second."""
        seconds = math.floor(1e6 * self.frames / self.fps) / 1e6
        return (
            *("-vf", self._filters(first_filters, first), "-t", f"{seconds:g}", "-c:v", "libx264"),
            *("-pix_fmt", "yuv420p", "-profile:v", "baseline", "-qp", str(self.qp), "-bf", "0", "-an", "-sn"),
            *("-x264opts", "slice-max-mbs=1", "-trellis", "0", "-me_method", "dia", "-threads", "1", "-subq", "0"),
            *("-psy", "0", "-mixed-refs", "0", "-fast-pskip", "0", "-partitions", "none", "-refs", "3"),
            *("-bsf:v", "h264_mp4toannexb", "-f", "h264"),
        )

    def _document(self, stream: bytes) -> bytes:
        """The document of a stream from the encoder; raises `Refused`."""
        slices = sum(nal.type not in (SPS, PPS, SEI) for nal in avc_header.split(stream)) if stream else 0
        if slices != self.frames * self.macroblocks:
            raise Refused("short", f"{slices // self.macroblocks} of {self.frames} frames")
        try:
            return self.strip(stream)
        except AvcError as error:
            raise Refused("other header", str(error)) from error


def _over_white(data: bytes) -> str:
    """The first filters for an animation."""
    is_animation = data[:4] in (b"GIF8", b"\x89PNG") or data[8:12] == b"WEBP"
    return _OVER_WHITE if is_animation else ""


def _content(stream: bytes, nal: Nal) -> bytes:
    return stream[nal.begin : nal.end]


def _refusal(said: str) -> Refused:
    """Translates ffmpeg's first error message into the reason for refusing the clip."""
    if "does not contain any stream" in said:
        return Refused("no video", said)
    if "Invalid data found" in said or "not on whitelist" in said:
        return Refused("not a clip", said)
    if "took longer" in said or "Picture size" in said:
        return Refused("too large", said)
    return Refused("broken", said)
