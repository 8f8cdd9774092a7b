"""Kills trainings and preparations at random moments and compares what comes out with an undisturbed run.

    python -m tests.kills train [--kills=20] [--seed=0] [--out=FOLDER]
    python -m tests.kills prepare [--kills=20] [--seed=0] [--out=FOLDER]

`train` kills `python -m jpeglm.train` by SIGKILL: every third time while a checkpoint is being written, every fifth
time anywhere between start and end, else soon after a checkpoint was committed. `prepare` kills
`python -m jpeglm.prepare`, its parent alone or all its processes, in each of its stages. Both print a table with a
row for each kill and exit with status 1 if anything differs in the end.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tabulate import tabulate

from tests.commands import ROOT
from tests.runs import OF_TIME, differences, scalars, train_flags, without_speed

PICTURES = 10_000  # of embedded:mnist


class Victim:
    """A command in a process group of its own, with its output in a file."""

    def __init__(self, log: Path, module: str, *arguments: str):
        self.log = log
        with open(log, "wb") as file:
            command = [sys.executable, "-m", module, *arguments]
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, start_new_session=True)
        self.started = time.monotonic()

    @property
    def age(self) -> float:
        return time.monotonic() - self.started

    def runs(self) -> bool:
        return self.process.poll() is None

    def wait_for(self, condition: Callable[[], object]) -> bool:
        """Waits until the condition holds or the process ends; whether it still runs."""
        while self.runs() and not condition():
            time.sleep(0.001)
        return self.runs()

    def kill(self, whole_group: bool) -> bool:
        """Whether it was still running to be killed. None of its processes is left afterwards."""
        if whole_group:
            os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()
        was_running = self.process.wait() == -signal.SIGKILL
        deadline = time.monotonic() + 30
        while left := group_members(self.process.pid):
            assert time.monotonic() < deadline, f"orphans: {left}"
            time.sleep(0.01)
        return was_running

    def finish(self) -> None:
        assert self.process.wait() == 0, self.log.read_text()


def group_members(group: int) -> list[str]:
    """The living processes of a group, by /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = path.read_text().rsplit(")", 1)
        except OSError:  # it has just ended
            continue
        state, _, its_group = rest.split()[:3]
        if int(its_group) == group and state != "Z":
            found.append(name)
    return found


# Training


def checkpoints_on_disk(workdir: Path) -> tuple[list[int], list[str]]:
    """Steps that were committed, and names of folders that were not."""
    names = os.listdir(workdir / "checkpoints") if (workdir / "checkpoints").exists() else []
    return sorted(int(name) for name in names if name.isdigit()), [name for name in names if "tmp" in name]


def kill_training(data: Path, out: Path, kills: int, seed: int) -> list[dict]:
    """Trains once undisturbed and once with kills, compares, and returns a row for each kill."""
    chance = random.Random(seed)
    steps, every = 50 * kills, 10
    changes = {"steps": steps, "checkpoint.every": every, "eval.every": 5 * every}
    undisturbed, workdir, log = out / "undisturbed", out / "killed", out / "train.log"
    Victim(log, "jpeglm.train", *train_flags(data, undisturbed, **changes)).finish()
    rows: list[dict] = []
    while len(rows) < kills:
        moment = "save" if len(rows) % 3 == 1 else "anywhere" if len(rows) % 5 == 0 else "after a commit"
        known, leftovers = checkpoints_on_disk(workdir)
        victim = Victim(log, "jpeglm.train", *train_flags(data, workdir, **changes))
        if moment == "anywhere":
            life = 10.0 if not rows else 1.5 * max(row["seconds"] for row in rows)
            end = chance.uniform(0, life)
            victim.wait_for(lambda victim=victim, end=end: victim.age > end)
        elif moment == "save":
            victim.wait_for(lambda: not checkpoints_on_disk(workdir)[1])  # what the last kill left is removed
            victim.wait_for(lambda: bool(checkpoints_on_disk(workdir)[1]))
            time.sleep(chance.uniform(0, 0.02))
        else:
            victim.wait_for(lambda known=known: checkpoints_on_disk(workdir)[0] != known)
            time.sleep(chance.uniform(0, 0.3))
        seconds = victim.age
        assert victim.kill(whole_group=True), f"it came to its end: {log.read_text()}"
        committed, unfinished = checkpoints_on_disk(workdir)
        if rows:
            rows[-1]["resumed from"] = resumed_from(log)
        rows.append(
            {
                "kill": len(rows) + 1,
                "moment": moment,
                "seconds": round(seconds, 2),
                "committed": committed,
                "unfinished": ", ".join(unfinished),
                "resumed from": None,
            }
        )
    Victim(log, "jpeglm.train", *train_flags(data, workdir, **changes)).finish()
    rows[-1]["resumed from"] = resumed_from(log)
    # A run that was killed before it said where it starts had not moved.
    for row, following in zip(reversed(rows[:-1]), reversed(rows[1:]), strict=True):
        row["resumed from"] = following["resumed from"] if row["resumed from"] is None else row["resumed from"]
    for row in rows:
        assert row["resumed from"] == max(row["committed"], default=0), row

    found = differences(workdir, undisturbed, steps)
    assert not found, found
    logged = [row for row in without_speed(workdir) if "loss" in row]
    assert [row["step"] for row in logged] == list(range(1, steps + 1))
    shown, expected = scalars(workdir), scalars(undisturbed)
    for tag in (tag for tag in expected if not tag.startswith(OF_TIME)):
        assert shown[tag] == expected[tag], tag
    return rows


