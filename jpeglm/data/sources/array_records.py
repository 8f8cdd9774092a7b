"""The records of ArrayRecord files."""

import io
import os
import re
import struct
from collections.abc import Iterator
from typing import ClassVar

import grain

from jpeglm.core.errors import InputError, printable
from jpeglm.data.sources import listing
from jpeglm.data.sources.base import Files
from jpeglm.data.sources.listing import PassedOver, Rule
from jpeglm.data.sources.reading import JOINED, naming, open_file, pread, refuse_large, refusing

_SUFFIX = ".array_record"
_BLOCK = 1 << 16


class ArrayRecords(Files):
    """The records of ArrayRecord files, each the bytes of a picture file, in order; named FILE:NUMBER.

    A record is decompressed completely before its size is known. So, unlike an archive's member, a hostile one can use
    much memory.
    """

    suffixes: ClassVar[tuple[str, ...]] = (_SUFFIX,)

    @classmethod
    def takes(cls, path: str) -> bool:
        return _holds_records(path) if os.path.isdir(path) else super().takes(path)

    def __init__(self, path: str):
        """`path`: a file, or a folder with such files in it."""
        super().__init__(path)
        files, self._others = [path], []
        if os.path.isdir(path):
            names = sorted(os.listdir(path))
            files = [os.path.join(path, name) for name in names if _is_records(name)]
            self._others = [name for name in names if not _is_records(name)]
        self._data = {}
        for file in files:
            with naming(file, "ArrayRecord file"):
                with open_file(file) as opened:
                    _check_records_end(opened)
                self._data[os.path.basename(file)] = grain.sources.ArrayRecordDataSource(file)

    def names(self, rule: Rule | None = None, passed_over: PassedOver | None = None) -> Iterator[str]:
        passed_over = passed_over or PassedOver()
        for name in self._others:
            passed_over.add(name, "hidden" if listing.is_hidden(name) else "")
        return (f"{file}:{index}" for file, data in self._data.items() for index in range(len(data)))

    def read(self, name: str) -> bytes:
        file, _, index = name.rpartition(":")
        with refusing():
            data = self._data[file][int(index)]
        refuse_large(len(data))
        return data


def _is_records(name: str) -> bool:
    return listing.suffix_of(name) == _SUFFIX and not listing.is_hidden(name)


def _check_records_end(file: io.BufferedReader) -> None:
    """Raises ValueError if anything follows the end of an ArrayRecord file.

    The reader looks for the end in the last block, and trusts the position of the index that it finds there. So if
    files of equal length were joined, it reads only the first. The layout is Riegeli's: blocks of 64 KiB, each with a
    header of 24 bytes; chunks with a header of 40 bytes, whose second word is their size; the last block has a chunk
    of three equal messages, whose field 1 is the position of the index.
    """
    descriptor, size = file.fileno(), os.fstat(file.fileno()).st_size
    last = os.pread(descriptor, 128, max(0, size - _BLOCK))[24 + 40 :]
    found = re.match(rb"\x00\x03(.)\1\1\x08([\x80-\xff]{0,9}[\x00-\x7f])", last, re.DOTALL)
    if not found:
        return  # not such a file: its reader reports that
    index = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(found[2]))
    header = pread(descriptor, 24 + 24, index) if index + 48 <= size else bytes(48)
    inside = _BLOCK - index % _BLOCK  # bytes up to the next block, whose header may come in between
    header = header[24:] if inside == _BLOCK else header[:inside] + header[inside + 24 :]
    (length,) = struct.unpack_from("<Q", header, 8)
    start = index // _BLOCK * (_BLOCK - 24) + max(0, index % _BLOCK - 24)  # without headers
    blocks = -(-(start + 40 + length) // (_BLOCK - 24))
    if size > (blocks + 1) * _BLOCK:
        raise ValueError(f"it ends, and more follows at byte {(blocks + 1) * _BLOCK}: {JOINED}")


def _holds_records(folder: str) -> bool:
    """Whether `folder` has ArrayRecord files.

    Raises:
      InputError: it also has pictures or folders.
    """
    try:
        with os.scandir(folder) as entries:
            found = [(entry.name, entry.is_dir()) for entry in entries if not listing.is_hidden(entry.name)]
    except OSError:
        return False  # the source for folders reports why
    if not any(_is_records(name) for name, is_folder in found if not is_folder):
        return False
    if any(is_folder or listing.suffix_of(name) in listing.pictures().suffixes for name, is_folder in found):
        raise InputError(f"{printable(folder)} holds {_SUFFIX} files, and pictures or folders beside them: which?")
    return True
