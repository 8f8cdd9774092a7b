"""Parameter sets of H.264: what x264 writes in them is read, all else refused by name."""

import dataclasses

import numpy as np
import pytest

from jpeglm.data.codecs.avc_header import AvcError, read_pps, read_sps, without_tags
from jpeglm.data.codecs.avc_parser import parse
from tests.data.codecs.avc_tools import PAPER, RICH, SMALL, complaints, encode, nal, se, ue, units


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
