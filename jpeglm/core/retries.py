"""Reading files that may be damaged or temporarily unreadable.

A read may fail although every byte is intact: no permission, a time-out, no memory. Such a read is retried, and after
the last try its cause is reported. Damage means that bytes are missing or wrong: a missing file, a checksum that
differs, content that cannot be parsed. An error that is not known to be damage is treated as a failed read, because a
good checkpoint must not be set aside by mistake.
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
    """Bytes of `what` are missing or differ from those written. `why`: the cause."""

    def __init__(self, what: str, why: str):
        super().__init__(f"{what}: {why}")
        self.what = what
        self.why = why

    def __reduce__(self) -> tuple[type["Damaged"], tuple[str, str]]:
        return Damaged, (self.what, self.why)


def read(action: Callable[[], _T], what: object) -> _T:
    """The result of `action`, which reads `what`; retried if it fails for a reason other than damage.

    Args:
      action: must reopen what it reads on each call, because a reader that has failed once may repeat its error.
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
    """The content of a small file; None if it does not exist.

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
    """From now on, coroutines and tasks whose errors are not awaited print no traceback.

    Orbax reads arrays concurrently. When one fails it abandons the others, and their errors only repeat the first.
    """
    logger = standard_logging.getLogger("asyncio")
    if _is_awaited not in logger.filters:
        logger.addFilter(_is_awaited)
    if not isinstance(sys.unraisablehook, _WithoutCoroutines):
        sys.unraisablehook = _WithoutCoroutines(sys.unraisablehook)


class _WithoutCoroutines:
    """A hook for unraisable errors, which forwards all except those of coroutines."""

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
    # a parser's error may be the consequence of a failed read
    after = [*errors, *(error.__context__ for error in errors)]
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
# Errors of the system and of memory are not damage, except for a missing file. Libraries quote the system's message.
_OTHER = (OSError, MemoryError)
_OF_THE_SYSTEM = [os.strerror(code) for code in errno.errorcode if code != errno.ENOENT]
# TensorStore raises ValueErrors that begin with a status, such as "DATA_LOSS: ..."; those of its decoders do not.
_STATUS = re.compile(r"([A-Z]+(?:_[A-Z]+)*): ")
_DAMAGE = {"NOT_FOUND", "DATA_LOSS", "OUT_OF_RANGE", "FAILED_PRECONDITION", "INVALID_ARGUMENT"}
# What parsers raise on changed bytes in JSON, names, shapes or compressed data. Orbax raises NotImplementedError for a
# kind of sharding that it does not know, such as one with a changed letter in its name.
_BY_PARSERS = (
    ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, EOFError,
    NotImplementedError, RecursionError, FileNotFoundError,
)  # fmt: skip
# ArrayRecord raises RuntimeError for everything, and so may JAX: only these texts mean damage.
_BY_RECORDS = (
    "Corrupted ",
    "Invalid Riegeli",
    "Truncated Riegeli",
    "file should be at least",
    os.strerror(errno.ENOENT),
)
