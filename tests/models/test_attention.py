"""Attention: every implementation is one plain softmax, on one device and on many, and keeps documents apart."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from jpeglm.core.errors import InputError
from jpeglm.models import kernels
from jpeglm.models.attention import cached_attention, causal_attention
from jpeglm.models.llama_config import ATTENTION, WINDOW
from tests.forks import run
from tests.models.spread_attention import inputs, reference, value_and_grads

ON_MESHES = [
    {"implementation": "auto", "mesh": {"fsdp": 2, "context": 2, "tensor": 2}, "length": 96},
    {"implementation": "blockwise", "mesh": {"context": 4, "tensor": 2}, "length": 96, "documents": False},
    {"implementation": "splash", "mesh": {"context": 2, "tensor": 2}, "length": 512},
    {"implementation": "triton", "mesh": {"data": 2, "tensor": 2}, "length": 128},
]
MORE_ON_MESHES = [
    {
        "implementation": "auto",
        "mesh": {"context": 2},
        "length": 640,
    },  # stripes of more queries than are handled at once
    {"implementation": "auto", "mesh": {"context": 8}, "length": 256, "kv_heads": 4},
    {"implementation": "splash", "mesh": {"context": 4, "tensor": 2}, "length": 1024},
    {"implementation": "splash", "mesh": {"context": 4, "data": 2}, "length": 1024, "documents": False},
    {"implementation": "splash", "mesh": {"fsdp": 2, "tensor": 4}, "length": 256, "kv_heads": 4},
]


@pytest.mark.parametrize(
    "cases", [ON_MESHES, pytest.param(MORE_ON_MESHES, marks=pytest.mark.slow)], ids=["few", "more"]
)
def test_spread_attention_is_one_softmax_and_leaks_nothing_between_documents(cases):
    process = run("tests.models.spread_attention", json.dumps(cases), devices=8)
    assert process.returncode == 0, process.stderr
    for case, (errors, leak) in zip(cases, json.loads(process.stdout), strict=True):
        assert max(errors) < 2e-6, (case, errors)  # output, and gradients to q, k and v
        assert leak == (0 if case.get("documents", True) else None), case


@pytest.mark.parametrize(
    ("implementation", "length"),
    [("blockwise", 200), ("blockwise", 1700), ("splash", 256), ("triton", 256)],
)
def test_each_implementation_is_one_softmax_with_and_without_documents(implementation, length):
    """In float64, forward and backward; the long blockwise form is cut into ragged stripes."""
    arrays, segments = inputs(1, length, 4, 2, 32)
    for masked in (None, segments):
        found = jax.jit(
            lambda *a, masked=masked: value_and_grads(lambda *qkv: causal_attention(*qkv, masked, implementation), *a)
        )(*(x.astype(np.float32) for x in arrays))
        with jax.enable_x64(True):
            seen = np.ones_like(segments) if masked is None else masked
            expected = jax.jit(lambda *a, seen=seen: value_and_grads(lambda *qkv: reference(*qkv, seen), *a))(*arrays)
        for a, b in zip(found, map(np.asarray, expected), strict=True):
            assert np.abs(np.asarray(a) - b).max() < 2e-6 * np.abs(b).max(), (implementation, masked is None)


@pytest.mark.parametrize(("implementation", "length"), [("blockwise", 1700), ("splash", 256), ("triton", 256)])
def test_another_documents_tokens_change_nothing(implementation, length):
    (q, k, v, _), segments = inputs(1, length, 2, 1, 32)
    assert segments.max() > 2
    attend = jax.jit(lambda *qkv: causal_attention(*qkv, segments, implementation))
    q, k, v = (x.astype(np.float32) for x in (q, k, v))
    other = segments == 2
    before = attend(q, k, v)
    after = attend(*(np.where(other[:, :, None, None], -x, x) for x in (q, k, v)))
    np.testing.assert_array_equal(np.asarray(before)[~other], np.asarray(after)[~other])
    assert not np.array_equal(np.asarray(before)[other], np.asarray(after)[other])


def temporary_bytes(length):
    x = jax.ShapeDtypeStruct((1, length, 1, 64), jnp.float32)
    loss = lambda q, k, v: jnp.sum(jnp.sin(causal_attention(q, k, v, implementation="blockwise")))  # noqa: E731
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("lengths", [(8192, 16384), pytest.param((16384, 32768), marks=pytest.mark.slow)])
def test_memory_grows_with_the_length_and_not_with_its_square(lengths):
    short, long = map(temporary_bytes, lengths)
    assert 1.5 * short < long < 2.2 * short


@pytest.mark.parametrize(
    ("implementation", "q", "segments", "message"),
    [
        ("splash", (1, 200, 2, 32), False, "model.attention=splash: needs .* 128 divides, not of 200"),
        ("triton", (1, 200, 2, 32), False, "model.attention=triton: needs sequences that 128 divides, not of 200"),
        ("triton", (1, 256, 2, 24), False, "model.attention=triton: needs a head_dim"),
        ("cudnn", (1, 256, 2, 32), False, "model.attention=cudnn: does not run on cpu"),
    ],
)
def test_what_an_implementation_cannot_compute_is_refused_in_one_line(implementation, q, segments, message):
    x = jnp.zeros(q)
    with pytest.raises(InputError, match=message):
        causal_attention(x, x, x, jnp.ones(q[:2], int) if segments else None, implementation)


@pytest.mark.parametrize(
    ("platform", "dtype", "masked", "length", "expected"),
    [
        ("tpu", "bfloat16", True, 12_288, ("splash", None)),
        ("tpu", "bfloat16", False, 200, ("splash", "128 divides")),  # a prompt: left to blockwise
        ("gpu", "bfloat16", False, 200, ("cudnn", None)),
        ("gpu", "bfloat16", True, 12_288, ("triton", None)),
        ("gpu", "float32", True, 12_288, ("blockwise", None)),
        ("cpu", "bfloat16", True, 12_288, ("blockwise", None)),
    ],
)
def test_each_platform_has_an_implementation_of_choice(monkeypatch, platform, dtype, masked, length, expected):
    monkeypatch.setattr(kernels.sharding, "platform", lambda: platform)
    q = jax.ShapeDtypeStruct((1, length, 8, 128), dtype)
    segments = jax.ShapeDtypeStruct((1, length), "int32") if masked else None
    name = kernels.preferred(q, segments)
    reason = kernels.obstacle(name, q, segments)
    assert name == expected[0]
    assert reason is None if expected[1] is None else expected[1] in reason
    assert name in ATTENTION


def test_cudnn_refuses_to_ignore_a_mask_of_documents(monkeypatch):
    monkeypatch.setattr(kernels.sharding, "platform", lambda: "gpu")
    x = jnp.zeros((1, 256, 2, 32), jnp.bfloat16)
    with pytest.raises(InputError, match="model.attention=cudnn: cannot mask documents"):
        causal_attention(x, x, x, jnp.ones((1, 256), int), "cudnn")


@pytest.mark.parametrize("heads, kv_heads", [(2, 2), (4, 2)], ids=["multi_head", "grouped_queries"])
def test_windows_of_caches_are_attended_to_as_the_whole_and_no_others_are_read(heads, kv_heads):
    """JAX's kernel for TPUs, interpreted. A value that is not a number tells a window that was read."""
    lengths = np.array([1, WINDOW, WINDOW + 1, 2 * WINDOW - 3], np.int32)
    keys = jax.random.split(jax.random.key(0), 3)
    q = jax.random.normal(keys[0], (4, heads, 128))
    k, v = (jax.random.normal(key, (4, kv_heads, 2 * WINDOW, 128), jnp.bfloat16) for key in keys[1:])
    expected = cached_attention(q, k.astype(jnp.float32), v.astype(jnp.float32), jnp.asarray(lengths) - 1)
    needless = np.arange(2 * WINDOW) >= -(-lengths // WINDOW)[:, None] * WINDOW
    k, v = (jnp.where(needless[:, None, :, None], jnp.nan, x) for x in (k, v))
    with pltpu.force_tpu_interpret_mode():
        found = kernels.windowed(q, k, v, jnp.asarray(lengths))
    np.testing.assert_allclose(found, expected, atol=1e-5)
