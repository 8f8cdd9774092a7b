"""The training loop: from a config and a workdir to a trained run.

Read it from top to bottom: `train` sets up a run and takes its steps; helpers are below. step.py has the computation
of a step, inputs.py its batches, monitor.py the logging.

Steps count from 1. The checkpoint of step n holds the state after n steps; a new run is at step 0.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from jpeglm.core import checkpoint, distributed, sharding
from jpeglm.core import config as config_lib
from jpeglm.core.errors import Diverged
from jpeglm.core.registry import MODELS, TASKS
from jpeglm.core.workdir import Claim, check_init_from, check_resumable, write_run
from jpeglm.train.allocator import keep_freed_memory
from jpeglm.train.clock import Stopwatch
from jpeglm.train.inputs import Inputs
from jpeglm.train.memory import check_memory, device_memory
from jpeglm.train.monitor import Monitor
from jpeglm.train.preemption import EXIT_AGAIN, Preemption, Watchdog
from jpeglm.train.profile import Profile
from jpeglm.train.step import Programs, batch_shapes, build_programs
from jpeglm.train.tasks import Task


def train(config: ConfigDict, workdir: epath.Path) -> None:
    """Trains up to `config.steps` optimiser steps in total, continuing from the workdir's newest checkpoint.

    Raises:
      InputError: data, config, mesh or workdir do not fit together.
      Diverged: a loss, a gradient or a parameter is no longer finite.
      SystemExit: with status 75, when asked to stop; a checkpoint is saved.
    """
    run = set_up(config, workdir)
    take_steps(run, config.steps)


@dataclasses.dataclass
class Run:
    """A run after setup, with its state between two steps.

    Attributes:
      step: number of steps done.
      state: {"params", "opt_state"} after these steps, sharded over the mesh.
      train_step: (state, batch) -> (state, scalars), compiled; the old state is donated.
      eval_step: (params, batch) -> (loss, weight), each summed over the batch, compiled.
      memory: bytes that `train_step` needs on a device: for arguments and results, and for temporaries.
      inputs: the batches.
      claim: checks whether another training was started in the workdir since; only on process 0.
    """

    config: ConfigDict
    workdir: epath.Path
    task: Task
    inputs: Inputs
    train_step: Callable[[Any, Any], tuple[Any, Any]]
    eval_step: Callable[[Any, Any], tuple[Any, Any]]
    memory: tuple[int, int]
    claim: Claim | None
    step: int
    state: dict[str, Any]
    saver: checkpoint.Saver
    monitor: Monitor
    clock: Stopwatch
    preemption: Preemption
    watchdog: Watchdog


def set_up(config: ConfigDict, workdir: epath.Path) -> Run:
    """Everything before the first step. All checks of the input come before anything is written.

    Raises:
      InputError: as `train`.
    """
    config_lib.check(config)
    clock = Stopwatch()

    ############################ Devices and mesh ############################
    devices = start_devices(config)
    preemption = Preemption()
    mesh = sharding.make_mesh(config.mesh, devices)
    jax.set_mesh(mesh)

    ############################ Step and data ############################
    model, task = MODELS.of(config), TASKS.of(config)
    programs = build_programs(config, mesh)
    inputs = Inputs(config, mesh, model, task)
    check_resumable(workdir, config, inputs.manifest)
    init_from = epath.Path(config.init_from) if config.init_from else None
    if init_from and not checkpoint.saved_steps(workdir):
        check_init_from(init_from, config, programs.abstract_state["params"], inputs.manifest)

    ############################ Compilation ############################
    # Compiled before the state exists, so that a lack of memory is reported before anything is allocated.
    with clock.counting("compile"):
        distributed.cache_programs(workdir)  # only now: a refused run must write nothing
        shapes = batch_shapes(task, inputs.batch_size, mesh)
        train_step = programs.train_step.lower(programs.abstract_state, shapes).compile()
        shapes = batch_shapes(task, inputs.microbatch_size, mesh)
        eval_step = programs.eval_step.lower(programs.abstract_state["params"], shapes).compile()
    compile_seconds, memory = clock.seconds["compile"], device_memory(train_step)
    check_memory(memory, jax.local_devices()[0])
    distributed.wait_for_all("the programs are compiled")

    ############################ State and workdir ############################
    claim = write_run(workdir, config, inputs.folder) if jax.process_index() == 0 else None
    step, state = restored_or_new(programs, workdir, init_from)
    saver = checkpoint.Saver(workdir, config.checkpoint)
    monitor = Monitor(workdir, config, step, clock, programs.schedule, devices)
    monitor.opening(mesh, inputs, memory, compile_seconds)
    watchdog = Watchdog(config.watchdog)
    return Run(
        config=config, workdir=workdir, task=task, inputs=inputs, train_step=train_step, eval_step=eval_step,
        memory=memory, claim=claim, step=step, state=state, saver=saver, monitor=monitor, clock=clock,
        preemption=preemption, watchdog=watchdog,
    )  # fmt: skip


def start_devices(config: ConfigDict) -> list[jax.Device]:
    """Starts JAX as the config says; see `distributed.start`."""
    if distributed.will_use_cpus(config.platform):
        keep_freed_memory()  # before JAX starts threads, each of which would get a heap of its own
    return distributed.start(config.platform, config.watchdog, config.deterministic)


def take_steps(run: Run, last_step: int) -> None:
    """The loop: takes the steps from `run.step` to `last_step`; evaluates and saves as configured.

    Raises:
      InputError, Diverged, SystemExit: as `train`.
    """
    config, clock, monitor, watchdog = run.config, run.clock, run.monitor, run.watchdog
    batches = run.inputs.train_batches(run.step + 1, last_step)
    profile = Profile(run.workdir, run.step, config.profile)
    is_stopping = run.preemption.reached()
    clock.begin("steps")
    monitor.begin()
    with watchdog:
        while run.step < last_step and not is_stopping:
            step = run.step + 1
            is_last = step == last_step
            watchdog.beat(f"step {step}")
            profile.before(step)
            with clock.counting("data"):
                batch = next(batches)  # threads read ahead, so this should take no time
            run.state, scalars = run.train_step(run.state, batch)
            run.step = step
            scalars = {name: float(value) for name, value in jax.device_get(scalars).items()}  # waits for the step
            run.saver.check()
            if not np.isfinite(list(scalars.values())).all():
                raise divergence(run, scalars)
            monitor.step(step, scalars, is_last)

            is_stopping = run.preemption.reached()
            if step % config.eval.every == 0 or is_last:
                with clock.counting("evaluation"):
                    try:
                        scores = evaluate(run)
                    except Diverged as error:
                        raise divergence(run, scalars | {"held-out loss": np.nan}) from error
                    monitor.scores(step, scores)
            if step % config.checkpoint.every == 0 or is_last or is_stopping:
                save(run)

        watchdog.beat("the last checkpoint")
        with clock.counting("checkpoint"):
            run.saver.close()
    profile.stop()
    run.preemption.release()
    if run.step < last_step:
        monitor.close(f"stopped on request after step {run.step}: the same command goes on from there")
        raise SystemExit(EXIT_AGAIN)
    monitor.close(f"{run.step} steps done: {run.workdir}")


def restored_or_new(
    programs: Programs, workdir: epath.Path, init_from: epath.Path | None
) -> tuple[int, dict[str, Any]]:
    """The number of steps done, and the state after them.

    The state comes from the newest checkpoint. If there is none, it has the weights of the run `init_from`, or new
    ones, and a fresh optimiser.
    """
    step, state = checkpoint.restore_newest(workdir, programs.abstract_state)
    if state is not None:
        return step, state
    if init_from:
        newest = checkpoint.pick_step(init_from, None)
        params = checkpoint.restore_model(init_from, newest, programs.abstract_state["params"])
        return 0, programs.state_from(params)
    return 0, programs.new_state()


def evaluate(run: Run) -> dict[str, float]:
    """The task's scores on the held-out data, by name.

    Raises:
      Diverged: the loss is not finite.
    """
    sums = np.zeros(2)  # of losses and of weights
    run.watchdog.beat("an evaluation")
    for batch in run.inputs.eval_batches():
        sums += np.array(jax.device_get(run.eval_step(run.state["params"], batch)), np.float64)
        run.watchdog.beat("an evaluation")
    loss, weight = sums
    return run.task.scores(loss / weight, run.inputs.heldout.manifest)


def save(run: Run) -> None:
    """Starts a checkpoint, which is written in the background during the next steps.

    Raises:
      InputError: it cannot be written, or another training was started in the workdir.
    """
    before = run.clock.seconds["checkpoint"]
    with run.clock.counting("checkpoint"):
        run.watchdog.beat(f"the checkpoint of step {run.step}")
        if run.claim:
            run.claim.check()
        run.monitor.flush()
        run.saver.save(run.step, run.state)
    run.monitor.saved(run.step, run.clock.seconds["checkpoint"] - before)


def divergence(run: Run, scalars: dict[str, float]) -> Diverged:
    """The error that ends a run, with the numbers of its last step, some of which are not finite."""
    run.saver.close()  # the checkpoint of an earlier step may still be being written
    run.monitor.flush()  # keeps the metrics up to here for diagnosis; a resume would drop them
    saved = checkpoint.saved_steps(run.workdir)
    kept = f"the last good checkpoint is of step {saved[-1]}" if saved else "there is no checkpoint"
    values = ", ".join(f"{name} {value:g}" for name, value in scalars.items())
    chunks = " ".join(map(str, run.inputs.chunk_numbers(run.step)))
    message = f"step {run.step}: {values}. Nothing was saved since; {kept}. The chunks of this step: {chunks}"
    return Diverged(message if jax.process_index() == 0 else "")  # raised on all processes, printed by one
