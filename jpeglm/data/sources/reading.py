"""Reads untrusted files in bounded time and memory, with errors that name the file.

A problem with a whole source is an `InputError`, one with a single item is `Refused`.
"""

import contextlib
import errno
import io
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator

from absl import logging
from PIL import Image

from jpeglm.core.errors import InputError, Refused, printable

MOST_BYTES = 512 << 20  # of a file
CHUNK = 1 << 20  # bytes that are read at once
JOINED = "another file that was joined to it, or damage; give joined files one by one"
_LONGEST_DETAIL = 200  # characters


def read_file(path: str | os.PathLike, size: int | None = None) -> bytes:
    """The content of a regular file, or its first `size` bytes; raises `Refused` for anything else, without waiting.

    It is read into memory: a decoder that maps a file dies if another program shortens it.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # before opening, because opening a device can have side effects
            raise Refused("not a regular file", "a folder, pipe, socket or device")
        with open(path, "rb", opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Refused("not a regular file", "it was replaced by a pipe, socket or device")
            if size is None and status.st_size > MOST_BYTES:
                raise Refused("too large", f"a file of {status.st_size >> 20} MiB")
            return file.read(status.st_size if size is None else size)
    except OSError as error:
        raise Refused("unreadable", error.strerror or str(error)) from error


def _without_waiting(path: str, mode: int) -> int:
    return os.open(path, mode | os.O_NONBLOCK)


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Turns any exception of a reader or decoder into `Refused`: on damaged files they raise nearly everything."""
    try:
        yield
    except Refused:
        raise
    except Exception as error:
        raise _refusal(error) from error


def _refusal(error: Exception) -> Refused:
    """Translates an exception of Pillow into a refusal."""
    text = printable(" ".join(str(error).split()))[:_LONGEST_DETAIL]
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return Refused("too large", text)
    if isinstance(error, MemoryError):
        return Refused("too large", "not enough memory to decode it")
    return Refused("broken", f"{type(error).__name__}: {text}")


def refuse_large(size: int) -> None:
    """Raises `Refused` for a file, member or record of more than `MOST_BYTES`."""
    if size > MOST_BYTES:
        raise Refused("too large", f"a file of {size >> 20} MiB")


def open_file(path: str) -> io.BufferedReader:
    """Opens a regular file; raises InputError for anything else, without blocking on a pipe."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InputError(f"{printable(path)}: not a regular file")
        return open(path, "rb")
    except FileNotFoundError as error:
        raise InputError(f"no such file: {printable(path)}") from error
    except OSError as error:
        raise InputError(f"cannot read {printable(path)}: {error.strerror}") from error


@contextlib.contextmanager
def naming(path: str, kind: str) -> Iterator[None]:
    """Turns a library's exception on a damaged or hostile file into one line that names the file."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = printable(" ".join(str(error).split()))[:_LONGEST_DETAIL] or type(error).__name__
        raise InputError(f"cannot read {printable(path)} as a {kind}: {reason}") from error


def pread(descriptor: int, size: int, offset: int) -> bytes:
    """Reads bytes at an offset, without the shared file position."""
    data = os.pread(descriptor, size, offset)
    while len(data) < size:  # a system call returns at most 2 GiB, and less if interrupted
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            raise EOFError(f"the file ends {size - len(data)} bytes too early")
        data += more
    return data


def check_end(descriptor: int, end: int) -> None:
    """Raises ValueError if anything but zeros follows byte `end`, where a file should end.

    Files that were joined, as by `cat`, are such; most readers see the first or the last of them alone.
    """
    while chunk := os.pread(descriptor, CHUNK, end):
        if chunk.strip(b"\0"):
            start = end + len(chunk) - len(chunk.lstrip(b"\0"))
            raise ValueError(f"it ends, and more follows at byte {start}: {JOINED}")
        end += len(chunk)


def to_nameless_file(chunks: Iterable[bytes], path: str) -> io.BufferedIOBase:
    """Writes a file that is gone with this process, whatever ends it."""
    logging.info("unpacking %s to a temporary file in %s", printable(path), tempfile.gettempdir())
    file = tempfile.TemporaryFile()
    try:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        file.seek(0)
    except BaseException as error:
        with contextlib.suppress(OSError):
            file.close()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            reason = f"no room to unpack it in {tempfile.gettempdir()}; TMPDIR names another folder"
            raise InputError(f"cannot read {printable(path)}: {reason}") from error
        raise
    return file
