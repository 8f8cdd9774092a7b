"""What every command shares: flag parsing, one-line errors, exit statuses.

Exit status 0: done. 2: bad input that the user can mend, one line on standard error. 75: stopped on request, by the
watchdog or for another process that is gone (jpeglm/faults.py), start me again. 1: anything unexpected, with its
traceback.
"""

import contextlib
import logging as std_logging
import os
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from absl import app, flags, logging

from jpeglm.errors import Diverged, InputError, printable

EXIT_BAD_INPUT = 2
PACKAGE = Path(__file__).parent


def _tell(message: object) -> None:
    line = printable(" ".join(str(message).split()))
    print(f"{_program()}: error: {line}", file=sys.stderr, flush=True)
    sys.stdout.flush()


def _fail(message: object) -> None:
    _tell(message)
    # Not sys.exit: that waits for the other processes of the job, which wait for this one, and lets the threads of a
    # save that failed say more.
    os._exit(EXIT_BAD_INPUT)


def _is_worth_reading(record: std_logging.LogRecord) -> bool:
    # Orbax, Grain and JAX tell their inner workings at INFO: some forty lines a checkpoint. Orbax's errors are raised
    # as well, so that they come out once.
    path = Path(record.pathname)
    is_told_again = "orbax" in path.parts and record.levelno >= std_logging.ERROR
    return path.is_relative_to(PACKAGE) or (record.levelno > std_logging.INFO and not is_told_again)


def _tell_unraisable(event: "sys.UnraisableHookArgs") -> None:
    # Of the writes of a save, those under way when one fails report to an event loop that is gone.
    if str(event.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(event)


def _program() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name}" if spec else sys.argv[0]


def _parse(argv: Sequence[str]) -> list[str]:
    asked = {arg.lstrip("-") for arg in argv[1:] if arg.startswith("-")}
    if asked & {"help", "helpshort", "helpfull"}:
        app.usage(shorthelp="helpfull" not in asked, writeto_stdout=True, exitcode=0)  # does not return
    # config_flags raises KeyError/AttributeError for an unknown key and ValueError/TypeError for a wrong value. Each
    # is the user's to mend.
    try:
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS and flags.FLAGS.config is not None:
            flags.FLAGS.config.lock()  # a file that could not be read says so only when it is first used
        return rest
    except (flags.Error, InputError, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        _fail(_describe(error))


def _describe(error: Exception) -> object:
    if isinstance(error, OSError):
        return f"cannot load the config: {str(error).splitlines()[-1]}"  # the lines before tell where it looked
    if isinstance(error, AttributeError) and error.args and isinstance(error.args[0], KeyError):
        error = error.args[0]
    if isinstance(error, KeyError):
        return f"the config has no such key: {error.args[0]}"
    return error


def _nobody_reads() -> bool:
    """Whether standard output is a pipe whose reader, as `head`, has seen enough."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors are always told
    return any(event & select.POLLERR for _, event in poll.poll(0))


@contextlib.contextmanager
def only_standard_error() -> Iterator[None]:
    """Sends to standard error what is written to standard output meanwhile, by libraries in C++ too."""
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


def run(main: Callable[..., None], positional: Sequence[str] = ()) -> None:
    """Parses the flags and runs `main`; `InputError` becomes one line and exit status 2.

    Args:
      main: the command.
      positional: names of the arguments that are not flags; each must be given and is passed to `main`.
    """

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
            sys.stdout.flush()
        except InputError as error:
            _fail(error)
        except ImportError as error:
            if "Please install" not in str(error):  # as etils says of a workdir on gs:// where gcsfs is missing
                raise
            _fail(error)
        except Diverged as error:  # all processes meet it at the same step, and end together
            if str(error):
                _tell(error)
            sys.exit(1)
        except BrokenPipeError:
            if not _nobody_reads():
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor does the flush at exit complain
            sys.exit(1)

    app.run(wrapped, flags_parser=_parse)
