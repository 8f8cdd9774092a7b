"""`jpeglm.train` with something wrong in its batches, or with a full disk.

python -m tests.planted nan:13 FLAGS      a loss weight of step 13 is not a number
python -m tests.planted slow:0.1 FLAGS    each batch takes 0.1 s to read
python -m tests.planted stuck:13 FLAGS    the batch of step 13 never comes
python -m tests.planted late:9 FLAGS      the loop begins nine seconds late; it says "late"
python -m tests.planted full:0 FLAGS      the disk has no room for metrics.jsonl
"""

import contextlib
import os
import runpy
import sys
import time

import numpy as np

from jpeglm.core import files
from jpeglm.data import batches


def main() -> None:
    kind, amount = sys.argv.pop(1).split(":")
    read, replacing = batches.train_batches, files.replacing

    def late(*args, **options):
        print("late", file=sys.stderr, flush=True)
        time.sleep(float(amount))
        return read(*args, **options)

    def planted(*args, place, **options):
        def bad(batch):
            if kind == "slow":
                time.sleep(float(amount))
            return place(batch)

        for index, batch in read(*args, place=bad, threads=1, **options):
            if index + 1 == int(float(amount)):
                if kind == "nan":
                    batch["loss_weights"] = batch["loss_weights"].at[0, 0].set(np.nan)
                if kind == "stuck":
                    time.sleep(1e6)
            yield index, batch

    @contextlib.contextmanager
    def full(path, *args):
        with replacing(path, *args) as temporary:
            if path.name == "metrics.jsonl":
                os.symlink("/dev/full", temporary)  # so that the system itself refuses to write
            yield temporary

    if kind == "full":
        files.replacing = full
    else:
        batches.train_batches = late if kind == "late" else planted
    runpy.run_module("jpeglm.train", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
