"""Writes pictures into files of each kind that `jpeglm.data.sources` reads."""

import bz2
import gzip
import lzma
import struct
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordWriter

Members = Iterable[tuple[str, bytes]]  # name and content
BY_NAME = ("zip", "deflated.zip", "tar", "gnu.tar", "tar.gz", "tgz", "tar.bz2", "tar.xz")


def members(folder: Path) -> list[tuple[str, bytes]]:
    """All files below a folder, in no order that a reader could lean on."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [(path.relative_to(folder).as_posix(), path.read_bytes()) for path in sorted(files)[::-1]]


def pack(content: Members, path: Path) -> Path:
    """Writes members into a zip or tar file of the kind that the suffix names; returns the path."""
    if path.suffix == ".zip":
        method = zipfile.ZIP_DEFLATED if ".deflated" in path.suffixes else zipfile.ZIP_STORED
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, data in content:
                archive.writestr(name, data)
        return path
    openers = {".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    layout = tarfile.GNU_FORMAT if ".gnu" in path.suffixes else tarfile.PAX_FORMAT
    with openers.get(path.suffix, open)(path, "wb") as file, tarfile.open(None, "w", file, format=layout) as archive:
        for name, data in content:
            archive.addfile(tar_member(name, size=len(data)), _Bytes(data))
    return path


def tar_member(name: str, **attributes: object) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    for key, value in attributes.items():
        setattr(member, key, value)
    return member


class _Bytes:
    """A file of these bytes, for tarfile."""

    def __init__(self, data: bytes):
        self._data = data

    def read(self, size: int) -> bytes:
        start, self._data = self._data[:size], self._data[size:]
        return start


def write_records(content: Iterable[bytes], path: Path, options: str = "group_size:1") -> Path:
    writer = ArrayRecordWriter(str(path), options)
    for data in content:
        writer.write(data)
    writer.close()
    return path


def zip_by_hand(path: Path, name: bytes, body: bytes, size: int, method: int = 0, flags: int = 0) -> Path:
    """A zip file of one member whose headers say what they are told to."""
    shared = struct.pack("<HHHHHLLLHH", 20, flags, method, 0, 0, 0, len(body), size, len(name), 0)
    local = b"PK\3\4" + shared + name + body
    central = b"PK\1\2" + struct.pack("<H", 20) + shared + struct.pack("<HHHLL", 0, 0, 0, 0, 0) + name
    end = b"PK\5\6" + struct.pack("<HHHHLLH", 0, 0, 1, 1, len(central), len(local), 0)
    path.write_bytes(local + central + end)
    return path
