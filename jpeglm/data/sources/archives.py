"""Pictures that lie in one file: zip, tar, ArrayRecord and numpy's formats. They are sources as in `sources`.

Members are found by where they lie and read by that, never unpacked to a named file: a member's name is a label, and
links, devices and paths that lead out of the archive can do nothing. What cannot be read in place (a compressed tar,
a compressed .npz) is unpacked once a process to a file without a name in the folder for temporary files (TMPDIR).
"""

import bz2
import contextlib
import dataclasses
import errno
import gzip
import io
import itertools
import lzma
import math
import os
import re
import stat
import struct
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

import grain
import numpy as np
from absl import logging
from PIL import Image

from jpeglm.core.errors import InputError, Refused, printable
from jpeglm.data import sources
from jpeglm.data.sources import Files, Named, Source, listing

RECORDS = ".array_record"
_CHUNK = 1 << 20
_LONGEST_HEADER = 1 << 20  # bytes, of a tar's member or a numpy array
_XZ_MEMORY = 256 << 20  # bytes for its dictionary; xz -9 takes 65 MiB
_BLOCK = tarfile.BLOCKSIZE
_JOINED = "another file that was joined to it, or damage; give joined files one by one"


class Archive(Named):
    """The members of an archive, by name; sorted as a folder is."""

    _members: dict[str, Any]  # files alone, by name; the last of each name
    _replaced: list[str]  # names of members that a later one replaces

    def folders(self, passed_over: listing.PassedOver) -> Iterator[tuple[str, list[str]]]:
        for name in self._replaced:
            passed_over.add(name, listing.REPLACED)
        hidden, shown = {}, []
        for name in listing.sorted_as_in_folders(self._members):
            if (part := listing.hidden_part(name)) is not None:
                hidden[part] = None
            elif name:
                shown.append(name)
            else:
                passed_over.add(name, listing.NAMELESS)
        for part in hidden:
            passed_over.add(part, "hidden")
        for folder, names in itertools.groupby(shown, os.path.dirname):
            yield folder, list(names)


class Zip(Archive):
    """The members of a .zip file."""

    def __init__(self, path: str):
        self.path = path
        with _naming(path, "zip file"):
            self._zip = zipfile.ZipFile(_open(path))
            check_zip_is_alone(self._zip)
            members = [info for info in self._zip.infolist() if not info.filename.endswith("/")]
        self._members, self._replaced = _by_name((info.filename, info) for info in members)
        self._lock = threading.Lock()  # opening a member counts what is open, in steps that a thread could interrupt

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
        return self._read(member, member.file_size)  # no more, whatever follows it; then the checksum is wrong

    def start(self, name: str) -> bytes:
        member = self._members[name]
        if member.flag_bits & 1 or member.compress_type not in _BOUNDED:
            return b""
        return self._read(member, listing.START)

    def _read(self, member: zipfile.ZipInfo, size: int) -> bytes:
        with sources.refusing():
            with self._lock:
                file = self._zip.open(member)
            try:
                return file.read(size)
            finally:
                with self._lock:
                    file.close()


_BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile unpacks others without a limit of memory


class Tar(Archive):
    """The members of a .tar file, which may be compressed as a whole."""

    def __init__(self, path: str):
        self.path = path
        file = _open(path)
        with _naming(path, "tar file"):
            self._file = _unpacked(file, path)
            self._members, self._replaced = _by_name(_list_tar(self._file.fileno()))

    def read(self, name: str) -> bytes:
        offset, size = self._members[name]
        _refuse_unsafe(name)
        if size is None:
            raise Refused("not a regular file", "a link or device in the archive, or a file with holes")
        _refuse_large(size)
        with sources.refusing():
            return _pread(self._file.fileno(), size, offset)

    def start(self, name: str) -> bytes:
        offset, size = self._members[name]
        with sources.refusing():
            return _pread(self._file.fileno(), min(size or 0, listing.START), offset)


