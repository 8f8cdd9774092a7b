"""Where the wall-clock time of a run goes."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from tabulate import tabulate

from jpeglm.core.human import human_time


class Stopwatch:
    """Counts the wall-clock time of a run by parts, over all its restarts; only `steps` is time that trains.

        restart     from the start of the command to the loop, without compiling
        compile     the programs of the run, or reading them from the cache
        data        the devices had nothing to do until the next batch was there
        steps       training
        evaluation
        checkpoint  the loop waited for a save; most of a save runs beside the steps

    It runs from its making on, and begins with `restart`. Time between a kill and the start that follows, and steps
    done twice after one, are not known here.
    """

    PARTS = ("restart", "compile", "data", "steps", "evaluation", "checkpoint")

    def __init__(self) -> None:
        self._counted = dict.fromkeys(self.PARTS, 0.0)
        self._part, self._since = "restart", time.monotonic()

    def go_on(self, rows: list[dict[str, Any]]) -> None:
        """Adds what a run's metrics have counted before."""
        counted: dict[str, Any] = next((row for row in reversed(rows) if "goodput" in row), {})
        for part in self.PARTS:
            self._counted[part] += counted.get(f"seconds/{part}", 0.0)

    def begin(self, part: str) -> None:
        """From now on time counts as `part`."""
        now = time.monotonic()
        self._counted[self._part] += now - self._since
        self._part, self._since = part, now

    @contextlib.contextmanager
    def counting(self, part: str) -> Iterator[None]:
        """The time of the block counts as `part`; after it, the part that was counted before goes on."""
        around = self._part
        self.begin(part)
        try:
            yield
        finally:
            self.begin(around)

    @property
    def seconds(self) -> dict[str, float]:
        """Of each part, until now."""
        self.begin(self._part)
        return dict(self._counted)

    @property
    def goodput(self) -> float:
        """Share of all time that trained, 0 to 1."""
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
