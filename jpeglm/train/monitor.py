"""What a run reports: JSON lines, TensorBoard, and the arithmetic of speed."""

import json
import os
import time
from typing import Any

import jax
from etils import epath
from tabulate import tabulate

from jpeglm.core.errors import InputError, writing
from jpeglm.core.files import write_whole
from jpeglm.core.workdir import read_metrics


def speed(
    tokens: int, seconds: float, num_devices: int, flops_per_token: float, peak: float | None
) -> dict[str, float]:
    """Tokens a second, of all devices and of one, and the model FLOPs utilisation where the peak is known.

    MFU (Chowdhery et al. 2022, appendix B) is tokens a second times FLOPs a token over the devices' peak. The FLOPs
    are those of the model (`Model.flops_per_token`): what rematerialisation computes again does not count.
    """
    rate = tokens / seconds
    scalars = {"tokens_per_second": rate, "tokens_per_second_per_device": rate / num_devices}
    return scalars | ({"mfu": rate * flops_per_token / (peak * num_devices)} if peak else {})


def device_memory(compiled: jax.stages.Compiled) -> tuple[int, int]:
    """Bytes on each device while a compiled program runs: its arguments and results, and its temporaries."""
    sizes = compiled.memory_analysis()
    held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return held, sizes.temp_size_in_bytes


def memory_limit(device: jax.Device) -> int | None:
    """Bytes of a device's memory, or None where it does not tell; a CPU's devices share the machine's."""
    if device.platform == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // jax.local_device_count()
    return (device.memory_stats() or {}).get("bytes_limit")


def check_memory(needed: tuple[int, int], device: jax.Device) -> None:
    """Raises InputError where a step needs more than the device has."""
    limit = memory_limit(device)
    if limit and sum(needed) > limit:
        raise InputError(
            f"a step needs {human_bytes(sum(needed))} of each device's memory, {human_bytes(limit)} are there: more "
            "devices, a larger optim.accumulate, or model.remat=full"
        )


class Profile:
    """Traces some steps for TensorBoard's profiler or Perfetto, after two that warm up."""

    def __init__(self, workdir: epath.Path, first_step: int, steps: int):
        self._folder, self._begin, self._end = workdir / "profile", first_step + 3, first_step + 3 + steps
        self._is_on = False

    def before(self, step: int) -> None:
        """Called before each step."""
        if step == self._begin < self._end:
            jax.profiler.start_trace(str(self._folder))
            self._is_on = True
        if step == self._end:
            self.stop()

    def stop(self) -> None:
        """Writes the trace, if one is under way."""
        if self._is_on:
            with writing(self._folder):
                jax.profiler.stop_trace()
        self._is_on = False


class Stopwatch:
    """Where the wall-clock time of a run goes, over all its restarts; only `steps` is time that trains.

        restart     from the start of the command to the loop, without compiling
        compile     the programs of the run, or reading them from the cache
        data        the devices had nothing to do until the next batch was there
        steps       training
        evaluation
        checkpoint  the loop waited for a save; most of a save runs beside the steps

    Time between a kill and the start that follows, and steps done twice after one, are not known here.
    """

    PARTS = ("restart", "compile", "data", "steps", "evaluation", "checkpoint")

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(self.PARTS, 0.0)
        self._last = time.monotonic()

    def go_on(self, rows: list[dict[str, Any]]) -> None:
        """Adds what a run's metrics have counted before."""
        counted = next((row for row in reversed(rows) if "goodput" in row), {})
        for part in self.PARTS:
            self.seconds[part] += counted.get(f"seconds/{part}", 0.0)

    def lap(self, part: str) -> float:
        """Counts the time since the last call as `part`; returns it in seconds."""
        now = time.monotonic()
        passed, self._last = now - self._last, now
        self.seconds[part] += passed
        return passed

    @property
    def goodput(self) -> float:
        """Share of all time that trained, 0 to 1."""
        return self.seconds["steps"] / max(sum(self.seconds.values()), 1e-9)

    def scalars(self) -> dict[str, float]:
        """Seconds of each part since the run began, and the goodput."""
        return {f"seconds/{part}": seconds for part, seconds in self.seconds.items()} | {"goodput": self.goodput}

    def table(self) -> str:
        """Seconds and shares by part, for people."""
        total = sum(self.seconds.values())
        rows = [(part, human_time(seconds), f"{seconds / total:.1%}") for part, seconds in self.seconds.items()]
        return tabulate([*rows, ("all", human_time(total), "")], tablefmt="plain", colalign=("left", "right", "right"))


class MetricsLog:
    """Scalars by step: `metrics.jsonl` and TensorBoard events in a workdir.

    Rows are written whole on `flush`, beside and then renamed: the file is never half-written and, flushed with each
    checkpoint, never behind it. A resumed run drops the rows after the step that it goes on from, and tells
    TensorBoard to. Everything is written by the caller's thread, so that a full disk is noticed: InputError.
    """

    def __init__(self, workdir: epath.Path, resume_step: int):
        # Late: this imports torch where that is installed, for two seconds.
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        self._workdir = workdir
        self._path = workdir / "metrics.jsonl"
        self.rows = [row for row in read_metrics(workdir) if row["step"] <= resume_step]
        self._scalar, self._event = summary.scalar, event_pb2.Event
        with writing(workdir):
            folder = workdir / "tensorboard"
            folder.mkdir(parents=True, exist_ok=True)
            self._board = EventsWriter(str(folder / "events"))
            restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._board.write_event(self._event(wall_time=time.time(), step=resume_step + 1, session_log=restart))

    def write(self, step: int, scalars: dict[str, float]) -> None:
        self.rows.append({"step": step, **scalars})
        now = time.time()
        with writing(self._workdir):
            for name, value in scalars.items():
                self._board.write_event(self._event(wall_time=now, step=step, summary=self._scalar(name, value)))

    def flush(self) -> None:
        with writing(self._workdir):
            self._board.flush()
            write_whole(self._path, "".join(json.dumps(row) + "\n" for row in self.rows).encode())

    def close(self) -> None:
        self.flush()
        with writing(self._workdir):
            self._board.close()


def human_count(number: float) -> str:
    """12_345_678 -> '12.3M'."""
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def human_bytes(number: float) -> str:
    """3_221_225_472 -> '3.0 GiB'."""
    unit, size = next(
        ((u, s) for u, s in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)) if number >= s), ("KiB", 1024)
    )
    return f"{number / size:.1f} {unit}"


def human_time(seconds: float) -> str:
    """3_725 -> '1:02:05'; days in front where there are any."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return (f"{days}d " if days else "") + f"{hours}:{minutes:02d}:{seconds:02d}"
