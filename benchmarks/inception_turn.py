"""Computes features of pictures with one program: a turn of `benchmarks.inception`, in its own process.

    python -m benchmarks.inception_turn '{"program": "jpeglm", ...}'

Prints one line of JSON. Neither side imports the other's libraries.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def jpeglm(weights: str, mode: str, batch_size: int | None) -> Callable[[np.ndarray], np.ndarray]:
    """Our extractor, from uint8 [n, h, w, 3] to float32 [n, 2048]. Threads resize ahead of it, as in `jpeglm.fid`."""
    from jpeglm.fid import images
    from jpeglm.fid.extractors.inception import Inception

    extractor = Inception(weights, mode, batch_size)

    def run(pictures: np.ndarray) -> np.ndarray:
        reader = images.Reader(images.open_pictures(pictures), extractor.prepare)
        return np.concatenate(list(extractor.compute(reader)))

    return run


def _on_torch(network: Any, prepare: Callable, batch_size: int | None) -> Callable[[np.ndarray], np.ndarray]:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = network.to(device)

    @torch.no_grad()
    def run(pictures: np.ndarray) -> np.ndarray:
        size, features = batch_size or 16, []
        for start in range(0, len(pictures), size):
            batch = torch.from_numpy(pictures[start : start + size].transpose(0, 3, 1, 2).copy()).to(device)
            features.append(network(prepare(batch))[0].flatten(1).cpu().numpy())
        return np.concatenate(features)

    return run


def pytorch_fid(weights: str, _mode: str, batch_size: int | None) -> Callable[[np.ndarray], np.ndarray]:
    """pytorch-fid's network, from uint8 [n, h, w, 3] to float32 [n, 2048]."""
    from tests.fid import inceptions

    network = inceptions.pytorch_fid_network(Path(weights))
    return _on_torch(network, lambda batch: batch.float() / 255, batch_size)


def torch_fidelity(weights: str, _mode: str, batch_size: int | None) -> Callable[[np.ndarray], np.ndarray]:
    """torch-fidelity's network, from uint8 [n, h, w, 3] to float32 [n, 2048]."""
    from tests.fid import inceptions

    return _on_torch(inceptions.torch_fidelity_network(Path(weights)), lambda batch: batch, batch_size)


PROGRAMS = {"jpeglm": jpeglm, "pytorch-fid": pytorch_fid, "torch-fidelity": torch_fidelity}


def main() -> None:
    """Runs the job of the command line, writes the features and prints the rate."""
    job = json.loads(sys.argv[1])
    run = PROGRAMS[job["program"]](job["weights"], job["mode"], job["batch_size"])
    pictures = np.load(job["pictures"])
    run(pictures[: job["warm"]])  # compiles
    started = time.perf_counter()
    features = run(pictures)
    seconds = time.perf_counter() - started
    np.save(job["out"], features)
    print(json.dumps({"pictures_per_second": len(pictures) / seconds}))


if __name__ == "__main__":
    main()
