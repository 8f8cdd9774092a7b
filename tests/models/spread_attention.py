"""Attention on meshes of eight CPU devices against one plain softmax.

    python -m tests.models.spread_attention '[{"implementation": "splash", "mesh": {"context": 2}, ...}, ...]'

prints for each case the largest errors of the output and of the three gradients, in shares of the largest value, and
the largest change of other documents' outputs when one document changes. Keys of a case: implementation, mesh (sizes
above 1), length, heads, kv_heads, head_dim, documents (whether they are masked).
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from jpeglm.core import sharding
from jpeglm.models.attention import causal_attention


def reference(q, k, v, segment_ids):
    """softmax(q k^T / sqrt(head_dim)) v with one mask, in the dtype of the inputs."""
    k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    visible = jnp.tril(jnp.ones(scores.shape[-2:], bool)) & (
        segment_ids[:, None, :, None] == segment_ids[:, None, None]
    )
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.where(visible, scores, -jnp.inf)), v)


def inputs(batch, length, heads, kv_heads, head_dim):
    """q, k, v and what the output is multiplied with to make a loss, in float64; segment ids of ragged documents."""
    random = np.random.default_rng(0)
    shapes = [(batch, length, n, head_dim) for n in (heads, kv_heads, kv_heads, heads)]
    ends = random.random((batch, length)) < 6 / length
    return [random.normal(size=shape) for shape in shapes], 1 + np.cumsum(ends, axis=1).astype(np.int32)


def value_and_grads(attend, q, k, v, weights):
    """The output, and the gradients of its products with `weights` to q, k and v."""
    out, pull = jax.vjp(attend, q, k, v)
    return out, *pull(weights)


def errors(implementation, mesh=None, length=256, heads=4, kv_heads=2, head_dim=32, documents=True, batch=2):
    """What the module prints of one case."""
    sizes = dict.fromkeys(sharding.MESH_AXES, 1) | (mesh or {})
    devices = jax.devices()[: int(np.prod(list(sizes.values())))]
    mesh = sharding.make_mesh(sizes, devices)
    arrays, segments = inputs(batch, length, heads, kv_heads, head_dim)
    if not documents:
        segments = np.ones_like(segments)
    with jax.enable_x64(True):
        expected = jax.jit(lambda *a: value_and_grads(lambda *qkv: reference(*qkv, segments), *a))(*arrays)
        expected = [np.asarray(x) for x in expected]

    order = sharding.dealt_order(length, sizes["context"])

    @jax.jit
    def run(segments, *arrays):
        masked = segments if documents else None
        return value_and_grads(lambda *qkv: causal_attention(*qkv, masked, implementation), *arrays)

    def dealt(*arrays):  # laid out as `global_batch` and the model do
        spread = sharding.batch_sharding(mesh)
        put = lambda x: jax.device_put(np.asarray(x, np.float32)[:, order], spread)  # noqa: E731
        with jax.set_mesh(mesh):
            found = run(jax.device_put(segments[:, order], spread), *map(put, arrays))
        return [np.asarray(x)[:, np.argsort(order)] for x in found]

    found = dealt(*arrays)
    result = [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(found, expected, strict=True)]
    first = (segments == 1)[:, :, None, None]
    changed = dealt(*[np.where(first, -x, x) for x in arrays[:3]], arrays[3])
    leaks = [np.abs(np.where(first, 0, a - b)).max() for a, b in zip(changed, found, strict=True)]
    return result, float(max(leaks)) if documents else None


if __name__ == "__main__":
    print(json.dumps([errors(**case) for case in json.loads(sys.argv[1])]))
