"""Decodes any stream with ffmpeg's H.264 decoder, however damaged, with the same result in every run.

If a slice is lost, the decoder shows whatever its frame's memory held before. ffmpeg runs decoder and filters in
separate threads, and reuses the memory of frames that were written out. So the look of damage would depend on which
thread was faster. Here no frame is released before the last one is decoded, so each one starts as zeros.
"""

import dataclasses
import re

import numpy as np

from jpeglm.data.codecs import ffmpeg

_CONCEALED = re.compile(r"\[h264 @ (\w+)\] \[info\] concealing (\d+) DC")
_DECODED = "decoder -> "  # printed by -debug_ts after the messages about that frame
_COMPLAINT = re.compile(r"(?:\[[^\]]*h264[^\]]*\] )+\[(?:warning|error|fatal|panic)\] ")  # of H.264's decoder
# ffmpeg stores the references of at most 32 slices per picture when it filters edges, and warns about more. All slices
# of one of our pictures share their references, so the warning can be ignored; openh264 decodes the same pixels.
_VOID = "Possibly too many slices"


@dataclasses.dataclass(frozen=True)
class Decoded:
    """The result of decoding a stream.

    Attributes:
      frames: uint8 [frames, height, width, 3], possibly none.
      concealed: number of macroblocks that it concealed in the requested frames.
      complaints: its messages of level "warning" and above.
    """

    frames: np.ndarray
    concealed: int
    complaints: list[str]


def decode(stream: bytes, frames: int, height: int, width: int, fps: int) -> Decoded:
    """Decodes an Annex B stream.

    Args:
      stream: any bytes.
      frames: number requested; one more is returned if the stream has more.
      height: of the frames, in pixels; those of another size are scaled.
      width: likewise.
      fps: frames per second; the look of damage can depend on it.
    """
    # `reverse` outputs nothing before the end, and holds all frames until then. `select` bounds endless streams. A
    # change of size midway is left to `scale`: if filters were recreated, the frames in `reverse` would be lost.
    filters = f"select=lt(n\\,{frames + 1}),reverse,reverse,scale={width}:{height}"
    # swscale's fast paths round differently on other processors.
    exact = ("-sws_flags", "bitexact+accurate_rnd+full_chroma_int", "-pix_fmt", "rgb24", "-f", "rawvideo")
    options = ("-debug_ts", "-reinit_filter", "0", "-framerate", str(fps), "-f", "h264")
    try:
        raw, said = ffmpeg.run(options, stream, ("-vf", filters, "-fps_mode", "passthrough", *exact))
    except ffmpeg.FfmpegError as error:
        return Decoded(np.empty((0, height, width, 3), np.uint8), 0, [str(error)])
    size = height * width * 3
    found = np.frombuffer(raw[: len(raw) // size * size], np.uint8).reshape(-1, height, width, 3)
    complaints = [line for line in said if _COMPLAINT.match(line) and _VOID not in line]
    return Decoded(found[: frames + 1], _concealed(said, frames), complaints)


def _concealed(said: list[str], frames: int) -> int:
    """Number of macroblocks that were concealed before `frames` frames were decoded."""
    # Counted per decoder: ffmpeg probes the first frames with one, then decodes all with another.
    counts: dict[str, int] = {}
    decoded = 0
    for line in said:
        if found := _CONCEALED.match(line):
            counts[found[1]] = counts.get(found[1], 0) + int(found[2])
        elif _DECODED in line:
            decoded += 1
            if decoded == frames:
                break
    return max(counts.values(), default=0)
