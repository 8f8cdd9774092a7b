"""A strict parser of H.264 clips in which every macroblock is a slice; it locates every frame and slice.

It entropy-decodes every slice and refuses what decoders conceal or accept silently: lost, doubled or swapped slices
and frames, bits that are no code, levels and vectors out of range, junk. Clauses are those of ITU-T H.264.

With one macroblock per slice, as x264 writes with `slice-max-mbs=1`, all neighbours of a macroblock are in other
slices and not available (6.4.8), so every slice can be read independently.
"""

import dataclasses

import numpy as np

from jpeglm.data.codecs.avc_header import (
    IDR,
    NAMES,
    PPS,
    REF_IDC,
    SEI,
    SLICE,
    SPS,
    AvcError,
    Nal,
    Parameters,
    Reader,
    escaped,
    parse_pps,
    parse_sei,
    parse_sps,
    split,
)
from jpeglm.data.codecs.avc_residual import INTER_CBP, INTRA_CBP, NEIGHBOURS, read_residual

P_SKIP, P_L0_16X16, P_L0_L0_16X8, P_L0_L0_8X16, P_8X8, P_8X8REF0 = range(-1, 5)
I_NXN, I_16X16, I_PCM = 5, 6, 30  # as in P slices: mb_type of Table 7-11 plus 5; I_16x16 has the 24 from 6 on


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
        cbp = (INTRA_CBP if mb_type == I_NXN else INTER_CBP)[reader.ue("coded_block_pattern", 47)]
    if cbp or is_intra_16x16:
        reader.se("mb_qp_delta", -26, 25)
        read_residual(reader, cbp, is_intra_16x16)


def _intra_4x4_modes(reader: Reader) -> None:
    """Reads the prediction modes of the 16 luma blocks and derives them as 8.3.1.1 does."""
    modes: list[int] = []
    for block, (left, above) in enumerate(NEIGHBOURS):
        # a block at the macroblock's left or upper edge lacks a neighbour, so DC is predicted
        mode = 2 if left is None or above is None else min(modes[left], modes[above])
        if not reader.u(1):  # prev_intra4x4_pred_mode_flag
            remaining = reader.u(3)  # rem_intra4x4_pred_mode
            mode = remaining + (remaining >= mode)
        if left is None and mode in _NEEDS_LEFT or above is None and mode in _NEEDS_ABOVE:
            raise reader.wrong(f"Intra_4x4 prediction mode {mode} of block {block} needs samples of another slice")
        modes.append(mode)


def _inter_prediction(reader: Reader, mb_type: int, references: int, max_mv: tuple[int, int]) -> None:
    """Reads mb_pred or sub_mb_pred of a P macroblock, and derives its vectors to check their range."""
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

    The special rules for 16x8 and 8x16 need no code: within a single macroblock the general rule gives the same.
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
    slice_type: int | None = None  # None until the first slice is read
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
    """The layout of a valid stream: offsets in bytes, int64. Slices begin with their start codes."""

    width: int  # pixels
    height: int
    starts: np.ndarray  # [frames] offset of each frame's first start code: that of its SPS if it has one
    ends: np.ndarray  # [frames] offset after each frame's last byte
    slice_starts: np.ndarray  # [frames, macroblocks]
    slice_ends: np.ndarray  # [frames, macroblocks]
    is_idr: np.ndarray  # [frames] bool
    mb_types: np.ndarray  # [frames, macroblocks] P_SKIP, P_L0_16X16, ..., I_PCM


def parse(data: bytes, parameters: Parameters | None = None) -> Clip:
    """Parses a stream, which may end after any of its frames.

    Without `parameters` each IDR picture has SPS and PPS before it, the same ones each time, and at the first one an
    SEI may follow them. With `parameters` (of stripped parameter sets), none of the three may occur. Start codes
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
    starts: list[int] = []
    is_idr: list[bool] = []
    mb_types: list[list[int]] = []
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
                parse_sei(reader)
                index += 1
        assert parameters  # given, or read at an IDR picture, and the first picture is one
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
        width=sps.width,
        height=sps.height,
        starts=np.array(starts),
        ends=slice_ends[:, -1].copy(),
        slice_starts=slice_starts,
        slice_ends=slice_ends,
        is_idr=np.array(is_idr),
        mb_types=np.array(mb_types),
    )


def _enter(reader: Reader, data: bytes, nal: Nal, expected: int, start_code: int) -> None:
    """Moves past the header of a NAL unit, which must have this type (as x264 writes it) and start code."""
    header = data[nal.begin]
    reader.enter(nal.begin, nal.end)
    if header == REF_IDC[expected] << 5 | expected and nal.begin - nal.start == start_code:
        return
    if header & 0x80:
        wrong = "forbidden_zero_bit is 1"
    elif nal.type != expected:
        wrong = f"nal_unit_type is {nal.type}, not {expected}, {NAMES[expected]}"
    elif nal.ref_idc != REF_IDC[expected]:
        wrong = f"nal_ref_idc is {nal.ref_idc}, not {REF_IDC[expected]}"
    else:
        wrong = f"a start code of {nal.begin - nal.start} bytes, not {start_code}"
    raise AvcError(f"byte {nal.start}{reader.place}: {wrong}")


def _read_parameter_sets(
    reader: Reader, data: bytes, nals: list[Nal], parameters: Parameters | None, first: list[bytes]
) -> Parameters:
    """Reads SPS and PPS at an IDR picture. They are put into `first`, or must equal those already there."""
    for number, expected in enumerate((SPS, PPS)):
        if number == len(nals):
            raise AvcError(f"byte {len(data)}{reader.place}: the stream ends before {NAMES[expected]}")
        _enter(reader, data, nals[number], expected, 4)
        body = data[nals[number].begin : nals[number].end]
        if parameters is None:
            first.append(body)
        elif body != first[number]:
            raise reader.wrong(f"{NAMES[expected]} that differs from the first one")
    if parameters is not None:
        return parameters
    reader.enter(nals[0].begin, nals[0].end)
    sps, _ = parse_sps(reader)
    reader.enter(nals[1].begin, nals[1].end)
    return parse_pps(reader, sps)


def skipped_slice(parameters: Parameters, macroblock: int, frame_num: int) -> bytes:
    """Writes the NAL unit of a P slice whose one macroblock is skipped: it copies the previous frame.

    Its vector is predicted to be 0 (8.4.1.1: no neighbour is available), and its edges are not filtered if its
    neighbours in the frame are skipped, too.
    """
    bits = [
        *(_ue(macroblock), _ue(5), _ue(parameters.pps_identifier)),  # first_mb_in_slice, slice_type: P in all slices
        f"{frame_num % (1 << parameters.sps.log2_max_frame_num):0{parameters.sps.log2_max_frame_num}b}",
        *("1", _ue(0), "0"),  # one reference picture, the list as it is
        *("0", _ue(0)),  # sliding window; slice_qp_delta
        *([_ue(0), _ue(0), _ue(0)] if parameters.deblocking_filter_control_present else []),
        *(_ue(1), "1"),  # mb_skip_run, rbsp_stop_one_bit
    ]
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    payload = int(text, 2).to_bytes(len(text) // 8)
    return bytes([REF_IDC[SLICE] << 5 | SLICE]) + escaped(payload)


def _ue(value: int) -> str:
    """The unsigned Exp-Golomb code of a value, as a string of bits."""
    return f"{value + 1:0{2 * (value + 1).bit_length() - 1}b}"
