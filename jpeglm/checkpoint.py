"""The workdir of a run: its config, its tokenizer and its checkpoints.

    WORKDIR/config.json       the whole config, as the run was started or last resumed
    WORKDIR/tokenizer.json, WORKDIR/manifest.json   of the data
    WORKDIR/checkpoints/STEP  Orbax: {"params": ..., "opt_state": ...} after STEP steps
    WORKDIR/metrics.jsonl, WORKDIR/tensorboard/

Sampling, scoring and export need nothing else.
"""

import json
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jpeglm import config as config_lib
from jpeglm import sharding
from jpeglm.errors import InputError
from jpeglm.model import llama

# What a resumed run may change: none of it alters what is learnt, but for rounding and the end of the schedule.
FREE_KEYS = (
    "steps",
    "platform",
    "data.path",
    "mesh.",
    "eval.",
    "checkpoint.",
    "log.",
    "optim.accumulate",
    "model.remat",
)


def _folder(workdir: epath.Path) -> epath.Path:
    """The checkpoints of a run; absolute, as Orbax wants it, without taking gs://... for a local name."""
    folder = workdir / "checkpoints"
    return folder if "://" in str(folder) else folder.absolute()


def make_manager(workdir: epath.Path, config: ConfigDict) -> ocp.CheckpointManager:
    """Saves asynchronously and atomically; keeps the newest `keep` and every step divisible by `keep_every`."""
    options = ocp.CheckpointManagerOptions(
        max_to_keep=config.keep, keep_period=config.keep_every or None, cleanup_tmp_directories=True
    )
    return ocp.CheckpointManager(_folder(workdir), options=options)


def save(manager: ocp.CheckpointManager, step: int, state: Any) -> None:
    """Starts to write the state after `step` steps; returns once the arrays are copied off the devices."""
    manager.save(step, args=ocp.args.StandardSave(state))


def restore(manager: ocp.CheckpointManager, step: int, abstract_state: Any) -> Any:
    """The state after `step` steps, laid out as `abstract_state`'s shardings say: each process reads only its own."""
    return manager.restore(step, args=ocp.args.StandardRestore(abstract_state))


def restore_model(workdir: epath.Path, step: int, config: ConfigDict, mesh: Mesh) -> Any:
    """Only the parameters of a run, laid out on `mesh`, as a pure dict; the optimiser's moments are not read."""
    _, model = llama.abstract(llama.LlamaConfig.of(config))
    item = {"params": abstract(nnx.to_pure_dict(model), sharding.parameter_shardings(model, mesh))}
    args = ocp.args.PyTreeRestore(
        item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
    )
    path = _folder(workdir) / str(step) / "default"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(path, args=args)["params"]


def pick_step(workdir: epath.Path, step: int | None) -> int:
    """`step` if it was saved, or the last one that was."""
    folder = _folder(workdir)
    steps = sorted(ocp.utils.checkpoint_steps(folder)) if folder.exists() else []
    if not steps:
        raise InputError(f"{workdir}: no checkpoint has been saved here")
    if step is not None and step not in steps:
        raise InputError(f"{workdir}: no checkpoint of step {step}; there are {', '.join(map(str, steps))}")
    return steps[-1] if step is None else step


def write_run(workdir: epath.Path, config: ConfigDict, data_dir: epath.Path) -> None:
    """Writes what a workdir holds beside checkpoints and metrics; the config last: it marks the folder as a run."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        for name in ("tokenizer.json", "manifest.json"):
            _write_whole(workdir / name, (data_dir / name).read_text())
        _write_whole(workdir / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")
    except OSError as error:
        raise InputError(f"cannot write {workdir}: {error}") from error


def _write_whole(path: epath.Path, text: str) -> None:
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(text)
    beside.replace(path)


def read_config(workdir: epath.Path) -> ConfigDict:
    """The config of the run in `workdir`, locked. Raises InputError where there is none."""
    path = workdir / "config.json"
    if not path.exists():
        raise InputError(f"{workdir}: no run here (config.json is missing)")
    try:
        config = config_lib.base()
        config.update(json.loads(path.read_text()))
        return config
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the config of a run: {error}") from error


def check_resumable(workdir: epath.Path, config: ConfigDict, manifest: dict[str, Any]) -> None:
    """A workdir goes on only with the model, data, optimiser and seed that it was started with."""
    before, now = _flat(read_config(workdir).to_dict()), _flat(config.to_dict())
    changed = [key for key in now if not key.startswith(FREE_KEYS) and before.get(key) != now[key]]
    if changed:
        differences = ", ".join(f"{key} ({before.get(key)!r} there, {now[key]!r} asked)" for key in changed[:3])
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise InputError(f"{workdir} holds a run of another config: {differences}{more}; take a new --workdir")
    # The folder may have moved, its content may not have changed: each shard's checksum is compared.
    if json.loads((workdir / "manifest.json").read_text())["splits"] != manifest["splits"]:
        raise InputError(f"{workdir} holds a run on other data than {config.data.path}; take a new --workdir")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    items: dict[str, Any] = {}
    for key, value in tree.items():
        items |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return items


def abstract(shapes: Any, shardings: Any) -> Any:
    """Shapes and dtypes with their layout, as restoring wants them."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
