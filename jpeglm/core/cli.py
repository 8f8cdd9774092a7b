"""What every command shares: flag parsing, one-line errors, exit statuses.

Exit status 0: done. 2: bad input that the user can fix, reported in one line on standard error. 75: stopped on
request, by the watchdog or because another process died; run the same command again. 1: anything unexpected, with its
traceback.
"""

import contextlib
import functools
import io
import logging as std_logging
import math
import os
import re
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from jpeglm.core import config as config_lib
from jpeglm.core import ranges
from jpeglm.core.errors import Diverged, InputError, printable

EXIT_BAD_INPUT = 2
PACKAGE = Path(__file__).parents[1]
_FLOATS = ranges.Range(math.isfinite, "a finite number")
_INTEGERS = ranges.Range(lambda value: abs(value) < 2**32, "a whole number of at most 32 bits")
flags.disclaim_key_flags()  # flags defined here belong to the command


def _tell(message: object) -> None:
    line = printable(" ".join(str(message).split()))
    print(f"{_program()}: error: {line}", file=sys.stderr, flush=True)
    _flush()


def _flush() -> None:
    if sys.stdout is not None:  # closed by whoever started this
        sys.stdout.flush()


def _fail(message: object) -> NoReturn:
    _tell(message)
    # Not sys.exit: it waits for the other processes of the job, which wait for this one, and the threads of a failed
    # save would print more.
    os._exit(EXIT_BAD_INPUT)


def _is_worth_reading(record: std_logging.LogRecord) -> bool:
    # Orbax, Grain and JAX log their internals at INFO: some forty lines per checkpoint. Orbax also raises the errors
    # that it logs, so they would be printed twice.
    path = Path(record.pathname)
    is_told_again = "orbax" in path.parts and record.levelno >= std_logging.ERROR
    return path.is_relative_to(PACKAGE) or (record.levelno > std_logging.INFO and not is_told_again)


