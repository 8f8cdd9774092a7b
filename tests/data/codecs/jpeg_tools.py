"""Pillow's plain encoder, the tools of Debian's libjpeg-turbo-progs, and a block made by hand."""

import io
import shutil
import subprocess

from PIL import Image

from jpeglm.data.codecs.jpeg import JpegCodec

GREY = JpegCodec(height=8, width=8, mode="L", quality=25)  # one block
# Codes of the luminance tables of Annex K, K.3.
DC_ZERO, END_OF_BLOCK, SIXTEEN_ZEROS = "00", "1010", "11111111001"
ONE_BEHIND_15_ZEROS, ONE_BEHIND_14_ZEROS, ONE = "1111111111110101" + "1", "1111111111101011" + "1", "00" + "1"


def grey_block(*codes: str) -> bytes:
    """Returns the document of GREY whose only block is made of these codes."""
    bits = "".join(codes)
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8)
    return GREY.header + data.replace(b"\xff", b"\xff\x00") + b"\xff\xd9"


def save(image: Image.Image, **options) -> bytes:
    """Returns the file that Pillow writes with quality 25 and 4:2:0 where `options` say nothing else."""
    file = io.BytesIO()
    image.save(file, format="JPEG", **{"quality": 25, "subsampling": "4:2:0", **options})
    return file.getvalue()


def run(command: list[str], data: bytes) -> tuple[bytes, str]:
    """Runs cjpeg, djpeg or jpegtran on `data`; returns its output and its complaints; fails where it is missing."""
    assert shutil.which(command[0]), f"{command[0]} is missing: apt-get install libjpeg-turbo-progs"
    done = subprocess.run(command, input=data, capture_output=True)
    return done.stdout, done.stderr.decode()


def cjpeg(picture: Image.Image, *options: str) -> bytes:
    """Returns the file that cjpeg writes."""
    bitmap = io.BytesIO()
    picture.save(bitmap, "PPM")
    file, complaints = run(["cjpeg", *options], bitmap.getvalue())
    assert not complaints
    return file


def jpegtran(file: bytes) -> tuple[bytes, str]:
    """Returns the file as jpegtran writes it anew with a restart marker after each MCU, and its complaints."""
    return run(["jpegtran", "-copy", "all", "-restart", "1B"], file)
