"""Scoring: the model's own log-probabilities, or one line."""

from types import SimpleNamespace

import numpy as np
import pytest
from flax import nnx

from jpeglm.core.errors import InputError
from jpeglm.models import networks
from jpeglm.sample import too_long
from jpeglm.sample.scoring import Scorer
from jpeglm.sample.too_long import TooLong
from tests.sample.engine_tools import CONFIG, LIMIT, one_device, params
from tests.sample.test_engine import CORRUPTIONS, with_changed

TOKENIZER = SimpleNamespace(BOS=1, EOS=2, encode=lambda data: np.frombuffer(data, np.uint8))  # a byte is an id


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    mesh = one_device()
    return Scorer(CONFIG, params(mesh), mesh, TOKENIZER, LIMIT, "run, step 3")


def documents() -> list[bytes]:
    random = np.random.default_rng(0)
    return [bytes(random.integers(3, 40, length).tolist()) for length in (0, 1, 29, 31, LIMIT - 2)]


def test_nats_are_the_models_own_log_probabilities(scorer):
    model = nnx.merge(networks.abstract(CONFIG)[0], params(one_device()))
    for document in documents():
        ids = np.array([[1, *document, 2]])
        logits = np.asarray(model(ids, np.arange(ids.shape[1])[None], np.ones_like(ids)), np.float64)[0, :-1]
        logits -= logits.max(-1, keepdims=True)
        chosen = logits[np.arange(len(logits)), ids[0, 1:]] - np.log(np.exp(logits).sum(-1))
        assert scorer.nats(document) == pytest.approx(-chosen.sum(), rel=1e-5)


@pytest.mark.parametrize("case", CORRUPTIONS)
def test_numbers_that_are_not_finite_are_refused(scorer, case):
    path, change = CORRUPTIONS[case]
    if path[:2] == ("layers", 1):  # here the layers are stacked
        path, change = ("layers", path[2]), lambda x: x.at[1, 0, 0, 0].set(np.nan)
    sound = scorer._params
    scorer._params = with_changed(sound, path, change)
    try:
        with pytest.raises(InputError, match="^run, step 3: the model's probabilities are not numbers"):
            scorer.nats(documents()[2])
    finally:
        scorer._params = sound


def test_documents_that_are_too_long_are_named_and_the_others_kept(scorer):
    long = bytes([5] * (LIMIT - 1))
    named = {f"{length}": bytes([4] * length) for length in (1, 9, LIMIT - 2)} | {"long\n": long, "longer": 2 * long}
    left_out = scorer.too_long(named)
    assert list(too_long.leave_out(named, left_out)) == ["1", "9", str(LIMIT - 2)]
    why = f"{LIMIT + 1} tokens, more than data.seq_len={LIMIT}"
    assert left_out == {"long\n": why, "longer": f"{2 * LIMIT} tokens, more than data.seq_len={LIMIT}"}
    with pytest.raises(InputError, match=rf"^2 of 5 are too long and left out: long\\n: {why}; longer: .*too_long"):
        too_long.finish(left_out, len(named), is_allowed=False)
    too_long.finish(left_out, len(named), is_allowed=True)
    too_long.finish({}, 3, is_allowed=False)
    with pytest.raises(TooLong, match=why):
        scorer.nats(long)
    many = {str(number): long for number in range(9)}
    with pytest.raises(InputError, match="^9 of 9 are too long and left out: 0: .*; 1: .*; 2: .*; and 6 more$"):
        too_long.leave_out(many, scorer.too_long(many))
