"""Shared by the benchmarks: child processes, a timer, a description of the machine, and results on disk.

    python -m benchmarks.report FOLDER      # writes FOLDER/report.md from all results in FOLDER

A result is a JSON file with its command, date, machine and table. `report.md` shows all results of a folder, and the
junit files of tests there. Both are rewritten after each measurement, to a temporary file that is then renamed, so
that an interruption loses nothing.
"""

import datetime
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tabulate import tabulate

ROOT = Path(__file__).parents[1]
OUT_OF_MEMORY = "out of memory"
_NO_MEMORY = ("RESOURCE_EXHAUSTED", "of each device's memory", "CUDA out of memory", "OutOfMemoryError")
_MEM_FRACTION = "0.93"  # share of a GPU's memory for XLA, whose default is 0.75; the rest is for CUDA and its kernels


def seconds(run: Callable[..., object], *arguments: object) -> float:
    """Wall-clock time of one call, in seconds."""
    started = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - started


def child(module: str, job: dict[str, Any], cache: str, python: str = sys.executable, timeout: float = 600) -> dict:
    """Runs `python -m module JOB` in its own process and returns the JSON object of its last line.

    So no library holds memory or threads while another one runs.

    Args:
      module: to run.
      job: its argument, as JSON.
      cache: folder for compiled programs.
      python: the interpreter.
      timeout: in seconds; then the child is killed.

    Returns:
      the object that the child printed, or {"failed": reason}; the reason is `OUT_OF_MEMORY` if memory ran out.
    """
    env = {
        "JAX_COMPILATION_CACHE_DIR": f"{cache}/xla",
        "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": _MEM_FRACTION,
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [python, "-m", module, json.dumps(job)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the child is ended, too
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, env=env | os.environ, stdout=subprocess.PIPE, stderr=errors, text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            out, _ = process.communicate(timeout=max(1.0, timeout))
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)  # and all processes that it started
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                return {"failed": f"not done in {timeout:.0f} s"}
            raise
        errors.seek(0)
        said = errors.read()
    if process.returncode == 0 and out.strip():
        return json.loads(out.splitlines()[-1])
    sys.stderr.write(said[-4000:])
    if any(word in said for word in _NO_MEMORY):
        return {
            "failed": OUT_OF_MEMORY,
            "detail": next(x for x in said.splitlines() if any(w in x for w in _NO_MEMORY)),
        }
    errors_told = [line for line in said.splitlines() if re.match(r"[\w.]*(Error|Exception|Diverged)\b", line)]
    last = said.strip().splitlines()[-1:] or [f"status {process.returncode}"]
    return {"failed": (errors_told or last)[-1][:200]}


def gpu() -> dict[str, Any]:
    """Name, driver and bytes of memory of the first GPU, as `nvidia-smi` states; empty if there is none."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits"]
    try:
        first = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return {}
    name, driver, mib = (part.strip() for part in first.split(","))
    return {"gpu": name, "driver": driver, "memory": int(mib) * 2**20}


def machine(**versions: str) -> str:
    """Describes hardware and versions in one line, for a table of results."""
    found = gpu()
    if found:
        hardware = f"{found['gpu']}, {found['memory'] / 2**30:.0f} GiB, driver {found['driver']}"
    else:
        hardware = _cpu()
    words = [f"{name} {version}" for name, version in {"Python": platform.python_version(), **versions}.items()]
    return ", ".join([hardware, f"{len(os.sched_getaffinity(0))} cores", *words])


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


class Results:
    """One table of one command, kept in FOLDER/NAME.json and FOLDER/report.md; without a folder only printed."""

    def __init__(self, folder: str | None, name: str, title: str):
        self._folder = Path(folder) if folder else None
        self._name = name
        self._content: dict[str, Any] = {
            "title": title,
            "command": _command(),
            "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "commit": _commit(),
        }

    def write(
        self, machine: str, headers: Sequence[str], rows: Sequence[Sequence[object]], notes: Sequence[str], raw: Any
    ) -> None:
        """Replaces the table with a newer one. `raw`: all single measurements; JSON types."""
        self._content |= {"machine": machine, "headers": headers, "rows": rows, "notes": notes, "raw": raw}
        if self._folder:
            self._folder.mkdir(parents=True, exist_ok=True)
            _replace(self._folder / f"{self._name}.json", json.dumps(self._content, indent=1) + "\n")
            write_report(self._folder)

    def show(self) -> None:
        """Prints the table."""
        print(_markdown(self._content))


def write_report(folder: Path) -> None:
    """Writes FOLDER/report.md with all results of the folder, oldest first."""
    parts = []
    for path in folder.glob("*.json"):
        content = json.loads(path.read_text())
        parts.append((content["date"], _markdown(content)))
    for path in folder.glob("*.xml"):
        parts.append(_tests(path))
    _replace(folder / "report.md", "\n".join(text for _, text in sorted(parts)))


def _markdown(content: dict[str, Any]) -> str:
    commit = f", commit {content['commit']}" if content["commit"] else ""
    table = tabulate(content["rows"], content["headers"], tablefmt="github", disable_numparse=True)
    lines = [f"## {content['title']}", f"{content['machine']}; {content['date']}{commit}", f"`{content['command']}`"]
    return "\n\n".join([*lines, table, "\n".join(f"- {note}" for note in content["notes"])]) + "\n"


def _tests(path: Path) -> tuple[str, str]:
    """The date and the table of a junit file: each test, its outcome, time and recorded numbers."""
    suite = ElementTree.parse(path).getroot().find("testsuite")
    rows = []
    for case in suite.iter("testcase"):
        bad = [outcome for outcome in ("failure", "error", "skipped") if case.find(outcome) is not None]
        numbers = "; ".join(f"{p.get('name')} {p.get('value')}" for p in case.iter("property"))
        rows.append([case.get("name"), *(bad or ["passed"]), f"{float(case.get('time')):.1f} s", numbers])
    date = suite.get("timestamp", "")
    headers = ["test", "outcome", "time", "measured"]
    return date, f"## {path.stem}\n\n{date}\n\n{tabulate(rows, headers, tablefmt='github')}\n"


def _command() -> str:
    """The line that started this program."""
    module = sys.modules["__main__"].__spec__  # None where Python was started with a file, or with -c
    return f"python {f'-m {module.name}' if module else sys.argv[0]} {shlex.join(sys.argv[1:])}".strip()


def _commit() -> str:
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return asked.stdout.strip()


def _replace(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}")
    beside.write_text(text)
    beside.replace(path)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("python -m benchmarks.report FOLDER: a folder of results")
    write_report(Path(sys.argv[1]))
    print((Path(sys.argv[1]) / "report.md").read_text())
