"""Sampling against transformers' `generate`: tokens a second, and the ratio, by sequences at once.

    python -m benchmarks.decode --config=configs/jpeglm_demo.py --slots=1,16,64 --tokens=256

Both decode the same shapes with random weights from `<s>` alone to exactly `--tokens` tokens, with temperature 0.7,
top-k 40 and top-p 0.9. The two take turns, `--rounds` times; the median counts. Compilation is not counted. QK-norm is
left out, which transformers' Llama does not have. Each has a process of its own: beside XLA's threads torch's are ten
times slower.
"""

import dataclasses
import functools
import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import jax
import numpy as np
import torch
from absl import app, flags
from ml_collections import config_flags
from tabulate import tabulate

from benchmarks import peer
from jpeglm import sharding
from jpeglm.model import llama
from jpeglm.sampling.engine import Engine, Request, Settings

_CONFIG = config_flags.DEFINE_config_file("config", "configs/jpeglm_demo.py")
_SLOTS = flags.DEFINE_list("slots", ["1", "16", "64"], "Sequences at once.")
_TOKENS = flags.DEFINE_integer("tokens", 256, "Of a sequence, `<s>` counted.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each.")
BOS = 1


def ours(config: llama.LlamaConfig, slots: int, length: int) -> Callable[[], None]:
    """Decodes `slots` sequences; no id ends one."""
    mesh = sharding.make_mesh({}, jax.devices()[:1])
    params = jax.jit(lambda: llama.init_params(config, 0))()
    engine = Engine(config, params, mesh, Settings(length, 0.7, 40, 0.9, slots), eos=-1)
    requests = [Request(np.array([BOS], np.int32), np.array([0, number], np.uint32)) for number in range(slots)]

    def run() -> None:
        assert sum(len(ids) for _, ids, _ in engine.generate(requests)) == slots * (length - 1)

    return run


@functools.cache
def theirs(config: llama.LlamaConfig, slots: int, length: int) -> Callable[[], None]:
    """The same by `generate`."""
    model = peer.huggingface_llama(config, length).eval()
    prompt = torch.full((slots, 1), BOS, device=model.device)
    new = length - 1
    how = {"do_sample": True, "temperature": 0.7, "top_k": 40, "top_p": 0.9, "pad_token_id": 0}

    def run() -> None:
        ids = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), min_new_tokens=new, max_new_tokens=new, **how
        )
        assert ids.shape == (slots, length)

    return run


def their_seconds(*arguments: object) -> float:
    """One call of `theirs`, in the process that keeps its model."""
    return peer.seconds(theirs(*arguments))


def main(_: list[str]) -> None:
    config = dataclasses.replace(llama.LlamaConfig.of(_CONFIG.value), qk_norm=False)
    length, rows = _TOKENS.value, []
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other_process:
        for slots in map(int, _SLOTS.value):
            run = ours(config, slots, length)

            def turn(run: Callable[[], None] = run, slots: int = slots) -> tuple[float, float]:
                return peer.seconds(run), other_process.submit(their_seconds, config, slots, length).result()

            turn()  # compiles
            taken = [turn() for _ in range(_ROUNDS.value)]
            rates = [slots * (length - 1) / statistics.median(column) for column in zip(*taken, strict=True)]
            ratios = [theirs_ / ours_ for ours_, theirs_ in taken]
            rows.append([slots, *rates, statistics.median(ratios), f"{min(ratios):.2f} to {max(ratios):.2f}"])
    print(f"{config.num_parameters:,} parameters, {length} tokens, {config.dtype}; {peer.machine()}")
    headers = ["at once", "jpeglm, tokens/s", "transformers, tokens/s", "ratio", "range"]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=("", ",.0f", ",.0f", ".2f", "")))


if __name__ == "__main__":
    app.run(main)
