"""The same bytes as an encoder that shares no code with Pillow's, and files that strict decoders accept."""

from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from jpeglm.data.codecs.jpeg import JpegCodec
from tests.data.codecs.jpeg_tools import cjpeg, jpegtran, run
from tests.photographs import photographs, wallpapers

CACHE = Path(__file__).parents[3] / ".cache" / "wallpapers"


def check_against_cjpeg_and_strict_decoders(codec: JpegCodec, pictures: list[Image.Image]) -> None:
    for picture in pictures:
        document = codec.encode(picture)
        assert codec.strip(cjpeg(picture, "-quality", "25", "-sample", "2x2", "-restart", "1B")) == document
        codec.parse(document)
        file = codec.restore(document)
        decoded = simplejpeg.decode_jpeg(file, colorspace="RGB" if codec.mode == "RGB" else "GRAY", strict=True)
        np.testing.assert_array_equal(decoded.squeeze(), np.asarray(codec.decode(document)))
        transcoded, complaints = jpegtran(file)
        assert not complaints
        if codec.mode == "L":  # jpegtran writes the sampling factors of a single component, which mean nothing, as 1x1
            assert transcoded[transcoded.index(b"\xff\xda") :] == document[document.index(b"\xff\xda") :]
        else:
            assert codec.strip(transcoded) == document


def test_forty_photographs_in_colour_are_the_files_of_cjpeg():
    check_against_cjpeg_and_strict_decoders(JpegCodec(256, 256, "RGB", 25), photographs(40, 256, 256))


@pytest.mark.parametrize(
    ("mode", "height", "width"), [("L", 8, 8), ("L", 17, 17), ("L", 32, 32), ("RGB", 16, 16), ("RGB", 24, 40)]
)
def test_small_pictures_are_the_files_of_cjpeg(mode, height, width):
    check_against_cjpeg_and_strict_decoders(JpegCodec(height, width, mode, 25), photographs(10, height, width, mode))


def test_decoders_by_themselves_accept_coefficients_past_63_and_jpegtran_alters_them():
    codec = JpegCodec(8, 8, "L", 25)
    # three runs of 16 zeros, then a one after 15 zeros: coefficient 64
    bits = "00" + "11111111001" * 3 + "1111111111110101" + "1" + "1" * 4
    data = int(bits, 2).to_bytes(7).replace(b"\xff", b"\xff\x00")
    document = codec.header + data + b"\xff\xd9"
    file = codec.restore(document)
    simplejpeg.decode_jpeg(file, colorspace="GRAY", strict=True)
    bitmap, complaints = run(["djpeg", "-strict"], file)
    assert bitmap and not complaints
    assert not codec.is_valid(document)
    transcoded, _ = jpegtran(file)
    assert data not in transcoded and data in file


@pytest.mark.slow
def test_two_hundred_photographs_of_debian_are_the_files_of_cjpeg():
    pictures = wallpapers(CACHE, 200, 256, 256)
    assert len({picture.tobytes() for picture in pictures}) == 200
    check_against_cjpeg_and_strict_decoders(JpegCodec(256, 256, "RGB", 25), pictures)
