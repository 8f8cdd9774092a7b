"""The strict H.264 parser: it takes what x264 writes, refuses what is damaged, and never fails otherwise."""

import collections
import dataclasses
import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jpeglm.codecs import avc_header, avc_parser, avc_residual
from jpeglm.codecs.avc_header import AvcError, read_pps, read_sps, split, without_tags
from jpeglm.codecs.avc_parser import parse
from tests.codecs.avc_tools import (
    FLAT,
    I_HEADER,
    PAPER,
    RICH,
    block,
    code,
    complaints,
    encode,
    inter,
    nal,
    one_macroblock_clip,
    p_header,
    se,
    ue,
    units,
)

CUT, LATE_CUT = "negate=enable=gte(n\\,3)", "negate=enable=gte(n\\,12)"  # a scene cut at that frame
NOISE = "noise=all_seed=1:alls=60:allf=t+u"
# Two IDR pictures, 6 frames of 6 macroblocks: the paper's command, and one that uses all that Baseline has.
SMALL = encode("testsrc2", (48, 32), frames=6, filters=CUT)
DENSE = encode("mandelbrot", (48, 32), frames=6, command=RICH, qp=18, filters=CUT)
TOKENS, ZEROS = avc_residual._TOKENS, avc_residual._ZEROS
SKIP = ue(1)


def refusal(stream: bytes, parameters: avc_header.Parameters | None = None) -> str | None:
    """Returns why a stream is refused; None where it is accepted."""
    try:
        parse(stream, parameters)
    except AvcError as error:
        assert str(error) and "\n" not in str(error)
        return str(error)
    return None


def stripped(stream: bytes) -> tuple[bytes, avc_header.Parameters]:
    """Returns a stream without SPS, PPS and SEI, and what they say."""
    nals, parts = split(stream), units(stream)
    slices = [part[nal.begin - nal.start :] for nal, part in zip(nals, parts, strict=True) if nal.type in (1, 5)]
    macroblocks = parse(stream).slice_starts.shape[1]
    codes = [b"\x00\x00\x01" if number % macroblocks else b"\x00\x00\x00\x01" for number in range(len(slices))]
    body = b"".join(code + slice_ for code, slice_ in zip(codes, slices, strict=True))
    return body, read_pps(parts[1][4:], read_sps(parts[0][4:]))


# What x264 writes


STREAMS = {
    "the paper's command": lambda: encode("testsrc2"),
    "a zoom": lambda: encode("mandelbrot", refs=2),
    "two IDR pictures": lambda: encode("testsrc2", filters=CUT),
    "an IDR picture each 4 frames": lambda: encode("testsrc2", (96, 64), x264="keyint=4:min-keyint=1"),
    "IDR pictures alone": lambda: encode("testsrc2", (96, 64), x264="keyint=1"),
    "an I picture that is no IDR picture": lambda: encode(
        "testsrc2", (96, 64), frames=20, filters=LATE_CUT, x264="min-keyint=30:scenecut=100"
    ),
    "sizes that are no multiples of 16": lambda: encode("testsrc2", (90, 50)),
    "one macroblock": lambda: encode("testsrc2", (16, 16)),
    "more frames than frame_num counts": lambda: encode("testsrc2", (48, 32), frames=40),
    "one reference picture": lambda: encode("testsrc2", (96, 64), refs=1, command=RICH, qp=20),
    "two reference pictures": lambda: encode("testsrc2", (96, 64), refs=2, command=RICH, qp=20),
    "five reference pictures": lambda: encode("testsrc2", (96, 64), refs=5, command=RICH, qp=20),
    "fast motion": lambda: encode("testsrc2", (96, 64), command=RICH, filters="scroll=h=0.3:v=0.2"),
    "colour tags": lambda: encode("testsrc2", (48, 32), command=PAPER + " -colorspace bt709 -color_range pc"),
    **{
        f"{name} at QP {qp}": lambda filters=filters, qp=qp, command=command: encode(
            "testsrc2", (96, 64), command=command, qp=qp, filters=filters, frames=8
        )
        for name, filters, command in (("noise", NOISE, PAPER), ("all of Baseline", "null", RICH))
        for qp in (1, 4, 10, 20, 30, 44, 51)
    },
    "grey noise": lambda: encode("testsrc2", (96, 64), command=RICH, qp=20, filters=f"{NOISE},hue=s=0", frames=4),
    "noise with all of Baseline": lambda: encode("testsrc2", (96, 64), command=RICH, qp=12, filters=NOISE, frames=8),
}


@pytest.mark.parametrize("name", STREAMS)
def test_what_x264_writes_is_accepted_with_and_without_headers(name):
    stream = STREAMS[name]()
    clip = parse(stream)
    body, parameters = stripped(stream)
    bare = parse(body, parameters)
    assert not complaints(stream, len(clip.starts))
    assert (clip.starts[0], clip.ends[-1]) == (0, len(stream))
    assert (clip.starts[1:] == clip.ends[:-1]).all()
    assert (clip.slice_ends[:, -1] == clip.ends).all()
    assert (clip.slice_starts[:, 1:] == clip.slice_ends[:, :-1]).all()
    assert (clip.mb_types == bare.mb_types).all() and (clip.is_idr == bare.is_idr).all()
    assert (bare.starts == bare.slice_starts[:, 0]).all()
    headers = np.flatnonzero(clip.starts != clip.slice_starts[:, 0])
    assert (headers == np.flatnonzero(clip.is_idr)).all()
    assert refusal(body) and refusal(stream, parameters)


def test_the_streams_have_every_macroblock_type_that_a_lone_macroblock_can_have():
    types = {mb_type for make in STREAMS.values() for mb_type in parse(make()).mb_types.flat}
    lone_16x16 = {avc_parser.I_16X16 + number for number in range(24) if number % 4 == 2}  # prediction mode DC
    assert types == {*range(-1, 5), avc_parser.I_NXN, avc_parser.I_PCM} | lone_16x16
    pictures = parse(STREAMS["an I picture that is no IDR picture"]())
    assert pictures.is_idr.tolist() == [True] + [False] * 19
    assert np.flatnonzero((pictures.mb_types >= avc_parser.I_NXN).all(1)).tolist() == [0, 12]


