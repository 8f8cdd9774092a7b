"""Products in 8 bits: against numpy in float64, their gradients, and in a model that learns."""

import dataclasses
import json

import jax
import jax.extend.core
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from jpeglm.models import llama, networks, quantise
from jpeglm.models.loss import make_loss
from tests import meshes
from tests.forks import run

TINY = dataclasses.replace(meshes.MODEL, mask_documents=False)
DTYPES = {"int8": (np.int8, np.int8), "fp8": (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)}
LARGEST = {np.int8: 127, ml_dtypes.float8_e4m3fn: 448, ml_dtypes.float8_e5m2: 57_344}


def arrays(seed=0, rows=(3, 5), n=48, m=32):
    random = np.random.default_rng(seed)
    spread = np.exp(random.normal(size=(*rows, 1)) * 3)  # rows of very different size
    x = random.normal(size=(*rows, n)) * spread
    return x.astype(np.float32), random.normal(size=(n, m)).astype(np.float32)


def rounded(x, axis, dtype):
    """What x becomes, in float64."""
    scale = np.abs(x).max(axis, keepdims=True).astype(np.float32) / np.float32(LARGEST[dtype])
    scaled = x / scale
    return (np.rint(scaled) if dtype is np.int8 else scaled).astype(dtype).astype(np.float64) * scale


@pytest.mark.parametrize("name", quantise.FORMATS)
def test_a_product_is_that_of_the_rounded_operands(name):
    x, w = arrays()
    dtype = DTYPES[name][0]
    expected = rounded(x, -1, dtype) @ rounded(w, 0, dtype)
    found = np.asarray(jax.jit(quantise.product, static_argnums=2)(x, w, name))
    size = np.abs(x).max(-1, keepdims=True) * np.abs(w).max(0) * x.shape[-1]
    assert np.max(np.abs(found - expected) / size) < 1e-6
    exact = x.astype(np.float64) @ w
    error = np.linalg.norm(found - exact, axis=-1) / np.linalg.norm(exact, axis=-1)
    assert 1e-4 < error.max() < {"int8": 0.03, "fp8": 0.08}[name]


@pytest.mark.parametrize("name", quantise.FORMATS)
def test_gradients_of_x_are_rounded_too_and_those_of_w_are_not(name):
    x, w = arrays()
    dy = arrays(1, m=48, n=32)[0]
    _, pullback = jax.vjp(lambda x, w: quantise.product(x, w, name), x, w)
    dx, dw = map(np.asarray, pullback(dy))
    values, gradients = DTYPES[name]
    expected = rounded(dy, -1, gradients) @ rounded(w, 1, values).T
    size = np.abs(dy).max(-1, keepdims=True) * np.abs(w).max() * dy.shape[-1]
    assert np.max(np.abs(dx - expected) / size) < 1e-6
    exact = np.einsum("abn,abm->nm", x.astype(np.float64), dy)
    np.testing.assert_allclose(dw, exact, atol=1e-5 * np.abs(exact).max())


@pytest.mark.parametrize("name", quantise.FORMATS)
def test_the_size_of_a_row_and_of_a_column_does_not_matter(name):
    x, w = arrays()
    product = lambda x, w: np.asarray(quantise.product(x, w, name))  # noqa: E731
    np.testing.assert_array_equal(product(x * 2.0**-40, w), product(x, w) * 2.0**-40)
    columns = np.float32(2.0) ** np.arange(-16, 16)
    np.testing.assert_array_equal(product(x, w * columns), product(x, w) * columns)


@pytest.mark.parametrize("name", quantise.FORMATS)
def test_zeros_stay_and_what_is_not_finite_shows(name):
    x, w = arrays()
    x[0, 0] = 0
    found = np.asarray(quantise.product(x, w, name))
    assert (found[0, 0] == 0).all() and np.isfinite(found).all()
    x[0, 0] = 1e-43
    assert np.isfinite(np.asarray(quantise.product(x, w, name))).all()
    for bad in (np.nan, np.inf):
        x[1, 2, 3] = bad
        found = np.asarray(quantise.product(x, w, name))
        assert not np.isfinite(found[1, 2]).any() and np.isfinite(found[1, 1]).all()


def loss_of(config):
    loss = make_loss(networks.abstract(config)[0], 0.0)
    return lambda params, batch: loss(params, batch, jnp.float32(1))[0]


def narrow_products(config):
    """Of a training step, the dtypes of the sums of products whose operands have 8 bits."""
    grad = jax.make_jaxpr(jax.grad(loss_of(config)))(networks.init(config, 0), meshes.batch())

    def found(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general" and equation.invars[0].aval.dtype.itemsize == 1:
                yield str(equation.outvars[0].aval.dtype)
        for inner in jax.extend.core.subjaxprs(jaxpr):
            yield from found(inner)

    return list(found(grad.jaxpr))


@pytest.mark.parametrize("remat, products", [("none", 14), ("full", 20)])
def test_all_products_of_a_layer_are_in_the_format(remat, products):
    """Seven forward, seven for gradients of activations; again forward with remat, but for the last, whose value no
    gradient needs. The layers are one loop."""
    for name, sums in (("none", None), ("int8", "int32"), ("fp8", "float32")):
        config = dataclasses.replace(TINY, quantise=name, remat=remat)
        assert narrow_products(config) == ([sums] * products if sums else [])


@pytest.mark.parametrize("name", quantise.FORMATS)
def test_a_model_learns_as_without(name):
    batch = meshes.batch()
    batch["targets"] = (batch["tokens"] * 7 + 3) % TINY.vocab_size  # a map to be learnt

    def trained(quantised):
        config = dataclasses.replace(TINY, quantise=quantised)
        params, step = networks.init(config, 0), jax.jit(jax.value_and_grad(loss_of(config)))
        losses = []
        for _ in range(60):
            loss, grads = step(params, batch)
            norm = jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(grads)))
            params = jax.tree.map(lambda p, g: p - 0.5 * g / norm, params, grads)  # noqa: B023
            losses.append(float(loss / batch["loss_weights"].sum()))
        return losses

    plain, narrow = trained("none"), trained(name)
    assert plain[-1] < plain[0] - 0.5
    assert narrow != plain and narrow[-1] == pytest.approx(plain[-1], abs=0.05 * (plain[0] - plain[-1]))


def test_sampling_has_no_narrow_products():
    config = dataclasses.replace(TINY, quantise="int8")
    assert config.for_decoding().quantise == "none" and config.for_scoring().quantise == "int8"
    batch = meshes.batch()
    tokens = jnp.asarray(batch["tokens"][:2])
    lengths = jnp.full(2, tokens.shape[1])
    model = llama.Llama(config.for_decoding(), rngs=nnx.Rngs(params=0))
    assert "i8[" not in str(jax.make_jaxpr(lambda t: model.prefill(t, lengths))(tokens))


def test_any_mesh_gives_the_loss_of_one_device_but_for_rounding():
    """A sum in another order can move a value to the next whole number, which is 1/127 of a row's largest."""
    process = run(
        "tests.meshes", json.dumps([[1, 2, 2, 2], [2, 2, 1, 2]]), json.dumps({"quantise": "int8"}), devices=8
    )
    assert process.returncode == 0, process.stderr
    for found in json.loads(process.stdout)["meshes"]:
        assert found["loss_error"] < 1e-4 and found["worst"][0] < 0.02, found
