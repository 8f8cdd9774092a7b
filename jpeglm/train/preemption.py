"""Preemption, hangs and lost processes: how a run detects them and how it ends."""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from types import TracebackType

import jax
from absl import logging
from jax.experimental import multihost_utils

from jpeglm.core.errors import Diverged, InputError

EXIT_AGAIN = 75  # stopped on request or by the watchdog: start again (EX_TEMPFAIL of sysexits.h)


class Preemption:
    """A request to stop: SIGTERM from a scheduler to any process of the job; in a single process also Ctrl-C.

    In a job of several processes JAX's own handler informs all of them and agrees on the step. A Python signal handler
    would silently replace it, so none is installed there.
    """

    _questions = 0  # asked by this process, over all its runs

    def __init__(self) -> None:
        self._is_asked = False
        self._has_peers = jax.distributed.is_initialized()
        # only the main thread may handle signals
        is_main_thread = threading.current_thread() is threading.main_thread()
        numbers = () if self._has_peers or not is_main_thread else (signal.SIGTERM, signal.SIGINT)
        self._before = {number: signal.signal(number, self._ask) for number in numbers}

    def release(self) -> None:
        """Restores the previous signal handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        self._is_asked = True
        signal.signal(number, signal.SIG_DFL)
        logging.warning("asked to stop: finishing this step and saving a checkpoint; a second request stops at once")

    def reached(self) -> bool:
        """Whether to stop now, the same on all processes. Each asks before the loop and after each of its steps."""
        if not self._has_peers:
            return self._is_asked
        # JAX stops at the question after the latest one that any process has asked, so their numbers must have no
        # gaps.
        Preemption._questions += 1
        return multihost_utils.reached_preemption_sync_point(Preemption._questions)


class Watchdog:
    """Prints the stacks of all threads and exits with EXIT_AGAIN if there is no `beat` for `seconds`.

    A collective waits forever for a process or device that hangs. With a watchdog in every process, none is left over.
    """

    def __init__(self, seconds: float):
        """`seconds`: must exceed the slowest step, evaluation batch or wait for a checkpoint; 0: never."""
        self._seconds = seconds
        self._what = "the first step"
        self._last = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self.beat(self._what)
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()

    def beat(self, what: str) -> None:
        """Reports progress; `what` begins now and is named in the last message."""
        self._what, self._last = what, time.monotonic()

    def _watch(self) -> None:
        pause = min(1.0, self._seconds / 4)
        before = time.monotonic()
        while not self._done.wait(pause):
            now = time.monotonic()
            if now - before > 10 + pause:
                self._last += now - before  # this process itself was suspended, and resumed
            before = now
            if now - self._last > self._seconds:
                try:
                    faulthandler.dump_traceback(all_threads=True)
                    where = f"process {jax.process_index()} of {jax.process_count()}"
                    print(
                        f"{where}: {self._what} has not ended in {self._seconds:g} s; its threads stand as above; "
                        f"exit {EXIT_AGAIN}, start me again",
                        file=sys.stderr,
                        flush=True,
                    )
                finally:  # even if standard error cannot be written
                    os._exit(EXIT_AGAIN)  # a normal exit may hang


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """Exits at once on an error in a job of several processes, with EXIT_AGAIN if another process died.

    The normal exit waits for the other processes, which wait for this one.
    """
    try:
        yield
    except (InputError, Diverged, SystemExit):
        raise  # reported in one line, or intended
    except BaseException as error:
        if not jax.distributed.is_initialized():
            raise
        is_lost = isinstance(error, jax.errors.JaxRuntimeError) and any(word in str(error) for word in _LOST)
        if is_lost:
            where = f"process {jax.process_index()} of {jax.process_count()}"
            why = str(error).splitlines()[0]
            line = f"{where}: another may be gone ({why}); exit {EXIT_AGAIN}, start me again"
            print(line, file=sys.stderr, flush=True)
        else:
            traceback.print_exc()
        os._exit(EXIT_AGAIN if is_lost else 1)


# Messages of Gloo (CPUs), NCCL (GPUs: not tried) and JAX's own service when a connection breaks. An error with another
# cause would occur again, and the launchers limit the number of restarts.
_LOST = (
    "Gloo", "NCCL", "remote process exited", "heartbeat",
    "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED",
)  # fmt: skip
