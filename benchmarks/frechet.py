"""Compares the Fréchet distance from features with pytorch-fid's and torch-fidelity's: seconds and ratios.

    python -m benchmarks.frechet [--pictures=1000,5000] [--rounds=3] [--out=FOLDER]

Each side is a set of vectors of 2,048 float32 features. The spectrum of their covariance falls over ten orders of
magnitude, as Inception's does. One time is from features to distance: moments (ours from batches of 64, as a network
gives them) and distance. The other is of the distance alone. The programs alternate `--rounds` times. The table shows
the medians of the times and of the ratios of each round. It also shows the distances: with fewer pictures than
features, those of the other programs are accurate to four digits.
"""

import statistics
import time
from collections.abc import Callable
from importlib import metadata

import numpy as np
import torch
from absl import app, flags

from benchmarks import report
from jpeglm.fid.frechet import Moments, frechet_distance
from tests.fid import peers

_PICTURES = flags.DEFINE_list("pictures", ["1000", "5000"], "Pictures of each side, one or more numbers.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each.")
_OUT = flags.DEFINE_string("out", None, "Folder for the result as JSON and Markdown.")
DIM = 2048
BATCH = 64


def features(seed: int, count: int) -> np.ndarray:
    """Made-up features float32 [count, DIM], of mean 0.4 and trace about 200. The spectrum depends on the seed."""
    rng = np.random.default_rng(seed)
    spectrum = 10.0 ** (-10 * (np.arange(DIM) / (DIM - 1)) ** 0.6)
    deviations = np.sqrt(spectrum * 200 / spectrum.sum()) * np.exp(0.1 * rng.normal(size=DIM))
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(DIM, DIM)))[0]
    return (rng.normal(size=(count, DIM)) * deviations @ basis + 0.4).astype(np.float32)


def programs() -> dict[str, tuple[Callable, Callable]]:
    """Two functions for each program: from features to moments, and from two moments to the distance."""
    pytorch_fid, torch_fidelity = peers.pytorch_fid(), peers.torch_fidelity_fid()

    def streamed(x: np.ndarray) -> Moments:
        return Moments(x[start : start + BATCH] for start in range(0, len(x), BATCH))

    def as_pytorch_fid(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        activations = x.astype(np.float64)  # as pytorch-fid collects them
        return np.mean(activations, axis=0), np.cov(activations, rowvar=False)

    return {
        "jpeglm": (streamed, frechet_distance),
        "pytorch-fid": (as_pytorch_fid, lambda a, b: pytorch_fid.calculate_frechet_distance(*a, *b)),
        "torch-fidelity": (
            lambda x: torch_fidelity.fid_features_to_statistics(torch.from_numpy(x)),
            lambda a, b: torch_fidelity.fid_statistics_to_metric(a, b, False)[torch_fidelity.KEY_METRIC_FID],
        ),
    }


def turn(moments_of: Callable, distance: Callable, sets: tuple[np.ndarray, np.ndarray]) -> tuple[float, float, float]:
    """Seconds from features to distance, seconds of the distance alone, and the distance."""
    started = time.perf_counter()
    moments = [moments_of(x) for x in sets]
    between = time.perf_counter()
    value = float(distance(*moments))
    ended = time.perf_counter()
    return ended - started, ended - between, value


def main(_: list[str]) -> None:
    """Takes all turns and prints the table."""
    peers.make_importable()
    result = report.Results(_OUT.value, "frechet", f"The Fréchet distance of {DIM:,} features")
    versions = {name: metadata.version(name) for name in ("numpy", "scipy", "pytorch-fid", "torch-fidelity")}
    headers = ["pictures", "program", "features to number, s", "ratio", "distance alone, s", "ratio", "value"]
    rows, raw = [], []
    for count in map(int, _PICTURES.value):
        sets = features(1, count), features(2, count)
        turns: dict[str, list[tuple[float, float, float]]] = {}
        for _ in range(_ROUNDS.value):
            for name, program in programs().items():
                turns.setdefault(name, []).append(turn(*program, sets))
        for name, own in turns.items():
            cells = []
            for part in range(2):
                cells.append(f"{statistics.median(taken[part] for taken in own):.2f}")
                ratios = [theirs[part] / ours[part] for theirs, ours in zip(own, turns["jpeglm"], strict=True)]
                cells.append(f"{statistics.median(ratios):.1f}x")
            rows.append([f"{count:,}", name, *cells, f"{own[-1][2]:.6f}"])
            raw.append({"pictures": count, "program": name, "turns": own})
        turns_taken = f"median of {_ROUNDS.value} turns; ratios are theirs over ours"
        notes = [turns_taken, "features are made up, as many on both sides"]
        result.write(report.machine(**versions), headers, rows, notes, raw)
    result.show()


if __name__ == "__main__":
    app.run(main)
