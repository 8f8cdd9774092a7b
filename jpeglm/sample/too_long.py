"""Documents that are too long for a model: they are left out, named and counted, after the others are done."""

from collections.abc import Mapping

from absl import logging

from jpeglm.core.errors import InputError, printable

_NAMED = 3  # named in the last line; the log names all


class TooLong(InputError):
    """A document or a prompt has more tokens than there is room for. The message gives both numbers."""


def leave_out(documents: Mapping[str, bytes], too_long: Mapping[str, str]) -> dict[str, bytes]:
    """The documents that are not in `too_long`; logs the reasons for the others.

    Raises:
      InputError: none is left.
    """
    for name, why in too_long.items():
        logging.warning("left out %s: %s", printable(name), why)
    if len(too_long) == len(documents):
        raise InputError(summary(too_long, len(documents)))
    return {name: document for name, document in documents.items() if name not in too_long}


def finish(too_long: Mapping[str, str], total: int, is_allowed: bool) -> None:
    """Reports at the end of a command that it left out `too_long` of `total` documents.

    Raises:
      InputError: some were left out, and the user has not allowed that.
    """
    if too_long and is_allowed:
        logging.warning("%s", summary(too_long, total))
    elif too_long:
        raise InputError(f"{summary(too_long, total)} (--allow_too_long: no error)")


def summary(too_long: Mapping[str, str], total: int) -> str:
    """One line: how many were left out, and the first of them with their reasons."""
    named = [f"{printable(name)}: {why}" for name, why in list(too_long.items())[:_NAMED]]
    more = [f"and {len(too_long) - _NAMED} more"] if len(too_long) > _NAMED else []
    return f"{len(too_long)} of {total} are too long and left out: {'; '.join(named + more)}"
