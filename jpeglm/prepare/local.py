"""A pool of processes that share a list of work."""

import itertools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait

from tqdm import tqdm

from jpeglm.core.registry import CODECS, TOKENIZERS
from jpeglm.data.sources import SOURCES
from jpeglm.data.sources.base import Source


class Pool:
    """A pool whose processes end with their parent, and with few tasks in flight however long the list is.

    A dead worker raises (`BrokenProcessPool`) instead of being waited for.
    """

    def __init__(self, workers: int | None):
        """`workers`: if None, all cores that this process may use."""
        self._workers = workers or len(os.sched_getaffinity(0))

    def __enter__(self) -> "Pool":
        self._executor = ProcessPoolExecutor(
            self._workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(CODECS.kinds, TOKENIZERS.kinds, SOURCES),
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    def map_unordered(self, function: Callable, tasks: Iterable[tuple]) -> Iterator:
        """Yields the results of `function(*task)` as they complete."""
        tasks = iter(tasks)
        running = {self._executor.submit(function, *task) for task in itertools.islice(tasks, 2 * self._workers)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {self._executor.submit(function, *task) for task in itertools.islice(tasks, len(done))}
            yield from (future.result() for future in done)


def progress(total: int, unit: str, what: str) -> tqdm:
    return tqdm(total=total, unit=unit, desc=what, unit_scale=total >= 1_000_000, dynamic_ncols=True)


def _start_worker(
    codecs: dict[str, type | str], tokenizers: dict[str, type | str], sources: list[type[Source] | str]
) -> None:
    # A new process has only the kinds of this package, not those that other code has registered.
    CODECS.kinds.update(codecs)
    TOKENIZERS.kinds.update(tokenizers)
    SOURCES[:] = sources
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the pool already uses all cores

    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    # A worker waits for tasks on a pipe whose other end it also holds open, so it would outlive a killed parent.
    threading.Thread(target=end_with_parent, daemon=True).start()
