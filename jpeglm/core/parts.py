"""Parts of a job: several processes share its requests by content, and none waits for another.

Each process is a JAX of its own over its own devices, so a part may start, die and come back whenever it likes. Which
part a process is, `find` decides: `--part=K/N`, or the launcher (Slurm, Open MPI, the project's own variables, the
workers of a TPU slice).
"""

import contextlib
import dataclasses
import glob
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import jax

from jpeglm.core import distributed, files
from jpeglm.core.errors import InputError

_TPUS = ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*")
# Chips of a host -> how they lie. A host of v5e or v6e has 1, 4 or 8, of the others 4 (2 chips in some v2 and v3).
_CHIPS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}
_LOCK, _LOCKS = ".lock-{}-of-{}", re.compile(r"\.lock-(\d+)-of-(\d+)")
# A launcher's variables: this process, counted from 0, and the number of processes.
_LAUNCHERS = (
    ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),  # of the step: SLURM_NTASKS may be that of a surrounding shell
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
)
# Processes of one host: this one, counted from 0, and a variable whose presence says that it sees only its own GPUs.
_LOCAL = (("SLURM_LOCALID", "SLURM_GPUS_PER_TASK"), ("OMPI_COMM_WORLD_LOCAL_RANK", ""))


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of a job: `number`, from 1 to `of`."""

    number: int = 1
    of: int = 1

    @property
    def is_alone(self) -> bool:
        """Whether it is the whole job."""
        return self.of == 1

    def takes(self, content: str, *numbers: int) -> bool:
        """Whether a request is of this part.

        The parts of a job take each request exactly once, on every machine and in any order.

        Args:
          content: what the request is about, for example the SHA-256 of a document.
          numbers: what tells requests about the same content apart, for example seed and sample.
        """
        key = " ".join([content, *map(str, numbers)])
        return int(hashlib.sha256(key.encode()).hexdigest(), 16) % self.of == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


ALONE = Part()


def start(given: str | None = None, platform: str = "") -> Part:
    """Starts JAX over this process's own devices, and returns which part of its job it is.

    Args:
      given: the value of `--part`, or None.
      platform: as in `distributed.start`.

    Raises:
      InputError: as `find` and `distributed.start` do.
    """
    part = find(given, platform)
    _separate(platform)
    distributed.start(platform, is_alone=True)
    return part


def find(given: str | None = None, platform: str = "") -> Part:
    """The part that `given` (K/N, from 1/N to N/N) or else the launcher says; the whole job if neither does.

    Raises:
      InputError: not such a text, or the launcher's variables contradict each other.
    """
    if given is not None:
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", given, re.ASCII)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise InputError(f"--part={given}: K/N, part K of N, from 1/N to N/N")
        return Part(int(found[1]), int(found[2]))
    for number, count in _LAUNCHERS:
        if os.environ.get(count, "1") != "1":
            return _of_launcher(number, count)
    return _of_slice() if _has_tpus(platform) else ALONE


def _of_launcher(number: str, count: str) -> Part:
    this, of = os.environ.get(number, ""), os.environ[count]
    if not (this.isdecimal() and of.isdecimal() and int(this) < int(of)):
        raise InputError(f"{count}={of} and {number}={this}: a number of processes, and that of this one below it")
    return Part(int(this) + 1, int(of))


############################ Devices ############################


def _separate(platform: str) -> None:
    """Hides the devices of other processes from this one; must be called before JAX looks for devices."""
    if _has_tpus(platform):
        _separate_tpus()
    elif not distributed.will_use_cpus(platform):
        _separate_gpus()


def _has_tpus(platform: str) -> bool:
    return not distributed.will_use_cpus(platform) and any(glob.glob(files) for files in _TPUS)


def _separate_tpus() -> None:
    """Makes this worker of a TPU slice a host of its own, by variables that libtpu reads; what is set stays."""
    chips = next((len(found) for pattern in _TPUS if (found := glob.glob(pattern))), 0)
    if chips not in _CHIPS:
        return
    for name in [name for name in os.environ if name.startswith("MEGASCALE_")]:
        del os.environ[name]  # other slices
    os.environ.setdefault("TPU_CHIPS_PER_PROCESS_BOUNDS", _CHIPS[chips])
    os.environ.setdefault("TPU_PROCESS_BOUNDS", "1,1,1")
    os.environ |= {"CLOUD_TPU_TASK_ID": "0", "TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}
    os.environ.pop("TPU_PROCESS_ADDRESSES", None)


def _separate_gpus() -> None:
    """Takes this process's share of the host's GPUs where the launcher shows all of them to each process."""
    if os.environ.get("JAX_CUDA_VISIBLE_DEVICES", "all") != "all":
        return
    if own := os.environ.get("JAX_LOCAL_DEVICE_IDS"):
        jax.config.update("jax_cuda_visible_devices", own)
        return
    for number, has_own in _LOCAL:
        local, here = os.environ.get(number, ""), _processes_here()
        if not local.isdecimal() or here < 2 or os.environ.get(has_own):
            continue
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = len(visible.split(",")) if visible else len(glob.glob("/dev/nvidia[0-9]*"))
        share = range(int(local) * gpus // here, (int(local) + 1) * gpus // here)
        if gpus >= here:  # otherwise each sees its own
            jax.config.update("jax_cuda_visible_devices", ",".join(map(str, share)))
        return


def _processes_here() -> int:
    """The number of this job's processes on this host, as Slurm or Open MPI tell it; 1 if they do not."""
    if (here := os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "")).isdecimal():
        return int(here)
    # Such as "8(x2),4": two nodes with eight tasks, then one with four.
    nodes = re.findall(r"(\d+)(?:\(x(\d+)\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    counts = [int(tasks) for tasks, times in nodes for _ in range(int(times or 1))]
    node = os.environ.get("SLURM_NODEID", "0")
    return counts[int(node)] if node.isdecimal() and int(node) < len(counts) else 1


def _of_slice() -> Part:
    """The part of a worker of a TPU slice, or of several slices. JAX knows how each cloud tells it."""
    # The project's only use of these classes; `jax.distributed.initialize` offers no other way not to join.
    from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster, GkeTpuCluster

    for cluster in (GkeTpuCluster, GceTpuCluster):
        if cluster.is_env_present():
            return Part(cluster.get_process_id() + 1, cluster.get_process_count())
    return ALONE


############################ Folders that several parts write ############################


@contextlib.contextmanager
def owned(folder: str | os.PathLike, part: Part) -> Iterator[None]:
    """Like `files.owned`, for one part: the other parts of as many may write there at the same time.

    FOLDER/.lock is shared, and FOLDER/.lock-K-of-N is this part's. A killed command releases both.

    Raises:
      InputError: this part, or a job of another number of parts, is at work there; or the folder cannot be made.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(files.owned(folder, is_shared=not part.is_alone))
        if not part.is_alone:
            with serial(folder, part):
                _refuse_others(Path(folder), part)
                mine = Path(folder, _LOCK.format(part.number, part.of))
                stack.enter_context(files.lock(mine, f"{folder}: part {part} is at work here already"))
        yield


@contextlib.contextmanager
def serial(folder: str | os.PathLike, part: Part) -> Iterator[None]:
    """Inside the block no other part does anything to the files that all parts share. It should be a short one."""
    with contextlib.ExitStack() as stack:
        if not part.is_alone:  # who is alone has the folder
            stack.enter_context(files.lock(Path(folder, ".lock-shared"), waits=True))
        yield


def _refuse_others(folder: Path, part: Part) -> None:
    """Raises InputError if a part of another number of parts is at work."""
    for name in os.listdir(folder):
        found = _LOCKS.fullmatch(name)
        if found and int(found[2]) != part.of:
            why = f"{folder}: a job of {found[2]} parts is at work here, and this is part {part}; wait for it"
            with files.lock(folder / name, why):
                pass
