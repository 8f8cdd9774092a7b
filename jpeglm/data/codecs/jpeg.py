"""JPEG as a language: canonical documents, strict and lenient decoding, and cuts at MCUs.

A document is a baseline JPEG without its tables (JPEG-LM, section 3.1): a constant header, the MCUs with a restart
marker between any two, EOI. The tables are the same for every picture of one quality, so they are left out, and
`JpegCodec.restore` puts them back.
"""

import dataclasses
import functools
import io
import re
import struct
from collections.abc import Iterable
from typing import ClassVar

import PIL
from PIL import Image, features

from jpeglm.core.errors import InputError
from jpeglm.core.ranges import INTEGER, TEXT
from jpeglm.core.registry import Section
from jpeglm.data.codecs.jpeg_grammar import JpegGrammar
from jpeglm.data.codecs.jpeg_header import (
    ANNEX_K,
    DHT,
    DQT,
    DRI,
    EOI,
    RST0,
    SOF0,
    SOI,
    SOS,
    Component,
    Header,
    JpegError,
    count_mcus,
    read_huffman_tables,
    read_quantisation_tables,
    read_segment,
)
from jpeglm.data.codecs.jpeg_parser import Reader, Scan, parse, parse_scan
from jpeglm.data.codecs.pictures import PictureCodec

__all__ = ["Component", "JpegCodec", "JpegError", "Scan", "parse"]

_JFIF = bytes.fromhex("ffe000104a46494600010100000100010000")  # APP0: JFIF 1.01, no density, no thumbnail


