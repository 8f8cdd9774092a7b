"""A strict parser of H.264 clips in which every macroblock is a slice, and where every frame and slice lies.

It entropy-decodes every slice and refuses what decoders conceal or accept silently: lost, doubled or swapped slices
and frames, bits that are no code, levels and vectors out of range, junk. Clauses are those of ITU-T H.264.

It knows what x264 writes with `profile:v baseline` and `slice-max-mbs=1`: Annex B, constrained Baseline profile,
CAVLC, one slice group. With one macroblock a slice, all of a macroblock's neighbours lie in other slices and are not
available (6.4.8), so every slice is read alone.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from jpeglm.errors import InputError

SLICE, IDR, SEI, SPS, PPS = 1, 5, 6, 7, 8  # nal_unit_type, Table 7-1
P_SKIP, P_L0_16X16, P_L0_L0_16X8, P_L0_L0_8X16, P_8X8, P_8X8REF0 = range(-1, 5)
I_NXN, I_16X16, I_PCM = 5, 6, 30  # as in P slices: mb_type of Table 7-11 plus 5; I_16x16 has the 24 from 6 on

_NAMES = {SLICE: "a slice", IDR: "an IDR slice", SEI: "an SEI", SPS: "an SPS", PPS: "a PPS"}
_REF_IDC = {SLICE: 2, IDR: 3, SEI: 0, SPS: 3, PPS: 3}  # nal_ref_idc as x264 writes it
_X264 = bytes.fromhex("dc45e9bde6d948b7962cd820d923eeef")  # uuid_iso_iec_11578 of its SEI
_MOST_BYTES = 4096  # more than any slice of one macroblock has, and so how far a reader may look past an end


class AvcError(InputError):
    """A stream that is not of the kind that this module parses; names the byte offset, frame and slice, from 0."""


# Bits


@dataclasses.dataclass(frozen=True)
class Nal:
    """Where a NAL unit lies in a stream, and its header (7.3.1)."""

    start: int  # offset of its start code, a zero_byte included
    begin: int  # offset of its header byte
    end: int  # offset behind its last byte
    ref_idc: int  # nal_ref_idc
    type: int  # nal_unit_type


def split(data: bytes) -> list[Nal]:
    """Finds the NAL units of an Annex B byte stream. What stands between two start codes is one NAL unit.

    Raises:
      AvcError: the first byte does not begin a start code, or two start codes have nothing between them.
    """
    codes = list(re.finditer(b"\x00?\x00\x00\x01", data))
    if not codes or codes[0].start():
        raise AvcError("byte 0: no start code")
    nals = []
    for code, end in zip(codes, [*(code.start() for code in codes[1:]), len(data)], strict=True):
        begin = code.end()
        if begin == end:
            raise AvcError(f"byte {begin}: nothing behind a start code")
        nals.append(Nal(code.start(), begin, end, data[begin] >> 5 & 3, data[begin] & 31))
    return nals


# Zeros that could be taken for a start code, and emulation_prevention_three_bytes without need (7.4.1).
_WRONG_ZEROS = re.compile(b"\x00\x00(?:\x00(?!\x01)|\x02|\x03(?![\x00-\x03])|\x03(?=\x00\x00\x00?\x01))")


_TOO_EARLY = "the data end too early"


class Reader:
    """Reads syntax elements (7.2, 9.1) of a stream's NAL units.

    Its positions count bits of the stream without emulation_prevention_three_bytes.
    """

    def __init__(self, data: bytes):
        wrong = _WRONG_ZEROS.search(data)
        if wrong:
            shown = wrong.group().hex(" ")
            raise AvcError(f"byte {wrong.start()}: bytes {shown} in a place where emulation prevention forbids them")
        kept = np.ones(len(data) + 1, bool)
        kept[[found.end() - 1 for found in re.finditer(b"\x00\x00\x03", data)]] = False
        self.origin = np.flatnonzero(kept)  # offset in the stream of each byte that is kept; and its length
        self._index = (np.cumsum(kept) - 1).tolist()
        plain = np.zeros(len(self.origin) + _MOST_BYTES, np.int64)
        plain[: len(self.origin) - 1] = np.frombuffer(data, np.uint8)[self.origin[:-1]]
        self.plain = plain.astype(np.uint8).tobytes()
        windows = plain[:-4]
        for number in range(1, 5):
            windows = windows << 8 | plain[number : len(plain) - 4 + number]
        self.windows = windows.tolist()  # the 40 bits from each byte on, of which any position has 32 ahead
        self.position = self.end = 0
        self.place = ""  # for messages: frame and slice

    def enter(self, begin: int, end: int) -> None:
        """Goes to the NAL unit from offset `begin` to `end`, behind its header."""
        self.position = 8 * self._index[begin] + 8
        self.end = 8 * self._index[end]

    def wrong(self, what: str) -> AvcError:
        """Makes the error for something wrong at, or just before, the current position."""
        if self.position > self.end:
            what = _TOO_EARLY
        return AvcError(f"byte {self.origin[min(self.position, self.end - 1) >> 3]}{self.place}: {what}")

    def u(self, bits: int) -> int:
        """Reads `bits` bits, at most 32."""
        position = self.position
        self.position = position + bits
        return self.windows[position >> 3] >> 40 - (position & 7) - bits & (1 << bits) - 1

    def ue(self, name: str, most: int) -> int:
        """Reads an unsigned Exp-Golomb code of at most 32 bits: syntax element `name`, from 0 to `most`."""
        position = self.position
        window = self.windows[position >> 3] >> 8 - (position & 7) & 0xFFFFFFFF
        zeros = 32 - window.bit_length()
        if zeros > 15:
            raise self.wrong(f"the Exp-Golomb code of {name} is longer than 32 bits")
        self.position = position + 2 * zeros + 1
        value = (window >> 31 - 2 * zeros) - 1
        if value > most:
            raise self.wrong(f"{name} is {value}, not in 0..{most}")
        return value

    def se(self, name: str, least: int, most: int) -> int:
        """Reads a signed Exp-Golomb code (9.1.1): syntax element `name`, from `least` to `most`."""
        code = self.ue(name, 1 << 16)
        value = code + 1 >> 1 if code & 1 else -(code >> 1)
        if not least <= value <= most:
            raise self.wrong(f"{name} is {value}, not in {least}..{most}")
        return value

    def expect(self, name: str, bits: int, value: int) -> None:
        """Reads `bits` bits that must be `value`."""
        found = self.u(bits)
        if found != value:
            raise self.wrong(f"{name} is {found}, not {value}")

    def finish(self) -> None:
        """Reads rbsp_trailing_bits (7.3.2.11), which must end exactly where the NAL unit does."""
        left = self.end - self.position
        if left > 8:
            raise self.wrong(f"{left} bits where the 1 to 8 of rbsp_trailing_bits were expected")
        if left < 1:
            raise self.wrong(_TOO_EARLY)
        if self.u(left) != 1 << left - 1:
            raise self.wrong("rbsp_trailing_bits are not a one and zeros")


# Parameter sets


@dataclasses.dataclass(frozen=True)
class Sps:
    """What slices need of a sequence parameter set, 7.3.2.1."""

    identifier: int
    width: int  # pixels, after cropping
    height: int
    columns: int  # macroblocks
    rows: int
    log2_max_frame_num: int
    max_num_ref_frames: int
    max_mv: tuple[int, int]  # vectors are from -max to max - 1 quarter samples, horizontally and vertically


@dataclasses.dataclass(frozen=True)
class Parameters:
    """What slices need of a sequence and a picture parameter set."""

    sps: Sps
    pps_identifier: int
    num_ref_idx_default: int  # pictures in list 0 of a P slice that does not say it
    init_qp: int
    deblocking_filter_control_present: bool


def read_sps(sps: bytes) -> Sps:
    """Reads an SPS, given from its header byte on.

    Raises:
      AvcError: anything but what Baseline has, and pic_order_cnt_type other than 2: without B pictures, output is in
        decoding order and slices need not say it.
    """
    return _read_sps(_nal_reader(sps, SPS))[0]


def read_pps(pps: bytes, sps: Sps) -> Parameters:
    """Reads a PPS, given from its header byte on, which belongs to `sps`.

    Raises:
      AvcError: anything but what constrained Baseline with one slice group has.
    """
    return _read_pps(_nal_reader(pps, PPS), sps)


def without_tags(sps: bytes) -> bytes:
    """Returns the SPS, given from its header byte on, without what tells a player how to show its pictures.

    Taken out of the VUI (E.1.1) are sample aspect ratio, overscan, video signal type with colour description, and
    chroma location: encoders copy them from the source. All else is kept, and so equal SPS decode alike.

    Raises:
      AvcError: as `read_sps`.
    """
    reader = _nal_reader(sps, SPS)
    _, tags = _read_sps(reader)
    if not tags:
        return sps
    plain = reader.plain[: reader.end // 8]
    bits = "".join(f"{byte:08b}" for byte in plain).rstrip("0")  # the last one is rbsp_stop_one_bit
    bits = bits[: tags.start] + "0000" + bits[tags.stop :]
    bits += "0" * (-len(bits) % 8)
    return re.sub(b"\x00\x00(?=[\x00-\x03])", b"\x00\x00\x03", int(bits, 2).to_bytes(len(bits) // 8))


def _nal_reader(nal: bytes, expected: int) -> Reader:
    """Returns a reader behind the header of a NAL unit that stands alone and must have the `expected` type."""
    if nal[:1] != bytes([_REF_IDC[expected] << 5 | expected]):
        raise AvcError(f"byte 0: {nal[:1].hex() or 'nothing'} is not the header of {_NAMES[expected]}")
    start_code = nal.find(b"\x00\x00\x01")
    if start_code >= 0:
        raise AvcError(f"byte {start_code}: a start code inside {_NAMES[expected]}")
    reader = Reader(nal)
    reader.enter(0, len(nal))
    return reader


def _read_sps(reader: Reader) -> tuple[Sps, range]:
    """Reads an SPS to its end; returns with it the range of positions of what `without_tags` takes out."""
    reader.expect("profile_idc", 8, 66)
    reader.expect("constraint_set0_flag", 1, 1)
    reader.expect("constraint_set1_flag", 1, 1)
    reader.u(1)
    constraint_set3 = reader.u(1)
    reader.expect("constraint_set4_flag", 1, 0)
    reader.expect("constraint_set5_flag", 1, 0)
    reader.expect("reserved_zero_2bits", 2, 0)
    level = reader.u(8)
    identifier = reader.ue("seq_parameter_set_id", 31)
    log2_max_frame_num = 4 + reader.ue("log2_max_frame_num_minus4", 12)
    poc_type = reader.ue("pic_order_cnt_type", 2)
    if poc_type != 2:
        raise reader.wrong(f"pic_order_cnt_type {poc_type} is not supported, only 2")
    max_num_ref_frames = reader.ue("max_num_ref_frames", 16)
    reader.expect("gaps_in_frame_num_value_allowed_flag", 1, 0)
    columns = 1 + reader.ue("pic_width_in_mbs_minus1", 1054)  # Table A-1: no side is longer than sqrt(8 * 139264)
    rows = 1 + reader.ue("pic_height_in_map_units_minus1", 1054)
    reader.expect("frame_mbs_only_flag", 1, 1)
    reader.u(1)  # direct_8x8_inference_flag
    width, height = 16 * columns, 16 * rows
    if reader.u(1):  # frame_cropping_flag; offsets are in chroma samples
        width -= 2 * sum(reader.ue(f"frame_crop_{side}_offset", 8 * columns) for side in ("left", "right"))
        height -= 2 * sum(reader.ue(f"frame_crop_{side}_offset", 8 * rows) for side in ("top", "bottom"))
        if width <= 0 or height <= 0:
            raise reader.wrong("the frame is cropped to nothing")
    # Table A-1, MaxVmvR; level 1b is 11 with constraint_set3_flag
    vertical = 64 if level <= 10 or level == 11 and constraint_set3 else 128 if level <= 20 else 256
    max_mv = (2048 * 4, (vertical if level <= 30 else 512) * 4)
    tags = range(0)
    if reader.u(1):  # vui_parameters_present_flag
        tags, max_mv = _read_vui(reader, max_mv)
    reader.finish()
    sps = Sps(identifier, width, height, columns, rows, log2_max_frame_num, max_num_ref_frames, max_mv)
    return sps, tags


def _read_vui(reader: Reader, max_mv: tuple[int, int]) -> tuple[range, tuple[int, int]]:
    """Reads the VUI (E.1.1); returns the range of positions of its tags, and `max_mv` made smaller by what it says."""
    start = reader.position
    if reader.u(1) and reader.u(8) == 255:  # aspect_ratio_info_present_flag, aspect_ratio_idc: Extended_SAR
        reader.u(32)
    if reader.u(1):  # overscan_info_present_flag
        reader.u(1)
    if reader.u(1):  # video_signal_type_present_flag
        reader.u(4)  # video_format, video_full_range_flag
        if reader.u(1):  # colour_description_present_flag
            reader.u(24)
    if reader.u(1):  # chroma_loc_info_present_flag
        reader.ue("chroma_sample_loc_type_top_field", 5)
        reader.ue("chroma_sample_loc_type_bottom_field", 5)
    tags = range(start, reader.position)
    if reader.u(1):  # timing_info_present_flag
        if not reader.u(32) or not reader.u(32):
            raise reader.wrong("num_units_in_tick or time_scale is 0")
        reader.u(1)  # fixed_frame_rate_flag
    reader.expect("nal_hrd_parameters_present_flag", 1, 0)
    reader.expect("vcl_hrd_parameters_present_flag", 1, 0)
    reader.expect("pic_struct_present_flag", 1, 0)
    if reader.u(1):  # bitstream_restriction_flag
        reader.u(1)  # motion_vectors_over_pic_boundaries_flag
        reader.ue("max_bytes_per_pic_denom", 16)
        reader.ue("max_bits_per_mb_denom", 16)
        horizontal = 1 << reader.ue("log2_max_mv_length_horizontal", 16)
        vertical = 1 << reader.ue("log2_max_mv_length_vertical", 16)
        max_mv = (min(max_mv[0], horizontal), min(max_mv[1], vertical))
        if reader.ue("max_num_reorder_frames", 16):
            raise reader.wrong("max_num_reorder_frames is not 0, though pic_order_cnt_type 2 has nothing to reorder")
        reader.ue("max_dec_frame_buffering", 16)
    return tags, max_mv


def _read_pps(reader: Reader, sps: Sps) -> Parameters:
    """Reads a PPS (7.3.2.2) to its end."""
    identifier = reader.ue("pic_parameter_set_id", 255)
    if reader.ue("seq_parameter_set_id", 31) != sps.identifier:
        raise reader.wrong(f"seq_parameter_set_id is not {sps.identifier}, the SPS's")
    reader.expect("entropy_coding_mode_flag", 1, 0)
    reader.expect("bottom_field_pic_order_in_frame_present_flag", 1, 0)
    reader.ue("num_slice_groups_minus1", 0)
    num_ref_idx_default = 1 + reader.ue("num_ref_idx_l0_default_active_minus1", 31)
    reader.ue("num_ref_idx_l1_default_active_minus1", 31)
    reader.expect("weighted_pred_flag", 1, 0)
    reader.expect("weighted_bipred_idc", 2, 0)
    init_qp = 26 + reader.se("pic_init_qp_minus26", -26, 25)
    reader.se("pic_init_qs_minus26", -26, 25)
    reader.se("chroma_qp_index_offset", -12, 12)
    deblocking_filter_control_present = bool(reader.u(1))
    reader.u(1)  # constrained_intra_pred_flag: changes nothing where no neighbour is available
    reader.expect("redundant_pic_cnt_present_flag", 1, 0)
    reader.finish()
    return Parameters(sps, identifier, num_ref_idx_default, init_qp, deblocking_filter_control_present)


def _read_sei(reader: Reader) -> None:
    """Reads an SEI of one message of user data (D.1.7), in which x264 names itself and its options."""
    reader.expect("payloadType", 8, 5)
    size = 0
    while (byte := reader.u(8)) == 255 and reader.position < reader.end:
        size += 255
    size += byte
    first = reader.position // 8
    reader.position += 8 * size
    reader.finish()
    if not re.fullmatch(_X264 + b"[ -~]*\x00", reader.plain[first : first + size]):
        raise reader.wrong("user data that are not x264's UUID and a line of text")


# CAVLC


def _lookup(codes: str, values: Sequence[int], width: int) -> list[int]:
    """Makes the table of a variable-length code, indexed by the next `width` bits.

    Entries are value * 32 + code length, and 0 where no code begins.
    """
    table = [0] * (1 << width)
    for code, value in zip(codes.split(), values, strict=True):
        free = width - len(code)
        first = int(code, 2) << free
        table[first : first + (1 << free)] = [value << 5 | len(code)] * (1 << free)
    return table


# Table 9-5, coeff_token: a line for each TotalCoeff from 0 on, in it TrailingOnes 0 to min(3, TotalCoeff).
_COEFF_TOKEN_0 = """
    1
    000101 01
    00000111 000100 001
    000000111 00000110 0000101 00011
    0000000111 000000110 00000101 000011
    00000000111 0000000110 000000101 0000100
    0000000001111 00000000110 0000000101 00000100
    0000000001011 0000000001110 00000000101 000000100
    0000000001000 0000000001010 0000000001101 0000000100
    00000000001111 00000000001110 0000000001001 00000000100
    00000000001011 00000000001010 00000000001101 0000000001100
    000000000001111 000000000001110 00000000001001 00000000001100
    000000000001011 000000000001010 000000000001101 00000000001000
    0000000000001111 000000000000001 000000000001001 000000000001100
    0000000000001011 0000000000001110 0000000000001101 000000000001000
    0000000000000111 0000000000001010 0000000000001001 0000000000001100
    0000000000000100 0000000000000110 0000000000000101 0000000000001000
