"""Compares features of the 2015 Inception with pytorch-fid's and torch-fidelity's: pictures per second and ratios.

    python -m benchmarks.inception [--pictures=64] [--size=256] [--rounds=3] [--out=FOLDER]

Measures the time from uint8 pictures in memory to features, including the resize, in the peer's mode. Each turn runs
in its own process. The programs alternate `--rounds` times. The table shows the medians of the rates and of the ratios
of each round, and the largest difference of the features. Weights are random, because speed does not depend on them.
"""

import statistics
import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np
from absl import app, flags

from benchmarks import report
from tests.fid import inceptions, peers
from tests.photographs import photographs

FLAGS = flags.FLAGS
PEERS = {"pytorch-fid": "legacy_pytorch", "torch-fidelity": "legacy_tensorflow"}
HEADERS = ["mode", "jpeglm, pictures/s", "peer", "pictures/s", "ratio", "turns", "largest difference of features"]


def main(_: list[str]) -> None:
    """Takes all turns and prints the table."""
    peers.make_importable()
    size = FLAGS.size
    result = report.Results(FLAGS.out, "inception", f"Features of the 2015 Inception, {size}x{size} pictures")
    versions = {name: metadata.version(name) for name in ("jax", "torch", "pytorch-fid", "torch-fidelity")}
    rows, raw = [], []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        inceptions.write_weights(scratch / "weights.pth", 0)
        pictures = np.stack([np.asarray(picture) for picture in photographs(FLAGS.pictures, size, size)])
        np.save(scratch / "pictures.npy", pictures)

        def turn(program: str, mode: str) -> tuple[float, np.ndarray]:
            """Pictures a second, and the features."""
            job = {
                "program": program,
                "mode": mode,
                "weights": str(scratch / "weights.pth"),
                "pictures": str(scratch / "pictures.npy"),
                "out": str(scratch / "features.npy"),
                "batch_size": FLAGS.batch_size,
                "warm": min(FLAGS.pictures, 64),
            }
            done = report.child("benchmarks.inception_turn", job, str(scratch / "cache"))
            if "failed" in done:
                raise SystemExit(f"{program}: {done['failed']}")
            return done["pictures_per_second"], np.load(scratch / "features.npy")

        for peer, mode in PEERS.items():
            turns = [(turn("jpeglm", mode), turn(peer, mode)) for _ in range(FLAGS.rounds)]
            rates = [(ours[0], theirs[0]) for ours, theirs in turns]
            ratios = [ours / theirs for ours, theirs in rates]
            (_, ours), (_, theirs) = turns[0]
            difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
            medians = [f"{statistics.median(column):,.1f}" for column in zip(*rates, strict=True)]
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            ratio = f"{statistics.median(ratios):.2f}"
            rows.append([mode, medians[0], peer, medians[1], ratio, spread, f"{difference:.1e}"])
            raw.append({"mode": mode, "peer": peer, "rates": rates})
            notes = [f"{FLAGS.pictures} pictures; ratios are ours over theirs; differences as shares of the largest"]
            result.write(report.machine(**versions), HEADERS, rows, notes, raw)
    result.show()


if __name__ == "__main__":
    flags.DEFINE_integer("pictures", 64, "How many.", lower_bound=1)
    flags.DEFINE_integer("size", 256, "Pixels a side.", lower_bound=1)
    flags.DEFINE_integer("rounds", 3, "Turns of each.", lower_bound=1)
    flags.DEFINE_integer("batch_size", None, "Pictures at once; else each program's own, 16 for the peers.", 1)
    flags.DEFINE_string("out", None, "Folder for the result as JSON and Markdown.")
    app.run(main)