def _by_name(members: Iterable[tuple[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """Members by name, the last of each name as if they were unpacked in turn; and the names of the others."""
    by_name, replaced = {}, []
    for name, member in members:
        if name in by_name:
            replaced.append(name)
        by_name[name] = member
    return by_name, replaced


class _Headers(io.FileIO):
    """A tar file from which its headers are read; tarfile alone would hold one of any length in memory."""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _list_tar(descriptor: int) -> Iterator[tuple[str, tuple[int, int | None]]]:
    """Name, offset and size of each member that is no folder; no size where it is no regular file.

    tarfile takes a damaged header, and the end of a file that was cut off between two members, for the archive's end.
    """
    end = -1
    with tarfile.open(fileobj=_Headers(descriptor, closefd=False), mode="r:", errors="surrogateescape") as tar:
        while (member := tar.next()) is not None:
            if tar.offset <= end:
                raise tarfile.ReadError(f"it goes back at byte {end}")
            end = tar.offset
            tar.members = []  # or it keeps them all
            if not member.isdir():
                is_plain = member.isreg() and not member.issparse()
                yield member.name.removeprefix("./"), (member.offset_data, member.size if is_plain else None)
        if os.pread(descriptor, _BLOCK, tar.offset) != bytes(_BLOCK):
            raise tarfile.ReadError(f"it is damaged or cut off at byte {tar.offset}")
        _check_end(descriptor, tar.offset)


def _check_end(descriptor: int, end: int) -> None:
    """Raises `ValueError` if anything but zeros stands from byte `end` on, where a file should end.

    Files that were joined, as by `cat`, are such; most readers see the first or the last of them alone.
    """
    while chunk := os.pread(descriptor, _CHUNK, end):
        if chunk.strip(b"\0"):
            start = end + len(chunk) - len(chunk.lstrip(b"\0"))
            raise ValueError(f"it ends, and more follows at byte {start}: {_JOINED}")
        end += len(chunk)


def check_zip_is_alone(archive: zipfile.ZipFile) -> None:
    """Raises `zipfile.BadZipFile` for several zip files joined into one, of which zipfile reads the last.

    In general: if anything stands in front of the first member, or anything but zeros after the end.
    """
    start = min((info.header_offset for info in archive.infolist()), default=archive.start_dir)
    if start:
        raise zipfile.BadZipFile(f"{start} bytes stand in front of it: {_JOINED}")
    file = archive.fp
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _ZIP_END - 0xFFFF))
    tail = file.read()
    if not tail[-_ZIP_END:].startswith(b"PK\5\6"):  # with a comment, or more
        end = tail.rfind(b"PK\5\6")
        (comment,) = struct.unpack_from("<H", tail, end + _ZIP_END - 2)
        if tail[end + _ZIP_END + comment :].strip(b"\0"):
            raise zipfile.BadZipFile(f"it ends, and more follows: {_JOINED}")


_ZIP_END = 22  # bytes of the record that ends a zip file, without its comment


class ArrayRecords(Files):
    """The records of ArrayRecord files, each the bytes of a picture file, in order; named FILE:NUMBER.

    A record is decompressed whole before its size is known: unlike an archive's member, a hostile one can take memory.
    """

    def __init__(self, path: str):
        """`path`: a file, or a folder with such files in it."""
        self.path = path
        files, self._others = [path], []
        if os.path.isdir(path):
            names = sorted(os.listdir(path))
            files = [os.path.join(path, name) for name in names if _is_records(name)]
            self._others = [name for name in names if not _is_records(name)]
        self._data = {}
        for file in files:
            with _naming(file, "ArrayRecord file"):
                with _open(file) as opened:
                    _check_records_end(opened)
                self._data[os.path.basename(file)] = grain.sources.ArrayRecordDataSource(file)

    def names(self, rule: listing.Rule | None = None, passed_over: listing.PassedOver | None = None) -> Iterator[str]:
        for name in self._others if passed_over else ():
            passed_over.add(name, "hidden" if listing.is_hidden(name) else "")
        return (f"{file}:{index}" for file, data in self._data.items() for index in range(len(data)))

    def read(self, name: str) -> bytes:
        file, _, index = name.rpartition(":")
        with sources.refusing():
            data = self._data[file][int(index)]
        _refuse_large(len(data))
        return data


def _is_records(name: str) -> bool:
    return listing.suffix_of(name) == RECORDS and not listing.is_hidden(name)


def _check_records_end(file: io.BufferedReader) -> None:
    """Raises `ValueError` if an ArrayRecord file goes on after its end.

    The reader looks for a file's end in its last block, and believes the place of the index that it reads there. Of
    files of one length that were joined, it so reads the first alone. The layout is that of Riegeli: blocks of 64 KiB,
    each with a header of 24 bytes; chunks with a header of 40, whose second word is their size; the last block holds a
    chunk of three equal messages, of which field 1 is the place of the index.
    """
    descriptor, size = file.fileno(), os.fstat(file.fileno()).st_size
    last = os.pread(descriptor, 128, max(0, size - _RECORDS_BLOCK))[24 + 40 :]
    found = re.match(rb"\x00\x03(.)\1\1\x08([\x80-\xff]{0,9}[\x00-\x7f])", last, re.DOTALL)
    if not found:
        return  # no such file: its reader says so
    index = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(found[2]))
    header = _pread(descriptor, 24 + 24, index) if index + 48 <= size else bytes(48)
    inside = _RECORDS_BLOCK - index % _RECORDS_BLOCK  # bytes up to the next block, whose header may stand in between
    header = header[24:] if inside == _RECORDS_BLOCK else header[:inside] + header[inside + 24 :]
    (length,) = struct.unpack_from("<Q", header, 8)
    start = index // _RECORDS_BLOCK * (_RECORDS_BLOCK - 24) + max(0, index % _RECORDS_BLOCK - 24)  # without headers
    blocks = -(-(start + 40 + length) // (_RECORDS_BLOCK - 24))
    if size > (blocks + 1) * _RECORDS_BLOCK:
        raise ValueError(f"it ends, and more follows at byte {(blocks + 1) * _RECORDS_BLOCK}: {_JOINED}")


_RECORDS_BLOCK = 1 << 16


def holds_records(folder: str) -> bool:
    """Whether `folder` holds ArrayRecord files.

    Raises:
      InputError: it holds pictures or folders beside them.
    """
    try:
        with os.scandir(folder) as entries:
            found = [(entry.name, entry.is_dir()) for entry in entries if not listing.is_hidden(entry.name)]
    except OSError:
        return False  # the folder's own source tells why
    if not any(_is_records(name) for name, is_folder in found if not is_folder):
        return False
    if any(is_folder or listing.suffix_of(name) in listing.pictures().suffixes for name, is_folder in found):
        raise InputError(f"{printable(folder)} holds {RECORDS} files, and pictures or folders beside them: which?")
    return True


class Arrays:
    """The pictures of one uint8 array in a .npy or .npz file, in order, named by their number.

    FILE.npz:NAME is the array NAME. Of FILE.npz it is `arr_0`, or the only array that has pictures' shape and type;
    others are left alone.
    """

    def __init__(self, path: str):
        self.path = path
        found = None if os.path.exists(path) else _ARRAY_OF.fullmatch(path)
        file, wanted = found.groups() if found else (path, None)
        self._file = _open(file)
        with _naming(file, "numpy file"):
            if _has_suffix(file, ".npz"):
                header = self._in_archive(path, wanted)
            else:
                header = _array_header(self._file)
                header.check_pictures(path)
                _check_end(self._file.fileno(), header.end)
        self._shape, self._offset = header.shape, header.offset
        size = os.fstat(self._file.fileno()).st_size
        if size < header.end:
            raise InputError(f"cannot read {printable(path)}: its array ends at byte {header.end}, it has {size}")

    def _in_archive(self, path: str, wanted: str | None) -> "_ArrayHeader":
        """The array in a .npz file; one that is compressed becomes a file of its own."""
        with zipfile.ZipFile(self._file) as archive:
            check_zip_is_alone(archive)
            headers = {}
            for info in archive.infolist():
                if info.filename.endswith(".npy") and info.compress_type in _BOUNDED:
                    with archive.open(info) as member:
                        headers[info.filename.removesuffix(".npy")] = _array_header(member, info.file_size)
            name = _chosen(headers, path, wanted)
            info, header = archive.getinfo(f"{name}.npy"), headers[name]
            if info.compress_type == zipfile.ZIP_STORED:
                with archive.open(info) as member:  # to its end, where the checksum is compared
                    while member.read(_CHUNK):
                        pass
                local = _pread(self._file.fileno(), 30, info.header_offset)
                name, extra = struct.unpack("<HH", local[26:30])  # the lengths of what stands before the data
                return dataclasses.replace(header, offset=info.header_offset + 30 + name + extra + header.offset)
            with archive.open(info) as member:
                self._file = _to_nameless_file(iter(lambda: member.read(_CHUNK), b""), path)
            return header

    def names(self) -> Iterator[str]:
        return (f"{index:09d}" for index in range(self._shape[0]))

    def load(self, name: str) -> Image.Image:
        shape = self._shape[1:3] if self._shape[3:] == (1,) else self._shape[1:]
        size = math.prod(shape)
        with sources.refusing():
            data = _pread(self._file.fileno(), size, self._offset + int(name) * size)
        return Image.fromarray(np.frombuffer(data, np.uint8).reshape(shape))


_ARRAY_OF = re.compile(r"(.+?\.npz):(.+)", re.IGNORECASE | re.DOTALL)  # a file and the name of an array in it


def without_array(path: str | None) -> str | None:
    """FILE.npz of FILE.npz:NAME, which names an array in it; any other path as it is."""
    found = _ARRAY_OF.fullmatch(path) if path and not os.path.exists(path) else None
    return found[1] if found else path


@dataclasses.dataclass(frozen=True)
class _ArrayHeader:
    """What a .npy file says of its array, and where its values start; `trouble` in words if they cannot be used."""

    shape: tuple[int, ...] = ()
    offset: int = 0
    kind: str = "fields"  # dtype, and what else is not as it should be
    is_plain: bool = False  # whether the values are uint8, in C order, and all there

    @property
    def end(self) -> int:
        return self.offset + math.prod(self.shape)

    @property
    def holds_pictures(self) -> bool:
        """Whether it is uint8 [n, h, w], [n, h, w, 1] or [n, h, w, 3]."""
        if not self.is_plain or len(self.shape) not in (3, 4) or self.shape[3:] not in ((), (1,), (3,)):
            return False
        if self.shape[2:] in ((1,), (3,)):  # one picture, [h, w, colours]
            return False
        return min(self.shape) >= 0 and 0 < self.shape[1] * self.shape[2] <= Image.MAX_IMAGE_PIXELS

    def check_pictures(self, where: str) -> None:
        """Raises `InputError` if it holds none."""
        if not self.holds_pictures:
            raise InputError(f"{printable(where)} holds no {_PICTURES}; it is {self}")

    def __str__(self) -> str:
        return f"{self.kind} {list(self.shape)}"


_PICTURES = "uint8 array [n, h, w], [n, h, w, 1] or [n, h, w, 3]"


def _array_header(file: io.BufferedIOBase, size: int | None = None) -> _ArrayHeader:
    """What stands before the values of a .npy file; `size`: bytes of the whole, if they are known."""
    start = io.BytesIO(file.read(_LONGEST_HEADER))
    version = np.lib.format.read_magic(start)
    if version == (1, 0):
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(start)
    elif version == (2, 0):
        shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(start)
    else:  # for names of fields
        return _ArrayHeader()
    kind = f"{dtype} in Fortran's order" if is_fortran else str(dtype)
    header = _ArrayHeader(shape, start.tell(), kind, dtype == np.uint8 and not is_fortran)
    if header.is_plain and size not in (None, header.end):
        return dataclasses.replace(header, kind=f"{kind} of another size than it says", is_plain=False)
    return header


def _chosen(headers: dict[str, _ArrayHeader], path: str, wanted: str | None) -> str:
    """The name of the array to read; `InputError` if it holds no pictures, or several arrays of them."""

    def listed(names: Iterable[str]) -> str:
        shown = [f"{printable(name)} {headers[name]}" for name in itertools.islice(names, 20)]
        return ", ".join(shown) or "nothing"

    pictures = [name for name, header in headers.items() if header.holds_pictures]
    if wanted is not None:
        if wanted not in headers:
            raise InputError(f"{printable(path)}: no such array; the file holds {listed(headers)}")
        headers[wanted].check_pictures(path)
        return wanted
    if "arr_0" in pictures:
        return "arr_0"
    if not pictures:
        raise InputError(f"{printable(path)} holds no {_PICTURES}; it holds {listed(headers)}")
    if len(pictures) > 1:
        raise InputError(
            f"{printable(path)} holds several arrays of pictures, {listed(pictures)}: name one, as "
            f"{printable(path)}:{printable(pictures[0])}"
        )
    return pictures[0]


_KINDS = {
    (".zip",): Zip,
    (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz"): Tar,
    (RECORDS,): ArrayRecords,
    (".npz", ".npy"): Arrays,
}
KINDS = ", ".join(suffix for suffixes in _KINDS for suffix in suffixes)


def kind_of(path: str) -> type[Source] | None:
    """The source for a file of this name, if there is one."""
    if _ARRAY_OF.fullmatch(path) and not os.path.exists(path):
        return Arrays
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
        return _to_nameless_file(_decompressed(file, bz2.BZ2Decompressor), path)
    elif start == b"\xfd7zXZ\x00":
        # `lzma.open` gives a file the 4 GiB for which its header may ask.
        return _to_nameless_file(_decompressed(file, lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY)), path)
    else:
        return file
    return _to_nameless_file(iter(lambda: stream.read(_CHUNK), b""), path)


def _decompressed(
    file: io.BufferedReader, decoder_of: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor]
) -> Iterator[bytes]:
    """The chunks of all streams of a compressed file; only zeros may stand between and after them."""
    data = file.read(_CHUNK)
    while data:
        decoder = decoder_of()
        while not decoder.eof:
            if decoder.needs_input and not data:
                data = file.read(_CHUNK)
                if not data:
                    raise EOFError("it is cut off")
            yield decoder.decompress(data, _CHUNK)
            data = b""
        data = decoder.unused_data.lstrip(b"\0")
        while not data and (more := file.read(_CHUNK)):
            data = more.lstrip(b"\0")


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


def _refuse_unsafe(name: str) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise Refused("unsafe name", "it leads out of the archive")


def _refuse_large(size: int) -> None:
    if size > sources.MOST_BYTES:
        raise Refused("too large", f"a file of {size >> 20} MiB")
