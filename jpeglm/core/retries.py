"""Reading files that may be damaged, or that cannot be read for a moment.

A disk or a store may refuse a read although every byte is in its place: no permission, a time-out, no memory. Such a
read is tried again, and after the last try its cause is told. Damage is what shows that bytes are missing or wrong: a
missing file, a checksum that differs, content that cannot be parsed. An error that is not known to be damage is not.
"""

import errno
import inspect
import logging as standard_logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from absl import logging
from etils import epath

from jpeglm.core.errors import InputError

WAITS = (1, 4, 16)  # seconds before the second try, the third and the last

_T = TypeVar("_T")


class Damaged(InputError):
    """Bytes of `what` are missing, or are not those that were written. `why`: the cause."""

    def __init__(self, what: str, why: str):
        super().__init__(f"{what}: {why}")
        self.what = what
        self.why = why

    def __reduce__(self) -> tuple[type["Damaged"], tuple[str, str]]:
        return Damaged, (self.what, self.why)


def read(action: Callable[[], _T], what: object) -> _T:
    """The result of `action`, which reads `what`; tried again where it fails for another reason than damage.

    Args:
      action: must open again what it reads, because a reader that has failed once may fail for ever.
      what: for messages.

    Raises:
      Damaged: at once, if bytes are missing or wrong.
      InputError: the cause of the last failure, if every try failed; at once, if `action` itself raised one.
    """
    _mute_abandoned()
    waits = iter(WAITS)
    while True:
        try:
            return action()
        except InputError:
            raise
        except Exception as error:
            why = cause(error)
            if is_damage(error):
                raise Damaged(str(what), why) from error
            wait = next(waits, None)
            if wait is None:
                raise InputError(f"cannot read {what}, tried {len(WAITS) + 1} times: {why}") from error
        logging.warning("cannot read %s (%s): tried again in %g s", what, why, wait)
        time.sleep(wait)


def read_text(path: Path | epath.Path) -> str | None:
    """A small file's content; None where there is no such file.

    Raises:
      InputError: it cannot be read, or is not UTF-8.
    """

    def action() -> str | None:
        try:
            return path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None

    return read(action, path)


def _mute_abandoned() -> None:
    """Coroutines and tasks whose errors are not awaited print no traceback on standard error, from now on.

    Orbax reads arrays at the same time. When one fails it abandons the others, and their errors say the same again.
    """
    logger = standard_logging.getLogger("asyncio")
    if _is_awaited not in logger.filters:
        logger.addFilter(_is_awaited)
    if not isinstance(sys.unraisablehook, _WithoutCoroutines):
        sys.unraisablehook = _WithoutCoroutines(sys.unraisablehook)


class _WithoutCoroutines:
    """A hook for errors that nobody can catch, which hands on all but those of coroutines."""

    def __init__(self, hook: Callable[["sys.UnraisableHookArgs"], object]):
        self._hook = hook

    def __call__(self, what: "sys.UnraisableHookArgs") -> None:
        if not inspect.iscoroutine(what.object):
            self._hook(what)


def _is_awaited(record: standard_logging.LogRecord) -> bool:
    return "exception was never retrieved" not in record.getMessage()


def cause(error: BaseException) -> str:
    """The root cause of an error in one line, without the specification that TensorStore appends."""
    *_, root = _causes(error)
    text = _SPECIFICATION.sub("", " ".join(str(root).split()))
    return f"{type(root).__name__}: {text}" if text else type(root).__name__


def is_damage(error: BaseException) -> bool:
    """Whether an error of the system, Orbax, TensorStore, ArrayRecord or a parser shows missing or wrong bytes."""
    errors = list(_causes(error))
    text = str(errors[-1])
    after = [*errors, *(error.__context__ for error in errors)]  # a parser may complain of what could not be read
    if any(isinstance(error, _OTHER) and not isinstance(error, FileNotFoundError) for error in after):
        return False
    if any(words in text for words in _OF_THE_SYSTEM):
        return False
    if isinstance(errors[-1], _BY_PARSERS):
        status = _STATUS.match(text)
        return not status or status[1] in _DAMAGE
    return isinstance(errors[-1], RuntimeError) and any(words in text for words in _BY_RECORDS)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, its cause, the cause of that, ..."""
    while error is not None:
        yield error
        error = error.__cause__


_SPECIFICATION = re.compile(r" \[tensorstore_spec='(?:[^'\\]|\\.)*'\]")
# Of the system and of memory: no damage, but for a missing file. Libraries repeat the system's words.
_OTHER = (OSError, MemoryError)
_OF_THE_SYSTEM = [os.strerror(code) for code in errno.errorcode if code != errno.ENOENT]
# TensorStore raises ValueErrors that begin with a status, as "DATA_LOSS: ...", but for those of its decoders.
_STATUS = re.compile(r"([A-Z]+(?:_[A-Z]+)*): ")
_DAMAGE = {"NOT_FOUND", "DATA_LOSS", "OUT_OF_RANGE", "FAILED_PRECONDITION", "INVALID_ARGUMENT"}
# What parsers raise that meet changed bytes in JSON, names, shapes or compressed data.
_BY_PARSERS = (
    ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, EOFError,
    NotImplementedError, RecursionError, FileNotFoundError,
)  # fmt: skip
# ArrayRecord raises RuntimeErrors for everything; JAX raises them too.
_BY_RECORDS = (
    "Corrupted ",
    "Invalid Riegeli",
    "Truncated Riegeli",
    "file should be at least",
    os.strerror(errno.ENOENT),
)
