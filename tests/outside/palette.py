"""A third codec, in one file: raw grey pixels of a palette of 16, one byte a pixel, row after row."""

import dataclasses

import numpy as np
from PIL import Image

from jpeglm.core.errors import InputError
from jpeglm.core.ranges import whole
from jpeglm.data.codecs.pictures import PictureCodec

PALETTE = bytes(range(0, 256, 17))  # the grey of each index; in files after the header, in documents nowhere
END = b"\xff"  # of the header and of each row


@dataclasses.dataclass(frozen=True)
class PaletteCodec(PictureCodec):
    name, unit, extension = "palette", "row", ".palette"
    separator_regex, separator_behavior = chr(0x28FF), "merged_with_previous"
    mode, SECTION = "L", {"height": (24, whole(1, 999)), "width": (20, whole(1, 999))}
    height: int
    width: int

    @property
    def units(self) -> int:
        return self.height

    @property
    def header(self) -> bytes:
        return b"P16" + self.height.to_bytes(2) + self.width.to_bytes(2) + END

    def encode(self, image: Image.Image) -> bytes:
        return self.header + b"".join(row.tobytes() + END for row in np.rint(np.asarray(image) / 17).astype(np.uint8))

    def restore(self, document: bytes) -> bytes:
        return document[: len(self.header)] + PALETTE + document[len(self.header) :]

    def strip(self, file: bytes) -> bytes:
        if not file.startswith(self.header + PALETTE):
            raise InputError("byte 0: another header or palette")
        return self.header + file[len(self.header + PALETTE) :]

    def parse(self, document: bytes) -> np.ndarray:
        repaired, readable = self.repair(document)
        if repaired != document:
            raise InputError(f"another header, or wrong from row {readable} on")
        return np.frombuffer(document[len(self.header) :], np.uint8).reshape(self.height, -1)[:, :-1]

    def unit_ends(self, document: bytes) -> list[int]:
        return [len(self.header) + (1 + row) * (self.width + 1) for row in range(len(self.parse(document)))]

    def repair(self, document: bytes) -> tuple[bytes, int]:
        found = document.removeprefix(self.header).split(END)[: self.height]
        good = [len(row) == self.width and max(row) < len(PALETTE) for row in found] + [False] * self.height
        rows = [found[row] if good[row] else bytes([8]) * self.width for row in range(self.height)]
        return self.header + END.join([*rows, b""]), good[: self.height + 1].index(False)

    def decode_valid(self, document: bytes) -> Image.Image:
        return Image.fromarray(np.frombuffer(PALETTE, np.uint8)[self.parse(document)])

    def open(self, file: bytes) -> Image.Image:
        return self.see(file)

    def encoder_versions(self) -> dict[str, str]:
        return {"palette": "1"}
