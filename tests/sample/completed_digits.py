"""The engine with the demo's model over digits.

    python -m tests.sample.completed_digits SLOTS DIGITS

prints as JSON what it writes on all devices of the process: for each digit, its new ids and their log-likelihood.
"""

import functools
import hashlib
import json
import sys
from pathlib import Path

import jax
import numpy as np
from etils import epath

from jpeglm.core import checkpoint, sharding
from jpeglm.core.registry import CODECS, MODELS
from jpeglm.core.workdir import read_config
from jpeglm.data import sources, tokenizers
from jpeglm.models import networks
from jpeglm.sample.engine import Engine, Request
from jpeglm.sample.grammar import TokenGrammar
from jpeglm.sample.sampler import sampling_key
from jpeglm.sample.settings import Settings

DEMO = epath.Path(Path(__file__).parents[2] / "pretrained" / "demo")
RATIO, LIMIT = 0.25, 256
FILTERS = {"temperature": 0.7, "top_k": 40, "top_p": 0.9}


@functools.cache
def parts():
    """Config, codec, tokenizer and grammar of the run."""
    config = read_config(DEMO)
    codec, tokenizer = CODECS.of(config), tokenizers.load(DEMO, config)
    return config, codec, tokenizer, TokenGrammar(codec.grammar(), tokenizer)


@functools.cache
def model():
    """The model, its mesh over all devices, and its parameters there."""
    config = parts()[0]
    made = MODELS.of(config)
    mesh = sharding.inference_mesh(made.tensor_parallelism, is_batched=True)
    return made, mesh, checkpoint.restore_model(DEMO, config.steps, networks.laid_out(made, mesh))


def requests(digits: int) -> list[Request]:
    """The first quarter of each of the last digits of the embedded set."""
    _, codec, tokenizer, grammar = parts()
    source = sources.open_source("embedded:mnist")
    size = codec.height, codec.width, codec.mode
    documents = [codec.encode(source.canonical(name, *size)) for name in list(source.names())[-digits:]]
    prefixes = [codec.cut(document, RATIO)[0] for document in documents]
    places = grammar.places(prefixes)
    return [
        Request(
            np.concatenate([[tokenizer.BOS], tokenizer.encode(prefix)]).astype(np.int32),
            sampling_key(0, hashlib.sha256(document).digest(), 0),
            jax.tree.map(lambda values, n=n: values[n], places),
        )
        for n, (document, prefix) in enumerate(zip(documents, prefixes, strict=True))
    ]


def written(slots: int, digits: int) -> list[tuple[list[int], float]]:
    """New ids, EOS included, and log-likelihood of each digit."""
    _, _, tokenizer, grammar = parts()
    made, mesh, params = model()
    engine = Engine(made, params, mesh, Settings(LIMIT, slots=slots, **FILTERS), tokenizer.EOS, grammar)
    found = {
        each.number: ([*each.ids.tolist(), *[tokenizer.EOS] * each.ended], each.log_likelihood)
        for each in engine.generate(requests(digits))
    }
    return [found[number] for number in range(digits)]


if __name__ == "__main__":
    print(json.dumps(written(int(sys.argv[1]), int(sys.argv[2]))))