def resumed_from(log: Path) -> int | None:
    """The step at which the opening table says that the run starts, if it came so far."""
    found = re.search(r"starts at step\s+([\d,]+)", log.read_text())
    return int(found[1].replace(",", "")) if found else None


# Preparing


def prepare_flags(out: Path, workers: int) -> list[str]:
    config = ["--config=tests/tiny_config.py", "--config.data.shards=16"]
    return [*config, "--source=embedded:mnist", f"--out={out}", f"--workers={workers}"]


def stage(out: Path) -> str:
    """In which stage a preparation stands, by its files."""
    if (out / "manifest.json").exists():
        return "finished"
    if (out / "tokenizer.json").exists():
        return "pack"
    units = len(list((out / ".work").glob("unit-*.npz")))
    return "order" if units == -(-PICTURES // 1024) else "encode" if units else "start"


def progress(folder: Path) -> set[str]:
    """What is done."""
    return {path.name for pattern in ("[!.]*", ".work/[!.]*") for path in folder.glob(pattern)}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Two kills in the first and the last stage and one in between: the stage, and seconds after its first progress.
MOMENTS = (("encode", 0.5), ("encode", 0.5), ("order", 0.2), ("pack", 0.5), ("pack", 0.2))


def kill_preparing(out: Path, kills: int, seed: int, moments: Sequence[tuple[str, float]] = MOMENTS) -> list[dict]:
    """Prepares once undisturbed and again and again with kills, compares, and returns a row for each kill.

    After the kills at `moments` it goes on to the end, with another number of workers each time.
    """
    chance = random.Random(seed)
    log = out / "prepare.log"
    Victim(log, "jpeglm.prepare", *prepare_flags(out / "undisturbed", workers=2)).finish()
    expected = contents(out / "undisturbed")
    rows: list[dict] = []
    preparation = 0
    while len(rows) < kills:
        folder = out / str(preparation)
        for wanted, longest in moments:
            known = progress(folder)
            victim = Victim(log, "jpeglm.prepare", *prepare_flags(folder, workers=chance.choice((1, 2, 3))))
            if victim.wait_for(
                lambda folder=folder, known=known, wanted=wanted: stage(folder) == wanted and progress(folder) - known
            ):
                time.sleep(chance.uniform(0, longest))
            seconds, whole_group = victim.age, bool(len(rows) % 2)
            if victim.runs() and victim.kill(whole_group):
                signalled = "all processes" if whole_group else "parent alone"
                units, packed = len(list(folder.glob(".work/unit-*.npz"))), len(list(folder.glob("*.array_record")))
                on_disk = f"{units} units, {packed} shards"
                row = (len(rows) + 1, signalled, round(seconds, 2), stage(folder), on_disk)
                rows.append(dict(zip(("kill", "killed", "seconds", "stage", "on disk"), row, strict=True)))
        Victim(log, "jpeglm.prepare", *prepare_flags(folder, workers=1 + preparation % 3)).finish()
        assert contents(folder) == expected, folder
        shutil.rmtree(folder)
        preparation += 1
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "prepare"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="an empty folder; a temporary one if not given")
    arguments = parser.parse_args()
    out = arguments.out or Path(tempfile.mkdtemp(prefix="kills-"))
    if arguments.what == "prepare":
        rows = kill_preparing(out, arguments.kills, arguments.seed)
    else:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(out / "programs"))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
        Victim(out / "data.log", "jpeglm.prepare", *prepare_flags(out / "data", workers=2)).finish()
        rows = kill_training(out / "data", out, arguments.kills, arguments.seed)
    print(tabulate(rows, headers="keys"))
    print(f"{len(rows)} kills; the result is bit-identical to an undisturbed one")


if __name__ == "__main__":
    main()
