"""Pictures that lie in one file: zip, tar, ArrayRecord and numpy's formats. They are sources as in `sources`.

Members are found by where they lie and read by that, never unpacked to a named file: a member's name is a label, and
links, devices and paths that lead out of the archive can do nothing. What cannot be read in place (a compressed tar,
a compressed .npz) is unpacked once a process to a file without a name in the folder for temporary files (TMPDIR).
"""

import bz2
import contextlib
import errno
import gzip
import io
import lzma
import math
import os
import stat
import struct
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

import grain
import numpy as np
from absl import logging
from PIL import Image

from jpeglm.data import sources
from jpeglm.data.sources import Files, Source
from jpeglm.errors import InputError, Refused, printable

RECORDS = ".array_record"
_CHUNK = 1 << 20
_LONGEST_HEADER = 1 << 20  # bytes, of a tar's member or a numpy array
_XZ_MEMORY = 256 << 20  # bytes for its dictionary; xz -9 takes 65 MiB
_BLOCK = tarfile.BLOCKSIZE


class Zip(Files):
    """The members of a .zip file, by name; sorted as a folder is."""

    def __init__(self, path: str):
        self.path = path
        with _naming(path, "zip file"):
            self._zip = zipfile.ZipFile(_open(path))
        self._members = {info.filename: info for info in self._zip.infolist() if not info.is_dir()}
        self._lock = threading.Lock()  # opening a member counts what is open, in steps that a thread could interrupt

    def names(self) -> Iterator[str]:
        return _sorted_as_in_folders(self._members)

    def read(self, name: str) -> bytes:
        member = self._members[name]
        _refuse_unsafe(name)
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
            raise Refused("not a regular file", "a link or device in the archive")
        if member.flag_bits & 1:
            raise Refused("unreadable", "it is encrypted")
        if member.compress_type not in _BOUNDED:
            raise Refused("unreadable", f"compression method {member.compress_type}, not stored or deflated")
        _refuse_large(member.file_size)
        with sources.refusing():
            with self._lock:
                file = self._zip.open(member)
            try:
                data = file.read(member.file_size)  # no more, whatever is behind it; then the checksum is wrong
            finally:
                with self._lock:
                    file.close()
        return data


_BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile unpacks others without a limit of memory


class Tar(Files):
    """The members of a .tar file, which may be compressed as a whole, by name; sorted as a folder is."""

    def __init__(self, path: str):
        self.path = path
        file = _open(path)
        with _naming(path, "tar file"):
            self._file = _unpacked(file, path)
            self._members = _list_tar(self._file.fileno())

    def names(self) -> Iterator[str]:
        return _sorted_as_in_folders(self._members)

    def read(self, name: str) -> bytes:
        offset, size = self._members[name]
        _refuse_unsafe(name)
        if size is None:
            raise Refused("not a regular file", "a link or device in the archive, or a file with holes")
        _refuse_large(size)
        with sources.refusing():
            return _pread(self._file.fileno(), size, offset)


class _Headers(io.FileIO):
    """A tar file from which its headers are read; tarfile alone would hold one of any length in memory."""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _list_tar(descriptor: int) -> dict[str, tuple[int, int | None]]:
    """Offset and size of each member that is no folder; no size where it is no regular file. The last of a name stays.

    tarfile takes a damaged header, and the end of a file that was cut off between two members, for the archive's end.
    """
    members = {}
    end = -1
    with tarfile.open(fileobj=_Headers(descriptor, closefd=False), mode="r:", errors="surrogateescape") as tar:
        while (member := tar.next()) is not None:
            if tar.offset <= end:
                raise tarfile.ReadError(f"it goes back at byte {end}")
            end = tar.offset
            tar.members = []  # or it keeps them all
            if not member.isdir():
                is_plain = member.isreg() and not member.issparse()
                members[member.name.removeprefix("./")] = (member.offset_data, member.size if is_plain else None)
        if os.pread(descriptor, _BLOCK, tar.offset) != bytes(_BLOCK):
            raise tarfile.ReadError(f"it is damaged or cut off at byte {tar.offset}")
    return members


