"""The engine: greedy decoding is argmax of the whole model, and a draw depends on its request and place alone."""

import dataclasses
import hashlib
import itertools
import json
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from jpeglm.core.errors import InputError
from jpeglm.models import networks
from jpeglm.sample import programs
from jpeglm.sample.engine import Request
from jpeglm.sample.programs import bucket, capacities
from jpeglm.sample.sampler import sampling_key
from jpeglm.sample.scheduler import LOOKAHEAD
from jpeglm.sample.settings import Settings
from tests.commands import run
from tests.sample.engine_tools import CONFIG, EOS, LIMIT, SAMPLED, engine, one_device, params, requests, results


@pytest.fixture(scope="module")
def sampled():
    """The engine of eight slots, and what it writes for `requests()`."""
    made = engine(one_device(), SAMPLED)
    return made, results(made, requests())


def whole_model():
    """Logits [n, vocab_size] after each of `tokens` [n], by the model without a cache."""
    mesh = one_device()
    graphdef, _ = networks.abstract(CONFIG)
    weights = params(mesh)

    @jax.jit
    def forward(tokens):
        place = jnp.arange(LIMIT)[None]
        return nnx.merge(graphdef, weights)(tokens[None], place, jnp.ones((1, LIMIT), jnp.int32))[0]

    def logits(tokens: np.ndarray) -> np.ndarray:
        padded = np.zeros(LIMIT, np.int32)
        padded[: len(tokens)] = tokens
        return np.asarray(forward(padded))[: len(tokens), : CONFIG.vocab_size]

    return logits


def test_greedy_decoding_is_argmax_of_the_whole_model():
    logits = whole_model()
    written = results(engine(one_device(), Settings(LIMIT, temperature=0, slots=3)), requests())
    assert sorted(written) == list(range(len(requests())))
    for number, request in enumerate(requests()):
        expected = list(request.prompt)
        while len(expected) < LIMIT and (expected[-1] != EOS or len(expected) == len(request.prompt)):
            expected.append(int(logits(np.array(expected))[-1].argmax()))
        ids, ended = written[number]
        assert list(request.prompt) + ids + [EOS] * ended == expected


def test_a_request_gives_the_same_ids_in_any_order_and_company_and_alone(sampled):
    made, together = sampled
    backwards = results(made, requests()[::-1])
    last = len(requests()) - 1
    assert {last - number: result for number, result in backwards.items()} == together
    for number, request in enumerate(requests()):
        assert results(made, [request])[0] == together[number]
    others = [Request(request.prompt, request.key + 1) for request in requests()[:5]]
    assert results(made, [*others, requests()[6], *others])[5] == together[6]


def test_the_number_of_slots_does_not_change_the_ids(sampled):
    # In float32 logits of other shapes differ by rounding: a draw would have to be nearer than that to its threshold.
    for slots in (1, 3):
        assert results(engine(one_device(), dataclasses.replace(SAMPLED, slots=slots)), requests()) == sampled[1]


@pytest.fixture(scope="module")
def on_eight_devices():
    """What eight devices write for `requests()`, and what JAX tells meanwhile."""
    done = run("tests.sample.engine_tools", devices=8, JAX_LOG_COMPILES="1")
    assert done.returncode == 0, done.stderr
    return {int(number): tuple(result) for number, result in json.loads(done.stdout).items()}, done.stderr


def test_the_mesh_does_not_change_the_ids(sampled, on_eight_devices):
    assert on_eight_devices[0] == sampled[1]


def test_one_program_decodes_and_one_a_bucket_prefills(on_eight_devices):
    buckets = {bucket(len(request.prompt) - 1, LIMIT) for request in requests()}
    assert buckets == {0, 32, 48} and capacities(LIMIT, "cpu") == [LIMIT]
    assert on_eight_devices[1].count("Compiling jit(_decoded)") == 1
    assert on_eight_devices[1].count("Compiling jit(_prefilled)") == len(buckets)
    assert on_eight_devices[1].count("Compiling jit(_seated)") == len(buckets)