def test_width_and_height_are_those_after_cropping():
    for size in ((90, 50), (16, 16), (256, 144)):
        clip = parse(encode("testsrc2", size, frames=2))
        assert (clip.width, clip.height) == size
        assert clip.slice_starts.shape == (2, -(-size[0] // 16) * -(-size[1] // 16))


# The tables of CAVLC, with a decoder as judge that wants a lone macroblock to end with the last bit of its slice


def prefix_sum(table: list[int]) -> int:
    """Returns how many of the table's entries its codes cover, having checked that none covers another's."""
    width = len(table).bit_length() - 1
    lengths = {entry: entry & 31 for entry in table if entry}
    for entry, length in lengths.items():
        assert table.count(entry) == 1 << width - length
    return sum(1 << width - length for length in lengths.values())


def test_codes_are_prefix_free_and_leave_nothing_free_but_what_the_standard_does():
    free = [len(table) - prefix_sum(table) for table in (TOKENS[0], TOKENS[2], TOKENS[4], TOKENS[8])]
    assert free == [2, 8, 64, 2 * 1024]  # of 2**16: codes of zeros alone, and two of the 64 with 6 bits
    assert prefix_sum(avc_residual._CHROMA_DC_TOKENS) == 1 << 16
    zeros = [len(table) - prefix_sum(table) for table in avc_residual._ZEROS[1:] + avc_residual._CHROMA_DC_ZEROS[1:]]
    assert zeros == [1] + [0] * 17
    assert [len(table) - prefix_sum(table) for table in avc_residual._RUNS[1:]] == [0] * 6 + [1]
    assert sorted(avc_residual.INTRA_CBP) == sorted(avc_residual.INTER_CBP) == list(range(48))


def macroblocks_with_every_code() -> list[str]:
    """Returns slice_data of macroblocks that have each code of each table of CAVLC."""
    bodies = []
    for context in (0, 2, 4, 8):  # nC of the second block: TotalCoeff of the first one
        first, second = block(TOKENS[0], 16, context), TOKENS[context]
        for total in range(17):
            for ones in range(min(3, total) + 1):
                third = TOKENS[context]  # nC is that of the block above; for the fourth the mean of its neighbours'
                rest = block(third, 16, 1) + block(TOKENS[total + 2 >> 1], 16, 0)
                bodies.append(inter(1, first + block(second, 16, total, ones) + rest))
    none = block(TOKENS[0], 16, 0)
    for total in range(1, 16):
        for zeros in range(17 - total):
            runs = (zeros,) if total > 1 else ()
            residual = block(TOKENS[0], 16, total, zeros=zeros, runs=runs)
            residual += block(TOKENS[total], 16, 0) + block(TOKENS[total], 16, 0) + none
            bodies.append(inter(1, residual))
    for total in range(2, 10):
        for zeros in range(1, 17 - total):
            for run in range(zeros + 1):
                residual = block(TOKENS[0], 16, total, zeros=zeros, runs=(run,))
                residual += block(TOKENS[total], 16, 0) + block(TOKENS[total], 16, 0) + none
                bodies.append(inter(1, residual))
    dc = avc_residual._CHROMA_DC_TOKENS
    for total in range(5):
        for ones in range(min(3, total) + 1):
            for zeros in range(5 - total if total else 1):
                bodies.append(inter(16, block(dc, 4, total, ones, zeros) + block(dc, 4, 0)))
    for pattern in range(1, 48):
        dc_blocks = block(dc, 4, 0) * 2 if pattern >> 4 else ""
        ac_blocks = block(TOKENS[0], 15, 0) * 8 if pattern >> 4 == 2 else ""
        bodies.append(inter(pattern, none * 4 * (pattern & 15).bit_count() + dc_blocks + ac_blocks))
        intra = ue(0) + ue(avc_parser.I_NXN) + "1" * 16 + ue(0) + ue(avc_residual.INTRA_CBP.index(pattern)) + se(0)
        bodies.append(intra + none * 4 * (pattern & 15).bit_count() + dc_blocks + ac_blocks)
    return bodies


def test_another_decoder_reads_every_code_with_the_same_length():
    stream = one_macroblock_clip(SKIP, SKIP, *macroblocks_with_every_code())
    clip = parse(stream)
    assert len(clip.starts) > 900
    assert not complaints(stream, len(clip.starts))
    # the judge is one: a bit more or less and it says so
    body = inter(1, block(TOKENS[0], 16, 3) + block(TOKENS[3], 16, 2) + block(TOKENS[3], 16, 0) + "1")
    assert not complaints(one_macroblock_clip(SKIP, SKIP, body), 4)
    for changed in (body + "1", body[:-1]):
        assert refusal(one_macroblock_clip(SKIP, SKIP, changed))
        assert complaints(one_macroblock_clip(SKIP, SKIP, changed), 4)


def random_macroblock(random: np.random.Generator) -> str | None:
    """Returns slice_data of a macroblock of random bits that is legal, or None where the bits are not."""
    header = p_header(3, 3)
    bits = ue(0) + ue(int(random.integers(31))) + "".join(random.choice(["0", "1"], 4000).tolist())
    why = refusal(one_macroblock_clip(SKIP, SKIP, bits))
    left = re.search(r"(\d+) bits where the 1 to 8", why)
    if left is None:
        return None
    padded = len(header + bits) // 8 * 8 + 8
    return (header + bits)[len(header) : padded - int(left.group(1))]


def test_another_decoder_reads_legal_macroblocks_of_random_bits_to_the_same_end():
    random = np.random.default_rng(0)
    bodies = [body for _ in range(1500) if (body := random_macroblock(random)) is not None]
    stream = one_macroblock_clip(SKIP, SKIP, *bodies)
    clip = parse(stream)
    assert len(bodies) > 100 and len(set(clip.mb_types.flat)) >= 8
    assert not complaints(stream, len(clip.starts))


# Refusals, each by its message


def macroblock(*parts: str) -> bytes:
    """Returns a clip whose fourth frame, with three pictures to refer to, has this slice_data."""
    return one_macroblock_clip(SKIP, SKIP, "".join(parts))


ZERO_VECTOR = se(0) + se(0)
NO_RESIDUAL = ue(avc_residual.INTER_CBP.index(0))
LUMA = ue(0) + ue(0) + ue(0) + ZERO_VECTOR + ue(avc_residual.INTER_CBP.index(1))  # up to mb_qp_delta
I_4X4 = ue(0) + ue(avc_parser.I_NXN)
EMPTY = block(TOKENS[0], 16, 0)
MACROBLOCKS = {
    "bits behind a skipped macroblock": (macroblock(SKIP, "0" * 9), "16 bits where the 1 to 8"),
    "two skipped macroblocks": (macroblock(ue(2)), "mb_skip_run is 2, not in 0..1"),
    "a macroblock behind a skipped one": (macroblock(SKIP, inter(0, "")[1:]), "rbsp_trailing_bits|bits where the"),
    "mb_type of no macroblock": (macroblock(ue(0), ue(31)), "mb_type is 31, not in 0..30"),
    "sub_mb_type of no macroblock": (macroblock(ue(0), ue(3), ue(4)), "sub_mb_type is 4, not in 0..3"),
    "a picture that is not there": (macroblock(ue(0), ue(0), ue(3)), "ref_idx_l0 is 3, not in 0..2"),
    "coded_block_pattern": (macroblock(ue(0), ue(0), ue(0), ZERO_VECTOR, ue(48)), "coded_block_pattern is 48, not"),
    "mb_qp_delta": (macroblock(LUMA, se(26)), "mb_qp_delta is 26, not in -26..25"),
    "a vector too long": (macroblock(ue(0), ue(0), ue(0), se(-257), se(0)), r"vector \(-257, 0\) .* beyond 256"),
    "a vector too high": (macroblock(ue(0), ue(0), ue(0), se(0), se(256)), r"vector \(0, 256\) .* beyond 256"),
    "a predicted vector too long": (
        macroblock(ue(0), ue(1), ue(0) * 2, se(200), se(0), se(56), se(0)),
        r"vector \(256, 0\) in quarter samples is beyond",
    ),
    "no coeff_token": (macroblock(LUMA, se(0), "0" * 16), "no code of coeff_token"),
    "an AC block of 16": (
        macroblock(ue(0), ue(5 + 15), ue(0), se(0), EMPTY, block(TOKENS[0], 16, 16)),
        "16 coefficients in a block of 15",
    ),
    "level_prefix 16": (
        macroblock(LUMA, se(0), code(TOKENS[0], 1 << 2), "0" * 16, "1" * 9),
        "level_prefix is above 15",
    ),
    "no total_zeros": (macroblock(LUMA, se(0), code(TOKENS[0], 1 << 2), "1", "0" * 9), "no code of total_zeros"),
    "total_zeros of an AC block": (
        macroblock(ue(0), ue(5 + 15), ue(0), se(0), EMPTY, code(TOKENS[0], 5), "0", code(ZEROS[1], 15)),
        "total_zeros is 15 beside 1 coefficients in a block of 15",
    ),
    "no run_before": (
        macroblock(LUMA, se(0), code(TOKENS[0], 2 << 2 | 2), "00", code(ZEROS[2], 14), "0" * 11, "1" * 9),
        "no code of run_before",
    ),
    "run_before of more zeros than are left": (
        macroblock(LUMA, se(0), code(TOKENS[0], 2 << 2 | 2), "00", code(ZEROS[2], 7), "00001"),
        "run_before is 8, with 7 zeros left",
    ),
    "Intra_16x16 from above": (macroblock(ue(0), ue(6)), "Intra_16x16 prediction mode 0 needs"),
    "Intra_16x16 plane": (macroblock(ue(0), ue(9)), "Intra_16x16 prediction mode 3 needs"),
    "chroma from the left": (macroblock(ue(0), ue(8), ue(1)), "intra_chroma_pred_mode 1 needs"),
    "intra_chroma_pred_mode": (macroblock(ue(0), ue(8), ue(4)), "intra_chroma_pred_mode is 4, not in 0..3"),
    "Intra_4x4 from above": (macroblock(I_4X4, "0000"), "Intra_4x4 prediction mode 0 of block 0 needs"),
    "Intra_4x4 from the left": (macroblock(I_4X4, "1" * 2 + "0001"), "Intra_4x4 prediction mode 1 of block 2 needs"),
    "Intra_4x4 from the corner": (macroblock(I_4X4, "1", "0011"), "Intra_4x4 prediction mode 4 of block 1 needs"),
    "alignment of I_PCM": (macroblock(ue(0), ue(30), "1" * 8 * 400), "pcm_alignment_zero_bit is not 0"),
    "half of I_PCM": (macroblock(ue(0), ue(30), "0" * 8 + "1" * 1000), "the data end too early"),
    "nothing": (macroblock(""), "the data end too early|Exp-Golomb"),
    "half a macroblock": (macroblock(LUMA), "the data end too early|the Exp-Golomb code|no code|bits"),
    "an Exp-Golomb code of 33 bits": (macroblock("0" * 16 + "1" * 17), "code of mb_skip_run is longer than 32 bits"),
}


@pytest.mark.parametrize("name", MACROBLOCKS)
def test_macroblocks_that_the_standard_forbids_are_refused(name):
    stream, message = MACROBLOCKS[name]
    with pytest.raises(AvcError, match=rf"byte \d+, frame 3, slice 0 of 1: .*({message})"):
        parse(stream)


def test_legal_macroblocks_by_hand_are_accepted():
    vectors = [ue(0), ue(1), ue(0) * 2, se(200), se(0), se(55), se(0), NO_RESIDUAL]
    other_picture = [ue(0), ue(1), ue(0) + ue(1), se(200), se(0), se(255), se(0), NO_RESIDUAL]  # nothing predicted
    beside = [ue(0), ue(2), ue(0) + ue(1), se(200), se(0), se(55), se(0), NO_RESIDUAL]  # predicted all the same
    pcm = [ue(0), ue(30)]
    pcm.append("0" * (-len(p_header(3, 3) + "".join(pcm)) % 8) + "10100101" * 384)
    intra = [I_4X4, "1", "0001", "0000", "0010", "1" * 12, ue(0), ue(avc_residual.INTRA_CBP.index(0))]
    for parts, mb_type in ((vectors, 1), (other_picture, 1), (beside, 2), (pcm, avc_parser.I_PCM), (intra, 5)):
        stream = macroblock(*parts)
        assert parse(stream).mb_types[-1, 0] == mb_type
        assert not complaints(stream, 4)
    too_long = [part if part != se(55) else se(56) for part in beside]
    assert "vector (256, 0)" in refusal(macroblock(*too_long))


P_FIRST = nal(0x65, I_HEADER + FLAT)


def header(idr: str = I_HEADER, p: str | None = None) -> bytes:
    """Returns a clip of an I and perhaps a P picture of one macroblock, with these slice headers."""
    start = one_macroblock_clip()
    start = start[: parse(start).slice_starts[0, 0]]
    return start + nal(0x65, idr + FLAT) + (nal(0x41, p + SKIP, 4) if p is not None else b"")


def with_fields(picture: str, **fields: str) -> str:
    """Returns a slice header of an I or P picture with other bits for some fields."""
    standard = {"first_mb": ue(0), "type": ue(7 if picture == "I" else 5), "pps": ue(0), "frame_num": "0000"}
    if picture == "I":
        standard |= {"idr_pic_id": ue(0), "marking": "00"}
    else:
        standard |= {"frame_num": "0001", "override": "1" + ue(0), "modification": "0", "marking": "0"}
    standard |= {"qp": se(0), "deblocking": ue(1)}
    return "".join((standard | fields).values())


HEADERS = {
    "first_mb_in_slice": (header(with_fields("I", first_mb=ue(1))), "first_mb_in_slice is 1, not 0"),
    "a B slice": (header(p=with_fields("P", type=ue(6))), "slice_type 6 is neither P nor I"),
    "P in an IDR picture": (header(with_fields("I", type=ue(5))), "slice_type 5, P, in an IDR picture"),
    "another PPS": (header(with_fields("I", pps=ue(1))), "pic_parameter_set_id is not 0"),
    "frame_num of an IDR picture": (header(with_fields("I", frame_num="0001")), "frame_num is 1, not 0"),
    "frame_num again": (header(p=with_fields("P", frame_num="0000")), "frame_num is 0, not 1"),
    "frame_num with a gap": (header(p=with_fields("P", frame_num="0010")), "frame_num is 2, not 1"),
    "idr_pic_id of 17 bits": (header(with_fields("I", idr_pic_id=ue(65536))), "idr_pic_id is longer than 32 bits"),
    "pictures that are not there": (header(p=with_fields("P", override="1" + ue(1))), "2 reference .* only 1 exist"),
    "the PPS's number of pictures": (header(p=with_fields("P", override="0")), "3 reference .* only 1 exist"),
    "another order of pictures": (
        header(p=with_fields("P", modification="1")),
        "ref_pic_list_modification_flag_l0 is 1, not 0",
    ),
    "adaptive marking": (header(p=with_fields("P", marking="1")), "adaptive_ref_pic_marking_mode_flag is 1, not 0"),
    "a long-term picture": (header(with_fields("I", marking="01")), "long_term_reference_flag is 1, not 0"),
    "pictures not put out": (header(with_fields("I", marking="10")), "no_output_of_prior_pics_flag is 1, not 0"),
    "QP 52": (header(with_fields("I", qp=se(52 - 37))), "slice_qp_delta is 15, not in -37..14"),
    "QP below 0": (header(with_fields("I", qp=se(-38))), "slice_qp_delta is -38, not in -37..14"),
    "deblocking": (header(with_fields("I", deblocking=ue(3))), "disable_deblocking_filter_idc is 3, not in 0..2"),
    "alpha": (header(with_fields("I", deblocking=ue(0) + se(7) + se(0))), "slice_alpha_c0_offset_div2 is 7, not in"),
    "beta": (header(with_fields("I", deblocking=ue(2) + se(6) + se(-7))), "slice_beta_offset_div2 is -7, not in"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_slice_headers_that_the_standard_forbids_are_refused(name):
    stream, message = HEADERS[name]
    with pytest.raises(AvcError, match=rf"byte \d+, frame [01], slice 0 of 1: .*{message}"):
        parse(stream)


def test_legal_slice_headers_are_accepted():
    for idr, p in (
        (with_fields("I", type=ue(2), qp=se(14), deblocking=ue(2) + se(6) + se(-6)), with_fields("P", type=ue(0))),
        (with_fields("I", idr_pic_id=ue(65534), qp=se(-37)), with_fields("P", deblocking=ue(0) + se(-6) + se(6))),
    ):
        stream = header(idr, p)
        assert parse(stream).mb_types.tolist() == [[8], [avc_parser.P_SKIP]]
        assert not complaints(stream, 2)


def test_slices_of_a_picture_agree():
    headers = b"".join(units(encode("testsrc2", (32, 16), frames=2))[:3])
    first = nal(0x65, with_fields("I") + FLAT)
    parse(headers + first + nal(0x65, with_fields("I", first_mb=ue(1)) + FLAT))
    for field, value, message in (
        ("type", ue(2), "slice_type is 2, but 7 in this frame's first slice"),
        ("frame_num", "0001", "frame_num is 1, not 0"),
        ("idr_pic_id", ue(1), "idr_pic_id is 1, but 0 in this frame's first slice"),
    ):
        second = nal(0x65, with_fields("I", first_mb=ue(1), **{field: value}) + FLAT)
        with pytest.raises(AvcError, match=f"frame 0, slice 1 of 2: {message}"):
            parse(headers + first + second)


# Structure


def structural_damage(stream: bytes) -> dict[str, bytes]:
    """Returns the stream with slices and frames lost, doubled or in other places, and other edits of NAL units."""
    clip = parse(stream)
    parts = units(stream)
    types = [nal_unit.type for nal_unit in split(stream)]
    damaged = {}
    for index, part in enumerate(parts):
        kind, rest, following = f"unit {index} (type {types[index]})", parts[:index], parts[index + 1 :]
        if types[index] != avc_header.SEI:
            damaged[f"{kind} dropped"] = b"".join(rest + following)
        damaged[f"{kind} doubled"] = b"".join(rest + [part, part] + following)
        if following:
            damaged[f"{kind} behind the next"] = b"".join([*rest, following[0], part, *following[1:]])
        long = part.startswith(b"\x00\x00\x00\x01")
        damaged[f"{kind} with another start code"] = b"".join(
            [*rest, part[1:] if long else b"\x00" + part, *following]
        )
        damaged[f"{kind} with zeros before it"] = b"".join([*rest, b"\x00\x00" + part, *following])
        damaged[f"{kind} with zeros behind it"] = b"".join([*rest, part + b"\x00\x00\x00", *following])
        damaged[f"{kind} with a byte behind it"] = b"".join([*rest, part + b"\x80", *following])
        damaged[f"{kind} without its last byte"] = b"".join([*rest, part[:-1], *following])
        begin = 4 if long else 3
        for bit in range(8):
            changed = part[:begin] + bytes([part[begin] ^ 1 << bit]) + part[begin + 1 :]
            damaged[f"{kind} with bit {bit} of its header changed"] = b"".join([*rest, changed, *following])
    frames = [stream[start:end] for start, end in zip(clip.starts, clip.ends, strict=True)]
    for index, frame in enumerate(frames):
        # no stream tells what it lost behind its last frame, or behind the last one before an IDR picture
        if index + 1 < len(frames) and not clip.is_idr[index + 1]:
            damaged[f"frame {index} dropped"] = b"".join(frames[:index] + frames[index + 1 :])
            swapped = [frames[index + 1], frame]
            damaged[f"frame {index} behind the next"] = b"".join(frames[:index] + swapped + frames[index + 2 :])
        damaged[f"frame {index} doubled"] = b"".join(frames[:index] + [frame, frame] + frames[index + 1 :])
    for index in range(len(frames) - 1):
        for number in range(clip.slice_starts.shape[1]):
            # slices of one macroblock in two neighbouring frames, exchanged
            bounds = [(clip.slice_starts[at, number], clip.slice_ends[at, number]) for at in (index, index + 1)]
            (a, b), (c, d) = bounds
            exchanged = stream[:a] + stream[c:d] + stream[b:c] + stream[a:b] + stream[d:]
            damaged[f"slice {number} of frame {index} exchanged with the next frame's"] = exchanged
    for junk in (b"\x00", b"\x01", b"junk", b"\x00\x00\x01", b"\x00\x00\x01\x0c\xff\x80", b"\x00\x00\x00\x01\x09\x10"):
        damaged[f"{junk!r} behind the end"] = stream + junk
        damaged[f"{junk!r} before the start"] = junk + stream
    damaged["the stream twice"] = stream + stream
    return damaged


@pytest.mark.parametrize("stream", [SMALL, DENSE], ids=["paper", "all of Baseline"])
def test_structural_damage_is_always_refused(stream):
    damaged = structural_damage(stream)
    assert len(damaged) > 600
    accepted = [name for name, data in damaged.items() if refusal(data) is None]
    assert not accepted


@pytest.mark.parametrize("stream", [SMALL, DENSE], ids=["paper", "all of Baseline"])
def test_structural_damage_of_a_stripped_stream_is_always_refused(stream):
    body, parameters = stripped(stream)
    parts = units(body)
    for index, part in enumerate(parts):
        long = part.startswith(b"\x00\x00\x00\x01")
        for changed in ([], [part, part], [part[1:] if long else b"\x00" + part], [part[:-1]], [part + b"\x80"]):
            assert refusal(b"".join(parts[:index] + changed + parts[index + 1 :]), parameters)
        for unit in units(stream)[:3]:
            assert refusal(b"".join([*parts[:index], unit, *parts[index:]]), parameters)


def test_truncation_is_refused_at_every_byte_but_the_end_of_a_frame():
    stream = encode("testsrc2", (32, 32), frames=5, filters=CUT)
    for data, parameters in ((stream, None), stripped(stream)):
        ends = parse(data, parameters).ends.tolist()
        for length in range(len(data)):
            assert (refusal(data[:length], parameters) is None) == (length in ends), length


def test_messages_name_byte_frame_and_slice():
    clip = parse(SMALL)
    a, b = clip.slice_starts[2, 3], clip.slice_ends[2, 3]
    headers, slices = b"".join(units(SMALL)[:2]), SMALL[clip.slice_starts[0, 0] : clip.ends[0]]
    for data, message in (
        (b"", "byte 0: no start code"),
        (b"junk" + SMALL, "byte 0: no start code"),
        (SMALL + b"\x00\x00\x01", f"byte {len(SMALL) + 3}: nothing behind a start code"),
        (units(SMALL)[0], f"byte {len(units(SMALL)[0])}, frame 0: the stream ends before a PPS"),
        (SMALL + b"\x00", f"byte {len(SMALL)}: a zero byte at the end of a NAL unit"),
        (SMALL[:a] + SMALL[b:], f"byte {a + 4}, frame 2, slice 3 of 6: first_mb_in_slice is 4, not 3"),
        (SMALL[:a] + b"\x00" + SMALL[a:], f"byte {a}, frame 2, slice 3 of 6: a start code of 4 bytes, not 3"),
        (SMALL[:b], f"byte {b}, frame 2, slice 4 of 6: the stream ends before this slice"),
        (SMALL[: a + 3] + b"\xc1" + SMALL[a + 4 :], f"byte {a}, frame 2, slice 3 of 6: forbidden_zero_bit is 1"),
        (SMALL[: a + 3] + b"\x61" + SMALL[a + 4 :], f"byte {a}, frame 2, slice 3 of 6: nal_ref_idc is 3, not 2"),
        (SMALL[: a + 3] + b"\x65" + SMALL[a + 4 :], "frame 2, slice 3 of 6: nal_unit_type is 5, not 1, a slice"),
        (SMALL[: clip.ends[0]] + SMALL[: clip.ends[0]], "frame 1, slice 0 of 6: nal_unit_type is 6, not 5"),
        (
            SMALL[: clip.ends[0]] + headers + slices,
            "frame 1, slice 0 of 6: idr_pic_id is 0 as in the IDR picture",
        ),
    ):
        with pytest.raises(AvcError, match=message):
            parse(data)


def test_emulation_prevention_is_there_exactly_where_it_must_be():
    pcm = ue(30 - 5)
    pcm += "0" * (-len(I_HEADER + pcm) % 8)
    samples = b"\x00\x00\x00\x00\x00\x01\x00\x00\x02\x00\x00\x03" + bytes(range(9, 256)) + bytes([9]) * 125
    stream = one_macroblock_clip(first=pcm + "".join(f"{byte:08b}" for byte in samples))
    assert parse(stream).mb_types.tolist() == [[avc_parser.I_PCM]]
    assert not complaints(stream, 1)
    escapes = [found.start() for found in re.finditer(b"\x00\x00\x03", stream)]
    assert len(escapes) >= 5
    for at in escapes[-4:]:
        assert refusal(stream[: at + 2] + stream[at + 3 :])
    at = stream.rindex(bytes([20, 21, 22]))
    for wrong in (b"\x00\x00\x03\x04", b"\x00\x00\x02", b"\x00\x00\x00\x04", b"\x00\x00\x01\x65"):
        message = "emulation prevention" if wrong[2] != 1 else "frame 0|frame 1"
        with pytest.raises(AvcError, match=message):
            parse(stream[:at] + wrong + stream[at + len(wrong) :])
    with pytest.raises(AvcError, match="emulation prevention"):
        parse(stream + b"\x00\x00\x03")


# Parameter sets


def test_parameter_sets_say_what_x264_was_told():
    for size, refs, qp in (((256, 144), 3, 37), ((90, 50), 1, 20)):
        sps, pps = (unit[4:] for unit in units(encode("testsrc2", size, refs=refs, qp=qp, frames=2))[:2])
        parameters = read_pps(pps, read_sps(sps))
        assert (parameters.sps.width, parameters.sps.height) == size
        assert (parameters.sps.max_num_ref_frames, parameters.num_ref_idx_default) == (refs, refs)
        assert (parameters.init_qp, parameters.pps_identifier) == (qp, 0)
        assert parameters.deblocking_filter_control_present


def test_streams_of_other_kinds_are_refused_by_their_parameter_sets():
    main = RICH.replace("baseline", "main")
    for stream, message in (
        (encode("testsrc2", (48, 32), command=main), "profile_idc is 77, not 66"),
        (encode("testsrc2", (48, 32), x264="aud=1"), "nal_unit_type is 9, not 7, an SPS"),
        (encode("testsrc2", (48, 32), x264="pic-struct=1"), "pic_struct_present_flag is 1, not 0"),
    ):
        with pytest.raises(AvcError, match=message):
            parse(stream)


def sps(**fields: str) -> bytes:
    """Returns an SPS of 16x16 pixels with other bits for some fields."""
    standard = {"profile": "01000010", "constraints": "110000", "reserved": "00", "level": "00001010", "id": ue(0)}
    standard |= {"log2_max_frame_num": ue(0), "poc_type": ue(2), "refs": ue(3), "gaps": "0", "width": ue(0)}
    standard |= {"height": ue(0), "frame_mbs_only": "1", "direct": "1", "cropping": "0", "vui": "0"}
    return nal(0x67, "".join((standard | fields).values()))[3:]


def vui(**fields: str) -> str:
    """Returns VUI with bitstream restriction and with other bits for some fields."""
    standard = {"tags": "0000", "timing": "0", "nal_hrd": "0", "vcl_hrd": "0", "pic_struct": "0", "restriction": "11"}
    standard |= {"bytes": ue(0), "bits": ue(0), "mv": ue(9) + ue(8), "reorder": ue(0), "buffering": ue(3)}
    return "1" + "".join((standard | fields).values())


def pps(**fields: str) -> bytes:
    """Returns a PPS with other bits for some fields."""
    standard = {"id": ue(0), "sps": ue(0), "cabac": "0", "bottom": "0", "groups": ue(0), "refs": ue(2) + ue(0)}
    standard |= {"weighted": "0", "bipred": "00", "qp": se(11), "qs": se(0), "chroma": se(0), "deblocking": "1"}
    standard |= {"constrained_intra": "0", "redundant": "0"}
    return nal(0x68, "".join((standard | fields).values()))[3:]


SPS_FIELDS = {
    "profile": ("01001101", "profile_idc is 77, not 66"),
    "constraints": ("100000", "constraint_set1_flag is 0, not 1"),
    "reserved": ("10", "reserved_zero_2bits is 2, not 0"),
    "id": (ue(32), "seq_parameter_set_id is 32, not in 0..31"),
    "log2_max_frame_num": (ue(13), "log2_max_frame_num_minus4 is 13, not in 0..12"),
    "poc_type": (ue(0) + ue(0), "pic_order_cnt_type 0 is not supported, only 2"),
    "refs": (ue(17), "max_num_ref_frames is 17, not in 0..16"),
    "gaps": ("1", "gaps_in_frame_num_value_allowed_flag is 1, not 0"),
    "width": (ue(1055), "pic_width_in_mbs_minus1 is 1055, not in 0..1054"),
    "height": (ue(1055), "pic_height_in_map_units_minus1 is 1055, not in 0..1054"),
    "frame_mbs_only": ("0", "frame_mbs_only_flag is 0, not 1"),
    "cropping": ("1" + ue(4) + ue(4) + ue(0) * 2, "the frame is cropped to nothing"),
    "vui": (vui(nal_hrd="1"), "nal_hrd_parameters_present_flag is 1, not 0"),
}
VUI_FIELDS = {
    "timing": ("1" + f"{0:032b}" + f"{6:032b}" + "0", "num_units_in_tick or time_scale is 0"),
    "vcl_hrd": ("1", "vcl_hrd_parameters_present_flag is 1, not 0"),
    "pic_struct": ("1", "pic_struct_present_flag is 1, not 0"),
    "tags": ("0001" + ue(6) + ue(0), "chroma_sample_loc_type_top_field is 6, not in 0..5"),
    "reorder": (ue(1), "max_num_reorder_frames is not 0"),
}
PPS_FIELDS = {
    "id": (ue(256), "pic_parameter_set_id is 256, not in 0..255"),
    "sps": (ue(1), "seq_parameter_set_id is not 0, the SPS's"),
    "cabac": ("1", "entropy_coding_mode_flag is 1, not 0"),
    "bottom": ("1", "bottom_field_pic_order_in_frame_present_flag is 1, not 0"),
    "groups": (ue(1), "num_slice_groups_minus1 is 1, not in 0..0"),
    "refs": (ue(32) + ue(0), "num_ref_idx_l0_default_active_minus1 is 32, not in 0..31"),
    "weighted": ("1", "weighted_pred_flag is 1, not 0"),
    "bipred": ("10", "weighted_bipred_idc is 2, not 0"),
    "qp": (se(26), "pic_init_qp_minus26 is 26, not in -26..25"),
    "chroma": (se(13), "chroma_qp_index_offset is 13, not in -12..12"),
    "redundant": ("1", "redundant_pic_cnt_present_flag is 1, not 0"),
}


def test_fields_of_parameter_sets_that_no_such_stream_has_are_refused():
    assert read_sps(sps()).max_mv == (8192, 256)
    assert read_sps(sps(level="00010100")).max_mv == (8192, 512)
    assert read_sps(sps(level="00010100", vui=vui())).max_mv == (512, 256)
    assert read_sps(sps(constraints="110100", level="00001011")).max_mv == (8192, 256)  # level 1b
    for field, (bits, message) in SPS_FIELDS.items():
        with pytest.raises(AvcError, match=rf"byte \d+: {message}"):
            read_sps(sps(**{field: bits}))
    for field, (bits, message) in VUI_FIELDS.items():
        with pytest.raises(AvcError, match=rf"byte \d+: {message}"):
            read_sps(sps(vui=vui(**{field: bits})))
    assert read_pps(pps(), read_sps(sps())).init_qp == 37
    for field, (bits, message) in PPS_FIELDS.items():
        with pytest.raises(AvcError, match=rf"byte \d+: {message}"):
            read_pps(pps(**{field: bits}), read_sps(sps()))


def test_a_parameter_set_alone_wants_its_header_and_its_emulation_prevention():
    whole = sps_of()
    assert b"\x00\x00\x03\x00\x10\x00\x00\x03\x00" in whole
    for changed, message in (
        (b"", "byte 0: nothing is not the header of an SPS"),
        (b"\x68" + whole[1:], "byte 0: 68 is not the header of an SPS"),
        (whole.replace(b"\x00\x00\x03", b"\x00\x00"), "emulation prevention|the data end too early"),
        (whole[:6] + b"\x00\x00\x01" + whole[6:], "byte 6: a start code inside an SPS"),
        (whole + b"\x00", "bits where the 1 to 8|rbsp_trailing_bits"),
    ):
        for read in (read_sps, without_tags):
            with pytest.raises(AvcError, match=message):
                read(changed)
    with pytest.raises(AvcError, match="byte 0: 67 is not the header of a PPS"):
        read_pps(whole, read_sps(whole))


def test_an_sei_is_x264s_or_refused():
    sps_unit, pps_unit, sei, *slices = units(SMALL)
    uuid = sei[5 + sei[5:].index(b"\xdc") :][:16]
    for changed, message in (
        (sei.replace(uuid, bytes(range(1, 17))), "not x264's UUID"),
        (sei.replace(b"x264 - core", b"x264\n- core"), "not x264's UUID and a line of text"),
        (sei[:4] + b"\x04" + sei[5:], "payloadType is 4, not 5"),
        (sei[:-1], "the data end too early|bits"),
        (sei.replace(b"options", b"option"), "the data end too early|bits where|rbsp_trailing_bits"),
        (nal(0x06, f"{5:08b}{255:08b}"), "the data end too early"),
    ):
        with pytest.raises(AvcError, match=f"frame 0: .*({message})"):
            parse(b"".join([sps_unit, pps_unit, changed, *slices]))
    parse(b"".join([sps_unit, pps_unit, *slices]))


def test_damaged_parameter_sets_raise_nothing_but_avc_errors():
    sps, pps = (unit[4:] for unit in units(SMALL)[:2])
    parameters = read_pps(pps, read_sps(sps))
    refused = 0
    for whole, read in (
        (sps, read_sps),
        (pps, lambda changed: read_pps(changed, parameters.sps)),
        (sps, without_tags),
    ):
        for bit in range(8 * len(whole)):
            changed = bytearray(whole)
            changed[bit // 8] ^= 128 >> bit % 8
            try:
                read(bytes(changed))
            except AvcError as error:
                assert "\n" not in str(error)
                refused += 1
        for length in range(len(whole)):
            with pytest.raises(AvcError):
                read(whole[:length])
    assert refused > 200


def test_another_sps_or_pps_at_a_later_idr_picture_is_refused():
    clip = parse(SMALL)
    (second,) = np.flatnonzero(clip.is_idr)[1:]
    at = clip.starts[second]
    sps, pps = units(SMALL)[:2]
    assert SMALL[at:].startswith(sps + pps)
    other_sps, other_pps = units(encode("testsrc2", (48, 32), filters="setsar=2", qp=30))[:2]
    rest = SMALL[at + len(sps + pps) :]
    for headers, message in (
        (other_sps + pps, "an SPS that differs from the first one"),
        (sps + other_pps, "a PPS that differs from the first one"),
    ):
        with pytest.raises(AvcError, match=f"frame {second}: {message}"):
            parse(SMALL[:at] + headers + rest)


def sps_of(filters: str = "null", command: str = PAPER, **options) -> bytes:
    return units(encode("testsrc2", options.pop("size", (64, 48)), frames=2, filters=filters, command=command))[0][4:]


def test_sps_that_differ_in_tags_alone_are_equal_without_them():
    plain = sps_of()
    bt709 = "-colorspace bt709 -color_primaries bt709 -color_trc bt709"
    tagged = {
        "aspect ratio": sps_of("setsar=2"),
        "another aspect ratio": sps_of("setsar=sar=545/544:max=1000"),
        "colours": sps_of(command=f"{PAPER} {bt709}"),
        "range": sps_of(command=f"{PAPER} -color_range pc"),
        "chroma location": sps_of(command=f"{PAPER} -chroma_sample_location topleft"),
        "all of them": sps_of(
            "setsar=sar=1000/1001:max=2000", command=f"{PAPER} {bt709} -color_range pc -x264opts overscan=show"
        ),
    }
    for name, tagged_sps in tagged.items():
        assert tagged_sps != plain, name
    assert len({without_tags(each) for each in [plain, *tagged.values()]}) == 1
    bare = without_tags(plain)
    assert without_tags(bare) == bare
    assert read_sps(bare) == read_sps(plain)
    # and it is an SPS: a stream with it decodes as before
    stream = encode("testsrc2", (64, 48), frames=2, filters="setsar=2")
    changed = stream.replace(tagged["aspect ratio"], bare)
    assert changed != stream and parse(changed).mb_types.tolist() == parse(stream).mb_types.tolist()
    assert not complaints(changed, 2)


def test_sps_that_differ_in_more_than_tags_stay_different():
    bare = [without_tags(sps) for sps in (sps_of(), sps_of("fps=5"), sps_of(size=(64, 64)), sps_of(size=(62, 48)))]
    assert len(set(bare)) == 4
    assert read_sps(bare[0]) == read_sps(bare[1])
    assert dataclasses.replace(read_sps(bare[3]), width=64) == read_sps(bare[0])


# Damage


def mutate(stream: bytes, random: np.random.Generator) -> tuple[str, bytes]:
    """Returns the kind of a random damage, and the damaged stream."""
    data, at = bytearray(stream), int(random.integers(len(stream)))
    kind = str(random.choice(["flip", "flips", "set", "drop", "insert", "swap", "truncate", "noise", "splice"]))
    if kind == "flip":
        data[at] ^= 1 << int(random.integers(8))
    elif kind == "flips":
        for where in random.integers(len(data), size=3):
            data[where] ^= 1 << int(random.integers(8))
    elif kind == "set":
        data[at] = random.choice([0, 1, 3, 0x41, 0x65, 0x67, 0x80, 0xFF])
    elif kind == "drop":
        del data[at : at + int(random.integers(1, 5))]
    elif kind == "insert":
        data[at:at] = random.bytes(int(random.integers(1, 5)))
    elif kind == "swap":
        data[at : at + 2] = data[at : at + 2][::-1]
    elif kind == "truncate":
        del data[at:]
    elif kind == "noise":
        data[at : at + 20] = random.bytes(20)
    else:
        other = int(random.integers(len(stream)))
        data[at:] = stream[other:]
    return kind, bytes(data)


def judged(number: int, seed: int) -> tuple[collections.Counter, collections.Counter, list[str]]:
    """Damages stripped streams; returns how many in each way, how many were accepted, and what ffmpeg says then."""
    random = np.random.default_rng(seed)
    sources = [(b"".join(units(stream)[:2]), *stripped(stream)) for stream in (SMALL, DENSE)]
    count, accepted, findings = collections.Counter(), collections.Counter(), []
    while count.total() < number:
        headers, stream, parameters = sources[count.total() % 2]
        kind, data = mutate(stream, random)
        if data == stream:
            continue
        count[kind] += 1
        if refusal(data, parameters) is None:
            accepted[kind] += 1
            said = complaints(headers + data, len(parse(data, parameters).starts))
            if said:
                findings.append(f"seed {seed}, {kind}, {count.total()}: {said}")
    return count, accepted, findings


def test_damaged_streams_are_refused_or_decode_without_a_word():
    count, accepted, findings = judged(500, seed=0)
    print(dict(count), dict(accepted))
    # so also: what the decoder complains of, or conceals, is refused
    assert not findings
    # 39 when this was written: another sign, level or vector, and codes of the same length, are legal too
    assert accepted.total() < 60


@pytest.mark.slow
def test_many_damaged_streams_are_refused_or_decode_without_a_word():
    count, accepted, findings = judged(10_000, seed=1)
    print(dict(count), dict(accepted))
    assert not findings
    assert accepted.total() < 0.12 * count.total()


PARAMETERS = stripped(SMALL)[1]


@settings(max_examples=300, deadline=10_000)
@given(st.binary(max_size=400), st.sampled_from([b"", SMALL[: parse(SMALL).slice_starts[0, 0]], SMALL[:900]]))
def test_arbitrary_bytes_raise_nothing_but_avc_errors(data, start):
    for stream in (data, start + data, start + b"\x00\x00\x01\x65" + data):
        refusal(stream)
    for read in (read_sps, without_tags, lambda sps: read_pps(sps, PARAMETERS.sps)):
        for begin in (b"", b"\x67\x42\xc0\x0b", b"\x68"):
            try:
                read(begin + data)
            except AvcError as error:
                assert "\n" not in str(error)


@settings(max_examples=200, deadline=10_000)
@given(st.lists(st.tuples(st.integers(0, len(DENSE)), st.integers(0, 40), st.binary(max_size=6)), max_size=3))
def test_edited_streams_raise_nothing_but_avc_errors(edits):
    data = bytearray(DENSE)
    for at, dropped, new in edits:
        data[at : at + dropped] = new
    refusal(bytes(data))
    refusal(bytes(data), PARAMETERS)


HOSTILE = {
    "zeros": lambda size: bytes(size),
    "zeros in a slice": lambda size: SMALL + b"\x00\x00\x00\x01\x41" + bytes(size),
    "start codes": lambda size: b"\x00\x00\x01" * (size // 3),
    "empty units": lambda size: b"\x00\x00\x01\x65" * (size // 4),
    "slices of zeros": lambda size: SMALL + b"\x00\x00\x00\x01\x41\x80\x00\x80" * (size // 8),
    "ones": lambda size: SMALL + b"\x00\x00\x00\x01\x41" + b"\xff" * size,
    "escapes": lambda size: SMALL + b"\x00\x00\x00\x01\x41" + b"\x00\x00\x03" * (size // 3),
    "SEI": lambda size: b"".join(units(SMALL)[:2]) + b"\x00\x00\x01\x06\x05" + b"\xff" * size,
    "PCM": lambda size: SMALL + nal(0x41, p_header(0) + "1" * size, 4),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_time_is_linear_in_hostile_input(name):
    seconds = []
    for size in (200_000, 800_000):
        data = HOSTILE[name](size)
        start = time.process_time()
        assert refusal(data)
        seconds.append(time.process_time() - start)
    assert seconds[1] < 8 * seconds[0] + 0.5


def test_a_large_picture_that_is_not_there_costs_nothing():
    huge = nal(
        0x67, f"{66:08b}" + "11000000" + f"{51:08b}" + ue(0) * 2 + ue(2) + ue(1) + "0" + ue(1054) * 2 + "1100", 4
    )
    start = time.process_time()
    assert "the stream ends before" in refusal(huge + units(SMALL)[1] + P_FIRST)
    assert time.process_time() - start < 1
