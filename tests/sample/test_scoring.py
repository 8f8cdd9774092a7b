"""Scoring: the model's own log-probabilities, or one line."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx

from jpeglm.core.errors import InputError
from jpeglm.models import networks
from jpeglm.sample import too_long
from jpeglm.sample.scoring import AHEAD, SHORTEST, TOKENS_ON_CPUS, Scorer, grouped, padded_length
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


def many_documents() -> list[bytes]:
    """More than fill a batch of any length, the lengths mixed."""
    random = np.random.default_rng(1)
    return [bytes(random.integers(3, 40, length).tolist()) for length in random.integers(0, LIMIT - 1, 300)]


def test_many_documents_get_in_their_order_what_each_gets_alone(scorer):
    given = many_documents()
    together = list(scorer.nats_of(given))
    assert [len(nats) for nats in together] == [len(document) + 1 for document in given]
    for document, nats in zip(given, together, strict=True):
        assert nats.sum(dtype=np.float64) == pytest.approx(scorer.nats(document), rel=1e-6)


def test_a_documents_result_does_not_depend_on_its_neighbours(scorer):
    first, *others = many_documents()
    for neighbours in ([], others, others[::-1], 40 * [first]):
        np.testing.assert_array_equal(next(scorer.nats_of([first, *neighbours])), next(scorer.nats_of([first])))


def test_one_program_is_compiled_for_each_padded_length(caplog):
    mesh = one_device()
    fresh = Scorer(CONFIG, params(mesh), mesh, TOKENIZER, LIMIT, "run, step 3")
    with jax.log_compiles():
        for documents in (many_documents(), many_documents()[:7], many_documents()[:1]):
            list(fresh.nats_of(documents))
    assert {padded_length(len(document) + 2, LIMIT) for document in many_documents()} == {32, LIMIT}
    assert sum("Compiling jit(nats)" in record.getMessage() for record in caplog.records) == 2


def test_documents_are_read_as_they_are_needed(scorer):
    """Of endless documents, one in 500 of another length: all results come, and few documents are held."""
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield bytes([5] * (LIMIT - 3 if read % 500 else 7))

    results = scorer.nats_of(endless())
    for number in range(3000):
        assert len(next(results)) == (LIMIT - 2 if (number + 1) % 500 else 8)
        assert read - number <= AHEAD + 4 * TOKENS_ON_CPUS // SHORTEST
    results.close()


def test_groups_are_full_or_were_waited_for_long_enough():
    ids = [np.zeros(length, np.int32) for length in (3, 9, 3, 3, 3, 3, 3, 9, 9)]
    groups = list(grouped(ids, lambda length: 4 if length < 5 else 16, {4: 2, 16: 4}.get, ahead=4))
    numbers = [(length, [number for number, _ in group]) for length, group in groups]
    assert numbers == [(4, [0, 2]), (4, [3, 4]), (16, [1]), (4, [5, 6]), (16, [7, 8])]


def test_there_are_few_padded_lengths_and_long_documents_are_padded_by_less_than_half():
    limit = 12_288
    padded = {length: padded_length(length, limit) for length in range(1, limit + 1)}
    assert sorted(set(padded.values())) == [
        32,
        64,
        128,
        256,
        512,
        *(k * 256 for k in (3, 4, 6, 8, 12, 16, 24, 32, 48)),
    ]
    assert all(length <= size for length, size in padded.items())
    assert max(size / length for length, size in padded.items() if length > 512) < 1.5
    assert padded_length(129, 251) == 251


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
