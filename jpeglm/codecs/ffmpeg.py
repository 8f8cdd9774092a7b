"""The ffmpeg program that comes with imageio-ffmpeg, from bytes to bytes: no file name ever reaches it.

Input comes from one descriptor and output goes to memory, so a hostile playlist or a name that begins with a dash has
nothing to open. Each run uses one thread: `prepare` has a process for each core already.
"""

import functools
import subprocess
import tempfile
from collections.abc import Sequence

import imageio_ffmpeg

from jpeglm.errors import InputError

# Containers that are opened; a playlist (HLS, concat, DASH) is none of them.
DEMUXERS = "mov,matroska,avi,gif,webp_anim,apng,mpegts,mpeg,ogg,flv,asf"
_MAX_PIXELS = 89_478_485  # of a frame: as many as a picture may have
_SECONDS = 300  # that one clip may take


class FfmpegError(InputError):
    """ffmpeg gave up or complained; the message is the first line of what it said."""


def run(before: Sequence[str], data: bytes, after: Sequence[str]) -> tuple[bytes, list[str]]:
    """Runs `ffmpeg BEFORE -i DATA AFTER -`.

    Args:
      before: options of the input.
      data: the file to read.
      after: options of the output, its format among them.

    Returns:
      What it wrote, and the lines it said at level "info" and above, each beginning with where it comes from and its
      level: "[h264 @ 0x5581] [error] ...".

    Raises:
      FfmpegError: a status other than 0, or more than 5 minutes.
    """
    with tempfile.TemporaryFile() as file:  # not a pipe: the index of an mp4 may stand at its end
        file.write(data)
        file.seek(0)
        command = [
            *(imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-hide_banner", "-nostats"),
            *("-loglevel", "repeat+level+info", "-filter_threads", "1"),
            *("-protocol_whitelist", "fd", "-max_pixels", str(_MAX_PIXELS), "-threads", "1", *before),
            *("-fd", "0", "-i", "fd:", *after, "pipe:1"),
        ]
        try:
            done = subprocess.run(command, stdin=file, capture_output=True, timeout=_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise FfmpegError(f"ffmpeg took longer than {_SECONDS} s") from error
    said = done.stderr.decode(errors="replace").splitlines()
    if done.returncode:
        raise FfmpegError((errors(said) or [f"ffmpeg ended with status {done.returncode}"])[0])
    return done.stdout, said


def errors(said: Sequence[str]) -> list[str]:
    """The lines that tell of an error, without where they come from."""
    return [line.partition("[error] ")[2] for line in said if "[error] " in line]


@functools.cache
def version() -> str:
    """What the program calls itself."""
    return imageio_ffmpeg.get_ffmpeg_version()
