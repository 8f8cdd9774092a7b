"""The canonical encoding, its tables, cuts and coefficients."""

import io

import numpy as np
import pytest
import scipy.fft
from ml_collections import ConfigDict
from PIL import Image
from tokenizers import Regex, pre_tokenizers

from jpeglm.core.config import base
from jpeglm.core.errors import InputError
from jpeglm.core.registry import CODECS
from jpeglm.data.codecs.jpeg import JpegCodec, JpegError, parse
from tests.data.codecs.jpeg_tools import save
from tests.photographs import photographs

SIZES = [
    ("L", 8, 8),
    ("L", 17, 17),
    ("L", 32, 32),
    ("RGB", 16, 16),
    ("RGB", 40, 24),
    ("RGB", 33, 17),
    ("RGB", 256, 256),
]

# Column-major walk over the anti-diagonals of an 8x8 block: T.81, figure A.6.
ZIG_ZAG = sorted(range(64), key=lambda i: (i // 8 + i % 8, i // 8 if (i // 8 + i % 8) % 2 else i % 8))


def pixels(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)))


def planes(file: bytes, divisor: int = 1) -> np.ndarray:
    """Pixels as coded: Y Cb Cr, or grey; with divisor 2, libjpeg needs no upsampling for 4:2:0 chrominance."""
    image = Image.open(io.BytesIO(file))
    image.draft("YCbCr" if image.mode == "RGB" else "L", (image.width // divisor, image.height // divisor))
    return np.asarray(image, np.float64)


def inverse_dct(blocks: np.ndarray, quantisation: list[int]) -> np.ndarray:
    """Pixels, unrounded [..., 8, 8], of quantised coefficients [..., 64] in zig-zag order."""
    natural = np.zeros(blocks.shape)
    natural[..., ZIG_ZAG] = blocks * np.asarray(quantisation)
    frequencies = natural.reshape(*blocks.shape[:-1], 8, 8)
    return np.clip(scipy.fft.idctn(frequencies, axes=(-2, -1), norm="ortho") + 128, 0, 255)


def zig_zag_quantisation(file: bytes) -> dict[int, list[int]]:
    at = file.index(b"\xff\xdb")
    tables = {}
    while file[at : at + 2] == b"\xff\xdb":
        tables[file[at + 4]] = list(file[at + 5 : at + 69])
        at += 69
    return tables


def in_rows(blocks: np.ndarray, across: int) -> np.ndarray:
    """Puts blocks [count, h, w] side by side, `across` in a row."""
    count, height, width = blocks.shape
    rows = blocks.reshape(count // across, across, height, width).transpose(0, 2, 1, 3)
    return rows.reshape(count // across * height, across * width)


@pytest.fixture(params=SIZES, ids=lambda size: f"{size[0]}-{size[1]}x{size[2]}")
def codec(request) -> JpegCodec:
    mode, height, width = request.param
    return JpegCodec(height=height, width=width, mode=mode, quality=25)


@pytest.fixture
def picture(codec) -> Image.Image:
    return photographs(3, codec.height, codec.width, codec.mode)[2]


def test_make_builds_the_codec_that_the_config_names():
    codec = CODECS.of(base())
    assert codec == JpegCodec(height=256, width=256, mode="RGB", quality=25)
    assert (codec.extension, codec.pixels, codec.units) == (".jpg", 65_536, 256)


@pytest.mark.parametrize(
    ("key", "value"), [("name", "gif"), ("mode", "CMYK"), ("height", 0), ("width", 65_501), ("quality", 101)]
)
def test_make_refuses_what_the_codec_has_not_and_names_the_key(key, value):
    config = ConfigDict(dict(name="jpeg", height=32, width=32, mode="L", quality=25))
    config[key] = value
    with pytest.raises(InputError, match=rf"config\.codec\.{key}[:=].*{value}"):
        CODECS.of({"codec": config})


def test_encode_writes_what_the_papers_call_of_pillow_writes(codec, picture):
    assert codec.encode(picture) == save(picture, streamtype=2, restart_marker_blocks=1)


def test_the_header_is_constant_59_bytes_in_colour_and_49_in_greyscale(codec, picture):
    assert len(codec.header) == {"RGB": 59, "L": 49}[codec.mode]
    assert codec.encode(picture).startswith(codec.header)


def test_the_tables_have_570_bytes(codec):
    assert len(codec.tables) == 570


@pytest.mark.parametrize("quality", [1, 25, 75, 100])
def test_each_quality_round_trips(quality):
    codec = JpegCodec(height=40, width=24, mode="RGB", quality=quality)
    document = codec.encode(photographs(1, 40, 24)[0])
    codec.parse(document)
    assert codec.strip(codec.restore(document)) == document


def test_comments_and_other_metadata_of_the_source_do_not_reach_the_document(codec, picture):
    document = codec.encode(picture)
    picture.info = {"comment": b"a comment", "dpi": (72, 72), "icc_profile": b"profile", "exif": b"Exif\0\0"}
    assert codec.encode(picture) == document
    assert picture.info["comment"] == b"a comment"


def test_encode_refuses_another_size_or_mode(codec, picture):
    with pytest.raises(InputError, match=f"{codec.width + 1}x{codec.height}"):
        codec.encode(picture.resize((codec.width + 1, codec.height)))
    with pytest.raises(InputError, match="mode P"):
        codec.encode(picture.convert("P"))


def test_restore_is_the_formula_of_the_papers_code(codec, picture):
    document = codec.encode(picture)
    tables = save(picture, streamtype=1)
    assert codec.restore(document) == document[:2] + tables[2:-2] + document[2:]


def test_restored_files_decode_to_the_pixels_of_files_saved_with_tables_inside(codec, picture):
    expected = pixels(save(picture))
    document = codec.encode(picture)
    np.testing.assert_array_equal(pixels(codec.restore(document)), expected)
    decoded = codec.decode(document)
    assert (decoded.size, decoded.mode) == (picture.size, codec.mode)
    np.testing.assert_array_equal(np.asarray(decoded), expected)


def test_strip_is_the_inverse_of_restore(codec, picture):
    document = codec.encode(picture)
    for length in (len(codec.header), len(codec.header) + 3, len(document)):
        assert codec.strip(codec.restore(document[:length])) == document[:length]


def test_strip_takes_tables_out_wherever_they_stand(codec, picture):
    file = save(picture, streamtype=0, restart_marker_blocks=1)
    assert file != codec.restore(codec.encode(picture))
    assert codec.strip(file) == codec.encode(picture)


def test_strip_refuses_other_tables_and_other_headers(codec, picture):
    with pytest.raises(JpegError, match="quantisation table 0 is not the one of quality 25"):
        codec.strip(save(picture, quality=26, restart_marker_blocks=1))
    with pytest.raises(JpegError, match="DC Huffman table 0 is not"):
        codec.strip(save(picture, optimize=True, restart_marker_blocks=1))
    with pytest.raises(JpegError, match="has no quantisation table 0"):
        codec.strip(codec.encode(picture))
    with pytest.raises(JpegError, match="where the canonical one has"):
        codec.strip(save(picture))  # no DRI
    with pytest.raises(JpegError, match="no SOI"):
        codec.strip(b"GIF89a")


def test_every_cut_keeps_whole_mcus_with_the_markers_behind_them(codec, picture):
    document = codec.encode(picture)
    assert codec.cut(document, 0) == (codec.header, 0)
    assert codec.cut(document, 1) == (document, codec.units)
    for expected in range(codec.units + 1):
        prefix, kept = codec.cut(document, expected / codec.units)
        assert kept == expected
        assert document.startswith(prefix)
        if 0 < kept < codec.units:
            assert prefix[-2:] == bytes([0xFF, 0xD0 + (kept - 1) % 8])
        assert prefix.count(b"\xff") - prefix.count(b"\xff\x00") == 5 + kept


def test_cut_rounds_down_but_not_for_floating_point():
    codec = JpegCodec(height=256, width=256, mode="RGB", quality=25)
    document = codec.encode(photographs(1, 256, 256)[0])
    assert codec.cut(document, 0.375)[1] == 96
    assert codec.cut(document, 0.3789)[1] == 96
    assert codec.cut(document, 0.3749)[1] == 95
    assert codec.cut(document, 1 - 1e-7)[1] == 255
    wide = JpegCodec(height=16, width=1600, mode="RGB", quality=25)
    document = wide.encode(photographs(1, 16, 400)[0].resize((1600, 16)))
    assert 0.29 * 100 < 29
    assert [wide.cut(document, percent / 100)[1] for percent in range(101)] == list(range(101))


@pytest.mark.parametrize("ratio", [-1e-6, 1.000001, float("nan"), float("inf")])
def test_cut_refuses_a_ratio_outside_0_to_1(ratio):
    codec = JpegCodec(height=8, width=8, mode="L", quality=25)
    with pytest.raises(InputError, match=r"outside \[0, 1\]"):
        codec.cut(codec.encode(photographs(1, 8, 8, "L")[0]), ratio)


def test_the_pieces_of_a_cut_document_are_a_prefix_of_the_pieces_of_the_whole(codec, picture):
    split = pre_tokenizers.Split(Regex(codec.separator_regex), behavior="merged_with_previous")

    def pieces(data: bytes) -> list[str]:
        return [piece for piece, _ in split.pre_tokenize_str("".join(chr(0x2800 + byte) for byte in data))]

    document = codec.encode(picture)
    whole = pieces(document)
    assert len(whole) == 1 + codec.units
    for kept in range(codec.units + 1):
        assert pieces(codec.cut(document, kept / codec.units)[0]) == whole[: 1 + kept]


def test_a_flat_mcu_is_what_the_encoder_writes_for_mid_grey(codec):
    grey = Image.new(codec.mode, (codec.width, codec.height), "#808080")
    document = codec.encode(grey)
    scan = codec.parse(document)
    assert document[scan.starts[0] : scan.ends[0]] == codec.flat_mcu
    assert codec.complete_with_flat(codec.header, 0) == document
    assert not np.any(np.asarray(codec.decode(document)) - 128)


def test_completing_with_flat_mcus_keeps_the_prompt_and_greys_the_rest(codec, picture):
    document = codec.encode(picture)
    whole = codec.parse(document).coefficients()
    for kept in {0, 1, codec.units // 2, codec.units}:
        completed = codec.complete_with_flat(codec.cut(document, kept / codec.units)[0], kept)
        coefficients = codec.parse(completed).coefficients()
        np.testing.assert_array_equal(coefficients[:kept], whole[:kept])
        assert not coefficients[kept:].any()
    with pytest.raises(InputError, match=f"{codec.units + 1} MCUs"):
        codec.complete_with_flat(document, codec.units + 1)


def test_the_scan_says_where_each_mcu_and_block_lies(codec, picture):
    document = codec.encode(picture)
    scan = codec.parse(document)
    blocks = {"RGB": 6, "L": 1}[codec.mode]
    mcu_size = {"RGB": 16, "L": 8}[codec.mode]
    assert codec.units == -(-codec.height // mcu_size) * -(-codec.width // mcu_size)
    assert scan.block_ends.shape == (codec.units, blocks)
    assert scan.starts[0] == len(codec.header)
    assert list(scan.starts[1:]) == list(scan.ends[:-1] + 2)
    for unit, end in enumerate(scan.ends[:-1]):
        assert document[end : end + 2] == bytes([0xFF, 0xD0 + unit % 8])
    assert document[scan.ends[-1] :] == b"\xff\xd9"
    assert (np.diff(scan.block_ends.ravel()) >= 4).all()  # the shortest block of chrominance has 4 bits
    for end, bit in zip(scan.ends, scan.block_ends[:, -1], strict=True):
        # the last bit lies in the last byte, before its stuffed zero, and only ones follow
        last = end - 2 if document[end - 2 : end] == b"\xff\x00" else end - 1
        padding = 8 * (last + 1) - bit if bit < 8 * end else 0
        assert 0 <= padding < 8
        assert document[last] & (1 << padding) - 1 == (1 << padding) - 1


@pytest.mark.parametrize(("height", "width"), [(8, 8), (17, 17), (32, 32), (64, 24)])
def test_greyscale_coefficients_give_the_pixels_that_libjpeg_decodes(height, width):
    codec = JpegCodec(height=height, width=width, mode="L", quality=75)
    for picture in photographs(8, height, width, "L"):
        document = codec.encode(picture)
        file = codec.restore(document)
        coefficients = codec.parse(document).coefficients()
        assert coefficients.dtype == np.int32 and coefficients.any()
        blocks = inverse_dct(coefficients[:, 0], zig_zag_quantisation(file)[0])
        ours = in_rows(blocks, -(-width // 8))[:height, :width]
        assert np.abs(ours - planes(file)).max() <= 1.0


def test_colour_coefficients_give_the_planes_that_libjpeg_decodes():
    codec = JpegCodec(height=64, width=48, mode="RGB", quality=75)
    for picture in photographs(8, 64, 48):
        document = codec.encode(picture)
        file = codec.restore(document)
        coefficients = codec.parse(document).coefficients()
        quantisation = zig_zag_quantisation(file)
        luminance = inverse_dct(coefficients[:, :4], quantisation[0])
        mcus = np.stack([in_rows(mcu, 2) for mcu in luminance])
        assert np.abs(in_rows(mcus, 3) - planes(file)[..., 0]).max() <= 1.0
        for plane in (1, 2):
            chrominance = inverse_dct(coefficients[:, 3 + plane], quantisation[1])
            assert np.abs(in_rows(chrominance, 3) - planes(file, 2)[..., plane]).max() <= 1.0


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 3}, {"restart_marker_rows": 1}, {"optimize": True}])
def test_files_with_any_restart_interval_and_tables_inside_hold_the_same_coefficients(mode, options):
    picture = photographs(1, 40, 72, mode)[0]
    codec = JpegCodec(height=40, width=72, mode=mode, quality=25)
    expected = codec.parse(codec.encode(picture)).coefficients()
    file = save(picture, **options)
    scan = parse(file)
    assert (scan.height, scan.width) == (40, 72)
    np.testing.assert_array_equal(scan.coefficients(), expected)
    assert file[scan.ends[-1] :] == b"\xff\xd9"
    assert scan.starts[0] == file.index(b"\xff\xda") + {"RGB": 14, "L": 10}[mode]
    if scan.restart_interval == 0:  # MCUs share bytes: each begins in the one where the last ended, or after it
        assert set(scan.ends[:-1] - scan.starts[1:]) <= {0, 1, 2}
        assert (scan.ends[:-1] > scan.starts[1:]).any()


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2"])
def test_files_with_other_sampling_factors_give_the_luminance_that_libjpeg_decodes(subsampling):
    file = save(photographs(1, 32, 48)[0], subsampling=subsampling)
    coefficients = parse(file).coefficients()
    across = {"4:4:4": 1, "4:2:2": 2}[subsampling]
    luminance = inverse_dct(coefficients[:, :across], zig_zag_quantisation(file)[0])
    mcus = np.stack([in_rows(mcu, across) for mcu in luminance])
    assert np.abs(in_rows(mcus, 6 // across) - planes(file)[..., 0]).max() <= 1.0


def test_a_file_without_tables_is_read_with_those_of_annex_k(codec, picture):
    document = codec.encode(picture)
    np.testing.assert_array_equal(
        parse(document).coefficients(), parse(codec.restore(document)).coefficients(), strict=True
    )


def test_encoder_versions_name_pillow_and_its_libjpeg(codec):
    versions = codec.encoder_versions()
    assert set(versions) == {"pillow", "libjpeg_turbo"}
    assert all(version[0].isdigit() for version in versions.values())
