"""The wall-clock time of a run, by what it was spent on."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tabulate import tabulate

from jpeglm.core.human import human_time


class Stopwatch:
    """Counts the wall-clock time of a run by parts, over all its restarts; only `steps` counts as training.

        restart     from the start of the command to the loop, without compilation
        compile     compiling the programs, or reading them from the cache
        data        the devices were idle, waiting for the next batch
        steps       training
        evaluation
        checkpoint  the loop waited for a save; most of a save overlaps with steps

    It starts when it is created, with `restart`. It does not know the time between a kill and the next start, nor
    which steps were repeated after a kill.
    """

    PARTS = ("restart", "compile", "data", "steps", "evaluation", "checkpoint")

    def __init__(self) -> None:
        self._counted = dict.fromkeys(self.PARTS, 0.0)
        self._part, self._since = "restart", time.monotonic()

    def go_on(self, rows: list[dict[str, Any]]) -> None:
        """Adds the times recorded in a run's earlier metrics."""
        counted: dict[str, Any] = next((row for row in reversed(rows) if "goodput" in row), {})
        for part in self.PARTS:
            self._counted[part] += counted.get(f"seconds/{part}", 0.0)

    def begin(self, part: str) -> None:
        """Counts time as `part` from now on."""
        now = time.monotonic()
        self._counted[self._part] += now - self._since
        self._part, self._since = part, now

    @contextlib.contextmanager
    def counting(self, part: str) -> Iterator[None]:
        """Counts the time of the block as `part`, then continues with the previous part."""
        around = self._part
        self.begin(part)
        try:
            yield
        finally:
            self.begin(around)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each part, until now."""
        self.begin(self._part)
        return dict(self._counted)

    @property
    def goodput(self) -> float:
        """The share of all time spent in steps, 0 to 1."""
        return _goodput(self.seconds)

    def scalars(self) -> dict[str, float]:
        """Seconds of each part since the run began, and the goodput."""
        seconds = self.seconds
        return {f"seconds/{part}": value for part, value in seconds.items()} | {"goodput": _goodput(seconds)}

    def table(self) -> str:
        """Seconds and shares by part, for people."""
        seconds = self.seconds
        total = sum(seconds.values())
        rows = [(part, human_time(value), f"{value / total:.1%}") for part, value in seconds.items()]
        return tabulate([*rows, ("all", human_time(total), "")], tablefmt="plain", colalign=("left", "right", "right"))


def _goodput(seconds: Mapping[str, float]) -> float:
    return seconds["steps"] / max(sum(seconds.values()), 1e-9)
