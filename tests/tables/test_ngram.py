"""The n-gram model: a distribution, against plain dictionaries, on what is certain, and in the trainer's units."""

import collections
import json

import numpy as np
import pytest

from jpeglm.core.errors import InputError
from jpeglm.data.batches import Chunks
from jpeglm.tables.ngram import KneserNey, examples, fit_and_score, identity, training_tokens

VOCAB = 12


def windows(tokens: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray]:
    """Every token after a whole context."""
    grams = np.lib.stride_tricks.sliding_window_view(tokens, order)
    return grams[:, :-1], grams[:, -1]


def some_text(length: int, seed: int = 0) -> np.ndarray:
    """A chain in which each token depends on the two before it; the last two ids never come."""
    random, tokens = np.random.default_rng(seed), [0, 1]
    for _ in range(length):
        usual = (3 * tokens[-1] + tokens[-2]) % (VOCAB - 2)
        tokens.append(usual if random.random() < 0.6 else int(random.integers(VOCAB - 2)))
    return np.array(tokens)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_probabilities_sum_to_one_after_any_context(order):
    model = KneserNey(*windows(some_text(2_000), order), VOCAB)
    contexts = np.random.default_rng(1).integers(0, VOCAB + 1, (100, order - 1))  # seen, unseen, and with the outside
    p = np.stack([model.probabilities(contexts, np.full(100, token)) for token in range(VOCAB)])
    assert (p > 0).all()
    np.testing.assert_allclose(p.sum(axis=0), 1, atol=1e-12)


def plain_kneser_ney(contexts, targets, order: int):
    """p(word, history) by the definition, with dictionaries."""
    counts = [None] * (order + 1)
    counts[order] = collections.Counter((*map(int, h), int(w)) for h, w in zip(contexts, targets, strict=True))
    for n in range(order - 1, 0, -1):
        counts[n] = collections.Counter(gram[1:] for gram in counts[n + 1])  # distinct tokens before it

    def discount(n: int, count: int) -> float:
        of = collections.Counter(counts[n].values())
        y = of[1] / (of[1] + 2 * of[2]) if of[1] else 0.0
        size = min(count, 3)
        return max(0.1, size - ((size + 1) * y * of[size + 1] / of[size] if of[size] else 0.0))

    def p(word: int, history: tuple) -> float:
        n = len(history) + 1
        lower = p(word, history[1:]) if history else 1 / VOCAB
        after = {gram[-1]: count for gram, count in counts[n].items() if gram[:-1] == history}
        if not after:
            return lower
        taken = sum(discount(n, count) for count in after.values())
        own = after[word] - discount(n, after[word]) if word in after else 0.0
        return (own + taken * lower) / sum(after.values())

    return p


def test_equals_the_definition_written_with_dictionaries():
    order = 3
    contexts, targets = windows(some_text(600), order)
    model, plain = KneserNey(contexts, targets, VOCAB), plain_kneser_ney(contexts, targets, order)
    asked, words = windows(some_text(60, seed=5), order)
    expected = [plain(int(w), tuple(map(int, h))) for h, w in zip(asked, words, strict=True)]
    np.testing.assert_allclose(model.probabilities(asked, words), expected, rtol=1e-12)


def test_a_periodic_text_costs_nothing_and_an_unknown_one_more_than_chance():
    text = np.tile([3, 1, 4, 1, 5, 9, 2, 6], 500)
    model = KneserNey(*windows(text, 4), VOCAB)
    assert -np.log(model.probabilities(*windows(text, 4))).mean() < 0.01
    random = np.random.default_rng(0).integers(0, VOCAB, 1_000)
    assert -np.log(model.probabilities(*windows(random, 4))).mean() > np.log(VOCAB)


def test_higher_orders_tell_more_where_tokens_depend_on_more():
    text, held = some_text(20_000), some_text(2_000, seed=3)
    nats = {n: -np.log(KneserNey(*windows(text, n), VOCAB).probabilities(*windows(held, n))).mean() for n in (1, 2, 3)}
    assert nats[3] < nats[2] - 0.3
    assert nats[2] < nats[1] + 0.01


def test_contexts_stay_within_their_chunk(tiny_data):
    chunks = Chunks(tiny_data, "heldout", 64)
    contexts, targets = examples(chunks, 4, 320)
    first, second = chunks[0]["tokens"], chunks[1]["tokens"]
    assert contexts[0].tolist() == [320, 320, first[0]] and targets[0] == first[1]
    assert contexts[1].tolist() == [320, first[0], first[1]]
    assert contexts[62].tolist() == first[60:63].tolist() and targets[62] == first[63]
    assert contexts[63].tolist() == [320, 320, second[0]] and targets[63] == second[1]


def test_scores_the_tokens_and_units_of_the_trainers_evaluation(tiny_data):
    scores = fit_and_score(tiny_data)
    chunks = Chunks(tiny_data, "heldout", 64)
    weights = chunks.batch(range(len(chunks)))["loss_weights"]
    assert scores["order"] == 4
    assert scores["heldout_tokens"] == weights.sum()
    assert scores["nats_per_token"] < fit_and_score(tiny_data, order=1)["nats_per_token"] < np.log(320)
    split = json.loads((tiny_data / "manifest.json").read_text())["splits"]["heldout"]
    bits = scores["nats_per_token"] / np.log(2) * split["tokens"]
    assert scores["bits_per_byte"] == pytest.approx(bits / split["bytes"])
    assert scores["bits_per_pixel"] == pytest.approx(bits / (20 * 32 * 32))


@pytest.mark.parametrize("limit", [64, 127, 128, 1_000, 5_000, 10**9])
def test_a_limit_takes_the_first_whole_chunks(tiny_data, limit):
    chunks = Chunks(tiny_data, "train", 64)
    contexts, targets = examples(chunks, 4, 320)
    scores = fit_and_score(tiny_data, 4, limit)
    count = int((chunks.batch(range(min(len(chunks), limit // 64)))["loss_weights"] > 0).sum())
    assert scores["train_tokens"] == count
    held_contexts, held_targets = examples(Chunks(tiny_data, "heldout", 64), 4, 320)
    model = KneserNey(contexts[:count], targets[:count], 320)
    expected = -np.log(model.probabilities(held_contexts, held_targets)).mean()
    assert scores["nats_per_token"] == pytest.approx(expected, rel=1e-12)
    everything = json.loads((tiny_data / "manifest.json").read_text())
    assert (count == training_tokens(everything)) == (limit == 10**9)
    assert (identity(tiny_data, 4, limit) == identity(tiny_data, 4)) == (limit == 10**9)


@pytest.mark.parametrize("limit", [1, 63, -5])
def test_a_limit_below_one_chunk_is_refused(tiny_data, limit):
    with pytest.raises(InputError, match=f"config.ngram_tokens={limit}: less than a chunk of 64 tokens"):
        fit_and_score(tiny_data, 4, limit)


def test_a_vocabulary_too_large_for_the_order_is_refused_in_one_line():
    with pytest.raises(InputError, match="4-grams over 60000 ids do not fit 64 bits"):
        KneserNey(*windows(some_text(50), 4), 60_000)
