"""Compares sampling with transformers' `generate`: prefill and decode tokens per second, by sequences at once.

On CPUs, the demo's model:

    python -m benchmarks.decode --slots=1,16,64 --tokens=256 --rounds=3

On one GPU, layers of the 7B in bfloat16:

    python -m benchmarks.decode --config=configs/jpeglm_7b.py --config.model.num_layers=8 --slots=1,16,64 \\
        --prompt=3840 --tokens=4096 --out=RESULTS

Both continue `--prompt` random ids to exactly `--tokens` tokens in all, which is also the capacity of the cache.
Weights are random; temperature is 0.7, top-k 40 and top-p 0.9. On a GPU transformers uses its static cache, with which
it compiles decoding. Each measurement runs in its own process: torch's threads are ten times slower beside XLA's, and
on a GPU neither library can hold memory that the other needs. The two alternate `--rounds` times. The table shows
medians, without compile time. QK-norm is left out, because transformers' Llama does not have it. A decoding step must
read all matrices except the embedding, and the past keys and values. The last columns show these bytes per second as a
share of the GPU's bandwidth.
"""

import dataclasses
import shutil
import statistics
import tempfile
import time
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from benchmarks import report
from jpeglm.models.llama import LlamaConfig

SAMPLING = {"temperature": 0.7, "top_k": 40, "top_p": 0.9}
MODULES = {"jpeglm": "benchmarks.ours", "transformers": "benchmarks.peer"}
HEADERS = [
    "at once", *(f"prefill, {side}" for side in MODULES), "ratio", *(f"decode, {side}" for side in MODULES), "ratio",
    "range", *(f"of the bandwidth, {side}" for side in MODULES),
]  # fmt: skip


def bytes_a_step(config: LlamaConfig, slots: int, past: float) -> float:
    """Bytes that a decoding step must read: matrices, and keys and values of `past` tokens of each sequence."""
    matrices = config.num_parameters - config.vocab_size * config.width
    cache = 2 * slots * past * config.num_layers * config.num_kv_heads * config.head_dim
    return (2 if config.dtype == "bfloat16" else 4) * (matrices + cache)


def rates(turn: dict[str, Any], slots: int, prompt: int, length: int) -> tuple[float, float]:
    """Prefill and decode tokens per second of one turn. Prefill also gives the first new token."""
    whole, prefill = statistics.median(turn["seconds"]), statistics.median(turn["prefill_seconds"])
    return slots * prompt / prefill, slots * (length - prompt - 1) / max(whole - prefill, 1e-9)


def table(
    config: LlamaConfig, taken: dict[tuple[int, str], list[dict]], prompt: int, length: int, bandwidth: float | None
) -> list[list[str]]:
    """The rows of the result. `taken`: the turns so far by (slots, side). `bandwidth`: bytes per second, if known."""
    rows = []
    for slots in dict.fromkeys(slots for slots, _ in taken):
        sides = [[turn for turn in taken.get((slots, side), []) if "failed" not in turn] for side in MODULES]
        failed = [taken[slots, side][-1].get("failed", "") if (slots, side) in taken else "" for side in MODULES]
        columns = [[rates(turn, slots, prompt, length) for turn in turns] for turns in sides]
        found = [
            [statistics.median(column) for column in zip(*turns, strict=True)] if turns else None for turns in columns
        ]
        row = [str(slots)]
        for kind in (0, 1):
            row += [f"{f[kind]:,.0f}" if f else why for f, why in zip(found, failed, strict=True)]
            row.append(f"{found[0][kind] / found[1][kind]:.2f}" if all(found) else "")
        by_turn = [a[1] / b[1] for a, b in zip(*columns, strict=False)]
        row.append(f"{min(by_turn):.2f} to {max(by_turn):.2f}" if by_turn else "")
        needed = bytes_a_step(config, slots, (prompt + length) / 2)
        row += [f"{f[1] / slots * needed / bandwidth:.1%}" if f and bandwidth else "not known" for f in found]
        rows.append(row)
    return rows


FLAGS = flags.FLAGS


def main(_: list[str]) -> None:
    """Takes turns until all are done or the time is over, and prints the table."""
    prompt, length = FLAGS.prompt, FLAGS.tokens
    if prompt + 2 > length:
        raise app.UsageError("--tokens must be larger than --prompt by two at least")
    config = dataclasses.replace(LlamaConfig.of(FLAGS.config), qk_norm=False)
    results = report.Results(FLAGS.out, FLAGS.name, f"Sampling, {prompt:,} to {length:,} tokens")
    job = {
        "do": "decode", "model": dataclasses.asdict(config), "settings": SAMPLING, "prompt": prompt,
        "length": length, "repeats": FLAGS.repeats,
    }  # fmt: skip
    notes = [
        f"{config.num_parameters:,} parameters, {config.num_layers} layers of width {config.width}, {config.dtype}"
    ]
    taken: dict[tuple[int, str], list[dict]] = {}
    versions, facts, longest, ends = {}, {}, 0.0, time.monotonic() + 60 * FLAGS.minutes
    cache = tempfile.mkdtemp(prefix="benchmark-")
    try:
        for _turn in range(FLAGS.rounds):
            for slots in map(int, FLAGS.slots):
                for side, module in MODULES.items():
                    started = time.monotonic()
                    if ends - started < longest:
                        continue
                    python = {"python": FLAGS.torch_python} if FLAGS.torch_python and side != "jpeglm" else {}
                    turn = report.child(module, job | {"slots": slots}, cache, timeout=ends - started, **python)
                    longest = max(longest, time.monotonic() - started)
                    versions |= turn.pop("versions", {})
                    facts |= {name: turn[name] for name in ("device", "bandwidth") if name in turn}
                    taken.setdefault((slots, side), []).append(turn)
                    rows = table(config, taken, prompt, length, facts.get("bandwidth"))
                    raw = [{"slots": slots, "side": side, "turns": turns} for (slots, side), turns in taken.items()]
                    results.write(report.machine(**versions), HEADERS, rows, notes, raw)
        results.show()
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    if all("failed" in turn for turns in taken.values() for turn in turns):
        raise SystemExit("nothing could be measured")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", "configs/jpeglm_demo.py")
    flags.DEFINE_list("slots", ["1", "16", "64"], "Sequences at once.")
    flags.DEFINE_integer("prompt", 1, "Tokens given of a sequence.", lower_bound=1)
    flags.DEFINE_integer("tokens", 256, "Of a sequence, the prompt counted.")
    flags.DEFINE_integer("rounds", 3, "Turns of each.", lower_bound=1)
    flags.DEFINE_integer("repeats", 2, "Timings in a turn.", lower_bound=1)
    flags.DEFINE_string("out", None, "Folder for the results, written after each measurement.")
    flags.DEFINE_string("name", "decode", "Name of the result in it.")
    flags.DEFINE_float("minutes", 60, "No measurement is begun that would not end within this time.")
    flags.DEFINE_string("torch_python", None, "Python that has torch and transformers, if it is not this one.")
    app.run(main)
