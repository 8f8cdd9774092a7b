"""The optimiser against its definition, and its schedule."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from jpeglm.core import sharding
from jpeglm.core.config import base
from jpeglm.core.errors import InputError
from jpeglm.models import llama, networks
from jpeglm.train.optimizer import make_optimizer, make_schedule, state_shardings
from tests.tiny_config import get_config


def test_learning_rate_rises_to_its_peak_and_falls_to_its_last_value():
    config = base()
    schedule = make_schedule(config.optim, config.steps)
    rates = np.array([float(schedule(step)) for step in (0, 1_000, 2_000, 38_000, 73_999, 74_000)])
    assert rates[0] == pytest.approx(3e-4 / 2_001, rel=1e-3)  # the first step counts
    assert rates[1] == pytest.approx(3e-4 * 1_001 / 2_001, rel=1e-3)
    assert rates[2] == pytest.approx(3e-4, rel=1e-6)  # the end of the warm-up
    assert rates[3] == pytest.approx((3e-4 + 3e-5) / 2, rel=1e-5)  # half way down the cosine
    assert rates[4] == pytest.approx(3e-5, rel=1e-4)  # the last step
    assert rates[5] == pytest.approx(3e-5, rel=1e-6)


def test_without_warmup_the_first_step_has_the_peak_rate():
    config = get_config()
    config.optim.warmup_steps = 0
    schedule = make_schedule(config.optim, config.steps)
    assert float(schedule(0)) == pytest.approx(config.optim.lr)
    assert float(schedule(1)) < config.optim.lr


@pytest.mark.parametrize("warmup", [-1, 20, 21])
def test_warmup_has_to_end_within_the_run(warmup):
    config = get_config()
    config.optim.warmup_steps = warmup
    with pytest.raises(InputError, match="optim.warmup_steps"):
        make_schedule(config.optim, config.steps)


def adamw(gradients: list, start: np.ndarray, decay: float, config, rates: list[float]) -> np.ndarray:
    """Loshchilov and Hutter 2019, algorithm 2, in float64; gradients are clipped already."""
    x, m, v = start.astype(np.float64), 0.0, 0.0
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        m = config.b1 * m + (1 - config.b1) * g
        v = config.b2 * v + (1 - config.b2) * g**2
        step = (m / (1 - config.b1**t)) / (np.sqrt(v / (1 - config.b2**t)) + config.eps)
        x = x - rate * (step + decay * x)
    return x


def test_steps_are_those_of_clipped_adamw_and_norms_are_not_decayed():
    config = get_config()
    config.optim.clip_norm = 2.0
    random = np.random.default_rng(0)
    params = {"norm": {"scale": random.normal(size=7)}, "wq": random.normal(size=(4, 3))}
    params = jax.tree.map(lambda x: x.astype(np.float32), params)
    gradients = [jax.tree.map(lambda x, s=s: random.normal(size=x.shape) * s, params) for s in (0.1, 3.0, 1.0)]
    schedule = make_schedule(config.optim, config.steps)
    rates = [float(schedule(step)) for step in range(3)]
    optimizer = make_optimizer(config.optim, schedule, {"norm": {"scale": False}, "wq": True})

    new, state = params, optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(jax.tree.map(np.float32, gradient), state, new)
        new = optax.apply_updates(new, updates)

    norms = [np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(gradient))) for gradient in gradients]
    assert norms[0] < config.optim.clip_norm < norms[1]
    clipped = [
        jax.tree.map(lambda g, norm=norm: g * min(1, config.optim.clip_norm / norm), gradient)
        for gradient, norm in zip(gradients, norms, strict=True)
    ]
    scale = adamw([g["norm"]["scale"] for g in clipped], params["norm"]["scale"], 0.0, config.optim, rates)
    matrix = adamw([g["wq"] for g in clipped], params["wq"], config.optim.weight_decay, config.optim, rates)
    np.testing.assert_allclose(new["norm"]["scale"], scale, rtol=2e-6)
    np.testing.assert_allclose(new["wq"], matrix, rtol=2e-6)


def test_moments_are_laid_out_as_their_parameters():
    config = get_config()
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    _, model = networks.abstract(llama.LlamaConfig.of(config))
    params = sharding.parameter_shardings(model, mesh)
    schedule = make_schedule(config.optim, config.steps)
    optimizer = make_optimizer(config.optim, schedule, networks.decayed(model))
    layout = state_shardings(optimizer, nnx.to_pure_dict(model), params, mesh)
    states = [part for part in jax.tree.leaves(layout, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(part, "mu")]
    assert len(states) == 1
    assert states[0].mu == params and states[0].nu == params
    assert states[0].count.spec == jax.sharding.PartitionSpec()