def _tell_unraisable(event: "sys.UnraisableHookArgs") -> None:
    # When one write of a save fails, the other writes in progress report to an event loop that is already closed.
    if str(event.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(event)


def _program() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else sys.argv[0]


class _ConfigFile(flags.ArgumentParser):
    """Loads the file that --config names, and checks that it has the keys of --config.KEY=VALUE."""

    def parse(self, path: str) -> ConfigDict:
        """The config, locked. Raises flags.Error if it cannot be loaded or lacks a key."""
        try:
            config = config_lib.load(path)
        except InputError as error:  # a ValueError, which absl would reword
            raise flags.Error(str(error)) from error
        for argument in sys.argv[1:]:
            if found := re.match(r"--?(?:no)?config\.([^=\[]+)=?(.?)", argument):
                _check_key(config, *found.groups())
        return config.lock()

    def flag_type(self) -> str:
        """For --helpxml."""
        return "config object"


def _check_key(config: ConfigDict, key: str, begin: str) -> None:
    """Raises flags.Error for an unknown key, and for a section whose value does not begin with "{"."""
    known = ranges.flat(config.to_dict())
    section = [name for name in known if name.startswith(f"{key}.")]
    if section and begin != "{":
        raise flags.Error(f"config.{key} is a section, its keys are {', '.join(section)}")
    if not section and key not in known:
        raise flags.Error(f"config.{key}: no such key{ranges.did_you_mean(key, known, 'config.')}")


def define_config(what: str = "File with get_config(); single keys as --config.KEY=VALUE.") -> flags.FlagHolder:
    """Defines the flag --config, whose value is the ConfigDict; `what` is its text in --help."""
    holder = config_flags.DEFINE_config_file("config", None, what)
    flags.FLAGS["config"].parser = _ConfigFile()
    return holder


def _parse(argv: Sequence[str], required: Sequence[str]) -> list[str]:
    asked = {arg.lstrip("-") for arg in argv[1:] if arg.startswith("-")}
    if asked & {"help", "helpshort", "helpfull"}:
        app.usage(shorthelp="helpfull" not in asked, writeto_stdout=True, exitcode=0)  # does not return
    try:
        rest = flags.FLAGS(argv)
        _check_flags(required)
        return rest
    except flags.UnrecognizedFlagError as error:
        known = [flag.name for flag in flags.FLAGS.get_key_flags_for_module(argv[0])]
        if "config" in flags.FLAGS and isinstance(config := flags.FLAGS["config"].value, ConfigDict):
            known += [f"config.{key}" for key in ranges.flat(config.to_dict())]
        hint = ranges.did_you_mean(error.flagname, known, "--")
        is_key = error.flagname.startswith("config.") or not hint
        if "config" in flags.FLAGS and flags.FLAGS["config"].value is None and is_key:
            hint = "; with --config=FILE before it, a key of the config is --config.KEY=VALUE"
        _fail(f"unknown flag --{error.flagname}{hint}")
    # config_flags may raise any of these for a value that does not fit its key.
    except (flags.Error, InputError, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        _fail(error)


def _check_flags(required: Sequence[str]) -> None:
    """Raises InputError for missing flags and for numbers out of range."""
    missing = [f"--{name}" for name in required if not flags.FLAGS[name].value]
    if missing:
        raise InputError(f"{' and '.join(missing)} {'are' if missing[1:] else 'is'} needed; see --help")
    for name in flags.FLAGS:
        value = flags.FLAGS[name].value
        is_of_config = name.startswith("config.")  # which is checked as a whole
        if isinstance(value, int | float) and not is_of_config:
            by_type = _FLOATS if isinstance(value, float) else _INTEGERS
            ranges.check_one(f"--{name}", value, config_lib.FLAGS.get(name, by_type))


def _unreachable_store(error: Exception) -> str:
    """Why a path on a remote store cannot be reached; "" if the error has another cause."""
    if isinstance(error, ImportError):
        return str(error) if "install" in str(error).lower() else ""  # such as gs:// or s3:// without gcsfs or s3fs
    scheme = str(error.args[0]) if error.args else ""
    return f"{scheme}: there is no such store; gs:// and s3:// are known" if scheme.endswith("://") else ""


def _nobody_reads() -> bool:
    """Whether standard output is a pipe whose reader (such as `head`) has closed it."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors are always reported
    return any(event & select.POLLERR for _, event in poll.poll(0))


@contextlib.contextmanager
def only_standard_error() -> Iterator[None]:
    """Redirects standard output to standard error inside the block, also for output of C++ libraries."""
    if sys.stdout is None:  # closed by whoever started this
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def run(main: Callable[..., None], positional: Sequence[str] = (), required: Sequence[str] = ()) -> None:
    """Parses the flags and runs `main`; `InputError` becomes one line and exit status 2.

    Args:
      main: the command.
      positional: names of the arguments that are not flags; each must be given and is passed to `main`.
      required: names of the flags that must be given.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # not closed; a file name may not be encodable for the terminal
        sys.stdout.reconfigure(errors="backslashreplace")

    def wrapped(argv: Sequence[str]) -> None:
        given = argv[1:]
        if len(given) > len(positional):
            _fail(f"unexpected argument {given[len(positional)]!r}; flags are written --name=value")
        if len(given) < len(positional):
            _fail(f"missing argument {positional[len(given)]}")
        logging.set_verbosity(logging.INFO)
        logging.get_absl_handler().addFilter(_is_worth_reading)
        sys.unraisablehook = _tell_unraisable
        try:
            main(*given)
            _flush()
        except InputError as error:
            _fail(error)
        except (ImportError, KeyError) as error:
            if not (why := _unreachable_store(error)):
                raise
            _fail(why)
        except Diverged as error:  # all processes raise it at the same step, and end together
            if str(error):
                _tell(error)
            sys.exit(1)
        except BrokenPipeError:
            if not _nobody_reads():
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit does not fail
            sys.exit(1)

    app.run(wrapped, flags_parser=functools.partial(_parse, required=required))
