"""The checkpoints of a run, written with Orbax.

WORKDIR/checkpoints/STEP holds {"params", "opt_state", "fingerprints"} after STEP steps. An imported model has a
checkpoint of step 0 with only parameters; a slim copy of a run has only parameters, at that run's step. A damaged
checkpoint is set aside as STEP.damaged.
"""

import gc
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from jpeglm.core import distributed, retries
from jpeglm.core.errors import InputError, writing

RESTORE_GB = 4  # host memory for data on its way to the devices, or two of the largest arrays; Orbax's default is 96


def _folder(workdir: epath.Path) -> epath.Path:
    """The checkpoints of a run. Orbax needs an absolute path; gs://... must not be taken for a local name."""
    folder = workdir / "checkpoints"
    return folder if "://" in str(folder) else folder.absolute()


def saved_steps(workdir: epath.Path) -> list[int]:
    """The steps with a complete checkpoint, in order.

    Raises:
      InputError: the folder cannot be listed; that is not the same as an empty one.
    """
    folder = _folder(workdir)

    def steps() -> list[int]:
        try:
            list(folder.iterdir())  # Orbax treats a folder that cannot be listed as empty
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(ocp.utils.checkpoint_steps(folder))

    return retries.read(steps, folder)


# Saving


class _Manager(ocp.CheckpointManager):
    failure: BaseException | None = None  # of a save in the background

    def reached_preemption(self, step: int) -> bool:
        """Always False: Orbax's own calls, from another thread and with other steps, would disturb `Preemption`."""
        return False

    def _wait_for_checkpointers(self) -> None:
        """Records a failure in the thread that finishes a save; Orbax would report it only at the next save.

        In a job of several processes that thread then waits for the others, which wait for this one.
        """
        try:
            super()._wait_for_checkpointers()
        except BaseException as error:
            self.failure = error
            raise