@dataclasses.dataclass(frozen=True)
class JpegCodec(PictureCodec):
    """Canonical JPEG documents of one size, mode and quality (JPEG-LM, section 3.1).

    A document is what Pillow writes with 4:2:0 subsampling, a restart marker after each MCU and streamtype 2 (no
    tables). Its MCUs are 16x16 pixels with blocks Y Y Y Y Cb Cr in colour, 8x8 pixels with one block in greyscale.

    Raises:
      InputError: a size, mode or quality that baseline JPEG does not have.
    """

    name: ClassVar[str] = "jpeg"
    unit: ClassVar[str] = "MCU"
    extension: ClassVar[str] = ".jpg"
    separator_behavior: ClassVar[str] = "merged_with_previous"
    SECTION: ClassVar[Section] = {  # 256x256 in colour, JPEG-LM, section 4
        "height": (256, INTEGER),
        "width": (256, INTEGER),
        "mode": ("RGB", TEXT),
        "quality": (25, INTEGER),
    }

    height: int  # pixels
    width: int
    mode: str  # "RGB", or "L" for greyscale
    quality: int  # 1 to 100

    def __post_init__(self) -> None:
        for key in ("height", "width"):
            if not 1 <= getattr(self, key) <= 65_500:  # libjpeg's limit
                raise InputError(f"config.codec.{key}: {getattr(self, key)} pixels are not within 1 to 65500")
        if self.mode not in ("RGB", "L"):
            raise InputError(f"config.codec.mode: unknown mode {self.mode!r}; RGB is colour, L greyscale")
        if not 1 <= self.quality <= 100:
            raise InputError(f"config.codec.quality: {self.quality} is not within 1 to 100")

    @property
    def separator_regex(self) -> str:
        """Where the tokenizer's merges must end, over text in which byte b is chr(0x2800 + b).

        That is the end of a restart marker, and the end of the header. So the tokens of a cut document are a prefix of
        the tokens of the whole one, also if no MCU is kept.
        """
        return f"{_braille(self._scan_header)}|{chr(0x28FF)}[{chr(0x28D0)}-{chr(0x28D7)}]"

    @property
    def units(self) -> int:
        """MCUs of one picture."""
        return count_mcus(self.height, self.width, self._components)

    @functools.cached_property
    def header(self) -> bytes:
        """The beginning of every document: SOI, APP0, SOF0, DRI, SOS; 59 bytes in colour, 49 in greyscale."""
        components = self._components
        frame = struct.pack(">BHHB", 8, self.height, self.width, len(components))
        for destination, part in enumerate(components):
            frame += bytes([part.identifier, part.horizontal << 4 | part.vertical, min(destination, 1)])
        return b"\xff\xd8" + _JFIF + _segment(SOF0, frame) + _segment(DRI, b"\x00\x01") + self._scan_header

    @functools.cached_property
    def tables(self) -> bytes:
        """The tables that `restore` inserts: two DQT and four DHT segments, 570 bytes."""
        file = io.BytesIO()
        self._save(Image.new(self.mode, (8, 8)), file, streamtype=1)
        return file.getvalue()[2:-2]

    @property
    def flat_mcu(self) -> bytes:
        """The bytes of a flat mid-grey MCU: no difference to the prediction, then EOB, in each block."""
        bits = "001010" * 4 + "0000" * 2 if self.mode == "RGB" else "001010"  # codes of K.3
        bits += "1" * (-len(bits) % 8)
        return int(bits, 2).to_bytes(len(bits) // 8)

    def grammar(self) -> JpegGrammar:
        """The automaton of all canonical documents."""
        return JpegGrammar(self.header, self.tables)

    def encode(self, image: Image.Image) -> bytes:
        """Returns the canonical document of a picture.

        Raises:
          InputError: the picture does not have the codec's size and mode.
        """
        if (image.mode, image.width, image.height) != (self.mode, self.width, self.height):
            raise InputError(
                f"a picture of {image.width}x{image.height} pixels in mode {image.mode}, "
                f"where {self.width}x{self.height} in {self.mode} is to be encoded"
            )
        bare = image.copy()
        bare.info = {}  # Pillow would write a comment from it into the file
        file = io.BytesIO()
        self._save(bare, file, streamtype=2)
        return file.getvalue()

    def restore(self, document: bytes) -> bytes:
        """Returns the ordinary JPEG file of a document or of the beginning of one; damaged ones stay damaged."""
        return document[:2] + self.tables + document[2:]

    def strip(self, file: bytes) -> bytes:
        """Returns the document of a JPEG file or of the beginning of one: the inverse of `restore`.

        The tables may be anywhere in the header. The scan is not checked.

        Raises:
          JpegError: the file's tables, or the rest of its header, are not the codec's.
        """
        document, tables = _take_tables_out(file)
        _, expected = _take_tables_out(self.restore(self.header))
        needed = [0, 1] if self.mode == "RGB" else [0]
        for key, name in _table_names(needed).items():
            if key not in tables:
                raise JpegError(f"the header has no {name}")
        for key, table in tables.items():
            if expected.get(key) != table:
                name = _table_names(range(4)).get(key, "a table that baseline has not")
                raise JpegError(f"the header's {name} is not the one of quality {self.quality}")
        self._check_header(document)
        return document

    def parse(self, document: bytes) -> Scan:
        """Parses a canonical document.

        Raises:
          JpegError: the document is anything else; one line names the byte offset, the MCU, and what is wrong.
        """
        self._check_header(document)
        header = Header(self.height, self.width, self._components, 1, ANNEX_K, len(self.header))
        return parse_scan(document, header)

    def unit_ends(self, document: bytes) -> list[int]:
        """Where each MCU of a canonical document ends, with the marker after it; raises `JpegError`."""
        return [end + 2 for end in self.parse(document).ends]

    def complete_with_flat(self, prefix: bytes, units_kept: int) -> bytes:
        """Returns a complete document: a prefix from `cut`, then flat mid-grey MCUs, then EOI.

        Raises:
          InputError: `units_kept` is outside 0 to `units`.
        """
        if not 0 <= units_kept <= self.units:
            raise InputError(f"{units_kept} MCUs kept of a picture of {self.units}")
        parts = [prefix]
        for unit in range(units_kept, self.units):
            parts += [self.flat_mcu, self._marker_behind(unit)]
        return b"".join(parts)

    def repair(self, document: bytes) -> tuple[bytes, int]:
        """Makes a canonical document from any bytes; a valid one stays as it is.

        The scan begins after the first canonical SOS segment (without one nothing is readable), whatever comes before
        it, and ends at the first EOI. The segment between the i-th restart marker and the next, whatever their
        numbers, is MCU i. If a complete MCU can be read at its beginning, before any other marker, it is kept and the
        rest of the segment is dropped; otherwise the MCU becomes flat mid-grey. Missing MCUs become mid-grey, too;
        surplus segments are dropped.

        Returns:
          The document, and the number of MCUs that were readable in sequence, from the first on.
        """
        if self.is_valid(document):
            return document, self.units
        start = document.find(self._scan_header)
        scan = document[start + len(self._scan_header) :] if start >= 0 else b""
        segments = re.split(rb"\xff[\xd0-\xd7]", scan.partition(b"\xff\xd9")[0])
        mcus = [self._readable_mcu(segment) for segment in segments[: self.units]]
        mcus += [None] * (self.units - len(mcus))
        parts = [self.header]
        for unit, mcu in enumerate(mcus):
            parts += [mcu or self.flat_mcu, self._marker_behind(unit)]
        return b"".join(parts), mcus.index(None) if None in mcus else self.units

    def decode_valid(self, document: bytes) -> Image.Image:
        """Returns the picture of a document that is known to be canonical."""
        image = Image.open(io.BytesIO(self.restore(document)), formats=("JPEG",))
        image.load()
        return image

    def encoder_versions(self) -> dict[str, str]:
        """Returns the versions of the libraries that write the bytes."""
        return {"pillow": PIL.__version__, "libjpeg_turbo": features.version("libjpeg_turbo") or "not used"}

    @property
    def _components(self) -> tuple[Component, ...]:
        # Sampling factors have no effect in a file of one component, but libjpeg writes 2x2 there, too.
        luminance, chrominance = Component(1, 2, 2, 0, 0), (Component(2, 1, 1, 1, 1), Component(3, 1, 1, 1, 1))
        return (luminance, *chrominance) if self.mode == "RGB" else (luminance,)

    @functools.cached_property
    def _scan_header(self) -> bytes:
        body = bytes([len(self._components)])
        for component in self._components:
            body += bytes([component.identifier, component.dc_table << 4 | component.ac_table])
        return _segment(SOS, body + b"\x00\x3f\x00")

    def _save(self, image: Image.Image, file: io.BytesIO, streamtype: int) -> None:
        image.save(
            file,
            format="JPEG",
            quality=self.quality,
            subsampling="4:2:0",
            streamtype=streamtype,
            restart_marker_blocks=1,
        )

    def _check_header(self, document: bytes) -> None:
        header = self.header
        if document.startswith(header):
            return
        shared = next((i for i, (a, b) in enumerate(zip(document, header, strict=False)) if a != b), len(document))
        if shared == len(document):
            raise JpegError(f"byte {shared}: the file ends inside the header")
        size = header.index(b"\xff\xc0") + 5  # where SOF0 holds height and width
        if size <= shared < size + 4 <= len(document):
            height, width = struct.unpack(">HH", document[size : size + 4])
            raise JpegError(f"byte {size}: the picture has {width}x{height} pixels, not {self.width}x{self.height}")
        raise JpegError(
            f"byte {shared}: {document[shared]:02X} in the header, where the canonical one has {header[shared]:02X}"
        )

    def _readable_mcu(self, segment: bytes) -> bytes | None:
        """Returns the complete MCU at the beginning of a segment between two restart markers, padded again."""
        data = re.split(rb"\xff[^\x00]", segment)[0]
        reader = Reader(data, 0, self._components, ANNEX_K)
        try:
            end = reader.read_mcus(range(1), 0, reader.position(len(data)), 1)
        except JpegError:
            return None
        mcu = bytearray(reader.plain[: end + 7 >> 3])
        mcu[-1] |= (1 << -end % 8) - 1
        return bytes(mcu.replace(b"\xff", b"\xff\x00"))

    def _marker_behind(self, unit: int) -> bytes:
        return bytes([0xFF, EOI if unit == self.units - 1 else RST0 + unit % 8])


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body


def _braille(data: bytes) -> str:
    return "".join(chr(0x2800 + byte) for byte in data)


def _table_names(destinations: Iterable[int]) -> dict[tuple[int, ...], str]:
    """Names, by key as in `_take_tables_out`, of the tables that components with these destinations use."""
    names: dict[tuple[int, ...], str] = {}
    for destination in destinations:
        names[DQT, destination] = f"quantisation table {destination}"
        names[DHT, 0, destination] = f"DC Huffman table {destination}"
        names[DHT, 1, destination] = f"AC Huffman table {destination}"
    return names


def _take_tables_out(file: bytes) -> tuple[bytes, dict[tuple[int, ...], bytes]]:
    """Returns the file without its DQT and DHT segments, and the tables.

    They are by (DQT, destination) and (DHT, class, destination).
    """
    if not file.startswith(b"\xff\xd8"):
        raise JpegError("byte 0: no SOI marker")
    kept, offset, marker = [file[:2]], 2, SOI
    tables: dict[tuple[int, ...], bytes] = {}
    while marker != SOS:
        marker, body, end = read_segment(file, offset)
        if marker == DQT:
            tables |= {(DQT, key): table for key, table in read_quantisation_tables(body, offset).items()}
        elif marker == DHT:
            tables |= {(DHT, *key): table for key, table in read_huffman_tables(body, offset).items()}
        else:
            kept.append(file[offset:end])
        offset = end
    return b"".join(kept) + file[offset:], tables
