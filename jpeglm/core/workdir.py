"""The workdir of a run: its config, tokenizer, metrics and owner.

    WORKDIR/config.json       the whole config, as of the last start or resume
    WORKDIR/tokenizer.json, WORKDIR/manifest.json   of the data
    WORKDIR/started.json      host, process and time of the last start, which owns the folder
    WORKDIR/checkpoints/STEP  see jpeglm/core/checkpoint.py
    WORKDIR/metrics.jsonl, WORKDIR/tensorboard/
    WORKDIR/programs/         compiled programs, for restarts; WORKDIR/profile/ traces

Sampling, scoring and export need nothing else.
"""

import copy
import datetime
import json
import os
import socket
import uuid
from typing import Any

from absl import logging
from etils import epath
from ml_collections import ConfigDict

from jpeglm.core import config as config_lib
from jpeglm.core import files, ranges, retries
from jpeglm.core.checkpoint import has_parameters_alone, pick_step, saved_shapes, saved_steps, shapes
from jpeglm.core.errors import InputError, writing
from jpeglm.core.registry import TOKENIZERS


class Claim:
    """Marks this process as the owner of a workdir; the process that started last owns it.

    So a crashed owner does not lock out its successor, and an owner that only seemed dead stops at its next
    checkpoint.
    """

    def __init__(self, workdir: epath.Path):
        self._path = workdir / "started.json"
        time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._mine = {"host": socket.gethostname(), "process": os.getpid(), "time": time, "id": uuid.uuid4().hex}
        files.write_whole(self._path, (json.dumps(self._mine) + "\n").encode())

    def check(self) -> None:
        """Raises InputError if another training was started here since, or if started.json is missing or damaged."""
        text = retries.read_text(self._path) or ""
        try:
            owner = json.loads(text)
            if not isinstance(owner, dict) or owner.keys() != self._mine.keys():
                raise ValueError("not what a training writes")
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self._path} is gone or damaged: another may own this run; this one stops") from error
        if owner != self._mine:
            raise InputError(
                f"{self._path.parent}: another training was started here ({owner['time']}, host {owner['host']}, "
                f"process {owner['process']}); this one stops"
            )


def write_run(workdir: epath.Path, config: ConfigDict, data_dir: epath.Path) -> Claim:
    """Writes the workdir without checkpoints and metrics. The config comes last: it marks the folder as a run.

    A run that has checkpoints keeps the `init_from` that it started with, whatever `config` says.
    """
    stored = copy.deepcopy(config)
    if saved_steps(workdir):
        stored.init_from = read_config(workdir).init_from
    with writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        claim = Claim(workdir)
        files.remove_unfinished(workdir)
        for name in ("tokenizer.json", "manifest.json"):
            files.write_whole(workdir / name, retries.read((data_dir / name).read_bytes, data_dir / name))
        files.write_whole(workdir / "config.json", config_lib.to_json(stored).encode())
    return claim


def read_config(workdir: epath.Path) -> ConfigDict:
    """The config of the run in `workdir`, locked. Raises InputError if it is missing or damaged."""
    files.check_store(workdir)
    path = workdir / "config.json"
    text = retries.read_text(path)
    if text is None:
        raise InputError(f"{workdir}: no run here (config.json is missing)")
    return config_lib.parse(path, text)


def read_manifest(workdir: epath.Path) -> dict[str, Any]:
    """The manifest of the data that a run trains on. Raises InputError if there is none (an imported model)."""
    path = workdir / "manifest.json"
    text = retries.read_text(path)
    if text is None:
        raise InputError(f"{workdir}: nothing says what this was trained on (manifest.json is missing)")
    try:
        manifest = json.loads(text)
        manifest["splits"]["heldout"]  # noqa: B018  fails if it is missing
        return manifest
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise InputError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def check_resumable(workdir: epath.Path, config: ConfigDict, manifest: dict[str, Any]) -> None:
    """Checks that model, data, optimiser and seed are those of the run in the workdir, if there is one.

    `init_from` is read until the run has a checkpoint. Until then it may change; afterwards it may be left out.

    Raises:
      InputError: names what differs; or there are only weights (an imported model, a slim copy); or `workdir` is a
        file.
    """
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"{workdir} is a file; a run needs a folder")
    steps = saved_steps(workdir)
    if steps and has_parameters_alone(workdir, steps[-1]):
        raise InputError(
            f"{workdir} holds weights without an optimiser's state: start a new run from them, with "
            f"--config.init_from={workdir} and another --workdir"
        )
    if not steps and retries.read_text(workdir / "config.json") is None:
        return
    before, now = ranges.flat(read_config(workdir).to_dict()), ranges.flat(config.to_dict())
    free = config_lib.free(config)
    if not (steps and config.init_from):
        free = (*free, "init_from")
    changed = [key for key in now if not key.startswith(free) and before.get(key) != now[key]]
    # other keys depend on these
    changed.sort(key=lambda key: key not in ("tokenizer.name", "model.name", "task.name"))
    if changed:
        differences = ", ".join(f"{key} ({before.get(key)!r} there, {now[key]!r} asked)" for key in changed[:3])
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise InputError(f"{workdir} holds a run of another config: {differences}{more}; take a new --workdir")
    # The data folder may have moved, but its content must be the same: the checksum of each shard is compared.
    if read_manifest(workdir)["splits"] != manifest["splits"]:
        raise InputError(f"{workdir} holds a run on other data than {config.data.path}; take a new --workdir")


def check_init_from(source: epath.Path, config: ConfigDict, params: Any, manifest: dict[str, Any]) -> None:
    """Checks that a run can start from the weights of `source`: the same shapes and the same tokenizer.

    Args:
      params: the parameters of the new run, or their shapes.
      manifest: of its data.
    """
    theirs = read_config(source)
    if TOKENIZERS.kind_of(theirs).load(source / "tokenizer.json").sha256 != manifest["tokenizer_sha256"]:
        raise InputError(
            f"init_from: {source} has another tokenizer than {config.data.path}; prepare the data with "
            f"--tokenizer={source / 'tokenizer.json'}"
        )
    step = pick_step(source, None)
    try:
        found = saved_shapes(source, step)
    except InputError as error:
        raise InputError(f"init_from: {error}") from error
    wanted = shapes(params)
    for name in sorted(found | wanted):
        if found.get(name) != wanted.get(name):
            raise InputError(f"init_from: {name} is {found.get(name)} in {source}, {wanted.get(name)} in this model")
    # settings that shapes do not show, such as rope_theta
    for key, value in ranges.flat(config.model.to_dict()).items():
        if theirs.model.get(key) != value:
            logging.warning("init_from: model.%s is %s in %s, %s here", key, theirs.model.get(key), source, value)


def read_metrics(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """The rows of a workdir's `metrics.jsonl`, oldest first; empty if there is no such file."""
    path = epath.Path(workdir) / "metrics.jsonl"
    text = retries.read_text(path) or ""
    try:
        rows = [json.loads(line) for line in text.splitlines()]
        if not all(isinstance(row, dict) and isinstance(row.get("step"), int) for row in rows):
            raise ValueError("a row without a step")
        return rows
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}): mend it or move it away") from error