class ArrayRecords(Files):
    """The records of ArrayRecord files, each the bytes of a picture file, in order; named FILE:NUMBER.

    A record is decompressed whole before its size is known: unlike an archive's member, a hostile one can take memory.
    """

    def __init__(self, path: str):
        """`path`: a file, or a folder with such files in it."""
        self.path = path
        files = [path]
        if os.path.isdir(path):
            files = [os.path.join(path, name) for name in sorted(os.listdir(path)) if name.endswith(RECORDS)]
        self._data = {}
        for file in files:
            with _naming(file, "ArrayRecord file"):
                _open(file).close()
                self._data[os.path.basename(file)] = grain.sources.ArrayRecordDataSource(file)

    def names(self) -> Iterator[str]:
        return (f"{file}:{index}" for file, data in self._data.items() for index in range(len(data)))

    def read(self, name: str) -> bytes:
        file, _, index = name.rpartition(":")
        with sources.refusing():
            data = self._data[file][int(index)]
        _refuse_large(len(data))
        return data


def holds_records(folder: str) -> bool:
    """Whether `folder` holds ArrayRecord files.

    Raises:
      InputError: it holds pictures or folders beside them.
    """
    try:
        with os.scandir(folder) as entries:
            found = [(os.path.splitext(entry.name)[1], entry.is_dir()) for entry in entries]
    except OSError:
        return False  # the folder's own source tells why
    if RECORDS not in {suffix for suffix, is_folder in found if not is_folder}:
        return False
    if any(is_folder or suffix.lower() in sources.PICTURE_SUFFIXES for suffix, is_folder in found):
        raise InputError(f"{printable(folder)} holds {RECORDS} files, and pictures or folders beside them: which?")
    return True


class Arrays:
    """The pictures of one uint8 array in a .npy or .npz file, in order, named by their number.

    Of a .npz file it is `arr_0`, or the only array in it that has pictures' shape and type; others are left alone.
    """

    def __init__(self, path: str):
        self.path = path
        self._file = _open(path)
        with _naming(path, "numpy file"):
            if _has_suffix(path, ".npz"):
                self._shape, self._offset = self._in_archive(path)
            else:
                self._shape, self._offset = _array_header(self._file)
        if not _holds_pictures(self._shape):
            raise InputError(f"{printable(path)} holds no uint8 array [n, h, w], [n, h, w, 1] or [n, h, w, 3]")
        expected, found = self._offset + math.prod(self._shape), os.fstat(self._file.fileno()).st_size
        if found < expected:
            raise InputError(f"cannot read {printable(path)}: its array ends at byte {expected}, it has {found}")

    def _in_archive(self, path: str) -> tuple[tuple[int, ...], int]:
        """Shape and place of the array in a .npz file; one that is compressed becomes a file of its own."""
        with zipfile.ZipFile(self._file) as archive:
            headers = {}
            for info in archive.infolist():
                if info.filename.endswith(".npy") and info.compress_type in _BOUNDED:
                    with archive.open(info) as member:
                        shape, offset = _array_header(member)
                    if _holds_pictures(shape) and info.file_size == offset + math.prod(shape):
                        headers[info.filename] = info, shape, offset
            if "arr_0.npy" not in headers and len(headers) != 1:
                return (), 0
            info, shape, offset = headers.get("arr_0.npy") or next(iter(headers.values()))
            if info.compress_type == zipfile.ZIP_STORED:
                with archive.open(info) as member:  # to its end, where the checksum is compared
                    while member.read(_CHUNK):
                        pass
                local = _pread(self._file.fileno(), 30, info.header_offset)
                name, extra = struct.unpack("<HH", local[26:30])  # the lengths of what stands before the data
                return shape, info.header_offset + 30 + name + extra + offset
            with archive.open(info) as member:
                self._file = _to_nameless_file(iter(lambda: member.read(_CHUNK), b""), path)
            return shape, offset

    def names(self) -> Iterator[str]:
        return (f"{index:09d}" for index in range(self._shape[0]))

    def load(self, name: str) -> Image.Image:
        shape = self._shape[1:3] if self._shape[3:] == (1,) else self._shape[1:]
        size = math.prod(shape)
        with sources.refusing():
            data = _pread(self._file.fileno(), size, self._offset + int(name) * size)
        return Image.fromarray(np.frombuffer(data, np.uint8).reshape(shape))


