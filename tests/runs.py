"""Tiny trainings, and what they left behind, read back to be compared."""

import socket
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from jpeglm.core.workdir import read_metrics
from tests.commands import UNOPTIMISED, start

OF_TIME = ("tokens_per_second", "seconds/", "goodput")  # how the metrics of wall-clock time begin


def train_flags(data: Path, workdir: Path, **changes: object) -> list[str]:
    """The flags of `jpeglm.train` for a tiny run."""
    flags = [f"--config.{key}={value}" for key, value in ({"data.path": data} | changes).items()]
    return ["--config=tests/tiny_config.py", f"--workdir={workdir}", *flags]


def start_several(
    data: Path, workdir: Path, processes: int = 2, devices: int = 1, flags: Sequence[str] = (), **changes: object
) -> list[subprocess.Popen]:
    """Starts `jpeglm.train` as several processes of one run, with so many devices each."""
    return start_job(
        "jpeglm.train", *flags, *train_flags(data, workdir, **changes), processes=processes, devices=devices
    )


def start_job(
    module: str, *arguments: str, processes: int = 2, devices: int = 1, lead_prefix: Sequence[str] = ()
) -> list[subprocess.Popen]:
    """Starts `python -m module` as the processes of one job, with so many devices each, the first after a prefix."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        start(
            module,
            *arguments,
            prefix=() if number else lead_prefix,
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES=str(processes),
            JAX_PROCESS_ID=str(number),
            XLA_FLAGS=f"{UNOPTIMISED} --xla_force_host_platform_device_count={devices}",
        )
        for number in range(processes)
    ]


def state(workdir: Path, step: int, parts: Sequence[str] = ("params", "opt_state")) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, parameters and optimiser, by its path and in the order of `jax.tree.leaves`."""
    path = workdir / "checkpoints" / str(step) / "default"
    with ocp.PyTreeCheckpointer() as checkpointer:
        saved = checkpointer.metadata(path).item_metadata.tree
        to_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
        tree = checkpointer.restore(path, restore_args=to_numpy)
    leaves = jax.tree_util.tree_leaves_with_path({name: tree[name] for name in parts})
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}


def without_speed(workdir: Path) -> list[dict]:
    """metrics.jsonl without its columns of wall-clock time."""
    return [{k: v for k, v in row.items() if not k.startswith(OF_TIME)} for row in read_metrics(workdir)]


def losses(workdir: Path, steps: int) -> np.ndarray:
    """The loss of each step."""
    rows = [row for row in read_metrics(workdir) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    return np.array([row["loss"] for row in rows])


def differences(ours: Path, theirs: Path, step: int) -> list[str]:
    """What two runs differ in after `step` steps: arrays of the checkpoint in any bit, rows of the metrics."""
    mine, undisturbed = state(ours, step), state(theirs, step)
    assert any("opt_state" in name for name in undisturbed) and any("wq" in name for name in undisturbed)
    found = sorted(mine.keys() ^ undisturbed.keys())
    for name in mine.keys() & undisturbed.keys():
        here, there = mine[name], undisturbed[name]
        if (here.dtype, here.shape, here.tobytes()) != (there.dtype, there.shape, there.tobytes()):
            found.append(name)
    rows = without_speed(ours), without_speed(theirs)
    return found + [f"metrics {mine} instead of {other}" for mine, other in zip(*rows, strict=True) if mine != other]


def scalars(workdir: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each tag, as TensorBoard shows them.

    It reads the event files by name, each up to its first incomplete record, and at the start of a session drops what
    it has of that step and later ones.
    """
    from tensorboardX.proto import event_pb2

    shown: dict[str, list[tuple[int, float]]] = {}
    for path in sorted((workdir / "tensorboard").iterdir()):
        data, place = path.read_bytes(), 0
        while place + 12 <= len(data):
            (size,) = struct.unpack_from("<Q", data, place)
            record = data[place + 12 : place + 12 + size]
            place += 12 + size + 4  # length and its checksum, record, its checksum
            if place > len(data):
                break
            event = event_pb2.Event.FromString(record)
            if event.session_log.status == event_pb2.SessionLog.START:
                for tag in shown:
                    shown[tag] = [point for point in shown[tag] if point[0] < event.step]
            for value in event.summary.value:
                shown.setdefault(value.tag, []).append((event.step, value.simple_value))
    return shown
