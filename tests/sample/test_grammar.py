"""Sampling by the grammar: every token's legality, budgets that force the end, and files that are all valid."""

import dataclasses
import functools
import hashlib
import re
import time

import jax
import numpy as np
import pytest
import simplejpeg
from flax import nnx

from jpeglm.core import sharding
from jpeglm.core.errors import InputError
from jpeglm.data.codecs.jpeg import JpegCodec
from jpeglm.data.codecs.jpeg_grammar import JpegGrammar, Place
from jpeglm.data.tokenizers import BOS, EOS, bpe
from jpeglm.models import networks
from jpeglm.models.llama import LlamaConfig
from jpeglm.sample.engine import Engine, Request
from jpeglm.sample.grammar import TokenGrammar
from jpeglm.sample.sampler import Sampler, sampling_key
from jpeglm.sample.settings import Settings
from tests.data.codecs.jpeg_tools import jpegtran
from tests.photographs import photographs
from tests.tiny_config import get_config

NO_SEPARATOR = "(?!)"  # merges may cross everything, as SentencePiece's do
SIX_SETTINGS = [(temperature, top_p) for temperature in (0.5, 1.0, 2.0) for top_p in (0.9, 1.0)]


@functools.cache
def documents(codec: JpegCodec, count: int = 40) -> list[bytes]:
    return [codec.encode(picture) for picture in photographs(count, codec.height, codec.width, codec.mode)]


@functools.cache
def learnt(codec: JpegCodec, separator: str | None = None) -> bpe.BpeTokenizer:
    if separator:  # flat pictures give merges of whole MCUs
        return bpe.train(documents(codec) + 40 * [codec.complete_with_flat(codec.header, 0)], 400, separator)
    return bpe.train(documents(codec), 320, codec.separator_regex)


def untrained(codec: JpegCodec, settings: Settings) -> Sampler:
    """A small random network over the codec's documents."""
    config = get_config()
    config.codec.update(dataclasses.asdict(codec))
    mesh = sharding.make_mesh({}, jax.devices()[:1])
    params = jax.jit(lambda: networks.init(LlamaConfig.of(config), 0))()
    return Sampler(config, learnt(codec), params, mesh, settings)


def is_legal(codec: JpegCodec, document: bytes) -> bool:
    """By the strict parser, by libjpeg's strict decoder, and by jpegtran, which writes legal scans as they were."""
    try:
        scan = codec.parse(document)
    except InputError:
        return False
    file = codec.restore(document)
    pixels = simplejpeg.decode_jpeg(file, colorspace="GRAY" if codec.mode == "L" else "RGB", strict=True)
    transcoded, complaints = jpegtran(file)
    return (
        pixels.shape[:2] == (codec.height, codec.width)
        and len(scan.ends) == codec.units
        and not complaints
        and transcoded.endswith(document[len(codec.header) :])
    )


def random_places(grammar: JpegGrammar, count: int, random: np.random.Generator) -> Place:
    """Places of walks of random length, one step at a time to a random legal byte."""
    place = Place(*(np.full(count, value) for value in grammar.start))
    left = random.integers(0, int(1.5 * grammar.distance(grammar.start)), count)
    every_byte = np.arange(256)[None]
    for step in range(left.max()):
        _, legal = grammar.step(Place(*(values[:, None] for values in place)), every_byte)
        byte = np.argmax(random.random(legal.shape) * legal, axis=1)
        following, _ = grammar.step(place, byte)
        moves = (step < left) & legal.any(axis=1)
        place = Place(*(np.where(moves, *pair) for pair in zip(following, place, strict=True)))
    return place


def legal_behind(grammar: JpegGrammar, places: Place, data: bytes) -> tuple[Place, np.ndarray]:
    """The places after `data`, and where all its bytes are legal, one after the other."""
    legal = np.full(len(places.state), bool(data))
    for byte in data:
        places, is_legal = grammar.step(places, byte)
        legal &= is_legal
    return places, legal


CODECS = [JpegCodec(48, 32, "RGB", 25), JpegCodec(32, 32, "L", 25)]


COLOUR, GREY = CODECS


