"""A rehearsal of a run: everything once, with the same code, in a temporary folder.

It finds the devices, opens the shards and verifies their checksums, compiles the step, makes the state, trains one
step, evaluates one batch of held-out chunks, writes one checkpoint, and restores it in a second start. A run that is
active in the same workdir is not touched.
"""

import contextlib
import copy
import fcntl
import re
import secrets
import shutil
from collections.abc import Callable, Iterator

import jax
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from tabulate import tabulate

from jpeglm.core import checkpoint, distributed, files
from jpeglm.core.errors import InputError
from jpeglm.core.human import human_bytes
from jpeglm.core.workdir import check_resumable
from jpeglm.data import records
from jpeglm.train.loop import set_up, start_devices, take_steps
from jpeglm.train.memory import memory_limit

Trainer = Callable[[ConfigDict, epath.Path], tuple[int, int]]


def train_one_step(config: ConfigDict, workdir: epath.Path) -> tuple[int, int]:
    """Trains up to step 1 as `loop.train` would; returns `Run.memory`."""
    run = set_up(config, workdir)
    take_steps(run, last_step=1)
    return run.memory


def rehearse(config: ConfigDict, workdir: epath.Path, train: Trainer = train_one_step) -> None:
    """Tries what a training run will do; prints the memory and disk space it will need, and "go".

    Args:
      train: the part of the run to try, called twice in one folder.

    Raises:
      InputError: the reason why the run cannot start.
    """
    start_devices(config)
    try:
        with _own_folder(workdir) as folder:
            memory, each = _try(train, config, workdir, folder)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(f"dry run: no. Out of memory: {str(error).splitlines()[0]}") from error
    _wait("the folder is gone")
    free = _free(workdir)
    kept = config.checkpoint.keep + 1  # the newest ones, and the one being written
    if config.checkpoint.keep_every:
        kept += config.steps // config.checkpoint.keep_every
    disk = max(0, kept * each - _size(workdir / "checkpoints"))
    rows = [
        ("memory a device", f"{human_bytes(sum(memory))} of {_known(memory_limit(jax.local_devices()[0]))}"),
        ("a checkpoint", human_bytes(each)),
        ("disk of the run", f"{human_bytes(disk)} more for up to {kept} checkpoints; {_known(free)} are free"),
    ]
    is_lead = jax.process_index() == 0
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


def _try(train: Trainer, config: ConfigDict, workdir: epath.Path, folder: epath.Path) -> tuple[tuple[int, int], int]:
    """Trains one step in `folder`, then starts there again; returns `train`'s result and the checkpoint's bytes."""
    short = copy.deepcopy(config)
    short.eval.batches, short.profile = 1, 0
    memory = train(short, folder)
    short.data.verify = False  # the checksums were verified in the first start
    train(short, folder)  # restores the checkpoint and compares each array's fingerprint
    if checkpoint.saved_steps(folder) != [1]:
        raise InputError(f"dry run: no. {folder}: the checkpoint of step 1 could not be read again")
    check_resumable(workdir, config, records.read_manifest(config.data.path))
    each = _size(folder / "checkpoints" / "1")
    _wait("all have seen the checkpoint")
    return memory, each


@contextlib.contextmanager
def _own_folder(workdir: epath.Path) -> Iterator[epath.Path]:
    """A temporary folder in `workdir`, or in the nearest existing folder above it; removed at the end.

    Nothing else is created or removed. The folder is locked while it is in use, so that folders left by killed dry
    runs can be recognised; these are removed first. A store (gs://) has no locks, so such folders stay there.

    Raises:
      InputError: the folder cannot be created.
    """
    is_local = "://" not in str(workdir)
    place = _nearest(workdir) if is_local else workdir
    mine = str(place / f".dry_run-{secrets.token_hex(4)}") if jax.process_index() == 0 else ""
    name, *_ = distributed.from_each(mine.encode())
    folder = epath.Path(name.decode())
    if jax.process_index():  # process 0 creates and removes it
        _wait("the folder is there")
        yield folder
        return
    with files.owned(folder) if is_local else contextlib.nullcontext():
        try:
            for left in (workdir, *workdir.absolute().parents) if is_local else ():
                _remove_left(left)
            _wait("the folder is there")
            yield folder
        finally:
            with contextlib.suppress(OSError):  # an error of the rehearsal itself matters more
                _remove(folder)


def _nearest(workdir: epath.Path) -> epath.Path:
    """The folder itself or, where it does not exist, the first one above it that does."""
    return next(path for path in (workdir.absolute(), *workdir.absolute().parents) if path.exists())


def _remove_left(place: epath.Path) -> None:
    """Removes the folders of killed dry runs: those with such a name and a lock file that no process holds."""
    with contextlib.suppress(OSError):
        for folder in filter(lambda path: _NAME.fullmatch(path.name), place.iterdir()):
            with contextlib.suppress(OSError), open(folder / ".lock", "rb+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while a dry run is active there
                _remove(folder)


def _remove(folder: epath.Path) -> None:
    """Removes a folder, its lock last: if a background write prevents that, the next dry run removes the rest."""
    for path in folder.iterdir():
        if path.name != ".lock":
            path.rmtree()
    folder.rmtree()


_NAME = re.compile(r"\.dry_run-[0-9a-f]{8}")


def _wait(what: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def _known(number: float | None) -> str:
    return "an unknown amount" if number is None else human_bytes(number)


def _size(folder: epath.Path) -> int:
    """Bytes of all files below a folder; 0 if it does not exist. Files of an active run may disappear meanwhile."""
    if not folder.exists():
        return 0
    total = 0
    with contextlib.suppress(FileNotFoundError):
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                total += _size(path) if path.is_dir() else path.stat().length
    return total


def _free(workdir: epath.Path) -> int | None:
    """Free bytes on the file system of the workdir; None for a store that does not report it, such as gs://."""
    if "://" in str(workdir):
        return None
    return shutil.disk_usage(_nearest(workdir)).free
