"""What ffmpeg's H.264 decoder makes of a stream, however damaged: the same in every run.

Where a slice is lost, the decoder leaves or reads what its frame's memory held before. The program runs its decoder
and its filters in threads of their own, and the memory of frames that were written out is used again for new ones. So
what damage looks like would depend on which thread was faster. Here no frame is released before the last one is
decoded, and each begins as zeros.
"""

import dataclasses
import re

import numpy as np

from jpeglm.data.codecs import ffmpeg

_CONCEALED = re.compile(r"\[h264 @ (\w+)\] \[info\] concealing (\d+) DC")
_DECODED = "decoder -> "  # by -debug_ts, after what was said of that frame
_COMPLAINT = re.compile(r"(?:\[[^\]]*h264[^\]]*\] )+\[(?:warning|error|fatal|panic)\] ")  # of H.264's decoder
# ffmpeg has room for the references of 32 slices a picture when it filters edges. All slices of one of our pictures
# share their references, so the warning is void; openh264 decodes the same pixels.
_VOID = "Possibly too many slices"


@dataclasses.dataclass(frozen=True)
class Decoded:
    """What ffmpeg makes of a stream.

    Attributes:
      frames: uint8 [frames, height, width, 3], perhaps none.
      concealed: macroblocks that it had to make up, in frames that were asked for.
      complaints: what it said at level "warning" and above.
    """

    frames: np.ndarray
    concealed: int
    complaints: list[str]


def decode(stream: bytes, frames: int, height: int, width: int, fps: int) -> Decoded:
    """Decodes an Annex B stream.

    Args:
      stream: any bytes.
      frames: how many are asked for; one more is returned where there are more.
      height: of the frames, in pixels; those of another size are scaled.
      width: likewise.
      fps: frames a second; what damage looks like can depend on it.
    """
    # `reverse` gives nothing before the end, and holds each frame until then. `select` is for streams without end. A
    # size that changes midway goes to `scale`: filters that were made again would lose what `reverse` holds.
    filters = f"select=lt(n\\,{frames + 1}),reverse,reverse,scale={width}:{height}"
    # swscale's own fast paths round otherwise on other processors.
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
    """Macroblocks that were made up before so many frames were decoded."""
    # By decoder: ffmpeg looks at the first frames with one, then decodes all with another.
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
