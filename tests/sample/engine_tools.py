"""A small random model and requests for it.

    python -m tests.sample.engine_tools

prints as JSON what the engine writes for `requests()` on all devices, the heads over four of them.
"""

import json
from collections.abc import Iterable

import jax
import numpy as np
from jax.sharding import Mesh

from jpeglm.core import sharding
from jpeglm.models import llama, networks
from jpeglm.sample.engine import Engine, Request
from jpeglm.sample.settings import Settings

EOS = 2
LIMIT = 48
CONFIG = llama.LlamaConfig(
    vocab_size=40, num_layers=2, width=32, num_heads=4, num_kv_heads=4, head_dim=8, ffn_width=64, dtype="float32"
)
SAMPLED = Settings(max_tokens=LIMIT, temperature=0.9, top_k=20, top_p=0.95, slots=8)


def params(mesh: Mesh) -> dict:
    """Parameters on a mesh; larger than fresh ones, so that some tokens are much more probable than others."""
    shardings = sharding.parameter_shardings(networks.abstract(CONFIG)[1], mesh)
    fresh = jax.jit(lambda: networks.init(CONFIG, 0))()
    return jax.tree.map(lambda x, layout: jax.device_put(4 * x, layout), fresh, shardings)


def one_device() -> Mesh:
    return sharding.make_mesh({}, jax.devices()[:1])


def engine(mesh: Mesh, settings: Settings, eos: int = EOS) -> Engine:
    return Engine(CONFIG, params(mesh), mesh, settings, eos)


def requests(lengths: Iterable[int] = (1, 7, 31, 32, 33, 40, 47, 3, 2, 20)) -> list[Request]:
    """Prompts of these lengths, with keys of their own."""
    random = np.random.default_rng(0)
    return [
        Request(random.integers(3, 40, length).astype(np.int32), random.integers(0, 2**32, 2, np.uint32))
        for length in lengths
    ]


def results(made: Engine, asked: Iterable[Request]) -> dict[int, tuple[list[int], bool]]:
    """Number of the request -> its new ids and whether it ended."""
    return {written.number: (written.ids.tolist(), written.ended) for written in made.generate(asked)}


if __name__ == "__main__":
    mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "context": 1, "tensor": 4})
    print(json.dumps(results(engine(mesh, SAMPLED), requests())))
