"""The members of a zip file."""

import os
import stat
import struct
import threading
import zipfile
from typing import ClassVar

from jpeglm.core.errors import Refused
from jpeglm.data.sources import listing
from jpeglm.data.sources.archives import Archive, by_name, refuse_unsafe
from jpeglm.data.sources.reading import JOINED, naming, open_file, refuse_large, refusing

BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile decompresses other methods without a memory limit
_END = 22  # bytes of the record that ends a zip file, without its comment


class Zip(Archive):
    """The members of a .zip file."""

    suffixes: ClassVar[tuple[str, ...]] = (".zip",)

    def __init__(self, path: str):
        super().__init__(path)
        with naming(path, "zip file"):
            self._zip = zipfile.ZipFile(open_file(path))
            check_zip_is_alone(self._zip)
            members = [info for info in self._zip.infolist() if not info.filename.endswith("/")]
        self._members, self._replaced = by_name((info.filename, info) for info in members)
        self._lock = threading.Lock()  # zipfile's count of open members is not thread-safe

    def read(self, name: str) -> bytes:
        member = self._members[name]
        refuse_unsafe(name)
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
            raise Refused("not a regular file", "a link or device in the archive")
        if member.flag_bits & 1:
            raise Refused("unreadable", "it is encrypted")
        if member.compress_type not in BOUNDED:
            raise Refused("unreadable", f"compression method {member.compress_type}, not stored or deflated")
        refuse_large(member.file_size)
        return self._read(member, member.file_size)  # not more, even if more follows; the checksum is then wrong

    def start(self, name: str) -> bytes:
        member = self._members[name]
        if member.flag_bits & 1 or member.compress_type not in BOUNDED:
            return b""
        return self._read(member, listing.START)

    def _read(self, member: zipfile.ZipInfo, size: int) -> bytes:
        with refusing():
            with self._lock:
                file = self._zip.open(member)
            try:
                return file.read(size)
            finally:
                with self._lock:
                    file.close()


def check_zip_is_alone(archive: zipfile.ZipFile) -> None:
    """Raises zipfile.BadZipFile for several zip files joined into one, because zipfile reads only the last.

    It does so if anything precedes the first member, or anything but zeros follows the end.
    """
    start = min((info.header_offset for info in archive.infolist()), default=archive.start_dir)
    if start:
        raise zipfile.BadZipFile(f"{start} bytes stand in front of it: {JOINED}")
    file = archive.fp
    assert file is not None  # it is open
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END - 0xFFFF))
    tail = file.read()
    if not tail[-_END:].startswith(b"PK\5\6"):  # with a comment, or more
        end = tail.rfind(b"PK\5\6")
        (comment,) = struct.unpack_from("<H", tail, end + _END - 2)
        if tail[end + _END + comment :].strip(b"\0"):
            raise zipfile.BadZipFile(f"it ends, and more follows: {JOINED}")