@pytest.mark.parametrize(
    ("codec", "separator"),
    [(COLOUR, None), (GREY, None), (GREY, NO_SEPARATOR)],
    ids=["colour", "grey", "merges across markers"],
)
def test_a_token_is_legal_exactly_where_its_bytes_are(codec, separator):
    learner, grammar = learnt(codec, separator), codec.grammar()
    rules = TokenGrammar(grammar, learner)
    random = np.random.default_rng(0)
    places = random_places(grammar, 1000, random)
    places.state[0], places.mcus[0] = grammar.done, grammar.mcus
    room = random.integers(1, 2 * grammar.distance(grammar.start), 1000).astype(np.int32)
    choices = jax.jit(rules.choices)(rules.rules, places, room)
    is_done = places.state == grammar.done
    assert 1 <= is_done.sum() < 500 and (places.state >= grammar.in_header).sum() > 50
    crossing = 0
    for token, data in enumerate(learner.token_bytes):
        place, legal = legal_behind(grammar, places, data)
        if token == learner.EOS:
            place, legal = places, is_done
        np.testing.assert_array_equal(choices.legal[:, token], legal, err_msg=f"token {token}: {data.hex()}")
        after = rules.after(places, choices, np.full(1000, token))
        for ours, theirs in zip(after, place, strict=True):
            np.testing.assert_array_equal(np.asarray(ours)[legal], theirs[legal])
        needed = rules.tokens_needed(place)
        fits = legal & ((needed < room) | (token == learner.EOS))
        np.testing.assert_array_equal(choices.fits[:, token], fits)
        crossing += legal.any() and re.search(rb"\xff[\xd0-\xd7].", data, re.DOTALL) is not None
    assert bool(crossing) == bool(separator)


@pytest.mark.parametrize("codec", CODECS, ids=["colour", "grey"])
def test_some_fitting_token_always_leads_nearer_to_the_end(codec):
    grammar = codec.grammar()
    rules = TokenGrammar(grammar, learnt(codec))
    places = random_places(grammar, 1000, np.random.default_rng(1))
    needed = rules.tokens_needed(places).astype(np.int32)
    assert jax.jit(rules.choices)(rules.rules, places, needed).fits.any(axis=1).all()
    nothing_fits = ~jax.jit(rules.choices)(rules.rules, places, needed - 1).fits.any(axis=1)
    # Bytes are counted, where tokens of several bytes may be shorter.
    assert nothing_fits.mean() > 0.3


LIMIT = 400


@pytest.fixture(scope="module")
def grey() -> Sampler:
    return untrained(GREY, Settings(LIMIT, slots=8))


@pytest.mark.parametrize(("more", "temperature"), [(0, 0), (1500, 1.0)], ids=["least budget", "ample budget"])
def test_an_untrained_network_writes_valid_files_and_ends_in_time(more, temperature):
    limit = 1 + int(TokenGrammar(COLOUR.grammar(), learnt(COLOUR)).tokens_needed(COLOUR.grammar().start)) + more
    for completion in untrained(COLOUR, Settings(limit, temperature, slots=8)).generate(8):
        assert is_legal(COLOUR, completion.document)
        assert completion.tokens + 2 <= limit  # BOS and EOS
        assert 0 <= completion.removed < 1
        assert completion.ended == (more == 1500)


def test_a_budget_too_small_for_any_file_is_refused_in_one_line(grey):
    grammar = TokenGrammar(GREY.grammar(), grey.tokenizer)
    least = int(grammar.tokens_needed(GREY.grammar().start)) + 1
    with pytest.raises(InputError, match=f"a prompt of 1 tokens needs max_tokens={least} or more"):
        list(grey.with_settings(Settings(least - 1)).generate(1))
    with pytest.raises(InputError, match="needs max_tokens="):
        list(grey.with_settings(Settings(115)).complete(documents(GREY)[:1], 0.5))


def test_a_network_of_no_numbers_is_refused_in_one_line():
    sampler = untrained(GREY, Settings(100, slots=1))
    sampler._engine._params = jax.tree.map(lambda values: values * np.nan, sampler._engine._params)
    with pytest.raises(InputError, match="the model's probabilities are not numbers"):
        list(sampler.generate(1))


