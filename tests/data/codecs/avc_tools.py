"""ffmpeg's x264, its decoder as a second judge, and slices made of bits by hand."""

import functools
import subprocess

import imageio_ffmpeg

from jpeglm.data.codecs import avc_header, avc_residual
from jpeglm.data.codecs.avc_header import AvcError, read_pps, read_sps, split
from jpeglm.data.codecs.avc_parser import parse

# AVC-LM's command, after its input and filters
PAPER = (
    "-c:v libx264 -pix_fmt yuv420p -profile:v baseline -bf 0 -an -sn -trellis 0 -me_method dia -threads 1 -subq 0 "
    "-psy 0 -mixed-refs 0 -fast-pskip 0 -partitions none"
)
# The same with everything on that Baseline has.
RICH = (
    "-c:v libx264 -pix_fmt yuv420p -profile:v baseline -bf 0 -an -sn -trellis 0 -me_method umh -threads 1 -subq 9 "
    "-psy 0 -mixed-refs 1 -fast-pskip 1 -partitions all"
)
HARMLESS = "Possibly too many slices"  # of a decoder that counts on 32 a picture, but takes more


@functools.cache
def encode(
    source: str,
    size: tuple[int, int] = (256, 144),
    *,
    command: str = PAPER,
    qp: int = 37,
    refs: int = 3,
    frames: int = 15,
    filters: str = "null",
    x264: str = "",
) -> bytes:
    """Returns the stream of a lavfi source, such as "testsrc2": one slice a macroblock."""
    separator = ":" if "=" in source else "="
    graph = f"{source}{separator}size={size[0]}x{size[1]}:rate=3"
    opts = ":".join(filter(None, ("slice-max-mbs=1", x264)))
    return _ffmpeg(
        f"-v error -f lavfi -i {graph} -vf {filters} -frames:v {frames} -qp {qp} -refs {refs} {command} "
        f"-x264opts {opts} -bsf:v h264_mp4toannexb -f h264 -"
    )[0]


def complaints(stream: bytes, frames: int) -> str:
    """What ffmpeg's decoder says of a stream that should have so many frames: nothing of a good one.

    In a picture of one macroblock it wants the macroblock to end with the last bit of its slice.
    """
    options = "-v repeat+info -nostats -threads 1 -err_detect explode+aggressive"
    output, log = _ffmpeg(f"{options} -f h264 -i - -fps_mode passthrough -f framecrc -", stream, check=False)
    lines = [line for line in log.splitlines() if line.startswith(("[h264 @", "[vist#")) and HARMLESS not in line]
    decoded = sum(not line.startswith(b"#") for line in output.splitlines())
    if decoded != frames:
        lines.append(f"{decoded} frames")
    return "\n".join(lines)


def _ffmpeg(arguments: str, data: bytes = b"", check: bool = True) -> tuple[bytes, str]:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-hide_banner", *arguments.split()]
    done = subprocess.run(command, input=data, capture_output=True)
    assert done.returncode == 0 or not check, done.stderr.decode(errors="replace")
    return done.stdout, done.stderr.decode(errors="replace")


def units(stream: bytes) -> list[bytes]:
    """Returns the NAL units of a stream, each with its start code."""
    return [stream[nal.start : nal.end] for nal in avc_header.split(stream)]


# By hand: bits are strings of 0 and 1


def ue(value: int) -> str:
    """Returns an unsigned Exp-Golomb code."""
    code = f"{value + 1:b}"
    return "0" * (len(code) - 1) + code


def se(value: int) -> str:
    """Returns a signed Exp-Golomb code."""
    return ue(2 * value - 1 if value > 0 else -2 * value)


def nal(header: int, bits: str, start_code: int = 3) -> bytes:
    """Returns a NAL unit with rbsp_trailing_bits, emulation prevention and start code."""
    bits += "1"
    bits += "0" * (-len(bits) % 8)
    escaped, zeros = bytearray(), 0
    for byte in int(bits, 2).to_bytes(len(bits) // 8):
        if zeros >= 2 and byte <= 3:
            escaped.append(3)
            zeros = 0
        escaped.append(byte)
        zeros = 0 if byte else zeros + 1
    return bytes(start_code - 1) + b"\x01" + bytes([header]) + escaped


I_HEADER = ue(0) + ue(7) + ue(0) + "0000" + ue(0) + "00" + se(0) + ue(1)  # of an IDR picture's first slice


def p_header(frame: int, references: int = 1) -> str:
    """Returns the slice header of the first slice of frame `frame` of a clip without IDR pictures but the first."""
    return ue(0) + ue(5) + ue(0) + f"{frame % 16:04b}" + "1" + ue(references - 1) + "00" + se(0) + ue(1)


FLAT = ue(3) + ue(0) + se(0) + "1"  # I_16x16, DC, no coefficients


def one_macroblock_clip(*bodies: str, first: str = FLAT) -> bytes:
    """Returns a clip of 16x16 pixels: an I macroblock `first`, then P slices of these slice_data."""
    sps, pps = units(encode("testsrc2", (16, 16), frames=2))[:2]
    slices = [nal(0x65, I_HEADER + first)]
    for frame, body in enumerate(bodies, start=1):
        slices.append(nal(0x41, p_header(frame, min(frame, 3)) + body, 4))
    return b"".join([sps, pps, *slices])


_CODES: dict[int, dict[int, str]] = {}  # of each look-up table, by its id: codes by value


def code(table: list[int], value: int) -> str:
    """Returns the code that stands for a value in one of the parser's look-up tables."""
    if id(table) not in _CODES:
        width = len(table).bit_length() - 1
        pairs = [(index, entry) for index, entry in enumerate(table) if entry]
        _CODES[id(table)] = {entry >> 5: f"{index:0{width}b}"[: entry & 31] for index, entry in pairs}
    return _CODES[id(table)][value]


def block(tokens: list[int], most: int, total: int, ones: int = 0, zeros: int = 0, runs: tuple[int, ...] = ()) -> str:
    """Returns a block of `total` coefficients, the levels as small as can be; all runs but those given are 0."""
    bits = code(tokens, total << 2 | ones) + "0" * ones
    suffix_length = int(total > 10 and ones < 3)
    for _ in range(total - ones):
        bits += "1" + "0" * suffix_length
        suffix_length = 1
    if 0 < total < most:
        bits += code((avc_residual._CHROMA_DC_ZEROS if most == 4 else avc_residual._ZEROS)[total], zeros)
        for index in range(total - 1):
            if zeros:
                run = runs[index] if index < len(runs) else 0
                bits += code(avc_residual._RUNS[min(zeros, 7)], run)
                zeros -= run
    return bits


def inter(coded_block_pattern: int, residual: str) -> str:
    """Returns slice_data of a P_L0_16x16 macroblock with 3 pictures to refer to, the first one, and no motion."""
    pattern = avc_residual.INTER_CBP.index(coded_block_pattern)
    return ue(0) + ue(0) + ue(0) + se(0) + se(0) + ue(pattern) + se(0) + residual


CUT, LATE_CUT = "negate=enable=gte(n\\,3)", "negate=enable=gte(n\\,12)"  # a scene cut at that frame
# Two IDR pictures, 6 frames of 6 macroblocks: the paper's command, and one that uses all that Baseline has.
SMALL = encode("testsrc2", (48, 32), frames=6, filters=CUT)
DENSE = encode("mandelbrot", (48, 32), frames=6, command=RICH, qp=18, filters=CUT)


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
