"""The coefficients of a macroblock that is the only one of its slice: CAVLC, ITU-T H.264 clauses 7.3.5.3 and 9.2."""

from collections.abc import Sequence

from jpeglm.data.codecs.avc_header import Reader


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
    """Makes a table of each line; index 0 stays empty, because lines count from 1."""
    return [[], *(_lookup(line, range(len(line.split())), width) for line in lines.strip().splitlines())]


# For nC from 8 on, 6 bits give TotalCoeff - 1 and TrailingOnes; the impossible 3 trailing ones of 1 encode 0.
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
NEIGHBOURS = [(_BLOCKS.index((x - 1, y)) if x else None, _BLOCKS.index((x, y - 1)) if y else None) for x, y in _BLOCKS]
# Table 9-4, coded_block_pattern by codeNum for 4:2:0, of Intra_4x4 and Inter.
INTRA_CBP = bytes.fromhex(
    "2f1f0f00171b1d1e070b0d0e272b2d2e1003050a0c13151a1c23252a2c01020408111214180609161920212224282629"
)
INTER_CBP = bytes.fromhex(
    "0010010204082003050a0c0f2f070b0d0e06091f23252a2c21222428272b2d2e1112141813151a1c171b1d1e16192629"
)


def read_residual(reader: Reader, cbp: int, is_intra_16x16: bool) -> None:
    """Reads residual (7.3.5.3) of a macroblock with this coded_block_pattern; nC (9.2.1) from its own blocks."""
    if is_intra_16x16:
        _residual_block(reader, _TOKENS[0], 16)
    most = 15 if is_intra_16x16 else 16
    totals = [0] * 16
    for block in range(16):
        if cbp >> (block >> 2) & 1:
            totals[block] = _residual_block(reader, _TOKENS[_nc(totals, *NEIGHBOURS[block])], most)
    if cbp & 0x30:
        _residual_block(reader, _CHROMA_DC_TOKENS, 4)
        _residual_block(reader, _CHROMA_DC_TOKENS, 4)
    if cbp & 0x20:
        for _ in range(2):
            totals = [0] * 4
            for block in range(4):
                totals[block] = _residual_block(reader, _TOKENS[_nc(totals, *NEIGHBOURS[block])], 15)


def _nc(totals: list[int], left: int | None, above: int | None) -> int:
    if left is None:
        return 0 if above is None else totals[above]
    return totals[left] if above is None else totals[left] + totals[above] + 1 >> 1
