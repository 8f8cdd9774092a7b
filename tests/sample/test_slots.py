"""The number of slots and the mesh change no file, except where a draw is within rounding of its threshold."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jpeglm.models import networks
from jpeglm.sample.filters import filtered_probabilities
from jpeglm.sample.programs import uniform
from tests.commands import run
from tests.sample.completed_digits import FILTERS, LIMIT, Request, model, parts, requests, written

ROUNDING = 1e-4


def margin(request: Request, ids: list[int]) -> float:
    """How far the draw after the new `ids` is from its nearest threshold, by the whole model without a cache."""
    _, _, tokenizer, grammar = parts()
    made, mesh, params = model()
    tokens = np.concatenate([request.prompt, ids]).astype(np.int32)
    graphdef, _ = networks.abstract(made.for_scoring())
    with jax.set_mesh(mesh):
        place = jnp.arange(len(tokens))[None]
        logits = nnx.merge(graphdef, params)(tokens[None], place, jnp.ones_like(place))[0, -1]
    at = grammar.places([tokenizer.decode(tokens[1:])])
    fits = grammar.choices(jax.device_put(grammar.rules), at, jnp.array([LIMIT - len(tokens)])).fits[0]
    probabilities = filtered_probabilities(jnp.where(fits, logits[: len(fits)], -jnp.inf), *FILTERS.values())
    thresholds = np.concatenate([[0], np.cumsum(probabilities)])
    return float(np.min(np.abs(thresholds / thresholds[-1] - uniform(request.key, len(tokens)))))


@pytest.mark.slow
def test_files_differ_only_where_a_draw_is_within_rounding_of_its_threshold():
    digits, asked = 64, requests(64)
    found = {f"{slots} slots": written(slots, digits) for slots in (8, 1, 7, 64)}
    done = run("tests.sample.completed_digits", "64", str(digits), devices=8)
    assert done.returncode == 0, done.stderr
    found["eight devices"] = json.loads(done.stdout)
    reference = found.pop("8 slots")
    for case, results in found.items():
        differing = [n for n in range(digits) if results[n][0] != reference[n][0]]
        print(f"{case}: {len(differing)} of {digits} files differ from those of 8 slots")
        for n in differing:
            ours, theirs = results[n][0], reference[n][0]
            common = next(i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1])
            assert margin(asked[n], ours[:common]) < ROUNDING
        for n in set(range(digits)) - set(differing):
            assert results[n][1] == pytest.approx(reference[n][1], abs=ROUNDING * len(reference[n][0]))
    # The margin is a real one: most draws are much further from their threshold.
    margins = [margin(asked[n], reference[n][0][:20]) for n in range(8)]
    assert np.median(margins) > 100 * ROUNDING
