"""Everything around the slices of an H.264 clip: bits, NAL units, parameter sets. Clauses refer to ITU-T H.264.

It covers what x264 writes with `profile:v baseline`: Annex B, constrained Baseline profile, CAVLC, one slice group.
"""

import dataclasses
import re

import numpy as np

from jpeglm.core.errors import InputError

SLICE, IDR, SEI, SPS, PPS = 1, 5, 6, 7, 8  # nal_unit_type, Table 7-1
NAMES = {SLICE: "a slice", IDR: "an IDR slice", SEI: "an SEI", SPS: "an SPS", PPS: "a PPS"}
REF_IDC = {SLICE: 2, IDR: 3, SEI: 0, SPS: 3, PPS: 3}  # nal_ref_idc as x264 writes it
_X264 = bytes.fromhex("dc45e9bde6d948b7962cd820d923eeef")  # uuid_iso_iec_11578 of its SEI
_MOST_BYTES = 4096  # longer than any slice of one macroblock; bounds how far a reader looks past an end


class AvcError(InputError):
    """A stream that is not of the kind that `avc_parser` parses; names the byte offset, frame and slice, from 0."""


# Bits


@dataclasses.dataclass(frozen=True)
class Nal:
    """The position of a NAL unit in a stream, and its header (7.3.1)."""

    start: int  # offset of its start code, a zero_byte included
    begin: int  # offset of its header byte
    end: int  # offset after its last byte
    ref_idc: int  # nal_ref_idc
    type: int  # nal_unit_type


def split(data: bytes) -> list[Nal]:
    """Finds the NAL units of an Annex B byte stream: the bytes between two start codes.

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
            raise AvcError(f"byte {begin}: nothing after a start code")
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
        self.origin = np.flatnonzero(kept)  # stream offset of each byte that is kept, then the length
        self._index = (np.cumsum(kept) - 1).tolist()
        plain = np.zeros(len(self.origin) + _MOST_BYTES, np.int64)
        plain[: len(self.origin) - 1] = np.frombuffer(data, np.uint8)[self.origin[:-1]]
        self.plain = plain.astype(np.uint8).tobytes()
        windows = plain[:-4]
        for number in range(1, 5):
            windows = windows << 8 | plain[number : len(plain) - 4 + number]
        self.windows = windows.tolist()  # the 40 bits from each byte on: 32 bits ahead of any bit position
        self.position = self.end = 0
        self.place = ""  # for messages: frame and slice

    def enter(self, begin: int, end: int) -> None:
        """Moves to the NAL unit from offset `begin` to `end`, after its header."""
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
    """The fields of a sequence parameter set that slices need, 7.3.2.1."""

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
    """The fields of a sequence and a picture parameter set that slices need."""

    sps: Sps
    pps_identifier: int
    num_ref_idx_default: int  # pictures in list 0 of a P slice that does not say it
    init_qp: int
    deblocking_filter_control_present: bool


def read_sps(sps: bytes) -> Sps:
    """Reads an SPS, given from its header byte on.

    Raises:
      AvcError: anything outside Baseline, or pic_order_cnt_type other than 2: without B pictures, output is in
        decoding order and slices need not give it.
    """
    return parse_sps(_nal_reader(sps, SPS))[0]


def read_pps(pps: bytes, sps: Sps) -> Parameters:
    """Reads a PPS, given from its header byte on, which belongs to `sps`.

    Raises:
      AvcError: anything outside constrained Baseline with one slice group.
    """
    return parse_pps(_nal_reader(pps, PPS), sps)


def without_tags(sps: bytes) -> bytes:
    """Returns the SPS, given from its header byte on, without the tags that tell a player how to display it.

    Removed from the VUI (E.1.1) are sample aspect ratio, overscan, video signal type with colour description, and
    chroma location, because encoders copy them from the source. Everything else is kept, so equal results decode
    alike.

    Raises:
      AvcError: as `read_sps`.
    """
    reader = _nal_reader(sps, SPS)
    _, tags = parse_sps(reader)
    if not tags:
        return sps
    plain = reader.plain[: reader.end // 8]
    bits = "".join(f"{byte:08b}" for byte in plain).rstrip("0")  # the last one is rbsp_stop_one_bit
    bits = bits[: tags.start] + "0000" + bits[tags.stop :]
    bits += "0" * (-len(bits) % 8)
    return escaped(int(bits, 2).to_bytes(len(bits) // 8))


def escaped(payload: bytes) -> bytes:
    """Inserts emulation_prevention_three_bytes (7.4.1.1)."""
    return re.sub(b"\x00\x00(?=[\x00-\x03])", b"\x00\x00\x03", payload)


def _nal_reader(nal: bytes, expected: int) -> Reader:
    """Returns a reader after the header of a NAL unit that stands alone and must have the `expected` type."""
    if nal[:1] != bytes([REF_IDC[expected] << 5 | expected]):
        raise AvcError(f"byte 0: {nal[:1].hex() or 'nothing'} is not the header of {NAMES[expected]}")
    start_code = nal.find(b"\x00\x00\x01")
    if start_code >= 0:
        raise AvcError(f"byte {start_code}: a start code inside {NAMES[expected]}")
    reader = Reader(nal)
    reader.enter(0, len(nal))
    return reader


def parse_sps(reader: Reader) -> tuple[Sps, range]:
    """Reads an SPS to its end; also returns the range of bit positions that `without_tags` removes."""
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
    """Reads the VUI (E.1.1); returns the range of positions of its tags, and `max_mv`, reduced if it says so."""
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


def parse_pps(reader: Reader, sps: Sps) -> Parameters:
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
    reader.u(1)  # constrained_intra_pred_flag: no effect if no neighbour is available
    reader.expect("redundant_pic_cnt_present_flag", 1, 0)
    reader.finish()
    return Parameters(sps, identifier, num_ref_idx_default, init_qp, deblocking_filter_control_present)


def parse_sei(reader: Reader) -> None:
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
