"""Whether a film is whole as far as a clip needs it, decided by the order of its packets.

ffmpeg reads, decodes and encodes in threads of their own. How many frames the decoder runs ahead of the encoder varies
from run to run, so a line in the log may be about frames after the clip's end. What the clip needs are the packets up
to the last one, in decoding order, whose frame is shown before the clip's end. A complaint counts if the demuxer makes
it before that packet, or if a decoder makes it that is given those packets and no others.
"""

import collections
import math
import re
from collections.abc import Sequence
from fractions import Fraction

from jpeglm.data.codecs import ffmpeg

# By -debug_ts: a packet as it leaves the demuxer, and a frame as it leaves the decoder.
_PACKET = re.compile(r"demuxer\+ffmpeg -> ist_index:\d+:(\d+) type:video pkt_pts:(\S+) .*pkt_dts:(\S+) ")
_FRAME = re.compile(r"decoder -> pts:(-?\d+) .*time_base:(\d+)/(\d+)")
_DEMUXER = "[in#"
_OTHER_STREAM = re.compile(r"stream (\d+),")


def dropped_gap(fps: int) -> str:
    """The filter that lets a film begin at its first picture.

    A first picture that lies half a frame of the clip or more from the film's beginning, which another stream makes,
    would be repeated to fill the gap. Nearer ones stay where they are.
    """
    return f"setpts=PTS-STARTPTS*gte(abs(STARTT)*{fps}\\,0.5)"


def complaint(before: Sequence[str], data: bytes, options: Sequence[str], frames: int, fps: int) -> str | None:
    """What ffmpeg says is wrong with the packets that a clip needs, or None.

    Args:
      before: options of the input.
      data: the film.
      options: of the output, which ends at the clip's end.
      frames: of the film at `fps` frames a second, from its first picture to the clip's end.
      fps: frames a second of the clip.

    Raises:
      FfmpegError: as `ffmpeg.run` does.
    """
    _, said = ffmpeg.run(("-debug_ts", *before), data, options)
    needed, complaints = _needed_packets(said, frames, fps)
    if complaints or not needed:
        return (complaints or ["no packet has a time stamp"])[0]
    # The second run decodes nothing: it says what the demuxer and its parsers say, about the whole file.
    decoded, read = (collections.Counter(_complaints_of(before, data, drop)) for drop in (f"gte(n\\,{needed})", "1"))
    return next(iter(decoded - read), None)


def _complaints_of(before: Sequence[str], data: bytes, drop: str) -> list[str]:
    """What ffmpeg complains of when it decodes the packets for which the expression `drop` is 0."""
    nothing = ("-an", "-sn", "-dn", "-f", "null")
    return ffmpeg.complaints(ffmpeg.run((*before, "-bsf:v", f"noise=drop={drop}"), data, nothing)[1])


def _needed_packets(said: Sequence[str], frames: int, fps: int) -> tuple[int, list[str]]:
    """How many packets a clip needs, and what the demuxer complained of before the last of them."""
    stamps, stream, start, seconds, complaints = [], None, None, Fraction(1), []
    for line in said:
        if found := _PACKET.search(line):
            stream, *stamp = found.groups()
            stamps.append(next((int(text) for text in stamp if text != "NOPTS"), None))
        elif start is None and (found := _FRAME.search(line)):
            start, seconds = int(found[1]), Fraction(int(found[2]), int(found[3]))
        elif line.startswith(_DEMUXER):
            complaints += [(len(stamps), text) for text in ffmpeg.complaints([line])]
    frame = seconds * fps
    gap = start if start is not None and abs(start * frame) >= Fraction(1, 2) else 0

    def is_shown(stamp: int | None) -> bool:
        return stamp is not None and math.floor((stamp - gap) * frame + Fraction(1, 2)) < frames

    needed = max((number for number, stamp in enumerate(stamps, start=1) if is_shown(stamp)), default=0)
    counted = []
    for number, text in complaints:
        other = _OTHER_STREAM.match(text)
        if number < needed and not (other and other[1] != stream):
            counted.append(text)
    return needed, counted
