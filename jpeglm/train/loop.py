"""The training loop: from a config and a workdir to a trained run."""

from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from jpeglm.core import checkpoint, distributed, sharding
from jpeglm.core import config as config_lib
from jpeglm.core.errors import Diverged, InputError
from jpeglm.core.registry import MODELS, TASKS
from jpeglm.core.workdir import check_init_from, check_resumable, write_run
from jpeglm.data import batches as pipeline
from jpeglm.data import records
from jpeglm.train import monitor
from jpeglm.train import preemption as faults
from jpeglm.train import step as train_step
from jpeglm.train.progress import Progress, opening_table


def train(config: ConfigDict, workdir: epath.Path, last_step: int | None = None) -> tuple[int, int]:
    """Runs `config.steps` optimiser steps in all, from where the workdir stands.

    Reads from top to bottom: devices and mesh, the step (its own file), data, state (new or restored), the loop.

    Args:
      last_step: the loop ends after so many steps; None: after `config.steps`, where the schedule ends.

    Returns:
      bytes a device needs during a step: for arguments and results, and for temporaries.

    Raises:
      InputError: data, config, mesh or workdir do not fit, in words for the user.
      Diverged: a loss, a gradient or a parameter is no longer finite.
      SystemExit: with status 75, when asked to stop; a checkpoint is saved.
    """
    config_lib.check(config)
    clock = monitor.Stopwatch()
    last_step = config.steps if last_step is None else last_step

    ############################ Devices and mesh ############################
    devices = distributed.start(config.platform, config.watchdog, config.deterministic)
    preemption = faults.Preemption()
    mesh = sharding.make_mesh(config.mesh, devices)
    jax.set_mesh(mesh)
    is_lead = jax.process_index() == 0

    ############################ Model, optimiser and step, as shapes ############################
    model, task = MODELS.of(config), TASKS.of(config)
    programs = train_step.build(config, mesh)

    ############################ Data ############################
    batch_size, accumulate, seq_len = config.optim.batch_size, config.optim.accumulate, config.data.seq_len
    if not config.data.path:
        raise InputError("config.data.path is not set: --config.data.path=DIR, what `python -m jpeglm.prepare` wrote")
    data_dir = epath.Path(config.data.path)
    manifest = records.read_manifest(data_dir)
    pipeline.check_fits(manifest, config)
    if config.data.verify:
        records.check_checksums(data_dir, manifest, jax.process_index(), jax.process_count())
    chunks, heldout = task.data(data_dir, "train", model), task.data(data_dir, "heldout", model)
    batch_layout = sharding.batch_sharding(mesh)
    rows = sharding.local_rows(batch_layout, (batch_size, seq_len))
    eval_size = batch_size // accumulate
    eval_rows = sharding.local_rows(batch_layout, (eval_size, seq_len))
    check_resumable(workdir, config, manifest)
    init_from = epath.Path(config.init_from) if config.init_from else None
    if init_from and not checkpoint.saved_steps(workdir):
        check_init_from(init_from, config, programs.state["params"], manifest)

    clock.lap("restart")
    distributed.cache_programs(workdir)  # not before: a run that is refused writes nothing
    # Compiled before the state is there: whether it fits is known before anything is allocated.
    batch_shapes = [train_step.batch_shapes(task, size, mesh) for size in (batch_size, eval_size)]
    run_step = programs.train_step.lower(programs.state, batch_shapes[0]).compile()
    run_eval = programs.eval_step.lower(programs.state["params"], batch_shapes[1]).compile()
    compile_seconds, memory = clock.lap("compile"), monitor.device_memory(run_step)
    monitor.check_memory(memory, jax.local_devices()[0])
    distributed.wait_for_all("the programs are compiled")

    ############################ State: restored, or new ############################
    claim = write_run(workdir, config, data_dir) if is_lead else None
    first_step, state = checkpoint.restore_newest(workdir, programs.state)
    if state is None and init_from:
        params = checkpoint.restore_model(init_from, checkpoint.pick_step(init_from, None), programs.state["params"])
        state = programs.state_from(params)
    elif state is None:
        state = programs.new_state()
    saver = checkpoint.Saver(workdir, config.checkpoint)
    progress = Progress(workdir, config, first_step, clock, programs.schedule, devices)
    if is_lead:
        logging.info("\n%s", opening_table(config, mesh, chunks, heldout, first_step, memory, compile_seconds))

    ############################ The loop ############################
    watchdog = faults.Watchdog(config.watchdog)

    def evaluate(params: Any) -> dict[str, float]:
        sums = np.zeros(2)
        watchdog.beat("an evaluation")
        for local in pipeline.eval_batches(heldout, eval_size, eval_rows, config.eval.batches * accumulate):
            batch = sharding.global_batch(local, eval_rows, batch_layout, eval_size)
            sums += np.array(jax.device_get(run_eval(params, batch)), np.float64)
            watchdog.beat("an evaluation")
        return task.scores(sums[0] / sums[1], heldout.manifest)

    def diverged(step: int, scalars: dict[str, float]) -> Diverged:
        saver.close()  # an earlier step may still be on its way to the disk
        progress.saving()  # the steps until here are wanted; going on drops them
        learnt = pipeline.chunk_numbers(chunks, config.seed, batch_size, step - 1)
        return faults.diverged(step, scalars, checkpoint.saved_steps(workdir), learnt)

    place = lambda local: sharding.global_batch(local, rows, batch_layout, batch_size)  # noqa: E731
    batches = pipeline.train_batches(chunks, config.seed, batch_size, rows, first_step, last_step, place=place)
    profile = monitor.Profile(workdir, first_step, config.profile)
    step, is_stopping = first_step, preemption.reached()
    clock.lap("restart")
    progress.begin()
    with watchdog:
        while step < last_step and not is_stopping:
            step += 1
            watchdog.beat(f"step {step}")
            profile.before(step)
            clock.lap("steps")
            _, batch = next(batches)  # threads read ahead, so this should take no time
            clock.lap("data")
            state, scalars = run_step(state, batch)
            scalars = {name: float(value) for name, value in jax.device_get(scalars).items()}  # waits for the step
            clock.lap("steps")
            saver.check()
            if not np.isfinite(list(scalars.values())).all():
                raise diverged(step, scalars)
            progress.step(step, scalars, is_last=step == last_step)

            is_stopping = preemption.reached()
            if step % config.eval.every == 0 or step == last_step:
                try:
                    scores = evaluate(state["params"])
                except Diverged as error:
                    raise diverged(step, scalars | {"held-out loss": np.nan}) from error
                progress.scores(step, scores)
                clock.lap("evaluation")
            if step % config.checkpoint.every == 0 or step == last_step or is_stopping:
                watchdog.beat(f"the checkpoint of step {step}")
                if is_lead:
                    claim.check()
                progress.saving()
                saver.save(step, state)
                progress.saved(step, clock.lap("checkpoint"))

        watchdog.beat("the last checkpoint")
        saver.close()
        clock.lap("checkpoint")
    profile.stop()
    preemption.release()
    if step < last_step:
        progress.close(f"stopped on request after step {step}: the same command goes on from there")
        raise SystemExit(faults.EXIT_AGAIN)
    progress.close(f"{step} steps done: {workdir}")
    return memory
