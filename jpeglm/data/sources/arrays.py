"""The pictures of one array in NumPy's formats.

A compressed .npz cannot be read in place: its array is unpacked, once per process, to an unnamed file in the folder
for temporary files (TMPDIR).
"""

import dataclasses
import io
import itertools
import math
import os
import re
import struct
import zipfile
from collections.abc import Iterable, Iterator
from typing import IO, ClassVar

import numpy as np
from PIL import Image

from jpeglm.core.errors import InputError, printable
from jpeglm.data.sources.base import Source
from jpeglm.data.sources.listing import PassedOver, Rule
from jpeglm.data.sources.pictures import too_many
from jpeglm.data.sources.reading import CHUNK, check_end, naming, open_file, pread, refusing, to_nameless_file
from jpeglm.data.sources.zips import BOUNDED, check_zip_is_alone

_PICTURES = "uint8 array [n, h, w], [n, h, w, 1] or [n, h, w, 3]"
_LONGEST_HEADER = 1 << 20  # bytes, of an array
_ARRAY_OF = re.compile(r"(.+?\.npz):(.+)", re.IGNORECASE | re.DOTALL)  # a file and the name of an array in it


class Arrays(Source):
    """The pictures of one uint8 array in a .npy or .npz file, in order, named by their number.

    FILE.npz:NAME is the array NAME. FILE.npz is `arr_0`, or the only array with the shape and type of pictures; other
    arrays are ignored.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".npz", ".npy")

    @classmethod
    def takes(cls, path: str) -> bool:
        return without_array(path) != path or super().takes(path)

    def __init__(self, path: str):
        super().__init__(path)
        found = None if os.path.exists(path) else _ARRAY_OF.fullmatch(path)
        file, wanted = found.groups() if found else (path, None)
        self._file: io.BufferedIOBase = open_file(file)
        with naming(file, "numpy file"):
            if file.lower().endswith(".npz"):
                header = self._in_archive(path, wanted)
            else:
                header = _array_header(self._file)
                header.check_pictures(path)
                check_end(self._file.fileno(), header.end)
        self._shape, self._offset = header.shape, header.offset
        size = os.fstat(self._file.fileno()).st_size
        if size < header.end:
            raise InputError(f"cannot read {printable(path)}: its array ends at byte {header.end}, it has {size}")

    def _in_archive(self, path: str, wanted: str | None) -> "_ArrayHeader":
        """The array in a .npz file; a compressed one is unpacked to a temporary file."""
        with zipfile.ZipFile(self._file) as archive:
            check_zip_is_alone(archive)
            headers = {}
            for info in archive.infolist():
                if info.filename.endswith(".npy") and info.compress_type in BOUNDED:
                    with archive.open(info) as member:
                        headers[info.filename.removesuffix(".npy")] = _array_header(member, info.file_size)
            name = _chosen(headers, path, wanted)
            info, header = archive.getinfo(f"{name}.npy"), headers[name]
            if info.compress_type == zipfile.ZIP_STORED:
                with archive.open(info) as member:  # to its end, where the checksum is verified
                    while member.read(CHUNK):
                        pass
                local = pread(self._file.fileno(), 30, info.header_offset)
                name, extra = struct.unpack("<HH", local[26:30])  # lengths of the fields before the data
                return dataclasses.replace(header, offset=info.header_offset + 30 + name + extra + header.offset)
            with archive.open(info) as member:
                self._file = to_nameless_file(iter(lambda: member.read(CHUNK), b""), path)
            return header

    def names(self, rule: Rule | None = None, passed_over: PassedOver | None = None) -> Iterator[str]:
        return (f"{index:09d}" for index in range(self._shape[0]))

    def load(self, name: str) -> Image.Image:
        shape = self._shape[1:3] if self._shape[3:] == (1,) else self._shape[1:]
        size = math.prod(shape)
        with refusing():
            data = pread(self._file.fileno(), size, self._offset + int(name) * size)
        return Image.fromarray(np.frombuffer(data, np.uint8).reshape(shape))


def without_array(path: str | None) -> str | None:
    """FILE.npz of FILE.npz:NAME, which names an array in it; any other path as it is."""
    found = _ARRAY_OF.fullmatch(path) if path and not os.path.exists(path) else None
    return found[1] if found else path


@dataclasses.dataclass(frozen=True)
class _ArrayHeader:
    """The header of a .npy file, and the offset of its values; `trouble` says why they cannot be used, if so."""

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
        pixels = self.shape[1] * self.shape[2]
        return min(self.shape) >= 0 and pixels > 0 and not too_many(pixels)

    def check_pictures(self, where: str) -> None:
        """Raises `InputError` if it holds none."""
        if not self.holds_pictures:
            raise InputError(f"{printable(where)} holds no {_PICTURES}; it is {self}")

    def __str__(self) -> str:
        return f"{self.kind} {list(self.shape)}"


def _array_header(file: IO[bytes], size: int | None = None) -> _ArrayHeader:
    """Reads the header of a .npy file; `size`: of the whole file in bytes, if known."""
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
    """The name of the array to read; InputError if the file has no pictures, or several arrays of them."""

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
