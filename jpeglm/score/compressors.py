"""Lossless compressors of other people, to stand beside a model: `COMPRESSORS`, which `--compare` runs in this order.

Each gives two sizes. One is of what a user of the compressor would store. The other leaves out what is the same for
every file, as far as it can be separated, so that it is about the items alone:

- a general compressor gets the document without its constant header (`Codec.header_of`), writes it without checksum
  and size, and the size of what it makes of an empty input is subtracted;
- a transcoder of JPEG files gets ordinary files, and the size of what it makes of a flat grey picture is subtracted:
  container, tables and header, and the few bits of a flat scan. That is a little too much, in its favour.

Every result is decompressed and compared with the original.

A new compressor is one class, and one line in COMPRESSORS.
"""

import abc
import dataclasses
import lzma
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from jpeglm.core.config import DEFAULT_BACKGROUND
from jpeglm.core.errors import InputError, printable
from jpeglm.data.codecs import Codec
from jpeglm.data.codecs.jpeg_header import without_unused_tables


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Bytes of all files together.

    Attributes:
      whole: of what is stored.
      rest: without what is the same for every file.
    """

    whole: float
    rest: float


class Compressor(abc.ABC):
    """One row of the comparison.

    Attributes:
      programs: that it runs, found on PATH.
      package: Debian's, which has them.
    """

    programs: Sequence[str] = ()
    package: str = ""

    def takes(self, codec: Codec) -> bool:
        """Whether it is made for the ordinary files of a codec."""
        del codec
        return True

    @abc.abstractmethod
    def sizes(self, codec: Codec, documents: Sequence[bytes]) -> Sizes:
        """Compresses canonical documents, one or more, or their ordinary files.

        Raises:
          InputError: a program fails, or does not give a file back.
        """


@dataclasses.dataclass(frozen=True)
class Uncompressed(Compressor):
    """The files as they are: ordinary ones, or documents."""

    form: Callable[[Codec, bytes], bytes]

    def sizes(self, codec: Codec, documents: Sequence[bytes]) -> Sizes:
        """An ordinary file is, apart from a document and its constant header, the same for every item."""
        whole = sum(len(self.form(codec, document)) for document in documents)
        return Sizes(whole, sum(map(len, _without_headers(codec, documents))))


@dataclasses.dataclass(frozen=True)
class General(Compressor):
    """A compressor of any bytes, over documents.

    Attributes:
      pack: (files, whether without container, checksum and size) -> the size of each when compressed.
      is_solid: all files are one archive, in which each can be predicted from those before it.
    """

    pack: Callable[[Sequence[bytes], bool], Sequence[int]]
    programs: Sequence[str] = ()
    package: str = ""
    is_solid: bool = False

    def sizes(self, codec: Codec, documents: Sequence[bytes]) -> Sizes:
        """See the top of this file. An archive's directory is not counted."""
        rests: Sequence[bytes] = _without_headers(codec, documents)
        if self.is_solid:
            documents, rests = [b"".join(documents)], [b"".join(rests)]
        (nothing,) = self.pack([b""], True)
        return Sizes(sum(self.pack(documents, False)), sum(self.pack(rests, True)) - nothing * len(rests))


@dataclasses.dataclass(frozen=True)
class JpegTranscoder(Compressor):
    """A compressor of JPEG files, which gives the very files back.

    Attributes:
      encode: the command that makes {packed} from {file}.
      decode: the command that makes {back} from {packed}.
    """

    encode: Sequence[str]
    decode: Sequence[str]
    programs: Sequence[str]
    package: str

    def takes(self, codec: Codec) -> bool:
        """JPEG files."""
        return codec.extension == ".jpg"

    def sizes(self, codec: Codec, documents: Sequence[bytes]) -> Sizes:
        """Each ordinary file alone, without tables that it does not use."""
        flat = np.full((codec.height, codec.width), 128, np.uint8)
        least = codec.items.encode(flat, DEFAULT_BACKGROUND)
        files = [without_unused_tables(codec.restore(document)) for document in (least, *documents)]
        with ThreadPoolExecutor(2) as pool:
            sizes = tqdm(pool.map(self._size, files), self.encode[0], len(files), unit=codec.item, disable=None)
            constant, *each = sizes
        return Sizes(sum(each), sum(each) - constant * len(each))

    def _size(self, data: bytes) -> int:
        with tempfile.TemporaryDirectory() as folder:
            paths = {name: Path(folder, name) for name in ("file.jpg", "packed.jxl", "back.jpg")}
            file, packed, back = paths.values()
            file.write_bytes(data)
            for command in (self.encode, self.decode):
                _run([part.format(file=file, packed=packed, back=back) for part in command])
            _check_same(self.decode[0], [data], [back.read_bytes()])
            return packed.stat().st_size