class Saver:
    """Writes checkpoints in the background; each appears complete or not at all.

    Keeps the newest `keep`, and every step divisible by `keep_every`. Every process makes one and makes the same
    calls.
    """

    def __init__(self, workdir: epath.Path, config: ConfigDict):
        """`config`: the section checkpoint."""
        self._folder = _folder(workdir)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=config.keep, keep_period=config.keep_every or None, cleanup_tmp_directories=True
        )
        with writing(self._folder):
            self._manager = _Manager(self._folder, options=options)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Starts writing the state after `step` steps; returns once the arrays are copied off the devices.

        Raises:
          InputError: this save or the previous one cannot be written.
        """
        prints = {name: jax.device_get(fingerprints(tree)) for name, tree in state.items()}
        with writing(self._folder):
            self._manager.save(step, args=ocp.args.StandardSave(state | {"fingerprints": prints}))

    def check(self) -> None:
        """Raises a failure of the background save, as InputError if the system refused to write. Does not wait."""
        with writing(self._folder):
            if self._manager.failure:
                raise self._manager.failure
            if not self._manager.is_saving_in_progress():
                self._manager.wait_until_finished()  # raises a failure that came after the arrays were written

    def close(self) -> None:
        """Waits for the last save."""
        with writing(self._folder):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            self._manager.close()


@jax.jit
def fingerprints(tree: Any) -> jax.Array:
    """A hash of the bits of each array, uint32 [leaves], independent of the layout over devices.

    Neither Orbax nor TensorStore detects a changed bit in an array's values. Any change within a single element
    changes this hash; any other change does with probability 1 - 2^-32.
    """

    def fingerprint(x: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
        place = jnp.zeros(x.shape, jnp.uint32)
        for axis, size in enumerate(x.shape):
            place = place * size + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        bits ^= place * np.uint32(0x9E3779B9)  # so that swapped elements change the hash
        bits = (bits ^ (bits >> 16)) * np.uint32(0x85EBCA6B)  # MurmurHash3's finalizer, a bijection
        bits = (bits ^ (bits >> 13)) * np.uint32(0xC2B2AE35)
        return jnp.sum(bits ^ (bits >> 16), dtype=jnp.uint32)  # integers: the sum does not depend on the order

    return jnp.stack([fingerprint(x) for x in jax.tree.leaves(tree)])


# Restoring


def restore_newest(workdir: epath.Path, abstract_state: dict[str, Any]) -> tuple[int, Any]:
    """Restores the newest checkpoint that is not damaged, with the shardings of `abstract_state`.

    Each process reads only its own part, and all agree on the step. Newer checkpoints that are damaged are set aside
    as STEP.damaged, with a warning, so that the run can save these steps again.

    Returns:
      (step, state), or (0, None) if nothing has been saved.

    Raises:
      InputError: there are checkpoints but none can be restored, or one that may be good cannot be read.
    """
    damaged: dict[int, str] = {}
    for step in reversed(_agreed_steps(workdir)):
        state, why = _restore(workdir, step, abstract_state)
        if why is None:
            _set_aside(workdir, damaged, step)
            return step, state
        damaged[step] = why
    if damaged:
        whys = "; ".join(f"step {step}: {why}" for step, why in damaged.items())
        raise InputError(f"{_folder(workdir)}: no checkpoint can be restored ({whys}); all are left as they are")
    return 0, None


def restore_model(workdir: epath.Path, step: int, abstract_params: Any) -> Any:
    """Restores only the parameters of a run, as a pure dict; the optimiser's moments are not read.

    Args:
      abstract_params: their shapes, dtypes and layouts, as from `networks.laid_out`.

    Raises:
      InputError: the checkpoint is damaged, or cannot be read.
    """
    restored, why = _restore(workdir, step, {"params": abstract_params})
    if why:
        others = ", ".join(str(other) for other in saved_steps(workdir) if other != step) or "none"
        raise InputError(f"{workdir}: step {step} cannot be restored: {why} (other steps: {others})")
    return restored["params"]


def weights_hash(workdir: epath.Path, step: int) -> str:
    """SHA-256 over the fingerprints of a checkpoint's parameters, in hexadecimal: the identity of the weights.

    Equal weights give the same hash wherever they were saved: in a copy, in a slim run, or in another run that reached
    the same bits. Only the fingerprints are read, except for old imports, which have none.

    Raises:
      InputError: the checkpoint is damaged, or cannot be read.
    """

    def array(*path: str) -> np.ndarray:
        as_numpy: Any = ocp.RestoreArgs(restore_type=np.ndarray)
        for key in reversed(path):
            as_numpy = {key: as_numpy}
        args = ocp.args.PyTreeRestore(as_numpy, restore_args=as_numpy, partial_restore=True)
        [found] = jax.tree.leaves(ocp.PyTreeCheckpointHandler().restore(_stored(workdir, step), args=args))
        return found

    def read() -> Any:
        saved = _saved(workdir, step)
        if "fingerprints" in saved:
            return array("fingerprints", "params")
        prints = []
        for path, _ in jax.tree_util.tree_leaves_with_path(saved["params"]):  # one array at a time in memory
            prints.append(jax.device_get(fingerprints(array("params", *(key.key for key in path))))[0])
            gc.collect()  # Orbax leaves reference cycles behind, which would keep the array in memory
        return prints

    try:
        prints = retries.read(read, _name(workdir, step))
    except retries.Damaged as error:
        raise InputError(f"{workdir}: step {step} cannot be read: {error.why}") from error
    return hashlib.sha256(np.asarray(prints, "<u4").tobytes()).hexdigest()


def _saved(workdir: epath.Path, step: int) -> dict[str, Any]:
    """The content of a checkpoint, as a tree of the arrays' metadata (shape, dtype)."""
    return ocp.PyTreeCheckpointHandler().metadata(_stored(workdir, step)).tree


def _stored(workdir: epath.Path, step: int) -> epath.Path:
    """Where Orbax keeps the arrays of a checkpoint."""
    return _folder(workdir) / str(step) / "default"


def _name(workdir: epath.Path, step: int) -> str:
    return f"step {step} of {_folder(workdir)}"


def _restore(workdir: epath.Path, step: int, abstract_state: dict[str, Any]) -> tuple[Any, str | None]:
    """(parts of a checkpoint, None), or (None, what is damaged). All processes agree on the result or the error.

    Raises:
      InputError: a process cannot read its part for another reason; the stored data may be intact.
    """
    state, damage, failure = None, None, None
    try:
        state = retries.read(lambda: _read(workdir, step, abstract_state), _name(workdir, step))
    except retries.Damaged as error:
        damage = error.why
    except InputError as error:
        failure = error
    distributed.wait_for_all(f"step {step} is read")  # one of them may have retried for a while
    if said := _any_process_says(str(failure) if failure else None):
        raise failure or InputError(said)
    if damage := _any_process_says(damage):
        return None, damage
    assert state is not None  # no process has reported a problem
    damage = _altered(state)
    return (None, damage) if damage else (state, None)


