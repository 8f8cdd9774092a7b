"""The tables of CAVLC, with a decoder as judge that wants a lone macroblock to end with the last bit of its slice."""

import re

import numpy as np

from jpeglm.data.codecs import avc_parser, avc_residual
from jpeglm.data.codecs.avc_parser import parse
from tests.data.codecs.avc_tools import block, complaints, inter, one_macroblock_clip, p_header, refusal, se, ue

TOKENS = avc_residual._TOKENS
SKIP = ue(1)


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
