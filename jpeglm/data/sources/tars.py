"""The members of a tar file, which may be compressed as a whole.

A compressed one cannot be read in place: it is unpacked once a process to a file without a name in the folder for
temporary files (TMPDIR).
"""

import bz2
import gzip
import io
import lzma
import os
import tarfile
from collections.abc import Callable, Iterator
from typing import ClassVar

from jpeglm.core.errors import Refused
from jpeglm.data.sources import listing
from jpeglm.data.sources.archives import Archive, by_name, refuse_unsafe
from jpeglm.data.sources.reading import (
    CHUNK,
    check_end,
    naming,
    open_file,
    pread,
    refuse_large,
    refusing,
    to_nameless_file,
)

_LONGEST_HEADER = 1 << 20  # bytes, of a member
_XZ_MEMORY = 256 << 20  # bytes for its dictionary; xz -9 takes 65 MiB
_BLOCK = tarfile.BLOCKSIZE


class Tar(Archive):
    """The members of a .tar file, which may be compressed as a whole."""

    suffixes: ClassVar[tuple[str, ...]] = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

    def __init__(self, path: str):
        super().__init__(path)
        file = open_file(path)
        with naming(path, "tar file"):
            self._file = _unpacked(file, path)
            self._members, self._replaced = by_name(_list_tar(self._file.fileno()))

    def read(self, name: str) -> bytes:
        offset, size = self._members[name]
        refuse_unsafe(name)
        if size is None:
            raise Refused("not a regular file", "a link or device in the archive, or a file with holes")
        refuse_large(size)
        with refusing():
            return pread(self._file.fileno(), size, offset)

    def start(self, name: str) -> bytes:
        offset, size = self._members[name]
        with refusing():
            return pread(self._file.fileno(), min(size or 0, listing.START), offset)


class _Headers(io.FileIO):
    """A tar file for reading headers with a size limit; tarfile alone would load one of any length into memory."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _list_tar(descriptor: int) -> Iterator[tuple[str, tuple[int, int | None]]]:
    """Name, offset and size of each member that is not a folder; no size if it is not a regular file.

    tarfile treats a damaged header, and the end of a truncated file, as the end of the archive.
    """
    end = -1
    with tarfile.open(fileobj=_Headers(descriptor, closefd=False), mode="r:", errors="surrogateescape") as tar:
        while (member := tar.next()) is not None:
            if tar.offset <= end:
                raise tarfile.ReadError(f"it goes back at byte {end}")
            end = tar.offset
            tar.members = []  # type: ignore[attr-defined]  # or it keeps them all; typeshed does not know it
            if not member.isdir():
                is_plain = member.isreg() and not member.issparse()
                yield member.name.removeprefix("./"), (member.offset_data, member.size if is_plain else None)
        if os.pread(descriptor, _BLOCK, tar.offset) != bytes(_BLOCK):
            raise tarfile.ReadError(f"it is damaged or cut off at byte {tar.offset}")
        check_end(descriptor, tar.offset)


def _unpacked(file: io.BufferedReader, path: str) -> io.BufferedIOBase:
    """`file` itself, or an unnamed file with its decompressed content."""
    start = os.pread(file.fileno(), 6, 0)
    if start.startswith(b"\x1f\x8b"):
        stream = gzip.open(file)
    elif start.startswith(b"BZh"):
        return to_nameless_file(_decompressed(file, bz2.BZ2Decompressor), path)
    elif start == b"\xfd7zXZ\x00":
        # `lzma.open` would allocate up to 4 GiB if the file's header asks for it.
        return to_nameless_file(_decompressed(file, lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY)), path)
    else:
        return file
    return to_nameless_file(iter(lambda: stream.read(CHUNK), b""), path)


def _decompressed(
    file: io.BufferedReader, decoder_of: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor]
) -> Iterator[bytes]:
    """The chunks of all streams of a compressed file; only zeros may come between and after them."""
    data = file.read(CHUNK)
    while data:
        decoder = decoder_of()
        while not decoder.eof:
            if decoder.needs_input and not data:
                data = file.read(CHUNK)
                if not data:
                    raise EOFError("it is cut off")
            yield decoder.decompress(data, CHUNK)
            data = b""
        data = decoder.unused_data.lstrip(b"\0")
        while not data and (more := file.read(CHUNK)):
            data = more.lstrip(b"\0")