def _array_header(file: io.BufferedIOBase) -> tuple[tuple[int, ...], int]:
    """Shape of the array in a .npy file, () if it is not uint8 in C order, and where its values start."""
    start = io.BytesIO(file.read(_LONGEST_HEADER))
    version = np.lib.format.read_magic(start)
    if version == (1, 0):
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(start)
    elif version == (2, 0):
        shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(start)
    else:  # for names of fields
        return (), 0
    return (() if is_fortran or dtype != np.uint8 else shape), start.tell()


def _holds_pictures(shape: tuple[int, ...]) -> bool:
    if len(shape) not in (3, 4) or shape[3:] not in ((), (1,), (3,)) or min(shape) < 0:
        return False
    return 0 < shape[1] * shape[2] <= Image.MAX_IMAGE_PIXELS


_KINDS = {
    (".zip",): Zip,
    (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz"): Tar,
    (RECORDS,): ArrayRecords,
    (".npz", ".npy"): Arrays,
}
KINDS = ", ".join(suffix for suffixes in _KINDS for suffix in suffixes)


def kind_of(path: str) -> type[Source] | None:
    """The source for a file of this name, if there is one."""
    return next((kind for suffixes, kind in _KINDS.items() if _has_suffix(path, *suffixes)), None)


def _has_suffix(path: str, *suffixes: str) -> bool:
    return path.lower().endswith(suffixes)


def _open(path: str) -> io.BufferedReader:
    """A regular file; raises `InputError` for anything else, without waiting at a pipe."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InputError(f"{printable(path)}: not a regular file")
        return open(path, "rb")
    except FileNotFoundError as error:
        raise InputError(f"no such file: {printable(path)}") from error
    except OSError as error:
        raise InputError(f"cannot read {printable(path)}: {error.strerror}") from error


@contextlib.contextmanager
def _naming(path: str, kind: str) -> Iterator[None]:
    """Inside, what a library raises on a damaged or hostile file becomes one line that names it."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = printable(" ".join(str(error).split()))[:200] or type(error).__name__
        raise InputError(f"cannot read {printable(path)} as a {kind}: {reason}") from error


def _pread(descriptor: int, size: int, offset: int) -> bytes:
    """Bytes at an offset, without the position that all who read a file share."""
    data = os.pread(descriptor, size, offset)
    while len(data) < size:  # a system call gives at most 2 GiB, and less where it is interrupted
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            raise EOFError(f"the file ends {size - len(data)} bytes too early")
        data += more
    return data


def _unpacked(file: io.BufferedReader, path: str) -> io.BufferedIOBase:
    """`file` itself, or its content in a file without a name if it is compressed."""
    start = os.pread(file.fileno(), 6, 0)
    if start.startswith(b"\x1f\x8b"):
        stream = gzip.open(file)
    elif start.startswith(b"BZh"):
        stream = bz2.open(file)
    elif start == b"\xfd7zXZ\x00":
        return _to_nameless_file(_unpack_xz(file), path)
    else:
        return file
    return _to_nameless_file(iter(lambda: stream.read(_CHUNK), b""), path)


def _unpack_xz(file: io.BufferedReader) -> Iterator[bytes]:
    """The chunks of an .xz file of one stream. `lzma.open` gives a file the 4 GiB for which its header may ask."""
    decoder = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
    while not decoder.eof:
        data = file.read(_CHUNK) if decoder.needs_input else b""
        if decoder.needs_input and not data:
            raise EOFError("it is cut off")
        yield decoder.decompress(data, _CHUNK)
    if (decoder.unused_data + file.read(_CHUNK)).strip(b"\x00"):
        raise lzma.LZMAError("several streams in one file")


def _to_nameless_file(chunks: Iterable[bytes], path: str) -> io.BufferedIOBase:
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


def _sorted_as_in_folders(names: Iterable[str]) -> Iterator[str]:
    """The order of `sources.Folder`: in each folder its files come first, and each folder is followed by its own."""

    def key(name: str) -> list[tuple[bool, str]]:
        *folders, last = name.split("/")
        return [*((True, folder) for folder in folders), (False, last)]

    return iter(sorted(names, key=key))


def _refuse_unsafe(name: str) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise Refused("unsafe name", "it leads out of the archive")


def _refuse_large(size: int) -> None:
    if size > sources.MOST_BYTES:
        raise Refused("too large", f"a file of {size >> 20} MiB")
