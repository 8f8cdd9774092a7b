"""Trains a language model on prepared chunks, or goes on where the workdir stands.

python -m jpeglm.train --config=configs/jpeglm_demo.py --config.data.path=DIR --workdir=WORKDIR

DIR is what `jpeglm.prepare` wrote, WORKDIR gets config, tokenizer, checkpoints and metrics (metrics.jsonl, and
TensorBoard). Every key of a config stands with its default in jpeglm/config.py; --config.KEY=VALUE changes one, as in
--config.optim.lr=1e-4. Several hosts: the same command on each (see jpeglm/runtime.py).
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags, logging
from etils import epath
from flax import nnx
from ml_collections import ConfigDict, config_flags
from tabulate import tabulate
from tqdm import tqdm

from jpeglm import checkpoint, cli, metrics, optim, runtime, sharding
from jpeglm.data import pipeline, shards
from jpeglm.errors import InputError
from jpeglm.metrics import human_count, human_time
from jpeglm.model import llama
from jpeglm.model.loss import make_loss

Batch = dict[str, jax.Array]


def train(config: ConfigDict, workdir: epath.Path) -> None:
    """Runs `config.steps` optimiser steps in all, from where the workdir stands.

    Reads from top to bottom: devices and mesh, data, model and optimiser, state (new or restored), the step, the loop.
    """
    ############################ Devices and mesh ############################
    devices = runtime.start(config.platform)
    mesh = sharding.make_mesh(config.mesh, devices)
    jax.set_mesh(mesh)
    is_lead = jax.process_index() == 0

    ############################ Data ############################
    batch_size, accumulate, seq_len = config.optim.batch_size, config.optim.accumulate, config.data.seq_len
    check_divides(config, mesh)
    if not config.data.path:
        raise InputError("where is the data? --config.data.path=DIR, a folder that `python -m jpeglm.prepare` wrote")
    data_dir = epath.Path(config.data.path)
    manifest = shards.read_manifest(data_dir)
    pipeline.check_fits(manifest, config)
    if config.data.verify:
        shards.check_checksums(data_dir, manifest, jax.process_index(), jax.process_count())
    chunks = pipeline.Chunks(data_dir, "train", seq_len, config.model.mask_documents)
    heldout = pipeline.Chunks(data_dir, "heldout", seq_len, config.model.mask_documents)
    batch_layout = sharding.batch_sharding(mesh)
    rows = sharding.local_rows(batch_layout, (batch_size, seq_len))
    eval_size = batch_size // accumulate
    eval_rows = sharding.local_rows(batch_layout, (eval_size, seq_len))

    ############################ Model and optimiser, as shapes ############################
    model_config = llama.LlamaConfig.of(config)
    graphdef, abstract_model = llama.abstract(model_config)
    abstract_params = nnx.to_pure_dict(abstract_model)
    param_shardings = sharding.parameter_shardings(abstract_model, mesh)
    schedule = optim.make_schedule(config.optim, config.steps)
    optimizer = optim.make_optimizer(config.optim, schedule)
    shapes = {"params": abstract_params, "opt_state": jax.eval_shape(optimizer.init, abstract_params)}
    shardings = {
        "params": param_shardings,
        "opt_state": optim.state_shardings(optimizer, abstract_params, param_shardings, mesh),
    }

    ############################ State: restored, or new ############################
    checkpoint.check_resumable(workdir, config, manifest)
    init_from = epath.Path(config.init_from) if config.init_from else None
    if init_from and not checkpoint.saved_steps(workdir):
        checkpoint.check_init_from(init_from, config, abstract_params, manifest)
    claim = checkpoint.write_run(workdir, config, data_dir) if is_lead else None
    first_step, state = checkpoint.restore_newest(workdir, checkpoint.abstract(shapes, shardings))
    if state is None:
        # Born in its layout, never whole on one device.
        if init_from:
            params = checkpoint.restore_model(init_from, checkpoint.pick_step(init_from, None), config, mesh)
        else:
            params = jax.jit(lambda: llama.init_params(model_config, config.seed), out_shardings=param_shardings)()
        opt_state = jax.jit(optimizer.init, out_shardings=shardings["opt_state"])(params)
        state = {"params": params, "opt_state": opt_state}
    saver = checkpoint.Saver(workdir, config.checkpoint)

    ############################ The step ############################
    loss_of = make_loss(graphdef, config.optim.z_loss)

    def train_step(state: dict[str, Any], batch: Batch) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        # Sums over microbatches divided by the weight of the whole batch: accumulation changes nothing but rounding.
        total_weight = jnp.sum(batch["loss_weights"])
        grad_of = jax.grad(lambda params, part: loss_of(params, part, total_weight), has_aux=True)

        def add(sums: Any, part: Batch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, grad_of(state["params"], part)), None

        if accumulate == 1:
            grads, loss = grad_of(state["params"], batch)
        else:
            zeros = (jax.tree.map(jnp.zeros_like, state["params"]), jnp.zeros(()))
            (grads, loss), _ = jax.lax.scan(add, zeros, microbatches(batch, accumulate))
        updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "opt_state": opt_state}, {"loss": loss, "grad_norm": optax.global_norm(grads)}

    train_step = jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None))

    @jax.jit
    def eval_step(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        _, nll = loss_of(params, batch, jnp.ones(()))
        return nll, jnp.sum(batch["loss_weights"])

    def evaluate(params: Any) -> dict[str, float]:
        sums = np.zeros(2)
        for local in pipeline.eval_batches(heldout, eval_size, eval_rows, config.eval.batches * accumulate):
            batch = sharding.global_batch(local, eval_rows, batch_layout, eval_size)
            sums += np.array(jax.device_get(eval_step(params, batch)), np.float64)
        return metrics.heldout_units(sums[0] / sums[1], heldout.manifest)

    ############################ The opening print ############################
    tokens_per_step = batch_size * seq_len
    flops_per_token = model_config.flops_per_token(seq_len)
    peak = metrics.peak_flops(devices[0])
    if is_lead:
        logging.info("\n%s", opening_table(config, model_config, mesh, chunks, heldout, first_step, peak))

    ############################ The loop ############################
    log = metrics.MetricsLog(workdir, first_step) if is_lead else None
    batches = pipeline.train_batches(chunks, config.seed, batch_size, rows, first_step, config.steps)
    bar = tqdm(total=config.steps, initial=first_step, unit="step", desc="train", disable=None if is_lead else True)
    clock, clock_step, paused = time.monotonic(), first_step, 0.0
    for index, local in batches:
        step = index + 1  # so many will be done
        batch = sharding.global_batch(local, rows, batch_layout, batch_size)
        state, scalars = train_step(state, batch)
        saver.check()
        bar.update()

        if step % config.log.every == 0 or step == config.steps:
            scalars = {name: float(value) for name, value in jax.device_get(scalars).items()}  # waits for the step
            seconds = (time.monotonic() - clock - paused) / (step - clock_step)
            rate = tokens_per_step / seconds
            scalars |= {"learning_rate": float(schedule(step - 1)), "tokens_per_second": rate}
            if peak:
                scalars["mfu"] = rate * flops_per_token / (peak * len(devices))
            if is_lead:
                left = human_time(seconds * (config.steps - step))
                mfu = f"  MFU {scalars['mfu']:.1%}" if peak else ""
                bar.set_postfix(loss=f"{scalars['loss']:.4f}")
                logging.info(
                    "step %d/%d  loss %.4f  grad norm %.3f  lr %.2e  %s tokens/s%s  %s left", step, config.steps,
                    scalars["loss"], scalars["grad_norm"], scalars["learning_rate"], human_count(rate), mfu, left,
                )  # fmt: skip
                log.write(step, scalars)
            clock, clock_step, paused = time.monotonic(), step, 0.0

        started = time.monotonic()
        if step % config.eval.every == 0 or step == config.steps:
            scores = evaluate(state["params"])
            if is_lead:
                logging.info("step %d  held-out: %s", step, "  ".join(f"{k} {v:.4f}" for k, v in scores.items()))
                log.write(step, {f"heldout/{name}": value for name, value in scores.items()})
        if step % config.checkpoint.every == 0 or step == config.steps:
            if is_lead:
                claim.check()
                log.flush()  # before the checkpoint, so that no checkpoint is ahead of its metrics
            saver.save(step, state)
        paused += time.monotonic() - started

    bar.close()
    saver.close()
    if is_lead:
        log.close()
        logging.info("%d steps done: %s", max(first_step, config.steps), workdir)


def microbatches(batch: Batch, parts: int) -> Batch:
    """[batch, seq] -> [parts, batch / parts, seq]; strided, so that each device keeps the rows that it holds."""
    return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def check_divides(config: ConfigDict, mesh: jax.sharding.Mesh) -> None:
    """Batch and sequence must divide over the mesh; parameters are checked where their shardings are made."""
    batch_size, accumulate = config.optim.batch_size, config.optim.accumulate
    members = sharding.num_parts(mesh, "batch")
    if batch_size % (accumulate * members):
        raise InputError(
            f"optim.batch_size={batch_size} does not divide into optim.accumulate={accumulate} microbatches "
            f"over {members} devices (mesh data x fsdp)"
        )
    if config.data.seq_len % sharding.num_parts(mesh, "sequence"):
        raise InputError(f"data.seq_len={config.data.seq_len} does not divide over mesh.context")


def opening_table(
    config: ConfigDict, model_config: llama.LlamaConfig, mesh: jax.sharding.Mesh, chunks: pipeline.Chunks,
    heldout: pipeline.Chunks, first_step: int, peak: float | None,
) -> str:  # fmt: skip
    """Every derived quantity of the run."""
    seq_len, batch_size = config.data.seq_len, config.optim.batch_size
    per_token = model_config.flops_per_token(seq_len)
    device = mesh.devices.flat[0]
    rows = [
        ("devices", f"{mesh.devices.size} x {device.device_kind}, {jax.process_count()} process(es)"),
        ("mesh", ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())),
        ("peak", f"{human_count(peak)}FLOP/s a device in bf16" if peak else "not known: no MFU"),
        ("parameters", f"{model_config.num_parameters:,} (vocabulary of {model_config.vocab_size})"),
        ("training data", f"{len(chunks):,} chunks of {seq_len:,} tokens"),
        ("held-out data", f"{len(heldout):,} chunks"),
        ("tokens a step", f"{batch_size * seq_len:,} ({batch_size} chunks, {config.optim.accumulate} microbatch(es))"),
        ("steps an epoch", f"{len(chunks) / batch_size:,.1f}"),
        ("epochs", f"{config.steps * batch_size / len(chunks):,.2f} in {config.steps:,} steps"),
        ("FLOPs a token", f"{human_count(per_token)} (forward and backward, causal)"),
        ("FLOPs of the run", human_count(per_token * batch_size * seq_len * config.steps)),
        ("starts at step", f"{first_step:,}"),
    ]
    return tabulate(rows, tablefmt="plain")


FLAGS = flags.FLAGS

if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "File with get_config(); single keys as --config.KEY=VALUE.")
    flags.DEFINE_string("workdir", None, "Folder of the run; a run that stands there goes on.")
    flags.mark_flags_as_required(["config", "workdir"])
    cli.run(lambda: train(FLAGS.config, epath.Path(FLAGS.workdir)))
