"""Measures the time that the grammar of legal files adds to a decoding step, and the time to build it.

    python -m benchmarks.grammar --config=configs/jpeglm_100m.py --slots=1,8

One engine with random weights decodes alternately with and without the grammar, and the ratio of each pair of turns is
taken. The cache holds `--tokens` tokens, fewer than the config's chunks: with a longer cache a step takes longer, and
the grammar's share is smaller. The tokenizer is trained on digits of the codec's size. The grammar's tables are built
once with an empty cache folder, then read from it.
"""

import os
import statistics
import tempfile
import time
from unittest import mock

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from benchmarks import report
from jpeglm.core import sharding
from jpeglm.core.registry import CODECS
from jpeglm.data import sources
from jpeglm.data.codecs import jpeg_grammar
from jpeglm.data.codecs.jpeg_grammar import Place
from jpeglm.data.tokenizers import BOS, EOS, bpe
from jpeglm.models import networks
from jpeglm.models.llama import LlamaConfig
from jpeglm.sample.engine import Engine
from jpeglm.sample.grammar import TokenGrammar
from jpeglm.sample.programs import LONGEST_CALL, Arrivals
from jpeglm.sample.settings import Settings

HEADERS = ["at once", "plain, ms a step", "by the grammar", "added", "range"]
FLAGS = flags.FLAGS


def step_seconds(engine: Engine, place: Place) -> list[float]:
    """Seconds per decoding step of a lane in each of `--calls` calls, after a first call that is not counted.

    The caches have their largest capacity.
    """
    programs, params = engine._programs, engine._params
    slots = programs.slots
    ones = np.ones(slots, np.int32)
    arrivals = Arrivals(
        number=np.int32(slots), rows=0 * ones, seats=np.arange(slots, dtype=np.int32), last=BOS * ones, lengths=ones,
        keys=np.zeros((slots, 2), np.uint32), places=jax.tree.map(lambda x: np.full(slots, x), place),
    )  # fmt: skip
    rows = programs.rows(0)
    caches = programs.prefill(params, np.zeros((rows, 0), np.int32), np.ones(rows, np.int32))
    state = programs.seat(programs.start(programs.capacities[-1]), caches, arrivals)
    found = []
    for _ in range(1 + FLAGS.calls):
        started = time.perf_counter()
        state, _ = jax.block_until_ready(programs.decode(params, engine._rules, state, LONGEST_CALL, slots + 1))
        found.append((time.perf_counter() - started) / LONGEST_CALL)
    return found[1:]


def main(_: list[str]) -> None:
    """Builds the grammar, takes all turns and prints the table."""
    config = LlamaConfig.of(FLAGS.config)
    codec = CODECS.of(FLAGS.config)
    digits = sources.open_source("embedded:mnist")
    size = codec.height, codec.width, codec.mode
    pictures = (digits.canonical(name, *size) for name, _ in zip(digits.names(), range(100), strict=False))
    learnt = bpe.train(map(codec.encode, pictures), config.vocab_size, codec.separator_regex)
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, XDG_CACHE_HOME=folder):
        built = report.seconds(codec.grammar)
        jpeg_grammar._tables.cache_clear()
        loaded = report.seconds(codec.grammar)
        on_disk = sum(file.stat().st_size for file in os.scandir(os.path.join(folder, "jpeglm")))
        grammar = codec.grammar()
    started = time.perf_counter()
    rules = TokenGrammar(grammar, learnt)
    composed = time.perf_counter() - started
    on_device = sum(array.nbytes for array in jax.tree.leaves(rules.rules))
    notes = [
        f"{config.num_parameters:,} parameters, {config.num_layers} layers of width {config.width}, {config.dtype}",
        f"automaton built in {built:.1f} s, read again in {loaded:.2f} s, {on_disk / 2**20:.1f} MiB on disk",
        f"composed with {learnt.vocab_size} tokens in {composed:.2f} s; {on_device / 2**20:.1f} MiB on the device",
    ]

    device, mesh = jax.devices()[0], sharding.make_mesh({}, jax.devices()[:1])
    params = jax.jit(lambda: networks.init(config, 0))()
    results = report.Results(FLAGS.out, FLAGS.name, f"Decoding by the grammar, a cache of {FLAGS.tokens:,} tokens")
    rows, raw = [], []
    for slots in map(int, FLAGS.slots):
        by_grammar = Engine(config, params, mesh, Settings(FLAGS.tokens, slots=slots), EOS, rules)
        sides = [by_grammar.with_settings(Settings(FLAGS.tokens, slots=slots, grammar=False)), by_grammar]
        for engine in sides:
            step_seconds(engine, grammar.start)  # compiles
        turns = [
            [statistics.median(step_seconds(engine, grammar.start)) for engine in sides] for _ in range(FLAGS.rounds)
        ]
        added = [with_grammar / plain - 1 for plain, with_grammar in turns]
        medians = [f"{1e3 * statistics.median(column):.2f}" for column in zip(*turns, strict=True)]
        spread = f"{min(added):.1%} to {max(added):.1%}"
        rows.append([str(slots), *medians, f"{statistics.median(added):.1%}", spread])
        raw.append({"slots": slots, "seconds": turns})
        results.write(report.machine(jax=jax.__version__, device=device.device_kind), HEADERS, rows, notes, raw)
    results.show()


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", "configs/jpeglm_100m.py")
    flags.DEFINE_list("slots", ["1", "8"], "Sequences at once.")
    flags.DEFINE_integer("tokens", 2048, "Capacity of the cache.")
    flags.DEFINE_integer("calls", 4, "Of the engine in a turn.", lower_bound=1)
    flags.DEFINE_integer("rounds", 5, "Turns of each.", lower_bound=1)
    flags.DEFINE_string("out", None, "Folder for the results.")
    flags.DEFINE_string("name", "grammar", "Name of the result in it.")
    app.run(main)
