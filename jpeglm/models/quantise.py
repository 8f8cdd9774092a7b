"""Matrix products in 8 bits, for training.

    x [..., n] ~ sx [..., 1] * qx [..., n]      a scale for each row
    w [n, m]   ~ qw [n, m] * sw [1, m]          a scale for each column
    x w        ~ sx * (qx qw) * sw

Scales come from the largest magnitude along the axis that is summed, at each step anew. The gradient of x is computed
in the same way from the gradient of the product. The gradient of w, a sum over all tokens, is computed in the dtype of
x. Rounding counts as the identity (Bengio et al. 2013, "straight-through"). int8 rounds to nearest and sums in int32;
fp8 has e4m3 for x and w and e5m2 for gradients (Micikevicius et al. 2022), and sums in float32.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Format:
    """Dtypes of values and gradients, and that of their sums."""

    values: Any
    gradients: Any
    sums: Any


FORMATS = {
    "int8": Format(jnp.int8, jnp.int8, jnp.int32),
    "fp8": Format(jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.float32),
}


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: jax.Array, w: jax.Array, name: str) -> jax.Array:
    """x [..., n] times w [n, m] in the format of this name: [..., m], in the dtype of x."""
    form = FORMATS[name]
    return _scaled_product(x, w, 1, form.values, form)


def _forward(x: jax.Array, w: jax.Array, name: str) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product(x, w, name), (x, w)


def _backward(name: str, kept: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = kept
    form = FORMATS[name]
    dx = _scaled_product(dy, w, 0, form.gradients, form)
    dw = jnp.einsum("...n,...m->nm", x, dy)
    return dx, dw.astype(w.dtype)


product.defvjp(_forward, _backward)


def _scaled_product(x: jax.Array, w: jax.Array, kept: int, dtype: Any, form: Format) -> jax.Array:
    """Sums over the last axis of x and the axis of w that is not `kept`, x being rounded to `dtype`."""
    rows, row_scales = quantised(x, -1, dtype)
    columns, column_scales = quantised(w, 1 - kept, form.values)
    dims = (((x.ndim - 1,), (1 - kept,)), ((), ()))
    sums = jax.lax.dot_general(rows, columns, dims, preferred_element_type=form.sums)
    return (sums.astype(jnp.float32) * row_scales * column_scales.reshape(-1)).astype(x.dtype)


def quantised(x: jax.Array, axis: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """x as whole or small numbers of `dtype`, and float32 scales with size 1 along `axis`, to multiply them with.

    The largest magnitude along `axis` becomes the largest of `dtype`. Where all are zero, or so small that the scale
    is no normal float32, the scale is 1; where one is not finite, the scale is not either, and so neither is the
    product.
    """
    wide = x.astype(jnp.float32)
    info = jnp.iinfo(dtype) if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo(dtype)
    largest = jnp.max(jnp.abs(wide), axis=axis, keepdims=True)
    scales = largest / float(info.max)
    scales = jnp.where(scales < jnp.finfo(jnp.float32).tiny, 1, scales)
    scaled = wide / scales
    return (jnp.rint(scaled) if jnp.issubdtype(dtype, jnp.integer) else scaled).astype(dtype), scales