"""
_COEFF_TOKEN_2 = """
    11
    001011 10
    000111 00111 011
    0000111 001010 001001 0101
    00000111 000110 000101 0100
    00000100 0000110 0000101 00110
    000000111 00000110 00000101 001000
    00000001111 000000110 000000101 000100
    00000001011 00000001110 00000001101 0000100
    000000001111 00000001010 00000001001 000000100
    000000001011 000000001110 000000001101 00000001100
    000000001000 000000001010 000000001001 00000001000
    0000000001111 0000000001110 0000000001101 000000001100
    0000000001011 0000000001010 0000000001001 0000000001100
    0000000000111 00000000001011 0000000000110 0000000001000
    00000000001001 00000000001000 00000000001010 0000000000001
    00000000000111 00000000000110 00000000000101 00000000000100
"""
_COEFF_TOKEN_4 = """
    1111
    001111 1110
    001011 01111 1101
    001000 01100 01110 1100
    0001111 01010 01011 1011
    0001011 01000 01001 1010
    0001001 001110 001101 1001
    0001000 001010 001001 1000
    00001111 0001110 0001101 01101
    00001011 00001110 0001010 001100
    000001111 00001010 00001101 0001100
    000001011 000001110 00001001 00001100
    000001000 000001010 000001101 00001000
    0000001101 000000111 000001001 000001100
    0000001001 0000001100 0000001011 0000001010
    0000000101 0000001000 0000000111 0000000110
    0000000001 0000000100 0000000011 0000000010