def xz(files: Sequence[bytes], is_bare: bool) -> list[int]:
    """Sizes of .xz files, or of bare LZMA2 streams, by Python's own lzma."""
    form = lzma.FORMAT_RAW if is_bare else lzma.FORMAT_XZ

    def pack_one(file: bytes) -> int:
        # The preset's dictionary, 64 MiB, would be cleared for each file.
        dictionary = min(max(len(file), 4_096), 64 * 2**20)
        preset = 9 | lzma.PRESET_EXTREME
        filters = [{"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": dictionary}]
        packed = lzma.compress(file, form, filters=filters)
        _check_same("xz", [file], [lzma.decompress(packed, form, filters=filters if is_bare else None)])
        return len(packed)

    return list(map(pack_one, files))


def zstd(files: Sequence[bytes], is_bare: bool) -> list[int]:
    """Sizes of .zst files, or of frames without checksum and content size, by the program."""
    with tempfile.TemporaryDirectory() as folder:
        names = [f"{number:09d}" for number in range(len(files))]
        given, packed, back = (Path(folder, name) for name in ("given", "packed", "back"))
        for path in (given, packed, back):
            path.mkdir()
        for name, file in zip(names, files, strict=True):
            (given / name).write_bytes(file)
        bare = ("--no-check", "--no-content-size") if is_bare else ()
        _run_zstd(("--ultra", "-22", *bare), [given / name for name in names], packed)
        results = [packed / f"{name}.zst" for name in names]
        _run_zstd(("--decompress",), results, back)
        _check_same("zstd", files, ((back / name).read_bytes() for name in names))
        return [path.stat().st_size for path in results]


FILE = Uncompressed(lambda codec, document: codec.restore(document))
DOCUMENT = Uncompressed(lambda codec, document: document)
COMPRESSORS: dict[str, Compressor] = {
    "file": FILE,
    "document": DOCUMENT,
    "xz -9e": General(xz),
    "xz -9e, all as one": General(xz, is_solid=True),
    "zstd --ultra -22": General(zstd, ("zstd",), "zstd"),
    "zstd --ultra -22, all as one": General(zstd, ("zstd",), "zstd", is_solid=True),
    "cjxl --lossless_jpeg=1 -e 9": JpegTranscoder(
        encode=("cjxl", "{file}", "{packed}", "--lossless_jpeg=1", "-e", "9"),
        decode=("djxl", "{packed}", "{back}"),
        programs=("cjxl", "djxl"),
        package="libjxl-tools",
    ),
}


def for_codec(codec: Codec) -> dict[str, Compressor]:
    """Those of COMPRESSORS that are made for a codec's files.

    Raises:
      InputError: a program is not installed.
    """
    found = {name: compressor for name, compressor in COMPRESSORS.items() if compressor.takes(codec)}
    for compressor in found.values():
        for program in compressor.programs:
            if not shutil.which(program):
                raise InputError(f"--compare needs the program {program}: on Debian, apt install {compressor.package}")
    return found


def _without_headers(codec: Codec, documents: Sequence[bytes]) -> list[bytes]:
    return [document[len(codec.header_of(document)) :] for document in documents]


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["nothing said"]
        raise InputError(f"{command[0]} ended with status {done.returncode}: {printable(said[-1])}")


def _run_zstd(options: Sequence[str], files: Sequence[Path], out: Path) -> None:
    """All files in one process; a list of them may be longer than a command line."""
    names = out.with_suffix(".list")
    names.write_text("".join(f"{file}\n" for file in files))
    _run(("zstd", "--quiet", *options, "--filelist", str(names), "--output-dir-flat", str(out)))


def _check_same(program: str, files: Sequence[bytes], decompressed: Iterable[bytes]) -> None:
    for file, back in zip(files, decompressed, strict=True):
        if back != file:
            raise InputError(f"{program} does not give a file of {len(file)} bytes back: it gives {len(back)} others")