def test_the_capacity_of_the_caches_grows_and_shrinks_and_changes_nothing(sampled, monkeypatch):
    monkeypatch.setattr(programs, "SMALLEST_CAPACITY", 8)
    assert capacities(LIMIT, "cpu") == [12, 24, 48]
    resized = mock.Mock(side_effect=programs.Programs.resize, autospec=True)
    monkeypatch.setattr(programs.Programs, "resize", lambda *arguments: resized(*arguments))
    for order in (1, -1):  # the longest first: then the caches shrink
        asked = sorted(requests(), key=lambda request: order * len(request.prompt))
        names = [request.key.tobytes() for request in requests()]
        made = engine(one_device(), dataclasses.replace(SAMPLED, slots=1))
        written = results(made, asked)
        assert {names.index(asked[number].key.tobytes()): ids for number, ids in written.items()} == sampled[1]
    assert {call.args[2] for call in resized.call_args_list} == {12, 24, 48}


def test_equal_prompts_are_prefilled_once(sampled, monkeypatch):
    lengths = []
    prefill = programs.Programs.prefill
    monkeypatch.setattr(
        programs.Programs, "prefill", lambda *a: lengths.extend(n for n in a[3] if n > 1) or prefill(*a)
    )
    prompt = requests()[1].prompt
    asked = [Request(prompt, np.array([0, n], np.uint32)) for n in range(4)]  # fewer than a lane has slots
    made = engine(one_device(), dataclasses.replace(SAMPLED, slots=64))
    together = results(made, asked)
    assert lengths == [len(prompt) - 1]
    assert len({tuple(ids) for ids, _ in together.values()}) == 4
    assert {n: results(sampled[0], [request])[0] for n, request in enumerate(asked)} == together


def test_requests_are_read_only_when_slots_are_free():
    read = 0

    def many():
        nonlocal read
        while True:
            read += 1
            yield requests([3 + read % 40])[0]

    made = engine(one_device(), dataclasses.replace(SAMPLED, slots=4))
    written = made.generate(many())
    taken = list(itertools.islice(written, 30))
    assert len({each.number for each in taken}) == 30
    assert read <= 30 + 2 * (LOOKAHEAD + 2) * 4
    written.close()  # ends the threads, which would read for ever


def test_the_log_likelihood_is_that_of_the_whole_model(sampled):
    logits = whole_model()
    for written in sampled[0].generate(requests()[:3]):
        prompt = requests()[written.number].prompt
        ids = np.concatenate([prompt, written.ids, [EOS] * written.ended]).astype(np.int32)
        wanted = jax.nn.log_softmax(logits(ids[:-1]))[np.arange(len(prompt) - 1, len(ids) - 1), ids[len(prompt) :]]
        assert written.log_likelihood == pytest.approx(float(np.sum(wanted)), rel=1e-5)


def test_an_error_while_requests_are_read_ends_all_lanes():
    def broken():
        yield from requests()
        raise InputError("no more")

    with pytest.raises(InputError, match="no more"):
        list(engine(one_device(), SAMPLED).generate(broken()))


def test_a_sequence_ends_with_its_end_token_or_with_the_budget(sampled):
    _, written = sampled
    assert {ended for _, ended in written.values()} == {True, False}
    for number, (ids, ended) in written.items():
        length = len(requests()[number].prompt) + len(ids)
        assert EOS not in ids
        assert all(0 <= token < CONFIG.vocab_size for token in ids)
        assert length < LIMIT if ended else length == LIMIT


def test_the_key_decides_the_draws(sampled):
    made, _ = sampled
    prompt = requests()[1].prompt
    keys = [np.array(key, np.uint32) for key in ([0, 0], [0, 1], [1, 0], [0, 0])]
    written = results(made, [Request(prompt, key) for key in keys])
    first, second, third, again = (written[number] for number in range(4))
    assert first == again
    assert first != second and first != third and second != third