"""
_COEFF_TOKEN_CHROMA_DC = """
    01
    000111 1
    000100 000110 001
    000011 0000011 0000010 000101
    000010 00000011 00000010 0000000
"""
# Tables 9-7 and 9-8, total_zeros: a line for each tzVlcIndex from 1 on, in it total_zeros from 0 on.
_TOTAL_ZEROS = """
    1 011 010 0011 0010 00011 00010 000011 000010 0000011 0000010 00000011 00000010 000000011 000000010 000000001
    111 110 101 100 011 0101 0100 0011 0010 00011 00010 000011 000010 000001 000000
    0101 111 110 101 0100 0011 100 011 0010 00011 00010 000001 00001 000000
    00011 111 0101 0100 110 101 100 0011 011 0010 00010 00001 00000
    0101 0100 0011 111 110 101 100 011 0010 00001 0001 00000
    000001 00001 111 110 101 100 011 010 0001 001 000000
    000001 00001 101 100 011 11 010 0001 001 000000
    000001 0001 00001 011 11 10 010 001 000000
    000001 000000 0001 11 10 001 01 00001
    00001 00000 001 11 10 01 0001
    0000 0001 001 010 1 011
    0000 0001 01 1 001
    000 001 1 01
    00 01 1
    0 1
"""
_TOTAL_ZEROS_CHROMA_DC = """
    1 01 001 000
    1 01 00
    1 0