def _read(workdir: epath.Path, step: int, abstract_state: dict[str, Any]) -> dict[str, Any]:
    """Parts of a checkpoint, with their fingerprints if it has any. Does not wait for other processes."""
    item = dict(abstract_state)
    if "fingerprints" in _saved(workdir, step):  # imported weights may have none
        everywhere = NamedSharding(jax.tree.leaves(abstract_state)[0].sharding.mesh, PartitionSpec())
        item["fingerprints"] = {
            name: jax.ShapeDtypeStruct((len(jax.tree.leaves(tree)),), jnp.uint32, sharding=everywhere)
            for name, tree in abstract_state.items()
        }
    restore_args = ocp.checkpoint_utils.construct_restore_args(item)
    args = ocp.args.PyTreeRestore(item, restore_args=restore_args, partial_restore=True)
    # The handler is used directly: a Checkpointer would wait for a process that failed.
    # Orbax refuses an array larger than this limit, and counts whole stored chunks of it.
    largest = max(x.size * x.dtype.itemsize for x in jax.tree.leaves(item))
    handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=max(RESTORE_GB, 1 + 2 * largest // 10**9))
    return handler.restore(_stored(workdir, step), args=args)


def _altered(restored: dict[str, Any]) -> str | None:
    """Removes the fingerprints from the restored state and compares them; describes any difference."""
    for name, expected in restored.pop("fingerprints", {}).items():
        differs = np.flatnonzero(jax.device_get(fingerprints(restored[name])) != jax.device_get(expected))
        if len(differs):
            first = list(shapes({name: restored[name]}))[differs[0]]
            return f"{len(differs)} arrays are not as they were saved, the first is {first}"
    return None


def _set_aside(workdir: epath.Path, damaged: dict[int, str], used: int) -> None:
    """Process 0 renames damaged checkpoints; the others wait."""
    folder = _folder(workdir)
    for step, why in damaged.items() if jax.process_index() == 0 else ():
        name = f"{step}.damaged"
        while (folder / name).exists():  # from an earlier run
            name += "+"
        logging.warning("step %d of %s is damaged (%s): kept as %s, step %d is used", step, folder, why, name, used)
        with writing(folder):
            (folder / str(step)).rename(folder / name)
    if damaged and jax.process_count() > 1:
        multihost_utils.sync_global_devices("damaged checkpoints are set aside")


def _agreed_steps(workdir: epath.Path) -> list[int]:
    """The saved steps as process 0 sees them: on a shared disk the others may see another list."""
    steps = np.array(saved_steps(workdir), np.int32)
    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))
    return multihost_utils.broadcast_one_to_all(np.resize(steps, count)).tolist() if count else []


def _any_process_says(why: str | None) -> str | None:
    """The first process's `why` that is not None, on every process."""
    texts = [text.decode() for text in distributed.from_each((why or "").encode()) if text]
    return texts[0] if texts else None


def pick_step(workdir: epath.Path, step: int | None) -> int:
    """`step` if it was saved, or the last saved step for None."""
    steps = saved_steps(workdir)
    if not steps:
        raise InputError(f"{workdir}: no checkpoint has been saved here")
    if step is not None and step not in steps:
        raise InputError(f"{workdir}: no checkpoint of step {step}; there are {', '.join(map(str, steps))}")
    return steps[-1] if step is None else step


def has_parameters_alone(workdir: epath.Path, step: int) -> bool:
    """Whether a checkpoint has no optimiser state; False for a damaged one, which restoring will report."""
    try:
        return "opt_state" not in retries.read(lambda: _saved(workdir, step), _name(workdir, step))
    except retries.Damaged:
        return False


def saved_shapes(workdir: epath.Path, step: int) -> dict[str, list[int]]:
    """The shapes of a checkpoint's parameters, as from `shapes`; raises InputError if they cannot be read."""
    return shapes(retries.read(lambda: _saved(workdir, step)["params"], _name(workdir, step)))


def shapes(tree: Any) -> dict[str, list[int]]:
    """The shape of each array by name (such as layers.wq), in the order of `jax.tree.leaves`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): list(x.shape) for path, x in leaves}
