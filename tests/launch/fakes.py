"""What the tests of launch scripts share: a training that ends as told, and programs that stand in for others."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

# In the place of a training: ends with the next of the statuses in its workdir, or lives until it is asked to stop.
TRAINING = """
import os, pathlib, signal, sys, time
[workdir] = [pathlib.Path(flag.partition("=")[2]) for flag in sys.argv if flag.startswith("--workdir=")]
workdir = workdir / pathlib.Path.home().name
with open(workdir / "starts", "a") as file:
    print(*sys.argv[1:], file=file)
def stop(number, frame):
    with open(workdir / "stop", "a") as file:
        print("asked", file=file, flush=True)
        time.sleep(0.2)
        print("saved", file=file)
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
statuses = (workdir / "statuses").read_text().split()
if not statuses:
    print("step 1", flush=True)
    time.sleep(600)
(workdir / "statuses").write_text(" ".join(statuses[1:]))
status = int(statuses[0])
if status < 0:
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(100):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it does not come")


def training(folder: Path, *statuses: int) -> list[str]:
    """The command of a training that ends with these statuses, one after the other."""
    workdir = folder / folder.name
    workdir.mkdir(exist_ok=True)
    (workdir / "statuses").write_text(" ".join(map(str, statuses)))
    write_program(folder / "training.py", TRAINING)
    return ["env", f"HOME={folder}", sys.executable, "-S", str(folder / "training.py"), f"--workdir={folder}"]


def starts(folder: Path) -> int:
    path = folder / folder.name / "starts"
    return len(path.read_text().splitlines()) if path.exists() else 0
