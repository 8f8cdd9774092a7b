"""`jpeglm.sample`, which also says how near each draw was to another token.

    python -m tests.golden.margins FILE FLAGS OF jpeglm.sample

FILE gets a JSON object: for each request, by its key in hexadecimal, [position, token, margin] of each draw. Slots
that have ended and wait go on drawing at the place where they stand, so a request may have one draw too many.
"""

import json
import runpy
import sys
from pathlib import Path

import jax
import numpy as np

from jpeglm.sample import engine


def margin(logits: np.ndarray, uniform: float, temperature: float, top_p: float) -> float:
    """By how much a probability, or a sum of several, must change at least before another token may be drawn.

    Args:
      logits: [vocab], minus infinity where a token is impossible.
      uniform: in [0, 1), that decides the draw.
      temperature: above 0.
      top_p: above 0; 1 keeps all.
    """
    scaled = np.asarray(logits, np.float64) / temperature
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    to_filter = np.inf
    if top_p < 1:
        descending = np.sort(probabilities)[::-1]
        sums = np.cumsum(descending)
        to_filter = np.abs(sums - top_p).min()
        probabilities[probabilities < descending[np.searchsorted(sums, top_p)]] = 0
    thresholds = np.cumsum(probabilities)[probabilities > 0] / probabilities.sum()
    return float(min(to_filter, np.abs(thresholds[:-1] - uniform).min(initial=np.inf), 1))


def main() -> None:
    path, draws, seen = Path(sys.argv.pop(1)), {}, {}
    plain_filter, plain_draw, plain_next = engine.filtered_probabilities, engine.draw, engine.Engine._next

    def filtered(logits, temperature, top_k, top_p):
        if top_k or not temperature:
            raise ValueError("margins are known for top_k=0 and temperatures above 0 alone")
        seen.update(logits=logits, settings=(temperature, top_p))
        return plain_filter(logits, temperature, top_k, top_p)

    def draw(probabilities, uniform):
        seen.update(uniform=uniform)
        return plain_draw(probabilities, uniform)

    def following(self, rules, logits, keys, positions, walks):
        token, walks = plain_next(self, rules, logits, keys, positions, walks)
        settings = seen["settings"]

        def note(*rows):
            for key, position, token, logits, uniform in zip(*map(np.asarray, rows), strict=True):
                found = [int(position), int(token), margin(logits, float(uniform), *settings)]
                draws.setdefault(key.tobytes().hex(), {}).setdefault(int(position), found)

        jax.debug.callback(note, keys, positions, token, seen["logits"], seen["uniform"])
        return token, walks

    engine.filtered_probabilities, engine.draw, engine.Engine._next = filtered, draw, following
    try:
        runpy.run_module("jpeglm.sample", run_name="__main__", alter_sys=True)
    finally:
        jax.effects_barrier()
        path.write_text(json.dumps({key: [found[at] for at in sorted(found)] for key, found in draws.items()}))


if __name__ == "__main__":
    main()
