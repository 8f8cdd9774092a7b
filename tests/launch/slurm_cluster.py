"""A real Slurm of two nodes on this one machine, for as long as it is wanted. Debian; root, or sudo to install it.

python -m tests.launch.slurm_cluster

It prints the line that makes sbatch, squeue and the other commands of Slurm talk to this cluster, then reads commands:
`kill NODE` ends everything that runs on a node, as a power cut would; `start NODE` brings it back. At the end of its
standard input, on Ctrl-C and on SIGTERM it takes everything down. All files, the configuration too, lie in a temporary
folder; whatever Slurm and munge this machine has of its own stay as they are.
"""

import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# Names that are addresses: Slurm's tasks find each other by them, and no resolver needs to know any name.
NODES = ("127.0.0.1", "127.0.0.2")
PACKAGES = {"slurmctld": "slurm-wlm", "munged": "munge"}  # a program of each, and Debian's name of the package
SBIN = "/usr/sbin"
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h

# Times are short, so that a test need not wait: a node that does not answer for SlurmdTimeout is down; a requeued job
# waits for as long as its credential would be valid (cred_expire).
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n/slurmd.pid
SlurmdSpoolDir={folder}/%n
SlurmdParameters=config_overrides
SlurmdTimeout=10
ReturnToService=2
JobRequeue=1
KillWait=30
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SchedulerParameters=sched_interval=2,batch_sched_delay=0
{nodes}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=usual Nodes=ALL Default=YES PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL PriorityTier=2
"""


def environment(conf: Path | str) -> dict[str, str]:
    """What makes Slurm's commands talk to this cluster, and not to one whose job this may be."""
    outer = ("SLURM", "SBATCH", "SRUN", "SALLOC", "SINFO", "SQUEUE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(outer)}
    return kept | {"SLURM_CONF": str(conf)}


def install() -> None:
    """Installs the packages whose programs are missing."""
    if missing := [package for program, package in PACKAGES.items() if not shutil.which(program, path=SBIN)]:
        as_root = [] if os.geteuid() == 0 else ["sudo"]
        apt = [*as_root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet=2"]
        subprocess.run([*apt, "update"], check=True, stdout=sys.stderr)
        command = [*apt, "install", "--yes", "--no-install-recommends", *missing]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def descendants(root: int) -> list[int]:
    """Ids of the living processes that descend from this one, by /proc."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, *_ = path.read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has just ended
            continue
        if state != "Z":
            parents[int(path.parent.name)] = int(parent)
    found, last = [], {root}
    while last:
        last = {process for process, parent in parents.items() if parent in last}
        found += last
    return found


def kill_descendants(root: int) -> None:
    """Until there are none, as those that are found may have started others meanwhile."""
    while found := descendants(root):
        for process in found:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.05)


def free_ports(count: int) -> list[int]:
    """Ports of which nobody listens on any now."""
    sockets = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


class Cluster:
    """The daemons are children of this process and end with it. A slurmd inherits what its node has running."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self._slurmds: dict[str, subprocess.Popen] = {}

    def start(self) -> None:
        """Starts both nodes and waits until they are ready for jobs."""
        for name in ("munge", "state", *NODES):
            (self.folder / name).mkdir(mode=0o755)
        key, user = self.folder / "munge" / "key", pwd.getpwuid(os.geteuid()).pw_name
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        port, *ports = free_ports(1 + len(NODES))
        nodes = [
            f"NodeName={node} NodeAddr={node} Port={number} CPUs=2 Gres=gpu:2 State=UNKNOWN"
            for node, number in zip(NODES, ports, strict=True)
        ]
        host = socket.gethostname().split(".")[0]
        text = CONFIGURATION.format(host=host, port=port, user=user, folder=self.folder, nodes="\n".join(nodes))
        self.conf.write_text(text)
        (self.folder / "gres.conf").write_text("AutoDetect=off\nName=gpu File=/dev/null,/dev/zero\n")
        files = [f"--{name}={key.with_name(name)}" for name in ("socket", "pid-file", "log-file", "seed-file")]
        self._spawn("munged", "--foreground", "--force", f"--key-file={key}", *files)
        self._wait_for((self.folder / "munge" / "socket").exists, "munged")
        self._spawn("slurmctld", "-D")
        for node in NODES:
            self.start_node(node)
        self._wait_for(lambda: self._states() == ["idle"] * len(NODES), "the nodes")

    def start_node(self, node: str) -> None:
        self._slurmds[node] = self._spawn("slurmd", "-D", "-N", node)

    def kill_node(self, node: str) -> None:
        """Ends everything on a node at once; nothing there has time to tell anybody."""
        slurmd = self._slurmds[node]
        slurmd.send_signal(signal.SIGSTOP)  # else it would report the tasks that die before it
        kill_descendants(slurmd.pid)
        slurmd.kill()
        slurmd.wait()

    def _states(self) -> list[str]:
        command = ["sinfo", "--noheader", "--Node", "--partition=usual", "--format=%T"]
        return subprocess.run(command, env=environment(self.conf), capture_output=True, text=True).stdout.split()

    def _spawn(self, program: str, *arguments: str) -> subprocess.Popen:
        prctl = ctypes.CDLL(None).prctl

        def prepare() -> None:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            prctl(PR_SET_CHILD_SUBREAPER, 1)

        with open(self.folder / f"{program}.out", "ab") as out:
            return subprocess.Popen(
                [f"{SBIN}/{program}", *arguments],
                env=environment(self.conf),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                preexec_fn=prepare,
                start_new_session=True,  # a Ctrl-C is for this process, which takes all down in order
            )

    def _wait_for(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            if time.monotonic() > deadline:
                logs = [path.read_text()[-2000:] for path in self.folder.rglob("*") if path.suffix in (".out", ".log")]
                raise TimeoutError(f"{what} did not start\n" + "\n".join(logs))
            time.sleep(0.1)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    install()
    # Orphans come here and not to process 1, so that all can be found at the end.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: a socket's path has at most 107 characters
    cluster = Cluster(folder)
    try:
        cluster.start()
        print(f"export SLURM_CONF={cluster.conf}", flush=True)
        for line in sys.stdin:
            match line.split():
                case ["kill", node] if node in NODES:
                    cluster.kill_node(node)
                case ["start", node] if node in NODES:
                    cluster.start_node(node)
                case _:
                    print(f"kill NODE or start NODE; NODE: {' or '.join(NODES)}", file=sys.stderr)
                    continue
            print("done", flush=True)
    except KeyboardInterrupt:
        pass
    finally:
        kill_descendants(os.getpid())
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
