"""A rehearsal of a run: everything once, by the same code, in a folder that is removed again.

Devices are found, shards opened and their checksums compared, the step compiled, the state made, one step trained,
one batch of held-out chunks evaluated, one checkpoint written, and read again in a second start.
"""

import contextlib
import copy
import shutil
from collections.abc import Callable

import jax
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from tabulate import tabulate

from jpeglm import checkpoint, metrics, runtime
from jpeglm.data import shards
from jpeglm.errors import InputError
from jpeglm.metrics import human_bytes


def rehearse(train: Callable[..., tuple[int, int]], config: ConfigDict, workdir: epath.Path) -> None:
    """Tries what `train(config, workdir)` will do; prints what it will take of memory and disk, and "go".

    Raises:
      InputError: the run cannot go, and why.
    """
    runtime.start(config.platform, config.watchdog, config.deterministic)
    is_lead = jax.process_index() == 0
    folder, was_there = workdir / "dry_run", workdir.exists()
    short = copy.deepcopy(config)
    short.eval.batches, short.profile = 1, 0
    try:
        if is_lead:
            folder.rmtree(missing_ok=True)  # of a rehearsal that was killed
        _wait("the folder is empty")
        memory = train(short, folder, last_step=1)
        train(short, folder, last_step=1)  # finds the checkpoint, and compares each array's fingerprint
        if checkpoint.saved_steps(folder) != [1]:
            raise InputError(f"dry run: no. {folder}: the checkpoint of step 1 could not be read again")
        checkpoint.check_resumable(workdir, config, shards.read_manifest(config.data.path))
        each = _size(folder / "checkpoints" / "1")
        _wait("all have seen the checkpoint")
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(f"dry run: no. Out of memory: {str(error).splitlines()[0]}") from error
    finally:
        if is_lead:
            with contextlib.suppress(OSError):  # the reason why it came to an end is worth more
                (folder if was_there else workdir).rmtree(missing_ok=True)
    _wait("the folder is gone")
    free = _free(workdir)
    kept = config.checkpoint.keep + 1  # the newest ones, and one that is being written
    if config.checkpoint.keep_every:
        kept += config.steps // config.checkpoint.keep_every
    disk = max(0, kept * each - _size(workdir / "checkpoints"))
    rows = [
        ("memory a device", f"{human_bytes(sum(memory))} of {_known(metrics.memory_limit(jax.local_devices()[0]))}"),
        ("a checkpoint", human_bytes(each)),
        ("disk of the run", f"{human_bytes(disk)} more for up to {kept} checkpoints; {_known(free)} are free"),
    ]
    if is_lead:
        logging.info(
            "dry run: one step trained, one checkpoint written and read\n%s", tabulate(rows, tablefmt="plain")
        )
    if free is not None and disk > free:
        raise InputError(
            f"dry run: no. {workdir} will need {human_bytes(disk)} more, {human_bytes(free)} are free: fewer "
            "checkpoints (checkpoint.keep, checkpoint.keep_every) or another disk"
        )
    if is_lead:
        logging.info("dry run: go")


def _wait(what: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def _known(number: float | None) -> str:
    return "an unknown amount" if number is None else human_bytes(number)


def _size(folder: epath.Path) -> int:
    """Bytes of all files below a folder; 0 where there is none."""
    if not folder.exists():
        return 0
    return sum(_size(path) if path.is_dir() else path.stat().length for path in folder.iterdir())


def _free(workdir: epath.Path) -> int | None:
    """Bytes free where the workdir lies or will lie; None of a store that does not say, as gs://."""
    if "://" in str(workdir):
        return None
    folder = workdir.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