"""  # Table 9-9 (a)
# Table 9-10, run_before: a line for each zerosLeft from 1 on, the last for all above 6; in it run_before from 0 on.
_RUN_BEFORE = """
    1 0
    1 01 00
    11 10 01 00
    11 10 01 001 000
    11 10 011 010 001 000
    11 000 001 011 010 101 100
    111 110 101 100 011 010 001 0001 00001 000001 0000001 00000001 000000001 0000000001 00000000001
"""
_TOKEN_BITS, _ZEROS_BITS, _RUN_BITS = 16, 9, 11  # the longest codes


def _token_table(codes: str) -> list[int]:
    """Makes the table of a coeff_token; values are TotalCoeff * 4 + TrailingOnes."""
    tokens = [total << 2 | ones for total in range(17) for ones in range(min(3, total) + 1)]
    return _lookup(codes, tokens[: len(codes.split())], _TOKEN_BITS)


def _tables(lines: str, width: int) -> list[list[int]]:
    """Makes a table of each line; index 0 stays empty, for lines count from 1."""
    return [[], *(_lookup(line, range(len(line.split())), width) for line in lines.strip().splitlines())]


# For nC from 8 on, 6 bits are TotalCoeff - 1 and TrailingOnes; what would be 3 trailing ones of 1 is the code of 0.
_FIXED = [f"{(total - 1) << 2 | ones if total else 3:06b}" for total in range(17) for ones in range(min(3, total) + 1)]
_TOKEN_TABLES = [_token_table(codes) for codes in (_COEFF_TOKEN_0, _COEFF_TOKEN_2, _COEFF_TOKEN_4, " ".join(_FIXED))]
_TOKENS = [_TOKEN_TABLES[0]] * 2 + [_TOKEN_TABLES[1]] * 2 + [_TOKEN_TABLES[2]] * 4 + [_TOKEN_TABLES[3]] * 9  # by nC
_CHROMA_DC_TOKENS = _token_table(_COEFF_TOKEN_CHROMA_DC)
_ZEROS, _CHROMA_DC_ZEROS = _tables(_TOTAL_ZEROS, _ZEROS_BITS), _tables(_TOTAL_ZEROS_CHROMA_DC, _ZEROS_BITS)
_RUNS = _tables(_RUN_BEFORE, _RUN_BITS)


def _residual_block(reader: Reader, tokens: list[int], most: int) -> int:
    """Reads residual_block_cavlc (7.3.5.3.2, 9.2) of a block of `most` coefficients; returns TotalCoeff."""
    windows, position = reader.windows, reader.position
    entry = tokens[windows[position >> 3] >> 24 - (position & 7) & 0xFFFF]
    if not entry:
        raise reader.wrong("no code of coeff_token matches the bits")
    position += entry & 31
    total, ones = entry >> 7, entry >> 5 & 3
    reader.position = position
    if not total:
        return 0
    if total > most:
        raise reader.wrong(f"{total} coefficients in a block of {most}")

    position += ones  # trailing_ones_sign_flag
    suffix_length = 1 if total > 10 and ones < 3 else 0
    for index in range(ones, total):
        window = windows[position >> 3] >> 8 - (position & 7) & 0xFFFFFFFF
        prefix = 32 - window.bit_length()
        if prefix > 15:
            reader.position = position
            raise reader.wrong("level_prefix is above 15, which no profile but High's has")
        size = 12 if prefix == 15 else 4 if prefix == 14 and not suffix_length else suffix_length
        position += prefix + 1 + size
        level_code = (prefix << suffix_length) + (window >> 31 - prefix - size & (1 << size) - 1)
        if prefix == 15 and not suffix_length:
            level_code += 15
        if index == ones and ones < 3:
            level_code += 2
        suffix_length = suffix_length or 1
        if (level_code >> 1) + 1 > 3 << suffix_length - 1 and suffix_length < 6:
            suffix_length += 1

    if total < most:
        table = (_CHROMA_DC_ZEROS if most == 4 else _ZEROS)[total]
        entry = table[windows[position >> 3] >> 40 - _ZEROS_BITS - (position & 7) & (1 << _ZEROS_BITS) - 1]
        reader.position = position
        if not entry:
            raise reader.wrong("no code of total_zeros matches the bits")
        position += entry & 31
        zeros = entry >> 5
        if zeros > most - total:
            raise reader.wrong(f"total_zeros is {zeros} beside {total} coefficients in a block of {most}")
        for _ in range(total - 1):
            if not zeros:
                break
            table = _RUNS[min(zeros, 7)]
            entry = table[windows[position >> 3] >> 40 - _RUN_BITS - (position & 7) & (1 << _RUN_BITS) - 1]
            reader.position = position
            if not entry:
                raise reader.wrong("no code of run_before matches the bits")
            position += entry & 31
            if entry >> 5 > zeros:
                raise reader.wrong(f"run_before is {entry >> 5}, with {zeros} zeros left")
            zeros -= entry >> 5
    reader.position = position
    return total


# 4x4 blocks in decoding order (6.4.3), as columns and rows of the macroblock, and their neighbours A and B within it.
_BLOCKS = [(block & 1 | block >> 1 & 2, block >> 1 & 1 | block >> 2 & 2) for block in range(16)]
_NEIGHBOURS = [
    (_BLOCKS.index((x - 1, y)) if x else None, _BLOCKS.index((x, y - 1)) if y else None) for x, y in _BLOCKS
]
# Table 9-4, coded_block_pattern by codeNum for 4:2:0, of Intra_4x4 and Inter.
_INTRA_CBP = bytes.fromhex(
    "2f1f0f00171b1d1e070b0d0e272b2d2e1003050a0c13151a1c23252a2c01020408111214180609161920212224282629"
)
_INTER_CBP = bytes.fromhex(
    "0010010204082003050a0c0f2f070b0d0e06091f23252a2c21222428272b2d2e1112141813151a1c171b1d1e16192629"
)


def _residual(reader: Reader, cbp: int, is_intra_16x16: bool) -> None:
    """Reads residual (7.3.5.3) of a macroblock with this coded_block_pattern; nC by 9.2.1, from its own blocks."""
    if is_intra_16x16:
        _residual_block(reader, _TOKENS[0], 16)
    most = 15 if is_intra_16x16 else 16
    totals = [0] * 16
    for block in range(16):
        if cbp >> (block >> 2) & 1:
            totals[block] = _residual_block(reader, _TOKENS[_nc(totals, *_NEIGHBOURS[block])], most)
    if cbp & 0x30:
        _residual_block(reader, _CHROMA_DC_TOKENS, 4)
        _residual_block(reader, _CHROMA_DC_TOKENS, 4)
    if cbp & 0x20:
        for _ in range(2):
            totals = [0] * 4
            for block in range(4):
                totals[block] = _residual_block(reader, _TOKENS[_nc(totals, *_NEIGHBOURS[block])], 15)


def _nc(totals: list[int], left: int | None, above: int | None) -> int:
    if left is None:
        return 0 if above is None else totals[above]
    return totals[left] if above is None else totals[left] + totals[above] + 1 >> 1


# Macroblocks

_Vector = tuple[int, int, int]  # ref_idx; horizontal and vertical, in quarter samples
# Intra_4x4 prediction modes (Table 8-2) that need samples on the left of a block, and above it.
_NEEDS_LEFT, _NEEDS_ABOVE = {1, 4, 5, 6, 8}, {0, 3, 4, 5, 6, 7}
_SUB_PARTITIONS = [  # Table 7-17, of an 8x8 block: column, row, width and height in 4x4 blocks
    [(0, 0, 2, 2)],
    [(0, 0, 2, 1), (0, 1, 2, 1)],
    [(0, 0, 1, 2), (1, 0, 1, 2)],
    [(0, 0, 1, 1), (1, 0, 1, 1), (0, 1, 1, 1), (1, 1, 1, 1)],
]
_PARTITIONS = {  # Table 7-13
    P_L0_16X16: [(0, 0, 4, 4)],
    P_L0_L0_16X8: [(0, 0, 4, 2), (0, 2, 4, 2)],
    P_L0_L0_8X16: [(0, 0, 2, 4), (2, 0, 2, 4)],
}


def _macroblock(reader: Reader, mb_type: int, references: int, max_mv: tuple[int, int]) -> None:
    """Reads what follows mb_type in macroblock_layer (7.3.5). P macroblocks choose among `references` pictures."""
    if mb_type == I_PCM:
        if reader.u(-reader.position % 8):
            raise reader.wrong("pcm_alignment_zero_bit is not 0")
        reader.position += 8 * 384
        return
    is_intra_16x16 = mb_type >= I_16X16
    if mb_type < I_NXN:
        _inter_prediction(reader, mb_type, references, max_mv)
    else:
        if not is_intra_16x16:
            _intra_4x4_modes(reader)
        elif (mb_type - I_16X16) % 4 != 2:
            mode = (mb_type - I_16X16) % 4
            raise reader.wrong(f"Intra_16x16 prediction mode {mode} needs samples of a neighbouring slice")
        mode = reader.ue("intra_chroma_pred_mode", 3)
        if mode:
            raise reader.wrong(f"intra_chroma_pred_mode {mode} needs samples of a neighbouring slice")
    if is_intra_16x16:
        chroma, luma = (mb_type - I_16X16) // 4 % 3, 15 if mb_type - I_16X16 >= 12 else 0
        cbp = chroma << 4 | luma
    else:
        cbp = (_INTRA_CBP if mb_type == I_NXN else _INTER_CBP)[reader.ue("coded_block_pattern", 47)]
    if cbp or is_intra_16x16:
        reader.se("mb_qp_delta", -26, 25)
        _residual(reader, cbp, is_intra_16x16)


def _intra_4x4_modes(reader: Reader) -> None:
    """Reads the prediction modes of the 16 luma blocks and derives them as 8.3.1.1 does."""
    modes: list[int] = []
    for block, (left, above) in enumerate(_NEIGHBOURS):
        # a block at the macroblock's left or upper edge has a neighbour that is not available: DC is predicted
        mode = 2 if left is None or above is None else min(modes[left], modes[above])
        if not reader.u(1):  # prev_intra4x4_pred_mode_flag
            remaining = reader.u(3)  # rem_intra4x4_pred_mode
            mode = remaining + (remaining >= mode)
        if left is None and mode in _NEEDS_LEFT or above is None and mode in _NEEDS_ABOVE:
            raise reader.wrong(f"Intra_4x4 prediction mode {mode} of block {block} needs samples of another slice")
        modes.append(mode)


def _inter_prediction(reader: Reader, mb_type: int, references: int, max_mv: tuple[int, int]) -> None:
    """Reads mb_pred or sub_mb_pred of a P macroblock, and derives its vectors to see that none is out of range."""
    if mb_type in _PARTITIONS:
        groups = [[partition] for partition in _PARTITIONS[mb_type]]
    else:
        types = [reader.ue("sub_mb_type", 3) for _ in range(4)]
        groups = [
            [(2 * (part & 1) + x, 2 * (part >> 1) + y, width, height) for x, y, width, height in _SUB_PARTITIONS[sub]]
            for part, sub in enumerate(types)
        ]
    if references == 1 or mb_type == P_8X8REF0:
        indices = [0] * len(groups)
    elif references == 2:  # te(v), 9.1
        indices = [1 - reader.u(1) for _ in groups]
    else:
        indices = [reader.ue("ref_idx_l0", references - 1) for _ in groups]
    vectors: dict[tuple[int, int], _Vector] = {}  # of the 4x4 blocks, by column and row
    for index, group in zip(indices, groups, strict=True):
        for x, y, width, height in group:
            across, down = _predicted_vector(vectors, x, y, width, index)
            across += reader.se("mvd_l0", -(1 << 15), (1 << 15) - 1)
            down += reader.se("mvd_l0", -(1 << 15), (1 << 15) - 1)
            if not (-max_mv[0] <= across < max_mv[0] and -max_mv[1] <= down < max_mv[1]):
                limits = f"{max_mv[0]} horizontally and {max_mv[1]} vertically"
                raise reader.wrong(f"motion vector ({across}, {down}) in quarter samples is beyond {limits}")
            for column in range(x, x + width):
                for row in range(y, y + height):
                    vectors[column, row] = index, across, down


def _predicted_vector(
    vectors: dict[tuple[int, int], _Vector], x: int, y: int, width: int, index: int
) -> tuple[int, int]:
    """Predicts the vector (8.4.1.3) of the partition at column x and row y from partitions of the same macroblock.

    The special rules for 16x8 and 8x16 need no code: within a lone macroblock the general one gives the same.
    """
    left, above = vectors.get((x - 1, y)), vectors.get((x, y - 1))
    corner = vectors.get((x + width, y - 1)) or vectors.get((x - 1, y - 1))  # C, or D in its place
    if left and not above and not corner:
        return left[1:]
    same = [vector for vector in (left, above, corner) if vector and vector[0] == index]
    if len(same) == 1:
        return same[0][1:]
    none = (-1, 0, 0)
    _, across, down = (sorted(values)[1] for values in zip(left or none, above or none, corner or none, strict=True))
    return across, down


# Slices and frames


@dataclasses.dataclass
class _Picture:
    """What the slices of a picture have in common."""

    is_idr: bool
    frame_num: int
    references: int  # pictures that a P slice may refer to
    previous_idr_pic_id: int | None  # of the picture before, if that was an IDR picture as this one is
    slice_type: int | None = None  # None before the first slice
    idr_pic_id: int | None = None


def _slice(reader: Reader, parameters: Parameters, picture: _Picture, macroblock: int) -> int:
    """Reads slice_header (7.3.3), slice_data with its one macroblock (7.3.4), and the end; returns mb_type."""
    first = reader.ue("first_mb_in_slice", 1 << 16)
    if first != macroblock:
        raise reader.wrong(f"first_mb_in_slice is {first}, not {macroblock}")
    slice_type = reader.ue("slice_type", 9)
    if slice_type not in (0, 2, 5, 7):
        raise reader.wrong(f"slice_type {slice_type} is neither P nor I")
    is_p = slice_type in (0, 5)
    if picture.slice_type is None:
        if is_p and picture.is_idr:
            raise reader.wrong(f"slice_type {slice_type}, P, in an IDR picture")
        picture.slice_type = slice_type
    elif picture.slice_type != slice_type:
        raise reader.wrong(f"slice_type is {slice_type}, but {picture.slice_type} in this frame's first slice")
    if reader.ue("pic_parameter_set_id", 255) != parameters.pps_identifier:
        raise reader.wrong(f"pic_parameter_set_id is not {parameters.pps_identifier}, the PPS's")
    frame_num = reader.u(parameters.sps.log2_max_frame_num)
    if frame_num != picture.frame_num:
        raise reader.wrong(f"frame_num is {frame_num}, not {picture.frame_num}")
    if picture.is_idr:
        idr_pic_id = reader.ue("idr_pic_id", (1 << 16) - 1)
        if picture.idr_pic_id is None:
            if idr_pic_id == picture.previous_idr_pic_id:
                raise reader.wrong(f"idr_pic_id is {idr_pic_id} as in the IDR picture just before")
            picture.idr_pic_id = idr_pic_id
        elif picture.idr_pic_id != idr_pic_id:
            raise reader.wrong(f"idr_pic_id is {idr_pic_id}, but {picture.idr_pic_id} in this frame's first slice")
    references = 0
    if is_p:
        references = parameters.num_ref_idx_default
        if reader.u(1):  # num_ref_idx_active_override_flag
            references = 1 + reader.ue("num_ref_idx_l0_active_minus1", 31)
        if references > picture.references:
            raise reader.wrong(f"{references} reference pictures, where only {picture.references} exist")
        reader.expect("ref_pic_list_modification_flag_l0", 1, 0)
    if picture.is_idr:
        reader.expect("no_output_of_prior_pics_flag", 1, 0)
        reader.expect("long_term_reference_flag", 1, 0)
    else:
        reader.expect("adaptive_ref_pic_marking_mode_flag", 1, 0)
    reader.se("slice_qp_delta", -parameters.init_qp, 51 - parameters.init_qp)
    if parameters.deblocking_filter_control_present and reader.ue("disable_deblocking_filter_idc", 2) != 1:
        reader.se("slice_alpha_c0_offset_div2", -6, 6)
        reader.se("slice_beta_offset_div2", -6, 6)

    if is_p and reader.ue("mb_skip_run", 1):
        mb_type = P_SKIP
    else:
        mb_type = reader.ue("mb_type", I_PCM) if is_p else I_NXN + reader.ue("mb_type", I_PCM - I_NXN)
        _macroblock(reader, mb_type, references, parameters.sps.max_mv)
    reader.finish()
    return mb_type


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """Where everything lies in a valid stream: offsets in bytes, int64. Slices begin with their start codes."""

    width: int  # pixels
    height: int
    starts: np.ndarray  # [frames] offset of each frame's first start code: of its SPS where it has one
    ends: np.ndarray  # [frames] offset behind each frame's last byte
    slice_starts: np.ndarray  # [frames, macroblocks]
    slice_ends: np.ndarray  # [frames, macroblocks]
    is_idr: np.ndarray  # [frames] bool
    mb_types: np.ndarray  # [frames, macroblocks] P_SKIP, P_L0_16X16, ..., I_PCM


def parse(data: bytes, parameters: Parameters | None = None) -> Clip:
    """Parses a whole stream, which ends behind any of its frames.

    Without `parameters` each IDR picture has SPS and PPS before it, the same ones each time, and at the first one an
    SEI may follow them. With `parameters`, of such sets that were stripped, none of the three may occur. Start codes
    have 4 bytes at SPS, PPS and the first slice of a picture without them; all others have 3.

    Raises:
      AvcError: anything else. One line: byte offset, frame, slice, and what is wrong.
    """
    nals = split(data)
    for nal in nals:
        if not data[nal.end - 1]:
            raise AvcError(f"byte {nal.end - 1}: a zero byte at the end of a NAL unit")
    reader = Reader(data)
    is_stripped = parameters is not None
    parameter_sets: list[bytes] = []
    slices: list[list[Nal]] = []
    starts, is_idr, mb_types = [], [], []
    index, since_idr, idr_pic_id = 0, 0, None  # next NAL unit; pictures since the last IDR; its id, if just before
    while index < len(nals):
        frame = len(slices)
        reader.place = f", frame {frame}"
        starts.append(nals[index].start)
        idr = frame == 0 or nals[index].type == (IDR if is_stripped else SPS)
        is_idr.append(idr)
        if idr:
            since_idr = 0
        if idr and not is_stripped:
            parameters = _read_parameter_sets(reader, data, nals[index : index + 2], parameters, parameter_sets)
            index += 2
            if frame == 0 and index < len(nals) and nals[index].type == SEI:
                _enter(reader, data, nals[index], SEI, 3)
                _read_sei(reader)
                index += 1
        sps = parameters.sps
        frame_num = since_idr % (1 << sps.log2_max_frame_num)
        picture = _Picture(idr, frame_num, min(since_idr, sps.max_num_ref_frames), idr_pic_id)
        macroblocks = sps.columns * sps.rows
        slices.append(nals[index : index + macroblocks])
        mb_types.append([])
        start_code = 3 if idr and not is_stripped else 4
        for macroblock, nal in enumerate(slices[-1]):
            reader.place = f", frame {frame}, slice {macroblock} of {macroblocks}"
            _enter(reader, data, nal, IDR if idr else SLICE, 3 if macroblock else start_code)
            mb_types[-1].append(_slice(reader, parameters, picture, macroblock))
        if len(slices[-1]) < macroblocks:
            where = f"byte {len(data)}, frame {frame}, slice {len(slices[-1])} of {macroblocks}"
            raise AvcError(f"{where}: the stream ends before this slice")
        index += macroblocks
        since_idr += 1
        idr_pic_id = picture.idr_pic_id

    slice_starts = np.array([[nal.start for nal in frame] for frame in slices])
    slice_ends = np.array([[nal.end for nal in frame] for frame in slices])
    return Clip(
        width=parameters.sps.width,
        height=parameters.sps.height,
        starts=np.array(starts),
        ends=slice_ends[:, -1].copy(),
        slice_starts=slice_starts,
        slice_ends=slice_ends,
        is_idr=np.array(is_idr),
        mb_types=np.array(mb_types),
    )


def _enter(reader: Reader, data: bytes, nal: Nal, expected: int, start_code: int) -> None:
    """Goes behind the header of a NAL unit, which must have this type, as x264 writes it, and this start code."""
    header = data[nal.begin]
    reader.enter(nal.begin, nal.end)
    if header == _REF_IDC[expected] << 5 | expected and nal.begin - nal.start == start_code:
        return
    if header & 0x80:
        wrong = "forbidden_zero_bit is 1"
    elif nal.type != expected:
        wrong = f"nal_unit_type is {nal.type}, not {expected}, {_NAMES[expected]}"
    elif nal.ref_idc != _REF_IDC[expected]:
        wrong = f"nal_ref_idc is {nal.ref_idc}, not {_REF_IDC[expected]}"
    else:
        wrong = f"a start code of {nal.begin - nal.start} bytes, not {start_code}"
    raise AvcError(f"byte {nal.start}{reader.place}: {wrong}")


def _read_parameter_sets(
    reader: Reader, data: bytes, nals: list[Nal], parameters: Parameters | None, first: list[bytes]
) -> Parameters:
    """Reads SPS and PPS at an IDR picture. They go into `first`, or must be the same as those that are there."""
    for number, expected in enumerate((SPS, PPS)):
        if number == len(nals):
            raise AvcError(f"byte {len(data)}{reader.place}: the stream ends before {_NAMES[expected]}")
        _enter(reader, data, nals[number], expected, 4)
        body = data[nals[number].begin : nals[number].end]
        if parameters is None:
            first.append(body)
        elif body != first[number]:
            raise reader.wrong(f"{_NAMES[expected]} that differs from the first one")
    if parameters is not None:
        return parameters
    reader.enter(nals[0].begin, nals[0].end)
    sps, _ = _read_sps(reader)
    reader.enter(nals[1].begin, nals[1].end)
    return _read_pps(reader, sps)
