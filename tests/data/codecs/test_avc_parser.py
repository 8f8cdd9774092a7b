"""The strict H.264 parser: it takes what x264 writes, and refuses with a reason what the standard forbids."""

import re

import numpy as np
import pytest

from jpeglm.data.codecs import avc_header, avc_parser, avc_residual
from jpeglm.data.codecs.avc_header import AvcError, split
from jpeglm.data.codecs.avc_parser import parse
from tests.data.codecs.avc_tools import (
    CUT,
    DENSE,
    FLAT,
    I_HEADER,
    LATE_CUT,
    PAPER,
    RICH,
    SMALL,
    block,
    code,
    complaints,
    encode,
    inter,
    nal,
    one_macroblock_clip,
    p_header,
    refusal,
    se,
    stripped,
    ue,
    units,
)

NOISE = "noise=all_seed=1:alls=60:allf=t+u"
TOKENS, ZEROS = avc_residual._TOKENS, avc_residual._ZEROS
SKIP = ue(1)


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
    "bits after a skipped macroblock": (macroblock(SKIP, "0" * 9), "16 bits where the 1 to 8"),
    "two skipped macroblocks": (macroblock(ue(2)), "mb_skip_run is 2, not in 0..1"),
    "a macroblock after a skipped one": (macroblock(SKIP, inter(0, "")[1:]), "rbsp_trailing_bits|bits where the"),
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
            damaged[f"{kind} after the next"] = b"".join([*rest, following[0], part, *following[1:]])
        long = part.startswith(b"\x00\x00\x00\x01")
        damaged[f"{kind} with another start code"] = b"".join(
            [*rest, part[1:] if long else b"\x00" + part, *following]
        )
        damaged[f"{kind} with zeros before it"] = b"".join([*rest, b"\x00\x00" + part, *following])
        damaged[f"{kind} with zeros after it"] = b"".join([*rest, part + b"\x00\x00\x00", *following])
        damaged[f"{kind} with a byte after it"] = b"".join([*rest, part + b"\x80", *following])
        damaged[f"{kind} without its last byte"] = b"".join([*rest, part[:-1], *following])
        begin = 4 if long else 3
        for bit in range(8):
            changed = part[:begin] + bytes([part[begin] ^ 1 << bit]) + part[begin + 1 :]
            damaged[f"{kind} with bit {bit} of its header changed"] = b"".join([*rest, changed, *following])
    frames = [stream[start:end] for start, end in zip(clip.starts, clip.ends, strict=True)]
    for index, frame in enumerate(frames):
        # no stream tells what it lost after its last frame, or after the last one before an IDR picture
        if index + 1 < len(frames) and not clip.is_idr[index + 1]:
            damaged[f"frame {index} dropped"] = b"".join(frames[:index] + frames[index + 1 :])
            swapped = [frames[index + 1], frame]
            damaged[f"frame {index} after the next"] = b"".join(frames[:index] + swapped + frames[index + 2 :])
        damaged[f"frame {index} doubled"] = b"".join(frames[:index] + [frame, frame] + frames[index + 1 :])
    for index in range(len(frames) - 1):
        for number in range(clip.slice_starts.shape[1]):
            # slices of one macroblock in two neighbouring frames, exchanged
            bounds = [(clip.slice_starts[at, number], clip.slice_ends[at, number]) for at in (index, index + 1)]
            (a, b), (c, d) = bounds
            exchanged = stream[:a] + stream[c:d] + stream[b:c] + stream[a:b] + stream[d:]
            damaged[f"slice {number} of frame {index} exchanged with the next frame's"] = exchanged
    for junk in (b"\x00", b"\x01", b"junk", b"\x00\x00\x01", b"\x00\x00\x01\x0c\xff\x80", b"\x00\x00\x00\x01\x09\x10"):
        damaged[f"{junk!r} after the end"] = stream + junk
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
        (SMALL + b"\x00\x00\x01", f"byte {len(SMALL) + 3}: nothing after a start code"),
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
