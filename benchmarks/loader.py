"""Compares reading batches with bare reads of as many records: tokens per second, and the ratio.

    python -m benchmarks.loader --data=DATA [--batch_size=8] [--steps=2000]

DATA is what `jpeglm.prepare` wrote. Ours are the batches of training: a new random order in each epoch, five arrays,
two threads. The bare loop reads the same number of records one after the other, only into arrays of tokens. The two
alternate `--rounds` times, and the table shows medians. The files are in the system's cache.
"""

import statistics

import grain
import numpy as np
from absl import app, flags
from tabulate import tabulate

from benchmarks import report
from jpeglm.data import batches, records

_DATA = flags.DEFINE_string("data", None, "Folder that jpeglm.prepare wrote.", required=True)
_BATCH = flags.DEFINE_integer("batch_size", 8, "Chunks a batch.")
_STEPS = flags.DEFINE_integer("steps", 2000, "Batches of a turn.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each.")


def main(_: list[str]) -> None:
    """Takes all turns and prints the table."""
    manifest = records.read_manifest(_DATA.value)
    seq_len, size, steps = manifest["config"]["data"]["seq_len"], _BATCH.value, _STEPS.value
    chunks = batches.Chunks(_DATA.value, "train", seq_len)
    source = grain.sources.ArrayRecordDataSource([str(p) for p in records.shard_paths(_DATA.value, manifest, "train")])
    places = np.random.default_rng(0).integers(len(source), size=(steps, size))

    def ours() -> None:
        assert sum(1 for _ in batches.train_batches(chunks, 0, size, range(size), 0, steps)) == steps

    def bare() -> None:
        for step in places:
            np.stack([np.frombuffer(source[int(place)], "<u2") for place in step])

    taken = [[report.seconds(run) for run in (ours, bare)] for _ in range(_ROUNDS.value)]
    rates = [steps * size * seq_len / statistics.median(column) for column in zip(*taken, strict=True)]
    ratio = statistics.median(bare_ / ours_ for ours_, bare_ in taken)
    print(f"batches of {size} x {seq_len} tokens; {report.machine()}")
    print(
        tabulate(
            [[*rates, ratio]],
            ["jpeglm, tokens/s", "bare, tokens/s", "ratio"],
            "github",
            floatfmt=(",.0f", ",.0f", ".2f"),
        )
    )


if __name__ == "__main__":
    app.run(main)
