"""Runs the ffmpeg program that comes with imageio-ffmpeg, from bytes to bytes: it never gets a file name.

Input comes from a file descriptor and output goes to memory, so a hostile playlist or a name that begins with a dash
cannot open anything. Each run uses one thread, because `prepare` already has a process for each core.
"""

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

import imageio_ffmpeg

from jpeglm.core.errors import InputError, writing

# Containers that may be opened; playlists (HLS, concat, DASH) are excluded.
DEMUXERS = "mov,matroska,avi,gif,webp_anim,apng,mpegts,mpeg,ogg,flv,asf"
MAX_PIXELS = 8192 * 4320  # of a frame; decoding one takes up to 1.3 GB
_SECONDS = 300  # time limit per clip
_MOST_SAID = 1 << 25  # bytes of its messages that are kept: a damaged file can make it print for hours
_ERRORS = ("error", "fatal", "panic")
_STOPPED = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# "[h264 @ 0x5581] [error] ...", without a name "[error] ..."; metadata are lines of level info.
_LINE = re.compile(r"(?:\[([^\] ]*) @ [^\]]*\] )*\[(\w+)\] (.*)")
# Warnings of ffmpeg itself about incomplete data, which decoders may not report.
_CORRUPT = ("corrupt input packet", "corrupt decoded frame")
_SOUND = re.compile(r"Stream #.*: Audio: (\w+)(?: \((\w+)\))?")  # the codec, and the decoder if it is named


class FfmpegError(InputError):
    """ffmpeg failed; the message is its first error."""


def run(before: Sequence[str], data: bytes | Iterable[bytes], after: Sequence[str]) -> tuple[bytes, list[str]]:
    """Runs `ffmpeg BEFORE -i DATA AFTER -`.

    Args:
      before: options of the input.
      data: the content to read, complete or in parts.
      after: options of the output, including its format.

    Returns:
      Its output, and its messages of level "info" and above, each beginning with its origin and level: "[h264 @
      0x5581] [error] ...".

    Raises:
      FfmpegError: a status other than 0, or more than 5 minutes.
      InputError: there is no such program, or no room in TMPDIR.
      RuntimeError: it was killed from outside, for example by Linux when memory runs out.
    """
    with _holding(data) as file:
        program = imageio_ffmpeg.get_ffmpeg_exe()
        command = [
            *(program, "-nostdin", "-hide_banner", "-nostats", "-loglevel", "repeat+level+info"),
            *("-filter_threads", "1", "-protocol_whitelist", "fd", "-max_pixels", str(MAX_PIXELS), "-threads", "1"),
            *(*before, "-fd", "0", "-i", "fd:", *after, "pipe:1"),
        ]
        try:
            process = subprocess.Popen(command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        except OSError as error:
            raise InputError(f"cannot start {program}: {error.strerror}") from error
    output, messages = process.stdout, process.stderr
    assert output and messages  # both are pipes
    said = bytearray()

    def listen() -> None:
        while part := os.read(messages.fileno(), 1 << 16):
            said.extend(part[: _MOST_SAID - len(said)])

    is_late = threading.Event()

    def end() -> None:
        is_late.set()
        process.kill()

    timer, listener = threading.Timer(_SECONDS, end), threading.Thread(target=listen)
    with process:
        timer.start()
        listener.start()
        try:
            written = output.read()
            process.wait()
        finally:
            process.kill()
            timer.cancel()
            listener.join()
    if is_late.is_set():
        raise FfmpegError(f"ffmpeg took longer than {_SECONDS} s")
    if -process.returncode in _STOPPED:
        raise RuntimeError(f"ffmpeg was stopped by {signal.Signals(-process.returncode).name}")
    lines = said.decode(errors="replace").splitlines()
    if process.returncode:
        raise FfmpegError((errors(lines) or [f"ffmpeg ended with status {process.returncode}"])[0])
    return written, lines


@contextlib.contextmanager
def _holding(data: bytes | Iterable[bytes]) -> Iterator[IO[bytes]]:
    """A file with these bytes. Not a pipe, because the index of an mp4 may be at its end."""
    with contextlib.ExitStack() as stack:
        with writing(os.environ.get("TMPDIR", "/tmp")):
            file = stack.enter_context(tempfile.TemporaryFile())
            for part in [data] if isinstance(data, bytes) else data:
                file.write(part)
            file.seek(0)  # flushes
        yield file


def errors(said: Sequence[str]) -> list[str]:
    """The messages of errors, without their origin. Decoders of sound are ignored."""
    return [text for level, text in _without_sound(said) if level in _ERRORS]


def complaints(said: Sequence[str]) -> list[str]:
    """Like `errors`, plus the warnings about incomplete data."""
    return [text for level, text in _without_sound(said) if level in _ERRORS or text.startswith(_CORRUPT)]


def _without_sound(said: Sequence[str]) -> list[tuple[str, str]]:
    """Level and text of each line, without those of decoders of sound."""
    sound = {name for line in said if (found := _SOUND.search(line)) for name in found.groups() if name}
    lines = filter(None, map(_LINE.fullmatch, said))
    return [(line[2], line[3]) for line in lines if line[1] not in sound]


def version() -> str:
    """The program's version string."""
    return imageio_ffmpeg.get_ffmpeg_version()
