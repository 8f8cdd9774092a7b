"""Numbers of the model and of attention, computed on one platform, to be compared with those of another.

    JAX_PLATFORMS=cuda python -m tests.gpu.values model '{"name": {...}, ...}' OUT.npz
    JAX_PLATFORMS=cuda,cpu python -m tests.gpu.values attention '[{...}, ...]'
    JAX_PLATFORMS=cuda python -m tests.gpu.values inception '["clean", ...]' OUT.npz

`model`: for each case loss, logits and gradients into OUT.npz, large arrays by every n-th of their elements.
`attention`: prints for each case the errors of output and gradients against a softmax in float64 on the CPU, in shares
of that one's norm, and the largest change of other documents' numbers when one document changes; or why it is refused.
`inception`: for each mode features of the 2015 Inception, its weights random, into OUT.npz.
"""

import json
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jpeglm.core.errors import InputError
from jpeglm.fid.extractors import inception
from jpeglm.models import llama, networks
from jpeglm.models.attention import causal_attention
from jpeglm.models.loss import make_loss
from tests.models.spread_attention import inputs, reference, value_and_grads

KEPT = 2**18  # elements of one array


def parameters(config):
    """Random parameters, the same bits on every platform: JAX's own draws differ by roundings.

    Large enough for all parts to matter, small enough that roundings do not grow from layer to layer.
    """
    random = np.random.default_rng(0)
    abstract = nnx.to_pure_dict(networks.abstract(config)[1])

    def draw(path, shape):
        values = random.standard_normal(shape.shape, np.float32)
        if path[-1].key == "scale":
            return 1 + 0.1 * values
        return values if path[-1].key == "embedding" else values * np.float32(config.width**-0.5)

    return jax.tree_util.tree_map_with_path(draw, abstract)


def batch(config, length):
    """Two chunks of ragged documents."""
    random = np.random.default_rng(1)
    tokens = random.integers(3, config.vocab_size, (2, length + 1), np.int32)
    segments = 1 + np.cumsum(random.random((2, length)) < 6 / length, axis=1).astype(np.int32)
    starts = np.stack([np.searchsorted(row, row) for row in segments])
    places = np.broadcast_to(np.arange(length), (2, length))
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "loss_weights": np.ones((2, length), np.float32),
        "segment_ids": segments,
        "positions": (places - starts if config.mask_documents else places).astype(np.int32),
    }


def model_values(length, **shapes):
    """Loss, logits and gradients of one case, and the largest change of the logits of other documents."""
    config = llama.LlamaConfig(vocab_size=320, **shapes)
    graphdef, _ = networks.abstract(config)
    params, some = parameters(config), batch(config, length)
    loss_of = make_loss(graphdef, 0.0)
    loss, grads = jax.jit(jax.value_and_grad(lambda p: loss_of(p, some, np.float32(2 * length))[0]))(params)

    @jax.jit
    def forward(params, tokens):
        return nnx.merge(graphdef, params)(tokens, some["positions"], some["segment_ids"])[..., : config.vocab_size]

    logits = np.asarray(forward(params, some["tokens"]))
    first = some["segment_ids"] == 1
    changed = np.asarray(forward(params, np.where(first, 3 + some["tokens"] % 300, some["tokens"])))
    found = {"loss": loss, "logits": logits, "leak": np.abs(changed - logits)[~first].max()}
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        found[f"grad{jax.tree_util.keystr(path)}"] = grad
    return {name: _some(np.asarray(x, np.float32)) for name, x in found.items()}


def _some(x):
    return x if x.size <= KEPT else x.reshape(-1)[:: -(-x.size // KEPT) | 1]


def attention_errors(implementation, length, heads, kv_heads, head_dim, dtype, documents):
    """What the module prints of one case."""
    arrays, segments = inputs(1, length, heads, kv_heads, head_dim)
    arrays = [np.asarray(jnp.asarray(x, dtype), np.float64) for x in arrays]  # what is rounded is not an error
    seen = segments if documents else np.ones_like(segments)

    @jax.jit
    def run(*arrays):
        masked = segments if documents else None
        return value_and_grads(lambda *qkv: causal_attention(*qkv, masked, implementation), *arrays)

    def computed(arrays):
        return [np.asarray(x, np.float64) for x in run(*(jnp.asarray(x, dtype) for x in arrays))]

    try:
        found = computed(arrays)
    except InputError as error:
        return {"refused": str(error)}
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        expected = jax.jit(lambda *a: value_and_grads(lambda *qkv: reference(*qkv, seen), *a))(*arrays)
        expected = [np.asarray(x) for x in expected]
    errors = [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(found, expected, strict=True)]
    if not documents:
        return {"errors": errors}
    first = (segments == 1)[:, :, None, None]
    changed = computed([*(np.where(first, -x, x) for x in arrays[:3]), arrays[3]])
    leak = max(np.abs(np.where(first, 0, a - b)).max() for a, b in zip(changed, found, strict=True))
    return {"errors": errors, "leak": float(leak)}


def inception_features(modes):
    """By mode, of five pictures."""
    random = np.random.default_rng(2)

    def draw(name, shape):
        if len(shape) == 4:
            return random.standard_normal(shape, np.float32) * np.float32((2 / np.prod(shape[1:])) ** 0.5)
        if name.endswith(("bn.weight", "running_var")):
            return random.random(shape, np.float32) + np.float32(0.5)
        return random.standard_normal(shape, np.float32) * np.float32(0.1)

    tensors = {name: draw(name, shape) for name, shape in inception.expected_shapes().items()}
    pictures = [random.integers(0, 256, (20 + 90 * i, 250, 3), np.uint8) for i in range(5)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        inception.write_safetensors(tensors, "0" * 64, path)
        return {mode: inception.Inception(path, mode, batch_size=4)(pictures) for mode in modes}


if __name__ == "__main__":
    what, cases = sys.argv[1], json.loads(sys.argv[2])
    if what == "inception":  # with the precision that it asks for itself
        np.savez(sys.argv[3], **inception_features(cases))
        sys.exit()
    jax.config.update("jax_default_matmul_precision", "highest")
    if what == "attention":
        print(json.dumps([attention_errors(**case) for case in cases]))
    else:
        values = {}
        for name, case in cases.items():
            values |= {f"{name}/{what}": x for what, x in model_values(**case).items()}
        np.savez(sys.argv[3], **values)
