"""Checks that a film is undamaged up to the end of a clip, by the order of its packets.

ffmpeg reads, decodes and encodes in separate threads. How far the decoder runs ahead of the encoder varies from run to
run, so a log line may be about frames after the clip's end. The clip needs the packets up to the last one, in decoding
order, whose frame is shown before the clip's end. A complaint counts if the demuxer makes it before that packet, or if
a decoder makes it when given only those packets.
"""

import collections
import math
import re
from collections.abc import Sequence
from fractions import Fraction

from jpeglm.data.codecs import ffmpeg

# Printed by -debug_ts: a packet leaving the demuxer, and a frame leaving the decoder.
_PACKET = re.compile(r"demuxer\+ffmpeg -> ist_index:\d+:(\d+) type:video pkt_pts:(\S+) .*pkt_dts:(\S+) ")
_FRAME = re.compile(r"decoder -> pts:(-?\d+) .*time_base:(\d+)/(\d+)")
_DEMUXER = "[in#"
_OTHER_STREAM = re.compile(r"stream (\d+),")


def dropped_gap(fps: int) -> str:
    """The filter that makes a film start at its first picture.

    If another stream starts earlier than the first picture by half a frame of the clip or more, ffmpeg would repeat
    that picture to fill the gap. Smaller gaps are left as they are.
    """
    return f"setpts=PTS-STARTPTS*gte(abs(STARTT)*{fps}\\,0.5)"


def complaint(before: Sequence[str], data: bytes, options: Sequence[str], frames: int, fps: int) -> str | None:
    """What ffmpeg says is wrong with the packets that a clip needs, or None.

    Args:
      before: options of the input.
      data: the film.
      options: of the output, which must end at the clip's end.
      frames: number of frames at `fps` per second, from the film's first picture to the clip's end.
      fps: frames a second of the clip.

    Raises:
      FfmpegError: as `ffmpeg.run` does.
    """
    _, said = ffmpeg.run(("-debug_ts", *before), data, options)
    needed, complaints = _needed_packets(said, frames, fps)
    if complaints or not needed:
        return (complaints or ["no packet has a time stamp"])[0]
    # The second run decodes nothing: it gets the messages of the demuxer and its parsers about the whole file.
    decoded, read = (collections.Counter(_complaints_of(before, data, drop)) for drop in (f"gte(n\\,{needed})", "1"))
    return next(iter(decoded - read), None)


def _complaints_of(before: Sequence[str], data: bytes, drop: str) -> list[str]:
    """The complaints of ffmpeg when it decodes only the packets for which the expression `drop` is 0."""
    nothing = ("-an", "-sn", "-dn", "-f", "null")
    return ffmpeg.complaints(ffmpeg.run((*before, "-bsf:v", f"noise=drop={drop}"), data, nothing)[1])


def _needed_packets(said: Sequence[str], frames: int, fps: int) -> tuple[int, list[str]]:
    """How many packets a clip needs, and the demuxer's complaints before the last of them."""
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
