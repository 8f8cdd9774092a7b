"""What the grammar of legal files adds to a step of decoding, and what building it takes.

    python -m benchmarks.grammar --config=configs/jpeglm_100m.py --slots=1,8

One engine with random weights decodes with the grammar and without it, in turns; the ratio of each pair of turns
counts. The cache holds `--tokens`, less than the config's chunks: a longer one would hide the grammar's share. The
tokenizer is learnt from photographs, and the tables are built once without what earlier runs kept on the disk.
"""

import os
import statistics
import tempfile
import time

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags
from tabulate import tabulate

from benchmarks import report
from jpeglm import codecs, sharding, tokenizer
from jpeglm.codecs import jpeg_grammar
from jpeglm.model import llama
from jpeglm.model.llama import LlamaConfig
from jpeglm.sampling.engine import STEPS_A_CALL, Engine, Request, Settings
from jpeglm.sampling.grammar import TokenGrammar
from tests.photographs import photographs

FLAGS = flags.FLAGS


def step_seconds(engine: Engine, slots: int, place: jax.Array) -> list[float]:
    """Seconds of each step of some calls, after one that compiles."""
    request = Request(np.array([tokenizer.BOS], np.int32), np.zeros(2, np.uint32), place)
    with jax.set_mesh(engine._mesh):
        state = engine._start()
        for slot in range(slots):
            state = engine._prefill(state, slot, request)
        found = []
        for _ in range(1 + FLAGS.calls):
            started = time.perf_counter()
            state = jax.block_until_ready(engine._decode(engine._params, engine._rules, state))
            found.append((time.perf_counter() - started) / STEPS_A_CALL)
    return found[1:]


def main(_: list[str]) -> None:
    config = LlamaConfig.of(FLAGS.config)
    codec = codecs.make(FLAGS.config.codec)
    pictures = photographs(40, codec.height, codec.width, codec.mode)
    learnt = tokenizer.train(map(codec.encode, pictures), config.vocab_size, codec.separator_regex)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        built = report.seconds(codec.grammar)
        jpeg_grammar._tables.cache_clear()
        loaded = report.seconds(codec.grammar)
        on_disk = sum(file.stat().st_size for file in os.scandir(os.path.join(folder, "jpeglm")))
        grammar = codec.grammar()
    started = time.perf_counter()
    rules = TokenGrammar(grammar, learnt)
    composed = time.perf_counter() - started
    place = grammar.start

    mesh = sharding.make_mesh({}, jax.devices()[:1])
    params = jax.jit(lambda: llama.init_params(config, 0))()
    rows = []
    for slots in map(int, FLAGS.slots):
        settings = Settings(FLAGS.tokens, slots=slots)
        masked = Engine(config, params, mesh, settings, tokenizer.EOS, rules)
        plain = masked.with_settings(Settings(FLAGS.tokens, slots=slots, grammar=False))
        for engine in (plain, masked):
            step_seconds(engine, slots, place)
        turns = [
            [statistics.median(step_seconds(engine, slots, place)) for engine in (plain, masked)]
            for _ in range(FLAGS.rounds)
        ]
        added = [with_grammar / without - 1 for without, with_grammar in turns]
        without, with_grammar = (1e3 * statistics.median(column) for column in zip(*turns, strict=True))
        rows.append(
            [slots, f"{without:.2f}", f"{with_grammar:.2f}", f"{statistics.median(added):.1%}"]
            + [f"{min(added):.1%} to {max(added):.1%}"]
        )
    print(f"{config.num_parameters:,} parameters, {config.dtype}, a cache of {FLAGS.tokens:,}; {report.machine()}")
    print(tabulate(rows, ["at once", "plain, ms a step", "with grammar", "added", "range"], "github"))
    size = sum(array.nbytes for array in jax.tree.leaves(rules.rules))
    print(f"\nautomaton built in {built:.1f} s, read again in {loaded:.2f} s, {on_disk / 2**20:.1f} MiB on disk;")
    print(f"composed with {learnt.vocab_size} tokens in {composed:.2f} s; {size / 2**20:.1f} MiB on the device")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", "configs/jpeglm_100m.py")
    flags.DEFINE_list("slots", ["1", "8"], "Sequences at once.")
    flags.DEFINE_integer("tokens", 2048, "Capacity of the cache.")
    flags.DEFINE_integer("calls", 4, "Of the engine in a turn.", lower_bound=1)
    flags.DEFINE_integer("rounds", 5, "Turns of each.", lower_bound=1)
    app.run(main)
