"""Exceptions that are shown to the user as one line, and how messages print untrusted names."""

import contextlib
import errno
import os
from collections.abc import Iterator


class InputError(ValueError):
    """Bad input: a file, flag, config or workdir that the user can correct.

    The message is one line and says what is wrong and where. Commands print it without a traceback and
    exit with status 2 (see `jpeglm.core.cli`).
    """


class Refused(InputError):
    """A picture or clip that cannot be used. `reason`: the class it is counted under; `detail`: the exact cause."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["Refused"], tuple[str, str]]:
        return Refused, (self.reason, self.detail)


class Diverged(ArithmeticError):
    """A loss, a gradient or a parameter is no longer finite. Commands print the line and exit with status 1."""


# TensorStore and Riegeli raise ValueError and RuntimeError whose text contains the system's message.
_REFUSALS = [os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)]


@contextlib.contextmanager
def writing(folder: object) -> Iterator[None]:
    """Turns a failed write (disk full, read-only, ...) into an InputError of one line that names `folder`.

    Raises:
      InputError: instead of an OSError, or of a library's error that contains the system's message.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}") from error
    except (ValueError, RuntimeError) as error:
        why = next((words for words in _REFUSALS if words in str(error)), None)
        if why is None or isinstance(error, InputError):
            raise
        raise InputError(f"cannot write {folder}: {why}") from error


@contextlib.contextmanager
def reading(path: object, what: str) -> Iterator[None]:
    """Turns any error while an untrusted file is parsed into an InputError of one line that names the file.

    Raises:
      InputError: instead of any exception: a damaged or hostile file can make a reader fail in any way.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except Exception as error:
        raise InputError(f"{path}: not a readable {what} ({type(error).__name__}: {error})") from error


def printable(name: object) -> str:
    """`str(name)` for a terminal or a log: control characters, line ends and bytes that are not UTF-8 are escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(name))
