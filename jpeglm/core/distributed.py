"""Starting JAX: the processes of a job join each other; a missing platform is reported in one line."""

import functools
import glob
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from jpeglm.core import libtpu
from jpeglm.core.errors import InputError

PLATFORMS = {"": None, "cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}
# Files of the drivers: of NVIDIA, of AMD, of TPUs, of newer TPUs.
ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*")
PROCESS_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_CONFIG: Any = jax.config  # its attributes are set at run time, so a type checker does not know them
LONGEST_COMPILATION = 3600  # seconds
_PIECE = 256 << 20  # bytes sent over the network, and held by devices, at a time
# Rules out operations with a varying order of additions, and autotuning, whose timings vary from start to start.
DETERMINISTIC = "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"


def start(
    platform: str = "", watchdog: float = 0, deterministic: bool = False, is_alone: bool = False
) -> list[jax.Device]:
    """Starts JAX and returns all devices of the job. `platform`: "", cpu, gpu or tpu; InputError if it is absent.

    `watchdog`: seconds after which the watchdog ends a process that hangs. JAX aborts all processes if one sends no
    heartbeat, so its timeout is set longer than that. `deterministic`: bit-identical results on GPUs too, at the cost
    of some speed. `is_alone`: joins no other process (see parts.py).

    The processes of a job join first: by the three PROCESS_VARIABLES (HOST:PORT of process 0, the number of processes,
    the number of this one), or by JAX's own detection under Slurm and Open MPI (one process per GPU, unless
    JAX_LOCAL_DEVICE_IDS says otherwise), on GKE and, with platform "tpu", on any Cloud TPU.
    """
    compute_in_float32()
    if platform not in PLATFORMS:
        raise InputError(f"platform={platform!r} is none of cpu, gpu, tpu")
    if PLATFORMS[platform]:
        jax.config.update("jax_platforms", PLATFORMS[platform])
    if deterministic:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}"
    if not will_use_cpus(platform):
        libtpu.set_flags()
    if not (is_alone or jax.distributed.is_initialized()):
        _join_processes(platform, 100 + int(watchdog))
    try:
        devices = jax.devices()
    # without a GPU, JAX 0.10 fails with an assertion that has no message
    except (RuntimeError, AssertionError) as error:
        asked, why = platform or _CONFIG.jax_platforms, str(error) or "no such device"
        raise InputError(f"platform {asked!r} was asked for and is not there: {why}") from error
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise InputError(f"this host is one of {jax.process_count()} of a TPU slice: platform must be tpu")
    if jax.process_index():
        logging.set_verbosity(logging.ERROR)  # only process 0 logs
    return devices


def will_use_cpus(platform: str) -> bool:
    """Whether CPUs are asked for or, if nothing is, whether this host has no driver of an accelerator."""
    if asked := platform or _CONFIG.jax_platforms:
        return asked == "cpu"
    return not any(glob.glob(files) for files in ACCELERATORS)


def compute_in_float32() -> None:
    """Switches off 64-bit types, which JAX_ENABLE_X64 may have switched on for other programs."""
    if _CONFIG.jax_enable_x64:
        logging.warning("JAX_ENABLE_X64 is set, and has no effect here: jpeglm computes in 32 bits")
        jax.config.update("jax_enable_x64", False)


def wait_for_all(what: str, seconds: int = LONGEST_COMPILATION) -> None:
    """Waits until every process of the job has called this; raises after `seconds`.

    This uses JAX's coordination service instead of a collective. One process may find its programs in the cache while
    another still compiles, and Gloo (CPUs) waits only half a minute in the first collective.
    """
    multihost.get_barrier_sync_fn()(key=what, timeout_ms=seconds * 1000)


def refuse_several(command: str) -> None:
    """Refuses a job of several processes, because each would do the whole work.

    Raises:
      InputError: this process is one of several.
    """
    if jax.process_count() > 1:
        raise InputError(f"{command} runs in one process, and this job has {jax.process_count()}: start it once")


def from_each(content: bytes) -> Iterator[bytes]:
    """The `content` of each process, in the order of processes, on every process; one at a time in memory."""
    sizes = multihost_utils.process_allgather(np.array(divmod(len(content), _PIECE), np.int32)).reshape(-1, 2)
    for process, (whole, rest) in enumerate(sizes.tolist()):
        mine, received = process == jax.process_index(), []
        for start in range(0, whole * _PIECE + rest, _PIECE):
            size = min(_PIECE, whole * _PIECE + rest - start)
            # sent as 32-bit words: broadcasting sums over processes, which would widen uint8
            piece = np.zeros(-(-size // 4) * 4, np.uint8)
            if mine:
                piece[:size] = np.frombuffer(content, np.uint8, size, start)
            sent = multihost_utils.broadcast_one_to_all(piece.view(np.uint32), is_source=mine)
            received.append(np.asarray(sent).view(np.uint8)[:size].tobytes())
        yield b"".join(received)


def cache_programs(workdir: epath.Path) -> None:
    """Keeps compiled programs in the workdir, unless JAX_COMPILATION_CACHE_DIR names another folder."""
    if not _CONFIG.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(workdir / "programs"))


def _join_processes(platform: str, heartbeat_seconds: int) -> None:
    join = functools.partial(jax.distributed.initialize, heartbeat_timeout_seconds=heartbeat_seconds)
    given = {name: os.environ[name] for name in PROCESS_VARIABLES if name in os.environ}
    if len(given) == len(PROCESS_VARIABLES):
        address, count, number = given.values()
        if not (count.isdecimal() and number.isdecimal() and int(number) < int(count) and ":" in address):
            raise InputError(f"{given}: an address HOST:PORT, a number of processes, and this one's below it")
        join(address, int(count), int(number))
    elif given.keys() - {"JAX_COORDINATOR_ADDRESS"}:  # this one alone may override what JAX detects
        missing = ", ".join(name for name in PROCESS_VARIABLES if name not in given)
        raise InputError(f"{', '.join(given)} is set but not {missing}")
    elif platform == "tpu":
        try:
            join()
        except ValueError:
            pass  # a TPU outside any cluster: a single host
    elif _in_cluster():
        join()


def _in_cluster() -> bool:
    """Whether a launcher has started several processes. JAX's own detection also finds clusters of one.

    Under Slurm only the processes of one step count: SLURM_NTASKS may be the job's, in a shell opened by salloc or
    srun.
    """
    env = os.environ
    return (
        int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1
        or int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
        or "," in env.get("TPU_WORKER_HOSTNAMES", "")
        or "MEGASCALE_COORDINATOR_ADDRESS" in env
    )
