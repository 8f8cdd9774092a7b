"""Fuzzes the JPEG codec as `tests.data.codecs.fuzz_jpeg` does, with atheris choosing by what they reach in the parser.

    pip install atheris
    python -m tests.data.codecs.fuzz_jpeg_coverage -max_total_time=600 -max_len=20000 -print_final_stats=1

The flags are libFuzzer's. An input is one byte that chooses the codec, and the bytes that it reads. A finding is
printed once, with its bytes, and the run goes on.
"""

import sys

import atheris
import numpy as np

with atheris.instrument_imports(include=["jpeglm.data.codecs"]):
    from tests.data.codecs.fuzz_jpeg import CODECS, check_in_time, explain, mutate, report, seeds

found: set[str] = set()


def test_one_input(data: bytes) -> None:
    if not data:
        return
    codec = CODECS[data[0] % len(CODECS)]
    try:
        check_in_time(codec, data[1:])
    except Exception as error:
        if explain(error) not in found:
            found.add(explain(error))
            report(explain(error), "guided by coverage", codec, data[1:])


def mutator(data: bytes, max_size: int, seed: int) -> bytes:
    random = np.random.default_rng(seed)
    choice = data[0] if data else int(random.integers(len(CODECS)))
    codec = CODECS[choice % len(CODECS)]
    document = data[1:] or seeds(codec)[random.integers(len(seeds(codec)))]
    if random.random() < 0.3:
        return atheris.Mutate(bytes([choice]) + document, max_size)
    return (bytes([choice]) + mutate(document, random, codec))[:max_size]


if __name__ == "__main__":
    for each in CODECS:
        seeds(each)  # made once, before the clock runs
    atheris.Setup(sys.argv, test_one_input, custom_mutator=mutator)
    atheris.Fuzz()