def test_keys_come_from_seed_file_and_sample_number():
    files = [hashlib.sha256(data).digest() for data in (b"one", b"two")]
    keys = {
        tuple(sampling_key(seed, file, sample)) for seed in (0, 1, 11) for file in files for sample in (0, 1, 10, 110)
    }
    assert len(keys) == 3 * 2 * 4
    key = sampling_key(0, files[0], 0)
    assert key.dtype == np.uint32 and key.shape == (2,)
    assert np.array_equal(key, sampling_key(0, files[0], 0))


def test_first_tokens_are_drawn_with_the_models_probabilities():
    prompt, draws = requests()[1].prompt, 2048
    logits = whole_model()(prompt)[-1].astype(np.float64)
    expected = np.exp(logits - logits.max())
    expected *= draws / expected.sum()
    made = engine(one_device(), Settings(len(prompt) + 1, slots=64), eos=CONFIG.padded_vocab_size - 1)
    keys = [sampling_key(0, b"", sample) for sample in range(draws)]
    written = results(made, [Request(prompt, key) for key in keys])
    counts = np.bincount([ids[0] for ids, _ in written.values()], minlength=CONFIG.vocab_size)
    often = expected > 5
    observed, expected = (np.append(x[often], x[~often].sum()) for x in (counts, expected))
    assert stats.chisquare(observed, expected).pvalue > 0.001


def with_changed(params: dict, path: tuple[str, ...], change) -> dict:
    """Parameters in which `change` was made to a copy of one array."""
    first, *rest = path
    changed = with_changed(params[first], tuple(rest), change) if rest else change(params[first])
    return params | {first: changed}


CORRUPTIONS = {
    "one weight is not a number": (("head",), lambda x: x.at[3, 7].set(jnp.nan)),
    "a scale is infinite": (("final_norm", "scale"), lambda x: x.at[5].set(jnp.inf)),
    "a layer is not a number": (("layers", 1, "wq"), lambda x: x.at[0, 0, 0].set(jnp.nan)),
    "logits overflow": (("head",), lambda x: x * 1e38),
    "an impossible token": (("head",), lambda x: x.at[:, 9].set(-jnp.inf)),
    "tokens that come later": (("embedding",), lambda x: x.at[:2].set(jnp.nan).at[4:].set(jnp.nan)),
}


@pytest.mark.parametrize(
    "changes",
    [{}, {"temperature": 0}, {"temperature": 1.0, "top_k": 0, "top_p": 1.0}],
    ids=["filtered", "greedy", "plain"],
)
def test_logits_that_are_not_finite_end_sampling_whatever_the_settings(sampled, changes):
    made = sampled[0].with_settings(dataclasses.replace(SAMPLED, **changes)) if changes else sampled[0]
    sound, asked = made._params, [Request(np.full(4, 3, np.int32), np.array([1, 2], np.uint32))]
    before = results(made, asked)
    assert all(0 <= token < CONFIG.vocab_size for token in before[0][0])
    try:
        for case, (path, change) in CORRUPTIONS.items():
            made._params = with_changed(sound, path, change)
            with pytest.raises(InputError, match="the model's probabilities are not numbers"):
                pytest.fail(f"{case}: {results(made, asked)}")
    finally:
        made._params = sound
    assert results(made, asked) == before


@pytest.mark.parametrize("length", [0, LIMIT, LIMIT + 1])
def test_a_prompt_that_leaves_no_room_is_refused(sampled, length):
    with pytest.raises(InputError, match=f"a prompt of {length} tokens"):
        results(sampled[0], requests([5, length]))


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": None},
        {"slots": 0},
        {"slots": 2.0},
        {"max_tokens": 1},
        {"max_tokens": "many"},
    ],
)
def test_settings_without_sense_are_refused(changes):
    with pytest.raises(InputError):
        dataclasses.replace(SAMPLED, **changes)