def test_prompts_are_continued_and_whole_ones_only_ended(grey):
    originals = documents(GREY)[:3]
    for completion in grey.complete(originals, 0.4):
        assert completion.document.startswith(GREY.cut(originals[completion.index], 0.4)[0])
        assert is_legal(GREY, completion.document)
    for completion in grey.complete(originals, 1.0):
        assert completion.document == originals[completion.index]
        assert (completion.tokens, completion.ended) == (0, True)
        assert completion.removed > 0.5  # the network knows of no end


def test_without_the_grammar_the_model_is_alone(grey):
    settings = dataclasses.replace(grey.settings, grammar=False)
    plain = {c.sample: c for c in grey.with_settings(settings).generate(8)}
    assert {c.removed for c in plain.values()} == {None}
    assert not any(GREY.is_valid(c.document) for c in plain.values())
    config = grey.config
    params = jax.jit(lambda: networks.init(LlamaConfig.of(config), 0))()
    bare = Engine(LlamaConfig.of(config), params, sharding.make_mesh({}, jax.devices()[:1]), settings, EOS)
    bos = np.array([BOS], np.int32)
    requests = [Request(bos, sampling_key(0, hashlib.sha256(b"").digest(), number)) for number in range(8)]
    for written in bare.generate(requests):
        assert plain[written.number].document == grey.tokenizer.decode(written.ids)


def test_removed_is_the_networks_probability_of_illegal_tokens(grey):
    learner, grammar = grey.tokenizer, GREY.grammar()
    rules = TokenGrammar(grammar, learner)
    prompt, _ = GREY.cut(documents(GREY)[0], 0.9)
    given = np.array([BOS, *learner.encode(prompt)], np.int32)
    config = LlamaConfig.of(grey.config)
    graphdef, _ = networks.abstract(config)
    params = jax.jit(lambda: networks.init(config, 0))()
    engine = Engine(config, params, sharding.make_mesh({}, jax.devices()[:1]), grey.settings, EOS, rules)
    place = Place(*(values[0] for values in rules.places([prompt])))
    [written] = engine.generate([Request(given, np.array([3, 4], np.uint32), place)])
    ids = np.array([*given, *written.ids], np.int32)
    logits = nnx.merge(graphdef, params)(ids[None], np.arange(len(ids))[None], np.ones((1, len(ids)), np.int32))[0]
    probabilities = np.asarray(jax.nn.softmax(logits))
    assert grammar.accepts([learner.decode(ids)])[0]
    positions = np.arange(len(given), len(ids) + 1)
    places, _ = grammar.walk([learner.decode(ids[:position]) for position in positions])
    legal = np.stack([legal_behind(grammar, places, data)[1] for data in learner.token_bytes], axis=1)
    legal[:, EOS] = places.state == grammar.done
    taken = np.sum(probabilities[positions - 1, : learner.vocab_size], axis=1, where=~legal)
    assert written.removed == pytest.approx(np.mean(taken), abs=1e-5)


############################ 525 files for each of six settings ############################


@pytest.mark.slow
@pytest.mark.parametrize("is_short", [False, True], ids=["ample budget", "forced end"])
@pytest.mark.parametrize(("side", "count", "ample", "short"), [(64, 500, 2_500, 150), (256, 25, 12_288, 2_000)])
def test_every_file_of_an_untrained_network_is_valid(side, count, ample, short, is_short):
    codec = JpegCodec(side, side, "RGB", 25)
    limit = short if is_short else ample
    settings = Settings(limit, slots=min(count, 50))
    sampler = untrained(codec, settings)
    for temperature, top_p in SIX_SETTINGS:
        sampler = sampler.with_settings(dataclasses.replace(settings, temperature=temperature, top_p=top_p))
        began = time.monotonic()
        written = list(sampler.generate(count))
        took = time.monotonic() - began
        assert len(written) == count
        assert all(is_legal(codec, completion.document) for completion in written)
        forced = sum(not completion.ended for completion in written)
        assert forced == count or not is_short
        tokens, removed = (np.mean([getattr(c, name) for c in written]) for name in ("tokens", "removed"))
        print(
            f"{side}x{side}, temperature {temperature}, top-p {top_p}, max_tokens {limit}: {count} valid,",
            f"{forced} forced to end; {tokens:.0f} tokens a file, {removed:.1%} of the mass removed; {took:.0f} s",
        )
