"""The training loss: next-token cross-entropy in float32, optionally with z-loss."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


def cross_entropy(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood in nats, and log of the normaliser, both [...], of targets [...] under [..., vocab].

    Logits of minus infinity (the vocabulary's padding) affect neither.
    """
    log_z = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return log_z - chosen, log_z


def weighted_loss(
    logits: jax.Array, targets: jax.Array, weights: jax.Array, z_loss: float
) -> tuple[jax.Array, jax.Array]:
    """Sums over all positions of weight * (nll + z_loss * log_z^2), and of weight * nll alone.

    z-loss keeps the normaliser near 1 (Chowdhery et al. 2022, section 5; Wortsman et al. 2023).
    """
    nll, log_z = cross_entropy(logits, targets)
    plain = jnp.sum(nll * weights)
    return plain + z_loss * jnp.sum(jnp.square(log_z) * weights), plain


def make_loss(
    graphdef: nnx.GraphDef, z_loss: float
) -> Callable[[Any, Mapping[str, jax.Array], jax.Array], tuple[jax.Array, jax.Array]]:
    """loss(params, batch, total_weight): the batch's sums divided by `total_weight`, with z-loss and without."""

    def loss(params: Any, batch: Mapping[str, jax.Array], total_weight: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = nnx.merge(graphdef, params)(batch["tokens"], batch["positions"], batch["segment_ids"])
        total, nll = weighted_loss(logits, batch["targets"], batch["loss_weights"], z_loss)
        return total / total_weight, nll / total_weight

    return loss
